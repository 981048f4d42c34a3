"""Models on the Hugging Face hub, by addresses hf://ORG/NAME[@REVISION]; the one file that uses huggingface_hub.

What is in huggingface_hub's cache (HF_HOME) is taken as it is, and the hub is not asked: a model does not change while
people work with it, all starts of a run see the same, and no network is needed. What is missing is fetched: of all that
a model's page may have, the files that a model needs. Other hf:// addresses, such as hf://datasets/..., are shards or
checkpoints, which fsspec reads.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from clipx.errors import InputError

_ADDRESS = re.compile(
    r"hf://(?!(?:datasets|spaces|buckets)/)(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?/?"
)
_EXPORT, _OPEN_CLIP, _TRANSFORMERS = "clipx_config.yaml", "open_clip_config.json", "config.json"
_CONFIGS = (_EXPORT, _OPEN_CLIP, _TRANSFORMERS)
_BESIDE = re.compile(r"[^/]+\.(json|yaml|model)|(merges|vocab)\.txt|text_encoder/[^/]+\.(json|txt|model)")
_WEIGHTS = (
    ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
)
_TIMEOUT_S = 10.0
_DENIED = (401, 403)


class HubModel(NamedTuple):
    """A model at the hub."""

    name: str
    """ORG/NAME."""
    revision: str | None
    """A branch, a tag or a commit; None: the main branch."""

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


def hub_model(address: str) -> HubModel | None:
    """The model that an address names; None if it is no address of a model at the hub."""
    match = _ADDRESS.fullmatch(address)
    return None if match is None else HubModel(match["name"], match["revision"])


def hub_folder(model: HubModel, *, weights: bool = True) -> Path:
    """The folder, in huggingface_hub's cache, with the files of a model; what is missing there is downloaded.

    Args:
        model: at the hub.
        weights: whether they are needed; or only what describes the model, which is small.

    Raises:
        InputError: in one line, soon, and without a token: the model is not there or not for everybody, or it is not in
            the cache and the hub cannot be asked.
    """
    cached = _cached(model)
    if cached is not None and _is_whole(cached, weights=weights):
        return cached
    from huggingface_hub import HfApi, constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        if cached is not None and _has_model(cached, weights=weights):
            return cached
        raise InputError(f"{model} {_missing(cached)}, and HF_HUB_OFFLINE forbids to ask the hub; {_how(model)}")
    try:
        info = HfApi().model_info(model.name, revision=model.revision, timeout=_TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or ()]
        wanted = _wanted(names, weights=weights)
        for name in wanted:
            hf_hub_download(model.name, name, revision=model.revision, etag_timeout=_TIMEOUT_S)
    except Exception as error:  # of the hub's library, of its library for http, of the disk
        if cached is not None and _has_model(cached, weights=weights):
            return cached
        raise _explained(error, model, cached) from error
    if not any(name in _CONFIGS for name in wanted):
        raise InputError(
            f"{model} has none of {', '.join(_CONFIGS)}; it is no model of clipx, open_clip or transformers"
        )
    if weights and not _weights(names):
        raise InputError(
            f"{model} has no weights that clipx reads ({', '.join(name for row in _WEIGHTS for name in row)})"
        )
    fetched = _cached(model)
    assert fetched is not None, f"{model} was downloaded and is not in the cache"
    return fetched


def _cached(model: HubModel) -> Path | None:
    """The folder of the revision in the cache, if it has a config."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = (try_to_load_from_cache(model.name, name, revision=model.revision) for name in _CONFIGS)
        path = next((path for path in found if isinstance(path, str)), None)
    except HFValidationError as error:
        raise InputError(f"{model} is no name at the hub: give hf://ORG/NAME or hf://ORG/NAME@REVISION") from error
    return None if path is None else Path(path).parent


def _is_whole(folder: Path, *, weights: bool) -> bool:
    """Whether the cached folder has all that a model has; another program may have fetched a part of it."""
    names = {path.name for path in folder.iterdir()}
    has_tokens = bool(names & {"tokenizer.json", "vocab.json", "vocab.txt"}) or any(n.endswith(".model") for n in names)
    has_pixels = bool(names & {"preprocessor_config.json", "processor_config.json", _OPEN_CLIP, _EXPORT})
    return has_tokens and has_pixels and _has_model(folder, weights=weights)


def _has_model(folder: Path, *, weights: bool) -> bool:
    """Whether the cached folder has a model's weights, all files of them, if they are asked for."""
    if not weights:
        return True
    chosen = _weights([path.name for path in folder.iterdir()])
    for index in (name for name in chosen if name.endswith(".index.json")):
        parts = set(_json(folder / index).get("weight_map", {}).values())
        if not parts or not all((folder / part).exists() for part in parts):
            return False
    return bool(chosen)


def _wanted(names: Iterable[str], *, weights: bool) -> list[str]:
    """Which of a repository's files are fetched, weights last."""
    names = list(names)
    beside = [name for name in names if _BESIDE.fullmatch(name)]
    return beside + [name for name in (_weights(names) if weights else ()) if name not in beside]


def _weights(names: Iterable[str]) -> list[str]:
    """The files of the weights by the library whose config counts, its safetensors first."""
    names = list(names)
    rows = _WEIGHTS if _OPEN_CLIP in names and _EXPORT not in names else _WEIGHTS[::-1]
    best = next((name for row in rows for name in row if name in names), None)
    if best is None:
        return []
    parts = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    return [best, *parts] if best.endswith(".index.json") else [best]


def _explained(error: Exception, model: HubModel, cached: Path | None) -> InputError:
    """One line with what a person can do; the library's own text, which may quote an answer, is left out."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    log_in = "log in by `hf auth login`, or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return InputError(f"{model} is gated: ask for access on its page at the hub, then {log_in}")
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"hf://{model.name} has no revision {model.revision}; give a branch, a tag or a commit")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{model}: the hub has no such model (status {status}); correct the name, or, if it is private, {log_in}"
        )
    if status in _DENIED:
        return InputError(
            f"{model}: the hub refuses access (status {status}); {log_in} with an account that may read it"
        )
    reason = f"the hub answers with status {status}" if status else f"the hub does not answer ({type(error).__name__})"
    return InputError(f"{model} {_missing(cached)}, and {reason}; {_how(model)}")


def _missing(cached: Path | None) -> str:
    return "is not in the cache (HF_HOME)" if cached is None else "is in the cache (HF_HOME) without all of its weights"


def _how(model: HubModel) -> str:
    revision = f" --revision {model.revision}" if model.revision else ""
    return f"where there is a network, run `hf download {model.name}{revision}`, and bring its HF_HOME here"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
