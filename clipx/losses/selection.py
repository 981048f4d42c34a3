"""Which pairs of a super-batch a step trains on: chosen jointly, chunk by chunk (JEST, arXiv 2406.17711, section 3).

The score of a pair is what one model loses on it, or one model's loss minus another's. Pairs of the first chunk are
scored by themselves, those of each further chunk within the batch chosen so far. A chunk is drawn without replacement,
with probabilities from the softmax of scores: the largest of scores plus Gumbel noise (arXiv 1903.06059, section 2).

Shape suffixes: B pairs of this rank, N pairs of the super-batch, G chosen pairs, C chunks, M pairs of one, R rows of
a tile, D embedding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.distributed import collectives
from clipx.losses.tiles import accumulation_dtype, matmul_operand, similarities
from clipx.types import Embeddings

Score = Literal["learnability", "easy_reference", "hard_learner"]
Kind = Literal["info_nce", "sigmoid"]
_NEVER = -1e300  # the score of what is no number: drawn after all others, and still before what is chosen already


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The pairs of a super-batch that are trained on."""

    places_G: Tensor
    """int64 (G,), places in the super-batch, ascending; the same on every rank."""
    figures: Mapping[str, Tensor]
    """This rank's shares of means, 0-d, by name: they sum to the mean over ranks."""


class JointSelection:
    """Chooses G of N pairs.

    With A the pairs chosen before and S = s x y^T + b, the loss of a pair i within A and i is, for each kind,

        info_nce: [log sum_{j in A, i} exp S_ij + log sum_{j in A, i} exp S_ji] / 2 - S_ii
        sigmoid:  softplus(-S_ii) + sum_{j in A} [softplus(S_ij) + softplus(S_ji)]

    where a pair of i's id is no negative of i. In the first chunk it is -S_ii for InfoNCE, whose loss of one pair alone
    is 0, and softplus(-S_ii). Public code of JEST for InfoNCE leaves S_ii out of both sums over j; with it the value is
    what i loses in the batch that is trained on, down to 0 and no lower, and so is the mean in `figures`.

    Numerics: similarities as the losses', in at least float32; scores and noise added in float64. Every rank scores its
    own pairs, and all ranks draw from all scores; what rank 0 draws counts. Rows are taken in tiles that begin at a
    rank's first pair, so given equal embeddings the choice is the same on every number of ranks whose share of the
    pairs is a multiple of a tile's rows. Elsewhere, and where embeddings differ in their last bits, so do scores, and
    two pairs that are as good as equal may change places. Nothing waits for the device. Memory: the embeddings of all
    ranks, and one tile.
    Communication per rank: all-gathers of the embeddings, and of N scores for each chunk.

    Args:
        kind: of the loss.
        score: what is high of the chosen.
        size: G.
        chunks: parts in which they are chosen, a divisor of G.
        gain: multiplier of scores.
        seed: of the run.
        tile_size: its square is the most similarities that are held at once.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        score: Score,
        size: int,
        chunks: int,
        gain: float = 1.0,
        seed: int = 0,
        tile_size: int = 2048,
    ) -> None:
        self.kind: Kind = kind
        self.score: Score = score
        self.size = size
        self.chunks = chunks
        self.gain = gain
        self.seed = seed
        self.tile_size = tile_size

    def __call__(
        self,
        *,
        learner: Embeddings | None,
        reference: Embeddings | None,
        ids_B: Tensor,
        index: int,
        group: ProcessGroup | None,
    ) -> Choice:
        """Chooses from the super-batch of all ranks.

        Args:
            learner: this rank's pairs by the model that trains; None if the score needs none.
            reference: the same by the other model.
            ids_B: int64 (B,) or (B, C); pairs of equal ids, in one place, are not each other's negatives.
            index: of the global batch: with the seed it determines the noise.
            group: the ranks, with equally many pairs.
        """
        ids_N = collectives.all_gather(ids_B, group)
        given = {"learner": learner, "reference": reference}
        models = {
            name: _Model(of, self.kind, ids_B=ids_B, ids_N=ids_N, group=group, tile_size=self.tile_size)
            for name, of in given.items()
            if of is not None
        }
        noise_CN = gumbel_noise(self.seed, index=index, chunks=self.chunks, size=len(ids_N), device=ids_B.device)
        is_chosen_N = torch.zeros(len(ids_N), dtype=torch.bool, device=ids_B.device)
        losses = {name: model.alone() for name, model in models.items()}
        drawn = []
        for noise_N in noise_CN:
            score_N = collectives.all_gather(self._scores(losses), group)
            drawn.append(self._draw(score_N, noise_N, is_chosen_N, group))
            is_chosen_N.index_fill_(0, drawn[-1], True)
            for name, model in models.items():
                model.add(drawn[-1])
                losses[name] = model.losses()
        own = slice(collectives.rank(group) * len(ids_B), (collectives.rank(group) + 1) * len(ids_B))
        return Choice(
            places_G=torch.cat(drawn).sort().values,
            figures=self._figures(losses, is_chosen_N[own], num_left=len(ids_N) - self.size),
        )

    def _scores(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What is high of pairs that are worth training on, (B,)."""
        match self.score:
            case "learnability":
                return losses["learner"] - losses["reference"]
            case "easy_reference":
                return -losses["reference"]
            case "hard_learner":
                return losses["learner"]

    def _draw(self, score_N: Tensor, noise_N: Tensor, is_chosen_N: Tensor, group: ProcessGroup | None) -> Tensor:
        """The places of a chunk (M,), ascending."""
        key_N = torch.nan_to_num(self.gain * score_N.double() + noise_N, nan=_NEVER, posinf=-_NEVER, neginf=_NEVER)
        key_N.masked_fill_(is_chosen_N, -torch.inf)
        places_M = key_N.topk(self.size // self.chunks).indices.sort().values
        # the same numbers everywhere, but a GPU of another kind may round a logarithm in another way
        return collectives.broadcast_from_rank0(places_M, group)

    def _figures(self, losses: Mapping[str, Tensor], is_chosen_B: Tensor, *, num_left: int) -> dict[str, Tensor]:
        """Shares of the mean loss and score within the batch, of the chosen and of the rest (0 if there is none)."""
        means: dict[str, Tensor] = {}
        for name, values_B in {"score": self._scores(losses), **{f"{n}_loss": x for n, x in losses.items()}}.items():
            means[f"select/{name}"] = values_B.where(is_chosen_B, 0).sum() / self.size
            means[f"select/{name}_rest"] = values_B.where(~is_chosen_B, 0).sum() / max(num_left, 1)
        return means


def gumbel_noise(seed: int, *, index: int, chunks: int, size: int, device: torch.device) -> Tensor:
    """float64 (chunks, size): standard Gumbel numbers, a function of (seed, global batch, chunk, place)."""
    first = counter_random.fold(counter_random.start(seed, Stream.SELECT), index)
    bits_C = torch.full((chunks,), int(first[0]), device=device)
    bits_CN = counter_random.fold(bits_C, torch.arange(chunks, device=device))[:, None]
    bits_CN = counter_random.fold(bits_CN, torch.arange(size, device=device))
    uniform_CN = (((bits_CN >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52  # neither 0 nor 1
    return -torch.log(-torch.log(uniform_CN))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp x), exact for all x: torch's own is x above 20."""
    return torch.logaddexp(x, x.new_zeros(()))


class _Model:
    """One model's losses of this rank's pairs within the batch that grows."""

    def __init__(
        self,
        pairs: Embeddings,
        kind: Kind,
        *,
        ids_B: Tensor,
        ids_N: Tensor,
        group: ProcessGroup | None,
        tile_size: int,
    ) -> None:
        dtype = accumulation_dtype(pairs.image_BD)
        self._kind = kind
        self._pairs = pairs
        self._scale = pairs.logit_scale.to(dtype)
        self._bias = None if kind == "info_nce" or pairs.logit_bias is None else pairs.logit_bias.to(dtype)
        self._image_ND = collectives.all_gather(pairs.image_BD, group)
        self._text_ND = collectives.all_gather(pairs.text_BD, group)
        self._ids_B, self._ids_N = ids_B, ids_N
        self._tile_size = tile_size
        image_BD, text_BD = (x.to(dtype) for x in (pairs.image_BD, pairs.text_BD))
        self._own_B = self._with_bias(torch.linalg.vecdot(image_BD, text_BD) * self._scale)
        # of images with the chosen texts, and of texts with the chosen images: log sum exp, or a sum
        start = -torch.inf if kind == "info_nce" else 0.0
        self._others = [torch.full_like(self._own_B, start) for _ in range(2)]

    def alone(self) -> Tensor:
        """Losses (B,) before anything is chosen."""
        return -self._own_B if self._kind == "info_nce" else _softplus(-self._own_B)

    def losses(self) -> Tensor:
        """Losses (B,) of each pair within the chosen ones and itself."""
        images_B, texts_B = self._others
        if self._kind == "sigmoid":
            return _softplus(-self._own_B) + images_B + texts_B
        of_image_B, of_text_B = (torch.logaddexp(others_B, self._own_B) for others_B in (images_B, texts_B))
        return (of_image_B + of_text_B) / 2 - self._own_B

    def add(self, places_M: Tensor) -> None:
        """Takes further chosen pairs."""
        image_MD, text_MD = (matmul_operand(x.index_select(0, places_M)) for x in (self._image_ND, self._text_ND))
        ids_M = self._ids_N.index_select(0, places_M)
        for rows in self._rows(len(places_M)):
            no_negative_RM = self._ids_B[rows, None] == ids_M
            if no_negative_RM.dim() > 2:  # several ids of a pair
                no_negative_RM = no_negative_RM.any(-1)
            sides = ((self._pairs.image_BD, text_MD), (self._pairs.text_BD, image_MD))
            for others_B, (own_BD, chosen_MD) in zip(self._others, sides, strict=True):
                logits_RM = self._with_bias(similarities(matmul_operand(own_BD[rows]), chosen_MD, self._scale))
                logits_RM.masked_fill_(no_negative_RM, -torch.inf)
                if self._kind == "info_nce":
                    others_B[rows] = torch.logaddexp(others_B[rows], logits_RM.logsumexp(1))
                else:
                    others_B[rows] += _softplus(logits_RM).sum(1)

    def _rows(self, num_columns: int) -> Iterator[slice]:
        size = max(1, self._tile_size**2 // max(num_columns, self._tile_size))
        return (slice(start, start + size) for start in range(0, len(self._ids_B), size))

    def _with_bias(self, logits: Tensor) -> Tensor:
        return logits if self._bias is None else logits.add_(self._bias)
