"""The export for transformers: writes its files."""

from pathlib import Path
from typing import Any

from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.export.options import ExportOptions
from clipx.export.parity.transformers import CONSUMERS
from clipx.export.shape import ClipShape, TowerShape, read_shape
from clipx.export.weights import save_weights
from clipx.models.key_maps.huggingface import CLIP
from clipx.pretrained import Pretrained
from clipx.pretrained.huggingface import WEIGHTS

__all__ = ["CONSUMERS", "problem", "write"]


def problem(pretrained: Pretrained) -> str | None:
    """Why transformers has no class for a model; None: it has."""
    if pretrained.model.logit_bias is not None:
        return "a model with a logit_bias has no place in transformers' CLIPModel; use --format open_clip"
    try:
        read_shape(pretrained)
        CLIP.to_theirs(pretrained.model.state_dict())
    except InputError as error:
        return str(error)
    return None


def write(pretrained: Pretrained, folder: Path, options: ExportOptions) -> None:
    """Writes config, weights, processor and tokenizer for `CLIPModel`, `CLIPProcessor` and the Auto classes."""
    from transformers import CLIPConfig, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    shape = read_shape(pretrained)
    config = CLIPConfig(
        text_config=_tower(shape.text, shape)
        | {
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.context_length,
            "bos_token_id": ClipTokenizer.start_id,
            "eos_token_id": ClipTokenizer.end_id,  # the default of old configs, 2, selects another pooling
            "pad_token_id": ClipTokenizer.end_id,
        },
        vision_config=_tower(shape.vision, shape) | {"image_size": shape.image_size, "patch_size": shape.patch_size},
        projection_dim=shape.embed_dim,
        architectures=["CLIPModel"],
        dtype="float16" if options.dtype == "fp16" else "float32",
    )
    config.save_pretrained(folder)
    save_weights(CLIP.to_theirs(pretrained.model.state_dict()), folder / WEIGHTS, options)
    pretrained.tokenizer.save(folder)
    square = {"height": shape.image_size, "width": shape.image_size}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": shape.image_size}, crop_size=square, image_mean=shape.mean, image_std=shape.std
    )
    image_processor.save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def _tower(tower: TowerShape, shape: ClipShape) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.hidden,
        "hidden_act": "quick_gelu" if tower.quick_gelu else "gelu",
        "layer_norm_eps": tower.eps,
        "projection_dim": shape.embed_dim,
    }
