"""Predictions for all rows of a table, block by block: the same bytes whatever the ranks.

Blocks are cut from the rows alone, and each is one forward pass in one thread (`clipx.pretrained.threads` says why).
Ranks take turns with them, and rank 0 writes them in order as they come: no table is too large.

Shapes: B good rows of a block, O raw outputs of all targets side by side.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from torch.distributed import ProcessGroup

from clipx.data.in_order import Block, InOrder, own_blocks
from clipx.data.rows.row import Rows
from clipx.distributed.collectives import gather_objects, raise_on_all_ranks, rank, world_size
from clipx.errors import InputError
from clipx.pretrained.fitted import Fitted, PredictedBlock
from clipx.pretrained.threads import num_threads, side_by_side
from clipx.use.prediction_files import PredictionFile, PredictionTable
from clipx.use.table_samples import TableRows

_BLOCKS_PER_TURN = 4  # of each rank, before they are gathered and written
_PROBLEMS_KEPT = 10


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How rows are predicted."""

    batch_size: int = 128
    """Rows of a forward pass."""
    probabilities: bool = False
    """Whether those of all classes and labels are written."""
    key: str | None = None
    """The column that names rows; None: they are numbered."""


@dataclass
class Predicted:
    """What became of the rows."""

    num_rows: int = 0
    num_null: int = 0
    """Rows without predictions."""
    absent: Counter[str] = field(default_factory=Counter)
    """Of the others, how many lacked an input, by its name."""
    problems: list[tuple[int, str]] = field(default_factory=list)
    """The first rows without predictions, each with the reason."""

    def add(self, block: PredictedBlock, inputs: Sequence[str]) -> None:
        """Counts the rows of a block."""
        self.num_rows += len(block.rows)
        self.num_null += len(block.problems)
        self.problems += sorted(block.problems.items())
        del self.problems[_PROBLEMS_KEPT:]
        for name, count in zip(inputs, (~block.there_BP).sum(0).tolist(), strict=True):
            self.absent[name] += count


def predict_table(
    fitted: Fitted,
    rows: Rows,
    out: Path,
    options: PredictOptions,
    *,
    group: ProcessGroup | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Writes a row of predictions for each row, in their order; the file is there when it is complete.

    Args:
        fitted: the model, on this rank's device.
        rows: of `clipx.use.table_samples.open_table`.
        out: the file, .csv or .parquet.
        options: how.
        group: the ranks, which share the work.
        on_progress: gets the rows that are done, and all.

    Returns:
        Counts, on all ranks.

    Raises:
        InputError: the file cannot be written or is somebody else's, storage fails, or no row has a prediction.
        RunError: a shard cannot be read.
    """
    total, ranks = len(rows), world_size(group)
    blocks = own_blocks(total, batch_size=options.batch_size)
    source = TableRows(rows, fitted.fit_config, key=options.key)
    found = Predicted()
    with ExitStack() as stack:
        file = None
        with raise_on_all_ranks(group):
            if rank(group) == 0:
                table = PredictionTable(fitted.fit_config, key=options.key, probabilities=options.probabilities)
                file = stack.enter_context(PredictionFile(out, table))
        own = stack.enter_context(closing(_predict(fitted, source, blocks[rank(group) :: ranks])))
        for _ in range(-(-len(blocks) // (ranks * _BLOCKS_PER_TURN))):
            with raise_on_all_ranks(group):
                part = list(islice(own, _BLOCKS_PER_TURN))
            together = gather_objects(part, group)
            with raise_on_all_ranks(group):
                for block, keys in _in_turns(together):
                    found.add(block, list(fitted.fit_config.inputs))
                    if file is not None:
                        file.write(block, keys)
            if on_progress is not None:
                on_progress(found.num_rows, total)
        with raise_on_all_ranks(group):
            if found.num_null == total:
                row, reason = found.problems[0]
                raise InputError(f"not one of {total:,} rows can be predicted; row {row}: {reason}")
            if file is not None:
                file.complete()
    return found


_Keyed = tuple[PredictedBlock, list[str]]


def _predict(fitted: Fitted, rows: TableRows, blocks: Sequence[Block]) -> Generator[_Keyed]:
    """Yields the blocks with the keys of their rows, several forward passes at once."""

    def predict(read: tuple[Block, InOrder, list[str]]) -> _Keyed:
        block, batch, keys = read
        return fitted.predict_block(block, batch), keys

    def read() -> Iterator[tuple[Block, InOrder, list[str]]]:
        for block, batch in fitted.read(rows, blocks):
            yield block, batch, [rows.take_key(row) for row in block.samples]

    threads = num_threads(fitted.model, fitted.device)
    yield from side_by_side(predict, read(), device=fitted.device, threads=threads)


def _in_turns(parts: Sequence[Sequence[_Keyed]]) -> Iterator[_Keyed]:
    """The blocks of all ranks in the order of their rows: one of each rank after the other."""
    for place in range(max(map(len, parts))):
        yield from (part[place] for part in parts if place < len(part))
