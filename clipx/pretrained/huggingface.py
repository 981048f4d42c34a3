"""Models of transformers: their weights under our names."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipx.config.model import CLIP_VOCABULARY, ModelConfig, TransformerTextConfig
from clipx.pretrained.huggingface_config import CONFIG, LOGIT_BIAS, family_of, read_config, tower
from clipx.pretrained.json_file import read_json
from clipx.pretrained.json_keys import Keys
from clipx.pretrained.timm_names import Family

if TYPE_CHECKING:
    from torch import Tensor

    from clipx.models.key_maps.key_map import KeyMap

__all__ = ["WEIGHTS", "read_config", "read_weights"]

WEIGHTS = "model.safetensors"
TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"
_LEGACY_END = 2  # the id in configs before transformers 4.31; it selects the highest id of a text


def read_weights(folder: Path, config: ModelConfig) -> "dict[str, Tensor]":
    """The folder's weights under our names, in float32.

    Args:
        folder: of a model, or of an export of ours.
        config: of the model, as `read_config` or the export has it.

    Raises:
        InputError: a file cannot be read or holds more than tensors, weights are missing, too many or of other shapes,
            or the tokenizer does not go with the model.
    """
    import torch

    from clipx.pretrained.weight_files import read_tensors
    from clipx.pretrained.whole_weights import check_whole, expected_shapes

    content = read_json(folder / CONFIG)
    family = family_of(content, folder)
    theirs = {
        name: tensor
        for name, tensor in read_tensors(folder, (WEIGHTS, "pytorch_model.bin")).items()
        if not name.endswith(".position_ids")  # older versions stored these constants
    }
    key_map = _key_map(family)
    bias = config.init_logit_bias
    if family == "clip":
        config = replace(config, init_logit_bias=None)
        _check_end(folder, tower(content, folder, "text_config", family), config)
    else:
        _take_back(theirs, config)
    rows = theirs.get(TOKEN_TABLE, torch.empty(1))
    check_whole(theirs, expected_shapes(key_map, config, vocab_size=len(rows)), place=folder)
    ours = key_map.to_ours(theirs)
    if family == "clip" and bias is not None:
        ours["logit_bias"] = torch.tensor([content.get(LOGIT_BIAS, bias)])
    return ours


def _take_back(theirs: "dict[str, Tensor]", config: ModelConfig) -> None:
    """Removes what an export of ours adds, since every SigLIP has it: a token for padding, a bias of the logits."""
    if config.text.tokenizer == "clip" and TOKEN_TABLE in theirs:
        theirs[TOKEN_TABLE] = theirs[TOKEN_TABLE][:-1]
    if config.init_logit_bias is None:
        theirs.pop("logit_bias", None)


def _key_map(family: Family) -> "KeyMap":
    from clipx.models.key_maps import huggingface

    return huggingface.CLIP if family == "clip" else huggingface.SIGLIP


def _check_end(folder: Path, text: Keys, config: ModelConfig) -> None:
    """Checks that CLIP pools where we do: at the first end token, which its tokenizer puts at the end of every text.

    Raises:
        InputError: the config names another token, or the tokenizer puts none.
    """
    from clipx.data.tokenizer import HuggingFaceTokenizer

    if not isinstance(config.text, TransformerTextConfig) or config.text.tokenizer == "clip":
        return  # an export of ours with CLIP's own tokenizer
    tokenizer = HuggingFaceTokenizer(str(folder), config.text.context_length)
    end = text.take("eos_token_id", CLIP_VOCABULARY - 1)
    tokens_T, _ = tokenizer.encode(["a"])
    last = int(tokens_T[-1])
    legacy = end == _LEGACY_END and last == tokenizer.vocab_size - 1  # the highest id is that of the end token
    if end != last and not legacy:
        text.refuse("eos_token_id", end, f"the tokenizer beside it ends every text with {last}")
