"""Reads YAML files and `key=value` overrides into one validated `RunConfig`, and writes it back as text.

Layers merge from left to right: mappings merge key by key, any other value replaces the earlier one. The result is
validated once.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from clipx.config.fit import FitConfig
from clipx.config.model import ModelConfig
from clipx.config.schema import JobConfig, ModelFile, RunConfig
from clipx.config.sections import as_tree
from clipx.config.shipped import config_path
from clipx.config.validate import Keys, Tree, is_one_value, shared_keys, validate, with_default_types
from clipx.config.yaml_text import read_yaml, write_yaml
from clipx.errors import InputError
from clipx.printable import redact, redacted

log = logging.getLogger(__name__)

_PADDED: tuple[Keys, ...] = (("model", "text"), ("encoder", "text"))

StartingModel = Callable[[str, str], ModelConfig]
"""From `start_from` (or `encoder.from`) and `run_dir`, as they are written, to the config of the model there."""


def load_config(
    files: Path | str | Sequence[Path | str],
    overrides: str | Sequence[str] = (),
    *,
    starting_model: StartingModel | None = None,
) -> JobConfig:
    """The config of a run: the files merged from left to right, then changed by the overrides.

    If a mapping's `type` changes, what was said of the other variant goes, and what all variants share stays: lr,
    warm-up and schedule of any optimizer. Mappings with free keys (model.image.options) are always replaced. Overrides
    form one layer: their order does not matter, except that the later of two for the same key wins.

    A `model` (or `encoder`) that does not name its image tower, or that is null, lies over that of `start_from`.

    Args:
        files: a YAML file, or several; a file that comes with clipx also by its name, e.g. `tiny`.
        overrides: `key.sub=value`, one or several, the value in YAML (`optim.lr=3e-4`, `data.train=[a.tar, b.tar]`).
        starting_model: what looks at the model of `start_from`; without it `model` must be whole.

    Raises:
        InputError: a file is missing or is not a YAML mapping, an override has no `=`, or the config breaks a rule, in
            which case the message has one line per problem, with key, value and rule.
    """
    files = [files] if isinstance(files, str | Path) else files
    overrides = [overrides] if isinstance(overrides, str) else overrides
    if not files:
        raise InputError("no config file given: name at least one .yaml file")
    layers = [read_tree(config_path(file)) for file in files]
    root = _root([*layers, *({"job": text.removeprefix("job=")} for text in overrides if text.startswith("job="))])
    changes: Tree = {}
    for text in overrides:
        changes = _merge(root, changes, _read_override(root, text))
    layers.append(changes)
    tree = _merged(root, layers)
    if starting_model is not None:
        tree = _with_start(root, tree, layers, starting_model)
    config: JobConfig = validate(root, tree)
    return config


def _root(layers: Sequence[Tree]) -> type:
    """The class of the config, by the last `job` that the layers name."""
    jobs = [layer["job"] for layer in layers if "job" in layer]
    if not jobs or jobs[-1] == "pretrain":
        return RunConfig
    if jobs[-1] == "fit":
        return FitConfig
    raise InputError(f"job={jobs[-1]}: expected pretrain or fit")


def _with_start(root: type, tree: Tree, layers: Sequence[Tree], starting_model: StartingModel) -> Tree:
    """The tree whose towers, if it does not say them, lie over those of the model that the run starts from."""
    if root is FitConfig:
        key, towers = "encoder", tree.get("encoder")
        start = towers.get("from") if isinstance(towers, dict) else None
    else:
        key, towers, start = "model", tree.get("model"), tree.get("start_from")
    if not isinstance(start, str) or not start.strip() or _is_whole(towers):
        return tree
    try:
        loaded = {key: as_tree(starting_model(start, str(tree.get("run_dir", ""))))}
    except InputError as error:
        raise InputError(f"{'encoder.from' if key == 'encoder' else 'start_from'}: {error}") from error
    nulled = (key in layer and layer[key] is None for layer in layers)
    return _merged(
        root, [loaded, *(layer | loaded if null else layer for layer, null in zip(layers, nulled, strict=True))]
    )


def overridden(tree: Tree, overrides: Sequence[str]) -> Tree:
    """A tree of plain values changed by overrides, as `load_config` would change a file of it; not validated.

    Raises:
        InputError: an override has no `=`, or names a part of what is one value.
    """
    root = _root([tree])
    changes: Tree = {}
    for text in overrides:
        changes = _merge(root, changes, _read_override(root, text))
    return _merge(root, tree, changes)


def load_stored(file: Path) -> JobConfig | ModelFile:
    """The config beside a stored model: of its run, or where the file has nothing else, of the model alone.

    Raises:
        InputError: the cases of `load_config`.
    """
    tree = read_tree(file)
    return validate(ModelFile, tree) if tree.keys() == {"model"} else load_config(file)


def dump_config(config: JobConfig | ModelFile) -> str:
    """YAML of every value in the order of the schema; what read the config reads it into an equal one.

    Secrets are left out: what is written of a config is read by more people than the config. `${NAME}` stays.
    """
    return write_yaml(redacted(as_tree(config)))


def warn_of_secrets(config: JobConfig) -> None:
    """Logs what to do if the config holds secrets, which `dump_config` leaves out."""
    hidden = list(_hidden(as_tree(config)))
    if hidden:
        more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
        log.warning(
            "the config holds secrets (%s%s): they are used, and left out of all that is written; better give them "
            "as ${NAME}, with NAME in the environment",
            hidden[0],
            more,
        )


def _hidden(value: Any) -> Iterator[str]:
    """The strings that hold a secret, without it."""
    if isinstance(value, str):
        if (clean := redact(value)) != value:
            yield clean
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _hidden(item)


def _merged(root: type, layers: Sequence[Tree]) -> Tree:
    return reduce(lambda below, above: _merge(root, with_default_types(root, below), above), layers, {})


def _is_whole(model: Any) -> bool:
    """Whether a tree of `model` says what its towers are; what is no mapping is left to the rules."""
    if not isinstance(model, dict):
        return model is not None
    image = model.get("image", {})
    return not isinstance(image, dict) or "name" in image


def read_tree(path: Path) -> Tree:
    """The plain values of a YAML file.

    Raises:
        InputError: it cannot be read, or is no YAML mapping.
    """
    try:
        value = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a YAML file: byte {error.start} is not UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}{_place(error)}: not valid YAML: {_problem(error)}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: the top level is a {type(value).__name__}; a config is a mapping of `key: value`")
    return value


def _read_override(root: type, text: str) -> Tree:
    key, equals, value = text.partition("=")
    *parents, name = key.split(".")
    if not equals or not all((*parents, name)):
        raise InputError(f"{text!r}: an override is key=value, e.g. optim.lr=3e-4")
    try:
        tree: Tree = {name: _read_value(value)}
    except yaml.YAMLError as error:
        raise InputError(f"{text!r}: the value is not valid YAML ({_problem(error)}); put it in quotes") from error
    for end in range(1, len(parents) + 1):
        if is_one_value(root, tuple(parents[:end])):
            parent = ".".join(parents[:end])
            raise InputError(f"{text!r}: {parent} is one value; give it whole, as {parent}={{key: value}}")
    return _nested(parents, tree)


def _read_value(text: str) -> Any:
    """The value of YAML; plain text as it stands, though YAML would drop what follows ` #` and join lines."""
    value = read_yaml(text)
    is_plain = isinstance(value, str) and not text.lstrip().startswith(("'", '"', "|", ">", "&", "!"))
    is_folded = "\n" in text.strip() and value == " ".join(text.split())
    return text.strip() if is_plain and (" #" in text or is_folded) else value


def _nested(path: Sequence[str], tree: Tree) -> Tree:
    """A tree with `tree` at `path` and nothing else."""
    return reduce(lambda inner, key: {key: inner}, reversed(path), tree)


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    """PyYAML's message in one line, without its excerpt of the file."""
    return getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]


def _merge(root: type, below: Tree, above: Tree, path: Keys = ()) -> Tree:
    """Merges two trees, which are at `path`, into a new one: values of `above` win.

    Mappings merge, unless their keys are free; where their types differ, `below` counts in what the variants share.
    Texts that are padded are padded to their length, whichever layer says it.
    """
    if "type" in below and above.get("type", below["type"]) != below["type"]:
        shared = shared_keys(root, path, tags=(below["type"], above["type"]))
        below = {key: value for key, value in below.items() if key in shared}
    merged = dict(below)
    for key, value in above.items():
        old, key_path = below.get(key), (*path, key)
        if isinstance(old, dict) and isinstance(value, dict) and not is_one_value(root, key_path):
            merged[key] = _merge(root, old, value, key_path)
        else:
            merged[key] = value
    if path in _PADDED and "pad" not in above and below.get("pad") is not None and "context_length" in above:
        merged["pad"] = above["context_length"]
    return merged
