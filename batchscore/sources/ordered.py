"""Rows of a DuckDB query in the order of a key, however wide and many they are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import duckdb
import polars as pl

from batchscore.job import Value
from batchscore.sources.arrow import canonical
from batchscore.sources.duckdb import stream
from batchscore.sources.statement import Key, Page, identifier

__all__ = ["Ordered"]

# Rows from which the cuts are taken between keys that are sorted apart, and the parts that they make.
_SAMPLE, _PARTS = 10_000, 4

Bounds = tuple[Key | None, Key | None]


@dataclass(frozen=True, slots=True)
class Ordered:
    """A query's rows in key order, sorted a range of keys at a time where all of them are too much for the memory.

    DuckDB's sort goes to disk, but not with rows of hundreds of columns.

    Attributes:
        connect: Opens a DuckDB with the memory that the sort may hold.
        inner: The query.
        values: Of its parameters.
        page: The order, and what of the rows.
        where: For messages.
    """

    connect: Callable[[], duckdb.DuckDBPyConnection]
    inner: str
    values: Mapping[str, Value]
    page: Page
    where: str

    def batches(self, bounds: Bounds = (None, None)) -> Generator[pl.DataFrame]:
        """The rows from one key to before another, or those of no key; None has no bound there.

        Raises:
            duckdb.Error: DuckDB refuses, or one key's rows are too much.
        """
        query, values = self._between(bounds)
        given = False
        try:
            # One connection for all parts would keep the memory of those before.
            with closing(self.connect()) as connection:
                if bounds != (None, None):
                    # Each thread decodes a whole row group.
                    connection.execute("SET threads = 1")
                for batch in stream(connection, query, values, self.page, self.where):
                    given = given or batch.height > 0
                    yield batch
        except duckdb.Error as error:
            if (
                given
                or not self.page.order
                or "Out of Memory" not in str(error)
                or not (cuts := self.cuts(_PARTS, bounds))
            ):
                raise
        else:
            return
        for part in pairwise([bounds[0], *cuts, bounds[1]]):
            yield from self.batches(part)

    def _between(self, bounds: Bounds) -> tuple[str, dict[str, Value]]:
        """The query of the rows between two bounds; a key with a NULL is behind all others."""
        low, high = bounds
        names = [identifier(column.name) for column in self.page.order]
        keys, conditions, values = ", ".join(names), list[str](), dict(self.values)
        for bound, prefix in ((low, "low"), (high, "high")):
            values |= {f"batchscore_{prefix}_{place}": value for place, value in enumerate(bound or ())}
        low_key, high_key = (
            ", ".join(f"$batchscore_{prefix}_{place}" for place in range(len(names))) for prefix in ("low", "high")
        )
        # Of each pair the first says it in full; the second lets DuckDB leave out what it need not decode.
        if low:
            beyond = f" OR {names[0]} IS NULL" if high is None else ""
            conditions += [
                f"NOT coalesce(({keys}) < ({low_key}), false)",
                f"({names[0]} >= $batchscore_low_0{beyond})",
            ]
        if high:
            conditions += [f"coalesce(({keys}) < ({high_key}), false)", f"{names[0]} <= $batchscore_high_0"]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"SELECT * FROM ({self.inner}){where}", values

    def cuts(self, parts: int, bounds: Bounds = (None, None)) -> list[Key]:
        """Keys that cut the rows between the bounds into about equal parts; fewer where there are too few keys.

        Raises:
            duckdb.Error: DuckDB refuses.
        """
        query, values = self._between(bounds)
        names = [column.name for column in self.page.order]
        sql = f"SELECT {', '.join(map(identifier, names))} FROM ({query}) USING SAMPLE reservoir({_SAMPLE} ROWS)"
        with closing(self.connect()) as connection:
            sample = canonical(connection.sql(sql, params=values).to_arrow_table(), self.where)
        keys = sample.drop_nulls().sort(names).rows()
        found = dict.fromkeys(keys[len(keys) * part // parts] for part in range(1, parts) if keys)
        return [key for key in found if key not in (bounds[0], keys[0])]
