"""What a ladder is, read from its YAML: recipes of ingredients over one base config, sets, figures (ladder.py's input).

    base: [configs/vit_tiny_photos_cpu.yaml]     files of all recipes, from the root of the repository
    clock: cpu                                   cpu: seconds of all processes of a run; wall: of the clock
    launch: ["{python}", -m, MODULE, ...]        what starts the processes of a run; only with `clock: wall`
    points: 8                                    evaluations along a run, the last at its end
    set: ["data.train=[{data}/train]", ...]      overrides of all recipes
    splits: {NAME: {from: FOLDER, by: key}}      sets cut in two: what is chosen by, and what is reported
    evaluate: {NAME: {type: retrieval, ...}}     instead of the base's
    suite: {name: datacomp38, data_root: DIR}    measured once, at the end of every run
    figures: {TITLE: {choose: NAME.METRIC, report: NAME.METRIC}}
    ingredients: {NAME: {files: [...], set: [...], prepare: [COMMAND, ...]}}
    recipes: {NAME: [INGREDIENT, ...]}           plain: [] is what all others are compared with
    whole: [INGREDIENT, ...]                     for the ablation: each alone, and each taken away
    peers: [open_clip]

In strings, {data} is the folder of --data, {work} that of --work, {prepared} the ingredient's own folder there,
{python} the interpreter, and {90%} so much of the run's steps.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipx.config.load import read_tree
from clipx.config.suite import load_suite
from clipx.errors import InputError

ROOT = Path(__file__).parents[1]
PLAIN, WHOLE = "plain", "whole"
PEERS = ("open_clip",)
_KEYS = {"base", "clock", "launch", "points", "set", "splits", "evaluate", "suite", "figures", "ingredients"}
_KEYS |= {"recipes", "whole", "peers"}
_SHARE = re.compile(r"\{(\d+(?:\.\d+)?)%\}")
_NAME = re.compile(r"\w[\w.]*")


@dataclass(frozen=True)
class Ingredient:
    """What a recipe adds to the base."""

    name: str
    files: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    """Commands that run once before all runs; what they take is counted apart."""


@dataclass(frozen=True)
class Recipe:
    """A config, but for its length and its seed."""

    name: str
    ingredients: tuple[Ingredient, ...]
    trainer: str
    fingerprint: str
    """Of all that the training depends on; rows of another one are another recipe's."""


@dataclass(frozen=True)
class Figure:
    """One number of an evaluation, as SET.METRIC: what is chosen by, and what is reported; one of them may be None."""

    title: str
    choose: str | None
    report: str | None


@dataclass(frozen=True)
class Ladder:
    """A ladder's file, checked."""

    name: str
    base: tuple[str, ...]
    clock: Literal["cpu", "wall"]
    launch: tuple[str, ...]
    points: int
    set: tuple[str, ...]
    splits: Mapping[str, Mapping[str, str]]
    evaluate: Mapping[str, Mapping[str, Any]]
    suite: Mapping[str, str]
    figures: tuple[Figure, ...]
    recipes: Mapping[str, Recipe]
    ablation: tuple[str, ...]
    """Names of the ablation's recipes; empty without `whole`."""
    whole: tuple[str, ...] = field(default=())


def read_ladder(path: Path) -> Ladder:
    """The ladder of a file.

    Raises:
        InputError: a key, an ingredient or a figure is wrong, or a file is not there.
    """
    tree = read_tree(path)
    if unknown := tree.keys() - _KEYS:
        raise InputError(f"{path}: unknown keys {', '.join(sorted(unknown))}; a ladder has {', '.join(sorted(_KEYS))}")
    if missing := {"base", "figures", "recipes"} - tree.keys():
        raise InputError(f"{path}: {', '.join(sorted(missing))} must be given")
    clock, launch = tree.get("clock", "cpu"), tuple(map(str, tree.get("launch", ())))
    if clock not in ("cpu", "wall") or (clock == "cpu" and launch):
        raise InputError(f"{path}: clock={clock} with launch={list(launch)}: cpu is for one process, else wall")
    parts = _Parts(path, tree)
    evaluate = tree.get("evaluate", {})
    suite, of_suite = tree.get("suite", {}), {"mean"}
    if suite:
        of_suite |= load_suite(suite.get("name", "")).sets.keys()
        if not evaluate:
            raise InputError(f"{path}: suite={suite['name']} without evaluate: name there what recipes are chosen by")
        if tree.get("peers"):
            raise InputError(
                f"{path}: peers={tree['peers']} leave no run that suite can measure; leave out one of them"
            )
    if launch and tree.get("peers"):
        raise InputError(f"{path}: peers={tree['peers']} run in one process; leave them or launch out")
    whole = tuple(tree.get("whole", ()))
    recipes = parts.recipes(whole)
    return Ladder(
        name=path.stem,
        base=parts.base,
        clock=clock,
        launch=launch,
        points=_count(path, tree.get("points", 8)),
        set=parts.overrides,
        splits=tree.get("splits", {}),
        evaluate=evaluate,
        suite=suite,
        figures=_figures(path, tree["figures"], {*evaluate, *(["suite"] if suite else [])}, of_suite=of_suite),
        recipes=recipes,
        ablation=tuple(_ablation(whole)) if whole else (),
        whole=whole,
    )


class _Parts:
    """The recipes of a ladder's tree."""

    def __init__(self, path: Path, tree: Mapping[str, Any]) -> None:
        self.path, self.tree = path, tree
        self.base, self.overrides = tuple(tree["base"]), tuple(tree.get("set", ()))
        self.ingredients = {
            name: _ingredient(path, name, content or {}) for name, content in tree.get("ingredients", {}).items()
        }

    def recipes(self, whole: Sequence[str]) -> dict[str, Recipe]:
        named: dict[str, Sequence[str]] = {PLAIN: [], **self.tree["recipes"]}
        if whole:
            named |= _ablation(whole)
        found = {name: self._recipe(name, wanted or [], "clipx") for name, wanted in named.items()}
        for peer in self.tree.get("peers", ()):
            if peer not in PEERS:
                raise InputError(f"{self.path}: peers: {peer} is none of {', '.join(PEERS)}")
            found[peer] = self._recipe(peer, (), peer)
        return found

    def _recipe(self, name: str, wanted: Sequence[str], trainer: str) -> Recipe:
        if not _NAME.fullmatch(name):
            raise InputError(f"{self.path}: recipe {name!r}: a name is of letters, digits, _ and .")
        if unknown := [one for one in wanted if one not in self.ingredients]:
            raise InputError(f"{self.path}: recipe {name}: no ingredient is called {', '.join(unknown)}")
        chosen = tuple(self.ingredients[one] for one in wanted)
        files = [*self.base, *(file for one in chosen for file in one.files)]
        content: list[object] = [read_tree(ROOT / file) for file in files]
        content += [self.overrides, [[one.set, one.prepare] for one in chosen], trainer]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return Recipe(name, chosen, trainer, digest[:10])


def _ingredient(path: Path, name: str, content: Mapping[str, Any]) -> Ingredient:
    known = ("files", "set", "prepare")
    wrong = [key for key, value in content.items() if key not in known or not isinstance(value, list)]
    if wrong or not _NAME.fullmatch(name):
        raise InputError(f"{path}: ingredient {name}: expected lists {', '.join(known)}, found {', '.join(wrong)}")
    return Ingredient(name, *(tuple(content.get(key, ())) for key in known))


def _ablation(whole: Sequence[str]) -> dict[str, list[str]]:
    """Names and ingredients of the ablation's recipes: nothing, each alone, each taken away, all."""
    found: dict[str, list[str]] = {PLAIN: []}
    found |= {f"only_{name}": [name] for name in whole}
    found |= {f"without_{name}": [other for other in whole if other != name] for name in whole}
    return found | {WHOLE: list(whole)}


def _figures(path: Path, tree: Mapping[str, Any], sets: set[str], *, of_suite: set[str]) -> tuple[Figure, ...]:
    found = []
    for title, sides in tree.items():
        if not isinstance(sides, dict) or not sides or sides.keys() - {"choose", "report"}:
            raise InputError(f"{path}: figures: {title}: {sides}: expected {{choose: SET.METRIC, report: SET.METRIC}}")
        for side, name in sides.items():
            of, _, metric = str(name).partition(".")
            if of not in sets:
                raise InputError(f"{path}: figures: {title}: {side}: {of!r} is none of {', '.join(sorted(sets))}")
            if of == "suite" and metric not in of_suite:
                raise InputError(f"{path}: figures: {title}: {side}: {metric!r} is neither mean nor a set of the suite")
        found.append(Figure(title, sides.get("choose"), sides.get("report")))
    return tuple(found)


def _count(path: Path, value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: points={value} must be a number from 1 on")
    return value


def filled(text: str, places: Mapping[str, str], *, steps: int) -> str:
    """A string of the ladder with its places filled in."""
    text = _SHARE.sub(lambda share: str(max(1, round(float(share[1]) / 100 * steps))), text)
    for name, value in {**places, "python": sys.executable}.items():
        text = text.replace(f"{{{name}}}", value)
    return text
