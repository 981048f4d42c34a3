"""Texts to token ids: CLIP's byte-pair encoding, or any tokenizer of transformers; owns `tokenizers`.

Texts travel flat, without padding: the tokens of B texts end to end, and their lengths.
Shapes: B texts, T tokens of all of them.
"""

import gzip
from collections.abc import Sequence
from functools import cache, partial
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, assert_never

import numpy as np
import regex
import tokenizers
import torch
from torch import Tensor

from clipx.config.model import CLIP_VOCABULARY, Cleaning, HuggingFaceTextConfig, TextConfig, TransformerTextConfig
from clipx.data.straightening import normalizer
from clipx.data.text_cleaning import CLEANINGS
from clipx.data.tokenizer_files import change, clean_in_file, has_vocabulary, vocabulary_files
from clipx.errors import InputError
from clipx.storage.hub import local_name

# Word pieces of CLIP's tokenizer; the first two are its control tokens as open_clip spells them.
_PIECE = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
_NUM_MERGES = 48_894
_CACHED_WORDS = 1 << 17  # some 250 bytes each; the words of captions repeat long before the cache is full


class Tokenizer(Protocol):
    """A tokenizer as the stream, evaluation and export use it."""

    @property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size)."""

    @property
    def context_length(self) -> int:
        """Maximum tokens of a text; longer texts are cut."""

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Flat ids int64 (T,) and lengths int64 (B,), each at least 1, special tokens included."""

    def save(self, folder: Path) -> None:
        """Writes the files from which transformers' AutoTokenizer loads this tokenizer."""


class ClipTokenizer:
    """OpenAI CLIP's byte-pair encoding of cleaned, lower-case text (arXiv 2103.00020, section 2.4), 49,408 ids.

    Ids equal open_clip's `SimpleTokenizer`. A text that spells out `<end_of_text>` ends there, unless it is padded:
    CLIP pools at the first end token, so what follows it in open_clip's row has no effect.

    Args:
        context_length: maximum tokens of a text; a longer text is cut and keeps its end token.
        pad: whether every text is filled up to `context_length` with id 0, as open_clip does it.
        cleaning: of a text before its words are encoded; CLIP's is "lower".
    """

    start_id = CLIP_VOCABULARY - 2
    end_id = CLIP_VOCABULARY - 1
    vocab_size = CLIP_VOCABULARY

    def __init__(self, context_length: int, *, pad: bool = False, cleaning: Cleaning = "lower") -> None:
        self.context_length = context_length
        self._pad = pad
        self._cleaning: Cleaning = cleaning
        self._word_ids = _WordIds()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), pad=self._pad, cleaning=self._cleaning), (self.context_length,)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Flat ids int64 (T,) and lengths int64 (B,), each from 2 to `context_length`."""
        return _flat([self._encode_text(text) for text in texts])

    def save(self, folder: Path, *, pad: tuple[str, int] | None = None) -> None:
        """Writes tokenizer.json and tokenizer_config.json for transformers.

        Its CLIPTokenizer would build its own normalizer whatever the file says, and does not clean texts; as a
        PreTrainedTokenizerFast the file's own is used, which cleans them as far as rules can (`straightening.py`). It
        cuts at `context_length` where it is asked for `truncation`.

        Args:
            folder: takes the files.
            pad: a further token and its id, for models that see what texts are filled up with; None means that they
                are filled up with end tokens, and a mask says so.
        """
        from transformers import CLIPTokenizer

        vocabulary, merges = _vocabulary()
        parts: dict[str, Any] = {"vocab": dict(vocabulary), "merges": list(merges)}
        if pad is not None:
            parts |= {"vocab": vocabulary | dict([pad]), "pad_token": pad[0], "model_input_names": ["input_ids"]}
        CLIPTokenizer(**parts, model_max_length=self.context_length).save_pretrained(folder)
        change(folder / "tokenizer.json", normalizer=normalizer(self._cleaning))
        # split: a text that spells out <|endoftext|> has these characters, and no end
        change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", split_special_tokens=True)

    def _encode_text(self, text: str) -> list[int]:
        words = CLEANINGS[self._cleaning](text)
        ids = [self.start_id, *chain.from_iterable(map(self._word_ids.__getitem__, words)), self.end_id]
        if not self._pad:  # where the last position counts, so does what follows an end token
            ids = ids[: ids.index(self.end_id) + 1]
        if len(ids) > self.context_length:
            ids = [*ids[: self.context_length - 1], self.end_id]
        return ids + [0] * (self.context_length - len(ids)) if self._pad else ids


class _WordIds(dict[str, tuple[int, ...]]):
    """The ids of words, computed once; no word piece of CLIP crosses white space."""

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        ids = tuple(chain.from_iterable(map(_encode_piece, _PIECE.findall(word))))
        self[word] = ids
        return ids


class HuggingFaceTokenizer:
    """A tokenizer of transformers, with its own special tokens.

    Args:
        name: hub name, address at the hub (hf://ORG/NAME@REVISION) or folder.
        context_length: maximum tokens of a text with its special tokens; a longer text is cut and keeps them.
        pad: whether every text is filled up to `context_length` with the tokenizer's token for that.
        cut: whether a text ends at its first end token, where CLIP pools: one may be spelt out within a text.
        cleaning: of a text before it is tokenized; None means none.

    Raises:
        InputError: AutoTokenizer cannot load it, or it has no token to pad with.
    """

    def __init__(
        self,
        name: str,
        context_length: int,
        *,
        pad: bool = False,
        cut: bool = False,
        cleaning: Cleaning | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        place = local_name(name)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)  # None would ask
        except Exception as error:  # a folder may hold anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"tokenizer {name!r} cannot be loaded ({reason}); give `clip`, a hub name, or a tokenizer's folder"
            ) from error
        if not has_vocabulary(self._tokenizer, Path(place)):
            raise InputError(
                f"tokenizer {name!r}: the folder has no vocabulary ({vocabulary_files(self._tokenizer)}); save the "
                "model's tokenizer there"
            )
        if pad and self._tokenizer.pad_token_id is None:
            raise InputError(f"tokenizer {name!r} has no token to pad with, which model.text.pad needs; choose another")
        self.name = name
        self.context_length = context_length
        self._pad = pad
        self._cut = cut
        self._cleaning = cleaning

    @property
    def vocab_size(self) -> int:
        """Ids lie in [0, vocab_size); added tokens count."""
        return len(self._tokenizer)

    @property
    def end_id(self) -> int | None:
        """The token that ends a text; None if there is none, or if texts begin with the same one."""
        tokenizer = self._tokenizer
        end, first = tokenizer.eos_token_id, tokenizer.bos_token_id
        if end is None:  # BERT's name for it
            end, first = tokenizer.sep_token_id, tokenizer.cls_token_id
        return None if end == first else end

    @property
    def pad_id(self) -> int | None:
        """The token that fills up texts."""
        pad_id: int | None = self._tokenizer.pad_token_id
        return pad_id

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Flat ids int64 (T,) and lengths int64 (B,), each from 1 to `context_length`.

        Raises:
            InputError: a text without tokens, which a tower cannot pool.
        """
        options: dict[str, Any] = {
            "return_attention_mask": False,
            "return_token_type_ids": False,
            "max_length": self.context_length,
        }
        options["padding"] = "max_length" if self._pad else False
        given = list(texts) if self._cleaning is None else [" ".join(CLEANINGS[self._cleaning](text)) for text in texts]
        rows = self._tokenizer(given, truncation=True, **options)["input_ids"]
        if empty := [text for text, row in zip(texts, rows, strict=True) if not row]:
            raise InputError(f"tokenizer {self.name!r} gives no tokens for {empty[0]!r}; choose one with an end token")
        if self._cut and (end := self.end_id) is not None:
            rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
        return _flat(rows)

    def save(self, folder: Path, *, cleaned: bool = False) -> None:
        """Writes the tokenizer's files for transformers' AutoTokenizer; they name a longest text at least.

        Args:
            folder: takes the files.
            cleaned: whether they also do this tokenizer's cleaning, as far as rules can, for who does not clean texts.
        """
        self._tokenizer.model_max_length = min(self._tokenizer.model_max_length, self.context_length)
        self._tokenizer.save_pretrained(folder)
        if cleaned and self._cleaning is not None:
            clean_in_file(folder, self._cleaning)


def build_tokenizer(config: TextConfig, *, context_length: int | None = None, pad: bool = True) -> Tokenizer:
    """The tokenizer that the text tower's config names.

    Args:
        config: of the tower.
        context_length: maximum tokens of a text; None means the config's.
        pad: whether texts are padded where the config says so; to `context_length`.
    """
    length = context_length or config.context_length
    match config:
        case TransformerTextConfig():
            pad = pad and config.pad is not None
            if config.tokenizer == "clip":
                return ClipTokenizer(length, pad=pad, cleaning=config.cleaning or "lower")
            return HuggingFaceTokenizer(
                config.tokenizer, length, pad=pad, cut=config.pool == "end", cleaning=config.cleaning
            )
        case HuggingFaceTextConfig():
            return HuggingFaceTokenizer(config.tokenizer or config.name, length, cleaning=config.cleaning)
        case _:
            assert_never(config)


def _flat(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths_B = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    tokens_T = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths_B.sum()))
    return torch.from_numpy(tokens_T), torch.from_numpy(lengths_B)


def _encode_piece(piece: str) -> tuple[int, ...]:
    if piece in ("<start_of_text>", "<end_of_text>"):
        return (ClipTokenizer.start_id if piece == "<start_of_text>" else ClipTokenizer.end_id,)
    symbols = "".join([_byte_symbols()[byte] for byte in piece.encode()])
    return tuple(token.id for token in _byte_pair_encoder().tokenize(symbols))


@cache
def _byte_pair_encoder() -> tokenizers.models.BPE:
    vocabulary, merges = _vocabulary()
    return tokenizers.models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's 49,408 symbols with their ids, and the merges in the order of their rank.

    Ids: the 256 bytes, the 256 bytes that end a word, one per merge, and the two control tokens.
    """
    packed = files("clipx.data").joinpath("vocabulary", "clip_merges.txt.gz").read_bytes()
    pairs = [line.split(" ") for line in gzip.decompress(packed).decode("utf-8").splitlines()]
    merges = [(first, second) for first, second in pairs]
    assert len(merges) == _NUM_MERGES, "the vendored merges are damaged"
    # The ids of single bytes follow the order of their symbols' code points, those printable in Latin-1 first.
    symbols = sorted(_byte_symbols().values())
    ordered = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(merge) for merge in merges)]
    ordered += ["<|startoftext|>", "<|endoftext|>"]
    return {symbol: index for index, symbol in enumerate(ordered)}, merges


@cache
def _byte_symbols() -> dict[int, str]:
    """A visible character for every byte (GPT-2's byte-level BPE): itself if it is printable, else from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    symbols = {byte: chr(byte) for byte in printable}
    return symbols | {byte: chr(256 + number) for number, byte in enumerate(others)}
