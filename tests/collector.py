"""An OpenTelemetry collector for tests: takes OTLP over HTTP, and keeps the spans that came."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Kept:
    """A span as it came; ids in hex, `parent` empty for the first of a trace."""

    name: str
    trace: str
    span: str
    parent: str
    kind: int
    began_ns: int
    ended_ns: int
    is_error: bool
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    resource: dict[str, Any]


@dataclass(slots=True)
class Collector:
    """What came, oldest first; `status` is what it answers."""

    port: int
    status: int = 200
    requests: int = 0
    hold: threading.Event = field(default_factory=threading.Event)  # set: no answer comes
    raw: list[bytes] = field(default_factory=list)
    spans: list[Kept] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, *names: str) -> list[Kept]:
        """Return the spans with these names."""
        return [span for span in self.spans if span.name in names]


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector on a free port until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.requests += 1
            while kept.hold.is_set():
                time.sleep(0.01)
            if kept.status == 200 and self.path == "/v1/traces":
                kept.raw.append(body)
                kept.spans += _parse(body)
            self.send_response(kept.status if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        kept = Collector(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield kept
        finally:
            server.shutdown()
            thread.join()


def _parse(body: bytes) -> Iterator[Kept]:
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(of_resource.resource.attributes)
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                yield Kept(
                    *(span.name, span.trace_id.hex(), span.span_id.hex()),
                    *(span.parent_span_id.hex(), span.kind),
                    *(span.start_time_unix_nano, span.end_time_unix_nano),
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    _values(span.attributes),
                    tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    resource,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
