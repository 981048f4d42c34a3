"""Pairs per second of the whole training step of clipx beside open_clip's.

    .venv/bin/python benchmarks/step.py --model b32 --batch 64
    .venv/bin/python benchmarks/step.py --model l14 --batch 512 --device cuda

Both sides start from the same weights, see the same pictures and captions, and do: transfer, forward, loss, backward,
clipping to norm 1, AdamW, clamping of the temperature. They take turns, the loader is left out.

clipx: the `Stepper` of a run built by `build_run`, fed uint8 pictures and flat tokens.
open_clip: the inner step of its `train_one_epoch`, with the model of its `create_model`, its `ClipLoss` with local
loss, gathered gradients and cached labels, the AdamW of its `main`, TF32 and cudnn's search on as there, and what its
loader hands over: float32 normalised pictures and padded texts. Memory is pinned for both (its own loader of tar files
does not pin). `--compile` adds both sides compiled.

MFU counts what the model's arithmetic needs for the real tokens (`clipx.models.flops`), for both sides alike.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import isclose, log
from pathlib import Path
from statistics import median
from typing import Any

import open_clip
import torch
from harness import Timing, alternate, device_argument, peak_memory, prepare, print_table, ratio, write_rows
from open_clip_train.precision import get_autocast
from open_clip_train.scheduler import cosine_lr
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from workload import MODELS, Steps, make_batch, open_run

from clipx.config.optim import AdamWConfig
from clipx.distributed.hardware import peak_flops
from clipx.export import open_clip as open_clip_export
from clipx.export.options import ExportOptions
from clipx.train.build import Run
from clipx.types import Batch, Embeddings

NUM_BATCHES = 4
"""Different batches, one after the other, so that no shape is always the same."""
CPU_BATCH = {"b32": 64, "b16": 32, "l14": 8, "demo": 128, "tiny": 256}
CUDA_BATCH = {"b32": 2048, "b16": 1024, "l14": 512, "demo": 4096, "tiny": 4096}


class OpenClipSteps:
    """Takes optimizer steps as `open_clip_train` does, with the optimizer settings of the clipx run."""

    def __init__(self, model: Any, run: Run, batches: Sequence[Batch], *, num_steps: int, compiled: bool) -> None:
        optim, self.num_steps, self.taken = run.config.optim, num_steps, 0
        assert isinstance(optim, AdamWConfig)
        assert optim.clip_grad_norm is not None
        self.device = run.runtime.device
        self.original = model
        self.model = torch.compile(model) if compiled else model
        self.loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
        gains: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            gain = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
            (gains if gain else others).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": gains, "weight_decay": 0.0}, {"params": others, "weight_decay": optim.weight_decay}],
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
        )
        self.scheduler = cosine_lr(self.optimizer, optim.lr, optim.warmup_steps, run.config.num_steps)
        self.max_norm = optim.clip_grad_norm
        self.precision = "amp_bf16" if run.config.precision == "bf16" else "fp32"
        self.input_dtype = open_clip.get_input_dtype(self.precision)
        self.batches = [as_open_clip(batch, run) for batch in batches]

    def __call__(self) -> float:
        """Takes the steps and waits for their end; returns the last loss."""
        for _ in range(self.num_steps):
            loss = self.step(*self.batches[self.taken % len(self.batches)])
            self.taken += 1
        return loss.item()

    def step(self, images: Tensor, texts: Tensor) -> Tensor:
        """One step of `train_one_epoch` with accum_freq 1."""
        self.scheduler(self.taken)
        images = images.to(device=self.device, dtype=self.input_dtype, non_blocking=True)
        texts = texts.to(device=self.device, non_blocking=True)
        self.optimizer.zero_grad()
        with get_autocast(self.precision, device_type=self.device.type)():
            loss: Tensor = sum(self.loss(**self.model(images, texts), output_dict=True).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.original.parameters(), self.max_norm, norm_type=2.0)
        self.optimizer.step()
        with torch.no_grad():
            self.original.logit_scale.clamp_(0, log(100))
        return loss.detach()


def as_open_clip(batch: Batch, run: Run) -> tuple[Tensor, Tensor]:
    """The batch as open_clip's loader hands it over: float32 (B, 3, H, W), normalised, and (B, L), padded with 0.

    Made on the device: for 2,048 pictures a CPU needs half a minute.
    """
    image, device = run.config.model.image, run.runtime.device
    mean_C, std_C = (torch.tensor(values, device=device) for values in (image.mean, image.std))
    pixels_BHWC = (batch.images_IHWC.to(device).float() / 255 - mean_C) / std_C
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).contiguous().cpu()
    length = run.config.model.text.context_length
    rows = pad_sequence(batch.tokens_T.split(batch.lengths_B.tolist()), batch_first=True)
    tokens_BL = torch.nn.functional.pad(rows, (0, length - rows.shape[1]))
    pin = torch.cuda.is_available()
    return (pixels_BCHW.pin_memory(), tokens_BL.pin_memory()) if pin else (pixels_BCHW, tokens_BL)


def as_open_clips_main_sets() -> None:
    """torch's switches as open_clip's main sets them."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False


def open_clip_model(run: Run) -> Any:
    """open_clip's model with the run's weights, by way of a clipx export, in training mode."""
    with tempfile.TemporaryDirectory() as folder:
        open_clip_export.write(run.encoder, Path(folder), ExportOptions())
        model = open_clip.create_model(
            f"local-dir:{folder}",
            precision="amp_bf16" if run.config.precision == "bf16" else "fp32",
            device=run.runtime.device,
            force_patch_dropout=run.config.model.image.patch_drop or None,
            output_dict=True,
        )
    return model.train()


def compare(run: Run, theirs: Any, batch: Batch, *, most: int = 32) -> float:
    """Asserts that both models give the first pairs the same loss and gradient in float32, without dropout.

    Returns:
        The difference of the losses.

    Raises:
        SystemExit: they are not equals, so no comparison of speed would mean anything.
    """
    piece = batch.micro_batches(most)[0]
    device, towers = run.runtime.device, run.stepper.objective.model.eval()
    part = piece.to(device)
    embeddings = Embeddings(
        image_BD=towers.encode_image(part.images_IHWC),
        text_BD=towers.encode_text(part.tokens_T, part.lengths_B, max_length=part.max_length),
        logit_scale=towers.log_logit_scale.exp(),
    )
    ours = run.stepper.objective.coupled["contrastive"].share(embeddings, part, None).loss
    images, texts = (tensor.to(device) for tensor in as_open_clip(piece, run))
    other = open_clip.ClipLoss()(**theirs.eval()(images, texts))
    norms = [_gradient_norm(loss, model) for loss, model in ((ours, towers), (other, theirs))]
    towers.train()
    theirs.train()
    difference = abs(ours.item() - other.item())
    if difference > 1e-4 or not isclose(*norms, rel_tol=1e-3):
        raise SystemExit(f"clipx: loss {ours.item()}, gradient {norms[0]}; open_clip: {other.item()}, {norms[1]}")
    return difference


def _gradient_norm(loss: Tensor, model: torch.nn.Module) -> float:
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.stack([gradient.double().norm() for gradient in gradients]).norm().item()


def contenders(stack: ExitStack, arguments: argparse.Namespace) -> dict[str, Steps | OpenClipSteps]:
    """Both sides at equal weights, and both compiled where asked."""
    precision = arguments.precision or ("bf16" if arguments.device == "cuda" else "fp32")
    found: dict[str, Steps | OpenClipSteps] = {}
    batches: list[Batch] = []
    for suffix, compiled in (("", False), (" compiled", True))[: 2 if arguments.compile else 1]:
        run = stack.enter_context(
            open_run(
                arguments.model,
                arguments.batch,
                precision=precision,
                context_length=arguments.context_length,
                compile=compiled,
            )
        )
        batches = batches or [make_batch(run.config, arguments.batch, index=i) for i in range(NUM_BATCHES)]
        theirs = open_clip_model(run)
        if not compiled:
            print(f"losses at equal weights differ by {compare(run, theirs, batches[0]):.1e}", flush=True)
        steps = arguments.steps
        found["clipx" + suffix] = Steps(run, batches, num_steps=steps)
        found["open_clip" + suffix] = OpenClipSteps(theirs, run, batches, num_steps=steps, compiled=compiled)
    return found


def rows_of(
    arguments: argparse.Namespace, sides: dict[str, Steps | OpenClipSteps], timings: dict[str, Timing]
) -> list[dict[str, object]]:
    """One row per contender."""
    ours = next(side for side in sides.values() if isinstance(side, Steps))
    run, batch = ours.run, ours.batches[0]
    useful_flops = median(outcome.counts["model_flops"] for outcome in ours.outcomes) * arguments.steps
    peak = peak_flops(run.runtime.device)
    rows: list[dict[str, object]] = []
    for name, timing in timings.items():
        pairs = arguments.batch * arguments.steps
        faster = ratio(timings["open_clip"], timing)
        rows.append(
            {
                "model": arguments.model,
                "device": arguments.device,
                "precision": run.config.precision,
                "contender": name,
                "batch": arguments.batch,
                "tokens_mean": batch.lengths_B.float().mean().item(),
                "context_length": run.config.model.text.context_length,
                "patch_drop": run.config.model.image.patch_drop,
                "pairs_per_s_p20": pairs / timing.p80,
                "pairs_per_s_p50": pairs / timing.p50,
                "pairs_per_s_p80": pairs / timing.p20,
                "repetitions": timing.count,
                "steps_per_repetition": arguments.steps,
                "times_open_clip_p20": faster.p20,
                "times_open_clip_p50": faster.p50,
                "times_open_clip_p80": faster.p80,
                "useful_tflops_per_s": useful_flops / timing.p50 / 1e12,
                "mfu": "" if peak is None else useful_flops / timing.p50 / peak,
                "peak_mb": peak_memory(sides[name], run.runtime.device) / 1e6,
            }
        )
    return rows


def profile(name: str, function: Callable[[], object], device: torch.device) -> None:
    """Prints where a step's time goes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        function()
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(f"\n{name}\n" + recorded.key_averages().table(sort_by=order, row_limit=18, max_name_column_width=44))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device_argument(parser)
    parser.add_argument("--model", choices=MODELS, default="b32")
    parser.add_argument("--batch", type=int, help="pairs per step (default: by model and device)")
    parser.add_argument("--steps", type=int, help="steps per timed repetition (default: 1 on CPU, 5 on CUDA)")
    parser.add_argument("--warmup", type=int, default=2, help="repetitions before the clock runs")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32 on CPU, bf16 on CUDA")
    parser.add_argument("--context-length", type=int, help="positions of the text tower (default: the model's)")
    parser.add_argument("--compile", action="store_true", help="also both sides compiled")
    parser.add_argument("--profile", action="store_true", help="print each side's most expensive operations")
    arguments = parser.parse_args(argv)
    device = prepare(arguments)
    on_cuda = device.type == "cuda"
    arguments.batch = arguments.batch or (CUDA_BATCH if on_cuda else CPU_BATCH)[arguments.model]
    arguments.steps = arguments.steps or (5 if on_cuda else 1)
    as_open_clips_main_sets()
    with ExitStack() as stack:
        sides = contenders(stack, arguments)
        timings = alternate(sides, repetitions=arguments.repetitions, warmup=arguments.warmup, device=device)
        rows = rows_of(arguments, sides, timings)
        if arguments.profile:
            for name, side in sides.items():
                profile(name, side, device)
    write_rows("step", rows, arguments.out)
    columns = ["model", "contender", "batch", "pairs_per_s_p50", "times_open_clip_p50", "useful_tflops_per_s", "mfu"]
    print_table(rows, [*columns, "peak_mb"])


if __name__ == "__main__":
    main()
