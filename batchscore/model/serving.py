"""A bundle behind MLflow's pyfunc: pandas rows in, for each row what batch scoring writes, or why there is nothing.

MLflow imports this module by the name that stands in the model's `MLmodel`, and calls `_load_pyfunc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.exceptions import PolarsError

from batchscore.errors import InputError, SchemaMismatch
from batchscore.model.bundle import MANIFEST, Bundle
from batchscore.model.compiled import put_to_use
from batchscore.model.scorer import check_golden, predict
from batchscore.model.trust import SIGNATURE, Trust
from batchscore.schema import Column
from batchscore.settings import load_settings

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["REJECT", "Served", "rows_of"]

# Beside what batch scoring writes: it has a table for rows that are not scored, and an answer has one line for each.
REJECT = "reject"
_WHERE = "the request"
# A double that is as large stands for more than one whole number.
_ONE_NUMBER = 2**53


@dataclass(frozen=True, slots=True)
class Served:
    """What `mlflow.pyfunc.load_model` wraps.

    Attributes:
        bundle: The bundle, verified, its golden rows scored here.
    """

    bundle: Bundle

    def predict(self, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score rows as a batch would.

        Args:
            rows: The columns of the job's query, in any order; one that may be NULL may be left out, and others are
                ignored.
            params: None are known.

        Returns:
            One row for each, in order: `prediction`, the scores and the reasons as batch scoring writes them, and
            `reject` (text). A row that cannot be scored has None in all others and the reason there; else it has None.

        Raises:
            MlflowException: A column is missing, or holds what is no exact value of its type, or too many rows fail:
                the words of `SchemaMismatch` or `TooManyRejects`, which its server answers with, as a bad request.
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException

        try:
            conforming = self.bundle.schema.conform(rows_of(rows, self.bundle), _WHERE)
            predicted, rejects = predict(self.bundle, conforming)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        told = rejects.select("row", pl.format("{}: {}", "reason", "detail").alias(REJECT))
        answers = (
            pl.DataFrame({"row": pl.int_range(conforming.height, dtype=pl.UInt32, eager=True)})
            .join(predicted, on="row", how="left", maintain_order="left")
            .join(told, on="row", how="left", maintain_order="left")
            .drop("row")
        )
        # Python's own values: pandas would make a float of an integer beside a None, and a NaN of the None.
        columns = {series.name: pd.Series(series.to_list(), dtype=object) for series in answers.iter_columns()}
        return pd.DataFrame(columns).set_index(rows.index)


def _load_pyfunc(path: str) -> Served:
    """The bundle in a folder, verified as the settings `BATCHSCORE_…` of this process ask for.

    Raises:
        BundleCorrupt, BundleUntrusted, BundleIncompatible: See `Registry.load`.
        GoldenRowsDiffer: The libraries here give other predictions than those of training.
    """
    settings = load_settings()
    trust = Trust.of(settings.verify_keys, None, settings.allow_unsigned, settings.allowed_modules)
    files = {file.name: file.read_bytes() for file in sorted(Path(path).iterdir())}
    signed_by = trust.check(files.get(MANIFEST, b""), files.get(SIGNATURE), path)
    bundle = Bundle.load(files, path, trust.modules)
    check_golden(bundle)
    return Served(put_to_use(bundle, trusted=signed_by is not None or not trust.keys))


def rows_of(rows: pd.DataFrame, bundle: Bundle) -> pl.DataFrame:
    """The bundle's columns of pandas rows as canonical ones, a column that is not there and may be NULL as NULLs.

    pandas has one mark for NULL and NaN. It becomes NULL, but for a column in which training saw NaN and no NULL.

    Raises:
        SchemaMismatch: A column holds several types, or whole numbers that a double does not tell apart.
    """
    series = [_canonical(rows[each.name], each) for each in bundle.schema if each.name in rows.columns]
    absent = [
        pl.Series(each.name, [None] * len(rows), pl.Null())
        for each in bundle.schema
        if each.name not in rows.columns and each.nullable
    ]
    return pl.DataFrame([*series, *absent])


def _canonical(values: pd.Series, column: Column) -> pl.Series:
    import numpy as np

    numeric = isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf"
    try:
        series = pl.Series(
            column.name, values.to_numpy() if numeric else [_plain(value) for value in values], strict=True
        )
        if series.dtype.is_integer():
            series = series.cast(pl.Int64)
    except (PolarsError, TypeError, OverflowError) as error:
        raise SchemaMismatch.type_of(
            column.name, column.type, "values of several types, or past 64 bits", _WHERE, "Give one type in a column."
        ) from error
    if series.dtype.is_float():
        return _without_nan(series.cast(pl.Float64), column)
    if isinstance(series.dtype, pl.Datetime):
        return _timestamps(series, column)
    return series


def _plain(value: Any) -> Any:
    """A value as Python has it; None for each of the marks for NULL that pandas knows."""
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float) and value != value:  # noqa: PLR0124 - NaN alone is not itself
        return None
    if isinstance(value, pd.Timestamp):
        if value.nanosecond:
            raise TypeError(f"{value} is no whole microsecond")
        value = value.to_pydatetime()
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    return value


def _without_nan(series: pl.Series, column: Column) -> pl.Series:
    if column.type == "float":
        return series if column.nan and not column.nullable else series.fill_nan(None)
    series = series.fill_nan(None)
    if column.type == "integer" and (series.abs() >= _ONE_NUMBER).any():
        raise SchemaMismatch.type_of(
            column.name, column.type, "a float past 2^53", _WHERE,
            "pandas makes floats of whole numbers beside a NULL: give this column the dtype Int64, or send the rows "
            "with a NULL in a request of their own.",
        )  # fmt: skip
    return series


def _timestamps(series: pl.Series, column: Column) -> pl.Series:
    if column.type == "date" and bool((series.dt.truncate("1d") == series).all()):
        # pandas has no dtype for a date.
        return series.cast(pl.Date)
    return series
