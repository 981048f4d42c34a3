"""Packing texts changes nothing, whatever their lengths, their order and their company."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.text_tower import padded

from clipx.config.model import TransformerTextConfig
from clipx.models.packing import pad_to_bucket
from clipx.models.text_tower import TextTower

CONTEXT = 20


def build() -> TextTower:
    torch.manual_seed(0)
    model = TextTower(
        TransformerTextConfig(context_length=CONTEXT, width=8, layers=2, heads=2), vocab_size=20, embed_dim=4
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


MODEL = build()


@given(
    lengths=st.lists(st.integers(1, CONTEXT), min_size=1, max_size=12),
    slack=st.integers(0, CONTEXT),
    bucketed=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_packed_is_padded(lengths: list[int], slack: int, bucketed: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens_T = torch.randint(20, (sum(lengths),), generator=generator)
    lengths_B = torch.tensor(lengths)
    MODEL.bucketed = bucketed
    found = MODEL(tokens_T, lengths_B, max_length=min(CONTEXT, max(lengths) + slack))
    expected = padded(MODEL, tokens_T, lengths_B, length=CONTEXT)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    parameters = list(MODEL.parameters())
    gradients = (torch.autograd.grad(value.square().sum(), parameters) for value in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@given(lengths=st.lists(st.integers(1, 77), min_size=1, max_size=400))
@settings(max_examples=60)
def test_padding_to_a_bucket_always_fits(lengths: list[int]) -> None:
    before, lengths_B = sum(lengths), torch.tensor(lengths)
    tokens, all_lengths, longest = pad_to_bucket(
        torch.ones(before, dtype=torch.int64), lengths_B, max_length=max(lengths), limit=77
    )
    assert before <= len(tokens) <= before * 17 / 16
    assert int(all_lengths.sum()) == len(tokens)
    assert all_lengths[: len(lengths)].tolist() == lengths
    assert max(lengths) <= int(all_lengths.max()) <= longest <= 77
