"""What is wrong with outgoing webhooks, in the dashboard's words."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from service.alarms import CRITICAL, WARNING, find_alarms
from service.delivery import Backlog
from service.standing import Standing
from tests.test_dashboard_parts import NOW, situation
from tests.test_outgoing import webhook

FINE = Backlog(
    webhook_id=12,
    pending=0,
    oldest_s=None,
    exhausted=0,
    is_open=False,
    cursor_position=40,
    accounted_from=0,
    version=1,
)


def alarms(orphans: int = 0, backlog: dict[str, Any] | None = None, **fields: Any) -> list[Any]:
    """Return what is said of one webhook that is fine but for what is given."""
    one = webhook(webhook_id=12, name="billing", **fields)
    standing = Standing(one, replace(FINE, **(backlog or {})), orphans)
    return find_alarms(situation(webhooks=[standing]))


def test_nothing_is_said_of_a_webhook_that_is_fine() -> None:
    assert alarms() == []
    assert alarms(backlog={"pending": 5, "oldest_s": 2.0}) == []


@pytest.mark.parametrize(
    ("given", "level", "says"),
    [
        ({"orphans": 2}, CRITICAL, "2 events it was owed has no delivery"),
        (
            {"disabled_at": NOW - timedelta(hours=2), "disabled_reason": "gone"},
            CRITICAL,
            "disabled 2 h",
        ),
        ({"unreadable": "CAUSEWAY_SECRET_KEY lacks the key"}, CRITICAL, "lacks the key"),
        (
            {
                "open_until": NOW,
                "failing_since": NOW - timedelta(minutes=7),
                "failures": 9,
            },
            WARNING,
            "failed for 7 min, 9 calls in a row",
        ),
        ({"backlog": {"pending": 42, "oldest_s": 7200.0}}, WARNING, "42 pending, oldest 2 h"),
        ({"backlog": {"exhausted": 3}}, WARNING, "3 "),
    ],
)
def test_what_is_wrong_is_said_with_the_webhooks_name(
    given: dict[str, Any], level: str, says: str
) -> None:
    [alarm] = alarms(**given)
    assert (alarm.level, alarm.page) == (level, "/webhooks/12")
    assert alarm.text.startswith("webhook billing: ")
    assert says in alarm.text


def test_an_admins_own_decision_is_no_alarm() -> None:
    assert alarms(disabled_at=NOW, disabled_reason="admin") == []


def test_webhooks_without_a_key_are_critical() -> None:
    [alarm] = find_alarms(situation(uncalled_webhooks=2))
    assert alarm.level == CRITICAL
    assert "2 webhooks not called: CAUSEWAY_SECRET_KEY" in alarm.text
