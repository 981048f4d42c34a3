"""Packing: where tokens stand, gathers whose gradients are gathers, attention within a text, buckets of shapes."""

import math

import pytest
import torch
from torch import Tensor

from clipx.models import packing as packing_module
from clipx.models.packing import Packing, as_rows, attend, attend_once, group_by_length, pack, pad_to_bucket, take

LENGTHS = [3, 5, 1, 2]


def packing(lengths: list[int] = LENGTHS, *, max_length: int = 6, groups: tuple[int, ...] = ()) -> Packing:
    return pack(torch.tensor(lengths), num_tokens=sum(lengths), max_length=max_length, groups=groups)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def test_pack_says_where_every_token_stands() -> None:
    found = packing([2, 1, 3], max_length=4)
    assert found.start_B.tolist() == [0, 2, 3]
    assert found.last_B.tolist() == [1, 2, 5]
    assert found.bounds.tolist() == [0, 2, 3, 6]
    assert found.bounds.dtype == torch.int32
    assert found.position_T.tolist() == [0, 1, 0, 0, 1, 2]
    assert found.place_T.tolist() == [0, 1, 4, 8, 9, 10]
    (rows,), (filled,) = as_rows(torch.tensor([5, 6, 7, 8, 9, 4]), found), found.filled
    assert rows.masked_fill(~filled, -1).tolist() == [[5, 6, -1, -1], [7, -1, -1, -1], [8, 9, 4, -1]]


def test_groups_are_as_long_as_their_longest_text() -> None:
    found = packing([1, 2, 3], max_length=4, groups=(2, 1))
    assert found.place_T.tolist() == [0, 2, 3, 4, 5, 6]
    assert [filled.tolist() for filled in found.filled] == [[[True, False], [True, True]], [[True, True, True]]]
    assert [rows.shape for rows in as_rows(torch.arange(6), found)] == [(2, 2), (1, 3)]


def test_texts_of_like_length_come_side_by_side() -> None:
    lengths = [20, 3, 40, 16, 17]
    texts = list(torch.arange(sum(lengths)).split(lengths))
    tokens, new_lengths, groups, rank = group_by_length(torch.cat(texts), torch.tensor(lengths))
    assert new_lengths.tolist() == [3, 16, 20, 17, 40]
    assert groups == [2, 2, 1]
    assert rank.tolist() == [2, 0, 4, 1, 3]
    assert torch.equal(tokens, torch.cat([texts[i] for i in (1, 3, 0, 4, 2)]))


def test_gathers_have_the_gradient_of_indexing() -> None:
    where = packing(groups=(3, 1))
    x_TC = drawn(11, 3)

    def masked_rows(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(rows * filled[..., None] for rows, filled in zip(as_rows(x, where), where.filled, strict=True))

    assert torch.autograd.gradcheck(masked_rows, x_TC)
    assert torch.autograd.gradcheck(lambda x: take(x, torch.tensor([4, 0, 7])), x_TC)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    """(L, H, K) of one text alone."""
    scores = torch.einsum("qhk,lhk->hql", q, k) * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -math.inf)
    return torch.einsum("hql,lhk->qhk", scores.softmax(-1), v)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("groups", [(), (1, 3)])
def test_attention_stays_within_each_text(causal: bool, scale: float | None, groups: tuple[int, ...]) -> None:
    qkv_T3HK = drawn(11, 3, 2, 8)
    q, k, v = qkv_T3HK.unbind(1)
    mixed = attend(q, k, v, packing(groups=groups), causal=causal, scale=scale)
    texts = zip(*(part.split(LENGTHS) for part in (q, k, v)), strict=True)
    expected = torch.cat([plain_attention(*text, causal=causal, scale=scale or 8**-0.5) for text in texts])
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)
    weight = drawn(*mixed.shape, seed=1)
    (ours,) = torch.autograd.grad((mixed * weight).sum(), qkv_T3HK)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), qkv_T3HK)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [(), (2, 2)])
def test_one_query_a_text_is_a_row_of_the_whole_attention(groups: tuple[int, ...]) -> None:
    qkv_T3HK = drawn(11, 3, 2, 8)
    where = packing(groups=groups)
    q, k, v = qkv_T3HK.unbind(1)
    last_R = where.last_B[:3]  # of the first three texts only
    ours = attend_once(take(q, last_R), k, v, where)
    theirs = attend(q, k, v, where, causal=True)[last_R]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = drawn(*ours.shape, seed=1)
    gradients = [torch.autograd.grad((part * weight).sum(), qkv_T3HK, retain_graph=True)[0] for part in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """What the documentation of torch 2.11 says of `varlen_attn`, which runs on CUDA alone."""
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    lengths_q, lengths_k = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert max(lengths_q) <= max_q
    assert max(lengths_k) <= max_k
    assert (sum(lengths_q), sum(lengths_k)) == (len(query), len(key[: cu_seq_k[-1]]))
    texts = zip(
        *(x[:total].split(sizes) for x, total, sizes in (
            (query, sum(lengths_q), lengths_q), (key, sum(lengths_k), lengths_k), (value, sum(lengths_k), lengths_k)
        )),
        strict=True,
    )  # fmt: skip
    causal = {(-1, 0): True, (-1, -1): False}[window_size]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.cat([plain_attention(*text, causal=causal, scale=scale) for text in texts if len(text[0])])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_varlen_kernel_is_asked_for_the_same(
    causal: bool, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv_T3HK = drawn(11, 3, 2, 8)
    where = packing([*LENGTHS, 0])  # an empty text stands behind the real ones in a bucket
    q, k, v = qkv_T3HK.unbind(1)
    last_R = where.last_B[:3]

    def results() -> list[Tensor]:
        mixed = (attend(q, k, v, where, causal=causal, scale=scale), attend_once(take(q, last_R), k, v, where))
        gradients = (torch.autograd.grad(x.square().sum(), qkv_T3HK, retain_graph=True)[0] for x in mixed)
        return [*mixed, *gradients]

    expected = results()
    monkeypatch.setattr(packing_module, "_varlen_takes", lambda q: True)
    monkeypatch.setattr(packing_module, "varlen_attn", varlen)
    for ours, theirs in zip(results(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("num_tokens", "padded"), [(1, 1), (31, 31), (33, 34), (1000, 1024), (5000, 5120), (4096, 4096)]
)
def test_buckets_are_sixteen_to_the_octave(num_tokens: int, padded: int) -> None:
    lengths = torch.full((num_tokens // 20,), 20).tolist() + ([num_tokens % 20] if num_tokens % 20 else [])
    tokens, all_lengths, longest = pad_to_bucket(
        torch.ones(num_tokens, dtype=torch.int64), torch.tensor(lengths), max_length=20, limit=77
    )
    assert len(tokens) == padded == all_lengths.sum()
    assert tokens[:num_tokens].all()
    assert not tokens[num_tokens:].any()
    assert all_lengths[: len(lengths)].tolist() == lengths
    assert len(all_lengths) == len(lengths) + math.ceil(len(lengths) / 16)
    assert longest == 32
    assert all_lengths.max() <= longest


def test_a_bucket_is_never_longer_than_the_context() -> None:
    one = torch.ones(70, dtype=torch.int64)
    assert pad_to_bucket(one, torch.tensor([70]), max_length=70, limit=77)[2] == 77


def test_buckets_bound_the_number_of_shapes() -> None:
    found = set()
    for num_tokens in range(1025, 2049):
        lengths = torch.tensor([16] * (num_tokens // 16) + [num_tokens % 16])
        tokens, *_ = pad_to_bucket(torch.zeros(num_tokens, dtype=torch.int64), lengths, max_length=16, limit=77)
        found.add(len(tokens))
    assert len(found) == 16
    assert {pad_to_bucket(lengths, lengths[:1], max_length=n, limit=77)[2] for n in range(1, 78)} == {
        16,
        32,
        48,
        64,
        77,
    }
