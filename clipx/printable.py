"""Text as it may be shown or stored: without secrets, and without characters that a terminal obeys.

Names of files, keys and captions come from strangers, and addresses of shards may hold passwords and signatures. What
prints, logs or writes text for people passes it through `shown`; what stores an address, through `redact`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

REDACTED = "REDACTED"
"""What stands where a secret was left out."""

# C0 and C1 controls with ESC, what sets the direction of writing, separators of lines, marks, invisible tags, and
# surrogates, which stand for bytes of a file's name that are no UTF-8 and which no stream takes
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

_REFERENCE = re.compile(r"\$\{\w+\}\Z")
_resolved: dict[str, str] = {}  # references to the environment by the value that this process has seen
_met: dict[str, None] = {}
"""The latest secrets of addresses: a library's message may name a part of an address that is none by itself."""
_MOST_MET, _LEAST_MET = 16, 8  # secrets, and characters of one: shorter ones stand in many words
_NO_REFERENCE = r"(?!\$[{(\w]|REDACTED)"  # in a command: $NAME, ${NAME} and $(COMMAND) are the shell's
_USER = re.compile(r"(?<=://)([^/?#\s:@'\"]*):([^/?#\s'\"]*)@")
_LONE_USER = re.compile(r"(?<=://)[^/?#\s:@'\"${}]{20,}@")  # a token; shorter ones are names
_QUERY = re.compile(r"(?<=[?&;])([\w.%~-]+)=([^&;#\s'\"<>]+)")
_PUBLIC_QUERY = re.compile(
    r"(?i)(versionid|generation|partnumber|(response-)?content-.*|download|format|alt|raw|dl|expires"
    r"|x-\w+-(algorithm|date|expires|signedheaders|content-sha256))\Z"
)
_AZURE = r"sv|se|st|sr|sp|spr|srt|ss|sip|sdd|sk(oid|tid|t|e|s|v)"  # of shared access signatures
_SECRET_QUERY = re.compile(
    r"(?i)sig|token|secret|pass|pwd|key|auth|cred|session|policy|access|jwt|hmac|x-(amz|goog|oss|ms|cos)-"
    rf"|({_AZURE})\Z"
)
_SIGNED_BY = re.compile(r"(x-(amz|goog|oss|cos|ms)-.*|(aws|oss)accesskeyid|googleaccessid|security-token)\Z")
_SIGNED_WITH = {  # names that mean this only beside the first
    "sig": re.compile(rf"(sig|{_AZURE})\Z"),
    "signature": re.compile(r"(signature|expires|policy|key-pair-id)\Z"),  # CloudFront, S3 and GCS before version 4
}
_LONG = 20  # a value of so many characters is taken for a secret, whatever its name
_SHORT = 4  # shorter values are no secrets, and stand in many words
_SECRET_NAME = r"(?:token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key(?:[_-]?id)?|credentials?)"
_IN_COMMANDS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?P<kept>\b(?:proxy-)?authorization: *+(?:[a-z]+ ++)?+){_NO_REFERENCE}[^\s'\"]+",
        rf"(?P<kept>\b(?:cookie|(?:x|private|job|deploy)-[\w-]{{0,40}}(?:token|key)): *+){_NO_REFERENCE}[^'\"\n]+",
        rf"(?P<kept>\bbearer ++){_NO_REFERENCE}[\w.~+/=-]{{8,}}",
        rf"(?P<kept>--[\w-]{{0,40}}{_SECRET_NAME}[ =]++['\"]?+){_NO_REFERENCE}[^\s'\"]+",
        rf"(?P<kept>(?:\s-u|\s--user|\s--proxy-user)[ =]*+['\"]?+[^\s:'\"]*+:){_NO_REFERENCE}[^\s'\"]+",
        rf"(?P<kept>\b[\w-]{{0,40}}{_SECRET_NAME}=['\"]?+){_NO_REFERENCE}[^\s'\"&;,|]+",
    )
]
_KNOWN = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|(AKIA|ASIA)[0-9A-Z]{16})\b")


def shown(text: object) -> str:
    """The text for a person, its lines kept: secrets left out, control characters visible."""
    clean = redact(str(text))
    for secret in list(_met):  # not in `redact`: what is stored must not depend on what was shown before
        clean = clean.replace(secret, REDACTED)
    return "\n".join(map(printable, clean.split("\n")))


def printable(text: str) -> str:
    r"""The text in one line, with an escape (\x1b, \u202e, \n) for each character that a terminal would obey."""
    return text if text.isascii() and text.isprintable() else _CONTROL.sub(_escape, text)


def json_text(value: object) -> str:
    """The value as JSON in one line, readable but for what a terminal would obey, which stands as JSON's escapes."""
    return _CONTROL.sub(lambda match: json.dumps(match[0])[1:-1], json.dumps(value, ensure_ascii=False))


def resolve(text: str, environment: Mapping[str, str]) -> str:
    """The text with the values of its references `${NAME}`; where they are shown later, the references come back.

    Raises:
        LookupError: a value is missing, or a secret was left out of the text; the message says what to do.
    """
    if REDACTED in text:
        raise LookupError("a secret was left out of it when it was stored; give it with ${NAME}, and set NAME")

    def value(match: re.Match[str]) -> str:
        if not (found := environment.get(match[0][2:-1])):
            raise LookupError(f"the environment has no {match[0][2:-1]}; set it")
        if len(found) >= _SHORT:
            _resolved[found] = match[0]
        return found

    return re.sub(r"\$\{\w+\}", value, text)


def redact(text: str) -> str:
    """The text without passwords and tokens: of addresses, signed ones too, of headers, options and assignments.

    References to the environment (`${NAME}`) stay.
    """
    for secret, reference in _resolved.items():
        text = text.replace(secret, reference)
    if "://" in text:
        text = _USER.sub(_without_password, text)
        text = _LONE_USER.sub(_without_user, text)
        text = _QUERY.sub(_without_value, text)
    if "://" in text or "pipe:" in text:  # nowhere else: a caption or a class may be called `cookie: bitten`
        for pattern in _IN_COMMANDS:
            text = pattern.sub(rf"\g<kept>{REDACTED}", text)
    return _KNOWN.sub(REDACTED, text)


def unsigned(address: str) -> str:
    """The address without what a new signature or password changes: equal for the same file, and for no other.

    Only signatures whose names are known go (AWS, Google, Azure, CloudFront and alike): there the path names the file.
    """
    if "://" not in address or address.startswith("pipe:"):  # a command is its shell's
        return address
    base, _, query = re.sub(r"(?<=://)[^/?#\s]*@", "", address).partition("?")
    parts = {part: part.partition("=")[0].lower() for part in query.split("&") if part}
    patterns = [_SIGNED_BY, *(pattern for name, pattern in _SIGNED_WITH.items() if name in parts.values())]
    kept = [part for part, name in parts.items() if not any(pattern.match(name) for pattern in patterns)]
    return base + ("?" + "&".join(kept) if kept else "")


def label(address: str) -> str:
    """A name of the file at an address for lists that people read: no secrets, the same for the next signature.

    Where a secret may tell files apart, a few digits of a checksum stand behind it.
    """
    plain = unsigned(address)
    clean = redact(plain)
    return clean if clean == plain else f"{clean}#{hashlib.sha256(plain.encode(errors='replace')).hexdigest()[:8]}"


def redacted(value: Any) -> Any:
    """A copy of plain values in which every string is redacted."""
    if isinstance(value, dict):
        return {name: redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redacted, value))
    return redact(value) if isinstance(value, str) else value


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _without_password(match: re.Match[str]) -> str:
    user, password = match.groups()
    if not password or _REFERENCE.match(password):
        return match[0]
    _meet(password)
    return f"{user}:{REDACTED}@"


def _without_user(match: re.Match[str]) -> str:
    _meet(match[0].removesuffix("@"))
    return f"{REDACTED}@"


def _without_value(match: re.Match[str]) -> str:
    name, value = match.groups()
    if _REFERENCE.match(value) or _PUBLIC_QUERY.match(name):
        return match[0]
    if not _SECRET_QUERY.search(name) and len(value) < _LONG:
        return match[0]
    _meet(value)
    return f"{name}={REDACTED}"


def _meet(secret: str) -> None:
    """Remembers a secret, in the form of addresses and in its own."""
    for form in {secret, unquote(secret)}:
        if len(form) >= _LEAST_MET and REDACTED not in form:
            _met.pop(form, None)
            _met[form] = None
    while len(_met) > _MOST_MET:
        del _met[next(iter(_met))]
