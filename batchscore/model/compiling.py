"""Compiling an ensemble of trees into a shared library, by the C compiler that is at hand.

What is compiled is `kernel.c`, with the ensemble's sizes as constants and its trees as tables.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from batchscore.model.built import ARCHITECTURES, architecture
from batchscore.model.ensemble import Array, Ensemble, Nodes, NotCompiled
from batchscore.model.shapley import LEAF

__all__ = ["compilers", "library"]

_NAMES = ("cc", "gcc", "clang")
# Without fast arithmetic: a sum is rounded as the libraries round theirs.
_FLAGS = (
    "-O3",
    "-std=c11",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-s",
    "-Wl,--build-id=none",
)
_SECONDS = 600
_CACHE_LINE = 64
# Leaves are bits, of which a word has 64 and a tree four words at most.
_WORD = 64
_MOST_LEAVES = 4 * _WORD
# What tables may take before they are slower than going down the trees: much of a processor's own memory.
_MOST_TABLE = 32 << 20
# What the tables of some rows may take of a thread's stack.
_STACK = 256 << 10
_MOST_FEATURES = 10_000


def compilers() -> dict[str, list[str]]:
    """The commands of the C compilers at hand by the architecture that they compile for.

    For this machine that of `CC`, or cc, gcc or clang; for another one a cross compiler that is called as Debian calls
    it, such as aarch64-linux-gnu-gcc.
    """
    found = {}
    for each in ARCHITECTURES:
        own = shlex.split(os.environ.get("CC", "")) or next(([name] for name in _NAMES if shutil.which(name)), [])
        command = own if each == architecture() else [f"{each}-linux-gnu-gcc"]
        if command and shutil.which(command[0]):
            found[each] = command
    return found


def library(ensemble: Ensemble, compiler: Sequence[str]) -> bytes:
    """The ensemble as a shared library, which `compiled` calls.

    Args:
        ensemble: The trees.
        compiler: The command of a C compiler.

    Raises:
        NotCompiled: The compiler fails, or the rows are too wide.
    """
    if ensemble.features > _MOST_FEATURES:
        raise NotCompiled(f"it takes {ensemble.features:,} features, and at most {_MOST_FEATURES:,} are compiled")
    sources = _sources(ensemble)
    try:
        with tempfile.TemporaryDirectory(prefix="batchscore-") as name:
            folder = Path(name)
            for file, data in sources.items():
                (folder / file).write_bytes(data)
            shutil.copyfile(Path(__file__).with_name("kernel.c"), folder / "kernel.c")
            subprocess.run(  # noqa: S603 - the compiler is the operator's
                [*compiler, *_FLAGS, "-o", "library.so", "kernel.c", "-lm"],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
            return (folder / "library.so").read_bytes()
    except subprocess.CalledProcessError as error:
        told = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[:200]).strip()
        raise NotCompiled(f"{compiler[0]} failed: {told or f'exit code {error.returncode}'}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiled(f"{compiler[0]} failed: {error}") from error


def _sources(ensemble: Ensemble) -> dict[str, bytes]:
    """`model.h`, and a file for each table that it takes."""
    defined, tables = _small_trees(ensemble) or _large_trees(ensemble)
    width = ensemble.trees[0].value.shape[1]
    sums = _c(ensemble.sums)
    defined |= {
        "FEATURES": ensemble.features,
        "OUTPUTS": ensemble.outputs,
        "TREES": len(ensemble.trees),
        "WIDTH": width,
        "REAL": _c(ensemble.rows),
        "SUM": sums,
        "SUM_IS_FLOAT": int(sums == "float"),
        "TINY": ensemble.tiny.hex(),
        # As scikit-learn reads a code: in eight bits.
        "CODES": 255 if set(ensemble.kinds.values()) == {256} else 0x7FFFFFFF,
    }
    if ensemble.link:
        defined[ensemble.link.upper()] = float(ensemble.alpha).hex()
    tables["kinds"] = np.array([ensemble.kinds.get(j, 0) for j in range(ensemble.features)], dtype=np.int32)
    tables["begin"] = np.array(ensemble.begin or [0.0] * ensemble.outputs, dtype=ensemble.sums)
    header = "".join(f"#define {name} {value}\n" for name, value in sorted(defined.items()))
    # An empty file has no first element to point to.
    blobs = {name: table.tobytes() or bytes(_CACHE_LINE) for name, table in tables.items()}
    return {"model.h": header.encode(), **blobs}


def _c(kind: type[np.floating[Any]]) -> str:
    return "float" if kind is np.float32 else "double"


def _small_trees(ensemble: Ensemble) -> tuple[dict[str, Any], dict[str, Array]] | None:
    """The tables of what each value leaves over of each tree; None where the trees are too large."""
    leaves = max(int((tree.feature == LEAF).sum()) for tree in ensemble.trees)
    if leaves > _MOST_LEAVES:
        return None
    limits = [np.unique(values) for values in _limits(ensemble)]
    # Of numbers: below or at each limit, above all, and missing. Of categories: each, another, and missing.
    places = [ensemble.kinds[j] + 2 if j in ensemble.kinds else len(limits[j]) + 2 for j in range(ensemble.features)]
    first = np.concatenate([[0], np.cumsum(places)]).astype(np.int64)
    bits = next(bits for bits in (8, 16, 32, 64, 128, 256) if leaves <= bits)
    together = _CACHE_LINE * 8 // bits
    parts, bits = max(1, bits // _WORD), min(bits, _WORD)
    blocks = -(-len(ensemble.trees) // together)
    if blocks * int(first[-1]) * _CACHE_LINE > _MOST_TABLE:
        return None
    word = np.dtype(f"uint{bits}").type
    whole = int(np.iinfo(word).max)
    left_over = np.full((blocks, int(first[-1]), together * parts), whole, dtype=word)
    values = np.zeros((len(ensemble.trees), leaves, ensemble.trees[0].value.shape[1]), dtype=ensemble.sums)
    used: list[set[int]] = [set() for _ in range(blocks)]
    for t, tree in enumerate(ensemble.trees):
        block, place = divmod(t, together)
        for node, before, behind in _spans(tree, values[t]):
            feature = int(tree.feature[node])
            used[block].add(feature)
            # The leaves to the left of a split that a value fails.
            ruled_out = (1 << behind) - (1 << before)
            fails = first[feature] + _fails(tree, node, limits[feature])
            for part in range(parts):
                rest = whole ^ (ruled_out >> (part * _WORD) & whole)
                left_over[block, fails, place * parts + part] &= word(rest)
    rows = max(8, min(256, _STACK // (4 * max(1, ensemble.features)) // 8 * 8))
    return (
        {"MASKS": 1, "WORD": f"uint{bits}_t", "WORDS": parts, "LEAVES": leaves, "PLACES": int(first[-1]), "ROWS": rows},
        {
            "limits": np.concatenate([*limits, np.zeros(1)]).astype(ensemble.rows),
            "first_limit": np.cumsum([0, *map(len, limits)]).astype(np.int32),
            "first_place": first.astype(np.int32),
            "left_over": left_over,
            "used": np.fromiter(chain.from_iterable(map(sorted, used)), dtype=np.int32),
            "first_used": np.cumsum([0, *map(len, used)]).astype(np.int32),
            "leaves": values,
        },
    )


def _limits(ensemble: Ensemble) -> Iterator[Array]:
    """The limits of each feature."""
    splits = [
        (tree.feature != LEAF) & ~np.isin(np.arange(len(tree.feature)), [*tree.categories]) for tree in ensemble.trees
    ]
    feature = np.concatenate([tree.feature[split] for tree, split in zip(ensemble.trees, splits, strict=True)])
    limit = np.concatenate([tree.limit[split] for tree, split in zip(ensemble.trees, splits, strict=True)])
    order = np.argsort(feature, kind="stable")
    ends = np.searchsorted(feature[order], np.arange(ensemble.features + 1))
    for begin, end in pairwise(ends):
        yield limit[order[begin:end]]


def _spans(tree: Nodes, values: Array) -> Iterator[tuple[int, int, int]]:
    """Each split with the first leaf left of it and the first that is not; the leaves' values are filled in."""
    count = 0
    begun: list[tuple[int, int | None]] = [(0, None)]
    while begun:
        node, before = begun.pop()
        if before is not None:
            yield node, before, count
            begun.append((int(tree.right[node]), None))
        elif tree.feature[node] == LEAF:
            values[count] = tree.value[node]
            count += 1
        else:
            begun += [(node, count), (int(tree.left[node]), None)]


def _fails(tree: Nodes, node: int, limits: Array) -> Array:
    """The places of a feature's values that go right at a split."""
    if node in tree.categories:
        return np.flatnonzero(~tree.categories[node])
    above = np.arange(int(np.searchsorted(limits, tree.limit[node])) + 1, len(limits) + 1)
    return above if tree.missing_left[node] else np.append(above, len(limits) + 1)


def _large_trees(ensemble: Ensemble) -> tuple[dict[str, Any], dict[str, Array]]:
    """The tables of the nodes, children side by side."""
    node = np.dtype([("limit", ensemble.rows), ("left", np.int32), ("input", np.int32)], align=True)
    sizes = [len(tree.feature) for tree in ensemble.trees]
    roots = np.cumsum([0, *sizes])
    nodes, first = np.zeros(roots[-1], dtype=node), np.zeros(roots[-1], dtype=np.int32)
    leaves = np.zeros((roots[-1], ensemble.trees[0].value.shape[1]), dtype=ensemble.sums)
    # The first word is nobody's: 0 is a split that is by number.
    words: list[Array] = [np.zeros(1, dtype=np.uint32)]
    told = np.zeros(len(sizes), dtype=[("root", np.int64), ("depth", np.int32), ("categorical", np.int32)])
    taken = 1
    for t, (tree, root, size) in enumerate(zip(ensemble.trees, roots, sizes, strict=False)):
        number = _numbered(tree)
        inner = np.flatnonzero(tree.feature != LEAF)
        mine = nodes[root : root + size]
        mine["limit"], mine["left"] = np.inf, np.arange(size)
        mine["limit"][number[inner]] = tree.limit[inner]
        mine["left"][number[inner]] = number[tree.left[inner]]
        mine["input"][number[inner]] = 2 * tree.feature[inner] + ~tree.missing_left[inner]
        leaves[root + number] = np.where((tree.feature == LEAF)[:, None], tree.value, 0)
        for split, left in tree.categories.items():
            first[root + number[split]] = taken * 32
            packed = np.packbits(np.append(left, np.zeros(-len(left) % 32, dtype=bool)), bitorder="little").view("<u4")
            words.append(packed)
            taken += len(packed)
        told[t] = (root, _depth(tree), bool(tree.categories))
    # A row has its numbers twice, and its codes.
    rows = max(8, min(256, _STACK // (20 * max(1, ensemble.features)) // 8 * 8))
    return (
        {"CATEGORICAL": int(len(words) > 1), "ROWS": rows},
        {
            "nodes": nodes,
            "trees": told,
            "leaves": leaves,
            "first_category": first,
            "goes_left": np.concatenate(words),
        },
    )


def _numbered(tree: Nodes) -> Array:
    """The place of each node, such that a right child is behind the left one."""
    inner = np.flatnonzero(tree.feature != LEAF)
    number = np.zeros(len(tree.feature), dtype=np.int32)
    number[tree.left[inner]] = 1 + 2 * np.arange(len(inner))
    number[tree.right[inner]] = 2 + 2 * np.arange(len(inner))
    return number


def _depth(tree: Nodes) -> int:
    level, depth = np.zeros(1, dtype=np.intp), 0
    while len(level := level[tree.feature[level] != LEAF]):
        level, depth = np.concatenate([tree.left[level], tree.right[level]]), depth + 1
    return depth
