"""Captions a second from strings to embeddings, at their own lengths, beside transformers' text model and tokenizer.

MODEL is an export that transformers reads. transformers gets the same captions in the same batches, each padded to its
longest; in one row with the export's tokenizer, which cleans texts by rules, in one with transformers' own of CLIP.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from harness import alternate, batches, speed_rows
from torch import Tensor

from clipx.data.inputs import InputOptions, open_inputs
from clipx.pretrained import Pretrained, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an export in transformers' format")
    parser.add_argument("--from", dest="addresses", nargs="+", required=True, help="shards with captions")
    parser.add_argument("--count", type=int, default=2048, help="captions of a pass (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="(default: %(default)s)")


def captions(addresses: Sequence[str], count: int) -> list[str]:
    """The first captions that the addresses have."""
    inputs = open_inputs(addresses, InputOptions())
    found = (text for index in range(len(inputs)) for text in inputs.read(index).captions)
    return list(islice(found, count))


def clipx_pass(pretrained: Pretrained, texts: Sequence[str], batch: int) -> Tensor:
    """Embeddings (N, D) of all texts."""
    return torch.cat([pretrained.encode_text(some) for some in batches(texts, batch)])


def transformers_pass(model: Any, tokenizer: Any, texts: Sequence[str], batch: int, length: int) -> Tensor:
    """As `clipx_pass`, by transformers; `length` is the model's longest text."""
    rows = []
    with torch.inference_mode():
        for some in batches(texts, batch):
            inputs = tokenizer(list(some), padding=True, truncation=True, max_length=length, return_tensors="pt")
            rows.append(model(**inputs.to(model.device)).text_embeds)
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


def measure(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizerFast

    pretrained = load(arguments.model, device=device)
    model: Any = CLIPTextModelWithProjection.from_pretrained(arguments.model).eval().to(device)
    ruled = AutoTokenizer.from_pretrained(arguments.model)
    plain = CLIPTokenizerFast.from_pretrained(arguments.model)
    texts, batch = captions(arguments.addresses, arguments.count), arguments.batch
    length = pretrained.config.text.context_length
    contenders: dict[str, Callable[[], Tensor]] = {
        "clipx": lambda: clipx_pass(pretrained, texts, batch),
        "transformers": lambda: transformers_pass(model, ruled, texts, batch, length),
        "transformers, its own tokenizer": lambda: transformers_pass(model, plain, texts, batch, length),
    }
    ours = contenders["clipx"]()
    for name in ("transformers", "transformers, its own tokenizer"):
        cosines = (ours * contenders[name]()).sum(1)  # its own tokenizer reads curly quotes otherwise
        assert cosines.median() > 0.9999, f"{name} computes something else"
    times = alternate(contenders, repetitions=arguments.repetitions, warmup=1, device=device)
    tokens = pretrained.tokenize(texts)[1].float().mean().item()
    about = {"model": arguments.model.rpartition("/")[2], "tokens_mean": tokens}
    return [{**about, **row} for row in speed_rows(times, len(texts))]
