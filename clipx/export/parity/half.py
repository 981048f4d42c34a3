"""What storing weights in half precision costs: the trained model beside itself with rounded weights."""

from typing import Any

from clipx.errors import RunError
from clipx.export.parity.compare import compare
from clipx.export.parity.consumer import Outputs

LOWEST_COSINE = 0.999
"""Between embeddings of the trained and the rounded model. A weight is off by at most a 2,048th, and errors of a few
thousandths of an embedding's length, as they then add up over the layers of a tower, leave a cosine above 0.9999."""


def rounding(trained: Outputs, rounded: Outputs) -> dict[str, Any]:
    """The differences that rounding makes, for parity.json.

    Raises:
        RunError: they are larger than rounding explains.
    """
    assert trained.image_BD is not None
    assert trained.text_ND is not None
    assert rounded.image_BD is not None
    assert rounded.text_ND is not None
    row = compare(trained, rounded, same_crop=[True] * len(trained.image_BD))
    cosines = {
        "image": (trained.image_BD * rounded.image_BD).sum(dim=1).min().item(),
        "text": (trained.text_ND * rounded.text_ND).sum(dim=1).min().item(),
    }
    if not min(cosines.values()) >= LOWEST_COSINE:
        raise RunError(
            f"weights in half precision change the embeddings: lowest cosine of images {cosines['image']:.4f}, of "
            f"texts {cosines['text']:.4f} (limit {LOWEST_COSINE}); nothing was exported, export with --dtype fp32"
        )
    kept = ("image_embeddings", "text_embeddings", "logits")
    return {
        "largest_difference": {name: row["largest_difference"][name] for name in kept},
        "lowest_cosine": cosines,
        "other_best_text": row["other_best_text"],
    }
