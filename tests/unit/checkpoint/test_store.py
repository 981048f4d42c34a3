import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from clipx.checkpoint.state import DataPlanRecord, Progress, RunState
from clipx.checkpoint.store import (
    apply_retention,
    aside_folder,
    discard_unfinished,
    list_checkpoints,
    load_state,
    load_tensors,
    load_weights,
    newest_checkpoint,
    publish,
    save_tensors,
    set_aside,
    verify,
)
from clipx.config.optim import AdamWConfig
from clipx.errors import InputError
from clipx.optim.optimizers import build_optimizer

PLAN = DataPlanRecord(
    fingerprint="f", num_shards=2, num_samples=9, lanes=4, shuffle_window=64, global_batch_size=8, seed=0
)


def trained_model(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width))
    optimizer = build_optimizer(AdamWConfig(lr=0.1), model)
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def save(run_dir: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    aside = aside_folder(run_dir, step)
    save_tensors(aside, model, optimizer)
    state = RunState(progress=Progress(step=step, next_batch=step), plan=PLAN, wandb_id="w", versions={"torch": "2"})
    return publish(aside, state, "seed: 0\n")


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained_model()
    folder = save(tmp_path, 7, model, optimizer)
    other, other_optimizer = trained_model()
    load_tensors(folder, other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    before, after = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(before[i][name], after[i][name]) for i in before for name in before[i])
    state = load_state(folder)
    assert (state.progress.step, state.plan, state.wandb_id) == (7, PLAN, "w")
    bare, _ = trained_model()
    load_weights(folder, bare)
    assert torch.equal(bare[0].weight, model[0].weight)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_broken_newest_is_named_and_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = trained_model()
    good, broken = (save(tmp_path, step, model, optimizer) for step in (1, 2))
    victim = broken / ("manifest.json" if damage == "manifest" else "__0_0.distcp")
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[-1:]
    if damage in ("remove", "manifest"):
        victim.unlink()
    else:
        victim.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == good
    assert str(broken) in caplog.text
    set_aside(tmp_path, after_step=1, reason="broken")
    assert list_checkpoints(tmp_path) == [good]
    assert (tmp_path / "checkpoints" / f"broken-{broken.name}").is_dir()


def test_an_unfinished_save_is_no_checkpoint(tmp_path: Path) -> None:
    save_tensors(aside_folder(tmp_path, 3), *trained_model())
    assert newest_checkpoint(tmp_path) is None
    discard_unfinished(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_manifest_covers_every_file(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, *trained_model())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert verify(folder) is None


def test_retention_keeps_the_last_and_every_mth(tmp_path: Path) -> None:
    model, optimizer = trained_model()
    for step in (2, 3, 4, 6, 7, 8):
        save(tmp_path, step, model, optimizer)
    apply_retention(tmp_path, keep_last=2, keep_every=3)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == [f"step-0000000{step}" for step in (3, 6, 7, 8)]


def test_a_model_of_another_shape_is_one_line(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, *trained_model(width=3))
    model, optimizer = trained_model(width=5)
    with pytest.raises(InputError, match="does not fit the model of this config") as caught:
        load_tensors(folder, model, optimizer)
    assert "\n" not in str(caught.value)


def test_a_refusing_disk_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="checkpoints"):
        save_tensors(aside_folder(tmp_path, 1), *trained_model())


def test_differences_name_what_changed() -> None:
    other = DataPlanRecord(**{**PLAN.__dict__, "fingerprint": "g", "num_samples": 10})
    assert PLAN.differences(other) == ["num_samples: 9 -> 10"]
    assert PLAN.differences(DataPlanRecord(**{**PLAN.__dict__, "fingerprint": "g"})) == ["fingerprint: f -> g"]
    assert PLAN.differences(PLAN) == []
