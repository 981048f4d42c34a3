"""Figures of a fitted model on held-out samples: which rows count, what is taken away, and what comes of no looking."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fit_runs import NUM_TRAIN, NUM_VAL, row, sample, tiny_fit, write_table_shards
from shard_files import write_shards
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score
from torch.nn import functional

from clipx.config.fit import FitConfig
from clipx.config.fit_metrics import metric_names
from clipx.data.build import open_fit_samples
from clipx.data.in_order import InOrder, batches_in_order
from clipx.data.index.shard_index import build_index
from clipx.data.tokenizer import build_tokenizer
from clipx.evaluate.options import Evaluation
from clipx.evaluate.supervised import supervised
from clipx.models.fused import FusedModel, build_fused_model

ROWS = [row(NUM_TRAIN + i) for i in range(NUM_VAL)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FitConfig:
    folder = tmp_path_factory.mktemp("table")
    return tiny_fit(folder / "run", write_table_shards(folder))


@pytest.fixture
def model(config: FitConfig) -> FusedModel:
    return random_model(config)


def random_model(config: FitConfig) -> FusedModel:
    """In training mode; dropout would show."""
    model = build_fused_model(config, vocab_size=build_tokenizer(config.model.text).vocab_size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in ("scale_M", "log_logit_scale"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def blocks(config: FitConfig, shards: list[str] | None = None, *, batch_size: int = 10) -> Iterator[InOrder]:
    index = build_index(shards or list(config.data.val_shards or ()), index_dir=None)
    return batches_in_order(
        open_fit_samples(config, index),
        tokenizer=build_tokenizer(config.model.text),
        counts=index.counts,
        image_size=config.model.image.image_size,
        batch_size=batch_size,
    )


def evaluated(model: FusedModel, config: FitConfig, shards: list[str] | None = None) -> Evaluation:
    return supervised(model, config, blocks(config, shards), group=None)


def raw_outputs(model: FusedModel, config: FitConfig) -> torch.Tensor:
    (found,) = blocks(config, batch_size=NUM_VAL)
    with torch.no_grad():
        return model.eval()(found.batch, seed=0).raw_BO.double()


def test_every_figure_is_there_under_its_name(model: FusedModel, config: FitConfig) -> None:
    kinds = {name: target.type for name, target in config.targets.items()}
    assert set(evaluated(model, config).metrics) == set(metric_names(kinds, config.modalities))


def test_figures_count_the_rows_that_have_the_target_in_its_unit(model: FusedModel, config: FitConfig) -> None:
    found = evaluated(model, config).metrics
    raw_NO = raw_outputs(model, config)
    colour, price, tags = config.targets.values()
    guessed = [colour.classes[place] for place in raw_NO[:, :4].argmax(1)]
    assert found["colour/accuracy"] == accuracy_score([row["colour"] for row in ROWS], guessed)
    there = [place for place, row in enumerate(ROWS) if row["price"] is not None]
    assert 0 < len(there) < NUM_VAL
    prices = [ROWS[place]["price"] for place in there]
    guesses = [math.exp(raw_NO[place, 4] * price.std + price.mean) for place in there]
    assert found["price/mae"] == pytest.approx(mean_absolute_error(prices, guesses), rel=1e-5)
    assert found["price/r2"] == pytest.approx(r2_score(prices, guesses), rel=1e-5)
    shown = [[name in row["tags"] for name in tags.classes] for row in ROWS]
    assert found["tags/macro_f1"] == pytest.approx(f1_score(shown, raw_NO[:, 5:] >= 0, average="macro"))


def test_the_loss_is_the_weighted_sum_of_mean_losses(model: FusedModel, config: FitConfig) -> None:
    weighted = replace(config, targets={**config.targets, "price": replace(config.targets["price"], weight=0.25)})
    found, raw_NO = evaluated(model, weighted).metrics, raw_outputs(model, config)
    colour, price, tags = config.targets.values()
    classes = torch.tensor([colour.classes.index(row["colour"]) for row in ROWS])
    scaled = [math.nan if row["price"] is None else (math.log(row["price"]) - price.mean) / price.std for row in ROWS]
    there = [place for place, value in enumerate(scaled) if not math.isnan(value)]
    shown = torch.tensor([[float(name in row["tags"]) for name in tags.classes] for row in ROWS])
    losses = {
        "colour": functional.cross_entropy(raw_NO[:, :4], classes),
        "price": functional.huber_loss(raw_NO[there, 4], torch.tensor(scaled).double()[there]),
        "tags": functional.binary_cross_entropy_with_logits(raw_NO[:, 5:], shown.double()),
    }
    for name, loss in losses.items():
        assert found[f"{name}/loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found["loss"] == pytest.approx(float(losses["colour"] + 0.25 * losses["price"] + losses["tags"]), rel=1e-6)


@pytest.mark.parametrize(
    ("modality", "taken"), [("image", {"png"}), ("text", {"title"}), ("table", {"weight", "shop"})]
)
def test_a_modality_taken_away_is_as_one_that_is_absent(
    modality: str, taken: set[str], model: FusedModel, config: FitConfig, tmp_path: Path
) -> None:
    found = evaluated(model, config).metrics
    less = evaluated(model, config, complete_shards(tmp_path, taken)).metrics
    whole = evaluated(model, config, complete_shards(tmp_path, set())).metrics
    for metric in ("loss", "price/r2", "tags/auroc"):
        assert found[f"{metric}_without_{modality}"] == pytest.approx(less[metric], rel=1e-5)
        assert found[f"{metric}_complete"] == pytest.approx(whole[metric], rel=1e-5)
        assert len({round(value, 4) for value in (found[metric], less[metric], whole[metric])}) == 3


def complete_shards(folder: Path, taken: set[str]) -> list[str]:
    """The held-out samples with a picture and a title, without some of their members and columns."""
    samples: list[dict[str, bytes]] = []
    for place, held_out in enumerate(ROWS):
        members = sample(NUM_TRAIN + place)
        if "png" in members and held_out["title"] is not None:
            record = {name: value for name, value in json.loads(members["json"]).items() if name not in taken}
            kept = {name: content for name, content in members.items() if name not in taken}
            samples.append(kept | {"json": json.dumps(record).encode()})
    assert 0 < len(samples) < NUM_VAL
    name = "-".join(sorted(taken)) or "whole"
    write_shards(folder / name, [len(samples)], replaced=dict(enumerate(samples)))
    return [str(folder / name)]


def test_modes_come_back_and_nothing_is_drawn(model: FusedModel, config: FitConfig) -> None:
    model.text_tower.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    first = evaluated(model, config)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert evaluated(model, config) == first


def test_blocks_are_batches_and_no_more(model: FusedModel, config: FitConfig) -> None:
    whole = supervised(model, config, blocks(config, batch_size=NUM_VAL), group=None).metrics
    parts = supervised(model, config, blocks(config, batch_size=7), group=None).metrics
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_sample_that_cannot_be_read_is_left_out_and_named(
    model: FusedModel, config: FitConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {place: sample(NUM_TRAIN + place) for place in range(NUM_VAL)}
    samples[4]["png"] = b"no picture"
    write_shards(tmp_path / "bad", [NUM_VAL], replaced=samples)
    found = evaluated(model, config, [str(tmp_path / "bad")]).metrics
    assert "1 of 36 held-out samples cannot be read and are left out: " in caplog.text
    del samples[4]
    write_shards(tmp_path / "good", [NUM_VAL - 1], replaced=dict(enumerate(samples.values())))
    rest = evaluated(model, config, [str(tmp_path / "good")]).metrics
    assert found == pytest.approx(rest, rel=1e-4)


def test_a_model_that_gives_no_numbers_has_no_figures(model: FusedModel, config: FitConfig) -> None:
    with torch.no_grad():
        model.mean_MD.fill_(math.nan)
    assert evaluated(model, config).metrics == {}


def test_without_looking_the_most_frequent_class_and_the_mean_are_predicted(
    model: FusedModel, config: FitConfig
) -> None:
    counted = replace(config.targets["colour"], counts=(20, 21, 30, 25))
    changed = replace(config, targets={**config.targets, "colour": counted})
    trivial = evaluated(model, changed).derived
    assert trivial["colour/accuracy"] == sum(row["colour"] == "green" for row in ROWS) / NUM_VAL
    prices = [row["price"] for row in ROWS if row["price"] is not None]
    guess = math.exp(config.targets["price"].mean)
    assert trivial["price/mae"] == pytest.approx(mean_absolute_error(prices, [guess] * len(prices)), rel=1e-5)
    assert trivial["price/r2"] == pytest.approx(r2_score(prices, [guess] * len(prices)), abs=1e-5)
    assert trivial["colour/auroc"] == trivial["tags/auroc"] == 0.5
    shares = torch.tensor([20.0, 21, 30, 25]) / 96
    classes = [changed.targets["colour"].classes.index(row["colour"]) for row in ROWS]
    assert trivial["colour/loss"] == pytest.approx(float(-shares.log()[classes].mean()), rel=1e-6)


def test_a_label_is_as_probable_as_it_is_frequent_among_rows_that_have_labels(
    model: FusedModel, config: FitConfig
) -> None:
    """Of 96 rows 60 have labels, and 48 of these are even."""
    counted = replace(config.targets["tags"], num_rows=60)
    trivial = evaluated(model, replace(config, targets={**config.targets, "tags": counted})).derived
    share_L = torch.tensor([24, 24, 24, 24, 48]) / 60
    shown_NL = torch.tensor([[name in row["tags"] for name in counted.classes] for row in ROWS])
    expected = functional.binary_cross_entropy(share_L.expand(NUM_VAL, -1), shown_NL.float())
    assert trivial["tags/loss"] == pytest.approx(float(expected), rel=1e-5)
    shown = int(shown_NL[:, counted.classes.index("even")].sum())
    f1_of_even = 2 * shown / (shown + NUM_VAL)
    assert trivial["tags/macro_f1"] == pytest.approx(f1_of_even / len(counted.classes))
