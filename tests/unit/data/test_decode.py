import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import encoded, picture

from clipx.data.decode import UndecodableError, decode_image, decode_jpeg, jpeg_size


@pytest.mark.parametrize("format", ["png", "webp", "bmp", "tiff", "gif", "jpeg"])
def test_formats_decode_to_rgb_of_the_right_size(format):
    image = decode_image(encoded(picture(0, (11, 7)), format))
    assert (image.mode, image.size) == ("RGB", (11, 7))


def test_lossless_pixels_come_back():
    image = picture(1)
    assert np.array_equal(np.array(decode_image(encoded(image))), np.array(image))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_becomes_rgb_as_convert_does(mode):
    image = picture(2).convert(mode)
    format = "tiff" if mode == "CMYK" else "png"
    decoded = decode_image(encoded(image, format))
    assert np.array_equal(np.array(decoded), np.array(image.convert("RGB")))


def test_exif_orientation_is_ignored():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(3, (20, 10)).save(buffer, "jpeg", exif=exif)
    assert decode_image(buffer.getvalue()).size == (20, 10)


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_truncated_pictures_are_undecodable(format):
    data = encoded(picture(4, (64, 64)), format)
    with pytest.raises(UndecodableError) as raised:
        decode_image(data[: len(data) // 2])
    assert "\n" not in str(raised.value)


def test_what_is_no_picture_is_undecodable():
    for data in (b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(UndecodableError, match=f"{len(data)} bytes"):
            decode_image(data)


def test_a_decompression_bomb_is_undecodable(monkeypatch):
    data = encoded(picture(5, (20, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UndecodableError, match="DecompressionBomb"):
        decode_image(data)


def test_a_memory_error_is_not_a_bad_sample(monkeypatch):
    def exhausted(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr(Image, "open", exhausted)
    with pytest.raises(MemoryError):
        decode_image(b"anything")


JPEGS = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "rgb": {"keep_rgb": True},
}


@pytest.fixture(params=["simplejpeg", "torchvision"])
def library(request, monkeypatch):
    """Decoding with simplejpeg, and as where it is not installed."""
    if request.param == "torchvision":
        monkeypatch.setattr("clipx.data.decode._simplejpeg", lambda: None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", **options)
    return buffer.getvalue()


def smooth(seed, size):
    return picture(seed, (9, 7)).resize(size, Image.Resampling.BICUBIC)


def pixels(image):
    return torch.from_numpy(np.array(image))


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(67, 43), (1, 1), (160, 96)])
def test_both_jpeg_decoders_give_pillows_pixels(library, kind, mode, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(smooth(6, size).convert(mode), exif=exif, **({} if mode == "L" else JPEGS[kind]))
    assert jpeg_size(data) == size[::-1]
    decoded = decode_jpeg(data, size[::-1])
    assert decoded is not None
    assert torch.equal(decoded, pixels(decode_image(data)))
    assert decoded.stride(-1) == 1  # as the resize needs it


@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_scaled_decoding_gives_what_pillow_drafts(divisor):
    pytest.importorskip("simplejpeg")
    data = jpeg(smooth(7, (203, 150)))
    drafted = Image.open(io.BytesIO(data))
    drafted.draft("RGB", (203 // divisor, 150 // divisor))
    scaled = decode_jpeg(data, (150, 203), divisor=divisor)
    assert scaled is not None
    assert scaled.shape == (-(-150 // divisor), -(-203 // divisor), 3)
    assert torch.equal(scaled, pixels(drafted))


def test_what_libjpeg_warns_about_is_pillows_or_its_pixels(library):
    """A decoder that accepts corrupt data must see in it what Pillow sees, and one that refuses leaves it to Pillow."""
    whole = jpeg(smooth(8, (120, 90)))
    scan = whole.index(b"\xff\xda") + 14
    draw = np.random.default_rng(0)
    accepted = 0
    for _ in range(60):
        data = bytearray(whole)
        for at in draw.integers(scan, len(data) - 2, size=3):
            data[at] = draw.integers(256)
        decoded = decode_jpeg(bytes(data), (90, 120))
        if decoded is not None:
            accepted += 1
            assert torch.equal(decoded, pixels(decode_image(bytes(data))))
    assert 10 < accepted <= 60


def test_truncated_jpegs_are_left_to_pillow(library):
    data = jpeg(smooth(9, (120, 90)))
    for cut in (2, 10, len(data) // 2):
        assert decode_jpeg(data[:-cut], (90, 120)) is None


def test_sizes_that_the_data_does_not_keep_are_left_to_pillow(library):
    assert decode_jpeg(jpeg(smooth(9, (12, 9))), (9, 13)) is None


def test_only_ordinary_jpegs_have_a_size(monkeypatch):
    image = smooth(10, (20, 10))
    data = jpeg(image)
    assert jpeg_size(data + b"something after the end") == (10, 20)
    frame = data.index(b"\xff\xc0")
    for other in (
        b"",
        b"\xff\xd8",
        data[: frame + 8],
        b"\xff\xd8\x00\x00" + data[2:],
        encoded(image, "png"),
        encoded(image, "webp"),
        jpeg(image.convert("CMYK")),
        data[:frame] + b"\xff\xc9" + data[frame + 2 :],  # arithmetic coding
        data[: frame + 4] + b"\x0c" + data[frame + 5 :],  # 12 bits
        data[: frame + 5] + b"\0\0" + data[frame + 7 :],  # height told after the scan
    ):
        assert jpeg_size(other) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)  # Pillow would warn, and refuse from twice that on
    assert jpeg_size(data) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert jpeg_size(data) == (10, 20)


def test_a_memory_error_of_the_fast_decoder_is_not_a_bad_sample(monkeypatch):
    def exhausted(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr("clipx.data.decode._simplejpeg", lambda: None)
    monkeypatch.setattr("clipx.data.decode._torchvision_jpeg", exhausted)
    with pytest.raises(MemoryError):
        decode_jpeg(jpeg(smooth(11, (8, 8))), (8, 8))
