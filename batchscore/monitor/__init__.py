"""Monitoring: what moved and how good the predictions were, all from what the ledger kept."""
