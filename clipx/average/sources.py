"""The models that are averaged: loaded one at a time, each compared with the first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.average.compare import require_alike
from clipx.average.options import Take
from clipx.checkpoint.find import address_of, find_model
from clipx.config.load import dump_config
from clipx.errors import InputError
from clipx.pretrained import Pretrained, load
from clipx.pretrained.fingerprint import checksum
from clipx.pretrained.loading import choose_average
from clipx.pretrained.stored_model import described
from clipx.printable import redact


class Sources:
    """Loads models; keeps the first as the frame into which any of their averages fits.

    Args:
        take: of a run with an average of its weights, which to take, as `weights` of `clipx.load`.
        device: of the frame. The tensors of models are on the CPU.
    """

    def __init__(self, *, take: Take | None, device: torch.device | str = "cpu") -> None:
        self._take = take
        self._device = device
        self._frame: tuple[str, Pretrained] | None = None
        self.config_text = ""
        """The config file of the first model, without secrets."""

    @property
    def frame(self) -> Pretrained:
        """The first model; whoever scores averages writes over its weights."""
        assert self._frame is not None, "no model was loaded yet"
        return self._frame[1]

    def load(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a model, and what the result says of it: where it was, and the SHA-256 of its weights.

        Raises:
            InputError: no model is there, it differs from the first one, or its weights are not all finite.
        """
        files = find_model(path)
        pretrained = load(files.folder.address, weights=self._take)
        name = redact(address_of(path))
        tensors = pretrained.model.state_dict()
        _require_finite(tensors, name)
        if self._frame is None:
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}  # the frame's will be written over
            self._frame, self.config_text = (name, pretrained), dump_config(described(files))
            pretrained.model.to(self._device)
        else:
            require_alike(self.frame, pretrained, names=(self._frame[0], name))
        entry = {"model": name, "sha256": checksum(tensors)}
        if files.kind == "checkpoint":
            averaged = choose_average(files.folder, self._take)
            entry |= {"checkpoint": files.folder.name, "weights": "average" if averaged else "trained"}
        return tensors, entry


def _require_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{name}: {key} holds NaN or infinite numbers; leave this model out")
