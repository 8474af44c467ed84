SELECT account_id, churned
FROM accounts
WHERE snapshot_at >= :interval_start AND snapshot_at < :interval_end
