"""Things to embed, and folders of embeddings, for tests."""

from collections.abc import Iterable
from pathlib import Path

from shard_files import pair, png, write_shards

BROKEN, BLANK, CUT = 5, 17, 26
"""Numbers of samples of `write_pairs` with a picture that is none, an empty caption, and a cut picture."""


def write_pairs(folder: Path, counts: Iterable[int] = (12, 12, 8)) -> list[str]:
    """Shards of small pictures with captions, of which some are no good."""
    replaced = {
        BROKEN: pair(BROKEN) | {"png": b"no picture"},
        BLANK: pair(BLANK) | {"txt": b" "},
        CUT: pair(CUT) | {"png": png(CUT)[:50]},
    }
    return write_shards(folder, list(counts), replaced=replaced)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder and below it, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
