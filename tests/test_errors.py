"""One tree of errors, drawn where it lives, that survives a worker process."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from collections.abc import Iterator

import pytest

from batchscore import errors
from batchscore.errors import (
    BUG_EXIT_CODE,
    BatchscoreError,
    Interrupted,
    SchemaMismatch,
    Terminated,
    UsageError,
    nearest,
)

# What a shell and the kernel say themselves: a failing script, not executable, not found, killed by signal 0.
TAKEN_BY_THE_SHELL = {1, 126, 127, 128}
BRANCH = re.compile(r"^(?P<indent>[│ ]*)[├└]── (?P<name>\w+)\s*(?P<code>\d+)?\s*(?P<told>.*)$")


def tree(root: type[BatchscoreError]) -> Iterator[type[BatchscoreError]]:
    """Every class below the root, the root left out."""
    for child in root.__subclasses__():
        yield child
        yield from tree(child)


CLASSES = [BatchscoreError, *tree(BatchscoreError)]


def drawn() -> dict[str, tuple[str, int, bool]]:
    """The docstring's tree: name to parent, exit code and whether it says retryable; a leaf has its branch's."""
    found: dict[str, tuple[str, int, bool]] = {}
    path = ["BatchscoreError"]
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        if match := BRANCH.match(line.removeprefix("    ")):
            depth = 1 + len(match["indent"]) // 4
            parent = path[depth - 1]
            _, code, retryable = found.get(parent, ("", BUG_EXIT_CODE, False))
            if match["code"]:
                code, retryable = int(match["code"]), "(retryable)" in match["told"]
            found[match["name"]] = (parent, code, retryable)
            path[depth:] = [match["name"]]
    return found


class TestTree:
    """The docstring of errors.py against its classes."""

    def test_the_drawing_is_the_code(self):
        """Every class stands in the drawing under its own parent, with its exit code and retryability, and no other."""
        written = {cls.__name__: (cls.__base__.__name__, cls.exit_code, cls.retryable) for cls in tree(BatchscoreError)}

        assert written == drawn()

    def test_termination_and_bugs_stand_beside_it(self):
        """Termination is no error that `except Exception` could swallow; its code and a bug's are those of the text."""
        text = " ".join((errors.__doc__ or "").split())

        assert not issubclass(Terminated, Exception)
        assert f"`Terminated` stands beside the tree: SIGTERM is a request, not an error, and exits with {143}" in text
        assert Terminated.exit_code == 143
        assert "Beside it stands `Interrupted`, which is Ctrl-C and exits with 130" in text
        assert Interrupted.exit_code == 130
        assert f"exit code {BUG_EXIT_CODE}" in text
        assert BatchscoreError.exit_code == BUG_EXIT_CODE == 70

    def test_all_are_exported(self):
        """Every class of the tree can be imported by the names that the module declares."""
        assert {cls.__name__ for cls in CLASSES} <= set(errors.__all__)
        assert all(hasattr(errors, name) for name in errors.__all__)

    @pytest.mark.parametrize("cls", [*CLASSES, Terminated, Interrupted])
    def test_exit_codes_are_our_own(self, cls):
        """No class exits with success, nor with a code that a shell gives for reasons of its own."""
        assert 0 < cls.exit_code < 256
        assert cls.exit_code not in TAKEN_BY_THE_SHELL

    def test_one_code_is_one_thing_to_do(self):
        """Two branches with one exit code agree on whether a retry helps, for Kubernetes sees only the code."""
        by_code: dict[int, set[bool]] = {}
        for cls in tree(BatchscoreError):
            by_code.setdefault(cls.exit_code, set()).add(cls.retryable)

        assert all(len(answers) == 1 for answers in by_code.values())
        assert {code for code, answers in by_code.items() if True in answers} == {20, 21}


class TestOne:
    """A single error."""

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("cls", CLASSES)
    def test_pickles_whole(self, cls, protocol):
        """Class, message and context come back from another process as they were."""
        error = cls("no such table: flights", table="flights", tried=[1, 2])

        again = pickle.loads(pickle.dumps(error, protocol))

        assert type(again) is cls
        assert str(again) == "no such table: flights"
        assert again.context == {"table": "flights", "tried": [1, 2]}

    @pytest.mark.parametrize(
        "error",
        [
            SchemaMismatch.missing(["carier"], ["carrier", "late"], "rows.sql"),
            SchemaMismatch.type_of("late", "boolean", "string", "rows.sql", "Cast it at the source."),
        ],
    )
    def test_worded_ones_pickle_and_copy(self, error):
        """An error made by a constructor with wording of its own is an ordinary one: it pickles, copies, and is JSON-ready."""
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is SchemaMismatch
            assert (str(again), again.context) == (str(error), error.context)
        assert json.loads(json.dumps(error.context)) == error.context

    def test_termination_pickles(self):
        """A worker's termination arrives as termination."""
        assert type(pickle.loads(pickle.dumps(Terminated()))) is Terminated

    def test_context_is_by_name_only(self):
        """Nothing but the message is positional, or the default pickling would lose it."""
        with pytest.raises(TypeError):
            UsageError("one", "two")

    def test_no_context_is_empty(self):
        """An error without facts has an empty context of its own."""
        first, second = UsageError("a"), UsageError("b")
        first.context["x"] = 1

        assert second.context == {}


class TestWords:
    """The wording of a schema error, and the guess at a name."""

    def test_a_missing_column_names_the_nearest(self):
        """Each missing column is named, with the nearest one where any is near, and so is what there is."""
        error = SchemaMismatch.missing(["carier", "zzz"], ["carrier", "late"], "rows.sql")

        assert str(error).startswith("rows.sql lacks 2 column(s)")
        assert "carier (nearest: carrier), zzz." in str(error)
        assert "carrier, late" in str(error)
        assert error.context == {"missing": ["carier", "zzz"]}

    def test_found_columns_may_come_from_an_iterator(self):
        """The columns found are read once, however they come."""
        error = SchemaMismatch.missing(["b", "carier"], iter(["carrier"]), "rows.sql")

        assert "carier (nearest: carrier)" in str(error)
        assert "It has: carrier." in str(error)

    @pytest.mark.parametrize(
        ("name", "known", "near"),
        [
            ("flight_dealy", ["carrier_delay", "flight_delay"], "flight_delay"),
            ("flight_delay", ["flight_delay"], "flight_delay"),
            ("zzz", ["flight_delay"], None),
            ("x", [], None),
        ],
    )
    def test_nearest(self, name, known, near):
        """The most alike name is guessed, and none where nothing is alike."""
        assert nearest(name, known) == near
