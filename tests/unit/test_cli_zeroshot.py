"""`clipx zeroshot`: what it prints and writes, for one model on named sets and for several on a suite."""

import csv
import io
import json
import sys

import pytest
from tiny_clip import tiny_pretrained, write_classification_set, write_retrieval_set

from clipx import cli, pretrained
from clipx.evaluate.feature_cache import default_cache
from clipx.evaluate.run import evaluate_folder

NAMES = ["cat", "dog", "fox"]


@pytest.fixture
def clipx(monkeypatch, capsys, tmp_path):
    """Runs `clipx zeroshot ARGUMENTS`, where models are numbers: seeds of tiny ones."""
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "load", lambda path, *, device, weights: tiny_pretrained(seed=int(str(path))))
    monkeypatch.setattr(sys.modules["clipx.cli.zeroshot"], "require_model", lambda path: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["clipx", "zeroshot", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        return exit_info.value.code, output.out, output.err

    return run


@pytest.fixture
def sets(tmp_path):
    write_classification_set(tmp_path / "d" / "wds_a", [0, 1, 2, 0, 2, 1, 1], class_names=NAMES)
    write_retrieval_set(tmp_path / "d" / "wds_b", [[f"picture {i}"] for i in range(12)])
    text = "name: mine\nsets: {x/a: {data: wds_a_test, title: The A}, b: {data: wds_b}, c: {data: wds_c}}"
    (tmp_path / "suite.yaml").write_text(text)
    return ["d/wds_a", "d/wds_b"]


def test_one_model_prints_tables_and_writes_the_same_json_as_ever(clipx, sets, tmp_path):
    code, out, err = clipx("0", *sets, "--json", "new/figures.json", "--cache", "kept")
    assert (code, err) == (0, "")
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    expected = {name: evaluate_folder(tiny_pretrained(), tmp_path / name, batch_size=256, group=None) for name in sets}
    assert figures == expected
    for word in ("wds_a", "wds_b", "acc1", "@1", f"{figures['d/wds_a']['acc1']:.2%} ("):
        assert word in out
    assert "mean of" not in out
    assert len(list((tmp_path / "kept").iterdir())) == 3, "pictures of two sets, and texts of one"
    assert not (tmp_path / "cache").exists()
    assert clipx("0", "d/wds_a", "--cache", "none", "--resamples", "0")[1].count("(") == 0
    assert not (tmp_path / "cache").exists()
    assert clipx("0", "d/wds_a")[0] == 0
    assert default_cache() == tmp_path / "cache" / "features"
    assert len(list(default_cache().iterdir())) == 1


def test_files_are_there_though_nobody_reads_the_tables(clipx, sets, tmp_path, monkeypatch):
    def gone(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr("clipx.cli.zeroshot_tables.print_results", gone)
    assert clipx("0", "d/wds_a", "--json", "f.json", "--csv", "f.csv", "--cache", "none")[0] == 1
    assert (tmp_path / "f.json").exists()
    assert (tmp_path / "f.csv").exists()


def test_several_models_on_a_suite(clipx, sets, tmp_path):
    files = ("--json", "f.json", "--csv", "f.csv", "--results", "r", "--cache", "none")
    code, out, err = clipx("0", "--also", "1", "--suite", "suite.yaml", "--data-root", "d", "--skip-missing", *files)
    assert code == 0
    assert err.startswith("left out: d/wds_c: ")
    assert err.count("\n") == 1
    for word in ("mine", "The A", "mean of 2 sets", "mean_recall@1"):
        assert word in out
    figures = json.loads((tmp_path / "f.json").read_text())
    assert list(figures) == ["0", "1"]
    for of_model in figures.values():
        a, b = of_model["sets"]["x/a"], of_model["sets"]["b"]
        assert a["intervals"].keys() == a["metrics"].keys() - {"F1-macro_all"}
        assert (b["main_metric"], b["main_figure"]) == ("mean_recall@1", b["metrics"]["mean_recall@1"])
        assert of_model["mean"]["figure"] == pytest.approx((a["main_figure"] + b["main_figure"]) / 2)
        assert of_model["mean"]["sets"] == 2
    assert figures["0"] != figures["1"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "f.csv").read_text())))
    assert [(row["dataset"], row["pretrained"]) for row in rows] == [
        ("wds/x/a", "0"),
        ("wds/b", "0"),
        ("wds/x/a", "1"),
        ("wds/b", "1"),
    ]
    for model in "01":
        lines = [json.loads(line) for line in (tmp_path / "r" / model / "eval_results.jsonl").read_text().splitlines()]
        assert [line["key"] for line in lines] == ["x/a", "b"]
        assert len(list((tmp_path / "r" / model).glob("*.json"))) == 2
    assert clipx("0", "--also", "1", "--suite", "suite.yaml", "--data-root", "d", "--skip-missing", *files)[0] == 0


def test_what_a_broken_suite_has_found_is_not_lost(clipx, sets, tmp_path, monkeypatch):
    shard = tmp_path / "d" / "wds_b" / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    code, _, err = clipx("0", *sets, "--results", "r", "--cache", "none")
    assert code == 2
    assert "wds_b" in err
    (line,) = (tmp_path / "r" / "eval_results.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "wds_a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("0", "no evaluation set given: name at least one SET, or a suite of them with --suite"),
        ("0 d/wds_a --data-root d", "--data-root d is for the sets of --suite"),
        ("0 d/wds_a d/none", "d/none"),
        ("0 --suite none", "--suite none: neither a YAML file nor a suite of clipx's own (datacomp38)"),
        ("0 d/wds_a --split train", "d/wds_a has no split 'train'"),
        ("0 d/wds_a --split tset", "d/wds_a has no split 'tset': it has test; did you mean 'test'?"),
        ("0 d/wds_a --csv d", "--csv d: cannot be written: Is a directory"),
        ("0 d/wds_a --csv notes.txt", "--csv notes.txt: a file is there that is no such table"),
        ("0 d/wds_a --json notes.txt", "--json notes.txt: a file is there that holds no JSON"),
        ("0 d/wds_a --json a --csv ./a", "--csv a is the file of --json, too; name another"),
        ("0 d/wds_a --cache notes.txt", "--cache notes.txt cannot be used: notes.txt is no folder"),
        ("0 d/wds_a --probe --seeds 2", "--seeds 2 is for --shots; add it, or leave --seeds out"),
        ("0 d/wds_a --results mine", "--results mine/eval_results.jsonl: a file is there that holds no JSON"),
        ("0 d/wds_a e/wds_a --results r", "--results: the sets d/wds_a and e/wds_a would both write files called a;"),
        ("r/x d/wds_a --also r_x --results r", "--results: the models r/x and r_x would both write files called r_x;"),
        ("0 d/wds_a --results suite.yaml", "--results suite.yaml cannot be used: suite.yaml is no folder"),
        ("0 d/wds_a --batch-size 0", "Invalid value for '--batch-size'"),
    ],
)
def test_bad_input_is_one_line(clipx, sets, tmp_path, arguments, message):
    (tmp_path / "notes.txt").write_text("mine\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "eval_results.jsonl").write_text("mine\n")
    write_classification_set(tmp_path / "e" / "wds_a", [0, 1, 2], class_names=NAMES)
    code, out, err = clipx("--cache", "none", *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"clipx: error: {message}")
    assert err.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text() == "mine\n"


def test_all_missing_sets_of_a_suite_are_listed(clipx, sets):
    code, out, err = clipx("0", "--suite", "datacomp38", "--data-root", "d")
    assert (code, out) == (2, "")
    assert err.count("\n") == 38
    code, _, err = clipx("0", "--suite", "suite.yaml", "--data-root", "d")
    assert code == 2
    assert err.splitlines()[1] == "clipx: error: 1 of 3 sets are missing; --skip-missing evaluates the others"


def test_like_clip_benchmark_reaches_the_evaluation(clipx, sets):
    assert clipx("0", "d/wds_a", "--like", "clip_benchmark", "--cache", "none")[1].count("nan%") == 1  # three classes
