"""The list of bad samples of a run, and the share of them at which the run stops."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from clipx.errors import RunError
from clipx.printable import label, redacted
from clipx.storage.json_rows import read_rows
from clipx.train.metrics.json_lines import JsonLines
from clipx.types import BadSample

_BAD_COUNTED_FROM = 100  # distinct samples below which a share of bad ones says nothing


class Quarantine:
    """The bad samples a run has met, each once; the same on every rank.

    Args:
        path: the file that lists them; read here if an earlier start wrote it.
        resumed_step: step from which the run goes on; samples that were met after it count when they are met again.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        self.path = path
        self._file = JsonLines(path)
        rows = read_rows(path)
        self._written = {(row["shard"], row["key"]) for row in rows}
        self._met = {  # before there were mixtures rows named no source
            (row["shard"], row["key"]): row.get("source", "train") for row in rows if row["step"] <= resumed_step
        }

    def __len__(self) -> int:
        return len(self._met)

    def count(self, name: str) -> int:
        """Number of bad samples in the source of this name."""
        return sum(source == name for source in self._met.values())

    def add(self, samples: Sequence[BadSample], *, step: int, write: bool) -> None:
        """Adds the bad samples of all ranks, which may repeat, met by a step (from 1); rank 0 alone writes them."""
        fresh = {(label(sample.shard), sample.key): sample for sample in samples}
        if write:
            rows = [
                redacted({"step": step, **asdict(sample), "shard": name[0]})
                for name, sample in fresh.items()
                if name not in self._written
            ]
            self._file.append(rows)
        self._written |= fresh.keys()
        self._met |= {name: sample.source for name, sample in fresh.items()}

    def check(self, *, samples_seen: int, num_samples: int, max_bad_fraction: float) -> None:
        """Checks the share of bad samples among the distinct ones read so far; `samples_seen` counts repetitions.

        Raises:
            RunError: too many are bad; names the count, the rule and the file.
        """
        distinct = min(samples_seen, num_samples)
        if distinct >= _BAD_COUNTED_FROM and len(self) > max_bad_fraction * distinct:
            raise RunError(
                f"{len(self)} of {distinct} distinct samples are bad, more than "
                f"data.max_bad_fraction={max_bad_fraction}; see {self.path}, mend the shards or raise the limit"
            )
