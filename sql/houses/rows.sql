SELECT house_id, listed_at, square_footage
FROM houses
WHERE listed_at >= :interval_start AND listed_at < :interval_end
