"""What a report shows through the model: the figures are those of the evaluation, bounds hold, faults are told."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hostile import HOSTILE, assert_harmless
from shard_files import png, write_tar

from clipx.data.labelled import open_classification, open_set
from clipx.pretrained import load
from clipx.report.confusions import confusions, guess
from clipx.report.embedding_map import embedding_map, principal
from clipx.report.looked_at import evenly, look, spread
from clipx.report.pictures import pictures
from clipx.report.recorded import read_run
from clipx.report.retrieved import retrieve, retrieved
from clipx.report.write import write_report


def benchmark_set(folder: Path, names: list[str], *, retrieval: bool = False) -> Path:
    """A set of one picture of each class, or with each name as its caption."""
    members = []
    for i, name in enumerate(names):
        label = ("txt", name.encode()) if retrieval else ("cls", str(i).encode())
        members += [(f"{i:04d}.png", png(997 * i)), (f"{i:04d}.{label[0]}", label[1])]
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("\n".join(names))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}")
    if retrieval:
        (folder / "dataset_type.txt").write_text("retrieval")
    return folder


def test_the_shares_are_those_of_the_evaluation(trained: Path, scenes: Path) -> None:
    run = read_run(trained)
    found = pictures(run, most=1000)
    html = "".join(found.parts)
    assert f"{run.evaluations['seen'][-1].scores['acc1']:.1%} right (all 48 pictures)" in html
    recall = run.evaluations["found"][-1].scores["image_to_text_recall@1"]
    assert f"{recall:.1%} have one of their own as the nearest" in html
    assert found.sizes["seen"].pictures == 48
    assert found.sizes["found"].texts == found.sizes["found"].pictures > 0
    assert html.count("a map of the embeddings") == 2


def test_confusions_count_what_is_taken_for_what(trained: Path, scenes: Path) -> None:
    pretrained, dataset = load(trained), open_classification(str(scenes / "wds_scenes"))
    guesses = guess(pretrained, look(pretrained, dataset, name="seen", most=100), dataset)
    wrong = int((guesses.label_N != guesses.guess_N).sum())
    assert sum(count for _, _, count in guesses.confusions()) == wrong > 0
    counts = [count for _, _, count in guesses.confusions()]
    assert counts == sorted(counts, reverse=True)


def test_a_set_is_looked_at_in_part_and_says_so(trained: Path, scenes: Path) -> None:
    found = pictures(read_run(trained), most=20)
    assert found.sizes["seen"].pictures == 48
    assert "12 of 48 pictures, spread evenly" in "".join(found.parts)


def test_of_very_many_classes_those_with_mistakes_are_drawn(trained: Path, tmp_path: Path) -> None:
    folder = benchmark_set(tmp_path / "many", [f"class {i}" for i in range(150)])
    pretrained, dataset = load(trained), open_classification(str(folder))
    html = confusions(guess(pretrained, look(pretrained, dataset, name="many", most=500), dataset))
    assert "Confusion matrix of the 60 classes with the most mistakes, of 150" in html
    assert html.count("<rect") <= 1 + 60 * 60
    assert len(html) < 300_000


def test_a_hundred_thousand_classes_need_no_matrix_of_all_with_all(trained: Path, scenes: Path) -> None:
    pretrained, dataset = load(trained), open_classification(str(scenes / "wds_scenes"))
    guesses = guess(pretrained, look(pretrained, dataset, name="seen", most=20), dataset)
    many = replace(guesses, names=(*guesses.names, *map(str, range(100_000))))
    assert "of the 60 classes with the most mistakes, of 100,048" in confusions(many)


def test_classes_and_captions_of_strangers(trained: Path, tmp_path: Path) -> None:
    names = [HOSTILE, "b", "c"]
    sets = [benchmark_set(tmp_path / "classes", names), benchmark_set(tmp_path / "captions", names, retrieval=True)]
    found = pictures(read_run(trained), folders=sets, most=100)
    assert_harmless("".join(found.parts))


def test_what_is_missing_is_said_in_its_place(trained: Path, scenes: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        config.replace(str(scenes / "wds_scenes") + "\n", str(tmp_path / "gone") + "\n")
    )
    html = "".join(pictures(read_run(folder), most=100).parts)
    assert "seen is left out:" in html
    assert "found: found and missed" in html
    shutil.rmtree(folder / "checkpoints")
    html = "".join(pictures(read_run(folder), most=100).parts)
    assert "No pictures:" in html
    (folder / "config.yaml").unlink()
    assert "The run has no evaluation sets" in "".join(pictures(read_run(folder), most=100).parts)


def test_a_broken_picture_is_left_out_and_counted(trained: Path, tmp_path: Path) -> None:
    folder = benchmark_set(tmp_path / "set", ["a", "b", "c"])
    members = [("0.png", b"no picture"), ("0.cls", b"0"), ("1.png", png(5)), ("1.cls", b"1")]
    write_tar(folder / "test" / "0.tar", members)
    looked_at = look(load(trained), open_set(str(folder)), name="set", most=10)
    assert looked_at.how_many() == "1 of 2 pictures, spread evenly; 1 could not be decoded"
    assert len(looked_at.image_ND) == 1


def test_one_picture_and_one_caption_are_enough(trained: Path, tmp_path: Path) -> None:
    folder = benchmark_set(tmp_path / "one", ["a"], retrieval=True)
    looked_at = look(load(trained), open_set(str(folder)), name="one", most=10)
    found = retrieve(load(trained), looked_at)
    assert "100.0%" in retrieved(found)
    assert "nan" not in embedding_map(looked_at, found.text_MD)


def test_the_map_keeps_the_largest_variance_and_has_one_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(200, 6, generator=generator) * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0, 1.0])
    place_N2, explained = principal(x_ND)
    centred = x_ND.double() - x_ND.double().mean(dim=0)
    _, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(place_N2.norm(dim=0), singular[:2])
    assert explained == pytest.approx(float((singular[:2] ** 2).sum() / (singular**2).sum()))
    torch.testing.assert_close(principal(x_ND.flip(0))[0].flip(0), place_N2)
    assert principal(torch.ones(3, 4))[1] == 0.0


@pytest.mark.parametrize(("count", "most"), [(0, 5), (5, 5), (6, 5), (1000, 7), (17, 1)])
def test_a_part_is_spread_evenly_in_one_pass(count: int, most: int) -> None:
    part = spread(iter(range(count)), most)
    assert len(part) <= most
    assert len(part) >= min(count, (most + 1) // 2)
    assert len({b - a for a, b in pairwise(part)}) <= 1
    assert part[:1] == list(range(count))[:1]
    assert evenly(list(range(10)), 4) == [0, 3, 6, 9]


def test_the_report_as_a_whole(trained: Path, tmp_path: Path) -> None:
    told: list[str] = []
    path = write_report(trained, tmp_path / "r.html", on_set=told.append)
    html = path.read_text()
    assert told == ["seen", "found"]
    assert " ± " in html
    assert '<a href="#pictures">' in html
    scores = json.loads((trained / "eval" / "seen-00000006.json").read_text())
    assert f"{100 * scores['acc1']:.2f}%" in html
