"""Classes of whatever a person points at: numbers as from Python, files and pages that say the same."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_clip import encoded, picture, tiny_pretrained

from clipx.data.inputs import Inputs, open_inputs
from clipx.errors import InputError
from clipx.pretrained import Pretrained
from clipx.use import classified_page
from clipx.use.classified import Classified, joined
from clipx.use.classified_files import require_own_csv, write_csv, write_json
from clipx.use.classified_page import write_classified_page
from clipx.use.classify import ClassifyOptions, classify_inputs
from clipx.use.reading import LeftOut

if TYPE_CHECKING:
    from browser import Browser

NAMES = ["red, round", "<b>green</b>", "blue", "black"]
NUM_PICTURES = 11


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return tiny_pretrained()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures 00.png to 10.png, and two files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(NUM_PICTURES):
        (folder / f"{i:02}.png").write_bytes(encoded(picture(i)))
    (folder / "05a.jpg").write_bytes(b"no picture")
    (folder / "99.png").touch()
    return folder


@pytest.fixture(scope="module")
def inputs(folder: Path) -> Inputs:
    return open_inputs([str(folder)])


def classified(pretrained: Pretrained, inputs: Inputs, **options: object) -> Classified:
    return classify_inputs(pretrained, inputs, pretrained.class_embeddings(NAMES), ClassifyOptions(**options))


class TestClassify:
    @pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 1, "top": 2}, {"multi": True}])
    def test_every_picture_has_the_classes_that_python_gives(
        self, pretrained: Pretrained, inputs: Inputs, options: dict[str, object]
    ) -> None:
        found = classified(pretrained, inputs, **{"threshold": 0.0} | options)
        expected = pretrained.classify(
            [picture(i) for i in range(NUM_PICTURES)], NAMES, multi="multi" in options, top=options.get("top", 5)
        )
        assert [item.key for item in found] == [f"{i:02}.png" for i in range(NUM_PICTURES)]
        assert [item.row for item in found] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
        for item, row in zip(found, expected, strict=True):
            assert [label.name for label in item.labels] == list(row)
            assert [label.probability for label in item.labels] == pytest.approx(list(row.values()), rel=1e-5)
            image_D = pretrained.encode_image(picture(int(item.key[:2])))[0]
            text_D = pretrained.class_embeddings([*NAMES]).embedding_CD[NAMES.index(item.labels[0].name)]
            assert item.labels[0].cosine == pytest.approx(float(image_D @ text_D), abs=1e-6)

    def test_what_is_no_picture_is_left_out_with_its_reason(self, pretrained: Pretrained, inputs: Inputs) -> None:
        found = classified(pretrained, inputs, batch_size=2)
        assert [(row.row, Path(row.name).name, row.reason) for row in found.left_out] == [
            (6, "05a.jpg", "unreadable picture"),
            (12, "99.png", "unreadable picture"),
        ]
        assert found.reasons() == {"unreadable picture": 2}

    def test_a_block_without_pictures_is_none(self, pretrained: Pretrained, folder: Path) -> None:
        found = classified(pretrained, open_inputs([str(folder / "99.png"), str(folder / "03.png")]), batch_size=1)
        assert [item.key for item in found] == [str(folder / "03.png")]

    def test_below_the_threshold_is_no_class(self, pretrained: Pretrained, inputs: Inputs) -> None:
        whole = classified(pretrained, inputs)
        limit = float(np.median(whole.probability_NK[:, 0]))
        found = classified(pretrained, inputs, threshold=limit)
        kept = [item for item in found if item.labels]
        assert 0 < found.num_without() == NUM_PICTURES - len(kept) < NUM_PICTURES
        assert all(label.probability >= limit for item in kept for label in item.labels)
        assert sum(count for _, count, _ in found.counts()) == len(kept)
        assert classified(pretrained, inputs, multi=True).threshold == 0.5
        assert whole.threshold == 0

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
    def test_a_threshold_is_a_probability(self, threshold: float) -> None:
        with pytest.raises(InputError, match="is no probability; give one from 0 to 1"):
            ClassifyOptions(threshold=threshold)

    def test_nothing_but_what_is_no_picture_is_bad_input(self, pretrained: Pretrained, folder: Path) -> None:
        with pytest.raises(InputError, match=r"99.png: unreadable picture \(picture of 0 bytes\); give a picture"):
            classified(pretrained, open_inputs([str(folder / "99.png")]))
        with pytest.raises(InputError, match=r"none of 2 inputs is a picture; the first is .*05a.jpg"):
            classified(pretrained, open_inputs([str(folder / "05a.jpg"), str(folder / "99.png")]))

    def test_lines_of_text_are_no_pictures(self, pretrained: Pretrained, tmp_path: Path) -> None:
        (tmp_path / "lines.txt").write_text("a cat\n")
        with pytest.raises(InputError, match=r"lines.txt line 1: no picture; give a picture"):
            classified(pretrained, open_inputs([str(tmp_path / "lines.txt")]))


def made(first: list[int], probability: list[float], *, several: bool = False, threshold: float = 0.0) -> Classified:
    """Pictures with two classes each; of the second the probability is half."""
    count = len(first)
    index_NK = np.array([[place, (place + 1) % len(NAMES)] for place in first], np.int32)
    probability_NK = np.array([[value, value / 2] for value in probability], np.float32)
    return Classified(
        class_names=tuple(NAMES),
        rows=list(range(count)),
        keys=[f"{i:02}.png" for i in range(count)],
        names=[f"/p/{i:02}.png" for i in range(count)],
        index_NK=index_NK,
        probability_NK=probability_NK,
        cosine_NK=probability_NK / 4,
        threshold=threshold,
        several=several,
        left_out=[],
    )


class TestClassified:
    def test_counts_are_of_the_best_class_or_of_all_that_count(self) -> None:
        found = made([0, 0, 2], [0.5, 1.0, 0.75])
        assert found.counts() == [(NAMES[0], 2, 0.75), (NAMES[2], 1, 0.75)]
        several = made([0, 0, 2], [0.5, 1.0, 0.75], several=True, threshold=0.5)
        assert several.counts() == [(NAMES[0], 2, 0.75), (NAMES[1], 1, 0.5), (NAMES[2], 1, 0.75)]

    def test_parts_of_ranks_are_joined_in_the_order_of_rows(self) -> None:
        whole = made([0, 1, 2, 3, 0], [0.9, 0.8, 0.7, 0.6, 0.5])
        out = LeftOut(9, "a", "no picture", "")

        def part(places: list[int], left_out: list[LeftOut]) -> Classified:
            return replace(
                whole,
                rows=places,
                keys=[whole.keys[i] for i in places],
                names=[whole.names[i] for i in places],
                index_NK=whole.index_NK[places],
                probability_NK=whole.probability_NK[places],
                cosine_NK=whole.cosine_NK[places],
                left_out=left_out,
            )

        together = joined([part([0, 3, 4], [out]), part([1, 2], [out._replace(row=7)])])
        assert list(together) == list(whole)
        assert [row.row for row in together.left_out] == [7, 9]


class TestFiles:
    def test_json_has_everything(self, pretrained: Pretrained, inputs: Inputs, tmp_path: Path) -> None:
        found = classified(pretrained, inputs, top=3)
        write_json(tmp_path / "a" / "b.json", found, {"model": "m", "multi": False})
        content = json.loads((tmp_path / "a" / "b.json").read_text())
        assert (content["model"], content["multi"]) == ("m", False)
        for row, item in zip(content["pictures"], found, strict=True):
            assert (row["picture"], row["key"]) == (item.name, item.key)
            assert [label["class"] for label in row["classes"]] == [label.name for label in item.labels]
            for told, label in zip(row["classes"], item.labels, strict=True):
                assert told["probability"] == pytest.approx(label.probability, rel=1e-6)
                assert told["cosine"] == pytest.approx(label.cosine, rel=1e-6)
        assert [row["reason"] for row in content["left_out"]] == ["unreadable picture"] * 2
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
        write_json(tmp_path / "a" / "b.json", replace(made([0], [0.5]), left_out=[]), {})
        assert json.loads((tmp_path / "a" / "b.json").read_text())["left_out"] == []

    def test_csv_has_a_line_for_each_picture(self, tmp_path: Path) -> None:
        found = made([0, 1, 2], [0.75, 0.125, 0.5], threshold=0.25)
        found.names[0] = '/p/caf\udce9, \n"1".png'  # no UTF-8 on the disk
        path = tmp_path / "a.csv"
        write_csv(path, found)
        rows = list(csv.DictReader(path.read_bytes().decode("utf-8", "surrogateescape").splitlines(keepends=True)))
        assert [row["picture"] for row in rows] == found.names
        assert [row["class"] for row in rows] == [NAMES[0], "", NAMES[2]]
        assert [row["class_2"] for row in rows] == [NAMES[1], "", NAMES[3]]
        assert [row["probability"] for row in rows] == ["0.75", "", "0.5"]
        assert [row["cosine_2"] for row in rows] == ["0.09375", "", "0.0625"]
        write_csv(path, found)  # its own is replaced

    def test_secrets_of_addresses_stay_out(self, tmp_path: Path) -> None:
        found = made([0], [0.75])
        found.names[0] = found.keys[0] = "https://u:s3cr3t-word@h/a.png"
        write_csv(tmp_path / "a.csv", found)
        write_json(tmp_path / "a.json", found, {})
        for path in tmp_path.iterdir():
            assert "https://u:REDACTED@h/a.png" in path.read_text()

    def test_what_is_no_csv_of_classes_is_not_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("path,label\n")
        for call in (lambda: require_own_csv(path), lambda: write_csv(path, made([0], [0.5]))):
            with pytest.raises(InputError, match=r"--csv .*a.csv: a file is there that holds no classes of pictures"):
                call()
        assert path.read_text() == "path,label\n"
        path.write_text("")
        require_own_csv(path)
        os.mkfifo(tmp_path / "fifo")
        require_own_csv(tmp_path / "fifo")  # and is not waited for

    def test_what_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"--csv .*a.csv: cannot be written: "):
            write_csv(tmp_path / "file" / "a.csv", made([0], [0.5]))
        with pytest.raises(InputError, match=r"--json .*: cannot be written"):
            write_json(tmp_path / "file" / "a.json", made([0], [0.5]), {})


class TestPage:
    def test_it_shows_every_picture_under_its_class(
        self, pretrained: Pretrained, inputs: Inputs, tmp_path: Path, browser: "Browser"
    ) -> None:
        found = classified(pretrained, inputs)
        path = tmp_path / "a.html"
        write_classified_page(path, found, inputs, subtitle="the model")
        seen = browser.visit(path)
        assert (seen.errors, seen.broken, seen.too_wide) == ([], [], False)
        assert seen.requests == [path.as_uri()]
        assert seen.num_pictures == NUM_PICTURES
        for item in found:
            assert f"{item.labels[0].name} {item.labels[0].probability:.1%}" in seen.text
        for text in ("the model", "05a.jpg", "unreadable picture", "Left out"):
            assert text in seen.text

    def test_the_surest_come_first_and_what_has_no_class_last(self, inputs: Inputs, tmp_path: Path) -> None:
        found = made([1, 0, 1, 1, 0], [0.3, 0.9, 0.8, 0.5, 0.1], threshold=0.25)
        path = tmp_path / "a.html"
        write_classified_page(path, found, inputs, subtitle="")
        html = path.read_text()
        assert re.findall(r"<b>(\d\d.png)</b>", html) == ["02.png", "03.png", "00.png", "01.png", "04.png"]
        assert re.findall(r"<h2>(.*?)</h2>", html) == [
            "&lt;b&gt;green&lt;/b&gt;",
            "red, round",
            "no class",
            "Classes",
        ]

    def test_a_long_list_is_cut_class_by_class(
        self, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(classified_page, "MAX_PICTURES", 6)
        found = made([0] * 8 + [1, 1, 2], [0.5 + i / 100 for i in range(11)])
        path = tmp_path / "a.html"
        write_classified_page(path, found, inputs, subtitle="")
        html = path.read_text()
        assert re.findall(r"<b>(\d\d.png)</b>", html) == ["07.png", "06.png", "05.png", "09.png", "08.png", "10.png"]
        assert "6 of the 11 pictures are on this page, the surest of each class." in html
        assert "8 pictures, the 3 surest of them here" in html

    def test_a_picture_that_is_gone_meanwhile_has_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "00.png").write_bytes(encoded(picture(0)))
        inputs = open_inputs([str(tmp_path)])
        (tmp_path / "00.png").unlink()
        write_classified_page(tmp_path / "a.html", made([0], [0.5]), inputs, subtitle="")
        assert "no picture" in (tmp_path / "a.html").read_text()

    @pytest.mark.parametrize("total", [0, 1, 3, 7, 100])
    def test_shares_fill_the_page(self, total: int) -> None:
        counts = {"a": 5, "b": 3, "c": 1, "d": 1}
        shares = classified_page._shares(counts, total)
        assert sum(shares.values()) == min(total, 10)
        assert all(share <= counts[name] for name, share in shares.items())
