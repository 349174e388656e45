"""Nchan: nginx with one worker and its SSE subscribers, and this process, which publishes to it.

nginx runs in the foreground with a folder and a configuration of its own. Publishing is a POST on a
connection that is kept open; a burst is sent at once and its answers are read afterwards. Nchan
answers when it has the message, so with it the publisher is a third process on the same cores.
"""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from service.event import Event
from tests.bench.children import answer, commands
from tests.bench.load import GENESIS, bursts, prepare
from tests.running import free_port

CONFIG = """\
load_module {module};
daemon off;
master_process on;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 16000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    nchan_max_reserved_memory 256M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /publish {{
            nchan_publisher;
            nchan_channel_id bench;
            nchan_message_buffer_length 20000;
            nchan_message_timeout 1m;
        }}
        location = /stream {{
            nchan_subscriber eventsource;
            nchan_channel_id bench;
            nchan_subscriber_first_message newest;
        }}
    }}
}}
"""
MODULES = (
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/lib64/nginx/modules/ngx_nchan_module.so",
)
FRAME_BYTES = len(b"id: 1234567890:0\nevent: \ndata: \n\n")
START_S = 10.0


def find_module() -> Path | None:
    """Return nginx' module of Nchan, or None where it is not installed."""
    return next((path for path in map(Path, MODULES) if path.exists()), None)


def main() -> None:
    """Publish what is asked for, until the end of the input."""
    module, port = find_module(), free_port()
    with tempfile.TemporaryDirectory(prefix="causeway-nchan-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "nginx.conf").write_text(CONFIG.format(module=module, folder=folder, port=port))
        command = ["nginx", "-p", name, "-c", str(folder / "nginx.conf")]
        with subprocess.Popen(command) as nginx:
            try:
                with _connect(port) as sock:
                    answer(port=port, pid=_worker(nginx.pid))
                    _feed(sock)
            finally:
                nginx.terminate()


def _feed(sock: socket.socket) -> None:
    position = 0
    orders = commands()
    for order in orders:
        events = prepare(order, position, GENESIS)
        position += len(events)
        requests = [
            (b"".join(map(_request, burst)), len(burst)) for burst in bursts(events, order["burst"])
        ]
        answer(bytes=sum(len(event.body) + len(event.type) + FRAME_BYTES for event in events))
        next(orders)
        for request, count in requests:
            sock.sendall(request)
            _read_answers(sock, count)
        answer(published=len(events))


def _request(event: Event) -> bytes:
    # On one line: Nchan would make a `data:` line of each, and the sizes would not compare.
    body = event.body.replace(b"\n", b" ")
    head = (
        "POST /publish HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"X-EventSource-Event: {event.type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _read_answers(sock: socket.socket, count: int) -> None:
    """Read `count` answers; each has one status line."""
    answers = 0
    while answers < count:
        received = sock.recv(1 << 16)
        answers += received.count(b"HTTP/1.1 20")
        if not received or received.count(b"HTTP/1.1 ") != received.count(b"HTTP/1.1 20"):
            raise RuntimeError(f"Nchan refused: {received!r}")


def _connect(port: int) -> socket.socket:
    deadline = time.monotonic() + START_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _worker(master: int) -> int:
    """Return the one process that serves."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(children[0]) if children else os.getpid()


if __name__ == "__main__":
    main()
