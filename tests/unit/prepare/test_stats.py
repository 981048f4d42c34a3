"""SetStatistics are those of the samples, per source and together; the plot shows every source."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_files import png, write_shards

from clipx.config.data import DataConfig, SourceConfig, sources
from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError, RunError
from clipx.prepare import own_files, plots
from clipx.prepare.stats import describe

CAPTIONS = ["a cat", "a dog", "a cat", "a very long caption about cats and dogs and birds"]


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """`small`: four samples, one of them twice and one bad; `large`: ten larger ones."""
    small = {n: {"png": png(n % 2, size=10 + n % 2), "txt": text.encode()} for n, text in enumerate(CAPTIONS)}
    write_shards(tmp_path / "small", [3, 2], replaced=small | {4: {"txt": b"no picture"}})
    large = {n: {"png": png(n, size=40), "txt": b"word"} for n in range(10)}
    write_shards(tmp_path / "large", [10], replaced=large)
    return DataConfig(
        sources={
            name: SourceConfig(shards=[str(tmp_path / name)], index=str(tmp_path / f"i-{name}"))
            for name in ("small", "large")
        }
    )


def model(context_length: int) -> ModelConfig:
    image = TimmImageConfig(name="vit_base_patch32_clip_224")
    return ModelConfig(embed_dim=8, image=image, text=TransformerTextConfig(context_length=context_length))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])  # 2: imports torch anew
def test_figures_of_each_source_and_of_all(data: DataConfig, workers: int) -> None:
    found = describe(sources(data), model(4), sample=None, workers=workers)
    assert found.context_length == 4  # so many has "a cat": it is not cut
    assert list(found.figures) == ["small", "large", "all"]
    small, large, both = found.figures.values()
    lengths = ClipTokenizer(77).encode(CAPTIONS)[1].tolist()
    assert (small.tokens["min"], small.tokens["max"]) == (min(lengths), max(lengths))
    assert small.tokens["mean"] == pytest.approx(np.mean(lengths))
    assert small.cut_captions == 0.25
    assert (small.num_samples, small.num_read, small.num_bad) == (5, 5, 1)
    assert (small.width["min"], small.height["max"], small.aspect["p50"]) == (10, 11, 1)
    assert (small.duplicate_images, small.duplicate_captions, small.duplicate_pairs) == (0.5, 0.25, 0.25)
    assert (large.duplicate_images, large.duplicate_captions, large.duplicate_pairs) == (0, 0.9, 0)
    assert (both.num_samples, both.num_bad, both.formats) == (15, 1, {"png": 14})
    assert both.duplicate_images == pytest.approx(2 / 14)
    assert large.num_bytes["p50"] == pytest.approx(np.median([len(png(n, size=40)) + 4 for n in range(10)]))


def test_what_processes_are_sent_measures_the_same(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe(sources(data), model(4), sample=None, workers=1).figures
    monkeypatch.setattr(
        "clipx.prepare.stats.in_processes", lambda work, jobs, workers: map(pickle.loads(pickle.dumps(work)), jobs)
    )
    assert describe(sources(data), model(4), sample=None, workers=1).figures == here


def test_a_sample_is_spread_over_the_source(data: DataConfig) -> None:
    found = describe(sources(data)[1:], None, sample=5, workers=1)
    (large,) = found.figures.values()
    assert (large.num_samples, large.num_read) == (10, 5)
    hashes = describe(sources(data)[1:], None, sample=None, workers=1).measured["large"].samples["image_hash"]
    assert found.measured["large"].samples["image_hash"].tolist() == hashes[::2].tolist()


def test_templates_count_as_they_are_trained(data: DataConfig) -> None:
    from dataclasses import replace

    plain, templated = (
        describe(sources(replace(data, templates=templates)), None, sample=None, workers=1).figures["large"]
        for templates in (None, ["a picture of a {c}"])
    )
    assert templated.tokens["p50"] == plain.tokens["p50"] + 4
    assert templated.cut_captions == 0


def test_a_source_without_one_readable_sample_is_an_error(data: DataConfig) -> None:
    from dataclasses import replace

    with pytest.raises(RunError, match=r"source small: none of 5 samples has a picture and a caption"):
        describe(sources(replace(data, image_key="jpg")), None, sample=None, workers=1)


@pytest.mark.parametrize("names", [["small"], ["small", "large"]])
def test_plot_shows_each_source_in_its_colour(data: DataConfig, tmp_path: Path, names: list[str]) -> None:
    measured = describe(sources(data), None, sample=None, workers=1).measured
    path = tmp_path / "new" / "stats.png"
    chosen = {name: measured[name] for name in names}
    plots.draw_stats(chosen, path, context_length=8, image_size=16)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for number, colour in enumerate(plots._COLOURS[:2]):
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (pixels == rgb).all(1).any() == (number < len(names))


def test_without_matplotlib_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    own_files.require_matplotlib()
    monkeypatch.setattr(own_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"plots need matplotlib: pip install matplotlib"):
        own_files.require_matplotlib()
