-- Early is a quarter of an hour before the scheduled arrival or more, late is more than that behind it. A cancelled or
-- diverted flight never has a label.
SELECT
    flight_id,
    CASE WHEN arr_delay <= -15 THEN 'early' WHEN arr_delay <= 15 THEN 'on time' ELSE 'late' END AS arrival
FROM flights
WHERE
    scheduled_at >= :interval_start AND scheduled_at < :interval_end
    AND arr_delay IS NOT NULL
