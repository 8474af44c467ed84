SELECT impression_id, clicked
FROM clicks
WHERE shown_at >= :interval_start AND shown_at < :interval_end
