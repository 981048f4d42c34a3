"""Images in folders, each with its caption beside it."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path

from clipx.data.parallel import in_threads
from clipx.data.rows.file_states import file_state_or_none
from clipx.data.rows.row import LeftOutError, Row, Rows, TableColumns
from clipx.data.rows.source_files import decode_text, read_regular
from clipx.data.rows.table_row import captions_in
from clipx.data.rows.values import captions_of, plain
from clipx.errors import InputError

_DECODED = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "mpo", "png", "apng", "webp", "gif", "bmp", "dib"),
        *("tif", "tiff", "avif", "avifs", "ppm", "pgm", "pbm", "pnm"),
    ]
)
_NOT_DECODED = frozenset(  # pictures that a person would miss: rows that are left out
    [
        *("heic", "heif", "hif", "jp2", "j2k", "jpx", "jxl", "jxr", "svg", "psd", "tga", "ico", "icns", "exr", "hdr"),
        *("eps", "raw", "dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "srf", "sr2", "orf", "rw2", "raf", "pef"),
        *("srw", "x3f"),
    ]
)
_OF_OTHERS = frozenset(  # what archives of macOS, Synology, and the roots of file systems hold
    ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"]
)
_BESIDE = ("txt", "json")
_NAMES_LOOKED_AT = 1000  # to find out whether any has a caption
_STATES_AT_ONCE = 1024  # by a thread: the answers may come over a network


class FolderRows(Rows):
    """The images of a folder and of those below it, in the order of their names; each real folder once.

    `NAME.txt` beside `NAME.jpg` is its caption; `NAME.json` holds further fields, and the captions if there is no text
    file or `columns` names those of captions; else one of a usual name. The case of extensions does not matter. Where
    `columns` keep all, the text is a field called `txt`, and what cannot be read leaves its picture out.

    Raises:
        InputError: no image, or a folder that cannot be read.
    """

    uses = ("--caption-column", "--join-captions")

    def __init__(self, folder: Path, *, columns: TableColumns) -> None:
        self._folder, self._columns = folder, columns
        self.keeps_all = columns.keeps_all
        # what may be absent is left out where it is there and cannot be read
        self._tells_absent = columns.keeps_all or not columns.needs_image
        self._names: list[str] = []
        self._hidden: list[str] = []
        self._beside: dict[str, str] = {}  # files beside images whose extensions have capitals, by the usual name
        for name in files_in(folder):
            self._add(name)
        if not self._names:
            raise InputError(
                f"{folder} holds neither pictures nor a table, shards or a saved data set; name what it is"
            )

    def _add(self, name: str) -> None:
        stem, _, suffix = name.rpartition(".")
        extension = suffix.lower()
        if is_picture(name):
            (self._hidden if is_hidden(name) else self._names).append(name)
        elif extension in _BESIDE and suffix != extension:
            self._beside.setdefault(f"{stem}.{extension}", name)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: int) -> Row:
        """See `Rows.read`."""
        name = self._names[row]
        stem, _, extension = name.rpartition(".")
        if extension.lower() in _NOT_DECODED:
            raise LeftOutError("unreadable picture", name, f"pictures of the kind .{extension.lower()} are not decoded")
        record: dict[str, object] = {}
        captions: list[str] = []
        try:
            record = self._json(f"{stem}.json", name)
            captions = self._captions(record, stem, name)
        except LeftOutError:
            if self._columns.needs_captions or self._tells_absent:
                raise
        return Row(name, self._folder / name, captions, plain({"file_name": name, **record}))

    def _captions(self, record: dict[str, object], stem: str, name: str) -> list[str]:
        """The captions beside an image; those of the json file leave the record, a text may become a part of it."""
        text = None if self._columns.captions else self._read_beside(f"{stem}.txt", name)
        if self.keeps_all:
            record.setdefault("txt", text)
            return []
        captions = self._captions_in(record, name) if text is None else captions_of([text])
        if not captions and self._columns.needs_captions:
            files = "NAME.json" if self._columns.captions else "NAME.txt or NAME.json"
            raise LeftOutError("no caption", name, f"no {files} beside it has one")
        return captions

    def _read_beside(self, usual: str, name: str) -> str | None:
        """The text of a file beside an image, None if there is none."""
        for candidate in dict.fromkeys([usual, self._beside.get(usual, usual)]):
            try:
                text = decode_text(read_regular(self._folder / candidate, name, reason="no caption"))
            except FileNotFoundError:
                continue
            except UnicodeDecodeError as error:
                raise LeftOutError("no caption", name, f"{candidate} is not UTF-8: {error}") from error
            if "\0" in text:
                raise LeftOutError("no caption", name, f"{candidate} holds NUL, as UTF-16 does; save it as UTF-8")
            return text
        return None

    def _json(self, usual: str, name: str) -> dict[str, object]:
        """The object in a file beside an image, empty if there is no file."""
        text = self._read_beside(usual, name)
        if text is None:
            return {}
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LeftOutError("no caption", name, f"{usual} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise LeftOutError("no caption", name, f"{usual} holds no JSON object")
        return record

    def _captions_in(self, record: dict[str, object], name: str) -> list[str]:
        """The captions of the json file, which leave the record."""
        if not record:
            return []
        columns = self._columns
        if columns.captions and not columns.needs_captions:  # a field that is not there is absent
            fields = {field.lower() for field in record}
            columns = replace(columns, captions=[field for field in columns.captions if field.lower() in fields])
            if not columns.captions:
                return []
        try:
            keys = columns.caption_names(list(record), name)
        except InputError as error:
            raise LeftOutError("no caption", name, str(error)) from error
        captions = captions_in(record, keys, self._columns)
        for key in keys:
            record.pop(key, None)
        return captions

    @property
    def names(self) -> Sequence[str]:
        """The paths of the pictures, from the folder on."""
        return self._names

    def with_captions_or_without(self) -> "FolderRows":
        """The same pictures, of which none is left out for want of a caption."""
        rows = copy(self)
        rows._columns = replace(self._columns, needs_captions=False)
        return rows

    def has_captions(self) -> bool:
        """Whether a picture has a file of captions beside it; of many some are looked at, evenly spread."""
        step = -(-len(self._names) // _NAMES_LOOKED_AT)
        files = (file for name in self._names[::step] for file in self._files_of(name) if file != name)
        return any((self._folder / file).is_file() for file in files)

    def passed_over(self) -> Sequence[LeftOutError]:
        """See `Rows.passed_over`."""
        return [hidden_file(name) for name in self._hidden]

    def notes(self) -> Sequence[str]:
        """See `Rows.notes`."""
        if not self._columns.needs_captions or self.has_captions() or not any(os.sep in name for name in self._names):
            return ()
        return [f"{self._folder}: no picture has a caption; if its folders are classes, add --class-folders"]

    def identity(self) -> list[object]:
        """See `Rows.identity`."""
        digest = hashlib.sha256()
        parts = (self._names[start : start + _STATES_AT_ONCE] for start in range(0, len(self), _STATES_AT_ONCE))
        for states in in_threads(self._states, parts):
            digest.update(states)
        return [str(self._folder), len(self._names), digest.hexdigest(), asdict(self._columns)]

    def _states(self, names: Sequence[str]) -> bytes:
        """Changes when one of these images does, or a file beside it."""
        folder = str(self._folder)
        states = ((file_state_or_none(os.path.join(folder, file)) for file in self._files_of(name)) for name in names)
        return repr([(name, *of_name) for name, of_name in zip(names, states, strict=True)]).encode()

    def _files_of(self, name: str) -> Iterator[str]:
        yield name
        for extension in _BESIDE:
            usual = f"{name.rpartition('.')[0]}.{extension}"
            yield usual
            if usual in self._beside:
                yield self._beside[usual]


def files_in(folder: Path) -> Iterator[str]:
    """Paths of the files below `folder`, relative to it; of each folder first its files, sorted, then its folders."""

    def refuse(error: OSError) -> None:
        if not is_hidden(os.path.relpath(error.filename, folder)):
            raise InputError(f"{error.filename} cannot be read: {error.strerror}; mend that or name other folders")

    seen = {_identity(folder)}
    try:
        for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
            near = Path(parent)
            # of two names of one folder the first is taken: one that is not hidden, and no link
            folders.sort(key=lambda name: (is_hidden(name), (near / name).is_symlink(), name))
            folders[:] = [name for name in folders if _is_new(_identity(near / name), seen)]
            for name in sorted(files):
                yield os.path.relpath(os.path.join(parent, name), folder)
    except RecursionError as error:  # Python 3.11's walk calls itself
        raise InputError(f"{folder} holds some thousand folders, one within the other; name others") from error


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:  # of which `os.walk` will tell
        return None
    return status.st_dev, status.st_ino


def _is_new(identity: tuple[int, int] | None, seen: set[tuple[int, int] | None]) -> bool:
    if identity is not None and identity in seen:
        return False
    seen.add(identity)
    return True


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture, of a kind that can be decoded or not; spaces behind it aside."""
    extension = name.rpartition(".")[2].strip().lower()
    return extension in _DECODED or extension in _NOT_DECODED


def is_hidden(name: str) -> bool:
    """Whether a relative path is that of a hidden file, or of one that some program keeps beside pictures."""
    return any((part.startswith(".") and part != ".") or part in _OF_OTHERS for part in name.split(os.sep))


def hidden_file(name: str) -> LeftOutError:
    """Why a picture of such a name is passed over."""
    return LeftOutError("hidden file", name, "its name or folder says that it is no picture of the set")
