"""How webhooks, deliveries and attempts are, in words, and what to do about it. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime

from service.delivery_list import Attempt, Delivery
from service.event import Event
from service.standing import Standing
from service.verdict import failure_of
from service.webhook_value import Webhook
from service.words import count, number, span

GOOD, WAITING, BROKEN, NONE = "good", "waiting", "broken", ""
_SHOWN_BYTES = 1024

# The error of an attempt: what happened, and where to look.
ERRORS = {
    "redirect": "it answered with a redirect, which is never followed: set the new URL",
    "client_error": "it refused the call (4xx): is the URL right, does it know the secret?",
    "gone": "it answered 410 Gone: the webhook was disabled",
    "throttled": "it is overloaded or away (429 or 503)",
    "server_error": "it failed (5xx): see its own log",
    "address_denied": "its address may not be called: see CAUSEWAY_RELAY_ALLOWED_NETWORKS",
    "dns": "its host name could not be resolved",
    "refused": "it refused the connection: nothing listens there",
    "tls": "TLS failed: is its certificate valid, and for this host?",
    "timeout": "no whole answer came in time (CAUSEWAY_RELAY_TIMEOUT_S)",
    "connection": "the connection failed or broke",
    "protocol": "what it answered is no HTTP",
    "event_gone": "the log no longer has the event",
    "internal": "a fault of this service: see its log",
}
_DISABLED = {
    "admin": (NONE, "An administrator disabled it.", "Enable it: it goes on where it stands."),
    "gone": (BROKEN, "Its callback answered 410 Gone.", "Enable it once the callback is back."),
    "failing": (
        BROKEN,
        "Its callback failed for days on end.",
        "Mend the callback, send a test, then enable it: what waits is sent at once.",
    ),
    "log_diverged": (
        BROKEN,
        "The log was restored or replaced, and does not continue from its place.",
        "Enable it, and say where it goes on.",
    ),
    "position_pruned": (
        BROKEN,
        "What follows its place is no longer kept.",
        "Enable it, and say where it goes on.",
    ),
}


@dataclass(frozen=True, slots=True)
class Health:
    """How a webhook is: a word for its pill, a sentence, and what to do (empty: nothing)."""

    level: str
    word: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """How a delivery is: a word, and what more there is to say."""

    level: str
    word: str
    hint: str = ""


def health(standing: Standing, now: datetime | None = None) -> Health:
    """Return how a webhook is."""
    webhook, moment = standing.webhook, now or datetime.now(UTC)
    if webhook.disabled_reason is not None:
        known = _DISABLED.get(webhook.disabled_reason, (BROKEN, webhook.disabled_reason, ""))
        return Health(known[0], "disabled", *known[1:])
    if webhook.unreadable is not None:
        advice = "Bring back the old CAUSEWAY_SECRET_KEY; if it is lost, set the headers anew and "
        text = f"Not called: {webhook.unreadable}."
        return Health(BROKEN, "unreadable", text, f"{advice}rotate the secret.")
    if webhook.failing_since is None:
        return _working(standing)
    ago = span((moment - webhook.failing_since).total_seconds())
    text = f"{count(webhook.failures, 'call')} failed in a row, for {ago}."
    if webhook.open_until is None:
        return Health(WAITING, "failing", text, "Each is tried again by itself.")
    text += " The circuit is open: one probe at a time until one succeeds"
    wait_s = (webhook.open_until - moment).total_seconds()
    text += f", the next in {span(wait_s)}." if wait_s > 0 else ", the next is due."
    return Health(BROKEN, "failing", text, "Look at the newest attempt below, or send a test.")


def _working(standing: Standing) -> Health:
    pending = standing.backlog.pending
    if pending:
        text = f"It works; {count(pending, 'event')} on the way."
        return Health(GOOD, "enabled", text)
    if not standing.webhook.cursor_position:
        return Health(GOOD, "enabled", "Nothing has happened yet: send a test.")
    return Health(GOOD, "enabled", "All that it is owed is delivered.")


def delivery_state(delivery: Delivery, now: datetime | None = None) -> State:
    """Return how a delivery is."""
    moment = now or datetime.now(UTC)
    if delivery.state == "delivered":
        return State(GOOD, "delivered", _ago(delivery.settled_at, moment))
    if delivery.state == "exhausted":
        return State(BROKEN, "given up", _ago(delivery.settled_at, moment))
    if delivery.is_in_flight:
        return State(WAITING, "being sent")
    if delivery.is_held:
        return State(WAITING, "held", "until an earlier one of the same item is delivered")
    if delivery.next_attempt_at is None:
        return State(WAITING, "pending")
    wait_s = (delivery.next_attempt_at - moment).total_seconds()
    return State(WAITING, "pending", f"again in {span(wait_s)}" if wait_s > 0 else "due now")


def event_state(webhook: Webhook, delivery: Delivery | None, event: Event) -> State:
    """Return what became of an event for a webhook."""
    if delivery is not None:
        state = delivery_state(delivery)
        tries = count(delivery.attempts, "attempt")
        return State(
            state.level, state.word, ", ".join(part for part in (state.hint, tries) if part)
        )
    if not webhook.filter.matcher()(event):
        return State(NONE, "not chosen", "by its events or sources")
    if event.position > webhook.cursor_position:
        behind = number(event.position - webhook.cursor_position)
        hint = "it is disabled" if webhook.disabled_at else f"it stands {behind} before"
        return State(WAITING, "not reached yet", hint)
    if event.position <= webhook.accounted_from:
        return State(NONE, "not owed", "it began, or chose its events, after this one")
    return State(NONE, "no longer known", "its delivery was forgotten with time")


def outcome(status: int | None, error: str | None) -> State:
    """Return how a call ended: its status if there is one, and what went wrong in words."""
    word = str(status) if status is not None else (error or "no answer")
    failure = error or failure_of(status or 0)
    if failure is None:
        return State(GOOD, word)
    return State(BROKEN, word, ERRORS.get(failure, failure))


def shown(attempt: Attempt) -> str:
    """Return the first bytes of an attempt's answer, as text."""
    return attempt.answer[:_SHOWN_BYTES].decode("utf-8", "replace")


def _ago(moment: datetime | None, now: datetime) -> str:
    return "" if moment is None else f"{span((now - moment).total_seconds())} ago"
