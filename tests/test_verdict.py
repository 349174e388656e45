"""What an answer means for a delivery."""

import pytest

from service.backoff import ATTEMPTS, backoff
from service.metrics import ATTEMPT_OUTCOMES
from service.verdict import PAUSE_MAX_S, Verdict, judge


def verdict(
    status: int | None = None,
    error: str | None = None,
    retry_after_s: float | None = None,
    step: int = 0,
    early_s: float | None = None,
) -> Verdict:
    return judge(status, error, retry_after_s, step=step, early_s=early_s, jitter=0.0)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_a_whole_answer_of_2xx_is_a_success(status: int) -> None:
    assert verdict(status) == Verdict(None, "delivered", 1)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (301, "redirect"),
        (302, "redirect"),
        (307, "redirect"),
        (308, "redirect"),
        (304, "redirect"),
        (400, "client_error"),
        (401, "client_error"),
        (404, "client_error"),
        (410, "gone"),
        (429, "throttled"),
        (503, "throttled"),
        (500, "server_error"),
        (502, "server_error"),
        (599, "server_error"),
        (199, "server_error"),
        (999, "server_error"),
    ],
)
def test_any_other_status_is_tried_again_and_named(status: int, error: str) -> None:
    assert verdict(status) == Verdict(error, "pending", 1, backoff(1))
    assert error in ATTEMPT_OUTCOMES


@pytest.mark.parametrize(
    "error", ["timeout", "dns", "refused", "tls", "connection", "protocol", "address_denied"]
)
def test_an_answer_that_did_not_come_whole_is_no_success(error: str) -> None:
    assert verdict(200, error) == Verdict(error, "pending", 1, backoff(1))
    assert verdict(None, error).state == "pending"


def test_the_last_attempt_exhausts() -> None:
    assert verdict(500, step=ATTEMPTS - 2).state == "pending"
    assert verdict(500, step=ATTEMPTS - 1) == Verdict("server_error", "exhausted", ATTEMPTS)
    assert verdict(200, step=ATTEMPTS - 1).state == "delivered"


def test_a_probe_before_its_time_costs_no_step() -> None:
    assert verdict(500, step=3, early_s=100.0) == Verdict("server_error", "pending", 3, 100.0)
    assert verdict(500, step=ATTEMPTS - 1, early_s=0.5).state == "pending"
    assert verdict(200, step=3, early_s=100.0).state == "delivered"


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_is_asked_for_is_kept_and_bounded(status: int) -> None:
    asked = verdict(status, retry_after_s=120.0)
    assert (asked.due_in_s, asked.pause_s) == (120.0, 120.0)
    short = verdict(status, retry_after_s=1.0)
    assert (short.due_in_s, short.pause_s) == (backoff(1), 1.0)
    long = verdict(status, retry_after_s=10**9)
    assert (long.due_in_s, long.pause_s) == (PAUSE_MAX_S, PAUSE_MAX_S)


@pytest.mark.parametrize("status", [500, 302, 200])
def test_no_other_status_may_ask_for_a_pause(status: int) -> None:
    assert verdict(status, retry_after_s=120.0).pause_s is None
