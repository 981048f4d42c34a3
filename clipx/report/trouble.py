"""What went wrong in a run, and what it did about it: restarts, skipped steps, loss spikes, bad samples."""

from collections import Counter

from clipx.pages import Html, joined, paragraph, section, table
from clipx.report.recorded import Recorded, finite

_MOST_LISTED = 200  # bad samples; the file has all
_REASON_LETTERS = 100


def trouble(run: Recorded) -> Html:
    """All of it, or that there was none."""
    parts = [_counts(run), _starts(run), _spikes(run), _quarantine(run)]
    return joined([part for part in parts if part], "\n")


def reason_counts(run: Recorded) -> list[tuple[str, int]]:
    """How many samples were bad for each reason, the commonest first; numbers in a reason do not tell them apart."""
    counts = Counter(_kind(str(row.get("reason", "?"))) for row in run.quarantine)
    return counts.most_common()


def _counts(run: Recorded) -> Html:
    skipped, overflows = (int(run.last(name) or 0) for name in ("skipped_steps", "overflow_steps"))
    said = [f"{skipped:,} steps were skipped because loss or gradient was not finite" if skipped else ""]
    said.append(f"{overflows:,} steps were taken back by the fp16 loss scaler" if overflows else "")
    said.append(f"{len(run.rollbacks):,} loss spikes were rolled back" if run.rollbacks else "")
    said.append(f"{len(run.quarantine):,} bad samples were left out" if run.quarantine else "")
    told = "; ".join(part for part in said if part)
    return paragraph(f"{told}." if told else "No step was skipped, no loss spike, no bad sample.")


def _starts(run: Recorded) -> Html:
    if not run.starts:
        return Html("")
    rows = []
    for row in run.starts:
        hosts = (
            [host for host in listed if isinstance(host, dict)] if isinstance(listed := row.get("hosts"), list) else []
        )
        ranks = sum(int(finite(host.get("ranks")) or 0) for host in hosts)
        names = ", ".join(dict.fromkeys(str(host.get("host")) for host in hosts))
        devices = ", ".join(dict.fromkeys(str(host.get("device")) for host in hosts))
        began = str(row.get("began_at", ""))[:19].replace("T", " ")
        rows.append([began, row["step"], ranks, devices, names, row.get("micro_batch_size")])
    columns = ("began (UTC)", "from step", "ranks", "devices", "machines", "micro-batch")
    return section("Starts", table(columns, rows), level=3)


def _spikes(run: Recorded) -> Html:
    if not run.rollbacks:
        return Html("")
    rows = [
        [
            f"{finite(row.get('step')) or 0:.0f}",
            finite(row.get("loss")),
            finite(row.get("z_score")),
            finite(row.get("back_to")),
            len(left_out) if isinstance(left_out := row.get("left_out"), list) else "",
        ]
        for row in run.rollbacks
    ]
    columns = ("at step", "loss", "deviations above the median", "back to step", "global batches left out")
    return section("Loss spikes", table(columns, rows), level=3)


def _quarantine(run: Recorded) -> Html:
    if not run.quarantine:
        return Html("")
    reasons = table(("reason", "samples"), reason_counts(run))
    columns = ("key", "shard", "source", "met at step", "reason")
    rows = [
        [row.get("key"), row.get("shard"), row.get("source"), row.get("step"), row.get("reason")]
        for row in run.quarantine[:_MOST_LISTED]
    ]
    count = len(run.quarantine)
    more = f", the first {_MOST_LISTED} of {count:,}; quarantine.jsonl has all" if count > _MOST_LISTED else ""
    listed = Html(f"<details><summary>Which{more}</summary>{table(columns, rows)}</details>")
    return section("Bad samples", reasons, listed, level=3)


def _kind(reason: str) -> str:
    """A reason without the numbers in it, at most a line long."""
    plain = "".join("0" if letter.isdigit() else letter for letter in reason)
    while "00" in plain:
        plain = plain.replace("00", "0")
    plain = plain.replace("0", "N")
    return plain if len(plain) <= _REASON_LETTERS else f"{plain[:_REASON_LETTERS]}..."
