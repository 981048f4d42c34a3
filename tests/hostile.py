"""What strangers may write into captions, names of classes, paths and configs, to see what a page makes of it."""

HOSTILE = "</title><script>console.error('ran')</script><img src=http://127.0.0.1/x onerror=a()>\"'&\x1b[2J\u202e"
"""Markup, an address, both quotes, and characters that a terminal obeys."""


def assert_harmless(html: str) -> None:
    """Nothing of it is markup, and none of its control characters is left."""
    assert "console.error" in html, "the text itself is not shown"
    for markup in ("<script", "<img src=http", "\x1b", "\u202e"):
        assert markup not in html
