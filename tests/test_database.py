"""A database by its URL: named without its secrets, its errors told as ours."""

from __future__ import annotations

import pickle
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import FrozenInstanceError
from pathlib import Path

import adbc_driver_manager
import duckdb
import psycopg
import pytest
import sqlalchemy as sa
from adbc_driver_postgresql import dbapi as adbc

from batchscore.database import Database
from batchscore.errors import (
    BatchscoreError,
    KeyViolation,
    TransientError,
    UsageError,
    WarehouseError,
)

CANARY = "c4nary p@ss/w+rd%x"
ENCODED = "c4nary%20p%40ss%2Fw%2Brd%25x"
POSTGRES = f"postgresql+psycopg://reader:{ENCODED}@db:5432/warehouse"


def told(error: BaseException, kind: type[BatchscoreError], at: Database) -> str:
    """The message of a translated error: what, where but in memory, the driver's words on one line, what to do next."""
    assert type(error) is kind
    message = str(error)
    assert message.startswith("rows.sql: " if at.path == ":memory:" else f"rows.sql on {at}: ")
    assert "\n" not in message
    advice = {
        TransientError: "Nothing is lost: run the same command again.",
        WarehouseError: "Mend it and run the same command again.",
    }[kind]
    assert message.endswith(f" {advice}")
    # It may be told of a look, a training, or what comes after a publish.
    assert "published" not in message
    assert error.__cause__ is None
    assert error.__suppress_context__
    return message


def translated(at: Database, call: Callable[[], object], kind: type[BatchscoreError]) -> str:
    """The message of the error that a call ends in."""
    with pytest.raises(BatchscoreError) as caught, at.translated("rows.sql"):
        call()
    return told(caught.value, kind, at)


def throw(error: BaseException) -> Callable[[], object]:
    """A call that ends in an exception."""

    def call() -> None:
        raise error

    return call


class TestUrl:
    """What a URL says of a database."""

    @pytest.mark.parametrize(
        ("text", "dialect", "path"),
        [
            ("postgresql+psycopg://u@h/d", "postgresql", "d"),
            ("duckdb:///var/w.duckdb", "duckdb", "var/w.duckdb"),
            ("duckdb:////var/w.duckdb", "duckdb", "/var/w.duckdb"),
            ("duckdb:///:memory:", "duckdb", ":memory:"),
            ("sqlite://", "sqlite", ":memory:"),
            ("sqlite:///rows.db", "sqlite", "rows.db"),
            ("mysql+pymysql://u@h/d", "mysql", "d"),
        ],
    )
    def test_dialect_and_path(self, text, dialect, path):
        """The dialect has no driver in it, and an embedded database without a file is in memory."""
        assert Database.at(text).dialect == dialect
        assert Database.at(text).path == path

    @pytest.mark.parametrize(
        "text",
        [
            "",
            CANARY,
            f"reader:{CANARY}@db/warehouse",
            f"postgresql:/reader:{CANARY}@db/warehouse",
            f"postgresql://reader:{ENCODED}@db:port/warehouse",
            f"postgresql://reader:{ENCODED}@[::1/warehouse",
            f"postgresql://reader:x@{CANARY}@db/warehouse",
            f"postgresql://reader:x@y/{CANARY}@db/warehouse",
        ],
    )
    def test_what_cannot_be_read_is_not_repeated(self, text):
        """A text that is no URL, or whose password has an @ in it, is an error of use that shows how to write one only."""
        with pytest.raises(UsageError) as caught:
            Database.at(text)

        assert "dialect://user:password@host/database" in str(caught.value)
        assert "percent-encoded" in str(caught.value)
        for part in ("c4nary", "reader", "warehouse", "@db"):
            assert part not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            (POSTGRES, "postgresql+psycopg://reader:***@db:5432/warehouse"),
            ("postgresql://reader@db/warehouse", "postgresql://reader@db/warehouse"),
            (
                f"postgresql://reader@db/w?password={ENCODED}&sslmode=require",
                "postgresql://reader@db/w?sslmode=require",
            ),
            (f"postgresql://db/w?sslpassword={ENCODED}", "postgresql://db/w"),
            (f"postgresql://db/w?oauth_client_secret={ENCODED}", "postgresql://db/w"),
            (f"duckdb:///w?motherduck_token={ENCODED}", "duckdb:///w"),
            ("duckdb:////data/w.duckdb", "duckdb:////data/w.duckdb"),
            (f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{ENCODED}", "mssql+pyodbc:///"),
            (f"bigquery://project?credentials_base64={ENCODED}", "bigquery://project"),
            (f"snowflake://account?passcode={ENCODED}&warehouse=wh", "snowflake://account?warehouse=wh"),
            (f"mysql://db/w?unheard_of={ENCODED}&charset=utf8mb4", "mysql://db/w?charset=utf8mb4"),
        ],
    )
    def test_shown_without_secrets(self, text, shown):
        """Neither str nor repr holds a password, wherever in the URL it stands."""
        assert str(Database.at(text)) == shown
        assert repr(Database.at(text)) == f"Database({shown})"
        assert f"{Database.at(text)}" == shown

    def test_secrets_in_every_spelling(self):
        """The secrets of a URL are known as they are and as a URL writes them, and are none without a password."""
        in_place = Database.at(POSTGRES).secrets()
        in_query = Database.at(f"postgresql://db/w?password={ENCODED}&application_name=visible").secrets()

        assert {CANARY, ENCODED} <= in_place
        assert in_place == in_query
        for url in (
            f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Du%3BPWD%3D%7B{ENCODED}%7D%3BPort%3D1",
            f"bigquery://project?credentials_base64={ENCODED}",
            f"snowflake://account?private_key_passphrase={ENCODED}",
            f"mysql://db/w?unheard_of={ENCODED}&ssl=true",
        ):
            assert {CANARY, ENCODED} <= Database.at(url).secrets(), url
            assert "true" not in Database.at(url).secrets()
        assert Database.at("postgresql://reader@db/warehouse?sslmode=require").secrets() == set()

    @pytest.mark.parametrize("secret", ["plain", CANARY, "a b", "a+b", "a&b=c", "a?b#c", "é:/[]", "%41"])
    def test_libpq_reads_the_same(self, secret):
        """What libpq reads in its form of the URL is what the URL says, whatever stands in the password."""
        url = sa.URL.create(
            "postgresql+psycopg", "reader", secret, "db", 5432, "ware house", {"options": "-c search_path=a+b"}
        )

        read = psycopg.conninfo.conninfo_to_dict(Database.at(url.render_as_string(hide_password=False)).libpq_uri())

        assert read == {
            "user": "reader",
            "password": secret,
            "host": "db",
            "port": "5432",
            "dbname": "ware house",
            "options": "-c search_path=a+b",
        }

    def test_two_of_one_url_are_equal(self):
        """A database is a value, and passes to a worker process."""
        database = Database.at(POSTGRES)

        assert database == Database.at(POSTGRES) == pickle.loads(pickle.dumps(database))
        assert hash(database) == hash(Database.at(POSTGRES))
        with pytest.raises(FrozenInstanceError):
            database.url = sa.make_url("sqlite://")  # type: ignore[misc]

    def test_existing_file(self, tmp_path):
        """An embedded database must be there before a driver would make an empty one; others are not looked for."""
        (tmp_path / "there.db").touch()

        for dialect in ("duckdb", "sqlite"):
            Database.at(f"{dialect}:///{tmp_path}/there.db").existing_file()
            Database.at(f"{dialect}:///:memory:").existing_file()
            for missing in (tmp_path / "missing.db", tmp_path):
                with pytest.raises(WarehouseError, match="there is no such file") as caught:
                    Database.at(f"{dialect}:///{missing}").existing_file()
                assert str(missing) in str(caught.value)
        Database.at("sqlite://").existing_file()
        Database.at("postgresql://db/warehouse").existing_file()
        assert list(tmp_path.iterdir()) == [tmp_path / "there.db"]


class TestSecretsInErrors:
    """What a driver repeats of the URL is masked."""

    AT = Database.at(POSTGRES)

    def test_words_of_a_real_driver(self):
        """Libpq repeats a password that it cannot read; the translated error does not."""
        at = Database.at("postgresql://reader:c4nary%20p@127.0.0.1:1/w")

        with pytest.raises(BatchscoreError) as caught, at.translated("rows.sql"):
            adbc.connect("postgresql://reader:c4nary p@127.0.0.1:1/w")

        assert 'found in "***"' in str(caught.value)
        assert "c4nary" not in str(caught.value)

    @pytest.mark.parametrize("spelling", [CANARY, ENCODED, "c4nary p%40ss%2Fw+rd%25x", "c4nary+p%40ss%2Fw%2Brd%25x"])
    @pytest.mark.parametrize(
        "wrap",
        [lambda error: error, lambda error: sa.exc.OperationalError("SELECT 1", {}, error)],
        ids=["bare", "sqlalchemy"],
    )
    def test_every_spelling_goes(self, spelling, wrap):
        """A password in a driver's words is masked as typed, percent-encoded, and as SQLAlchemy renders it in either place."""
        error = wrap(psycopg.OperationalError(f'cannot use "postgresql://reader:{spelling}@db" or\n{spelling}'))

        message = translated(self.AT, throw(error), TransientError)

        assert 'cannot use "postgresql://reader:***@db" or ***.' in message
        assert "c4nary" not in message

    def test_a_password_in_the_query(self):
        """A secret parameter is masked like the password in its place."""
        at = Database.at(f"postgresql://reader@db/w?password={ENCODED}")

        assert "c4nary" not in translated(
            at, throw(psycopg.OperationalError(f"bad {CANARY} {ENCODED}")), TransientError
        )

    def test_one_secret_inside_another(self):
        """A secret that begins like another does not leave the rest of it behind."""
        at = Database.at("postgresql://reader:abc@db/w?sslpassword=abcdef&token=fabc")

        message = translated(at, throw(psycopg.OperationalError("tried abcdef, abc, fabc")), TransientError)
        assert "tried ***, ***, ***." in message

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (
                psycopg.errors.UndefinedColumn(
                    'column "colunm" does not exist\nLINE 3:  colunm\n         ^\nHINT:  Perhaps "column".'
                ),
                'column "colunm" does not exist HINT: Perhaps "column". M',
            ),
            (
                adbc_driver_manager.ProgrammingError(
                    'NOT_FOUND: Failed to prepare query: ERROR:  relation "toi" does not exist\nLINE 3: FROM toi W...\n'
                    "             ^\n\nQuery was: SELECT * FROM (\nSELECT id. \nFROM toi) AS batchscore_rows. SQLSTATE: 42P01",
                    status_code=3,
                    sqlstate="42P01",
                ),
                ': relation "toi" does not exist (42P01). M',
            ),
            (
                adbc_driver_manager.DataError(
                    "INVALID_DATA: [libpq] Execution error [PGRES_FATAL_ERROR]: ERROR:  invalid input syntax for type "
                    'integer: "y"\n. SQLSTATE: 22P02',
                    status_code=9,
                    sqlstate="22P02",
                ),
                ': invalid input syntax for type integer: "y" (22P02). M',
            ),
            (
                duckdb.ParserException(
                    'Parser Error: syntax error at or near "toy"\n\nLINE 1: SELECT id FORM toy\n               ^^^'
                ),
                ': Parser Error: syntax error at or near "toy". M',
            ),
            (
                sa.exc.ProgrammingError(
                    "SELECT 1",
                    {},
                    Exception(
                        1064,
                        "You have an error in your SQL syntax; check the manual that corresponds to your MariaDB server "
                        "version for the right syntax to use near 'toy WHERE\n ts >= '2024' at line 2",
                    ),
                ),
                ": You have an error in your SQL syntax near 'toy WHERE ts >= '2024' (1064). M",
            ),
            (
                sa.exc.DBAPIError(
                    "SELECT 1", {}, Exception("refused\n[SQL: SELECT 1 FROM (\nSELECT 2)]\n(Background …)")
                ),
                ": refused. M",
            ),
        ],
        ids=lambda value: type(value).__module__ if isinstance(value, Exception) else "",
    )
    def test_only_the_database_s_words(self, error, words):
        """Its message and hint are kept, with its code; not the query that was made of the user's, nor places in that."""
        assert words in translated(self.AT, throw(error), WarehouseError)

    def test_double_spaces(self):
        """A password with a run of spaces is masked before the message is put on one line."""
        at = Database.at("postgresql://reader:two%20%20spaces@db/w")

        assert "two" not in translated(at, throw(psycopg.OperationalError('bad "two  spaces"')), TransientError)

    @pytest.mark.parametrize(
        ("words", "end"), [("no end", "no end. N"), ("an end.", "an end. N"), ("really?", "really? N")]
    )
    def test_a_sentence_ends_once(self, words, end):
        """The driver's words end as a sentence before the advice begins."""
        assert end in translated(self.AT, throw(psycopg.OperationalError(words)), TransientError)


@pytest.fixture
def rows_duckdb(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An open DuckDB file with a table of one row."""
    with duckdb.connect(str(tmp_path / "rows.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE flights (id INTEGER PRIMARY KEY, late BOOLEAN); INSERT INTO flights VALUES (1, true)"
        )
        yield connection


@pytest.fixture
def held_duckdb(tmp_path: Path) -> Iterator[Path]:
    """A DuckDB file that another process has open for writing."""
    path = tmp_path / "held.duckdb"
    code = f"import duckdb, sys; held = duckdb.connect({str(path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        yield path
        holder.communicate()


class TestDuckDB:
    """Errors of a real DuckDB."""

    @pytest.mark.parametrize(
        ("sql", "words"),
        [
            ("SELECT * FROM flihgts", "flihgts does not exist"),
            ('SELECT * FROM "Conflict"', "Conflict does not exist"),
            ("SELECT nope FROM flights", "nope"),
            ("SELEC 1", "syntax error"),
            ("SELECT 'Conflict'::INTEGER", "Could not convert string 'Conflict'"),
            ("INSERT INTO flights VALUES (1, false)", "uplicate key"),
            ("SELECT 1000::TINYINT", "out of range"),
            ("BEGIN; BEGIN", "within a transaction"),
            ("SELECT * FROM 'nowhere.parquet'", "nowhere.parquet"),
        ],
    )
    def test_refused(self, rows_duckdb, sql, words):
        """What DuckDB refuses it would refuse again, whatever names and values the statement holds."""
        at = Database.at("duckdb:///rows.duckdb")

        assert words in translated(at, lambda: rows_duckdb.execute(sql), WarehouseError)

    def test_read_only(self, rows_duckdb, tmp_path):
        """A write to a file opened for reading is refused."""
        rows_duckdb.close()
        at = Database.at(f"duckdb:///{tmp_path}/rows.duckdb")
        with duckdb.connect(at.path, read_only=True) as connection:
            assert "read-only" in translated(at, lambda: connection.execute("DELETE FROM flights"), WarehouseError)

    def test_not_a_database(self, tmp_path):
        """A file of something else is refused."""
        (tmp_path / "notes.txt").write_text("not a database " * 1000)
        at = Database.at(f"duckdb:///{tmp_path}/notes.txt")

        assert "not a valid DuckDB" in translated(at, lambda: duckdb.connect(at.path), WarehouseError)

    def test_a_closed_connection(self, rows_duckdb):
        """A connection that was closed does not open by waiting."""
        rows_duckdb.close()

        translated(Database.at("duckdb:///rows.duckdb"), lambda: rows_duckdb.execute("SELECT 1"), WarehouseError)

    def test_memory(self):
        """A query past the memory limit is refused."""
        with duckdb.connect(config={"memory_limit": "10MB", "temp_directory": "", "threads": 1}) as connection:
            query = "SELECT count(DISTINCT i::VARCHAR || 'x') FROM range(10_000_000) r(i)"

            translated(Database.at("duckdb://"), lambda: connection.execute(query).fetchall(), WarehouseError)

    def test_held_by_another_process(self, held_duckdb):
        """A file that another process has open is gone with time, through SQLAlchemy too."""
        at = Database.at(f"duckdb:///{held_duckdb}")
        engine = sa.create_engine(at.url)

        assert "Could not set lock on file" in translated(at, lambda: duckdb.connect(at.path), TransientError)
        assert "Could not set lock on file" in translated(at, engine.connect, TransientError)

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("UPDATE flights SET late = false", "UPDATE flights SET late = true"),
            ("DELETE FROM flights", "DELETE FROM flights"),
            ("CREATE TABLE t (a INTEGER)", "CREATE TABLE t (a INTEGER)"),
        ],
    )
    def test_two_writers(self, rows_duckdb, first, second):
        """Of two transactions that write the same, the second may try again."""
        other = rows_duckdb.cursor()
        rows_duckdb.execute("BEGIN")
        other.execute("BEGIN")
        rows_duckdb.execute(first)

        assert "onflict" in translated(Database.at("duckdb://"), lambda: other.execute(second), TransientError)

    @pytest.mark.parametrize(
        "name", ["HTTP", "InvalidType", "NotImplemented", "OutOfRange", "Permission", "Syntax", "TypeMismatch"]
    )
    def test_classes_that_are_hard_to_provoke(self, name):
        """What the statements above do not provoke is refused all the same."""
        error = getattr(duckdb, f"{name}Exception")("refused")

        translated(Database.at("duckdb://"), throw(error), WarehouseError)

    @pytest.mark.parametrize(
        "words", ["TransactionContext Error: Conflict on update!", "IO Error: Could not set lock on file"]
    )
    def test_words_behind_an_arrow_stream(self, words):
        """Where a stream has lost the class, the words still tell that the error is gone with time."""
        translated(Database.at("duckdb://"), throw(duckdb.InvalidInputException(words)), TransientError)

    def test_a_bug_of_duckdb_flies_on(self):
        """An internal error is nobody's fault here, and keeps its class and traceback."""
        with (
            pytest.raises(duckdb.InternalException, match="assertion"),
            Database.at("duckdb://").translated("rows.sql"),
        ):
            raise duckdb.InternalException("assertion")


class TestSQLite:
    """Errors of a real SQLite."""

    @pytest.fixture
    def rows(self, tmp_path: Path) -> Iterator[sqlite3.Connection]:
        """An open SQLite file with a table."""
        with closing(sqlite3.connect(tmp_path / "rows.db", timeout=0, isolation_level=None)) as connection:
            connection.execute("CREATE TABLE flights (id INTEGER PRIMARY KEY, late BOOLEAN)")
            yield connection

    @pytest.mark.parametrize(
        ("sql", "words"),
        [
            ("SELECT * FROM flihgts", "no such table: flihgts"),
            ("SELECT nope FROM flights", "no such column: nope"),
            ("SELEC 1", "syntax error"),
            ("INSERT INTO flights SELECT 1, 1 UNION ALL SELECT 1, 0", "UNIQUE constraint failed"),
            ("SELECT ?", "bindings"),
            ("COMMIT", "no transaction is active"),
        ],
    )
    def test_refused(self, rows, sql, words):
        """What SQLite refuses it would refuse again."""
        assert words in translated(Database.at("sqlite:///rows.db"), lambda: rows.execute(sql), WarehouseError)

    def test_read_only(self, rows, tmp_path):
        """A write to a file opened for reading is refused."""
        with closing(sqlite3.connect(f"file:{tmp_path}/rows.db?mode=ro", uri=True)) as reader:
            call = lambda: reader.execute("DELETE FROM flights")  # noqa: E731

            assert "readonly" in translated(Database.at("sqlite:///rows.db"), call, WarehouseError)

    def test_not_a_database(self, tmp_path):
        """A file of something else is refused, through SQLAlchemy too."""
        (tmp_path / "notes.txt").write_text("not a database " * 1000)
        at = Database.at(f"sqlite:///{tmp_path}/notes.txt")

        with closing(sqlite3.connect(at.path)) as connection:
            assert "not a database" in translated(at, lambda: connection.execute("SELECT * FROM t"), WarehouseError)
        with sa.create_engine(at.url).connect() as connection:
            message = translated(at, lambda: connection.execute(sa.text("SELECT * FROM t")), WarehouseError)
        assert "not a database" in message
        assert "[SQL" not in message

    def test_no_such_folder(self, tmp_path):
        """A file that cannot be opened is refused."""
        at = Database.at(f"sqlite:///{tmp_path}/no/rows.db")

        assert "unable to open" in translated(at, lambda: sqlite3.connect(at.path), WarehouseError)

    @pytest.mark.parametrize("hold", ["BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"])
    def test_held_by_another_connection(self, rows, tmp_path, hold):
        """A file whose lock another connection holds is gone with time, through SQLAlchemy too."""
        at = Database.at(f"sqlite:///{tmp_path}/rows.db?timeout=0")
        rows.execute(hold)

        with closing(sqlite3.connect(at.path, timeout=0)) as other:
            message = translated(at, lambda: other.execute("INSERT INTO flights VALUES (1, 1)"), TransientError)
        assert "locked" in message
        with sa.create_engine(at.url).connect() as other:
            translated(at, lambda: other.execute(sa.text("INSERT INTO flights VALUES (1, 1)")), TransientError)

    def test_a_table_locked_in_one_cache(self):
        """A table locked by another connection to a shared cache is gone with time."""
        uri = "file:batchscore_test?mode=memory&cache=shared"
        with closing(sqlite3.connect(uri, uri=True)) as writer, closing(sqlite3.connect(uri, uri=True)) as reader:
            writer.execute("CREATE TABLE t (a)")
            writer.commit()
            writer.execute("INSERT INTO t VALUES (1)")

            translated(Database.at("sqlite://"), lambda: reader.execute("SELECT * FROM t"), TransientError)


TRANSIENT_STATES = {
    "08000": "connection",
    "08001": "connection not made",
    "08006": "connection lost",
    "40001": "serialization",
    "40P01": "deadlock",
    "53200": "memory",
    "53300": "too many connections",
    "25P03": "stood still inside a transaction",
    "55P03": "lock not available",
    "57P01": "shut down by the administrator",
    "57P02": "crashed",
    "57P03": "starting up",
}
REFUSED_STATES = {
    "0A000": "not supported",
    "22003": "out of range",
    "22P02": "invalid text",
    "23505": "unique",
    "25006": "read-only",
    "28000": "authorization",
    "28P01": "password",
    "3D000": "no such database",
    "3F000": "no such schema",
    "40002": "integrity at commit",
    "42501": "privilege",
    "42601": "syntax",
    "42703": "no such column",
    "42P01": "no such table",
    "53100": "disk full",
    "55000": "not in the state for it",
    "57014": "cancelled",
    "58030": "input and output",
    "P0001": "raised by a function",
}
AT = Database.at(POSTGRES)


def of_sqlalchemy(error: Exception) -> Exception:
    """As SQLAlchemy hands over a driver's error."""
    return sa.exc.DBAPIError.instance("SELECT 1", {}, error, psycopg.Error)


def of_adbc(state: str) -> Exception:
    """As ADBC hands over an error of that SQLSTATE."""
    return adbc_driver_manager.ProgrammingError(
        "refused", status_code=adbc_driver_manager.AdbcStatusCode.INVALID_ARGUMENT, sqlstate=state
    )


class TestPostgres:
    """Errors of psycopg and ADBC, by SQLSTATE, and by their words where there is none."""

    @pytest.mark.parametrize("state", TRANSIENT_STATES, ids=lambda s: f"{s} {TRANSIENT_STATES[s]}")
    def test_transient_states(self, state):
        """Connection, serialization, deadlock, resources, shutdown and locks are gone with time, from every driver."""
        error = psycopg.errors.lookup(state)("refused")

        for each in (error, of_sqlalchemy(error), of_adbc(state)):
            translated(AT, throw(each), TransientError)

    @pytest.mark.parametrize("state", REFUSED_STATES, ids=lambda s: f"{s} {REFUSED_STATES[s]}")
    def test_refused_states(self, state):
        """Login, privilege, missing things, constraints, a full disk and syntax are refused for good, from every driver."""
        error = psycopg.errors.lookup(state)("refused")

        for each in (error, of_sqlalchemy(error), of_adbc(state)):
            translated(AT, throw(each), WarehouseError)

    @pytest.mark.parametrize("state", ["XX000", "XX001"])
    def test_a_bug_of_postgres_flies_on(self, state):
        """An internal error keeps its class, from every driver."""
        error = psycopg.errors.lookup(state)("internal")

        for each in (error, of_sqlalchemy(error), of_adbc(state)):
            with pytest.raises(type(each)) as caught, AT.translated("rows.sql"):
                raise each
            assert caught.value is each

    @pytest.mark.parametrize(
        "words",
        [
            'FATAL:  password authentication failed for user "reader"',
            "fe_sendauth: no password supplied",
            'FATAL:  role "reader" does not exist',
            'FATAL:  database "warehouse" does not exist',
            'FATAL:  no pg_hba.conf entry for host "10.0.0.1"',
            'FATAL:  permission denied for database "warehouse"',
        ],
    )
    def test_a_login_refused(self, words):
        """At login there is no SQLSTATE; what will not mend itself is known by its words, from every driver."""
        text = f'connection to server at "db" (10.0.0.2), port 5432 failed: {words}'
        error = psycopg.OperationalError(text)

        adbc_error = adbc_driver_manager.OperationalError(text, status_code=adbc_driver_manager.AdbcStatusCode.IO)
        for each in (error, of_sqlalchemy(error), adbc_error):
            assert words.split()[-1] in translated(AT, throw(each), WarehouseError)

    @pytest.mark.parametrize("words", ["server closed the connection unexpectedly", "could not translate host name"])
    def test_any_other_loss_of_the_connection(self, words):
        """Other trouble of the connection is gone with time."""
        error = psycopg.OperationalError(words)

        for each in (error, of_sqlalchemy(error)):
            assert words in translated(AT, throw(each), TransientError)

    @pytest.mark.parametrize(
        "query",
        ["sslmode=no", "connect_timeout=soon", "nosuch=1", "port=none", "target_session_attrs=no", "options=%zz"],
    )
    @pytest.mark.parametrize("connect", [psycopg.connect, adbc.connect], ids=["psycopg", "adbc"])
    def test_a_url_that_libpq_refuses(self, query, connect):
        """A parameter that libpq does not take is refused for good, in its own words."""
        translated(AT, lambda: connect(f"postgresql://reader@127.0.0.1:1/w?{query}"), WarehouseError)

    def test_a_port_where_nobody_listens(self):
        """A refused connection is gone with time, from every driver: the server may be starting."""
        with socket.socket() as taken:
            # Bound and not listening: the port is nobody else's, and refuses.
            taken.bind(("127.0.0.1", 0))
            at = Database.at(f"postgresql+psycopg://reader:{ENCODED}@127.0.0.1:{taken.getsockname()[1]}/warehouse")
            for connect in (
                lambda: psycopg.connect(at.libpq_uri()),
                lambda: adbc.connect(at.libpq_uri()),
                sa.create_engine(at.url).connect,
            ):
                message = translated(at, connect, TransientError)

                assert "Connection refused" in message
                assert "c4nary" not in message


class TestOthers:
    """What is not a driver's error, and drivers that nobody has classed."""

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("ours to mend"),
            KeyError("x"),
            OSError("disk"),
            psycopg.InterfaceError("cursor is closed"),
            sa.exc.ResourceClosedError("closed"),
            sa.exc.InvalidRequestError("bug"),
        ],
        ids=repr,
    )
    def test_what_nobody_has_classed_flies_on(self, error):
        """An exception without a meaning here is the very same outside: a bug keeps its traceback."""
        with pytest.raises(type(error)) as caught, AT.translated("rows.sql"):
            raise error

        assert caught.value is error

    @pytest.mark.parametrize("error", [KeyViolation("twice", key=[1]), TransientError("again"), UsageError("wrong")])
    def test_ours_pass_through(self, error):
        """An error of ours raised inside is the same outside, context and all."""
        with pytest.raises(type(error)) as caught, AT.translated("rows.sql"):
            raise error

        assert caught.value is error

    @pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_signals_pass_through(self, signal):
        """What is no error is not made one."""
        with pytest.raises(signal), AT.translated("rows.sql"):
            raise signal

    def test_nothing_happens_without_an_error(self):
        """A block that ends well ends well."""
        with AT.translated("rows.sql"):
            done = True

        assert done

    def test_a_driver_of_another_database(self):
        """A driver that batchscore does not know is refused by SQLAlchemy's class for its error, in its own words."""
        foreign = type("OperationalError", (Exception,), {})("Lost connection during query")
        error = sa.exc.OperationalError("SELECT 1", {}, foreign)

        message = translated(Database.at("mysql://u@h/d"), throw(error), WarehouseError)
        assert "Lost connection during query." in message
        assert "SELECT 1" not in message

    def test_a_dialect_that_is_not_installed(self):
        """A URL of a dialect nobody has is refused."""
        at = Database.at("nosuchdb://u@h/d")

        with pytest.raises(UsageError, match="SQLAlchemy knows no nosuchdb"):
            at.engine()

    @pytest.mark.parametrize(
        ("code", "invalidated", "kind"),
        [
            (1213, False, TransientError),
            (1205, False, TransientError),
            (2003, False, TransientError),
            (1064, True, TransientError),
            (1064, False, WarehouseError),
            (1045, False, WarehouseError),
            ("HY000", False, WarehouseError),
        ],
    )
    def test_mysql(self, code, invalidated, kind):
        """Deadlocks, lock timeouts and lost connections may pass; a wrong statement or password does not."""
        driver = Exception(code, "said the server")
        error = sa.exc.OperationalError("SELECT 1", {}, driver, connection_invalidated=invalidated)

        def fail():
            raise error

        said = translated(Database.at("mariadb+pymysql://u@h/d"), fail, kind)
        assert "said the server" in said
