import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from clipx.train.accumulate import Losses, accumulate
from clipx.types import Batch, Embeddings, join, tensors_of


class Toy(nn.Module):
    """Two towers with dropout, so that a pass whose randomness is not replayed gives another gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 6))
        self.text = nn.Embedding(50, 6)
        self.log_logit_scale = nn.Parameter(torch.tensor([1.0]))
        self.logit_bias = nn.Parameter(torch.tensor([-0.5]))

    def forward(self, batch: Batch, number: int, *, for_terms: bool = False) -> Embeddings:
        torch.manual_seed(number)
        image = self.image(batch.images_IHWC.flatten(1).double() / 255)
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


def whole(pieces: list[Embeddings]) -> Embeddings:
    return Embeddings(**join([tensors_of(piece) for piece in pieces]))


def term(embeddings: Embeddings) -> Tensor:
    """A sum over pairs that also uses what is one value for the whole batch."""
    cosine_B = (embeddings.image_BD * embeddings.text_BD).sum(1)
    return (embeddings.logit_scale * (1 - cosine_B).square()).sum()


COUPLED = Losses(coupled=textbook, terms=None)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 5, (10,), generator=generator)
    return Batch(
        index=0,
        images_IHWC=torch.randint(0, 256, (10, 2, 2, 3), dtype=torch.uint8, generator=generator),
        tokens_T=torch.randint(0, 50, (int(lengths.sum()),), generator=generator),
        lengths_B=lengths,
        max_length=4,
        sample_id_I=torch.arange(10),
        slot_I=torch.arange(10),
        source_I=torch.zeros(10, dtype=torch.int64),
    )


@pytest.mark.parametrize("kinds", ["coupled", "terms", "coupled terms"])
@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_gradients_are_those_of_the_whole_batch(batch: Batch, size: int, kinds: str) -> None:
    pieces = batch.micro_batches(size)
    model = Toy().double()
    embeddings = whole([model(piece, number) for number, piece in enumerate(pieces)])
    losses = [loss(embeddings) for name, loss in (("coupled", textbook), ("terms", term)) if name in kinds]
    expected = torch.autograd.grad(sum(losses[1:], start=losses[0]), list(model.parameters()), allow_unused=True)
    shares: list[Tensor] = []

    def noted(loss: Callable[[Embeddings], Tensor]) -> Callable[[Embeddings], Tensor]:
        def call(embeddings: Embeddings) -> Tensor:
            shares.append(loss(embeddings))
            return shares[-1]

        return call

    accumulate(
        pieces,
        forward=model,
        losses=Losses(
            coupled=noted(textbook) if "coupled" in kinds else None, terms=noted(term) if "terms" in kinds else None
        ),
        scale=lambda share: 3 * share,
        no_sync=nullcontext,
    )
    assert len(shares) == ("coupled" in kinds) + len(pieces) * ("terms" in kinds)
    assert sum(map(float, shares)) == pytest.approx(float(sum(losses)), abs=1e-12)
    for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
        if gradient is None:
            assert parameter.grad is None or parameter.grad.abs().max() == 0, name
            continue
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, 3 * gradient, rtol=0, atol=1e-12, msg=name)


@dataclass(frozen=True)
class Two:
    """What the coupled loss sees, and what a term alone needs."""

    x_B: Tensor
    y_BD: Tensor | None


def test_what_only_terms_need_is_neither_kept_nor_given_a_gradient(batch: Batch) -> None:
    weight = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    seen: list[tuple[bool, bool]] = []

    def forward(piece: Batch, number: int, *, for_terms: bool) -> Two:
        seen.append((torch.is_grad_enabled(), for_terms))
        x_B = weight * piece.slot_I.double()
        return Two(x_B, torch.stack([x_B.sin(), x_B.cos()], 1) if for_terms else None)

    def coupled(outputs: Two) -> Tensor:
        return outputs.x_B.sum().square()

    def terms(outputs: Two) -> Tensor:
        assert outputs.y_BD is not None
        return outputs.y_BD.sum() + outputs.x_B.square().sum()

    accumulate(
        batch.micro_batches(5),
        forward=forward,
        losses=Losses(coupled=coupled, terms=terms),
        scale=lambda share: share,
        no_sync=nullcontext,
    )
    assert seen == [(False, False), (True, True), (True, True)]
    x_B = weight * torch.arange(10.0, dtype=torch.float64)
    total = x_B.sum().square() + x_B.sin().sum() + x_B.cos().sum() + x_B.square().sum()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(total, weight)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [5, 10])
def test_a_term_that_a_piece_does_not_have_leaves_gradients_of_zero(batch: Batch, size: int) -> None:
    weight, head = (torch.tensor([0.5], dtype=torch.float64, requires_grad=True) for _ in range(2))

    def forward(piece: Batch, number: int, *, for_terms: bool) -> Two:
        x_B = weight * piece.slot_I.double()
        return Two(x_B, torch.stack([head * x_B, x_B], 1) if for_terms else None)

    losses = Losses(coupled=lambda outputs: outputs.x_B.sum().square(), terms=lambda outputs: torch.zeros(()).double())
    accumulate(
        batch.micro_batches(size), forward=forward, losses=losses, scale=lambda share: share, no_sync=nullcontext
    )
    assert head.grad is not None  # DDP waits for it
    assert head.grad.item() == 0
    torch.testing.assert_close(weight.grad, torch.tensor([2 * 0.5 * 45.0**2], dtype=torch.float64))


def test_the_last_backward_pass_alone_synchronises(batch: Batch) -> None:
    quiet, passes = [False], []

    class Recorded:
        def __enter__(self) -> None:
            quiet[0] = True

        def __exit__(self, *_: object) -> None:
            quiet[0] = False

    model = Toy().double()

    def forward(piece: Batch, number: int, *, for_terms: bool) -> Embeddings:
        passes.append((number, torch.is_grad_enabled(), quiet[0]))
        embeddings = model(piece, number)
        if embeddings.image_BD.requires_grad:
            embeddings.image_BD.register_hook(lambda _: passes.append((number, "backward", quiet[0])))
        return embeddings

    accumulate(batch.micro_batches(4), forward=forward, losses=COUPLED, scale=lambda share: share, no_sync=Recorded)
    assert passes == [
        (0, False, True),
        (1, False, True),
        (2, True, True),  # the last one keeps its graph over the loss
        (2, "backward", True),
        (0, True, True),
        (0, "backward", True),
        (1, True, False),
        (1, "backward", False),
    ]


def test_one_graph_lives_at_a_time(batch: Batch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    model = Toy().double()

    def forward(piece: Batch, number: int, *, for_terms: bool) -> Embeddings:
        nonlocal most
        embeddings = model(piece, number)
        if torch.is_grad_enabled():
            inner = embeddings.image_BD.sin()  # a tensor that only the graph below keeps
            alive.append(weakref.ref(inner))
            embeddings = replace(embeddings, image_BD=inner.square())
            most = max(most, sum(reference() is not None for reference in alive))
        return embeddings

    accumulate(batch.micro_batches(2), forward=forward, losses=COUPLED, scale=lambda share: share, no_sync=nullcontext)
    assert len(alive) == 5
    assert most == 1


def test_what_the_loss_leaves_out_has_gradient_zero(batch: Batch) -> None:
    model = Toy().double()
    accumulate(
        batch.micro_batches(5),
        forward=model,
        losses=Losses(
            coupled=lambda embeddings: embeddings.image_BD.square().sum() + embeddings.image_BD.sum(), terms=None
        ),
        scale=lambda share: share,
        no_sync=nullcontext,
    )
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())  # DDP waits for every one
    assert gradients["image.0.weight"].abs().max() > 0
    assert all(gradients[name].abs().max() == 0 for name in ("text.weight", "log_logit_scale", "logit_bias"))
