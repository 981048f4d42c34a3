"""Exports without all who load them: every one loads model and tokenizer anew, which takes seconds."""

import pytest

from clipx.export import huggingface, open_clip, pt2

WHOLE_MODELS = ("transformers CLIPModel", "transformers SiglipModel")


@pytest.fixture
def whole_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of transformers the whole model alone compares an export, and sentence-transformers does not."""
    rows = tuple(consumer for consumer in huggingface.CONSUMERS if consumer.name in WHOLE_MODELS)
    monkeypatch.setattr(huggingface, "CONSUMERS", rows)


@pytest.fixture
def nobody_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody loads what an export writes for transformers and open_clip, nor its programs."""
    for module in (huggingface, open_clip, pt2):
        monkeypatch.setattr(module, "CONSUMERS", ())
