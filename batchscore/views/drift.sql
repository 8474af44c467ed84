-- One row for each metric of each column of a published run: `batchscore_drift` over time.
--   job: The job's name.
--   output_table: Where the run's predictions went, schema and all.
--   interval_start: The first instant of the run's interval.
--   interval_end: The first instant behind it.
--   model_name: The name of the bundle that scored it.
--   model_version: Its version.
--   reference: What it is compared with: `training`, `previous`, `last_week` or `four_weeks`.
--   role: `input` or `output`.
--   column_name: The column.
--   metric: The drift metric.
--   value: Its value; NULL where either side has nothing to measure.
--   floor: What chance explains at these row counts; NULL for a metric that is not judged.
--   band: The value at which it matters; NULL for a metric that is not judged.
--   strength: The value without its sign, in bands: from 1 on it matters, if `verdict` does not lay it to chance.
--   p_value: The chance of a value at least as large without drift; NULL where there is no law for it.
--   verdict: `moved`, `steady`, `not enough data` or `not judged`.
--   importance: What the model loses by the column, as a share of what it loses by the most important one.
--   told: Whether `[drift]` wants it told.
--   run_id: The run in the ledger.
SELECT
    runs.job,
    runs.output_table,
    runs.interval_start,
    runs.interval_end,
    runs.model_name,
    runs.model_version,
    drift.reference,
    drift.role,
    drift.column_name,
    drift.metric,
    drift.value,
    drift.floor,
    drift.band,
    ABS(drift.value) / NULLIF(drift.band, 0) AS strength,
    drift.p_value,
    drift.verdict,
    drift.importance,
    drift.told,
    drift.run_id
FROM batchscore_drift AS drift
JOIN batchscore_runs AS runs ON runs.run_id = drift.run_id
WHERE runs.status = 'published'
