"""What clipx writes under a name that a person did not choose, it writes over its own files alone."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clipx.demo.run import _write_config
from clipx.errors import InputError
from clipx.prepare.own_files import PNG_MARK, require_own_json, require_own_png


def test_a_png_of_its_own_is_replaced_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "batch-0.png"
    require_own_png(path)
    marks = PngInfo()
    marks.add_text("Software", PNG_MARK["Software"])
    Image.new("RGB", (2, 2)).save(path, pnginfo=marks)
    require_own_png(path)
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(InputError, match=r"batch-0\.png is there, and clipx did not write it"):
        require_own_png(path)
    path.write_text("import os")
    with pytest.raises(InputError, match="did not write it"):
        require_own_png(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="did not write it"):
        require_own_png(path)


@pytest.mark.parametrize("content", ["{}", "[1]", '{"sources": 1}', '{"sources": 1, "mine": 2}', "no json", ""])
def test_json_of_others_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"context_length": 77, "sources": {}}))
    require_own_json(path, {"context_length", "sources"})
    path.write_text(content)
    with pytest.raises(InputError, match=r"stats\.json is there, and clipx did not write it"):
        require_own_json(path, {"context_length", "sources"})


def test_the_demo_writes_over_its_own_config_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in ("steps: 1\n", "steps: 2\n"):
        _write_config(path, text)
        assert path.read_text().endswith(f".\n{text}")
    path.write_text(path.read_text() + "# note\n")
    edited = path.read_text()
    with pytest.raises(InputError, match=r"config\.yaml is there, and the demo did not write it like that"):
        _write_config(path, "steps: 2\n")
    assert path.read_text() == edited
    path.write_text("steps: 2\n")  # as earlier versions wrote it
    _write_config(path, "steps: 2\n")
