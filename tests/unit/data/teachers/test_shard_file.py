"""The file of a shard's embeddings gives back what went in, and no damaged one is read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipx.data.teachers.shard_file import ShardFile, shard_to_parts

KEYS, ROWS = ["b", "a", "bad", "c"], [0, 1, -1, 2]
TEXTS = [["one", "two"], ["one"], ["three", "four", "five"]]
DIMS, VIEWS = [6, 10], 2


def unit(*shape: int, seed: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=-1, keepdim=True)


def bits(values: torch.Tensor) -> np.ndarray:
    return values.bfloat16().view(torch.int16).numpy().view(np.uint16)


IMAGES = [unit(3, VIEWS, dim, seed=dim) for dim in DIMS]
CAPTIONS = [unit(6, dim, seed=-dim) for dim in DIMS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    parts = shard_to_parts(KEYS, ROWS, TEXTS, list(map(bits, IMAGES)), list(map(bits, CAPTIONS)))
    (tmp_path / "0").write_bytes(b"".join(parts))
    return tmp_path / "0"


def test_rows_are_found_by_key_and_texts_by_what_they_say(path: Path) -> None:
    file = ShardFile(path, dims=DIMS, views=VIEWS)
    assert [file.row(key) for key in (*KEYS, "absent")] == [0, 1, -1, 2, None]
    assert file.places(0, ["two", "one", "three"]) == [1, 0, None]
    assert file.places(2, ["five", "five"]) == [5, 5]
    for teacher in range(2):
        for row in range(3):
            for view in range(VIEWS):
                found_BD = file.image(teacher, row, view)
                assert (found_BD.dtype, found_BD.shape) == (np.float32, (1, DIMS[teacher]))
                np.testing.assert_allclose(found_BD[0], IMAGES[teacher][row, view], atol=4e-3)
                assert abs(np.linalg.norm(found_BD[0].astype(np.float64)) - 1) < 1e-6
        np.testing.assert_allclose(file.texts(teacher, [5, 0]), CAPTIONS[teacher][[5, 0]], atol=4e-3)


def test_the_bits_are_those_of_bfloat16(path: Path) -> None:
    found_D = ShardFile(path, dims=DIMS, views=VIEWS).image(0, 2, 1)[0]
    stored_D = IMAGES[0][2, 1].bfloat16().float()
    np.testing.assert_allclose(found_D, stored_D / stored_D.double().norm(), rtol=2e-7)


def test_a_shard_without_good_samples(tmp_path: Path) -> None:
    nothing = [np.empty((0, VIEWS, 6), np.uint16)], [np.empty((0, 6), np.uint16)]
    (tmp_path / "0").write_bytes(b"".join(shard_to_parts(["a"], [-1], [], *nothing)))
    file = ShardFile(tmp_path / "0", dims=[6], views=VIEWS)
    assert (file.row("a"), file.row("b")) == (-1, None)


def opens(path: Path) -> bool:
    try:
        ShardFile(path, dims=DIMS, views=VIEWS)
    except ValueError:
        return False
    return True


def test_damage_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for name, content in {
        "cut": whole[:-3],
        "longer": whole + b"\0" * 64,
        "empty": b"",
        "header alone": whole[:48],
        "other magic": b"X" + whole[1:],
        "another key": whole[:70] + bytes([whole[70] ^ 1]) + whole[71:],
    }.items():
        path.write_bytes(content)
        assert not opens(path), name
    path.write_bytes(whole)
    for dims, views in (([6], VIEWS), ([10, 6], VIEWS), (DIMS, 3)):
        with pytest.raises(ValueError, match=r"not of this store|760 bytes, not 712"):
            ShardFile(path, dims=dims, views=views)


def test_what_is_no_unit_vector_is_damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20:] = bytes(20)  # the last text of the last teacher
    path.write_bytes(bytes(content))
    file = ShardFile(path, dims=DIMS, views=VIEWS)
    assert file.texts(1, [4]).shape == (1, 10)
    with pytest.raises(ValueError, match="not of unit length"):
        file.texts(1, [4, 5])
