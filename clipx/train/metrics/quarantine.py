"""The list of bad samples of a run, and the share of them at which the run stops."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from clipx.errors import RunError
from clipx.train.metrics.json_lines import append_rows, read_rows
from clipx.types import BadSample

_BAD_COUNTED_FROM = 100  # distinct samples below which a share of bad ones says nothing


class Quarantine:
    """The bad samples a run has met, each once; the same on every rank."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        """Reads what an earlier start wrote; what it met after the resumed step counts when it is met again."""
        self.path = path
        rows = read_rows(path)
        self._written = {(row["shard"], row["key"]) for row in rows}
        self._met = {  # before there were mixtures rows named no source
            (row["shard"], row["key"]): row.get("source", "train") for row in rows if row["step"] <= resumed_step
        }

    def __len__(self) -> int:
        return len(self._met)

    def of_source(self, name: str) -> int:
        """Bad samples of one source."""
        return sum(source == name for source in self._met.values())

    def add(self, samples: Sequence[BadSample], *, step: int, write: bool) -> None:
        """Takes records of all ranks; `write` (rank 0) appends the new ones to quarantine.jsonl."""
        fresh = {(sample.shard, sample.key): sample for sample in samples}
        if write:
            rows = [{"step": step, **asdict(sample)} for name, sample in fresh.items() if name not in self._written]
            append_rows(self.path, rows)
        self._written |= fresh.keys()
        self._met |= {name: sample.source for name, sample in fresh.items()}

    def check(self, *, samples_seen: int, num_samples: int, max_bad_fraction: float) -> None:
        """Ends the run when too many of the distinct samples read so far were bad.

        Raises:
            RunError: with the count, the rule and where the list is.
        """
        distinct = min(samples_seen, num_samples)
        if distinct >= _BAD_COUNTED_FROM and len(self) > max_bad_fraction * distinct:
            raise RunError(
                f"{len(self)} of {distinct} distinct samples are bad, more than "
                f"data.max_bad_fraction={max_bad_fraction}; see {self.path}, mend the shards or raise the limit"
            )
