-- One row for each metric of a version in an interval: `batchscore_performance` over time, what was measured against
-- labels beside what was estimated without them.
--   job: The job's name.
--   cohort: `scored`: predictions of the interval; `labelled`: predictions whose label became known in it.
--   window_start: The interval's first instant.
--   window_end: The first instant behind it.
--   model_name: The bundle's name.
--   model_version: The version that predicted.
--   slice_column: The column that the rows are a slice by; empty for all rows.
--   slice_value: Its value in these rows; empty for all rows.
--   metric: The metric.
--   value: Its value against labels; NULL where none is known.
--   low: Where the 95 % interval of that begins.
--   high: Where it ends.
--   state: `mature`, `immature` or `not enough data`; see `batchscore_performance`. NULL without labels.
--   verdict: How that compares with the test rows: `worse`, `as good` or `not compared`; the state where it is
--     not `mature`.
--   estimated: Its value as estimated without labels; NULL where it is not.
--   estimated_low: Where the 95 % interval of that begins.
--   estimated_high: Where it ends.
--   estimated_verdict: How that compares with the test rows.
--   predictions: Rows predicted.
--   labelled: Those whose label is known.
--   coverage: Their share; NULL for the cohort `labelled`.
--   evaluated_at: When it was worked out.
SELECT
    job,
    cohort,
    window_start,
    MAX(window_end) AS window_end,
    model_name,
    model_version,
    slice_column,
    slice_value,
    metric,
    MAX(CASE WHEN kind = 'measured' THEN value END) AS value,
    MAX(CASE WHEN kind = 'measured' THEN low END) AS low,
    MAX(CASE WHEN kind = 'measured' THEN high END) AS high,
    MAX(CASE WHEN kind = 'measured' THEN state END) AS state,
    MAX(CASE WHEN kind = 'measured' THEN verdict END) AS verdict,
    MAX(CASE WHEN kind = 'estimated' THEN value END) AS estimated,
    MAX(CASE WHEN kind = 'estimated' THEN low END) AS estimated_low,
    MAX(CASE WHEN kind = 'estimated' THEN high END) AS estimated_high,
    MAX(CASE WHEN kind = 'estimated' THEN verdict END) AS estimated_verdict,
    MAX(predictions) AS predictions,
    MAX(labelled) AS labelled,
    MAX(CASE WHEN kind = 'measured' THEN coverage END) AS coverage,
    MAX(evaluated_at) AS evaluated_at
FROM batchscore_performance
GROUP BY job, cohort, window_start, model_name, model_version, slice_column, slice_value, metric
