-- The latest prediction for each key: of every key the one row of the latest interval that it is in.
--   *: The columns of the output table.
SELECT {columns}
FROM (
    SELECT
        {columns},
        ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY interval_start DESC, scored_at DESC) AS batchscore_place
    FROM {output}
) AS ranked
WHERE batchscore_place = 1
