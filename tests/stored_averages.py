"""Models stored as `clipx average` stores them."""

from pathlib import Path

from safetensors.torch import save_file
from tiny_clip import run_config_text, tiny_pretrained
from torch import Tensor

from clipx.checkpoint.find import EXPORT_CONFIG
from clipx.pretrained import Pretrained, load
from clipx.pretrained.own import WEIGHTS

State = dict[str, Tensor]


def stored(folder: Path, pretrained: Pretrained | None = None, *, seed: int = 0) -> State:
    """A model as an average stores it."""
    pretrained = pretrained or tiny_pretrained(seed=seed)
    folder.mkdir(parents=True)
    (folder / EXPORT_CONFIG).write_text(run_config_text(pretrained.config))
    state = {name: tensor.clone() for name, tensor in pretrained.model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    return state


def paths(folder: Path, names: str) -> tuple[Path, ...]:
    return tuple(folder / name for name in names)


def weights_of(folder: Path) -> State:
    return dict(load(folder).model.state_dict())
