"""Translates names of weights to those of another library, and back.

A rule has the name of one of our parameters and its name in the other library; `*` matches one part of a dotted name
(block number, weight or bias), `**` several. Both our towers use the same names in their blocks, so the lists of rules
are short.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from clipx.errors import InputError


def _as_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Rule:
    """Our parameters `ours` are `theirs`: several on one side are parts of the other's first axis."""

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    to_theirs: Callable[[Tensor], Tensor] = _as_is
    """Converts our shape to theirs; of several of ours, that of their join."""
    to_ours: Callable[[Tensor], Tensor] = _as_is
    """Converts their shape to ours; of several of theirs, that of their join."""
    shares: tuple[int, ...] = ()
    """Lengths of the parts in proportion, where they are not equal: (1, 2) cuts a third and two thirds."""


class KeyMap:
    """Converts names and shapes between a clipx model's weights and those of another library.

    Args:
        library: name of the library and its class, for messages.
        rules: one for every kind of parameter; of several that match a name the first counts.
    """

    def __init__(self, library: str, rules: tuple[Rule, ...]) -> None:
        self.library = library
        self._rules = rules

    def to_theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies of our weights under the library's names.

        Raises:
            InputError: the library has no place for one of the parameters.
        """
        theirs: dict[str, Tensor] = {}
        for name in weights:
            for rule in self._rules:
                ours = _names(rule.ours)
                if (parts := _match(ours[0], name)) is not None:
                    theirs |= _converted(weights, ours, _names(rule.theirs), rule.to_theirs, rule.shares, parts)
                    break
                if any(_match(other, name) is not None for other in ours[1:]):
                    break  # comes with the first
            else:
                raise InputError(f"{self.library} has no place for the parameter {name}; leave that format out")
        return {name: tensor.contiguous().clone() for name, tensor in theirs.items()}

    def to_ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The library's weights under our names, without entries that no rule knows.

        Raises:
            KeyError: one of several that belong together is missing.
        """
        ours: dict[str, Tensor] = {}
        for name in weights:
            for rule in self._rules:
                theirs = _names(rule.theirs)
                if (parts := _match(theirs[0], name)) is not None:
                    ours |= _converted(weights, theirs, _names(rule.ours), rule.to_ours, rule.shares, parts)
                    break
        return ours


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _converted(
    weights: Mapping[str, Tensor],
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    convert: Callable[[Tensor], Tensor],
    shares: tuple[int, ...],
    parts: list[str],
) -> dict[str, Tensor]:
    """The tensors of the patterns `sources`, joined, converted, and cut into those of `targets`."""
    pieces = [weights[_fill(pattern, parts)] for pattern in sources]
    whole = convert(torch.cat(pieces) if len(pieces) > 1 else pieces[0])
    shares = shares or (1,) * len(targets)
    sizes = [len(whole) * share // sum(shares) for share in shares] if len(targets) > 1 else None
    cut = (whole,) if sizes is None else whole.split(sizes)
    return {_fill(pattern, parts): piece for pattern, piece in zip(targets, cut, strict=True)}


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*\*", r"(.+)").replace(r"\*", r"([^.]+)"))


def _match(pattern: str, name: str) -> list[str] | None:
    """The parts of `name` that the stars of the pattern match; None if the pattern does not match."""
    match = _compiled(pattern).fullmatch(name)
    return None if match is None else list(match.groups())


def _fill(pattern: str, parts: list[str]) -> str:
    filled = iter(parts)
    return re.sub(r"\*+", lambda _: next(filled), pattern)


def scalar(ours: str, theirs: str) -> Rule:
    """A parameter of shape (1,) here and () there."""
    return Rule(ours, (theirs,), to_theirs=lambda x: x.reshape(()), to_ours=lambda x: x.reshape(1))


def transposed(ours: str, theirs: str) -> Rule:
    """A matrix with its axes exchanged."""
    return Rule(ours, (theirs,), to_theirs=lambda x: x.T, to_ours=lambda x: x.T)


def trunk_embeddings(class_token: str, positions: str) -> tuple[Rule, Rule]:
    """Rules that remove timm's batch dimension from both, and its token dimension from the class token."""
    trunk = "image_tower.trunk"
    return (
        Rule(f"{trunk}.cls_token", (class_token,), to_theirs=lambda x: x[0, 0], to_ours=lambda x: x[None, None]),
        Rule(f"{trunk}.pos_embed", (positions,), to_theirs=lambda x: x[0], to_ours=lambda x: x[None]),
    )
