SELECT impression_id, shown_at, device, hour_of_day, relevance, dwell_seconds, visits_last_week, article_age_days
FROM clicks
WHERE shown_at >= :interval_start AND shown_at < :interval_end
