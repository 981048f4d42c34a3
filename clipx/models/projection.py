"""From a tower's features to the shared space.

The two layers of `mlp` have open_clip's shapes, so that its models can be read and written.
"""

from typing import Literal, assert_never

from torch import nn

from clipx.config.model import Projection
from clipx.errors import InputError
from clipx.models.initialise import initialise_linear


def build_projection(
    kind: Projection, num_features: int, embed_dim: int, *, tower: Literal["image", "text"], bias: bool = False
) -> nn.Module:
    """A module that maps (B, `num_features`) to (B, `embed_dim`); `initialise_projection` gives it its first weights.

    Args:
        kind: linear; mlp, two linear layers with GELU between, of 2 `embed_dim` hidden channels for images and of the
            mean of both sizes for texts; or none, the features themselves.
        num_features: channels of the tower.
        embed_dim: of the shared space.
        tower: which of the two it belongs to.
        bias: of the last layer.

    Raises:
        InputError: `none`, and the tower has not `embed_dim` channels.
    """
    match kind:
        case "linear":
            return nn.Linear(num_features, embed_dim, bias=bias)
        case "mlp":
            hidden = 2 * embed_dim if tower == "image" else (num_features + embed_dim) // 2
            first = nn.Linear(num_features, hidden, bias=tower == "image")
            return nn.Sequential(first, nn.GELU(), nn.Linear(hidden, embed_dim, bias=bias))
        case "none":
            if num_features != embed_dim:
                raise InputError(
                    f"model.{tower}.projection=none: the tower has {num_features} channels, model.embed_dim is "
                    f"{embed_dim}; set both to one number, or choose linear"
                )
            return nn.Identity()
        case unknown:
            assert_never(unknown)


def initialise_projection(projection: nn.Module) -> None:
    """Matrices with a standard deviation of (inputs)^-0.5, as in OpenAI's CLIP code; biases are 0."""
    for layer in projection.modules():
        if isinstance(layer, nn.Linear):
            initialise_linear(layer)
