"""What the step benchmarks train on: models of the shipped configs, pictures of noise, captions of a realistic length.

A run is built by `clipx.train.build.build_run`, as `clipx train` builds it, over a set of two pairs in a temporary
folder that is never read; the batches are made here, so that no loader stands in the figures.
"""

import io
import os
import random
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from clipx.config.load import load_config
from clipx.config.schema import RunConfig
from clipx.data.tokenizer import build_tokenizer
from clipx.distributed.runtime import start_runtime
from clipx.train.build import Run, build_run
from clipx.train.metrics.step_metrics import InFlightStep, RankStats, StepMetrics, StopOrSave
from clipx.types import Batch

ROOT = Path(__file__).parents[1]
MODELS = {
    "b32": ROOT / "configs/vit_b32_cc12m_8xh100.yaml",
    "b16": ROOT / "configs/vit_b16_datacomp_large_16xh100.yaml",
    "l14": ROOT / "configs/vit_l14_datacomp1b_64xh100.yaml",
    "demo": ROOT / "clipx/demo/demo.yaml",
    "tiny": ROOT / "configs/vit_tiny_photos_cpu.yaml",
}
"""Where each model's shape and optimizer stand."""

_OPENINGS = ("a photo of", "a picture of", "close up of", "an old drawing of", "detail of", "view of", *[""] * 6)
_ADJECTIVES = """small red wooden bright antique quiet modern striped golden broken tall snowy handmade vintage empty
    crowded colourful rusty floral minimalist waterproof rectangular mediterranean hand-painted"""
_NOUNS = """dog bicycle lighthouse kitchen table bridge sweater mountain guitar market teapot garden harbour laptop
    church sandwich waterfall notebook motorcycle giraffe bookshelf necklace skyscraper tractor butterfly poster"""
_JOINTS = "with in on beside under and near behind for against at over | from 2019 isolated ready next to"
_MEDIAN_WORDS, _SPREAD = 10.5, 0.6
_PICTURES = 1024  # different ones in a batch; larger batches repeat them


def captions(count: int, seed: int) -> list[str]:
    """English-like captions whose number of words is log-normal (median 10.5, sigma 0.6).

    With CLIP's tokenizer that is 16 tokens in the mean with start and end, from 4 up to the 77 at which texts are cut.
    """
    draw = random.Random(seed)
    return [_caption(draw, max(2, round(draw.lognormvariate(0, _SPREAD) * _MEDIAN_WORDS))) for _ in range(count)]


def _caption(draw: random.Random, num_words: int) -> str:
    words = draw.choice(_OPENINGS).split()
    while len(words) < num_words:
        words += [draw.choice(part.split()) for part in (_ADJECTIVES, _NOUNS, _JOINTS)]
    return " ".join(words[:num_words])


def make_batch(config: RunConfig, size: int, *, index: int, rank: int = 0) -> Batch:
    """`size` pairs as the stream would hand them over: uint8 noise and tokenized captions; pinned where CUDA is.

    Args:
        config: its model decides picture size and context length.
        size: pairs of this rank.
        index: place in the data order; other indices give other pairs.
        rank: other ranks have other pairs.
    """
    seed = 1000 * index + rank
    generator = torch.Generator().manual_seed(seed)
    side = config.model.image.image_size
    tokens_T, lengths_B = build_tokenizer(config.model.text).encode(captions(size, seed))
    number_B = torch.arange(rank * size, (rank + 1) * size)
    pictures = torch.randint(0, 256, (min(size, _PICTURES), side, side, 3), dtype=torch.uint8, generator=generator)
    batch = Batch(
        index=index,
        images_IHWC=pictures if size <= _PICTURES else pictures[torch.arange(size) % _PICTURES],
        tokens_T=tokens_T,
        lengths_B=lengths_B,
        max_length=int(lengths_B.max()),
        sample_id_I=number_B,
        slot_I=number_B,
        source_I=torch.zeros(size, dtype=torch.int64),
    )
    return batch.pin_memory() if torch.cuda.is_available() else batch


def benchmark_config(
    model: str,
    batch_size: int,
    /,
    *,
    precision: str,
    folder: Path,
    context_length: int | None = None,
    **changes: object,
) -> RunConfig:
    """The run of a shipped config with another batch, precision and no files to speak of.

    Args:
        model: a key of MODELS.
        batch_size: pairs of a step, over all ranks.
        precision: as in a config.
        folder: for the run and the set that stands in for data.
        context_length: positions of the text tower; none: as in the config.
        changes: further fields of the RunConfig.
    """
    config = load_config(
        [MODELS[model]], [] if context_length is None else [f"model.text.context_length={context_length}"]
    )
    shard = write_pairs(folder)
    fields: dict[str, object] = {
        "run_dir": str(folder / "run"),
        "global_batch_size": batch_size,
        "micro_batch_size": batch_size // int(os.environ.get("WORLD_SIZE", "1")),  # torchrun sets it
        "precision": precision,
        "compile": False,  # a benchmark says what it compiles
        "data": replace(config.data, train=[str(shard)], workers=0, allow_repeats=True, caption_key="txt", index=None),
        "evaluate": {},
        "track": replace(config.track, wandb="disabled", tensorboard=False),
    }
    return replace(config, **(fields | changes))  # type: ignore[arg-type]


@contextmanager
def open_run(
    model: str,
    batch_size: int,
    /,
    *,
    precision: str,
    folder: Path | None = None,
    context_length: int | None = None,
    **changes: object,
) -> Iterator[Run]:
    """A run built as `clipx train` would on this rank, at its first step.

    Args:
        model: a key of MODELS.
        batch_size: pairs of a step, over all ranks.
        precision: as in a config.
        folder: shared by the ranks; default: a temporary one.
        context_length: positions of the text tower; none: as in the config.
        changes: further fields of the RunConfig.
    """
    with tempfile.TemporaryDirectory() as scratch:
        config = benchmark_config(
            model,
            batch_size,
            precision=precision,
            folder=folder or Path(scratch),
            context_length=context_length,
            **changes,
        )
        with start_runtime(config) as runtime:
            yield build_run(config, runtime)


class Steps:
    """Optimizer steps as the trainer takes them: each is read when the next has been launched.

    Args:
        run: whose `Stepper` steps.
        batches: one after the other, round and round.
        num_steps: steps of a call.
    """

    def __init__(self, run: Run, batches: Sequence[Batch], *, num_steps: int = 1) -> None:
        self.run, self.batches, self.num_steps = run, batches, num_steps
        self.taken = 0
        self.outcomes: list[StepMetrics] = []
        """Of all steps taken."""

    def __call__(self) -> float:
        """Takes the steps and waits for their end; returns the last loss."""
        pending: InFlightStep | None = None
        for _ in range(self.num_steps):
            batch = self.batches[self.taken % len(self.batches)]
            launched = self.run.stepper(batch, step=self.taken, requests=StopOrSave(), stats=RankStats())
            self.taken += 1
            if pending is not None:
                self.outcomes.append(pending.read())
            pending = launched
        assert pending is not None
        self.outcomes.append(pending.read())
        return self.outcomes[-1].loss


def write_pairs(folder: Path) -> Path:
    """The shard of two pairs that stands in for data, if it is not there yet; call it before ranks share the folder."""
    path = folder / "pairs.tar"
    if path.exists():
        return path
    with tarfile.open(path, "w") as tar:
        for number in range(2):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(picture, "png")
            for name, content in ((f"{number}.png", picture.getvalue()), (f"{number}.txt", b"a picture")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path
