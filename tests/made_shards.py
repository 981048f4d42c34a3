"""Shards that are made of rows, which may lack pictures and texts, and what they hold."""

import json
from pathlib import Path

from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import Rows, TableColumns
from clipx.making.make import Made, make_shards
from clipx.making.make_shard import MakeOptions
from clipx.storage.files import open_ranges
from clipx.storage.tar import read_members, scan_tar

ABSENT = {"needs_captions": False, "needs_image": False}


def opened(source: Path, **columns: object) -> Rows:
    return open_rows([str(source)], SourceOptions(columns=TableColumns(**(ABSENT | columns))))


def make(rows: Rows, out: Path, *, workers: int = 1, **options: object) -> Made:
    return make_shards(rows, str(out), MakeOptions(**options), workers=workers, max_bad=1.0)


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    """By key, of all shards."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        file = open_ranges(str(path))
        scan = scan_tar(file)
        found |= {scan.key(number): read_members(file, scan.members(number)) for number in range(len(scan.keys))}
    return found


def left_out(out: Path) -> list[tuple[object, object]]:
    lines = map(json.loads, (out / "left_out.jsonl").read_text().splitlines())
    return [(line["row"], line["reason"]) for line in lines]
