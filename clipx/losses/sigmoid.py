"""Pairwise sigmoid loss (SigLIP, arXiv 2303.15343, equation 1) over the global batch, in tiles.

Shape suffixes: B local pairs, G global pairs, R rows and N columns of a tile, D embedding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed import collectives
from clipx.losses.backend import use_kernels
from clipx.losses.cost import LossCost, LossShape, tiled_cost
from clipx.losses.exchange import make_exchange
from clipx.losses.tiled_loss import TiledLoss
from clipx.losses.tiles import Tile, accumulation_dtype, grad_scale, input_gradients, make_grid, similarities
from clipx.types import Embeddings


class SigmoidLoss(TiledLoss):
    """Each image with each text as a binary decision: the positives yes, all others no.

        L = -1/G sum_ij log sigmoid(z_ij (s x_i . y_j + b)),   z_ij = 1 for positives, -1 for negatives.

    Pairs of equal ids that are no positives are left out of the sum. No similarity needs to know another, so loss and
    gradients come from one pass (6 B G D floating-point operations), with g_ij = -z_ij sigmoid(-z_ij (S_ij + b)) / G.
    Numerics, memory and communication as `InfoNCELoss`, without its all-reduces; the gradients wait in the
    accumulation dtype for the one that comes back.
    """

    def __call__(
        self,
        embeddings: Embeddings,
        *,
        group: ProcessGroup | None = None,
        ids_B: Tensor | None = None,
        positive_ids_B: Tensor | None = None,
    ) -> Tensor:
        """This rank's share; see `clipx.losses.ContrastiveLoss`. The embeddings must have a `logit_bias`."""
        assert embeddings.logit_bias is not None, "the sigmoid loss needs model.init_logit_bias"
        share, *_ = _sigmoid(
            embeddings.image_BD,
            embeddings.text_BD,
            embeddings.logit_scale,
            embeddings.logit_bias,
            *self.operands(embeddings.text_BD, group, ids_B, positive_ids_B),
        )
        return share

    def cost(self, shape: LossShape) -> LossCost:
        """Three products of B x G x D: similarities and two gradients, in one pass."""
        return tiled_cost(
            shape,
            num_products=3,
            num_passes=1,
            exchange=self.exchange,
            implementation=self.implementation,
        )


@torch.library.custom_op("clipx::sigmoid", mutates_args=())
def _sigmoid(  # noqa: PLR0913, PLR0917 (a registered operator takes plain values only)
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    text_GD: Tensor | None,
    ids_G: Tensor | None,
    positive_ids_G: Tensor | None,
    group_name: str,
    implementation: str,
    tile_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The share, and its gradients in the accumulation dtype for images, texts, scale and bias."""
    group = collectives.named_group(group_name)
    grid = make_grid(image_BD, text_BD, group, tile_size=tile_size, ids_G=ids_G, positive_ids_G=positive_ids_G)
    slice_size = 2 * grid.tile_size  # as InfoNCE's
    sigmoid_tile = _sigmoid_tile
    if use_kernels(implementation, image_BD, several_positives=positive_ids_G is not None):
        from clipx.losses.triton_ops import sigmoid_tile

        grid = grid.for_kernels(2, image_BD.device)  # a kernel leaves g and nothing else
    scale, bias = (tensor.to(accumulation_dtype(image_BD)) for tensor in (logit_scale, logit_bias))
    total, db = scale.new_zeros(()), torch.zeros_like(bias)

    def gradient(x_RD: Tensor, y_ND: Tensor, tile: Tile) -> Tensor:
        loss, gradient_sum, gradient_RN = sigmoid_tile(x_RD, y_ND, scale, bias, tile)
        total.add_(loss)
        db.add_(gradient_sum)
        return gradient_RN

    with torch.autocast(image_BD.device.type, enabled=False):
        dx_BD, dy_BD, ds = input_gradients(
            image_BD,
            scale,
            make_exchange(text_BD, text_GD, slice_size=slice_size, group=group),
            grid=grid,
            loss_scale=1 / grid.global_batch_size,
            dtype=scale.dtype,
            tile_gradient=gradient,
        )
    return total / grid.global_batch_size, dx_BD, dy_BD, ds, db / grid.global_batch_size


@_sigmoid.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(inputs[0])
    gradients = (torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in inputs[:4])
    return inputs[0].new_empty((), dtype=dtype), *gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # or zeros of the gradients' size were made
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = [tensor.dtype for tensor in inputs[:4]]


def _differentiate(ctx: Any, share_gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if share_gradient is None:
        return (None,) * 10
    gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    return *((gradient * share_gradient).to(dtype) for gradient, dtype in gradients), *(None,) * 6


_sigmoid.register_autograd(_differentiate, setup_context=_save)


def _sigmoid_tile(
    x_RD: Tensor, y_ND: Tensor, logit_scale: Tensor, logit_bias: Tensor, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the tile's losses; sum of G g_ij; grad_scale(x) G g_ij (R, N)."""
    logits_RN = similarities(x_RD, y_ND, logit_scale).add_(logit_bias)
    opposed_RN = tile.fill_left_out(_negate_positives(logits_RN, tile), -torch.inf)  # -z l; -inf costs nothing
    loss = torch.logaddexp(opposed_RN, opposed_RN.new_zeros(())).sum()
    gradient_RN = _negate_positives(opposed_RN.sigmoid_(), tile)
    return loss, gradient_RN.sum(), gradient_RN.mul_(grad_scale(x_RD)) if grad_scale(x_RD) != 1 else gradient_RN


def _negate_positives(x_RN: Tensor, tile: Tile) -> Tensor:
    """-z_ij x_ij, in place where only true pairs are positives."""
    positive_RN = tile.positives()
    if positive_RN is None:
        tile.pairs(x_RN).neg_()
        return x_RN
    return torch.where(positive_RN, -x_RN, x_RN)
