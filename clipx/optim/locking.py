"""Locked towers (LiT, arXiv 2111.07991): weights that stay as they are in a phase, all but the projection."""

from torch import nn

from clipx.config.phases import TowerName


def set_locked(model: nn.Module, towers: frozenset[TowerName]) -> bool:
    """Lets gradients flow into every parameter but those of `towers`; their projections train on.

    Args:
        model: bare, with `image_tower` and `text_tower`. DDP must wrap it after this and again after each change, for
            it fixes at its start which gradients it waits for; FSDP2 looks again in every forward pass.
        towers: those to lock; the others are free.

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
