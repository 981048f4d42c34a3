"""Programs of torch.export, saved and loaded again; `test_onnx.py` has those of a ResNet with a BERT, in float32."""

from pathlib import Path

import torch
from tiny_clip import tiny_pretrained

import clipx
from clipx.export import pt2
from clipx.export.options import ExportOptions
from clipx.export.parity.torch_export import program_file


def test_one_tower_in_half_precision(tmp_path):
    pretrained = tiny_pretrained()
    pt2.write(pretrained, tmp_path, ExportOptions(only="text", dtype="fp16"))
    assert [path.name for path in (tmp_path / "pt2").iterdir()] == ["text_encoder_fp16.pt2"]
    content = program_file(tmp_path, "text", "_fp16").read_bytes()
    for library in (clipx, torch):  # no line of code, with the folder where it lies, is stored
        assert str(Path(library.__file__).parent).encode() not in content
    (consumer,) = [each for each in pt2.CONSUMERS if each.applies(tmp_path)]
    assert (consumer.name, consumer.limit) == ("torch.export fp16", None)
    texts = ["a cat", "an owl, a fox and all the others"]
    outputs = consumer.outputs(tmp_path, [], texts)
    assert (outputs.image_BD, outputs.logits_BN) == (None, None)
    assert outputs.text_ND.dtype == torch.float32
    difference = (outputs.text_ND - pretrained.encode_text(texts)).abs().max().item()
    assert 1e-6 < difference < 5e-3
