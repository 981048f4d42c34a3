"""Classes of pictures from Python: textbook probabilities, whatever pictures come as and however classes are cut."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import encoded, picture, tiny_model_config, tiny_pretrained
from transformers_folders import library_results

from clipx.errors import InputError, RunError
from clipx.pretrained import Pretrained, classes, load
from clipx.pretrained.classes import PRIOR, REFERENCE, ClassEmbeddings

NAMES = [f"thing {i}" for i in range(9)]
TEMPLATES = ["a photo of a {c}.", "{c}", "look, {c} and {c}!"]
PICTURES = [picture(i) for i in range(5)]


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return tiny_pretrained()


@pytest.fixture(scope="module")
def with_bias() -> Pretrained:
    return tiny_pretrained(replace(tiny_model_config(), init_logit_bias=-2.0))


def textbook_logits(pretrained: Pretrained, names: list[str], templates: list[str]) -> np.ndarray:
    """`logit_scale` x cosine, one picture and one prompt at a time, float64 (pictures, classes)."""
    rows = []
    for name in names:
        prompts = [pretrained.encode_text(text.replace("{c}", name))[0].double().numpy() for text in templates]
        rows.append(np.mean(prompts, axis=0) / np.linalg.norm(np.mean(prompts, axis=0)))
    images = [pretrained.encode_image(image)[0].double().numpy() for image in PICTURES]
    return pretrained.logit_scale * np.array(images) @ np.array(rows).T


def columns(found: list[dict[str, float]], names: list[str]) -> np.ndarray:
    return np.array([[row[name] for name in names] for row in found])


class TestProbabilities:
    def test_they_are_the_softmax_over_the_classes(self, pretrained: Pretrained) -> None:
        logits = textbook_logits(pretrained, NAMES, TEMPLATES)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found = pretrained.classify(PICTURES, NAMES, templates=TEMPLATES)
        np.testing.assert_allclose(columns(found, NAMES), expected, rtol=1e-4)
        assert [list(row) for row in found] == [[NAMES[i] for i in np.argsort(-row)] for row in expected]
        assert [sum(row.values()) for row in found] == pytest.approx([1.0] * 5, abs=1e-6)

    def test_several_of_a_model_of_the_sigmoid_loss_are_its_own(self, with_bias: Pretrained) -> None:
        assert with_bias.logit_bias == pytest.approx(with_bias.model.logit_bias.item())
        logits = textbook_logits(with_bias, NAMES, TEMPLATES) + with_bias.logit_bias
        found = with_bias.classify(PICTURES, NAMES, templates=TEMPLATES, multi=True)
        np.testing.assert_allclose(columns(found, NAMES), 1 / (1 + np.exp(-logits)), rtol=1e-4)

    def test_several_of_a_model_of_the_softmax_loss_compete_with_what_else_could_be_said(
        self, pretrained: Pretrained
    ) -> None:
        assert pretrained.logit_bias is None
        logits = textbook_logits(pretrained, [*NAMES, *REFERENCE], TEMPLATES)
        expected = np.empty((len(PICTURES), len(NAMES)))
        for c in range(len(NAMES)):
            odds = np.exp(logits[:, c]) / np.exp(np.delete(logits, c, axis=1)).mean(axis=1) * PRIOR / (1 - PRIOR)
            expected[:, c] = odds / (1 + odds)
        found = pretrained.classify(PICTURES, NAMES, templates=TEMPLATES, multi=True)
        np.testing.assert_allclose(columns(found, NAMES), expected, rtol=1e-4)

    def test_one_class_alone_is_a_question_too(self, pretrained: Pretrained) -> None:
        [found] = pretrained.classify(PICTURES[0], ["cat"], multi=True)
        assert 0 < found["cat"] < 1
        assert pretrained.classify(PICTURES[0], ["cat"]) == [{"cat": 1.0}]

    @pytest.mark.parametrize("multi", [False, True])
    def test_tiles_change_nothing(self, pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch, multi: bool) -> None:
        whole = pretrained.classify(PICTURES, NAMES, top=4, multi=multi)
        monkeypatch.setattr(classes, "_TILE", 2)
        cut = pretrained.classify(PICTURES, NAMES, top=4, multi=multi)
        assert [list(row) for row in cut] == [list(row) for row in whole]
        assert [len(row) for row in cut] == [4] * 5
        for row, other in zip(cut, whole, strict=True):
            assert row == pytest.approx(other, rel=1e-5)

    @pytest.mark.parametrize(("kind", "multi"), [("clip, quick_gelu", False), ("siglip", True)])
    def test_transformers_gives_the_same(
        self, transformers_folder: Callable[[str], Path], kind: str, multi: bool
    ) -> None:
        folder, names = transformers_folder(kind), ["cat", "red house", "owl"]
        logits_BN = library_results(folder, PICTURES, [f"a photo of a {name}." for name in names]).logits_BN
        expected_BN = logits_BN.sigmoid() if multi else logits_BN.softmax(dim=1)
        found = load(folder).classify(PICTURES, names, multi=multi)
        np.testing.assert_allclose(columns(found, names), expected_BN, atol=1e-5, rtol=0)


def made_by_hand(*cosines: float, reference: float) -> tuple[torch.Tensor, ClassEmbeddings]:
    """A picture, and classes with these cosines to it."""
    angle_C = torch.tensor([*cosines, reference]).acos()
    rows_ND = torch.stack([angle_C.cos(), angle_C.sin()], dim=1)
    return torch.tensor([[1.0, 0.0]]), ClassEmbeddings.of_rows([str(c) for c in range(len(cosines))], rows_ND)


class TestBest:
    def test_of_equal_classes_the_earlier_one_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        image_BD, found = made_by_hand(0.2, 0.5, 0.5, 0.7, 0.5, reference=0.1)
        for tile in (2, 100):
            monkeypatch.setattr(classes, "_TILE", tile)
            best = found.best(image_BD, logit_scale=10.0, logit_bias=None, top=5, multi=False)
            assert best.index_BK.tolist() == [[3, 1, 2, 4, 0]]
            assert (best.index_BK.dtype, best.probability_BK.dtype) == (torch.int64, torch.float64)

    @pytest.mark.parametrize("top", [1, 2, 5])
    def test_of_equal_classes_at_the_end_of_those_kept_the_earlier_ones_are_kept(self, top: int) -> None:
        image_BD, found = made_by_hand(0.2, *[0.5] * 100, 0.7, reference=0.1)
        best = found.best(image_BD, logit_scale=10.0, logit_bias=None, top=top, multi=False)
        assert best.index_BK.tolist() == [[101, 1, 2, 3, 4][:top]]

    def test_two_right_classes_do_not_share_a_sum(self) -> None:
        image_BD, found = made_by_hand(0.3, 0.3, 0.1, reference=0.15)
        best = found.best(image_BD, logit_scale=100.0, logit_bias=None, top=None, multi=True)
        assert best.probability_BK[0, :2].tolist() == pytest.approx([0.25, 0.25], abs=1e-4)  # 3 x 1/9 to one
        rows_ND = torch.cat([found.embedding_CD, found.reference_RD.expand(40, 2)])
        with_words = ClassEmbeddings.of_rows(found.names, rows_ND)
        best = with_words.best(image_BD, logit_scale=100.0, logit_bias=None, top=None, multi=True)
        assert best.probability_BK[0, :2].min() > 0.8
        assert best.probability_BK[0, 2] < 1e-6

    @pytest.mark.parametrize("gap", [0.5, 1.5])
    def test_a_class_far_above_all_others_is_certain(self, gap: float) -> None:
        image_BD, found = made_by_hand(0.8, 0.8 - gap, reference=0.8 - gap)
        best = found.best(image_BD, logit_scale=1000.0, logit_bias=None, top=None, multi=True)
        assert best.probability_BK.tolist() == [[1.0, pytest.approx(0.0, abs=1e-100)]]

    @pytest.mark.parametrize("broken", ["picture", "class"])
    def test_broken_weights_are_said(self, broken: str) -> None:
        image_BD, found = made_by_hand(0.3, 0.2, reference=0.1)
        (image_BD if broken == "picture" else found.embedding_CD)[0, 1] = math.nan
        with pytest.raises(RunError, match="its weights are broken"):
            found.best(image_BD, logit_scale=10.0, logit_bias=None, top=1, multi=False)


class TestPictures:
    def test_they_come_as_people_have_them(self, pretrained: Pretrained, tmp_path: Path) -> None:
        expected = pretrained.classify(PICTURES, NAMES)
        path = tmp_path / "a.png"
        path.write_bytes(encoded(PICTURES[0]))
        pixels_BSSC = torch.stack([pretrained.preprocess(image) for image in PICTURES])
        one: list[Any] = [PICTURES[0], path, str(path), path.read_bytes(), pixels_BSSC[:1]]
        for given in one:
            assert pretrained.classify(given, NAMES) == [pytest.approx(expected[0], rel=1e-4)]
        several: list[Any] = [tuple(PICTURES), iter(PICTURES), map(encoded, PICTURES), pixels_BSSC]
        for given in several:
            found = pretrained.classify(given, NAMES)
            assert [list(row) for row in found] == [list(row) for row in expected]

    def test_many_are_read_as_they_are_needed(self, pretrained: Pretrained) -> None:
        found = pretrained.classify((picture(i % 3) for i in range(150)), NAMES, top=1)
        assert [list(row) for row in found] == [list(row) for row in found[:3]] * 50

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([], "no picture; give at least one"),
            (iter([]), "no picture; give at least one"),
            ("absent.png", "absent.png cannot be read"),
            (Path("/"), "/ cannot be read"),
            (b"text", "a picture's bytes: .*; give a picture"),
            ([PICTURES[0], 3], "a picture must be a PIL.Image, a path, an address or bytes, not int"),
            (None, "not NoneType"),
            (torch.zeros(3, 24, 24, 3), "pictures must be at least one"),
            (torch.zeros((), dtype=torch.uint8), "pictures must be at least one"),
            (torch.zeros((0, 24, 24, 3), dtype=torch.uint8), "pictures must be at least one"),
        ],
    )
    def test_what_is_no_picture_is_bad_input(self, pretrained: Pretrained, given: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            pretrained.classify(given, NAMES)


class TestClasses:
    def test_they_are_embedded_once_for_many_calls(self, pretrained: Pretrained) -> None:
        embedded = pretrained.class_embeddings(NAMES, TEMPLATES)
        assert (tuple(embedded.embedding_CD.shape), embedded.embedding_CD.dtype) == ((9, 24), torch.float32)
        assert pretrained.classify(PICTURES, embedded, top=2) == pretrained.classify(
            PICTURES, NAMES, templates=TEMPLATES, top=2
        )
        with pytest.raises(InputError, match="templates belong to class_embeddings"):
            pretrained.classify(PICTURES, embedded, templates=TEMPLATES)

    def test_without_templates_it_is_a_photo_of_it(self, pretrained: Pretrained) -> None:
        assert pretrained.classify(PICTURES, NAMES) == pretrained.classify(
            PICTURES, NAMES, templates="a photo of a {c}."
        )

    @pytest.mark.parametrize(
        ("names", "templates", "message"),
        [
            ([], None, "classes: no class is named; name at least one"),
            ("cat", None, "classes must be a list of names, not str"),
            (None, None, "classes must be a list of names, not NoneType"),
            (["cat", 3], None, "a name must be a str, not int"),
            (["cat", " \u200b"], None, "entry 2 is blank"),
            (
                ["cat", "dog", "cat"],
                None,
                "entries 1 and 3, 'cat' and 'cat', are the same class to this model",
            ),
            (["dog", "CAT ", "cat"], None, "entries 2 and 3, 'CAT' and 'cat', are the same class to this model"),
            (["word " * 30 + "a", "word " * 30 + "b"], None, "are the same class to this model"),
            (["a", "b", "A", "B"], None, "this model, and 1 more such pairs"),
            (["cat"], "a photo", r"lacks \{c\}"),
            (["cat"], [], r"templates must be texts with \{c\}"),
        ],
    )
    def test_what_is_no_list_of_classes_is_bad_input(
        self, pretrained: Pretrained, names: Any, templates: Any, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            pretrained.classify(Image.new("RGB", (30, 30)), names, templates=templates)

    def test_at_least_one_class_is_kept(self, pretrained: Pretrained) -> None:
        with pytest.raises(InputError, match="top=0 keeps no class"):
            pretrained.classify(PICTURES, NAMES, top=0)
