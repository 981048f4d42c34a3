"""Exports a trained model: one folder for all consumers, loaded by each and compared before it gets its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from clipx.checkpoint.find import EXPORT_CONFIG, find_model
from clipx.config.load import dump_config
from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.export import card
from clipx.export.averaged import read_average
from clipx.export.check import check
from clipx.export.folder import publish, readable_errors, require_own
from clipx.export.formats import Format, check_formats, format_module
from clipx.export.options import ExportOptions
from clipx.export.parity.given import given_samples
from clipx.export.parity.half import rounding
from clipx.export.parity.ours import our_outputs
from clipx.export.parity.samples import Samples, drawn_samples
from clipx.export.run_record import read_run
from clipx.export.weights import round_to_half
from clipx.pretrained import Pretrained, load
from clipx.pretrained.stored_model import described
from clipx.storage.drafts import draft_of


def export_model(
    model_path: Path,
    to: Path,
    formats: Sequence[Format] = ("hf", "open_clip"),
    *,
    weights: Literal["average", "trained"] | None = None,
    options: ExportOptions | None = None,
    pictures: str | None = None,
) -> dict[str, Any]:
    """Writes the export folder `to`, replacing an earlier export there.

    It writes a folder beside `to`, loads it with each consumer, and compares it with the trained model on pictures and
    texts; then it renames the folder. Until then `to` does not change. An earlier export is replaced if every file
    is as it was exported; anything else stays.

    Args:
        model_path: a MODEL, as in `clipx.load`.
        to: the folder.
        formats: of the files.
        weights: of a checkpoint, as in `clipx.load`.
        options: one tower alone, and the dtype.
        pictures: a folder of pictures, or shards with captions, on which the export is compared; None: drawn ones.

    Returns:
        The content of parity.json: under `consumers`, for each by its name, the library, shares and differences
        (`clipx.export.parity.compare`), or `checked: false` and the reason, if the library is not installed; under
        `half_precision` what rounded weights cost; under `average` what went into a model that is one; under `files`
        the SHA-256 of all other files of the export.

    Raises:
        InputError: an unknown format, a kind of model that cannot be exported, pictures that cannot be read, another
            export into `to` at the same time, or a `to` that holds other files or cannot be written.
        RunError: a consumer fails on the export, or its results differ from those of the trained model.
    """
    to = to.resolve()
    options = options or ExportOptions()
    check_formats(formats, options)
    with readable_errors(to):
        require_own(to)
    given = None if pictures is None else given_samples(pictures)
    pretrained = load(model_path, weights=weights)
    for name in formats:
        if reason := format_module(name).problem(pretrained, options.only):
            raise InputError(f"this model cannot be exported to {name}: {reason}")
    samples = given or drawn_samples(pretrained.config.image.image_size)
    chosen: dict[str, Any] = {"formats": list(formats), "only": options.only, "dtype": options.dtype}
    if options.dtype == "fp16":
        chosen["half_precision"] = _half(pretrained, samples)
    with readable_errors(to), draft_of(to) as draft:
        parity = _write(
            pretrained, draft, model_path=model_path, samples=samples, options=options, chosen=chosen, name=to.name
        )
        publish(draft, to, parity)
    return parity


def _write(
    pretrained: Pretrained,
    draft: Path,
    *,
    model_path: Path,
    samples: Samples,
    options: ExportOptions,
    chosen: dict[str, Any],
    name: str,
) -> dict[str, Any]:
    """Writes all files of the export but its record, which it returns after every consumer was compared."""
    for format_name in chosen["formats"]:
        format_module(format_name).write(pretrained, draft, options)
    files = find_model(model_path)
    config = described(files)
    if not options.only:  # one tower is no MODEL; written anew, since an old run's file may hold secrets
        (draft / EXPORT_CONFIG).write_text(dump_config(config), encoding="utf-8")
    if average := read_average(files):
        chosen["average"] = average
    parity = check(pretrained, draft, chosen["formats"], samples=samples) | chosen
    card.write(
        draft,
        parity,
        name=name,
        model=pretrained.config,
        config=config if isinstance(config, RunConfig) else None,
        run=read_run(files),
        only=options.only,
    )
    return parity


def _half(pretrained: Pretrained, samples: Samples) -> dict[str, Any]:
    """Rounds the model's weights, and says what that changes; the export is then compared with the rounded model."""
    trained = our_outputs(pretrained, samples.pictures, samples.texts)
    round_to_half(pretrained.model)
    return rounding(trained, our_outputs(pretrained, samples.pictures, samples.texts))
