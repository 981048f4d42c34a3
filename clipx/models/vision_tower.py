"""Image tower: from uint8 pixels to one unnormalised embedding per image. Only this file and `vit` import timm.

Shape suffixes: B images, H and W pixels, C channels, K patches kept, F features of the trunk, D embedding.
"""

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from clipx.config.model import Projection, TimmImageConfig
from clipx.config.schema import StageConfig
from clipx.errors import InputError
from clipx.models.dry_run import run_on_meta
from clipx.models.initialise import initialise_blocks
from clipx.models.patch_drop import kept_patches
from clipx.models.projection import build_projection, initialise_projection
from clipx.models.vit import is_plain_vit, num_patches, use_fast_blocks, vit_forward


class VisionTower(nn.Module):
    """Normalises pixels on the device, runs the trunk, and projects its pooled features.

    The trunk maps float (B, 3, H, W) to pooled features (B, F). timm's plain ViT uses the forward pass of `vit`, which
    gives the same result for less work. `mean` and `std` are those of channels in [0, 1].
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, trunk: nn.Module, *, projection: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.trunk = trunk
        self.is_plain_vit = is_plain_vit(trunk)
        if self.is_plain_vit:
            use_fast_blocks(trunk)
        self.projection = projection
        # Constants of the preprocessing, in units of the uint8 values; not saved with the weights.
        self.register_buffer("mean_C", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std_C", 255 * torch.tensor(std), persistent=False)

    def normalize(self, pixels_C: Tensor) -> Tensor:
        """Normalises uint8 (..., 3) to the same shape in the buffers' dtype (float32)."""
        if pixels_C.device.type != "cpu" or pixels_C.dim() < 2:
            return (pixels_C - self.mean_C).div_(self.std_C)
        # The same arithmetic, where the innermost loop is as long as a vector of the CPU: 3 times as fast.
        count = pixels_C.shape[-2]
        values = pixels_C.flatten(-2).to(self.mean_C.dtype, copy=True)
        return values.sub_(self.mean_C.repeat(count)).div_(self.std_C.repeat(count)).unflatten(-1, (count, 3))

    def forward(self, images_BHWC: Tensor, patch_keys_B: Tensor | None = None, *, patch_drop: float = 0.0) -> Tensor:
        """Embeds B images.

        Args:
            images_BHWC: uint8 (B, H, W, 3), RGB; of another size than the trunk's if `check_image_size` allows it.
            patch_keys_B: int64 (B,), the keys from which patch dropout draws (`patch_drop.patch_keys`).
            patch_drop: fraction of the patches that is dropped, in [0, 1); above 0 it needs a plain ViT and keys.

        Returns:
            (B, D), not normalised.
        """
        if not self.is_plain_vit:
            assert patch_drop == 0, "patch dropout of a model that is no plain ViT (check_patch_drop)"
            return self.projection(self.trunk(self.normalize(images_BHWC).permute(0, 3, 1, 2)))
        kept_BK = None
        if patch_drop > 0:
            assert patch_keys_B is not None, "patch dropout needs the images' keys"
            grid_size = num_patches(self.trunk, images_BHWC.shape[1], images_BHWC.shape[2])
            kept_BK = kept_patches(patch_keys_B, num_patches=grid_size, rate=patch_drop)
        return self.projection(vit_forward(self.trunk, images_BHWC, kept_BK, normalize=self.normalize))


def build_vision_tower(config: TimmImageConfig, *, embed_dim: int, projection: Projection = "linear") -> VisionTower:
    """Builds an image tower from its config, on the CPU, with weights from torch's current generator.

    A trunk of CLIP's shape (class token, norm before the blocks) without pretrained weights gets CLIP's initialisation;
    any other trunk keeps timm's.

    Args:
        config: of the tower.
        embed_dim: of the shared space.
        projection: to the shared space, where the tower's config names none.

    Raises:
        InputError: an unknown model name, options that the model does not accept, a weight file that is missing or does
            not fit, patch dropout for a model that is not a plain ViT, or a tower without projection that has other
            channels than the shared space.
    """
    kind = config.projection or projection
    trunk = _create_trunk(config, own_classifier=kind == "none")
    if config.eps is not None:
        for module in trunk.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.eps
    if not config.pretrained and _has_clip_shape(trunk):
        _initialise_as_clip(trunk)
    classes = config.options.get("num_classes", 0)
    num_features = classes or getattr(trunk, "head_hidden_size", None) or trunk.num_features
    to_space = build_projection(kind, num_features, embed_dim, tower="image")
    initialise_projection(to_space)
    tower = VisionTower(trunk, projection=to_space, mean=config.mean, std=config.std)
    check_patch_drop(tower, config.patch_drop, name="model.image.patch_drop")
    return tower


def check_patch_drop(tower: VisionTower, rate: float, *, name: str) -> None:
    """Checks that the tower supports patch dropout, if the rate is above 0; `name` is the config's field.

    Raises:
        InputError: the tower is not a plain ViT.
    """
    if rate > 0 and not tower.is_plain_vit:
        raise InputError(
            f"{name}={rate} needs a plain ViT, and the image tower is a {type(tower.trunk).__name__}; "
            f"set it to 0 or choose a vit_* model"
        )


def check_image_size(tower: VisionTower, size: int, *, name: str) -> None:
    """Checks that the tower accepts square images of a size, which may differ from its own.

    Plain ViTs resample their position embedding to the images' grid. Of other models the convolutional ones accept any
    size, which a run on the meta device shows; ranks do not share the tower yet. `name` is the config's field.

    Raises:
        InputError: the size is not a multiple of the patches, or the model accepts only one size.
    """
    trunk: Any = tower.trunk
    if tower.is_plain_vit:
        height, width = trunk.patch_embed.patch_size
        if (size, size) != trunk.patch_embed.img_size and (size % height or size % width):
            below = size // math.lcm(height, width) * math.lcm(height, width)
            nearest = [value for value in (below, below + math.lcm(height, width)) if value > 0]
            raise InputError(
                f"{name}={size} is no multiple of the image tower's patches of {height} x {width} pixels; "
                f"nearest that are: {', '.join(map(str, nearest))}"
            )
        return
    try:
        run_on_meta(trunk, torch.empty(2, 3, size, size, device="meta"))
    except Exception as error:  # models may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name}={size}: the image tower, a {type(trunk).__name__}, does not take it ({reason}); "
            f"keep model.image.image_size, or choose a vit_* or a convolutional model"
        ) from error


def check_stage_inputs(tower: VisionTower, stages: Mapping[str, StageConfig]) -> None:
    """Checks that the tower accepts what stages of a run set, by their names.

    Raises:
        InputError: it does not take an image size, or leave out patches.
    """
    for name, stage in stages.items():
        if stage.image_size is not None:
            check_image_size(tower, stage.image_size, name=f"stages.{name}.image_size")
        if stage.patch_drop is not None:
            check_patch_drop(tower, stage.patch_drop, name=f"stages.{name}.patch_drop")


def _has_clip_shape(trunk: nn.Module) -> bool:
    return (
        isinstance(trunk, VisionTransformer)
        and trunk.cls_token is not None
        and not isinstance(trunk.norm_pre, nn.Identity)
        and all(isinstance(block, Block) for block in trunk.blocks)
    )


def _initialise_as_clip(trunk: Any) -> None:
    """CLIP's initialisation of a ViT: embeddings with standard deviation C^-0.5, blocks like in the text tower.

    timm uses a deviation of 0.02 for everything and 1e-6 for the class token, for any width.
    """
    std = trunk.embed_dim**-0.5
    for embedding in (trunk.cls_token, trunk.reg_token, trunk.pos_embed):
        if embedding is not None:
            nn.init.normal_(embedding, std=std)
    initialise_blocks(trunk.blocks)


def _create_trunk(config: TimmImageConfig, *, own_classifier: bool) -> Any:
    """Builds the trunk; its `own_classifier` may be the projection (EVA and MobileCLIP of open_clip)."""
    name = config.name.split(".")[0]
    if ":" not in name and not timm.is_model(name):  # timm checks `hf-hub:` and `local-dir:` names
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "`timm.list_models()` lists them"
        raise InputError(f"model.image.name={config.name} is no timm model; {hint}")
    ours = {"img_size", "num_classes", "pretrained", "patch_drop_rate"} & config.options.keys()
    if own_classifier:
        ours.discard("num_classes")
    if ours:
        raise InputError(
            f"model.image.options may not hold {', '.join(sorted(ours))}; "
            f"model.image has image_size, pretrained and patch_drop for these"
        )
    if isinstance(config.pretrained, str) and not Path(config.pretrained).is_file():
        raise InputError(f"model.image.pretrained={config.pretrained}: no such file; give a timm weight file")
    try:
        trunk = _create_with_size(config)
        if isinstance(config.pretrained, str):
            _load_weights(trunk, config.pretrained)
        return trunk
    except InputError:
        raise
    except Exception as error:  # timm may raise anything, and a weight file may hold anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model.image: timm cannot build {config.name} at {config.image_size} pixels with options={config.options} "
            f"and pretrained={config.pretrained}: {reason}"
        ) from error


def _create_with_size(config: TimmImageConfig) -> Any:
    arguments: dict[str, Any] = {"num_classes": 0, "pretrained": config.pretrained is True, **config.options}
    try:
        return timm.create_model(config.name, img_size=config.image_size, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(config.name, **arguments)  # convolutional models accept any size


def _load_weights(trunk: Any, file: str) -> None:
    """Loads a timm weight file without its classifier; timm adapts it to the trunk's size.

    timm loads the weights that fit and only logs the others, so missing weights are an error here: a trunk with random
    weights must not be mistaken for a trained one.
    """
    missing: list[str] = []
    hook = trunk.register_load_state_dict_post_hook(lambda _, keys: missing.extend(keys.missing_keys))
    adapt = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    timm.models.load_pretrained(trunk, {**trunk.pretrained_cfg, "file": file}, num_classes=0, filter_fn=adapt)
    hook.remove()
    if missing:
        raise InputError(
            f"model.image.pretrained={file} lacks {len(missing)} weights of the model, {missing[0]} first; "
            f"give a file of this architecture"
        )
