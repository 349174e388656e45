"""README's tables are equal to the code."""

import asyncio
import re
from pathlib import Path

import typer.main

from service.commands import assemble
from service.config import Settings
from service.metrics import Metrics
from tests.running import Running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table under a heading: first cell without backticks → others."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines)
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def shown(default: bool | float | str) -> str:
    """Return a default as one would write it in the environment."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_setting_is_in_the_table_with_its_default_and_meaning() -> None:
    documented = table("Settings")
    fields = {str(field.validation_alias): field for field in Settings.model_fields.values()}
    assert list(documented) == list(fields)
    for name, field in fields.items():
        default, meaning = documented[name][0].strip("` |"), documented[name][-1]
        assert meaning == field.description
        if isinstance(field.default, int | float | str):
            assert default == shown(field.default)
        else:
            assert default in ("", meaning), name


async def test_every_metric_is_in_the_table() -> None:
    metrics = Metrics()
    metrics.watch_tasks(asyncio.get_running_loop())
    metrics.watch_pool(lambda: 0, lambda: 0)
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in metrics.registry.collect()
        if family.name.startswith("causeway_")
    }
    documented = table("Metrics")
    assert sorted(documented) == sorted(families)
    for name, family in families.items():
        assert documented[name][0] == family.type
        assert documented[name][-1] == family.documentation


async def test_every_endpoint_is_in_the_table(service: Running) -> None:
    routes = {
        (method, route.path)  # type: ignore[attr-defined]
        for route in service.service.app.routes
        for method in set(route.methods or ()) - {"HEAD"}  # type: ignore[attr-defined]
        if not route.path.startswith("/dashboard/")  # type: ignore[attr-defined]
    }
    documented = {tuple(call.split(" ")) for call in table("Endpoints")}
    assert documented == routes


def test_every_command_is_in_the_table() -> None:
    group = typer.main.get_command(assemble())
    commands = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        children = getattr(command, "commands", None)
        commands |= {f"causeway {name} {child}" for child in children or ()} or {f"causeway {name}"}
    assert set(table("Commands")) == commands


def test_every_module_is_in_the_table() -> None:
    named = {module for cell in table("The way of an event") for module in re.findall(r"\w+", cell)}
    modules = {path.stem for path in (ROOT / "service").glob("*.py")} - {"__init__", "__main__"}
    assert named == modules | {"dashboard"}


def test_the_version_is_the_same_everywhere() -> None:
    from service import __version__

    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
