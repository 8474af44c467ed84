"""A sketch of values too many to count one by one, or too private to keep: how many differ, and how they spread.

Two sketches merge into the sketch of both sets of rows, exactly. No value can be read in one. Without a salt the hash
is public: whoever guesses a value can tell whether it occurs, and about how often. With one, only who has the salt can.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.errors import ProfileMismatch
from batchscore.hashing import HASH, Words, hashed

__all__ = ["Sketch"]

_PRECISION = 12
_BUCKETS = 256
_KEYED_BUCKETS = 16
_BITS = 64 - _PRECISION


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """What hashes of values leave behind.

    Attributes:
        registers: uint8, shape `(4096,)`: HyperLogLog. The first 12 bits of a value's hash choose one; it holds the
            largest position of the first 1 among the other 52 bits, or 0.
        buckets: int64, shape `(256,)`: how many values have each last byte of the hash; with a salt its last four bits,
            shape `(16,)`. A value that grows more common raises its bucket; that two values share one can hide a
            difference and cannot make one.
    """

    registers: npt.NDArray[np.uint8]
    buckets: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        self.registers.setflags(write=False)
        self.buckets.setflags(write=False)

    @classmethod
    def of(cls, kept: pl.Series, salt: str = "") -> Self:
        """Sketch values without NULLs, in any type that a profile has.

        Args:
            kept: The values.
            salt: A secret in hex, by which the values are hashed; sketches of one salt merge.
        """
        if kept.dtype in (pl.Categorical, pl.Enum, pl.Null):
            kept = kept.cast(pl.String)
        words, size = hashed(kept), _BUCKETS
        if salt:
            words, size = _keyed(words, bytes.fromhex(salt)), _KEYED_BUCKETS
        buckets = np.bincount((words & np.uint64(size - 1)).astype(np.intp), minlength=size).astype(np.int64)
        return cls(_registers(words), buckets)

    def merge(self, other: Self) -> Self:
        """The sketch of both sets of rows."""
        return type(self)(np.maximum(self.registers, other.registers), self.buckets + other.buckets)

    @property
    def distinct(self) -> float:
        """About how many values differ, with a standard error of 1.6 %.

        Source: Ertl, "New cardinality estimation algorithms for HyperLogLog sketches", arXiv 1702.01284 (2017),
        algorithm 6, which needs no table of corrections for few values.
        """
        size = len(self.registers)
        counts = np.bincount(self.registers, minlength=_BITS + 2)
        total = size * _tau(1 - counts[_BITS + 1] / size)
        for k in range(_BITS, 0, -1):
            total = (total + int(counts[k])) / 2
        total += size * _sigma(counts[0] / size)
        return size * size / (2 * math.log(2) * total) if math.isfinite(total) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content, with the name of the hash."""
        packed = base64.b64encode(zlib.compress(self.registers.tobytes(), 1)).decode("ascii")
        return {"hash": HASH, "registers": packed, "buckets": self.buckets.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote with the same hash."""
        if data["hash"] != HASH:
            raise ProfileMismatch(
                f"A profile was hashed by {data['hash']}, and this batchscore hashes by {HASH}. Retrain with this "
                "release, or run the release that trained the model.",
                want=HASH,
                got=data["hash"],
            )
        registers = np.frombuffer(zlib.decompress(base64.b64decode(data["registers"])), np.uint8)
        return cls(registers.copy(), np.array(data["buckets"], np.int64))


def _keyed(words: Words, key: bytes) -> Words:
    """Other words, which nobody without the key can tell from chance: Saarinen and Aumasson, RFC 7693, "BLAKE2"."""
    distinct, places = np.unique(words, return_inverse=True)
    # A microsecond each; values that repeat are hashed once.
    digests = b"".join(blake2b(word.tobytes(), digest_size=8, key=key).digest() for word in distinct.astype("<u8"))
    return np.frombuffer(digests, "<u8").astype(np.uint64)[places]


def _registers(words: Words) -> npt.NDArray[np.uint8]:
    index = (words >> np.uint64(_BITS)).astype(np.intp)
    rest = words & np.uint64((1 << _BITS) - 1)
    # frexp gives how many bits a number has; below 2**53 a double holds it whole.
    ranks = (_BITS + 1 - np.frexp(rest.astype(np.float64))[1]).astype(np.uint8)
    registers = np.zeros(1 << _PRECISION, np.uint8)
    np.maximum.at(registers, index, ranks)
    return registers


def _sigma(share: float) -> float:
    """Of the registers that no value chose: x + the sum of x^(2^k) 2^(k-1) for k from 1 on."""
    if share == 1.0:
        return math.inf
    total, weight = share, 1.0
    while True:
        share *= share
        grown = total + share * weight
        if grown == total:
            return total
        total, weight = grown, weight * 2


def _tau(share: float) -> float:
    """Of the registers that are full: (1 - x - the sum of (1 - x^(2^-k))^2 2^-k for k from 1 on) / 3."""
    if share in (0.0, 1.0):
        return 0.0
    total, weight = 1 - share, 1.0
    while True:
        share, weight = math.sqrt(share), weight / 2
        grown = total - (1 - share) ** 2 * weight
        if grown == total:
            return total / 3
        total = grown
