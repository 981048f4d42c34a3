"""transformers' image processors of CLIP and SigLIP: their files as fields of our config; imports no torch."""

import math
from pathlib import Path
from typing import Any

from clipx.config.model import CLIP_MEAN, CLIP_STD
from clipx.errors import InputError
from clipx.pretrained.json_file import read_json
from clipx.pretrained.json_keys import Keys
from clipx.pretrained.timm_names import Family

# what the library's processors take where a file says nothing
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "SiglipImageProcessor": {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "crop_size": None,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_HARMLESS = (
    *(
        "auto_map",
        "data_format",
        "device",
        "disable_grouping",
        "input_data_format",
        "processor_class",
        "return_tensors",
    ),
    *("image_seq_length", "pad_size", "use_fast"),
    "do_convert_rgb",  # pictures are RGB here before anything else
)
_NEVER = ("do_pad", "do_flip_channel_order", "do_color_quantize", "do_reduce_labels", "default_to_square")


def read_preprocessing(folder: Path, *, family: Family, image_size: int) -> dict[str, Any]:
    """The fields of the image tower's config that say how transformers prepares a picture for this model.

    Raises:
        InputError: there is no file, or it asks for what clipx cannot do; the key is named.
    """
    keys, defaults = _processor(folder, family)
    keys.only("do_resize", True, why="the model takes pictures of one size")
    keys.only("do_rescale", True, why="clipx divides by 255")
    if not math.isclose(factor := keys.number("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        keys.refuse("rescale_factor", factor, "clipx divides by 255")
    for key in _NEVER:
        keys.only(key, False, why="clipx does none of it")
    resize = _resize(keys, defaults, image_size)
    interpolation = _INTERPOLATIONS[keys.only("resample", 3, 2, why="clipx has bilinear and bicubic")]
    mean, std = (_channels(keys, key, defaults[key]) for key in ("image_mean", "image_std"))
    if not keys.only("do_normalize", True, False):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    keys.pass_over(*_HARMLESS)
    keys.end()
    crop = {"crop": "floor"} if resize == "shortest" else {}  # the corner, as the library cuts it
    return {"resize": resize, "interpolation": interpolation, "mean": mean, "std": std} | crop


def _processor(folder: Path, family: Family) -> tuple[Keys, dict[str, Any]]:
    """The processor's settings, and those that hold where it says nothing."""
    file = folder / "processor_config.json"  # its section counts before the other file
    values = read_json(file).get("image_processor") if file.is_file() else None
    name = "image_processor"
    if values is None:
        file, name = folder / "preprocessor_config.json", ""
        if not file.is_file():
            raise InputError(
                f"{folder} has neither {file.name} nor an image_processor in processor_config.json, which say how "
                "pictures are prepared; save the model's processor there"
            )
        values = read_json(file)
    keys = Keys(file, name, {key: value for key, value in values.items() if value is not None})
    key = "image_processor_type" if "image_processor_type" in values else "feature_extractor_type"
    own = "CLIPImageProcessor" if family == "clip" else "SiglipImageProcessor"
    kind = str(keys.take(key, own))
    keys.pass_over("image_processor_type", "feature_extractor_type")
    plain = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if plain not in _DEFAULTS:
        keys.refuse(key, kind, f"clipx has {' and '.join(_DEFAULTS)}")
    return keys, _DEFAULTS[plain]


def _resize(keys: Keys, defaults: dict[str, Any], image_size: int) -> str:
    square = {"height": image_size, "width": image_size}
    size = keys.take("size", defaults["size"])
    sides = {"shortest_edge": size} if isinstance(size, int) else _without_null(size)
    crops = keys.only("do_center_crop", defaults["do_center_crop"], not defaults["do_center_crop"])
    crop = keys.take("crop_size", defaults["crop_size"])
    if crops and crop not in (image_size, None) and _without_null(crop) != square:
        keys.refuse("crop_size", crop, f"the model takes {image_size} x {image_size} pixels")
    if sides == square:
        return "squash"
    if sides != {"shortest_edge": image_size}:
        keys.refuse("size", size, f"clipx makes the short side, or both, the {image_size} pixels that the model takes")
    if not crops:
        keys.refuse("do_center_crop", False, "where the short side is resized, clipx cuts out the centre")
    return "shortest"


def _without_null(size: Any) -> Any:
    return {key: value for key, value in size.items() if value is not None} if isinstance(size, dict) else size


def _channels(keys: Keys, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = keys.take(key, default)
    channels = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(channels) != 3 or not all(isinstance(channel, int | float) for channel in channels):
        keys.refuse(key, value, "it must be three numbers")
    return tuple(map(float, channels))
