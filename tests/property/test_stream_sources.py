"""The same batches, bit for bit, wherever the shards lie and however the work is divided: local, http, S3, cached."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from batches import assert_same, join
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import WebServer, object_store
from shard_files import png, write_shards
from tiny import tiny_config

from clipx.config.data import sources
from clipx.config.schema import RunConfig
from clipx.data.build import build_order, open_reader
from clipx.data.filters.filters import SampleFilter
from clipx.data.index.shard_index import build_index
from clipx.data.stream import PairStream, rank_slots
from clipx.data.tokenizer import ClipTokenizer
from clipx.types import Batch

BATCHES = 11  # into the second epoch of both sources
BAD = {5: {"png": b"broken"}, 9: {"png": png(9), "json": b'{"a": " "}'}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets; samples of the first hold captions under several keys, and long ones of which a part is drawn."""
    root = tmp_path_factory.mktemp("sets")
    long = "A {0}. B {0} is it! C of {0} is here. D {0}?"
    records = {i: {"a": [f"a{i}", f"b{i}"], "long": long.format(i)} for i in range(80)}
    first = {
        i: {"png": png(i, 20), "txt": f"text {i}".encode(), "json": json.dumps(record).encode()}
        for i, record in records.items()
    }
    write_shards(root / "first", [30, 11, 39], replaced=first | BAD)
    write_shards(root / "second", [25, 20])
    return root


@pytest.fixture(scope="module")
def places(folders: Path) -> Iterator[dict[str, str]]:
    """Where the same two folders can be read."""
    files = {str(path.relative_to(folders)): path.read_bytes() for path in sorted(folders.rglob("*.tar"))}
    with WebServer(files) as web, object_store() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }.items():
            patch.setenv(name, value)
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("sets")
        for name, content in files.items():
            bucket.pipe(f"sets/{name}", content)
        yield {"local": str(folders), "http": web.url, "s3": "s3://sets"}


def config(place: str, index: Path, cache: Path | None) -> RunConfig:
    described = {
        "first": {
            "shards": [f"{place}/first/{{00000..00002}}.tar"],
            "weight": 2.5,
            "index": str(index / "first"),
            "caption_key": {"txt": 1, "json:a": 2, "json:long": {"weight": 3, "words": [3, 8]}},
        },
        "second": {"shards": [f"{place}/second/{{00000..00001}}.tar"], "index": str(index / "second")},
    }
    return tiny_config(
        index,
        "none",
        "data.train=null",
        f"data.sources={json.dumps(described)}",
        "data.captions_per_image=2",
        "data.shuffle_window=6",
        "data.augment={flip: 0.5, crop_scale: [0.3, 1]}",
        *([] if cache is None else [f"data.cache={{folder: {cache}}}"]),
    )


def batches(config: RunConfig, *, world_size: int, workers: int, start: int) -> list[Batch]:
    first, second = sources(config.data)
    long_captions = SampleFilter.parse(["caption.characters>=10"])  # those of the second set from "picture 10" on
    indexes = [
        build_index(first.shards, index_dir=first.index),
        build_index(second.shards, index_dir=second.index, filters=long_captions),
    ]
    assert [index.num_samples for index in indexes] == [80, 35]
    order = build_order(config, indexes)
    ranks = []
    for rank in range(world_size):
        reader = open_reader(indexes, order, data=config.data, image_size=16, tokenizer=ClipTokenizer(16))
        slots = rank_slots(order, rank=rank, world_size=world_size)
        stream = PairStream(reader, slots=slots, image_size=16, workers=workers)
        ranks.append(list(stream.batches(start, BATCHES)))
    return [join(parts) for parts in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def expected(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    found = batches(config(str(folders), tmp_path_factory.mktemp("index"), None), world_size=1, workers=0, start=0)
    assert {bad.key for batch in found for bad in batch.bad} == {"000005", "000009"}
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=7, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(["local", "http", "s3"]),
    cached=st.booleans(),
    world_size=st.sampled_from([1, 2, 3, 4, 6]),
    workers=st.integers(0, 3),
    start=st.integers(0, BATCHES - 1),
)
def test_batches_do_not_depend_on_place_cache_ranks_workers_or_start(
    place: str,
    cached: bool,
    world_size: int,
    workers: int,
    start: int,
    places: dict[str, str],
    expected: list[Batch],
    scratch: Path,
) -> None:
    of_run = config(places[place], scratch / place, scratch / "cache" if cached else None)
    found = batches(of_run, world_size=world_size, workers=workers, start=start)
    assert_same(found, expected[start:])
