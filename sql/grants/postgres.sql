-- What the role that scores every night needs in Postgres where another role owns the tables: run it as their owner,
-- after `batchscore migrate JOB` with the owner's URL.
--   psql -v ON_ERROR_STOP=1 -v role=batchscore -v schema=scoring -v output=flight_delay_predictions -f postgres.sql
-- Besides, the role needs SELECT on whatever the job's queries read, USAGE on its schema, and the schema named here first
-- in its search_path.

-- CREATE, for each run stages its rows in a table of its own, which it drops when they are published.
GRANT USAGE, CREATE ON SCHEMA :"schema" TO :"role";
-- DELETE and INSERT, for an interval that is scored again takes the place of the one before.
GRANT SELECT, INSERT, DELETE ON :"schema".:"output" TO :"role";
-- With -v shadow=flight_delay_predictions_shadow besides, where [model] names a shadow: its predictions go there.
\if :{?shadow}
GRANT SELECT, INSERT, DELETE ON :"schema".:"shadow" TO :"role";
\endif
GRANT SELECT, INSERT, UPDATE, DELETE ON
    :"schema".batchscore_alerts,
    :"schema".batchscore_runs,
    :"schema".batchscore_chunks,
    :"schema".batchscore_leases,
    :"schema".batchscore_profiles,
    :"schema".batchscore_rejects,
    :"schema".batchscore_drift,
    :"schema".batchscore_tallies,
    :"schema".batchscore_performance,
    :"schema".batchscore_retrains
    TO :"role";
