from tiny_clip import CLIP_VOCABULARY, tiny_model_config
from torch import nn

from clipx.config.parallel import DdpConfig, Fsdp2Config
from clipx.distributed.parallelize import state_bytes
from clipx.models.clip import CLIP, build_model


def tiny_parts() -> tuple[CLIP, list[nn.Module], int]:
    model = build_model(tiny_model_config(), vocab_size=CLIP_VOCABULARY, seed=0)
    blocks = [block for blocks in model.block_lists() for block in blocks]
    return model, blocks, 4 * sum(parameter.numel() for parameter in model.parameters())


def test_state_under_ddp_is_the_optimizers() -> None:
    model, blocks, whole = tiny_parts()
    assert state_bytes(model, config=DdpConfig(), blocks=blocks, world_size=8, extra_bytes=2 * whole) == 3 * whole


def test_sharding_frees_weights_and_gradients() -> None:
    model, blocks, whole = tiny_parts()
    block = max(4 * sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
    in_blocks = sum(4 * sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
    gathered = 2 * (whole - in_blocks) + 4 * block
    sharded = state_bytes(model, config=Fsdp2Config(), blocks=blocks, world_size=4, extra_bytes=2 * whole)
    assert sharded == gathered + whole - whole
    offloaded = state_bytes(
        model, config=Fsdp2Config(cpu_offload=True), blocks=blocks, world_size=4, extra_bytes=2 * whole
    )
    assert offloaded == gathered - whole
    retained = state_bytes(
        model, config=Fsdp2Config(reshard_after_forward=False), blocks=blocks, world_size=4, extra_bytes=2 * whole
    )
    assert retained == sharded - 2 * block + in_blocks
