"""A database by its URL: which kind it is, how it is named without its secrets, and what its errors mean.

Sources and warehouse both stand on it. Foreign exceptions are turned into ours here and nowhere else.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import sqlalchemy as sa

from batchscore import stop
from batchscore.errors import BatchscoreError, TransientError, UsageError, WarehouseError, nearest

__all__ = ["Database"]

# SQLSTATE classes and codes that a later attempt may not meet again: connection, serialization, deadlock,
# resources (but not a full disk, 53100), shutdown, lock not available, and our own limit on standing still inside a
# transaction: a process that was stopped so has to look at the ledger again.
_TRANSIENT_STATES = re.compile(r"^(08...|25P03|40001|40P01|53(?!100)...|57P0[1-5]|55P03)$")
_REFUSED_AT_LOGIN = re.compile(
    r"authentication failed|no password supplied|role \".*\" does not exist|database \".*\" does not exist"
    r"|no pg_hba\.conf entry|permission denied|invalid (URI|connection option|port|percent-encoded|\w+ value)"
    r"|bad value for",
    re.IGNORECASE,
)
# Parameters of a URL that may be shown; what another driver calls its secrets nobody here knows.
_SHOWN_PARAMETERS = {
    *("access_mode", "application_name", "charset", "connect_timeout", "database", "dbname", "driver", "host", "mode"),
    *("options", "port", "role", "schema", "sslcert", "sslmode", "sslrootcert", "target_session_attrs", "timeout"),
    *("unix_socket", "uri", "user", "warehouse"),
}
_SECRET_PARAMETER = re.compile("pass|pwd|token|secret|key|credential|auth|odbc_connect", re.IGNORECASE)
# Of a parameter of another name: shorter values are switches, and masking them would mask half of every line.
_SHORTEST_SECRET = 8
_ODBC_PASSWORD = re.compile(r"(?:pwd|password)\s*=\s*(\{[^}]*\}|[^;]*)", re.IGNORECASE)
# For a guess at what a misspelt URL meant.
_COMMON = ("duckdb", "postgresql", "sqlite", "mariadb+pymysql", "mysql+pymysql")
# Of MySQL and MariaDB: too many connections, shutdown, a table or an index that another has just made, lock timeout,
# deadlock, killed, and no connection (any more).
_MYSQL_TRANSIENT = {1040, 1050, 1053, 1061, 1205, 1213, 1927, 2002, 2003, 2006, 2013}
_SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# Drivers' errors go by their names: importing every driver to class the errors of one takes a tenth of a second.
_DUCKDB_REFUSED = {
    "BinderException",
    "CatalogException",
    "ConnectionException",
    "ConstraintException",
    "ConversionException",
    "FatalException",
    "InvalidInputException",
    "InvalidTypeException",
    "IOException",
    "NotImplementedException",
    "OutOfMemoryException",
    "OutOfRangeException",
    "ParserException",
    "PermissionException",
    "SyntaxException",
    "TransactionException",
    "TypeMismatchException",
}
# By their words, for behind an Arrow stream the class is lost; a table may be named Conflict.
_DUCKDB_TRANSIENT = re.compile(r"Could not set lock on file|TransactionContext Error: .*conflict", re.IGNORECASE)
# What surrounds a database's own words: where in the text that we made of the user's it stumbled, that text, what the
# driver was doing, and a manual to look into.
_AROUND = re.compile(
    r"\n\s*LINE \d+: .*\n[ \t]*\^+|\s*Query was: (?s:.*)(?=\. SQLSTATE: \w+$)|\s*\[SQL: (?s:.*)"
    r"|\A[A-Z_]+: .*?\bERROR:\s+|; check the manual .*? to use\b| at line \d+\Z"
)
_SQLSTATE = re.compile(r"\s*\. SQLSTATE: (\w+)\Z")
_DRIVERS = {"sqlalchemy", "adbc_driver_manager", "duckdb", "psycopg", "sqlite3"}


@dataclass(frozen=True, slots=True)
class Database:
    """Where a database is, with the secrets its URL holds."""

    url: sa.URL

    @classmethod
    def at(cls, text: str) -> Database:
        """The database of a SQLAlchemy URL.

        Raises:
            UsageError: The text is no URL; it is not repeated, for it may hold a password.
        """
        try:
            url = sa.make_url(text)
        except (sa.exc.ArgumentError, ValueError):
            url = None
        # An @ that the password should have encoded leaves the rest of it in the host or the database's name.
        if url is None or (url.password and "@" in f"{url.host}{url.database}"):
            raise UsageError(
                "a database URL cannot be read. Write it as dialect://user:password@host/database, with every "
                "special character of the password percent-encoded, or duckdb:///path/to/file.duckdb."
            )
        return cls(url)

    @property
    def dialect(self) -> str:
        """`postgresql`, `duckdb`, `sqlite` or another of SQLAlchemy's names."""
        return self.url.get_backend_name()

    @property
    def path(self) -> str:
        """The file of an embedded database, or `:memory:`."""
        return self.url.database or ":memory:"

    def __str__(self) -> str:
        shown = self.url.difference_update_query(self._hidden_parameters())
        return shown.render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"Database({self})"

    def secrets(self) -> set[str]:
        """The password and every parameter that may hold one, as they are and as a URL spells them."""
        values = [str(self.url.password or "")]
        for name in self._hidden_parameters():
            given = self.url.normalized_query[name]
            values.extend(v for v in given if _SECRET_PARAMETER.search(name) or len(v) >= _SHORTEST_SECRET)
            values.extend(match.strip("{}") for value in given for match in _ODBC_PASSWORD.findall(value))
        spellings = (str, lambda value: quote(value, safe=""), lambda value: quote(value, safe=" +"), quote_plus)
        return {spelling(value) for value in values for spelling in spellings} - {""}

    def libpq_uri(self) -> str:
        """The URL as libpq reads it, password included."""
        uri = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        # libpq refuses a bare space, and takes the + that stands for one in a query as it is.
        place, mark, query = uri.partition("?")
        return place.replace(" ", "%20") + mark + query.replace("+", "%20")

    def is_there(self) -> bool:
        """Whether it is a server, or the file of an embedded database exists."""
        return self.dialect not in ("duckdb", "sqlite") or self.path == ":memory:" or Path(self.path).is_file()

    def engine(self, **options: Any) -> sa.Engine:
        """An engine for a database that SQLAlchemy knows, with options of `sqlalchemy.create_engine`.

        Raises:
            UsageError: It knows no such dialect, or the driver is not installed.
        """
        try:
            return sa.create_engine(self.url, **options)
        except sa.exc.NoSuchModuleError:
            guess = f" Write {near}://." if (near := nearest(self.url.drivername, _COMMON)) else ""
            raise UsageError(
                f"{self}: SQLAlchemy knows no {self.url.drivername}.{guess} If it is right, install the package that "
                "provides it, in the image too."
            ) from None
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{self}: its driver, the Python module {error.name}, is not installed. Install the package that "
                "provides it, in the image too."
            ) from None

    def existing_file(self) -> None:
        """Refuse an embedded database whose file is not there, before a driver makes an empty one of that name.

        Raises:
            WarehouseError: There is no such file.
        """
        if not self.is_there():
            raise WarehouseError(f"{self}: there is no such file. Give the path of an existing database.")

    @contextmanager
    def translated(self, where: str) -> Iterator[None]:
        """Turn a driver's exception into WarehouseError or TransientError; one that nobody has classed flies on.

        Args:
            where: What was being done, for the message: "rows.sql", "the output table".
        """
        try:
            yield
        except Exception as error:
            if _driver_of(error) not in _DRIVERS:
                raise
            stop.check()
            driver = _driver_error(error)
            # SQLAlchemy's own class stands in for that of a driver nobody has classed.
            kind = _kind(driver if _driver_of(driver) in _DRIVERS else error)
            if kind is None:
                raise
            # One in memory is ours, and its name tells nobody anything.
            at = where if self.path == ":memory:" else f"{where} on {self}"
            raise kind(f"{at}: {self._clean(error)} {_advice(kind)}") from None

    def _hidden_parameters(self) -> list[str]:
        return [name for name in self.url.query if name.lower() not in _SHOWN_PARAMETERS]

    def _clean(self, error: Exception) -> str:
        """The database's own words on one line, without the secrets in any spelling, and with its code."""
        driver = _driver_error(error)
        match driver.args:
            case (int(code), str(said)):
                text = f"{_AROUND.sub('', said)} ({code})"
            case _:
                text = _SQLSTATE.sub(r" (\1)", _AROUND.sub("", str(driver)))
        for spelling in sorted(self.secrets(), key=len, reverse=True):
            text = text.replace(spelling, "***")
        text = " ".join(text.split())
        return text if text.endswith((".", "?", "!")) else f"{text}."


def _driver_error(error: Exception) -> BaseException:
    return getattr(error, "orig", None) or error


def _advice(kind: type[BatchscoreError]) -> str:
    if kind is TransientError:
        return "Nothing is lost: run the same command again."
    return "Mend it and run the same command again."


def _driver_of(error: BaseException) -> str:
    """The package that an exception's class is from."""
    return type(error).__module__.partition(".")[0].removeprefix("_")


def _classes(error: BaseException) -> set[str]:
    return {each.__name__ for each in type(error).__mro__}


def _kind(error: BaseException) -> type[BatchscoreError] | None:
    match _driver_of(error):
        case "psycopg" | "adbc_driver_manager":
            return _postgres_kind(error)
        case "sqlite3":
            code = getattr(error, "sqlite_errorcode", None)
            return TransientError if code is not None and code & 0xFF in _SQLITE_BUSY else WarehouseError
        case "duckdb":
            return _duckdb_kind(error)
    match error:
        case sa.exc.DBAPIError() if error.connection_invalidated or _mysql_code(error) in _MYSQL_TRANSIENT:
            return TransientError
        case sa.exc.IdentifierError() | sa.exc.DBAPIError() | sa.exc.TimeoutError():
            return WarehouseError
        case _:
            return None


def _mysql_code(error: sa.exc.DBAPIError) -> int | None:
    """The number that drivers of MySQL and MariaDB give first."""
    first = next(iter(getattr(error.orig, "args", ())), None)
    return first if isinstance(first, int) else None


def _postgres_kind(error: BaseException) -> type[BatchscoreError] | None:
    if state := getattr(error, "sqlstate", None):
        if _TRANSIENT_STATES.match(state):
            return TransientError
        return None if state.startswith("XX") else WarehouseError
    # Without a code the driver itself refused, or the login did.
    by_psycopg = _driver_of(error) == "psycopg" and "DataError" in _classes(error)
    if by_psycopg or _REFUSED_AT_LOGIN.search(str(error)):
        return WarehouseError
    return TransientError if "OperationalError" in _classes(error) else None


def _duckdb_kind(error: BaseException) -> type[BatchscoreError] | None:
    if _DUCKDB_TRANSIENT.search(str(error)):
        return TransientError
    # Of no class of its own.
    corrupt = "Corrupt database file" in str(error)
    return WarehouseError if corrupt or _classes(error) & _DUCKDB_REFUSED else None
