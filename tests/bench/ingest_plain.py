"""What a competent user would write without Causeway: FastAPI, asyncpg, one row a request.

The signature is verified over the raw body, the body parsed by orjson, the bytes stored as they
are; a unique digest absorbs Bridge's retries. The pool has 20 connections, so that Postgres can
commit in groups. uvicorn runs with uvloop and httptools and without an access log. There are fewer
indexes than the log has, and neither order nor chain.
"""

import asyncio
import hashlib
import hmac
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import asyncpg
import orjson
import uvicorn
import uvloop
from fastapi import FastAPI, HTTPException, Request, Response

from tests.bench.children import answer, commands_async
from tests.running import SECRET

SCHEMA = """
CREATE TABLE IF NOT EXISTS webhook_event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz NOT NULL,
    type text NOT NULL,
    item_id bigint,
    user_uuid uuid,
    digest bytea NOT NULL UNIQUE,
    body bytea NOT NULL
)
"""
INSERT = """
INSERT INTO webhook_event (received_at, type, item_id, user_uuid, digest, body)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (digest) DO NOTHING
"""
POOL_CONNECTIONS = 20


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep a pool for as long as the app runs."""
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=POOL_CONNECTIONS, max_size=POOL_CONNECTIONS
    ) as pool:
        await pool.execute(SCHEMA)
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan, openapi_url=None)


@app.post("/webhooks/bridge")
async def receive(request: Request) -> Response:
    """Verify, parse, insert, answer."""
    body = await request.body()
    if not is_signed(body, request.headers.get("BridgeApi-Signature", "")):
        raise HTTPException(401, "bad signature")
    try:
        event = orjson.loads(body)
        content = event["content"]
        values = (event["type"], content.get("item_id"), content.get("user_uuid"))
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise HTTPException(400, "not an event") from error
    digest = hashlib.sha256(body).digest()
    await request.app.state.pool.execute(INSERT, datetime.now(UTC), *values, digest, body)
    return Response(status_code=200)


def is_signed(body: bytes, header: str) -> bool:
    """Tell whether any `v1` part of the header is the body's signature."""
    expected = "v1=" + hmac.digest(SECRET.encode(), body, "sha256").hex().upper()
    return any(hmac.compare_digest(expected, part.strip()) for part in header.split(","))


async def main() -> None:
    """Serve until the end of the input."""
    config = uvicorn.Config(
        app, http="httptools", access_log=False, log_level="warning", backlog=4096
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        answer(port=sock.getsockname()[1], pid=os.getpid())
        async for _ in commands_async():
            pass
        server.should_exit = True
        await serving


if __name__ == "__main__":
    uvloop.run(main())
