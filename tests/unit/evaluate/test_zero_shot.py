import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import clip_benchmark
from shard_files import write_tar
from tiny_clip import encoded, picture, tiny_pretrained, write_classification_set

from clipx.config.evaluate import RetrievalConfig, ZeroShotConfig
from clipx.data.decode import decode_image
from clipx.errors import InputError
from clipx.evaluate import check_evaluation, evaluate_folder, run_evaluation
from clipx.evaluate.prompts import class_embeddings, fill, prompt_numbers
from clipx.evaluate.zero_shot import num_classes_above

NAMES = [f"thing {i}" for i in range(9)]
TEMPLATES = ["a photo of a {c}.", "{c}", "look, {c} and {c}!"]
NUM_PICTURES = 31


@pytest.fixture(scope="module")
def pretrained():
    return tiny_pretrained()


@pytest.fixture(scope="module")
def ranking(pretrained):
    """For each picture the classes from nearest to farthest; one picture, one prompt at a time, in numpy."""
    classes = []
    for name in NAMES:
        prompts = [pretrained.encode_text(t.replace("{c}", name))[0].double().numpy() for t in TEMPLATES]
        mean = np.mean(prompts, axis=0)
        classes.append(mean / np.linalg.norm(mean))
    images = [pretrained.encode_image(decode_image(encoded(picture(i))))[0] for i in range(NUM_PICTURES)]
    return [np.argsort(-np.array(classes) @ image.double().numpy()).tolist() for image in images]


@pytest.mark.parametrize("batch_size", [7, 256])
def test_figures_equal_a_textbook(tmp_path, pretrained, ranking, batch_size):
    places = [i % 4 * 2 for i in range(NUM_PICTURES)]  # where the right class stands in the ranking
    labels = [order[place] for order, place in zip(ranking, places, strict=True)]
    assert len(set(labels)) < len(NAMES), "a class without pictures is part of the test"
    recalls = [
        np.mean([place == 0 for place, label in zip(places, labels, strict=True) if label == c]) for c in set(labels)
    ]
    folder = write_classification_set(tmp_path, labels, class_names=NAMES, templates=TEMPLATES)
    figures = run_evaluation(ZeroShotConfig(data=str(folder), batch_size=batch_size), pretrained, None)
    assert figures == pytest.approx(
        {
            "acc1": np.mean([place < 1 for place in places]),
            "acc5": np.mean([place < 5 for place in places]),
            "mean_per_class_recall": np.mean(recalls),
        },
        abs=1e-12,
    )
    assert figures == evaluate_folder(pretrained, folder, batch_size=batch_size, group=None)


def test_the_nearest_classes_as_labels_give_full_marks(tmp_path, pretrained):
    classes_CD = class_embeddings(pretrained, NAMES, templates=TEMPLATES, batch_size=8, group=None)
    labels = (pretrained.encode_image([picture(i) for i in range(20)]) @ classes_CD.T).argmax(1).tolist()
    folder = write_classification_set(tmp_path, labels, class_names=NAMES, templates=TEMPLATES)
    figures = evaluate_folder(pretrained, folder, batch_size=8, group=None)
    assert figures == {"acc1": 1.0, "acc5": 1.0, "mean_per_class_recall": 1.0}


def test_class_embeddings_are_unit_means_of_their_prompts(pretrained):
    classes_CD = class_embeddings(pretrained, NAMES, templates=TEMPLATES, batch_size=4, group=None)
    one = pretrained.encode_text([fill(template, NAMES[3]) for template in TEMPLATES]).double().mean(0)
    torch.testing.assert_close(classes_CD[3].double(), one / one.norm(), atol=1e-6, rtol=0)
    assert (classes_CD.dtype, tuple(classes_CD.shape)) == (torch.float32, (9, 24))


ALIKE = ["crane", "missile", "sun", "Missile", "sunglasses", "crane", "word " * 30 + "one", "word " * 30 + "two"]
"""Of each other's prompts CLIP's tokenizer tells apart neither 0 and 5 nor 1 and 3 nor (cut) 6 and 7."""


@pytest.mark.parametrize(("batch_size", "like"), [(3, None), (256, None), (7, "clip_benchmark")])
@pytest.mark.parametrize("templates", [["a photo of a {c}.", "{c}"], ["{c}"]])
def test_classes_with_equal_prompts_share_the_credit_as_in_clip_benchmark(
    tmp_path, pretrained, templates, batch_size, like
):
    classes_CD = []
    for name in ALIKE:
        texts = [pretrained.encode_text(template.replace("{c}", name))[0].double().numpy() for template in templates]
        classes_CD.append(np.mean(texts, axis=0) / np.linalg.norm(np.mean(texts, axis=0)))
    scores = np.array(
        [pretrained.encode_image(picture(i))[0].double().numpy() @ np.array(classes_CD).T for i in range(24)]
    )
    assert (scores[:, 5] == scores[:, 0]).all()
    assert (scores[:, 7] == scores[:, 6]).all()
    labels = [int(np.argsort(-row)[i % 3]) for i, row in enumerate(scores)]
    labels[:2] = 0, 5
    folder = write_classification_set(tmp_path, labels, class_names=ALIKE, templates=templates)
    figures = evaluate_folder(pretrained, folder, batch_size=batch_size, group=None, like=like)
    assert figures == pytest.approx(clip_benchmark.classification(scores, labels), abs=1e-12)


def test_classes_are_equal_only_if_all_their_prompts_are(pretrained):
    cut = "word " * 20 + "{c}"
    names = ["cat", "dog", "Cat"]
    assert prompt_numbers(pretrained, names, templates=[cut]) == [0, 0, 0]
    assert prompt_numbers(pretrained, names, templates=[cut, "{c}"]) == [0, 1, 0]
    assert prompt_numbers(pretrained, names, templates=["{c}", cut]) == [0, 1, 0]


def test_each_picture_of_a_class_with_a_twin_is_a_hit_of_one_of_them(tmp_path, pretrained):
    names = ["crane", "heron", "crane"]
    classes_CD = class_embeddings(pretrained, names[:2], templates=["{c}"], batch_size=8, group=None)
    nearest = (pretrained.encode_image([picture(i) for i in range(12)]) @ classes_CD.T).argmax(1).tolist()
    for twin in (0, 2):
        labels = [twin if label == 0 else label for label in nearest]
        folder = write_classification_set(tmp_path / str(twin), labels, class_names=names, templates=["{c}"])
        figures = evaluate_folder(pretrained, folder, batch_size=8, group=None)
        assert figures["acc1"] == (1.0 if twin == 0 else np.mean([label == 1 for label in nearest]))
        assert figures["acc5"] == 1.0
        like = evaluate_folder(pretrained, folder, batch_size=8, group=None, like="clip_benchmark")
        assert np.isnan(like.pop("acc5"))
        assert like == {name: figures[name] for name in like}


def test_blank_lines_and_a_bom_are_neither_classes_nor_templates(tmp_path, pretrained):
    labels = [i % 3 for i in range(9)]
    plain = write_classification_set(
        tmp_path / "a", labels, class_names=["cat", "dog", "fox"], templates=["a {c}", "{c}!"]
    )
    spaced = write_classification_set(tmp_path / "b", labels, class_names=["\ufeffcat", "", "dog", " ", "fox", ""])
    (spaced / "zeroshot_classification_templates.txt").write_bytes("\ufeffa {c}\r\n\r\n{c}!\r\n\r\n".encode())
    expected = evaluate_folder(pretrained, plain, batch_size=8, group=None)
    assert evaluate_folder(pretrained, spaced, batch_size=8, group=None) == expected
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        whole = (spaced / name).read_bytes()
        (spaced / name).write_bytes(whole + "\n\u200b\ncow {c}\n".encode())
        with pytest.raises(InputError, match=rf"{name}: the line '\\u200b' shows nothing"):
            evaluate_folder(pretrained, spaced, batch_size=8, group=None)
        (spaced / name).write_bytes(whole)


@pytest.mark.parametrize("like", [None, "clip_benchmark"])
def test_nan_is_no_hit_even_among_few_classes(tmp_path, like):
    broken = tiny_pretrained()
    with torch.no_grad():
        broken.model.image_tower.trunk.patch_embed.proj.weight.fill_(float("nan"))
    folder = write_classification_set(tmp_path, [0, 1, 2, 0, 1], class_names=NAMES[:5])
    figures = evaluate_folder(broken, folder, batch_size=2, group=None, like=like)
    assert figures == {"acc1": 0.0, "acc5": 0.0, "mean_per_class_recall": 0.0}


def test_fill_leaves_other_braces_alone():
    assert fill("{c} {x} {} {c}", "a{c}") == "a{c} {x} {} a{c}"


@settings(max_examples=100)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.data())
def test_place_counts_classes_that_are_not_below(scores, data):
    label = data.draw(st.integers(0, len(scores) - 1))
    place = num_classes_above(torch.tensor([scores], dtype=torch.float32), torch.tensor([label]))
    assert int(place) == sum(score >= scores[label] for i, score in enumerate(scores) if i != label)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=7), st.data())
def test_of_equals_the_first_comes_first(classes, data):
    label = data.draw(st.integers(0, len(classes) - 1))
    score, equal = zip(*classes, strict=True)
    place = num_classes_above(
        torch.tensor([score], dtype=torch.float32), torch.tensor([label]), equals_C=torch.tensor(equal)
    )
    before = [
        other > score[label] or (other == score[label] and (i < label or equal[i] != equal[label]))
        for i, other in enumerate(score)
        if i != label
    ]
    assert int(place) == sum(before)


def test_equal_and_nan_scores_are_no_hits():
    flat, broken = torch.zeros(2, 6), torch.full((2, 6), float("nan"))
    labels = torch.tensor([0, 5])
    assert num_classes_above(flat, labels).tolist() == [5, 5]
    assert num_classes_above(broken, labels).tolist() == [5, 5]


def test_the_model_keeps_its_mode(tmp_path, pretrained):
    folder = write_classification_set(tmp_path, [0, 1, 2], class_names=NAMES)
    pretrained.model.train()
    try:
        evaluate_folder(pretrained, folder, batch_size=2, group=None)
        assert all(module.training for module in pretrained.model.modules())
    finally:
        pretrained.model.eval()


def test_checking_finds_what_evaluating_would_stumble_over(tmp_path):
    folder = write_classification_set(tmp_path / "set", [0, 1], class_names=NAMES)
    config = ZeroShotConfig(data=str(folder))
    check_evaluation(config)
    with pytest.raises(InputError, match="is a classification set"):
        check_evaluation(RetrievalConfig(data=str(folder)))
    with pytest.raises(InputError, match="absent: no such folder"):
        check_evaluation(ZeroShotConfig(data=str(tmp_path / "absent")))
    shard = folder / "test" / "1.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: 3 * 512])
    with pytest.raises(InputError, match=r"1.tar ends"):
        check_evaluation(config)
    shard.write_bytes(whole)
    write_tar(folder / "test" / "0.tar", [("x.gif", b""), ("x.cls", b"0")])
    with pytest.raises(InputError, match=r"sample x of .*0.tar has no webp"):
        check_evaluation(config)


def test_a_picture_that_cannot_be_decoded_is_bad_input(tmp_path, pretrained):
    folder = write_classification_set(tmp_path, [0, 1], class_names=NAMES)
    members = [("x.png", encoded(picture(0))), ("x.cls", b"0"), ("y.png", b"none"), ("y.cls", b"0")]
    write_tar(folder / "test" / "1.tar", members)
    with pytest.raises(InputError, match=r"1 pictures .*sample y of"):
        evaluate_folder(pretrained, folder, batch_size=2, group=None)
