"""What a person sees at a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import sys
from collections.abc import Iterator

import pytest
import structlog
import toy
from forked import Forked
from toy import Project

from batchscore.cli.render import intervals_progress, show_bug
from batchscore.logs import Event, configure, log

DAY = ("--from", "2024-02-01", "--to", "2024-02-02")
CANARY = "c4nary-token-of-a-source"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The logging of the surrounding process is as it was."""
    yield
    structlog.reset_defaults()


def at_terminal(
    project: Project, *args: str, interrupted_at: re.Pattern[str] | None = None, **environment: str
) -> tuple[int, str]:
    """The exit code of the real command at a terminal of 100 columns, and all that the terminal received.

    Args:
        project: Where it runs.
        args: Its arguments.
        interrupted_at: What is on the screen when somebody presses Ctrl-C.
        environment: More variables than the project's.
    """
    ours, theirs = pty.openpty()
    process = Forked(
        [sys.executable, "-m", "batchscore", *args],
        cwd=project.root,
        env=project.environment(**{"COLUMNS": "100", "TERM": "xterm"} | environment),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    received = b""
    try:
        while part := os.read(ours, 65_536):
            received += part
            if interrupted_at and interrupted_at.search(_ANSI.sub("", received.decode(errors="replace"))):
                process.send_signal(signal.SIGINT)
                interrupted_at = None
    except OSError:
        # Linux's way of saying that the other end is closed.
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=60), _ANSI.sub("", received.decode()).replace("\r\n", "\n")


def all_of(ours: int) -> str:
    """All that a terminal received whose other end is closed."""
    received = b""
    # Linux says with an error that the other end is closed.
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65_536):
            received += part
    os.close(ours)
    return received.decode()


class TestTerminal:
    def test_a_warning_is_seen(self, project: Project) -> None:
        """What a run warns of stands on a line of its own, in words."""
        (project.root / "jobs/toy.py").write_text(toy.FEATURES + "\n# later\n")

        code, seen = at_terminal(project, "backfill", "toy", *DAY)

        assert code == 0, seen
        assert "warning features.differ (path: jobs/toy.py, ran: toy version 1)\n" in seen
        assert "100 predictions, 0 rejects" in seen
        assert "run.published" not in seen

    def test_one_bound_of_the_interval(self, project: Project) -> None:
        """A query that leaves one bound out is told of by `train`, in its log too, and by `check`, which passes."""
        project.edit("sql/toy/rows.sql", ("ts >= :interval_start AND ", ""))
        own = {"BATCHSCORE_REGISTRY_URL": "var/own"}
        said = "toy/rows.sql: the SQL uses :interval_end and not :interval_start, so a row may come in several"

        logged = project.call("train", "toy", **own)
        checked = project.call("check", "toy", "--format", "json", **own)
        _, seen = at_terminal(project, "train", "toy", **own)

        assert [(line["level"], line["told"][: len(said)]) for line in logged.named("sql.loose")] == [("warning", said)]
        (row,) = [row for row in json.loads(checked.out) if row["check"] == "source"]
        assert (checked.code, row["status"], row["detail"][: len(said)]) == (0, "unsure", said)
        assert f"warning sql.loose (told: {said}" in seen

    @pytest.mark.parametrize("options", [(), ("--log-format", "console"), ("--log-format", "json")])
    def test_an_error_is_seen_once(self, project: Project, options: tuple[str, ...]) -> None:
        """The message that ends a command is told once, whatever the log's format."""
        (project.root / "var/registry/toy/aliases.json").write_text("nonsense")

        code, seen = at_terminal(project, *options, "backfill", "toy", *DAY)

        assert code == 10, seen
        assert seen.count("is not an alias file") == 1

    @pytest.mark.parametrize("command", ["list", "keygen"])
    def test_an_error_looks_like_every_other(self, project: Project, command: str) -> None:
        """A list that goes on behind an error tells it as any command does, and so does one that needs no settings."""
        (project.root / "var/registry/toy/aliases.json").write_text("nonsense")
        (project.root / "keys").mkdir()
        (project.root / "keys/verify_keys.pem").touch()

        _, seen = at_terminal(project, "models", command)

        (told,) = [line for line in seen.splitlines() if "error" in line]
        assert re.match(r"error \S+(aliases\.json is not an alias file|verify_keys\.pem: File exists)", told)

    def test_a_failed_run_is_told_once(self, project: Project) -> None:
        """An interval's failure ends `score` with its message, and the log does not repeat it."""
        toy.execute(project.url, "UPDATE toy SET a = NULL")

        code, seen = at_terminal(project, "score", "toy", "--interval", "2024-02-01")

        assert code == 11, seen
        assert seen.count("100 of 100 rows") == 1

    def test_failures_alone(self, project: Project) -> None:
        """Where every interval failed nothing is said to be published, and no rejects are counted as none."""
        toy.execute(project.url, "UPDATE toy SET a = NULL")

        code, seen = at_terminal(project, "backfill", "toy", DAY[0], DAY[1], "--to", "2024-02-03")

        assert code == 11, seen
        assert "\nnothing published into toy_predictions\n" in seen
        assert "0 rejects" not in seen

    @pytest.mark.parametrize("bar", ['metric = "log_loss", at_most = 1.0', 'metric = "accuracy", at_least = 0.5'])
    def test_the_metric_that_counts(self, project: Project, bar: str) -> None:
        """A version that reaches the job's bar is told with the metric of that bar."""
        project.edit("jobs/toy.toml", ('metric = "roc_auc", at_least = 0.6', bar))

        code, seen = at_terminal(project, "train", "toy", BATCHSCORE_REGISTRY_URL="var/own")

        metric = bar.split('"')[1]
        (value,) = re.findall(rf"^{metric} +(\S+) +\S+ to ", seen, re.MULTILINE)
        assert code == 0, seen
        assert f"toy version 1 is registered: {metric} {float(value):.3f} on 775 rows held out" in seen

    @pytest.mark.parametrize(("width", "form"), [(300, "line"), (110, "folded"), (60, "lines")])
    def test_a_narrow_terminal(self, project: Project, width: int, form: str) -> None:
        """Every column of the models is shown at any width: on a line, with cells folded, or on a line for each column."""
        (facts,) = json.loads(project.call("models", "list", "--format", "json").out)
        code, seen = at_terminal(project, "models", "list", COLUMNS=str(width))

        names = [name.replace("_", " ") for name in facts]
        shown = [part for name, value in facts["metrics"].items() for part in (name, f"{value:.4f}")]
        shown += ["champion", "2,325", facts["created_at"][:10], facts["digest"]]
        assert (code, [each for each in shown if each not in seen]) == (0, [])
        first, *more = seen.splitlines()
        assert max(map(len, [first, *more])) <= width
        if form == "lines":
            assert [line[:14].strip() for line in [first, *more] if line[:1].strip()] == names
        else:
            assert first.split() == " ".join(names).split()
            assert (len(more) == 1) == (form == "line")

    def test_ctrl_c(self, project: Project) -> None:
        """Ctrl-C in the middle of a run ends it with 130 and one line that says what is kept, below no traceback."""
        project.edit(
            "jobs/toy.py", ("def features(rows):\n", "def features(rows):\n    import time\n    time.sleep(0.2)\n")
        )
        assert project.call("train", "toy", "--promote").code == 0

        code, seen = at_terminal(
            project, "backfill", "toy", *DAY, "--chunk-rows", "1", interrupted_at=re.compile(r"[1-9]\d* rows")
        )

        assert code == 130, seen
        assert seen.splitlines()[-1] == (
            "interrupted: chunks that are committed are kept, and nothing unfinished is published. "
            "The same command goes on behind them; in place of --only all say --only failed."
        )
        assert "Traceback" not in seen
        (run,) = json.loads(project.call("runs", "list", "--format", "json").out)
        assert run["status"] == "running"
        assert project.table() == []

    def test_a_line_does_not_tear_the_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line that is logged while a bar moves stands whole above it, and the bar is drawn again below."""
        ours, theirs = pty.openpty()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        with os.fdopen(theirs, "w", buffering=1) as screen:
            monkeypatch.setattr(sys, "stdout", screen)
            configure("auto")
            with intervals_progress(2, "toy") as (next_interval, more_rows):
                next_interval("2024-02-01")
                log.warning(Event.STAGE_LEFT, stage="batchscore_stage_1")
                more_rows(7)
        seen = all_of(ours)

        (line,) = [line for line in seen.split("\r\n") if "run.stage_left" in line]
        # The bar's own line is erased first, and the warning is written into its place.
        assert re.search(r"\x1b\[2K(\x1b\[\d+m)*warning run\.stage_left \(stage: batchscore_stage_1\)", line), repr(
            line
        )
        assert "7 rows" in seen.partition("run.stage_left")[2]


class TestSecrets:
    """A secret of the settings is shown nowhere, whoever put it into an error."""

    def with_secret(self, project: Project) -> dict[str, str]:
        """The variables of a project whose source URL holds a token."""
        return {"BATCHSCORE_SOURCE_URL": f"{project.url}?token={CANARY}", "BATCHSCORE_REGISTRY_URL": "var/own"}

    def test_a_features_file_that_tells_it(self, project: Project) -> None:
        """An error of the job's own file that holds the URL is told without the token, at a terminal and elsewhere."""
        secret = self.with_secret(project)
        body = 'import os\n\nraise RuntimeError("no rows at " + os.environ["BATCHSCORE_SOURCE_URL"])\n'
        (project.root / "jobs/toy.py").write_text(body)

        at_screen = [at_terminal(project, *args, **secret) for args in (("check", "toy"), ("train", "toy"))]
        piped = [
            project.call(*args, **secret)
            for args in (("check", "toy"), ("check", "toy", "--format", "json"), ("train", "toy"))
        ]

        # The bundle is looked for before the features.
        assert [code for code, _ in at_screen] == [10, 2]
        assert [result.code for result in piped] == [10, 10, 2]
        for seen in (*(seen for _, seen in at_screen), *(result.out + result.err for result in piped)):
            assert CANARY not in seen.replace("\n", "")
            assert "***" in seen

    def test_rows_that_fail_with_it(self, project: Project) -> None:
        """Features that fail on rows with the URL in their words leave it in no table of the ledger and no answer."""
        secret = self.with_secret(project)
        broken = (
            'if "broken" in rows.collect()["c"]:\n        raise ValueError(os.environ["BATCHSCORE_SOURCE_URL"])\n    '
        )
        project.edit("jobs/toy.py", ("return rows.select", f"import os\n    {broken}return rows.select"))
        assert project.call("train", "toy", **secret).code == 0
        toy.execute(project.url, "UPDATE toy SET c = 'broken' WHERE id > 3100")

        code, seen = at_terminal(project, "backfill", "toy", *DAY, **secret)
        listed = [
            project.call(*args, "--format", format_, **secret)
            for args in (("runs", "list"), ("plan", "toy"), ("rejects", "toy", "--interval", "2024-02-01"))
            for format_ in ("json", "table")
        ]

        assert code == 11, seen
        assert "***" in seen
        ledgers = [name for name in toy.tables(project.url) if name.startswith("batchscore_")]
        kept = {name: repr(toy.query(project.url, f"SELECT * FROM {name}")) for name in ledgers}
        assert "***" in kept["batchscore_runs"]
        assert "***" in kept["batchscore_rejects"]
        assert "***" in "".join(result.out for result in listed)
        assert CANARY not in repr((seen.replace("\n", ""), listed, kept))

    def test_a_bug_that_tells_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The traceback of a bug at a terminal is without it, however narrow the screen."""
        ours, theirs = pty.openpty()
        monkeypatch.setenv("COLUMNS", "20")
        with os.fdopen(theirs, "w", buffering=1) as screen:
            monkeypatch.setattr(sys, "stdout", screen)
            monkeypatch.setattr(sys, "stderr", screen)
            configure("auto", [CANARY])
            bug = RuntimeError(f"cannot reach {CANARY}")
            bug.__cause__ = ValueError(CANARY)
            show_bug(bug)
        seen = _ANSI.sub("", all_of(ours))

        assert "RuntimeError: cannot reach ***" in seen
        assert "ValueError: ***" in seen
        assert "batchscore's own fault" in " ".join(seen.split())
        assert CANARY not in re.sub(r"\s", "", seen)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("plan", "toy", "--only", "foo"), "'--only': 'foo' is not one of 'missing', 'failed'"),
        (("--log-format", "xml", "plan", "toy"), "'--log-format': 'xml' is not one of 'auto', 'json'"),
        (("models", "promote", "toy", "latest"), "'VERSION': it should be a valid integer\n"),
        (("score", "toy", "--workers", "99"), "'--workers': it should be less than or equal to 64\n"),
    ],
)
def test_a_value_that_is_none(project: Project, args: tuple[str, ...], words: str) -> None:
    """A value that an option or argument cannot have is told by what it should be."""
    result = project.call(*args)

    assert result.code == 2
    assert f"Error: Invalid value for {words}" in result.err
