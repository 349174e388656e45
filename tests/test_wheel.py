"""What `pip install causeway` brings: the SQL beside the package, and httpx2, nothing else."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [path] = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_carries_the_package_and_all_of_its_sql(wheel: zipfile.ZipFile) -> None:
    ours = {
        str(path.relative_to(ROOT))
        for folder, pattern in (
            *(("service", "*.py"), ("service", "*.yaml"), ("sql", "*.sql")),
            *(("service/dashboard/static", "*.*"), ("service/dashboard/templates", "*.html")),
        )
        for path in (ROOT / folder).rglob(pattern)
    }
    assert ours | {"service/py.typed"} <= set(wheel.namelist())
    assert {
        "service/dashboard/static/vendor/VENDORED.md",
        "service/dashboard/static/vendor/htmx.LICENSE",
        "service/dashboard/static/vendor/uplot.LICENSE",
        "service/dashboard/static/mark.svg",
        "service/dashboard/templates/base.html",
    } <= set(wheel.namelist())
    assert not [name for name in wheel.namelist() if name.startswith("tests")]


def test_a_plain_install_needs_httpx2_alone(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    required = message_from_bytes(wheel.read(name)).get_all("Requires-Dist") or []
    plain = [line for line in required if "extra ==" not in line]
    assert [line.split(">")[0] for line in plain] == ["httpx2"]


@pytest.mark.parametrize("missing", ["typer", "asyncpg", "starlette"])
def test_the_command_says_what_to_install_where_the_server_is_missing(missing: str) -> None:
    without = (
        f"import sys, runpy; sys.modules[{missing!r}] = None; sys.argv = ['causeway', 'serve']; "
    )
    run = "runpy.run_module('service', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", without + run], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"{missing} is missing: install the service with: pip install 'causeway[server]'"
    )
