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

    def __init__(self, stage: Stage, cause: BaseException, *, quote: bool = True) -> None:
        # On one line, as tables and logs have it, and without the character that Postgres cannot keep.
        words = " ".join(str(cause).replace("\0", r"\0").split())
        self.kind = type(cause).__name__
        super().__init__(f"{self.kind}: {words}" if quote else self.kind)
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Predictor:
    """A fitted model.

    Attributes:
        features: The features module.
        pipeline: The fitted scikit-learn pipeline.
        task: What kind of answer it gives.
        classes: The labels in the order of the pipeline's probabilities; empty for a task without classes.
        output_types: `prediction`, then `score` (binary, anomaly) or a `score_<class>` for each class (multiclass: the
            class in lower case, with `_` for all but ASCII letters and digits), then `reason_<k>` and
            `reason_<k>_value` for each of the explainer's, with their types, in order.
        threshold: Binary: the score from which on the second class is predicted; None where the more probable one is.
        explainer: What says why; None where the job does not ask.
        quote: Whether a failure is told in its own words, which may hold values; by its class alone otherwise.
        fast: What gives the same answers sooner: encoders that look each category up once, and trees that are compiled;
            None where the pipeline is asked itself.
        compiled: Whether its trees are compiled ones.
    """

    features: Features
    pipeline: Any
    task: Task
    classes: tuple[Label, ...]
    output_types: Mapping[str, TypeName]
    threshold: float | None = None
    explainer: Explainer | None = None
    quote: bool = True
    fast: Any = None
    compiled: bool = False

    def predict(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`prediction`, the scores and the reasons, shape `(rows, output_types)`, of at least one row.

        Raises:
            StageError: The user's features or pipeline failed.
        """
        with self._in_stage("features"):
            features = self.features.transform(rows)
        answers = self.predict_from(features)
        if self.explainer is None:
            return answers
        with self._in_stage("pipeline"), in_threads():
            return answers.hstack(self.explainer.reasons(features))

    def predict_from(self, features: pl.DataFrame) -> pl.DataFrame:
        """`prediction` and the scores, without reasons, shape `(rows, 1 + scores)`, of rows that are features already.

        - binary: the score is the probability of the second class, which is predicted from the threshold on; without
          one the class with the higher probability is, the first where both tie.
        - multiclass: the class with the highest probability, the first of them where several tie.
        - regression: the number.
        - clustering: the number of the cluster.
        - anomaly: whether the row is odd; the score is the more above 0 the odder it is (the negative
          `decision_function`), and at 0 or below where it is not.

        Raises:
            StageError: The pipeline failed.
        """
        with self._in_stage("pipeline"), in_threads():
            answers = np.asarray(self._answer(features))
            if len(answers) != features.height:
                raise ValueError(f"the pipeline gave {len(answers)} predictions for {features.height} rows")
        match self.task:
            case "regression":
                return pl.DataFrame({"prediction": answers.astype(np.float64)})
            case "clustering":
                return pl.DataFrame({"prediction": answers.astype(np.int64)})
            case "anomaly":
                # Adding 0.0 turns -0.0 into 0.0.
                return pl.DataFrame({"prediction": answers < 0, "score": 0.0 - answers.astype(np.float64)})
        return self._classified(answers.astype(np.float64))

    def chosen(self, answers: pl.DataFrame) -> dict[str, pl.Series]:
        """By score of a multiclass task, in which rows its class is predicted, Boolean; nothing of other tasks."""
        if self.task != "multiclass":
            return {}
        predicted = answers["prediction"]
        return {name: predicted == label for name, label in zip(self._scores, self.classes, strict=True)}

    @property
    def _scores(self) -> list[str]:
        return [name for name in self.output_types if name != "prediction" and not name.startswith(REASON)]

    def _answer(self, features: pl.DataFrame) -> Any:
        pipeline = self.pipeline if self.fast is None else self.fast
        match self.task:
            case "regression" | "clustering":
                return pipeline.predict(features)
            case "anomaly":
                return pipeline.decision_function(features)
        return pipeline.predict_proba(features)

    def _classified(self, probabilities: npt.NDArray[np.float64]) -> pl.DataFrame:
        if self.threshold is None:
            chosen = probabilities.argmax(axis=1)
        else:
            chosen = (probabilities[:, 1] >= self.threshold).astype(np.int64)
        labels = pl.Series("prediction", self.classes, dtype=dtype_of(self.output_types["prediction"]))
        columns = probabilities.T[1:] if self.task == "binary" else probabilities.T
        scores = [pl.Series(name, values) for name, values in zip(self._scores, columns, strict=True)]
        return pl.DataFrame([labels.gather(chosen), *scores])

    @contextmanager
    def _in_stage(self, stage: Stage) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            # Too large a chunk is no row's fault.
            raise
        except (Exception, SystemExit) as error:
            raise StageError(stage, error, quote=self.quote) from error


@contextmanager
def in_threads() -> Iterator[None]:
    """A block in which `n_jobs` of an estimator means threads: another process could not import the features module."""
    with joblib.parallel_config(backend="threading"):
        yield
