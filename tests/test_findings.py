"""What is told in words: from rows made for each claim, so that each word has its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from batchscore.drift import Drift
from batchscore.interval import Calendar
from batchscore.layout import Layout
from batchscore.ledger import Run
from batchscore.model.evaluation import Bin, Measured
from batchscore.model.metrics import evaluate
from batchscore.model.tally import Tally
from batchscore.monitor import findings, moves
from batchscore.monitor.heat import _buckets
from batchscore.monitor.pooled import Pooled, pooled
from batchscore.monitor.shapes import Shape
from batchscore.monitor.watch import Comparison, Watched
from batchscore.profile import ColumnProfile

DAYS = Calendar("day", ZoneInfo("UTC"))
FIRST = datetime(2024, 2, 1, tzinfo=UTC)


def run(day: int, every: Calendar = DAYS, **changes: Any) -> Run:
    """A published run of so many days behind the first."""
    start = FIRST + timedelta(days=day)
    made = Run(
        run_id=f"{day:08}-run",
        job="toy",
        interval=every.containing(start),
        model_name="toy",
        model_version=1,
        bundle_digest="d",
        revision=0,
        output_table="t",
        scored_at=start + timedelta(days=1),
        status="published",
        rows_read=100,
        predictions=100,
        rejects=0,
    )
    return replace(made, **changes)


def watched(
    column: str, value: float, metric: Any = "psi", importance: float | None = 0.5, role: str = "input"
) -> Watched:
    """A judged metric with a band of 0.2."""
    moved = "moved" if abs(value) >= 0.2 else "steady"
    return Watched(role, Drift(column, metric, value, 0.01, 0.5, 0.2, moved, 900, 900), importance, moved == "moved")  # type: ignore[arg-type]


def columns(now: Sequence[Watched], before: Sequence[Watched] = (), **more: Any) -> list[findings.Finding]:
    """What is told of ten runs against training, and against ten before."""
    runs, others = [run(day) for day in range(10, 20)], [run(day) for day in range(10)]
    training = Comparison("training", runs, [], now)
    previous = Comparison("previous", runs, others if before else [], before)
    return list(
        moves.of_columns(
            training,
            previous,
            more.get("means", {}),
            more.get("since", {}),
            DAYS,
            more.get("gone", ()),
            more.get("steps", ()),
        )
    )


class TestColumns:
    @pytest.mark.parametrize(
        ("before", "words"),
        [
            (0.1, "which is quiet: it moved slowly, which looks seasonal, or has stayed where it went."),
            (0.4, "which is little: it moved slowly, which looks seasonal, or has stayed where it went."),
            (1.9, ": it differs between these runs too, by nature or because it moves now."),
        ],
    )
    def test_season(self, before: float, words: str) -> None:
        """What differs from training by far, and from the runs before by little, looks seasonal; else it does not."""
        (told,) = columns([watched("temp", 2.0)], [watched("temp", before)])

        assert told.words.startswith(
            "temp moved against training: psi 2.000 in the last 10 runs, 10.0 times what counts."
        )
        assert told.words.endswith(
            f"Against the 10 runs before it is {before:.{3 if before > 1 else 4}f}{', ' if 'which is' in words else ''}{words}"
        )

    def test_means_and_since(self) -> None:
        """The means stand beside a number that moved, and not beside a share of NULLs."""
        means, since = {"a": (1.0, 2.0)}, {("input", "a"): FIRST}
        (moved,) = columns([watched("a", 0.5)], means=means, since=since)
        (nulls,) = columns([watched("a", 0.5, "null_share")], means=means)

        assert "Its mean is 1.000, and was 2.000 in training." in moved.words
        assert moved.since == FIRST
        assert moved.words.startswith("a moved against training, in every run since 2024-02-01: psi 0.5000 in the last")
        assert "mean" not in nulls.words

    def test_the_strongest_metric_is_told(self) -> None:
        """One sentence for a column, with its strongest metric; what is told as gone is not told as drift of NULLs."""
        both = [watched("a", 0.5), watched("a", 0.9, "null_share")]

        assert [one.words.split(": ")[1][:10] for one in columns(both)] == ["null_share"]
        assert [one.words.split(": ")[1][:3] for one in columns(both, gone={"a"})] == ["psi"]

    def test_importance(self) -> None:
        """Important columns come first and are to be looked at; of those the model hardly reads the restless are one note."""
        now = [
            watched("x", 9.0, importance=0.01),
            watched("y", 9.0, importance=None),
            watched("z", 0.4, importance=1.0),
        ]

        told = columns(now, [watched("x", 8.0), watched("y", 8.0), watched("z", 0.3)])

        assert [(one.subject, one.level) for one in told] == [("z", "look"), ("x, y", "note")]
        assert told[1].words == "x, y moved against training too, and differ between runs as much."

    def test_steady(self) -> None:
        """What stayed is told by name; too few rows are no steadiness, nor is a share of NULLs alone."""
        few = Watched("input", Drift("q", "psi", None, None, None, 0.2, "not enough data", 9, 9), 0.1, told=False)

        hidden = watched("p", 0.0, "null_share")

        (told,) = columns([watched("a", 0.1), watched("b", 0.1), few, hidden])

        assert told.words == "a, b are steady against training in the last 10 runs."

    def test_what_began_lately(self) -> None:
        """A column that has moved in each of the last runs is judged over them alone, and is not steady."""
        a, b, c = watched("a", 0.9), watched("b", 0.4, importance=0.01), watched("c", 0.4, importance=0.01)
        steps = [
            moves.Step([run(day) for day in (17, 18, 19)], a, (3.0, 1.0), {"garden": 33, "barn": 2}),
            moves.Step([run(day) for day in (18, 19)], b, None, {}),
            moves.Step([run(19)], c, None, {}),
        ]

        found = columns([watched(name, 0.1) for name in "abcd"], steps=steps)

        assert [(each.subject, each.level) for each in found] == [
            ("a", "look"),
            ("b", "note"),
            ("c", "note"),
            ("steady", "note"),
        ]
        assert found[0].words == (
            "a moved against training since 2024-02-18, in each of 3 runs and not in the one before: psi 0.9000 in them, "
            "4.5 times what counts. Its mean is 3.000, and was 1.000 in training. Training never saw 'garden', 'barn'."
        )
        assert found[2].words == "c moved against training in the last run alone: psi 0.4000, 2.0 times what counts."
        assert found[3].words.startswith("d is steady")
        assert [each.subject for each in columns([watched("a", 0.1)], steps=steps[:1], gone=["a"])] == ["steady"]

    def test_in_the_last_run_alone(self) -> None:
        """A column that the model reads and that moved twice what counts is to be looked at; others are one note."""
        far, near, unread = watched("a", 0.5), watched("b", 0.3), watched("c", 0.9, importance=None)
        steps = [moves.Step([run(19)], each, None, {}) for each in (near, far, unread)]

        look, note = sorted(columns([], steps=steps), key=lambda each: each.level)

        assert (look.subject, look.level, note.level) == ("a", "look", "note")
        assert look.words == (
            "a moved against training in the last run alone, 2024-02-20: psi 0.5000, 2.5 times what counts."
        )
        assert "2024-02-20" in look.advice
        assert note.words == (
            "b, c moved against training in the last run alone: "
            "b psi 0.3000, 1.5 times what counts; c psi 0.9000, 4.5 times what counts."
        )

    def test_shares_in_words(self) -> None:
        """A difference of two shares is told as both of them, wherever it is told."""

        def shares(name: str, now: float, before: float) -> Watched:
            each = watched(name, now - before, "null_share")
            return replace(each, drift=replace(each.drift, share=now, reference_share=before))

        step = moves.Step([run(day) for day in (18, 19)], shares("b", 0.5, 0.1), None, {})
        steps = [step, replace(step, runs=[run(19)]), replace(step, runs=[run(19)], strongest=shares("d", 0.4, 0.1))]
        told = columns([shares("a", 0.62, 0.02)], [shares("a", 0.61, 0.6)], steps=steps[:1])
        (alone,), (near,) = (columns([], steps=[each]) for each in steps[1:])

        assert [each.words for each in told] == [
            (
                "b moved against training since 2024-02-19, in each of 2 runs and not in the one before: in them NULL "
                "or NaN in 50.0% of rows, 10.0% in training, a difference of 2.0 times what counts."
            ),
            (
                "a moved against training: in the last 10 runs NULL or NaN in 62.0% of rows, 2.0% in training, a "
                "difference of 3.0 times what counts. Against the 10 runs before it is 61.0%, was 60.0%, which is "
                "quiet: it moved slowly, which looks seasonal, or has stayed where it went."
            ),
        ]
        for each in (alone, near):
            assert re.search(r"NULL or NaN in [45]0.0% of rows, 10.0% in training, a difference of", each.words)
        assert not [each for each in (*told, alone, near) if "null_share" in each.words]

    def test_rows_told_apart(self) -> None:
        """That a classifier tells the last run's rows apart is a sentence, with the command that says by what."""
        row = {"metric": "domain_auc", "told": True, "reference": "last_week", "value": 0.73, "band": 0.6}
        rows = [{**row, "run_id": run(day).run_id} for day in (18, 19)]

        (told,) = moves.of_rows(run(19), [*rows, {**rows[1], "told": False}], DAYS)

        assert "Rows of 2024-02-20 can be told from those of last week by all columns together" in told.words
        assert told.advice.endswith("drift toy --from 2024-02-20 --to 2024-02-21 --against last_week")


def test_scored_again_and_not_evaluated() -> None:
    """What was scored again since it was evaluated, and what nobody has evaluated, are told apart, with the command."""
    runs = [run(day) for day in range(5)]
    measured = {one.interval.start for one in runs[:3]}

    again, never = findings.of_unevaluated(runs, {runs[0].run_id, runs[2].run_id}, measured, DAYS)

    assert again.words == "2024-02-02 has been scored again since it was evaluated: its labels are left out."
    assert again.advice == "batchscore evaluate toy --from 2024-02-02 --to 2024-02-03"
    assert never.words == "Not evaluated: 2 interval(s), 2024-02-04 to 2024-02-05."
    assert never.advice.endswith(": batchscore evaluate toy --from 2024-02-04 --to 2024-02-06")
    assert list(findings.of_unevaluated(runs, {one.run_id for one in runs}, measured, DAYS)) == []
    (nothing_yet,) = findings.of_unevaluated(runs, set(), set(), DAYS)
    assert nothing_yet.words == "Not evaluated: 5 interval(s), 2024-02-01 to 2024-02-05."


def test_alerts() -> None:
    """Alerts that fire are one finding to look at, with how many and which; what has recovered is none."""
    names = ["drift input a", "drift input b", "failed 2024-02-03", "performance measured", "performance estimated"]
    rows = [
        {"alert": name, "state": "firing", "first_interval": FIRST + timedelta(days=day)}
        for day, name in enumerate(names)
    ]
    over = {"alert": "drift input c", "state": "recovered", "first_interval": FIRST}

    (told,) = findings.of_alerts("toy", [*rows, over])

    assert told.words == (
        "5 alert(s) fire: drift input a, drift input b, failed 2024-02-03, performance measured and 1 more."
    )
    assert (told.level, told.advice, told.since) == ("look", "batchscore alerts list toy", FIRST)
    assert list(findings.of_alerts("toy", [over])) == []


def test_gone_together() -> None:
    """Columns that went on the same days are one finding; what is mostly missing at training is none."""
    runs = [run(day) for day in range(4)]
    shares = {
        "a": (0.0, 1.0, 0.0, 0.0),
        "b": (0.1, 0.95, 0.0, 0.0),
        "c": (0.0, 0.0, 0.0, 1.0),
        "d": (1.0, 1.0, 1.0, 1.0),
    }
    seen = [
        {"role": "input", "column_name": name, "run_id": runs[i].run_id, "null_share": share}
        for name, all_ in shares.items()
        for i, share in enumerate(all_)
    ]

    gone = moves.gone_from(runs, seen, {"a": 0.0, "b": 0.1, "c": 0.0, "d": 0.8})
    first, last = moves.of_nulls(runs, gone, DAYS)

    assert first.words == "a, b are NULL or NaN in at least 95% of the rows of 2024-02-02."
    assert last.words == "c is NULL or NaN in all rows of 2024-02-04."
    assert (first.level, last.level) == ("look", "act")
    assert [moves.gone_lately(gone, place) for place in (1, 2, 3)] == [{"a", "b", "c"}, {"c"}, {"c"}]


class TestRuns:
    def test_late_and_missing(self) -> None:
        """Holes and what has ended since are told apart; an interval that has not ended yet is not late."""
        runs = [run(0), run(2)]
        on_time = list(findings.of_runs(runs, DAYS, FIRST + timedelta(days=3, hours=5)))
        late = list(findings.of_runs(runs, DAYS, FIRST + timedelta(days=5)))

        assert [one.words for one in on_time] == ["2024-02-02 is not published, and later ones are."]
        assert late[1].words == "2024-02-03 is the last published interval; 2 more have ended since."
        assert late[1].advice.endswith("batchscore backfill toy --from 2024-02-04 --to 2024-02-06")

    def test_made_good(self) -> None:
        """A run that failed is told until its interval is published, and of a later version the change is told."""
        failed = run(1, status="failed", run_id="failed", error="no rows", scored_at=FIRST)
        good = run(1, model_version=2)

        broken = [one.words for one in findings.of_runs([run(0), failed], DAYS, FIRST)]
        mended = [one.words for one in findings.of_runs([run(0), failed, good], DAYS, FIRST)]

        assert broken == ["The run of 2024-02-02 failed: no rows"]
        assert mended == ["toy version 2 scores since 2024-02-02, version 1 until then."]

    def test_moved_since(self) -> None:
        """Since when a column has moved is the first of the unbroken runs up to the last."""
        runs = [run(day) for day in range(5)]
        rows = [
            {
                "reference": "training",
                "role": "input",
                "column_name": name,
                "verdict": "moved",
                "run_id": runs[i].run_id,
            }
            for name, days in {"a": (0, 2, 3, 4), "b": (0, 1)}.items()
            for i in days
        ]

        assert moves.moved_since(runs, rows) == {("input", "a"): runs[2].interval.start}


def month(first: int, predicted: float, came: float, auc: tuple[float, float], error: float = 0.01) -> Pooled:
    """Labelled predictions of ten runs."""
    measured = {"roc_auc": Measured(value=sum(auc) / 2, low=auc[0], high=auc[1])}
    runs = [run(first + i) for i in range(10)]
    return Pooled(runs, 1000, 990, "mature", measured, predicted, came, error, [Bin(score=0.1, observed=0.1, rows=99)])


class TestPerformance:
    TEST = Measured(value=0.75, low=0.72, high=0.78)

    def told(self, *months: Pooled, scatter: float = 0.0, digest: str = "d") -> list[str]:
        """The words on these months, of a version whose metric varied so much over its test rows."""
        evaluation = SimpleNamespace(test={"roc_auc": self.TEST}, scatter={"roc_auc": scatter})
        bundle = SimpleNamespace(digest=digest, evaluation=evaluation)
        return [one.words for one in findings.of_performance(months, "roc_auc", bundle, DAYS)]  # type: ignore[arg-type]

    def test_calibration(self) -> None:
        """Where more or fewer came than predicted, beyond chance, it is told with figures, by side; else nothing is."""
        high, low = month(0, 0.21, 0.16, (0.7, 0.8)), month(10, 0.25, 0.33, (0.7, 0.8))
        noisy, near = month(20, 0.25, 0.33, (0.7, 0.8), error=0.05), month(30, 0.25, 0.265, (0.7, 0.8), error=0.001)

        assert self.told(high, low, noisy, near) == [
            "Calibration slipped, scores are too high: predicted were 21.0% and 16.0% came in 2024-02-01 to 2024-02-10.",
            "Calibration slipped, scores are too low: predicted were 25.0% and 33.0% came in 2024-02-11 to 2024-02-20.",
        ]

    def test_worse_than_on_test_rows(self) -> None:
        """The metric is worse where its interval lies below that of the test rows, and not where they overlap."""
        assert self.told(month(0, 0.2, 0.2, (0.71, 0.73))) == []
        assert self.told(month(0, 0.2, 0.2, (0.66, 0.70))) == [
            (
                "roc_auc is worse than on test rows, where it was 0.7500 (0.7200 to 0.7800): "
                "0.6800 (0.6600 to 0.7000) in 2024-02-01 to 2024-02-10."
            )
        ]

    def test_single_intervals(self) -> None:
        """Intervals that are worse each by itself are named, though the month is not."""
        worse = [run(day).interval for day in (2, 3)]
        evaluation = SimpleNamespace(test={"roc_auc": self.TEST}, scatter={})
        bundle: Any = SimpleNamespace(digest="d", evaluation=evaluation)
        (told,) = findings.of_performance([month(0, 0.2, 0.2, (0.71, 0.73))], "roc_auc", bundle, DAYS, worse)

        assert told.words == "roc_auc is worse than on test rows in 2024-02-03 to 2024-02-04, each by itself."
        assert "labels and how they are joined" in told.advice
        assert told.advice.endswith("batchscore retrain toy --if degraded")

    def test_the_source_first(self) -> None:
        """A column that moved no later than the metric fell stands before it, and to train anew is told once."""
        evaluation = SimpleNamespace(test={"roc_auc": self.TEST}, scatter={})
        bundle: Any = SimpleNamespace(digest="d", evaluation=evaluation)
        worse = [run(day).interval for day in (4, 5)]
        fell = list(findings.of_performance([month(0, 0.2, 0.3, (0.6, 0.65))], "roc_auc", bundle, DAYS, worse))

        def step(name: str, day: int, **more: Any) -> moves.Step:
            return moves.Step([run(day), run(day + 1)], watched(name, 2.0, **more), None, {})

        steps = [step("at", 4), step("late", 5), step("unread", 3, importance=None), step("score", 3, role="output")]
        found = findings.causes_first(fell, columns([], steps=steps), DAYS)

        assert [each.subject for each in found] == [
            *("at", "roc_auc", "roc_auc", "calibration"),
            *("late", "unread", "score"),
        ]
        assert found[0].advice.startswith(
            "Mend the source first, for it moved no later than roc_auc got worse: see what changed on 2024-02-05, "
        )
        assert all(each.advice.startswith("Mend the source first, see at. ") for each in found[1:4])
        commands = [each.advice.count("batchscore retrain toy --if degraded") for each in found]
        assert commands == [0, 1, 0, 0, 0, 0, 0]
        late = findings.causes_first(fell, columns([], steps=steps[1:2]), DAYS)
        assert [each.subject for each in late] == ["roc_auc", "roc_auc", "calibration", "late"]
        assert not [each for each in late if "Mend the source" in each.advice]

    def test_what_varies_by_nature_is_not_worse(self) -> None:
        """It counts as worse by the verdict of the table: not within twice what it varied over the test rows."""
        low = month(0, 0.2, 0.2, (0.66, 0.70))

        assert len(self.told(low, scatter=0.009)) == 1
        assert self.told(low, scatter=0.011) == []

    def test_what_is_not_judged(self) -> None:
        """Months too few labels of which are known, and those that another version scored, are compared with nothing."""
        bad = month(0, 0.25, 0.45, (0.5, 0.6))

        assert len(self.told(bad)) == 2
        assert self.told(replace(bad, state="immature"), replace(bad, state="not enough data")) == []
        assert self.told(bad, digest="e") == []
        # An immature month between two does not part them.
        (worse, _) = self.told(bad, replace(month(10, 0.2, 0.2, (0.7, 0.8)), state="immature"), bad)
        assert worse.count("0.5500 (0.5000 to 0.6000)") == 2


def test_pooled() -> None:
    """Metrics of a month are those of all its rows at once, which a mean over its runs is not, with its calibration."""
    rng = np.random.default_rng(3)
    runs = [run(day) for day in range(6)]
    frames, rows = [], []
    for i, one in enumerate(runs):
        score = rng.uniform(size=500) * (0.2 + 0.1 * i)
        truth = pl.Series(rng.uniform(size=500) < score * 1.5)
        answers = pl.DataFrame({"prediction": score > 0.5, "score": score})
        frames.append(answers.with_columns(truth=truth))
        tally = Tally.of("binary", (False, True), truth, answers)
        rows.append({"run_id": one.run_id, "labelled": 500, "tally": tally.to_json()})
    bundle = SimpleNamespace(
        predictor=SimpleNamespace(task="binary", classes=(False, True), output_types={"prediction": "boolean"})
    )
    whole = pl.concat(frames)

    found = pooled(bundle, runs, rows, 0.9)  # type: ignore[arg-type]

    assert found is not None
    assert pooled(bundle, runs, [], 0.9) is None  # type: ignore[arg-type]
    assert found.state == "mature"
    many = [replace(one, predictions=556) for one in runs]
    assert pooled(bundle, many, rows, 0.9).state == "immature"  # type: ignore[arg-type, union-attr]
    exact = evaluate("binary", whole["truth"], whole.select("prediction", "score"), (False, True))
    assert found.metrics["roc_auc"].value == pytest.approx(exact["roc_auc"], abs=1e-3)
    assert found.metrics["accuracy"].value == exact["accuracy"]
    # What nobody has evaluated does not count as not known; what has no label yet does.
    half = pooled(bundle, [replace(one, predictions=500) for one in runs], rows[:3], 0.9)  # type: ignore[arg-type]
    assert half is not None
    assert (half.predictions, half.labelled, half.state, half.runs[-1].interval) == (
        1500,
        1500,
        "mature",
        runs[2].interval,
    )
    empty = [*rows[:3], {"run_id": runs[3].run_id, "labelled": 0, "tally": ""}]
    early = pooled(bundle, [replace(one, predictions=500) for one in runs], empty, 0.9)  # type: ignore[arg-type]
    assert early is not None
    assert (early.predictions, early.state) == (2000, "immature")
    assert (found.predictions, found.labelled) == (600, 3000)
    assert found.predicted == pytest.approx(whole["score"].mean())
    assert found.came == whole["truth"].mean()
    gaps = [float(each["truth"].mean()) - float(each["score"].mean()) for each in frames]  # type: ignore[arg-type]
    assert found.error == pytest.approx(np.std(gaps, ddof=1) / np.sqrt(6))
    assert len(found.bins) == 10
    assert sum(one.rows for one in found.bins) == 3000
    assert sum(one.rows * one.observed for one in found.bins) == pytest.approx(whole["truth"].sum())
    assert max(one.rows for one in found.bins) < 350


class TestShapes:
    @pytest.mark.parametrize(
        "values",
        [
            pl.Series(np.random.default_rng(0).normal(size=5000)),
            pl.Series(np.where(np.arange(5000) % 3, 0.0, np.arange(5000) / 7)),
            pl.Series(np.arange(5000) % 9),
            pl.Series(np.arange(5000) % 90),
            pl.Series([f"word {i % 40}" for i in range(5000)]),
            pl.Series([f"text {i}" * (i % 9) for i in range(5000)]),
            pl.Series(np.arange(5000) % 3 == 0),
        ],
        ids=["numbers", "zeros", "few whole", "many whole", "categories", "text", "boolean"],
    )
    def test_all_rows_have_a_bar(self, values: pl.Series) -> None:
        """A dozen bars or so hold all rows, training's and any others', also values that training never saw."""
        layout = Layout.of(values)
        shape = Shape.of(ColumnProfile.of(values, layout))
        more = pl.concat([values.head(100), pl.Series([None] * 7, dtype=values.dtype)])
        if values.dtype.is_numeric():
            more = pl.concat([more, pl.Series([-1000, 99999]).cast(values.dtype)])

        assert shape
        assert len(shape.names) <= 15
        assert len(set(shape.names)) == len(shape.names) == len(shape.training)
        assert sum(shape.training) == 5000
        counted = shape.counted(ColumnProfile.of(more, layout).to_dict())
        assert (sum(counted), counted[-1]) == (len(more), 7)

    def test_names(self) -> None:
        """A bar is named by the values in it: a heavy zero alone, whole numbers by themselves, the frequent by name."""
        zeros = pl.Series(np.where(np.arange(1000) % 4, 0.0, 1.0 + np.arange(1000)))
        named = Shape.of(ColumnProfile.of(zeros, Layout.of(zeros)))
        whole = pl.Series([1, 2, 2, 5])
        counted = Shape.of(ColumnProfile.of(whole, Layout.of(whole)))

        assert named
        assert "0" in named.names
        assert named.training[named.names.index("0")] == 750
        assert counted
        assert counted.names == ("1", "2", "5", "not seen in training", "NULL or NaN")
        assert counted.training == (1, 2, 1, 0, 0)

    def test_nothing_to_show(self) -> None:
        """A private column and a calendar have no bars."""
        values = pl.Series(["a", "b"])
        times = pl.Series([FIRST, FIRST + timedelta(days=1)])

        assert Shape.of(ColumnProfile.of(values, Layout.of(values, private=True))) is None
        assert Shape.of(ColumnProfile.of(times, Layout.of(times))) is None


def test_many_intervals_are_taken_together() -> None:
    """A map has at most 120 times: hours become days, days weeks, and no run is lost."""
    hours = Calendar("hour", ZoneInfo("UTC"))
    hourly = [replace(run(0, hours), interval=hours.containing(FIRST + timedelta(hours=i))) for i in range(1000)]

    for runs, calendar, expected in (
        (hourly, hours, ("day", 42)),
        ([run(day) for day in range(120)], DAYS, ("day", 120)),
        ([run(day) for day in range(400)], DAYS, ("week", 58)),
    ):
        every, buckets = _buckets(runs, calendar)
        assert (every, len(buckets)) == expected
        assert sum(len(some) for _, some in buckets) == len(runs)
