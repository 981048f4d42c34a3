"""Config to what chooses batches: the reference's columns, the choice, and what they need."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from clipx.config.phases import Phase
from clipx.config.schema import JobConfig, RunConfig
from clipx.config.select import SelectConfig
from clipx.data.columns import Wanted
from clipx.data.teacher_columns import image_column, text_column
from clipx.data.teachers import Teachers, teachers_of
from clipx.distributed.runtime import Runtime
from clipx.errors import InputError
from clipx.losses.selection import JointSelection
from clipx.models.vision_tower import check_image_size
from clipx.objectives.contrastive import ContrastiveObjective
from clipx.objectives.flops import scored_image_flops
from clipx.objectives.objective import Objective
from clipx.train.metrics.json_lines import JsonLines
from clipx.train.selection import Reference, Selector

SAMPLES = "samples.jsonl"
_FLOAT = 4  # bytes


def selection_of(config: JobConfig) -> SelectConfig | None:
    """What the config says of chosen batches; None where all that is read is trained on."""
    return config.select if isinstance(config, RunConfig) else None


def check_selection(config: JobConfig, objective: Objective) -> None:
    """Looks before any work at what choosing would find.

    Raises:
        InputError: an objective whose outputs are no embeddings of pairs, a size of pictures that the tower does not
            take, or a reference that is no finished store.
    """
    select = selection_of(config)
    if select is None:
        return
    if not isinstance(objective, ContrastiveObjective):
        raise InputError(
            f"select chooses by the contrastive loss of pairs, and {type(objective).__name__} has none that it knows; "
            "leave select out, or derive the objective from ContrastiveObjective"
        )
    if select.image_size is not None:
        check_image_size(objective.model.image_tower, select.image_size, name="select.image_size")
    _reference(config)


def with_reference(wanted: Wanted, config: JobConfig) -> Wanted:
    """What is read of every sample, with the reference's embeddings where the objective does not read them itself.

    Raises:
        InputError: no finished store, or no such teacher there.
    """
    found = _reference_in_store(config)
    if found is None:
        return wanted
    teacher, teachers = found
    read = {name for reader in wanted.columns for name in reader.columns}
    if image_column(teacher) in read:
        return wanted
    return replace(wanted, columns=(*wanted.columns, teachers.column_reader([teacher])))


def build_selector(
    config: JobConfig,
    runtime: Runtime,
    objective: Objective,
    *,
    phase: Phase,
    micro_batch_size: int,
    augment: Callable[[Tensor, Tensor], Tensor] | None,
) -> Selector | None:
    """What chooses the batches of a phase; None where all that is read is trained on."""
    select = selection_of(config)
    if select is None or not isinstance(config, RunConfig):
        return None
    size = select.image_size
    return Selector(
        runtime=runtime,
        objective=objective,
        choose=JointSelection(
            kind=config.loss.type,
            score=select.score,
            size=config.global_batch_size,
            chunks=select.chunks,
            gain=select.gain,
            seed=config.seed,
        ),
        reference=_reference(config),
        micro_batch_size=micro_batch_size,
        image_size=None if size is None or size >= phase.image_size else size,
        augment=augment,
        sources=tuple(config.data.sources) if len(config.data.sources) > 1 else (),
        samples=JsonLines(Path(config.run_dir) / SAMPLES) if config.track.samples else None,
    )


def selection_bytes(config: JobConfig, phase: Phase, *, world_size: int) -> int:
    """Bytes of a rank that choosing holds beside a micro-batch's pass: pixels of what it reads, all ranks' embeddings.

    A reference's embeddings are taken to be as wide as the learner's.
    """
    select = selection_of(config)
    if select is None:
        return 0
    pixels = 2 * config.pairs_read // world_size * 3 * phase.image_size**2  # joined from pieces
    embeddings = 2 * 2 * _FLOAT * config.pairs_read * config.model.embed_dim
    return pixels + embeddings


def flops_per_picture(config: JobConfig, objective: Objective, phase: Phase) -> float:
    """FLOPs of the image tower for a picture that is read: all are scored where batches are chosen, the chosen trained.

    Asked before the model is distributed over ranks.
    """
    select = selection_of(config)
    if select is None:
        return objective.flops.image
    trained = objective.flops.image * config.global_batch_size / config.pairs_read
    return trained + scored_image_flops(select, objective.model, phase)


def _reference(config: JobConfig) -> Reference | None:
    """The model that the learner is compared with.

    Raises:
        InputError: no finished store, or no such teacher there.
    """
    select, found = selection_of(config), _reference_in_store(config)
    if select is None or found is None or not isinstance(config, RunConfig):
        return None
    teacher, teachers = found
    return Reference(
        image_column=image_column(teacher),
        text_column=text_column(teacher),
        logit_scale=teachers.logit_scales[teacher] if select.logit_scale is None else select.logit_scale,
        logit_bias=select.logit_bias,
    )


def _reference_in_store(config: JobConfig) -> tuple[str, Teachers] | None:
    """The name of the reference, and the store that it is in."""
    select, teachers = selection_of(config), teachers_of(config)
    if select is None or select.reference is None or teachers is None:
        return None
    if select.teacher in teachers.names:
        return select.teacher, teachers
    if select.teacher is None and len(teachers.names) == 1:
        return teachers.names[0], teachers
    given = "is not set" if select.teacher is None else f"is {select.teacher}"
    raise InputError(
        f"select.teacher {given}, and {select.reference} has {', '.join(teachers.names)}; name one of them"
    )
