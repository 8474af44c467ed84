"""Runs: which intervals are due, scoring one, publishing it."""
