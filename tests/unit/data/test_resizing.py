import io

import numpy as np
import pytest
from PIL import Image
from pillow_order import pillow_may_begin_with_columns
from tiny_clip import encoded, picture

from clipx.data import transforms
from clipx.data.decode import UndecodableError, decode_jpeg
from clipx.data.transforms import EvalTransform

# As wide as tall, a little and far from it, smaller than the result, with margins of 4n, 4n + 1, 4n + 2 and 4n + 3.
SIZES = [(24, 24), (50, 50), (640, 480), (333, 499), (101, 640), (640, 101), (60, 150), (9, 13), (1, 40), (40, 1)]
SIZES += [(24 + margin, 24) for margin in range(1, 8)] + [(24, 24 + margin) for margin in range(1, 8)]


def jpeg(seed, size, mode="RGB"):
    """Noise in blocks: it has sharp edges, and no pixel is like its neighbour."""
    width, height = size
    draw = np.random.default_rng(seed)
    fine, coarse = (draw.integers(0, 256, (-(-height // n), -(-width // n), 3)) for n in (1, 7))
    coarse = coarse.repeat(7, 0).repeat(7, 1)[:height, :width]
    buffer = io.BytesIO()
    image = Image.fromarray((0.3 * fine + 0.7 * coarse).astype(np.uint8)).convert(mode)
    image.save(buffer, "jpeg", quality=92)
    return buffer.getvalue()


def apart(transform, data):
    """Largest and mean difference between Pillow's pixels and the fast ones."""
    difference = (transform.decoded(data).int() - transform.decoded(data, decode="fast").int()).abs()
    return difference.max().item(), difference.float().mean().item()


@pytest.mark.parametrize("crop", ["round", "floor"])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize(("interpolation", "mean"), [("bicubic", 0.03), ("bilinear", 0.1)])
@pytest.mark.parametrize("image_size", [24, 37])
def test_the_fast_square_is_pillows(image_size, resize, interpolation, mean, crop):
    """One pixel further it would be 20 or more of 255 apart."""
    transform = EvalTransform(image_size, resize=resize, interpolation=interpolation, crop=crop)
    for size in SIZES:
        largest, average = apart(transform, jpeg(0, size))
        if size[0] >= size[1] or pillow_may_begin_with_columns():
            assert largest <= 2, size
            assert average <= mean, size
        else:
            assert average <= 0.5, size


@pytest.mark.parametrize("size", [(3000, 2000), (2000, 3000)])
def test_a_large_photograph_is_pillows(size):
    largest, average = apart(EvalTransform(224), encoded(picture(4, size), "jpeg"))
    assert average <= (0.03 if size[0] >= size[1] or pillow_may_begin_with_columns() else 0.5)
    assert largest <= 3


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (3, 1000)])
def test_very_long_pictures_are_not_resized_whole(monkeypatch, size):
    monkeypatch.setattr(transforms, "_MAX_RESIZED", 4096)
    monkeypatch.setattr(transforms, "resize_whole", None)
    assert apart(EvalTransform(24), jpeg(1, size)) == (0, 0)


def test_grey_jpegs_are_decoded_fast_and_equal_pillows(monkeypatch):
    monkeypatch.setattr(transforms, "decode_any", None)
    transform = EvalTransform(24)
    grey = jpeg(2, (50, 40), "L")
    fast = transform.decoded(grey, decode="fast")
    assert (fast.int() - transform(Image.open(io.BytesIO(grey))).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["jpeg of CMYK", "png", "webp", "gif", "png of P", "png of RGBA", "png of I;16"])
def test_pillow_decodes_what_is_no_ordinary_jpeg(monkeypatch, kind):
    name, _, mode = kind.partition(" of ")
    image = picture(3, (50, 41))
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    data = encoded(Image.fromarray(grey) if mode == "I;16" else image.convert(mode or "RGB"), name)
    monkeypatch.setattr(transforms, "decode_jpeg", None)
    largest, average = apart(EvalTransform(24), data)
    assert largest <= 2
    assert average <= 0.03


def test_pillow_decodes_what_libjpeg_warns_about():
    pytest.importorskip("simplejpeg")
    data = jpeg(4, (60, 50))
    data = data[:-2] + bytes(20) + data[-2:]  # too much in the scan
    assert decode_jpeg(data, (50, 60)) is None
    assert apart(EvalTransform(24), data)[0] <= 2


@pytest.mark.parametrize("decode", ["fast", "pil"])
def test_what_pillow_refuses_is_undecodable(decode):
    data = jpeg(5, (64, 64))
    for bad in (b"", b"no picture", data[: len(data) // 2], encoded(picture(0))[:200]):
        with pytest.raises(UndecodableError):
            EvalTransform(16).decoded(bad, decode=decode)
