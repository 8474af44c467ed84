"""Which intervals a job has, what became of each, and which are to be scored now. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from batchscore.errors import UsageError
from batchscore.interval import Interval
from batchscore.job import Job
from batchscore.ledger import Run

__all__ = ["Only", "Planned", "State", "plan", "revision_of"]

State = Literal["missing", "unfinished", "failed", "held", "published", "stale-model", "changed-input", "unread"]
Only = Literal["missing", "failed", "stale-model", "changed-input", "all"]

_STATES: dict[Only, tuple[State, ...]] = {
    "missing": ("missing", "unfinished", "failed", "held"),
    "failed": ("failed", "held"),
    "stale-model": ("stale-model",),
    "changed-input": ("changed-input",),
    "all": ("missing", "unfinished", "failed", "held", "published", "stale-model", "changed-input"),
}
_ATTEMPTED = ("running", "failed", "held")


@dataclass(frozen=True, slots=True)
class Planned:
    """One interval of a job.

    Attributes:
        interval: The interval.
        state: What became of it: `missing` (never tried), `unfinished` (a process died or is at work), `failed`,
            `held` (scored, and stopped by a gate), `published` by this bundle, `stale-model`: published by another, or
            `changed-input`: published by this one, from rows that are no longer the same, or `unread`: published, and
            whether its rows are the same could not be seen.
        run: The run that says so; None when missing.
        behind: The latest run of a published interval since, that is not published itself; None where there is none.
    """

    interval: Interval
    state: State
    run: Run | None
    behind: Run | None = None

    def selected_by(self, only: Only) -> bool:
        """Whether `--only` takes it.

        `missing` is all that has no published predictions; `failed` also what is published and was begun again since.
        """
        return self.state in _STATES[only] or (only == "failed" and self.behind is not None)

    @property
    def why(self) -> str:
        """The state in words."""
        version = self.run.model_version if self.run else None
        said = {
            "missing": "never scored",
            "published": f"published by version {version}",
            "stale-model": f"published by version {version}, which is not the one in use",
            "changed-input": f"published by version {version}, and its rows have changed since",
            "unread": f"published by version {version}, and its rows could not be read again",
        }
        if self.run and self.state not in said:
            return _attempt(self.run)
        return f"{said[self.state]}; again: {_attempt(self.behind)}" if self.behind else said[self.state]


def _attempt(run: Run) -> str:
    """What a run has come to that is not published: a held one with as much of its id as `runs publish` needs."""
    first = (run.error or "").partition("\n")[0]
    match run.status:
        case "held":
            return f"held: {first} (run {run.run_id[:8]})"
        case "failed":
            return f"failed: {first}"
        case _:
            return "begun and not finished; goes on behind its last committed chunk"


def plan(
    job: Job,
    history: Sequence[Run],
    *,
    first: datetime | None,
    last: datetime | None,
    now: datetime,
    digest: str | None,
) -> list[Planned]:
    """Every complete interval of the job in `[first, last)`, oldest first, with what became of it.

    Args:
        job: The job.
        history: Its runs into its output table, in any order.
        first: From here; the job's start when None or earlier.
        last: To here; `now` when None or later, for an interval is scored when it has ended.
        now: The one clock reading of this process.
        digest: The bundle in use; None when there is none, and then nothing is stale.

    Raises:
        UsageError: The job's intervals are cut otherwise than those already published.
    """
    runs: defaultdict[Interval, list[Run]] = defaultdict(list)
    for run in history:
        runs[run.interval].append(run)
        if run.status == "published" and job.calendar.containing(run.interval.start) != run.interval:
            raise UsageError(
                f"job {job.name}: {run.interval} is published, and [interval] now cuts time otherwise. Overlapping "
                "intervals would double rows: keep the old [interval], or give the job another name and output table."
            )
    first = max(job.start, first) if first else job.start
    last = min(now, last) if last else now
    return [_planned(interval, runs[interval], digest) for interval in job.calendar.between(first, last)]


def _planned(interval: Interval, runs: Sequence[Run], digest: str | None) -> Planned:
    published = [run for run in runs if run.status == "published"]
    attempted = sorted((run for run in runs if run.status in _ATTEMPTED), key=lambda run: run.scored_at)
    if published:
        stale = digest is not None and published[-1].bundle_digest != digest
        return Planned(interval, "stale-model" if stale else "published", published[-1], *attempted[-1:])
    if not attempted:
        return Planned(interval, "missing", None)
    last = attempted[-1]
    return Planned(interval, last.status if last.status in ("failed", "held") else "unfinished", last)


def revision_of(interval: Interval, history: Sequence[Run]) -> int:
    """The number of the interval's next run: one more than the last that was published has, by whichever bundle.

    That one is never pruned, so no number is given twice.
    """
    done = ("published", "superseded")
    return max((run.revision + 1 for run in history if run.interval == interval and run.status in done), default=0)
