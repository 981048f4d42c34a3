"""Which parameters learn: locked towers, groups by weight decay and by their scale of the learning rate."""

from typing import Any

from torch import nn

from clipx.config.optim import OptimConfig
from clipx.config.phases import TowerName

_FUSED = frozenset({"qkv", "in_proj_weight", "Wqkv"})


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """All parameters of `model`, grouped by their scale of the learning rate and by whether they decay.

    Matrices and embeddings decay; gains, biases, the class token and the temperature do not. The shape decides;
    CLIP used names (arXiv 2103.00020, section 2.5: "all weights that are not gains or biases"): a parameter with at
    most one dimension longer than 1 is a gain, a bias or a single token.

    Parameters that do not train now are included: they may train later, and optimizers skip those without gradient.

    Returns:
        Groups for a torch optimizer, each with `weight_decay` and `lr_scale`: higher scales first, and for equal scales
        those that decay first; within a group in the order of `model.named_parameters()`.
    """
    scales = learning_rate_scales(model, config)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = sum(size > 1 for size in parameter.shape) >= 2
        groups.setdefault((scales[name], decays), []).append(parameter)
    return [
        {"params": groups[scale, decays], "weight_decay": config.weight_decay if decays else 0.0, "lr_scale": scale}
        for scale, decays in sorted(groups, reverse=True)
    ]


def learning_rate_scales(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    """Each parameter's learning rate in units of `optim.lr`: the tower's scale times its layer decay to the height.

    With N blocks the projection and the last norm have the factor 1, block i (0 to N-1) has decay^(N-i), and the
    embeddings have decay^(N+1), like in the fine-tuning of BEiT (arXiv 2106.08254). Parameters outside of towers have
    1.
    """
    scales = {name: 1.0 for name, _ in model.named_parameters()}
    for prefix, learning in (("image_tower", config.image), ("text_tower", config.text)):
        for name, height in heights(getattr(model, prefix, nn.Module())).items():
            scales[f"{prefix}.{name}"] = learning.lr_scale * learning.layer_decay**height
    return scales


def heights(tower: nn.Module) -> dict[str, int]:
    """The distance of each parameter of a tower from its output, counted in blocks.

    Blocks are the members of stacks: sequences or lists of at least two modules of one class. A member that has such
    stacks inside, a stage, is replaced by their members. In the order in which the tower registers its parameters,
    those before the first block are embeddings, those after the last block belong to the output, and those between two
    blocks (the downsampling of a stage) have the height of the next block.

    Returns:
        By parameter name: 0 for the output, N - i for block i of N, N + 1 for embeddings; 0 for all if the tower has no
        stack.
    """
    blocks = _blocks(tower)
    top, depth = len(blocks) + 1, 0
    height_by_name: dict[str, int] = {}
    for name, _ in tower.named_parameters():
        inside = [index for index, block in enumerate(blocks, 1) if name.startswith(block)]
        depth = inside[0] if inside else depth
        height_by_name[name] = top - (depth if inside or depth == 0 else depth + 1)
    return height_by_name if blocks else dict.fromkeys(height_by_name, 0)


def block_matrices(model: nn.Module) -> dict[str, int]:
    """The weights of two dimensions in the blocks of the towers, without embeddings, by name.

    What is outside of blocks (patches, positions, projections, the last pooling) is no matrix of a block; nor is a
    table of relative positions in one (Swin, BEiT, TinyViT), which is looked up and has a name of its own.

    Args:
        model: `block_lists` gives its blocks, as those of `clipx.models.clip.CLIP`; without it there are none.

    Returns:
        How many matrices of equal shape stand in the weight, one below the other: 3 of a fused projection to queries,
        keys and values, else 1.
    """
    lists: list[list[nn.Module]] = getattr(model, "block_lists", list)()
    blocks = [block for blocks in lists for block in blocks]
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    tables = [module for block in blocks for module in block.modules() if isinstance(module, nn.Embedding)]
    inside -= {id(table.weight) for table in tables}
    return {
        name: 3 if _is_fused(name) and weight.shape[0] % 3 == 0 else 1
        for name, weight in model.named_parameters()
        if id(weight) in inside and weight.ndim == 2 and min(weight.shape) > 1 and _multiplies(name)
    }


def _multiplies(name: str) -> bool:
    """Whether it is a layer's weight, which its input is multiplied by, or the one of torch's attention."""
    return name.rpartition(".")[2] in ("weight", "in_proj_weight")


def _is_fused(name: str) -> bool:
    """Whether it is queries', keys' and values' weight in one: of timm, of ours, of torch and of transformers."""
    return not _FUSED.isdisjoint(name.split(".")[-2:])


def _blocks(module: nn.Module, path: str = "") -> list[str]:
    """The name prefixes of the blocks of a module, in the order in which it registers them."""
    is_stack = _is_stack(module)
    prefixes: list[str] = []
    for name, child in module.named_children():
        prefix = f"{path}{name}."
        prefixes += _blocks(child, prefix) or ([prefix] if is_stack else [])
    return prefixes


def _is_stack(module: nn.Module) -> bool:
    members = list(module.children())
    return (
        isinstance(module, nn.Sequential | nn.ModuleList)
        and len(members) >= 2
        and len({type(member) for member in members}) == 1
        and any(True for _ in module.parameters())
    )


def lock(model: nn.Module, towers: frozenset[TowerName]) -> None:
    """Turns gradients off for the parameters of `towers`, except for their projections, and evaluates what they are in.

    In evaluation a batch norm keeps its statistics, which have no gradient to turn off, and nothing is dropped: a
    locked tower gives a picture one embedding, and comes out as it went in.

    Args:
        model: not wrapped, with `image_tower` and `text_tower`. DDP must wrap it after this call, because it decides
            when it is built which gradients it waits for; FSDP2 decides in every forward pass.
        towers: the towers to lock.
    """
    for tower in towers:
        module: nn.Module = getattr(model, f"{tower}_tower")
        for name, parameter in module.named_parameters():
            if not name.startswith("projection."):
                parameter.requires_grad_(False)
        for name, child in module.named_children():
            if name != "projection":
                child.eval()
