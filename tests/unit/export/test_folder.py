"""An export removes and replaces what an export wrote, as it wrote it, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clipx.errors import InputError
from clipx.export.folder import AVERAGE, publish, require_own
from clipx.storage.drafts import draft_of


def export(to: Path, text: str = "weights") -> None:
    """What `export_model` does with the folder."""
    require_own(to)
    with draft_of(to) as draft:
        (draft / "config.json").write_text("{}")
        (draft / "model.safetensors").write_text(text)
        publish(draft, to, {"clipx": "0.1"})


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_export_replaces_the_one_before(tmp_path: Path) -> None:
    to = tmp_path / "deep" / "export"
    export(to, "first")
    export(to, "second")
    assert (to / "model.safetensors").read_text() == "second"
    assert [path.name for path in to.parent.iterdir()] == ["export"]
    parity = json.loads((to / "parity.json").read_text())
    assert list(parity["files"]) == ["config.json", "model.safetensors"]


def test_all_files_are_for_whoever_may_read_a_new_file(tmp_path: Path) -> None:
    with draft_of(tmp_path / "export") as draft:
        (draft / "onnx").mkdir()
        for name in ("model.safetensors", "onnx/model.onnx"):
            (draft / name).touch(mode=0o600)
        publish(draft, tmp_path / "export", {})
    files = [path for path in (tmp_path / "export").rglob("*") if path.is_file()]
    assert len(files) == 3
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in files} == {(tmp_path / "new").stat().st_mode}


def test_what_one_kind_wrote_is_anothers(tmp_path: Path) -> None:
    export(tmp_path / "export")
    with pytest.raises(InputError, match=r"export holds config.json, model.safetensors, parity.json, which no average"):
        require_own(tmp_path / "export", AVERAGE)


def edit(to: Path) -> None:
    (to / "config.json").write_text('{"mine": 1}')


def edit_keeping_size_and_time(to: Path) -> None:
    (to / "model.safetensors").write_text("secon!")


def add_a_file(to: Path) -> None:
    (to / "README.md").write_text("a model card")


def add_a_folder(to: Path) -> None:
    (to / "runs").mkdir()
    (to / "runs" / "log").write_text("x")


def edit_parity(to: Path) -> None:
    parity = json.loads((to / "parity.json").read_text())
    (to / "parity.json").write_text(json.dumps(parity | {"note": "mine"}))


def put_a_link(to: Path) -> None:
    (to.parent / "real.json").write_text("{}")
    (to / "config.json").unlink()
    (to / "config.json").symlink_to(to.parent / "real.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit, "config.json, changed since the export"),
        (edit_keeping_size_and_time, "model.safetensors, changed since the export"),
        (add_a_file, "README.md, which no export wrote"),
        (add_a_folder, "runs, which no export wrote"),
        (edit_parity, "config.json, model.safetensors, parity.json, which no export wrote .parity.json was edited"),
        (put_a_link, "config.json, changed since the export"),
    ],
)
def test_what_a_person_changed_is_named_and_stays(tmp_path: Path, change: Callable[[Path], None], named: str) -> None:
    to = tmp_path / "export"
    export(to)
    change(to)
    before = content(tmp_path)
    with pytest.raises(InputError, match=f"export holds {named}"):
        export(to)
    assert content(tmp_path) == before


@pytest.mark.parametrize("files", [["main.py", "parity.json"], {"main.py": "0" * 64}, {"main.py": 3}, None, "main.py"])
def test_a_list_of_a_strangers_proves_nothing(tmp_path: Path, files: object) -> None:
    to = tmp_path / "export"
    to.mkdir()
    (to / "main.py").write_text("print('mine')")
    (to / "parity.json").write_text(json.dumps({"files": files, "mark": "0" * 64}))
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"export holds main.py, parity.json, which no export wrote"):
        export(to)
    assert content(tmp_path) == before


def test_a_program_is_nobodys_export_though_a_list_fits_it(tmp_path: Path) -> None:
    with draft_of(tmp_path / "export") as draft:
        (draft / "config.json").write_text("{}")
        (draft / "main.py").write_text("print('mine')")
        publish(draft, tmp_path / "export", {})  # a list with the right checksums, as a stranger can make it
    with pytest.raises(InputError, match=r"export holds main.py, which no export wrote"):
        export(tmp_path / "export")


@pytest.mark.parametrize("name", [".export.old", ".export.unfinished"])
def test_folders_of_others_beside_it_stay(tmp_path: Path, name: str) -> None:
    export(tmp_path / "export", "first")
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"{name} (holds thesis.txt, which no export wrote|is in the way)"):
        export(tmp_path / "export", "second")
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "export" / "model.safetensors").read_text() == "first"


def test_a_file_that_comes_while_the_export_is_made_stays(tmp_path: Path) -> None:
    to = tmp_path / "export"
    export(to, "first")
    with draft_of(to) as draft:
        (to / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"notes\.txt, which no export wrote"):
            publish(draft, to, {})
    assert content(to)["notes.txt"] == "mine"
    assert content(to)["model.safetensors"] == "first"


def test_of_two_at_once_one_wins_whole_and_the_other_says_so(tmp_path: Path) -> None:
    to = tmp_path / "export"
    with draft_of(to) as draft:
        (draft / "model.safetensors").write_text("winner")
        with pytest.raises(InputError, match=r"another process writes .*export; wait"):
            export(to, "loser")
        publish(draft, to, {})
    assert content(to)["model.safetensors"] == "winner"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_a_killed_export_left_is_taken_over(tmp_path: Path) -> None:
    left = tmp_path / ".export.unfinished"
    left.mkdir()
    (left / ".clipx-unfinished").touch()
    (left / "model.safetensors").write_text("half")
    (left / "tokenizer").mkdir()
    export(tmp_path / "export")
    assert sorted(content(tmp_path / "export")) == ["config.json", "model.safetensors", "parity.json"]


def test_a_killed_replacement_left_the_export_before_which_goes(tmp_path: Path) -> None:
    export(tmp_path / "export", "first")
    (tmp_path / "export").rename(tmp_path / ".export.old")
    export(tmp_path / "export", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_at_most_ten_names(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.txt").touch()
    with pytest.raises(InputError, match=r"08.txt, 09.txt and 20 more, which no export wrote") as raised:
        require_own(tmp_path)
    assert "10.txt" not in str(raised.value)


def export_with_subfolder(to: Path, text: str) -> None:
    require_own(to)
    with draft_of(to) as draft:
        (draft / "onnx").mkdir()
        (draft / "onnx" / "model.onnx").write_text(text)
        (draft / "config.json").write_text("{}")
        publish(draft, to, {})


def test_files_in_subfolders_are_marked_and_replaced(tmp_path: Path) -> None:
    to = tmp_path / "export"
    export_with_subfolder(to, "first")
    assert list(json.loads((to / "parity.json").read_text())["files"]) == ["config.json", "onnx/model.onnx"]
    export_with_subfolder(to, "second")
    assert (to / "onnx" / "model.onnx").read_text() == "second"
    (to / "onnx" / "notes.onnx").write_text("mine")
    with pytest.raises(InputError, match=r"export holds onnx/notes\.onnx, which no export wrote"):
        export_with_subfolder(to, "third")
    (to / "onnx" / "notes.onnx").unlink()
    (to / "onnx" / "model.onnx").write_text("mine")
    with pytest.raises(InputError, match=r"export holds onnx/model\.onnx, changed since the export"):
        export_with_subfolder(to, "third")
    assert (to / "onnx" / "model.onnx").read_text() == "mine"
