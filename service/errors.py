"""Every error that Causeway itself raises, in one tree.

    CausewayError
    ├── ConfigError                      the start stops; names the setting
    ├── SchemaError                      the start stops; says which command to run
    ├── DeliveryMissing                  an audit found an event that a webhook was owed
    ├── MirrorUnavailable                NATS cannot answer now; try again
    ├── NotMirrored                      a message of the mirror's stream is no event of ours
    ├── StreamRefused                    JetStream refused a request; says why
    ├── Misfit                           the mirror's stream is not this log's; says how to go on
    └── Problem                          an answer to a caller: status, code, message
        ├── NotAnEvent          400 not_an_event          signed, but no event
        ├── BadRequest          400 bad_request           a parameter that cannot be understood
        ├── BadSignature        401 bad_signature         none, or none that matches
        ├── Unauthenticated     401 unauthenticated       no token, or not one of ours
        ├── Forbidden           403 forbidden             a good token without the scope
        ├── AddressNotAllowed   403 address_not_allowed   not in CAUSEWAY_ALLOWED_IPS
        ├── NotFound            404 not_found             no such path, event or token
        ├── UnknownSource       404 unknown_source        no secret is known for that source
        ├── UnknownConsumer     404 unknown_consumer      no consumer has that name
        ├── UnknownWebhook      404 unknown_webhook       no outgoing webhook has that number
        ├── UnknownDelivery     404 unknown_delivery      the webhook has none at that position
        ├── UnknownReplay       404 unknown_replay        the webhook has none of that number
        ├── MethodNotAllowed    405 method_not_allowed
        ├── NotAcceptable       406 not_acceptable        no spelling that `Accept` allows
        ├── BodyTimeout         408 body_timeout          the body trickled in too slowly
        ├── LogDiverged         409 log_diverged          the reader saw another history
        ├── PositionAhead       409 position_ahead        the log never got there
        ├── ConsumerHeld        409 consumer_held         another holder has the lease
        ├── ShardsHeld          409 shards_held           shards of another number are held
        ├── LeaseLost           409 lease_lost            a newer holder has taken over
        ├── AckAhead            409 ack_ahead             that event was not sent yet
        ├── WebhooksOff         409 webhooks_off          CAUSEWAY_SECRET_KEY is not set
        ├── TooManyConsumers    409 too_many_consumers    there are as many as there may be
        ├── TooManyWebhooks     409 too_many_webhooks     the application has as many as it may
        ├── SecretUnreadable    409 secret_unreadable     CAUSEWAY_SECRET_KEY lacks its key
        ├── PositionPruned      410 position_pruned       gone; says what is left
        ├── Erased              410 erased                the event's body was erased
        ├── BodyTooLarge        413 body_too_large
        ├── NotServedHere       421 not_served_here       this process lacks the role
        ├── TooManyPages        429 too_many_pages        a token has as many calls open as it may
        ├── TooManyStreams      429 too_many_streams
        ├── LogUnavailable      503 log_unavailable       Postgres cannot answer now
        ├── Overloaded          503 overloaded            the append queue is full
        ├── Draining            503 draining              this process is stopping
        └── LogDamaged          500 log_damaged           a hole, or a row that was changed

`code` is stable; `message` says what was wrong and what to do, and never holds a secret, a token or
a body. Foreign exceptions are translated where they enter.
"""

from collections.abc import Mapping


class CausewayError(Exception):
    """The root of all errors raised by Causeway."""


class ConfigError(CausewayError):
    """A setting that stops the start. The message names it and says what was expected."""


class SchemaError(CausewayError):
    """The database's schema does not fit this code. The message says which command to run."""


class DeliveryMissing(CausewayError):
    """An event that a webhook was owed has no delivery. The message names both."""


class MirrorUnavailable(CausewayError):
    """NATS cannot answer now. The message says why."""


class NotMirrored(CausewayError):
    """A message of the mirror's stream is no event that Causeway has published."""


class StreamRefused(CausewayError):
    """JetStream refused a request; `code` is like HTTP's."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code


class Misfit(CausewayError):
    """The mirror's stream does not fit the log. The message says what is wrong."""


class Problem(CausewayError):
    """An error with an HTTP answer.

    `retry_after_s` becomes a `Retry-After` header; `details` are stable fields beside the message.
    `closes_connection` where the request's body may not have been read: what is left of it must not
    hold the connection.
    """

    status = 500
    code = "internal_error"
    retry_after_s: int | None = None
    closes_connection = False

    def __init__(self, message: str, **details: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, str | int] = details


class NotAnEvent(Problem):
    status, code = 400, "not_an_event"


class BadRequest(Problem):
    status, code = 400, "bad_request"


class BadSignature(Problem):
    status, code = 401, "bad_signature"
    closes_connection = True


class Unauthenticated(Problem):
    status, code = 401, "unauthenticated"


class Forbidden(Problem):
    status, code = 403, "forbidden"


class AddressNotAllowed(Problem):
    status, code = 403, "address_not_allowed"
    closes_connection = True


class NotFound(Problem):
    status, code = 404, "not_found"


class UnknownSource(Problem):
    status, code = 404, "unknown_source"
    closes_connection = True


class UnknownConsumer(Problem):
    status, code = 404, "unknown_consumer"


class UnknownWebhook(Problem):
    status, code = 404, "unknown_webhook"


class UnknownDelivery(Problem):
    status, code = 404, "unknown_delivery"


class UnknownReplay(Problem):
    status, code = 404, "unknown_replay"


class MethodNotAllowed(Problem):
    status, code = 405, "method_not_allowed"


class NotAcceptable(Problem):
    status, code = 406, "not_acceptable"


class BodyTimeout(Problem):
    status, code = 408, "body_timeout"
    closes_connection = True


class LogDiverged(Problem):
    status, code = 409, "log_diverged"


class PositionAhead(Problem):
    status, code = 409, "position_ahead"


class ConsumerHeld(Problem):
    status, code, retry_after_s = 409, "consumer_held", 5


class ShardsHeld(Problem):
    status, code, retry_after_s = 409, "shards_held", 5


class LeaseLost(Problem):
    status, code = 409, "lease_lost"


class AckAhead(Problem):
    status, code = 409, "ack_ahead"


class WebhooksOff(Problem):
    status, code = 409, "webhooks_off"


class TooManyConsumers(Problem):
    status, code = 409, "too_many_consumers"


class TooManyWebhooks(Problem):
    status, code = 409, "too_many_webhooks"


class SecretUnreadable(Problem):
    status, code = 409, "secret_unreadable"


class PositionPruned(Problem):
    status, code = 410, "position_pruned"


class Erased(Problem):
    status, code = 410, "erased"


class BodyTooLarge(Problem):
    status, code = 413, "body_too_large"
    closes_connection = True


class NotServedHere(Problem):
    status, code = 421, "not_served_here"
    closes_connection = True


class TooManyPages(Problem):
    status, code, retry_after_s = 429, "too_many_pages", 2


class TooManyStreams(Problem):
    status, code, retry_after_s = 429, "too_many_streams", 10


class LogUnavailable(Problem):
    status, code, retry_after_s = 503, "log_unavailable", 5


class Overloaded(Problem):
    status, code, retry_after_s = 503, "overloaded", 2


class Draining(Problem):
    status, code, retry_after_s = 503, "draining", 1


class LogDamaged(Problem):
    """The log is not what was appended. `position` is the first bad one that was met."""

    status, code = 500, "log_damaged"

    def __init__(self, position: int, what: str) -> None:
        super().__init__(f"position {position}: {what}", position=position)
        self.position = position
