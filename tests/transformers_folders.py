"""Freshly initialised folders of transformers' CLIP and SigLIP, made by the library itself, and what it computes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

IMAGE_SIZE = 48
_CORPUS = [
    "a photo of a cat and two dogs, near the red house",
    "an owl & a fox at dusk: the photographer's own picture!",
    "ein großes Café in Zürich, naïve and free",
    "1234567890 the quick brown fox jumps over the lazy dog",
]


class Results(NamedTuple):
    """What the library computes; embeddings have unit length."""

    pixels_B3SS: Tensor
    ids: list[list[int]]
    image_BD: Tensor
    text_ND: Tensor
    logits_BN: Tensor


def clip_folder(folder: Path, *, activation: str = "quick_gelu", seed: int = 0, **top: Any) -> Path:
    """A CLIPModel of sizes that are all different, with its tokenizer and processor."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = _clip_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {"hidden_size": 24, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {"hidden_size": 32, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=text | ids | {"hidden_act": activation, "max_position_embeddings": 22},
        vision_config=vision | {"hidden_act": activation, "image_size": IMAGE_SIZE, "patch_size": 16},
        projection_dim=20,
        **top,
    )
    _save(CLIPModel(config), folder, seed)
    tokenizer.save_pretrained(folder)
    save_clip_processor(folder)
    return folder


def save_clip_processor(folder: Path, **settings: Any) -> None:
    """CLIPProcessor's files, beside a tokenizer."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    sizes = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    CLIPProcessor(image_processor=CLIPImageProcessor(**sizes | settings), tokenizer=tokenizer).save_pretrained(folder)


def siglip_folder(folder: Path, *, second: bool = False, seed: int = 0) -> Path:
    """A SiglipModel as the first or the second generation is stored: they have other tokenizers and interpolations."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    tokenizer = _gemma_like() if second else _unigram()
    text = {"hidden_size": 24, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {"hidden_size": 32, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=text | {"projection_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 12},
        vision_config=vision | {"image_size": IMAGE_SIZE, "patch_size": 16},
    )
    _save(SiglipModel(config), folder, seed)
    pictures = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, resample=2 if second else 3)
    SiglipProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "clip, quick_gelu": clip_folder,
    "clip, gelu": lambda folder: clip_folder(folder, activation="gelu"),
    "siglip": siglip_folder,
    "siglip 2": lambda folder: siglip_folder(folder, second=True),
}


def library_results(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Results:
    """What the library's own classes compute, from the folder alone, texts padded as each model wants it."""
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    siglip = model.config.model_type == "siglip"
    length = model.config.text_config.max_position_embeddings
    words = {"padding": "max_length" if siglip else True, "truncation": True, "max_length": length}
    inputs = processor(text=list(texts), images=list(pictures), return_tensors="pt", **words)
    with torch.no_grad():
        outputs = model(**inputs)
    rows = inputs["input_ids"].tolist()
    if not siglip:
        end = processor.tokenizer.eos_token_id
        rows = [row[: row.index(end) + 1] for row in rows]  # the library pools there
    return Results(inputs["pixel_values"], rows, outputs.image_embeds, outputs.text_embeds, outputs.logits_per_image)


def photographs(count: int) -> list[Image.Image]:
    """Pictures with the sizes of photographs and with low and high frequencies, all different; no mode but RGB."""
    generator = np.random.default_rng(7)
    pictures = []
    for number in range(count):
        width, height = (int(side) for side in generator.integers(40, 130, size=2))
        y_H1, x_1W = np.mgrid[0:height, 0:1][0] / height, np.mgrid[0:1, 0:width][1] / width
        waves = [np.sin(6.3 * ((k + 1) * x_1W + (number % 9 + 1) * y_H1) + k) for k in range(3)]
        noise_HW3 = generator.normal(scale=25, size=(height, width, 3))
        pictures.append(
            Image.fromarray((127 + 80 * np.stack(waves, axis=-1) + noise_HW3).clip(0, 255).astype(np.uint8))
        )
    return pictures


def varied_strings(count: int) -> list[str]:
    """Words of many scripts, HTML, quotes, emoji, control characters, special tokens spelt out, nothing, long ones."""
    parts = [
        *("a photo of a cat", "Two DOGS", "3.14%", "don't", "&amp; &lt;b&gt; &#39;", "\u201ccurly\u201d", "it\u2019s"),
        *("naïve café", "e\u0301clair", "\ufb01lled \uff23\uff32\uff25\uff21\uff2d", "日本の東京タワー", "Москва"),
        *("العربية", "हिन्दी", "한국어", "\U0001f469\U0001f3fd\u200d\U0001f680 👋", "🏳️\u200d🌈", "\u0007bell\u0000null"),
        *("tab\tnew\nline\r\u2028", "\u00a0\u2003wide", "cafÃ© itâ€™s", "<|endoftext|>", "<|startoftext|>", "</s>"),
        *("<pad>", "<unk>", "<eos>", "▁", "</w>", "\u200bzero\u200d", "\ufeff", "x" * 60, "I" * 3 + "İıß", "", " "),
        *("\U0001d518\U0001d52b\U0001d526", "a" * 5 + "\u0300" * 5, "\u2026\u2014\u2013", "$€£¥", "C:\\new\\table"),
    ]
    generator = np.random.default_rng(3)
    strings = [" ".join(parts), "word " * 400, *parts]
    while len(strings) < count:
        chosen = generator.choice(len(parts), size=int(generator.integers(1, 6)))
        noise = "".join(map(chr, generator.integers(0x20, 0x2FF, size=int(generator.integers(0, 6)))))
        strings.append(str(generator.choice(["", " ", "  ", ", "])).join([*(parts[i] for i in chosen), noise]))
    return strings[:count]


@torch.no_grad()
def _save(model: Any, folder: Path, seed: int) -> None:
    """With every weight random, biases and gains included, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    for name, parameter in model.named_parameters():
        if (
            name.endswith("norm.weight")
            or ("layer_norm" in name and name.endswith("weight"))
            or "layrnorm.weight" in name
        ):
            parameter.add_(1)
    model.logit_scale.fill_(2.5)
    model.save_pretrained(folder)


def _clip_tokenizer() -> Any:
    """CLIP's, with a vocabulary of bytes and a few words; as in CLIP's, the end token has the highest id."""
    from transformers import CLIPTokenizer

    merges: list[tuple[str, str]] = []
    for word in ("photo", "cat", "dogs", "the", "word", "caf"):
        left = word[0]
        for number, letter in enumerate(word[1:], start=2):
            right = letter + ("</w>" if number == len(word) else "")
            merges += [(left, right)] if (left, right) not in merges else []
            left += right
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet), *map("".join, merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=22)


def _unigram() -> Any:
    """Like the first SigLIP's: lower case, no punctuation, an end token, padded with it."""
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(".", ""), normalizers.Replace(",", ""), normalizers.NFKC()]
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=180, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    raw.train_from_iterator(_CORPUS, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", raw.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=12,
        model_input_names=["input_ids"],
    )


def _gemma_like() -> Any:
    """Like the second SigLIP's: byte fallback, an end token, a token for padding."""
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    raw.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    raw.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<eos>",
        pad_token="<pad>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=12,
        model_input_names=["input_ids"],
    )
