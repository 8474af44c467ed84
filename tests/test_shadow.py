"""A shadow: another version scores the same rows in the same pass, into a side table, and stops nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import toy
from toy import Project

from batchscore.faults import VARIABLE

# What `make test` leaves out, for a chunk and for a publish another does.
MORE = ("after_stage:1", "before_commit:1", "before_publish_commit:0")
POINTS = [pytest.param(point, marks=pytest.mark.long) for point in MORE]
POINTS += [pytest.param(point) for point in ("after_commit:1", "in_publish:0", "after_publish:0")]
DAY = ("--from", "2024-02-01", "--to", "2024-02-02")
DAYS = ("--from", "2024-02-01", "--to", "2024-02-04")
ROWS = "id, prediction, score, model_name, model_version"
# Its code fails where the champion's does not.
FRAIL = (
    "    if (rows.collect()['a'] > 900).any():\n        raise ValueError('a is ' + str(rows.collect()['a'].max()))\n"
)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a champion, a smaller challenger, and one that fails where a is more than 900."""
    root = tmp_path_factory.mktemp("shadows")
    project = Project.at(root, f"duckdb:///{root}/warehouse.duckdb")
    toy.load(project.url, toy.rows())
    smaller = ("max_iter=20", "max_iter=5")
    frail = ("def features(rows):\n", f"def features(rows):\n{FRAIL}")
    for changes, alias in (((), "champion"), ((smaller,), "challenger"), ((frail,), "frail")):
        project.edit("jobs/toy.py", *changes)
        assert project.call("train", "toy").code == 0
        number = {"champion": "1", "challenger": "2", "frail": "3"}[alias]
        assert project.call("models", "promote", "toy", number, "--alias", alias).code == 0
    return root / "var/registry"


@pytest.fixture(params=toy.RUNS)
def project(request: pytest.FixtureRequest, tmp_path: Path, registry: Path) -> Project:
    """The toy project on each kind of database, unscored, with a challenger in the shadow."""
    return _project(tmp_path, toy.url_of(request, tmp_path), registry)


@pytest.fixture
def embedded(tmp_path: Path, registry: Path) -> Project:
    """The same on DuckDB alone."""
    return _project(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb", registry)


def _project(root: Path, url: str, registry: Path) -> Project:
    made = Project.at(root, url)
    shutil.copytree(registry, root / "var/registry")
    toy.load(url, toy.rows())
    use(made, '"challenger"')
    return made


def use(project: Project, shadow: str | None) -> None:
    """Let the job have that shadow, or none."""
    path = project.root / "jobs/toy.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("shadow")]
    if shadow is not None:
        lines.insert(lines.index('name = "toy"', lines.index("[model]")) + 1, f"shadow = {shadow}")
    path.write_text("\n".join(lines) + "\n")


def rows(project: Project, table: str = "toy_predictions_shadow", columns: str = ROWS) -> list[tuple[Any, ...]]:
    """The rows of a table by key."""
    return toy.query(project.url, f"SELECT {columns} FROM {table} ORDER BY id")


def alone(project: Project, version: int) -> list[tuple[Any, ...]]:
    """What a version gives that scores by itself, into another table."""
    text = (project.root / "jobs/toy.toml").read_text()
    other = text.replace('[job]\nname = "toy"', '[job]\nname = "alone"').replace("toy_predictions", "alone_predictions")
    other = other.replace('[model]\nname = "toy"', f'[model]\nname = "toy"\nuse = {version}')
    (project.root / "jobs/alone.toml").write_text(
        "\n".join(line for line in other.splitlines() if "shadow" not in line)
    )
    assert project.call("backfill", "alone", *DAYS, "--only", "all").code == 0
    return rows(project, "alone_predictions")


def run_of(project: Project, status: str = "published") -> dict[str, Any]:
    """The one run of that status."""
    (found,) = (
        run
        for run in json.loads(project.call("runs", "list", "toy", "--format", "json").out)
        if run["status"] == status
    )
    return dict(found)


class TestOnePass:
    def test_both_tables(self, project: Project) -> None:
        """One backfill fills both tables; the side table has what the version gives that scores by itself."""
        result = project.call("backfill", "toy", *DAYS, "--chunk-rows", "40")

        assert result.code == 0, result.out
        assert rows(project, "toy_predictions") == alone(project, 1)
        assert rows(project) == alone(project, 2)
        assert [row[0] for row in rows(project)] == list(range(3101, 3401))
        assert [row[2] for row in rows(project)] != [row[2] for row in rows(project, "toy_predictions")]
        same = "id, interval_start, scored_at, run_id"
        assert rows(project, columns=same) == rows(project, "toy_predictions", same)
        assert [event["shadow_predictions"] for event in result.named("run.published")] == [100] * 3
        assert result.named("shadow.loaded")[0]["version"] == 2
        assert not [name for name in toy.tables(project.url) if "stage" in name]

    def test_columns(self, embedded: Project) -> None:
        """The side table has the key, the prediction, the score and the stamp, without what is carried."""
        embedded.call("backfill", "toy", *DAY)

        assert toy.columns(embedded.url, "toy_predictions_shadow") == [
            "id", "prediction", "score", "model_name", "model_version", "interval_start", "scored_at", "run_id",
        ]  # fmt: skip

    def test_without_reasons(self, tmp_path: Path) -> None:
        """A version that says why does not when it is a shadow, and scores the same."""
        project = Project.at(tmp_path, f"duckdb:///{tmp_path}/warehouse.duckdb")
        project.edit("jobs/toy.toml", ('target = "y"', 'target = "y"\nexplain_top = 2'))
        toy.load(project.url, toy.rows())
        for _ in range(2):
            assert project.call("train", "toy").code == 0
        use(project, "2")

        assert project.call("backfill", "toy", *DAY).code == 0

        assert "reason_1" in toy.columns(project.url, "toy_predictions")
        assert "reason_1" not in toy.columns(project.url, "toy_predictions_shadow")
        assert rows(project, columns="id, score") == rows(project, "toy_predictions", "id, score")

    def test_only_predicted_rows(self, project: Project) -> None:
        """A row that is rejected is in neither table; each of the others keeps its own score."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id IN (3101, 3150, 3300)")

        assert project.call("backfill", "toy", *DAYS, "--chunk-rows", "30").code == 0

        assert len(rows(project)) == 297
        assert rows(project) == alone(project, 2)

    def test_shown(self, embedded: Project) -> None:
        """`runs show` names the shadow and how many rows it gave, and so does the list."""
        embedded.call("backfill", "toy", *DAY)
        run = run_of(embedded)

        assert (run["shadow_version"], run["shadow_predictions"]) == (2, 100)
        assert "toy 2, 100 predictions" in embedded.call("runs", "show", run["run_id"]).out

    def test_a_run_without_one_is_the_same_run(self, embedded: Project, tmp_path: Path, registry: Path) -> None:
        """Without a shadow a run has the id that it had before; another shadow makes another run."""
        (tmp_path / "other").mkdir()
        found = {}
        for shadow in ('"challenger"', None, '"frail"', '"none"'):
            use(embedded, shadow)
            toy.execute(embedded.url, *(f"DROP TABLE IF EXISTS {name}" for name in _ours(embedded)))
            assert embedded.call("backfill", "toy", *DAY).code == 0
            found[shadow] = run_of(embedded)["run_id"]

        assert len(set(found.values())) == 3
        assert found[None] == found['"none"']


def _ours(project: Project) -> list[str]:
    return [name for name in toy.tables(project.url) if name.startswith(("batchscore_", "toy_predictions"))]


class TestBroken:
    @pytest.mark.parametrize("point", POINTS)
    def test_killed(self, project: Project, point: str) -> None:
        """Killed anywhere and run again, both tables and the counts are those of a run that nobody killed.

        Nothing of either is to be seen before both are, and what was committed is not scored again.
        """
        use(project, '"frail"')
        toy.execute(project.url, "UPDATE toy SET a = 1000 WHERE id IN (3110, 3170)")
        command = ("backfill", "toy", *DAY, "--chunk-rows", "25")
        assert project.call(*command).code == 0
        calm = _left(project)
        toy.execute(project.url, *(f"DROP TABLE {name}" for name in _ours(project)))

        broken = project.run(*command, **{VARIABLE: f"{point}:kill"})
        before = {len(rows(project)), len(rows(project, "toy_predictions"))}
        again = project.call(*command)

        assert broken.code == -9, broken.out
        assert before == ({98, 100} if point.startswith("after_publish") else {0})
        assert again.code == 0, again.out
        done = {"after_stage": 1, "before_commit": 1, "after_commit": 2}.get(point.partition(":")[0], 4)
        assert len(again.named("chunk.committed")) == 4 - done
        if point.startswith("after_publish"):
            assert project.call("runs", "prune", "--older-than", "0h").code == 0
        assert _left(project) == calm

    def test_given_up_before_it_was_killed(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Failures of chunks that another process committed count: a shadow that is given up stays so."""
        use(project, '"frail"')
        monkeypatch.setattr("batchscore.run.shard.MOST_SHADOW_FAILURES", 3)
        monkeypatch.setattr("batchscore.run.publish.MOST_SHADOW_FAILURES", 3)
        toy.execute(project.url, "UPDATE toy SET a = 1000 WHERE id IN (3101, 3102, 3151, 3152)")
        command = ("backfill", "toy", *DAY, "--chunk-rows", "25")

        assert project.run(*command, **{VARIABLE: "after_commit:1:kill"}).code == -9
        again = project.call(*command)

        assert again.code == 0, again.out
        assert again.named("shadow.failed")[0]["given_up"]
        assert len(rows(project, "toy_predictions")) == 100
        assert rows(project) == []
        assert run_of(project)["shadow_predictions"] == 0

    def test_spoilt(self, project: Project) -> None:
        """A stage that has lost what the shadow gave is never gone on with: the run starts from nothing."""
        command = ("backfill", "toy", *DAY, "--chunk-rows", "25")
        assert project.run(*command, **{VARIABLE: "after_commit:1:kill"}).code == -9
        (stage,) = (name for name in toy.tables(project.url) if "stage" in name)
        toy.execute(project.url, f"UPDATE {stage} SET shadow_1 = NULL WHERE id = 3105")

        again = project.call(*command)

        assert (again.code, len(again.named("run.spoilt"))) == (0, 1)
        assert len(rows(project)) == 100


def _left(project: Project) -> dict[str, Any]:
    """All that a day has left behind, but for times."""
    counts = "run_id, status, rows_read, predictions, rejects, chunks, shadow_version, shadow_predictions, input_hash"
    chunks = "chunk, rows_read, predictions, shadow_predictions, shadow_failures"
    return {
        "predictions": rows(project, "toy_predictions", f"{ROWS}, run_id"),
        "shadow": rows(project, columns=f"{ROWS}, run_id"),
        "runs": toy.query(project.url, f"SELECT {counts} FROM batchscore_runs"),
        "chunks": toy.query(project.url, f"SELECT {chunks} FROM batchscore_chunks ORDER BY chunk"),
        "stages": [name for name in toy.tables(project.url) if "stage" in name],
    }


class TestAgain:
    def test_replaced_together(self, project: Project) -> None:
        """Scored again after its rows changed, a day has new rows in both tables, and the other days their old ones."""
        assert project.call("backfill", "toy", *DAYS).code == 0
        other_days = [row for row in rows(project, columns=f"{ROWS}, run_id") if row[0] > 3200]
        toy.execute(project.url, "DELETE FROM toy WHERE id = 3101", "UPDATE toy SET a = 7 WHERE id = 3102")

        assert project.call("score", "toy", "--interval", "2024-02-01", "--force").code == 0

        both = [[row[0] for row in rows(project, table)] for table in ("toy_predictions", "toy_predictions_shadow")]
        assert both == [list(range(3102, 3401))] * 2
        assert rows(project, columns="id, run_id") == rows(project, "toy_predictions", "id, run_id")
        assert [row for row in rows(project, columns=f"{ROWS}, run_id") if row[0] > 3200] == other_days

    def test_without_it(self, project: Project) -> None:
        """A run without a shadow takes the interval's old shadow rows away, and no others."""
        assert project.call("backfill", "toy", *DAYS).code == 0
        use(project, None)

        assert project.call("score", "toy", "--interval", "2024-02-02", "--force").code == 0

        assert [row[0] for row in rows(project)] == [*range(3101, 3201), *range(3301, 3401)]
        assert len(rows(project, "toy_predictions")) == 300

    def test_a_table_that_is_not_ours(self, embedded: Project) -> None:
        """Without a shadow, a table of that name is left alone, whatever is in it."""
        use(embedded, None)
        start = "TIMESTAMPTZ '2024-02-01 00:00:00+00'"
        toy.execute(embedded.url, f"CREATE TABLE toy_predictions_shadow AS SELECT {start} AS interval_start, 7 AS id")

        assert embedded.call("backfill", "toy", *DAY).code == 0
        assert embedded.call("backfill", "toy", *DAY, "--only", "all").code == 0

        assert toy.query(embedded.url, "SELECT id FROM toy_predictions_shadow") == [(7,)]

    def test_held(self, project: Project) -> None:
        """A gate holds back both; let through, both are published."""
        assert project.call("backfill", "toy", *DAYS).code == 0
        before = [rows(project, table, "id, run_id") for table in ("toy_predictions", "toy_predictions_shadow")]
        project.edit("jobs/toy.toml", ("[limits]", "[publish]\nscore_range = [0.0, 0.1]\n\n[limits]"))
        toy.execute(project.url, "DELETE FROM toy WHERE id BETWEEN 3301 AND 3360")

        held = project.call("score", "toy", "--interval", "2024-02-03", "--force")
        then = [rows(project, table, "id, run_id") for table in ("toy_predictions", "toy_predictions_shadow")]
        run_id = run_of(project, "held")["run_id"]
        use(project, None)
        let = project.call("runs", "publish", run_id, "--override", "--reason", "few that day")

        assert (held.code, then) == (31, before)
        assert let.code == 0, let.out
        now = [rows(project, table, "id, run_id") for table in ("toy_predictions", "toy_predictions_shadow")]
        assert (
            now[0] == now[1] == [row for row in before[0] if row[0] <= 3300] + [(n, run_id) for n in range(3361, 3401)]
        )
        assert {row[4] for row in rows(project)} == {2}

    def test_held_and_its_shadow_gone(self, embedded: Project) -> None:
        """A held run whose shadow is no longer in the registry is published without it, with a warning."""
        embedded.edit("jobs/toy.toml", ("[limits]", "[publish]\nscore_range = [0.0, 0.1]\n\n[limits]"))
        assert embedded.call("backfill", "toy", *DAY).code == 31
        shutil.rmtree(embedded.root / "var/registry/toy/2")

        let = embedded.call("runs", "publish", run_of(embedded, "held")["run_id"], "--override", "--reason", "fine")

        assert let.code == 0, let.out
        assert len(let.named("shadow.off")) == 1
        assert (len(rows(embedded, "toy_predictions")), rows(embedded)) == (100, [])


class TestFails:
    def test_on_some_rows(self, project: Project) -> None:
        """Rows on which it fails are left out of the side table and told; the predictions are complete."""
        use(project, '"frail"')
        toy.execute(project.url, "UPDATE toy SET a = 1000 WHERE id IN (3110, 3170)")

        result = project.call("backfill", "toy", *DAY, "--chunk-rows", "25")

        assert result.code == 0, result.out
        (told,) = result.named("shadow.failed")
        assert (told["level"], told["rows"], told["first"]) == ("warning", 2, "ValueError: a is 1000.0")
        assert not told["given_up"]
        assert [row[0] for row in rows(project)] == [n for n in range(3101, 3201) if n not in (3110, 3170)]
        assert [row[0] for row in rows(project, "toy_predictions")] == list(range(3101, 3201))
        assert toy.query(project.url, "SELECT count(*) FROM batchscore_rejects") == [(0,)]

    def test_where_columns_are_private(self, embedded: Project) -> None:
        """Where a column is private, what it fails with is told by its class alone."""
        use(embedded, '"frail"')
        embedded.edit("jobs/toy.toml", ('key = ["id"]', 'key = ["id"]\nprivate = ["a"]'))
        toy.execute(embedded.url, "UPDATE toy SET a = 1000 WHERE id = 3110")

        result = embedded.call("backfill", "toy", *DAY)

        assert result.named("shadow.failed")[0]["first"] == "ValueError"
        assert "a is 1000" not in result.out

    def test_on_many_rows(self, embedded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that fails on too many is given up: nothing of it is published, and all of the predictions are."""
        use(embedded, '"frail"')
        assert embedded.call("backfill", "toy", *DAY).code == 0
        monkeypatch.setattr("batchscore.run.shard.MOST_SHADOW_FAILURES", 9)
        monkeypatch.setattr("batchscore.run.publish.MOST_SHADOW_FAILURES", 9)
        found = {}
        for failing in (9, 10):
            toy.execute(embedded.url, f"UPDATE toy SET a = 1000 WHERE id >= 3110 AND id < 3110 + {failing}")
            for chunk_rows in ("7", "100"):
                again = ("backfill", "toy", *DAY, "--only", "all", "--chunk-rows", chunk_rows)
                assert embedded.call(*again).code == 0
                assert len(rows(embedded, "toy_predictions")) == 100
                found[failing, chunk_rows] = len(rows(embedded))

        assert found == {(9, "7"): 91, (9, "100"): 91, (10, "7"): 0, (10, "100"): 0}

    def test_values_that_the_side_table_has_no_room_for(self, embedded: Project) -> None:
        """A row whose key a narrower side table cannot hold is left out of it, and nowhere else."""
        toy.execute(
            embedded.url,
            "CREATE TABLE toy_predictions_shadow (id SMALLINT, prediction BOOLEAN, score DOUBLE, model_name VARCHAR, "
            "model_version BIGINT, interval_start TIMESTAMPTZ, scored_at TIMESTAMPTZ, run_id VARCHAR)",
            "UPDATE toy SET id = 40000 WHERE id = 3200",
        )

        result = embedded.call("backfill", "toy", *DAY)

        assert result.code == 0, result.out
        assert "cannot hold" in result.named("shadow.failed")[0]["first"]
        assert [row[0] for row in rows(embedded)] == list(range(3101, 3200))
        assert len(rows(embedded, "toy_predictions")) == 100


def _train(project: Project, *changes: tuple[str, str], query: str | None = None) -> None:
    """Register a version of the changed job as 4, and let it be the shadow."""
    original = {file: (project.root / file).read_text() for file in ("jobs/toy.toml", "sql/toy/rows.sql")}
    use(project, None)
    project.edit("jobs/toy.toml", *changes)
    if query is not None:
        (project.root / "sql/toy/rows.sql").write_text(query)
    assert project.call("train", "toy").code == 0
    for file, text in original.items():
        (project.root / file).write_text(text)
    use(project, "4")


class TestOff:
    """Whatever is wrong with the shadow, the night publishes its predictions, exits with 0 and says why."""

    @pytest.mark.parametrize("shadow", ['"none_yet"', "9", '"champion"', "1"])
    def test_not_there(self, embedded: Project, shadow: str) -> None:
        """An alias or version that is not there, or that scores already, is no warning."""
        use(embedded, shadow)

        result = self.night(embedded)

        (told,) = result.named("shadow.none")
        assert told["level"] == "info"
        assert shadow.strip('"') in told["why"]
        assert "toy_predictions_shadow" not in toy.tables(embedded.url)

    @pytest.mark.parametrize(
        ("file", "says"),
        [("pipeline.joblib", "pipeline.joblib was changed"), ("bundle.json", "is not a manifest")],
    )
    def test_corrupt(self, embedded: Project, file: str, says: str) -> None:
        """A bundle that was changed is not loaded."""
        path = embedded.root / "var/registry/toy/2" / file
        path.write_bytes(path.read_bytes()[:-10])

        assert says in self.warned(embedded)

    def test_libraries(self, embedded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that was fitted with another scikit-learn is not loaded."""
        from batchscore.model import bundle

        check = bundle._check_libraries

        def refuse(manifest: Any, where: str) -> None:
            old = {"scikit-learn": "0.1.0"}
            check(manifest.model_copy(update={"libraries": old}) if manifest.version == 2 else manifest, where)

        monkeypatch.setattr(bundle, "_check_libraries", refuse)

        assert "was fitted with scikit-learn 0.1.0" in self.warned(embedded)

    def test_golden_rows(self, embedded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that scores its golden rows otherwise than at training is not used."""
        source = 'import os\nFACTOR = float(os.environ.get("FACTOR", "1"))\n'
        text = (embedded.root / "jobs/toy.py").read_text()
        changed = text.replace('"a", pl.col("b")', 'pl.col("a") * FACTOR, pl.col("b")')
        (embedded.root / "jobs/toy.py").write_text(source + changed)
        _train(embedded)
        # The module was run with the other factor at training.
        result = embedded.run("backfill", "toy", *DAY, FACTOR="3")

        assert result.code == 0, result.out
        assert "golden rows" in result.named("shadow.off")[0]["error"]
        assert len(rows(embedded, "toy_predictions")) == 100

    def test_columns(self, embedded: Project) -> None:
        """One that needs a column which the champion has not, or has in another type, is not used."""
        toy.execute(embedded.url, "ALTER TABLE toy ALTER COLUMN id TYPE INTEGER")
        toy.execute(embedded.url, "CREATE TABLE toy_kept AS SELECT * FROM toy")
        toy.execute(embedded.url, "DROP TABLE toy", "CREATE TABLE toy AS SELECT * REPLACE (a > 0.5 AS a) FROM toy_kept")
        text = (embedded.root / "jobs/toy.py").read_text()
        (embedded.root / "jobs/toy.py").write_text(text.replace('"a", pl', 'pl.col("a").cast(pl.Float64), pl'))
        _train(embedded)
        toy.execute(embedded.url, "DROP TABLE toy", "CREATE TABLE toy AS SELECT * FROM toy_kept")

        assert "needs columns that toy version 1 has not, or not so: a (boolean)" in self.warned(embedded)

    def test_query(self, embedded: Project) -> None:
        """One that was trained with another query is not used, unless that is the one that runs."""
        other = "-- newer\n" + toy.ROWS_SQL
        _train(embedded, query=other)

        assert "another query" in self.warned(embedded)
        (embedded.root / "sql/toy/rows.sql").write_text(other)
        accepted = embedded.call("backfill", "toy", *DAY, "--only", "all", "--accept-sql", "a comment")
        assert accepted.code == 0
        assert len(rows(embedded)) == 100

    def test_key(self, embedded: Project) -> None:
        """One that was trained with another key is not used."""
        embedded.edit("sql/toy/labels.sql", ("SELECT id, y", "SELECT id, ts, y"))
        _train(embedded, ('key = ["id"]', 'key = ["ts", "id"]'))

        assert "was trained with key ['ts', 'id']" in self.warned(embedded)

    def test_a_side_table_without_its_columns(self, project: Project) -> None:
        """A score that the side table has no column for is named, with what to do; altered, it is filled."""
        assert project.call("migrate", "toy").code == 0
        toy.execute(project.url, "ALTER TABLE toy_predictions_shadow DROP COLUMN score")

        told = self.warned(project)

        assert "score: want float, got no such column" in told
        assert "drop toy_predictions_shadow: the next run makes it anew" in told
        toy.execute(project.url, "ALTER TABLE toy_predictions_shadow ADD COLUMN score DOUBLE PRECISION")
        assert project.call("backfill", "toy", *DAY, "--only", "all").code == 0
        assert len(rows(project)) == 100

    def test_a_table_of_another_job(self, project: Project) -> None:
        """Where another job publishes into the table that would be the side table, nothing is written into it."""
        text = (project.root / "jobs/toy.toml").read_text()
        for file in ("toml", "py"):
            text = (project.root / f"jobs/toy.{file}").read_text()
            other = text.replace('[job]\nname = "toy"', '[job]\nname = "other"').replace(
                'table = "toy_predictions"', 'table = "toy_predictions_shadow"'
            )
            (project.root / f"jobs/other.{file}").write_text(other.replace('shadow = "challenger"\n', ""))
        assert project.call("backfill", "other", *DAY).code == 0
        before = rows(project)

        assert "job other has published into toy_predictions_shadow" in self.warned(project)
        assert rows(project) == before

    def test_a_job_that_would_share_the_side_table(self, embedded: Project) -> None:
        """A job cannot publish into the side table of another."""
        assert embedded.call("backfill", "toy", *DAY).code == 0
        before = rows(embedded)
        for file in ("toml", "py"):
            text = (embedded.root / f"jobs/toy.{file}").read_text()
            other = text.replace('[job]\nname = "toy"', '[job]\nname = "other"').replace(
                'table = "toy_predictions"', 'table = "toy_predictions_shadow"'
            )
            (embedded.root / f"jobs/other.{file}").write_text(other.replace('shadow = "challenger"\n', ""))

        result = embedded.call("backfill", "other", *DAY)

        assert result.code == 2
        assert "the shadow of job toy has published into toy_predictions_shadow" in result.error
        assert rows(embedded) == before

    @pytest.mark.parametrize("project", ["duckdb", "postgres"], indirect=True)
    @pytest.mark.parametrize(
        "change", ["DROP TABLE toy_predictions_shadow", "ALTER TABLE toy_predictions_shadow DROP COLUMN score"]
    )
    def test_changed_while_it_scores(self, project: Project, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
        """A side table that somebody drops or alters before the publish costs the shadow's rows alone."""
        from batchscore.run import execute

        publish = execute.publish

        def late(*args: Any, **options: Any) -> Any:
            toy.execute(project.url, change)
            return publish(*args, **options)

        monkeypatch.setattr(execute, "publish", late)

        self.warned(project)
        assert run_of(project)["shadow_predictions"] == 0

    def test_refused_by_the_database(self, postgres_url: str, tmp_path: Path, registry: Path) -> None:
        """What the database alone sees, such as a constraint on the side table, costs the shadow's rows alone."""
        project = _project(tmp_path, postgres_url, registry)
        assert project.call("migrate", "toy").code == 0
        toy.execute(postgres_url, "ALTER TABLE toy_predictions_shadow ADD CHECK (id <> 3150)")

        self.warned(project)
        assert rows(project) == []

    def test_not_granted(self, postgres_url: str, tmp_path: Path, registry: Path) -> None:
        """A role that may not write the side table is told what it lacks, by `check` too."""
        import sqlalchemy as sa
        from psql import grant

        owner = _project(tmp_path, postgres_url, registry)
        assert owner.call("migrate", "toy").code == 0
        grant(postgres_url, "postgres.sql", role="guarded", schema="public", output="toy_predictions")
        toy.execute(postgres_url, "GRANT SELECT ON toy TO guarded")
        url = sa.make_url(postgres_url).set(username="guarded", password="right")
        nightly = Project(owner.root, url.render_as_string(hide_password=False))

        checked = nightly.call("check", "toy", "--format", "json")
        assert "INSERT on the output table" in self.warned(nightly, owner)
        assert checked.code == 0
        (line,) = (row for row in json.loads(checked.out) if row["check"] == "shadow")
        assert (line["status"], "INSERT on the output table" in line["detail"]) == ("off", True)

        grant(
            postgres_url,
            "postgres.sql",
            role="guarded",
            schema="public",
            output="toy_predictions",
            shadow="toy_predictions_shadow",
        )
        assert nightly.call("backfill", "toy", *DAY, "--only", "all").code == 0
        assert len(rows(owner)) == 100

    def night(self, project: Project) -> toy.Result:
        """A day is scored as ever."""
        result = project.call("backfill", "toy", *DAY)
        assert result.code == 0, result.out
        assert len(rows(project, "toy_predictions")) == 100
        return result

    def warned(self, project: Project, looking: Project | None = None) -> str:
        """A day is scored as ever, with one warning; what that says."""
        result = project.call("backfill", "toy", *DAY)
        assert result.code == 0, result.out
        assert len(rows(looking or project, "toy_predictions")) == 100
        (told,) = result.named("shadow.off")
        assert told["level"] == "warning"
        return str(told["error"])


class TestLooking:
    def test_migrate(self, project: Project) -> None:
        """`migrate` makes the side table, before there is a challenger too, and scoring needs no table more."""
        use(project, '"none_yet"')
        made = project.call("migrate", "toy")
        tables = set(toy.tables(project.url))
        use(project, '"challenger"')

        assert made.code == 0, made.out
        assert made.named("tables.ready")[0]["shadow_table"] == "toy_predictions_shadow"
        assert "toy_predictions_shadow" in tables
        assert project.call("backfill", "toy", *DAY).code == 0
        assert set(toy.tables(project.url)) == tables
        assert len(rows(project)) == 100

    @pytest.mark.parametrize(
        ("shadow", "status", "says"),
        [
            ('"challenger"', "ok", "toy version 2 scores beside it; toy_predictions_shadow: not there yet"),
            ('"none_yet"', "none", "no alias 'none_yet'"),
            ('"champion"', "none", "scores already"),
        ],
    )
    def test_check(self, embedded: Project, shadow: str, status: str, says: str) -> None:
        """`check` says whether a run would be shadowed, and by what, and exits with 0 either way."""
        use(embedded, shadow)

        result = embedded.call("check", "toy", "--format", "json")

        assert result.code == 0, result.out
        (line,) = (row for row in json.loads(result.out) if row["check"] == "shadow")
        assert line["status"] == status
        assert says in line["detail"]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (('table = "toy_predictions"', f'table = "{"t" * 60}"'), "longer than 63"),
            (('carry = ["day"]', 'carry = ["shadow_1"]'), "column shadow_1 has the name"),
        ],
    )
    def test_names(self, embedded: Project, change: tuple[str, str], says: str) -> None:
        """A table without room for the longer name, and a column that the stage needs, are refused with a shadow only."""
        embedded.edit("jobs/toy.toml", change)

        with_it = embedded.call("check", "toy")
        use(embedded, None)
        without = embedded.call("check", "toy")

        assert (with_it.code, says in with_it.out) == (2, True)
        assert says not in without.out
