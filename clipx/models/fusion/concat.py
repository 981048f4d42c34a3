"""A linear map of all modalities' vectors, side by side.

Shape suffixes: B samples, M modalities, D channels.
"""

from torch import Tensor, nn

from clipx.models.fusion.fusion import Fusion
from clipx.models.initialise import initialise_linear


class Concat(Fusion):
    """Early fusion by concatenation (arXiv 1705.09406, section 6.1): one matrix per modality, summed.

        z = W [x_1; ...; x_M] + b

    Args:
        num_modalities: M.
        dim: D.
    """

    def __init__(self, num_modalities: int, *, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_modalities * dim, dim)
        initialise_linear(self.linear)

    def forward(self, vectors_BMD: Tensor, presence_BM: Tensor, *, keys_B: Tensor | None = None) -> Tensor:
        """See `Fusion`."""
        return self.linear(vectors_BMD.flatten(1))
