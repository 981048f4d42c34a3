"""Exports a trained model: one folder for all consumers, loaded by each and compared before it gets its name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from clipx import __version__
from clipx.checkpoint.find import EXPORT_CONFIG, find_model
from clipx.checkpoint.store import stored_config
from clipx.config.load import dump_config
from clipx.errors import InputError, RunError
from clipx.export import card
from clipx.export.folder import publish, require_own
from clipx.export.formats import Format, check_formats, format_module
from clipx.export.options import ExportOptions
from clipx.export.parity.compare import above_limit, compare
from clipx.export.parity.consumer import LIMIT, Consumer, Outputs
from clipx.export.parity.crops import same_crop
from clipx.export.parity.ours import our_outputs
from clipx.export.parity.samples import Samples, drawn_samples
from clipx.export.run_record import read_run
from clipx.export.weights import round_to_half
from clipx.pretrained import Pretrained, load
from clipx.storage.drafts import draft_of

_REPORT = "nothing was exported, please report this with the run's config.yaml"


def export_model(
    model_path: Path,
    to: Path,
    formats: Sequence[Format] = ("hf", "open_clip"),
    *,
    weights: Literal["average", "trained"] | None = None,
    options: ExportOptions | None = None,
) -> dict[str, Any]:
    """Writes the export folder `to`, replacing an earlier export there.

    It writes a folder beside `to`, loads it with each consumer, and compares it with the trained model on pictures and
    texts; then it renames the folder. Until then `to` does not change. An earlier export is replaced if every file
    is as it was exported; anything else stays. `weights` of a checkpoint are as in `clipx.load`.

    Returns:
        The content of parity.json: under `consumers`, for each by its name, the library, shares and differences
        (`clipx.export.parity.compare`), or `checked: false` and the reason, if the library is not installed; under
        `files` the SHA-256 of all other files of the export.

    Raises:
        InputError: an unknown format, a kind of model that cannot be exported, another export into `to` at the same
            time, or a `to` that holds other files or cannot be written.
        RunError: a consumer fails on the export, or its results differ from those of the trained model.
    """
    to = to.resolve()
    options = options or ExportOptions()
    check_formats(formats, options)
    with _readable_errors(to):
        require_own(to)
    files = find_model(model_path)
    pretrained = load(model_path, weights=weights)
    for name in formats:
        if reason := format_module(name).problem(pretrained):
            raise InputError(f"this model cannot be exported to {name}: {reason}")
    if options.dtype == "fp16":
        round_to_half(pretrained.model)
    with _readable_errors(to), draft_of(to) as draft:
        for name in formats:
            format_module(name).write(pretrained, draft, options)
        config = stored_config(files.folder, files.config)  # written anew: an old run's file may hold secrets
        (draft / EXPORT_CONFIG).write_text(dump_config(config), encoding="utf-8")
        parity = check(pretrained, draft, formats)
        run = read_run(files)
        card.write(draft, parity, name=to.name, model=pretrained.config, config=config, run=run, only=options.only)
        publish(draft, to, parity)
    return parity


def check(pretrained: Pretrained, folder: Path, formats: Sequence[Format]) -> dict[str, Any]:
    """Loads an export with each consumer and compares it with the model.

    Raises:
        RunError: a consumer fails on the export, or a difference is above its limit.
    """
    samples = drawn_samples(pretrained.config.image.image_size)
    ours = our_outputs(pretrained, samples.pictures, samples.texts)
    parity: dict[str, Any] = {
        "clipx": __version__,
        "limit": LIMIT,
        "compared_on": samples.origin,
        "pictures": len(samples.pictures),
        "texts": len(samples.texts),
        "consumers": {},
    }
    for name in formats:
        for consumer in format_module(name).CONSUMERS:
            if consumer.applies(folder):
                row = _row(consumer, pretrained, folder, ours, samples)
                parity["consumers"][consumer.name] = {"format": name} | row
    return parity


def _row(consumer: Consumer, pretrained: Pretrained, folder: Path, ours: Outputs, samples: Samples) -> dict[str, Any]:
    library = consumer.library()
    if library is None:
        return {"checked": False, "reason": f"not compared: the library of {consumer.name} is not installed"}
    try:
        theirs = consumer.outputs(folder, samples.pictures, samples.texts)
        crops = same_crop(samples.sizes, pretrained.config, crop=consumer.crop)
        row = compare(ours, theirs, same_crop=crops)
    except Exception as error:  # a library may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(f"{consumer.name} ({library}) fails on the export ({reason}); {_REPORT}") from error
    if problems := above_limit(row, consumer.limit):
        raise RunError(
            f"{consumer.name} ({library}) computes something else: {', '.join(problems)} (limit {consumer.limit}); "
            f"{_REPORT}"
        )
    return {"checked": True, "library": library, "limit": consumer.limit} | row | {"notes": list(consumer.notes)}


@contextmanager
def _readable_errors(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{to} cannot be written: {error.strerror or error}; check path, rights and space") from error
