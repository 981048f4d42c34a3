from dataclasses import replace
from pathlib import Path

import torch
from tiny_clip import picture, tiny_model_config, tiny_pretrained

from clipx.data.decode import decode_image
from clipx.pretrained import Pretrained


def test_equal_models_have_one_fingerprint_and_others_another(tmp_path: Path) -> None:
    model = tiny_pretrained()
    assert model.fingerprint == tiny_pretrained().fingerprint
    assert len(model.fingerprint) == 32
    others = [
        tiny_pretrained(seed=1),
        Pretrained(model.model, replace(model.config, image=replace(model.config.image, crop="floor"))),
        Pretrained(model.model, replace(model.config, text=replace(model.config.text, cleaning="canonicalize"))),
    ]
    assert len({model.fingerprint, *(other.fingerprint for other in others)}) == 4
    named = replace(model.config, image=replace(model.config.image, pretrained=True))  # where it began is gone
    assert Pretrained(model.model, named).fingerprint == model.fingerprint


def test_one_weight_is_enough() -> None:
    model, other = tiny_pretrained(), tiny_pretrained()
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-6
    assert model.fingerprint != other.fingerprint


def test_pixels_are_those_of_preprocess() -> None:
    import io

    model, image = tiny_pretrained(tiny_model_config()), picture(0, (31, 57))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg")
    data = buffer.getvalue()
    assert torch.equal(model.pixels(data), model.preprocess(decode_image(data)))
