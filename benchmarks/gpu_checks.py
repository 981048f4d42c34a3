"""Steps of the GPU plan that ask whether it is right, and how fast the machine itself is.

Inputs are drawn anew in every run; a row has their seed. Errors are |x - y| / |y| in the Euclidean norm against float64
or the CPU's float32; NaN never passes.
"""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product

import torch
from gpu_report import Report
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from workload import MODELS, Steps, make_batch, open_run

from clipx.config.load import load_config
from clipx.config.loss import InfoNCEConfig, SigmoidConfig
from clipx.data.tokenizer import build_tokenizer
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.models.attention.backends import Kernel, attend, attend_in_one_tile
from clipx.models.attention.one_tile import MAX_TOKENS
from clipx.models.clip import CLIP, build_model
from clipx.models.packing import attend_packed, pack
from clipx.types import Batch, Embeddings, tensors_of

HALF = torch.bfloat16
_HEAD_START = 4_000_000
"""Cycles, about 2 ms, that the device waits, so that the host has launched everything before its time begins."""


def start(report: Report) -> None:
    """Versions, and that there is a device which answers."""
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device here")
    numbers = torch.arange(1000, device="cuda").sum()
    report.check(numbers.item() == 499_500, "a sum on the device is wrong")
    names = ("triton", "torchvision", "transformers", "accelerate", "timm", "open_clip_torch")
    report.say(
        what="versions",
        rehearsed=report.rehearse,
        gpu=torch.cuda.get_device_name(),
        python=platform.python_version(),
        torch=torch.__version__,
        cudnn=torch.backends.cudnn.version(),
        imported_s=report.imported_s,
        **{name: version(name) for name in names},
    )


def losses(report: Report) -> None:
    """A step of a small model with each loss, and with the gradient cache: finite, and the weights updated."""
    with_bias = replace(load_config([MODELS["demo"]]).model, init_logit_bias=-10.0, init_logit_scale=10.0)
    settings: dict[str, dict[str, object]] = {
        "info_nce": {"loss": InfoNCEConfig()},
        "info_nce tiled": {"loss": InfoNCEConfig(implementation="tiled")},
        "sigmoid": {"loss": SigmoidConfig(), "model": with_bias},
        "cached": {"micro_batch_size": 64},
    }
    for name, changes in settings.items():
        began = time.monotonic()
        with open_run("demo", 256, precision="bf16", compile=False, **changes) as run:
            steps = Steps(run, [make_batch(run.config, 256, index=0)])
            steps()
            done = steps.outcomes[-1]
        report.say(what="first step", mode=name, loss=done.loss, grad_norm=done.grad_norm, s=time.monotonic() - began)
        report.check(done.good and 0 < done.loss < 50, f"{name}: loss {done.loss}, gradient {done.grad_norm}")


def kernels(report: Report) -> None:
    """The losses' kernels and tiles beside float64, on even and uneven sizes, with equal ids among them."""
    seed = int(time.time())
    torch.manual_seed(seed)
    shapes = (  # with limits: of the dtype's roundings two, of the gradient of a similarity and of a result
        (1024, 512, HALF, 1, 1.6e-2),
        (1003, 512, HALF, 1, 1.6e-2),
        (2048, 768, HALF, 1, 1.6e-2),
        (1024, 512, HALF, 4, 1.6e-2),  # several captions of a picture, all of them positives
        (1003, 512, torch.float16, 1, 2.1e-3),
        (1003, 512, torch.float32, 1, 1e-3),
    )
    for (size, width, dtype, captions, limit), loss in product(shapes, (InfoNCELoss, SigmoidLoss)):
        began = time.monotonic()
        pairs = _pairs(size, width, dtype)
        ids_B = torch.randint(0, 4 * size, (size // captions,), device="cuda").repeat_interleave(captions)
        positive_ids_B = ids_B if captions > 1 else None
        if size % 2 or captions > 1:  # further ids, of texts, beside those of samples
            ids_B = torch.stack([ids_B, torch.randint(0, size, (size,), device="cuda")], dim=1)
        wide = Embeddings(**{name: x.detach().double().requires_grad_() for name, x in tensors_of(pairs).items()})
        wanted = _value_and_gradients(loss(implementation="tiled"), wide, ids_B, positive_ids_B)
        worst: dict[str, float] = {}
        shape = f"{size} x {width} {str(dtype).removeprefix('torch.')}, captions {captions}"
        for how in ("triton", "tiled"):
            found = _value_and_gradients(loss(implementation=how), pairs, ids_B, positive_ids_B)
            worst[how] = max(_error(one, other) for one, other in zip(found, wanted, strict=True))
            report.check(worst[how] <= limit, f"{loss.__name__} {how} {shape}: error {worst[how]:.1e} > {limit}")
        report.say(what=loss.__name__, mode=shape, seed=seed, s=time.monotonic() - began, **worst)


def towers(report: Report) -> None:
    """Embeddings and gradients of B/32's towers in bf16 and float32, beside the same towers on the CPU.

    A CPU's bf16 is off by 0.7% and 1.0%.
    """
    size, device = report.size(32, 4), torch.device("cuda", 0)
    config = load_config([MODELS["b32"]])
    model = build_model(config.model, vocab_size=build_tokenizer(config.model.text).vocab_size, seed=0)
    batch = make_batch(config, size, index=int(time.time()) % 1000)
    wanted = _embeddings_and_gradient(model, batch, None)
    model.to(device)
    for dtype, limits in ((torch.float32, (1e-4, 1e-3)), (HALF, (2e-2, 3e-2))):
        found = _embeddings_and_gradient(model, batch.to(device), None if dtype == torch.float32 else dtype)
        errors = [_error(one.cpu(), other) for one, other in zip(found, wanted, strict=True)]
        report.say(what="towers beside the CPU", mode=str(dtype), embeddings=errors[0], gradient=errors[1])
        good = all(error <= limit for error, limit in zip(errors, limits, strict=True))
        report.check(good, f"towers in {dtype}: errors {errors[0]:.1e}, {errors[1]:.1e}")


def ceilings(report: Report) -> None:
    """What memory, the link to the host and products reach: the divisors of the budget."""
    size = report.size(1 << 31, 1 << 20)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    host = torch.randint(0, 256, (size // 8,), dtype=torch.uint8).pin_memory()
    copy_ms = device_ms(lambda: target.copy_(source))
    report.say(what="copy", tb_per_s=2 * size / copy_ms / 1e9)
    link_ms = device_ms(lambda: target[: size // 8].copy_(host, non_blocking=True), count=3)
    report.say(what="host to device", gb_per_s=size / 8 / link_ms / 1e6)
    tokens = report.size(102_400, 1024)
    shapes = {
        "square": (8192, 8192, 8192),
        "b32 qkv": (tokens, 2304, 768),
        "b32 proj": (tokens, 768, 768),
        "b32 fc1": (tokens, 3072, 768),
        "b32 fc2": (tokens, 768, 3072),
        "b32 fc1 weight": (3072, 768, tokens),
        "b32 proj weight": (768, 768, tokens),
        "loss": (4096, 512, 4096),
    }
    for name, (rows, columns, inner) in shapes.items():
        a = torch.randn(rows, inner, device="cuda", dtype=HALF)
        b = torch.randn(inner, columns, device="cuda", dtype=HALF)
        ms = device_ms(lambda a=a, b=b: a @ b)
        report.say(what="product", mode=name, tflops=2 * rows * columns * inner / ms / 1e9)


def attention(report: Report) -> None:
    """Kernels at the towers' lengths; and where cuDNN, torch's default that clipx leaves out, gives NaN."""
    kernels: list[Kernel] = ["flash", "efficient", "one_tile"]
    if not report.rehearse:  # a CUDA that computes nothing has no cuDNN
        kernels.append("cudnn")
    for name, size, length, heads in (("b32", 2048, 50, 12), ("b16", 1024, 197, 12), ("l14", 512, 257, 16)):
        shape = (report.size(size, 8), length, heads)
        for kernel in kernels:
            if kernel == "one_tile" and length > MAX_TOKENS:
                continue
            try:
                _time_images(report, f"{name} {kernel}", shape, kernel)
            except RuntimeError as error:
                report.say(what="attention", mode=f"{name} {kernel}", error=str(error)[:120])
    _time_texts(report)
    cudnn = SDPBackend.FLASH_ATTENTION if report.rehearse else SDPBackend.CUDNN_ATTENTION
    for queries, keys in ((64, 64), (192, 192), (50, 50), (197, 197), (257, 257), (1, 50), (1, 128), (1, 197)):
        try:
            finite = _gradients_are_finite(queries, keys, cudnn)
        except RuntimeError as error:
            finite = str(error)[:120]
        report.say(what="cudnn", mode=f"{queries} x {keys}, logits -120", finite=finite)


def device_ms(function: Callable[[], object], *, count: int = 10, warmup: int = 3) -> float:
    """The median of the device's times between two events."""
    times = []
    for number in range(-warmup, count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_HEAD_START)
        begin.record()
        function()
        end.record()
        end.synchronize()
        if number >= 0:
            times.append(begin.elapsed_time(end))
    return max(sorted(times)[len(times) // 2], 1e-6)


def _pairs(size: int, width: int, dtype: torch.dtype) -> Embeddings:
    image_BD, noise_BD = torch.randn(2, size, width, device="cuda")
    text_BD = image_BD + 2 * noise_BD
    image_BD, text_BD = (functional.normalize(x, dim=1).to(dtype).requires_grad_() for x in (image_BD, text_BD))
    scale, bias = (torch.full((1,), value, device="cuda", requires_grad=True) for value in (30.0, -8.0))
    return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=scale, logit_bias=bias)


def _value_and_gradients(
    loss: InfoNCELoss | SigmoidLoss, pairs: Embeddings, ids_B: Tensor, positive_ids_B: Tensor | None
) -> tuple[Tensor, ...]:
    """The gradients are of the sum over pairs: fp16 has no numbers for those of the mean."""
    share = loss(pairs, ids_B=ids_B, positive_ids_B=positive_ids_B)
    inputs = (pairs.image_BD, pairs.text_BD, pairs.logit_scale)
    return share.detach(), *torch.autograd.grad(len(ids_B) * share, inputs)


def _embeddings_and_gradient(model: CLIP, batch: Batch, autocast: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Both embeddings, and the gradient of a sum of their products with fixed numbers, as vectors."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        outputs = model(batch, seed=0, patch_drop=0.0)
    flat = torch.cat([outputs.image_BD, outputs.text_BD]).float().flatten()
    towards = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)).to(device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad((flat * towards).sum(), weights, allow_unused=True)
    return flat.detach(), torch.cat([gradient.flatten().float() for gradient in found if gradient is not None])


def _error(found: Tensor, wanted: Tensor) -> float:
    error = float((found.double() - wanted).norm() / wanted.double().norm())
    return math.inf if math.isnan(error) else error


def _time_images(report: Report, name: str, shape: tuple[int, int, int], kernel: Kernel) -> None:
    size, length, heads = shape
    qkv_BN3HE = torch.randn(size, length, 3, heads, 64, device="cuda", dtype=HALF, requires_grad=True)
    towards = torch.randn(size, length, heads, 64, device="cuda", dtype=HALF)

    def forward() -> Tensor:
        if kernel == "one_tile":
            return attend_in_one_tile(qkv_BN3HE)
        return attend(*qkv_BN3HE.unbind(2), kernel=kernel)

    figures = _times(forward, qkv_BN3HE, towards)
    report.say(what="attention", mode=name, **figures)


def _time_texts(report: Report) -> None:
    """Of B/32's texts: lengths as captions have them."""
    lengths_B = make_batch(load_config([MODELS["b32"]]), report.size(2048, 64), index=0).lengths_B
    num_tokens, longest = int(lengths_B.sum()), int(lengths_B.max())
    packing = pack(lengths_B.cuda(), num_tokens=num_tokens, max_length=longest)
    qkv_T3HE = torch.randn(num_tokens, 3, 8, 64, device="cuda", dtype=HALF, requires_grad=True)
    towards = torch.randn(num_tokens, 8, 64, device="cuda", dtype=HALF)
    for name, one_tile in (("varlen", None), ("one_tile", HALF)):
        figures = _times(partial(attend_packed, qkv_T3HE, packing, one_tile=one_tile), qkv_T3HE, towards)
        report.say(what="attention", mode=f"texts {name}", tokens=num_tokens, longest=longest, **figures)


def _times(forward: Callable[[], Tensor], qkv: Tensor, towards: Tensor) -> dict[str, object]:
    """Of the forward pass, and of both; and whether the gradients are finite."""

    def both() -> None:
        qkv.grad = None
        forward().backward(towards)

    figures = {"forward_ms": device_ms(forward, count=5, warmup=1), "both_ms": device_ms(both, count=5, warmup=1)}
    assert qkv.grad is not None
    return figures | {"finite": bool(qkv.grad.isfinite().all())}


def _gradients_are_finite(queries: int, keys: int, backend: SDPBackend) -> str:
    """Whether those of q, k and v are, where every logit of a row is near -120 (pytorch #196678, cudnn #1072)."""
    q, k, v = (0.1 * torch.randn(4, 2, count, 64, device="cuda", dtype=HALF) for count in (queries, keys, keys))
    q[..., 0], k[..., 0] = 1.0, -960.0
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with sdpa_kernel(backend):
        mixed = functional.scaled_dot_product_attention(*inputs)
    gradients = torch.autograd.grad(mixed, inputs, torch.randn_like(mixed))
    return " ".join("finite" if gradient.isfinite().all() else "NaN" for gradient in gradients)
