import pytest

from clipx.config.geometry import micro_batch_sizes, resolve_geometry
from clipx.errors import InputError


def test_auto_is_the_whole_share_of_a_rank() -> None:
    geometry = resolve_geometry(96, "auto", 4)
    assert (geometry.rank_batch_size, geometry.micro_batch_size, geometry.num_micro_batches) == (24, 24, 1)


def test_micro_batches_divide_the_share() -> None:
    geometry = resolve_geometry(96, 6, 4)
    assert geometry.num_micro_batches == 4


def test_pictures_stay_with_their_captions() -> None:
    assert resolve_geometry(120, 10, 4, captions_per_image=5).num_micro_batches == 3
    assert micro_batch_sizes(30, 5) == [5, 10, 15, 30]
    with pytest.raises(InputError, match=r"micro_batch_size=6 .* a multiple of data.captions_per_image=5.*: 5, 10$"):
        resolve_geometry(120, 6, 4, captions_per_image=5)
    with pytest.raises(InputError, match=r"the 4 processes with 5 captions per image; nearest that are: 80, 100$"):
        resolve_geometry(90, "auto", 4, captions_per_image=5)


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "named"),
    [(100, "auto", 3, "99, 102"), (2, "auto", 3, "3"), (96, 5, 4, "4, 6"), (96, 50, 4, "24")],
)
def test_what_does_not_divide_names_the_nearest(batch: int, micro: int, ranks: int, named: str) -> None:
    with pytest.raises(InputError, match=f": {named}$"):
        resolve_geometry(batch, micro, ranks)
