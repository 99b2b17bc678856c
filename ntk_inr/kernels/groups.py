"""What stands in for a leaf's Jacobian: groups of outer products, and how each leaf is handled."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from ntk_inr.kernels.places import Places
from ntk_inr.kernels.program import Atom, Name, shape_of
from ntk_inr.kernels.scatters import Scatter
from ntk_inr.kernels.tables import PASS, Table


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A product of ``h`` (batch, tokens, m_in) with ``delta`` (batch, tokens, m_out), summed over tokens.

    The axes bring the operands into that order. ``scale`` multiplies the product.
    """

    h: Atom
    delta: Atom
    h_axes: tuple[int, ...]
    delta_axes: tuple[int, ...]
    batch: int
    tokens: int
    m_in: int
    m_out: int
    scale: float


@dataclasses.dataclass(eq=False)
class Group:
    """Sites of one leaf whose gradients fall on the same entries ``index``, so that each pair has a cross term (8.5).

    ``biases`` are the biases that the group carries along: for each the weight of every token's ``delta`` in its
    gradient, as a further column of ``h`` would have it. Where the entries are those of a row that the example looks
    up, ``slot`` is the scatter to it, and ``index`` counts from the row's place.
    """

    leaf: int
    index: Places
    sites: list[Site]
    biases: list[np.ndarray] = dataclasses.field(default_factory=list)
    slot: Scatter | None = None

    @property
    def batch(self) -> int:
        """How many blocks of the leaf have outer products of their own."""
        return self.sites[0].batch

    @property
    def tokens(self) -> int:
        """How many outer products the leaf's gradient sums, over all sites."""
        return sum(site.tokens for site in self.sites)

    @property
    def atoms(self) -> list[Name]:
        """What the factors are made of."""
        read = [atom for site in self.sites for atom in (site.h, site.delta)]
        read += self.slot.indices if self.slot else ()
        return [atom for atom in read if isinstance(atom, Name)]

    def fits(self, other: Group | Table) -> bool:
        """Return whether factors of both are of the same kind, with products, and biases, in the same places."""
        return (
            isinstance(other, Group)
            and self.tokens == other.tokens
            and self.index.same_as(other.index)
            and len(self.biases) == len(other.biases)
            and all(map(np.array_equal, self.biases, other.biases))
            and (self.slot.index if self.slot else self.index).same_as(other.slot.index if other.slot else other.index)
        )

    def flops(self, backward: int, *, differentiable: bool) -> int:
        """Flops for one pair of examples; ``backward`` is c, or c * c where all output pairs are kept."""
        site, tokens = self.sites[0], _kept(self.tokens, differentiable)
        return site.batch * tokens**2 * (2 * site.m_in + 2 * backward * site.m_out + PASS)

    def floats(self, c: int, *, differentiable: bool) -> int:
        """Numbers that the two factors of one example hold."""
        site, tokens = self.sites[0], _kept(self.tokens, differentiable)
        return site.batch * tokens * (site.m_in + c * site.m_out)


def _kept(tokens: int, differentiable: bool) -> int:
    return 2 * tokens if differentiable and tokens > 1 else tokens


@dataclasses.dataclass(frozen=True)
class Handling:
    """How a leaf of the parameters is handled ("product", "gather", "bias", "jacobian" or "unused"), and why.

    ``carrier`` is the leaf whose product a bias is added to; ``flops`` and ``floats`` are those of one pair of
    examples and of one example.
    """

    kind: str
    why: str
    flops: int = 0
    floats: int = 0
    carrier: int | None = None


class Own(NamedTuple):
    """A part of a leaf's kernel that is the inner product of the values of one atom, or ``negative`` less it."""

    leaf: int
    atom: Atom
    negative: bool = False

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(shape_of(self.atom))


@dataclasses.dataclass(frozen=True, eq=False)
class Sites:
    """What stands in for the Jacobian: groups of products, and parts of their ``own`` of leaves, negative ones last."""

    groups: list[Group | Table]
    own: list[Own]
    handling: list[Handling]
