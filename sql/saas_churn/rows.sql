SELECT account_id, snapshot_at, tenure_months, active_days, monthly_spend, support_tickets, feature_adoption
FROM accounts
WHERE snapshot_at >= :interval_start AND snapshot_at < :interval_end
