"""What counts as a checkpoint, on a disk and in an object store (fsspec's in memory: it has no renaming either)."""

import errno
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipx.checkpoint.manifest import find_problem
from clipx.checkpoint.state import DataOrderRecord, Progress, RunState
from clipx.checkpoint.store import Checkpoint, CheckpointStore
from clipx.checkpoint.tensors import load_tensors, load_weights, state_of, write_state
from clipx.config.optim import AdamWConfig
from clipx.errors import InputError
from clipx.optim.optimizers import build_optimizer
from clipx.storage.folders import Folder

DATA_ORDER = DataOrderRecord(
    fingerprint="f", num_shards=2, num_samples=9, lanes=4, shuffle_window=64, global_batch_size=8, seed=0
)


@pytest.fixture(params=["disk", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run" if request.param == "disk" else f"memory://{tmp_path.name}/run")


def trained_model(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width))
    optimizer = build_optimizer(AdamWConfig(lr=0.1), model)
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def save(store: CheckpointStore, step: int, trained: tuple[nn.Module, torch.optim.Optimizer]) -> Checkpoint:
    written = write_state(store.draft(step), state_of(*trained), None)
    progress = Progress(step=step, next_batch=step)
    state = RunState(progress=progress, data_order=DATA_ORDER, wandb_id="w", versions={"torch": "2"})
    return store.publish(step, written, state=state, config_text="run_dir: r\n")


def damage(folder: Folder, name: str, kind: str) -> None:
    content = bytearray(folder.read(name))
    if kind == "flip":
        content[len(content) // 2] ^= 1
    if kind in ("remove", "cut"):
        folder.remove_file(name)
    if kind != "remove":
        with folder.create(name) as file:
            file.write(content[:-1] if kind == "cut" else content)


def weights_file(checkpoint: Checkpoint) -> str:
    (name,) = [name for name in checkpoint.folder.names() if name.endswith(".distcp")]
    return name


def test_comes_back_bit_for_bit(store: CheckpointStore) -> None:
    model, optimizer = trained_model()
    checkpoint = save(store, 7, (model, optimizer))
    other, other_optimizer = trained_model()
    load_tensors(checkpoint.folder, other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    before, after = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(before[i][name], after[i][name]) for i in before for name in before[i])
    state = checkpoint.state()
    assert (state.progress.step, state.data_order, state.wandb_id) == (7, DATA_ORDER, "w")
    bare, _ = trained_model()
    load_weights(checkpoint.folder, bare)
    assert torch.equal(bare[0].weight, model[0].weight)


@pytest.mark.parametrize("kind", ["flip", "cut", "remove", "manifest"])
def test_a_broken_newest_is_named_and_passed_over(
    store: CheckpointStore, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, broken = (save(store, step, trained_model()) for step in (1, 2))
    name = weights_file(broken)
    damage(broken.folder, "manifest.json" if kind == "manifest" else name, "cut" if kind == "manifest" else kind)
    wrong = {
        "flip": f"{name} differs from its checksum",
        "cut": " bytes instead of ",
        "remove": f"{name} is missing",
        "manifest": "manifest.json is damaged",
    }[kind]
    with caplog.at_level(logging.WARNING):
        assert store.newest() == good
    assert str(broken) in caplog.text
    assert wrong in caplog.text
    assert (find_problem(broken.folder, checksums=False) is None) == (kind == "flip")  # sizes are what it looks at
    store.set_aside(after_step=1, reason="broken")
    assert store.checkpoints() == [good]
    assert f"broken-{broken.name}" in store.root.names()
    save(store, 2, trained_model())
    store.set_aside(after_step=1, reason="broken")
    assert {f"broken-{broken.name}", f"broken-{broken.name}.1"} <= set(store.root.names())
    assert good.problem() is None


def test_an_unfinished_save_is_no_checkpoint(store: CheckpointStore) -> None:
    store.begin(3)
    write_state(store.draft(3), state_of(*trained_model()), None)
    assert store.draft(3).names()
    assert store.newest() is None
    assert store.checkpoints() == []
    store.discard_unfinished()
    assert store.root.names() == []


def test_only_unfinished_saves_are_discarded(store: CheckpointStore) -> None:
    checkpoint = save(store, 1, trained_model())
    store.set_aside(after_step=0, reason="diverged")
    checkpoint = save(store, 1, trained_model())
    for name in ("step-of-mine", "notes"):
        store.root.child(name).make()
        store.root.child(name).write("file", "x")
    store.discard_unfinished()
    assert store.root.names() == ["diverged-step-00000001", "notes", "step-00000001", "step-of-mine"]
    assert checkpoint.problem() is None


def test_the_manifest_covers_every_file(store: CheckpointStore) -> None:
    checkpoint = save(store, 1, trained_model())
    manifest = json.loads(checkpoint.folder.read("manifest.json"))
    assert manifest.keys() == set(checkpoint.folder.names()) - {"manifest.json"}
    assert checkpoint.problem() is None


def test_the_manifest_comes_last_and_a_new_save_takes_it_back_first(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed anywhere, a save in place of an old one leaves no mixture that counts."""
    save(store, 1, trained_model())
    seen: list[bool] = []
    original = type(store.root).create

    def create(folder: Folder, name: str) -> Any:
        seen.append("manifest.json" in folder.names())
        return original(folder, name)

    monkeypatch.setattr(type(store.root), "create", create)
    save(store, 1, trained_model())
    assert seen == [False] * 5  # weights, metadata, state, config, manifest


def test_retention_keeps_the_last_and_every_mth(store: CheckpointStore) -> None:
    for step in (2, 3, 4, 6, 7, 8):
        save(store, step, trained_model())
    store.apply_retention(keep_last=2, keep_every=3)
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [3, 6, 7, 8]


def test_retention_counts_good_ones_only(store: CheckpointStore) -> None:
    saved = [save(store, step, trained_model()) for step in (1, 2, 3, 4)]
    for checkpoint in saved[2:]:
        damage(checkpoint.folder, weights_file(checkpoint), "cut")
    store.apply_retention(keep_last=1, keep_every=0)
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [2, 3, 4]
    for checkpoint in saved[1:2]:
        damage(checkpoint.folder, weights_file(checkpoint), "cut")
    store.apply_retention(keep_last=1, keep_every=0)
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [2, 3, 4]  # none is good: none is removed


def foreign(store: CheckpointStore, name: str, **files: str) -> Folder:
    """A folder of another program's."""
    folder = store.root.child(name)
    folder.make()
    for file, content in {"weights.bin": "theirs", **files}.items():
        folder.write(file.replace("_", "."), content)
    return folder


def test_retention_removes_only_what_a_manifest_lists(store: CheckpointStore, caplog: pytest.LogCaptureFixture) -> None:
    noted = save(store, 2, trained_model())
    noted.folder.write("notes.txt", "the best so far")
    theirs = foreign(store, "step-00000001", manifest_json='{"weights.bin": {"size": 6, "sha256": "?"}}')
    others = [foreign(store, name) for name in ("step-3", "step-00000000", "step-last")]
    for step in (4, 5, 6):
        save(store, step, trained_model())
    for _ in range(2):
        store.apply_retention(keep_last=1, keep_every=0)
    assert noted.folder.read("notes.txt") == b"the best so far"
    assert noted.problem() is None
    assert all(folder.read("weights.bin") == b"theirs" for folder in (theirs, *others))
    assert [checkpoint.step for checkpoint in store.checkpoints() if checkpoint.step > 2] == [6]
    assert len([message for message in caplog.messages if f"{noted} stays: it holds notes.txt, which" in message]) == 1
    assert len([message for message in caplog.messages if f"{theirs} stays: it holds weights.bin, " in message]) <= 1


def test_folders_of_others_are_neither_discarded_nor_renamed_nor_written_into(store: CheckpointStore) -> None:
    names = ["step-00000007", ".saving-step-00000008", ".saving-mine", "step-00000009"]
    folders = [foreign(store, name) for name in names[:3]]
    folders.append(foreign(store, names[3], **{"__0_0.distcp": "another program's of torch"}))
    good = save(store, 1, trained_model())
    store.discard_unfinished()
    store.set_aside(after_step=1, reason="broken")
    store.discard(8)
    assert store.root.names() == sorted([*names, good.name])
    for step in (7, 9):
        with pytest.raises(OSError, match=rf"step-0000000{step} is in the way, and not a checkpoint of clipx: move it"):
            store.begin(step)
    assert all(folder.read("weights.bin") == b"theirs" for folder in folders)
    assert store.newest() == good


def test_what_a_removal_has_left_is_discarded(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(store, step, trained_model())

    def killed(folder: Folder) -> None:
        if folder.names():
            folder.remove_file(".metadata")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(store.root), "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            store.apply_retention(keep_last=1, keep_every=0)
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [2]
    store.discard_unfinished()
    assert store.root.names() == ["step-00000002"]


def test_a_model_of_another_shape_is_one_line(store: CheckpointStore) -> None:
    checkpoint = save(store, 1, trained_model(width=3))
    with pytest.raises(InputError, match="does not fit the model of this config") as caught:
        load_tensors(checkpoint.folder, *trained_model(width=5))
    assert "\n" not in str(caught.value)


def test_large_states_are_several_files_in_an_object_store(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is held in memory and sent again when that fails; torch's own limit is one file per rank."""
    monkeypatch.setattr(type(store.root), "largest_file", 64)
    model, optimizer = trained_model()
    checkpoint = save(store, 1, (model, optimizer))
    sizes = checkpoint.folder.sizes()
    assert sum(name.endswith(".distcp") for name in sizes) > 3
    other, other_optimizer = trained_model()
    load_tensors(checkpoint.folder, other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


class FullDisk:
    """Takes so many bytes and no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))


@pytest.mark.parametrize("room", [0, 1, 100, 3000, 6000])
def test_a_disk_that_fills_up_midway_is_an_os_error(
    store: CheckpointStore, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save(store, 1, trained_model())
    original = type(store.root).create

    @contextmanager
    def create(folder: Folder, name: str) -> Iterator[Any]:
        with original(folder, name) as file:
            yield FullDisk(file, room)

    monkeypatch.setattr(type(store.root), "create", create)
    with pytest.raises(OSError, match="No space left"):
        write_state(store.draft(2), state_of(*trained_model()), None)
    store.discard(2)
    assert store.root.names() == [good.name]
    assert store.newest() == good


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="checkpoints"):
        write_state(CheckpointStore(tmp_path / "checkpoints").draft(1), state_of(*trained_model()), None)


def test_differences_name_what_changed() -> None:
    assert DATA_ORDER.differences(replace(DATA_ORDER, fingerprint="g", num_samples=10)) == ["num_samples: 9 -> 10"]
    assert DATA_ORDER.differences(replace(DATA_ORDER, fingerprint="g")) == ["fingerprint: f -> g"]
    assert DATA_ORDER.differences(DATA_ORDER) == []


def test_names_in_the_file_outlive_names_in_the_code() -> None:
    """Checkpoints of before load here, and those of here load in the version before."""
    progress = Progress(step=3, skipped_batches=[1, 2])
    content = RunState(progress=progress, data_order=DATA_ORDER, wandb_id="w").to_json()
    assert (content["progress"]["left_out"], content["plan"]["fingerprint"]) == ([1, 2], "f")
    assert not {"skipped_batches", "data_order"} & {*content, *content["progress"]}
    assert RunState.from_json(content).progress == progress
    assert RunState.from_json({**content, "progress": {"step": 3}}).progress == Progress(step=3)
    assert RunState.from_json({**content, "teachers": "a1"}).teachers == "a1"
    del content["teachers"]
    assert RunState.from_json(content).teachers is None
