"""The config of a run, whose model may be left out: it is then the one that the run starts from; needs no torch.

`clipx.config.load` merges and checks; it knows no models, which lie on higher floors.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from clipx.checkpoint.find import find_config
from clipx.checkpoint.store import CONFIG
from clipx.config import load
from clipx.config.model import ModelConfig
from clipx.config.paths import expand_home
from clipx.config.schema import JobConfig
from clipx.errors import InputError
from clipx.pretrained.stored_model import described, stored_model, without_download


def load_config(files: Path | str | Sequence[Path | str], overrides: str | Sequence[str] = ()) -> JobConfig:
    """The config of a run: the files merged from left to right, then changed by the overrides.

    With `start_from`, `model` may be left out, or hold only what shall differ from the model that is there, e.g.
    `model: {image: {image_size: 336}}`. It is whole, and stays as it is, if it names its image tower; `model: null`
    takes back what files before have said. A run that goes on finds its model in its own folder if that of `start_from`
    is no longer there.

    Args:
        files: a YAML file, or several; a file that comes with clipx also by its name, e.g. `tiny`.
        overrides: `key.sub=value`, one or several, the value in YAML (`optim.lr=3e-4`, `data.train=[a.tar, b.tar]`).

    Raises:
        InputError: a file is missing or is not a YAML mapping, an override has no `=`, no model is where the run starts
            from, or the config breaks a rule, in which case the message has one line per problem.
    """
    return load.load_config(files, overrides, starting_model=_starting_model)


def _starting_model(start_from: str, run_dir: str) -> ModelConfig:
    path = expand_home(start_from)
    own = _model_of_run(Path(expand_home(run_dir)), start_from=path)
    try:
        files = find_config(path)
        model = stored_model(files)
    except InputError:
        if own is None:
            raise
        return own
    if own is not None and files.kind == "checkpoint":
        model = _as_named(model, own=own, other=described(files).model)
    return without_download(model)


def _as_named(model: ModelConfig, *, own: ModelConfig, other: ModelConfig) -> ModelConfig:
    """The model with the names of folders that the run began with: the start may have had copies of its own since."""
    text, own_text, other_text = asdict(model.text), asdict(own.text), asdict(other.text)
    names = {key: own_text[key] for key in ("name", "tokenizer") if key in text and own_text.get(key)}
    same = {key: name for key, name in names.items() if name == other_text.get(key)}
    return replace(model, text=replace(model.text, **same))


def _model_of_run(run_dir: Path, *, start_from: str) -> ModelConfig | None:
    """The model of the run in a folder, if it was started from there."""
    path = run_dir / CONFIG
    if not path.is_file():
        return None
    try:
        begun = load.load_config(path)
    except InputError:
        return None
    return begun.model if begun.start_from == start_from else None
