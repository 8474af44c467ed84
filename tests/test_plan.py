"""The plan lists what there is to do, exactly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscore.errors import UsageError
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Run
from batchscore.run.plan import Only, Planned, State, plan, revision_of

START = datetime(2024, 3, 28, tzinfo=UTC)
DIGESTS = ("in use", "older")
ZONES = ("UTC", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe")


def job_of(every: str = "day", timezone: str = "UTC", start: date | datetime = START) -> Job:
    """A job whose time is cut so."""
    return Job.model_validate(
        {
            "job": {"name": "flights"},
            "problem": {"objective": "Say what is late", "task": "binary", "target": "late"},
            "source": {"sql": "rows.sql", "key": ["id"]},
            "interval": {"every": every, "timezone": timezone, "start": start},
            "model": {"name": "flights"},
            "output": {"table": "predictions"},
        }
    )


JOB = job_of()


def day(number: int) -> Interval:
    """One of the job's days, counted from its start."""
    return Interval(START + timedelta(days=number), START + timedelta(days=number + 1))


FIRST, FIVE_DAYS_IN = day(0), day(5).start


def run_of(
    interval: Interval = FIRST, status: Any = "published", digest: str = "in use", age: int = 0, **values: Any
) -> Run:
    """A run in the history."""
    return Run(
        run_id=f"{interval} {status} {digest} {age}",
        job="flights",
        interval=interval,
        model_name="flights",
        model_version=DIGESTS.index(digest) + 1,
        bundle_digest=digest,
        output_table="predictions",
        scored_at=interval.end + timedelta(hours=age),
        status=status,
        **({"revision": 0} | values),
    )


def planned(
    history: Sequence[Run] = (),
    job: Job = JOB,
    *,
    first: datetime | None = None,
    last: datetime | None = None,
    now: datetime = FIVE_DAYS_IN,
    digest: str | None = "in use",
) -> list[Planned]:
    """The plan, five days in unless told otherwise."""
    return plan(job, history, first=first, last=last, now=now, digest=digest)


def states(history: Sequence[Run], **kwargs: Any) -> list[State]:
    """The states of the plan's intervals, in order."""
    return [each.state for each in planned(history, **kwargs)]


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """A job, a clock, a window, and runs of some of its intervals: at most one of each is published."""
    every = draw(st.sampled_from(["hour", "day", "week", "month"]))
    length = {"hour": 1, "day": 24, "week": 168, "month": 720}[every]
    hours = st.integers(-3 * length, 12 * length)
    minutes = st.sampled_from([0, 0, 1, 30, 59])

    def instant() -> datetime:
        return START + timedelta(hours=draw(hours), minutes=draw(minutes))

    job = job_of(every, draw(st.sampled_from(ZONES)), instant())
    history: list[Run] = []
    interval = job.calendar.containing(START - timedelta(hours=length))
    for _ in range(draw(st.integers(0, 8))):
        statuses = ["running", "failed", "held", "superseded", "published"]
        attempts = draw(st.lists(st.sampled_from(statuses), max_size=4))
        for age, status in enumerate(attempts):
            if status != "published" or attempts.index("published") == age:
                history.append(run_of(interval, status, draw(st.sampled_from(DIGESTS)), age))
        interval = job.calendar.containing(interval.end)
    window = {name: draw(st.none() | st.builds(instant)) for name in ("first", "last")}
    return {
        "job": job,
        "history": draw(st.permutations(history)),
        "now": instant(),
        "digest": draw(st.sampled_from(["in use", None])),
        **window,
    }


def complete_intervals(job: Job, begin: datetime, end: datetime) -> list[Interval]:
    """Every interval that lies in `[begin, end)` whole, found one by one."""
    found = []
    interval = job.calendar.containing(begin)
    while interval.end <= end:
        if interval.start >= begin:
            found.append(interval)
        interval = job.calendar.containing(interval.end)
    return found


def expected_state(runs: Sequence[Run], digest: str | None) -> State:
    """The state in the words of `Planned`."""
    by_status = {run.status: run for run in runs}
    if "published" in by_status:
        return "stale-model" if digest not in (None, by_status["published"].bundle_digest) else "published"
    attempts = [run for run in runs if run.status in ("running", "failed", "held")]
    if not attempts:
        return "missing"
    states: dict[str, State] = {"running": "unfinished", "failed": "failed", "held": "held"}
    return states[max(attempts, key=lambda run: run.scored_at).status]


class TestModel:
    """`plan` beside a model of it."""

    @given(situations())
    def test_intervals(self, situation: dict[str, Any]) -> None:
        """It lists exactly the complete intervals from the job's start to now that lie in the window, once, in order."""
        job, first, last, now = (situation[name] for name in ("job", "first", "last", "now"))
        begin, end = max(filter(None, (job.start, first))), min(filter(None, (now, last)))

        listed = [each.interval for each in plan(**situation)]

        assert listed == complete_intervals(job, begin, end)
        assert listed == sorted(set(listed))
        assert all(interval.end <= now for interval in listed)

    @given(situations())
    def test_states(self, situation: dict[str, Any]) -> None:
        """Each is in the state that its own runs put it in, and shows the run that says so."""
        for each in plan(**situation):
            own = [run for run in situation["history"] if run.interval == each.interval]

            assert each.state == expected_state(own, situation["digest"])
            assert each.run in own if each.state != "missing" else each.run is None
            if each.state in ("published", "stale-model"):
                assert each.run.status == "published"
                tried = [run for run in own if run.status in ("running", "failed", "held")]
                assert each.behind == max(tried, key=lambda run: run.scored_at, default=None)

    @given(situations(), st.randoms(use_true_random=False))
    def test_order_of_history(self, situation: dict[str, Any], chance: random.Random) -> None:
        """The order in which the history comes does not matter."""
        shuffled = list(situation["history"])
        chance.shuffle(shuffled)

        assert plan(**situation) == plan(**(situation | {"history": shuffled}))

    @given(situations())
    def test_selections(self, situation: dict[str, Any]) -> None:
        """Scoring what `all` selects leaves nothing missing or failed; what `missing` selects, nothing missing."""
        listed = plan(**situation)
        for only, then in (("all", "missing"), ("all", "failed"), ("missing", "missing")):
            kept = [
                run
                for run in situation["history"]
                if run.interval not in {e.interval for e in listed if e.selected_by(only)}
            ]
            done = [run_of(each.interval) for each in listed if each.selected_by(only)]

            after = plan(**(situation | {"history": kept + done}))

            assert not any(each.selected_by(then) for each in after)


class TestWindow:
    """Which intervals."""

    def test_from_the_start(self) -> None:
        """Without a window it is every complete interval since the job's start, whatever was scored before."""
        history = [run_of(day(-1))]

        assert [each.interval for each in planned(history)] == [day(number) for number in range(5)]

    def test_future(self) -> None:
        """An interval that has not ended is not listed, even when it is asked for; one that ends now is."""
        end = day(4).end

        assert planned(last=day(9).end, now=end)[-1].interval == day(4)
        assert planned(last=day(9).end, now=end - timedelta(microseconds=1))[-1].interval == day(3)
        assert planned(first=end, last=day(9).end, now=end) == []
        assert planned(now=START) == planned(now=START - timedelta(days=9)) == []

    def test_part_of_an_interval(self) -> None:
        """A window that cuts an interval leaves it out."""
        inside = timedelta(hours=12)

        found = planned(first=day(0).start + inside, last=day(3).start + inside)

        assert [each.interval for each in found] == [day(1), day(2)]

    def test_before_the_start(self) -> None:
        """The job's start is the first there is."""
        assert planned(first=START - timedelta(days=30))[0].interval == day(0)

    def test_start_inside_an_interval(self) -> None:
        """A job that starts within an interval begins with the next."""
        job = job_of("month", start=date(2024, 3, 28))

        assert [each.interval.start for each in planned(job=job, now=datetime(2024, 6, 1, tzinfo=UTC))] == [
            datetime(2024, 4, 1, tzinfo=UTC),
            datetime(2024, 5, 1, tzinfo=UTC),
        ]

    def test_changes_of_clock(self) -> None:
        """The days of a zone are its own: 23 hours when summer time begins, and none is missing or doubled."""
        job = job_of("day", "Europe/Berlin", date(2024, 3, 30))

        found = [each.interval for each in planned(job=job, now=datetime(2024, 4, 1, 12, tzinfo=UTC))]

        assert [(interval.end - interval.start) / timedelta(hours=1) for interval in found] == [24, 23]
        assert found[0].end == found[1].start

    @pytest.mark.parametrize("job", [job_of("hour"), job_of("week"), job_of("day", "Asia/Tokyo")])
    def test_other_calendar(self, job: Job) -> None:
        """Intervals cut otherwise than a published one are refused, wherever it lies; a run without rows is no matter."""
        for number in (-9, 0, 99):
            with pytest.raises(UsageError, match=r"is published, and \[interval\] now cuts time otherwise"):
                planned([run_of(day(number))], job)
            for status in ("running", "failed", "held", "superseded"):
                assert planned([run_of(day(number), status)], job) == planned(job=job)


class TestStates:
    """What became of an interval."""

    @pytest.mark.parametrize(
        ("attempts", "state"),
        [
            ([], "missing"),
            ([("running", "in use")], "unfinished"),
            ([("failed", "in use")], "failed"),
            ([("failed", "in use"), ("running", "in use")], "unfinished"),
            ([("running", "older"), ("failed", "in use")], "failed"),
            ([("held", "in use")], "held"),
            ([("failed", "in use"), ("held", "in use")], "held"),
            ([("held", "in use"), ("running", "older")], "unfinished"),
            ([("published", "in use"), ("held", "in use")], "published"),
            ([("published", "in use")], "published"),
            ([("published", "older")], "stale-model"),
            ([("superseded", "in use"), ("published", "older")], "stale-model"),
            ([("published", "in use"), ("failed", "in use")], "published"),
            ([("published", "older"), ("running", "in use")], "stale-model"),
            ([("superseded", "in use")], "missing"),
        ],
    )
    def test_of_runs(self, attempts: list[tuple[str, str]], state: State) -> None:
        """A published run decides, and else the latest attempt does."""
        history = [run_of(day(0), status, digest, age) for age, (status, digest) in enumerate(attempts)]

        assert states(history, now=day(0).end) == [state]

    def test_no_bundle(self) -> None:
        """Without a bundle in use nothing is stale."""
        assert states([run_of(digest="older")], now=day(0).end, digest=None) == ["published"]

    def test_only(self) -> None:
        """`missing` takes all that has no predictions, `failed` what stopped, `all` everything; the others themselves."""
        kept: dict[State, Run | None] = {
            "missing": None,
            "unfinished": run_of(status="running"),
            "failed": run_of(status="failed"),
            "held": run_of(status="held"),
            "published": run_of(),
            "stale-model": run_of(digest="older"),
            "changed-input": run_of(),
        }
        selected: dict[Only, set[State]] = {
            only: {state for state, run in kept.items() if Planned(day(0), state, run).selected_by(only)}
            for only in ("missing", "failed", "stale-model", "changed-input", "all")
        }

        assert selected == {
            "missing": {"missing", "unfinished", "failed", "held"},
            "failed": {"failed", "held"},
            "stale-model": {"stale-model"},
            "changed-input": {"changed-input"},
            "all": set(kept),
        }

    def test_why(self) -> None:
        """The state is told in words: a failure by the first line of its error, a publish by its version."""
        history = [
            run_of(day(1), "running"),
            run_of(day(2), "failed", error="3 of 4 rows\n  x (2)\n"),
            run_of(day(3)),
            run_of(day(4), digest="older"),
        ]

        assert [each.why for each in planned(history)] == [
            "never scored",
            "begun and not finished; goes on behind its last committed chunk",
            "failed: 3 of 4 rows",
            "published by version 1",
            "published by version 2, which is not the one in use",
        ]

    def test_why_held_or_changed(self) -> None:
        """A hold is told by the first of its gates and its run's id, for `runs publish`; changed input by the version that scored what it was."""
        run = replace(run_of(status="held", error="varying: score is 1\nrejects: 2 of 3"), run_id="1234abcd-56ef")

        assert planned([run], now=day(0).end)[0].why == "held: varying: score is 1 (run 1234abcd)"
        assert Planned(day(0), "changed-input", run_of(digest="older")).why == (
            "published by version 2, and its rows have changed since"
        )

    def test_a_later_attempt(self) -> None:
        """A published interval whose later run came to nothing says so, and `failed` takes it."""
        tries = {
            "failed": "; again: failed: no room",
            "held": "; again: held: no room (run ",
            "running": "; again: begun and not finished",
        }
        for status, words in tries.items():
            history = [run_of(), replace(run_of(status=status, error="no room"), scored_at=day(9).start)]
            (each,) = planned(history, now=day(0).end)

            assert each.state == "published"
            assert each.why.startswith(f"published by version 1{words}")
            assert (each.selected_by("failed"), each.selected_by("missing")) == (True, False)

    def test_why_without_words(self) -> None:
        """A failure without an error is told without one."""
        assert [planned([run_of(status="failed", error=error)], now=day(0).end)[0].why for error in (None, "")] == [
            "failed: "
        ] * 2


class TestRevision:
    """`revision_of`."""

    def test_counts(self) -> None:
        """It is one more than the last published run of the interval has, by whichever bundle, and counts no attempt."""
        history = [
            run_of(day(0), "superseded", age=0, revision=0),
            run_of(day(0), "superseded", "older", age=1, revision=1),
            run_of(day(0), "published", age=2, revision=2),
            run_of(day(0), "failed", age=3, revision=3),
            run_of(day(0), "held", age=4, revision=3),
            run_of(day(0), "running", age=5, revision=3),
            run_of(day(1), "published", age=6, revision=0),
            run_of(day(2), "failed", age=7, revision=0),
        ]

        assert [revision_of(day(number), history) for number in range(4)] == [3, 1, 0, 0]

    @given(st.lists(st.sampled_from(["attempt", "publish in use", "publish older", "prune"]), max_size=12))
    def test_new_work_is_new(self, steps: list[str]) -> None:
        """Attempts of one piece of work share a revision; once it is published, no run ever has that revision again.

        Nor when superseded runs were pruned in between.
        """
        history: list[Run] = []
        published: set[int] = set()
        for age, step in enumerate(steps):
            revision = revision_of(day(0), history)
            assert revision not in published
            if step == "prune":
                history = [run for run in history if run.status != "superseded"]
                assert revision_of(day(0), history) == revision
            elif step == "attempt":
                history.append(run_of(day(0), "failed", "in use", age, revision=revision))
                assert revision_of(day(0), history) == revision
            else:
                history = [replace(run, status="superseded") for run in history]
                history.append(run_of(day(0), "published", step.removeprefix("publish "), age, revision=revision))
                published.add(revision)
