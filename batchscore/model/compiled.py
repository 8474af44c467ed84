"""A model's trees as machine code: kept in its bundle for each architecture, and used where it gives what they give.

A shared library runs whatever it holds, so it is loaded from the very bytes that were verified, as the pipeline is, and
from no file that another process could change. It sums the trees and nothing else: see `ensemble`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from batchscore import cgroup
from batchscore.logs import Event, log
from batchscore.model.built import Built, Speed, architecture
from batchscore.model.bundle import Bundle
from batchscore.model.compiling import compilers, library
from batchscore.model.encoders import quickened
from batchscore.model.ensemble import Array, CompiledAlready, Family, NotCompiled, Sums, family_of, with_estimator
from batchscore.model.predictor import Predictor, StageError
from batchscore.model.strange import strange

__all__ = ["TOLERANCE", "build", "compare", "compiled", "fast", "put_to_use"]

TOLERANCE = 1e-12
"""How far a score may lie from the original's, relative to it; a label must be the same."""

# So many rows are worth a thread of their own.
_ROWS = 8_192
_SAMPLE = 4_096
_SHAPE = 5
_FORMAT = 1


class _Library:
    """A loaded shared library that sums an ensemble's trees; threads may call it at once.

    Attributes:
        begin: What the sums of a row begin with.
        called: Whether it was.
    """

    def __init__(self, data: bytes, family: Family) -> None:
        features, outputs, rows, sums = family.shape()
        self._rows, self._sums = np.dtype(rows), np.dtype(sums)
        self._width = features
        self.called = False
        opened = _opened(data)
        try:
            shape = tuple((ctypes.c_int32 * _SHAPE).in_dll(opened, "batchscore_shape"))
            begin = ctypes.c_void_p.in_dll(opened, "batchscore_begin").value
            self._add = opened.batchscore_add
        except (ValueError, AttributeError) as error:
            raise NotCompiled(f"it is no library of batchscore's: {error}") from None
        if shape != (_FORMAT, features, outputs, self._rows.itemsize, self._sums.itemsize) or begin is None:
            raise NotCompiled("it is made for an ensemble of another shape")
        self._add.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
        self._add.restype = None
        kind = ctypes.c_float if sums is np.float32 else ctypes.c_double
        self.begin: Array = np.array((kind * outputs).from_address(begin))

    def __call__(self, rows: Array, sums: Array) -> None:
        """Add to sums, shape `(rows, outputs)`, what the trees give for rows, shape `(rows, features)`."""
        rows = np.ascontiguousarray(rows, dtype=self._rows)
        if rows.ndim != 2 or rows.shape[1] != self._width or sums.shape != (len(rows), len(self.begin)):
            raise ValueError(f"X has shape {rows.shape}, and {self._width} features are expected")
        if sums.dtype != self._sums or not sums.flags.c_contiguous:
            raise ValueError(f"the sums are {sums.dtype}, and {self._sums} is expected")
        self.called = True
        parts = max(1, min(_threads(), len(rows) // _ROWS))
        ends = [len(rows) * part // parts for part in range(parts + 1)]
        if parts == 1:
            self._part(rows, sums)
            return
        with ThreadPoolExecutor(parts, thread_name_prefix="batchscore-trees") as pool:
            spans = [slice(begin, end) for begin, end in pairwise(ends)]
            list(pool.map(lambda span: self._part(rows[span], sums[span]), spans))

    def _part(self, rows: Array, sums: Array) -> None:
        # Python's lock is left meanwhile.
        self._add(rows.ctypes.data, len(rows), sums.ctypes.data)


@cache
def _threads() -> int:
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(told) if told.isdecimal() and int(told) else cgroup.cores()


def _opened(data: bytes) -> ctypes.CDLL:
    """The library of these bytes, loaded from memory, or from a file of our own that is gone before anyone finds it."""
    try:
        handle = os.memfd_create("batchscore", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):
        return _opened_file(data)
    # It stays open: the loader takes a library of a name that it knows for the one that it knows.
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        return ctypes.CDLL(f"/proc/self/fd/{handle}")
    except OSError as error:
        os.close(handle)
        with contextlib.suppress(NotCompiled):
            return _opened_file(data)
        raise NotCompiled(f"it cannot be loaded: {error}") from None


def _opened_file(data: bytes) -> ctypes.CDLL:
    try:
        # Only its owner may look into the folder.
        with tempfile.TemporaryDirectory(prefix="batchscore-") as folder:
            path = os.path.join(folder, f"{time.monotonic_ns()}.so")  # noqa: PTH118 - a name that no other had
            with open(path, "xb") as file:  # noqa: PTH123
                file.write(data)
            return ctypes.CDLL(path)
    except OSError as error:
        raise NotCompiled(f"it cannot be loaded: {error}") from None


def build(pipeline: Any, besides: Collection[str] = ()) -> tuple[dict[str, bytes], dict[str, str]]:
    """The trees of a fitted pipeline, compiled for each architecture that a compiler is at hand for.

    Args:
        pipeline: Fitted.
        besides: Architectures that it is not compiled for.

    Returns:
        The libraries and what compiled them, by architecture.

    Raises:
        NotCompiled: The pipeline ends with no trees that are known, or there is no compiler, or it fails; or nothing is
            left to compile for.
    """
    family = family_of(pipeline)
    commands = compilers()
    if not commands and (given := os.environ.get("CC")):
        raise NotCompiled(f"there is no {given} here, which CC names")
    if not commands:
        raise NotCompiled("there is no C compiler here: neither cc nor gcc nor clang, and CC is not set")
    commands = {each: command for each, command in commands.items() if each not in besides}
    if not commands:
        raise CompiledAlready(f"its trees are compiled for {', '.join(sorted(besides))} already")
    ensemble = family.ensemble()
    libraries = {each: library(ensemble, command) for each, command in commands.items()}
    return libraries, {each: _told(commands[each]) for each in libraries}


def _told(command: list[str]) -> str:
    """What the compiler says of itself."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
        return told.stdout.splitlines()[0][:200]
    return command[0]


def fast(predictor: Predictor, data: bytes) -> Predictor:
    """The predictor with its trees summed by a library of these bytes; whose they are was asked before.

    Raises:
        NotCompiled: It cannot be loaded, or is none for these trees.
    """
    family = family_of(predictor.pipeline)
    return _with(predictor, family, _Library(data, family))


def _with(predictor: Predictor, family: Family, sums: Sums) -> Predictor:
    quick = with_estimator(quickened(predictor.pipeline), family.summed_by(sums))
    return replace(predictor, fast=quick, compiled=True)


def _disagreement(original: Predictor, other: Predictor, features: pl.DataFrame) -> str:
    """How what the other gives differs from what the original gives, in words; empty where it does not.

    Raises:
        StageError: The original fails on these features.
    """
    wanted = original.predict_from(features)
    try:
        given = other.predict_from(features)
    except StageError as error:
        return f"it fails ({error.kind})"
    for column in wanted.iter_columns():
        want, got = column, given[column.name]
        if want.dtype == pl.Float64():
            same = np.isclose(got.to_numpy(), want.to_numpy(), rtol=TOLERANCE, atol=0, equal_nan=True)
        else:
            same = want.eq_missing(got).to_numpy()
        if not same.all():
            return f"{int((~same).sum()):,} of {len(same):,} rows have another {column.name}"
    return ""


def compare(original: Predictor, data: bytes, features: pl.DataFrame) -> tuple[Predictor, int]:
    """The predictor with its trees summed by that library, once it agrees on the features and on many made from them.

    Returns:
        The predictor, and on how many rows it agrees.

    Raises:
        NotCompiled: It cannot be loaded, or does not agree.
    """
    family = family_of(original.pipeline)
    sums = _Library(data, family)
    other = _with(original, family, sums)
    rows = 0
    for some in (features, *strange(features, _SAMPLE)):
        try:
            with warnings.catch_warnings():
                # Of what is strange about the rows.
                warnings.simplefilter("ignore")
                told = _disagreement(original, other, some)
        except StageError:
            # Rows that the pipeline itself does not take are none to compare on.
            continue
        if told:
            raise NotCompiled(f"it does not give what the original gives: {told}")
        rows += some.height
    if not rows:
        raise NotCompiled("there is no row that the original scores here")
    if not sums.called:
        raise NotCompiled("the estimator is not given its rows as an array of numbers")
    return other, rows


def put_to_use(bundle: Bundle, *, trusted: bool) -> Bundle:
    """The bundle that scores with its compiled trees, where they may be and agree with the original; the log says so.

    They are compared on the golden rows and on a sample made from them: the same scores but for 1e-12 of each, and the
    very labels.

    Args:
        bundle: Verified; its golden rows give here what they gave at training.
        trusted: Whether what it holds may be loaded as a library.
    """
    if not bundle.compiled:
        return bundle
    here = {"model": bundle.name, "version": bundle.version, "architecture": architecture()}
    if architecture() not in bundle.compiled:
        made = ", ".join(sorted(bundle.compiled))
        log.info(Event.MODEL_UNCOMPILED, **here, why=f"its trees are compiled for {made}; the original scores")
        return bundle
    if not trusted:
        log.warning(Event.MODEL_UNCOMPILED, **here, why="no trusted key has signed it; the original scores")
        return bundle
    try:
        features = bundle.predictor.features.transform(bundle.golden_rows)
        predictor, rows = compare(bundle.predictor, bundle.compiled[architecture()], features)
    except NotCompiled as error:
        log.warning(Event.MODEL_UNCOMPILED, **here, why=f"{error}; the original scores")
        return bundle
    log.info(Event.MODEL_COMPILED, **here, agrees_on=rows, threads=_threads())
    return replace(bundle, predictor=predictor)


def _speed(original: Predictor, other: Predictor, rows: pl.DataFrame) -> Speed:
    """How fast each scores rows, in turn; the best of three."""
    took = {"original": np.inf, "compiled": np.inf}
    for _ in range(3):
        for name, predictor in (("original", original), ("compiled", other)):
            began = time.perf_counter()
            predictor.predict_from(predictor.features.transform(rows))
            took[name] = min(took[name], time.perf_counter() - began)
    return Speed(
        architecture=architecture(),
        rows=rows.height,
        original=rows.height / took["original"],
        compiled=rows.height / took["compiled"],
    )


def compiled(bundle: Bundle, rows: pl.DataFrame) -> Bundle:
    """The bundle with its trees compiled for each architecture that a compiler is at hand for.

    What is for this machine is tried before it is kept: on these rows and on a sample made from their features.

    Args:
        bundle: What is compiled for an architecture already stays as it is.
        rows: Conforming rows that the bundle scores, as many as may be: how fast both are is measured on them.

    Raises:
        NotCompiled: See `build` and `compare`; or nothing is left to compile.
    """
    libraries, compilers_ = build(bundle.predictor.pipeline, besides=bundle.compiled)
    speed = bundle.built.speed if bundle.built else None
    if architecture() in libraries:
        features = bundle.predictor.features.transform(rows)
        other, _ = compare(bundle.predictor, libraries[architecture()], features)
        speed = _speed(bundle.predictor, other, rows)
    told = {**(bundle.built.compilers if bundle.built else {}), **compilers_}
    return replace(
        bundle,
        compiled={**bundle.compiled, **libraries},
        built=Built(compilers=dict(sorted(told.items())), speed=speed),
    )
