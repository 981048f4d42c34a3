"""A model that predicts columns of a table from others, with all that its predictions need.

Shapes: B rows of a block, O raw outputs of all targets side by side, P inputs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import ImageInput, NumberInput, TextInput
from clipx.data.in_order import Block, InOrder, own_blocks, read_in_order
from clipx.data.tokenizer import Tokenizer
from clipx.errors import InputError
from clipx.models.evaluating import evaluating
from clipx.models.fused import FusedModel
from clipx.pretrained.model import Pretrained
from clipx.pretrained.predictions import cells, free_name, no_cells, predictions
from clipx.pretrained.row_samples import GivenRows, RowSource, row_reader
from clipx.types import Batch


@dataclass(frozen=True)
class PredictedBlock:
    """What a model says of a block of rows."""

    rows: range
    good: tuple[int, ...]
    """The B rows that could be read, in order."""
    raw_BO: Tensor
    """float32, on the CPU."""
    there_BP: Tensor
    """bool: which inputs a row had, in the order of the config."""
    problems: dict[int, str]
    """Of the others: what is wrong, by row."""


class Fitted(Pretrained):
    """A model that a fit run trained; its towers are a `Pretrained`.

    Args:
        model: may be in training mode; every call evaluates and restores the modes.
        fit_config: resolved.
        tokenizer: of its texts; None means that it is built from the config.
    """

    model: FusedModel

    def __init__(self, model: FusedModel, fit_config: FitConfig, *, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(model, fit_config.model, tokenizer=tokenizer)
        self.fit_config = fit_config

    def predict(
        self, rows: Any, *, batch_size: int = 128, probabilities: bool = False, absent: bool = False
    ) -> list[dict[str, object]]:
        """What the model says of rows: a dict for each, in their order.

        It holds for each target its value under the target's name: a class, a number in the units of the table, or a
        list of labels, which are those of probability 0.5 and more. `NAME_probability` is the probability of a class.
        `present` lists the inputs that the row had. A row that cannot be read, or that has no input at all, has None
        for its values, and the reason under `problem`. A name that is a target's own gets an underscore.

        Args:
            rows: a mapping from column to value, several, or a DataFrame of pandas. A picture is a path (relative ones
                begin where the program runs), an address, a file's bytes or a PIL.Image. None, NaN, blank texts and
                files that are not there are absent.
            batch_size: rows of a forward pass.
            probabilities: whether `NAME_probabilities` is there, too: those of all classes or labels by their names.
            absent: whether columns of inputs may be missing, which are then absent from all rows.

        Raises:
            InputError: no rows, or a column of an input that no row has.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} rows at once; give at least 1")
        given = GivenRows(rows, self.fit_config, absent=absent)
        found: list[dict[str, object]] = []
        for block, batch in self.read(given, own_blocks(len(given), batch_size=batch_size)):
            found += self.described(self.predict_block(block, batch), probabilities=probabilities)
        return found

    def read(self, rows: RowSource, blocks: Iterable[Block]) -> Iterator[tuple[Block, InOrder]]:
        """Yields blocks of rows as `predict_block` takes them, read by threads."""
        config = self.fit_config
        listed = list(blocks)
        batches = read_in_order(
            row_reader(config, rows),
            tokenizer=self.tokenizer,
            counts=[len(rows)],
            image_size=config.model.image.image_size if "image" in config.modalities else 0,
            blocks=listed,
        )
        return zip(listed, batches, strict=True)

    @torch.no_grad()
    def predict_block(self, block: Block, read: InOrder) -> PredictedBlock:
        """What the model says of a block that was read: one forward pass."""
        batch, count = read.batch, len(read.numbers)
        raw_BO = torch.empty(0, self.fit_config.heads[-1].outputs.stop)
        if count:
            with evaluating(self.model):
                raw_BO = self.model(batch.to(self.device), seed=0).raw_BO.float().cpu()
        return PredictedBlock(
            block.samples,
            good=read.numbers,
            raw_BO=raw_BO,
            there_BP=self._there(batch)[:count],
            problems={bad.sample_id: bad.reason for bad in batch.bad},
        )

    def _there(self, batch: Batch) -> Tensor:
        """Which inputs each row has: bool (B, P)."""
        config, columns = self.fit_config, batch.columns
        places = {name: place for place, name in enumerate(config.modalities)}
        numbers, categories = iter(range(len(config.numbers))), iter(range(len(config.categories)))
        there: list[Tensor] = []
        for part in config.inputs.values():
            if isinstance(part, ImageInput | TextInput):
                there.append(columns["presence_BM"][:, places[part.type]] > 0)
            elif isinstance(part, NumberInput):
                there.append(~columns["numbers_BK"][:, next(numbers)].isnan())
            else:
                there.append(columns["categories_BC"][:, next(categories)] >= 0)
        return torch.stack(there, 1)

    def described(self, block: PredictedBlock, *, probabilities: bool = False) -> list[dict[str, object]]:
        """The rows of a block as `predict` gives them."""
        config = self.fit_config
        present, why = (free_name(name, config.targets) for name in ("present", "problem"))
        values: list[dict[str, object]] = [{} for _ in block.good]
        for name, prediction in predictions(config.heads, block.raw_BO).items():
            for place, own in enumerate(cells(prediction, name, all_probabilities=probabilities)):
                values[place] |= self._named(own, target=name)
        for place, there_P in enumerate(block.there_BP.tolist()):
            values[place][present] = list(compress(config.inputs, there_P))
        by_row = dict(zip(block.good, values, strict=True))
        for row, problem in block.problems.items():
            nothing: dict[str, object] = {}
            for head in config.heads:
                nothing |= self._named(no_cells(head, all_probabilities=probabilities), target=head.name)
            by_row[row] = {**nothing, present: [], why: problem}
        return [by_row[row] for row in block.rows]

    def _named(self, values: Mapping[str, object], *, target: str) -> dict[str, object]:
        """What is said of a target, under names that are no other target's."""
        others = self.fit_config.targets
        return {name if name == target else free_name(name, others): value for name, value in values.items()}
