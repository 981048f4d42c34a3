from typing import get_args

import pytest
from tiny_clip import tiny_model_config, tiny_pretrained

from clipx.export import onnx
from clipx.export.formats import Format, formats_of

pytest.importorskip("onnxruntime")


def test_every_format_says_whether_it_can_hold_a_model(monkeypatch):
    assert formats_of(tiny_pretrained()) == dict.fromkeys(get_args(Format))
    found = formats_of(tiny_pretrained(tiny_model_config(image={"name": "resnet10t", "options": {}, "image_size": 32})))
    assert (found["onnx"], found["pt2"]) == (None, None)
    assert found["hf"] is not None
    monkeypatch.setattr(onnx, "find_spec", lambda _: None)
    assert formats_of(tiny_pretrained())["onnx"] == (
        "onnx, onnxscript, onnxruntime not installed; pip install 'clipx-train[onnx]'"
    )
