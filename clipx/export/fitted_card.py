"""The card of a fitted model's export, its README.md: what it reads, what it predicts, how well, how it is used.

As on other cards, what nobody told is not made up, and paths of this machine do not stand here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipx import __version__
from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import CategoryInput, ClassTarget, ImageInput, LabelsTarget, NumberInput, TextInput
from clipx.config.fit_metrics import AVERAGE, METRICS, figure_name, lower_is_better, variants
from clipx.config.yaml_text import write_yaml
from clipx.export.card import CARD, averaged
from clipx.export.card_text import cell, code_name, line, percent, short, table
from clipx.export.fitted_code import fitted_code
from clipx.export.fitted_settings import SETTINGS
from clipx.export.run_record import RunRecord

_MOST_NAMES = 20  # of classes
_SHARES = {"accuracy", "macro_f1"}


def write(folder: Path, parity: Mapping[str, Any], *, name: str, config: FitConfig, run: RunRecord | None) -> None:
    """Writes the card into an export whose other files are there.

    Args:
        folder: of the export.
        parity: the content of parity.json, without checksums.
        name: of the model, for the title.
        config: resolved.
        run: what the run's folder tells; None if it is not there.
    """
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    sections = {
        "Use": _use(fitted_code(files, config)),
        "Inputs": _inputs(config),
        "Predictions": _targets(config),
        "Evaluation": _evaluation(config, run),
        "Average": averaged(parity.get("average")),
        "Training": _training(config, run),
        "Parity": _parity(parity),
        "Limits": _limits(config),
    }
    text = "".join(f"\n## {title}\n\n{body.strip()}\n" for title, body in sections.items() if body)
    head = write_yaml(_metadata(config))
    (folder / CARD).write_text(f"---\n{head}---\n\n# {cell(name)}\n\n{_summary(config)}\n{text}", encoding="utf-8")


def _metadata(config: FitConfig) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "clipx", "tags": ["clipx", *config.modalities]}
    if (config.encoder.from_ or "").startswith("hf://"):
        metadata["base_model"] = str(config.encoder.from_).removeprefix("hf://").partition("@")[0]
    return metadata


def _summary(config: FitConfig) -> str:
    words = {"image": "a picture", "text": "a text", "table": "numbers or categories"}
    given = [words[name] for name in config.modalities]
    joined = given[0] if len(given) == 1 else f"{', '.join(given[:-1])} and {given[-1]}"
    told = f"Predicts {line(', '.join(config.targets))} of a row from {joined}"
    told += "; what a row lacks may be left out." if len(given) > 1 else "."
    return f"{told} Exported by clipx {__version__}; `clipx_config.yaml` has all settings."


def _use(blocks: Mapping[str, str]) -> str:
    told = (
        "Beside these files, with a picture `photo.jpg`; elsewhere put this folder's path before the names. "
        f"`{SETTINGS}` says what each input and output means, and what stands in the place of an absent cell."
    )
    return "\n\n".join([told, *(f"With {library}:\n\n```python\n{code}```" for library, code in blocks.items())])


def _inputs(config: FitConfig) -> str:
    rows = []
    for name, given in config.inputs.items():
        match given:
            case ImageInput():
                columns, told = given.column or name, f"seen at {config.model.image.image_size} pixels"
            case TextInput():
                columns = ", ".join(given.columns or (name,))
                told = f"of at most {config.model.text.context_length} tokens"
            case NumberInput():
                columns, told = given.column or name, f"{short(given.mean)} ± {short(given.std)} in training"
            case CategoryInput():
                columns, told = given.column or name, _names(given.classes or ())
        rows.append((name, given.type, columns, told))
    return table(("input", "type", "column", ""), rows)


def _targets(config: FitConfig) -> str:
    rows = []
    for name, target in config.targets.items():
        if isinstance(target, ClassTarget | LabelsTarget):
            told = _names(target.classes or ())
        else:
            told = "by its logarithm" if target.transform == "log" else ""
        rows.append((name, target.type, target.column or name, told))
    return table(("prediction", "type", "column", ""), rows)


def _names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{len(names)}: {', '.join(names[:_MOST_NAMES])}{more}"


def _evaluation(config: FitConfig, run: RunRecord | None) -> str:
    """The figures of the evaluation at the checkpoint's step."""
    if run is None or not run.scores:
        return ""
    step, scores = max(run.scores.values(), key=lambda found: found[0])
    several = config.modalities if len(config.modalities) > 1 else ()
    prefix = AVERAGE if any(name.startswith(AVERAGE) for name in scores) else ""
    rows = []
    for target, given in config.targets.items():
        for metric in METRICS[given.type]:
            names = variants(figure_name(target, metric), config.modalities)
            values = [scores.get(prefix + name) for name in names]
            if any(value is not None for value in values):
                better = "lower" if lower_is_better(metric) else "higher"
                shown = [percent(value) if metric in _SHARES else short(value) for value in values]
                rows.append((target, metric.replace("_", " "), better, *shown))
    parts = ("rows that have all inputs", *(f"those without {modality}" for modality in several)) if several else ()
    columns = ("prediction", "figure", "better", "all rows", *parts)
    told = f"Measured by the run itself on rows that were held out, at step {step:,}"
    told += ", with the average of the weights." if prefix else "."
    return f"{told}\n\n{table(columns, rows)}" if rows else ""


def _training(config: FitConfig, run: RunRecord | None) -> str:
    start = config.encoder.from_ or "random weights"
    is_named = config.encoder.from_ is None or start.startswith("hf://")  # else it is a place on this machine
    begun = start if is_named else f"a model, {Path(start).name}"
    trained = config.encoder.train
    rows: dict[str, object] = {
        "image tower": f"`{code_name(config.model.image.name)}`" if "image" in config.modalities else None,
        "towers begun with": begun,
        "towers trained": trained if isinstance(trained, str) else ", ".join(f"{k} {v}" for k, v in trained.items()),
        "fusion": config.fusion,
        "head": ", ".join(map(str, config.head.hidden)) or "linear",
        "rows in training": f"{config.data.num_train:,}" if config.data.num_train else None,
        "epochs": f"{config.epochs:g}",
        "rows of a step": f"{config.global_batch_size:,}",
        "optimizer": f"{config.optim.type}, rate {config.optim.lr:g}, weight decay {config.optim.weight_decay:g}",
        "seed": config.seed,
    }
    if run is not None:
        rows |= {"steps": f"{run.step:,}", "rows seen": f"{run.samples_seen:,}"}
        rows |= {"software": ", ".join(f"{name} {version}" for name, version in run.versions.items())}
    return table(("setting", "value"), ((name, value) for name, value in rows.items() if value is not None))


def _parity(parity: Mapping[str, Any]) -> str:
    rows = []
    for name, row in parity["consumers"].items():
        if not row["checked"]:
            rows.append((name, "not compared", "", "", ""))
            continue
        largest = max(row["largest_difference"].values(), default=None)
        ids = percent(row.get("same_token_ids"))
        rows.append((f"{name} ({row['library']})", f"{row['rows']}", ids, short(largest), short(row["limit"])))
    told = (
        f"Each was loaded from these files and compared with the trained model ({parity['compared_on']}), with every "
        "input absent in some rows. Differences are those of a probability, or of a number as a share of its scale; "
        "`parity.json` has each."
    )
    return (
        f"{told}\n\n{table(('who runs it', 'rows', 'same token ids', 'largest difference there', 'its limit'), rows)}"
    )


def _limits(config: FitConfig) -> str:
    points = []
    if any(isinstance(target, ClassTarget) for target in config.targets.values()):
        points.append("A row of a class that training never saw gets one of those above all the same.")
    points += [
        "The figures above hold for rows like those that were held out; how the model treats others was not measured.",
        "No licence is stated: whoever publishes the model adds `license` to the head of this file, in keeping with "
        "the terms of the data and of the weights that it began with.",
    ]
    return "\n".join(f"- {line(point)}" for point in points)
