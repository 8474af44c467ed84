"""A job file is read whole, or every fault in it is named."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from batchscore.errors import UsageError
from batchscore.interval import Interval
from batchscore.job import Job, Publish, read_job
from batchscore.problem import METRICS, Success

# As the design shows it, and as `batchscore init` will write it.
LOWER = {"brier", "log_loss", "ece", "mae", "rmse", "median_error"}
NEITHER = {"base_rate", "bias", "clusters", "smallest_cluster", "largest_cluster", "contamination"}

EXAMPLE = """
[job]
name = "flight_delay"

[problem]                      # the statement of the problem, agreed before any code
objective = "At departure, say whether a flight will arrive more than 15 minutes late"
task = "binary"
target = "late"
success = { metric = "roc_auc", at_least = 0.65 }

[source]                       # exactly one of sql / parquet
sql = "flight_delay/rows.sql"
key = ["flight_id"]
time_column = "scheduled_at"

[interval]
every = "day"
timezone = "America/New_York"
start = 2013-10-01

[labels]
sql = "flight_delay/labels.sql"

[training]
from = 2013-01-01
to = 2013-10-01
split = { by = "time", column = "scheduled_at", test = 0.2 }

[model]
name = "flight_delay"
use = "champion"

[output]
table = "flight_delay_predictions"
carry = ["flight_date"]
"""
LIMITS = "\n[limits]\n"
# The output table's own columns, as dashboards know them.
OURS = ["prediction", "score", "model_name", "model_version", "interval_start", "scored_at", "run_id"]


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A folder of jobs."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    return folder


def read(jobs: Path, *changes: tuple[str, str], more: str = "") -> Job:
    """The example, with each text that occurs once in it changed to another."""
    text = EXAMPLE + more
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (jobs / "flight_delay.toml").write_text(text, "utf-8")
    return read_job("flight_delay", jobs)


def task_of(task: str) -> list[tuple[str, str]]:
    """The changes that make the example one of that task: some have neither target nor labels."""
    changes = [('"binary"', f'"{task}"')]
    if task in ("clustering", "anomaly"):
        changes += [('target = "late"\n', ""), ('[labels]\nsql = "flight_delay/labels.sql"\n', "")]
    return changes


def faults(jobs: Path, *changes: tuple[str, str], more: str = "") -> list[str]:
    """The faults of a changed example, one a line, below a line that names the file."""
    with pytest.raises(UsageError) as caught:
        read(jobs, *changes, more=more)
    first, *lines = str(caught.value).splitlines()
    assert str(jobs / "flight_delay.toml") in first
    return [line.strip() for line in lines]


class TestExample:
    """What the example says is what is read."""

    def test_the_design_s_example(self, jobs):
        """Every value of the example arrives, in the type it has, and what it leaves out has its default."""
        job = read(jobs)

        assert job.name == "flight_delay"
        assert (job.problem.task, job.problem.target) == ("binary", "late")
        assert str(job.problem.success) == "roc_auc at least 0.65"
        assert (job.source.sql, job.source.parquet) == (Path("flight_delay/rows.sql"), None)
        assert (job.source.key, job.source.time_column) == (("flight_id",), "scheduled_at")
        assert job.labels is not None
        assert job.labels.sql == Path("flight_delay/labels.sql")
        assert job.training is not None
        assert (job.training.split.by, job.training.split.column, job.training.split.test) == (
            "time",
            "scheduled_at",
            0.2,
        )
        assert (job.model.name, job.model.use) == ("flight_delay", "champion")
        assert (job.output.table, job.output.carry) == ("flight_delay_predictions", ("flight_date",))
        assert (job.interval.catch_up, job.interval.lookback) == (31, 0)
        assert (job.limits.rejects, job.limits.reject_rows, job.limits.chunk_rows) == (0.01, None, 50_000)
        assert job.source.private == ()
        assert job.publish == Publish(
            least_rows=None, most_rows=None, over=7, rejects=None, varying=False, score_range=None, score_psi=None
        )

    def test_dates_are_local(self, jobs):
        """Start and training window are midnights of the job's zone, in UTC, and the calendar cuts there."""
        job = read(jobs)

        assert job.start == datetime(2013, 10, 1, 4, tzinfo=UTC)
        assert job.training_window() == Interval(
            datetime(2013, 1, 1, 5, tzinfo=UTC), datetime(2013, 10, 1, 4, tzinfo=UTC)
        )
        assert job.calendar.label(job.calendar.containing(job.start)) == "2013-10-01"

    @pytest.mark.parametrize(
        ("text", "instant"),
        [
            ("2013-10-01T06:00:00", datetime(2013, 10, 1, 10, tzinfo=UTC)),
            ("2013-10-01T06:00:00Z", datetime(2013, 10, 1, 6, tzinfo=UTC)),
            ("2013-10-01T06:00:00+05:45", datetime(2013, 10, 1, 0, 15, tzinfo=UTC)),
            ('"2013-10-01"', datetime(2013, 10, 1, 4, tzinfo=UTC)),
        ],
    )
    def test_a_start_may_be_an_instant(self, jobs, text, instant):
        """A start with a time is local without an offset, and what it says with one."""
        assert read(jobs, ("start = 2013-10-01", f"start = {text}")).start == instant

    @pytest.mark.parametrize(("task", "metric"), [(task, metric) for task in METRICS for metric in METRICS[task]])
    def test_a_bar_of_the_wrong_way(self, jobs, task, metric):
        """A bar that only bad models reach is refused with the key to write; of what is good neither way there is none."""
        wrong, right = ("at_least", "at_most") if metric in LOWER else ("at_most", "at_least")
        changes = *task_of(task), ('"roc_auc"', f'"{metric}"'), ("at_least", wrong)
        if metric in NEITHER:
            assert read(jobs, *changes).problem.success.at_most == 0.65
            return

        with pytest.raises(
            UsageError, match=rf"problem: {metric} is the better the .*: write {right} = 0\.65, and not"
        ):
            read(jobs, *changes)

    @pytest.mark.parametrize("every", ["hour", "day", "week", "month"])
    @pytest.mark.parametrize(("task", "metric"), [(task, metric) for task in METRICS for metric in METRICS[task]])
    def test_every_cut_and_task(self, jobs, every, task, metric):
        """Each way to cut time goes with each kind of problem, and a bar on each metric that it has."""
        bar = "at_most" if metric in LOWER else "at_least"
        changes = *task_of(task), ('"roc_auc"', f'"{metric}"'), ("at_least", bar)
        job = read(jobs, ('"day"', f'"{every}"'), *changes)

        assert (job.calendar.every, job.problem.task, job.problem.success.metric) == (every, task, metric)
        assert job.calendar.zone.key == "America/New_York"

    def test_the_least_job(self, jobs):
        """Labels, training, limits, success, time column, zone and carried columns may be left out."""
        (jobs / "least.toml").write_text(
            """
            job.name = "least"
            problem = {objective = "o", task = "regression", target = "y"}
            source = {parquet = "rows/*.parquet", key = ["a", "b"]}
            interval = {every = "month", start = 2024-01-01}
            model = {name = "least", use = 3}
            output.table = "scores.least"
            """
        )
        job = read_job("least", jobs)

        assert job.interval.timezone == "UTC"
        assert job.problem.success is None
        assert job.source.parquet == "rows/*.parquet"
        assert job.model.use == 3
        with pytest.raises(UsageError, match=r"job least cannot be trained.*\[training\].*\[labels\]"):
            job.training_window()

    @pytest.mark.parametrize("missing", ["labels", "training"])
    def test_training_needs_both_of_its_parts(self, jobs, missing):
        """A job with only one of training and labels cannot be trained."""
        text = EXAMPLE.replace(f"[{missing}]", f"[{missing}]#").split("\n\n")
        (jobs / "flight_delay.toml").write_text("\n\n".join(part for part in text if f"[{missing}]" not in part))

        with pytest.raises(UsageError, match="cannot be trained"):
            read_job("flight_delay", jobs).training_window()

    def test_the_champion_scores_unless_said_otherwise(self, jobs):
        """A job that names only its model uses the champion."""
        assert read(jobs, ('use = "champion"\n', "")).model.use == "champion"

    def test_a_random_split(self, jobs):
        """A random split has a share and a seed, which are 0.2 and 0 unless given: the same job trains the same model."""
        split = '{ by = "time", column = "scheduled_at", test = 0.2 }'
        plain = read(jobs, (split, '{ by = "random" }')).training
        given = read(jobs, (split, '{ by = "random", test = 0.3, seed = 7 }')).training

        assert plain is not None
        assert given is not None
        assert (plain.split.column, plain.split.test, plain.split.seed) == (None, 0.2, 0)
        assert (given.split.test, given.split.seed) == (0.3, 7)

    def test_parameters_keep_their_types(self, jobs):
        """The user's own parameters arrive as TOML types them."""
        job = read(
            jobs,
            more='[source.parameters]\na = 1\nb = 1.5\nc = "x"\nd = true\ne = 2013-10-01\nf = 2013-10-01T06:00:00\n',
        )

        found: dict[str, Any] = dict(job.source.parameters)
        assert found == {"a": 1, "b": 1.5, "c": "x", "d": True, "e": date(2013, 10, 1), "f": datetime(2013, 10, 1, 6)}
        assert [type(value) for value in found.values()] == [int, float, str, bool, date, datetime]

    def test_gates(self, jobs):
        """Every gate arrives as it is written, bounds that are alike among them."""
        gates = """
            [publish]
            least_rows = 1
            most_rows = 1.0
            over = 3
            rejects = 0
            varying = true
            score_range = [0.5, 0.5]
            score_psi = 0.2
        """

        assert read(jobs, more=gates).publish == Publish(
            least_rows=1.0, most_rows=1.0, over=3, rejects=0.0, varying=True, score_range=(0.5, 0.5), score_psi=0.2
        )

    def test_private_columns(self, jobs):
        """Columns are private when they are named so, carried ones too."""
        job = read(jobs, ('key = ["flight_id"]', 'key = ["flight_id"]\nprivate = ["passenger", "flight_date"]'))

        assert job.source.private == ("passenger", "flight_date")

    def test_a_job_is_frozen(self, jobs):
        """A job that was read does not change."""
        with pytest.raises(ValidationError, match="frozen"):
            read(jobs).limits.rejects = 1.0  # type: ignore[misc]


class TestSuccess:
    """The bar that a model must reach."""

    @pytest.mark.parametrize(
        ("bar", "value", "met"),
        [
            ({"at_least": 0.65}, 0.65, True),
            ({"at_least": 0.65}, 0.6499, False),
            ({"at_least": 0.65}, math.nan, False),
            ({"at_most": 3.0}, 3.0, True),
            ({"at_most": 3.0}, 3.0001, False),
            ({"at_most": 3.0}, math.nan, False),
            ({"at_most": 0.0}, 0.0, True),
            ({"at_least": 0.0}, -0.1, False),
        ],
    )
    def test_met_by(self, bar, value, met):
        """The bound itself meets the bar, NaN never does, and 0 is a bound like any other."""
        assert Success(metric="m", **bar).met_by(value) is met

    def test_it_reads_as_a_sentence(self):
        """The bar says which way it goes."""
        assert str(Success(metric="rmse", at_most=3.0)) == "rmse at most 3.0"


UNKNOWN = [
    (("[model]\n", "[modle]\n"), "modle", "model"),
    (('name = "flight_delay"\n\n[problem]', 'name = "flight_delay"\nnmae = "x"\n[problem]'), "job.nmae", "name"),
    (('target = "late"', 'target = "late"\nobjectve = "x"'), "problem.objectve", "objective"),
    (("at_least = 0.65", "at_least = 0.65, at_lest = 1"), "problem.success.at_lest", "at_least"),
    (("time_column =", "time_colum ="), "source.time_colum", "time_column"),
    (("timezone =", "time_zone ="), "interval.time_zone", "timezone"),
    (("[labels]\n", "[labels]\nsqll = 1\n"), "labels.sqll", "sql"),
    (("[training]\n", "[training]\nform = 2013-01-01\n"), "training.form", "from"),
    (("[training]\n", "[training]\nfrom_ = 2013-01-01\n"), "training.from_", "from"),
    (("test = 0.2", "tset = 0.2"), "training.split.tset", "test"),
    (("use =", "uses ="), "model.uses", "use"),
    (("carry =", "cary ="), "output.cary", "carry"),
]
# A change, where the fault is, and what is said of it.
WRONG = [
    (('task = "binary"', 'task = "ternary"'), "problem.task", "'binary', 'multiclass'"),
    (('every = "day"', 'every = "minute"'), "interval.every", "'hour', 'day', 'week' or 'month' (it says 'minute')"),
    (('by = "time"', 'by = "times"'), "training.split.by", "'time', 'random' or 'group' (it says 'times')"),
    (("time_column", 'parquet = "x"\ntime_column'), "source", "exactly one of sql and parquet"),
    (('sql = "flight_delay/rows.sql"', ""), "source", "exactly one of sql and parquet"),
    (('sql = "flight_delay/labels.sql"', ""), "labels", "exactly one of sql and parquet"),
    (('sql = "flight_delay/rows.sql"', 'parquet = "x"\nparameters = {a = 1}'), "source", "parameters belong to sql"),
    (("at_least = 0.65", "at_least = 0.65, at_most = 1"), "problem.success", "exactly one of at_least and at_most"),
    (
        ('"roc_auc"', '"roc_acu"'),
        "problem: ",
        "'roc_acu' is not measured for binary. Did you mean roc_auc? Known here:",
    ),
    (('"roc_auc"', '"rmse"'), "problem: ", "success.metric 'rmse' is not measured for binary. Known here: roc_auc, "),
    (
        ('"binary"', '"regression"'),
        "problem: ",
        "not measured for regression. Known here: mae, rmse, r2, median_error.",
    ),
    (("at_least = 0.65", "at_least = true"), "problem.success.at_least", "want a number (it says True)"),
    (("at_least = 0.65", "at_most = nan"), "problem.success.at_most", "want a number that is not nan or inf"),
    (("test = 0.2", 'test = "0.2"'), "training.split.test", "want a number (it says '0.2')"),
    (
        ('by = "time", column = "scheduled_at"', 'by = "random", seed = true'),
        "training.split.seed",
        "want a whole number",
    ),
    (('every = "day"', 'every = "day"\ncatch_up = true'), "interval.catch_up", "want a whole number (it says True)"),
    (('use = "champion"', "use = true"), "model.use", "(it says True)"),
    ((", at_least = 0.65", ""), "problem.success", "exactly one of at_least and at_most"),
    ((', column = "scheduled_at"', ""), "training.split", "column goes with by = 'time'"),
    (('by = "time"', 'by = "random"'), "training.split", "column goes with by = 'time'"),
    (("test = 0.2", "test = 0.0"), "training.split.test", "want more than 0 (it says 0.0)"),
    (("test = 0.2", "test = 1.0"), "training.split.test", "less than 1 (it says 1.0)"),
    (("America/New_York", "America/New_Yrok"), "interval.timezone", "'America/New_Yrok' is no IANA time zone"),
    (("America/New_York", "../etc/passwd"), "interval.timezone", "no IANA time zone"),
    (("America/New_York", "America"), "interval.timezone", "no IANA time zone"),
    (("America/New_York", ""), "interval.timezone", "no IANA time zone"),
    (("flight_delay_predictions", "x; drop table y"), "output.table", "(it says 'x; drop table y')"),
    (("flight_delay_predictions", "a.b.c"), "output.table", "(it says 'a.b.c')"),
    (("flight_delay_predictions", "1st"), "output.table", "(it says '1st')"),
    (("flight_delay_predictions", "t" * 64), "output.table", "want table or schema.table, each of letters, digits"),
    (("flight_delay_predictions", ""), "output.table", "no digit first, 63 at most (it says '')"),
    (('["flight_id"]', "[]"), "source.key", "the list is empty. Name 1 or more."),
    (('["flight_id"]', '"flight_id"'), "source.key", 'want a list. Write key = ["flight_id"].'),
    (('["flight_date"]', '"flight_date"'), "output.carry", 'want a list. Write carry = ["flight_date"].'),
    (('["flight_id"]', "7"), "source.key", "(it says 7)"),
    (('name = "flight_delay"\nuse', 'name = "Flights"\nuse'), "model.name", "want lower case letters, digits and"),
    (("start = 2013-10-01", "start = 2013"), "interval.start", "write a date, such as 2013-10-01 (it says 2013)"),
    (("start = 2013-10-01", "start = 1.5"), "interval.start", "write a date"),
    (("start = 2013-10-01", "start = true"), "interval.start", "write a date"),
    (("start = 2013-10-01", 'start = "soon"'), "interval.start", "(it says 'soon')"),
    (("start = 2013-10-01", "start = 06:00:00"), "interval.start", "write a date"),
    (
        ("from = 2013-01-01", 'from = "2013-13-01"'),
        "training.from",
        "write a date, such as 2013-10-01 (it says '2013-13-01')",
    ),
    (('task = "binary"', 'task = "binry"'), "problem.task", "(it says 'binry'). Did you mean binary?"),
    (
        ("[model]\n", '[training.audit]\nrefuse = ["leek"]\n\n[model]\n'),
        "training.audit.refuse",
        "Did you mean leak?",
    ),
    (("start = 2013-10-01", "start = 9999-12-31"), "interval", "9999-12-31 is outside the years 2 to 9998"),
    (('every = "day"', 'every = "day"\nlookback = -1'), "interval.lookback", "want 0 or more (it says -1)"),
    (('every = "day"', 'every = "day"\nlookback = true'), "interval.lookback", "want a whole number (it says True)"),
    (
        ('key = ["flight_id"]', 'key = ["flight_id"]\nprivate = ["x", "flight_id"]'),
        "source: ",
        "flight_id is of the key, which every reject keeps, and cannot be private",
    ),
    (("from = 2013-01-01", "from = 20130101"), "training.from", "write a date"),
    (("to = 2013-10-01", "to = 2013"), "training.to", "write a date"),
    (("from = 2013-01-01", "from = 0001-01-01"), "the file", "0001-01-01 is outside the years"),
    (("to = 2013-10-01", "to = 2013-01-01"), "the file", "training.from must be before training.to"),
    (('every = "day"', 'every = "day"\ncatch_up = 0'), "interval.catch_up", "want 1 or more (it says 0)"),
    (('name = "flight_delay"\n\n', 'name = "Flight-Delay"\n\n'), "job.name", "(it says 'Flight-Delay')"),
    (('name = "flight_delay"\nuse', 'name = "no/model"\nuse'), "model.name", "(it says 'no/model')"),
]
OUT_OF_RANGE = [
    ("rejects = 1.01", "limits.rejects", "want 1 or less (it says 1.01)"),
    ("rejects = -0.1", "limits.rejects", "want 0 or more"),
    ("rejects = nan", "limits.rejects", "want a number that is not nan or inf"),
    ("reject_rows = -1", "limits.reject_rows", "want 0 or more (it says -1)"),
    ("reject_rows = 0.5", "limits.reject_rows", "want a whole number"),
    ("rejects = true", "limits.rejects", "want a number (it says True)"),
    ('rejects = "0.5"', "limits.rejects", "want a number (it says '0.5')"),
    ('chunk_rows = "1000"', "limits.chunk_rows", "want a whole number (it says '1000')"),
    ("chunk_rows = true", "limits.chunk_rows", "want a whole number (it says True)"),
    ("chunk_rows = 0", "limits.chunk_rows", "want 1 or more (it says 0)"),
    ("chunk_rows = 1.5", "limits.chunk_rows", "want a whole number"),
]
BAD_GATES = [
    ("least_rows = -1", "publish.least_rows", "want 0 or more (it says -1)"),
    ("most_rows = 0", "publish.most_rows", "want more than 0 (it says 0)"),
    ("least_rows = 2\nmost_rows = 1.5", "publish", "least_rows 2.0 is more than most_rows 1.5"),
    ("over = 2", "publish.over", "want 3 or more (it says 2)"),
    ("rejects = 1.1", "publish.rejects", "want 1 or less (it says 1.1)"),
    ("score_range = [1, 0]", "publish", "score_range goes from 1.0 down to 0.0"),
    ("score_range = [0, inf]", "publish.score_range", "want a number that is not nan or inf"),
    ("score_range = [0]", "publish.score_range", "1 value(s) where more are wanted"),
    ("score_psi = 0", "publish.score_psi", "want more than 0 (it says 0)"),
    ("least_row = 1", "publish.least_row", "unknown key. Did you mean least_rows?"),
]
NEEDED = [
    ('name = "flight_delay"\n\n', "job.name"),
    ('objective = "At departure, say whether a flight will arrive more than 15 minutes late"', "problem.objective"),
    ('task = "binary"', "problem.task"),
    ('target = "late"', "problem.target"),
    ('metric = "roc_auc", ', "problem.success.metric"),
    ('key = ["flight_id"]', "source.key"),
    ('every = "day"', "interval.every"),
    ("start = 2013-10-01", "interval.start"),
    ("from = 2013-01-01", "training.from"),
    ("\nto = 2013-10-01", "training.to"),
    ('split = { by = "time", column = "scheduled_at", test = 0.2 }', "training.split"),
    ('by = "time", ', "training.split.by"),
    ('name = "flight_delay"\nuse', "model.name"),
    ('table = "flight_delay_predictions"', "output.table"),
]


class TestFaults:
    """Every fault is named with the file, its place, and what to write."""

    @pytest.mark.parametrize(("change", "place", "near"), UNKNOWN, ids=[place for _, place, _ in UNKNOWN])
    def test_an_unknown_key_names_the_nearest(self, jobs, change, place, near):
        """A key that nobody reads is an error at every level, with the nearest of those known there."""
        (line,) = [line for line in faults(jobs, change) if line.startswith(f"{place}: ")]

        assert line.startswith(f"{place}: unknown key. Did you mean {near}? Known here: ")

    def test_an_unknown_limit_names_the_nearest(self, jobs):
        """So it is in the table of limits, which may be left out."""
        (line,) = faults(jobs, more=f"{LIMITS}reject = 0.5\n")

        assert line == "limits.reject: unknown key. Did you mean rejects? Known here: rejects, reject_rows, chunk_rows."

    def test_a_strange_key_lists_the_known(self, jobs):
        """Where nothing is near, the known keys are listed all the same."""
        (line,) = faults(jobs, ('every = "day"', 'every = "day"\nzzz = 1'))

        assert line == "interval.zzz: unknown key. Known here: every, timezone, start, catch_up, lookback."

    @pytest.mark.parametrize(("line", "place"), NEEDED, ids=[place for _, place in NEEDED])
    def test_a_missing_key_is_named(self, jobs, line, place):
        """A key that is needed and not there is named by its full place."""
        rest = "use" if line.endswith("use") else ""

        assert f"{place}: missing. Add it." in faults(jobs, (line, rest))

    @pytest.mark.parametrize(
        ("more", "line"),
        [
            (
                "[drift]\nagainst = []\n",
                "drift.against: the list is empty. Name 1 or more of training, previous, last_week, four_weeks.",
            ),
            (
                '[drift]\nagainst = ["trainig"]\n',
                (
                    "drift.against: want 'training', 'previous', 'last_week' or 'four_weeks' (it says 'trainig'). "
                    "Did you mean training?"
                ),
            ),
            (
                "[drift]\nbands = { pis = 0.1 }\n",
                (
                    "drift.bands: unknown key pis. Did you mean psi? Known here: psi, ks, null_share, unseen_share, "
                    "outside_share, staleness, domain_auc."
                ),
            ),
            ("[drift]\nbands = [1]\n", "drift.bands: want a table"),
            ("[drift]\npersist = 3\n", "drift.persist: want a table with runs, of (it says 3)"),
            ("[publish]\nscore_range = [1]\n", "publish.score_range: 1 value(s) where more are wanted."),
            ("[publish]\nscore_range = [1, 2, 3]\n", "publish.score_range: 3 values, and 2 at most are wanted."),
            ("[alerts]\nrepeat = 7\n", "alerts.repeat: want text in quotes (it says 7)"),
        ],
    )
    def test_in_plain_words(self, jobs, more, line):
        """A fault names table, key and what may stand there, once, in words that know nothing of Python."""
        assert faults(jobs, more=more) == [line]

    def test_slices_of_a_private_column(self, jobs):
        """A slice has a value of its column for a name, so a private column has none; another column may."""
        private = ('key = ["flight_id"]', 'key = ["flight_id"]\nprivate = ["passenger"]')
        sliced = ("test = 0.2 }", 'test = 0.2 }\nslices = ["carrier", "passenger"]')
        (line,) = faults(jobs, private, sliced)

        assert "training.slices: passenger is in source.private, and slices would tell its values" in line
        assert read(jobs, private, ("test = 0.2 }", 'test = 0.2 }\nslices = ["carrier"]')).training

    def test_an_empty_file_lacks_every_table(self, jobs):
        """The tables that a job needs are all named at once."""
        (jobs / "flight_delay.toml").write_text("")

        with pytest.raises(UsageError) as caught:
            read_job("flight_delay", jobs)

        for table in ("job", "problem", "source", "interval", "model", "output"):
            assert f"\n  {table}: missing. Add it." in str(caught.value)
        assert "labels" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "place", "told"), WRONG, ids=[f"{place}: {new[:20]}" for (_, new), place, _ in WRONG]
    )
    def test_a_wrong_value_is_named(self, jobs, change, place, told):
        """A value that breaks a rule is named by place, rule and what it says."""
        found = faults(jobs, change)

        assert any(line.startswith(place) and told in line for line in found), found
        assert not any("Value error" in line for line in found)
        # A place is one of the file's own keys.
        assert not any(re.match(r"\S+\.(date|datetime): ", line) for line in found)

    @pytest.mark.parametrize(("line", "place", "told"), OUT_OF_RANGE, ids=[line for line, _, _ in OUT_OF_RANGE])
    def test_limits_have_bounds(self, jobs, line, place, told):
        """A limit out of its range is named with the bound."""
        (found,) = faults(jobs, more=f"{LIMITS}{line}\n")

        assert found.startswith(f"{place}: ")
        assert told in found

    @pytest.mark.parametrize(("lines", "place", "told"), BAD_GATES, ids=[line for line, _, _ in BAD_GATES])
    def test_gates_have_bounds(self, jobs, lines, place, told):
        """A gate that makes no sense is named with the rule that it breaks."""
        (found,) = faults(jobs, more=f"\n[publish]\n{lines}\n")

        assert found.startswith(f"{place}: ")
        assert told in found

    @pytest.mark.parametrize(
        "line", ["rejects = 0", "rejects = 1.0", "rejects = 1", "reject_rows = 0", "chunk_rows = 1"]
    )
    def test_the_bounds_are_allowed(self, jobs, line):
        """The ends of each range are inside it."""
        read(jobs, more=f"{LIMITS}{line}\n")

    @pytest.mark.parametrize("name", [*OURS, "score_", "score_AA", "Prediction", "RUN_ID", "Score_aa"])
    def test_our_own_columns_are_taken(self, jobs, name):
        """No key and no carried column has the name of a column that batchscore writes, score_<class> included."""
        for change in (('["flight_date"]', f'["flight_date", "{name}"]'), ('["flight_id"]', f'["{name}"]')):
            (line,) = faults(jobs, change)

            assert f"column {name} has the name of a column batchscore writes" in line

    @pytest.mark.parametrize("name", ["scores", "my_score", "predictions", "run_ids"])
    def test_names_that_only_look_like_ours_are_free(self, jobs, name):
        """A name that merely contains one of ours may be carried."""
        assert read(jobs, ("flight_date", name)).output.carry == (name,)

    @pytest.mark.parametrize(
        "change", [('["flight_date"]', '["late"]'), ('["flight_id"]', '["flight_id", "late"]')], ids=["carry", "key"]
    )
    def test_the_target_is_not_passed_through(self, jobs, change):
        """The target is no key and no carried column: it is not known when a row is scored."""
        (line,) = faults(jobs, change)

        assert "the target late cannot be a key or carried column" in line

    @pytest.mark.parametrize(
        "change",
        [
            ('["flight_date"]', '["flight_id"]'),
            ('["flight_id"]', '["flight_id", "flight_id"]'),
            ('["flight_date"]', '["a", "a"]'),
        ],
    )
    def test_a_column_is_passed_through_once(self, jobs, change):
        """A column named twice in key and carry is named."""
        (line,) = faults(jobs, change)

        assert "is named twice in source.key and output.carry" in line

    @pytest.mark.parametrize(
        ("change", "alike"),
        [
            (('["flight_date"]', '["Flight_ID"]'), "flight_id and Flight_ID"),
            (('["flight_date"]', '["a", "day", "DAY"]'), "day and DAY"),
        ],
    )
    def test_a_column_that_differs_only_in_case(self, jobs, change, alike):
        """Two names that a database may take for one are both named."""
        (line,) = faults(jobs, change)

        assert f"columns {alike} differ only in case; rename one at the source" in line

    def test_every_fault_is_listed(self, jobs):
        """Faults in several tables come in one message."""
        found = faults(jobs, ('every = "day"', 'every = "year"'), ("use =", "uses ="), ('task = "binary"', ""))

        assert [line.split(":")[0] for line in found] == ["problem.task", "interval.every", "model.uses"]


class TestFile:
    """The file itself."""

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"[job\n", "line 1"),
            (b'[job]\nname = "a"\n[job]\nname = "b"\n', "line 3"),
            (b"\xff\xfe[job]", "utf-8"),
            (b'[job]\nname = "caf\xe9"', "utf-8"),
        ],
    )
    def test_what_is_not_toml_in_utf8(self, jobs, content, told):
        """A file that is not TOML, or not UTF-8, is named with the place of the fault."""
        (jobs / "broken.toml").write_bytes(content)

        with pytest.raises(UsageError, match="is not TOML") as caught:
            read_job("broken", jobs)

        assert str(jobs / "broken.toml") in str(caught.value)
        assert told in str(caught.value)

    def test_its_name_is_the_job_s(self, jobs):
        """A file that holds a job of another name says both names."""
        (jobs / "delays.toml").write_text(EXAMPLE)

        with pytest.raises(
            UsageError, match=r"job\.name = 'flight_delay'.*flight_delay\.toml or the job 'delays'"
        ) as caught:
            read_job("delays", jobs)

        assert str(jobs / "delays.toml") in str(caught.value)

    def test_a_job_that_is_not_there(self, jobs):
        """A name without a file names the folder, the nearest job and all there are."""
        read(jobs)
        (jobs / "churn.toml").write_text("")
        (jobs / "churn.py").write_text("")

        with pytest.raises(UsageError) as caught:
            read_job("flight_dealy", jobs)

        assert str(caught.value) == (
            f"there is no job 'flight_dealy' in {jobs}/. Did you mean flight_delay? It holds: churn, flight_delay."
        )

    def test_nothing_near(self, jobs):
        """Without a near name there is no guess."""
        read(jobs)

        with pytest.raises(UsageError, match=r"no job 'zzz' in .*jobs/\. It holds: flight_delay\."):
            read_job("zzz", jobs)

    def test_a_folder_without_jobs(self, jobs):
        """An empty folder, or none at all, says how to name another."""
        for folder in (jobs, jobs / "nowhere"):
            with pytest.raises(UsageError, match="holds no job; set BATCHSCORE_JOBS_DIR or --jobs-dir"):
                read_job("flight_delay", folder)

    def test_what_cannot_be_read(self, jobs):
        """A file that the system does not let us read is an error of use, and says why."""
        (jobs / "folder.toml").mkdir()

        with pytest.raises(UsageError, match=r"folder\.toml cannot be read: Is a directory"):
            read_job("folder", jobs)
