"""What a model was made with: the parameters of its pipeline, and the recipe of its job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batchscore.job import Job

__all__ = ["parameters"]

_LENGTH = 200


def parameters(job: Job, pipeline: Any) -> dict[str, str]:
    """Each parameter that is a value or a list of values, by its name, as text of 200 characters at most.

    Args:
        job: Its `[training]` is told with `training.` before each name, without what it leaves out.
        pipeline: Fitted or not; a parameter that is an estimator is told by its own parameters alone.
    """
    recipe = job.training.model_dump(mode="json", exclude_unset=True, by_alias=True) if job.training else {}
    told = [*_flat("training", recipe), *sorted(_of_pipeline(pipeline).items())]
    return {name: str(value)[:_LENGTH] for name, value in told if _plain(value)}


def _of_pipeline(pipeline: Any) -> dict[str, Any]:
    try:
        return dict(pipeline.get_params(deep=True))
    except (AttributeError, RuntimeError, TypeError):
        # An estimator of one's own that keeps none of scikit-learn's rules for parameters fits and predicts as well.
        return {}


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(each) for each in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(f"{name}.{key}", each)
    else:
        yield name, value
