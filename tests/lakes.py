"""Projects whose output tables are Delta tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import toy
from deltalake import DeltaTable
from toy import Project, Result

VARIABLE = "BATCHSCORE_DELTA_URL"


@dataclass(frozen=True)
class Lakeside(Project):
    """A project that publishes into Delta tables below `lake`, a folder of its own or a place in a bucket."""

    lake: str = "lake"

    @classmethod
    def of(cls, project: Project, lake: str = "lake") -> Lakeside:
        """The same project, beside a lake."""
        return cls(project.root, project.url, lake)

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**({VARIABLE: self.lake} | more))

    def call(self, *args: str, **environment: str) -> Result:
        return super().call(*args, **({VARIABLE: self.lake} | environment))

    @property
    def location(self) -> str:
        """Where the output table is."""
        return f"{self.lake}/toy_predictions" if "://" in self.lake else str(self.root / self.lake / "toy_predictions")

    @property
    def storage(self) -> dict[str, str]:
        """What a reader needs beside the location."""
        return {"allow_http": "true"} if "://" in self.lake else {}

    def delta(self) -> DeltaTable:
        """The output table, as it is now."""
        return DeltaTable(self.location, storage_options=self.storage)

    def frame(self) -> pl.DataFrame:
        """Its rows by key."""
        return pl.DataFrame(self.delta().scan()).sort("id")

    def table(
        self, columns: Sequence[str] = ("id", "day", "prediction", "score", "model_version")
    ) -> list[tuple[Any, ...]]:
        return self.frame().select(columns).rows()

    def runs(self) -> list[tuple[Any, ...]]:
        """Status, counts and errors of the ledger's runs, by interval and age."""
        told = "status, revision, rows_read, predictions, rejects, chunks, rows_so_far, input_hash, error"
        return toy.query(self.url, f"SELECT {told} FROM batchscore_runs ORDER BY interval_start, scored_at, revision")

    def writes(self) -> list[dict[str, Any]]:
        """The commits that changed rows, the oldest first."""
        return [
            each
            for each in reversed(self.delta().history())
            if each["operation"] == "WRITE" and "batchscore.run_id" in each
        ]
