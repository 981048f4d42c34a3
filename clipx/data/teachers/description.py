"""The description of a store of teachers' embeddings: what was taught, how, and which shards. Imports no torch.

DIR/teachers.json          the description, written last: without it a store is unfinished
    shards/00000.teachers  embeddings of the shard with this number in the description
    left_out.jsonl         samples without embeddings, each with its reason
    .clipx-teach           what a killed job goes on from
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipx.config.paths import expand_home
from clipx.errors import InputError
from clipx.storage.files import is_local

DESCRIPTION = "teachers.json"
LEFT_OUT = "left_out.jsonl"
WORK = ".clipx-teach"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model whose embeddings are stored."""

    name: str
    """By which a run asks for it."""
    model: str
    """What was given as --model."""
    fingerprint: str
    """Of weights, settings and tokenizer (`clipx.pretrained.fingerprint`)."""
    dim: int
    """D, numbers of an embedding."""
    logit_scale: float
    """The multiplier of its similarities."""
    image_size: int
    """Pixels of a view's side as it saw them."""
    interpolation: str
    """Of the crop that was resized."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the samples of some shards were read."""

    name: str
    """Of the source."""
    image_key: str
    caption_keys: tuple[str, ...]
    """All captions under each of them are stored."""
    class_names: str | None
    """Digest of the names that captions number; None if captions are texts."""
    augment: Mapping[str, Any]
    """`data.augment`."""
    probes: str
    """What this augmentation made of some pictures (`clipx.data.teachers.probes`)."""


@dataclass(frozen=True, kw_only=True)
class TaughtShard:
    """A shard whose embeddings are stored."""

    name: str
    """The end of its address that no other shard of the store has: mostly the name of its file."""
    reading: int
    """Number of its reading."""
    samples: int
    """Of the index by which it was taught."""
    filter: str
    """Of that index; "" if it held all samples."""
    bytes: int
    """Of the shard."""
    taught: int
    """Samples that have embeddings."""
    texts: int
    """Different captions of them, counted sample by sample."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """A whole store."""

    format: int = FORMAT
    views: int
    """K, of each picture."""
    seed: int
    """Of the views."""
    decode: str
    """`data.decode`."""
    precision: str
    """In which teachers computed."""
    batch_size: int
    """Pictures of a forward pass."""
    teachers: tuple[Teacher, ...]
    readings: tuple[Reading, ...]
    shards: tuple[TaughtShard, ...]

    def encoded(self) -> bytes:
        """The file's content."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    def fingerprint(self) -> str:
        """SHA-256 of all that it says but the teachers' addresses: equal for equal stores, wherever models lie.

        Checkpoints hold it: a field that is added to the description counts only where it is not at its default.
        """
        content = asdict(self)
        for teacher in content["teachers"]:
            del teacher["model"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shard_file(folder: Path, number: int) -> Path:
    """Where the embeddings of a shard lie."""
    return folder / "shards" / f"{number:05d}.teachers"


def read_description(folder: str, *, key: str = "data.teachers") -> Description:
    """The description of a finished store, which `key` of the config names.

    Raises:
        InputError: the folder is remote or not there, no store, unfinished, or of another version.
    """
    key = f"{key}={folder}"
    if not is_local(folder):
        raise InputError(f"{key}: embeddings are read sample by sample from a local disk; copy the folder there")
    path = Path(expand_home(folder))
    try:
        content = json.loads((path / DESCRIPTION).read_bytes())
        found = content["format"]
        description = _decoded(content) if found == FORMAT else None
    except FileNotFoundError as error:
        if (path / WORK).is_dir():
            raise InputError(
                f"{key} is unfinished; run the same `clipx data teach` again, it goes on where it was"
            ) from error
        what = "holds no teachers' embeddings" if path.is_dir() else "is not there"
        raise InputError(f"{key} {what}; name the --out of a `clipx data teach`") from error
    except OSError as error:
        raise InputError(f"{key} cannot be read: {error.strerror or error}; name a folder that can") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{key}: {DESCRIPTION} is damaged; restore it, or run `clipx data teach` again") from error
    if description is None:
        raise InputError(
            f"{key} has format {found}, this version of clipx reads {FORMAT}; run `clipx data teach` again with "
            "another --out"
        )
    return description


def _decoded(content: Mapping[str, Any]) -> Description:
    readings = [Reading(**{**row, "caption_keys": tuple(row["caption_keys"])}) for row in content["readings"]]
    parts = {
        "teachers": tuple(Teacher(**row) for row in content["teachers"]),
        "readings": tuple(readings),
        "shards": tuple(TaughtShard(**row) for row in content["shards"]),
    }
    return Description(**{**content, **parts})
