"""Shares of rows in words: what a metric that is the difference of two of them says of either side."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["both_shares", "shares_told"]

_IN_WORDS: Mapping[str, str] = {
    "null_share": "NULL or NaN",
    "unseen_share": "values that training never saw",
    "outside_share": "beyond the range of training",
}
_WHERE: Mapping[str, str] = {
    "training": "in training",
    "previous": "in the run before",
    "last_week": "a week before",
    "four_weeks": "in the four weeks before",
}


def both_shares(share: float, reference_share: float) -> str:
    """Now, and in the reference: `12.0%, was 2.1%`."""
    return f"{share:.1%}, was {reference_share:.1%}"


def shares_told(metric: str, share: float, reference_share: float, reference: str) -> str:
    """The same in a sentence: `NULL or NaN in 12.0% of rows, 2.1% in training`.

    Args:
        metric: `null_share`, `unseen_share` or `outside_share`.
        share: Of the current rows.
        reference_share: Of the reference's.
        reference: What that is, one of `watching.REFERENCES`.
    """
    return f"{_IN_WORDS[metric]} in {share:.1%} of rows, {reference_share:.1%} {_WHERE[reference]}"
