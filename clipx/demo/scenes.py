"""The generated image-text set: rendered scenes of coloured shapes, and captions that describe them.

`clipx demo`, `clipx data synth` and the tests train and evaluate on it without a download. A scene is a pure function
of (seed, split, index); the split is part of the random seed, so the training set has no held-out image.

There are 8 colours x 7 shapes = 56 combinations ("red circle"). Eight of them, `UNSEEN_CLASSES`, are in no training
scene, neither alone nor beside another object: a model can name them only if it has learned colour and shape
separately.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from clipx.data.shard_writer import write_shard
from clipx.demo.new_folder import new_folder

Split = Literal["train", "heldout", "unseen"]
Relation = Literal["left", "right", "above", "below"]
Point = tuple[float, float]

# Different enough for a person after a jitter of COLOUR_JITTER; all take "a", never "an".
COLOUR_RGB = {
    "red": (215, 30, 35),
    "green": (35, 150, 55),
    "blue": (35, 75, 215),
    "yellow": (242, 208, 20),
    "purple": (125, 45, 165),
    "pink": (250, 135, 190),
    "brown": (120, 72, 35),
    "black": (22, 22, 22),
}
COLOURS = tuple(COLOUR_RGB)
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring")
SIZES = ("small", "medium", "large")

# Colour i has no training scene of shape 3i mod 7: one shape per colour, one colour per shape, for the circle two.
UNSEEN_CLASSES = tuple(f"{colour} {SHAPES[3 * i % len(SHAPES)]}" for i, colour in enumerate(COLOURS))
ALL_CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SEEN_CLASSES = tuple(name for name in ALL_CLASSES if name not in UNSEEN_CLASSES)

# "{c}" is CLIP_benchmark's placeholder for the class. Training captions use the same phrases.
TEMPLATES = ("a {c}", "a picture of a {c}", "a photo of a {c}", "a drawing of a {c}", "there is a {c}", "this is a {c}")

# Colours and the relation are enough to distinguish most scenes of two objects; scenes of one object teach shapes.
TWO_OBJECT_SHARE = 0.25
SIZE_WORD_SHARE = 0.5
MAX_TILT = math.radians(20)  # a square turned by 45 degrees would be called a diamond
MAX_OFF_CENTRE = 0.2
COLOUR_JITTER = 14
NOISE_STD = 4.0
SUPERSAMPLING = 4
NUM_RETRIEVAL = 384

# Ranges of the radius as fractions of the image's side; they do not overlap, so the size word is unambiguous.
RADII_ALONE = {"small": (0.195, 0.215), "medium": (0.26, 0.285), "large": (0.34, 0.38)}
RADII_IN_PAIR = {"small": (0.11, 0.12), "medium": (0.145, 0.16), "large": (0.185, 0.2)}
REACH = 1.25  # the farthest outline point of any shape, in radii

RELATION_PHRASES: dict[Relation, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
# Direction of the first object's centre, seen from the second's; the y axis points down.
RELATION_OFFSETS: dict[Relation, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
SPLIT_STREAMS: dict[Split, int] = {"train": 0, "heldout": 1, "unseen": 2}


@dataclass(frozen=True)
class SceneObject:
    """One shape. Lengths are fractions of the image's side, the origin is the upper left corner."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    tilt: float
    """Rotation in radians."""
    rgb: tuple[int, int, int]
    """The colour with its jitter."""

    @property
    def class_name(self) -> str:
        """Colour and shape, an entry of SEEN_CLASSES or UNSEEN_CLASSES."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The content of an image, and its caption."""

    objects: tuple[SceneObject, ...]
    relation: Relation | None
    """Direction of the first object, seen from the second; None for a single object."""
    caption: str
    background_seed: tuple[int, ...]
    """Determines the background texture and the pixel noise."""


def make_scene(seed: int, split: Split, index: int) -> Scene:
    """Makes scene `index` of a split.

    "train" draws at random from SEEN_CLASSES. "heldout" repeats them in rounds of 48, so that all are equally frequent:
    even rounds show one object, odd rounds two. "unseen" repeats UNSEEN_CLASSES, one object each.
    """
    key = (seed, SPLIT_STREAMS[split], index)
    rng = np.random.default_rng(key)
    match split:
        case "train":
            name = SEEN_CLASSES[rng.integers(len(SEEN_CLASSES))]
            is_pair = rng.random() < TWO_OBJECT_SHARE
        case "heldout":
            name = SEEN_CLASSES[index % len(SEEN_CLASSES)]
            is_pair = index // len(SEEN_CLASSES) % 2 == 1
        case "unseen":
            name = UNSEEN_CLASSES[index % len(UNSEEN_CLASSES)]
            is_pair = False
    relation: Relation | None = None
    if is_pair:
        relation = tuple(RELATION_PHRASES)[rng.integers(len(RELATION_PHRASES))]
        objects = _place_pair(rng, name, relation)
    else:
        objects = (_place_alone(rng, name),)
    return Scene(objects, relation, _caption(rng, objects, relation), (*key, 1))


def make_single_scene(key: tuple[int, ...]) -> Scene:
    """Makes a scene of one object, drawn at random from SEEN_CLASSES; a pure function of `key`, the random seed."""
    rng = np.random.default_rng(key)
    objects = (_place_alone(rng, SEEN_CLASSES[rng.integers(len(SEEN_CLASSES))]),)
    return Scene(objects, None, _caption(rng, objects, None), (*key, 1))


def _place_alone(rng: np.random.Generator, name: str) -> SceneObject:
    size, radius = _draw_size(rng, RADII_ALONE)
    wander = min(MAX_OFF_CENTRE, 0.5 - REACH * radius)
    x, y = rng.uniform(0.5 - wander, 0.5 + wander, 2)
    return _make_object(rng, name, size=size, radius=radius, x=x, y=y)


def _place_pair(rng: np.random.Generator, name: str, relation: Relation) -> tuple[SceneObject, ...]:
    others = [other for other in SEEN_CLASSES if other != name]
    names = (name, others[rng.integers(len(others))])
    dx, dy = RELATION_OFFSETS[relation]
    objects = []
    for class_name, side in zip(names, (1, -1), strict=True):
        size, radius = _draw_size(rng, RADII_IN_PAIR)
        # Along the relation's axis each object stays in its half; across it both are near the middle, so that "left"
        # never looks like "above".
        slack = max(0.0, 0.25 - REACH * radius)
        along = 0.25 + rng.uniform(-slack, slack)
        across = rng.uniform(-0.09, 0.09)
        x = 0.5 + side * along * dx + across * abs(dy)
        y = 0.5 + side * along * dy + across * abs(dx)
        objects.append(_make_object(rng, class_name, size=size, radius=radius, x=x, y=y))
    return tuple(objects)


def _draw_size(rng: np.random.Generator, radii: dict[str, tuple[float, float]]) -> tuple[str, float]:
    size = SIZES[rng.integers(len(SIZES))]
    return size, rng.uniform(*radii[size])


def _make_object(rng: np.random.Generator, name: str, *, size: str, radius: float, x: float, y: float) -> SceneObject:
    colour, shape = name.split()
    jitter = rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    r, g, b = np.clip(np.array(COLOUR_RGB[colour]) + jitter, 0, 255).tolist()
    tilt = rng.uniform(-MAX_TILT, MAX_TILT)
    return SceneObject(colour, shape, size, float(x), float(y), radius, tilt, (r, g, b))


def _caption(rng: np.random.Generator, objects: tuple[SceneObject, ...], relation: Relation | None) -> str:
    phrases = []
    for item in objects:
        says_size = rng.random() < SIZE_WORD_SHARE
        phrases.append(f"{item.size} {item.class_name}" if says_size else item.class_name)
    phrase = phrases[0] if relation is None else f"{phrases[0]} {RELATION_PHRASES[relation]} a {phrases[1]}"
    return TEMPLATES[rng.integers(len(TEMPLATES))].replace("{c}", phrase)


def render(scene: Scene, image_size: int) -> Image.Image:
    """Draws the scene as an RGB image of `image_size` x `image_size` pixels; a pure function of its arguments."""
    rng = np.random.default_rng(scene.background_seed)
    canvas = _background(rng, image_size)
    for item in scene.objects:
        canvas.paste(item.rgb, mask=_mask(item, image_size))
    noise = rng.normal(0, NOISE_STD, (image_size, image_size, 1))
    pixels = np.asarray(canvas, dtype=np.float64) + noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, image_size: int) -> Image.Image:
    """A light, slightly tinted background with soft spots, lighter than all colours of the objects."""
    ground = rng.uniform(205, 240) + rng.uniform(-10, 10, 3)
    cells = int(rng.integers(2, 8))
    blotches = ground + rng.normal(0, 8, (cells, cells, 1))
    coarse = Image.fromarray(np.clip(blotches, 0, 255).astype(np.uint8))
    return coarse.resize((image_size, image_size), Image.Resampling.BICUBIC)


def _mask(item: SceneObject, image_size: int) -> Image.Image:
    side = image_size * SUPERSAMPLING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    cos, sin = item.radius * math.cos(item.tilt), item.radius * math.sin(item.tilt)
    for outline, fill in OUTLINES[item.shape]:
        corners = [((item.x + u * cos - v * sin) * side, (item.y + u * sin + v * cos) * side) for u, v in outline]
        draw.polygon(corners, fill=fill)
    return mask.reduce(SUPERSAMPLING)


def _regular(corners: int, *radii: float) -> list[Point]:
    """A polygon with a corner at the top; its corners have the given radii in turn, so two radii make a star."""
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(cycle(radii), angles, strict=False)]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    heights = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return [(1.08 * math.sin(a) ** 3, -height / 15 - 0.15) for a, height in zip(angles, heights, strict=True)]


_ARM = 0.32
_CROSS = [
    (-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM),
    (_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM),
]  # fmt: skip

# Shape -> polygons in units of the radius, painted in order; fill 0 cuts a hole.
OUTLINES: dict[str, list[tuple[list[Point], int]]] = {
    "circle": [(_regular(40, 1.0), 255)],
    "square": [([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)], 255)],
    "triangle": [([(x, y + 0.15) for x, y in _regular(3, 1.1)], 255)],
    "star": [(_regular(10, 1.15, 0.48), 255)],
    "cross": [(_CROSS, 255)],
    "heart": [(_heart(), 255)],
    "ring": [(_regular(40, 1.05), 255), (_regular(40, 0.6), 0)],
}


def write_synthetic_set(
    out: Path, *, num_train: int, num_eval_per_class: int, image_size: int, seed: int, shard_size: int
) -> None:
    """Writes training shards and three evaluation sets in CLIP_benchmark's webdataset layout.

    `train/00000.tar ...` has KEY.jpg and KEY.txt. `wds_scenes` has held-out images of the 48 seen classes,
    `wds_scenes_unseen` images of the 8 unseen ones, to classify among all 56, and `wds_scenes_retrieval` held-out
    scenes with different contents. Equal arguments give equal bytes (with the same Pillow and NumPy). The set is
    written to a folder beside `out` that is renamed at the end, so a folder at `out` is always complete. From an
    `image_size` of 48 pixels on a person can name every shape.

    Raises:
        InputError: `out` exists or cannot be made.
    """
    with new_folder(out) as folder:
        _write_sets(folder, num_train, num_eval_per_class, image_size=image_size, seed=seed, shard_size=shard_size)


def _write_sets(
    folder: Path, num_train: int, num_eval_per_class: int, *, image_size: int, seed: int, shard_size: int
) -> None:
    for shard, start in enumerate(range(0, num_train, shard_size)):
        keys = range(start, min(start + shard_size, num_train))
        scenes = (make_scene(seed, "train", key) for key in keys)
        _write_captioned(folder / f"train/{shard:05}.tar", scenes, first_key=start, image_size=image_size)

    heldout = [make_scene(seed, "heldout", key) for key in range(2 * len(SEEN_CLASSES) * num_eval_per_class)]
    unseen = [make_scene(seed, "unseen", key) for key in range(len(UNSEEN_CLASSES) * num_eval_per_class)]
    alone = [scene for scene in heldout if scene.relation is None]
    _write_labelled(folder / "wds_scenes", alone, class_names=SEEN_CLASSES, image_size=image_size)
    _write_labelled(folder / "wds_scenes_unseen", unseen, class_names=ALL_CLASSES, image_size=image_size)
    _write_retrieval(folder / "wds_scenes_retrieval", seed=seed, image_size=image_size)


def _write_labelled(folder: Path, scenes: Iterable[Scene], *, class_names: tuple[str, ...], image_size: int) -> None:
    def members(scene: Scene) -> dict[str, bytes]:
        label = class_names.index(scene.objects[0].class_name)
        return {"jpg": jpeg_of(scene, image_size), "cls": str(label).encode()}

    write_shard(folder / "test/0.tar", ((f"{key:08}", members(scene)) for key, scene in enumerate(scenes)))
    _write_text(folder / "test/nshards.txt", "1")
    _write_text(folder / "classnames.txt", "\n".join(class_names))
    _write_text(folder / "zeroshot_classification_templates.txt", "\n".join(TEMPLATES))


def _write_retrieval(folder: Path, *, seed: int, image_size: int) -> None:
    """Writes the first NUM_RETRIEVAL held-out scenes with different combinations or relations."""
    distinct: dict[frozenset[tuple[str, int, int]], Scene] = {}
    for index in count():
        scene = make_scene(seed, "heldout", index)
        # "A left of B" and "B right of A" are the same content: each object with its direction from the other.
        dx, dy = RELATION_OFFSETS[scene.relation] if scene.relation else (0, 0)
        sides = zip(scene.objects, ((dx, dy), (-dx, -dy)), strict=False)
        distinct.setdefault(frozenset((item.class_name, *side) for item, side in sides), scene)
        if len(distinct) == NUM_RETRIEVAL:
            break
    _write_captioned(folder / "test/0.tar", distinct.values(), first_key=0, image_size=image_size)
    _write_text(folder / "test/nshards.txt", "1")
    _write_text(folder / "dataset_type.txt", "retrieval")


def _write_captioned(path: Path, scenes: Iterable[Scene], *, first_key: int, image_size: int) -> None:
    def members(scene: Scene) -> dict[str, bytes]:
        return {"jpg": jpeg_of(scene, image_size), "txt": scene.caption.encode()}

    write_shard(path, ((f"{key:08}", members(scene)) for key, scene in enumerate(scenes, first_key)))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def jpeg_of(scene: Scene, image_size: int) -> bytes:
    """The rendered scene as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    # Chroma in full resolution: at these sizes subsampling would blur the colours.
    render(scene, image_size).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
