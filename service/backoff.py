"""When a delivery that failed is tried again. Pure.

Exponential, three times as long each time, up to six hours: the first retry comes 5 s after the
first attempt, the last one 34.6 h after it, with jitter up to 41.5 h. Bridge itself gives up after
1 to 2 days.
"""

FIRST_S = 5.0
FACTOR = 3.0
LONGEST_S = 6 * 3600.0
ATTEMPTS = 14
JITTER = 0.2  # of each pause, added: retries of many deliveries spread out


def backoff(attempt: int, jitter: float = 0.0) -> float | None:
    """Return the seconds between the failure of attempt `attempt` (1 is the first) and the next.

    `jitter` from 0 to 1 lengthens the pause by up to a fifth. None after the last attempt: the
    delivery is exhausted.
    """
    if attempt >= ATTEMPTS:
        return None
    pause_s = min(LONGEST_S, FIRST_S * FACTOR ** (attempt - 1))
    return pause_s * (1 + JITTER * jitter)
