"""Memory, time and error of the contrastive losses, forward and backward, beside open_clip's, alternating.

    python benchmarks/loss.py [--device cuda] [--quick] [--blocks]

Each row of results/loss.csv is one loss of one library at one (G, W, d, dtype). One rank is run; where W > 1 the others
are torch's fake process group, which moves nothing, so time and memory are those of a rank's own work. open_clip runs
with `local_loss` and `gather_with_grad`, its leanest setting with right gradients, and on CUDA under autocast to the
towers' dtype as its training does. Errors (W = 1) are relative, of the value and of the gradients' norms, against this
package's tiles in float64, which tests hold to the textbook. `beyond_texts_mb` leaves out the gathered texts. Where
pictures have several captions, all of them positives, open_clip has nothing to compare with.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from harness import alternate, device_argument, peak_memory, prepare, print_table, ratio, write_rows
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore

from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.types import Embeddings

COLUMNS = (
    "loss", "implementation", "G", "W", "d", "captions", "dtype", "p20_ms", "p50_ms", "p80_ms", "times_faster",
    "peak_mb", "beyond_texts_mb", "value_error", "image_error", "text_error", "scale_error",
)  # fmt: skip

CAPTIONS = 4
"""Of a picture, where it has several."""


@dataclass(frozen=True)
class Case:
    """One point of the comparison."""

    loss: str
    global_batch_size: int
    world_size: int
    width: int
    dtype: torch.dtype
    with_peer: bool = True
    """Whether open_clip's matrices fit."""
    captions: int = 1
    """Of each picture."""
    repetitions: int | None = None
    """Fewer than asked for, where one takes minutes; 0: memory alone."""


def cases(device: torch.device, *, quick: bool) -> Iterator[Case]:
    """What is compared on this device."""
    on_cuda = device.type == "cuda"
    dtypes = [torch.bfloat16, torch.float32] if on_cuda else [torch.float32]
    sizes = [4096, 32768] if on_cuda else [1024] if quick else [1024, 4096]
    for loss in ("info_nce", "sigmoid"):
        for dtype in dtypes:
            for size in sizes:
                for width in (512,) if quick or not on_cuda else (512, 640, 768):
                    yield Case(loss, size, 1, width, dtype)
            yield Case(loss, sizes[-1], 1, 512, dtype, with_peer=False, captions=CAPTIONS)
            if on_cuda:
                yield Case(loss, 65536, 8, 768, dtype)
            elif not quick:
                yield Case(loss, 8192, 8, 512, dtype)
                yield Case(loss, 65536, 8, 768, dtype, with_peer=False, repetitions=0)


def draw(case: Case, device: torch.device) -> Embeddings:
    """This rank's pairs, texts a little like their images (cosine 0.12), so that the loss is far from 0."""
    generator = torch.Generator().manual_seed(0)
    size = case.global_batch_size // case.world_size
    image_BD, noise_BD = torch.randn(2, size, case.width, generator=generator)
    image_BD = image_BD[: size // case.captions].repeat_interleave(case.captions, 0)
    text_BD = image_BD + 8 * noise_BD
    image_BD, text_BD = (
        functional.normalize(x, dim=1).to(device, case.dtype).requires_grad_() for x in (image_BD, text_BD)
    )
    scale, bias = (torch.full((1,), value, device=device, requires_grad=True) for value in (50.0, -10.0))
    return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=scale, logit_bias=bias)


def contenders(case: Case, device: torch.device) -> dict[str, Callable[[Embeddings], Tensor]]:
    """By name, functions from pairs to the loss."""
    found = {"tiled": ours(case, device, implementation="tiled")}
    if device.type == "cuda":
        found = {"triton": ours(case, device, implementation="triton")} | found
    if case.world_size > 1:
        found["ring"] = ours(case, device, exchange="ring")
    if case.with_peer:
        found["open_clip"] = _open_clip(case, device)
    return found


def ours(case: Case, device: torch.device, **settings: Any) -> Callable[[Embeddings], Tensor]:
    """clipx's loss with the ids that the trainer gives it."""
    group = None if case.world_size == 1 else dist.group.WORLD
    ids_B = torch.arange(case.global_batch_size // case.world_size, device=device) // case.captions
    positive_ids_B = None if case.captions == 1 else ids_B
    loss = InfoNCELoss(**settings) if case.loss == "info_nce" else SigmoidLoss(**settings)
    return lambda pairs: loss(pairs, group=group, ids_B=ids_B, positive_ids_B=positive_ids_B)


def _open_clip(case: Case, device: torch.device) -> Callable[[Embeddings], Tensor]:
    if case.loss == "info_nce":
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=0, world_size=case.world_size)
    else:
        loss = SigLipLoss(rank=0, world_size=case.world_size)

    def call(pairs: Embeddings) -> Tensor:
        with torch.autocast(device.type, case.dtype, enabled=case.dtype != torch.float32):
            bias = () if case.loss == "info_nce" else (pairs.logit_bias,)
            return loss(pairs.image_BD, pairs.text_BD, pairs.logit_scale, *bias)

    return call


def value_and_gradients(loss: Callable[[Embeddings], Tensor], pairs: Embeddings) -> tuple[Tensor, ...]:
    """The loss, and its gradients for images, texts and scale."""
    value = loss(pairs)
    return value.detach(), *torch.autograd.grad(value, (pairs.image_BD, pairs.text_BD, pairs.logit_scale))


def errors(case: Case, pairs: Embeddings, call: Callable[[], tuple[Tensor, ...]]) -> dict[str, float]:
    """Relative to the float64 result; nothing where texts of other ranks are not there."""
    if case.world_size > 1:
        return {}
    wide = Embeddings(**{name: value.detach().double().requires_grad_() for name, value in vars(pairs).items()})
    wanted = value_and_gradients(ours(case, pairs.image_BD.device), wide)
    names = ("value_error", "image_error", "text_error", "scale_error")
    return {
        name: float((one.double() - other).norm() / other.norm())
        for name, one, other in zip(names, call(), wanted, strict=True)
    }


def measure(case: Case, device: torch.device, repetitions: int) -> list[dict[str, object]]:
    """A row for each contender."""
    if case.world_size > 1 and not dist.is_initialized():
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=case.world_size)
    pairs = draw(case, device)
    calls = {
        name: (lambda loss=loss: value_and_gradients(loss, pairs)) for name, loss in contenders(case, device).items()
    }
    if case.repetitions is not None:
        repetitions = case.repetitions
    timings = alternate(calls, repetitions=repetitions, warmup=2, device=device) if repetitions else {}
    texts = case.global_batch_size * case.width * case.dtype.itemsize if case.world_size > 1 else 0
    rows: list[dict[str, object]] = []
    for name, call in calls.items():
        peak = peak_memory(call, device)
        row: dict[str, object] = {
            "loss": case.loss, "implementation": name, "G": case.global_batch_size, "W": case.world_size,
            "d": case.width, "captions": case.captions, "dtype": str(case.dtype).removeprefix("torch."),
            "peak_mb": peak / 1e6, "beyond_texts_mb": (peak - (0 if name == "ring" else texts)) / 1e6,
        }  # fmt: skip
        if name in timings:
            timing = timings[name]
            row |= {"p20_ms": 1e3 * timing.p20, "p50_ms": 1e3 * timing.p50, "p80_ms": 1e3 * timing.p80}
            if "open_clip" in timings:
                row["times_faster"] = ratio(timings["open_clip"], timing).p50
        rows.append(row | errors(case, pairs, call) if repetitions else row)
    return rows


def time_blocks(device: torch.device, repetitions: int, *, size: int = 32_768) -> list[dict[str, object]]:
    """Times the kernels with other shapes of their programs, to choose `clipx.losses.triton_ops.NARROW_BLOCKS`."""
    from clipx.losses import triton_ops

    shapes = (
        (128, 128, 64, 8, 3, 128),
        (128, 128, 64, 8, 3, None),
        (128, 128, 64, 8, 4, 128),
        (64, 128, 64, 4, 4, 128),
        (128, 64, 64, 4, 4, 128),
        (128, 256, 64, 8, 3, None),
    )
    shaped = {str(shape): triton_ops.Blocks(*shape) for shape in shapes}
    chosen = triton_ops.NARROW_BLOCKS
    rows: list[dict[str, object]] = []
    for loss in ("info_nce", "sigmoid"):
        case = Case(loss, size, 1, 768, torch.bfloat16)
        pairs, call = draw(case, device), contenders(case, device)["triton"]

        def run(blocks: triton_ops.Blocks, call: Any = call, pairs: Any = pairs) -> None:
            triton_ops.NARROW_BLOCKS = blocks
            value_and_gradients(call, pairs)

        runs = {name: (lambda blocks=blocks: run(blocks)) for name, blocks in shaped.items()}
        timings = alternate(runs, repetitions=repetitions, warmup=2, device=device)
        rows += [{"loss": loss, "blocks": name, "p50_ms": 1e3 * timing.p50} for name, timing in timings.items()]
    triton_ops.NARROW_BLOCKS = chosen
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device_argument(parser)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--blocks", action="store_true", help="only time the shapes of the kernels' programs (CUDA)")
    arguments = parser.parse_args()
    device = prepare(arguments)
    if arguments.blocks:
        print_table(time_blocks(device, arguments.repetitions), ("loss", "blocks", "p50_ms"))
        return
    rows = []
    for case in cases(device, quick=arguments.quick):
        measured = measure(case, device, arguments.repetitions)
        path = write_rows("loss", measured, arguments.out)
        rows += measured
    print_table(rows, COLUMNS)
    print(f"rows in {path}")


if __name__ == "__main__":
    main()
