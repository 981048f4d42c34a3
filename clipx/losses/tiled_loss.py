"""What the losses over all pairs have in common: their settings, and what they need from the other ranks."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.losses.backend import check_implementation
from clipx.losses.exchange import all_gather
from clipx.losses.tiles import dense_ids


class TiledLoss:
    """A loss that is computed tile by tile.

    Args:
        implementation: what computes a tile, `clipx.losses.backend`.
        exchange: gather all texts, or pass them round in a ring where G x D does not fit.
        tile_size: its square is the most similarities that torch holds at once, 4 times as many on CUDA; a kernel holds
            none, and writes g in blocks of 16 times as many.
    """

    def __init__(
        self,
        *,
        implementation: Literal["auto", "tiled", "triton"] = "auto",
        exchange: Literal["gather", "ring"] = "gather",
        tile_size: int = 2048,
    ) -> None:
        self.implementation = implementation
        self.exchange = exchange
        self.tile_size = tile_size

    def check(self, device: torch.device) -> None:
        """See `clipx.losses.backend.check_implementation`."""
        check_implementation(self.implementation, device)

    def operands(self, text_BD: Tensor, group: ProcessGroup | None, *ids_B: Tensor | None) -> tuple[Any, ...]:
        """Plain values for a registered operator: all texts (None in a ring), all ids, and the settings."""
        text_GD = None if self.exchange == "ring" or group is None else all_gather(text_BD, group)
        ids_G = (None if ids is None else _gathered(ids, group) for ids in ids_B)
        return text_GD, *ids_G, "" if group is None else group.group_name, self.implementation, self.tile_size


def _gathered(ids: Tensor, group: ProcessGroup | None) -> Tensor:
    """All ranks' ids (B,), (B, C) or (B, 2, C), as a grid has them."""
    dense = dense_ids(all_gather(ids, group))
    return dense[:, None].expand(-1, 2, -1) if dense.dim() == 2 else dense
