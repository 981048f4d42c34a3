"""The page of one run."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import median

from clipx.config.fit import FitConfig
from clipx.pages import Html, facts, joined, page, paragraph, section, text
from clipx.report.curves import curves
from clipx.report.metric_names import label, main_metric, written
from clipx.report.recorded import Recorded, finite
from clipx.report.scores import SetSize, interval, scores
from clipx.report.setup import setup
from clipx.report.trouble import trouble


def run_page(run: Recorded, *, parts: Sequence[Html] = (), sizes: Mapping[str, SetSize] | None = None) -> str:
    """All that is known of a run.

    Args:
        parts: what was made with the model; nothing if that was not asked for.
        sizes: of the evaluation sets by name, as far as they are known.
    """
    sizes = sizes or {}
    body = [
        _state(run),
        facts(summary(run, sizes)),
        section("Curves", curves(run)),
        section("Evaluations", scores(run, sizes)),
        *([section("Pictures", *parts)] if parts else []),
        section("Trouble", trouble(run)),
        section("Config and versions", setup(run)),
        paragraph(f"Written by clipx at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, from {run.folder}.", quiet=True),
    ]
    contents = ["Curves", "Evaluations", *(["Pictures"] if parts else []), "Trouble", "Config and versions"]
    return page(run.name, body, subtitle=_subtitle(run), contents=contents)


def summary(run: Recorded, sizes: Mapping[str, SetSize]) -> dict[str, object]:
    """The figures that stand at the top, by what they are called there."""
    shown: dict[str, object] = {"status": status_word(run), "steps": steps(run)}
    if (seen := run.last("samples_seen")) is not None:
        shown[f"{run.samples} seen"] = int(seen)
    if (loss := run.last("loss")) is not None:
        shown["loss"] = loss
    for name, results in run.evaluations.items():
        metric = main_metric(results[-1].scores)
        if metric is not None:
            share = results[-1].scores[metric]
            found = interval(metric, results[-1], sizes.get(name))
            reach = "" if found is None else f" ± {50 * (found.high - found.low):.1f}"
            shown[f"{name}, {label(metric)}"] = f"{written(metric, share)}{reach}"
    shown |= {f"{run.samples} per second": pace(run), "training": spent(run)}
    if run.starts:
        shown["starts"] = len(run.starts)
    return {name: value for name, value in shown.items() if value not in ("", None)}


def status_word(run: Recorded) -> str:
    """How the run stands, in a word or two."""
    words = {"complete": "complete", "again": "stopped, goes on", "failed": "failed"}
    return words.get(str(run.status.get("status")), "no end yet" if run.rows else "no figures yet")


def steps(run: Recorded) -> str:
    """How many steps are done, and of how many."""
    if run.config is None:
        return f"{run.step:,}"
    changes = [] if run.state is None else [(a, b) for a, b in run.state.progress.batch_changes]
    return f"{run.step:,} of {run.config.length(changes).num_steps:,}"


def pace(run: Recorded) -> int | None:
    """The median of the pairs per second."""
    speeds = [speed for row in run.rows if (speed := finite(row.get("samples_per_s"))) is not None]
    return round(median(speeds)) if speeds else None


def spent(run: Recorded) -> str:
    """The time of all rows together."""
    seconds = sum(finite(row.get("elapsed_s")) or 0.0 for row in run.rows)
    if not seconds:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _subtitle(run: Recorded) -> str:
    if run.config is None:
        return "A run of clipx"
    model = run.config.model
    batch = f"{run.config.global_batch_size:,} {run.samples} a step"
    if isinstance(run.config, FitConfig):
        return f"{', '.join(run.config.targets)} from {', '.join(run.config.inputs)}; {run.config.fusion}, {batch}"
    return f"{model.image.name}, {batch}"


def _state(run: Recorded) -> Html:
    """Why the run failed or stopped, or when it last gave a sign of life."""
    word, reason = run.status.get("status"), run.status.get("reason")
    if word == "failed":
        return Html(f'<p class="alert"><strong>Failed at step {run.step:,}.</strong> {text(reason or "")}</p>')
    if word is None:
        when = "" if run.written_at is None else f"; its last figures are of {run.written_at:%Y-%m-%d %H:%M} UTC"
        return paragraph(f"No end is recorded: the run trains, or was killed{when}.")
    return joined([]) if word == "complete" else paragraph(f"Stopped at step {run.step:,}: {reason or 'on request'}.")
