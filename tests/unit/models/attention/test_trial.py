"""The trial of kernels: what is wrong is left out, what is right is taken by its time, on all ranks alike."""

import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from reference.attention import packed_attention
from torch import Tensor

from clipx.errors import RunError
from clipx.models.attention import trial
from clipx.models.attention.trial import Attention, Shape, fastest


def shape(*, causal: bool = False, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape(
        name="sequences",
        lengths=(50, 50, 7),
        num_checked=2,
        heads=2,
        channels=64,
        causal=causal,
        dtype=dtype,
        device=torch.device("cpu"),
    )


@pytest.fixture(autouse=True)
def _nothing_found_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_results", {})
    monkeypatch.setattr(trial, "_broken", {})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)  # there may be none


def right(lengths: Sequence[int], *, causal: bool = False, scale: float = 0.125) -> Callable[[Tensor], Tensor]:
    """In float32, rounded at the end: what a good kernel gives."""
    return lambda qkv: packed_attention(qkv.float(), list(lengths), causal=causal, scale=scale).to(qkv.dtype)


def of_rounded_weights(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """With the softmax in the operands' dtype, as fused kernels multiply it."""

    def one(qkv_N3HE: Tensor) -> Tensor:
        q, k, v = qkv_N3HE.transpose(0, 2).float().unbind(1)
        weights = (q @ k.mT * 0.125).softmax(-1).to(qkv_N3HE.dtype)
        return (weights @ v.to(qkv_N3HE.dtype)).transpose(0, 1)

    return lambda qkv: torch.cat([one(part) for part in qkv.split(list(lengths))])


def wrong_factor(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    return right(lengths, scale=0.13)


def without_the_last_key(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def compute(qkv: Tensor) -> Tensor:
        kept = torch.cat([part[:-1] for part in qkv.split(list(lengths))])
        mixed = right([length - 1 for length in lengths])(kept)
        parts = mixed.split([length - 1 for length in lengths])
        return torch.cat([torch.cat((part, part[-1:])) for part in parts])

    return compute


class _WrongGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite where keys are large and negative."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, qkv: Tensor) -> Tensor:
        ctx.is_bad = bool((qkv < -100).any())  # type: ignore[attr-defined]
        return qkv.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient * (torch.nan if ctx.is_bad else 1)  # type: ignore[attr-defined]


def not_finite_for_negative_logits(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    return lambda qkv: right(lengths)(_WrongGradient.apply(qkv))


class _Shrunk(torch.autograd.Function):
    """The identity, with nine tenths of the gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, qkv: Tensor) -> Tensor:
        return qkv.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return 0.9 * gradient


def with_a_small_gradient(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    return lambda qkv: right(lengths)(_Shrunk.apply(qkv))


def raising(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("logit", [0.0, -120.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", [right, of_rounded_weights])
def test_roundings_are_allowed(attention: Attention, dtype: torch.dtype, logit: float) -> None:
    assert trial._problem(shape(dtype=dtype), attention, logit=logit) is None


def test_a_causal_mask_is_expected() -> None:
    def causal(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
        return right(lengths, causal=True)

    assert trial._problem(shape(causal=True), causal, logit=0.0) is None
    assert trial._problem(shape(causal=True), right, logit=0.0) == "results for logits near 0 are wrong"


def test_errors_are_found() -> None:
    assert trial._problem(shape(), without_the_last_key, logit=0.0) == "results for logits near 0 are wrong"
    assert "wrong" in (trial._problem(shape(dtype=torch.float16), wrong_factor, logit=0.0) or "")
    found = trial._problem(shape(), with_a_small_gradient, logit=0.0)
    assert found == "gradients of queries for logits near 0 are wrong"
    assert trial._problem(shape(), not_finite_for_negative_logits, logit=0.0) is None
    found = trial._problem(shape(), not_finite_for_negative_logits, logit=-120.0)
    assert found == "gradients of queries for logits near -120 are not finite"


def test_the_fastest_right_candidate_is_taken_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    milliseconds = {right: 0.2, of_rounded_weights: 0.125}
    monkeypatch.setattr(trial, "_milliseconds", lambda shape, attention: milliseconds[attention])
    candidates = {
        "flash": right,
        "one_tile": of_rounded_weights,
        "efficient": not_finite_for_negative_logits,
        "cudnn": raising,
    }
    with caplog.at_level(logging.INFO):
        assert fastest(shape(), candidates, group=None) == "one_tile"
    assert [record.message for record in caplog.records] == [
        "attention of sequences: efficient is left out (gradients of queries for logits near -120 are not finite)",
        "attention of sequences: cudnn is left out (RuntimeError: no kernel image is available)",
        "attention of sequences: one_tile (ms for 3: one_tile 0.125, flash 0.200)",
    ]


def test_a_shape_is_tried_once_and_what_raised_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def noted(name: str, attention: Attention) -> Attention:
        def prepare(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
            tried.append(name)
            return attention(lengths)

        return prepare

    milliseconds = iter([0.2, 0.1])
    monkeypatch.setattr(trial, "_milliseconds", lambda shape, attention: next(milliseconds))
    candidates = {"flash": noted("flash", right), "cudnn": noted("cudnn", raising)}
    for _ in range(2):
        assert fastest(shape(), candidates, group=None) == "flash"
    assert tried == ["flash", "flash", "cudnn"]
    assert fastest(shape(dtype=torch.float16), candidates, group=None) == "flash"
    assert tried == ["flash", "flash", "cudnn", "flash", "flash"]


def test_without_a_right_candidate_there_is_no_choice(caplog: pytest.LogCaptureFixture) -> None:
    assert fastest(shape(), {"flash": raising}, group=None) is None
    assert "no kernel was right" in caplog.text


def test_memory_that_is_short_says_nothing_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_milliseconds", lambda shape, attention: 0.1)
    full = [True]

    def filling(lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
        if full:
            raise torch.OutOfMemoryError("none left")
        return right(lengths)

    assert fastest(shape(), {"flash": filling}, group=None) is None
    full.clear()
    assert fastest(shape(), {"flash": filling}, group=None) == "flash"


def test_a_kernel_that_breaks_the_device_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(trial, "_milliseconds", lambda shape, attention: 0.1)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(
        RunError, match=r"trying one_tile broke the CUDA device \(RuntimeError: no kernel.*attention=flash"
    ):
        fastest(shape(), {"flash": right, "one_tile": raising}, group=None)
