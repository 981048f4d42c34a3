"""`clipx data teach`: what trained models say of pictures and captions, stored for runs that learn from them."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from clipx.cli.config_files import load_arguments, names_config
from clipx.cli.data_options import CaptionKey, ImageKey, ShardsOrConfig
from clipx.cli.early import require_folder, require_model, require_shards
from clipx.cli.model import WeightsOption
from clipx.cli.output import say
from clipx.cli.progress import progress_bar
from clipx.errors import InputError

if TYPE_CHECKING:
    from clipx.config.data import DataConfig
    from clipx.prepare.teach import Taught

_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


class _Named(NamedTuple):
    name: str
    model: str


def teach(
    shards: ShardsOrConfig,
    *,
    model: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]MODEL",
            help="A teacher: a run folder, a checkpoint, an export, a CLIP or SigLIP of transformers or open_clip, or "
            "hf://ORG/NAME; repeatable. A run asks for it by its name, the last of its address if none is given.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder for data.teachers; begun before, it goes on.", show_default=False),
    ],
    views: Annotated[
        int, typer.Option(min=1, metavar="K", help="Augmentations of each picture; each costs a forward pass.")
    ] = 5,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the views; default: the config's seed, or 0.", show_default=False)
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="In which teachers compute; bf16 is much faster on a GPU.")
    ] = "fp32",
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Processes that read and decode; 0: threads of this one.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass, all views counted.")] = 128,
    image_key: ImageKey = None,
    caption_key: CaptionKey = None,
    weights: WeightsOption = None,
) -> None:
    """Store what trained models say of shards, for runs with data.teachers.

    Stores embeddings of K views of each picture and of all its captions. A view is an augmentation that a run draws
    again, to the bit: give the run's CONFIG.yaml, so that both augment alike. Works under torchrun and accelerate
    launch, on all ranks; equal input gives equal bytes. Killed, the same command goes on. What cannot be read stands
    with its reason in DIR/left_out.jsonl.
    """
    named = _named(model)
    data, config_seed = _data(shards, image_key=image_key, caption_key=caption_key)
    from clipx.config.data import sources

    require_shards(sources(data))
    require_folder(out, option="--out")
    for teacher in named:
        require_model(teacher.model)
    from clipx.distributed.environment import overrule_environment

    overrule_environment()
    from clipx.distributed.collectives import raise_on_all_ranks, rank
    from clipx.distributed.runtime import join_ranks
    from clipx.prepare.teach import TeachOptions
    from clipx.prepare.teach import teach as run
    from clipx.prepare.teach_rows import TeacherModel
    from clipx.pretrained import load

    options = TeachOptions(
        views=views,
        seed=config_seed if seed is None else seed,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
    )
    with join_ranks() as (device, group), ExitStack() as stack:
        is_first = rank(group) == 0
        with raise_on_all_ranks(group):
            teachers = [
                TeacherModel(name, address, load(address, device=device, weights=weights)) for name, address in named
            ]
        show = stack.enter_context(progress_bar("samples", shown=is_first))
        taught = run(data, teachers, out, options=options, group=group, on_progress=show)
    if is_first:
        _print(taught, out)


def _named(models: list[str]) -> list[_Named]:
    """Each teacher with its name."""
    named = []
    for model in models:
        match = _NAMED.fullmatch(model)
        if match is not None and not Path(model).exists():
            named.append(_Named(*match.groups()))
        elif "=" in model.partition("/")[0] and not Path(model).exists():
            name = model.partition("=")[0]
            raise InputError(f"--model: a teacher cannot be called {name!r}: a name is of letters, digits, _, . and -")
        else:
            last = re.sub(r"@[^/]*$", "", model.rstrip("/")).rpartition("/")[2]
            named.append(_Named(re.sub(r"[^\w.-]", "_", last), model))
    names = [teacher.name for teacher in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--model: two teachers are called {twice[0]!r}; name each, as --model NAME={named[0].model}")
    return named


def _data(arguments: list[str], *, image_key: str | None, caption_key: str | None) -> "tuple[DataConfig, int]":
    """How a config's run reads its data, and its seed; without one, shards read with these keys."""
    from clipx.config.data import DataConfig
    from clipx.config.schema import require_pretraining

    given: dict[str, Any] = {
        name: key for name, key in (("image_key", image_key), ("caption_key", caption_key)) if key is not None
    }
    if not names_config(arguments):
        return DataConfig(train=arguments, **given), 0
    for name, key in given.items():
        raise InputError(f"--{name.replace('_', '-')} goes with shards; to a config add data.{name}={key}")
    config = require_pretraining(load_arguments(arguments), "clipx data teach")
    return config.data, config.seed


def _print(taught: "Taught", out: str) -> None:
    description = taught.description
    samples = sum(shard.samples for shard in description.shards)
    good = sum(shard.taught for shard in description.shards)
    texts = sum(shard.texts for shard in description.shards)
    names = ", ".join(f"{teacher.name} ({teacher.dim} numbers)" for teacher in description.teachers)
    say(f"{out}: {description.views} views of {good:,} pictures and {texts:,} captions, as {names} see them")
    if taught.num_new == 0:
        say("all of them were there")
    else:
        pace = taught.num_new / max(taught.seconds, 1e-9)
        say(f"{taught.num_new:,} samples in {taught.seconds:,.1f} s, {pace * description.views:,.0f} views per second")
    if samples > good:
        say(f"{samples - good:,} samples left out; each of them: {out}/left_out.jsonl")
