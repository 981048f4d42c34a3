"""Folders of open_clip models, freshly initialised by open_clip itself, with every kind of tower that clipx reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "width": 24, "heads": 4, "layers": 2}
OTHER_TOKENIZER = {"hf_tokenizer_name": "somebody/tokenizer", "vocab_size": 420}
SIGLIP_TEXT = OTHER_TOKENIZER | {
    "context_length": 16,
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 32,
    "heads": 4,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}
BERT = {"hf_model_name": "encoder", "hf_tokenizer_name": "somebody/bert", "context_length": 16}
SQUASHED = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.3], "resize_mode": "squash", "interpolation": "bilinear"}


def timm_vision(name: str, pool: str, proj: str | None) -> dict[str, Any]:
    """A trunk of timm's; its small ones for tests have 160 pixels."""
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 160}


MODELS: dict[str, dict[str, Any]] = {
    "gelu": {"vision_cfg": VISION, "text_cfg": TEXT},
    "quick_gelu": {"quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "own_varied": {
        "custom_text": True,
        "vision_cfg": VISION
        | {"mlp_ratio": 2.7, "ls_init_value": 0.3, "pool_type": "avg", "final_ln_after_pool": True}
        | {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}, "patch_dropout": 0.5},
        "text_cfg": TEXT | {"mlp_ratio": 2.45, "proj_type": "none", "norm_kwargs": {"eps": 1e-4}, "pad_id": 7},
    },
    "avg_after_norm": {
        "vision_cfg": VISION | {"pool_type": "avg", "final_ln_after_pool": False},
        "text_cfg": TEXT | {"pool_type": "last", "proj_bias": True, "tokenizer_kwargs": {"clean": "whitespace"}},
    },
    "timm": {
        "custom_text": True,
        "vision_cfg": timm_vision("test_convnext", "", "linear"),
        "text_cfg": TEXT,
        "quick_gelu": True,
    },
    "timm_vit_avg_mlp": {"vision_cfg": timm_vision("test_vit", "avg", "mlp"), "text_cfg": TEXT},
    "timm_classifier": {
        "custom_text": True,
        "vision_cfg": timm_vision("test_vit", "token", None),
        "text_cfg": TEXT | OTHER_TOKENIZER | {"pool_type": "eos", "eos_id": 2},
    },
    "siglip": {
        "embed_dim": 96,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": timm_vision("test_vit3", "map", "none"),
        "text_cfg": SIGLIP_TEXT,
        "preprocess_cfg": SQUASHED,
    },
    "bert_mlp": {"vision_cfg": VISION, "text_cfg": BERT | {"hf_pooler_type": "mean_pooler"}, "quick_gelu": True},
    "bert_linear": {
        "vision_cfg": timm_vision("test_resnet", "avg", "mlp"),
        "text_cfg": BERT | {"hf_proj_type": "linear", "hf_pooler_type": "cls_last_hidden_state_pooler"},
    },
    "bert_none": {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": BERT | {"hf_proj_type": None}},
}
"""Of each shape the model_cfg, and the preprocess_cfg where it is not open_clip's own."""


def write_model(folder: Path, shape: dict[str, Any], *, seed: int = 0) -> Path:
    """A folder whose every weight is random, gains, biases and statistics too, as after training."""
    import open_clip
    from safetensors.torch import save_file

    shape = json.loads(json.dumps(shape))
    preprocess = shape.pop("preprocess_cfg", {})
    folder.mkdir(parents=True)
    text = shape["text_cfg"]
    if "hf_model_name" in text:
        write_bert(folder / text["hf_model_name"])
        text["hf_model_name"] = str(folder / text["hf_model_name"])
    if "hf_tokenizer_name" in text:
        byte_tokenizer().save_pretrained(folder)
    config = {"model_cfg": {"embed_dim": 24} | shape, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand(buffer.shape, generator=generator))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def write_bert(folder: Path) -> Path:
    """The config of a text encoder without its weights."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertConfig(**sizes, vocab_size=420, max_position_embeddings=40, pad_token_id=0).save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """A byte-level tokenizer: every text has ids of its own, spaces and case count."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    words = ["a photo of a cat", "the red house, on the hill", "A DOG! Schön & groß 日本 🙂"] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, min_frequency=1)
    core.train_from_iterator(words, trainer)
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def photographs(count: int, *, seed: int = 0) -> list[Image.Image]:
    """Smooth colours with grain, in sizes like photographs': wide, high, odd numbers of pixels, a few small."""
    draw = np.random.default_rng(seed)
    pictures = []
    for number in range(count):
        width, height = (int(draw.integers(180, 420)), int(draw.integers(140, 400)))
        if number % 8 == 0:
            width, height = 20 + number, 45
        y_H1, x_1W = np.mgrid[0:height, 0:1][0] / height, np.mgrid[0:1, 0:width][1] / width
        phases = draw.uniform(0, 6, size=(3, 3))
        waves = [np.sin(9 * a * x_1W + 7 * b * y_H1 + c) for a, b, c in phases]
        grain_HW3 = draw.normal(scale=18, size=(height, width, 3))
        pixels = (127 + 85 * np.stack(waves, axis=-1) + grain_HW3).clip(0, 255).astype(np.uint8)
        pictures.append(Image.fromarray(pixels))
    return pictures
