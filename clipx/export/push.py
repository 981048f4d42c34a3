"""Puts an export on the Hugging Face hub, if it is as it was compared, and nothing else.

Folders of this machine stay here: of a whole path in the configs of clipx and open_clip the hub gets the last part.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clipx.checkpoint.find import EXPORT_CONFIG, OPEN_CLIP_CONFIG
from clipx.config.yaml_text import read_yaml, write_yaml
from clipx.errors import InputError, some_names
from clipx.export.folder import PARITY, exported_files, with_replaced
from clipx.storage.hub import hub_model
from clipx.storage.hub_upload import Uploaded, upload

_FOLDERS = re.compile(r"(?:(?<![\w.:/$}~-])|(?<=::)|(?<=file://))/(?:[^\s:'\"/]+/)+(?=[^\s:'\"/])")
"""The folders of a whole path, alone, in a command or in a list of shards; not those of an address elsewhere."""


class Pushed(NamedTuple):
    """What was put on the hub, and what was not."""

    uploaded: Uploaded
    num_files: int
    left_out: list[str]
    """What lies in the folder and is no part of the export."""
    shortened: list[str]
    """The files that went without the folders of this machine."""


def push(folder: Path, address: str, *, private: bool = True) -> Pushed:
    """Uploads the files of an export, in one commit.

    Args:
        folder: of the export.
        address: hf://ORG/NAME or hf://ORG/NAME@BRANCH.
        private: whether a new page at the hub is for its owners alone; one that is there stays as it is.

    Raises:
        InputError: another address, a folder that is no export, whose files have changed, or whose parity does not
            hold; no network, no token or no rights.
        RunError: the hub fails.
    """
    to = hub_model(address)
    if to is None:
        raise InputError(f"{address} is no model at the hub; give hf://ORG/NAME or hf://ORG/NAME@BRANCH")
    parity, names = exported_files(folder)
    require_parity(folder, parity)
    shortened = _shortened(folder, names)
    replaced = shortened | ({PARITY: with_replaced(parity, shortened)} if shortened else {})
    uploaded = upload(folder, names, to, private=private, listed_in=PARITY, replaced=replaced)
    whole = {name.split("/")[0] for name in names}
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in whole)
    return Pushed(uploaded, len(names), left_out, list(shortened))


def require_parity(folder: Path, parity: dict[str, Any]) -> None:
    """Checks that consumers were compared, and that each one's differences are within its limit.

    Raises:
        InputError: none was compared, one is above its limit, or parity.json tells no limits.
    """
    try:
        rows = {name: row for name, row in parity["consumers"].items() if row["checked"]}
        above = [name for name, row in rows.items() if not _holds(row)]
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / PARITY} is of another version of clipx; export the model again") from error
    if not rows:
        raise InputError(f"{folder}: nobody who loads it was compared with the model; install one and export it again")
    if above:
        raise InputError(f"{folder}: {some_names(above)} computes something else than the model; export it again")


def _holds(row: dict[str, Any]) -> bool:
    """Whether a consumer's differences are within its limit, if it has one; NaN is not."""
    return row["limit"] is None or all(value <= row["limit"] for value in row["largest_difference"].values())


def _shortened(folder: Path, names: list[str]) -> dict[str, bytes]:
    """The configs that name folders of this machine, by their names, without them."""
    forms: dict[str, tuple[Callable[[str], Any], Callable[[Any], str]]] = {
        EXPORT_CONFIG: (read_yaml, write_yaml),
        OPEN_CLIP_CONFIG: (json.loads, lambda tree: json.dumps(tree, indent=2) + "\n"),
    }
    found: dict[str, bytes] = {}
    for name, (read, write) in forms.items():
        if name not in names:
            continue
        tree = read((folder / name).read_text(encoding="utf-8"))
        if (short := _without_folders(tree)) != tree:
            found[name] = write(short).encode()
    return found


def _without_folders(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_folders(item) for key, item in value.items()}
        case list():
            return [_without_folders(item) for item in value]
        case str():
            return _FOLDERS.sub("", value)
        case _:
            return value
