import numpy as np
import pytest
import torch
from labelled_features import clouds, features

from clipx.errors import InputError
from clipx.evaluate import knn
from clipx.evaluate.knn import nearest, nearest_neighbours, votes

NAMES = [f"thing {i}" for i in range(5)]


@pytest.fixture(scope="module")
def parts():
    return clouds(300, spread=1.5), clouds(120, spread=1.5, seed=1)


@pytest.mark.parametrize("k", [1, 20, 300])
@pytest.mark.parametrize("tiles", [(512, 8192), (7, 32)])
def test_figures_equal_a_textbook(parts, monkeypatch, k, tiles):
    monkeypatch.setattr(knn, "_TEST", tiles[0])
    monkeypatch.setattr(knn, "_TRAIN", tiles[1])
    train, test = parts
    similarity_NM = test.image_ND.astype(np.float64) @ train.image_ND.T.astype(np.float64)
    rights, fives = [], []
    for similarity_M, label in zip(similarity_NM, test.label_N, strict=True):
        near = np.argsort(-similarity_M, kind="stable")[:k]
        vote_K = np.bincount(train.label_N[near], weights=np.exp(similarity_M[near] / 0.07), minlength=5)
        above = (np.delete(vote_K, label) >= vote_K[label]).sum()
        rights.append(above == 0)
        fives.append(above < 5)
    found = nearest_neighbours(train, test, class_names=NAMES, k=k, resamples=50)
    assert found.metrics["knn_acc1"] == np.mean(rights)
    assert found.metrics["knn_acc5"] == np.mean(fives)
    recalls = [np.mean(np.array(rights)[test.label_N == c]) for c in range(5)]
    assert found.metrics["knn_mean_per_class_recall"] == pytest.approx(np.mean(recalls), abs=1e-12)
    low, high = found.interval("knn_acc1")
    assert low <= np.mean(rights) <= high


@pytest.mark.parametrize("tile", [3, 8, 8192])
def test_of_equal_similarities_the_first_are_nearer(monkeypatch, tile):
    monkeypatch.setattr(knn, "_TRAIN", tile)
    train_MD = torch.tensor([[1.0], [2.0], [0.0], [2.0], [1.0], [3.0], [1.0], [2.0], [1.0], [0.0]])
    for rows in (train_MD, train_MD.numpy()):
        similarity_Bk, index_Bk = nearest(torch.tensor([[1.0], [0.0], [-1.0]]), rows, k=5)
        assert index_Bk.tolist() == [[0, 1, 3, 5, 7], [0, 1, 2, 3, 4], [0, 2, 4, 6, 9]]
        assert similarity_Bk[0].tolist() == [1.0, 2.0, 2.0, 3.0, 2.0]


def test_rows_in_a_file_give_the_same(parts, tmp_path, monkeypatch):
    train, test = parts
    expected = nearest_neighbours(train, test, class_names=NAMES, k=20)
    path = tmp_path / "rows"
    train.image_ND.tofile(path)
    mapped = features(np.zeros((0, 12)), train.label_N)
    object.__setattr__(mapped, "image_ND", np.memmap(path, np.float32, "r", shape=train.image_ND.shape))
    monkeypatch.setattr(knn, "_RESIDENT", 0)
    assert nearest_neighbours(mapped, test, class_names=NAMES, k=20).metrics == expected.metrics


def test_votes_are_weighted_by_similarity():
    similarity_Bk, label_Bk = torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[0, 2, 2]])
    expected = [1.0, 0.0, 2 * np.exp(-0.1 / 0.07)]
    assert votes(similarity_Bk, label_Bk, num_classes=3)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_classes_without_votes_and_equal_votes_count_against():
    train = features(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), [0, 1, 2, 2])
    test = features(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), [0, 2, 1])
    found = nearest_neighbours(train, test, class_names=NAMES[:3], k=2)
    assert found.metrics["knn_acc1"] == 1 / 3, "the first is a tie of two classes, the last has no vote"


@pytest.mark.parametrize("k", [0, 301])
def test_more_neighbours_than_training_images_are_refused(parts, k):
    with pytest.raises(InputError, match=f"--knn {k}: the training part has 300 images"):
        nearest_neighbours(*parts, class_names=NAMES, k=k)
