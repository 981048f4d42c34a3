"""Saves weights, optimizer state and averages to a folder and loads them, by torch.distributed.checkpoint.

Any number of ranks can read what another number wrote, replicated or sharded. A state is a dictionary of dictionaries:
model, optimizer and average, and in each of them tensors and numbers by name.
"""

import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from clipx.checkpoint.manifest import Entry
from clipx.checkpoint.torch_files import DataPlanner, FolderReader, FolderWriter
from clipx.distributed.collectives import rank, world_size
from clipx.errors import ClipxError, InputError, RunError
from clipx.storage.folders import Folder

State = dict[str, dict[str, Any]]

log = logging.getLogger(__name__)

_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)  # names instead of positions: loads on another wrapping

# one process without a process group is normal here, and no reason to warn at every save; warnings.catch_warnings would
# change the filters of all threads
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def state_of(model: nn.Module, optimizer: Optimizer, *, average: Mapping[str, Tensor] | None = None) -> State:
    """The live tensors and numbers of a training, by name; `average` is that of the weights, by parameter name."""
    model_state, optimizer_state = get_state_dict(model, optimizer, options=_OPTIONS)
    settings = {*optimizer.defaults, "lr_scale"}  # about 12 numbers per parameter; the config holds them
    saved = {
        name: value
        for name, value in optimizer_state.items()
        if not (name.startswith("param_groups.") and name.rpartition(".")[2] in settings)
    }
    return _state(model_state, saved, average)


def own_share(state: State, group: ProcessGroup | None) -> State:
    """The part of the state that this rank has to write: its shards, and 1 / W of what all W ranks hold alike.

    No communication: every rank finds the same parts, by giving each tensor and number, from the largest to the
    smallest, to the rank that has the fewest bytes so far.
    """
    if (size := world_size(group)) == 1:
        return state
    copies = {
        (section, name): value.nbytes if isinstance(value, Tensor) else 0
        for section, values in state.items()
        for name, value in values.items()
        if not isinstance(value, DTensor)
    }
    loads, owners = [0] * size, {}
    for key in sorted(copies, key=lambda key: (-copies[key], key)):
        owners[key] = loads.index(min(loads))
        loads[owners[key]] += max(copies[key], 1)
    here = rank(group)
    return {
        section: {name: value for name, value in values.items() if owners.get((section, name), here) == here}
        for section, values in state.items()
    }


def write_state(folder: Folder, share: State, group: ProcessGroup | None) -> dict[str, Entry]:
    """Writes the state, each rank its share; all ranks call this. The files are synced to the disk when it returns.

    The folder has no complete checkpoint, the share is from `own_share`, its tensors may lie on any device.

    Returns:
        Size and checksum of the files that this rank wrote.

    Raises:
        OSError: any rank could not write; on every rank.
    """
    tensors = [value for values in share.values() for value in values.values() if isinstance(value, Tensor)]
    writer = FolderWriter(folder, on_host=all(tensor.device.type == "cpu" for tensor in tensors))
    try:
        save(share, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:  # a BaseException, which no caller would think to catch
        raise OSError(_one_line(_first_cause(error))) from error
    return writer.entries


def load_tensors(
    folder: Folder, model: nn.Module, optimizer: Optimizer, *, average: Mapping[str, Tensor] | None = None
) -> None:
    """Fills model, optimizer and average in place from a checkpoint of any number of ranks; all ranks call this.

    Weights and moments come from the checkpoint; betas, weight decay and other settings stay as the config built them.
    Weights that had no update before the checkpoint, because they were locked, have no moments after it either. An
    `average` is filled if the run keeps one and the checkpoint has it.

    Raises:
        InputError: the checkpoint is of another model.
        RunError: it cannot be read.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    # after the line above: this takes a step without gradients, in which adan and lamb put a count into their groups
    model_state, optimizer_state = get_state_dict(model, optimizer, options=_OPTIONS)
    saved = _saved_names(folder)
    fresh = _without_moments(optimizer_state, saved)
    known = {
        name: value
        for name, value in optimizer_state.items()
        if f"optimizer.{name}" in saved and _owner(name) not in fresh
    }
    state = _state(model_state, known, average)
    _fill(state, folder)
    optimizer_state |= state["optimizer"]  # tensors were filled in place, numbers were replaced
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state, options=_OPTIONS)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for name, parameter in model.named_parameters():
        if name.removeprefix("module.") in fresh:
            optimizer.state.pop(parameter, None)


def load_weights(folder: Folder, model: nn.Module, *, average: bool = False) -> None:
    """Fills the weights, or those of their average, of a model that nothing wraps, in this process alone.

    Raises:
        InputError: the checkpoint is of another model.
        RunError: it cannot be read.
    """
    state = get_model_state_dict(model, options=_OPTIONS)
    _fill({"average" if average else "model": state}, folder, no_dist=True)
    set_model_state_dict(model, state, options=_OPTIONS)


def load_tensors_by_name(folder: Folder, tensors: Mapping[str, Tensor], *, average: bool) -> dict[str, Tensor]:
    """The stored weights, or their average, of these names, those that there are, in this process alone.

    `tensors` have the shapes and dtypes that are wanted, and stay as they are.

    Raises:
        InputError: a stored tensor has another shape.
        RunError: it cannot be read.
    """
    section, names = "average" if average else "model", _saved_names(folder)
    state = {name: tensor.clone() for name, tensor in tensors.items() if f"{section}.{name}" in names}
    _fill({section: state}, folder, no_dist=True)
    return state


def holds_average(folder: Folder) -> bool:
    """Whether a checkpoint has an average of the weights too."""
    return any(name.startswith("average.") for name in _saved_names(folder))


def _state(
    model_state: Mapping[str, Any], optimizer_state: Mapping[str, Any], average: Mapping[str, Tensor] | None
) -> State:
    state = {"model": dict(model_state), "optimizer": dict(optimizer_state)}
    return state if average is None else {**state, "average": dict(average)}


def _fill(state: State, folder: Folder, *, no_dist: bool = False) -> None:
    """Fills tensors in place, and replaces numbers; all ranks call this, or with `no_dist` this process alone."""
    with _named_mismatch(folder):
        load(state, storage_reader=FolderReader(folder), planner=DataPlanner(), no_dist=no_dist)


def _saved_names(folder: Folder) -> frozenset[str]:
    """Names of all that a checkpoint holds, as SECTION.NAME."""
    return frozenset(FolderReader(folder).read_metadata().state_dict_metadata)


def _without_moments(optimizer_state: Mapping[str, Any], saved: frozenset[str]) -> frozenset[str]:
    """Parameters whose optimizer state is not complete in the checkpoint: never trained, or by another optimizer."""
    states = [name for name in optimizer_state if name.startswith("state.")]
    missing = frozenset(_owner(name) for name in states if f"optimizer.{name}" not in saved)
    if missing:
        log.warning(
            "%d of %d parameters have no optimizer state in the checkpoint and begin with none",
            len(missing),
            len({_owner(name) for name in states}),
        )
    return missing


def _owner(name: str) -> str:
    """The parameter in `state.PARAMETER.MOMENT`."""
    return name.removeprefix("state.").rpartition(".")[0]


@contextmanager
def _named_mismatch(folder: Folder) -> Iterator[None]:
    """Turns torch's errors within the block into one line for a person.

    Raises:
        RunError: the folder cannot be read.
        InputError: what is read does not fit.
    """
    try:
        yield
    except CheckpointException as error:
        cause = _first_cause(error)
        if isinstance(cause, ClipxError):
            raise cause from error
        if isinstance(cause, OSError):
            raise RunError(f"{folder} cannot be read ({_one_line(cause)}); mend the storage and start again") from error
        if isinstance(cause, pickle.UnpicklingError):
            raise InputError(
                f"{folder} holds objects that are no tensors or numbers; they could run a program and are not read; "
                "take a checkpoint that clipx wrote"
            ) from error
        raise InputError(
            f"{folder} does not fit the model of this config ({_one_line(cause)}); "
            "use the config that trained it or a new run_dir"
        ) from error


def _first_cause(error: CheckpointException) -> BaseException:
    """The error of the lowest rank that has one."""
    _, (cause, _) = min(error.failures.items())
    return cause


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
