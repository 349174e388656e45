"""The API's documents: valid, equal to the code in both directions, and true of real answers."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any

import httpx2
import pytest
import yaml
from jsonschema import Draft7Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from service import __version__, admin, delivery_wish, pages, payloads, stream
from service.documents import ASYNCAPI, OPENAPI, document_text
from service.errors import Problem
from service.event import ERASED
from service.metrics import CLOSE_REASONS
from service.signature import HEADER, sign
from tests import bridge, described
from tests.commands import command
from tests.described import (
    asyncapi,
    codes,
    complaints,
    openapi,
    operations,
    parameters,
    query_names,
    resolved,
)
from tests.logkeeping import Owner
from tests.relayed import deliver
from tests.relaying import RELAY
from tests.running import ADMIN_TOKEN, SECRET, WITHIN_S, Running, eventually
from tests.sse import Parser

Start = Callable[..., Awaitable[Running]]
MESSAGES = asyncapi["components"]["messages"]
ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
LEASE_S = 3600  # longer than any test
UNWRITTEN = {"client", "send_timeout", "refused", "error"}  # nobody is there to read these reasons


@pytest.fixture(autouse=True)
def _ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stalls for some seconds is ready here: its answer is what is looked at."""
    monkeypatch.setattr("service.app.STALE_READ_S", 10 * WITHIN_S)


def problems() -> Iterator[type[Problem]]:
    """Yield every Problem of service/errors.py, and their root."""
    todo = [Problem]
    while todo:
        kind = todo.pop()
        yield kind
        todo += kind.__subclasses__()


def references(node: Any) -> Iterator[str]:
    """Yield every reference in a document."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list):
            yield from references(value)
        elif isinstance(node, dict) and "$ref" in node and value == node["$ref"]:
            yield value


def test_openapi_is_valid_by_the_standards_own_schema() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(openapi).iter_errors()] == []


def test_asyncapi_is_valid_by_the_standards_own_schema() -> None:
    found = Draft7Validator(described.asyncapi_schema()).iter_errors(asyncapi)
    assert [(list(error.absolute_path), error.message[:200]) for error in found] == []


@pytest.mark.parametrize("name", [OPENAPI, ASYNCAPI])
def test_the_yaml_says_nothing_that_json_cannot(name: str) -> None:
    """A date or a number without quotes would be something else in JSON, silently."""
    document = yaml.safe_load(document_text(name))
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize("document", [openapi, asyncapi], ids=[OPENAPI, ASYNCAPI])
def test_every_reference_leads_somewhere_and_nothing_lies_unused(document: dict[str, Any]) -> None:
    used = set(references(document))
    for reference in used:
        assert resolved(document, {"$ref": reference}) is not None
    named = {
        f"#/components/{kind}/{name}"
        for kind, parts in document["components"].items()
        if kind not in ("securitySchemes", "examples")
        for name in parts
    }
    # A method that no path knows has no operation to stand at.
    everywhere = ("MethodNotAllowed", "NotServedHere")
    assert named - used <= {f"#/components/responses/{name}" for name in everywhere}


@pytest.mark.parametrize("document", [openapi, asyncapi], ids=[OPENAPI, ASYNCAPI])
def test_the_documents_have_the_products_version(document: dict[str, Any]) -> None:
    assert document["info"]["version"] == __version__


async def test_every_route_is_described_and_nothing_else_is(service: Running) -> None:
    routes = {
        (route.path, method)  # type: ignore[attr-defined]
        for route in service.service.app.routes
        for method in route.methods or ()  # type: ignore[attr-defined]
        if not route.path.startswith("/dashboard")  # type: ignore[attr-defined] # for people
    }
    described_ = {(path, method) for path, method, _ in operations()}
    assert {pair for pair in routes if pair[1] != "HEAD"} <= described_
    assert described_ <= routes


def test_every_query_parameter_is_described_and_nothing_else_is() -> None:
    known = {
        "/stream": stream.PARAMS,
        "/events": pages.PARAMS,
        "/api/stats": admin.STATS_PARAMS,
        "/api/webhooks/{id}/deliveries": delivery_wish.PARAMS,
    }
    for path, method, operation in operations():
        assert query_names(path, operation) == known.get(path, set()), (path, method)


def test_every_path_parameter_is_described() -> None:
    for path, method, operation in operations():
        names = {p["name"] for p in parameters(path, operation) if p["in"] == "path"}
        assert names == {part[1:-1] for part in path.split("/") if part[:1] == "{"}, (path, method)


def test_the_asyncapi_query_is_the_streams() -> None:
    query = asyncapi["operations"]["sendEvents"]["bindings"]["http"]["query"]
    assert set(query["properties"]) == stream.PARAMS


def test_the_list_of_codes_is_closed_and_complete() -> None:
    listed = openapi["components"]["schemas"]["ErrorCode"]["enum"]
    assert listed == sorted({kind.code for kind in problems()})


def test_every_code_is_described_with_its_own_status_and_no_other() -> None:
    status = {kind.code: str(kind.status) for kind in problems()}
    seen = set()
    everywhere = openapi["components"]["responses"]
    shared = {"405": everywhere["MethodNotAllowed"], "421": everywhere["NotServedHere"]}
    for responses in [*(operation["responses"] for _, _, operation in operations()), shared]:
        for number, response in responses.items():
            for code in codes(response):
                assert status[code] == number, code
                seen.add(code)
    assert seen == set(status)


def test_an_error_that_waiting_helps_says_for_how_long() -> None:
    waits = {kind.code for kind in problems() if kind.retry_after_s is not None}
    for path, method, operation in operations():
        for response in operation["responses"].values():
            if codes(response) & waits:
                headers = resolved(openapi, response)["headers"]
                assert "Retry-After" in headers, (path, method)


def test_every_example_is_one() -> None:
    checked = 0
    for schema, value in _openapi_examples():
        assert described.errors(schema, value) == [], value
        checked += 1
    assert checked > 60


def _openapi_examples() -> Iterator[tuple[dict[str, Any], Any]]:
    for path, _, operation in operations():
        for parameter in parameters(path, operation):
            yield from _examples(parameter)
        body = resolved(openapi, operation.get("requestBody", {}))
        for content in body.get("content", {}).values():
            yield from _examples(content)
        for response in operation["responses"].values():
            for content in resolved(openapi, response).get("content", {}).values():
                yield from _examples(content)
    for schema in openapi["components"]["schemas"].values():
        yield from ((schema, value) for value in schema.get("examples", []))


def _examples(node: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    if "example" in node:
        yield node["schema"], node["example"]
    for example in node.get("examples", {}).values():
        yield node["schema"], resolved(openapi, example)["value"]


def test_every_operation_with_a_json_answer_shows_one() -> None:
    documents = ("readOpenapi", "readAsyncapi")
    for _, _, operation in operations():
        for response in operation["responses"].values():
            for name, content in resolved(openapi, response).get("content", {}).items():
                if name.endswith("json") and operation["operationId"] not in documents:
                    assert "example" in content or "examples" in content, operation["operationId"]


def test_every_type_of_bridge_has_its_two_messages() -> None:
    types = {*payloads.EVENTS, "TEST_EVENT", "item.account.deleted"}
    plain = {key for key in MESSAGES if not key.startswith(("cloudevents.", "stream."))}
    assert plain == types | {"any", ERASED}
    assert {key.removeprefix("cloudevents.") for key in MESSAGES if key[:6] == "cloude"} == plain
    assert set(asyncapi["channels"]["stream"]["messages"]) == set(MESSAGES)
    for key, message in MESSAGES.items():
        assert key.endswith(message.get("name", "any"))


def test_every_message_shows_an_example_that_is_one() -> None:
    for key, message in MESSAGES.items():
        for example in message["examples"]:
            assert described.errors(message["payload"], example["payload"], of="asyncapi") == [], (
                key
            )
            if "name" in message and not key.startswith("stream.") and key != ERASED:
                assert example["payload"]["type"] == message["name"]


def test_the_reasons_of_closing_are_those_that_are_sent() -> None:
    reasons = MESSAGES["stream.closing"]["payload"]["properties"]["reason"]["enum"]
    assert set(reasons) == set(CLOSE_REASONS) - UNWRITTEN


def test_what_bridge_sends_is_as_its_message_says() -> None:
    events = [*islice(payloads.events(seed=3), 600), ("TEST_EVENT", payloads.TEST_EVENT)]
    assert {type_ for type_, _ in events} >= set(payloads.EVENTS)
    for type_, body in events:
        message = MESSAGES[type_]
        assert described.errors(message["payload"], json.loads(body), of="asyncapi") == [], body


def test_a_message_of_another_shape_is_found() -> None:
    """The checks above can fail."""
    payload = MESSAGES["item.created"]["payload"]
    bad = {"type": "item.created", "content": {"item_id": "4568477"}}
    assert len(described.errors(payload, bad, of="asyncapi")) == 2
    assert described.errors(openapi["components"]["schemas"]["EventId"], "1042") != []


async def test_the_service_answers_both_documents(service: Running) -> None:
    async with httpx2.AsyncClient(base_url=service.url) as client:
        for path, document in (("/openapi.json", openapi), ("/asyncapi.json", asyncapi)):
            response = await client.get(path)
            assert response.json() == document
            assert complaints(path, "GET", response) == []


async def test_the_command_prints_what_the_service_answers() -> None:
    assert yaml.safe_load((await command("openapi")).out) == openapi
    assert json.loads((await command("openapi", "--json")).out) == openapi
    assert yaml.safe_load((await command("openapi", "--asyncapi")).out) == asyncapi


async def test_every_get_answers_head(start: Start, owner: Owner) -> None:
    service = await start(**RELAY)
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        await bridge.post(service.url, bridge.body())
        assert (await client.put("/consumers/billing")).status_code == 201
        webhook = await client.post("/api/webhooks", json={"url": "http://127.0.0.1:9/"})
        webhook_id = webhook.json()["id"]
        await deliver(owner, webhook_id, "delivered", 1)
        replay = await client.post(f"/api/webhooks/{webhook_id}/replays", json={})
        known = {
            "position": 1,
            "name": "billing",
            "id": webhook_id,
            "replay_id": replay.json()["id"],
        }
        for path, method, _ in operations():
            if method == "GET":
                response = await client.head(path.format(**known))
                assert response.status_code == 200, path
                assert response.content == b""


async def test_every_path_refuses_a_method_that_it_does_not_know(service: Running) -> None:
    shared = openapi["components"]["responses"]["MethodNotAllowed"]
    async with httpx2.AsyncClient(base_url=service.url) as client:
        for path in openapi["paths"]:
            response = await client.request("TRACE", path.replace("{", "").replace("}", ""))
            assert response.status_code == 405
            assert {response.json()["error"]["code"]} == codes(shared)
            assert set(shared["headers"]) <= {n.title() for n in response.headers}


async def test_real_answers_of_the_log_are_as_described(service: Running) -> None:
    async with httpx2.AsyncClient(base_url=service.url, headers=service.headers) as client:
        body = bridge.body("item.refreshed")
        signed = {HEADER: sign(body, (SECRET,))}
        await check(client, "POST", "/webhooks/bridge", 200, content=body, headers=signed)
        await check(client, "POST", "/webhooks/bridge", 200, content=body, headers=signed)
        await check(client, "POST", "/webhooks/bridge", 401, content=body)
        not_one = {HEADER: sign(b"[]", (SECRET,))}
        await check(client, "POST", "/webhooks/bridge", 400, content=b"[]", headers=not_one)
        source = "/webhooks/bridge/{source}"
        await check(client, "POST", source, 404, url="/webhooks/bridge/acme", content=body)
        big = b" " * 300_000
        await check(
            client, "POST", source, 413, url="/webhooks/bridge/default", content=big, headers=signed
        )
        for media_type in openapi["paths"]["/events"]["get"]["responses"]["200"]["content"]:
            page = await check(client, "GET", "/events", 200, headers={"accept": media_type})
            assert page.headers["content-type"].startswith(media_type)
        one = "/events/{position}"
        for media_type in openapi["paths"][one]["get"]["responses"]["200"]["content"]:
            await check(client, "GET", one, 200, url="/events/1", headers={"accept": media_type})
        await check(client, "GET", "/events", 400, url="/events?limit=0")
        await check(client, "GET", "/events", 401, headers={"authorization": "Bearer no"})
        await check(client, "GET", "/events", 406, headers={"accept": "text/html"})
        await check(client, "GET", "/events", 409, url="/events?after=9")
        await check(client, "GET", one, 404, url="/events/9")
        await check(client, "GET", one, 409, url="/events/1.00000000")
        for path in ("/metrics", "/livez", "/readyz"):
            await check(client, "GET", path, 200)


async def test_real_answers_about_consumers_are_as_described(service: Running) -> None:
    one, ack = "/consumers/{name}", "/consumers/{name}/ack"
    async with httpx2.AsyncClient(base_url=service.url, headers=service.headers) as client:
        await bridge.post(service.url, bridge.body())
        wish: dict[str, Any] = {"start": "start", "lease_s": LEASE_S}
        wish["filter"] = {"types": ["item.*"], "item_ids": [4568477]}
        await check(client, "PUT", one, 201, url="/consumers/billing", json=wish)
        await check(client, "PUT", one, 200, url="/consumers/billing", json=wish)
        await check(client, "PUT", one, 400, url="/consumers/Billing", json=wish)
        await check(client, "PUT", one, 409, url="/consumers/b", json={"start": 7})
        await check(client, "PUT", one, 413, url="/consumers/b", content=b" " * 70_000)
        await check(client, "POST", ack, 409, url="/consumers/billing/ack", json={"position": 1})
        await check(client, "POST", ack, 404, url="/consumers/nobody/ack", json={"position": 1})
        await check(client, "POST", ack, 400, url="/consumers/billing/ack", content=b"{")
        query = {"consumer": "billing", "control": "1"}
        async with client.stream("GET", "/stream", params=query) as held:
            assert complaints_of_headers(held) == []
            await eventually(lambda: service.service.hub._subscribers)
            listed = await check(client, "GET", "/consumers", 200)
            [shard] = listed.json()["consumers"][0]["shards"]
            assert shard["held_by"] is not None
            url = "/stream?consumer=billing&wait=0"
            await check(client, "GET", "/stream", 409, url=url)
            await check(client, "GET", "/stream", 409, url=f"{url}&shard=0/2")
            lease = int(held.headers["causeway-lease"])
            done = {"position": 1, "lease": lease}
            await check(client, "POST", ack, 200, url="/consumers/billing/ack", json=done)
            stale = {"position": 1, "lease": lease + 1}
            await check(client, "POST", ack, 409, url="/consumers/billing/ack", json=stale)
        await check(client, "GET", one, 200, url="/consumers/billing")
        await check(client, "DELETE", one, 204, url="/consumers/billing")
        await check(client, "GET", one, 404, url="/consumers/billing")
        await check(client, "GET", "/stream", 404, url="/stream?consumer=billing")


async def test_real_answers_about_webhooks_are_as_described(start: Start) -> None:
    service = await start(**RELAY)
    many, one = "/api/webhooks", "/api/webhooks/{id}"
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        await bridge.post(service.url, bridge.body())
        wish = {"url": "http://127.0.0.1:9/", "types": ["item.*"], "headers": {"X-Api-Key": "k"}}
        made = await check(client, "POST", many, 201, json=wish)
        url = f"{many}/{made.json()['id']}"
        await check(client, "POST", many, 400, json={})
        await check(client, "POST", many, 409, json=wish | {"start": 7})
        await check(client, "POST", many, 413, content=b" " * 70_000)
        await check(client, "GET", many, 200)
        await check(client, "GET", many, 401, headers={"authorization": "Bearer no"})
        await check(client, "GET", many, 403, headers=service.headers)
        await check(client, "GET", one, 200, url=url)
        await check(client, "GET", one, 404, url=f"{many}/999")
        await check(client, "PATCH", one, 200, url=url, json={"name": "Billing", "types": None})
        await check(client, "PATCH", one, 400, url=url, json={"ordered": True})
        await check(client, "POST", f"{one}/rotate", 200, url=f"{url}/rotate")
        await check(client, "POST", f"{one}/test", 200, url=f"{url}/test")
        await check(client, "POST", f"{one}/disable", 200, url=f"{url}/disable")
        ahead = {"start": 9}
        await check(client, "POST", f"{one}/enable", 409, url=f"{url}/enable", json=ahead)
        await check(client, "POST", f"{one}/enable", 200, url=f"{url}/enable")
        await check(client, "DELETE", one, 204, url=url)
        await check(client, "DELETE", one, 404, url=url)
    off = await start()
    async with httpx2.AsyncClient(base_url=off.url, headers=ADMIN) as client:
        for path, method, _ in operations():
            if path.startswith(many):
                await check(client, method, path, 409, url=path.replace("{id}", "1"))


async def test_real_answers_to_whoever_administers_are_as_described(service: Running) -> None:
    one = "/api/tokens/{token_id}"
    async with httpx2.AsyncClient(base_url=service.url, headers=ADMIN) as client:
        await bridge.post(service.url, bridge.body())
        wish = {"name": "billing", "types": ["item.*"], "expires_at": "2100-01-01T00:00:00Z"}
        made = await check(client, "POST", "/api/tokens", 201, json=wish)
        await check(client, "POST", "/api/tokens", 400, json=wish)
        await check(client, "POST", "/api/tokens", 413, content=b" " * 70_000)
        await check(client, "GET", "/api/tokens", 200)
        await check(client, "DELETE", one, 204, url=f"/api/tokens/{made.json()['token_id']}")
        await check(client, "DELETE", one, 404, url=f"/api/tokens/{made.json()['token_id']}")
        await check(client, "GET", "/api/tokens", 200)
        await check(client, "GET", "/api/tokens", 403, headers=service.headers)
        await check(client, "GET", "/api/tokens", 401, headers={"authorization": "Bearer no"})
        await check(client, "GET", "/api/sources", 200)
        for range_ in ("hour", "day", "week", "month"):
            await check(client, "GET", "/api/stats", 200, url=f"/api/stats?range={range_}")
        await check(client, "GET", "/api/stats", 400, url="/api/stats?range=year")
        await check(client, "GET", "/api/log/checkpoint", 200)


async def check(
    client: httpx2.AsyncClient, method: str, path: str, status: int, url: str = "", **request: Any
) -> httpx2.Response:
    """Send a request; its answer has that status, and is as the document says."""
    response = await client.request(method, url or path, **request)
    assert response.status_code == status, response.text
    assert complaints(path, method, response) == []
    return response


def complaints_of_headers(response: httpx2.Response) -> list[str]:
    """Return what an open stream's headers do not say as described."""
    described_ = openapi["paths"]["/stream"]["get"]["responses"]["200"]
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] in described_["content"]
    values = {name: response.headers.get(name) for name in described_["headers"]}
    lease = values["Causeway-Lease"]
    return (
        [] if values["Cache-Control"] == "no-store" and lease and lease.isdigit() else [str(values)]
    )


@pytest.mark.parametrize("format_", ["bridge", "cloudevents"])
async def test_what_is_streamed_is_as_its_message_says(service: Running, format_: str) -> None:
    events = [*islice(payloads.events(seed=5), 60), ("TEST_EVENT", payloads.TEST_EVENT)]
    async with httpx2.AsyncClient(base_url=service.url, headers=service.headers) as client:
        for _, body in events:
            await bridge.post(service.url, body, client=client)
        await eventually(lambda: service.service.window.position == len(events))
        params = {"from": "start", "control": "1", "format": format_}
        seen = []
        async with (
            asyncio.timeout(WITHIN_S),
            client.stream("GET", "/stream", params=params) as stream_,
        ):
            parser = Parser()
            async for chunk in stream_.aiter_bytes():
                for message in parser.feed(chunk):
                    seen.append(message.type)
                    is_ours = message.type.startswith("stream.")
                    key = (
                        message.type
                        if is_ours or format_ == "bridge"
                        else f"cloudevents.{message.type}"
                    )
                    payload = MESSAGES[key]["payload"]
                    assert described.errors(payload, json.loads(message.data), of="asyncapi") == []
                if "stream.caught_up" in seen:
                    break
        assert seen == [type_ for type_, _ in events] + ["stream.caught_up"]
