"""timm's trunks as open_clip builds them: from a name and a pooling, at timm's own size and without other options."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from clipx.config.model import TimmImageConfig
from clipx.errors import InputError
from clipx.models.differences import same_function
from clipx.models.vision_tower import VisionTower

_POOLS = ("", "avg", "token", "map", "max", "avgmax", "catavgmax", "fast", "fastavg")


class Pooling(NamedTuple):
    """open_clip's two keys of a timm trunk."""

    pool: str
    """timm_pool."""
    proj: str | None
    """timm_proj: what follows the trunk; None means that its own classifier is the projection."""


def options_for(name: str, *, pool: str) -> dict[str, Any]:
    """The options with which our trunk pools like open_clip's that a projection follows.

    Raises:
        InputError: there are none, or timm has no such model or pooling.
    """
    try:
        theirs = _build(name, Pooling(pool, "linear"), classes=0)
    except Exception as error:  # timm may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"timm_model_name={name} with timm_pool={pool}: timm cannot build it: {reason}") from error
    candidates: tuple[dict[str, Any], ...] = ({}, {"global_pool": pool}, {"global_pool": pool, "fc_norm": False})
    for options in candidates:
        try:
            with torch.device("meta"):
                ours = timm.create_model(name, num_classes=0, **options)
        except Exception:  # a model without that option; timm may raise anything
            continue
        if _equal(ours, theirs):
            return options
    raise InputError(f"timm_model_name={name} with timm_pool={pool}: no options of timm's build the same; take another")


def pooling_of(tower: VisionTower, config: TimmImageConfig) -> Pooling | None:
    """The keys with which open_clip builds a tower's trunk; None if it cannot."""
    classes = config.options.get("num_classes", 0)
    proj: str | None = {nn.Linear: "linear", nn.Sequential: "mlp"}.get(type(tower.projection), "none")
    if classes:
        proj = None
    for pool in dict.fromkeys((str(config.options.get("global_pool", "")), *_POOLS)):
        pooling = Pooling(pool, proj)
        if pool or proj in ("linear", "mlp"):
            for theirs in _built(config.name, pooling, classes=classes):
                if _equal(tower.trunk, theirs) and _features(theirs, pooling) == _inputs(tower.projection):
                    return pooling
    return None


def _built(name: str, pooling: Pooling, *, classes: int) -> Iterator[nn.Module]:
    try:
        yield _build(name, pooling, classes=classes)
    except Exception:  # timm may raise anything for a pooling that a model does not have
        return


def _build(name: str, pooling: Pooling, *, classes: int) -> Any:
    with torch.device("meta"):
        if pooling.proj in ("linear", "mlp"):
            trunk = timm.create_model(name)
            trunk.reset_classifier(0, **({"global_pool": pooling.pool} if pooling.pool else {}))
            return trunk
        return timm.create_model(name, num_classes=classes, global_pool=pooling.pool)


def _equal(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether two trunks have the same weights by name and shape, and the same function of them."""
    theirs = VisionTower(theirs, projection=nn.Identity(), mean=(0, 0, 0), std=(1, 1, 1)).trunk
    ours = VisionTower(ours, projection=nn.Identity(), mean=(0, 0, 0), std=(1, 1, 1)).trunk
    shapes = [{name: tensor.shape for name, tensor in trunk.state_dict().items()} for trunk in (ours, theirs)]
    return shapes[0] == shapes[1] and same_function(ours, theirs)


def _features(trunk: Any, pooling: Pooling) -> int | None:
    """The channels that open_clip expects of a trunk before its projection; None without one."""
    return int(trunk.num_features) if pooling.proj in ("linear", "mlp") else None


def _inputs(projection: nn.Module) -> int | None:
    first = next((layer for layer in projection.modules() if isinstance(layer, nn.Linear)), None)
    return None if first is None else first.in_features
