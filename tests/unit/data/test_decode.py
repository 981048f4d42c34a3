import io
import json

import numpy as np
import pytest
from PIL import Image
from tiny_clip import encoded, picture

from clipx.data.decode import UndecodableError, decode_captions, decode_image, first_present


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


def test_captions_of_a_text_member_are_one_caption():
    assert decode_captions({"txt": "zwei\nZeilen, ä".encode()}, "txt") == ["zwei\nZeilen, ä"]


def test_the_first_alternative_that_is_present_counts():
    fields = {"caption": b"second", "json": json.dumps({"text": "third"}).encode()}
    assert decode_captions(fields, "txt;caption;json:text") == ["second"]
    assert decode_captions(fields, "json:absent;json:text") == ["third"]


def test_json_fields_hold_a_string_or_a_list_of_which_blank_ones_are_left_out():
    def fields(value):
        return {"json": json.dumps({"captions": value}).encode()}

    assert decode_captions(fields("one"), "json:captions") == ["one"]
    assert decode_captions(fields(["one", " ", "two"]), "json:captions") == ["one", "two"]


@pytest.mark.parametrize(
    ("fields", "key", "reason"),
    [
        ({"jpg": b"", "cls": b"1"}, "txt", "'txt'; members: cls, jpg"),
        ({}, "txt;json:text", "'txt;json:text'; members: none"),
        ({"txt": b" \n\t"}, "txt", "'txt' is empty"),
        ({"txt": b"\xff\xfe"}, "txt", "'txt' is not UTF-8"),
        ({"json": b"{"}, "json:text", "'json' is not JSON"),
        ({"json": b"[1]"}, "json:text", "a JSON list"),
        ({"json": b'{"text": null}'}, "json:text", "members: json"),
        ({"json": b'{"text": []}'}, "json:text", "is empty"),
        ({"json": b'{"text": ["a", 3]}'}, "json:text", "is a int"),
        ({"json": b"[" * 100_000}, "json:text", "is not JSON"),
    ],
)
def test_absent_and_broken_captions_are_undecodable_and_say_why(fields, key, reason):
    with pytest.raises(UndecodableError) as raised:
        decode_captions(fields, key)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_first_present_follows_the_order_of_the_keys():
    assert first_present({"png": b"p", "jpg": b"j"}, "webp;jpg;png") == b"j"
    assert first_present({"png": b"p"}, "jpg;webp") is None


def test_an_extension_may_be_spelt_with_a_dot_or_in_capitals():
    assert first_present({"jpg": b"j"}, "png; .JPG") == b"j"
    assert decode_captions({"txt": b"t"}, ".TXT") == ["t"]
    assert decode_captions({"json": b'{"Text": "t"}'}, "JSON:Text") == ["t"]
