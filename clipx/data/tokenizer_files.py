"""The files of a transformers tokenizer: whether they are there, and what is changed in them."""

import json
from pathlib import Path
from typing import Any

from clipx.config.model import Cleaning
from clipx.data.straightening import STRIP, normalizer

_RULES = "tokenizer.json"


def has_vocabulary(tokenizer: Any, folder: Path) -> bool:
    """Whether a folder holds what a tokenizer was loaded from: without it transformers makes one that knows no word."""
    own = tokenizer.vocab_files_names.values()  # none of byte-level tokenizers
    names = [path.name for path in folder.iterdir()] if own and folder.is_dir() else []
    return not names or any(
        name in own or name.startswith("vocab.") or name.endswith((".model", ".tiktoken")) for name in names
    )


def vocabulary_files(tokenizer: Any) -> str:
    """The names of the files, one of which holds the vocabulary."""
    return " or ".join(sorted(tokenizer.vocab_files_names.values()))


def clean_in_file(folder: Path, cleaning: Cleaning) -> None:
    """Puts a cleaning before the tokenizer's own rules; one without a file of rules stays as it is.

    The class becomes the one that does what the file says: others build rules of their own.
    """
    path = folder / _RULES
    if not path.is_file():
        return
    own = json.loads(path.read_text(encoding="utf-8")).get("normalizer")
    rules = [*normalizer(cleaning)["normalizers"], STRIP, *([] if own is None else [own])]
    change(path, normalizer={"type": "Sequence", "normalizers": rules})
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def change(path: Path, **entries: Any) -> None:
    """Replaces entries of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
