import csv
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import step
import torch
from workload import captions, make_batch, open_run

from clipx.train.build import Run


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with open_run("demo", 4, precision="fp32") as built:
        yield built


def test_open_clip_gets_what_its_own_loader_would_make(run: Run) -> None:
    batch = make_batch(run.config, 4, index=3)
    pixels, tokens = step.as_open_clip(batch, run)
    context_length = run.config.model.text.context_length
    expected = open_clip.get_tokenizer("ViT-B-32", context_length=context_length)(captions(4, seed=3000))
    assert tokens.equal(expected)
    transform = open_clip.image_transform(48, is_train=False).transforms[-1]  # its normalisation
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels, transform(batch.images_IHWC.permute(0, 3, 1, 2) / 255), atol=1e-6)


def test_sides_with_other_weights_are_not_compared(run: Run) -> None:
    batch = make_batch(run.config, 4, index=0)
    theirs = step.open_clip_model(run)
    assert step.compare(run, theirs, batch) < 1e-5
    with torch.no_grad():
        theirs.transformer.resblocks[-1].mlp.c_proj.weight.mul_(1.5)
    with pytest.raises(SystemExit, match="clipx: loss"):
        step.compare(run, theirs, batch)


def test_both_sides_take_the_same_steps(run: Run) -> None:
    """The open_clip side is a training step, with our schedule: three steps on, the losses still agree."""
    batches = [make_batch(run.config, 4, index=index) for index in range(2)]
    theirs = step.OpenClipSteps(step.open_clip_model(run), run, batches, num_steps=3, compiled=False)
    ours = step.Steps(run, batches, num_steps=3)
    assert theirs() == pytest.approx(ours(), abs=2e-4)
    assert theirs() == pytest.approx(ours(), abs=1e-3)


def test_writes_a_row_for_each_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step.main(["--model", "demo", "--batch", "4", "--repetitions", "2", "--warmup", "0", "--out", str(tmp_path)])
    with (tmp_path / "step.csv").open(newline="") as file:
        ours, theirs = csv.DictReader(file)
    assert (ours["contender"], theirs["contender"]) == ("clipx", "open_clip")
    assert float(theirs["times_open_clip_p50"]) == 1
    assert float(ours["pairs_per_s_p50"]) > 0
    assert float(ours["peak_mb"]) > 0
    assert "times_open_clip_p50" in capsys.readouterr().out
