"""The features module runs from its text, is the same in every process, and looks at one row at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import joblib
import polars as pl
import pytest

from batchscore.errors import TrainingError, UsageError
from batchscore.model.features import Features, check_row_wise

EMPTY_PIPELINE = "\n\ndef pipeline():\n    return None\n"

OWN_STEPS = """
import polars as pl
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

FACTOR = 2.0


def features(rows):
    return rows.select(pl.col("x") * FACTOR)


def doubled(frame):
    return frame * FACTOR


class Shift(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.least_ = X["x"].min()
        return self

    def transform(self, X):
        return X - self.least_ - FACTOR


def pipeline():
    return make_pipeline(FunctionTransformer(doubled), Shift())
"""
FRESH_PROCESS = """
import sys
from pathlib import Path
import joblib
import polars as pl
from batchscore.model.features import Features

features = Features.of(Path(sys.argv[1]).read_text(), "bundle/features.py")
pipeline = joblib.load(sys.argv[2])
rows = pl.DataFrame({"x": [1.0, 10.0]})
print(pipeline.transform(features.transform(rows))["x"].to_list())
"""


def row_wise(body: str) -> Features:
    """The features module whose `features(rows)` returns the expression."""
    text = f"import numpy as np\nimport polars as pl\n\n\ndef features(rows):\n    return {body}\n"
    return Features.of(text + EMPTY_PIPELINE, "f.py")


class TestSource:
    """`Features.of` and `Features.at`."""

    def test_runs_from_text(self) -> None:
        """The text alone is enough: no file of its name is there."""
        features = row_wise("rows.select(y=pl.col('x') + 1)")

        assert [2, 3] == features.transform(pl.DataFrame({"x": [1, 2]}))["y"].to_list()
        assert not Path("f.py").exists()

    def test_name_follows_text(self) -> None:
        """The same text is the same module, wherever it lies; another text is another."""
        one, two = Features.of(OWN_STEPS, "jobs/a.py"), Features.of(OWN_STEPS, "bundle/features.py")
        other = Features.of(OWN_STEPS + "\n", "jobs/a.py")

        assert one.module is two.module
        assert one.digest == two.digest
        assert one.module.__name__ != other.module.__name__
        assert one.digest != other.digest

    def test_runs_as_its_own_file(self) -> None:
        """No future import of batchscore's reaches the text: an annotation is evaluated unless it says otherwise."""
        features = row_wise("rows")
        noted = Features.of("def features(rows: 1 + 1): ...\n" + EMPTY_PIPELINE, "f.py")

        assert {"rows": 2} == noted.module.features.__annotations__
        assert {} == features.module.features.__annotations__

    def test_reads_utf8(self, tmp_path: Path) -> None:
        """A file is read as UTF-8, whatever the locale."""
        path = tmp_path / "f.py"
        path.write_bytes(("def features(rows):\n    return rows.rename({'x': 'é'})\n" + EMPTY_PIPELINE).encode())

        assert ["é"] == Features.at(path).transform(pl.DataFrame({"x": [1]})).columns

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("def features(rows): return rows", "does not define pipeline()"),
            ("def pipeline(): return None", "does not define features()"),
            ("features = 3\ndef pipeline(): return None", "does not define features()"),
            ("def features(rows:\n", "SyntaxError"),
            ("import no_such_library", "no_such_library"),
            ("1 / 0", "ZeroDivisionError"),
            ("raise SystemExit", "SystemExit"),
            ("import sys; sys.exit(0)", "SystemExit: 0"),
        ],
    )
    def test_refuses(self, tmp_path: Path, text: str, says: str) -> None:
        """A file that does not run, or lacks one of the two functions, is refused by its path, every time."""
        path = tmp_path / "trips.py"
        path.write_text(text)

        for _ in range(2):
            with pytest.raises(UsageError) as caught:
                Features.at(path)

            assert str(path) in str(caught.value)
            assert says in str(caught.value)

    def test_refuses_unreadable(self, tmp_path: Path) -> None:
        """A file that is not there, or is not text, is refused by its path."""
        (tmp_path / "latin.py").write_bytes("# caf\xe9".encode("latin-1"))

        with pytest.raises(UsageError, match=r"gone\.py cannot be read: No such file"):
            Features.at(tmp_path / "gone.py")
        with pytest.raises(UsageError, match=r"latin\.py is not UTF-8"):
            Features.at(tmp_path / "latin.py")

    @pytest.mark.parametrize("fate", ["changed", "deleted"])
    def test_pickles_by_text(self, tmp_path: Path, fate: str) -> None:
        """A pipeline made of the module's own function and class loads in a fresh process from the frozen text.

        What happened to the file since does not matter: FACTOR is still 2.
        """
        path, frozen, pickled = tmp_path / "trips.py", tmp_path / "frozen.txt", tmp_path / "pipeline.joblib"
        path.write_text(OWN_STEPS)
        features = Features.at(path)
        rows = pl.DataFrame({"x": [1.0, 10.0]})
        joblib.dump(features.pipeline().fit(features.transform(rows)), pickled)
        frozen.write_text(features.source)
        if fate == "changed":
            path.write_text(OWN_STEPS.replace("FACTOR = 2.0", "FACTOR = 7.0"))
        else:
            path.unlink()
        command = [sys.executable, "-c", FRESH_PROCESS, frozen, pickled]
        printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

        assert "[-2.0, 34.0]\n" == printed


class TestTransform:
    """`Features.transform`."""

    def test_other_number_of_rows(self) -> None:
        """A transform that drops or adds rows is refused with both counts."""
        features = row_wise("rows.filter(pl.col('x') > 1)")

        with pytest.raises(ValueError, match="gave 1 rows for 2"):
            features.transform(pl.DataFrame({"x": [1, 2]}))

    def test_no_column(self) -> None:
        """A transform without a column is told as that, and not as one that loses rows."""
        with pytest.raises(TrainingError, match=r"^features\(\) gave no column\."):
            row_wise("rows.select()").transform(pl.DataFrame({"x": [1, 2]}))

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("body", ["rows.select('id')", "rows.select('id').collect()"])
    def test_lazy_or_not(self, body: str) -> None:
        """A frame that was collected is as good as one that was not."""
        given = row_wise(body).transform(pl.DataFrame({"id": [1, 2]}))

        assert given.rows() == [(1,), (2,)]

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            ("None", "NoneType"),
            ("rows.collect().to_pandas()", r"pandas\..*DataFrame"),
            ("rows.collect()['id']", r"polars\..*Series"),
        ],
    )
    def test_what_is_no_frame(self, body: str, kind: str) -> None:
        """Anything but a frame of Polars' is refused by what it is, with what to return."""
        if "pandas" in body:
            pytest.importorskip("pandas")
        with pytest.raises(TrainingError, match=rf"must return a Polars LazyFrame, it returned {kind}\. End it with"):
            row_wise(body).transform(pl.DataFrame({"id": [1, 2]}))

    def test_panic_is_an_error(self) -> None:
        """A value on which Polars panics fails like any other value, past no handler of exceptions."""
        features = row_wise("rows.select(pl.from_epoch('x', time_unit='us').dt.truncate('1mo'))")

        with pytest.raises(pl.exceptions.ComputeError, match="out-of-range"):
            features.transform(pl.DataFrame({"x": [2**63 - 1]}))


class TestRowWise:
    """`check_row_wise`."""

    ROWS = pl.DataFrame(
        {
            "x": [3.0, 1.0, None, 2.0, float("nan"), 7.5, 7.5],
            "n": [1, 2, 3, 4, 5, 6, 7],
            "t": ["b", "a", None, "c", "a", "", "é"],
        }
    )

    @pytest.mark.parametrize(
        "body",
        [
            "rows.select(y=pl.col('n') - pl.col('n').mean())",
            "rows.select(y=pl.col('n') / pl.col('n').max())",
            "rows.select(y=pl.col('n').rank())",
            "rows.select(y=pl.col('n').cum_sum())",
            "rows.select(y=pl.col('n').shift(1))",
            "rows.select(y=pl.col('x').fill_null(strategy='forward'))",
            "rows.select(y=pl.col('n').sum().over('t'))",
            "rows.select(y=pl.len().cast(pl.Int64) + pl.col('n'))",
            "rows.with_row_index('y').select('y')",
            "rows.select(y=pl.col('n').reverse())",
            # Seen in parts only, one by one only, and by a NULL that comes or goes.
            "rows.select(y=pl.when(pl.len().is_between(2, 5)).then(0).otherwise('n'))",
            "rows.select(y=pl.col('n') % 2 == (pl.col('n') % 2).max())",
            "rows.select(y=pl.when(pl.col('n') < pl.col('n').max()).then('n'))",
        ],
    )
    def test_other_rows(self, body: str) -> None:
        """A feature that depends on other rows is refused by its name, with where it belongs instead."""
        with pytest.raises(TrainingError, match=r"column y of a row changes .* belongs in the SQL"):
            check_row_wise(row_wise(body), self.ROWS)

    @pytest.mark.parametrize("order", [{}, {"descending": True}])
    def test_sorting(self, order: dict[str, bool]) -> None:
        """A transform that sorts is refused, also where the rows happen to come in that order."""
        features = row_wise(f"rows.select('n').sort('n', descending={order.get('descending', False)})")

        with pytest.raises(TrainingError, match="column n of a row changes"):
            check_row_wise(features, self.ROWS)

    @pytest.mark.parametrize("condition", ["pl.col('n') > 2", "pl.col('x').is_not_null()"])
    def test_dropping(self, condition: str) -> None:
        """A transform that drops rows is refused with both counts."""
        with pytest.raises(ValueError, match=r"gave \d rows for 7"):
            check_row_wise(row_wise(f"rows.filter({condition})"), self.ROWS)

    @pytest.mark.parametrize(
        "body",
        [
            "rows.select('t').collect().to_dummies().lazy()",
            "rows.select(y=pl.col('n').cast(pl.Int8 if rows.collect().height > 3 else pl.Int16))",
            "rows.select(pl.col('n').alias('many' if rows.collect().height > 3 else 'few'))",
        ],
    )
    def test_columns_from_data(self, body: str) -> None:
        """Columns or types that depend on the values are refused, with both lists of them."""
        with pytest.raises(TrainingError, match=r"have columns .* instead of .* cast it to a fixed type"):
            check_row_wise(row_wise(body), self.ROWS)

    @pytest.mark.parametrize(
        "body",
        [
            "rows",
            "rows.select(y=pl.col('x').fill_null(0) * pl.col('n'))",
            "rows.select(y=pl.col('x') / 0)",
            "rows.select(y=pl.when(pl.col('n') > 3).then(pl.col('t')).otherwise(None))",
            "rows.select(y=pl.col('t').cast(pl.Enum(['a', 'b', 'c', '', 'é'])))",
            "rows.select(y=pl.col('t').cast(pl.Categorical))",
            "rows.select(y=pl.col('t').str.len_chars(), z=pl.lit(1.0))",
            "rows.select(y=pl.struct('x', 'n'), z=pl.concat_list('n', 'n'))",
            "rows.select(y=pl.col('x').map_batches(lambda s: pl.Series(np.exp(s.to_numpy())), pl.Float64))",
            "rows.select(y=pl.col('t').map_elements(lambda t: ord(t[:1] or ' '), pl.Int64))",
        ],
    )
    def test_accepts(self, body: str) -> None:
        """Ordinary expressions pass, with NULLs, NaNs and every type among their values."""
        check_row_wise(row_wise(body), self.ROWS)

    @pytest.mark.parametrize("height", [1, 2, 3])
    def test_few_rows(self, height: int) -> None:
        """One row passes, for it has no others; two or three are enough to find what looks at others."""
        check_row_wise(row_wise("rows.select(y=pl.col('n') * 2)"), self.ROWS.head(height))
        if height > 1:
            with pytest.raises(TrainingError, match="column y"):
                check_row_wise(row_wise("rows.select(y=pl.col('n') - pl.col('n').mean())"), self.ROWS.head(height))

    def test_no_empty_frame(self) -> None:
        """A transform that cannot take no rows at all is not asked to, however few there are."""
        features = row_wise("rows.select(y=pl.lit(rows.collect()['n'][0] * 0))")

        check_row_wise(features, self.ROWS.head(1))

    def test_rare_row_of_many(self) -> None:
        """Among a hundred thousand rows, a column that is centred only where one row in twenty has a value is found."""
        rows = pl.DataFrame({"n": range(100_000)})
        features = row_wise("rows.select(y=pl.when(pl.col('n') % 20 == 0).then(pl.col('n').rank()))")

        with pytest.raises(TrainingError, match="column y"):
            check_row_wise(features, rows)
