"""Puts an export on the Hugging Face hub, if it is as it was compared, and nothing else."""

from pathlib import Path
from typing import Any, NamedTuple

from clipx.errors import InputError, some_names
from clipx.export.folder import PARITY, exported_files
from clipx.storage.hub import hub_model
from clipx.storage.hub_upload import Uploaded, upload


class Pushed(NamedTuple):
    """What was put on the hub, and what was not."""

    uploaded: Uploaded
    num_files: int
    left_out: list[str]
    """What lies in the folder and is no part of the export."""


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
    uploaded = upload(folder, names, to, private=private, listed_in=PARITY)
    whole = {name.split("/")[0] for name in names}
    return Pushed(uploaded, len(names), sorted(path.name for path in folder.iterdir() if path.name not in whole))


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
