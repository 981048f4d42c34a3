"""Locked towers (LiT, arXiv 2111.07991): in a phase their weights, except for the projection, do not change."""

from torch import nn

from clipx.config.phases import TowerName


def set_locked(model: nn.Module, towers: frozenset[TowerName]) -> bool:
    """Turns gradients off for the parameters of `towers`, except for their projections, and on for all others.

    Args:
        model: not wrapped, with `image_tower` and `text_tower`. DDP must wrap it after this call, and again after each
            change, because it decides when it is built which gradients it waits for; FSDP2 decides in every forward
            pass.
        towers: the towers to lock; the others are released.

    Returns:
        Whether any parameter changed.
    """
    changed = False
    for name, parameter in model.named_parameters():
        locked = any(
            name.startswith(f"{tower}_tower.") and not name.startswith(f"{tower}_tower.projection.") for tower in towers
        )
        changed |= parameter.requires_grad == locked
        parameter.requires_grad_(not locked)
    return changed
