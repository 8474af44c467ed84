"""A log line is one JSON object, and holds no secret."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import structlog
import toy
from toy import Project

from batchscore.logs import ECS, Event, LogFormat, configure, log, redacted, redactor, told_apart

CANARY = "canary-p4ssw0rd"
URL = f"postgresql://reader:{CANARY}@db/warehouse"


class Terminal(io.StringIO):
    """A stream that people watch."""

    def isatty(self) -> bool:
        return True


class Opaque:
    """An object that no renderer knows, with a secret in its repr."""

    def __repr__(self) -> str:
        return f"Opaque({CANARY})"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """The logging of the surrounding process is as it was."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def lines() -> Callable[..., list[dict[str, Any]]]:
    """What a call logs as JSON, parsed."""

    def logged(call: Callable[[], object], *secrets: str) -> list[dict[str, Any]]:
        stream = io.StringIO()
        configure("json", secrets, stream=stream)
        call()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return logged


def fail(message: str) -> None:
    """Raise, with a secret among the locals of the frame."""
    connection_string = URL.replace(CANARY, f"local-{CANARY}")
    raise RuntimeError(message, len(connection_string))


def failing(message: str) -> None:
    """Log an exception with its traceback."""
    try:
        fail(message)
    except RuntimeError:
        log.exception(Event.COMMAND_FAILED)


class TestLines:
    """JSON for machines, words for people."""

    def test_one_object_a_line(self, lines):
        """Each event is one line of JSON with its name, level, time in UTC and values, newlines and all."""
        first, second = lines(
            lambda: (log.info(Event.RUN_STARTED, rows=7, note="two\nlines"), log.warning(Event.RUN_DRIFT, psi=0.3))
        )

        assert (first["event"], first["level"], first["rows"], first["note"]) == (
            "run.started",
            "info",
            7,
            "two\nlines",
        )
        assert (second["event"], second["level"], second["psi"]) == ("run.drift", "warning", 0.3)
        assert datetime.fromisoformat(first["timestamp"]).utcoffset() is not None
        assert first["timestamp"].endswith("Z")

    def test_what_every_line_has_comes_first(self, lines):
        """Time, level and event begin each line, where an eye looks for them."""
        (line,) = lines(lambda: log.info(Event.RUN_STARTED, alpha=1))

        assert list(line) == ["timestamp", "level", "event", "alpha"]

    def test_values_of_any_kind_are_written(self, lines):
        """What JSON lacks is written as its repr, and what JSON has stays what it is."""
        (line,) = lines(
            lambda: log.info(
                Event.RUN_STARTED, path=Path("a"), when=datetime(2013, 10, 1), n=None, yes=True, parts=(1, 2.5)
            )
        )

        assert (line["n"], line["yes"], line["parts"]) == (None, True, [1, 2.5])
        assert (line["path"], line["when"]) == (repr(Path("a")), repr(datetime(2013, 10, 1)))

    def test_bound_context_is_written(self, lines):
        """What was bound for the run stands on each of its lines."""

        def call() -> None:
            with structlog.contextvars.bound_contextvars(run_id="r1"):
                log.info(Event.CHUNK_COMMITTED)

        assert lines(call)[0]["run_id"] == "r1"

    def test_debug_is_not_written(self, lines):
        """Below info nothing is written."""
        assert lines(lambda: log.debug(Event.RUN_STARTED)) == []

    def test_auto_is_json_where_nobody_watches(self):
        """In a container, or a pipe, `auto` writes JSON."""
        stream = io.StringIO()
        configure("auto", stream=stream)
        log.info(Event.RUN_PUBLISHED, rows=7)

        assert json.loads(stream.getvalue())["rows"] == 7

    def test_auto_is_words_on_a_terminal(self):
        """On a terminal `auto` writes warnings and errors, each as one line that can be read, and nothing below."""
        stream = Terminal()
        configure("auto", stream=stream)
        log.info(Event.RUN_PUBLISHED)
        log.warning(Event.SQL_ACCEPTED, reason="a comment", change="-- a\n++ b", job="toy")
        log.error(Event.MONITORING_FAILED, error="disk full")

        assert stream.getvalue().splitlines() == [
            "warning sql.accepted (reason: a comment, change: -- a …)",
            "error monitoring.failed (error: disk full)",
        ]

    @pytest.mark.parametrize("format_", ["auto", "console"])
    def test_a_terminal_is_told_of_the_outcome_once(self, format_):
        """On a terminal the command tells what became of it, so the log does not; elsewhere only the log does."""
        terminal, file = Terminal(), io.StringIO()
        for stream in (terminal, file):
            configure(format_, stream=stream)
            assert told_apart() is (stream is terminal)
            log.error(Event.RUN_FAILED)
            log.warning(Event.INTERVALS_LEFT)
            log.critical(Event.COMMAND_FAILED)

        assert terminal.getvalue() == ""
        assert len(file.getvalue().splitlines()) == 3

    def test_json_tells_of_the_failure_itself(self):
        """Who asks for JSON gets the failure as JSON, on a terminal too."""
        stream = Terminal()
        configure("json", stream=stream)
        log.critical(Event.COMMAND_FAILED)

        assert not told_apart()
        assert json.loads(stream.getvalue())["event"] == "command.failed"

    def test_a_silent_command_tells_of_its_failure(self):
        """Where nothing is logged the command has to tell a failure itself."""
        configure("silent", stream=io.StringIO())

        assert told_apart()

    def test_a_quiet_command_logs_beside_its_answer(self, capsys):
        """The errors of a command whose output is an answer go to standard error."""
        configure("json", quiet=True)
        log.error(Event.COMMAND_FAILED)

        captured = capsys.readouterr()
        assert captured.out == ""
        assert json.loads(captured.err)["event"] == "command.failed"

    def test_a_line_goes_where_standard_output_is_now(self):
        """A stream that takes the place of standard output, as a progress bar's does, gets the lines meanwhile."""
        configure("json")
        with contextlib.redirect_stdout(io.StringIO()) as meanwhile:
            log.info(Event.RUN_STARTED)

        assert json.loads(meanwhile.getvalue())["event"] == "run.started"

    @pytest.mark.parametrize("stream", [io.StringIO, Terminal])
    def test_silent_never_writes(self, stream):
        """Who asks for silence gets it anywhere, errors included."""
        out = stream()
        configure("silent", stream=out)
        log.critical(Event.RUN_FAILED)

        assert out.getvalue() == ""

    def test_quiet_is_errors_only(self):
        """A quiet command writes what failed and nothing else."""
        stream = io.StringIO()
        configure("json", quiet=True, stream=stream)
        log.warning(Event.RUN_DRIFT)
        log.error(Event.RUN_FAILED)

        assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["run.failed"]

    @pytest.mark.parametrize("stream", [io.StringIO, Terminal])
    def test_json_is_json_on_a_terminal_too(self, stream):
        """Who asks for JSON gets it anywhere."""
        out = stream()
        configure("json", stream=out)
        log.info(Event.RUN_PUBLISHED)

        assert json.loads(out.getvalue())["event"] == "run.published"

    @pytest.mark.parametrize("stream", [io.StringIO, Terminal])
    def test_console_is_for_people(self, stream):
        """Who asks for the console gets words anywhere, and colours only where somebody watches."""
        out = stream()
        configure("console", stream=out)
        log.info(Event.RUN_PUBLISHED, rows=7)

        assert "run.published" in out.getvalue()
        assert "rows" in out.getvalue()
        assert ("\x1b[" in out.getvalue()) is (stream is Terminal)
        with pytest.raises(json.JSONDecodeError):
            json.loads(out.getvalue())

    def test_standard_output_is_the_default(self, capsys):
        """Without a stream, lines go to standard output, as a container's log is."""
        configure("json")
        log.info(Event.RUN_PUBLISHED)

        captured = capsys.readouterr()
        assert json.loads(captured.out)["event"] == "run.published"
        assert captured.err == ""

    def test_a_later_configuration_is_in_force(self):
        """The logger of a module follows the settings that are read after its import."""
        first, second = io.StringIO(), io.StringIO()
        configure("json", stream=first)
        log.info(Event.RUN_STARTED)
        configure("json", [CANARY], stream=second)
        log.info(Event.RUN_STARTED, note=CANARY)

        assert len(first.getvalue().splitlines()) == 1
        assert json.loads(second.getvalue())["note"] == "***"


NESTED = [
    CANARY,
    f"before {CANARY} after",
    [CANARY],
    (CANARY, 1),
    {"inner": {"deep": [{"deeper": (f"x{CANARY}y",)}]}},
    {CANARY},
    frozenset([CANARY]),
    RuntimeError(CANARY),
    Path(f"/{CANARY}"),
    CANARY.encode(),
    Opaque(),
    [Opaque()],
    {"key": ValueError({"url": URL})},
]


class TestRedaction:
    """Secrets go, everything else stays."""

    @pytest.mark.parametrize("format_", ["json", "console"])
    @pytest.mark.parametrize("value", NESTED, ids=repr)
    def test_no_secret_in_any_value(self, format_, value):
        """A secret is masked wherever it stands in a value, in objects that only the renderer would have written too."""
        stream = io.StringIO()
        configure(format_, [CANARY], stream=stream)
        log.info(Event.RUN_STARTED, value=value)

        assert CANARY not in stream.getvalue()
        assert "***" in stream.getvalue()

    def test_keys_and_the_rest_stay(self, lines):
        """Only the secret goes: the names of values, and what stands around it, are written."""
        (line,) = lines(lambda: log.info(Event.RUN_STARTED, url=f"at {CANARY}.", inner={CANARY: 1, "n": None}), CANARY)

        assert line["url"] == "at ***."
        assert line["inner"] == {CANARY: 1, "n": None}
        assert line["event"] == "run.started"

    def test_the_event_itself(self, lines):
        """A secret in the event's own text is masked."""
        assert lines(lambda: log.info(f"connected with {CANARY}"), CANARY)[0]["event"] == "connected with ***"

    def test_the_longest_secret_goes_first(self):
        """A secret that is part of another does not leave the rest of it behind."""
        assert redactor(["abc", "abcdef"])(None, "info", {"x": "abcdef abc"})["x"] == "*** ***"

    def test_an_empty_secret_is_none(self):
        """A setting that is empty masks nothing."""
        assert redactor([""])(None, "info", {"x": "plain"})["x"] == "plain"

    @pytest.mark.parametrize(
        ("text", "masked"),
        [
            (URL, "postgresql://reader:***@db/warehouse"),
            (
                f"see {URL}, and {URL}",
                "see postgresql://reader:***@db/warehouse, and postgresql://reader:***@db/warehouse",
            ),
            ("postgresql+psycopg://u:p%40%2F@h:5432/d?x=1", "postgresql+psycopg://u:***@h:5432/d?x=1"),
            ("postgresql://u:p/q@h/d", "postgresql://u:***@h/d"),
            ("postgresql://u:p@q@h/d", "postgresql://u:***@h/d"),
            ("postgresql://:p@h/d", "postgresql://:***@h/d"),
            ("postgresql://u@h/d", "postgresql://u@h/d"),
            ("https://host:8080/path", "https://host:8080/path"),
            ("duckdb:////data/w.duckdb", "duckdb:////data/w.duckdb"),
            ("mail me: a@b.c", "mail me: a@b.c"),
        ],
    )
    def test_passwords_in_urls(self, text, masked):
        """A password inside a URL is masked though nobody named it, whatever stands in it; a URL without one stays."""
        assert redactor([])(None, "info", {"x": [text]})["x"] == [masked]


class TestRedacted:
    """The same for what is told beside the log."""

    def test_what_the_log_would_mask(self):
        """`redacted` masks what lines are masked of, and keeps numbers, dates and the form of what it is given."""
        configure("json", [CANARY], stream=io.StringIO())
        day, instant = date(2024, 1, 2), datetime(2024, 1, 2, tzinfo=UTC)

        assert redacted([{"a": f"x{CANARY}", "n": 1, "day": day, "at": instant}, URL, None]) == [
            {"a": "x***", "n": 1, "day": day, "at": instant},
            "postgresql://reader:***@db/warehouse",
            None,
        ]

    def test_a_later_configuration(self):
        """The secrets are those of the latest configuration."""
        configure("json", [CANARY], stream=io.StringIO())
        configure("json", ["other"], stream=io.StringIO())

        assert redacted(f"{CANARY} other") == f"{CANARY} ***"


class TestExceptions:
    """A traceback tells where, and not with which values."""

    @pytest.mark.parametrize("format_", ["json", "console"])
    def test_no_locals_and_no_secrets(self, format_):
        """The traceback has message and frames; locals, secrets and passwords of URLs are not in it."""
        stream = io.StringIO()
        configure(format_, ["other-secret"], stream=stream)
        failing(f"cannot reach {URL} with other-secret")
        text = stream.getvalue()

        assert "RuntimeError" in text
        assert "cannot reach postgresql://reader:***@db/warehouse with ***" in text
        assert f"local-{CANARY}" not in text
        assert CANARY not in text
        assert "other-secret" not in text

    def test_json_s_frames(self, lines):
        """In JSON the exception is a list with class, message and frames, on the event's one line."""
        (line,) = lines(lambda: failing("broken"))

        (raised,) = line["exception"]
        assert raised["exc_type"] == "RuntimeError"
        assert "broken" in raised["exc_value"]
        assert [frame["name"] for frame in raised["frames"]] == ["failing", "fail"]
        assert not any("locals" in frame for frame in raised["frames"])

    def test_causes_are_redacted(self, lines):
        """The exception behind an exception is redacted too."""

        def call() -> None:
            try:
                try:
                    fail(URL)
                except RuntimeError as error:
                    raise ValueError("outer") from error
            except ValueError:
                log.exception(Event.COMMAND_FAILED)

        (line,) = lines(call)
        assert [each["exc_type"] for each in line["exception"]] == ["ValueError", "RuntimeError"]
        assert CANARY not in json.dumps(line)


class TestEvents:
    """The names that dashboards and alerts rely on."""

    def test_names_are_dotted_and_unique(self):
        """Every event is `subject.what`, and no two members share a value, which an enum would take for an alias."""
        values = [member.value for member in Event.__members__.values()]

        assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", value) for value in values)
        assert len(set(values)) == len(values) == len(Event)

    def test_an_event_is_its_name(self, lines):
        """In a line an event is its plain value."""
        assert [line["event"] for line in lines(lambda: [log.info(event) for event in Event])] == [
            e.value for e in Event
        ]

    def test_every_format_can_be_configured(self):
        """Each format that the type names is one that `configure` takes."""
        for format_ in get_args(LogFormat):
            configure(format_, stream=io.StringIO())
            log.info(Event.RUN_STARTED)


class TestEcs:
    """Lines with the names of the Elastic Common Schema."""

    def test_a_failure(self):
        """What the schema names has its name, required fields come first, and the rest stands behind `batchscore.`."""
        stream = io.StringIO()
        configure("ecs", ["s3cr3t"], stream=stream)
        try:
            fail("s3cr3t")
        except RuntimeError as error:
            log.error(
                Event.COMMAND_FAILED,
                error=str(error),
                error_type="RuntimeError",
                exit_code=70,
                job="toy",
                exc_info=True,
            )
        line = json.loads(stream.getvalue())

        assert list(line)[:4] == ["@timestamp", "log.level", "message", "ecs.version"]
        assert (line["message"], line["event.action"]) == ("command.failed", "command.failed")
        assert (line["error.type"], line["process.exit_code"]) == ("RuntimeError", 70)
        assert "***" in line["error.message"]
        assert line["error.stack_trace"].startswith("Traceback")
        assert line["batchscore.job"] == "toy"
        assert line["service.name"] == "batchscore"
        assert "s3cr3t" not in stream.getvalue()

    def test_has_all_that_json_has(self, project: Project) -> None:
        """No field of a run is lost, and none is called by two names."""
        week = ("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-02")
        plain = project.call(*week).events
        named = project.call(*week, "--only", "all", BATCHSCORE_LOG_FORMAT="ecs").out.splitlines()

        for ours, theirs in zip(plain, map(json.loads, named), strict=True):
            expected = {ECS.get(name, f"batchscore.{name}") for name in ours}
            assert theirs.keys() == expected | {"message", "ecs.version", "service.name", "service.version"}
            # What only errors have must not name something else.
            assert not any(name.startswith("error.") for name in theirs)


class TestLibraries:
    """What libraries log themselves."""

    def test_is_an_event(self, lines):
        """A warning is a line of the one form, with secrets masked; what is less is not told."""
        logger = logging.getLogger("some.library")
        found = lines(
            lambda: (logger.info("fine"), logger.warning("lost %s", "s3cr3t"), logger.error("gone")), "s3cr3t"
        )

        assert [(line["event"], line["level"], line["logger"], line["message"]) for line in found] == [
            ("library.warned", "warning", "some.library", "lost ***"),
            ("library.warned", "error", "some.library", "gone"),
        ]

    def test_a_message_that_cannot_be_made(self, lines):
        """A library's mistake in its own logging call stops nothing, as without us."""
        record = logging.makeLogRecord({"name": "lib", "levelno": logging.WARNING, "msg": "%d items", "args": ("abc",)})
        (library,) = [
            handler for handler in logging.getLogger().handlers if type(handler).__module__ == "batchscore.logs"
        ]
        (line,) = lines(lambda: library.handle(record))

        assert line["message"].startswith("%d items")

    def test_a_traceback_is_kept(self, lines):
        """What the library caught is in the line."""

        def call() -> None:
            try:
                fail("x")
            except RuntimeError:
                logging.getLogger("lib").exception("failed to do it")

        (line,) = lines(call)
        assert line["exception"][0]["exc_type"] == "RuntimeError"


class TestAbout:
    """Every line of a run says which it is about."""

    def test_a_run(self, project: Project) -> None:
        """From the first to the last a run's lines carry its id, interval and version; the command's last sums it up."""
        toy.execute(project.url, "UPDATE toy SET a = NULL WHERE id = 3101")
        result = project.call("backfill", "toy", "--from", "2024-02-01", "--to", "2024-02-03", "--chunk-rows", "50")

        of_runs = [event for event in result.events if event["event"].startswith(("run.", "chunk."))]
        assert len({(event["run_id"], event["interval_start"], event["model_version"]) for event in of_runs}) == 2
        chunks = result.named("chunk.committed")
        assert [(chunk["rows"], chunk["predictions"], chunk["rejects"]) for chunk in chunks[:2]] == [
            (50, 49, 1),
            (50, 50, 0),
        ]
        (done,) = result.named("plan.intervals_done")
        assert result.events[-1] == done
        assert (done["published"], done["not_done"], done["predictions"], done["rejects"]) == (2, 0, 199, 1)
        assert "run_id" not in done
