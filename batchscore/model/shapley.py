"""Shapley values of a decision tree, exact and for many rows at once.

The game is that of "path-dependent" TreeSHAP: a feature that is not known goes both ways at each of its splits, in
proportion to the training rows that went there (Lundberg et al. 2020, "From local explanations to global understanding
with explainable AI for trees", Nature Machine Intelligence 2, 56-67). What a leaf gives to a row then depends on the
row by one bit alone for each feature on the leaf's path: whether the row passes all splits on it. So a table over the
patterns of these bits holds the answers for every row, and rows only look them up (as in Nadel and Wettenstein 2025,
"From Decision Trees to Boolean Logic: A Fast and Unified SHAP Algorithm").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["DEEPEST", "LEAF", "MISSING", "Inputs", "Tree", "add_contributions"]

LEAF = -1
"""The feature of a node that does not split."""

MISSING = 256
"""The code of a category that is missing or that the model does not know."""

DEEPEST = 60
"""How many features a path may split on: their bits share one 64-bit integer."""

# A larger table serves more leaves at one look-up a row, and is the slower to fill. With this many bits to look up by,
# 50,000 rows take the least time, and a thousand hardly more than with fewer.
_BITS = 12

# Cover ratios are divided by; a node without training rows has none.
_LEAST = 1e-150

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Tree:
    """A binary tree in arrays over its nodes; node 0 is the root.

    Attributes:
        feature: The feature that a node splits on, or `LEAF`.
        threshold: A number up to it goes left.
        missing_left: Whether a missing value goes left.
        left: The left child.
        right: The right child.
        value: What a leaf adds to the sum.
        cover: Training rows, or their weight, that reached the node.
        categories: For a node that splits on a category: whether each code goes left, shape `(MISSING + 1,)`.
        inner: How many nodes split at and below each.
    """

    feature: Indices
    threshold: Floats
    missing_left: Bools
    left: Indices
    right: Indices
    value: Floats
    cover: Floats
    categories: Mapping[int, Bools]
    inner: Indices = field(init=False)

    def __post_init__(self) -> None:
        inner = np.zeros(len(self.feature), dtype=np.intp)
        for node in reversed(list(self._preorder())):
            if self.feature[node] != LEAF:
                inner[node] = 1 + inner[self.left[node]] + inner[self.right[node]]
        object.__setattr__(self, "inner", inner)

    def base(self) -> float:
        """What the tree gives to a row of which nothing is known: its leaves' mean, weighted by their rows."""
        shares = np.zeros(len(self.feature))
        shares[0] = 1.0
        for node in self._preorder():
            if self.feature[node] != LEAF:
                for child in (self.left[node], self.right[node]):
                    shares[child] = shares[node] * self.share(node, child)
        return float(shares[self.feature == LEAF] @ self.value[self.feature == LEAF])

    def deepest(self) -> int:
        """How many nodes the longest path splits at; on no more features."""
        depth = np.zeros(len(self.feature), dtype=np.intp)
        for node in self._preorder():
            if self.feature[node] != LEAF:
                depth[[self.left[node], self.right[node]]] = depth[node] + 1
        return int(depth.max())

    def share(self, node: int, child: int) -> float:
        """The share of a node's training rows that went to that child."""
        both = self.cover[self.left[node]] + self.cover[self.right[node]]
        return max(float(self.cover[child] / both) if both > 0 else 0.5, _LEAST)

    def _preorder(self) -> Iterator[int]:
        stack = [0]
        while stack:
            node = stack.pop()
            yield node
            if self.feature[node] != LEAF:
                stack += [int(self.right[node]), int(self.left[node])]


class Inputs:
    """The features of many rows, laid out for the questions that trees ask.

    Args:
        rows: Shape `(rows, features)`; NaN is a missing value.
        codes: For a feature that holds categories: the code of each row, `MISSING` where there is none.
    """

    def __init__(self, rows: Floats, codes: Mapping[int, Indices] | None = None) -> None:
        self._columns = np.ascontiguousarray(rows.T)
        self._missing = {j: gaps for j, gaps in enumerate(np.isnan(self._columns)) if gaps.any()}
        self._codes = codes or {}
        self.count = len(rows)

    def goes_left(self, tree: Tree, node: int) -> Bools:
        """Whether each row goes left at that node, shape `(rows,)`."""
        feature = int(tree.feature[node])
        if node in tree.categories:
            return tree.categories[node][self._codes[feature]]
        left: Bools = self._columns[feature] <= tree.threshold[node]
        if tree.missing_left[node] and feature in self._missing:
            left |= self._missing[feature]
        return left


@dataclass(frozen=True, slots=True)
class _Passed:
    """One feature on a path: the bit that says whether a row passes its splits, and the share of rows that did."""

    bit: int
    share: float


_Path = Mapping[int, _Passed]


def add_contributions(tree: Tree, inputs: Inputs, columns: Sequence[int], out: Floats) -> None:
    """Add the tree's Shapley values to `out`.

    Args:
        tree: The tree; no path of it splits on more than `DEEPEST` features.
        inputs: The rows.
        columns: For each feature, the column of `out` that its values are summed in.
        out: Shape `(columns, rows)`.
    """
    stack: list[tuple[int, _Path, Indices]] = [(0, {}, np.zeros(inputs.count, dtype=np.intp))]
    while stack:
        node, path, pattern = stack.pop()
        if tree.inner[node] == 0 or len(path) + tree.inner[node] <= _BITS:
            _add_subtree(tree, node, path, pattern, inputs, columns, out)
            continue
        left = inputs.goes_left(tree, node)
        for child, passes in ((int(tree.left[node]), left), (int(tree.right[node]), ~left)):
            feature, share = int(tree.feature[node]), tree.share(node, child)
            if feature in path:
                passed = _Passed(path[feature].bit, path[feature].share * share)
                narrowed = _without(pattern, passed.bit, passes)
            else:
                passed = _Passed(len(path), share)
                narrowed = pattern | passes.astype(np.intp) << passed.bit
            stack.append((child, {**path, feature: passed}, narrowed))


def _without(pattern: Indices, bit: int, passes: Bools) -> Indices:
    """The pattern with that bit cleared in the rows that do not pass."""
    return pattern & ~((~passes).astype(np.intp) << bit)


def _add_subtree(
    tree: Tree, top: int, path: _Path, pattern: Indices, inputs: Inputs, columns: Sequence[int], out: Floats
) -> None:
    """Add what the leaves below `top` give: one look-up a column and row, in a table over all that decides it.

    With the weights of Gauss-Legendre quadrature a Shapley value is a sum over a few points t of products, one factor
    for each feature: t where the row passes, plus 1 - t times the share that does. Features above `top` give one
    factor of the table, those below the other.
    """
    inner = _inner_nodes(tree, top)
    below = {int(tree.feature[node]) for node in inner}
    again = [feature for feature in path if feature in below]
    above = [feature for feature in path if feature not in below]
    if len(path) > inputs.count.bit_length() and not inner:
        patterns, index = np.unique(pattern, return_inverse=True)
        bits = {feature: (patterns >> path[feature].bit & 1).astype(np.float64) for feature in above}
    else:
        bits = _bits(above)
        index = pattern if not again else _reordered(path, [*above, *again])[pattern]
    lower_bits = _bits([*again, *(-1 - node for node in inner)])
    for k, node in enumerate(inner):
        index = index | inputs.goes_left(tree, node).astype(np.intp) << len(path) + k
    points, weights = _quadrature(len(path.keys() | below))
    product, parts = _factors({f: (bits[f], path[f].share) for f in above}, points)
    held = {f: (lower_bits[f], path[f].share) for f in again}
    total, lower = _sums(tree, top, held, lower_bits, points)
    tables: dict[int, Floats] = {}
    for feature, table in [
        *((f, total @ (part * weights).T) for f, part in parts.items()),
        *((f, part @ (product * weights).T) for f, part in lower.items()),
    ]:
        column = columns[feature]
        tables[column] = tables[column] + table if column in tables else table
    found = np.empty(inputs.count)
    for column, table in tables.items():
        np.take(table.ravel(), index, out=found, mode="clip")
        out[column] += found


def _inner_nodes(tree: Tree, top: int) -> list[int]:
    if tree.feature[top] == LEAF:
        return []
    left, right = int(tree.left[top]), int(tree.right[top])
    return [top, *_inner_nodes(tree, left), *_inner_nodes(tree, right)]


def _bits(names: Sequence[int]) -> dict[int, Floats]:
    """For each name its bit, 0.0 or 1.0, in every pattern of as many bits: shape `(2 ** len(names),)`."""
    patterns = np.arange(1 << len(names))
    return {name: (patterns >> k & 1).astype(np.float64) for k, name in enumerate(names)}


def _reordered(path: _Path, order: Sequence[int]) -> Indices:
    """For every pattern of the path's bits, the one with the bits in that order."""
    patterns = np.arange(1 << len(path), dtype=np.intp)
    moved = np.zeros_like(patterns)
    for k, feature in enumerate(order):
        moved |= (patterns >> path[feature].bit & 1) << k
    return moved


@cache
def _quadrature(features: int) -> tuple[Floats, Floats]:
    """Points and weights on [0, 1], exact for the polynomials of a path with that many features."""
    points, weights = np.polynomial.legendre.leggauss(max(1, (features + 1) // 2))
    return (points + 1) / 2, weights / 2


def _factors(held: Mapping[int, tuple[Floats, float]], points: Floats) -> tuple[Floats, dict[int, Floats]]:
    """The product of the features' factors, and for each feature what its value takes in its stead.

    Each has the shape `(patterns, points)`.
    """
    factors = {f: passes[:, None] * points + (1 - points) * share for f, (passes, share) in held.items()}
    product: Floats = np.ones((1, len(points)))
    for factor in factors.values():
        product = product * factor
    return product, {f: product / factors[f] * (passes - share)[:, None] for f, (passes, share) in held.items()}


def _sums(
    tree: Tree, node: int, held: Mapping[int, tuple[Floats, float]], bits: Mapping[int, Floats], points: Floats
) -> tuple[Floats, dict[int, Floats]]:
    """The sums over the leaves below of what `_factors` gives, times the leaf's value."""
    if tree.feature[node] == LEAF:
        product, parts = _factors(held, points)
        return product * tree.value[node], {f: part * tree.value[node] for f, part in parts.items()}
    feature, left = int(tree.feature[node]), bits[-1 - node]
    passes, share = held.get(feature, (1.0, 1.0))
    total: Floats = np.zeros((1, len(points)))
    sums: dict[int, Floats] = {}
    for child, went in ((int(tree.left[node]), left), (int(tree.right[node]), 1 - left)):
        narrowed = {**held, feature: (passes * went, share * tree.share(node, child))}
        product, parts = _sums(tree, child, narrowed, bits, points)
        total = total + product
        for f, part in parts.items():
            sums[f] = sums[f] + part if f in sums else part
    return total, sums
