"""Pictures a second from encoded bytes to embeddings, beside transformers with its fastest backend.

MODEL is an export that transformers reads. Its image processor works on torchvision; it gets pictures that Pillow
decoded, as it loads them itself, and in a second row pixels that torchvision's libjpeg decoded. `cosine` and `pixels`
say how far clipx's `fast` is from its `pil`, over `--agree` pictures.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import alternate, batches, speed_rows
from torch import Tensor

from clipx.data.inputs import InputOptions, open_inputs
from clipx.pretrained import Pretrained, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an export in transformers' format")
    parser.add_argument("--from", dest="addresses", nargs="+", required=True, help="shards, folders or pictures")
    parser.add_argument("--count", type=int, default=512, help="pictures of a pass (default: %(default)s)")
    parser.add_argument("--agree", type=int, default=4096, help="pictures that are compared (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="(default: %(default)s)")


def encoded_pictures(addresses: Sequence[str], count: int) -> list[bytes]:
    """The first pictures that the addresses have, as they are stored."""
    inputs = open_inputs(addresses, InputOptions())
    found = (inputs.read(index).image for index in range(min(count, len(inputs))))
    return [data for data in found if data is not None]


def clipx_pass(pretrained: Pretrained, pictures: Sequence[bytes], batch: int, decode: Any) -> Tensor:
    """Embeddings (N, D) of all pictures."""
    rows = []
    for some in batches(pictures, batch):
        rows.append(pretrained.encode_image(torch.stack([pretrained.pixels(data, decode=decode) for data in some])))
    return torch.cat(rows)


def transformers_pass(
    model: Any, processor: Any, pictures: Sequence[bytes], batch: int, decode: Callable[[bytes], Any]
) -> Tensor:
    """As `clipx_pass`, by transformers."""
    rows = []
    with torch.inference_mode():
        for some in batches(pictures, batch):
            inputs = processor([decode(data) for data in some], return_tensors="pt").to(model.device)
            rows.append(model.get_image_features(**inputs).pooler_output)
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


def on_pillow(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def on_torchvision(data: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def agreement(pretrained: Pretrained, pictures: Sequence[bytes], batch: int) -> dict[str, object]:
    """Cosines of the embeddings of `fast` and `pil`, and the differences of their pixels, of 255."""
    embeddings = [clipx_pass(pretrained, pictures, batch, decode).double() for decode in ("fast", "pil")]
    cosines = (embeddings[0] * embeddings[1]).sum(1)
    pixels = [[pretrained.pixels(data, decode=decode).int() for data in pictures] for decode in ("fast", "pil")]
    apart = torch.stack([(one - other).abs() for one, other in zip(*pixels, strict=True)])
    return {
        "pictures": len(pictures),
        "cosine_mean": cosines.mean().item(),
        "cosine_min": cosines.min().item(),
        "pixels_mean": apart.float().mean().item(),
        "pixels_max": apart.max().item(),
    }


def measure(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    from transformers import AutoImageProcessor, CLIPModel

    pretrained = load(arguments.model, device=device)
    model: Any = CLIPModel.from_pretrained(arguments.model).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(arguments.model, backend="torchvision")
    pictures = encoded_pictures(arguments.addresses, max(arguments.count, arguments.agree))
    few, batch = pictures[: arguments.count], arguments.batch
    contenders: dict[str, Callable[[], Tensor]] = {
        "clipx fast": lambda: clipx_pass(pretrained, few, batch, "fast"),
        "clipx pil": lambda: clipx_pass(pretrained, few, batch, "pil"),
        "transformers": lambda: transformers_pass(model, processor, few, batch, on_pillow),
        "transformers, torchvision decodes": lambda: transformers_pass(model, processor, few, batch, on_torchvision),
    }
    ours = contenders["clipx fast"]()
    for name in ("transformers", "transformers, torchvision decodes"):
        assert (ours * contenders[name]()).sum(1).mean() > 0.99, f"{name} computes something else"
    times = alternate(contenders, repetitions=arguments.repetitions, warmup=1, device=device)
    found = agreement(pretrained, pictures[: arguments.agree], batch)
    return [{"model": arguments.model.rpartition("/")[2], **row, **found} for row in speed_rows(times, len(few))]
