"""What a run needs of others' folders to read texts, kept in its own folder: the originals may be gone one day.

    RUN_DIR/texts/
        tokenizer.json, ...    the tokenizer
        config.json            of the text encoder, if transformers has it; its weights are in the checkpoints
        kept.json              the folders that these stand for, as the config names them

The config goes on naming the originals, and they are taken as long as they are there.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx.config.model import HuggingFaceTextConfig, ModelConfig, TextConfig
from clipx.errors import InputError
from clipx.storage.drafts import draft_of, finish
from clipx.storage.folders import Folder

if TYPE_CHECKING:
    from clipx.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

TEXTS = "texts"
_RECORD = "kept.json"


def is_kept(folder: Path) -> bool:
    """Whether a folder was written by `keep_texts`."""
    return bool(_record(folder))


def keep_texts(run_dir: Path, config: ModelConfig, tokenizer: "Tokenizer") -> None:
    """Writes the folder, where the config names local folders; what cannot be kept is said, and ends no run.

    Args:
        run_dir: of the run.
        config: of its model.
        tokenizer: that the run uses.

    Raises:
        OSError: the folder cannot be written.
    """
    places = {key: name for key, name in _places(config.text).items() if Path(name).is_dir()}
    if not places:
        return
    from clipx.data.same_tokens import same_tokens
    from clipx.models.huggingface_text import save_encoder_config

    folder = run_dir / TEXTS
    with draft_of(folder) as draft:
        try:
            if folder.exists() and not is_kept(folder):
                raise InputError(f"{TEXTS} there was not written by clipx")
            if "name" in places:
                save_encoder_config(places["name"], draft)
            if "tokenizer" in places:
                tokenizer.save(draft)
                if not same_tokens(tokenizer, _reloaded(config.text, draft)):
                    raise InputError("its copy gives other ids")
        except OSError:
            raise
        except Exception as error:  # a tokenizer of any kind, whose author may not have thought of saving it
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning(
                "cannot keep %s in %s (%s): leave it in its place", " and ".join(places.values()), run_dir, reason
            )
            return
        (draft / _RECORD).write_text(json.dumps(places, indent=2) + "\n", encoding="utf-8")
        Folder(str(folder)).remove()
        finish(draft)
        draft.rename(folder)


def with_kept_texts(config: ModelConfig, run_dirs: Iterable[Path]) -> ModelConfig:
    """The config with a run's copies in place of folders that are gone.

    Args:
        config: of the run's model.
        run_dirs: where the run's folder may be; the first that has a copy counts.
    """
    gone = {key: name for key, name in _places(config.text).items() if not Path(name).exists()}
    for folder in (run_dir / TEXTS for run_dir in run_dirs):
        record = _record(folder)
        kept: dict[str, Any] = {key: str(folder) for key, name in gone.items() if record.get(key) == name}
        if kept:
            without_weights = {"pretrained": False} if "name" in kept else {}
            return replace(config, text=replace(config.text, **kept | without_weights))
    return config


def _places(text: TextConfig) -> dict[str, str]:
    """The names in a config that may be folders, by their keys."""
    if isinstance(text, HuggingFaceTextConfig):
        return {"name": text.name, "tokenizer": text.tokenizer or text.name}
    return {} if text.tokenizer == "clip" else {"tokenizer": text.tokenizer}


def _reloaded(text: TextConfig, folder: Path) -> "Tokenizer":
    from clipx.data.tokenizer import build_tokenizer

    return build_tokenizer(replace(text, tokenizer=str(folder)))


def _record(folder: Path) -> dict[str, str]:
    """What the copies in a folder stand for; nothing if they are not there, or not of clipx."""
    try:
        content = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and content.keys() <= {"name", "tokenizer"} else {}
