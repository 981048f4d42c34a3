"""The evaluation of a fit run on its held-out samples: what reads them, and what a person is shown of it."""

from collections.abc import Iterator, Mapping

from clipx.config.fit import FitConfig
from clipx.config.fit_metrics import HEADLINES, figure_name
from clipx.data.build import open_fit_samples
from clipx.data.in_order import InOrder, batches_in_order
from clipx.evaluate.options import Evaluation
from clipx.evaluate.supervised import supervised
from clipx.evaluate.supervised_rows import BLOCK
from clipx.models.fused import FusedModel
from clipx.train.build import Run
from clipx.train.build_features import load_val_index


def evaluate_held_out(run: Run, config: FitConfig) -> Evaluation:
    """The figures of the weights as they are, on all ranks; each of them must call it."""
    model = run.stepper.objective.model
    assert isinstance(model, FusedModel)
    return supervised(model, config, _blocks(run, config), group=run.runtime.group)


def _blocks(run: Run, config: FitConfig) -> Iterator[InOrder]:
    """This rank's blocks of held-out samples."""
    rank, world_size = run.runtime.rank, run.runtime.world_size
    if run.kept_val is not None:
        return run.kept_val.in_order(batch_size=BLOCK, rank=rank, world_size=world_size)
    index = load_val_index(config, run.runtime)
    return batches_in_order(
        open_fit_samples(config, index),
        tokenizer=run.encoder.tokenizer,
        counts=index.counts,
        image_size=config.model.image.image_size if "image" in config.modalities else 0,
        batch_size=BLOCK,
        rank=rank,
        world_size=world_size,
    )


def headline(config: FitConfig, scores: Mapping[str, float]) -> str:
    """One figure of each target in a line; all figures are in the file."""
    parts = [f"loss {scores['loss']:.4f}"] if "loss" in scores else []
    for name, target in config.targets.items():
        figure = figure_name(name, HEADLINES[target.type])
        if figure in scores:
            parts.append(f"{figure} {scores[figure]:.4f}")
    return "  ".join(parts)
