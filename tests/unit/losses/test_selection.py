"""Chosen batches against the float64 textbook, and what must hold of every choice."""

import math
from typing import Any, get_args

import pytest
import torch
from reference.selection import Model, joint_selection
from torch import Tensor
from torch.nn.functional import normalize

from clipx.losses.selection import Choice, JointSelection, Kind, Score, gumbel_noise
from clipx.types import Embeddings

N, G, D = 36, 12, 8
CPU = torch.device("cpu")
SCALES = {"learner": 5.0, "reference": 9.0}
BIASES = {"learner": -2.0, "reference": -4.0}


def _pairs(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image_ND, text_ND = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    return normalize(image_ND, dim=1).to(dtype), normalize(image_ND + text_ND, dim=1).to(dtype)


def _embeddings(name: str, dtype: torch.dtype = torch.float64) -> Embeddings:
    image_BD, text_BD = _pairs(len(name), dtype)
    wide = torch.promote_types(dtype, torch.float32)
    scale, bias = (torch.tensor([values[name]], dtype=wide) for values in (SCALES, BIASES))
    return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=scale, logit_bias=bias)


def _ids() -> Tensor:
    ids_N = torch.arange(N)
    ids_N[[7, 8, 30]] = 3  # pairs that are no negatives of each other
    return ids_N


def _choose(select: JointSelection, *, dtype: torch.dtype = torch.float64, index: int = 2, **given: Any) -> Choice:
    needed = {"learner": select.score != "easy_reference", "reference": select.score != "hard_learner"}
    models: dict[str, Any] = {
        name: _embeddings(name, dtype) if is_needed else None for name, is_needed in needed.items()
    }
    return select(**{**models, "ids_B": _ids(), **given}, index=index, group=None)


def _textbook(kind: Kind, score: Score, *, chunks: int, gain: float, seed: int) -> tuple[list[int], dict[str, Tensor]]:
    models = {
        name: Model(*_pairs(len(name)), SCALES[name], BIASES[name] if kind == "sigmoid" else 0.0) for name in SCALES
    }
    return joint_selection(
        None if score == "easy_reference" else models["learner"],
        None if score == "hard_learner" else models["reference"],
        ids_N=_ids(),
        kind=kind,
        score=score,
        size=G,
        gain=gain,
        noises=list(gumbel_noise(seed, index=2, chunks=chunks, size=N, device=CPU)),
    )


@pytest.mark.parametrize("chunks", [1, 3, 12])
@pytest.mark.parametrize("score", get_args(Score))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_choice_and_losses_are_the_textbooks(kind: Kind, score: Score, chunks: int) -> None:
    for seed in range(3):
        select = JointSelection(kind=kind, score=score, size=G, chunks=chunks, gain=2.0, seed=seed, tile_size=5)
        choice = _choose(select)
        places, losses = _textbook(kind, score, chunks=chunks, gain=2.0, seed=seed)
        assert choice.places_G.tolist() == places
        rest = [place for place in range(N) if place not in places]
        expected = {f"select/{name}_loss": loss_N[places].mean() for name, loss_N in losses.items()}
        expected |= {f"select/{name}_loss_rest": loss_N[rest].mean() for name, loss_N in losses.items()}
        for name, value in expected.items():
            assert float(choice.figures[name]) == pytest.approx(float(value), abs=1e-10)
        assert len(choice.figures) == len(expected) + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_embeddings_are_scored_in_at_least_float32(dtype: torch.dtype) -> None:
    choice = _choose(JointSelection(kind="info_nce", score="learnability", size=G, chunks=3), dtype=dtype)
    wide = {name: _embeddings(name, dtype) for name in SCALES}
    exact = {
        name: Embeddings(image_BD=x.image_BD.double(), text_BD=x.text_BD.double(), logit_scale=x.logit_scale.double())
        for name, x in wide.items()
    }
    expected = _choose(JointSelection(kind="info_nce", score="learnability", size=G, chunks=3), **exact)
    assert choice.places_G.equal(expected.places_G)
    for name, value in expected.figures.items():
        assert float(choice.figures[name]) == pytest.approx(float(value), abs=1e-5)
        assert choice.figures[name].dtype == torch.float32


def test_another_seed_batch_or_chunk_draws_others() -> None:
    draws = [
        _choose(JointSelection(kind="info_nce", score="learnability", size=G, chunks=3, seed=seed), index=index)
        for seed, index in ((0, 2), (1, 2), (0, 3), (0, 2))
    ]
    places = [draw.places_G.tolist() for draw in draws]
    assert places[0] == places[3]
    assert places[0] != places[1]
    assert places[0] != places[2]
    noises = gumbel_noise(0, index=2, chunks=2, size=N, device=CPU)
    assert not noises[0].equal(noises[1])


def test_noise_has_gumbels_distribution() -> None:
    noise_N = gumbel_noise(3, index=1, chunks=2, size=100_000, device=CPU).flatten()
    assert float(noise_N.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise_N.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    below = (noise_N < 0.5).double().mean()
    assert float(below) == pytest.approx(math.exp(-math.exp(-0.5)), abs=0.005)
    assert noise_N.isfinite().all()


@pytest.mark.parametrize("place", [0, 1])
def test_one_equal_id_of_several_is_enough(place: int) -> None:
    select = JointSelection(kind="info_nce", score="learnability", size=G, chunks=4)
    alone_B = torch.arange(N)
    ids_BC, alike_B = torch.stack([alone_B, alone_B], dim=1), alone_B % 5
    apart, alike = (_choose(select, ids_B=ids_B).figures for ids_B in (alone_B, alike_B))
    assert _choose(select, ids_B=ids_BC).figures == apart != alike
    ids_BC[:, place] = alike_B
    assert _choose(select, ids_B=ids_BC).figures == alike


def test_first_chunk_is_drawn_by_the_softmax_of_scores() -> None:
    """Of one pair drawn from few: how often each comes, over many batches."""
    image_BD = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    cosines = torch.tensor([0.9, 0.5, 0.1, -0.3])
    text_BD = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    learner = Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=torch.tensor([2.0]))
    select = JointSelection(kind="info_nce", score="hard_learner", size=1, chunks=1)
    counts = torch.zeros(4)
    for index in range(4000):
        choice = select(learner=learner, reference=None, ids_B=torch.arange(4), index=index, group=None)
        counts[choice.places_G] += 1
    torch.testing.assert_close(counts / 4000, torch.softmax(-2 * cosines, dim=0), atol=0.02, rtol=0)


def test_pairs_that_are_no_numbers_come_last_and_nobody_twice() -> None:
    learner = _embeddings("learner")
    broken = learner.image_BD.clone()
    broken[:20] = torch.nan
    select = JointSelection(kind="info_nce", score="hard_learner", size=G, chunks=1)
    given = Embeddings(image_BD=broken, text_BD=learner.text_BD, logit_scale=learner.logit_scale)
    assert _choose(select, learner=given).places_G.min() >= 20
    all_broken = Embeddings(image_BD=broken * torch.nan, text_BD=learner.text_BD, logit_scale=learner.logit_scale)
    select = JointSelection(kind="info_nce", score="hard_learner", size=G, chunks=4)
    assert len(set(_choose(select, learner=all_broken).places_G.tolist())) == G


def test_all_are_chosen_where_all_are_kept() -> None:
    select = JointSelection(kind="sigmoid", score="learnability", size=N, chunks=4)
    choice = _choose(select)
    assert choice.places_G.tolist() == list(range(N))
    assert float(choice.figures["select/score_rest"]) == 0


def test_easy_and_hard_prefer_what_they_say() -> None:
    """With a large gain the choice is the best by the score."""
    for score, sign in (("hard_learner", -1), ("easy_reference", 1)):
        select = JointSelection(kind="info_nce", score=score, size=G, chunks=1, gain=1e6)  # type: ignore[arg-type]
        places = _choose(select).places_G
        image_ND, text_ND = _pairs(len("learner" if sign < 0 else "reference"))
        own_N = sign * (image_ND * text_ND).sum(1)
        assert set(places.tolist()) == set(own_N.topk(G).indices.tolist())
