"""`.metadata` of torch.distributed.checkpoint, which is a pickle, read without running anything that it names.

A pickle may call whatever it names; torch reads this one with `pickle.load`. Here the few names that torch itself
writes stand for records without behaviour, every other is an error, and torch's classes are then built from the records
field by field. So a checkpoint of a stranger is data and no program.
"""

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

METADATA = ".metadata"
_TORCH = "torch.distributed.checkpoint."
_RECORDS = {
    (_TORCH + "metadata", "Metadata"),
    (_TORCH + "metadata", "StorageMeta"),
    (_TORCH + "metadata", "TensorStorageMetadata"),
    (_TORCH + "metadata", "BytesStorageMetadata"),
    (_TORCH + "metadata", "ChunkStorageMetadata"),
    (_TORCH + "metadata", "TensorProperties"),
    (_TORCH + "metadata", "MetadataIndex"),
    (_TORCH + "metadata", "_MEM_FORMAT_ENCODING"),
    (_TORCH + "filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
}


class NotMetadataError(Exception):
    """The file is damaged, or holds what torch does not write there."""


def read_metadata(file: BinaryIO) -> Metadata:
    """What a checkpoint holds, and where in its files.

    Raises:
        NotMetadataError: see there; nothing that the file names was run.
        OSError: the file cannot be read.
    """
    try:
        return _metadata(_Unpickler(file).load())
    except OSError:
        raise
    except NotMetadataError as error:
        raise NotMetadataError(f"{METADATA} {error}") from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise NotMetadataError(f"{METADATA} is not what torch writes ({type(error).__name__})") from error


class _Record:
    """An object of the pickle: which of the known names it has, and its state, as they were written."""

    kind = ""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._found: dict[tuple[str, str], Any] = {}  # classes of this pickle alone: it could change them

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a known name."""
        if (module, name) in _RECORDS:
            return self._found.setdefault((module, name), type(name, (_Record,), {"kind": name}))
        value = getattr(torch, name, None) if module == "torch" else None
        if value is torch.Size or isinstance(value, torch.dtype):
            return value
        raise NotMetadataError(f"names {module[:40]}.{name[:40]}, which torch does not write there; nothing was run")


def _metadata(pickled: Any) -> Metadata:
    fields = _fields(pickled, "Metadata")
    return Metadata(
        state_dict_metadata={_typed(key, str): _stored(value) for key, value in fields["state_dict_metadata"].items()},
        storage_data={_index(key): _place(value) for key, value in fields["storage_data"].items()},
    )


def _stored(pickled: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(pickled, _Record) and pickled.kind == "BytesStorageMetadata":
        return BytesStorageMetadata()
    fields = _fields(pickled, "TensorStorageMetadata")
    properties = fields["properties"]
    if not isinstance(properties, _Record) or properties.kind != "TensorProperties":
        raise TypeError
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=_typed(properties.state[0], torch.dtype)),  # the others do not matter
        size=_size(fields["size"]),
        chunks=[_chunk(chunk) for chunk in fields["chunks"]],
    )


def _chunk(pickled: Any) -> ChunkStorageMetadata:
    fields = _fields(pickled, "ChunkStorageMetadata")
    return ChunkStorageMetadata(offsets=_size(fields["offsets"]), sizes=_size(fields["sizes"]))


def _index(pickled: Any) -> MetadataIndex:
    fields = _fields(pickled, "MetadataIndex")
    offset, index = fields.get("offset"), fields.get("index")
    return MetadataIndex(
        _typed(fields["fqn"], str),
        None if offset is None else _size(offset),
        None if index is None else _typed(index, int),
    )


def _place(pickled: Any) -> _StorageInfo:
    fields = _fields(pickled, "_StorageInfo")
    if fields.get("transform_descriptors"):  # names of extensions of torch, which clipx does not use
        raise TypeError
    path, offset, length = fields["relative_path"], fields["offset"], fields["length"]
    return _StorageInfo(_typed(path, str), _typed(offset, int), _typed(length, int))


def _fields(pickled: Any, kind: str) -> dict[str, Any]:
    """The fields of a record of this kind."""
    if not isinstance(pickled, _Record) or pickled.kind != kind:
        raise TypeError
    return _typed(pickled.state, dict)


def _size(value: Any) -> torch.Size:
    return torch.Size([_typed(length, int) for length in _typed(value, torch.Size)])


def _typed(value: Any, kind: Callable[..., Any] | type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value
