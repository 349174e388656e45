"""The mirror's stream as JetStream holds it: made, looked at, erased from, deleted.

Speaks JetStream's API as it is on the wire, so that no field of a newer server gets lost.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from service.errors import MirrorUnavailable, Misfit, StreamRefused
from service.event import Event
from service.mirrored import SUBJECTS
from service.nats import REQUEST_TIMEOUT_S, Connection, Stream, translated
from service.nats_settings import NatsSettings

DUPLICATES_S = 120
REMAKES = 10  # the mirror looks once a second
DESCRIPTION = "Causeway's log "
_NANOSECONDS = 10**9
_AWAY = 500  # JetStream's codes from here on: it cannot now
_NOT_FOUND = 404
# What the stream must be, and what JetStream says where nothing was said.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "subjects": ([SUBJECTS],),
    "retention": ("limits",),
    "discard": ("old",),
    "max_msgs_per_subject": (-1, 0, None),
    "max_msg_size": (-1, 0, None),
    "no_ack": (False, None),
    "sealed": (False, None),
    "deny_delete": (False, None),
    "mirror": (None,),
    "sources": (None, []),
    "subject_transform": (None,),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """The stream at one moment. With no message left `first` is `last` + 1."""

    first: int
    last: int
    messages: int
    deleted: frozenset[int]
    config: dict[str, Any]

    @property
    def log_id(self) -> str | None:
        """The log that it says it mirrors; None if somebody has changed its description."""
        text = self.config.get("description") or ""
        return text.removeprefix(DESCRIPTION) if text.startswith(DESCRIPTION) else None

    def check(self) -> None:
        """Raise Misfit if the stream is set up so that it could not hold the log."""
        for name, good in _REQUIRED.items():
            value = self.config.get(name)
            if value not in good:
                raise Misfit(f"the stream has {name} {value!r}, {good[0]!r} is needed")


class MirrorStream:
    """The stream `name`, as the mirror needs it."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._events = Stream(connection, name)
        self.name = name

    async def look(self, *, with_deleted: bool = False) -> Seen | None:
        """Return how the stream is; None if there is none. `with_deleted`: which it lacks, too."""
        try:
            answer = await self._ask(f"STREAM.INFO.{self.name}", {"deleted_details": with_deleted})
        except StreamRefused as error:
            if error.code == _NOT_FOUND:
                return None
            raise
        state = answer["state"]
        deleted = frozenset(state.get("deleted") or ())
        return Seen(
            state["first_seq"], state["last_seq"], state["messages"], deleted, answer["config"]
        )

    async def create(self, settings: NatsSettings, log_id: str, first: int) -> None:
        """Make the stream, of which the first message is to have the sequence number `first`.

        Raises Misfit if the server cannot: those before 2.10 begin at 1.
        """
        await self._ask(f"STREAM.CREATE.{self.name}", _config(self.name, settings, log_id, first))
        made = await self.look()
        if made is not None and made.last < first - 1:
            await self.delete()
            raise Misfit(
                f"the log begins at position {first}, and this NATS server cannot begin a stream "
                "there: 2.10 or newer is needed"
            )

    async def delete(self) -> None:
        """Delete the stream, if there is one."""
        try:
            await self._ask(f"STREAM.DELETE.{self.name}", {})
        except StreamRefused as error:
            if error.code != _NOT_FOUND:
                raise

    async def remake(self, settings: NatsSettings, log_id: str, first: int) -> None:
        """Delete the stream, and make it as `create` does, though a mirror that runs makes it too.

        That makes one that begins where the log does, as soon as it finds none.
        """
        for left in reversed(range(REMAKES)):
            await self.delete()
            try:
                await self.create(settings, log_id, first)
                return
            except StreamRefused:
                if not left or await self.look() is None:
                    raise

    async def event(self, sequence: int) -> Event | None:
        """Return the event at `sequence`; None if it is gone. Raises NotMirrored."""
        return await self._events.event(sequence)

    async def erase(self, sequence: int) -> None:
        """Overwrite the message at `sequence`, on every server that has it; one gone is good."""
        try:
            await self._ask(f"STREAM.MSG.DELETE.{self.name}", {"seq": sequence, "no_erase": False})
        except StreamRefused as error:
            seen = await self.look(with_deleted=True)
            is_gone = seen is None or sequence < seen.first or sequence in seen.deleted
            if not is_gone:
                raise MirrorUnavailable(f"event {sequence} was not erased: {error}") from error

    async def _ask(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        with translated():
            answer = await self._connection.client.request(
                f"$JS.API.{verb}", orjson.dumps(request), timeout=REQUEST_TIMEOUT_S
            )
        found: dict[str, Any] = orjson.loads(answer.data)
        if error := found.get("error"):
            code, description = error.get("code", 0), error.get("description", "")
            if code >= _AWAY:
                raise MirrorUnavailable(f"JetStream cannot answer now: {description}")
            raise StreamRefused(code, f"NATS refused {verb}: {description}")
        return found


def _config(name: str, settings: NatsSettings, log_id: str, first: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": name,
        "description": DESCRIPTION + log_id,
        "subjects": [SUBJECTS],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "num_replicas": settings.nats_replicas,
        "max_age": (settings.nats_retention_s or 0) * _NANOSECONDS,
        "max_bytes": settings.nats_retention_bytes or -1,
        "duplicate_window": min(DUPLICATES_S, settings.nats_retention_s or DUPLICATES_S)
        * _NANOSECONDS,
        "allow_direct": True,
    }
    return config | ({"first_seq": first} if first > 1 else {})
