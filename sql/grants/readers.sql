-- For a role that only reads in Postgres, such as a dashboard's: the predictions, and what is known of their runs.
--   psql -v ON_ERROR_STOP=1 -v role=dashboards -v schema=scoring -v output=flight_delay_predictions -f readers.sql
-- Not batchscore_rejects, which holds values of rows. For `batchscore runs` and `batchscore drift`, the role's search_path
-- must name the schema: ALTER ROLE dashboards SET search_path = scoring;
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON
    :"schema".:"output",
    :"schema".batchscore_runs,
    :"schema".batchscore_profiles,
    :"schema".batchscore_drift,
    :"schema".batchscore_performance
    TO :"role";
-- With -v shadow=flight_delay_predictions_shadow besides: what the shadow of [model] predicts.
\if :{?shadow}
GRANT SELECT ON :"schema".:"shadow" TO :"role";
\endif
-- With -v views=1 besides, after `batchscore views apply JOB` by the owner: the views, for which the tables that they are
-- over need not be granted.
\if :{?views}
\set latest :output '_latest'
\set daily :output '_daily'
GRANT SELECT ON
    :"schema".batchscore_freshness,
    :"schema".batchscore_drift_over_time,
    :"schema".batchscore_performance_over_time,
    :"schema".:"latest",
    :"schema".:"daily"
    TO :"role";
\endif
