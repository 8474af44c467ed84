"""What a bundle learned, from which rows, and what stops training, from real DuckDB, SQLite and Parquet sources."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import polars.selectors as cs
import pytest
from polars.testing import assert_frame_equal
from sklearn import metrics as sk

from batchscore.database import Database
from batchscore.errors import BatchscoreError, KeyViolation, SchemaMismatch, TrainingError, UsageError
from batchscore.job import Job, Rows
from batchscore.model.bundle import Bundle, libraries_here
from batchscore.model.features import Features
from batchscore.model.scorer import check_golden
from batchscore.problem import Success
from batchscore.sources import Source, open_source
from batchscore.train.split import split
from batchscore.train.workflow import promotable, train
from tests.models import CLASSIFIER, FEATURES, REGRESSOR, Frame, bundle, job, labels, slow, trips

N = 160
HELD_OUT = 40
ROWS_SQL = "SELECT * FROM trips WHERE started >= :interval_start AND started < :interval_end"
LABELS_SQL = (
    "SELECT l.* FROM labels l JOIN trips t USING (id) WHERE started >= :interval_start AND started < :interval_end"
)
SQLITE_TYPES = {pl.Datetime("us", "UTC"): "TIMESTAMP", pl.Date(): "DATE", pl.Boolean(): "BOOLEAN"}
RANDOM = {"training": {"from": date(2024, 1, 1), "to": date(2025, 1, 1), "split": {"by": "random", "test": 0.25}}}

Train = Callable[..., Bundle]


def in_duckdb(folder: Path, job: Job, rows: pl.DataFrame, known: pl.DataFrame) -> tuple[Source, Source]:
    """The rows and labels as queries on a DuckDB file."""
    path = folder / "warehouse.duckdb"
    with closing(duckdb.connect(path)) as connection:
        for name, frame in (("trips", rows), ("labels", known)):
            connection.register("frame", frame.to_arrow())
            connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM frame")
    return on_database(f"duckdb:///{path}", job)


def in_sqlite(folder: Path, job: Job, rows: pl.DataFrame, known: pl.DataFrame) -> tuple[Source, Source]:
    """The rows and labels as queries on an SQLite file, whose times are text in columns declared to hold times."""
    path = folder / "warehouse.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        for name, frame in (("trips", rows), ("labels", known)):
            plain = frame.with_columns(cs.datetime().dt.to_string("%Y-%m-%d %H:%M:%S"), cs.date().cast(pl.String))
            columns = [f"{c} {SQLITE_TYPES.get(dtype, '')}" for c, dtype in frame.schema.items()]
            connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
            connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * plain.width)})", plain.rows())
    return on_database(f"sqlite:///{path}", job)


def in_parquet(folder: Path, job: Job, rows: pl.DataFrame, known: pl.DataFrame) -> tuple[Source, Source]:
    """The rows and labels as Parquet files; labels carry the time as well, as such files must."""
    sources = []
    for name, frame in (("trips", rows), ("labels", known.join(rows.select("id", "started"), on="id", how="left"))):
        path = folder / f"{name}.parquet"
        frame.write_parquet(path)
        given = {"parquet": str(path), "key": ("id",), "time_column": "started"}
        asked = job.source.model_validate(given)
        sources.append(open_source(asked, database=None, text=None, where=path.name, calendar=job.calendar))
    return sources[0], sources[1]


def on_database(url: str, job: Job) -> tuple[Source, Source]:
    """The two queries on a database."""
    database = Database.at(url)
    sources = [
        open_source(Rows(sql=Path(where)), database=database, text=text, where=where, calendar=job.calendar)
        for where, text in (("trips/rows.sql", ROWS_SQL), ("trips/labels.sql", LABELS_SQL))
    ]
    return sources[0], sources[1]


@pytest.fixture
def trained(tmp_path: Path) -> Train:
    """Train on rows and labels that lie in a DuckDB file; what is not given is what works."""

    def run(
        rows: pl.DataFrame | None = None,
        target: pl.Series | None = None,
        *,
        known: pl.DataFrame | None = None,
        source: str = CLASSIFIER,
        **tables: Mapping[str, Any] | None,
    ) -> Bundle:
        rows = trips(N) if rows is None else rows
        known = labels(rows, slow(rows) if target is None else target) if known is None else known
        asked = job(**tables)
        given = in_duckdb(tmp_path, asked, rows, known)
        return train(asked, Features.of(source, "jobs/trips.py"), ROWS_SQL, *given, lambda step: None)

    return run


def parameters(bundle: Bundle) -> list[bytes]:
    """Every fitted number of the pipeline, bit by bit."""
    scaler, model = bundle.predictor.pipeline
    return [array.tobytes() for array in (scaler.mean_, scaler.scale_, model.coef_, model.intercept_)]


class TestTrain:
    """`train`."""

    @pytest.mark.parametrize("store", [in_duckdb, in_sqlite, in_parquet])
    def test_every_source(self, tmp_path: Path, store: Callable[..., tuple[Source, Source]]) -> None:
        """From DuckDB, SQLite and Parquet, what is fitted is the job's pipeline, on the features of the rows not held out."""
        rows, asked = trips(N), job()
        features = Features.of(CLASSIFIER, "jobs/trips.py")
        given = store(tmp_path, asked, rows, labels(rows, slow(rows)))
        made = train(asked, features, None, *given, lambda step: None)
        expected = features.pipeline().fit(features.transform(rows[:-HELD_OUT]), slow(rows).to_numpy()[:-HELD_OUT])

        assert parameters(made) == parameters(replace(made, predictor=replace(made.predictor, pipeline=expected)))
        assert (False, True) == made.predictor.classes
        check_golden(made)

    @pytest.mark.parametrize("by", ["time", "random"])
    def test_learned_until(self, trained: Train, by: str) -> None:
        """What it has learned from ends with the latest of its training and validation rows, and before all others."""
        rows = trips(N)
        parts = {"validation": 0.25, "test": 0.25, **({"column": "started"} if by == "time" else {})}
        made = trained(rows, training={"split": {"by": by, **parts}})
        until = datetime.fromisoformat(made.manifest.training.learned_until or "")
        # The golden rows are the test rows, where these are few.
        learned = rows.filter(~pl.col("id").is_in(made.golden_rows["id"].implode()))

        assert made.golden_rows.height == HELD_OUT
        assert until == learned["started"].max()

    def test_says_what_it_did(self, trained: Train) -> None:
        """The manifest has the window in UTC, the rows at every step, the libraries and the metrics of the rows held out."""
        rows = trips(N)
        known = labels(rows, slow(rows)).filter(pl.col("id") % 10 > 0)
        begun = datetime.now(UTC).replace(microsecond=0)
        window = {"from": date(2024, 1, 1), "to": date(2024, 1, 6), "split": {"by": "time", "column": "started"}}
        made = trained(rows, known=known, training=window, interval={"timezone": "America/New_York"})
        manifest, counts = made.manifest, made.manifest.training
        # From 05:00 UTC of the first day up to 05:00 UTC of the sixth.
        inside = rows[5:125].join(known, on="id").sort("id")
        held_out = inside[-round(inside.height * 0.2) :]
        features = made.predictor.features.transform(held_out.drop("slow"))
        p = made.predictor.pipeline.predict_proba(features)[:, 1]
        y = held_out["slow"].to_numpy()

        assert ("2024-01-01T05:00:00+00:00", "2024-01-06T05:00:00+00:00") == (counts.start, counts.end)
        assert (120, 108, 86, 22) == (counts.rows, counts.labelled, counts.fitted, counts.tested)
        assert libraries_here() == manifest.libraries
        assert {"python", "scikit-learn", "numpy", "polars", "joblib", "scipy"} == manifest.libraries.keys()
        assert math.isclose(sk.roc_auc_score(y, p), manifest.metrics["roc_auc"])
        assert math.isclose(np.mean((p > 0.5) == y), manifest.metrics["accuracy"])
        assert math.isclose(np.mean((p - y) ** 2), manifest.metrics["brier"])
        assert math.isclose(y.mean(), manifest.metrics["base_rate"])
        assert ("trips", "trips", "binary", "slow") == (
            manifest.name,
            manifest.job,
            manifest.problem.task,
            manifest.problem.target,
        )
        assert (("id",), (False, True), 0) == (manifest.key, manifest.classes, manifest.version)
        assert begun <= datetime.fromisoformat(manifest.created_at) <= datetime.now(UTC)
        assert rows.columns == made.schema.names == [column["name"] for column in manifest.columns]
        assert ["carrier"] == [column.name for column in made.schema if column.nullable]
        assert (ROWS_SQL, CLASSIFIER) == (made.query, made.predictor.features.source)

    def test_says_what_it_was_made_with(self, trained: Train) -> None:
        """The evaluation has the recipe, and each parameter of the pipeline that is a value, down to the last step."""
        split = {"by": "time", "column": "started", "test": 0.3}

        parameters = trained(
            training={"from": date(2024, 1, 1), "to": date(2024, 1, 6), "split": split}
        ).evaluation.parameters

        assert parameters["training.from"] == "2024-01-01"
        assert parameters["training.split.test"] == "0.3"
        assert parameters["logisticregression__C"] == "1.0"
        assert parameters["standardscaler__with_mean"] == "True"
        assert not {"steps", "logisticregression", "training.split"} & parameters.keys()

    def test_an_estimator_of_ones_own_need_not_tell_its_parameters(self, trained: Train) -> None:
        """One that has no `get_params` is trained all the same."""
        source = f"""{FEATURES}

class Own:
    def fit(self, x, y):
        from sklearn.linear_model import LogisticRegression

        self.inside = LogisticRegression().fit(x, y)
        self.classes_ = self.inside.classes_
        return self

    def predict_proba(self, x):
        return self.inside.predict_proba(x)


def pipeline():
    return Own()
"""

        made = trained(source=source)

        assert all(name.startswith("training.") for name in made.evaluation.parameters)

    def test_references(self, trained: Train) -> None:
        """The reference of the inputs is of all rows read; that of the predictions is of the rows held out."""
        made = trained(known=labels(trips(N), slow(trips(N))).head(100))

        assert dict.fromkeys(trips(1).columns, N) == {n: c.n for n, c in made.input_reference.columns.items()}
        assert {"prediction": 25, "score": 25} == {n: c.n for n, c in made.output_reference.columns.items()}
        assert 201 == len(made.output_reference.layouts["score"].edges)

    @pytest.mark.parametrize("tables", [{}, RANDOM], ids=["time", "random"])
    def test_held_out_rows_teach_nothing(self, trained: Train, tables: dict[str, Any]) -> None:
        """Whatever the held-out rows hold, the fitted parameters are the same to the bit; those of the others count.

        At random their labels stay as they are: a stratified draw goes by the labels of all rows.
        """
        rows = trips(N)
        held_out = pl.col("id").is_in(
            split(rows.with_columns(slow(rows)), job(**tables).training.split, "slow").test["id"].implode()
        )

        def poisoned(which: pl.Expr) -> Bundle:
            known = labels(rows, slow(rows)).with_columns(
                slow=pl.col("slow") ^ (which if not tables else pl.lit(False))
            )
            spoilt = rows.with_columns(
                distance=pl.when(which).then(pl.col("distance") * 1e9).otherwise("distance"),
                speed=pl.when(which).then(-1e12).otherwise("speed"),
                carrier=pl.when(which).then(pl.lit("AA")).otherwise("carrier"),
            )
            return trained(spoilt, known=known, **tables)

        clean = poisoned(pl.lit(False))

        assert parameters(clean) == parameters(poisoned(held_out))
        assert parameters(clean) != parameters(poisoned(~held_out & (pl.col("id") < 40)))
        assert clean.manifest.metrics != poisoned(held_out).manifest.metrics

    @pytest.mark.parametrize("tables", [{}, RANDOM], ids=["time", "random"])
    def test_golden_rows_are_held_out(self, trained: Train, tables: dict[str, Any]) -> None:
        """Golden rows are rows that were not fitted on, without their label, with what the pipeline says of them."""
        made = trained(**tables)
        test = split(trips(N).with_columns(slow(trips(N))), job(**tables).training.split, "slow").test.drop("slow")
        features = made.predictor.features.transform(test)

        assert_frame_equal(test, made.golden_rows)
        assert made.predictor.pipeline.predict(features).tolist() == made.golden_predictions["prediction"].to_list()
        check_golden(made)

    def test_golden_rows_are_few(self, trained: Train) -> None:
        """Of many held-out rows, two hundred from all over them are golden."""
        made = trained(trips(2_000))
        ids = made.golden_rows["id"]

        assert 200 == ids.n_unique() == len(ids)
        assert ids.min() == 1_500
        assert ids.max() > 1_850
        check_golden(made)

    def test_features_never_see_the_target(self, trained: Train) -> None:
        """Features that take whatever number there is do not get the target, and nothing else that scoring lacks."""
        source = CLASSIFIER.replace("    return rows.select(", "    return rows.select(pl.selectors.numeric())\n    (")
        target = slow(trips(N)).cast(pl.Int64)

        assert ["id", "distance", "speed"] == list(
            trained(None, target, source=source).predictor.pipeline.feature_names_in_
        )

    def test_same_seed(self, trained: Train) -> None:
        """Training twice on the same rows gives the same model; another seed gives another."""
        other = {"training": RANDOM["training"] | {"split": {"by": "random", "test": 0.25, "seed": 5}}}
        one, two, three = trained(**RANDOM), trained(**RANDOM), trained(**other)

        assert parameters(one) == parameters(two)
        assert one.manifest.metrics == two.manifest.metrics
        assert parameters(one) != parameters(three)

    def test_steps(self, trained: Train, tmp_path: Path) -> None:
        """Who watches is told what is being done, with the numbers of rows."""
        trained()
        told: list[str] = []
        train(job(), Features.of(CLASSIFIER, "f.py"), ROWS_SQL, *_reopened(tmp_path), told.append)

        assert ["reading rows", "checking that", "reading labels", "looking at", "fitting on", "testing on"] == [
            " ".join(step.split()[:2]) for step in told
        ]
        assert "fitting on 120 rows" in told
        assert "testing on 40 rows held out" in told

    def test_tells_of_rows_without_a_label(self, trained: Train) -> None:
        """Rows that are left out for want of a label are told, and none where there is none."""
        told: list[str] = []
        known = labels(trips(N), slow(trips(N)))
        source = Features.of(CLASSIFIER, "f.py")
        for some in (known, known.head(100)):
            train(job(), source, ROWS_SQL, Frame(trips(N)), Frame(some), told.append)

        assert [step for step in told if "no label" in step] == ["leaving out 60 of 160 rows, which have no label"]


def _reopened(folder: Path) -> tuple[Source, Source]:
    return on_database(f"duckdb:///{folder / 'warehouse.duckdb'}", job())


class TestColumns:
    """What can be told before a row is read."""

    @pytest.mark.parametrize(
        ("tables", "says"),
        [
            (
                {"training": {"split": {"by": "time", "column": "startd", "test": 0.2}}},
                r"\[training\] split names 'startd', which trips/rows.sql .* Did you mean started\? It has: id, started,",
            ),
            ({"output": {"carry": ["dya"]}}, r"\[output\] carry names 'dya', which .* Did you mean day\?"),
            (
                {"problem": {"target": "speed"}},
                "gives the target 'speed' itself: .* Leave it out of the rows; it comes",
            ),
            (
                {"problem": {"target": "speed"}, "source": {"sql": None, "parquet": "trips/*.parquet"}},
                "gives the target 'speed' itself: .* Write the files without it, or read them by a query",
            ),
        ],
    )
    def test_before_the_rows(self, tables: dict[str, Any], says: str) -> None:
        """A column that training needs, or must not have, is found missing, or there, before the rows are read."""

        class Unread(Frame):
            def batches(self, *_: object, **__: object) -> Iterator[pl.DataFrame]:
                yield self.rows.clear()
                raise AssertionError("the rows are read")

        with pytest.raises(TrainingError, match=says):
            train(job(**tables), Features.of(CLASSIFIER, "f.py"), ROWS_SQL, *[Unread(trips(9))] * 2, str)


class TestLabels:
    """How labels reach rows."""

    def test_what_no_schema_has(self, trained: Train) -> None:
        """A column beside the key and the target is not looked at, whatever its type."""
        known = labels(trips(N), slow(trips(N))).with_columns(why=pl.lit([{"clerk": "A", "notes": [1, 2]}]))

        assert N == trained(known=known).manifest.training.labelled

    def test_by_key(self, trained: Train) -> None:
        """Labels find their rows by key, whatever their order and number; those of other rows are left alone."""
        rows = trips(N)
        known = labels(rows, slow(rows))
        more = pl.concat([known, known.with_columns(pl.col("id") + 1_000)]).sample(fraction=1, shuffle=True, seed=3)

        assert parameters(trained(rows, known=known)) == parameters(trained(rows, known=more))

    def test_missing(self, trained: Train) -> None:
        """A row without a label, or with a NULL for one, is not fitted on, nor held out."""
        rows = trips(N)
        known = labels(rows, slow(rows))
        absent = trained(rows, known=known.filter(pl.col("id") % 4 > 0))
        null = trained(rows, known=known.with_columns(slow=pl.when(pl.col("id") % 4 > 0).then("slow")))

        assert parameters(absent) == parameters(null) != parameters(trained(rows, known=known))
        assert (N, 120, 90, 0, 30) == tuple(
            absent.manifest.training.model_dump(exclude={"start", "end", "learned_until"}).values()
        )
        assert null.manifest.training == absent.manifest.training

    @pytest.mark.parametrize("width", [pl.Int16, pl.Int32, pl.UInt8, pl.UInt64])
    def test_other_width(self, trained: Train, width: pl.DataType) -> None:
        """Label keys may be integers of another width."""
        rows = trips(N)
        known = labels(rows, slow(rows))

        assert parameters(trained(rows, known=known)) == parameters(
            trained(rows, known=known.with_columns(pl.col("id").cast(width)))
        )

    def test_composite_key(self, trained: Train) -> None:
        """A key of several columns joins by all of them."""
        rows = trips(N).with_columns(leg=pl.col("id") % 2, id=pl.col("id") // 2)
        known = rows.select("leg", "id", slow(rows))
        tables: dict[str, Any] = {"source": {"key": ["id", "leg"]}}
        asked = job(**tables)
        frames = [Frame(rows), Frame(known.reverse())]
        made = train(asked, Features.of(CLASSIFIER, "f.py"), None, *frames, lambda step: None)

        assert parameters(made) == parameters(trained())
        assert ("id", "leg") == made.key

    @pytest.mark.parametrize(
        ("change", "error", "says"),
        [
            (lambda known: known.rename({"slow": "late"}), TrainingError, "labels.sql has no column 'slow'.*id, late"),
            (lambda known: known.drop("id").with_columns(ident=1), BatchscoreError, "id"),
            (
                lambda known: known.with_columns(pl.col("id") + 1_000),
                TrainingError,
                "none of the 160 rows .* Check that trips/labels.sql",
            ),
            (lambda known: known.clear(), TrainingError, "none of the 160 rows .* has a label"),
            (
                lambda known: known.with_columns(slow=pl.lit(None, pl.Boolean))[:90],
                TrainingError,
                "labels.sql has 90 of the rows .*, and slow is NULL in all of them. Take a window",
            ),
            (lambda known: pl.concat([known, known[:1]]), KeyViolation, "labels.sql: the key .id = 0.*more than once"),
        ],
    )
    def test_refuses(self, trained: Train, change: Callable[..., pl.DataFrame], error: type, says: str) -> None:
        """Labels without target or key, or of no row at all, or two of one row, are refused by their file."""
        known = labels(trips(N), slow(trips(N)))

        with pytest.raises(error, match=says):
            trained(known=change(known))

    def test_key_of_another_type(self, trained: Train) -> None:
        """A key that is text among the labels and a number among the rows is refused, and not found in none."""
        known = labels(trips(N), slow(trips(N)))
        frames = [Frame(trips(N)), Frame(known.with_columns(pl.col("id").cast(pl.String)), "trips/labels.sql")]

        with pytest.raises(SchemaMismatch, match=r"labels.sql: column id: want integer, got string"):
            train(job(), Features.of(CLASSIFIER, "f.py"), None, *frames, lambda step: None)


class TestRefusals:
    """What cannot give a bundle."""

    def test_no_training(self, trained: Train) -> None:
        """A job without [training] or without [labels] is refused before anything is read."""
        for tables in ({"training": None}, {"labels": None}):
            with pytest.raises(UsageError, match=r"no \[training\] or no \[labels\]"):
                trained(**tables)

    @pytest.mark.parametrize(
        ("change", "error", "says"),
        [
            (lambda rows: rows.with_columns(slow=True), TrainingError, "rows.sql gives the target 'slow' itself"),
            (lambda rows: rows.clear(), TrainingError, r"rows.sql gives no row for \[2024-01-01.*Widen \[training\]"),
            (
                lambda rows: rows.with_columns(pl.col("started") + pl.duration(days=900)),
                TrainingError,
                "gives no row for",
            ),
            (lambda rows: rows.drop("day"), TrainingError, r"\[output\] carry names 'day', which trips/rows.sql does"),
            (lambda rows: rows.with_columns(id=0), KeyViolation, "rows.sql: the key .id = 0"),
            (
                lambda rows: rows.drop("id"),
                SchemaMismatch,
                r"column\(s\) that \[source\] key names: id\. .*, or correct the key in the job file\.$",
            ),
        ],
    )
    def test_rows(self, trained: Train, change: Callable[..., pl.DataFrame], error: type, says: str) -> None:
        """Rows with the target in them, none at all, no carried column, no key or no unique one are refused by their file."""
        rows = trips(N)
        known = labels(rows, slow(rows))

        with pytest.raises(error, match=says):
            trained(change(rows), known=known)

    def test_column_of_nulls(self, trained: Train, tmp_path: Path) -> None:
        """A column that is NULL throughout is refused by name where nothing says its type, and taken where it is cast."""
        rows = trips(N).with_columns(wind=pl.lit(None, pl.Float64))
        made = trained(rows)
        untyped = in_sqlite(tmp_path, job(), rows, labels(rows, slow(rows)))

        assert ("float", True) == (made.schema["wind"].type, made.schema["wind"].nullable)
        with pytest.raises(SchemaMismatch, match=r"column wind: .* Every value is NULL; cast it at the source"):
            train(job(), Features.of(CLASSIFIER, "f.py"), ROWS_SQL, *untyped, lambda step: None)

    @pytest.mark.parametrize(
        ("task", "target", "says"),
        [
            ("binary", lambda rows: rows["distance"], "target 'slow' is float; a binary target is boolean or integer"),
            ("binary", lambda rows: slow(rows).cast(pl.Float64), "target 'slow' is float; a binary target"),
            ("multiclass", lambda rows: rows["day"], "target 'slow' is date; a multiclass target"),
            ("regression", lambda rows: rows["carrier"], "target 'slow' is string; a regression target is integer or"),
            ("regression", slow, "target 'slow' is boolean; a regression target"),
            ("binary", lambda rows: rows["id"] % 3, r"task is binary, but the target has classes \(0, 1, 2\)"),
            ("binary", lambda rows: rows["id"] * 0, "one class of slow only: 0. Widen the training window"),
            ("multiclass", lambda rows: pl.select(pl.repeat("x", N)).to_series(), "one class of slow only: 'x'"),
            ("multiclass", lambda rows: pl.Series(["On Time", "on-time"] * 80), "share a score column: score_on_time"),
        ],
    )
    def test_target(self, trained: Train, task: str, target: Callable[..., pl.Series], says: str) -> None:
        """A target whose type or classes the task cannot have is refused, the type before anything is fitted."""
        source = REGRESSOR if task == "regression" else CLASSIFIER

        with pytest.raises(TrainingError, match=says):
            trained(target=target(trips(N)), source=source, problem={"task": task})

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("row", [0, N - 1])
    def test_target_not_finite(self, trained: Train, value: float, row: int) -> None:
        """A NaN or infinite target is refused, on either side of the split."""
        target = trips(N)["distance"].to_list()
        target[row] = value

        with pytest.raises(TrainingError, match="target 'slow' is NaN or infinite in some labels"):
            trained(target=pl.Series(target), source=REGRESSOR, problem={"task": "regression"})

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("raise KeyError('no such step')", "^pipeline.. fails on the training rows: KeyError: 'no such step'"),
            ("import sys; sys.exit()", "^pipeline.. fails on the training rows: SystemExit"),
            ("return None", r"^pipeline\(\) returned None, which is no estimator to fit. End it with: return make_pip"),
            ("return {'model': 1}", r"^pipeline\(\) returned \{'model': 1\}, which is no estimator"),
            (
                "from sklearn.svm import LinearSVC; return LinearSVC()",
                "gives no probabilities. Wrap its last step in CalibratedClassifierCV",
            ),
            (
                "from sklearn.linear_model import LogisticRegression; return LogisticRegression(C=-1)",
                "^pipeline...fit fails on the training rows: InvalidParameterError",
            ),
        ],
    )
    def test_pipeline(self, trained: Train, body: str, says: str) -> None:
        """A pipeline that cannot be made, cannot be fitted or gives no probabilities is refused in its own words."""
        with pytest.raises(TrainingError, match=says):
            trained(source=f"{FEATURES}\n\ndef pipeline():\n    {body}\n")

    @pytest.mark.parametrize(
        ("expression", "says"),
        [
            ("rows.select(pl.col('distance') - pl.col('distance').mean())", "not row-wise: column distance"),
            ("rows.select('distanse')", r"^features.. fails on the training rows: ColumnNotFoundError"),
            ("rows.select('distance').filter(pl.col('distance') > 50)", r"features.. gave \d+ rows for 160"),
            ("None", r"^features.. must return a Polars LazyFrame, it returned NoneType"),
            ("exit(0)", r"^features.. fails on the training rows: SystemExit: 0"),
        ],
    )
    def test_features(self, trained: Train, expression: str, says: str) -> None:
        """Features that fail, drop rows or look at other rows are refused before labels are read."""
        with pytest.raises(TrainingError, match=says):
            trained(
                source=CLASSIFIER.replace("    return rows.select(", f"    return {expression}\n    rows.select("),
                known=pl.DataFrame({"id": ["no label at all"]}),
            )

    def test_rows_held_out_fail(self, trained: Train) -> None:
        """A pipeline that cannot take some row held out is refused in its own words."""
        source = CLASSIFIER.replace('pl.col("speed"),', 'pl.when(pl.col("id") < 150).then("speed"),')

        with pytest.raises(TrainingError, match=r"the pipeline fails on the rows held out: ValueError: .*NaN"):
            trained(source=source)

    def test_scores_not_finite(self, trained: Train) -> None:
        """A pipeline that gives NaN for rows held out is refused with how many: no metric can be had of it."""
        source = f"""{FEATURES}
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin


class Odd(RegressorMixin, BaseEstimator):
    def fit(self, X, y):
        return self

    def predict(self, X):
        return np.where(X["distance"].to_numpy() > 1e6, np.nan, 1.0)


def pipeline():
    return Odd()
"""
        rows = trips(N).with_columns(distance=pl.when(pl.col("id") >= N - 3).then(1e7).otherwise("distance"))

        with pytest.raises(TrainingError, match="no finite prediction for 3 of 40 rows held out"):
            trained(rows, trips(N)["speed"], source=source, problem={"task": "regression"})

    def test_class_held_out_only(self, trained: Train) -> None:
        """A class that occurs among the rows held out only is missed there, and is no reason not to train."""
        target = pl.Series(["a", "b"] * (N // 2 - 1) + ["a", "new"])
        made = trained(target=target, problem={"task": "multiclass"})

        assert ("a", "b") == made.predictor.classes
        assert "log_loss" not in made.manifest.metrics
        assert made.manifest.metrics["accuracy"] <= 39 / 40


@pytest.fixture(scope="module")
def good() -> Bundle:
    """A bundle whose metrics the tests below choose."""
    return bundle()


class TestPromotable:
    """`promotable`."""

    @pytest.mark.parametrize(
        ("success", "value", "promoted"),
        [
            ({"metric": "roc_auc", "at_least": 0.65}, 0.6499, False),
            ({"metric": "roc_auc", "at_least": 0.65}, 0.65, True),
            ({"metric": "roc_auc", "at_least": 0.65}, 0.66, True),
            ({"metric": "roc_auc", "at_least": 0.0}, 0.0, True),
            ({"metric": "brier", "at_most": 0.2}, 0.2001, False),
            ({"metric": "brier", "at_most": 0.2}, 0.2, True),
            ({"metric": "brier", "at_most": 0.2}, 0.1, True),
            ({"metric": "brier", "at_most": 0.0}, 0.1, False),
            ({"metric": "roc_auc", "at_least": 0.65}, math.nan, False),
        ],
    )
    def test_bar(self, good: Bundle, success: dict[str, Any], value: float, promoted: bool) -> None:
        """A bundle that reaches the bar, or lies on it, may be promoted; one that misses it is told by how much."""
        measured = replace(good, manifest=good.manifest.model_copy(update={"metrics": {success["metric"]: value}}))
        reason = promotable(_with(success), measured)

        assert promoted == (reason is None)
        if reason is not None:
            assert f"{success['metric']} is {value:.4f} on held-out rows, want {Success(**success)}" == reason

    def test_no_bar(self, good: Bundle) -> None:
        """Without a bar, every bundle may be promoted."""
        assert promotable(job(), good) is None

    def test_undefined_metric(self, trained: Train) -> None:
        """A metric that the held-out rows do not allow is no pass, and the reason is theirs."""
        rows = trips(N)
        target = pl.Series("slow", [is_slow or i >= 120 for i, is_slow in enumerate(slow(rows))])
        made = trained(rows, target)
        reason = promotable(_with({"metric": "roc_auc", "at_least": 0.5}), made)

        assert "roc_auc" not in made.manifest.metrics
        assert reason is not None
        assert "roc_auc is not defined on the held-out rows" in reason


def _with(success: dict[str, Any]) -> Job:
    return job(problem={"success": success})
