"""Class embeddings kept on this machine, by their content: model, names, prompts.

A file is a line of JSON with the sizes and a checksum, and the float32 numbers behind it. One that is broken is as good
as none. Files are replaced whole, so any number of processes may share the folder; those used longest ago make room.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipx.config.paths import cache_folder
from clipx.pretrained import Pretrained
from clipx.pretrained.classes import REFERENCE, ClassEmbeddings
from clipx.pretrained.prompts import first_of_equals, mean_embeddings, prompt_numbers, refuse_equals
from clipx.storage.files import write_file
from clipx.use.class_list import ClassList

MAX_BYTES = 10**9
_FORMAT = 1
_SUFFIX = ".classes"
_MAX_HEAD = 1000  # bytes of the first line

log = logging.getLogger(__name__)


def default_cache() -> Path:
    """The folder in the user's cache."""
    return cache_folder() / "classes"


def embed_class_list(
    pretrained: Pretrained,
    classes: ClassList,
    *,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ClassEmbeddings:
    """The embeddings of classes, computed or as they were kept.

    Args:
        pretrained: the model.
        classes: names and prompts.
        cache: folder of kept embeddings; None keeps none.
        on_progress: gets (prompts done, prompts), if something is computed.

    Raises:
        InputError: two classes are one to the model; of a set's, the later ones are left out, which is logged.
    """
    names = classes.names
    numbers = prompt_numbers(pretrained, names, templates=classes.templates)
    if classes.is_set:
        kept = first_of_equals(numbers)
        if fewer := len(names) - len(kept):
            log.warning(
                "%s: %d classes are equal to earlier ones to this model, and are left out", classes.origin, fewer
            )
        names = tuple(names[place] for place in kept)
    else:
        refuse_equals(numbers, names, name=classes.origin)
    path = None if cache is None else cache / f"{_key(pretrained, names, classes.templates)}{_SUFFIX}"
    rows, width = len(names) + len(REFERENCE), pretrained.config.embed_dim
    if path is None or (all_ND := _read(path, rows, width)) is None:
        texts = (*names, *REFERENCE)
        all_ND = mean_embeddings(pretrained, texts, templates=classes.templates, on_progress=on_progress).cpu()
        if path is not None:
            _write(path, all_ND)
    return ClassEmbeddings.of_rows(names, all_ND.to(pretrained.device))


def _key(pretrained: Pretrained, names: tuple[str, ...], templates: tuple[str, ...]) -> str:
    content = json.dumps([_FORMAT, pretrained.fingerprint, names, templates, REFERENCE])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _read(path: Path, rows: int, width: int) -> Tensor | None:
    """What a file holds, None if it is not there, broken, or of other sizes; it counts as used now."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline(_MAX_HEAD))
            content = file.read()
        whole = head == _head(content, rows, width) and len(content) == rows * width * 4
    except (OSError, ValueError, RecursionError):
        return None
    if not whole:
        log.info("%s is broken, and is made again", path)
        return None
    with suppress(OSError):  # another user's file
        os.utime(path)
    return torch.from_numpy(np.frombuffer(content, dtype="<f4").astype(np.float32).reshape(rows, width))


def _write(path: Path, all_ND: Tensor) -> None:
    """Keeps embeddings, if the folder can be written and they are no larger than all of it may be."""
    content = all_ND.numpy().astype("<f4").tobytes()
    if len(content) > MAX_BYTES:
        return
    head = json.dumps(_head(content, *all_ND.shape)).encode() + b"\n"
    try:
        write_file(str(path), head + content)
        _make_room(path.parent)
    except OSError as error:
        log.info("class embeddings are not kept in %s: %s", path.parent, error.strerror or error)


def _head(content: bytes, rows: int, width: int) -> dict[str, object]:
    """The first line of a file with this content."""
    return {"format": _FORMAT, "rows": rows, "width": width, "sha256": hashlib.sha256(content).hexdigest()}


def _make_room(folder: Path) -> None:
    """Removes the files used longest ago until the folder holds at most `MAX_BYTES`."""
    files = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # gone meanwhile
            if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False):
                status = entry.stat()
                files.append((status.st_mtime, status.st_size, Path(entry.path)))
    excess = sum(size for _, size, _ in files) - MAX_BYTES
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
