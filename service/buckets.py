"""Percentiles from the buckets of two readings of a histogram. Pure.

As Prometheus' `histogram_quantile`: within a bucket the values are taken to lie evenly.
"""

from collections.abc import Sequence
from itertools import pairwise

Buckets = tuple[tuple[float, float], ...]  # (upper bound, count of all at or below it), rising


def between(older: Buckets, newer: Buckets) -> Buckets:
    """Return the buckets of what was observed after `older` and up to `newer`."""
    before = dict(older)
    return tuple((bound, count - before.get(bound, 0.0)) for bound, count in newer)


def percentile(buckets: Sequence[tuple[float, float]], percent: float) -> float | None:
    """Return a percentile, or None if nothing was observed.

    What lies above the last bound counts as that bound.
    """
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank = buckets[-1][1] * percent / 100
    for (below, count_below), (bound, count) in pairwise(((0.0, 0.0), *buckets)):
        if count >= rank and count > count_below:
            if bound == float("inf"):
                return below
            return below + (bound - below) * (rank - count_below) / (count - count_below)
    return None
