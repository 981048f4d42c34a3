"""The file of a guessed config: YAML with a reason beside each key that was guessed, fit to be changed and trained."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from clipx.checkpoint.store import CONFIG
from clipx.config.load import overridden
from clipx.config.yaml_text import read_yaml, write_yaml
from clipx.errors import InputError
from clipx.fitting.guess import Guess, Tree

FILE = "fit.yaml"

_MARK = "# A config that `clipx fit` guessed"
_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):(?= |$)")


def with_overrides(guess: Guess, overrides: Sequence[str]) -> Guess:
    """The guess changed by `key=value`; what was changed has no reason any more.

    Raises:
        InputError: an override has no `=`.
    """
    tree = overridden(guess.tree, overrides)
    kept = {key: why for key, why in guess.reasons.items() if at(tree, key) == at(guess.tree, key)}
    return replace(guess, tree=tree, reasons=kept)


def at(tree: Tree, key: str) -> Any:
    """What stands at a dotted key; None if nothing does."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def guessed_text(guess: Guess) -> str:
    """The YAML of a guess, a reason behind each line that it is of."""
    plain = write_yaml(guess.tree)
    head = f"{_MARK}; change it, and train it in another run_dir: clipx train {FILE} run_dir=DIR\n"
    text = head + "".join(_commented(plain.splitlines(), guess.reasons))
    try:
        is_same = read_yaml(text) == guess.tree
    except yaml.YAMLError:
        is_same = False
    return text if is_same else head + plain  # a name with line breaks may have looked like a key


def _commented(lines: Sequence[str], reasons: Mapping[str, str]) -> Iterator[str]:
    path: list[str] = []
    for line in lines:
        if match := _KEY.match(line):
            path = [*path[: len(match["indent"]) // 2], match["key"]]
            if why := reasons.get(".".join(path)):
                yield f"{line}  # {' '.join(why.split())}\n"
                continue
        yield f"{line}\n"


def settle(text: str, folder: Path) -> Path:
    """Writes the file of a guess into a run folder, or finds the same one there, of an earlier start.

    One of a run that never began to train is replaced: what was wrong with it may be corrected.

    Raises:
        InputError: the folder has another one, or another run, or cannot be written.
    """
    path = folder / FILE
    try:
        before = path.read_text(encoding="utf-8") if os.path.lexists(path) else ""
        is_own, has_begun = before.startswith(_MARK), (folder / CONFIG).exists()
        if not has_begun and (not before or is_own):
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f".{FILE}.{os.getpid()}"  # each rank writes the same
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
            return path
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be used: {error}; choose another --out") from error
    if not before:
        raise InputError(f"--out {folder} holds a run that clipx fit did not begin; choose another")
    if not is_own:
        raise InputError(f"{path} is there, and clipx fit did not write it; choose another --out")
    if before != text:
        raise InputError(
            f"{path} is of another fit ({_difference(before, text)}); go on with that one by clipx train {path}, or "
            "choose another --out"
        )
    return path


def _difference(before: str, now: str) -> str:
    """The first line that differs."""
    for old, new in zip(before.splitlines(), now.splitlines(), strict=False):
        if old != new:
            return f"{old.strip()!r} there, {new.strip()!r} now"
    return "one of them has more lines"
