"""Whatever the files of a run folder hold, there is a page, and nothing in them is markup."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clipx.report.compare import comparison_page, final_rows, read_runs
from clipx.report.recorded import read_run
from clipx.report.run_page import run_page

NAMES = (
    *("step", "loss", "samples_seen", "elapsed_s", "forward_s", "samples_per_s", "lr", "hosts", "began_at", "reason"),
    *("host", "ranks", "key", "back_to", "left_out", "z_score", "name", "intervals", "acc1", "status", "versions"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just("<script>") | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=4,
)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6).flatmap(
        lambda row: st.integers(0, 10**9).map(lambda step: {**row, "step": step})
    )
    | VALUES,
    max_size=3,
)


def write(folder: Path, files: dict[str, list[Any]]) -> None:
    folder.mkdir()
    (folder / "eval").mkdir()
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i, row in enumerate(files["metrics"]):
        (folder / "eval" / f"a-{i:08d}.json").write_text(json.dumps(row))
        (folder / "status.json").write_text(json.dumps(row))


@settings(max_examples=50)
@given(st.fixed_dictionaries(dict.fromkeys(("metrics", "starts", "rollbacks", "quarantine"), ROWS)))
def test_there_is_always_a_page(files: dict[str, list[Any]]) -> None:
    with TemporaryDirectory() as place:
        folders = [Path(place) / "a", Path(place) / "b"]
        for folder in folders:
            write(folder, files)
        html = run_page(read_run(folders[0]))
        runs = read_runs(folders)
        assert all(len(row) == 3 for row in final_rows(runs))
    for page in (html, comparison_page(runs)):
        assert "<script" not in page
