"""A step's batch chosen from a larger one: scores, choice, and the chosen pairs brought to who trains on them.

`clipx.losses.selection` chooses; here are its inputs and what follows. Each rank reads its slots of the super-batch and
runs the learner over them without a graph. Of the chosen pairs, in the order of their slots, each rank trains on an
equal part, whichever rank has read them: so neither ranks nor micro-batches change what is trained on.

On CUDA the host waits once in each step, for the places of the chosen pairs: how many go from which rank to which, and
how many tokens they have, decides the shapes of all that follows.

Shape suffixes: B pairs of this rank's part of the super-batch, N of the whole one, G chosen, I images, H x W pixels,
C channels, D embedding, V vectors of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.distributed.collectives import all_gather, all_to_all
from clipx.distributed.parallelize import no_sync
from clipx.distributed.runtime import Runtime
from clipx.losses.selection import JointSelection
from clipx.models.evaluating import evaluating
from clipx.objectives.contrastive import no_negatives
from clipx.objectives.objective import Objective
from clipx.train.metrics.json_lines import JsonLines
from clipx.train.metrics.step_metrics import Clock
from clipx.train.uploads import Uploads
from clipx.types import Batch, Embeddings, axis_of, cut, tensors_of


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model that the learner is compared with, as columns of a batch."""

    image_column: str
    text_column: str
    logit_scale: float
    logit_bias: float | None
    """None: the loss has none."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What a rank trains on of a super-batch."""

    batch: Batch
    """Its part of the chosen pairs. Pixels, tokens and columns are on the device, or on the host if it has read them
    all itself; vectors are on the host."""
    figures: Mapping[str, Tensor]
    """This rank's shares of figures."""


@dataclass(kw_only=True)
class Selector:
    """Chooses the batch of every step of a phase."""

    runtime: Runtime
    objective: Objective
    """Its outputs are `Embeddings`."""
    choose: JointSelection
    reference: Reference | None
    micro_batch_size: int
    """Pairs of a forward pass."""
    image_size: int | None
    """Pixels of the pictures that are scored; None: as they are."""
    augment: Callable[[Tensor, Tensor], Tensor] | None
    """See `Stepper.augment`."""
    sources: Sequence[str]
    """Names of the sources of a mixture, whose chosen pairs are counted; empty if there is one."""
    samples: JsonLines | None
    """Where rank 0 writes the samples that were chosen; None: nowhere."""

    def __call__(self, batch: Batch, *, model: nn.Module, step: int, uploads: Uploads, clock: Clock) -> Selected:
        """Chooses from a super-batch.

        Args:
            batch: this rank's part of it, on the host.
            model: the objective's, as wrapped; its weights do not change.
            step: optimizer steps taken before this one.
            uploads: to the device.
            clock: measures this as `select`.
        """
        with clock.measure("select"), torch.no_grad():
            learner, reference, arrived = self._scored(batch, model, uploads)
            choice = self.choose(
                learner=learner,
                reference=reference,
                ids_B=no_negatives(arrived),
                index=batch.index,
                group=self.runtime.group,
            )
            places_G, vectors_NV = self._to_host(choice.places_G, batch, arrived)
            chosen = self._brought(arrived, batch, places_G, vectors_NV, uploads)
        if self.samples is not None and self.runtime.is_main:
            ids_N = vectors_NV[:, _vectors(batch).index("sample_id_I")]
            self.samples.append([{"step": step + 1, "batch": batch.index, "samples": ids_N[places_G].tolist()}])
        return Selected(batch=chosen, figures=choice.figures)

    def _scored(
        self, batch: Batch, model: nn.Module, uploads: Uploads
    ) -> tuple[Embeddings | None, Embeddings | None, Batch]:
        """Both models' embeddings of the pairs, and the batch with pixels and vectors on the device."""
        names = [name for name, tensor in batch.tensors().items() if tensor.dim() == 1]
        moved = uploads.together([batch.tensors()[name] for name in names])
        vectors = dict(zip(names, moved, strict=True))
        pieces = batch.micro_batches(self.micro_batch_size)
        outputs, pixels = [], []
        with evaluating(model), no_sync(model):
            for piece, own in zip(pieces, cut(vectors, [piece.sizes for piece in pieces]), strict=True):
                pixels.append(uploads.pixels(piece.images_IHWC))
                if self.choose.score != "easy_reference":
                    outputs.append(self._forward(model, piece, {**own, "images_IHWC": pixels[-1]}))
        on_cpu = self.runtime.device.type == "cpu"  # then pieces are views of the batch
        images_IHWC = batch.images_IHWC if on_cpu else torch.cat(pixels)
        arrived = batch.with_tensors({**vectors, "images_IHWC": images_IHWC})
        learner = _joined(outputs) if outputs else None
        return learner, self._of_reference(batch, learner), arrived

    def _forward(self, model: nn.Module, piece: Batch, tensors: Mapping[str, Tensor]) -> Embeddings:
        images_IHWC = tensors["images_IHWC"]
        if self.augment is not None and piece.augment_seed_I is not None:
            images_IHWC = self.augment(images_IHWC, piece.augment_seed_I)
        if self.image_size is not None:
            images_IHWC = resized(images_IHWC, self.image_size)
        # columns are for losses; those of several dimensions are still on the host
        on_device = replace(piece, columns={}).with_tensors(
            {name: tensor for name, tensor in tensors.items() if name not in piece.columns}
            | {"images_IHWC": images_IHWC}
        )
        outputs = self.objective.forward(model, on_device, for_terms=False)
        assert isinstance(outputs, Embeddings), "check_selection has looked at the objective"
        return outputs

    def _of_reference(self, batch: Batch, learner: Embeddings | None) -> Embeddings | None:
        if self.reference is None:
            return None
        dtype = torch.float32 if learner is None else learner.image_BD.dtype
        image_BD, text_BD = (
            batch.columns[name].to(self.runtime.device, dtype, non_blocking=True)
            for name in (self.reference.image_column, self.reference.text_column)
        )
        scale, bias = torch.full((1,), self.reference.logit_scale, device=image_BD.device), None
        if self.reference.logit_bias is not None:
            bias = torch.full((1,), self.reference.logit_bias, device=image_BD.device)
        return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=scale, logit_bias=bias)

    def _to_host(self, places_G: Tensor, batch: Batch, arrived: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The chosen places (G,) and all ranks' vectors (N, V), int64 on the host, which waits for them here."""
        own_BV = torch.stack([tensors_of(arrived)[name] for name in _vectors(batch)], dim=1)
        vectors_NV = all_gather(own_BV, self.runtime.group)
        values = torch.cat([places_G, vectors_NV.flatten()]).cpu().numpy()
        return values[: len(places_G)], values[len(places_G) :].reshape(vectors_NV.shape)

    def _brought(
        self, arrived: Batch, batch: Batch, places_G: np.ndarray, vectors_NV: np.ndarray, uploads: Uploads
    ) -> Batch:
        """This rank's part of the chosen pairs.

        Args:
            arrived: its part of the super-batch, pixels and vectors on the device.
            batch: the same on the host.
            places_G: the chosen.
            vectors_NV: of all pairs.
            uploads: to the device.
        """
        names = _vectors(batch)
        route = Route.of(
            places_G,
            vectors_NV[:, names.index("lengths_B")],
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
        )
        own = vectors_NV[route.trained]
        tensors = {name: torch.from_numpy(own[:, number].copy()) for number, name in enumerate(names)}
        wanted = {name for reader in self.objective.column_readers for name in reader.columns}
        columns = {name: column for name, column in batch.columns.items() if name in wanted}
        given = {"images_IHWC": arrived.images_IHWC, "tokens_T": batch.tokens_T, **columns}
        for name, tensor in given.items():
            rows = route.tokens if axis_of(name) == "T" else route.pairs
            tensors[name] = self._exchanged(tensor, rows, uploads)
        counts = {"select/left_out": len(batch) - len(route.trained)}
        source_I = own[:, names.index("source_I")]
        counts |= {f"select/chosen/{name}": int((source_I == i).sum()) for i, name in enumerate(self.sources)}
        return replace(batch, columns=columns).with_tensors(
            tensors,
            max_length=int(tensors["lengths_B"].max()),
            counts={**batch.counts, **counts},
        )

    def _exchanged(self, tensor: Tensor, rows: "Rows", uploads: Uploads) -> Tensor:
        """The rows that this rank trains on, of a tensor of which every rank has its own rows."""
        here = torch.from_numpy(rows.sent)
        if tensor.device.type == "cpu":
            picked = tensor.index_select(0, here)
            if self.runtime.group is None:
                return picked
            picked = picked.to(self.runtime.device, non_blocking=True)
        else:
            picked = tensor.index_select(0, uploads.together([here])[0])
        return all_to_all(picked, sent=rows.num_sent, received=rows.num_received, group=self.runtime.group)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows of a rank's tensor go to which rank, and how many come from each."""

    sent: np.ndarray
    """int64: numbers of this rank's own rows, those for rank 0 first."""
    num_sent: list[int]
    num_received: list[int]


@dataclass(frozen=True, kw_only=True)
class Route:
    """The way of the chosen pairs from the ranks that have read them to those that train on them."""

    trained: np.ndarray
    """int64: places of the pairs that this rank trains on, ascending."""
    pairs: Rows
    tokens: Rows

    @classmethod
    def of(cls, places_G: np.ndarray, lengths_N: np.ndarray, *, rank: int, world_size: int) -> "Route":
        """Each rank trains on an equal part of the chosen places; rank r has read the r-th part of all N.

        Args:
            places_G: ascending.
            lengths_N: tokens of each text.
            rank: this one.
            world_size: W.
        """
        per_rank, read = len(places_G) // world_size, len(lengths_N) // world_size
        reader_G, trainer_G = places_G // read, np.arange(len(places_G)) // per_rank
        here, trained = reader_G == rank, places_G[trainer_G == rank]
        own = places_G[here] - rank * read
        own_lengths, token_ends = lengths_N[places_G[here]], np.cumsum(lengths_N[rank * read : (rank + 1) * read])
        first_token = (token_ends - lengths_N[rank * read : (rank + 1) * read])[own]
        before = np.cumsum(own_lengths) - own_lengths
        tokens = np.arange(own_lengths.sum()) + np.repeat(first_token - before, own_lengths)

        def counted(weights: np.ndarray | None, ranks: np.ndarray) -> list[int]:
            return [int(number) for number in np.bincount(ranks, weights, minlength=world_size)]

        return cls(
            trained=trained,
            pairs=Rows(sent=own, num_sent=counted(None, trainer_G[here]), num_received=counted(None, trained // read)),
            tokens=Rows(
                sent=tokens,
                num_sent=counted(own_lengths, trainer_G[here]),
                num_received=counted(lengths_N[trained], trained // read),
            ),
        )


def resized(images_IHWC: Tensor, size: int) -> Tensor:
    """uint8 squares of `size` pixels (bilinear, antialiased); the same where they are no larger."""
    if images_IHWC.shape[1] <= size:
        return images_IHWC
    images_ICHW = images_IHWC.permute(0, 3, 1, 2).float()
    small = functional.interpolate(images_ICHW, size=(size, size), mode="bilinear", antialias=True)
    return small.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _vectors(batch: Batch) -> list[str]:
    """Names of the fields with one int64 for each pair (an image has one text)."""
    return [name for name, x in tensors_of(batch).items() if x.dim() == 1 and axis_of(name) in ("I", "B")]


def _joined(outputs: Sequence[Embeddings]) -> Embeddings:
    if len(outputs) == 1:
        return outputs[0]
    return replace(
        outputs[0],
        image_BD=torch.cat([part.image_BD for part in outputs]),
        text_BD=torch.cat([part.text_BD for part in outputs]),
    )
