"""A client of a named consumer as a process of its own: `... FILE SHARD EVERY URL ...`.

Writes the position and item of each event to FILE, which is its work, and acknowledges after EVERY
of them, or when the stream pauses. Goes on to the next URL when a stream ends. It uses nothing of
Causeway's own client. Ends by a signal only.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import httpx2

from tests.consuming import NAME
from tests.reader import Block
from tests.running import STREAM_TOKEN, WITHIN_S

RETRY_S = 0.1


def main() -> None:
    """Work for ever, on one URL after the other."""
    path, shard, every, *urls = sys.argv[1:]
    headers = {"authorization": f"Bearer {STREAM_TOKEN}"}
    with (
        Path(path).open("a", buffering=1) as output,
        httpx2.Client(headers=headers, timeout=WITHIN_S) as client,
    ):
        for url in itertools.cycle(urls):
            with suppress(httpx2.TransportError):  # the service has gone: on to the next
                work(client, url, shard, int(every), output)
            time.sleep(RETRY_S)


def work(client: httpx2.Client, url: str, shard: str, every: int, output: TextIO) -> None:
    """Work through one stream until it ends."""
    params = {"consumer": NAME, "shard": shard, "control": "1"}
    lease = last = unconfirmed = 0
    with client.stream("GET", f"{url}/stream", params=params) as response:
        if response.status_code != 200:
            return
        for block in blocks(response.iter_text()):
            if block.event == "stream.lease":
                lease = block.json()["lease"]
                output.write(f"lease {lease}\n")
            elif block.is_event:
                last, unconfirmed = block.position, unconfirmed + 1
                output.write(f"{last} {block.json()['content']['item_id']}\n")
            if unconfirmed and (unconfirmed >= every or not block.is_event):
                body = {"position": last, "shard": shard, "lease": lease}
                answer = client.post(f"{url}/consumers/{NAME}/ack", json=body)
                is_acked = answer.status_code == 200
                unconfirmed = 0 if is_acked else unconfirmed  # refused: again at the next block
                output.write(f"{'acked' if is_acked else 'refused'} {last}\n")


def blocks(pieces: Iterator[str]) -> Iterator[Block]:
    """Yield the stream's blocks."""
    text = ""
    for piece in pieces:
        *whole, text = (text + piece).split("\n\n")
        yield from map(Block.parse, whole)


if __name__ == "__main__":
    main()
