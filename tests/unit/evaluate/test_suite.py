"""Suites: which sets are there, what stands for each, their mean, and the files that others read."""

import csv
import io
import json
import math

import numpy as np
import pytest
from tiny_clip import picture, tiny_pretrained, write_classification_set, write_retrieval_set

from clipx.config.suite import SuiteConfig, SuiteSet, load_suite
from clipx.data.suite_sets import faults, places_of, suite_places, without
from clipx.errors import InputError
from clipx.evaluate.options import EvaluateOptions, Evaluation
from clipx.evaluate.result_files import ModelName, clip_benchmark_file, csv_text, datacomp_line
from clipx.evaluate.suite import SetResult, evaluate_sets, mean_of, present_places

NAMES = ["cat", "dog", "fox"]
MODEL = ModelName(model="vit_x", pretrained="runs/x")
SUITE = """
name: two sets
sets:
  vtab/pets: {data: wds_pets_test, title: Pets, type: classification, main_metric: mean_per_class_recall}
  retrieval/few: {data: wds_few, main_metric: mean_recall@5}
"""


@pytest.fixture
def root(tmp_path):
    write_classification_set(tmp_path / "wds_pets", [0, 1, 2, 0, 2], class_names=NAMES)
    write_retrieval_set(tmp_path / "wds_few", [[f"picture {i}"] for i in range(6)])
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path


@pytest.fixture
def results(root):
    places = suite_places(load_suite(str(root / "suite.yaml")), root)
    return list(evaluate_sets(tiny_pretrained(), places, EvaluateOptions(resamples=200), group=None))


def test_the_sets_of_datacomp_are_38_with_its_main_figures():
    suite = load_suite("datacomp38")
    assert len(suite.sets) == 38
    metrics = {key: wanted.main_metric for key, wanted in suite.sets.items()}
    assert sum(metric == "acc1" for metric in metrics.values()) == 27
    others = {key: metric for key, metric in metrics.items() if metric != "acc1"}
    assert others == {
        "vtab/caltech101": "mean_per_class_recall",
        "fgvc_aircraft": "mean_per_class_recall",
        "vtab/flowers": "mean_per_class_recall",
        "vtab/pets": "mean_per_class_recall",
        "retrieval/flickr30k": "mean_recall@1",
        "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mean_recall@1",
        "misc/winogavil": "jaccard_score_10-12",
        "wilds/iwildcam": "F1-macro_all",
        "wilds/fmow": "acc_worst_region",
        "fairness/dollar_street": "acc_top5_wg",
        "fairness/geode": "acc_wg",
    }
    assert len({wanted.title for wanted in suite.sets.values()}) == 38


def test_a_suite_is_evaluated_set_by_set(root, results):
    pets, few = results
    assert (pets.place.path, few.place.path) == (str(root / "wds_pets"), str(root / "wds_few"))  # without _test
    assert pets.main_figure == pets.evaluation.metrics["mean_per_class_recall"]
    metrics = few.evaluation.metrics
    assert few.main_figure == (metrics["image_to_text_recall@5"] + metrics["text_to_image_recall@5"]) / 2
    mean = mean_of(results)
    assert mean.figure == pytest.approx((pets.main_figure + few.main_figure) / 2)
    assert mean.interval[0] < mean.figure < mean.interval[1]


def result(name, values, figure=0.5):
    evaluation = Evaluation(task="zeroshot_classification", metrics={"acc1": figure}, resampled={"acc1": values})
    (place,) = places_of([name])
    return SetResult(place=place, name=name, main_metric="acc1", evaluation=evaluation)


def test_of_sets_with_one_random_number_the_mean_varies_as_if_they_had_their_own():
    values = np.random.default_rng(0).normal(0.5, 0.1, size=1000)
    low, high = mean_of([result(str(i), values) for i in range(4)]).interval
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 2, rel=0.1)
    assert mean_of([result("a", values), result("b", np.array([]))]).interval is None
    assert mean_of([result("a", values), result("b", np.full(1000, np.nan))]).interval is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"data": "wds_few", "type": "classification"}, "is a retrieval set, not a classification set as bad must be"),
        ({"data": "wds_few", "main_metric": "acc1"}, "clipx does not compute acc1, its main metric"),
        ({"data": "wds_pets", "main_metric": "acc_worst_region"}, "bad: clipx does not compute acc_worst_region"),
        ({"data": "wds_pets", "split": "train"}, "no split 'train'"),
    ],
)
def test_a_set_that_cannot_be_evaluated_is_said_at_the_start_or_left_out(root, wanted, message):
    suite = SuiteConfig(name="s", sets={"good": SuiteSet(data="wds_few"), "bad": SuiteSet(**wanted)})
    places = suite_places(suite, root)
    with pytest.raises(InputError, match="1 of 2 sets are missing; --skip-missing evaluates the others") as caught:
        present_places(places, skip_missing=False, group=None)
    assert message in str(caught.value)
    present, missing = present_places(places, skip_missing=True, group=None)
    assert [place.key for place in present] == ["good"]
    assert list(missing) == ["bad"]
    with pytest.raises(InputError, match=message):
        without(places[1:], faults(places[1:]), skip_missing=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s", "sets is empty"),
        ("name: s\nsets: {a: {}}", "sets.a.data is missing"),
        ("name: s\nsets: {a: {data: x, metric: acc1}}", "unknown key; the nearest known is sets.a.main_metric"),
        ("sets: {a: {data: x}}", "name is missing"),
        ("[a]", "the top level is a list"),
    ],
)
def test_a_suite_that_breaks_a_rule_says_which(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_suite(str(tmp_path / "s.yaml"))


def test_an_unknown_suite_names_those_of_clipx():
    with pytest.raises(InputError, match=r"--suite datacomp: neither a YAML file nor .* \(datacomp38\)"):
        load_suite("datacomp")
    with pytest.raises(InputError, match=r"none.yaml: cannot read"):
        load_suite("none.yaml")


def test_datacomp_reads_a_line_for_each_set(results):
    pets, few = (json.loads(datacomp_line(one)) for one in results)
    assert pets.keys() == {"key", "dataset", "metrics"}
    assert (pets["key"], pets["dataset"]) == ("vtab/pets", "Pets")
    assert pets["metrics"]["main_metric"] == pets["metrics"]["mean_per_class_recall"]
    metrics = few["metrics"]
    assert metrics["main_metric"] == (metrics["text_retrieval_recall@5"] + metrics["image_retrieval_recall@5"]) / 2
    assert metrics["main_metric"] == metrics["mean_recall@5"]


def test_clip_benchmark_reads_a_file_for_each_set(results):
    name, content = clip_benchmark_file(results[1], MODEL)
    assert name == "retrieval_few_runs_x_vit_x_en_zeroshot_retrieval.json"
    read = json.loads(content)
    metrics = read.pop("metrics")
    assert read == {
        "dataset": "wds/retrieval/few",
        "model": "vit_x",
        "pretrained": "runs/x",
        "task": "zeroshot_retrieval",
        "language": "en",
    }
    assert set(metrics) == {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)}
    assert metrics["text_retrieval_recall@1"] == results[1].evaluation.metrics["image_to_text_recall@1"]


def test_the_table_has_clip_benchmark_s_columns_and_intervals_after_them(results):
    rows = list(csv.DictReader(io.StringIO(csv_text([(MODEL, one) for one in results]))))
    assert [row["dataset"] for row in rows] == ["wds/vtab/pets", "wds/retrieval/few"]
    assert rows[0]["model_fullname"] == "vit_x runs/x"
    assert float(rows[0]["acc1_low"]) <= float(rows[0]["acc1"]) <= float(rows[0]["acc1_high"])
    assert rows[0]["text_retrieval_recall@1"] == "" != rows[1]["text_retrieval_recall@1"]
    columns = list(rows[0])
    assert columns.index("model_fullname") < min(columns.index(name) for name in columns if name.endswith("_low"))


def test_a_figure_that_is_no_number_is_null():
    one = result("a", np.array([]), figure=math.nan)
    assert json.loads(datacomp_line(one))["metrics"] == {"acc1": None, "main_metric": None}
    assert json.loads(clip_benchmark_file(one, MODEL)[1])["metrics"] == {"acc1": None}


def test_the_f1_of_wilds_is_scikit_learn_s(tmp_path):
    from sklearn.metrics import f1_score

    pretrained = tiny_pretrained()
    names = [f"thing {i}" for i in range(6)]
    scores = pretrained.encode_image([picture(i) for i in range(30)]) @ pretrained.encode_text(names).T
    labels = [i % 4 if i % 3 else int(scores[i].argmax()) for i in range(30)]
    write_classification_set(tmp_path, labels, class_names=names, templates=["{c}"])
    (one,) = evaluate_sets(pretrained, places_of([str(tmp_path)]), EvaluateOptions(), group=None)
    expected = f1_score(labels, scores.argmax(1).tolist(), average="macro", labels=sorted(set(labels)), zero_division=0)
    assert one.evaluation.figure("F1-macro_all") == pytest.approx(expected, abs=1e-12)
    assert expected > 0
