"""The ledger's tables, in the warehouse beside the predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from batchscore.sqltypes import MYSQL, TABLE_OPTIONS, TEXT, Instant

__all__ = [
    "ALERTS",
    "CHUNKS",
    "DRIFT",
    "LEASES",
    "METADATA",
    "PERFORMANCE",
    "PROFILES",
    "REJECTS",
    "RETRAINS",
    "RUNS",
    "TALLIES",
    "insert_new",
]


METADATA = sa.MetaData()

RUNS = sa.Table(
    "batchscore_runs",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("job", sa.String(64), nullable=False),
    sa.Column("interval_start", Instant, nullable=False),
    sa.Column("interval_end", Instant, nullable=False),
    sa.Column("model_name", sa.String(64), nullable=False),
    sa.Column("model_version", sa.BigInteger, nullable=False),
    sa.Column("bundle_digest", sa.String(64), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("output_table", sa.String(128), nullable=False),
    sa.Column("shadow_version", sa.BigInteger),
    sa.Column("sql_accepted", TEXT),
    sa.Column("cuts", TEXT),
    sa.Column("scored_at", Instant, nullable=False),
    sa.Column("published_at", Instant),
    sa.Column("rows_read", sa.BigInteger),
    sa.Column("predictions", sa.BigInteger),
    sa.Column("rejects", sa.BigInteger),
    sa.Column("chunks", sa.BigInteger),
    sa.Column("shadow_predictions", sa.BigInteger),
    sa.Column("rows_so_far", sa.BigInteger),
    sa.Column("input_hash", sa.String(16)),
    sa.Column("error", TEXT),
    sa.Column("override_reason", TEXT),
    sa.Column("override_by", TEXT),
    sa.Column("ticket", sa.BigInteger),
    sa.Column("batchscore_version", sa.String(32), nullable=False),
    **TABLE_OPTIONS,
)
"""One row for each run.

Attributes:
    run_id: A UUIDv5 of what decides the run's result.
    job: The job's name.
    interval_start: The interval's first instant.
    interval_end: The first instant behind the interval.
    model_name: The bundle's name.
    model_version: The bundle's version.
    bundle_digest: The bundle's digest.
    revision: One more than that of the interval's run published before it, by whichever bundle; 0 for the first.
    status: `running`, `published`, `failed`, `held` by a gate of the job's `[publish]`, or `superseded`: published once
        and replaced since, or overtaken before it was published.
    output_table: Where its predictions go, schema and all.
    shadow_version: The version that scored beside it, of the same name; NULL where none did.
    sql_accepted: The reason given for a query that is not the bundle's; NULL where it was the bundle's.
    cuts: The values of the first key column that cut its rows into shards, as a JSON list; NULL where it has one shard.
    scored_at: The one instant that every row of the run carries.
    published_at: When it was published.
    rows_read: Predictions and rejects together; NULL until it is published or held, like the next five.
    predictions: Rows published.
    rejects: Rows that could not be scored.
    chunks: Chunks committed.
    shadow_predictions: Rows published by `shadow_version`; NULL where there is none, too.
    rows_so_far: `rows_read`, and that of every run of the interval published before, of which some may be pruned by
        now: what a counter of rows is made of. NULL for a run that was never published.
    input_hash: The sum of 64-bit hashes of the rows read, in hex; together with `rows_read` it says whether the input
        is still the same.
    error: Why it failed or is held; of a run that was published past a gate, what the gates said.
    override_reason: Why it was published past a gate; NULL where it was not.
    override_by: Who did that: user and host.
    ticket: Of a run whose rows went to a Delta table: the number under which they did, which the table keeps as the
        version of its application transaction `batchscore/<job>/<interval_start>`. Even: it was sent; odd: it was made
        sure that it never comes. NULL before that, and for a table of the warehouse.
    batchscore_version: The version that ran last.
"""

LEASES = sa.Table(
    "batchscore_leases",
    METADATA,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("interval_start", Instant, primary_key=True),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(255)),
    sa.Column("expires_at", Instant),
    **TABLE_OPTIONS,
)
"""One row for each interval that anybody has scored, and one that is locked by whoever first publishes into a table.

Attributes:
    job: The job's name; empty in that one.
    interval_start: The interval's first instant.
    fence: How often the lease was taken; a writer that took it earlier cannot commit any more.
    owner: Host, process and token of the command that has it; NULL when it is free.
    expires_at: When it may be taken from its owner, who puts that off while it lives.
"""

CHUNKS = sa.Table(
    "batchscore_chunks",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("shard", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("chunk", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_low", TEXT, nullable=False),
    sa.Column("key_high", TEXT, nullable=False),
    sa.Column("rows_read", sa.BigInteger, nullable=False),
    sa.Column("predictions", sa.BigInteger, nullable=False),
    sa.Column("rejects", sa.BigInteger, nullable=False),
    sa.Column("shadow_predictions", sa.BigInteger, nullable=False),
    sa.Column("shadow_failures", sa.BigInteger, nullable=False),
    sa.Column("input_hash", sa.String(16), nullable=False),
    sa.Column("committed_at", Instant, nullable=False),
    sa.Column("profile", TEXT),
    **TABLE_OPTIONS,
)
"""One row for each committed chunk: where a run resumes.

Attributes:
    run_id: The run.
    shard: The number of its shard, from 0.
    chunk: The chunk's number in the shard, from 0.
    key_low: The key of its first row, as JSON.
    key_high: The key of its last row, as JSON.
    rows_read: Predictions and rejects together.
    predictions: Rows staged.
    rejects: Rows that could not be scored.
    shadow_predictions: Of the rows staged, those that the run's `shadow_version` scored too.
    shadow_failures: Of the others, those on which its features or pipeline failed, as far as they were looked for.
    input_hash: The sum of 64-bit hashes of its rows, in hex.
    committed_at: When it was committed.
    profile: What it saw, as JSON; NULL once the run is published and `batchscore_profiles` has the whole.
"""

REJECTS = sa.Table(
    "batchscore_rejects",
    METADATA,
    sa.Column("run_id", sa.String(36), nullable=False),
    sa.Column("shard", sa.BigInteger, nullable=False),
    sa.Column("chunk", sa.BigInteger, nullable=False),
    sa.Column("row_key", TEXT, nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", TEXT),
    sa.Column("row_values", TEXT),
    **TABLE_OPTIONS,
)
"""One row for each row that could not be scored.

Attributes:
    run_id: The run.
    shard: The shard that it was in.
    chunk: The chunk that it was in.
    row_key: Its key, as a JSON list.
    stage: Where it failed: `input`, `features`, `pipeline` or `prediction`.
    reason: `unexpected_null`, `unexpected_nan` or `unexpected_infinity`: a column holds what training never saw in it;
        `features_failed`, `pipeline_failed`: the code raised; `score_not_finite`: the pipeline gave no number.
    detail: The column, or the exception.
    row_values: What it held, as JSON, but for the key and the columns that are `private`; NaN and infinities as text.
"""

PROFILES = sa.Table(
    "batchscore_profiles",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("role", sa.String(16), primary_key=True),
    sa.Column("column_name", sa.String(128), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("null_count", sa.BigInteger, nullable=False),
    sa.Column("null_share", sa.Double),
    sa.Column("unseen_share", sa.Double),
    sa.Column("outside_share", sa.Double),
    sa.Column("distinct_count", sa.BigInteger),
    sa.Column("mean", sa.Double),
    sa.Column("std", sa.Double),
    sa.Column("minimum", sa.Double),
    sa.Column("maximum", sa.Double),
    sa.Column("profile", TEXT, nullable=False),
    **TABLE_OPTIONS,
)
"""One row for each column that a published run saw or gave.

Attributes:
    run_id: The run.
    role: `input`: a column of the source, rejects included; `output`: the prediction or a score.
    column_name: The column.
    kind: `numeric`, `integer`, `categorical`, `boolean`, `datetime`, `text` or `private`; fixed by the training rows,
        but for a column that became private since.
    row_count: Rows.
    null_count: Rows with NULL.
    null_share: Share of rows with NULL or NaN.
    unseen_share: Share of rows with a category or whole number that training never saw; NULL for other kinds.
    outside_share: Share of rows with a number beyond the range of training; NULL for other kinds.
    distinct_count: About how many values differ; text only, and private columns with 256 values or more in training.
    mean: Mean of the finite values: microseconds since 1970 for a datetime, characters for a text.
    std: Their standard deviation.
    minimum: The smallest.
    maximum: The largest.
    profile: All of it as JSON, bins included.
"""

DRIFT = sa.Table(
    "batchscore_drift",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("reference", sa.String(32), primary_key=True),
    sa.Column("role", sa.String(16), primary_key=True),
    sa.Column("column_name", sa.String(128), primary_key=True),
    sa.Column("metric", sa.String(32), primary_key=True),
    sa.Column("value", sa.Double),
    sa.Column("share", sa.Double),
    sa.Column("reference_share", sa.Double),
    sa.Column("floor", sa.Double),
    sa.Column("p_value", sa.Double),
    sa.Column("band", sa.Double),
    sa.Column("verdict", sa.String(24), nullable=False),
    sa.Column("importance", sa.Double),
    sa.Column("told", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("reference_count", sa.BigInteger, nullable=False),
    **TABLE_OPTIONS,
)
"""One row for each metric of each column of a published run.

Attributes:
    run_id: The run.
    reference: What it is compared with: `training`, `previous`, `last_week` or `four_weeks`.
    role: `input` or `output`.
    column_name: The column.
    metric: The drift metric.
    value: Its value; NULL where either side has nothing to measure.
    share: Of `null_share`, `unseen_share` and `outside_share`, whose value is a difference, the share of the run's
        rows; NULL for other metrics.
    reference_share: That of the reference's rows.
    floor: What chance explains at these row counts; NULL for a metric that is not judged.
    p_value: The chance of a value at least as large without drift; NULL where there is no law for it.
    band: The value at which it matters; NULL for a metric that is not judged.
    verdict: `moved`, `steady`, `not enough data` or `not judged`.
    importance: What the model loses by the column, as a share of what it loses by the most important one; NULL for a
        column that is none of the features.
    told: Whether it is told: it moved, as often as `[drift]` asks, against a reference that `[drift]` names.
    row_count: What the value is measured over: rows, or rows with a value.
    reference_count: The same in the reference.
"""


TALLIES = sa.Table(
    "batchscore_tallies",
    METADATA,
    sa.Column("run_id", sa.String(36), primary_key=True),
    sa.Column("known_from", Instant, primary_key=True),
    sa.Column("slice_column", sa.String(128), primary_key=True),
    sa.Column("slice_value", sa.String(128), primary_key=True),
    sa.Column("predictions", sa.BigInteger, nullable=False),
    sa.Column("labelled", sa.BigInteger, nullable=False),
    sa.Column("tally", TEXT, nullable=False),
    **TABLE_OPTIONS,
)
"""One row for each published run, time at which labels became known, and slice: what `evaluate` works metrics out from.

Attributes:
    run_id: The run.
    known_from: The start of the interval in which these labels became known; that of the run's own where
        `[performance] known_at` is not given.
    slice_column: The column that the rows are a slice by; empty for all rows.
    slice_value: Its value in these rows, cut to 128 characters, without the spaces at its end; empty for all rows.
    predictions: Rows of the run, labelled or not, in that slice.
    labelled: Those whose label became known then.
    tally: The outcomes and how often each came, as JSON.
"""

PERFORMANCE = sa.Table(
    "batchscore_performance",
    METADATA,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("cohort", sa.String(16), primary_key=True),
    sa.Column("window_start", Instant, primary_key=True),
    sa.Column("model_name", sa.String(64), primary_key=True),
    sa.Column("model_version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("slice_column", sa.String(128), primary_key=True),
    sa.Column("slice_value", sa.String(128), primary_key=True),
    sa.Column("metric", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("window_end", Instant, nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("low", sa.Double),
    sa.Column("high", sa.Double),
    sa.Column("test_value", sa.Double),
    sa.Column("bound", sa.Double),
    sa.Column("predictions", sa.BigInteger, nullable=False),
    sa.Column("labelled", sa.BigInteger, nullable=False),
    sa.Column("coverage", sa.Double),
    sa.Column("state", sa.String(24), nullable=False),
    sa.Column("verdict", sa.String(24), nullable=False),
    sa.Column("evaluated_at", Instant, nullable=False),
    **TABLE_OPTIONS,
)
"""One row for each metric of a version in an interval, as far as labels are known.

Attributes:
    job: The job's name.
    cohort: `scored`: predictions of the interval; `labelled`: predictions whose label became known in it.
    window_start: The interval's first instant.
    model_name: The bundle's name.
    model_version: The version that predicted.
    slice_column: The column that the rows are a slice by; empty for all rows.
    slice_value: Its value in these rows, as in `batchscore_tallies`; empty for all rows.
    metric: The metric.
    kind: `measured` against labels, or `estimated` without any, from the scores alone.
    window_end: The first instant behind the interval.
    value: Its value.
    low: Where the 95 % interval begins: by the bootstrap, and of an estimate by draws of labels; NULL where there is
        not enough data, or too few samples define the metric.
    high: Where it ends.
    test_value: Its value on the version's test rows; NULL for a slice, and where it has none there.
    bound: Beyond which the whole interval lies where it is worse, of a `bias` on either side of 0; NULL for a slice,
        and for a metric that is compared with nothing.
    predictions: Rows predicted.
    labelled: Those whose label is known.
    coverage: Their share; NULL for the cohort `labelled`, of which nobody knows how many are to come.
    state: `mature`; `immature` where `[performance] mature` of the labels is not reached; `not enough data` below 200
        labelled rows. What is estimated wants no label: it is `mature` from 200 rows predicted and 200 tested on.
    verdict: `worse` where the whole interval lies beyond that of the version's test rows, by more than the metric
        varied there from one interval to the next, else `as good`; the state where that is not `mature`; `not compared`
        for a slice, and for a metric that is good neither way or grows with fewer rows (`ece`). A `bias` is worse when
        it is further from 0.
    evaluated_at: When it was worked out.
"""

RETRAINS = sa.Table(
    "batchscore_retrains",
    METADATA,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("window_end", Instant, primary_key=True),
    sa.Column("reason", sa.String(32), primary_key=True),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("told", TEXT, nullable=False),
    sa.Column("champion_version", sa.BigInteger),
    sa.Column("challenger_version", sa.BigInteger, nullable=False),
    sa.Column("metric", sa.String(32), nullable=False),
    sa.Column("champion", sa.Double),
    sa.Column("challenger", sa.Double),
    sa.Column("ahead", sa.Double),
    sa.Column("ahead_low", sa.Double),
    sa.Column("ahead_high", sa.Double),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("decided_at", Instant, nullable=False),
    **TABLE_OPTIONS,
)
"""One row for each reason for which `retrain` trained a version.

Attributes:
    job: The job's name.
    window_end: The first instant behind the rows that it was trained and tested on.
    reason: `drifted`, `degraded`, `older-than` or `new-labels`; `unused` where no version was in use.
    decision: `promoted`, or `kept` where the version in use stays; `first` where none was in use.
    told: The decision in words.
    champion_version: The version that was in use; NULL where none was.
    challenger_version: The version that was trained.
    metric: What they were compared by, or the first was measured by.
    champion: Its value for the one in use, on the test rows of the other; NULL where it has none.
    challenger: Its value for the new one, on the same rows.
    ahead: By how much the new one is better, above 0 whichever way the metric goes.
    ahead_low: Where the 95 % interval of that begins.
    ahead_high: Where it ends.
    row_count: Test rows.
    decided_at: When that was.
"""

ALERTS = sa.Table(
    "batchscore_alerts",
    METADATA,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("alert", sa.String(192), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("detail", TEXT, nullable=False),
    sa.Column("first_interval", Instant),
    sa.Column("found", TEXT),
    sa.Column("recovered_by", sa.String(16)),
    sa.Column("first_at", Instant, nullable=False),
    sa.Column("last_at", Instant, nullable=False),
    sa.Column("times", sa.BigInteger, nullable=False),
    sa.Column("due", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("notified_at", Instant),
    sa.Column("told_to", sa.String(64), nullable=False),
    sa.Column("claimed_by", sa.String(36)),
    sa.Column("claimed_until", Instant),
    **TABLE_OPTIONS,
)
"""One row for each alert that fires or has fired.

Attributes:
    job: The job's name.
    alert: What it is about: `failed` and the interval; `drift`, `input` or `output`, and the column; or `performance`
        and `measured` or `estimated`.
    state: `firing` or `recovered`.
    detail: The interval and what was found there, in words; of a recovered one what it was.
    first_interval: The start of the first interval in which it was so, and in each since that could be judged; where it
        begins to fire, the last 100 are looked at.
    found: The metrics behind it, and the settings that they were judged by, as JSON; NULL where it was entered by a
        version before that did not keep them.
    recovered_by: `data`: it is so no longer; `configuration`: the job file no longer asks for it, or asks for more;
        `model`: another version scores; `override`: a run was published past a gate. NULL while it fires, and where it
        is not known.
    first_at: When it began to fire.
    last_at: When a command last found it firing, or found that it has recovered.
    times: How many commands have found it firing.
    due: Whether a notice of its state is still to be sent.
    notified_at: When a notice of it was last sent; NULL where none was since it began to fire.
    told_to: Of a notice that is due, those whom it has reached by now: `log`, `webhook`, `command`.
    claimed_by: Who is sending the notice now; NULL where nobody is.
    claimed_until: When another process may send it instead.
"""


def insert_new(tx: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> None:
    """Insert a row where its primary key is not there yet; it waits for another that is inserting the same."""
    if tx.dialect.name in MYSQL:
        # Not INSERT IGNORE, whose shared lock on the row that is there two could hold and both want to raise.
        (key, *_) = table.primary_key
        tx.execute(mysql.insert(table).values(values).on_duplicate_key_update({key.name: table.c[key.name]}))
    elif tx.dialect.name in ("postgresql", "sqlite", "duckdb"):
        tx.execute(postgresql.insert(table).values(values).on_conflict_do_nothing())
    else:
        with contextlib.suppress(sa.exc.IntegrityError), tx.begin_nested():
            tx.execute(sa.insert(table).values(values))
