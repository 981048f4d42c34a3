"""The generated product table: photographs, titles and three columns to be predicted, with what is reachable known.

`clipx data synth --table`, the documentation and the tests fit models on it. A product is a pure function of (seed,
split, index). Its photograph is a scene of one object, which shows colour, shape and size; its title names brand and
pack. Nothing else tells of them, and what the photograph shows is independent of what the title says. Of the columns,

- `category` is the shape: the photograph alone tells it;
- `price` is a product of one factor each of shape, size, brand and pack, and of log-normal noise, so its logarithm is a
  sum, and the best possible R2 follows from the factors;
- `gift` is yes if either the colour is warm or the brand is of group one, and not both: half of the products of every
  colour and of every brand, so that the photograph alone and the title alone tell nothing at all.

In every five rows one has no photograph and another one no title.
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipx.demo.new_folder import new_folder
from clipx.demo.scenes import SEEN_CLASSES, SIZES, Scene, jpeg_of, make_single_scene

TableSplit = Literal["train", "test"]
COLUMNS = ("id", "photo", "title", "category", "price", "gift")
WARM_COLOURS = frozenset({"red", "yellow", "pink", "brown"})

# Products that come in any shape and colour; they have no influence.
NOUNS = ("magnet", "badge", "coaster", "sticker")
GROUP_ONE = ("Norda", "Besko", "Tarrin", "Quilla", "Alwin", "Velmo")
GROUP_TWO = ("Ostrel", "Lumeo", "Karvik", "Fendal", "Pirou", "Zemira")
BRANDS = GROUP_ONE + GROUP_TWO

_BASE_PRICE = 8.0
NOISE_STD = 0.1
"""Standard deviation of the logarithm of a price, all factors given."""
SHAPE_FACTORS = {
    "circle": 0.75, "square": 0.85, "triangle": 0.95, "star": 1.3, "cross": 1.0, "heart": 1.4, "ring": 1.15,
}  # fmt: skip
SIZE_FACTORS = dict(zip(SIZES, (0.8, 1.0, 1.3), strict=True))
# Equal in both groups, so that a price tells nothing of the group.
BRAND_FACTORS = dict(zip(BRANDS, (0.7, 0.8, 0.95, 1.05, 1.2, 1.4) * 2, strict=True))
PACK_FACTORS = {4: 0.8, 6: 1.0, 8: 1.2, 12: 1.4}
# All factors of a photograph, and of a title; of each list all are equally frequent.
_SHOWN = [SHAPE_FACTORS[name.split()[1]] * size for name in SEEN_CLASSES for size in SIZE_FACTORS.values()]
_SAID = [brand * pack for brand in BRAND_FACTORS.values() for pack in PACK_FACTORS.values()]

_ROWS_PER_ABSENCE = 5
# Beside the numbers of the scenes' own splits.
_STREAMS: dict[TableSplit, int] = {"train": 10, "test": 11}
_SCENE, _REST, _ABSENCE = range(3)


@dataclass(frozen=True)
class Product:
    """A row of the table, with what is hidden in it."""

    id: str
    scene: Scene
    brand: str
    pack: int
    title: str
    price: float
    has_photo: bool
    has_title: bool

    @property
    def category(self) -> str:
        """The shape."""
        return self.scene.objects[0].shape

    @property
    def is_gift(self) -> bool:
        """Whether just one is true: the colour is warm, the brand is of group one."""
        return (self.scene.objects[0].colour in WARM_COLOURS) != (self.brand in GROUP_ONE)


def make_product(seed: int, split: TableSplit, index: int) -> Product:
    """Makes row `index` of a split."""
    key = (seed, _STREAMS[split], index)
    scene = make_single_scene((*key, _SCENE))
    rng = np.random.default_rng((*key, _REST))
    brand, noun = BRANDS[rng.integers(len(BRANDS))], NOUNS[rng.integers(len(NOUNS))]
    pack = tuple(PACK_FACTORS)[rng.integers(len(PACK_FACTORS))]
    item = scene.objects[0]
    factor = SHAPE_FACTORS[item.shape] * SIZE_FACTORS[item.size] * BRAND_FACTORS[brand] * PACK_FACTORS[pack]
    block, place = divmod(index, _ROWS_PER_ABSENCE)
    places = np.random.default_rng((seed, _STREAMS[split], block, _ABSENCE)).permutation(_ROWS_PER_ABSENCE)
    return Product(
        id=f"{split}-{index:06}",
        scene=scene,
        brand=brand,
        pack=pack,
        title=f"{brand} {noun}, pack of {pack}",
        price=_BASE_PRICE * factor * math.exp(rng.normal(0, NOISE_STD)),
        has_photo=place != places[0],
        has_title=place != places[1],
    )


def best_possible() -> dict[str, Any]:
    """What the best predictor reaches on unlimited rows: column -> measure -> what is there -> value.

    What is there: `both`, the `photo` alone, the `title` alone, or `as_it_is`, the table's own mixture of these. The
    best prediction is the likeliest class, the mean price (`r2`), and the mean logarithm of the price (`r2_log`).
    """
    likeliest = max(_share_of_shape(shape) for shape in SHAPE_FACTORS)
    return {
        "category": {"accuracy": _with_mixture(both=1.0, photo=1.0, title=likeliest)},
        "price": {
            "r2": _with_mixture(**_r2(_SHOWN, _SAID)),
            "r2_log": _with_mixture(**_r2_of_logarithm(_SHOWN, _SAID)),
        },
        "gift": {"accuracy": _with_mixture(both=1.0, photo=0.5, title=0.5)},
    }


def best_on_rows(products: Sequence[Product]) -> dict[str, dict[str, float]]:
    """What the same predictor of the price reaches on these rows: measure -> what is there -> value.

    `both`, `photo` and `title` are of the rows that have it, with the rest taken away; `as_it_is` is of all rows.
    """
    views = {
        "both": [(product, True, True) for product in products if product.has_photo and product.has_title],
        "photo": [(product, True, False) for product in products if product.has_photo],
        "title": [(product, False, True) for product in products if product.has_title],
        "as_it_is": [(product, product.has_photo, product.has_title) for product in products],
    }
    found: dict[str, dict[str, float]] = {"r2": {}, "r2_log": {}}
    for name, rows in views.items():
        prices = np.array([product.price for product, _, _ in rows])
        predicted = np.array([_best_prices(product, photo=photo, title=title) for product, photo, title in rows])
        found["r2"][name] = _explained(prices, predicted[:, 0])
        found["r2_log"][name] = _explained(np.log(prices), predicted[:, 1])
    return found


def _best_prices(product: Product, *, photo: bool, title: bool) -> tuple[float, float]:
    """The mean price, and the mean logarithm of the price, given what is there."""
    item = product.scene.objects[0]
    shown = [SHAPE_FACTORS[item.shape] * SIZE_FACTORS[item.size]] if photo else _SHOWN
    said = [BRAND_FACTORS[product.brand] * PACK_FACTORS[product.pack]] if title else _SAID
    mean = _BASE_PRICE * np.mean(shown) * np.mean(said) * math.exp(NOISE_STD**2 / 2)
    return float(mean), float(math.log(_BASE_PRICE) + np.mean(np.log(shown)) + np.mean(np.log(said)))


def _explained(values: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    return float(1 - np.mean((values - predicted) ** 2) / np.var(values))


def _share_of_shape(shape: str) -> float:
    return sum(name.split()[1] == shape for name in SEEN_CLASSES) / len(SEEN_CLASSES)


def _r2(shown: Sequence[float], said: Sequence[float]) -> dict[str, float]:
    """R2 of the mean price: the variance of E[price | what is there] as a share of the variance of the price.

    A price is x y e: independent factors of the photograph, the title and the noise.
    """
    (x, xx), (y, yy) = ((np.mean(factors), np.mean(np.square(factors))) for factors in (shown, said))
    e, ee = math.exp(NOISE_STD**2 / 2), math.exp(2 * NOISE_STD**2)
    variance = xx * yy * ee - (x * y * e) ** 2
    explained = {"both": (xx * yy - (x * y) ** 2) * e**2, "photo": (xx - x**2) * (y * e) ** 2}
    explained["title"] = (yy - y**2) * (x * e) ** 2
    return {name: float(value / variance) for name, value in explained.items()}


def _r2_of_logarithm(shown: Sequence[float], said: Sequence[float]) -> dict[str, float]:
    """R2 of the mean logarithm of the price: there the factors are summands, so their variances add up."""
    photo, title = (float(np.var(np.log(factors))) for factors in (shown, said))
    variance = photo + title + NOISE_STD**2
    return {"both": (photo + title) / variance, "photo": photo / variance, "title": title / variance}


def _with_mixture(*, both: float, photo: float, title: float) -> dict[str, float]:
    """With the mean over the rows as they are: in accuracy, and in squared error relative to the variance."""
    alone = 1 / _ROWS_PER_ABSENCE
    mixture = (1 - 2 * alone) * both + alone * (photo + title)
    return {"both": both, "photo": photo, "title": title, "as_it_is": mixture}


def write_product_table(out: Path, *, num_train: int, num_test: int, image_size: int, seed: int) -> None:
    """Writes `train.csv`, `test.csv`, the pictures of both in `photos`, and `best.json`.

    Of the latter, `expected` is `best_possible`, and `price_of_test_rows` is `best_on_rows`: of the test rows.
    Equal arguments give equal bytes (with the same Pillow and NumPy). The table is written to a folder beside `out`
    that is renamed at the end, so a folder at `out` is always complete.

    Raises:
        InputError: `out` exists or cannot be made.
    """
    with new_folder(out) as folder:
        (folder / "photos").mkdir()
        counts: dict[TableSplit, int] = {"train": num_train, "test": num_test}
        for split, num_rows in counts.items():
            products = [make_product(seed, split, index) for index in range(num_rows)]
            _write_rows(folder / f"{split}.csv", products, image_size=image_size)
        best = {"expected": best_possible(), "price_of_test_rows": best_on_rows(products)}
        (folder / "best.json").write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")


def _write_rows(table: Path, products: Iterable[Product], *, image_size: int) -> None:
    """Writes a CSV file, and the pictures of its rows into `photos` beside it."""
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for product in products:
            photo = f"photos/{product.id}.jpg" if product.has_photo else ""
            if photo:
                (table.parent / photo).write_bytes(jpeg_of(product.scene, image_size))
            title = product.title if product.has_title else ""
            gift = "yes" if product.is_gift else "no"
            writer.writerow((product.id, photo, title, product.category, f"{product.price:.2f}", gift))
