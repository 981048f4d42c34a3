"""Loads an export with everybody who can, and compares each with the trained model: the content of parity.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipx import __version__
from clipx.errors import RunError
from clipx.export.formats import Format, format_module
from clipx.export.parity.compare import above_limit, compare
from clipx.export.parity.consumer import LIMIT, Consumer, Outputs
from clipx.export.parity.crops import same_crop
from clipx.export.parity.ours import our_outputs
from clipx.export.parity.samples import Samples, drawn_samples
from clipx.pretrained import Pretrained


def check(
    pretrained: Pretrained, folder: Path, formats: Sequence[Format], *, samples: Samples | None = None
) -> dict[str, Any]:
    """Compares the export in a folder with the model, in the eyes of each consumer of its formats.

    Raises:
        RunError: a consumer fails on the export, or a difference is above its limit.
    """
    samples = samples or drawn_samples(pretrained.config.image.image_size)
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
                row = _row(consumer, pretrained, folder, ours=ours, samples=samples, format_name=name)
                parity["consumers"][consumer.name] = {"format": name} | row
    return parity


def _row(
    consumer: Consumer, pretrained: Pretrained, folder: Path, *, ours: Outputs, samples: Samples, format_name: Format
) -> dict[str, Any]:
    library = consumer.library()
    if library is None:
        return {"checked": False, "reason": f"not compared: the library of {consumer.name} is not installed"}
    advice = (
        f"nothing was exported; leave {format_name} out of --format, and please report this with the run's config.yaml"
    )
    try:
        theirs = consumer.outputs(folder, samples.pictures, samples.texts)
        crops = same_crop(samples.sizes, pretrained.config, crop=consumer.crop)
        row = compare(ours, theirs, same_crop=crops)
    except Exception as error:  # a library may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(f"{consumer.name} ({library}) fails on the export ({reason}); {advice}") from error
    if problems := above_limit(row, consumer.limit):
        raise RunError(
            f"{consumer.name} ({library}) computes something else: {', '.join(problems)} (limit {consumer.limit}, on "
            f"{len(samples.pictures)} pictures and {len(samples.texts)} texts, {samples.origin}); {advice}"
        )
    return {"checked": True, "library": library, "limit": consumer.limit} | row | {"notes": list(consumer.notes)}
