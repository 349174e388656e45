"""What an answer of a callback means for its delivery. Pure.

Success is 2xx, whole and in time. A redirect is a failure, for a signed body goes where the admin
said and nowhere else. 410 asks for no more: the webhook is disabled. 429 and 503 may ask for a
pause of the whole webhook. All else is tried again, until the schedule of `backoff.py` ends.
"""

from dataclasses import dataclass

from service.backoff import backoff

PAUSE_MAX_S = 3600.0  # of a Retry-After: what a callback may ask for
THROTTLED = (429, 503)
GONE = 410


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to write down. `error` is None for a success, else one of the closed set of outcomes.

    `state` is `delivered`, `pending` (again in `due_in_s`) or `exhausted`. `step` counts the
    attempts on the schedule; `pause_s` is how long the webhook as a whole should rest.
    """

    error: str | None
    state: str
    step: int
    due_in_s: float | None = None
    pause_s: float | None = None


def judge(
    status: int | None,
    error: str | None,
    retry_after_s: float | None,
    *,
    step: int,
    early_s: float | None,
    jitter: float,
) -> Verdict:
    """Return what becomes of a delivery whose attempt ended with `status`, or with `error`.

    `step` is how many attempts of its schedule it had before this one. `early_s`: the attempt was a
    probe, so long before its time; it costs no step. `jitter` is from 0 to 1.
    """
    failure = error or failure_of(status or 0)
    if failure is None:
        return Verdict(None, "delivered", step + 1)
    pause_s = None
    if status in THROTTLED and retry_after_s is not None:
        pause_s = min(retry_after_s, PAUSE_MAX_S)
    if early_s is not None:
        return Verdict(failure, "pending", step, max(early_s, pause_s or 0.0), pause_s)
    wait_s = backoff(step + 1, jitter)
    if wait_s is None:
        return Verdict(failure, "exhausted", step + 1, pause_s=pause_s)
    return Verdict(failure, "pending", step + 1, max(wait_s, pause_s or 0.0), pause_s)


def failure_of(status: int) -> str | None:
    """Return the class of a status that is no success, or None."""
    if 200 <= status < 300:
        return None
    if status == GONE:
        return "gone"
    if status in THROTTLED:
        return "throttled"
    if 300 <= status < 400:
        return "redirect"
    return "client_error" if 400 <= status < 500 else "server_error"
