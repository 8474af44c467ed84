"""A bundle as a pyfunc answers as a batch does, without a server; `make integrations` has the servers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from s3 import serving
from toy import Project
from werkzeug.wrappers import Request, Response

from batchscore.errors import BundleCorrupt, BundleUntrusted, TransientError, UsageError, WarehouseError
from batchscore.model.bundle import Bundle, pack
from batchscore.model.registry import Registry
from batchscore.model.scorer import score
from batchscore.model.trust import Trust, write_keys
from tests.models import Frame, bundle, job, labels, slow, trips

# The library's own, of what it imports.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

COLUMNS = """
import polars as pl


def features(rows):
    return rows.select(
        pl.col("distance"),
        pl.col("seats").fill_null(-1),
        pl.col("late").cast(pl.Int64).fill_null(-1),
        (pl.col("number") % 7),
        pl.col("started").dt.hour().alias("hour"),
        pl.col("booked").dt.minute().fill_null(-1).alias("minute"),
        pl.col("day").dt.weekday().alias("weekday"),
        (pl.col("carrier") == "AA").fill_null(False).alias("aa"),
    )


def pipeline():
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=10, random_state=0)
"""
# Past what a double tells apart.
FIRST = 2**60 + 1


def wide(n: int = 200) -> pl.DataFrame:
    """Trips with a column of each type: `seats`, `late`, `booked` and `carrier` have NULLs."""
    rng = np.random.default_rng(3)
    return trips(n).with_columns(
        seats=pl.Series(rng.integers(1, 9, n)).set(pl.Series(rng.random(n) < 0.2), None),
        late=pl.Series(rng.random(n) < 0.5).set(pl.Series(rng.random(n) < 0.2), None),
        number=pl.Series([FIRST + i for i in range(n)]),
        booked=pl.Series([datetime(2024, 1, 1, 0, i % 60, 1, i) if i % 5 else None for i in range(n)]),
    )


@pytest.fixture(scope="module")
def trained() -> Bundle:
    """A bundle over a column of each type, with reasons."""
    from batchscore.model.features import Features
    from batchscore.train.workflow import train

    rows = wide()
    made = Features.of(COLUMNS, "jobs/trips.py")
    asked = job(problem={"task": "binary", "explain_top": 2})
    return train(asked, made, "SELECT", Frame(rows), Frame(labels(rows, slow(rows))), lambda _: None)


@pytest.fixture(scope="module")
def model(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder for MLflow."""
    return saved(trained, tmp_path_factory.mktemp("mlflow"))


def saved(bundle: Bundle, folder: Path, trust: Trust | None = None) -> Path:
    """Write version 1 of the bundle as a model."""
    from batchscore.model.pyfunc import save
    from batchscore.model.tracking import Tracking

    # What it says of the environment holds here too.
    Tracking.at("mlflow+http://127.0.0.1:1")
    files = pack(bundle, 1)
    save(files | (trust or Trust()).sign(files["bundle.json"]), folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def predict(model: Path) -> Callable[[Any], pl.DataFrame]:
    """What MLflow's own `load_model` answers."""
    return loaded(model)


def loaded(model: Path) -> Callable[[Any], pl.DataFrame]:
    """The model in that folder, as MLflow loads it."""
    import mlflow.pyfunc

    served = mlflow.pyfunc.load_model(str(model))

    def answers(rows: Any) -> pl.DataFrame:
        told = served.predict(rows)
        assert list(told.index) == list(rows.index)
        return pl.DataFrame({name: told[name].tolist() for name in told.columns}, strict=True)

    return answers


def pandas_of(rows: pl.DataFrame) -> Any:
    """The rows as Python's own objects: a pandas frame that changes none."""
    import pandas as pd

    columns = {name: pd.Series(rows[name].to_list(), dtype=object) for name in rows.columns}
    return pd.DataFrame(columns).astype(
        {name: "float64" for name, type_ in rows.schema.items() if type_ == pl.Float64()}
    )


def expected(bundle: Bundle, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """What a batch writes of the rows, without their key."""
    scored = score(bundle, rows)
    assert scored.rejects.height == 0
    return scored.predictions.drop("id").to_dicts()


class TestAnswers:
    def test_are_those_of_a_batch(self, trained: Bundle, predict: Any) -> None:
        """Every prediction, score and reason of 200 rows of each type is the batch's, to the bit."""
        rows = wide()

        answers = predict(pandas_of(rows))

        assert answers["reject"].null_count() == 200
        assert answers.drop("reject").to_dicts() == expected(trained, rows)
        assert "reason_2_value" in answers.columns

    def test_come_from_json_as_from_a_table(self, trained: Bundle, model: Path, predict: Any) -> None:
        """The server's own reader of JSON, with dates and times as text and NULLs as null, leads to the same bits."""
        from mlflow.models import get_model_info
        from mlflow.utils.proto_json_utils import dataframe_from_parsed_json

        rows = wide()
        texts = rows.with_columns(
            pl.col("day").cast(pl.String),
            pl.col("booked").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f"),
            pl.col("started").dt.convert_time_zone("Asia/Kolkata").dt.strftime("%Y-%m-%d %H:%M:%S%:z"),
        )
        records = json.loads(json.dumps(texts.to_dicts()))
        schema = get_model_info(str(model)).signature.inputs

        answers = predict(dataframe_from_parsed_json(records, "records", schema))

        assert answers.drop("reject").to_dicts() == expected(trained, rows)

    def test_whole_numbers_beside_a_null_stay_what_they_are(self, trained: Bundle, predict: Any) -> None:
        """A float column of pandas, its own `Int64`, and a mere integer column are all taken for whole numbers."""
        import pandas as pd

        rows = wide(40)
        given = pandas_of(rows)
        for dtype in ("float64", "Int64", "object"):
            given["seats"] = pd.Series(rows["seats"].to_list(), dtype=dtype)
            assert predict(given).drop("reject").to_dicts() == expected(trained, rows)
        full = rows.with_columns(pl.col("seats").fill_null(4))
        given["seats"] = full["seats"].to_numpy()
        assert predict(given).drop("reject").to_dicts() == expected(trained, full)

    def test_take_pandas_own_dates(self, trained: Bundle, predict: Any) -> None:
        """Timestamps of pandas in another zone, and midnights for dates, are the same rows."""
        import pandas as pd

        rows = wide(40)
        given = pandas_of(rows)
        given["started"] = pd.to_datetime(pd.Series(rows["started"].to_list())).dt.tz_convert("America/New_York")
        given["booked"] = pd.to_datetime(pd.Series(rows["booked"].to_list()))
        given["day"] = pd.to_datetime(pd.Series(rows["day"].to_list()))

        assert predict(given).drop("reject").to_dicts() == expected(trained, rows)

    def test_a_column_that_may_be_null_may_be_left_out(self, trained: Bundle, predict: Any) -> None:
        """It counts as NULL; the others may stand in any order, and what is not known is ignored."""
        rows = wide(20)
        given = pandas_of(rows).drop(columns=["seats", "late"]).assign(unknown=1)[::-1]

        answers = predict(given[sorted(given.columns)])

        nulls = rows.with_columns(pl.lit(None, pl.Int64).alias("seats"), pl.lit(None, pl.Boolean).alias("late"))
        assert answers.drop("reject").to_dicts() == expected(trained, nulls)[::-1]

    def test_say_why_a_row_has_none(self, trained: Bundle, predict: Any) -> None:
        """A row that a batch sets aside has the batch's reason, and leaves the others alone."""
        rows = wide(6)
        odd = rows.with_columns(distance=pl.Series([1.0, None, 3.0, 4.0, 5.0, 6.0]))

        answers = predict(pandas_of(odd))

        assert answers["reject"].to_list() == [None, "unexpected_null: column distance", *[None] * 4]
        assert answers[1].drop("reject").row(0) == (None,) * (answers.width - 1)
        good = odd.filter(pl.col("distance").is_not_null())
        assert answers.filter(pl.col("reject").is_null()).drop("reject").to_dicts() == expected(trained, good)

    def test_nothing_is_answered_to_nothing(self, predict: Any) -> None:
        """No rows give no rows, with all columns."""
        assert predict(pandas_of(wide(3)).head(0)).columns[0] == "prediction"

    @pytest.mark.parametrize(
        ("column", "value", "told"),
        [
            ("number", 1.5, "column number: want integer, got float, for instance 1.5"),
            ("number", float(2**60), "column number: want integer, got a float past 2^53"),
            ("seats", "4", "column seats: want integer, got string"),
            ("late", 2, "column late: want boolean, got integer, for instance 2"),
            ("late", "false", "column late: want boolean, got string"),
            ("started", "2024-01-01 25:00:00Z", "column started: want timestamp_tz, got string, for instance"),
            ("booked", datetime(2024, 1, 1, tzinfo=UTC), "column booked: want timestamp, got timestamp_tz"),
            ("day", datetime(2024, 1, 1, 5), "column day: want date, got timestamp"),
            ("carrier", 5, "column carrier: want string, got"),
            ("number", 2**64, "column number: want integer, got values of several types, or past 64 bits"),
        ],
    )
    def test_a_value_that_is_none_of_its_type_is_refused(
        self, predict: Any, column: str, value: Any, told: str
    ) -> None:
        """Nothing is cast that a batch would not cast: the answer names the column, and what it wants."""
        import pandas as pd
        from mlflow.exceptions import MlflowException

        given = pandas_of(wide(1))
        given[column] = pd.Series([value], dtype=object)

        with pytest.raises(MlflowException) as caught:
            predict(given)

        assert f"the request: {told}" in caught.value.message

    def test_a_column_that_is_missing_is_refused(self, predict: Any) -> None:
        """MLflow names it."""
        from mlflow.exceptions import MlflowException

        with pytest.raises(MlflowException, match=r"missing inputs \['distance'\]"):
            predict(pandas_of(wide(2)).drop(columns="distance"))


class TestFolder:
    def test_has_a_signature(self, model: Path) -> None:
        """Each column is there, required unless it may be NULL; only what MLflow casts without loss has its type."""
        from mlflow.models import get_model_info

        info = get_model_info(str(model))
        inputs = {each["name"]: (each["type"], each["required"]) for each in info.signature.inputs.to_dict()}
        outputs = {each["name"]: each["type"] for each in info.signature.outputs.to_dict()}

        assert inputs == {
            "id": ("any", True),
            "started": ("any", True),
            "day": ("any", True),
            "distance": ("double", True),
            "speed": ("double", True),
            "carrier": ("string", False),
            "seats": ("any", False),
            "late": ("any", False),
            "number": ("any", True),
            "booked": ("any", False),
        }
        assert list(outputs)[:2] == ["prediction", "score"]
        assert outputs["prediction"] == "boolean"
        assert list(outputs)[-1] == "reject"
        assert info.metadata["columns"]["seats"] == "integer"

    def test_asks_for_what_trained_it(self, trained: Bundle, model: Path) -> None:
        """Its requirements are the versions of the manifest."""
        wanted = (model / "requirements.txt").read_text().split()

        assert f"batchscore=={trained.manifest.batchscore}" in wanted
        assert f"scikit-learn=={trained.manifest.libraries['scikit-learn']}" in wanted

    def test_holds_no_code_but_the_bundles(self, trained: Bundle, model: Path) -> None:
        """Its only pickle is the bundle's own pipeline, and the bundle's files are those of a registry."""
        pickles = [path.name for path in model.rglob("*") if path.suffix in (".pkl", ".joblib", ".py")]

        assert sorted(pickles) == ["features.py", "pipeline.joblib"]
        there = {path.name: path.read_bytes() for path in (model / "data/bundle").iterdir()}
        assert there == pack(trained, 1)

    def test_its_example_is_a_request(self, trained: Bundle, model: Path, predict: Any) -> None:
        """The rows that are kept as an example are golden rows, and are answered."""
        from mlflow.models import Model

        example = Model.load(str(model)).load_input_example(str(model))

        assert predict(example).drop("reject").to_dicts() == expected(trained, trained.golden_rows.head(2))


class TestTrust:
    @pytest.fixture
    def small(self) -> Bundle:
        """A bundle of its own."""
        return bundle()

    def test_a_changed_file_is_not_loaded(self, small: Bundle, tmp_path: Path) -> None:
        """A byte more in the pipeline's pickle, and it is not unpickled."""
        model = saved(small, tmp_path)
        with (model / "data/bundle/pipeline.joblib").open("ab") as file:
            file.write(b" ")

        with pytest.raises(BundleCorrupt, match=r"pipeline\.joblib was changed"):
            loaded(model)

    def test_keys_are_those_of_the_settings(
        self, small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With BATCHSCORE_VERIFY_KEYS only what such a key signed is served."""
        keys = {}
        for name in ("ours", "theirs"):
            private, public, _ = write_keys(tmp_path / name)
            keys[name] = (private.read_text(), public.read_text())
        (tmp_path / "signed").mkdir()
        (tmp_path / "unsigned").mkdir()
        signed = saved(small, tmp_path / "signed", Trust.of(signing_key=keys["ours"][0]))
        unsigned = saved(small, tmp_path / "unsigned")

        monkeypatch.setenv("BATCHSCORE_VERIFY_KEYS", keys["ours"][1])
        assert loaded(signed)(pandas_of(trips(3))).height == 3
        with pytest.raises(BundleUntrusted, match="is not signed"):
            loaded(unsigned)
        monkeypatch.setenv("BATCHSCORE_VERIFY_KEYS", keys["theirs"][1])
        with pytest.raises(BundleUntrusted):
            loaded(signed)


class TestServer:
    """What is told of a server that is not as it should be."""

    @pytest.fixture(autouse=True)
    def no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each request is made once."""
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    @pytest.mark.parametrize(
        "url",
        ["mlflow+http://", "mlflow+https://me:secret@host", "mlflow+http://host/?a=b", "mlflow+http://host/#part"],
    )
    def test_a_url_is_a_host(self, url: str) -> None:
        """Credentials and what MLflow knows nothing of are refused, and the password is not told."""
        with pytest.raises(UsageError, match=r"write mlflow\+http://host:port\. Credentials") as caught:
            Registry.at(url)

        assert "secret" not in str(caught.value)

    def test_one_that_is_away_may_come_back(self) -> None:
        """Nothing listens there: the run may try again."""
        registry = Registry.at("mlflow+http://127.0.0.1:1")

        with pytest.raises(TransientError, match=r"^mlflow\+http://127\.0\.0\.1:1/trips cannot be read: ") as caught:
            registry.load("trips", "champion")

        assert "BATCHSCORE_REGISTRY_URL" in str(caught.value)

    @pytest.mark.parametrize("command", [("train", "toy"), ("retrain", "toy", "--if", "drifted")])
    def test_one_that_is_away_is_noticed_before_the_rows(
        self, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Training is not begun for it, nor is it asked for minutes: the reason and 20 at once, and no other warning."""
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        result = project.call(*command, BATCHSCORE_REGISTRY_URL="mlflow+http://127.0.0.1:1")

        assert result.code == 20
        assert result.error.startswith("mlflow+http://127.0.0.1:1/toy cannot be read: ")
        assert [event["event"] for event in result.events] == ["command.failed"]
        assert result.err == ""
        assert not (tmp_path / "warehouse.duckdb").exists()

    @pytest.mark.parametrize(("status", "named"), [(401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED")])
    def test_one_that_refuses_is_not_asked_again(
        self, status: int, named: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message names the variables, and shows nothing of them; they were sent."""
        seen: list[Any] = []
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-of-mlflow")

        with answering(status, seen) as url, pytest.raises(WarehouseError, match="MLFLOW_TRACKING_USERNAME") as caught:
            Registry.at(url).load("trips", "champion")

        assert "canary" not in f"{caught.value!r} {caught.value.__cause__}"
        assert named in str(caught.value)
        assert {(each.username, each.password) for each in seen} == {("somebody", "canary-of-mlflow")}

    def test_one_that_is_broken_may_be_mended(self) -> None:
        """A 500 may be tried again."""
        with answering(500, []) as url, pytest.raises(TransientError):
            Registry.at(url).load("trips", "champion")


@contextlib.contextmanager
def answering(status: int, seen: list[Any]) -> Iterator[str]:
    """A server that answers nothing else."""

    @Request.application
    def app(request: Request) -> Response:
        seen.append(request.authorization)
        return Response("no", status)

    with serving(app) as url:
        yield f"mlflow+{url}"
