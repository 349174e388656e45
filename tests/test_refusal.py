"""What is no request is told in the log, and no stranger can fill it."""

import logging

import pytest

from service.refusal import NO_HOST, REPORT_S, UNREADABLE, Refusals


def test_many_refusals_are_one_line_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    refusals = Refusals(lambda: now)
    for refusal in (NO_HOST, UNREADABLE, UNREADABLE):
        refusals.note(refusal, "192.0.2.1")
    [first] = caplog.records
    assert (first.levelno, first.getMessage()) == (logging.WARNING, "no request that can be read")
    fields = ("code", "reason", "peer", "calls")
    assert [first.__dict__[it] for it in fields] == ["bad_request", NO_HOST.message, "192.0.2.1", 1]
    now += REPORT_S
    refusals.note(UNREADABLE, None)
    assert [caplog.records[1].__dict__[it] for it in fields] == [
        *("bad_request", UNREADABLE.message, None, 3)
    ]
