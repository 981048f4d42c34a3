"""What a person points a trained model at, as items by number: pictures, texts, or pictures with their texts.

    a picture, or an address of one an item
    a folder                        the pictures in it and below, by name, with captions beside them if there are any
    a table (CSV, parquet, ...)     a row each; paths start from the table's folder
    a .txt file                     a text for each line
    shards                          a sample each, also of folders of them, as a set's train/ and test/

The order is that of the addresses, and within each that of its kind, so an item has the same number for ever. Items
are read by number from any process. An item that is no good is a `LeftOutError` with its reason; storage that fails is
an `InputError`, for leaving out what may be there tomorrow would give other results.
"""

import glob
import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate, groupby
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from clipx.config.paths import expand_home
from clipx.data.captions import decode_captions, first_present
from clipx.data.decode import UndecodableError
from clipx.data.rows.file_states import whole_identity
from clipx.data.rows.folders import files_in, is_picture
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import LeftOutError, Row, Rows, StoredSample, TableColumns
from clipx.data.rows.source_files import decode_text, image_of
from clipx.data.text_cleaning import is_blank
from clipx.errors import InputError, some_names
from clipx.storage.failures import unreadable
from clipx.storage.files import file_state, is_local, read_file
from clipx.storage.remote import ASK, PIPE, state

_LISTS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """How addresses are read."""

    source: SourceOptions = field(default_factory=SourceOptions)
    """Of tables, folders and saved data sets."""
    image_key: str = "jpg;jpeg;png;webp"
    """Of shards: members that hold the picture, the first that is there."""
    caption_key: str = "txt"
    """Of shards: where captions are, as data.caption_key."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture, a text, or both."""

    key: str
    """A picture's path as its folder or table has it, or a sample's key; not always unique."""
    name: str
    """What a person finds it by: a path, a URL, a shard and its key, a file and its line."""
    image: bytes | None
    """Encoded, and perhaps broken."""
    captions: tuple[str, ...]
    """None of them blank."""
    record: Mapping[str, object] = field(default_factory=dict)
    """What else a table or a json file says of it."""


class Inputs:
    """The items of all addresses, to be read from any thread; pickles without what it holds open."""

    def __init__(self, parts: Sequence[Rows], options: InputOptions, *, addresses: Sequence[str] = ()) -> None:
        self.addresses, self.options = tuple(addresses), options
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))
        self._lock = Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state | {"_lock": Lock()}

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, number: int) -> Item:
        """The item of this number.

        Raises:
            LeftOutError: neither picture nor text, or a file that is missing or cannot be read.
            InputError: a URL that does not answer, a table that is gone, a disk that fails.
            RunError: a shard that cannot be read.
        """
        part = bisect_right(self._ends, number)
        rows = self._parts[part]
        # Tables and shards keep their place. What takes long is outside: pictures that are files or URLs.
        with nullcontext() if isinstance(rows, _PictureRows) else self._lock:
            content = rows.read(number - (self._ends[part - 1] if part else 0))
        if isinstance(content, StoredSample):
            return self._of_sample(content)
        if content.image is None:  # a line of text
            return Item(key=content.name, name=content.name, image=None, captions=tuple(content.captions))
        name = str(content.image) if isinstance(content.image, Path) else content.name
        return Item(
            key=content.name,
            name=name,
            image=image_of(content),
            captions=tuple(content.captions),
            record=content.record,
        )

    def shards(self) -> list[str]:
        """Paths of the shards whose samples are items."""
        return [path for part in self._parts for path in part.shards()]

    def identity(self) -> str:
        """32 hex digits that change when an address, its files, the pictures of a table or the way of reading do.

        Of pictures that are URLs only the addresses count.
        """
        identities = [whole_identity(part) for part in self._parts]
        content = [identities, self.options.image_key, self.options.caption_key]
        return blake2b(json.dumps(content, default=str).encode(), digest_size=16).hexdigest()

    def _of_sample(self, sample: StoredSample) -> Item:
        image = first_present(sample.fields, self.options.image_key)
        try:
            captions = decode_captions(sample.fields, self.options.caption_key)
        except UndecodableError as error:
            if image is None:
                raise LeftOutError("no picture", sample.name, str(error)) from error
            captions = []
        return Item(key=sample.key, name=sample.name, image=image, captions=tuple(captions))


def table_options(
    *, image_column: str | None = None, caption_columns: Sequence[str] = (), image_folder: Path | None = None
) -> InputOptions:
    """How tables are read whose columns have no usual names, or whose paths start elsewhere; the rest is as ever."""
    columns = TableColumns(image=image_column, captions=tuple(caption_columns))
    return InputOptions(source=SourceOptions(columns=columns, image_folder=image_folder))


def open_inputs(
    addresses: Sequence[str],
    options: InputOptions | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Inputs:
    """The items of addresses; `on_progress` gets (shards done, shards) while shards are indexed.

    Raises:
        InputError: no address, one that is not there, is of no known kind, has no item, or does not answer.
    """
    options = options or InputOptions()
    if not addresses:
        raise InputError("no input; give pictures, folders, tables, text files or shards")
    source = replace(options.source, columns=replace(options.source.columns, needs_captions=False))
    single = [address for given in addresses for address in _expanded(given)]
    parts: list[Rows] = []
    for kind, group in groupby(single, _kind):
        found = list(group)
        if kind == "pictures":
            parts.append(_PictureRows(found))
        elif kind == "lines":
            parts += [_LineRows(Path(address)) for address in found]
        else:
            parts.append(open_rows(found, source, on_progress=on_progress))
    inputs = Inputs(parts, options, addresses=addresses)
    if not len(inputs):
        raise InputError(f"{some_names(addresses)}: nothing in it; give pictures, texts, or both")
    return inputs


def _expanded(address: str) -> list[str]:
    """The address, the files that a pattern of pictures or lists names, or the parts of a set of shards, by name."""
    if not is_local(address):
        return [address]
    address = expand_home(address)
    if os.path.isdir(address):
        return _parts_of_shards(Path(address)) or [address]
    if os.path.lexists(address) or not _PATTERN.search(address) or address.endswith(".tar"):
        return [address]
    return sorted(glob.glob(address, recursive=True)) or [address]


def _parts_of_shards(folder: Path) -> list[str]:
    """The folders of shards in a folder that holds nothing else to read, as train/ and test/ of an evaluation set."""
    if any(folder.glob("[!.]*.tar")):
        return []
    parts = sorted({str(shard.parent) for shard in folder.glob("[!.]*/[!.]*.tar")})
    return [] if not parts or any(map(is_picture, files_in(folder))) else parts


def _kind(address: str) -> str:
    if not is_local(address):
        path = "" if address.startswith(PIPE) else urlsplit(address).path
        if path.lower().endswith(_LISTS):
            raise InputError(f"{address}: of other machines only pictures and shards are read; copy it here first")
        return "pictures" if is_picture(path) else "rows"
    if os.path.isdir(address):
        return "rows"
    if is_picture(address):
        return "pictures"
    return "lines" if address.lower().endswith(".txt") else "rows"


class _PictureRows(Rows):
    """Pictures that were named one by one, files and URLs.

    Raises:
        InputError: a file that is not there; the first URL of a host that does not answer.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        asked: set[str] = set()
        for address in addresses:
            if is_local(address):
                if not os.path.exists(address):
                    raise InputError(f"{address}: no such file or folder; give pictures, a folder, a table or shards")
            elif (host := urlsplit(address).netloc) not in asked:
                asked.add(host)
                try:
                    state(address, ASK)
                except OSError as error:
                    raise unreadable(address, error) from error

    def __len__(self) -> int:
        return len(self._addresses)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        address = self._addresses[row]
        if is_local(address):
            return Row(address, Path(address), [])
        try:
            return Row(address, read_file(address), [])
        except OSError as error:
            raise unreadable(address, error) from error

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        return [[address, *(file_state(address) if is_local(address) else ())] for address in self._addresses]


class _LineRows(Rows):
    """The lines of a text file; a blank one is left out.

    Raises:
        InputError: the file is not there, is a fifo or a device, or no text.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._lines = decode_text(read_file(str(path))).splitlines()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); give a text file, or pictures") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text; save it as UTF-8") from error

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        name, text = f"{self._path} line {row + 1}", self._lines[row].strip()
        if is_blank(text):
            raise LeftOutError("no caption", name, "the line is blank")
        return Row(name, None, [text])

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        digest = blake2b("\n".join(self._lines).encode("utf-8", "surrogatepass"), digest_size=16)
        return [str(self._path), digest.hexdigest()]
