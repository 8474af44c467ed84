"""Prints what Evidently makes of two sides of a number and of a category, as JSON; the argument is a file of numpy's."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
from evidently.legacy.calculations.stattests import (
    hellinger_stat_test,
    jensenshannon_stat_test,
    ks_stat_test,
    psi_stat_test,
    wasserstein_stat_test,
)
from evidently.legacy.calculations.stattests.registry import get_registered_stattest
from evidently.legacy.core import ColumnType

PARTS = {
    ColumnType.Numerical: (wasserstein_stat_test, ks_stat_test),
    ColumnType.Categorical: (psi_stat_test, jensenshannon_stat_test, hellinger_stat_test),
}


def main() -> None:
    """Print value by column and metric."""
    given = np.load(sys.argv[1])
    found: dict[str, dict[str, float]] = {}
    for kind, tests in PARTS.items():
        reference, current = (pd.Series(given[f"{kind.value}_{side}"]) for side in ("reference", "current"))
        found[kind.value] = {
            test.name: float(
                get_registered_stattest(test, kind, None).func(reference, current, kind, test.default_threshold)[0]
            )
            for test in tests
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
