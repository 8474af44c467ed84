SELECT house_id, dear
FROM houses
WHERE listed_at >= :interval_start AND listed_at < :interval_end
