"""The model card of an export, its README.md: the hub's metadata, what trained the model, how exact the export is.

It says what the run and the comparison know. A licence, a language or a purpose that nobody told is not made up, and
where shards lie stays with the person: sources stand here by name.
"""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from clipx import __version__
from clipx.config.data import SourceConfig
from clipx.config.model import ModelConfig
from clipx.config.schema import RunConfig
from clipx.config.yaml_text import write_yaml
from clipx.export.card_code import code_blocks
from clipx.export.card_text import cell, code_name, count, line, percent, short, table
from clipx.export.options import Tower
from clipx.export.run_record import RunRecord

CARD = "README.md"
_CLIP_MODEL = "transformers CLIPModel"
_TASKS = {None: "zero-shot-image-classification", "image": "image-feature-extraction", "text": "feature-extraction"}


def write(
    folder: Path,
    parity: Mapping[str, Any],
    *,
    name: str,
    model: ModelConfig,
    config: RunConfig | None,
    run: RunRecord | None,
    only: Tower | None = None,
) -> None:
    """Writes the card into an export whose other files are there.

    Args:
        folder: of the export.
        parity: the content of parity.json, without checksums.
        name: of the model, for the title.
        model: the exported one.
        config: of the run that trained it; None if no run of clipx's did.
        run: what its folder tells; None if it is not there.
        only: the tower that was exported; None: both.
    """
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    sections = {
        "Use": _use(code_blocks(files, model, tower_class=_tower_class(folder, files) if only else None)),
        "Average": averaged(parity.get("average")),
        "Training": "" if config is None else _training(config, run, averaged="average" in parity),
        "Data": _data({} if config is None else config.data.sources, run),
        "Curve": _curve(run),
        "Evaluation": _evaluation(run),
        "Parity": _parity(parity),
        "Limits": _limits(parity, model, only=only),
    }
    text = "".join(f"\n## {title}\n\n{body.strip()}\n" for title, body in sections.items() if body)
    head = write_yaml(_metadata(files, model, config=config, only=only))
    (folder / CARD).write_text(f"---\n{head}---\n\n# {cell(name)}\n\n{_summary(model, only)}\n{text}", encoding="utf-8")


def _tower_class(folder: Path, files: AbstractSet[str]) -> str | None:
    """The class of transformers for the one tower in the folder; None: its weights are not there."""
    if "model.safetensors" not in files:
        return None
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0])


def _metadata(
    files: AbstractSet[str], model: ModelConfig, *, config: RunConfig | None, only: Tower | None
) -> dict[str, Any]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    libraries = {
        "transformers": "model.safetensors" in files,
        "open_clip": "open_clip_config.json" in files,
        "onnx": any(file.startswith("onnx/") for file in files),
    }
    present = [library for library, is_there in libraries.items() if is_there]
    kind = "clip" if model.init_logit_bias is None else "siglip"
    metadata: dict[str, Any] = {
        "library_name": present[0] if present else "clipx",
        "pipeline_tag": _TASKS[only],
        "tags": list(dict.fromkeys([kind, "clipx", *present])),
    }
    if config is not None and (config.start_from or "").startswith("hf://"):
        metadata["base_model"] = str(config.start_from).removeprefix("hf://").partition("@")[0]
    return metadata


def _summary(model: ModelConfig, only: Tower | None) -> str:
    image, text = model.image, model.text
    words = f"`{code_name(text.name)}`" if text.type == "huggingface" else f"a Transformer of {text.layers} layers"
    towers = {
        "image": f"image tower (`{code_name(image.name)}`, {image.image_size} pixels)",
        "text": f"text tower ({words}, {text.context_length} tokens)",
    }
    by = f"Exported by clipx {__version__}"
    if only:
        return (
            f"The {towers[only]} of a model with two, without the other one: embeddings of {model.embed_dim} "
            f"dimensions, which are compared with those of the other tower by their cosine. {by}."
        )
    return (
        f"An {towers['image']} and a {towers['text']} with a shared space of {model.embed_dim} dimensions: pictures "
        f"and texts are compared by the cosine of their embeddings. {by}; `clipx_config.yaml` has all settings."
    )


def _use(blocks: Mapping[str, str]) -> str:
    if not blocks:
        return ""
    told = "Beside these files, with a picture `photo.jpg`; elsewhere put this folder's path for `.`."
    return "\n\n".join([told, *(f"With {library}:\n\n```python\n{code}```" for library, code in blocks.items())])


def averaged(average: Mapping[str, Any] | None) -> str:
    """What went into a model that is an average; empty for another."""
    if average is None:
        return ""
    rows = [(part["model"], f"{part['share']:.4g}", part["sha256"][:16]) for part in average["parts"]]
    told = "The weights are the mean of these models' weights."
    if sets := average.get("chosen_by"):
        told += f" It was chosen by scores on {line(', '.join(sets))}, which are therefore no evidence of its quality."
    return f"{told}\n\n{table(('model', 'share', 'SHA-256 of its weights'), rows)}"


def _training(config: RunConfig, run: RunRecord | None, *, averaged: bool) -> str:
    optim = config.optim
    rows: dict[str, object] = {
        "begun with": "random weights, or those that `model` names" if config.start_from is None else _begun(config),
        "pairs of a step": f"{config.global_batch_size:,}",
        "loss": config.loss.type,
        "optimizer": f"{optim.type}, rate {optim.lr:g}, weight decay {optim.weight_decay:g}, {optim.schedule}",
        "precision": config.precision,
        "seed": config.seed,
    }
    for tower, learning in (("image", optim.image), ("text", optim.text)):
        if learning.locked_steps:
            rows[f"{tower} tower"] = f"locked for {learning.locked_steps} steps, all but its projection"
    if config.ema is not None:
        rows["average of the weights"] = f"decay {config.ema.decay:g}"
    if run is not None:
        rows |= {"steps": f"{run.step:,}", "pairs seen": f"{run.samples_seen:,}"}
        rows |= {"software": ", ".join(f"{name} {version}" for name, version in run.versions.items())}
    told = "Of the first model that was named for the average; the others' settings may differ.\n\n" if averaged else ""
    return told + table(("setting", "value"), rows.items())


def _begun(config: RunConfig) -> str:
    """The start, without where on somebody's machine it lay."""
    start = config.start_from or ""
    return start if start.startswith("hf://") else f"another model, {Path(start).name}"


def _data(sources: Mapping[str, SourceConfig], run: RunRecord | None) -> str:
    if run is None:
        return "What the model was trained on is not known here."
    last = run.curve[-1] if run.curve else {}
    told = f"{run.num_samples:,} pictures with captions or labels in {run.num_shards:,} shards."
    rows = [
        (name, f"{source.weight:g}", count(last.get(f"samples/{name}")), short(last.get(f"epoch/{name}")))
        for name, source in sources.items()
    ] or [("train", "1", count(run.samples_seen), short(last.get("epoch")))]
    return f"{told}\n\n{table(('source', 'weight', 'read', 'epochs'), rows)}"


def _curve(run: RunRecord | None) -> str:
    if run is None or not run.curve:
        return ""
    columns = ("step", "samples_seen", "loss", "lr", "logit_scale")
    return table(columns, ([short(row.get(name)) for name in columns] for row in run.curve))


def _evaluation(run: RunRecord | None) -> str:
    if run is None or not run.scores:
        return ""
    rows = [
        (name, f"{step:,}", metric.replace("_", " "), f"{value:.2%}")
        for name, (step, metrics) in run.scores.items()
        for metric, value in metrics.items()
    ]
    told = "Measured by the run itself; `ema` is the average of the weights, where one was kept."
    return f"{told}\n\n{table(('evaluation', 'step', 'metric', 'value'), rows)}"


def _parity(parity: Mapping[str, Any]) -> str:
    rows = []
    for name, row in parity["consumers"].items():
        if not row["checked"]:
            rows.append((name, "not compared", "", "", "", "", ""))
            continue
        elsewhere = [row[key]["largest_difference"] for key in ("other_crop", "other_token_ids") if key in row]
        rows.append(
            (
                f"{name} ({row['library']})",
                percent(row.get("same_crop")),
                percent(row.get("same_token_ids")),
                short(max(row["largest_difference"].values(), default=None)),
                short(row["limit"]) or "told only",
                short(max(elsewhere, default=None)),
                short(row.get("other_best_text")),
            )
        )
    columns = (
        "who loads it",
        "same crop",
        "same token ids",
        "largest difference there",
        "its limit",
        "largest difference elsewhere",
        "pictures with another best text",
    )
    told = (
        f"Each was loaded from these files and compared with the trained model on {parity['pictures']} pictures and "
        f"{parity['texts']} texts ({parity['compared_on']}). Differences are those of an element of an embedding, a "
        "logit or a pixel; `parity.json` has each."
    )
    return f"{told}\n\n{table(columns, rows)}"


def _limits(parity: Mapping[str, Any], model: ModelConfig, *, only: Tower | None) -> str:
    size = model.image.image_size
    seen = {
        "image": f"A picture is seen at {size} x {size} pixels: what is small is lost.",
        "text": f"A text of more than {model.text.context_length} tokens is cut.",
    }
    points = [
        *(limit for tower, limit in seen.items() if only in (None, tower)),
        "The scores above hold for their data alone; how the model treats people, languages and pictures unlike those "
        "it was trained on was not measured.",
        "No licence is stated: whoever publishes the model adds `license` to the head of this file, in keeping with "
        "the terms of the data and of the weights that it began with.",
    ]
    if model.init_logit_bias is not None and _CLIP_MODEL in parity["consumers"]:
        points.append(
            f"{_CLIP_MODEL}: it was trained with the sigmoid loss, whose bias has no place in this class: add "
            "`model.config.logit_bias` to its logits before a sigmoid; a softmax over texts needs it not."
        )
    notes: dict[str, list[str]] = {}
    for name, row in parity["consumers"].items():
        for note in row.get("notes", ()):
            notes.setdefault(note, []).append(name)
    points += [f"{'; '.join(names)}: {note}." for note, names in notes.items()]
    return "\n".join(f"- {line(point)}" for point in points)
