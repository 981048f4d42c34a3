"""A changed augmentation is noticed: by a store that was taught before, and by a test here."""

from pathlib import Path

import numpy as np
import pytest
from teacher_stores import AUGMENT

from clipx.config.data import AugmentConfig, Decode
from clipx.data import device_augment, transforms
from clipx.data.teachers import views
from clipx.data.teachers.probes import agrees, encoded_probes, probed

GOLDEN = Path(__file__).parents[3] / "golden" / "augmentation.npy"
DECODINGS: tuple[Decode, ...] = ("fast", "scaled", "pil")


def probes(decode: Decode = "fast") -> str:
    return encoded_probes(AUGMENT, decode=decode, seed=5)


@pytest.mark.parametrize("decode", DECODINGS)
def test_the_same_code_agrees(decode: Decode) -> None:
    assert agrees(probes(decode), AUGMENT, decode=decode, seed=5)
    assert not agrees(probes(decode), AUGMENT, decode=decode, seed=6)
    assert not agrees("AAAA", AUGMENT, decode=decode, seed=5)


def changed_box(height: int, width: int, numbers: list[float], **options: object) -> transforms.Box:
    """One that begins one pixel further to the left, where it can."""
    box = transforms_random_box(height, width, numbers, **options)
    return box._replace(left=max(box.left - 1, 0))


transforms_random_box = transforms.random_box


CHANGES = {
    "crop": (transforms, "random_box", changed_box),
    "seeds of views": (views, "name_hash", lambda *names: 7),
    "place of the draws": (transforms, "_KEYS", transforms._KEYS + 1),
    "draws of colours": (device_augment, "_PURPOSE", -2),
    "order of RandAugment": (device_augment, "_rand_augment_table", lambda magnitude: [(-1, (0.0, 0.0))]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = probes()
    monkeypatch.setattr(*CHANGES[name])
    assert not agrees(before, AUGMENT, decode="fast", seed=5)


def test_rounding_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    before, whole = probes(), probed(AUGMENT, decode="fast", seed=5)
    jitter = np.random.default_rng(0).integers(-1, 2, whole.shape)
    rounded = np.clip(whole + jitter, 0, 255).astype(np.uint8)
    monkeypatch.setattr("clipx.data.teachers.probes.probed", lambda *args, **options: rounded)
    assert agrees(before, AUGMENT, decode="fast", seed=5)


def test_augmentation_is_what_it_was(request: pytest.FixtureRequest) -> None:
    """If this fails, every store that was taught before is refused: say so in CHANGELOG, then --update-golden."""
    now = np.concatenate(
        [
            probed(augment, decode=decode, seed=5)
            for augment in (AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5), AUGMENT)
            for decode in DECODINGS
        ]
    )
    if request.config.getoption("--update-golden"):
        np.save(GOLDEN, now)
    then = np.load(GOLDEN)
    assert then.shape == now.shape
    assert (np.abs(then.astype(int) - now) > 2).mean() < 0.01
