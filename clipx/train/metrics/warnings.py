"""Warnings about what goes wrong in a run, found in the rows of metrics.jsonl; each comes once until it has passed."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_WINDOW = 10  # rows over which counters are compared; with 10 steps to a row, 100 steps
# Cosines are high in untrained towers and fall during training. In trained CLIPs they are mostly below 0.7; above 0.9
# all images, or all texts, are nearly one point.
_SETTLED_STEPS = 500
# A loader that keeps up costs well under a hundredth of a step; a fifth is what a person would pay to get back.
_WAIT_SHARE, _WAIT_OVER = 0.2, 0.1
_REMOTE_SHARE = 0.3  # of the loader processes' time: above it, storage limits them and not decoding
_PILLOW_SHARE = 0.1  # of the images: above it, Pillow's slower decoding is noticed
# Equal GPUs differ by a few percent (clocks, temperature); a rank that takes a quarter longer has something wrong.
_SLOW_RATIO, _SLOW_OVER = 1.25, 1.1
_MAX_SKIPPED = 3  # steps in the window; one or two are an unlucky batch
_INPUTS = {"image": "images", "text": "captions"}
_MIN_BAD = 10  # samples in the window; fewer say nothing about a share


class _Alarm:
    """Sounds once when a value has been at least `on` for some rows, and again only after it was below `off`."""

    def __init__(self, *, on: float, off: float, rows: int = 1) -> None:
        self._on, self._off, self._rows = on, off, rows
        self._num_above = 0
        self._sounded = False

    def sounds(self, value: float) -> bool:
        """Whether to warn at the next row, which has this value; nan is neither above nor below a limit."""
        self._num_above = self._num_above + 1 if value >= self._on else 0
        if value < self._off:
            self._sounded = False
        if self._sounded or self._num_above < self._rows:
            return False
        self._sounded = True
        return True


class _Counters(NamedTuple):
    """Counters that grow over a run, at one row."""

    samples_read: float
    """Pairs: bad samples are counted among all of them, also where fewer are chosen and trained on."""
    skipped: float
    bad: float


class Diagnosis:
    """Finds what goes wrong in the rows of metrics.jsonl; a check whose values a row lacks is left out.

    Args:
        max_logit_scale: the limit at which logit_scale is clamped.
        warmup_steps: number of first steps in which embeddings that are all alike mean nothing.
        max_bad_fraction: share of bad samples at which the run would end.
        workers: loader processes per rank.
        hosts: host names by rank.
        captions_per_image: K; of K pairs read, one picture is.
    """

    def __init__(
        self,
        *,
        max_logit_scale: float,
        warmup_steps: int,
        max_bad_fraction: float,
        workers: int,
        hosts: Sequence[str],
        captions_per_image: int = 1,
    ) -> None:
        self._max_logit_scale = max_logit_scale
        self._settled_at = max(warmup_steps, _SETTLED_STEPS)
        self._max_bad_fraction = max_bad_fraction
        self._workers = workers
        self._hosts = hosts
        self._captions_per_image = captions_per_image
        self._slowest: float | None = None
        self._counters: deque[_Counters] = deque(maxlen=_WINDOW + 1)
        self._clamped = _Alarm(on=0.999, off=0.99, rows=10)
        self._alike = {side: _Alarm(on=0.9, off=0.8, rows=3) for side in _INPUTS}
        self._starved = _Alarm(on=_WAIT_SHARE, off=_WAIT_OVER, rows=5)  # a start waits for its first batches
        self._slow = _Alarm(on=_SLOW_RATIO, off=_SLOW_OVER, rows=10)
        self._skipping = _Alarm(on=_MAX_SKIPPED, off=1)
        self._spoiling = _Alarm(on=0.5, off=0.25)

    def look(self, row: Mapping[str, float]) -> list[str]:
        """Checks the next row; returns what has gone wrong since the one before, one line for a person each."""
        seen, skipped, bad = (row.get(name, math.nan) for name in ("samples_seen", "skipped_steps", "bad_samples"))
        self._counters.append(_Counters(row.get("samples_read", seen), skipped, bad))
        warnings = [self._scale(row), *(self._collapse(row, side) for side in self._alike)]
        warnings += [self._loader(row), self._rank(row), self._skips(), self._spoils()]
        return [warning for warning in warnings if warning is not None]

    def _scale(self, row: Mapping[str, float]) -> str | None:
        if not self._clamped.sounds(row.get("logit_scale", math.nan) / self._max_logit_scale):
            return None
        return (
            f"logit_scale stands at its limit, {self._max_logit_scale:g}: usual late in a long run; early in one it "
            "means that pairs are told apart too easily (a small batch, few distinct samples) or optim.lr is too high"
        )

    def _collapse(self, row: Mapping[str, float], side: str) -> str | None:
        cosine = row.get(f"{side}_cosine", math.nan) if row.get("step", 0) > self._settled_at else math.nan
        if not self._alike[side].sounds(cosine):
            return None
        return (
            f"{side} embeddings are nearly all the same (mean cosine of two: {cosine:.2f}): the {side} tower has "
            f"collapsed; usually optim.lr is too high or the warm-up too short, or the {_INPUTS[side]} themselves are "
            "all alike (`clipx data show`)"
        )

    def _loader(self, row: Mapping[str, float]) -> str | None:
        seconds = max(row.get("elapsed_s", math.nan) - row.get("pause_s", 0.0), 1e-9)
        share = row.get("data_wait_max_s", math.nan) / seconds
        if not self._starved.sounds(share):
            return None
        rank = int(row["data_wait_rank"])
        return f"{self._name(rank)} waits for data {share:.0%} of the time: {self._what_loading_lacks(row, seconds)}"

    def _what_loading_lacks(self, row: Mapping[str, float], seconds: float) -> str:
        remote = row.get("read_wait_s", 0.0) / (max(self._workers, 1) * seconds)
        if remote > _REMOTE_SHARE:
            return (
                f"loader processes wait for storage {remote:.0%} of theirs; raise data.remote.read_ahead_batches or "
                "data.workers, keep shards with data.cache, or bring them closer"
            )
        read = row.get("samples_per_s", 0.0) * row["elapsed_s"] + row.get("select/left_out", 0.0)
        pillow = row.get("pillow_images", 0.0) / max(read / self._captions_per_image, 1.0)
        if pillow > _PILLOW_SHARE:
            return f"Pillow decodes {pillow:.0%} of the images, slowly; `clipx data make` writes them as plain JPEG"
        return (
            f"decoding is too slow; raise data.workers (now {self._workers}), give the job more cores per GPU, or "
            "store the images smaller"
        )

    def _rank(self, row: Mapping[str, float]) -> str | None:
        rank, median_s = row.get("slowest_rank"), row.get("median_s", 0.0)
        ratio = row.get("slowest_s", math.nan) / median_s if median_s > 0 else math.nan
        if rank != self._slowest:
            self._slowest = rank
            self._slow.sounds(math.nan)  # the rows that come count for another one
        if not self._slow.sounds(ratio):
            return None
        assert rank is not None
        return (
            f"{self._name(int(rank))} is slow: its own work takes {ratio:.2f} times the middle rank's, and all wait "
            "for it; usually a hot or throttled GPU, another job on it, or a machine short of cores"
        )

    def _skips(self) -> str | None:
        skipped = self._counters[-1].skipped - self._counters[0].skipped
        if not self._skipping.sounds(skipped):
            return None
        return (
            f"{skipped:.0f} steps were skipped within {len(self._counters) - 1} rows, loss or gradient not finite: "
            "usually optim.lr is too high, or optim.clip_grad_norm is not set"
        )

    def _spoils(self) -> str | None:
        first, last = self._counters[0], self._counters[-1]
        bad, read = last.bad - first.bad, last.samples_read - first.samples_read
        if self._max_bad_fraction == 0:
            return None
        share = bad / read if bad >= _MIN_BAD else 0.0
        if not self._spoiling.sounds(share / self._max_bad_fraction):
            return None
        return (
            f"{share:.1%} of the latest samples are bad; at {self._max_bad_fraction:.1%} of all the run ends: "
            "quarantine.jsonl names them; often one shard or one source"
        )

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self._hosts[rank]})"
