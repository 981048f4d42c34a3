"""What a type checker sees of `import clipx`; mypy reads this in `make check`, nothing runs it."""

from typing import assert_type

from torch import Tensor

import clipx


def uses() -> None:
    config = clipx.load_config("tiny", ["seed=3"])
    assert_type(config, clipx.RunConfig | clipx.FitConfig)
    assert_type(clipx.train(config), clipx.Status)
    model = clipx.load("runs/tiny")
    assert_type(model, clipx.Pretrained)
    assert_type(model.encode_text("a cat"), Tensor)
    assert_type(model.classify("cat.jpg", ["cat", "dog"], top=1), list[dict[str, float]])
    clipx.RunConfig(steps="many")  # type: ignore[arg-type, call-arg]
    clipx.lode("runs/tiny")  # type: ignore[attr-defined]
