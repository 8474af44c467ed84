-- One row per scheduled flight, holding only what is known when it should leave: the timetable of the day, the aircraft
-- assigned, and the weather read at its airport up to that hour. Nothing that was measured on a flight is read
-- (departure, arrival, time in the air, delay), neither of this flight nor of an earlier one.
WITH days AS (
    SELECT DISTINCT flight_date
    FROM flights
    WHERE scheduled_at >= :interval_start AND scheduled_at < :interval_end
),

-- Whole days, so that the interval never cuts a window: each one lies within one flight_date.
timetable AS (
    SELECT
        flight_id, scheduled_at, flight_date, time_hour, carrier, origin, dest, tailnum, distance,
        sched_dep_time, sched_arr_time,
        COUNT(*) OVER (PARTITION BY flight_date, origin, hour) AS origin_hour_flights,
        COUNT(*) OVER (PARTITION BY flight_date, origin) AS origin_day_flights,
        COUNT(*) OVER (PARTITION BY flight_date, origin ORDER BY scheduled_at) AS origin_flights_so_far,
        COUNT(*) OVER (PARTITION BY flight_date, origin, carrier) AS carrier_day_flights,
        COUNT(*) OVER (PARTITION BY flight_date, dest) AS dest_day_flights,
        ROW_NUMBER() OVER aircraft_day AS leg,
        LAG(scheduled_at) OVER aircraft_day AS previous_scheduled_at,
        LAG(dest) OVER aircraft_day AS previous_dest,
        LAG(distance) OVER aircraft_day AS previous_distance
    FROM flights
    WHERE flight_date IN (SELECT flight_date FROM days)
    WINDOW aircraft_day AS (PARTITION BY flight_date, tailnum ORDER BY scheduled_at, flight_id)
),

readings AS (
    SELECT
        origin, time_hour, temp, dewp, humid, wind_dir, wind_speed, wind_gust, precip, pressure, visib,
        MAX(precip) OVER last_readings AS precip_max,
        MIN(visib) OVER last_readings AS visib_min,
        LAG(pressure, 3) OVER (PARTITION BY origin ORDER BY time_hour) AS pressure_before
    FROM weather
    WINDOW last_readings AS (PARTITION BY origin ORDER BY time_hour ROWS BETWEEN 6 PRECEDING AND CURRENT ROW)
)

SELECT
    f.flight_id,
    f.scheduled_at,
    f.flight_date,
    f.carrier,
    f.origin,
    f.dest,
    f.distance,
    f.sched_dep_time,
    f.sched_arr_time,
    f.origin_hour_flights,
    f.origin_day_flights,
    f.origin_flights_so_far,
    f.carrier_day_flights,
    f.dest_day_flights,
    -- Flights without a known aircraft are not legs of one another.
    CASE WHEN f.tailnum IS NOT NULL THEN f.leg END AS plane_leg,
    CASE WHEN f.tailnum IS NOT NULL THEN f.previous_scheduled_at END AS plane_previous_scheduled_at,
    CASE WHEN f.tailnum IS NOT NULL THEN f.previous_dest END AS plane_previous_dest,
    CASE WHEN f.tailnum IS NOT NULL THEN f.previous_distance END AS plane_previous_distance,
    p.year AS plane_year,
    p.seats AS plane_seats,
    p.manufacturer AS plane_manufacturer,
    w.temp AS weather_temp,
    w.dewp AS weather_dewp,
    w.humid AS weather_humid,
    w.wind_dir AS weather_wind_dir,
    w.wind_speed AS weather_wind_speed,
    w.wind_gust AS weather_wind_gust,
    w.precip AS weather_precip,
    w.precip_max AS weather_precip_max_6h,
    w.pressure AS weather_pressure,
    w.pressure_before AS weather_pressure_3h_before,
    w.visib AS weather_visib,
    w.visib_min AS weather_visib_min_6h
FROM timetable AS f
-- Planes come first because SQLite builds its index on the readings only then.
LEFT JOIN planes AS p ON p.tailnum = f.tailnum
LEFT JOIN readings AS w ON w.origin = f.origin AND w.time_hour = f.time_hour
WHERE f.scheduled_at >= :interval_start AND f.scheduled_at < :interval_end
