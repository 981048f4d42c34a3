"""Runs on several sources: the same for any number of processes, in exact proportions, with the loss that is meant."""

import json
from pathlib import Path

import pytest
import torch
from distributed.ranks import run_ranks
from reference.info_nce import info_nce
from tiny import losses, metrics, tiny_config
from tiny_clip import write_mixed_sets

from clipx.config.schema import RunConfig
from clipx.distributed.runtime import start_runtime
from clipx.objectives.contrastive import sample_of_pair
from clipx.train.build import build_run
from clipx.train.metrics.step_metrics import RankStats, StopOrSave
from clipx.train.trainer import train

PLAIN = ("data.augment.color_jitter=null", "data.augment.grayscale=0")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with three captions in JSON, and pictures with a class, a few of each bad."""
    folder = tmp_path_factory.mktemp("sets")
    return write_mixed_sets(folder)


def mixture(run_dir: Path, sets: Path, *overrides: str) -> RunConfig:
    sources = {
        "captioned": {"shards": [str(sets / "captioned")], "weight": 3, "caption_key": "json:captions"},
        "labelled": {
            "shards": [str(sets / "labelled")],
            "caption_key": "cls",
            "class_names": ["cat", "dog", "emu", "fox"],
            "templates": ["a photo of a {c}", "the {c}"],
            "equal_captions": "ignored",
        },
    }
    return tiny_config(
        run_dir,
        "none",
        "data.train=null",
        f"data.sources={json.dumps(sources)}",
        "data.captions_per_image=2",
        "data.max_bad_fraction=0.1",
        "data.augment={color_jitter: {}, grayscale: 0.2, flip: 0.5}",
        "steps=20",
        *overrides,
    )


TOPOLOGIES = {"one": (1, 24, 0), "two": (2, 4, 1), "three": (3, 8, 2)}  # W, micro-batch, loader processes


@pytest.mark.parametrize("topologies", [("one",), pytest.param(("one", "two", "three"), marks=pytest.mark.full)])
def test_curve_counts_and_quarantine_are_the_same_for_any_number_of_processes(
    topologies: tuple[str, ...], sets: Path, tmp_path: Path
) -> None:
    for name in topologies:
        world_size, micro_batch_size, workers = TOPOLOGIES[name]
        options = (f"micro_batch_size={micro_batch_size}", f"data.workers={workers}")
        assert run_ranks(train, world_size, mixture(tmp_path / name, sets, *options)) == [0] * world_size
    one, *others = (tmp_path / name for name in topologies)
    for other in others:
        assert losses(other) == pytest.approx(losses(one), abs=1e-5)
        assert quarantine(other) == quarantine(one)
    assert losses(one)[-1] < losses(one)[0]
    last = metrics(one)[-1]
    assert (last["samples/captioned"], last["samples/labelled"]) == (180, 60)  # 12 pictures a step, 3 : 1
    assert (last["epoch/captioned"], last["epoch/labelled"]) == (2.0, 1.5)
    assert quarantine(one) == {("captioned", "000007"), ("labelled", "000003")}
    assert (last["bad_samples"], last["bad_samples/captioned"], last["bad_samples/labelled"]) == (2, 1, 1)


def quarantine(run_dir: Path) -> set[tuple[str, str]]:
    rows = [json.loads(line) for line in (run_dir / "quarantine.jsonl").read_text().splitlines()]
    return {(row["source"], row["key"]) for row in rows}


def test_all_captions_are_positives_and_equal_classes_no_negatives(sets: Path, tmp_path: Path) -> None:
    config = mixture(tmp_path / "run", sets, "data.workers=0", "data.sources.labelled.weight=3", *PLAIN)
    with start_runtime(config) as runtime:
        run = build_run(config, runtime)
        batch = next(run.batches())
        towers = run.stepper.objective.model
        with torch.no_grad():
            embeddings = towers(batch, seed=0)
        labelled_B = batch.source_I.repeat_interleave(2) == 1
        groups_B = batch.group_id_B
        assert groups_B is not None
        classes_B = torch.where(labelled_B, groups_B, -1 - sample_of_pair(batch))
        expected = info_nce(
            embeddings.image_BD,
            embeddings.text_BD,
            embeddings.logit_scale,
            ids_G=classes_B,
            positive_ids_G=sample_of_pair(batch),
        )
        plain = info_nce(embeddings.image_BD, embeddings.text_BD, embeddings.logit_scale)
        loss = run.stepper(batch, step=0, requests=StopOrSave(), stats=RankStats()).read().loss
    assert len(set(classes_B[labelled_B].tolist())) <= 4 < int(labelled_B.sum())
    assert (len(batch), len(batch.images_IHWC)) == (24, 12)
    assert torch.equal(embeddings.image_BD[0], embeddings.image_BD[1])
    assert loss == pytest.approx(float(expected), abs=1e-5)
    assert abs(loss - float(plain)) > 0.01


def test_a_changed_weight_is_a_changed_order(sets: Path, tmp_path: Path) -> None:
    options = ("data.workers=0", "checkpoint.every_steps=5")
    assert run_ranks(train, 1, mixture(tmp_path / "run", sets, *options, "steps=5")) == [0]
    config = mixture(tmp_path / "run", sets, *options, "data.sources.labelled.weight=2")
    with pytest.raises(Exception, match=r"weights: \{'captioned': 3.0, 'labelled': 1.0\} -> .*data.allow_change=true"):
        run_ranks(train, 1, config)
