"""Lint, format and types are tests."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "service", "tests"),
        ("ruff", "format", "--check", "service", "tests"),
        ("mypy",),
        ("bandit", "-q", "-c", "pyproject.toml", "-r", "service"),
    ],
    ids=lambda command: "-".join(command[:2]),
)
def test_the_code_is_clean(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
