"""Paths as people write them: a leading ~ is the home folder, in every key, option and variable; and the user's cache.

A folder that is really called ~ is written ./~.
"""

import os
from pathlib import Path

from clipx.errors import InputError

CACHE_VARIABLE = "CLIPX_CACHE"
"""The environment variable that moves the user's cache."""


def expand_home(path: str) -> str:
    """The path with the home folder, or that of a user (`~name/...`), in place of a leading ~.

    Raises:
        InputError: nobody knows the home folder.
    """
    if not path.startswith("~"):
        return path
    if not os.environ.get("HOME") and path.partition("/")[0] == "~":
        return _home_of_account(path) + path[1:]  # an empty HOME would make ~/x the path /x
    return os.path.expanduser(path)


def is_same_path(one: str, other: str) -> bool:
    """Whether two paths, as they are written, are of one place: ./a and a, /a/ and /a. Links are not looked up.

    In addresses (s3://...) dots and double slashes may be part of a name: there only a slash at the end does not count.
    """
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return os.path.abspath(one) == os.path.abspath(other)


def cache_folder() -> Path:
    """The user's cache on this machine: `$CLIPX_CACHE`, by default clipx/ in `$XDG_CACHE_HOME` or ~/.cache.

    A relative `$XDG_CACHE_HOME` does not count, as the XDG Base Directory Specification has it.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(expand_home(own))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return Path(shared if os.path.isabs(shared) else expand_home("~/.cache"), "clipx")


def _home_of_account(path: str) -> str:
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError):
        raise InputError(f"{path}: the home folder is not known, for HOME is not set; write the path in full") from None
