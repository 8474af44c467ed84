"""Features and pipeline as one: rows in, `prediction` and scores out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import joblib
import numpy as np
import numpy.typing as npt
import polars as pl

from batchscore.model.features import Features
from batchscore.problem import REASON, Task
from batchscore.schema import TypeName, dtype_of

if TYPE_CHECKING:
    from batchscore.model.explain import Explainer

__all__ = ["Label", "Predictor", "Stage", "StageError", "in_threads"]

Label = bool | int | str
Stage = Literal["features", "pipeline"]


class StageError(Exception):
    """The user's features or pipeline failed on some rows."""

    def __init__(self, stage: Stage, cause: BaseException) -> None:
        # On one line, as tables and logs have it, and without the character that Postgres cannot keep.
        words = " ".join(str(cause).replace("\0", r"\0").split())
        self.kind = type(cause).__name__
        super().__init__(f"{self.kind}: {words}")
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Predictor:
    """A fitted model.

    Attributes:
        features: The features module.
        pipeline: The fitted scikit-learn pipeline.
        task: What kind of answer it gives.
        classes: The labels in the order of the pipeline's probabilities; empty for regression.
        output_types: `prediction`, then `score` (binary) or a `score_<class>` for each class (multiclass: the class in
            lower case, with `_` for all but ASCII letters and digits), then `reason_<k>` and `reason_<k>_value` for
            each of the explainer's, with their types, in order.
        explainer: What says why; None where the job does not ask.
    """

    features: Features
    pipeline: Any
    task: Task
    classes: tuple[Label, ...]
    output_types: Mapping[str, TypeName]
    explainer: Explainer | None = None

    def predict(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`prediction`, the scores and the reasons, shape `(rows, output_types)`, of at least one row.

        The predicted class is the one with the highest probability, the first of them where several tie; a binary
        score is the probability of the second class.

        Raises:
            StageError: The user's features or pipeline failed.
        """
        with _in_stage("features"):
            features = self.features.transform(rows)
        with _in_stage("pipeline"), in_threads():
            answer = self.pipeline.predict if self.task == "regression" else self.pipeline.predict_proba
            answers = np.asarray(answer(features), dtype=np.float64)
            if len(answers) != rows.height:
                raise ValueError(f"the pipeline gave {len(answers)} predictions for {rows.height} rows")
            reasons = pl.DataFrame() if self.explainer is None else self.explainer.reasons(features)
        return self._answered(answers).hstack(reasons)

    def _answered(self, answers: npt.NDArray[np.float64]) -> pl.DataFrame:
        if self.task == "regression":
            return pl.DataFrame({"prediction": answers})
        labels = pl.Series("prediction", self.classes, dtype=dtype_of(self.output_types["prediction"]))
        columns = answers.T[1:] if self.task == "binary" else answers.T
        names = [name for name in self.output_types if name != "prediction" and not name.startswith(REASON)]
        scores = [pl.Series(name, values) for name, values in zip(names, columns, strict=True)]
        return pl.DataFrame([labels.gather(answers.argmax(axis=1)), *scores])


@contextmanager
def in_threads() -> Iterator[None]:
    """A block in which `n_jobs` of an estimator means threads: another process could not import the features module."""
    with joblib.parallel_config(backend="threading"):
        yield


@contextmanager
def _in_stage(stage: Stage) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        # Too large a chunk is no row's fault.
        raise
    except (Exception, SystemExit) as error:
        raise StageError(stage, error) from error
