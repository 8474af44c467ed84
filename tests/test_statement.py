"""SQL files: what is a placeholder, what is one query, and what is said when it is neither."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscore.errors import UsageError
from batchscore.sources.statement import Statement

DIALECTS = ["postgresql", "duckdb", "sqlite", "mysql", "snowflake", "some_other"]
WINDOW = "at >= :interval_start AND at < :interval_end"


def parse(text, dialect="postgresql"):
    """A statement of DuckDB's, or another dialect's."""
    return Statement.parse(text, "rows.sql", dialect)


def test_placeholders_are_found_outside_of_text():
    """A colon in a string, a comment, a quoted name, a dollar quote, a cast or a slice is no placeholder."""
    text = """
    -- :no1 ; not this
    SELECT ':no2', 'it''s :no3', E'\\':no4', ":no5", $$ :no6; $$, $tag$ :no7 $$ $tag$ /* :no8 /* :no9 */ :no10 */,
           a::int, b[1:no11], c :: text, :day::date, ':'||:name
    FROM t WHERE at >= :interval_start AND at < :interval_end AND x = :day -- :no12;
    """

    assert parse(text).names == ["day", "name", "interval_start", "interval_end"]


def test_render_replaces_every_occurrence_and_nothing_else():
    """Rendering puts the replacement where the placeholder stood; all other text stays as it was written."""
    rendered = parse("SELECT ':a', :a::date, x[1:b] FROM t WHERE :b=:a -- end").render(lambda name: f"<{name}>")

    assert rendered == "SELECT ':a', <a>::date, x[1:b] FROM t WHERE <b>=<a>"


OPAQUE = st.sampled_from(
    [
        "'x :no ; y'", "'it''s :no;'", "''", "E'\\':no;'", '":no;"', '"a""b:no"', "-- :no ; 'x\n", "/* :no ; ' */",
        "/* a /* :no */ ; \" */", "$$ :no; ' $$", "$q$ :no $$ ; $q$", "'ünï :no'", "-- ü :no\r\n", "'\\'", "U&':no'",
    ]
)  # fmt: skip
CODE = st.sampled_from([", a", "::int", "+ b[1:2]", "= c :: text", "(d)", "é", "\r\n", "\t", "1.5"])
PLACEHOLDER = st.sampled_from([":a", ":day", ":select", ":end", ":_x1", ":ünï", ":A"])


@given(st.lists(st.one_of(OPAQUE, CODE, PLACEHOLDER), max_size=25))
def test_any_mixture_of_text_and_placeholders_is_told_apart(parts):
    """Whatever strings, comments and quotes stand between them, exactly the placeholders are found, where they are."""
    text = "SELECT " + " ".join([*parts, "x"])
    expected = [part[1:] for part in parts if part.startswith(":") and part != "::int"]

    statement = parse(text)

    assert [name for name, _ in statement.placeholders] == expected
    assert all(statement.text[at : at + 1 + len(name)] == f":{name}" for name, at in statement.placeholders)
    assert statement.render(lambda name: f":{name}") == text


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "select 1;",
        "SELECT ';' ; -- done; really\n",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "WITH a AS NOT MATERIALIZED (SELECT 1), b(x) AS (SELECT 2) SELECT * FROM a, b",
        "WITH RECURSIVE a(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM a) SELECT max(n) FROM a",
        "FROM t SELECT a",
        "VALUES (1), (2)",
        "TABLE t",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SELECT count(update), (a) \"delete\", 'DELETE' FROM t WHERE merge = 1",
        "\ufeffSELECT 1",
    ],
)
def test_one_query_of_any_form_is_accepted(text, dialect):
    """What the database understands as a query is not ours to judge."""
    assert parse(text, dialect).text.strip("\ufeff").rstrip() in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no SQL"),
        (" \n-- only this\n", "holds no SQL"),
        (";;", "holds no SQL"),
        ("SELECT 1;\nSELECT 2", "line 2 begins a second statement"),
        ("SELECT 1; DROP TABLE t; --", "second statement"),
        ("DELETE FROM t", "begins with 'DELETE'"),
        ("INSERT INTO t VALUES (1)", "begins with 'INSERT'"),
        ("EXPLAIN SELECT 1", "begins with 'EXPLAIN'"),
        ("COPY t TO 'x'", "begins with 'COPY'"),
        ("call p(); SELECT 1", "second statement"),
        ("WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a", "DELETE changes data"),
        ("WITH a AS MATERIALIZED (\nUPDATE t SET a = 1 RETURNING *) SELECT * FROM a", "line 2: UPDATE changes data"),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", "INSERT changes data"),
        ("SELECT 'open", "never closed"),
        ("SELECT 1 /* open", "never closed"),
        ("SELECT $$ open", "never closed"),
    ],
)
def test_what_is_not_one_query_is_refused(text, message):
    """An empty file, a second statement and a statement that writes are refused, with their place in the file."""
    with pytest.raises(UsageError, match=message) as caught:
        parse(text)

    assert str(caught.value).startswith("rows.sql: ")


@pytest.mark.parametrize("dialect", ["sqlite", "mysql"])
def test_a_comment_nests_only_where_the_database_nests_it(dialect):
    """SQLite and MySQL end a comment at the first `*/`, Postgres at the matching one."""
    text = "SELECT 1 /* a /* b */ + :x /* */"

    assert parse(text, dialect).names == ["x"]
    assert parse("SELECT 1 /* a /* b */ + :x */", "postgresql").names == []


def test_a_placeholder_without_a_parameter_is_named_with_its_neighbour():
    """The message names the placeholder, the nearest known one and the place to add it."""
    with pytest.raises(UsageError, match=r":carier, which is no parameter\. Did you mean :carrier\?.*\[source\]"):
        parse(f"SELECT :carier FROM t WHERE {WINDOW} AND :carrier = 1").require(["carrier"])


def test_a_parameter_that_the_sql_never_uses_is_refused():
    """A declared parameter without a placeholder is a mistake on one side or the other."""
    with pytest.raises(UsageError, match="never uses :carrier"):
        parse(f"SELECT ':carrier' FROM t WHERE {WINDOW}").require(["carrier"])


def test_sql_that_ignores_the_interval_is_refused():
    """Without the interval every run would read the whole table."""
    with pytest.raises(UsageError, match=r"neither :interval_start nor :interval_end.*whole table"):
        parse("SELECT * FROM t WHERE a = :a").require(["a"])


@pytest.mark.parametrize("names", [["Interval_Start"], ["interval_end"], ["day", "Day"]])
def test_parameters_that_differ_only_in_case_are_refused(names):
    """DuckDB and Postgres would take the one for the other."""
    with pytest.raises(UsageError, match="taken twice"):
        parse(f"SELECT :day, :Day FROM t WHERE {WINDOW}").require(names)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (WINDOW, None),
        ("at < :interval_end", "uses :interval_end and not :interval_start, .* add <time> >= :interval_start"),
        ("at >= :interval_start", "uses :interval_start and not :interval_end, .* add <time> < :interval_end"),
        ("at >= ':interval_start' AND at < :interval_end", "uses :interval_end and not"),
        ("a = 1", None),
    ],
)
def test_one_bound_of_the_interval_is_allowed_and_told(where, said):
    """Every interval may score all rows as they are by its end; that a row comes again is told, with what to add."""
    statement = parse(f"SELECT * FROM t WHERE {where}")

    statement.require([], tied="interval" in where)
    assert statement.caution is None if said is None else re.search(said, statement.caution)
