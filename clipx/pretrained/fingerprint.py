"""Says of two models whether they are one, wherever their files lie and whoever wrote them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from clipx.config.model import ModelConfig
from clipx.data.same_tokens import WORDS
from clipx.data.tokenizer import Tokenizer

_DIGITS = 32
_PLACES = {"name", "tokenizer", "pretrained"}  # where parts come from; what came from there is looked at itself


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes: the same whatever files they come from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(model: nn.Module, config: ModelConfig, tokenizer: Tokenizer) -> str:
    """32 hex digits of weights, settings and what the tokenizer makes of some words."""
    return fingerprint_of_weights(model.state_dict(), config, tokenizer)


def fingerprint_of_weights(tensors: Mapping[str, Tensor], config: ModelConfig, tokenizer: Tokenizer) -> str:
    """The same of some of a model's weights, by name."""
    settings = asdict(config)
    for tower in ("image", "text"):
        settings[tower] = {key: value for key, value in settings[tower].items() if key not in _PLACES}
    tokens_T, lengths_B = tokenizer.encode(WORDS)
    content = [checksum(tensors), settings, tokenizer.vocab_size, tokens_T.tolist(), lengths_B.tolist()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]
