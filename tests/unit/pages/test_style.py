"""Text and lines are legible in both schemes: WCAG 2's contrast, 4.5 for text, 3 for lines."""

import pytest

from clipx.pages.style import DARK, LIGHT, NUM_SERIES, STYLE


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_contrast(scheme: dict[str, str]) -> None:
    for paper in ("paper", "panel"):
        for ink in ("ink", "quiet", "link", "right", "wrong"):
            assert contrast(scheme[ink], scheme[paper]) >= 4.5, (ink, paper)
        for line in (f"s{i}" for i in range(NUM_SERIES)):
            assert contrast(scheme[line], scheme[paper]) >= 3, (line, paper)


def test_both_schemes_have_the_same_colours() -> None:
    assert LIGHT.keys() == DARK.keys()
    for name in LIGHT:
        assert f"var(--{name})" in STYLE
