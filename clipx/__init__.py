"""clipx: pretrain CLIP models on many GPUs, from the command line or from Python.

    config = clipx.load_config("tiny", ["data.train=[data/train]"])
    clipx.train(config)
    model = clipx.load(config.run_dir)

docs/python.md walks through it. Everything is imported on first use: most of it needs torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipx.config.fit import FitConfig
    from clipx.config.load import dump_config
    from clipx.config.schema import RunConfig
    from clipx.errors import ClipxError, InputError, RunError
    from clipx.pretrained import Pretrained, load
    from clipx.pretrained.run_config import load_config
    from clipx.train.liveness.status import Status
    from clipx.train.trainer import run as train

__version__ = "0.1.0"

__all__ = [
    "ClipxError",
    "FitConfig",
    "InputError",
    "Pretrained",
    "RunConfig",
    "RunError",
    "Status",
    "__version__",
    "dump_config",
    "load",
    "load_config",
    "train",
]

_MODULES = {
    "ClipxError": "clipx.errors",
    "FitConfig": "clipx.config.fit",
    "InputError": "clipx.errors",
    "Pretrained": "clipx.pretrained",
    "RunConfig": "clipx.config.schema",
    "RunError": "clipx.errors",
    "Status": "clipx.train.liveness.status",
    "dump_config": "clipx.config.load",
    "load": "clipx.pretrained",
    "load_config": "clipx.pretrained.run_config",
}


if not TYPE_CHECKING:  # or every name would be there for a type checker

    def __getattr__(name: str) -> Any:
        if name == "train":  # a package, which can be called
            return import_module("clipx.train")
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        raise AttributeError(f"module 'clipx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
