"""`clipx data`: what a person who prepares data sees, from a folder of pictures to a batch."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from labelled_sets import write_class_folders, write_saved
from made_shards import samples
from shard_files import png

from clipx import cli
from clipx.prepare.own_files import require_own_json, require_own_png

CONFIG = """
run_dir: unused
steps: 10
global_batch_size: 4
data: {{train: [{shards}], index: {index}}}
model: {{image: {{name: vit_base_patch32_clip_224, image_size: 32}}, text: {{context_length: 5}}}}
"""


@pytest.fixture
def clipx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `clipx data ARGUMENTS` in this process; gives exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipx", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        return exit_info.value.code, output.out, output.err

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight good pairs, one without caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.png").write_bytes(png(number, size=20 + number))
        (folder / f"{number}.txt").write_text(f"picture {number}" if number else " ")
    return folder


@pytest.fixture
def shards(clipx, pictures: Path, tmp_path: Path) -> Path:
    assert clipx("make", pictures, "--out", tmp_path / "shards", "--shard-size", 3, "--workers", 1)[0] == 0
    return tmp_path / "shards"


def test_make_says_what_became_of_the_rows(clipx, pictures: Path, tmp_path: Path) -> None:
    command = ("make", pictures, "--out", tmp_path / "out", "--shard-size", 3, "--shuffle", 1, "--workers", 1)
    for _ in range(2):
        code, out, err = clipx(*command)
        assert (code, err) == (0, "")
        assert out.splitlines()[0] == f"{tmp_path / 'out'}: 3 shards, 8 samples"
        assert "no caption │    1" in out
        assert out.splitlines()[-1] == f"each of them: {tmp_path / 'out' / 'left_out.jsonl'}"
    code, out, err = clipx(*command, "--num-shards", 2)
    assert (code, out) == (2, "")
    assert err == (
        f"clipx: error: --out {tmp_path / 'out'} was begun otherwise: num_shards was None, now 2; "
        "restore that or choose a new folder\n"
    )


def test_make_hands_over_every_option(clipx, pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "bild,a,b,image,caption\n" + "".join(f"{n}.png,a{n},b{n},x,y\n" for n in range(1, 9)) + "9.png,a,b,,\n"
    )
    options = ["--image-column", "bild", "--caption-column", "b", "--caption-column", "a", "--image-folder", pictures]
    options += ["--num-shards", 2, "--size", 22, "--quality", 70, "--max-bad", 0.5, "--workers", 1]
    assert clipx("make", table, "--out", tmp_path / "out", *options)[0] == 0
    made = json.loads((tmp_path / "out" / "make.json").read_text())
    assert made["made"] == {
        "num_shards": 2,
        "num_samples": 8,
        "left_out": {"missing file": 1},
        "extensions": {"jpg": 8},
        "num_rows": 9,
        "num_joined": 0,
        "num_several": 8,
        "num_classes": 0,
        "num_without_picture": 0,
        "num_without_text": 0,
    }
    assert (made["request"]["size"], made["request"]["quality"]) == (22, 70)


def test_make_takes_rows_without_pictures_or_texts(clipx, pictures: Path, tmp_path: Path) -> None:
    table = pictures / "t.csv"
    table.write_text("image,title,brand,id\n1.png,mug,acme,a.1\n,cup,,b\n2.png,,,c\ngone.png,,,d\n")
    options = ["--caption-column", "brand", "--caption-column", "title", "--join-captions", ", ", "--key", "id"]
    code, out, err = clipx("make", table, "--out", tmp_path / "out", "--absent", *options, "--workers", 1)
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == [
        f"{tmp_path / 'out'}: 1 shards, 3 samples",
        "1 samples have no picture, 1 no text; what fits a model takes them, what trains on pairs leaves them out",
    ]
    assert "nothing in it │    1" in out
    found = samples(tmp_path / "out")
    assert {key: fields.get("txt") for key, fields in found.items()} == {"a_1": b"acme, mug", "b": b"cup", "c": None}
    code, out, err = clipx("make", table, "--out", tmp_path / "no", *options, "--key", "brand")
    assert (code, out) == (2, "")
    assert "error: --key brand: row 1 is empty, or cannot be read; every row needs a key" in err


def test_make_says_which_rows_are_one_sample(clipx, pictures: Path, tmp_path: Path) -> None:
    table = pictures / "t.tsv"
    table.write_text('1.png\t"a\n2.png\tb"\n1.png\tc\n3.png\n')
    options = ["--header", "image, caption", "--quoting", "none", "--workers", 1]
    code, out, err = clipx("make", table, "--out", tmp_path / "out", *options)
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        f"{tmp_path / 'out'}: 1 shards, 2 samples",
        "1 rows joined an earlier row of their picture, as further captions of one sample; --no-group-rows keeps them "
        "apart",
        "1 samples have several captions: data.caption_key='json:captions;txt' trains on all of them, the default "
        "(txt) on the first alone",
    ]
    assert clipx("make", table, "--out", tmp_path / "apart", *options, "--no-group-rows")[1].splitlines()[0] == (
        f"{tmp_path / 'apart'}: 1 shards, 3 samples"
    )
    assert "2 samples: 2 good" in clipx("check", tmp_path / "out", "--caption-key", "json:captions;txt")[1]


def test_make_takes_one_of_several_splits(clipx, pictures: Path, tmp_path: Path) -> None:
    images = [
        {"filename": f"{number}.png", "split": split, "sentences": [{"raw": split}]}
        for number, split in enumerate(["train", "test", "train"])
    ]
    table = pictures.with_name("dataset_flickr8k.json")
    table.write_text(json.dumps({"images": images}))
    command = ("make", table, "--image-folder", pictures, "--workers", 1, "--out")
    said = clipx(*command, tmp_path / "all")[1].splitlines()
    assert said[0].endswith("all of its splits (train 2, test 1; json:split); --split takes one")
    assert said[1] == f"{tmp_path / 'all'}: 1 shards, 3 samples"
    assert clipx(*command, tmp_path / "one", "--split", "test")[1] == f"{tmp_path / 'one'}: 1 shards, 1 samples\n"


def test_make_says_what_labels_became(clipx, pictures: Path, tmp_path: Path) -> None:
    table = pictures / "t.csv"
    table.write_text("image,text,kind\n1.png,one,cat\n2.png,two,dog\n")
    out = tmp_path / "out"
    code, said, err = clipx("make", table, "--label-column", "kind", "--workers", 1, "--out", out)
    assert (code, err) == (0, "")
    assert said.splitlines() == [
        f"{out}: 1 shards, 2 samples",
        f"2 classes in {out}/classnames.txt: data.caption_key=cls data.class_names={out}/classnames.txt trains on "
        "their names, with data.templates as prompts",
    ]
    write_saved(tmp_path / "saved", [[0, 1], []])
    said = clipx("make", tmp_path / "saved", "--workers", 1, "--out", tmp_path / "lists")[1].splitlines()
    assert said[1].endswith("lists/classnames.txt; cls holds the numbers of all that a picture shows")
    write_class_folders(tmp_path / "pets" / "test")
    said = clipx("make", tmp_path / "pets", "--split", "test", "--workers", 1, "--out", tmp_path / "pets_out")[1]
    assert said.startswith(f"{tmp_path}/pets: its folders are classes, 3 of them (cat, dog, red fox)\n")
    (tmp_path / "pets" / "test" / "cat" / "1.txt").write_text("a cat")
    folder = tmp_path / "pets" / "test"
    said = clipx("make", folder, "--class-folders", "--workers", 1, "--out", tmp_path / "both")[1]
    assert "3 classes in" in said
    assert "3 classes" not in clipx("make", folder, "--workers", 1, "--out", tmp_path / "texts")[1]


def test_make_names_pictures_that_training_would_not_look_for(clipx, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.gif")
    (tmp_path / "in" / "a.txt").write_text("black")
    out = clipx("make", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)[1]
    assert out.splitlines()[1] == "to train on them: data.image_key=jpg;jpeg;png;webp;gif"


def test_index_counts_and_filters(clipx, shards: Path, tmp_path: Path) -> None:
    assert clipx("index", shards) == (0, "3 shards, 8 samples\n", "")
    (tmp_path / "keys").write_text("000000008\n")
    options = ["--where", "min_side >= 24", "--without-keys", tmp_path / "keys", "--unique", "image"]
    code, out, err = clipx("index", shards, "--out", tmp_path / "index", *options)
    assert (code, err, out.splitlines()[0]) == (0, "", "3 shards, 4 samples")
    assert any("min_side" in line and " 3 " in line for line in out.splitlines())
    assert clipx("make", shards, "--index", tmp_path / "index", "--out", tmp_path / "out", "--workers", 1)[0] == 0
    assert clipx("index", tmp_path / "out")[1] == "1 shards, 4 samples\n"
    code, _, err = clipx("index", shards, "--out", tmp_path / "other", "--where", "beauty > 3")
    assert (code, err.count("\n")) == (2, 1)


def test_check_is_0_for_good_and_1_for_bad(clipx, shards: Path, tmp_path: Path) -> None:
    code, out, err = clipx("check", shards, "--workers", 1)
    assert (code, err, out.splitlines()[0]) == (0, "", "3 shards, 8 samples: 8 good")
    whole = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(whole[:5000])
    report, new = tmp_path / "new" / "report.jsonl", tmp_path / "new"
    code, out, err = clipx("check", shards, "--workers", 1, "--report", report, "--repair", new)
    assert (code, err) == (1, "")
    assert "damaged shard │     1" in out
    assert out.splitlines()[-1] == f"{new}: 1 of 1 bad shards anew"
    problems = [json.loads(line) for line in report.read_text().splitlines()]
    assert {problem["fault"] for problem in problems} >= {"damaged shard"}
    assert {problem["shard"] for problem in problems} == {str(shards / "00001.tar")}
    assert clipx("check", new, "--workers", 1)[0] == 0
    assert (shards / "00001.tar").read_bytes() == whole[:5000]


def test_check_takes_keys_or_a_config(clipx, shards: Path, tmp_path: Path) -> None:
    assert "no caption │     8" in clipx("check", shards, "--caption-key", "json:none", "--workers", 1)[1]
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG.format(shards=shards, index="null"))
    assert clipx("check", config, "data.image_key=jpg", "--workers", 1)[0] == 1
    code, _, err = clipx("check", config, "--image-key", "png")
    assert (code, err) == (2, "clipx: error: --image-key goes with shards; to a config add data.image_key=png\n")


def test_stats_prints_and_writes(clipx, shards: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG.format(shards=shards, index="null"))
    code, out, err = clipx("stats", config, "model.text.context_length=3", "--out", tmp_path / "st", "--workers", 1)
    assert (code, err) == (0, "")
    assert "longer than 3 tokens" in out
    assert "100.00%" in out
    written = json.loads((tmp_path / "st" / "stats.json").read_text())
    assert (written["context_length"], written["sources"]["train"]["num_samples"]) == (3, 8)
    require_own_png(tmp_path / "st" / "stats.png")
    require_own_json(tmp_path / "st" / "stats.json", {"context_length", "sources"})
    (tmp_path / "st" / "stats.json").write_text('{"mine": 1}')
    code, _, err = clipx("stats", shards, "--out", tmp_path / "st", "--workers", 1)
    assert (code, (tmp_path / "st" / "stats.json").read_text()) == (2, '{"mine": 1}')
    assert "stats.json is there, and clipx did not write it" in err
    code, out, _ = clipx("stats", shards, "--sample", 2, "--workers", 1)
    assert "longer than 77 tokens" in out
    assert [line.split()[-2] for line in out.splitlines() if "of them read" in line] == ["2"]


def test_show_draws_a_batch(clipx, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG.format(shards=shards, index="null"))
    monkeypatch.chdir(tmp_path)
    code, out, err = clipx("show", config, "seed=3", "--batch", 1, "--count", 2)
    assert (code, err) == (0, "")
    assert out == "batch 1: 4 pictures (train 4); 2 shown, 32 px\nwrote batch-1.png\n"
    require_own_png(tmp_path / "batch-1.png")
    (tmp_path / "batch-1.png").write_bytes(b"mine")
    code, _, err = clipx("show", config, "--batch", 1)
    assert (code, (tmp_path / "batch-1.png").read_bytes()) == (2, b"mine")
    assert "batch-1.png is there, and clipx did not write it" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "nope", "--out", "x"], "nope: no such file or folder; give pictures, a table, a saved data set, or"),
        (["make", "nope"], "Missing option '--out'"),
        (["check", "nope"], "shards 'nope' match no tar file"),
        (["stats", "nope.yaml"], "nope.yaml: cannot read the config file"),
        (["show", "shards"], "'shards' is neither a config file (.yaml, .yml) nor an override (key=value)"),
        (["index", "nope", "--unique", "size"], "Invalid value for '--unique'"),
        (["index", "nope", "--image-key", "png"], "--image-key says what a filter looks at; give it with --where or"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(clipx, arguments: list[str], message: str) -> None:
    code, out, err = clipx(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"clipx: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["", "make", "index", "check", "stats", "show", "synth"])
def test_help_of_every_command(clipx, command: str) -> None:
    code, out, err = clipx(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Usage: clipx data {command}".strip() in out
