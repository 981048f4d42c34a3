"""What a pass asks of a GPU: arithmetic of products, tiles of attention, and bytes of everything else, op by op.

Counted where torch dispatches, so on fake tensors too, which cost nothing at any size. Views take no time. A tensor
that is expanded counts with the memory behind it.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
TILE = 128
"""Queries and keys of a tile of flash attention with heads of 64 channels."""
ONE_TILE = ("one_tile_attention", "one_tile_attention_backward")
"""Attention within short sequences by a kernel that takes its bytes' time alone."""
_ROWS_OF_A_CPU = ("index_select", "index_copy_", "index_copy", "new_zeros")
"""Copies of packed texts into padded rows, and back, around attention: CUDA's kernels read packed texts."""
_READ_LITTLE = ("nll_loss_forward", "nll_loss_backward", "embedding", "index", "gather")
"""What reads no more of its inputs than it writes, or much less."""
_PRODUCTS_OF_ATTENTION = {"forward": 2, "backward": 5}
_KINDS = {
    "norms": ("native_layer_norm", "native_layer_norm_backward"),
    "activations": ("gelu", "gelu_backward", "sigmoid", "sigmoid_backward"),
    "casts": ("_to_copy", "_foreach_copy_"),
    "sums": ("sum",),
    "residuals": ("add", "add_"),
    "copies": ("cat", "clone", "copy_", "stack", "contiguous", "slice_backward", "select_backward", "split"),
}


class Traffic(TorchDispatchMode):
    """Collects what the operations within take.

    Two sums of bytes stand beside each other. `bytes` is every operation by itself, as eager torch runs them, by kind.
    `fused_bytes` takes what lies between two products or attentions as one kernel, as a compiler would: it reads what
    was made before it once, and writes what outlives it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.product_flops = 0.0
        self.product_bytes = 0.0
        self.tile_flops = Counter[str]()
        """Of flash attention, in whole tiles, by `forward` or `backward`."""
        self.flash_bytes = 0
        """Queries, keys, values, results and their gradients, each once."""
        self.one_tile_bytes = Counter[int]()
        """The same of attention in one tile, by the tokens of the longest sequence."""
        self.bytes = Counter[str]()
        self.launches = Counter[str]()
        """Operations that are no views: `products`, `attention`, `others`, and `fused`, what a compiler leaves."""
        self.fused_bytes = 0.0
        self._read: dict[int, int] = {}
        self._made: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, then counts it."""
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        inputs, outputs = _tensors((args, kwargs)), _tensors(made)
        if name.startswith("_foreach_") and not outputs:  # in place: a list of tensors, and lists that it reads
            inputs, outputs = _tensors(args[1:]), _tensors(args[0])
        storages = {_storage(tensor) for tensor in inputs}
        in_place = name.endswith("_") or "out" in (kwargs or {})
        is_view = bool(outputs) and not in_place and all(_storage(tensor) in storages for tensor in outputs)
        if is_view or not outputs or name in _ROWS_OF_A_CPU or name.startswith(("empty", "new_empty")):
            return made
        read = () if name in _READ_LITTLE else inputs
        moved = sum(map(_size, read)) + sum(map(_size, outputs))
        if name in PRODUCTS:
            self._end_of_run()
            self.launches["products"] += 1
            self.product_flops += _flops(name, inputs, outputs[0])
            self.product_bytes += moved
        elif name in ONE_TILE:
            self._end_of_run()
            self.launches["attention"] += 1
            self.one_tile_bytes[next(value for value in args if isinstance(value, int))] += moved
        elif "scaled_dot_product" in name:
            self._end_of_run()
            direction = "backward" if "backward" in name else "forward"
            first = 1 if direction == "backward" else 0  # after the gradient come queries and keys
            q, k = inputs[first : first + 2]
            self.launches["attention"] += 1 + first
            self.tile_flops[direction] += _PRODUCTS_OF_ATTENTION[direction] * _tiles(q, k)
            self.flash_bytes += moved
        else:
            self.launches["others"] += 1
            self.bytes[_kind(name)] += moved
            self._join_run(read, outputs)
        return made

    def finish(self) -> None:
        """Counts what the last kernel writes; call it after the last operation."""
        self._end_of_run()

    def _join_run(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
        for tensor in inputs:
            if _storage(tensor) not in self._made:
                self._read[_storage(tensor)] = max(self._read.get(_storage(tensor), 0), _size(tensor))
        for tensor in outputs:
            self._made[_storage(tensor)] = (weakref.ref(tensor.untyped_storage()), _size(tensor))

    def _end_of_run(self) -> None:
        if self._made:
            self.launches["fused"] += 1
        self.fused_bytes += sum(self._read.values())
        self.fused_bytes += sum(size for storage, size in self._made.values() if storage() is not None)
        self._read.clear()
        self._made.clear()


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _kind(name: str) -> str:
    return next((kind for kind, names in _KINDS.items() if name in names), "others")


def _flops(name: str, inputs: list[Tensor], output: Tensor) -> float:
    if name == "convolution":
        return 2.0 * output.numel() * inputs[1][0].numel()
    if name == "convolution_backward":  # of the weight alone: pixels have no gradient
        return 2.0 * inputs[0].numel() * inputs[2][0].numel()
    return 2.0 * output.numel() * inputs[1 if name in ("addmm", "baddbmm") else 0].shape[-1]


def _tiles(q: Tensor, k: Tensor) -> float:
    """Multiplications and additions of one product, in whole tiles."""
    queries, keys = (-(-x.shape[-2] // TILE) * TILE for x in (q, k))
    return 2.0 * q.shape[0] * q.shape[1] * queries * keys * q.shape[-1]
