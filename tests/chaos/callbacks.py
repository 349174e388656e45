"""Outgoing webhooks of a run, and the receivers they call: real processes at the far side."""

import asyncio
import json
from collections.abc import Sequence

import httpx2

from service.db import Connection
from tests.chaos.history import Call, Callback, Wanted, digest_of
from tests.receiver import Received
from tests.running import ADMIN_TOKEN, WITHIN_S

# Which answers each gives: see the receiver.
PATHS = {
    "good": "/bridge/good",  # 401 to a signature that is not right
    "ordered": "/good/ordered",
    "fails once": "/fail/1/then-good",
    "hangs": "/hang-head",
}
AGAIN_S = 0.5
SHOP = Wanted(sources=frozenset({"shop"}))
_STATES = """
SELECT position, state FROM causeway.delivery WHERE webhook_id = $1
"""
_CURSOR = """
SELECT cursor_position, disabled_reason FROM causeway.webhook WHERE webhook_id = $1
"""


async def make_callbacks(url: str, receiver_url: str) -> tuple[list[Callback], list[str]]:
    """Register the run's webhooks; return them, and their secrets."""
    callbacks, secrets = [], []
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx2.AsyncClient(timeout=WITHIN_S, headers=headers, trust_env=False) as client:
        for name, path in PATHS.items():
            wanted = SHOP if name in ("fails once", "hangs") else Wanted()
            wish = {"url": receiver_url + path, "name": name, "ordered": name == "ordered"}
            wish |= {"sources": sorted(wanted.sources)} if wanted.sources else {}
            answer = await client.post(f"{url}/api/webhooks", json=wish)
            while answer.status_code == 503:  # it has just been started, and may be slow
                await asyncio.sleep(AGAIN_S)
                answer = await client.post(f"{url}/api/webhooks", json=wish)
            assert answer.status_code == 201, answer.text
            made = answer.json()
            secrets.append(made["secret"])
            # What fails waits for seconds, then minutes; what hangs, for ever.
            must_finish = name in ("good", "ordered")
            callbacks.append(
                Callback(name, made["id"], wanted, name == "ordered", must_finish=must_finish)
            )
    return callbacks, secrets


def take_calls(callbacks: Sequence[Callback], received: Sequence[Received]) -> None:
    """Sort what the receiver got to the callbacks."""
    for callback in callbacks:
        path = PATHS[callback.name]
        callback.calls = [_call(it) for it in received if it.path == path]


def _call(received: Received) -> Call:
    content = json.loads(received.body)["content"]
    position = int(received.headers["causeway-position"])
    return Call(position, content["item_id"], digest_of(received.body), received.status)


async def take_states(callbacks: Sequence[Callback], owner: Connection) -> None:
    """Read how the database accounts for each delivery."""
    for callback in callbacks:
        rows = await owner.fetch(_STATES, callback.webhook_id)
        callback.states = {row["position"]: row["state"] for row in rows}
        found = await owner.fetchrow(_CURSOR, callback.webhook_id)
        assert found is not None
        callback.cursor = found["cursor_position"]
        callback.disabled_reason = found["disabled_reason"]
