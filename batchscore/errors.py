"""Everything that stops a batchscore command, with the exit code an operator sees.

    BatchscoreError
    ├── UsageError              2   the call, the job file or the settings are wrong
    ├── BundleError            10   the model version cannot be trusted or used here
    │   ├── BundleNotFound
    │   ├── BundleCorrupt
    │   ├── BundleUntrusted
    │   ├── BundleIncompatible
    │   ├── GoldenRowsDiffer
    │   └── SourceChanged
    ├── InputError             11   the rows break the contract that the bundle declares
    │   ├── SchemaMismatch
    │   ├── KeyViolation
    │   ├── ProfileMismatch
    │   └── TooManyRejects
    ├── TrainingError          11   the rows, the features or the pipeline cannot give a bundle
    ├── WarehouseError         12   a database or file refused: login, privilege, missing table, full disk
    │   └── OutputMismatch
    ├── TransientError         20   gone with time: connection, lock, deadlock (retryable)
    ├── IntervalLeased         21   another process has taken up this work (retryable)
    └── GateTripped            31   a bar that the job sets was not reached; what was there before stays

`Terminated` stands beside the tree: SIGTERM is a request, not an error, and exits with 143. Beside it stands
`Interrupted`, which is Ctrl-C and exits with 130. Any other exception is a bug of batchscore's: a traceback and exit
code 70.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import ClassVar, Self

__all__ = [
    "BUG_EXIT_CODE",
    "BatchscoreError",
    "BundleCorrupt",
    "BundleError",
    "BundleIncompatible",
    "BundleNotFound",
    "BundleUntrusted",
    "GateTripped",
    "GoldenRowsDiffer",
    "InputError",
    "Interrupted",
    "IntervalLeased",
    "KeyViolation",
    "OutputMismatch",
    "ProfileMismatch",
    "SchemaMismatch",
    "SourceChanged",
    "Terminated",
    "TooManyRejects",
    "TrainingError",
    "TransientError",
    "UsageError",
    "WarehouseError",
    "nearest",
]

BUG_EXIT_CODE = 70


class BatchscoreError(Exception):
    """A stop that a user or operator can act on.

    The message says what is wrong, where, and what to do next. `context` holds the same facts for the log line; its
    values must be JSON-ready. Pickles as it is, so it survives a worker process.

    Attributes:
        exit_code: What the process exits with.
        retryable: Whether the same call may succeed later with nothing changed.
    """

    exit_code: ClassVar[int] = BUG_EXIT_CODE
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, /, **context: object) -> None:
        super().__init__(message)
        self.context = context


class UsageError(BatchscoreError):
    """The call, the job file, its SQL or Python, or the settings are wrong."""

    exit_code = 2


class BundleError(BatchscoreError):
    """A model version that cannot be trusted or cannot be used here."""

    exit_code = 10


class BundleNotFound(BundleError):
    """The registry has no such model, version or alias."""


class BundleCorrupt(BundleError):
    """The bytes of a bundle are not those that were written."""


class BundleUntrusted(BundleError):
    """No key that the operator trusts has signed the bundle, or its pipeline names what none may."""


class BundleIncompatible(BundleError):
    """The bundle was made with libraries, or by a batchscore, that this process does not have."""


class GoldenRowsDiffer(BundleError):
    """The bundle does not reproduce the predictions it was trained with."""


class SourceChanged(BundleError):
    """The job's SQL or key is not the one the bundle was trained with."""


class InputError(BatchscoreError):
    """Rows that break the contract declared by the bundle."""

    exit_code = 11


class SchemaMismatch(InputError):
    """A column is missing, or has a type that cannot be cast exactly."""

    @classmethod
    def missing(
        cls,
        missing: Sequence[str],
        found: Iterable[str],
        where: str,
        needed: str = "the bundle needs",
        advice: str = "Give the column at the source, or retrain.",
    ) -> Self:
        """Columns that the rows lack, by default of the bundle's schema."""
        listed = list(found)
        guesses = [f"{name} (nearest: {near})" if (near := nearest(name, listed)) else name for name in missing]
        return cls(
            f"{where} lacks {len(missing)} column(s) that {needed}: {', '.join(guesses)}. "
            f"It has: {', '.join(listed)}. {advice}",
            missing=list(missing),
        )

    @classmethod
    def type_of(cls, column: str, want: str, got: str, where: str, advice: str) -> Self:
        """A column whose type, or some value, cannot become the declared type exactly."""
        return cls(f"{where}: column {column}: want {want}, got {got}. {advice}", column=column, want=want, got=got)

    @classmethod
    @contextmanager
    def unquoted(cls, private: Collection[str], where: str) -> Iterator[None]:
        """A block whose mismatches of a private column quote none of its values."""
        try:
            yield
        except cls as error:
            column, got = error.context.get("column"), str(error.context.get("got"))
            if column not in private:
                raise
            # A type is one word; whatever is more may quote.
            got = got if got.isidentifier() else "something else"
            advice = "The column is private, so no value is told. Cast it at the source, or retrain."
            raise cls.type_of(str(column), str(error.context.get("want")), got, where, advice) from None


class KeyViolation(InputError):
    """A key that is NULL or occurs more than once."""


class ProfileMismatch(InputError):
    """Two profiles with unlike bins or categories, which must not be merged or compared."""


class TooManyRejects(InputError):
    """More rows could not be scored than `limits.rejects` allows; nothing was published."""


class TrainingError(BatchscoreError):
    """The rows, the features or the pipeline cannot give a bundle."""

    exit_code = 11


class WarehouseError(BatchscoreError):
    """A database or a file refused, and would refuse again."""

    exit_code = 12


class OutputMismatch(WarehouseError):
    """The output table exists and its columns cannot take the predictions exactly."""


class TransientError(BatchscoreError):
    """A database or a network that may answer later."""

    exit_code = 20
    retryable = True


class IntervalLeased(BatchscoreError):
    """Another process works on the same interval."""

    exit_code = 21
    retryable = True


class GateTripped(BatchscoreError):
    """A bar that the job sets was not reached; what was in use before stays in use."""

    exit_code = 31


class Terminated(BaseException):
    """SIGTERM arrived: what is committed stays, the next run goes on behind it."""

    exit_code = 143


class Interrupted(Terminated):
    """Ctrl-C: as with SIGTERM, what is committed stays."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is alike."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
