"""Arrow columns of any width as the seven types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import get_args

import polars as pl
import pyarrow as pa

from batchscore.errors import SchemaMismatch
from batchscore.schema import TypeName, dateable, type_name

__all__ = ["canonical", "no_rows"]


def canonical(batch: pa.RecordBatch | pa.Table, where: str, wanted: Collection[str] | None = None) -> pl.DataFrame:
    """Arrow columns of any width as canonical columns, shape kept.

    A column that is not among the `wanted` is NULL throughout, with the type Null; None wants all.

    Raises:
        SchemaMismatch: A wanted column has a type outside the seven (interval, JSON, list, binary …), an unsigned
            integer or timestamp that does not fit, or a name occurs twice.
    """
    if doubled := [name for name, n in Counter(batch.schema.names).items() if n > 1]:
        raise SchemaMismatch(f"{where} gives column {doubled[0]} twice. Name every column once, with AS.")
    columns = []
    for field, given in zip(batch.schema, batch.columns, strict=True):
        values = given if wanted is None or field.name in wanted else pa.nulls(batch.num_rows)
        columns.append(_canonical(field.name, values, where))
    return pl.DataFrame(columns)


def no_rows(schema: pa.Schema) -> pa.Table:
    """A table of those columns, shape `(0, columns)`."""
    # Arrow's own empty_table() fails on a list of an extension type, such as Postgres uuid[].
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def _canonical(name: str, values: pa.Array | pa.ChunkedArray, where: str) -> pl.Series:
    got = str(values.type)
    try:
        series, numeric = _polars(name, values)
        target = pl.Float64() if numeric else _target(series.dtype)
        if target is not None:
            return _dated(series if series.dtype == target else series.cast(target, strict=True))
    except (pl.exceptions.PolarsError, pa.ArrowException, ValueError) as error:
        raise SchemaMismatch.type_of(name, "an exact value", got, where, f"Cast it at the source: {error}") from error
    supported = ", ".join(get_args(TypeName))
    raise SchemaMismatch.type_of(name, f"one of {supported}", got, where, "Cast it at the source.")


def _polars(name: str, values: pa.Array | pa.ChunkedArray) -> tuple[pl.Series, bool]:
    """The column in Polars, and whether it is text that spells decimals."""
    type_ = values.type
    if isinstance(type_, pa.BaseExtensionType):
        return _extension(name, values)
    if pa.types.is_dictionary(type_):
        return _polars(name, values.cast(type_.value_type))
    # Polars panics on these, past every `except Exception`.
    if pa.types.is_interval(type_) or pa.types.is_duration(type_):
        raise ValueError("an interval is not a column type here; EXTRACT(epoch FROM …) gives its seconds")
    if pa.types.is_nested(type_):
        raise ValueError("a list or record is not a column type here; give each of its parts a column")
    if pa.types.is_decimal256(type_) or (pa.types.is_decimal(type_) and type_.scale < 0):
        return pl.Series(name, values.cast(pa.string())), True
    # Arrow refuses a time that does not fit, or would lose digits; Polars wraps it round or cuts it off.
    if pa.types.is_timestamp(type_):
        values = values.cast(pa.timestamp("us", "UTC" if type_.tz else None))
    elif pa.types.is_date64(type_):
        values = values.cast(pa.date32())
    return pl.Series(name, values), False


def _extension(name: str, values: pa.Array | pa.ChunkedArray) -> tuple[pl.Series, bool]:
    type_ = values.type
    if isinstance(type_, pa.OpaqueType):
        # ADBC hands over what Arrow cannot name: Postgres NUMERIC as its digits, everything else as bytes or text.
        if type_.type_name == "numeric":
            return pl.Series(name, _storage(values).cast(pa.string())), True
        raise ValueError(f"{type_.vendor_name} type {type_.type_name} has no column type here")
    if isinstance(type_, pa.UuidType):
        raw = pl.Series(name, _storage(values).cast(pa.binary())).bin.encode("hex")
        return raw.str.replace(r"^(.{8})(.{4})(.{4})(.{4})(.{12})$", "${1}-${2}-${3}-${4}-${5}"), False
    raise ValueError(f"extension type {type_} has no column type here")


def _dated(series: pl.Series) -> pl.Series:
    """The column, if its dates are ones that Python has; Polars panics when it shows another."""
    if isinstance(series.dtype, (pl.Date, pl.Datetime)) and not dateable(series.drop_nulls()).all():
        raise ValueError("it holds infinity, or a year outside 1 to 9999; NULLIF(…, 'infinity') makes that NULL")
    return series


def _storage(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.storage


def _target(dtype: pl.DataType) -> pl.DataType | None:
    if dtype.is_integer():
        return pl.Int64()
    if dtype.is_float() or dtype.is_decimal():
        return pl.Float64()
    return dtype if type_name(dtype) is not None or dtype == pl.Null() else None
