"""The page of a run in every state: what it says, and what it does with the strings of strangers."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE, assert_harmless
from tiny import tiny_config

from clipx.report.curves import comparable_loss, smoothed, time_split, wide
from clipx.report.recorded import read_run
from clipx.report.run_page import run_page, spent
from clipx.report.setup import chosen_keys, shown
from clipx.report.write import write_report


def page_of(folder: Path, **files: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return run_page(read_run(folder))


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_complete_run(trained: Path) -> None:
    html = run_page(read_run(trained))
    for told in (
        "<dd>complete</dd>",
        "<dd>6 of 6</dd>",
        "<figcaption>Loss</figcaption>",
        "<figcaption>seen</figcaption>",
        "<figcaption>Where the time goes</figcaption>",
        "started again at step 4",
        "No step was skipped, no loss spike, no bad sample.",
        "optim.warmup_steps",
        "<summary>The whole config</summary>",
        "torch",
        "All other figures",
    ):
        assert told in html, told
    assert "Failed" not in html


def test_a_run_that_trains(tmp_path: Path) -> None:
    html = page_of(tmp_path / "a", metrics_jsonl=lines({"step": 1, "samples_seen": 8, "loss": 2.0, "elapsed_s": 1.0}))
    assert "No end is recorded: the run trains, or was killed; its last figures are of 20" in html
    assert "No evaluation has been written yet." in html
    assert "The config cannot be read:" in html


def test_a_run_without_a_row(tmp_path: Path) -> None:
    html = page_of(tmp_path / "a", metrics_jsonl="")
    assert "No figures yet" in html
    assert "<dd>no figures yet</dd>" in html


def test_a_failed_run_says_why_and_what_it_met(tmp_path: Path) -> None:
    metrics = lines({"step": 5, "samples_seen": 40, "loss": None, "grad_norm": None, "skipped_steps": 3})
    failure = {"status": "failed", "step": 5, "reason": f"rank 0: {HOSTILE}"}
    spike = {"step": 4, "loss": 9.5, "z_score": 12.25, "back_to": 2, "left_out": [2, 3]}
    bad = {"step": 3, "source": "train", "shard": "0.tar", "key": "a", "reason": "image of 12 bytes is cut"}
    html = page_of(
        tmp_path / "a",
        metrics_jsonl=metrics,
        status_json=json.dumps(failure),
        rollbacks_jsonl=lines(spike),
        quarantine_jsonl=lines(bad, bad | {"key": HOSTILE, "reason": "image of 7 bytes is cut"}, {"odd": 1}),
        starts_jsonl=lines({"began_at": HOSTILE, "step": 0, "hosts": [{"host": HOSTILE}, 3]}, {"step": 4}),
    )
    assert "Failed at step 5." in html
    assert "3 steps were skipped because loss or gradient was not finite; 1 loss spikes were rolled back; 3 bad" in html
    assert "image of N bytes is cut</th>" in html
    assert '<td class="n">12.25</td>' in html
    assert_harmless(html)


def test_the_held_out_loss_stands_beside_that_of_training_and_is_better_the_lower(tmp_path: Path) -> None:
    (tmp_path / "a" / "eval").mkdir(parents=True)
    for step, loss in ((10, 1.5), (20, 1.25), (30, 1.75)):
        result = {"step": step, "name": "val", "loss": loss, "ema_loss": 2 * loss, "intervals": {}, "note": "2 batches"}
        (tmp_path / "a" / "eval" / f"val-{step:08}.json").write_text(json.dumps(result))
    rows = [{"step": step, "samples_seen": 8 * step, "loss": 1.0} for step in (10, 20, 30)]
    html = page_of(tmp_path / "a", metrics_jsonl=lines(*rows))
    of_training, _, rest = html.partition("<figcaption>Loss</figcaption>")[2].partition("<figcaption>")
    assert "<title>val, held out: 20, 1.25</title>" in of_training
    assert "<figcaption>val</figcaption>" in rest or rest.startswith("val</figcaption>")
    row = r'<th scope="row">val</th><td[^>]*>loss</td><td[^>]*>1.75</td><td></td><td[^>]*>30</td><td[^>]*>1.25</td>'
    assert re.search(row, html), html[html.index("The last and the best") :][:900]
    assert "175.00%" not in html


@pytest.mark.parametrize(
    ("overrides", "title", "expected"),
    [
        ([], "Loss", None),
        (["data.captions_per_image=2"], "training, less log 2", 5 - math.log(2)),
        (
            ["data.captions_per_image=2", "loss.type=sigmoid", "model.init_logit_bias=-10"],
            "training, divided by 2",
            2.5,
        ),
    ],
)
def test_held_out_and_training_losses_are_of_one_kind(
    tmp_path: Path, overrides: list[str], title: str, expected: float | None
) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "val-00000010.json").write_text(json.dumps({"step": 10, "name": "val", "loss": 1.5}))
    (tmp_path / "metrics.jsonl").write_text(lines({"step": 10, "loss": 7.0, "loss_contrastive": 5.0}))
    config = tiny_config(tmp_path, tmp_path, *overrides)
    run = replace(read_run(tmp_path), config=config)
    assert comparable_loss(run) == {title if expected else "training": [(10.0, expected or 5.0)]}
    assert "val, held out: 10, 1.5" not in run_page(run).partition("<figcaption>Loss<")[2].partition("<figcaption>")[0]
    alone = replace(run, rows=[{"step": 10, "loss": 5.0}])
    assert comparable_loss(alone) == ({title: [(10.0, expected)]} if expected else {})
    assert comparable_loss(replace(run, evaluations={})) == {}


def test_hostile_names_of_evaluations_figures_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "<b>run"
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "x-00000001.json").write_text(json.dumps({"step": 1, "name": HOSTILE, HOSTILE: 0.5}))
    html = page_of(folder, metrics_jsonl=lines({"step": 1, HOSTILE: 1.0}, {"step": 2, HOSTILE: 2.0}))
    assert_harmless(html)
    assert "<b>run" not in html


def test_the_report_stands_in_the_run_folder_and_replaces_itself(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    for _ in range(2):
        assert write_report(folder, most_pictures=0) == folder / "report.html"
    assert write_report(folder, tmp_path / "new" / "a.html", most_pictures=0).is_file()


def test_secrets_of_a_config_stay_out(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("index: null", "index: https://me:s3cr3tword@host/i", 1))
    html = run_page(read_run(folder))
    assert "https://me:REDACTED@host/i" in html
    assert "s3cr3tword" not in html


def test_keys_that_are_not_at_their_default(trained: Path) -> None:
    config = read_run(trained).config
    chosen = {key: (value, default) for key, value, default in chosen_keys(config)}
    assert chosen["steps"] == (6, "null")
    assert chosen["optim.lr"] == (1e-3, "0.0005")
    assert chosen["global_batch_size"] == (24, "has none")
    assert chosen["evaluate.seen.every_steps"] == (2, "0")
    assert "seed" not in chosen
    assert "optim.type" not in chosen


def test_a_section_of_another_type_and_one_that_is_off_by_default(trained: Path) -> None:
    from clipx.config.load import load_config

    changed = ["loss.type=sigmoid", "model.init_logit_bias=-10", "spikes={}"]
    config = load_config(trained / "config.yaml", changed)
    chosen = {key: (value, default) for key, value, default in chosen_keys(config)}
    assert chosen["loss.type"] == ("sigmoid", "info_nce")
    assert chosen["spikes"] == ("given", "null")


def test_sections_and_numbers_in_one_mapping(trained: Path) -> None:
    from clipx.config.load import load_config

    config = load_config(trained / "config.yaml", ["data.caption_key={txt: 2, json:a: {}, json:b: {sentence: 0}}"])
    chosen = {key: (value, default) for key, value, default in chosen_keys(config) if key.startswith("data.caption")}
    assert chosen == {
        "data.caption_key.txt": (2, "has none"),
        "data.caption_key.json:a": ("given", "has none"),
        "data.caption_key.json:b.sentence": (0, "0.5"),
    }


def test_values_as_they_stand_in_a_config() -> None:
    assert shown([None, True, {"a": 1}]) == "[null, true, {a: 1}]"
    assert len(shown("x" * 1000)) == 403


def test_the_time_of_a_row_is_divided_without_rest(tmp_path: Path) -> None:
    row = {"step": 1, "elapsed_s": 10.0, "data_wait_s": 2.0, "forward_s": 1.0, "backward_s": 3.0, "pause_s": 1.0}
    page_of(tmp_path / "a", metrics_jsonl=lines(row, {"step": 2, "elapsed_s": 0.0}, {"step": 3}))
    run = read_run(tmp_path / "a")
    assert {name: points[0][1] for name, points in time_split(run).items()} == {
        "computing": 40.0,
        "waiting for data": 20.0,
        "saving and evaluating": 10.0,
        "rest": 30.0,
    }
    assert spent(run) == "10 s"


def test_the_running_median_passes_over_peaks_and_gaps() -> None:
    points = [(float(i), 1.0) for i in range(200)]
    points[50] = (50.0, 1000.0)
    points[60] = (60.0, float("nan"))
    middle, rows = smoothed(points)
    assert rows == 5
    assert {y for _, y in middle} == {1.0}
    assert middle[-1][0] == 199.0
    assert smoothed(points[:59]) == ([], 1)
    assert len(smoothed([(float(i), 1.0) for i in range(50_000)])[0]) <= 402


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 100], True), ([1, 2], False), ([0, 100], False), ([float("nan"), 1, 90], True), ([], False)],
)
def test_when_an_axis_is_logarithmic(values: list[float], expected: bool) -> None:
    assert wide(values) is expected
