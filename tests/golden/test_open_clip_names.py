"""Names and shapes of every weight of small open_clip models, with ours beside them; `--update-golden` writes anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clipx.pretrained import load
from clipx.pretrained.open_clip import names_of

FOLDER = Path(__file__).parent / "open_clip_names"
SHAPES = ("gelu", "own_varied", "timm_vit_avg_mlp", "siglip", "bert_mlp", "bert_linear")


@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_as_recorded(
    open_clip_folder: Callable[[str], Path], shape: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("open_clip")
    folder = open_clip_folder(shape)
    names = names_of(folder)
    ours = load(folder).model.state_dict()
    lines = []
    for name, tensor in sorted(load_file(folder / "open_clip_model.safetensors").items()):
        (own,) = names.to_ours({name: tensor})
        lines.append(f"{name} {list(tensor.shape)} is {own} {list(ours[own].shape)}\n")
    path = FOLDER / f"{shape}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text("".join(lines))
    assert "".join(lines) == path.read_text(), f"{path.name} changed: if that is meant, run with --update-golden"
