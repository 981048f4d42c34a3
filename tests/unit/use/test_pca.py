from pathlib import Path

import numpy as np
import pytest

from clipx.errors import InputError
from clipx.use.pca import PCA, Moments, encoded_moments, fit, read_moments

N, D, K = 300, 12, 4


def unit(x_BD: np.ndarray) -> np.ndarray:
    return (x_BD / np.linalg.norm(x_BD, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def pictures() -> np.ndarray:
    generator = np.random.default_rng(0)
    return unit(generator.normal(size=(N, D)) * np.linspace(2, 0.1, D) + 0.3)


@pytest.fixture
def texts() -> np.ndarray:
    generator = np.random.default_rng(1)
    return unit(generator.normal(size=(N // 2, D)) * np.linspace(2, 0.1, D) - 0.5)


def test_components_are_those_of_the_centred_embeddings(pictures: np.ndarray, texts: np.ndarray) -> None:
    parts = [Moments.of(pictures[:100]), Moments.of(pictures[100:])]
    pca = fit({"image": parts[0] + parts[1], "text": Moments.of(texts)}, K, embed_dim=D)
    centred = [x_ND.astype(np.float64) - x_ND.mean(axis=0, dtype=np.float64) for x_ND in (pictures, texts)]
    _, singular_D, directions_DD = np.linalg.svd(np.concatenate(centred), full_matrices=False)
    np.testing.assert_allclose(np.abs(pca.components_KD @ directions_DD[:K].T), np.eye(K), atol=1e-9)
    np.testing.assert_allclose(pca.variance_K, singular_D[:K] ** 2 / (N + N // 2))
    assert pca.explained_variance == pytest.approx((singular_D[:K] ** 2).sum() / (singular_D**2).sum())
    np.testing.assert_allclose(pca.means["text"], texts.mean(axis=0, dtype=np.float64))
    largest_K = pca.components_KD[np.arange(K), np.abs(pca.components_KD).argmax(axis=1)]
    assert (largest_K > 0).all()


def test_all_components_keep_the_angles_between_centred_embeddings(pictures: np.ndarray) -> None:
    pca = fit({"image": Moments.of(pictures)}, D, embed_dim=D)
    centred_ND = unit(pictures - pictures.mean(axis=0))
    projected_ND = pca.project(pictures, "image")
    np.testing.assert_allclose(projected_ND @ projected_ND.T, centred_ND @ centred_ND.T, atol=1e-5)
    assert pca.explained_variance == pytest.approx(1)
    assert not pca.means["text"].any()


def test_rows_without_an_embedding_count_for_nothing(pictures: np.ndarray) -> None:
    with_gaps_ND = np.concatenate([pictures, np.zeros((50, D), np.float32)])
    pca = fit({"image": Moments.of(with_gaps_ND)}, K, embed_dim=D)
    np.testing.assert_allclose(pca.components_KD, fit({"image": Moments.of(pictures)}, K, embed_dim=D).components_KD)
    projected_NK = pca.project(with_gaps_ND, "image")
    assert not projected_NK[N:].any()
    np.testing.assert_allclose(np.linalg.norm(projected_NK[:N], axis=1), 1, rtol=1e-6)


def test_files_give_it_back_to_the_bit(pictures: np.ndarray, tmp_path: Path) -> None:
    moments = {"image": Moments.of(pictures)}
    (tmp_path / "moments.npz").write_bytes(encoded_moments(moments))
    pca = fit(read_moments(tmp_path / "moments.npz"), K, embed_dim=D)
    assert pca.encoded() == fit(moments, K, embed_dim=D).encoded()
    (tmp_path / "pca.npz").write_bytes(pca.encoded())
    again = PCA.load(tmp_path / "pca.npz")
    assert (again.project(pictures, "image") == pca.project(pictures, "image")).all()
    assert again.explained_variance == pca.explained_variance
    for damaged in (b"rubbish", pca.encoded()[:-40], b""):
        (tmp_path / "pca.npz").write_bytes(damaged)
        with pytest.raises(InputError, match="embed again"):
            PCA.load(tmp_path / "pca.npz")


def test_too_many_components(pictures: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"pca:13: embeddings of this model have 12 numbers"):
        fit({"image": Moments.of(pictures)}, 13, embed_dim=D)
    with pytest.raises(InputError, match=r"needs more than 4 embeddings, and here are 4"):
        fit({"image": Moments.of(pictures[:4])}, K, embed_dim=D)
