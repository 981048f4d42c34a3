import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import clip_benchmark
from shard_files import write_tar
from tiny_clip import encoded, picture, tiny_pretrained, write_retrieval_set

from clipx.config.evaluate import RetrievalConfig
from clipx.errors import InputError
from clipx.evaluate import check_evaluation, evaluate_folder, run_evaluation
from clipx.evaluate.nearest import DEPTHS, recall

CAPTIONS = [[f"picture {i}"] + ([f"number {i}", "seen twice"] if i % 3 == 0 else []) for i in range(29)]


@pytest.fixture(scope="module")
def pretrained():
    return tiny_pretrained()


def textbook(scores, right):
    """Recall from the whole matrix of scores and a matrix that marks what is right; no ties."""
    order = np.argsort(-scores, axis=1)
    sorted_right = np.take_along_axis(right, order, axis=1)
    return [float(sorted_right[:, :k].any(axis=1).mean()) for k in DEPTHS]


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_recall_equals_the_whole_matrix_for_every_size_of_tile(num_queries, num_candidates, rows, columns, seed):
    generator = np.random.default_rng(seed)
    queries, candidates = generator.normal(size=(num_queries, 5)), generator.normal(size=(num_candidates, 5))
    right = generator.random((num_queries, num_candidates)) < 0.1
    right[np.arange(num_queries), generator.integers(num_candidates, size=num_queries)] = True
    pairs = torch.from_numpy(generator.permutation(np.argwhere(right)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_module(), "_QUERIES", rows)
        patch.setattr(nearest_module(), "_CANDIDATES", columns)
        found = recall(torch.from_numpy(queries), torch.from_numpy(candidates), pairs, group=None)
    assert found == pytest.approx(textbook(queries @ candidates.T, right), abs=1e-12)


def nearest_module():
    import importlib

    return importlib.import_module("clipx.evaluate.nearest")


def test_ties_and_nan_count_against_the_model():
    pairs = torch.stack([torch.arange(12), torch.arange(12)], dim=1)
    same, broken = torch.ones(12, 3), torch.full((12, 3), float("nan"))
    assert recall(same, same, pairs, group=None) == [0, 0, 0]
    assert recall(broken, broken, pairs, group=None) == [0, 0, 0]
    assert recall(torch.eye(12), torch.eye(12), pairs, group=None) == [1, 1, 1]


def test_of_one_row_the_first_is_nearer_and_other_ties_count_against():
    query, rows = torch.ones(4, 1), torch.ones(2, 1)
    pairs = torch.tensor([[0, 0], [1, 1], [2, 2], [3, 3]])
    alone = recall(query, rows[:1], pairs, group=None, row_C=torch.tensor([0, 0, 0, 0]))
    assert alone == [1 / 4, 1, 1]
    others = torch.tensor([0, 1, 1, 1, 1, 1, 0])  # 5 of the other row, whose first four are correct for one each
    assert recall(query, rows, pairs, group=None, row_C=others) == [0, 3 / 4, 1]
    assert recall(query, rows, pairs, group=None, row_C=others, ties="by order") == [1 / 4, 1, 1]


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_recall_by_order_equals_clip_benchmarks_for_every_size_of_tile(num_images, num_texts, rows, columns, seed):
    """Few different scores, several candidates with one row, and images without text."""
    draw = np.random.default_rng(seed)
    images, texts = draw.integers(-1, 2, size=(num_images, 2)), draw.integers(-1, 2, size=(6, 2))
    row = draw.integers(6, size=num_texts)
    image = draw.integers(num_images, size=num_texts)
    pairs = torch.from_numpy(draw.permutation(np.stack([image, np.arange(num_texts)], axis=1)))
    of_images, of_texts = (torch.from_numpy(embedding).float() for embedding in (images, texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_module(), "_QUERIES", rows)
        patch.setattr(nearest_module(), "_CANDIDATES", columns)
        to_text = recall(of_images, of_texts, pairs, group=None, row_C=torch.from_numpy(row), ties="by order")
        to_image = recall(of_texts[row], of_images, pairs.flip(1), group=None, ties="by order")
    expected = clip_benchmark.retrieval(texts[row] @ images.T, image.tolist(), DEPTHS)
    assert [*to_text, *to_image] == pytest.approx(list(expected.values()), abs=1e-12)


def test_scores_are_not_rounded_by_autocast():
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(64, 1, generator=generator) * 1e-3 + torch.ones(64, 8), dim=1)
    rows = torch.nn.functional.normalize(rows + 1e-3 * torch.randn(64, 8, generator=generator), dim=1)
    pairs = torch.stack([torch.arange(64), torch.arange(64)], dim=1)
    plain = recall(rows, rows, pairs, group=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert recall(rows, rows, pairs, group=None) == plain


@pytest.mark.parametrize("batch_size", [8, 64])
def test_figures_equal_a_textbook_with_several_and_shared_captions(tmp_path, pretrained, batch_size):
    folder = write_retrieval_set(tmp_path, CAPTIONS)
    figures = run_evaluation(RetrievalConfig(data=str(folder), batch_size=batch_size), pretrained, None)
    texts = list(dict.fromkeys(caption for captions in CAPTIONS for caption in captions))
    images = pretrained.encode_image([picture(i) for i in range(len(CAPTIONS))]).double().numpy()
    scores = images @ pretrained.encode_text(texts).double().numpy().T
    right = np.array([[text in captions for text in texts] for captions in CAPTIONS])
    expected = dict(zip([f"image_to_text_recall@{k}" for k in DEPTHS], textbook(scores, right), strict=True))
    expected |= dict(zip([f"text_to_image_recall@{k}" for k in DEPTHS], textbook(scores.T, right.T), strict=True))
    assert figures == pytest.approx(expected, abs=1e-12)
    assert figures == evaluate_folder(pretrained, folder, batch_size=batch_size, group=None)
    assert any(0 < value < 1 for value in figures.values())


LINES = [[f"picture {i}", "the same", f"{i}"] + (["", "THE same"] if i % 3 == 0 else []) for i in range(23)] + [
    [],
    [""],
]
"""Equal captions of different pictures, equal but for their case, blank lines, a picture without any line."""


@pytest.mark.parametrize("batch_size", [5, 64])
def test_like_clip_benchmark_every_line_counts_for_its_own_picture_alone(tmp_path, pretrained, batch_size):
    folder = write_retrieval_set(tmp_path, LINES)
    lines = [("\n".join(of_image)).splitlines() for of_image in LINES]
    texts = [line for of_image in lines for line in of_image]
    image_T = [i for i, of_image in enumerate(lines) for _ in of_image]
    image_ND = pretrained.encode_image([picture(i) for i in range(len(lines))]).double().numpy()
    text_TD = np.array([pretrained.encode_text(text)[0].double().numpy() for text in texts])
    figures = evaluate_folder(pretrained, folder, batch_size=batch_size, group=None, like="clip_benchmark")
    assert figures == pytest.approx(clip_benchmark.retrieval(text_TD @ image_ND.T, image_T, DEPTHS), abs=1e-12)
    with pytest.raises(InputError, match="caption under 'txt' is empty"):
        evaluate_folder(pretrained, folder, batch_size=batch_size, group=None)


def test_without_shared_captions_and_blank_lines_the_figures_are_clip_benchmarks(tmp_path, pretrained):
    folder = write_retrieval_set(tmp_path, [[f"picture {i}", f"number {i}"] for i in range(25)])
    figures = evaluate_folder(pretrained, folder, batch_size=8, group=None)
    assert figures == evaluate_folder(pretrained, folder, batch_size=8, group=None, like="clip_benchmark")


@pytest.mark.parametrize("like", [None, "clip_benchmark"])
def test_of_equal_images_the_first_has_the_credit(tmp_path, pretrained, like):
    folder = write_retrieval_set(tmp_path, [])
    seeds = [i % 8 for i in range(20)]
    members = [
        member
        for i, seed in enumerate(seeds)
        for member in ((f"{i:02d}.png", encoded(picture(seed))), (f"{i:02d}.txt", f"number {i}".encode()))
    ]
    write_tar(folder / "test" / "0.tar", members)
    image_ND = np.array([pretrained.encode_image(picture(seed))[0].double().numpy() for seed in seeds])
    text_TD = np.array([pretrained.encode_text(f"number {i}")[0].double().numpy() for i in range(20)])
    expected = clip_benchmark.retrieval(text_TD @ image_ND.T, range(20), DEPTHS)
    for batch_size in (3, 64):
        found = evaluate_folder(pretrained, folder, batch_size=batch_size, group=None, like=like)
        to_image = {name: value for name, value in found.items() if name.startswith("text_to_image")}
        assert to_image == pytest.approx({name: expected[name] for name in to_image}, abs=1e-12)
    assert expected["text_to_image_recall@1"] > 0


def test_captions_that_the_model_cannot_tell_apart_are_one_text(tmp_path, pretrained):
    spelt = write_retrieval_set(
        tmp_path / "a", [[f"picture {i}", "The  Same" if i % 2 else "the same"] for i in range(12)]
    )
    alike = write_retrieval_set(tmp_path / "b", [[f"picture {i}", "the same"] for i in range(12)])
    blank = write_retrieval_set(
        tmp_path / "c", [["\ufeff" * (i == 0) + f"picture {i}", "&nbsp;", "", "the same", "\u200b"] for i in range(12)]
    )
    figures = [evaluate_folder(pretrained, folder, batch_size=8, group=None) for folder in (spelt, alike, blank)]
    assert figures[0] == figures[1] == figures[2]


def test_shards_outside_the_layout_are_named_as_in_training(tmp_path, pretrained):
    for shard in range(2):
        members = [
            (f"{shard}{i}.{extension}", data)
            for i in range(3)
            for extension, data in (
                ("png", encoded(picture(3 * shard + i))),
                ("json", f'{{"captions": ["a {shard}{i}", "b {shard}{i}"]}}'.encode()),
            )
        ]
        write_tar(tmp_path / f"{shard:05d}.tar", members)
    config = RetrievalConfig(data=f"{tmp_path}/{{00000..00001}}.tar", caption_key="json:captions")
    whole = run_evaluation(config, pretrained, None)
    assert whole == run_evaluation(RetrievalConfig(data=str(tmp_path), caption_key="json:captions"), pretrained, None)
    assert whole["image_to_text_recall@10"] <= 1
    assert whole["text_to_image_recall@10"] == 1  # six pictures
    with pytest.raises(InputError):
        run_evaluation(RetrievalConfig(data=str(tmp_path / "none*.tar")), pretrained, None)
    with pytest.raises(InputError, match="no caption under 'txt'"):
        run_evaluation(RetrievalConfig(data=str(tmp_path)), pretrained, None)


def test_checking_reads_the_first_sample(tmp_path):
    folder = write_retrieval_set(tmp_path, [["one"], ["two"]])
    check_evaluation(RetrievalConfig(data=str(folder)))
    with pytest.raises(InputError, match="no caption under 'caption'"):
        check_evaluation(RetrievalConfig(data=str(folder), caption_key="caption"))


def test_a_folder_that_does_not_exist_is_bad_input(tmp_path, pretrained):
    with pytest.raises(InputError, match="no such folder"):
        evaluate_folder(pretrained, tmp_path / "absent", batch_size=2, group=None)
