import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pillow_order import pillow_may_begin_with_columns
from tiny_clip import encoded, picture
from torchvision.transforms import v2

from clipx.config.data import AugmentConfig
from clipx.data.centre_square import centre_square
from clipx.data.decode import UndecodableError
from clipx.data.transforms import Box, EvalTransform, TrainTransform, largest_divisor, random_box, snapped
from clipx.errors import InputError

WHOLE = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}


def augmented(transform, data, seed):
    out = torch.empty(transform._size, transform._size, 3, dtype=torch.uint8)
    return out, transform(data, seed=seed, out=out).by_pillow


def natural(seed, width, height):
    """A picture with the 1 / f spectrum of photographs, an edge and a little noise."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * draw.random((3, *frequency.shape)))
    field_CHW = np.fft.irfft2(phases / frequency**1.2, (height, width))
    field_CHW = 120 + 45 * field_CHW / field_CHW.std() + draw.normal(0, 2, field_CHW.shape)
    field_CHW[:, height // 3 :, : width // 2] += 60
    return Image.fromarray(field_CHW.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def photo(seed, width, height, **options):
    buffer = io.BytesIO()
    natural(seed, width, height).save(buffer, "jpeg", **{"quality": 90, **options})
    return buffer.getvalue()


def difference(one, other):
    return (one.float() - other.float()).abs().mean().item()


@pytest.mark.parametrize("decode", ["fast", "scaled", "pil"])
def test_training_is_a_function_of_bytes_and_seed(decode):
    if decode == "scaled":
        pytest.importorskip("simplejpeg")
    transform = TrainTransform(16, AugmentConfig(crop_scale=(0.2, 0.9), flip=0.5), decode=decode)
    data = photo(0, 90, 60)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = augmented(transform, data, 123)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(augmented(transform, data, 123)[0], first)
    assert len({augmented(transform, data, seed)[0].numpy().tobytes() for seed in range(20)}) == 20
    augmented(transform, data, 2**63 - 1)


FILTERS = {
    "bicubic": (Image.Resampling.BICUBIC, v2.InterpolationMode.BICUBIC),
    "bilinear": (Image.Resampling.BILINEAR, v2.InterpolationMode.BILINEAR),
}


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(256, 256), (341, 256), (512, 640), (1500, 1000), (224, 300), (60, 90)])
def test_the_fast_path_is_pillow_to_three_hundredths(size, interpolation):
    """Bilinear is nearer but where sizes have a simple quotient, as 5 to 4: sums are then halves, rounded both ways."""
    data = photo(1, *size)
    augment = AugmentConfig(crop_scale=(0.5, 1.0), flip=0.5)
    fast, pil = (TrainTransform(224, augment, decode=decode, interpolation=interpolation) for decode in ("fast", "pil"))
    limit = 0.03 if interpolation == "bicubic" else 0.06
    limit = limit if size[0] >= size[1] or pillow_may_begin_with_columns() else 0.3
    for seed in range(3):
        (quick, fell_back), (reference, counted) = augmented(fast, data, seed), augmented(pil, data, seed)
        assert difference(quick, reference) <= limit
        assert (fell_back, counted) == (False, False)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_pillows_crop_is_torchvisions(interpolation):
    image = Image.open(io.BytesIO(photo(2, 300, 200)))
    transform = TrainTransform(64, AugmentConfig(crop_scale=(0.3, 1.0)), decode="pil", interpolation=interpolation)
    for seed in range(3):
        box = transform._box((200, 300), transform_numbers(seed))
        expected = v2.functional.resized_crop(
            image, *box, size=[64, 64], interpolation=FILTERS[interpolation][1], antialias=True
        )
        assert torch.equal(augmented(transform, encoded(image), seed)[0], torch.from_numpy(np.array(expected)))


def transform_numbers(seed):
    """The uniform numbers of a seed, read back from a transform whose box is replaced."""
    drawn = []

    class Probe(TrainTransform):
        def _box(self, size, numbers):
            drawn.extend(numbers)
            return super()._box(size, numbers)

    augmented(Probe(8, AugmentConfig(), decode="pil"), encoded(picture(0)), seed)
    return drawn


def test_a_seeds_numbers_are_independent_and_uniform():
    numbers = np.array([transform_numbers(seed) for seed in range(600)])
    assert numbers.shape == (600, 23)
    assert abs(numbers.mean(0) - 0.5).max() < 4.5 * (1 / 12 / 600) ** 0.5
    correlations = np.corrcoef(numbers.T) - np.eye(23)
    assert abs(correlations).max() < 4.5 / 600**0.5


ODD = {
    "png": lambda image: encoded(image, "png"),
    "webp": lambda image: encoded(image, "webp"),
    "palette": lambda image: encoded(image.convert("P")),
    "grey and alpha": lambda image: encoded(image.convert("LA")),
    "rgba": lambda image: encoded(image.convert("RGBA")),
    "16 bit": lambda image: encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)),
    "animated": lambda image: animation([image, image.rotate(180)]),
    "cmyk": lambda image: encoded(image.convert("CMYK"), "jpeg"),
}


def animation(frames):
    buffer = io.BytesIO()
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ODD)
def test_pillow_steps_in_for_other_formats_and_is_counted(kind):
    data = ODD[kind](natural(3, 60, 50))
    fast, pil = (TrainTransform(24, AugmentConfig(), decode=decode) for decode in ("fast", "pil"))
    (quick, fell_back), (reference, _) = augmented(fast, data, 1), augmented(pil, data, 1)
    assert fell_back
    assert (quick.int() - reference.int()).abs().max() <= 1


def test_pillow_steps_in_for_what_libjpeg_warns_about():
    pytest.importorskip("simplejpeg")
    data = photo(4, 60, 50)
    data = data[:-2] + bytes(20) + data[-2:]  # too much in the scan
    fast, pil = (TrainTransform(24, AugmentConfig(), decode=decode) for decode in ("fast", "pil"))
    (quick, fell_back), (reference, _) = augmented(fast, data, 1), augmented(pil, data, 1)
    assert fell_back
    assert (quick.int() - reference.int()).abs().max() <= 1


@pytest.mark.parametrize("decode", ["fast", "scaled", "pil"])
def test_what_pillow_refuses_is_undecodable_and_writes_nothing(decode, monkeypatch):
    if decode == "scaled":
        pytest.importorskip("simplejpeg")
    transform = TrainTransform(16, AugmentConfig(), decode=decode)
    data = photo(5, 64, 64)
    out = torch.full((16, 16, 3), 7, dtype=torch.uint8)
    for bad in (b"", b"no picture", data[: len(data) // 2], encoded(picture(0))[:200]):
        with pytest.raises(UndecodableError):
            transform(bad, seed=0, out=out)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(UndecodableError, match="DecompressionBomb"):
        transform(data, seed=0, out=out)
    assert (out == 7).all()


def test_a_row_of_a_batch_is_written_and_nothing_else():
    batch = torch.full((3, 16, 16, 3), 7, dtype=torch.uint8)
    transform = TrainTransform(16, AugmentConfig(flip=1.0))
    transform(photo(6, 80, 60), seed=3, out=batch[1])
    assert torch.equal(batch[1], augmented(transform, photo(6, 80, 60), 3)[0])
    assert (batch[0] == 7).all()
    assert (batch[2] == 7).all()


@pytest.mark.parametrize("decode", ["fast", "pil"])
def test_flip_happens_with_its_probability(decode):
    image = picture(0, (16, 16))
    never, always, half = (TrainTransform(16, AugmentConfig(flip=p, **WHOLE), decode=decode) for p in (0.0, 1.0, 0.5))
    pixels, data = torch.from_numpy(np.array(image)), encoded(image)
    assert torch.equal(augmented(never, data, 0)[0], pixels)
    assert torch.equal(augmented(always, data, 0)[0], pixels.flip(1))
    flipped = sum(torch.equal(augmented(half, data, seed)[0], pixels.flip(1)) for seed in range(400))
    assert 150 < flipped < 250


@pytest.mark.parametrize("interpolation", FILTERS)
def test_scaled_decoding_is_pillows_draft_in_the_snapped_box(interpolation):
    pytest.importorskip("simplejpeg")
    data = photo(7, 640, 480)
    transform = TrainTransform(48, AugmentConfig(crop_scale=(0.4, 0.9)), decode="scaled", interpolation=interpolation)
    divisors = set()
    for seed in range(12):
        drawn = transform._box((480, 640), transform_numbers(seed))
        divisor = largest_divisor(drawn, 48)
        divisors.add(divisor)
        box = snapped(drawn, divisor)
        drafted = Image.open(io.BytesIO(data))
        drafted.draft("RGB", (640 // divisor, 480 // divisor))
        cut = drafted.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        expected = torch.from_numpy(np.array(cut.resize((48, 48), FILTERS[interpolation][0])))
        scaled, fell_back = augmented(transform, data, seed)
        assert difference(scaled, expected) <= (0.03 if interpolation == "bicubic" else 0.06)
        assert not fell_back
    assert divisors == {4, 8}


def test_scaled_decoding_stays_near_the_whole():
    pytest.importorskip("simplejpeg")
    data = photo(8, 640, 480)
    augment = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(4 / 3, 4 / 3))  # a box that is on every grid
    scaled, pil = (augmented(TrainTransform(48, augment, decode=d), data, 0)[0] for d in ("scaled", "pil"))
    assert 0 < difference(scaled, pil) < 2  # in a box that is one pixel off: 6


def test_scaled_decoding_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("clipx.data.transforms.can_scale", lambda: False)
    with pytest.raises(InputError, match="pip install simplejpeg"):
        TrainTransform(16, AugmentConfig(), decode="scaled")


boxes = st.tuples(*[st.integers(1, 3000)] * 2, *[st.integers(0, 2000)] * 2).map(lambda b: Box(b[2], b[3], b[0], b[1]))


@given(box=boxes, image_size=st.integers(1, 400))
def test_a_snapped_box_is_large_enough_and_near(box, image_size):
    divisor = largest_divisor(box, image_size)
    small = snapped(box, divisor)
    assert divisor == 1 or min(small.height, small.width) >= image_size
    assert divisor == 8 or min(box.height, box.width) < 2 * divisor * image_size
    for near, edge in zip(edges(small), edges(box), strict=True):
        assert abs(near * divisor - edge) <= divisor / 2
    for near, edge in zip(edges(small)[2:], edges(box)[2:], strict=True):
        assert near <= -(-edge // divisor)  # inside of the scaled picture where the box is inside of the whole


def edges(box):
    return box.top, box.left, box.top + box.height, box.left + box.width


ratios = st.tuples(st.floats(0.01, 20), st.floats(1, 30)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@settings(max_examples=200)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair))),
    ratio=ratios,
    numbers=st.lists(st.floats(0, 1, exclude_max=True), min_size=22, max_size=22),
)
def test_a_random_box_lies_in_the_picture(height, width, scale, ratio, numbers):
    top, left, h, w = random_box(height, width, numbers, scale=scale, ratio=ratio)
    assert min(top, left) >= 0
    assert 1 <= h <= height - top
    assert 1 <= w <= width - left


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((200, 300), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((300, 130), (0.9, 1.0), (3 / 4, 4 / 3)),  # most tries do not fit, many boxes are the centre
        ((97, 101), (0.9, 1.0), (3 / 4, 4 / 3)),
        ((20, 400), (0.5, 1.0), (0.5, 2.0)),
    ],
)
def test_boxes_have_torchvisions_distribution(size, scale, ratio):
    count = 2500
    height, width = size
    crop = v2.RandomResizedCrop(1, scale=scale, ratio=ratio)
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [crop.make_params([image]) for _ in range(count)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    draw = np.random.default_rng(0)
    ours = np.array([random_box(height, width, draw.random(22), scale=scale, ratio=ratio) for _ in range(count)])
    for measure in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2], lambda b: b[:, 3], areas, aspects):
        assert distance(measure(ours), measure(theirs)) < 2.2 * (2 / count) ** 0.5  # p = 1e-4


def areas(boxes):
    return boxes[:, 2] * boxes[:, 3]


def aspects(boxes):
    return boxes[:, 3] / boxes[:, 2]


def distance(one, other):
    """Kolmogorov and Smirnov's statistic of two samples."""
    at = np.union1d(one, other)
    ranks = (np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (one, other))
    return abs(next(ranks) - next(ranks)).max()


@pytest.mark.parametrize("decode", ["fast", "pil"])
def test_sixteen_bits_are_scaled_wherever_images_are_decoded(decode):
    grey = np.random.default_rng(0).integers(0, 1 << 16, size=(30, 26), dtype=np.uint16)
    deep, plain = Image.fromarray(grey), Image.fromarray((grey >> 8).astype(np.uint8))
    transform = TrainTransform(16, AugmentConfig(), decode=decode)
    outs = [torch.empty(16, 16, 3, dtype=torch.uint8) for _ in range(2)]
    found = [transform(encoded(image), seed=5, out=out).deep for image, out in zip((deep, plain), outs, strict=True)]
    assert found == [True, False]
    assert torch.equal(*outs)
    assert torch.equal(EvalTransform(16)(deep), EvalTransform(16)(plain))


def test_the_crop_keeps_its_share_of_the_area():
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 3)))
    transform = TrainTransform(32, AugmentConfig(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)))
    outs = [augmented(transform, encoded(ramp), seed)[0] for seed in range(20)]
    assert all(118 <= int(out.max()) - int(out.min()) <= 128 for out in outs)  # half of the height


SIZES = [(24, 24), (50, 31), (31, 50), (12, 40), (25, 24), (27, 24), (29, 24), (31, 24), (24, 27)]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_evaluation_equals_open_clip(resize, interpolation, mode):
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    theirs = pytest.importorskip("open_clip.transform").image_transform(
        24, is_train=False, resize_mode=resize, interpolation=interpolation, **plain
    )
    ours = EvalTransform(24, resize=resize, interpolation=interpolation)
    for size in SIZES:
        image = picture(1, size).convert(mode)
        expected = (theirs(image) * 255).round().to(torch.uint8).permute(1, 2, 0)
        assert torch.equal(ours(image), expected), size


LONG = [
    (1, 900),
    (900, 1),
    (3, 1000),
    (1000, 7),
    (24, 700),
    (100, 2500),
    (2500, 100),
    (40, 1351),
    (1901, 29),
    (60, 80),
    (60, 150),
]


@pytest.mark.parametrize("image_size", [1, 24, 37])
@pytest.mark.parametrize("size", LONG)
@pytest.mark.parametrize(("interpolation", "crop"), [("bicubic", "round"), ("bilinear", "floor")])
def test_of_long_images_only_the_square_is_computed_and_it_is_the_same_to_the_bit(
    monkeypatch, size, image_size, interpolation, crop
):
    """Sizes that grow and shrink, of both orders in which Pillow resizes."""
    image, calls = picture(3, size), []
    transform = EvalTransform(image_size, interpolation=interpolation, crop=crop)
    whole = transform(image)
    monkeypatch.setattr("clipx.data.transforms._MAX_RESIZED", 0)
    monkeypatch.setattr(
        "clipx.data.transforms.centre_square", lambda *a, **k: calls.append(a) or centre_square(*a, **k)
    )
    assert torch.equal(transform(image), whole)
    assert len(calls) == 1


def test_the_two_crops_differ_by_a_pixel_where_three_of_four_are_left_over():
    columns = Image.fromarray(np.tile(np.arange(31, dtype=np.uint8)[None, :, None], (24, 1, 3)))
    begins = {crop: int(EvalTransform(24, crop=crop)(columns)[0, 0, 0]) for crop in ("round", "floor")}
    assert begins == {"round": 4, "floor": 3}
    fewer = columns.crop((0, 0, 29, 24))
    assert torch.equal(EvalTransform(24, crop="round")(fewer), EvalTransform(24, crop="floor")(fewer))


def test_an_image_of_one_column_takes_no_gigabytes(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k)
    )
    rows = np.zeros((20_000, 1, 3), np.uint8)
    rows[9_999:10_001] = 200  # of the middle row and a half on each side
    found = EvalTransform(224)(Image.fromarray(rows))
    assert found.shape == (224, 224, 3)
    assert int(found.min()) >= 195
    assert all(width * height < 1e5 for width, height in sizes)
    EvalTransform(224)(Image.fromarray(rows[:300]))
    assert sizes[-1] == (224, 224 * 300)  # whole: figures of ordinary images are what they were


@pytest.mark.parametrize("interpolation", FILTERS)
def test_evaluation_equals_transformers_clip_on_pillow(interpolation):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, resample=FILTERS[interpolation][0], **PLAIN
    )
    assert_same_pixels(EvalTransform(24, interpolation=interpolation, crop="floor"), theirs)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_evaluation_equals_transformers_siglip_on_pillow(interpolation):
    """SigLIP's is bicubic, that of SigLIP 2 bilinear; both squash."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    theirs = SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=FILTERS[interpolation][0], **PLAIN)
    assert_same_pixels(EvalTransform(24, resize="squash", interpolation=interpolation), theirs)


PLAIN = {"do_normalize": False, "do_rescale": False}


def assert_same_pixels(ours, theirs):
    for size in SIZES:
        image = picture(2, size)
        expected = torch.as_tensor(theirs(image)["pixel_values"][0]).permute(1, 2, 0)
        assert torch.equal(ours(image), expected.to(torch.uint8)), size
