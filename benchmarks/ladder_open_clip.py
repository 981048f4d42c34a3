"""open_clip's trainer on a ladder's job, beside clipx: equal towers, first weights, shards, batch, steps and seed.

    ladder_open_clip.py JOB.json

What is open_clip's: the model of its `create_model`, its `ClipLoss`, optimizer, schedule and step (OpenClipSteps of
step.py), its training transform, its tokenizer, and the stages of its `get_wds_dataset` with their buffers. Where the
config draws one of several captions of a json member, so does this, and it flips pictures as the config says: open_clip
has no option for either. Evaluations are clipx's, on the model with open_clip's weights. It is one process. It does not
go on after a stop but begins again, and runs the base recipe alone: what ingredients add, open_clip does not have.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import webdataset as wds
from ladder_train import Meter, Row, load, settle, write_step_cost
from open_clip_train import data as theirs
from step import OpenClipSteps, as_open_clips_main_sets, open_clip_model
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip

from clipx.checkpoint.best import EVAL_FOLDER, result_name
from clipx.config.schema import RunConfig
from clipx.distributed.runtime import start_runtime
from clipx.evaluate.run import evaluate_config
from clipx.export.open_clip_config import describe
from clipx.models.key_maps.open_clip import key_map
from clipx.pretrained.stored_model import TEXT_ENCODER
from clipx.train.build import Run, build_run


def batches(config: RunConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures (B, 3, H, W) and tokens (B, L), epoch after epoch, as open_clip's loader makes them."""
    image, data = config.model.image, config.data
    augment = open_clip.AugmentationCfg(scale=data.augment.crop_scale)
    transform = open_clip.image_transform(
        image.image_size, is_train=True, mean=image.mean, std=image.std, aug_cfg=asdict(augment)
    )
    pictures = Compose([RandomHorizontalFlip(data.augment.flip), transform])
    tokenize = open_clip.SimpleTokenizer(context_length=config.model.text.context_length)
    draw = random.Random(config.seed)
    shards = [str(path) for folder in data.train or [] for path in sorted(Path(folder).glob("*.tar"))]
    epoch = theirs.SharedEpoch()
    stages = [
        wds.SimpleShardList(shards),
        theirs.detshuffle2(theirs._SHARD_SHUFFLE_SIZE, theirs._SHARD_SHUFFLE_INITIAL, seed=config.seed, epoch=epoch),
        wds.tarfile_to_samples(handler=theirs.log_and_continue),  # its own copy of this fails with webdataset 1.0
        wds.shuffle(theirs._SAMPLE_SHUFFLE_SIZE, initial=theirs._SAMPLE_SHUFFLE_INITIAL, rng=draw),
        wds.select(theirs.filter_no_caption_or_no_image),
        wds.decode("pilrgb", handler=theirs.log_and_continue),
        wds.map(partial(with_caption, key=str(data.caption_key), draw=draw)),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=pictures, text=lambda text: tokenize(text)[0]),
        wds.to_tuple("image", "text"),
        wds.batched(config.global_batch_size, partial=False),
    ]
    loader = wds.WebLoader(wds.DataPipeline(*stages), batch_size=None, shuffle=False, num_workers=0)
    for number in range(sys.maxsize):
        epoch.set_value(number)
        yield from loader


def with_caption(sample: Row, *, key: str, draw: random.Random) -> Row:
    """The sample with the caption that is trained on as `txt`: of a list in a json member, one that is drawn."""
    member, _, field = key.partition(":")
    captions = sample[member] if not field else sample[member][field]
    return {**sample, "txt": draw.choice(captions) if isinstance(captions, list) else captions}


def evaluate(run: Run, model: Any, config: RunConfig, *, step: int) -> None:
    """Writes the results of a step as a run does, of the model with these weights."""
    _, towers = describe(run.encoder, text_encoder=TEXT_ENCODER)
    run.encoder.model.load_state_dict(key_map(towers).to_ours(model.state_dict()))
    folder = Path(config.run_dir) / EVAL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in config.evaluate.items():
        if step == config.num_steps or (one.every_steps and step % one.every_steps == 0):
            metrics = evaluate_config(one, run.encoder, None).metrics
            (folder / result_name(name, step)).write_text(json.dumps({"step": step, "name": name, **metrics}))


def train(config: RunConfig, meter: Meter, *, every: int) -> list[Row]:
    """Trains to the end, with evaluations every so many steps; returns what it had cost after each step."""
    rows: list[Row] = []
    with start_runtime(config) as runtime:
        run = build_run(config, runtime)
        flops = run.stepper.objective.flops(next(run.batches()))  # the model's arithmetic, as clipx would do it
        model = open_clip_model(run)
        steps = OpenClipSteps(model, run, [], num_steps=0, compiled=False)
        own = batches(config)
        meter.start(0)
        for step in range(1, config.num_steps + 1):
            loss = steps.step(*next(own))
            steps.taken = step
            loss.item()
            meter.flops += flops
            rows.append({"until": config.num_steps, "train_s": meter.spent_s, "flops": meter.flops})
            if config.evaluate and (step % every == 0 or step == config.num_steps):
                meter.note(step)
                with meter.aside():
                    evaluate(run, model.eval(), config, step=step)
                    model.train()
    return rows


def main() -> int:
    path = Path(sys.argv[1])
    job = json.loads(path.read_text())
    settle(job)
    as_open_clips_main_sets()
    config = load(job)
    path.with_name("cost.jsonl").unlink(missing_ok=True)
    meter = Meter(job["clock"], path.with_name("cost.jsonl"))
    rows = train(config, meter, every=config.checkpoint.every_steps)
    if job["calibrates"]:
        write_step_cost(path.with_name("step.json"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
