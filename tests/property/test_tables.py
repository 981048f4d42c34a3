"""Captions of any kind, as the csv and json modules write them, come back with their pictures or are listed."""

import csv
import io
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from clipx.data.captions import is_blank
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import LeftOutError, Row, Rows
from clipx.making.groups import group_rows, merged

CAPTIONS = st.text(st.sampled_from("ab,;|\t\"'\n .#é\u200b\ufeff\u2028\0") | st.characters(exclude_categories=["Cs"]))
PAIRS = st.lists(st.tuples(st.integers(0, 3), CAPTIONS), min_size=1, max_size=12)


def expected(pairs: list[tuple[int, str]]) -> tuple[dict[str, list[str]], int]:
    """The captions of each picture, and how many rows have none."""
    found: dict[str, list[str]] = {}
    for number, caption in pairs:
        if not is_blank(caption):
            captions = found.setdefault(f"{number}.png", [])
            if (text := caption.lstrip("\ufeff").strip()) not in captions:
                captions.append(text)
    return found, sum(is_blank(caption) for _, caption in pairs)


def read(rows: Rows) -> tuple[dict[str, list[str]], int]:
    groups = group_rows(rows)
    samples = [[row] for row in range(len(rows))] if groups is None else [groups.rows(n) for n in range(len(groups))]
    found, num_left_out = {}, 0
    for sample in samples:
        good: list[Row] = []
        for row in map(int, sample):
            try:
                content = rows.read(row)
                assert isinstance(content, Row)
                good.append(content)
            except LeftOutError:
                num_left_out += 1
        if good:
            assert good[0].name not in found
            found[good[0].name] = merged(good).captions
    return found, num_left_out


def opened(name: str, text: str) -> tuple[dict[str, list[str]], int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text.encode())
        return read(open_rows([str(path)], SourceOptions()))


@settings(max_examples=80)
@given(PAIRS, st.sampled_from(",;|\t"), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_csv(pairs: list[tuple[int, str]], delimiter: str, line_end: str, first: bool) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    rows = [("image", "caption"), *((f"{number}.png", caption) for number, caption in pairs)]
    writer.writerows(row if first else reversed(row) for row in rows)
    assert opened("t.csv", text.getvalue()) == expected(pairs)


@settings(max_examples=40)
@given(PAIRS, st.booleans())
def test_json_lines(pairs: list[tuple[int, str]], ascii: bool) -> None:
    rows = [{"image": f"{number}.png", "caption": caption} for number, caption in pairs]
    text = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    assert opened("t.jsonl", text) == expected(pairs)
