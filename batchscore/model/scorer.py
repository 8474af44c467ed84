"""Rows in, predictions out: pure, and the same for a chunk of any size, but for what rounding makes of a score.

A row that cannot be scored becomes a reject with its reason and leaves the others alone; a failing call is bisected
to the rows that cause it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs

from batchscore.errors import GoldenRowsDiffer, TooManyRejects
from batchscore.model.bundle import Bundle
from batchscore.model.predictor import Stage, StageError
from batchscore.problem import REASON
from batchscore.profile import Profile
from batchscore.schema import Reason, dtype_of

__all__ = ["MOST_FAILURES", "Scored", "check_golden", "predict", "score"]

# On more rows of a run than this nothing is bisected: it is the features or the pipeline that must be mended, and
# finding each row takes a score of calls. Counted over the run, so that the size of a chunk changes nothing.
MOST_FAILURES = 10_000

# How far a score may lie from the one at training, relative to it.
GOLDEN_TOLERANCE = 1e-9

_FAILED: dict[Stage, Reason] = {"features": Reason.FEATURES_FAILED, "pipeline": Reason.PIPELINE_FAILED}
_REJECTS = {"row": pl.UInt32, "stage": pl.String, "reason": pl.String, "detail": pl.String}


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of one chunk.

    Attributes:
        predictions: The key, the carried columns, `prediction` and the scores; one row for each scored row, in order.
        rejects: `key` and `values` (Structs of the key's columns and of the others), `stage`, `reason`, `detail`
            (String); one row for each row not scored.
        inputs: Profile of every input column, rejected rows included.
        outputs: Profile of `prediction` and the scores.
    """

    predictions: pl.DataFrame
    rejects: pl.DataFrame
    inputs: Profile
    outputs: Profile

    @property
    def failures(self) -> int:
        """Rows on which the features or the pipeline failed: those that took a bisection."""
        return int(self.rejects["stage"].is_in(["features", "pipeline"]).sum())

    @property
    def rows_read(self) -> int:
        """Rows scored and rows rejected."""
        return self.predictions.height + self.rejects.height


def score(
    bundle: Bundle,
    rows: pl.DataFrame,
    carry: Sequence[str] = (),
    *,
    failures_left: int = MOST_FAILURES,
    quote: bool = True,
) -> Scored:
    """Score rows that conform to the bundle's schema.

    Args:
        bundle: The model version.
        rows: Shape `(rows, columns)`, as `Schema.conform` gives them.
        carry: Input columns to pass on beside the key.
        failures_left: On how many rows the features and the pipeline may still fail before the whole is given up.
        quote: Whether their errors are told in their own words, which may hold values; by their class alone otherwise.

    Raises:
        TooManyRejects: They fail on more.
    """
    predicted, rejects = predict(bundle, rows, failures_left=failures_left, quote=quote)
    passed = rows.select(*bundle.key, *carry)
    outputs = predicted.drop("row")
    return Scored(
        predictions=passed[predicted["row"]].hstack(outputs),
        rejects=_set_aside(rows[rejects["row"]], bundle.key).hstack(rejects.drop("row")),
        inputs=Profile.of(rows, bundle.input_reference.layouts),
        outputs=Profile.of(outputs, bundle.output_reference.layouts, bundle.predictor.chosen(outputs)),
    )


def predict(
    bundle: Bundle, rows: pl.DataFrame, *, failures_left: int = MOST_FAILURES, quote: bool = True
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What the model answers for rows that conform to the bundle's schema, and for which it has no answer; see `score`.

    Returns:
        `row` (UInt32, position), `prediction` and the scores, in order; and for each other row `row`, `stage`,
        `reason` and `detail`.

    Raises:
        TooManyRejects: The features or the pipeline fail on more than `failures_left` rows.
    """
    surprises = bundle.schema.surprises(rows).select(
        "row", pl.lit("input").alias("stage"), "reason", pl.format("column {}", "column").alias("detail")
    )
    kept = pl.Series("row", np.setdiff1d(np.arange(rows.height, dtype=np.uint32), surprises["row"]))
    predicted, failures = _bisected(bundle, rows[kept], failures_left, quote=quote)
    rejects = pl.concat([surprises, failures.with_columns(kept.gather(failures["row"]))])
    return predicted.with_columns(kept.gather(predicted["row"])), rejects


def _set_aside(rows: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    values = pl.struct(pl.exclude(key)) if rows.width > len(key) else pl.struct(pl.lit(None).alias("none"))
    return rows.select(pl.struct(key).alias("key"), values.alias("values"))


def check_golden(bundle: Bundle) -> None:
    """Score the bundle's golden rows and compare with what training got.

    Raises:
        GoldenRowsDiffer: A label differs, or a score by more than `GOLDEN_TOLERANCE` relative.
    """
    remedy = "The libraries or the bundle are not those of training: use the image it was trained with, or retrain."
    try:
        now = bundle.predictor.predict(bundle.golden_rows)
    except StageError as error:
        raise GoldenRowsDiffer(f"{bundle}: its golden rows fail here in {error.stage} ({error}). {remedy}") from error
    for then in bundle.golden_predictions.iter_columns():
        differ = _differ(then, now[then.name], _size(bundle.golden_predictions, then.name))
        if differ.any():
            row = int(np.flatnonzero(differ)[0])
            raise GoldenRowsDiffer(
                f"{bundle}: {int(differ.sum())} of {len(then)} golden rows have another {then.name} here than at "
                f"training, for instance {now[then.name][row]!r} instead of {then[row]!r}. {remedy}"
            )


def _size(then: pl.DataFrame, name: str) -> pl.Series | float:
    """What a column's rounding is relative to beside its own values: for a reason the row's strongest one."""
    return then[f"{REASON}1_value"].abs().fill_null(0.0) if name.startswith(REASON) else 0.0


def _differ(then: pl.Series, now: pl.Series, size: pl.Series | float) -> npt.NDArray[np.bool_]:
    if then.dtype == pl.Float64():
        slack = GOLDEN_TOLERANCE * np.asarray(size)
        close = np.isclose(now.to_numpy(), then.to_numpy(), rtol=GOLDEN_TOLERANCE, atol=slack, equal_nan=True)
        return np.asarray(~close)
    return np.asarray(~then.eq_missing(now))


def _bisected(
    bundle: Bundle, rows: pl.DataFrame, failures_left: int, *, quote: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions with their `row`, and failures; a failing range is halved until single rows are guilty.

    Takes O(guilty · log rows) calls.
    """
    done = [_no_predictions(bundle)]
    failures: list[tuple[int, Stage, str, str]] = []
    pending = [(0, rows.height)] if rows.height else []
    while pending:
        start, stop = pending.pop()
        try:
            predicted = bundle.predictor.predict(rows[start:stop])
            done.append(predicted.with_row_index("row", offset=start))
        except StageError as error:
            if stop - start > 1:
                middle = (start + stop) // 2
                pending += [(middle, stop), (start, middle)]
                continue
            detail = str(error) if quote else error.kind
            failures.append((start, error.stage, _FAILED[error.stage], detail))
            if len(failures) > failures_left:
                raise TooManyRejects(
                    f"the {error.stage} of {bundle} fails on more than {MOST_FAILURES:,} rows of the run; the last "
                    f"error was {detail}. Nothing was published. Mend the rows at the source, or retrain with "
                    "features that take them."
                ) from error
    return _finite(pl.concat(done), pl.DataFrame(failures, schema=_REJECTS, orient="row"))


def _finite(predicted: pl.DataFrame, failures: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Move rows whose prediction or score is NaN, infinite or NULL over to the failures."""
    # There may be fewer reasons than were asked for.
    values = cs.exclude("row") - cs.starts_with(REASON)
    sound = predicted.select(
        pl.all_horizontal(values.is_not_null(), (values & cs.float()).is_finite(), pl.lit(True))
    ).to_series()
    broken = predicted.filter(~sound).select(
        "row",
        pl.lit("prediction").alias("stage"),
        pl.lit(Reason.SCORE_NOT_FINITE).alias("reason"),
        pl.lit("the pipeline gave NaN, infinity or nothing").alias("detail"),
    )
    return predicted.filter(sound), pl.concat([failures, broken]).sort("row")


def _no_predictions(bundle: Bundle) -> pl.DataFrame:
    types = {name: dtype_of(type_) for name, type_ in bundle.predictor.output_types.items()}
    return pl.DataFrame(schema={"row": pl.UInt32, **types})
