"""torch's files of a checkpoint in a `Folder`, on a disk or in an object store; read as data, whoever wrote them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from clipx.checkpoint.manifest import MANIFEST, Entry, recorded
from clipx.checkpoint.torch_metadata import METADATA, NotMetadataError, read_metadata
from clipx.errors import InputError
from clipx.storage.folders import Folder

_READ_AHEAD = 10_000_000  # bytes that are copied from a GPU while others are written; torch's default


class FolderWriter(FileSystemWriter):
    """Writes torch's files to a folder; `entries` then has size and checksum of those that this rank wrote.

    Args:
        folder: must hold no complete checkpoint.
        on_host: whether all tensors of this rank lie in the host's memory.
    """

    def __init__(self, folder: Folder, *, on_host: bool) -> None:
        # files are synced by the folder; torch reads ahead in a thread, and there from GPU 0 on every rank
        super().__init__(folder.address, sync_files=False, per_thread_copy_ahead=0 if on_host else _READ_AHEAD)
        self.entries: dict[str, Entry] = {}
        self.fs = _Files(folder, self.entries)  # type: ignore[assignment]  # torch declares the class it sets
        self.path = folder.address
        self._folder = folder

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Removes the manifest before any rank writes, so that an older checkpoint in the folder counts no more."""
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        if is_coordinator:
            self._folder.remove_file(MANIFEST)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes one file, or several if the folder has a limit for their size."""
        if self._folder.largest_file is None:
            return super().write_data(plan, planner)
        results: list[WriteResult] = []
        for number, items in enumerate(_batches(plan.items, self._folder.largest_file)):
            prefix = replace(plan.storage_data, prefix=f"{plan.storage_data.prefix}{number}_")
            results += super().write_data(replace(plan, items=items, storage_data=prefix), planner).value()
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written


class FolderReader(FileSystemReader):
    """Reads torch's files from a folder, and runs nothing that they name; torch itself reads tensors as safely."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.address)
        self.fs = _Files(folder, {})  # type: ignore[assignment]  # torch declares the class it sets
        self.path = folder.address
        self._folder = folder

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """What the checkpoint holds.

        Raises:
            InputError: torch did not write it; every rank says so.
            OSError: it cannot be read.
        """
        try:
            with self._folder.open(METADATA) as file:
                return read_metadata(file)
        except NotMetadataError as error:
            raise InputError(f"{self._folder}: {error}; this is no checkpoint of clipx, take another") from error


class DataPlanner(DefaultLoadPlanner):
    """torch's plan of a load into a state of sections; what is no tensor is read as data too, as torch does not."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Replaces a number or a string.

        Raises:
            ValueError: a tensor is wanted.
            pickle.UnpicklingError: it is something else; nothing was run.
        """
        section, name = map(str, self.mappings[read_item.dest_index.fqn])
        if isinstance(self.original_state_dict[section][name], Tensor):
            raise ValueError(f"{section}.{name} is no tensor there")
        self.original_state_dict[section][name] = torch.load(value, weights_only=True)


class _Files(FileSystemBase):
    """A `Folder` behind torch's interface. The folder appears whole later on, so its files need no temporary names."""

    def __init__(self, folder: Folder, entries: dict[str, Entry]) -> None:
        self._folder = folder
        self._entries = entries

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        name = str(path).rpartition("/")[2].removesuffix(".tmp")
        with self._folder.open(name) if mode == "rb" else recorded(self._folder, name, self._entries) as stream:
            yield stream

    def concat_path(self, path: Any, suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: Any) -> Any:
        return path

    def mkdir(self, path: Any) -> None:
        self._folder.make()

    def exists(self, path: Any) -> bool:
        return False

    def rename(self, path: Any, new_path: Any) -> None:
        """Does nothing: the file has its final name already."""

    def rm_file(self, path: Any) -> None:
        """Does nothing: no file is ever in the way."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _batches(items: list[WriteItem], limit: int) -> Iterator[list[WriteItem]]:
    """The items in their order, in lists of at most `limit` bytes, or of one item that is larger."""
    batch: list[WriteItem] = []
    size = 0
    for item in items:
        data = item.tensor_data
        item_bytes = 0 if data is None else data.chunk.sizes.numel() * data.properties.dtype.itemsize
        if batch and size + item_bytes > limit:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item_bytes
    if batch:
        yield batch
