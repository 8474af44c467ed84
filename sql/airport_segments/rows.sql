-- One row for each month and each airport flown to; only what the timetable says, and nothing measured on a flight.
SELECT
    CAST(DATE_TRUNC('month', flight_date) AS DATE) AS month,
    dest,
    COUNT(*) AS flights,
    COUNT(DISTINCT flight_date) AS days,
    AVG(distance) AS mean_distance,
    COUNT(DISTINCT carrier) AS carriers,
    COUNT(DISTINCT origin) AS origins,
    SUM(CASE WHEN sched_dep_time < 900 THEN 1 ELSE 0 END) AS early_flights,
    SUM(CASE WHEN sched_dep_time >= 1900 THEN 1 ELSE 0 END) AS late_flights,
    SUM(CASE WHEN EXTRACT(DOW FROM flight_date) IN (0, 6) THEN 1 ELSE 0 END) AS weekend_flights
FROM flights
WHERE scheduled_at >= :interval_start AND scheduled_at < :interval_end
GROUP BY 1, 2
