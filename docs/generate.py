"""Write docs/reference.md from the code: its types, its docstrings, its help texts.

python docs/generate.py           writes the page
python docs/generate.py --check   exits with 1 when the page is not what it would write
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import annotated_types
import click
import duckdb_engine
import sqlalchemy as sa
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sqlalchemy.dialects import mysql, postgresql, sqlite

import batchscore
from batchscore import distances, drift, errors, ledger, logs, problem, schema, settings, views
from batchscore.cli.app import app
from batchscore.job import Job
from batchscore.model import predictor
from batchscore.run import plan
from batchscore.warehouse import delta, tables

PAGE = Path(__file__).parent / "reference.md"
PACKAGE = Path(batchscore.__file__).parent
HEAD = """\
# Reference

<!-- Written by docs/generate.py from the code. Change the docstring there, then: python docs/generate.py -->

[Commands](#commands) · [The job file](#the-job-file) · [Settings](#settings) · [Exit codes](#exit-codes) ·
[Log events](#log-events) · [The output table](#the-output-table) · [The ledger](#the-ledger) ·
[The views](#the-views) · [Column types](#column-types) · [Metrics](#metrics) · [Drift](#drift)"""
WORDS: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    date: "date",
    datetime: "date and time",
    Path: "string",
}
BOUNDS = {annotated_types.Ge: ("ge", "≥"), annotated_types.Gt: ("gt", ">"), annotated_types.Le: ("le", "≤"),
          annotated_types.Lt: ("lt", "<")}  # fmt: skip
DIALECTS: Mapping[str, sa.Dialect] = {
    "Postgres": postgresql.dialect(),
    "DuckDB": duckdb_engine.Dialect(),
    "SQLite": sqlite.dialect(),
    "MariaDB": mysql.dialect(),
}


def page() -> str:
    """The whole page."""
    sections = [
        ("Commands", _commands()),
        ("The job file", _job_file()),
        ("Settings", _settings()),
        ("Exit codes", _exit_codes()),
        ("Log events", _events()),
        ("The output table", _output_table()),
        ("The ledger", _ledger()),
        ("The views", _views()),
        ("Column types", _column_types()),
        ("Metrics", _metrics()),
        ("Drift", _drift()),
    ]
    parts = [HEAD]
    for title, blocks in sections:
        parts += [f"## {title}", *blocks]
    return "\n\n".join(parts) + "\n"


def commands() -> dict[str, click.Command]:
    """Every command by what is typed, `batchscore` first."""
    return dict(_commands_of(typer.main.get_command(app), "batchscore"))


def _commands_of(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from _commands_of(inner, f"{name} {word}")


def _commands() -> Iterator[str]:
    for name, command in commands().items():
        yield f"### `{name}`"
        with command.make_context(name, [], resilient_parsing=True, terminal_width=100) as context:
            yield _fenced(command.get_help(context))


def _job_file() -> Iterator[str]:
    yield (
        "`jobs/<name>.toml`. Beside it stands `jobs/<name>.py`, which defines `features(rows: pl.LazyFrame) -> "
        "pl.LazyFrame` and `pipeline()`. An unknown key is an error."
    )
    for name, field in Job.model_fields.items():
        model, _ = _model_in(field.annotation)
        optional = "" if field.is_required() else " (may be left out)"
        yield f"### `[{name}]`{optional}"
        yield from _job_table(model, name)


def _job_table(model: type[BaseModel], place: str) -> Iterator[str]:
    attributes = _attributes_of(model)
    yield _prose(model.__doc__ or "")
    rows, inner = [], []
    for name, field in model.model_fields.items():
        key = field.alias or name
        nested, is_model = _model_in(field.annotation)
        type_ = "table, below" if is_model else _type_words(field)
        rows.append((f"`{key}`", type_, _default(field), attributes[name]))
        if is_model:
            inner.append((f"{place}.{key}", nested))
    yield _table(("key", "type", "default", "meaning"), rows)
    for name, nested in inner:
        yield f"#### `{name}`"
        yield from _job_table(nested, name)


def _model_in(annotation: Any) -> tuple[Any, bool]:
    """The model that an annotation names, and whether it does."""
    for each in (annotation, *typing.get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each, True
    return None, False


def _type_words(field: FieldInfo) -> str:
    bounds = [(BOUNDS[type(each)], each) for each in field.metadata if type(each) in BOUNDS]
    words = _words(field.annotation)
    return ", ".join([words, *(f"{sign} {getattr(each, name):g}" for (name, sign), each in bounds)])


def _words(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin is typing.Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(each) for each in arguments if each is not type(None)))
    if origin is tuple:
        return f"list of {_words(arguments[0])}s"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table of {_words(arguments[1])}"
    raise ValueError(f"no words for {annotation}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return ""
    return f"`{_toml(value)}`"


def _toml(value: object) -> str:
    """A default as a job file would say it."""
    if isinstance(value, BaseModel):
        return f"{{ {', '.join(f'{name} = {_toml(each)}' for name, each in value)} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, (str, Path)) else str(value)


def _settings() -> Iterator[str]:
    yield _prose(settings.__doc__ or "")
    attributes = _attributes(settings.Settings.__doc__ or "")
    flags = {parameter.name: parameter.opts[0] for parameter in commands()["batchscore"].params}
    rows = []
    for name, field in settings.Settings.model_fields.items():
        if name not in attributes:
            continue
        variable = f"{settings.PREFIX}{name.upper()}"
        default = str(field.default) if field.default is not None else ""
        rows.append(
            (
                f"`{variable}`",
                f"`{variable}_FILE`",
                f"`{settings.SECRETS}/{settings.PREFIX.lower()}{name}`",
                f"`{flags[name]}`" if name in flags else "",
                f"`{default}`" if default else "",
                attributes[name],
            )
        )
    yield _table(("variable", "or a file named by", "or the file", "or the flag", "default", "meaning"), rows)
    yield (
        f"`batchscore check` shows each value and where it came from, and variables that begin with "
        f"`{settings.PREFIX}` and name no setting."
    )


def exit_codes() -> dict[int, list[type[BaseException]]]:
    """The classes that end a command, by their exit code."""
    found: defaultdict[int, list[type[BaseException]]] = defaultdict(list)
    for each in vars(errors).values():
        if isinstance(each, type) and issubclass(each, BaseException) and each is not errors.BatchscoreError:
            found[each.exit_code].append(each)
    return dict(sorted(found.items()))


def _exit_codes() -> Iterator[str]:
    head, tree, rest = re.split(r"\n\n(?=    )|\n\n(?=\S)", inspect.cleandoc(errors.__doc__ or ""), maxsplit=2)
    yield head
    yield _fenced(inspect.cleandoc(tree))
    yield _prose(rest)
    rows = [("0", "Done, or nothing to do.", "")]
    for code, classes in exit_codes().items():
        # A class below another one says the same more closely.
        tops = [each for each in classes if not set(each.__mro__[1:]) & set(classes)]
        again = getattr(tops[0], "retryable", None)
        told = " ".join(_prose(each.__doc__ or "") for each in tops)
        rows.append((str(code), told, {True: "yes", False: "no", None: ""}[again]))
    rows.append((str(errors.BUG_EXIT_CODE), "A bug of batchscore's.", "no"))
    rows.sort(key=lambda row: int(row[0]))
    yield _table(("exit code", "meaning", "the same call may succeed later"), rows)


def events() -> dict[str, tuple[str, list[str], list[str]]]:
    """What the package logs: meaning, levels and fields of each event, by its name."""
    text = _strings_behind(ast.parse(inspect.getsource(logs.Event)).body[0])
    levels: defaultdict[str, list[str]] = defaultdict(list)
    fields: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for member, level, names in _logged(ast.parse(path.read_text("utf-8"))):
            levels[member].append(level)
            fields[member] += names
    return {
        member.value: (text[name], list(dict.fromkeys(levels[name])), list(dict.fromkeys(fields[name])))
        for name, member in logs.Event.__members__.items()
        if name in levels
    }


def _logged(tree: ast.Module) -> Iterator[tuple[str, str, list[str]]]:
    """Every call `log.level(Event.MEMBER, field=…)`: member, level, fields."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                args=[ast.Attribute(value=ast.Name(id="Event"), attr=member)],
                keywords=keywords,
            ):
                yield member, level, [keyword.arg or "…" for keyword in keywords if keyword.arg != "exc_info"]


def _events() -> Iterator[str]:
    yield (
        "One JSON object a line on standard output, when it is no terminal. Every line has `timestamp`, `level`, "
        "`event` and, once they are known, `job`, `run_id`, `interval_start` and `model_version`; `trace_id` and "
        "`span_id` where traces are sent; `exception` where there is a traceback. `…` stands for fields that depend on "
        "the column, metric or error."
    )
    rows = []
    for name, (text, levels, fields) in events().items():
        ordered = sorted(fields, key=lambda field: field == "…")
        listed = ", ".join(field if field == "…" else f"`{field}`" for field in ordered)
        rows.append((f"`{name}`", ", ".join(levels), _prose(text), listed))
    yield _table(("event", "level", "meaning", "fields"), rows)
    renamed = ", ".join(f"`{ours}` is `{theirs}`" for ours, theirs in logs.ECS.items() if ours != theirs)
    yield (
        f"With `--log-format ecs` the names are those of the Elastic Common Schema: {renamed}; `message` is the event, "
        f"and any other field stands behind `batchscore.`."
    )


def _output_table() -> Iterator[str]:
    stamp = _attributes(_strings_behind(ast.parse(inspect.getsource(tables)))["STAMP"])
    scores = _attributes(predictor.Predictor.__doc__ or "")["output_types"]
    rows = [
        ("the key", "as read", "The columns of `[source] key`."),
        ("the carried columns", "as read", "The columns of `[output] carry`."),
        ("`prediction`", "the target's; float for regression", ""),
        ("`score`, `score_<class>`", "float", "Classification only."),
        ("`reason_<k>`", "string", "With `[problem] explain_top` only: the column that adds or takes the k-th most."),
        (
            "`reason_<k>_value`",
            "float",
            "What it adds, on the scale on which the model sums; NULL with too few columns.",
        ),
        *((f"`{name}`", f"{type_}", stamp[name]) for name, type_ in tables.STAMP.items()),
    ]
    yield "In this order:"
    yield _table(("column", "type", "meaning"), rows)
    yield f"What the model answers is {scores}"
    yield _prose((predictor.Predictor.predict.__doc__ or "").split("\n\n")[1])
    yield (
        "A table that is not there is made with these types. One that is there may have others that hold every value "
        "exactly, and more columns that are nullable or have a default; anything else is refused before a row is read."
    )
    yield (
        "With `[model] shadow` there is `<output table>_shadow` beside it: the key, the shadow's `prediction` and "
        "scores, and the same columns behind them, of which `model_version` is the shadow's. A row that the shadow "
        "gave nothing for is not in it."
    )
    yield (
        "With `BATCHSCORE_DELTA_URL` it is a Delta table there, in the types of the last column, and `[model] shadow` "
        "has no side table."
    )
    names = list(typing.get_args(schema.TypeName))
    output = tables.Output("t", tuple(tables.OutputColumn(name, name) for name in names))
    columns = output.sql_table().columns
    yield _table(
        ("type", *DIALECTS, "Delta"),
        [
            (name, *(columns[name].type.compile(dialect=dialect) for dialect in DIALECTS.values()), delta.TYPES[name])
            for name in names
        ],
    )


def _ledger() -> Iterator[str]:
    yield f"{_first_paragraph(ledger)} They are made by the first run, in the default schema."
    documented = _strings_behind(ast.parse(inspect.getsource(ledger.tables)))
    texts = {table: documented[name] for name, table in vars(ledger).items() if isinstance(table, sa.Table)}
    for table, text in texts.items():
        attributes = _attributes(text)
        yield f"### `{table.name}`"
        yield _prose(text)
        yield _table(
            ("column", "type", "key", "meaning"),
            [(f"`{c.name}`", _sql_words(c.type), "yes" if c.primary_key else "", attributes[c.name]) for c in table.c],
        )
    yield "### States of an interval"
    yield _attributes(plan.Planned.__doc__ or "")["state"]


def _views() -> Iterator[str]:
    yield (
        "`batchscore views apply` makes those over the ledger, beside it; `batchscore views apply JOB` those over the "
        "job's output table too, in its schema. They are written for DuckDB, SQLite, Postgres, MariaDB and MySQL."
    )
    for name in (*views.OVER_LEDGER, *views.OVER_JOBS):
        text = views.text_of(name)
        yield f"### `{name}`" if name in views.OVER_LEDGER else f"### `<output table>{name}`"
        yield text.meaning
        yield _table(
            ("column", "meaning"),
            [(f"`{column}`" if column != "*" else "", meaning) for column, meaning in text.columns.items()],
        )


def _sql_words(type_: sa.types.TypeEngine[Any]) -> str:
    if isinstance(type_, sa.types.TypeDecorator):
        return "timestamp_tz"
    words = {"Boolean": "boolean", "String": "string", "Integer": "integer", "Float": "float"}
    kinds = {getattr(sa.types, name): word for name, word in words.items()}
    return next(words for kind, words in kinds.items() if isinstance(type_, kind))


def _column_types() -> Iterator[str]:
    head, carried, table = inspect.cleandoc(schema.__doc__ or "").split("\n\n")
    yield head
    # The functions that do it are no part of a reference.
    yield re.split(r"(?<=\.) ", " ".join(carried.split()))[0]
    yield _unfolded(table)


def _unfolded(table: str) -> str:
    """A docstring's table, whose cells go on in rows that have no first cell."""
    rows: list[list[str]] = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{above} {below}".strip() for above, below in zip(rows[-1], cells, strict=True)]
    head, _, *body = rows
    return _table(head, body)


def _metrics() -> Iterator[str]:
    text = _strings_behind(ast.parse(inspect.getsource(problem)))["METRICS"]
    attributes = _attributes(text)
    yield _prose(text)
    rows = [(task, f"`{name}`", attributes[name]) for task, names in problem.METRICS.items() for name in names]
    yield _table(("task", "metric", "meaning"), rows)


def _drift() -> Iterator[str]:
    strings = _strings_behind(ast.parse(inspect.getsource(drift)))
    yield from (" ".join(paragraph.split()) for paragraph in inspect.cleandoc(drift.__doc__ or "").split("\n\n"))
    described = inspect.cleandoc(drift.compare.__doc__ or "").split("\n\nArgs:")[0].split("\n\n")[1:]
    yield from (_unfolded(each) if each.startswith("|") else " ".join(each.split()) for each in described)
    yield (
        f"`[drift] bands`: {strings['BANDS']} Unless the job says otherwise: "
        + ", ".join(f"{name} {band:g}" for name, band in drift.BANDS.items())
        + "."
    )
    yield f"{drift.MINIMUM_ROWS} rows on each side are the fewest that are judged. {strings['MINIMUM_ROWS']}"
    for function in (distances.psi, distances.ks, distances.wasserstein, distances.js, distances.hellinger):
        told = inspect.cleandoc(function.__doc__ or "").split("\n\nArgs:")[0]
        yield f"`{function.__name__}`: " + " ".join(told.split())


def _strings_behind(tree: ast.AST) -> dict[str, str]:
    """The string that stands behind each assignment of a module or class, by the name assigned to."""
    found = {}
    body = getattr(tree, "body", [])
    for before, after in pairwise(body):
        match before, after:
            case (
                (ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name))),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = inspect.cleandoc(text)
    return found


def _attributes_of(model: type) -> dict[str, str]:
    """The attributes that a class and its bases describe."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        found |= _attributes(each.__doc__ or "")
    return found


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of a docstring's section `Attributes:`."""
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    entries = re.split(r"\n?^    (?=\w+: )", section.split("\n\n")[0], flags=re.MULTILINE)[1:]
    pairs = [entry.partition(": ") for entry in entries]
    return {name: " ".join(text.split()) for name, _, text in pairs}


def _first_paragraph(module: types.ModuleType) -> str:
    return _prose(module.__doc__ or "").split("\n\n")[0]


def _prose(docstring: str) -> str:
    """What a docstring says before its sections."""
    text = re.split(r"\n\n(?=(?:Attributes|Args|Returns|Raises|Yields):\n)", inspect.cleandoc(docstring))[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _table(head: typing.Sequence[str], rows: typing.Sequence[typing.Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    text = page()
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text("utf-8") == text:
            return 0
        print(f"{PAGE} is stale. Run: python docs/generate.py")
        return 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
