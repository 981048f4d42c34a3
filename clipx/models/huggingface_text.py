"""Pretrained text encoders as text towers. In `clipx.models` only this file imports transformers.

An encoder runs packed if it accepts our attention and then gives the same result as for padded rows, which is tried
when the tower is built. Packed means one row of all tokens, with positions that start again at every text. Any other
encoder gets texts that are padded to the longest one of the batch.

Shape suffixes: B texts, L positions, T tokens of all texts, H heads, K channels of a head, C channels, D embedding.
"""

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn

from clipx.config.model import HuggingFaceTextConfig, Projection
from clipx.errors import InputError
from clipx.models.packing import Packing, as_rows, attend, pack, take
from clipx.models.projection import build_projection, initialise_projection

Pool = Literal["cls", "mean", "last"]

PACKED = "clipx_packed"
"""The name of our attention in transformers."""

log = logging.getLogger(__name__)

_NO_CODE: Any = {"trust_remote_code": False}  # None would ask whether the programs beside the weights may run


class HuggingFaceTextTower(nn.Module):
    """A transformers encoder, a pooling of its hidden states, and a projection.

    Args:
        encoder: maps input_ids to an output with `last_hidden_state`; to run packed, its attention must be PACKED.
        projection: maps (B, C) to (B, D).
        pool: "cls" takes the first hidden state, "mean" the mean over a text's tokens, "last" that of the last token.
        pad_token_id: the id of padding (some encoders compute positions from it).
        first_position: the position of a text's first token in a packed row; None means that texts are padded.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        projection: nn.Module,
        pool: Pool,
        pad_token_id: int,
        context_length: int,
        first_position: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool: Pool = pool
        self.pad_token_id = pad_token_id
        self.context_length = context_length
        self.first_position = first_position
        self.projection = projection

    def forward(self, tokens_T: Tensor, lengths_B: Tensor, *, max_length: int) -> Tensor:
        """Embeds B texts: for arguments and result see `TextTower.forward`."""
        assert max_length <= self.context_length, f"max_length={max_length} above {self.context_length}"
        packing = pack(lengths_B, num_tokens=tokens_T.shape[0], max_length=max_length)
        if self.first_position is None:
            x_TC = _encode_padded(self.encoder, tokens_T, packing, pad_token_id=self.pad_token_id)
        else:
            x_TC = _encode_packed(self.encoder, tokens_T, packing, first_position=self.first_position)
        return self.projection(self._pool(x_TC, packing))

    def _pool(self, x_TC: Tensor, packing: Packing) -> Tensor:
        match self.pool:
            case "cls":
                return take(x_TC, packing.start_B)
            case "mean":
                (x_BLC,), (filled_BL,) = as_rows(x_TC, packing), packing.filled
                return (x_BLC * filled_BL[..., None]).sum(1) / filled_BL.sum(1, keepdim=True)
            case "last":
                return take(x_TC, packing.last_B)
            case unknown:
                assert_never(unknown)


def _encode_padded(encoder: nn.Module, tokens_T: Tensor, packing: Packing, *, pad_token_id: int) -> Tensor:
    """Hidden states (T, C) of texts that the encoder gets as padded rows (B, L)."""
    (tokens_BL,), (filled_BL,) = as_rows(tokens_T, packing), packing.filled
    output = encoder(input_ids=tokens_BL.masked_fill(~filled_BL, pad_token_id), attention_mask=filled_BL.long())
    return take(output.last_hidden_state.flatten(0, 1), packing.place_T)


def _encode_packed(encoder: nn.Module, tokens_T: Tensor, packing: Packing, *, first_position: int) -> Tensor:
    """Hidden states (T, C) of texts that the encoder gets as one row (1, T)."""
    position_T = packing.position_T + first_position
    return encoder(input_ids=tokens_T[None], position_ids=position_T[None], packing=packing).last_hidden_state[0]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Our attention with the interface of transformers: (1, H, T, K) to (1, T, H, K).

    Key and value may have fewer heads. Attention windows are ignored: an encoder is accepted only if its longest text
    fits into them.
    """
    foreign = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if foreign:
        raise ValueError(f"its attention has {', '.join(foreign)}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    q_THK, k_THK, v_THK = (x[0].transpose(0, 1) for x in (query, key, value))
    if groups > 1:
        k_THK, v_THK = k_THK.repeat_interleave(groups, dim=1), v_THK.repeat_interleave(groups, dim=1)
    return attend(q_THK, k_THK, v_THK, packing, causal=causal, scale=scaling)[None], None


def build_huggingface_tower(
    config: HuggingFaceTextConfig, *, vocab_size: int, embed_dim: int, projection: Projection
) -> HuggingFaceTextTower:
    """Builds the text tower from its config, on the CPU: see `build_text_tower` for arguments and errors."""
    encoder = _load_encoder(config)
    shape = encoder.config
    embedding = encoder.get_input_embeddings()
    if embedding.num_embeddings < vocab_size:
        raise InputError(
            f"model.text.name={config.name} embeds {embedding.num_embeddings} tokens, the tokenizer has {vocab_size}; "
            f"set model.text.tokenizer to the model's own"
        )
    longest = getattr(shape, "max_position_embeddings", None) or config.context_length
    if config.context_length > longest:
        raise InputError(
            f"model.text.context_length={config.context_length} is above the {longest} positions of {config.name}; "
            f"set at most {longest}"
        )
    pad_token_id = shape.pad_token_id if shape.pad_token_id is not None else 0
    to_space = build_projection(projection, shape.hidden_size, embed_dim, tower="text", bias=config.bias)
    initialise_projection(to_space)
    return HuggingFaceTextTower(
        encoder,
        projection=to_space,
        pool=config.pool,
        pad_token_id=pad_token_id,
        context_length=config.context_length,
        first_position=_make_packed(encoder, pad_token_id=pad_token_id, context_length=config.context_length),
    )


@torch.no_grad()
def _make_packed(encoder: Any, *, pad_token_id: int, context_length: int) -> int | None:
    """Gives the encoder our attention if its results stay the same, and changes nothing otherwise.

    It compares hidden states in float64, of texts up to the longest allowed that together have more tokens than the
    encoder has learned positions. This detects attention between texts, a window, and a limit on a row's length.

    Returns:
        The position of a text's first token; None if the encoder cannot run packed.
    """
    from transformers import AttentionInterface

    if encoder.get_input_embeddings().weight.device.type == "meta":  # built for its shapes alone
        return None
    AttentionInterface.register(PACKED, _attention)
    before, training = encoder.config._attn_implementation, encoder.training
    tokens_T, packing = _probe(encoder, pad_token_id=pad_token_id, context_length=context_length)
    reason = "its hidden states differ"
    encoder.double().eval()
    try:
        expected_TC = _encode_padded(encoder, tokens_T, packing, pad_token_id=pad_token_id)
        encoder.set_attn_implementation(PACKED)
        for first_position in (0, pad_token_id + 1):  # RoBERTa and similar encoders start there
            result_TC = _encode_packed(encoder, tokens_T, packing, first_position=first_position)
            # Some norms and rotations compute in float32; attention between texts differs by orders of magnitude more.
            if (result_TC - expected_TC).abs().max() <= 1e-5 * expected_TC.abs().max():
                return first_position
    except Exception as error:  # an encoder without positions, or with its own attention, may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        encoder.float().train(training)
    encoder.set_attn_implementation(before)
    log.info("%s runs padded to the batch's longest text; not packed, because: %s", type(encoder).__name__, reason)
    return None


def _probe(encoder: Any, *, pad_token_id: int, context_length: int) -> tuple[Tensor, Packing]:
    """Texts to try an encoder with: tokens from its whole vocabulary, except padding."""
    lengths_B = torch.tensor([context_length, 1, context_length // 2 + 1] * 2)
    positions = getattr(encoder.config, "max_position_embeddings", None) or 0
    if positions <= 1024:  # larger numbers mean computed positions, not learned ones
        lengths_B = lengths_B.repeat(positions // int(lengths_B.sum()) + 1)
    num_tokens = int(lengths_B.sum())
    tokens_T = torch.arange(num_tokens) * 7919 % (encoder.get_input_embeddings().num_embeddings - 1)  # a large prime
    tokens_T += tokens_T >= pad_token_id
    return tokens_T, pack(lengths_B, num_tokens=num_tokens, max_length=context_length)


def kind_of_encoder(name: str) -> str:
    """transformers' name for the kind of a text encoder, as in "bert".

    Raises:
        InputError: there is none, or it is not in the cache of a machine without network.
    """
    with _readable_errors(name):
        return str(_read_shape(name).model_type)


def save_encoder_config(name: str, folder: Path) -> None:
    """Writes a text encoder's config, so that others can build it without the hub; the weights are float32.

    Raises:
        InputError: as `kind_of_encoder`.
    """
    with _readable_errors(name):
        shape = _read_shape(name)
        shape.dtype = torch.float32
        shape.save_pretrained(folder)


def _read_shape(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, **_NO_CODE)


@contextmanager
def _readable_errors(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a folder may hold anything
        is_folder = Path(name).exists()
        kind = "folder" if is_folder else "hub name (or folder that is not there)"
        hint = "" if is_folder else f"; where there is a network, `hf download {name}` puts it into the cache"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # transformers advises to let it run
            reason = "its weights are not only tensors, and could run a program; take one with safetensors"
        raise InputError(f"model.text.name={name}: transformers cannot load this {kind}: {reason}{hint}") from error


def _load_encoder(config: HuggingFaceTextConfig) -> Any:
    """Loads the encoder in float32, without dropout and without layers that the tower does not use."""
    from transformers import AutoModel

    with _readable_errors(config.name):
        shape = _read_shape(config.name)
        if hasattr(shape, "vision_config") or not hasattr(shape, "hidden_size"):
            raise InputError(f"model.text.name={config.name}: a {shape.model_type} model is no text encoder; name one")
        for name, value in shape.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(shape, name, 0.0)
        shape.use_cache = False  # a decoder would keep keys and values for a next token that never comes
        if config.pretrained:
            model = AutoModel.from_pretrained(config.name, config=shape, dtype=torch.float32, **_NO_CODE)
        else:
            model = AutoModel.from_config(shape, dtype=torch.float32, **_NO_CODE)
    encoder = model.get_encoder() if shape.is_encoder_decoder else model
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # a parameter without gradient would stop DDP
    return encoder
