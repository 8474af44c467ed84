-- One row for each job and output table: how far it is published, and what became of its last run.
--   job: The job's name.
--   output_table: Where its predictions go, schema and all.
--   published_until: The first instant behind the latest published interval; NULL where none is.
--   hours_behind: Hours from there to now, by the database's clock.
--   published_at: When something was last published.
--   last_begun_at: When the last run began, whatever became of it.
--   last_status: What became of it: `running`, `published`, `failed`, `held` or `superseded`.
--   last_error: Why it failed or is held; NULL where it is not.
--   published: Intervals that are published.
--   failed: Runs that failed, and whose interval nobody has published since.
--   held: Runs that a gate holds.
SELECT
    totals.job,
    totals.output_table,
    totals.published_until,
    {hours_behind} AS hours_behind,
    totals.published_at,
    runs.scored_at AS last_begun_at,
    runs.status AS last_status,
    runs.error AS last_error,
    totals.published,
    totals.failed,
    totals.held
FROM (
    SELECT
        job,
        output_table,
        MAX(CASE WHEN status = 'published' THEN interval_end END) AS published_until,
        MAX(CASE WHEN status = 'published' THEN published_at END) AS published_at,
        COUNT(CASE WHEN status = 'published' THEN 1 END) AS published,
        COUNT(CASE WHEN status = 'failed' THEN 1 END) AS failed,
        COUNT(CASE WHEN status = 'held' THEN 1 END) AS held
    FROM batchscore_runs
    GROUP BY job, output_table
) AS totals
JOIN (
    SELECT
        job,
        output_table,
        scored_at,
        status,
        error,
        ROW_NUMBER() OVER (
            PARTITION BY job, output_table ORDER BY scored_at DESC, interval_start DESC, run_id DESC
        ) AS place
    FROM batchscore_runs
) AS runs ON runs.job = totals.job AND runs.output_table = totals.output_table AND runs.place = 1
