"""Evaluation sets: pictures with classes or captions, read as they are by every evaluation."""

from clipx.data.labelled.opening import open_classes, open_classification, open_retrieval, open_set, type_of
from clipx.data.labelled.sets import (
    AnySet,
    CaptionedImage,
    ClassificationSet,
    EncodedImage,
    LabelledImage,
    MultiLabelImage,
    MultiLabelSet,
    RetrievalSet,
)

__all__ = [
    "AnySet",
    "CaptionedImage",
    "ClassificationSet",
    "EncodedImage",
    "LabelledImage",
    "MultiLabelImage",
    "MultiLabelSet",
    "RetrievalSet",
    "open_classes",
    "open_classification",
    "open_retrieval",
    "open_set",
    "type_of",
]
