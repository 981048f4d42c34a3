"""A copy of a state in the host's memory: the part of an asynchronous save for which the training waits."""

from copy import deepcopy

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from clipx.checkpoint.tensors import State


class HostCopy:
    """Memory for one copy of a state; the next `take` overwrites it. Page-locked if CUDA is available.

    It is allocated at the first `take`, and again only if names, shapes or dtypes change.
    """

    def __init__(self) -> None:
        self._stager: DefaultStager | None = None
        self._copy: State = {}

    @torch.no_grad()
    def take(self, state: State) -> State:
        """Copies the state as it is now; when this returns, the training may change the original.

        Copies from a device are queued behind the step that was launched last; this waits for them.
        """
        if _layout(state) != _layout(self._copy):
            self._copy = self._allocate(state)
        else:
            for section, values in state.items():
                for name, value in values.items():
                    if isinstance(value, Tensor):
                        _local(self._copy[section][name]).copy_(_local(value), non_blocking=True)
                    else:
                        self._copy[section][name] = deepcopy(value)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        return {section: dict(values) for section, values in self._copy.items()}

    def close(self) -> None:
        """Frees the memory."""
        self._copy = {}
        if self._stager is not None:
            self._stager.close()
            self._stager = None

    def _allocate(self, state: State) -> State:
        """Copies a state to new memory by torch's stager, which is slower: it copies the metadata of each shard too."""
        self.close()
        on_gpu = torch.cuda.is_available()
        options = {"use_pinned_memory": on_gpu, "use_non_blocking_copy": on_gpu}
        self._stager = DefaultStager(StagingOptions(use_shared_memory=False, use_async_staging=False, **options))
        staged = self._stager.stage(state)
        assert isinstance(staged, dict)
        return staged


def _layout(state: State) -> dict[tuple[str, str], tuple[torch.Size, torch.dtype] | None]:
    """Shape and dtype by section and name: if they are equal, the memory of one copy fits the other."""
    return {
        (section, name): (_local(value).shape, value.dtype) if isinstance(value, Tensor) else None
        for section, values in state.items()
        for name, value in values.items()
    }


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
