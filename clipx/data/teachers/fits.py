"""Whether a run reads its samples as a store's teachers did, and only samples that they were taught."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from clipx.config.data import AugmentConfig, Decode, Source
from clipx.data.class_names import listed
from clipx.data.index.shard_index import ShardIndex
from clipx.data.parallel import in_threads
from clipx.data.teachers.description import Reading, TaughtShard, shard_file
from clipx.data.teachers.names import StoredShards
from clipx.data.teachers.probes import agrees, encoded_probes
from clipx.data.teachers.shard_file import require_whole
from clipx.data.teachers.store import Teachers
from clipx.errors import InputError


def reading_of(source: Source, *, decode: Decode, seed: int) -> Reading:
    """How the samples of a source are read.

    Raises:
        InputError: teachers cannot know its texts (`require_stored_texts`), or a list of class names cannot be read.
    """
    require_stored_texts(source)
    assert source.augment is not None, "pretraining augments"
    return Reading(
        name=source.name,
        image_key=source.image_key,
        caption_keys=_caption_keys(source),
        class_names=_class_names(source),
        augment=_record(source.augment),
        probes=encoded_probes(source.augment, decode=decode, seed=seed),
    )


def require_stored_texts(source: Source) -> None:
    """Raises InputError if texts are drawn that do not stand in the shards, and so are in no store."""
    key = _key(source)
    if source.templates is not None:
        raise InputError(
            f"{key}.templates goes beyond what teachers know, who are taught captions and class names as they are; "
            "leave templates out"
        )
    if not isinstance(source.caption_key, str):
        for name, weight in source.caption_key.items():
            if not isinstance(weight, int | float):
                raise InputError(
                    f"{key}.caption_key draws parts of {name!r}, and teachers are taught whole captions; give it a "
                    "weight alone"
                )


def require_fits(
    teachers: Teachers, described: Sequence[Source], indexes: Sequence[ShardIndex], *, decode: Decode
) -> None:
    """Looks whether a run can be trained with a store's teachers; of its shards' files it reads the headers.

    Args:
        teachers: of the store.
        described: the run's sources.
        indexes: of their shards.
        decode: the run's `data.decode`.

    Raises:
        InputError: the run decodes or augments otherwise, has other texts, or shards that were not taught; or a file
            of embeddings is absent or cut.
    """
    where, description = teachers.named, teachers.description
    if decode != description.decode:
        raise InputError(f"{where} was taught with data.decode={description.decode}, not {decode}; {_MEND}")
    shards = StoredShards([shard.name for shard in description.shards])
    for source, index in zip(described, indexes, strict=True):
        require_stored_texts(source)
        found = [shards.find(path) for path in index.paths]
        _require_taught(where, index, found, description.shards)
        for number in sorted({description.shards[place].reading for place in found if place is not None}):
            _require_read_alike(where, source, description.readings[number])
        assert source.augment is not None, "pretraining augments"
        if not agrees(_probes(teachers, found), source.augment, decode=decode, seed=description.seed):
            raise InputError(
                f"{where} was taught by a clipx, or libraries, that augment pictures otherwise: views would be others "
                "than the teachers saw; teach again, or train with the versions that taught"
            )
        _require_whole(teachers, [place for place in found if place is not None])


_MEND = "set it back, or run `clipx data teach` with the run's config into another folder"


def _require_taught(where: str, index: ShardIndex, found: Sequence[int | None], shards: Sequence[TaughtShard]) -> None:
    """Raises InputError if a shard of the index is not in the store, or is another one now."""
    if absent := [path for path, place in zip(index.paths, found, strict=True) if place is None]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(f"{where} was not taught shard {absent[0]}{more} of {len(found)}; {_MEND}")
    for path, place, count, size in zip(index.paths, found, index.counts.tolist(), index.sizes.tolist(), strict=True):
        assert place is not None
        shard = shards[place]
        if size not in (0, shard.bytes):
            raise InputError(
                f"{where} was taught another shard {path}: of {shard.bytes:,} bytes, not {size:,}; {_MEND}"
            )
        if count > shard.samples or (index.filter == shard.filter and count != shard.samples):
            raise InputError(
                f"{where} was taught {shard.samples:,} samples of shard {path}, and the run reads {count:,}; {_MEND}"
            )


def _require_whole(teachers: Teachers, numbers: Sequence[int]) -> None:
    """Raises InputError if embeddings of these shards are absent or cut, as after a copy that was stopped."""
    description = teachers.description
    dims = [teacher.dim for teacher in description.teachers]

    def problem(number: int) -> str | None:
        shard, path = description.shards[number], shard_file(teachers.folder, number)
        try:
            require_whole(path, rows=shard.taught, texts=shard.texts, dims=dims, views=description.views)
        except OSError as error:
            return f"{path} cannot be read: {error.strerror or error}"
        except ValueError as error:
            return f"{path} is damaged ({error})"
        return None

    # a store on a network file system takes a few waits for each
    if problems := [found for found in in_threads(problem, numbers) if found is not None]:
        more = f"; so are {len(problems) - 1} more of {len(numbers)} files" if len(problems) > 1 else ""
        raise InputError(
            f"{teachers.named}: {problems[0]}{more}; copy the folder again, or run `clipx data teach` into another one"
        )


def _require_read_alike(where: str, source: Source, reading: Reading) -> None:
    """Raises InputError if a source is not read, or augmented, as its shards were for the teachers."""
    assert source.augment is not None, "pretraining augments"
    key, augment = _key(source), _record(source.augment)
    for name, value in augment.items():
        if value != reading.augment.get(name):
            raise InputError(
                f"{where} was taught with {key}.augment.{name}={reading.augment.get(name)}, not {value}; {_MEND}"
            )
    if source.image_key != reading.image_key:
        raise InputError(
            f"{where} was taught with {key}.image_key={reading.image_key}, not {source.image_key}; {_MEND}"
        )
    if new := [name for name in _caption_keys(source) if name not in reading.caption_keys]:
        raise InputError(
            f"{where} was taught the captions under {', '.join(reading.caption_keys)}, not under {new[0]}; {_MEND}"
        )
    if _class_names(source) != reading.class_names:
        raise InputError(f"{where} was taught with other {key}.class_names; {_MEND}")


def _probes(teachers: Teachers, found: Sequence[int | None]) -> str:
    """Those of the reading of some shards, of which all readings augment alike."""
    description = teachers.description
    place = next(place for place in found if place is not None)
    return description.readings[description.shards[place].reading].probes


def _record(augment: AugmentConfig) -> dict[str, Any]:
    """The settings as a description holds them."""
    record: dict[str, Any] = json.loads(json.dumps(asdict(augment)))
    return record


def _caption_keys(source: Source) -> tuple[str, ...]:
    return (source.caption_key,) if isinstance(source.caption_key, str) else tuple(source.caption_key)


def _class_names(source: Source) -> str | None:
    """Digest of a source's class names."""
    if source.class_names is None:
        return None
    names = listed(source.class_names, name=f"{_key(source)}.class_names")
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]


def _key(source: Source) -> str:
    """The config's key of a source."""
    return "data" if source.name == "train" else f"data.sources.{source.name}"
