-- One row for each day, version and score column: how many predictions, and how their scores are spread.
--   day: The day in the job's time zone that the interval begins on.
--   model_name: The bundle's name.
--   model_version: The version that predicted.
--   column_name: The column that is spread: `score`, each `score_<class>`, or the `prediction` of a regression.
--   predictions: Rows.
--   mean: Mean of the column; NULL, like all below, for a task that gives neither scores nor numbers.
--   lowest: The smallest value.
--   p05: The value that 5 % of the rows do not exceed: the smallest one of which that is true.
--   p25: The same of 25 %.
--   p50: The same of 50 %.
--   p75: The same of 75 %.
--   p95: The same of 95 %.
--   highest: The largest value.
SELECT
    day,
    model_name,
    model_version,
    {name} AS column_name,
    COUNT(*) AS predictions,
    AVG(score) AS mean,
    MIN(score) AS lowest,
    MIN(CASE WHEN 100 * place >= 5 * total THEN score END) AS p05,
    MIN(CASE WHEN 100 * place >= 25 * total THEN score END) AS p25,
    MIN(CASE WHEN 100 * place >= 50 * total THEN score END) AS p50,
    MIN(CASE WHEN 100 * place >= 75 * total THEN score END) AS p75,
    MIN(CASE WHEN 100 * place >= 95 * total THEN score END) AS p95,
    MAX(score) AS highest
FROM (
    SELECT
        day,
        model_name,
        model_version,
        score,
        ROW_NUMBER() OVER (PARTITION BY day, model_name, model_version ORDER BY score) AS place,
        COUNT(*) OVER (PARTITION BY day, model_name, model_version) AS total
    FROM (SELECT {day} AS day, model_name, model_version, {score} AS score FROM {output}) AS dated
) AS ranked
GROUP BY day, model_name, model_version
