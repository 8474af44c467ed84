"""The features module, run from its source text, so that scoring executes what training executed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from batchscore.errors import TrainingError, UsageError

__all__ = ["Features", "check_row_wise", "module_name"]

# Enough rows to meet the rare values that make a transform stumble, few enough to stay quick.
_ROW_WISE_SAMPLE = 10_000

# The optional dependencies that a pipeline may be made of.
_EXTRAS = ("lightgbm", "xgboost")


@dataclass(frozen=True, slots=True)
class Features:
    """A features module: `features(rows)` and `pipeline()`, with the text they came from.

    The module is registered under a name made of its digest, in training and in scoring alike. A pipeline that holds
    functions or classes of the module therefore unpickles them from this text.
    """

    source: str
    module: ModuleType

    @classmethod
    def of(cls, source: str, where: str) -> Features:
        """Execute the text.

        Args:
            source: Python text that defines `features(rows: pl.LazyFrame) -> pl.LazyFrame` and `pipeline()`.
            where: What the text is, for messages and tracebacks.

        Raises:
            UsageError: It does not run, or lacks one of the two.
        """
        name = module_name(source)
        module = sys.modules.get(name)
        if module is None:
            module = ModuleType(name)
            module.__file__ = where
            sys.modules[name] = module
            try:
                exec(compile(source, where, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the user's own code, or verified
            except (Exception, SystemExit) as error:
                del sys.modules[name]
                raise UsageError(f"{where} does not run: {type(error).__name__}: {error}.{_remedy(error)}") from error
        for wanted in ("features", "pipeline"):
            if not callable(getattr(module, wanted, None)):
                raise UsageError(f"{where} does not define {wanted}(). Every job's Python file defines it.")
        return cls(source, module)

    @classmethod
    def at(cls, path: Path) -> Features:
        """The module in a file.

        Raises:
            UsageError: The file cannot be read, or see `of`.
        """
        try:
            return cls.of(path.read_text("utf-8"), str(path))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}. A job's features live there.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error

    @property
    def digest(self) -> str:
        """The SHA-256 of the source, in hex."""
        return digest_of(self.source)

    def pipeline(self) -> Any:
        """A new, unfitted pipeline."""
        return self.module.pipeline()

    def transform(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The features of rows, one row for each, shape `(rows, features)`.

        Raises:
            TrainingError: The transform gave no frame of Polars', or one without a column.
            ValueError: It gave another number of rows.
        """
        function: Callable[[pl.LazyFrame], object] = self.module.features
        try:
            given = function(rows.lazy())
            result = given.collect() if isinstance(given, pl.LazyFrame) else given
        except pl.exceptions.PanicException as error:
            # Polars panics on some values, such as a year it cannot write, and a panic passes `except Exception`.
            raise pl.exceptions.ComputeError(str(error)) from error
        if not isinstance(result, pl.DataFrame):
            kind = f"{type(result).__module__}.{type(result).__qualname__}".removeprefix("builtins.")
            raise TrainingError(
                f"features() must return a Polars LazyFrame, it returned {kind}. End it with: return rows.select(…)."
            )
        if not result.columns:
            raise TrainingError("features() gave no column. End it with: return rows.select(…), with one or more.")
        if result.height != rows.height:
            raise ValueError(f"features() gave {result.height} rows for {rows.height}")
        return result


def module_name(source: str) -> str:
    """What the module of that text is called among the imported ones."""
    return f"batchscore_features_{digest_of(source)[:16]}"


def _remedy(error: BaseException) -> str:
    """What to install, where that is what is missing."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return ""
    package = error.name.partition(".")[0]
    wanted = f"'batchscore[{package}]'" if package in _EXTRAS else f"the package that has {package}"
    return f" Install what it needs: pip install {wanted}."


def digest_of(text: str) -> str:
    """The SHA-256 of a text in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_row_wise(features: Features, rows: pl.DataFrame) -> None:
    """Refuse a transform whose result for a row depends on the other rows.

    The whole, its parts, its reverse and single rows are transformed and compared, on an even sample of the rows:
    a chunk of a nightly run is such a part.

    Raises:
        TrainingError: Some row's features differ, by column.
    """
    sample = rows.gather_every(max(1, rows.height // _ROW_WISE_SAMPLE))
    whole = features.transform(sample)
    third, step = -(-sample.height // 3), max(1, sample.height // 20)
    parts = [part for part in (sample[:third], sample[third:]) if part.height]
    _same(whole, [features.transform(part) for part in parts], "in parts")
    _same(whole.reverse(), [features.transform(sample.reverse())], "in reverse")
    single = [features.transform(sample[i : i + 1]) for i in range(0, sample.height, step)]
    _same(whole.gather_every(step), single, "one by one")


def _same(whole: pl.DataFrame, parts: Sequence[pl.DataFrame], how: str) -> None:
    if odd := [part for part in parts if part.schema != whole.schema]:
        raise TrainingError(
            f"features() is not row-wise: transformed {how}, the rows have columns {dict(odd[0].schema)} instead of "
            f"{dict(whole.schema)}. Name every column and cast it to a fixed type."
        )
    together = pl.concat(parts)
    for name in whole.columns:
        differ = ~whole[name].eq_missing(together[name])
        if differ.any():
            raise TrainingError(
                f"features() is not row-wise: column {name} of a row changes when the rows are transformed {how} "
                f"({differ.sum()} of {whole.height} sampled rows). What needs other rows belongs in the SQL; what "
                "learns from the data belongs in the pipeline."
            )
