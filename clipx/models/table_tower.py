"""The tower of a table's numbers and categories: from their cells to one vector.

Shape suffixes: B rows, K numbers, C categories, H hidden channels, D channels.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.models.initialise import initialise_linear


class TableTower(nn.Module):
    """A sum of one vector per cell, a multilayer perceptron, and a layer norm.

    The vectors of a row are those of FT-Transformer (arXiv 2106.11959, section 3.3) but for their sum in place of its
    attention: a number x gives x w + b, a category its embedding. Here b is common to all numbers. An absent number
    gives a learned vector of its own, an absent or unknown category has a row in its embedding.

        z = LN(W_2 GELU(W_1 GELU(b + sum_k [x_k w_k or a_k] + sum_c E_c[y_c])))

    The sum before the first GELU is a linear layer over all numbers and one-hot categories side by side.

    Args:
        num_numbers: K; may be 0.
        category_sizes: number of classes of each category; may be empty, but not with K = 0.
        dim: D, and H.
    """

    offset_C: Tensor

    def __init__(self, num_numbers: int, *, category_sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        num_cells = num_numbers + len(category_sizes)
        assert num_cells > 0, "a table tower needs a number or a category"
        self.bias_H = nn.Parameter(torch.empty(dim))
        # Columns: the K values, and after them the K marks of absence.
        self.numbers = nn.Linear(2 * num_numbers, dim, bias=False) if num_numbers else None
        # The tables of all categories, one below the other; the first row of each is for what is absent.
        ends = list(accumulate(size + 1 for size in category_sizes))
        self.categories = nn.Embedding(ends[-1], dim) if ends else None
        self.register_buffer("offset_C", torch.tensor([1, *(end + 1 for end in ends[:-1])]), persistent=False)
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        vectors = [self.bias_H, *(cells.weight for cells in (self.numbers, self.categories) if cells is not None)]
        for vector in vectors:
            nn.init.normal_(vector, std=(num_cells + 1) ** -0.5)  # the sum has about the variance 1
        for linear in (self.fc1, self.fc2):
            initialise_linear(linear)

    def forward(self, numbers_BK: Tensor | None, categories_BC: Tensor | None) -> Tensor:
        """Embeds rows.

        Args:
            numbers_BK: floating (B, K), about of mean 0 and variance 1, NaN where absent; None if K is 0.
            categories_BC: int64 (B, C), below the category's size, -1 where absent or unknown; None if C is 0.

        Returns:
            (B, D); in the beginning every row has the mean 0 and the variance 1.
        """
        sum_BH = self.bias_H
        if self.numbers is not None:
            assert numbers_BK is not None, "numbers are missing"
            absent_BK = numbers_BK.isnan()
            # Replaced before the product: a NaN that is multiplied by 0 is a NaN, in the gradient as well.
            values_BK = torch.where(absent_BK, 0, numbers_BK)
            sum_BH = sum_BH + self.numbers(torch.cat([values_BK, absent_BK.to(values_BK.dtype)], dim=1))
        if self.categories is not None:
            assert categories_BC is not None, "categories are missing"
            sum_BH = sum_BH + self.categories(categories_BC + self.offset_C).sum(1)
        return self.norm(self.fc2(functional.gelu(self.fc1(functional.gelu(sum_BH)))))
