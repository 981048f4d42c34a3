"""The product table is what claims about fitted models rest on: what is reachable must be as best.json says."""

import csv
import hashlib
import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipx.demo.product_table import (
    BRAND_FACTORS,
    BRANDS,
    COLUMNS,
    GROUP_ONE,
    GROUP_TWO,
    NOUNS,
    PACK_FACTORS,
    WARM_COLOURS,
    _best_prices,
    best_on_rows,
    best_possible,
    make_product,
    write_product_table,
)
from clipx.demo.scenes import COLOURS, SHAPES, SIZES
from clipx.errors import InputError

NUM_ROWS = 20_000


@pytest.fixture(scope="module")
def products():
    return [make_product(0, "train", index) for index in range(NUM_ROWS)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "products"
    _write(out)
    return out


def _write(out: Path, **overrides: int) -> None:
    write_product_table(out, **({"num_train": 25, "num_test": 10, "image_size": 32, "seed": 0} | overrides))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _shown(product):
    item = product.scene.objects[0]
    return item.colour, item.shape, item.size


def _said(product):
    return product.brand, product.pack


def _r2_of_means(products, values, knows) -> float:
    """R2 of the mean value of all rows about which the same is known: no predictor that knows this does better."""
    groups = defaultdict(list)
    for product, value in zip(products, values, strict=True):
        groups[knows(product)].append(value)
    # The mean of n rows is itself off by 1/n of the variance: n - 1 instead of n makes up for it.
    unexplained = sum(len(group) * np.var(group, ddof=1) for group in groups.values() if len(group) > 1)
    rows = sum(len(group) for group in groups.values() if len(group) > 1)
    return float(1 - unexplained / rows / np.var(values))


KNOWS = {
    "both": lambda product: (_shown(product)[1:], _said(product)),
    "photo": lambda product: _shown(product)[1:],
    "title": _said,
}


@pytest.mark.parametrize("there", KNOWS)
@pytest.mark.parametrize("measure", ["r2", "r2_log"])
def test_no_predictor_of_the_price_does_better_and_one_does_as_well(products, measure: str, there: str) -> None:
    values = [math.log(product.price) if measure == "r2_log" else product.price for product in products]
    assert _r2_of_means(products, values, KNOWS[there]) == pytest.approx(
        best_possible()["price"][measure][there], abs=0.01
    )


@pytest.mark.parametrize("measure", ["r2", "r2_log"])
def test_the_best_of_rows_as_they_are_is_that_of_a_mixture(products, measure: str) -> None:
    values = np.array([math.log(product.price) if measure == "r2_log" else product.price for product in products])
    there = np.array(["both" if p.has_photo and p.has_title else "photo" if p.has_photo else "title" for p in products])
    residuals = np.empty(len(values))
    for name, knows in KNOWS.items():
        means = defaultdict(list)
        for product, value in zip(products, values, strict=True):
            means[knows(product)].append(value)
        predicted = np.array([np.mean(means[knows(product)]) for product in products])
        residuals[there == name] = (values - predicted)[there == name]
    found = 1 - np.mean(residuals**2) / np.var(values)
    assert found == pytest.approx(best_possible()["price"][measure]["as_it_is"], abs=0.015)


@pytest.mark.parametrize("measure", ["r2", "r2_log"])
def test_the_best_predictor_reaches_on_many_rows_what_is_expected(products, measure: str) -> None:
    assert best_on_rows(products)[measure] == pytest.approx(best_possible()["price"][measure], abs=0.01)


def test_no_other_prices_fit_the_rows_better(products) -> None:
    """A factor on the best predictions, and an exponent, must both lose."""
    best = best_on_rows(products)["r2"]["title"]
    rows = [product for product in products if product.has_title]
    prices = np.array([product.price for product in rows])
    means = np.array([_best_prices(product, photo=False, title=True)[0] for product in rows])
    for other in (0.97 * means, 1.03 * means, means**1.03, means**0.97):
        assert 1 - np.mean((prices - other) ** 2) / prices.var() < best


def test_the_logarithm_of_the_price_is_a_sum_of_factors_and_noise(products) -> None:
    levels = [(BRANDS, lambda p: p.brand), (tuple(PACK_FACTORS), lambda p: p.pack)]
    levels += [(SHAPES, lambda p: _shown(p)[1]), (SIZES, lambda p: _shown(p)[2])]
    columns = [[value(p) == level for p in products] for names, value in levels for level in names[1:]]
    design = np.array([[1.0] * NUM_ROWS, *columns], dtype=float).T
    logs = np.log([product.price for product in products])
    _, squares, rank, _ = np.linalg.lstsq(design, logs, rcond=None)
    assert rank == design.shape[1]
    assert math.sqrt(squares[0] / NUM_ROWS) == pytest.approx(0.1, rel=0.02)


def test_a_gift_is_a_warm_colour_or_a_brand_of_group_one_and_not_both(products) -> None:
    for product in products[:200]:
        assert product.is_gift == ((_shown(product)[0] in WARM_COLOURS) + (product.brand in GROUP_ONE) == 1)


@pytest.mark.parametrize(
    "knows",
    [
        lambda product: _shown(product)[0],
        lambda product: _shown(product)[1],
        lambda product: product.brand,
        lambda product: product.pack,
        lambda product: product.title,
    ],
    ids=["colour", "shape", "brand", "pack", "title"],
)
def test_one_input_alone_tells_nothing_of_a_gift(products, knows) -> None:
    groups = defaultdict(list)
    for product in products:
        groups[knows(product)].append(product.is_gift)
    distances = {name: abs(np.mean(group) - 0.5) for name, group in groups.items()}
    # Five standard deviations; a group has 50 rows or more.
    far = [name for name, group in groups.items() if distances[name] > 2.5 / len(group) ** 0.5]
    assert min(map(len, groups.values())) >= 50
    assert far == []


def test_groups_are_halves_and_show_in_nothing_but_the_name() -> None:
    assert len(GROUP_ONE) == len(GROUP_TWO) == len(set(BRANDS)) / 2
    assert sorted(BRAND_FACTORS[name] for name in GROUP_ONE) == sorted(BRAND_FACTORS[name] for name in GROUP_TWO)
    assert len(WARM_COLOURS & set(COLOURS)) == len(COLOURS) / 2


def test_a_fifth_has_no_photo_and_a_fifth_no_title_and_none_has_neither(products) -> None:
    counts = Counter((product.has_photo, product.has_title) for product in products)
    assert counts == {(True, True): 0.6 * NUM_ROWS, (False, True): 0.2 * NUM_ROWS, (True, False): 0.2 * NUM_ROWS}


def test_the_best_category_is_certain_with_a_photo_and_the_most_frequent_one_without(products) -> None:
    best = best_possible()["category"]["accuracy"]
    share = max(Counter(product.category for product in products).values()) / NUM_ROWS
    assert best["title"] == pytest.approx(share, abs=0.01)
    assert best["as_it_is"] == pytest.approx(0.8 + 0.2 * share, abs=0.01)
    assert (best["both"], best["photo"]) == (1, 1)


def test_files_have_what_the_products_have(written) -> None:
    for split, count in (("train", 25), ("test", 10)):
        rows = _rows(written / f"{split}.csv")
        assert len(rows) == count
        for index, row in enumerate(rows):
            product = make_product(0, split, index)
            assert tuple(row) == COLUMNS
            assert row["id"] == product.id
            assert bool(row["photo"]) == product.has_photo
            assert row["title"] == (product.title if product.has_title else "")
            assert row["category"] == product.category
            assert float(row["price"]) == pytest.approx(product.price, abs=0.0051)
            assert row["gift"] == ("yes" if product.is_gift else "no")
            if product.has_photo:
                with Image.open(written / row["photo"]) as image:
                    assert image.size == (32, 32)
    assert len(list((written / "photos").iterdir())) == (25 + 10) * 4 // 5
    best = best_on_rows([make_product(0, "test", index) for index in range(10)])
    assert json.loads((written / "best.json").read_text()) == {"expected": best_possible(), "price_of_test_rows": best}


def test_a_title_says_neither_shape_nor_colour_nor_size(products) -> None:
    words = {word.strip(",") for product in products for word in product.title.lower().split()}
    assert words.isdisjoint({*SHAPES, *COLOURS, *SIZES})
    assert len(words) == len(BRANDS) + len(NOUNS) + len(("pack", "of")) + len(PACK_FACTORS)


def test_no_test_row_is_a_training_row(products) -> None:
    trained = {(product.scene.objects, product.price) for product in products}
    assert all((p.scene.objects, p.price) not in trained for p in (make_product(0, "test", i) for i in range(200)))


def test_equal_arguments_give_equal_bytes_and_another_seed_others(written, tmp_path) -> None:
    _write(tmp_path / "again")
    assert _digests(tmp_path / "again") == _digests(written)
    _write(tmp_path / "other", seed=1)
    assert _digests(tmp_path / "other")["train.csv"] != _digests(written)["train.csv"]
    _write(tmp_path / "longer", num_train=30)
    assert (tmp_path / "longer/train.csv").read_text().startswith((written / "train.csv").read_text())


def test_existing_folder_is_refused_and_left_alone(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine exists; remove it or write"):
        _write(tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())
