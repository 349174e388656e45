"""The schedule of retries, as README tells it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backoff import ATTEMPTS, backoff

HOUR_S = 3600.0


def pauses(jitter: float) -> list[float]:
    """Return the pauses between all the attempts of a delivery that never succeeds."""
    return [pause for n in range(1, ATTEMPTS + 1) if (pause := backoff(n, jitter)) is not None]


def test_the_schedule_is_the_one_in_the_readme() -> None:
    assert pauses(0) == [5, 15, 45, 135, 405, 1215, 3645, 10935, *[21600] * 5]


def test_the_first_retry_comes_after_five_seconds() -> None:
    assert backoff(1) == 5


@given(st.floats(0, 1))
def test_the_last_attempt_comes_one_to_two_days_after_the_first(jitter: float) -> None:
    assert len(pauses(jitter)) + 1 >= 12
    assert 24 * HOUR_S <= sum(pauses(jitter)) <= 48 * HOUR_S


@given(st.integers(1, ATTEMPTS - 2), st.floats(0, 1))
def test_no_pause_is_shorter_than_the_one_before(attempt: int, jitter: float) -> None:
    before, after = backoff(attempt, jitter), backoff(attempt + 1, jitter)
    assert before is not None
    assert after is not None
    assert before <= after


@pytest.mark.parametrize("attempt", [ATTEMPTS, ATTEMPTS + 1, 1000])
def test_after_the_last_attempt_there_is_no_other(attempt: int) -> None:
    assert backoff(attempt) is None


def test_jitter_only_lengthens_and_by_a_fifth_at_the_most() -> None:
    assert backoff(3, 0) == 45
    assert backoff(3, 1) == pytest.approx(54)
