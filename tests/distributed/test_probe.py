import pytest
import torch.distributed as dist
from distributed.ranks import run_ranks
from labelled_features import clouds, features

from clipx.errors import InputError
from clipx.evaluate import knn
from clipx.evaluate.knn import nearest_neighbours
from clipx.evaluate.probe import few_shot_probe, linear_probe

NAMES = [f"thing {i}" for i in range(5)]


def figures(group):
    knn._TEST = 16
    train, test = clouds(120, width=6, spread=1.5), clouds(70, width=6, spread=1.5, seed=1)
    found = [
        linear_probe(train, test, class_names=NAMES, group=group),
        few_shot_probe(train, test, class_names=NAMES, shots=(2,), num_seeds=2, group=group),
        nearest_neighbours(train, test, class_names=NAMES, k=7, group=group),
    ]
    return [one.metrics | one.derived for one in found]


def figures_together():
    return figures(dist.group.WORLD)


def refuse_together():
    train = clouds(20)
    test = features(train.image_ND, train.label_N + 5)
    linear_probe(train, test, class_names=[*NAMES, *NAMES], group=dist.group.WORLD)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_has_the_same_figures(world_size, monkeypatch):
    monkeypatch.setattr(knn, "_TEST", 16)
    assert run_ranks(figures_together, world_size) == [figures(None)] * world_size


def test_all_ranks_refuse_parts_that_do_not_fit():
    with pytest.raises(InputError, match="no training image"):
        run_ranks(refuse_together, 2)
