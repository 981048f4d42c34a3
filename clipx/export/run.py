"""Exports a trained model: one folder for all libraries, loaded with each and compared before it gets its name."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from clipx import __version__
from clipx.checkpoint.find import EXPORT_CONFIG, find_model
from clipx.errors import InputError, RunError
from clipx.export import huggingface, open_clip
from clipx.export.formats import Format, check_formats
from clipx.export.parity import LIMIT, TEXTS, above_limit, differences, our_outputs, parity_images
from clipx.export.shape import read_shape
from clipx.pretrained import Pretrained, load

_MODULES: dict[Format, Any] = {"hf": huggingface, "open_clip": open_clip}
PARITY = "parity.json"
_REPORT = "nothing was exported, please report this with the run's config.yaml"


def export_model(
    model_path: Path,
    to: Path,
    formats: Sequence[Format] = ("hf", "open_clip"),
    *,
    weights: Literal["average", "trained"] | None = None,
) -> dict[str, Any]:
    """Writes the export folder `to`, replacing an earlier export there.

    It writes a folder beside `to`, loads it with each library, and compares it with the trained model on fixed images
    and texts; then it renames the folder. Until then `to` does not change. `weights` of a checkpoint are as in
    `clipx.load`.

    Returns:
        The content of parity.json: for each format the library and the largest differences (or `checked: false` and the
        reason, if the library is not installed), and under `files` the names of all files of the export.

    Raises:
        InputError: an unknown format, a kind of model that cannot be exported, or a `to` that holds other files or
            cannot be written.
        RunError: a library fails on the export, or its results differ from those of the trained model.
    """
    to = to.resolve()
    check_formats(formats)
    with _readable_errors(to):
        _check_target(to)
    files = find_model(model_path)
    pretrained = load(model_path, weights=weights)
    shape = read_shape(pretrained)
    with _readable_errors(to), _temporary_folder(to) as temporary:
        for name in formats:
            _MODULES[name].write(pretrained, shape, temporary)
        (temporary / EXPORT_CONFIG).write_bytes(files.folder.read(files.config))
        parity = check(pretrained, temporary, formats)
        parity["files"] = sorted([PARITY, *(path.name for path in temporary.iterdir())])
        (temporary / PARITY).write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
        _replace(to, temporary)
    return parity


def check(pretrained: Pretrained, folder: Path, formats: Sequence[Format]) -> dict[str, Any]:
    """Loads an export with each library and compares it with the model.

    Raises:
        RunError: a library fails on the export, or a difference is above `LIMIT`.
    """
    images = parity_images(pretrained.config.image.image_size)
    ours = our_outputs(pretrained, images, TEXTS)
    parity: dict[str, Any] = {"clipx": __version__, "limit": LIMIT, "pictures": len(images), "texts": len(TEXTS)}
    for name in formats:
        module = _MODULES[name]
        if module.library() is None:
            parity[name] = {"checked": False, "reason": f"the library of format {name} is not installed"}
            continue
        try:
            measured = differences(ours, module.outputs(folder, images, TEXTS))
        except Exception as error:  # a library may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise RunError(f"{module.library()} fails on the export ({reason}); {_REPORT}") from error
        if problems := above_limit(measured):
            listed = ", ".join(problems)
            raise RunError(f"{module.library()} computes something else: {listed} (limit {LIMIT}); {_REPORT}")
        parity[name] = {
            "checked": True,
            "library": module.library(),
            "largest_difference": measured,
            "notes": list(module.NOTES),
        }
    return parity


def _check_target(to: Path) -> None:
    if not to.exists():
        return
    if not to.is_dir():
        raise InputError(f"{to} is a file; name a folder for the export")
    try:
        exported = set(json.loads((to / PARITY).read_bytes())["files"])
    except (FileNotFoundError, LookupError, TypeError, ValueError):
        exported = set()
    if foreign := sorted({path.name for path in to.iterdir()} - exported):
        raise InputError(f"{to} holds {foreign[0]}, which no export wrote; move that away or name another folder")


@contextmanager
def _readable_errors(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{to} cannot be written: {error.strerror or error}; check path, rights and space") from error


@contextmanager
def _temporary_folder(to: Path) -> Iterator[Path]:
    """A new folder beside `to`; it is deleted at the end, unless it was renamed."""
    temporary = to.with_name(f".{to.name}.exporting")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(to: Path, temporary: Path) -> None:
    """Renames `temporary` to `to`; if the process dies between the renames, the old export is in `.NAME.old`."""
    old = to.with_name(f".{to.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if to.exists():
        os.rename(to, old)
    os.rename(temporary, to)
    shutil.rmtree(old, ignore_errors=True)
