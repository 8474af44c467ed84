"""A job: what to score, as `jobs/<name>.toml` says it, with its SQL and its features beside it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import (
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from batchscore.errors import UsageError, nearest
from batchscore.interval import Calendar, Every, Interval
from batchscore.mistakes import mistakes
from batchscore.problem import OF_SEVERAL, REASON, Number, Problem, Table, Whole, better
from batchscore.recipe import Moment, Retrain, Training
from batchscore.watching import Alerting, Evaluating, Watching

__all__ = ["SHADOW", "Job", "Publish", "Rows", "read_job"]

_NAME = r"^[a-z][a-z0-9_]{0,47}$"
_TABLE_NAME = r"^([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}$"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
TableName = Annotated[str, StringConstraints(pattern=_TABLE_NAME)]
_IN_WORDS = {
    _NAME: "want lower case letters, digits and underscores, a letter first, 48 at most",
    r"^\d{1,9}[hdw]$": "want a number and h, d or w, such as 30d",
    _TABLE_NAME: "want table or schema.table, each of letters, digits and underscores, no digit first, 63 at most",
}


Value = str | int | float | bool | date | datetime

# What a shadow's table is called behind the output table's name.
SHADOW = "_shadow"
# As many characters of a name as every database keeps.
_LONGEST = 63

# Columns that batchscore writes itself, beside `score_<class>`.
RESERVED = ("prediction", "score", "model_name", "model_version", "interval_start", "scored_at", "run_id")


class Rows(Table):
    """Where rows come from: one SQL file, or Parquet files by path or glob.

    A Parquet path may hold `{interval_start:%Y-%m-%d}`, the interval's local start, and hive partitions.

    Attributes:
        sql: A file with one query, relative to the SQL folder.
        parquet: A path or glob of files, relative to the folder that the command runs in; or of objects, as
            `s3://bucket/path/*.parquet`, `gs://…` or `az://container/…`, which needs the extra `s3`, with credentials,
            region and endpoint as the variables `AWS_…`, `GOOGLE_…` or `AZURE_…` say.
        parameters: Values of the query's own `:name` placeholders, beside `:interval_start` and `:interval_end`.
    """

    sql: Path | None = None
    parquet: str | None = None
    parameters: Mapping[str, Value] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.sql is None) == (self.parquet is None):
            raise ValueError("give exactly one of sql and parquet")
        if self.parquet is not None and self.parameters:
            raise ValueError("parameters belong to sql; a parquet path takes none")
        return self


class Source(Rows):
    """The rows to score, their unique key, and the column of their time.

    Attributes:
        key: The columns that identify a row. Rows are read in their order, and a run resumes behind the last one done.
        time_column: With `parquet`: the column whose time lies in the interval. With `sql` nothing reads it, for a
            query chooses its rows itself.
        private: Columns whose values are never kept with a rejected row, nor told by training and what it writes of
            itself, nor held by a profile, which has their NULLs and, of a column with 256 values or more in training, a
            sketch of their hashes by a secret of the bundle. Of one that is named here after training the next run
            keeps its NULLs alone; what earlier runs have kept of it stays. The bundle's golden rows are whole all the
            same: who may read the registry may read those.
    """

    key: tuple[str, ...] = Field(min_length=1)
    time_column: str | None = None
    private: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _key_is_told(self) -> Self:
        if hidden := [name for name in self.key if name in self.private]:
            raise ValueError(f"{hidden[0]} is of the key, which every reject keeps, and cannot be private")
        return self

    @property
    def quotable(self) -> bool:
        """Whether the words of an exception may be told, which may hold any value of the row."""
        return not self.private


class Cut(Table):
    """How time is cut into runs.

    Attributes:
        every: The length of an interval; weeks begin on Monday.
        timezone: The IANA time zone whose hours and days are meant.
        start: Intervals from here on are scored.
        catch_up: The most intervals that one `score` takes, the oldest first; those tried before come last.
        lookback: So many of the last published intervals are read again by `score`, and scored again where their rows
            have changed; one that another version scored is left alone.
    """

    every: Every
    timezone: str = "UTC"
    start: Moment
    catch_up: Whole = Field(default=31, ge=1)
    lookback: Whole = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _within_the_calendar(self) -> Self:
        Calendar(self.every, ZoneInfo(self.timezone)).instant(self.start)
        return self

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            return ZoneInfo(value).key
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{value!r} is no IANA time zone, such as America/New_York") from error


class Model(Table):
    """Which bundle scores: a registry name, and an alias or version of it.

    Attributes:
        name: The name in the registry, under which `train` registers too.
        use: An alias, which `models promote` moves, or a version number, which stays.
        shadow: Another alias or version, whose predictions of the same rows go to `<output table>_shadow`. Where it is
            not there, or cannot be used, nothing is shadowed, and nothing else changes.
        compile: Whether `train` compiles the model's trees where a C compiler is at hand, and runs score with what was
            compiled where it gives what the original gives.
    """

    name: Name
    use: str | Whole = "champion"
    shadow: str | Whole | None = None
    compile: StrictBool = True


class Output(Table):
    """Where predictions go, and which input columns go with them beside the key.

    Attributes:
        table: The table's name, with its schema before a dot where it has one; made when missing. With
            `BATCHSCORE_DELTA_URL` it is a Delta table of that name there.
        carry: Input columns to pass through.
    """

    table: TableName
    carry: tuple[str, ...] = ()


class Limits(Table):
    """Bounds of a run.

    Attributes:
        rejects: The share of a run's rows that may be rejected, from 0 to 1; one row more and nothing is published.
            Whatever it is, a run stops when the features or the pipeline have failed on more than 10,000 rows.
        reject_rows: The number of a run's rows that may be rejected, whatever their share; no bound when not given.
        chunk_rows: Rows read, scored and committed together.
    """

    rejects: Number = Field(default=0.01, ge=0, le=1)
    reject_rows: Whole | None = Field(default=None, ge=0)
    chunk_rows: Whole = Field(default=50_000, ge=1)


class Publish(Table):
    """Gates that a scored run must pass before its rows replace what is in the output table.

    Each is off unless it is given. A run that trips one is `held`: the old rows stay, its own stay staged, and
    `runs publish` lets it through. They judge what cannot be told from a single row; bad rows are for `[limits]`.

    Attributes:
        least_rows: The fewest rows read, as a multiple of the median of the last published intervals.
        most_rows: The most rows read, as a multiple of it.
        over: How many published intervals the median is taken of; fewer than 3 are not judged by.
        rejects: The largest share of rejected rows.
        varying: With true: the scores, or the predictions of a regression, must not all be one number.
        score_range: The least and the largest value that they may have.
        score_psi: The largest population stability index of predictions and scores, against the rows held out at
            training.
    """

    least_rows: Number | None = Field(default=None, ge=0)
    most_rows: Number | None = Field(default=None, gt=0)
    over: Whole = Field(default=7, ge=3)
    rejects: Number | None = Field(default=None, ge=0, le=1)
    varying: bool = False
    score_range: tuple[Number, Number] | None = None
    score_psi: Number | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _something_passes(self) -> Self:
        least, most = self.least_rows, self.most_rows
        if least is not None and most is not None and least > most:
            raise ValueError(f"least_rows {least} is more than most_rows {most}")
        if self.score_range is not None and self.score_range[0] > self.score_range[1]:
            low, high = self.score_range
            raise ValueError(f"score_range goes from {low} down to {high}; write the least value first")
        return self


class Job(Table):
    """One job, validated. Paths are relative to the SQL folder."""

    class _Identity(Table):
        """Which job it is.

        Attributes:
            name: The name of its files too: lower case letters, digits and underscores, 48 at most.
        """

        name: Name

    job: _Identity
    problem: Problem
    source: Source
    interval: Cut
    labels: Rows | None = None
    training: Training | None = None
    retrain: Retrain = Retrain()
    model: Model
    output: Output
    limits: Limits = Limits()
    publish: Publish = Publish()
    drift: Watching = Watching()
    performance: Evaluating = Evaluating()
    alerts: Alerting = Alerting()

    @property
    def name(self) -> str:
        """The job's name, which is also its files' name."""
        return self.job.name

    @cached_property
    def calendar(self) -> Calendar:
        """The job's way of cutting time."""
        return Calendar(self.interval.every, ZoneInfo(self.interval.timezone))

    @property
    def start(self) -> datetime:
        """The instant from which the job scores, in UTC."""
        return self.calendar.instant(self.interval.start)

    @property
    def shadow_table(self) -> str:
        """Where a shadow's predictions go."""
        return self.output.table + SHADOW

    def training_window(self) -> Interval:
        """The training rows' window in UTC.

        Raises:
            UsageError: The job has no `[training]`, or no `[labels]` where its task learns from them.
        """
        if self.training is None or (self.labels is None and self.problem.supervised):
            parts = "no [training] or no [labels]. Add both" if self.problem.supervised else "no [training]. Add it"
            raise UsageError(f"job {self.name} cannot be trained: its file has {parts}.")
        return Interval(self.calendar.instant(self.training.from_), self.calendar.instant(self.training.to))

    def window_until(self, end: datetime) -> Interval:
        """The training rows' window, moved so that it ends at that instant; it begins with an interval.

        Raises:
            UsageError: See `training_window`.
        """
        first = self.training_window()
        return Interval(self.calendar.containing(end - (first.end - first.start)).start, end)

    def single_rows(self) -> str:
        """Why nothing can be chosen by leave-one-out, in words; empty where something can, or the job has it not."""
        folds = self.training.cross_validation if self.training else None
        if folds is None or folds.by != "leave-one-out" or self.problem.metric not in OF_SEVERAL:
            return ""
        return (
            f"{self.problem.metric}, which a single row does not define, and a fold of leave-one-out is a single row: "
            "take k-fold or stratified folds"
        )

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        task, training = self.problem.task, self.training
        if self.labels is not None and not self.problem.supervised:
            raise ValueError(f"labels: a {task} task has none; leave the table out")
        if training is None:
            return self
        if training.threshold is not None and task != "binary":
            raise ValueError(f"training.threshold is for a binary task, and this one is {task}")
        if training.calibrate is not None and task not in ("binary", "multiclass"):
            raise ValueError(f"training.calibrate is for classes, and this task is {task}")
        if training.search is not None and better(self.problem.metric) is None:
            raise ValueError(f"training.search goes by {self.problem.metric}, which is good neither way")
        folds = training.cross_validation
        if folds is not None and folds.by == "stratified" and task not in ("binary", "multiclass"):
            raise ValueError(f"training.cross_validation: stratified is for classes, and this task is {task}")
        if folds is not None and folds.by == "leave-one-out" and not self.problem.supervised:
            raise ValueError(f"training.cross_validation: one row alone says nothing of a {task} task")
        if self.problem.target in training.columns.values():
            raise ValueError(f"training: the target {self.problem.target} is no column of the rows")
        if hidden := [name for name in training.slices if name in self.source.private]:
            raise ValueError(
                f"training.slices: {hidden[0]} is in source.private, and slices would tell its values; leave it out of "
                "one of them"
            )
        return self

    @model_validator(mode="after")
    def _searched_by_what_folds_define(self) -> Self:
        if self.training and self.training.search is not None and (single := self.single_rows()):
            raise ValueError(f"training.search goes by {single}, or let [problem] success go by another metric")
        return self

    @model_validator(mode="after")
    def _shadow_has_room(self) -> Self:
        table = self.shadow_table.rpartition(".")[2]
        if self.model.shadow is not None and len(table) > _LONGEST:
            raise ValueError(f"output.table: with model.shadow there is a table {table} too, longer than {_LONGEST}")
        return self

    @model_validator(mode="after")
    def _columns_stand_apart(self) -> Self:
        passed = (*self.source.key, *self.output.carry)
        # Most databases take names that differ only in case for one.
        folded = [name.casefold() for name in passed]
        reasons = {f"{REASON}{k}{end}" for k in range(1, self.problem.explain_top + 1) for end in ("", "_value")}
        for name, one in zip(passed, folded, strict=True):
            if passed.count(name) > 1:
                raise ValueError(f"column {name} is named twice in source.key and output.carry")
            if folded.count(one) > 1:
                alike = " and ".join(other for other in passed if other.casefold() == one)
                raise ValueError(f"columns {alike} differ only in case; rename one at the source")
            staged = self.model.shadow is not None and one.startswith("shadow_")
            if one in RESERVED or one.startswith("score_") or one in reasons or staged:
                raise ValueError(f"column {name} has the name of a column batchscore writes; rename it at the source")
        if strange := [name for name in self.performance.slices if name not in passed]:
            raise ValueError(
                f"performance.slices: {strange[0]} is no column of the output table; name it in output.carry too"
            )
        if hidden := [name for name in self.performance.slices if name in self.source.private]:
            raise ValueError(
                f"performance.slices: {hidden[0]} is in source.private, and slices would tell its values; leave it out "
                "of one of them"
            )
        if self.problem.target in passed:
            raise ValueError(f"the target {self.problem.target} cannot be a key or carried column")
        if self.training and self.calendar.instant(self.training.from_) >= self.calendar.instant(self.training.to):
            raise ValueError("training.from must be before training.to")
        return self


def read_job(name: str, jobs_dir: Path) -> Job:
    """The job of that name.

    Raises:
        UsageError: There is no such file, it is not TOML, or it breaks a rule; every fault is listed, with the
            nearest known name for an unknown key.
    """
    path = jobs_dir / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(_no_job(name, jobs_dir)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}. Mend it there.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        faults = "\n".join(f"  {each}" for each in mistakes(error.errors(), Job, _IN_WORDS))
        raise UsageError(f"{path} is not a job:\n{faults}") from None
    if job.name != path.stem:
        raise UsageError(
            f"{path} holds job.name = {job.name!r}. Name the file {job.name}.toml or the job {path.stem!r}."
        )
    return job


def _no_job(name: str, jobs_dir: Path) -> str:
    known = sorted(path.stem for path in jobs_dir.glob("*.toml"))
    guess = f" Did you mean {near}?" if (near := nearest(name, known)) else ""
    listed = f"It holds: {', '.join(known)}." if known else "It holds no job; set BATCHSCORE_JOBS_DIR or --jobs-dir."
    return f"there is no job {name!r} in {jobs_dir}/.{guess} {listed}"
