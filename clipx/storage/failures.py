"""What went wrong with a store, as one OSError with one line, whichever library said it."""

import errno

from clipx.errors import InputError

_ABSENT, _DENIED, _BUSY = (404, 410), (401, 403, 407), (408, 409, 425, 429)
# of botocore, google.auth and others, known by name: the libraries are optional
_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
    "RefreshError",
}
_MALFORMED = {"ParamValidationError"}
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class UnusableAddressError(OSError):
    """Neither time nor rights will make the address usable: unknown protocol, missing package, malformed request."""


class ChangedError(OSError):
    """The file is not the one that was indexed or opened."""


_CLIPX_ERRORS = (UnusableAddressError, ChangedError)
_MACHINE_ERRNOS = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_STORAGE_ERRNOS = (  # of a disk, of NFS and of FUSE whose server is gone
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
)


def is_final(error: OSError) -> bool:
    """Whether trying again is of no use."""
    return isinstance(error, (*_FINAL, *_CLIPX_ERRORS)) or error.errno == errno.ENOSPC


def explain(error: Exception, timeout_s: float) -> OSError:
    """`error` as an OSError whose text is one line with the reason; `is_final` of it tells whether no retry helps."""
    if isinstance(error, OSError) and (isinstance(error, _CLIPX_ERRORS) or error.errno in _MACHINE_ERRNOS):
        return error
    status, text = _http_status(error), _one_line(error)
    kind = _kind(error, status)
    if kind is FileNotFoundError:
        text = f"not there (the server answers {status})" if status else f"not there: {text}"
    elif kind is TimeoutError:
        text = f"no answer within {timeout_s:g} s"
    elif _is_one_of(error, _CREDENTIALS):
        text = f"no usable credentials: {text}"
    elif kind is PermissionError:
        text = f"no permission: {text}"
    elif isinstance(error, ImportError):
        text = f"a package is missing: {text}"
    return kind(text)


def is_of_storage(error: OSError) -> bool:
    """Whether the storage or this machine fails, not the one file: what cannot be read now may be there tomorrow."""
    return error.errno in _MACHINE_ERRNOS or error.errno in _STORAGE_ERRNOS


def unreadable(address: str, error: OSError) -> InputError:
    """What to raise where a file or an address cannot be read and must not be left out."""
    return InputError(f"{address} cannot be read ({_one_line(error)}); {hint(error)}")


def hint(error: OSError) -> str:
    """What a person can do about an error that reading or writing an address met."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return "check the address"
    if isinstance(error, PermissionError):
        return "check the rights, and for a store the credentials in this environment"
    if isinstance(error, UnusableAddressError):
        return "correct the address, or install what it needs"
    if isinstance(error, ChangedError):
        return "run `clipx data index` again and leave shards alone while a run reads them"
    if error.errno == errno.ENOSPC:
        return "make room on the disk"
    if error.errno == errno.ENOMEM:
        return "free memory, or lower data.workers"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (`ulimit -n`)"
    return "check the storage and the network"


def _kind(error: Exception, status: int | None) -> type[OSError]:
    """The OSError that says the same."""
    if status in _ABSENT:
        return FileNotFoundError
    if status in _DENIED or _is_one_of(error, _CREDENTIALS):
        return PermissionError
    if isinstance(error, TimeoutError):
        return TimeoutError
    if final := next((kind for kind in _FINAL if isinstance(error, kind)), None):
        return final
    malformed = status is not None and 400 <= status < 500 and status not in _BUSY
    if malformed or _is_one_of(error, _MALFORMED) or isinstance(error, ImportError | ValueError | TypeError):
        return UnusableAddressError
    return OSError


def _is_one_of(error: Exception, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(text).split()) or type(error).__name__


def _http_status(error: Exception) -> int | None:
    """The status code, which the libraries hold in different places."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for owner, name in ((error, "status"), (error, "code"), (response, "status_code")):
        value = getattr(owner, name, None)
        if isinstance(value, int | str) and str(value).isdigit():
            return int(value)
    return None
