"""Fusions, heads, the table tower and supervised losses by the textbook: sample by sample, in plain loops.

They take the weights of the modules and share no code with them. Differentiated by autograd, in float64 if the weights
are.

Shape suffixes: B samples, M modalities, D channels, O outputs, K numbers or classes, C categories, L labels.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from clipx import counter_random
from clipx.models.fusion import Attention, Bilinear, Concat, Fusion, Gated, Late, WeightedSum
from clipx.models.head import Head
from clipx.models.slot_dropout import SlotDropout
from clipx.models.table_tower import TableTower


def fuse(fusion: Fusion, vectors_BMD: Tensor, presence_BM: Tensor, keys_B: Tensor | None = None) -> Tensor:
    """The fused vectors (B, D) of any fusion."""
    rows = []
    for sample, vectors_MD in enumerate(vectors_BMD):
        key = None if keys_B is None else int(keys_B[sample])
        match fusion:
            case WeightedSum():
                row_D = _weighted_sum(fusion, vectors_MD)
            case Concat():
                row_D = _linear(fusion.linear, torch.cat(list(vectors_MD)))
            case Gated():
                row_D = _gated(fusion, vectors_MD, key)
            case Bilinear():
                row_D = _bilinear(fusion, vectors_MD, key)
            case Attention():
                row_D = _attention(fusion, vectors_MD, presence_BM[sample], key)
        rows.append(row_D)
    return torch.stack(rows)


def _weighted_sum(fusion: WeightedSum, vectors_MD: Tensor) -> Tensor:
    weights = _softmax(list(fusion.logits_M))
    return sum(weight * x_D for weight, x_D in zip(weights, vectors_MD, strict=True))


def _gated(fusion: Gated, vectors_MD: Tensor, key: int | None) -> Tensor:
    gates = torch.sigmoid(_linear(fusion.gates, torch.cat(list(vectors_MD)))).chunk(len(vectors_MD))
    fused_D = torch.zeros_like(vectors_MD[0])
    for linear, x_D, gate_D in zip(fusion.contents, vectors_MD, gates, strict=True):
        fused_D = fused_D + gate_D * torch.tanh(_linear(linear, x_D))
    return drop(fusion.dropout, fused_D, key)


def _bilinear(fusion: Bilinear, vectors_MD: Tensor, key: int | None) -> Tensor:
    """Through the tensor that low-rank fusion avoids: the outer product of all [x; 1], and W of its size plus one."""
    dim = vectors_MD.shape[1]
    outer = torch.ones((), dtype=vectors_MD.dtype)
    for x_D in vectors_MD:
        outer = torch.tensordot(outer, torch.cat([x_D, torch.ones(1, dtype=x_D.dtype)]), dims=0)
    channels = []
    for channel in range(dim):
        weight = torch.zeros_like(outer)
        for rank in range(fusion.rank):
            term = torch.ones((), dtype=vectors_MD.dtype)
            for factor in fusion.factors:
                row = rank * dim + channel
                term = torch.tensordot(term, torch.cat([factor.weight[row], factor.bias[row : row + 1]]), dims=0)
            weight = weight + term
        channels.append((weight * outer).sum() + fusion.bias_D[channel])
    return drop(fusion.dropout, torch.stack(channels), key)


def _attention(fusion: Attention, vectors_MD: Tensor, presence_M: Tensor, key: int | None) -> Tensor:
    """The whole block, all of whose rows are computed; the class token's is read."""
    tokens = [fusion.class_D]
    for modality, x_D in enumerate(vectors_MD):
        place_MD = fusion.present_MD if presence_M[modality] else fusion.absent_MD
        tokens.append(fusion.inputs[modality].weight @ x_D + place_MD[modality])
    normed = [_norm(fusion.norm1, token_D) for token_D in tokens]
    queries = [_linear(fusion.query, token_D) for token_D in normed]
    keys, values = zip(*(_linear(fusion.keys_values, token_D).chunk(2) for token_D in normed), strict=True)
    size = len(fusion.class_D) // fusion.heads
    rows = []
    for token_D, query_D in zip(tokens, queries, strict=True):
        mixed = []
        for first in range(0, len(fusion.class_D), size):
            head = slice(first, first + size)
            shares = _softmax([(query_D[head] * key_D[head]).sum() / math.sqrt(size) for key_D in keys])
            mixed.append(sum(share * value_D[head] for share, value_D in zip(shares, values, strict=True)))
        rows.append(token_D + _linear(fusion.proj, torch.cat(mixed)))
    y_D = rows[0]
    hidden_N = drop(fusion.dropout, _gelu(_linear(fusion.fc1, _norm(fusion.norm2, y_D))), key)
    return _norm(fusion.norm3, y_D + _linear(fusion.fc2, hidden_N))


def late(fusion: Late, vectors_BMD: Tensor, presence_BM: Tensor, keys_B: Tensor | None = None) -> Tensor:
    """The averaged predictions (B, O): log-probabilities of classes, numbers, logits of labels."""
    predictions = [head(module, vectors_BMD[:, index], keys_B) for index, module in enumerate(fusion.heads)]
    rows = []
    for sample, presence_M in enumerate(presence_BM):
        used = [index for index, there in enumerate(presence_M) if there] or list(range(len(presence_M)))
        parts = []
        for target, (kind, columns) in enumerate(fusion.layout):
            weights = _softmax([fusion.logits_TM[target, index] for index in used])
            outputs = [predictions[index][sample, columns] for index in used]
            pairs = list(zip(weights, outputs, strict=True))
            if kind == "class":
                parts.append(sum(weight * torch.stack(_softmax(list(x_K))).log() for weight, x_K in pairs))
            elif kind == "number":
                parts.append(sum(weight * x_1 for weight, x_1 in pairs))
            else:
                yes_L = sum(weight * torch.sigmoid(x_L).log() for weight, x_L in pairs)
                no_L = sum(weight * torch.sigmoid(-x_L).log() for weight, x_L in pairs)
                parts.append(yes_L - no_L)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def head(module: Head, x_BD: Tensor, keys_B: Tensor | None = None) -> Tensor:
    """Raw outputs (B, O)."""
    rows = []
    for sample, x_D in enumerate(x_BD):
        y_D = x_D
        for linear, dropout in zip(module.hidden, module.dropouts, strict=True):
            y_D = drop(dropout, _gelu(_linear(linear, y_D)), None if keys_B is None else int(keys_B[sample]))
        rows.append(_linear(module.last, y_D))
    return torch.stack(rows)


def table(tower: TableTower, numbers_BK: Tensor, categories_BC: Tensor, *, category_sizes: list[int]) -> Tensor:
    """Embeddings (B, D) of rows with at least one number."""
    rows = []
    for numbers_K, categories_C in zip(numbers_BK, categories_BC, strict=True):
        sum_H = tower.bias_H
        for index, number in enumerate(numbers_K):
            if number.isnan():
                sum_H = sum_H + tower.numbers.weight[:, len(numbers_K) + index]
            else:
                sum_H = sum_H + number * tower.numbers.weight[:, index]
        first = 0
        for size, category in zip(category_sizes, categories_C.tolist(), strict=True):
            sum_H = sum_H + tower.categories.weight[first if category < 0 else first + 1 + category]
            first += size + 1
        rows.append(_norm(tower.norm, _linear(tower.fc2, _gelu(_linear(tower.fc1, _gelu(sum_H))))))
    return torch.stack(rows)


def cross_entropy_sum(logits_BK: Tensor, target_B: Tensor, class_weights_K: Tensor | None = None) -> Tensor:
    total = logits_BK.new_zeros(())
    for x_K, target in zip(logits_BK, target_B.tolist(), strict=True):
        if not math.isnan(target):
            weight = 1 if class_weights_K is None else class_weights_K[int(target)]
            total = total - weight * (x_K[int(target)] - x_K.exp().sum().log())
    return total


def binary_sum(logits_BL: Tensor, targets_BL: Tensor) -> Tensor:
    total = logits_BL.new_zeros(())
    for x, target in zip(logits_BL.flatten(), targets_BL.flatten().tolist(), strict=True):
        if not math.isnan(target):
            total = total - target * torch.sigmoid(x).log() - (1 - target) * torch.sigmoid(-x).log()
    return total


def huber_sum(predicted_B: Tensor, target_B: Tensor) -> Tensor:
    total = predicted_B.new_zeros(())
    for x, target in zip(predicted_B, target_B.tolist(), strict=True):
        if not math.isnan(target):
            error = (x - target).abs()
            total = total + (error**2 / 2 if error <= 1 else error - 0.5)
    return total


def drop(layer: SlotDropout, x_N: Tensor, key: int | None) -> Tensor:
    """One sample's numbers, each kept where its 16 bits, as a number in [0, 1), reach the rate.

    The hash of (key, site, n) has those of the places 4 n to 4 n + 3, the lowest first, as signed numbers.
    """
    if key is None:
        return x_N
    kept = []
    for place in range(len(x_N)):
        bits = int(counter_random.fold(np.array([key]), layer.site, place // 4)[0]) >> 16 * (place % 4)
        kept.append(((bits + 2**15) % 2**16) / 2**16 >= layer.rate)
    return torch.stack([x / (1 - layer.rate) if keep else 0 * x for x, keep in zip(x_N, kept, strict=True)])


def _softmax(logits: list[Tensor]) -> list[Tensor]:
    total = sum(x.exp() for x in logits)
    return [x.exp() / total for x in logits]


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _linear(linear: nn.Linear, x_I: Tensor) -> Tensor:
    return linear.weight @ x_I + linear.bias


def _norm(norm: nn.LayerNorm, x_D: Tensor) -> Tensor:
    centred_D = x_D - x_D.mean()
    return centred_D / ((centred_D**2).mean() + norm.eps).sqrt() * norm.weight + norm.bias
