"""Exports without all who load them: every one loads model and tokenizer anew, which takes seconds."""

import pytest

from clipx.export import huggingface

WHOLE_MODELS = ("transformers CLIPModel", "transformers SiglipModel")


@pytest.fixture
def whole_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of transformers the whole model alone compares an export, and sentence-transformers does not."""
    rows = tuple(consumer for consumer in huggingface.CONSUMERS if consumer.name in WHOLE_MODELS)
    monkeypatch.setattr(huggingface, "CONSUMERS", rows)


@pytest.fixture
def nobody_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody compares an export's files for transformers."""
    monkeypatch.setattr(huggingface, "CONSUMERS", ())
