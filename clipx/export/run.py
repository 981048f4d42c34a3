"""Exports a trained model: one folder for all consumers, loaded by each and compared before it gets its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from clipx.checkpoint.find import EXPORT_CONFIG, ModelFiles, find_model
from clipx.config.load import dump_config
from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.export import card, fitted, fitted_card
from clipx.export.averaged import read_average
from clipx.export.check import check
from clipx.export.folder import publish, readable_errors, require_own
from clipx.export.formats import DEFAULT_FORMATS, Format, check_formats, format_module
from clipx.export.options import ExportOptions
from clipx.export.parity.fitted_samples import drawn_rows, stored_rows
from clipx.export.parity.given import given_samples
from clipx.export.parity.half import rounding
from clipx.export.parity.ours import our_outputs
from clipx.export.parity.samples import Samples, drawn_samples
from clipx.export.run_record import read_run
from clipx.export.weights import round_to_half
from clipx.pretrained import Fitted, Pretrained, load
from clipx.pretrained.stored_model import described
from clipx.storage.drafts import draft_of


def export_model(
    model_path: Path,
    to: Path,
    formats: Sequence[Format] | None = None,
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
        formats: of the files; None: hf and open_clip, or of a fitted model onnx and pt2.
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
    check_formats(DEFAULT_FORMATS if formats is None else formats, options)
    with readable_errors(to):
        require_own(to)
    given = None if pictures is None else given_samples(pictures)
    files = find_model(model_path)
    pretrained = load(files.folder.address, weights=weights)
    if isinstance(pretrained, Fitted):
        return _export_fitted(pretrained, files, to, formats=formats or fitted.FORMATS, options=options, given=given)
    formats = DEFAULT_FORMATS if formats is None else formats
    for name in formats:
        if reason := format_module(name).problem(pretrained, options.only):
            raise InputError(f"this model cannot be exported to {name}: {reason}")
    samples = given or drawn_samples(pretrained.config.image.image_size)
    chosen: dict[str, Any] = {"formats": list(formats), "only": options.only, "dtype": options.dtype}
    if options.dtype == "fp16":
        chosen["half_precision"] = _half(pretrained, samples)
    with readable_errors(to), draft_of(to) as draft:
        parity = _write(pretrained, draft, files=files, samples=samples, options=options, chosen=chosen, name=to.name)
        publish(draft, to, parity)
    return parity


def _write(
    pretrained: Pretrained,
    draft: Path,
    *,
    files: ModelFiles,
    samples: Samples,
    options: ExportOptions,
    chosen: dict[str, Any],
    name: str,
) -> dict[str, Any]:
    """Writes all files of the export but its record, which it returns after every consumer was compared."""
    for format_name in chosen["formats"]:
        format_module(format_name).write(pretrained, draft, options)
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


def _export_fitted(
    model: Fitted,
    files: ModelFiles,
    to: Path,
    *,
    formats: Sequence[Format],
    options: ExportOptions,
    given: Samples | None,
) -> dict[str, Any]:
    """Exports a model that predicts; it is compared on rows of its own data where these are here."""
    fitted.require_formats(model, formats, options)
    config = model.fit_config
    samples = stored_rows(config) if given is None else None
    samples = samples or drawn_rows(config, given or drawn_samples(config.model.image.image_size))
    chosen: dict[str, Any] = {"formats": list(formats)}
    if average := read_average(files):
        chosen["average"] = average
    with readable_errors(to), draft_of(to) as draft:
        fitted.write_fitted(model, draft, formats)
        (draft / EXPORT_CONFIG).write_text(dump_config(described(files)), encoding="utf-8")
        parity = fitted.check_fitted(model, draft, formats, samples) | chosen
        fitted_card.write(draft, parity, name=to.name, config=config, run=read_run(files))
        publish(draft, to, parity)
    return parity


def _half(pretrained: Pretrained, samples: Samples) -> dict[str, Any]:
    """Rounds the model's weights, and says what that changes; the export is then compared with the rounded model."""
    trained = our_outputs(pretrained, samples.pictures, samples.texts)
    round_to_half(pretrained.model)
    return rounding(trained, our_outputs(pretrained, samples.pictures, samples.texts))
