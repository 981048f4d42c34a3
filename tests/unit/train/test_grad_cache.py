from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from clipx.train.grad_cache import cached_backward
from clipx.types import Batch, Embeddings


class Toy(nn.Module):
    """Two towers with dropout, so that a pass whose randomness is not replayed gives another gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 6))
        self.text = nn.Embedding(50, 6)
        self.log_logit_scale = nn.Parameter(torch.tensor([1.0]))
        self.logit_bias = nn.Parameter(torch.tensor([-0.5]))

    def forward(self, batch: Batch, number: int) -> Embeddings:
        torch.manual_seed(number)
        image = self.image(batch.images_BHWC.flatten(1).double() / 255)
        first = torch.cumsum(batch.lengths_B, 0) - batch.lengths_B
        return Embeddings(
            image_BD=nn.functional.normalize(image, dim=1),
            text_BD=nn.functional.normalize(self.text(batch.tokens_T[first]), dim=1),
            logit_scale=self.log_logit_scale.exp(),
            logit_bias=self.logit_bias.view(1),
        )


def textbook(embeddings: Embeddings) -> Tensor:
    logits = embeddings.logit_scale * embeddings.image_BD @ embeddings.text_BD.T + embeddings.logit_bias**2
    labels = torch.arange(len(logits))
    both = nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)
    return both / 2 + embeddings.logit_bias.sum() * logits.mean()


def join(pieces: list[Embeddings]) -> Embeddings:
    return Embeddings(
        image_BD=torch.cat([piece.image_BD for piece in pieces]),
        text_BD=torch.cat([piece.text_BD for piece in pieces]),
        logit_scale=pieces[0].logit_scale,
        logit_bias=pieces[0].logit_bias,
    )


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 5, (10,), generator=generator)
    return Batch(
        index=0,
        images_BHWC=torch.randint(0, 256, (10, 2, 2, 3), dtype=torch.uint8, generator=generator),
        tokens_T=torch.randint(0, 50, (int(lengths.sum()),), generator=generator),
        lengths_B=lengths,
        max_length=4,
        sample_id_B=torch.arange(10),
        slot_B=torch.arange(10),
        source_B=torch.zeros(10, dtype=torch.int64),
    )


@pytest.mark.parametrize("size", [1, 2, 5])
def test_gradients_are_those_of_the_whole_batch(batch: Batch, size: int) -> None:
    pieces = batch.micro_batches(size)
    model = Toy().double()
    whole = textbook(join([model(piece, number) for number, piece in enumerate(pieces)]))
    expected = torch.autograd.grad(whole, list(model.parameters()))

    share = cached_backward(
        pieces, forward=model, loss=textbook, backward=lambda loss: loss.backward(), no_sync=nullcontext
    )

    assert share.item() == pytest.approx(whole.item(), abs=1e-12)
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12, msg=name)


def test_synchronises_in_the_last_piece_only(batch: Batch) -> None:
    open_contexts: list[str] = []

    class Recorded:
        def __enter__(self) -> None:
            open_contexts.append("open")

        def __exit__(self, *_: object) -> None:
            open_contexts.append("close")

    model = Toy().double()
    backward = partial(Tensor.backward)
    cached_backward(batch.micro_batches(5), forward=model, loss=textbook, backward=backward, no_sync=Recorded)
    # once around the first pass over both pieces, once around the first piece of the second pass
    assert open_contexts == ["open", "close"] * 2
