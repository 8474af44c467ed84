-- Late is more than 15 minutes after the scheduled arrival. A cancelled or diverted flight never has a label.
SELECT
    flight_id,
    arr_delay > 15 AS late
FROM flights
WHERE
    scheduled_at >= :interval_start AND scheduled_at < :interval_end
    AND arr_delay IS NOT NULL
