"""Puts files of a folder on the Hugging Face hub, as one commit; with `hub`, all that uses huggingface_hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from clipx.errors import InputError, RunError
from clipx.storage.hub import HubModel

_LOG_IN = "log in by `hf auth login`, or set HF_TOKEN, with rights to write there"


class Uploaded(NamedTuple):
    """What is on the hub now."""

    url: str
    private: bool
    num_bytes: int
    removed: list[str]
    """Files of an earlier upload that the new one has not."""


def upload(
    folder: Path,
    names: Sequence[str],
    to: HubModel,
    *,
    private: bool,
    listed_in: str,
    replaced: Mapping[str, bytes] | None = None,
) -> Uploaded:
    """Uploads files in one commit; makes the model's page and the branch if they are not there.

    Args:
        folder: where they lie.
        names: their paths from there, and at the hub.
        to: the model's name; its revision is a branch.
        private: whether a new page is to be seen by its owners alone; one that is there stays as it is.
        listed_in: one of the files, JSON whose `files` has all others by path. What the one at the hub lists and the
            new one does not is removed in the same commit; other files at the hub stay.
        replaced: what goes in place of the content of some of the files.

    Raises:
        InputError: no network, no token, no rights, or a name that the hub does not take.
        RunError: the hub fails in another way.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    content: dict[str, Path | bytes] = {name: folder / name for name in names} | dict(replaced or {})
    try:
        url = str(api.create_repo(to.name, private=private, exist_ok=True))
        if to.revision is not None:
            api.create_branch(to.name, branch=to.revision, exist_ok=True)
        removed = sorted(_listed(api, to, listed_in) - set(names))
        changes = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content[name]) for name in names]
        api.create_commit(
            to.name,
            [*changes, *(CommitOperationDelete(path_in_repo=name) for name in removed)],
            commit_message="Export by clipx",
            revision=to.revision,
        )
        is_private = bool(api.model_info(to.name).private)
    except Exception as error:  # of the hub's library, of its library for http, of the disk
        raise _explained(error, to) from error
    return Uploaded(url, is_private, sum((folder / name).stat().st_size for name in names), removed)


def _listed(api: Any, to: HubModel, listed_in: str) -> set[str]:
    """The files at the hub that the list there names."""
    present = set(api.list_repo_files(to.name, revision=to.revision))
    if listed_in not in present:
        return set()
    with TemporaryDirectory() as scratch:
        path = api.hf_hub_download(to.name, listed_in, revision=to.revision, local_dir=scratch)
        try:
            files = json.loads(Path(path).read_bytes())["files"]
            return present & {str(name) for name in files}
        except (ValueError, LookupError, TypeError, RecursionError):  # somebody's own
            return set()


def _explained(error: Exception, to: HubModel) -> InputError | RunError:
    """One line with what a person can do; the library's own text, which may quote a request, is left out."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return InputError(f"{to} is no name that the hub takes; give hf://ORG/NAME or hf://ORG/NAME@BRANCH")
    if isinstance(error, OfflineModeIsEnabled):
        return InputError(f"{to}: HF_HUB_OFFLINE forbids to ask the hub; unset it, and push where there is a network")
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return InputError(f"{to}: the hub does not know who asks; {_LOG_IN}")
    if status == 403:
        return InputError(f"{to}: the hub does not let this account write there; {_LOG_IN}")
    if status == 404:
        return InputError(f"{to}: the hub has no such place, or not for this account; correct the name, or {_LOG_IN}")
    if status is not None:
        return RunError(f"{to}: the hub answers with status {status}; nothing was changed there, try again later")
    if isinstance(error, OSError) and error.filename is not None:
        return InputError(f"{error.filename} cannot be read ({error.strerror}); check the export")
    return RunError(
        f"{to}: the hub does not answer ({type(error).__name__}); nothing was changed there, check the network"
    )
