"""Exports a trained model: one folder for all libraries, loaded with each and compared before it gets its name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from clipx import __version__
from clipx.checkpoint.find import EXPORT_CONFIG, find_model
from clipx.checkpoint.store import stored_config
from clipx.config.load import dump_config
from clipx.errors import InputError, RunError
from clipx.export import huggingface, open_clip
from clipx.export.folder import publish, require_own
from clipx.export.formats import Format, check_formats
from clipx.export.parity import LIMIT, TEXTS, above_limit, differences, our_outputs, parity_images
from clipx.export.shape import read_shape
from clipx.pretrained import Pretrained, load
from clipx.storage.drafts import draft_of

_MODULES: dict[Format, Any] = {"hf": huggingface, "open_clip": open_clip}
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
    and texts; then it renames the folder. Until then `to` does not change. An earlier export is replaced if every file
    is as it was exported; anything else stays. `weights` of a checkpoint are as in `clipx.load`.

    Returns:
        The content of parity.json: for each format the library and the largest differences (or `checked: false` and the
        reason, if the library is not installed), and under `files` the SHA-256 of all other files of the export.

    Raises:
        InputError: an unknown format, a kind of model that cannot be exported, another export into `to` at the same
            time, or a `to` that holds other files or cannot be written.
        RunError: a library fails on the export, or its results differ from those of the trained model.
    """
    to = to.resolve()
    check_formats(formats)
    with _readable_errors(to):
        require_own(to)
    files = find_model(model_path)
    pretrained = load(model_path, weights=weights)
    shape = read_shape(pretrained)
    with _readable_errors(to), draft_of(to) as draft:
        for name in formats:
            _MODULES[name].write(pretrained, shape, draft)
        config = stored_config(files.folder, files.config)  # written anew: an old run's file may hold secrets
        (draft / EXPORT_CONFIG).write_text(dump_config(config), encoding="utf-8")
        parity = check(pretrained, draft, formats)
        publish(draft, to, parity)
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


@contextmanager
def _readable_errors(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{to} cannot be written: {error.strerror or error}; check path, rights and space") from error
