-- Minutes behind the scheduled arrival, below 0 before it. A cancelled or diverted flight never has a label.
SELECT flight_id, arr_delay
FROM flights
WHERE
    scheduled_at >= :interval_start AND scheduled_at < :interval_end
    AND arr_delay IS NOT NULL
