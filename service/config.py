"""The settings: read once from the environment, checked, and then one frozen value.

Owns every variable name that a user sees, its default and its unit. `NAME_FILE` may stand for any
`NAME` and names a file that holds the value (a mounted secret). Nothing else reads the environment.
A bad setting raises `ConfigError`, which names the variable, what was wrong and what was expected.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from service.errors import ConfigError
from service.nats_settings import NatsSettings
from service.relay_settings import RelaySettings
from service.retention_settings import RetentionSettings
from service.settings import CoreSettings


class Settings(NatsSettings, RetentionSettings, RelaySettings, CoreSettings):
    """All settings. Times are in seconds (`_S`), sizes in bytes (`_BYTES`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def database_check_s(self) -> float:
        """How often a process asks the database what else is new: erasures."""
        return self.poll_s if self.tail == "postgres" else self.nats_check_s


def variables() -> dict[str, str]:
    """Map each environment variable to the field of `Settings` it sets."""
    return {str(f.validation_alias): name for name, f in Settings.model_fields.items()}


def load(
    environ: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings from `environ` (default: the process environment); `options` win.

    An empty variable counts as unset. Raises `ConfigError` naming the variable; a value of a secret
    setting is never part of the message.
    """
    environ = os.environ if environ is None else environ
    values = {name: value for name in variables() if (value := _read(name, environ))}
    values |= options or {}
    try:
        return Settings(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def without_settings(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without our settings, for a service that is to have its own."""
    environ = os.environ if environ is None else environ
    ours = {suffixed for name in variables() for suffixed in (name, f"{name}_FILE")}
    return {name: value for name, value in environ.items() if name not in ours}


def _read(name: str, environ: Mapping[str, str]) -> str:
    file = environ.get(f"{name}_FILE")
    if not file:
        return environ.get(name, "")
    if environ.get(name):
        raise ConfigError(f"{name} and {name}_FILE are both set: unset one of them")
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_FILE={file}: cannot be read: {error}") from error


def _explain(error: ValidationError) -> str:
    secret = {"SecretStr", "Secrets"}
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        name = str(problem["loc"][0])
        field = Settings.model_fields[variables()[name]]
        shown = "" if any(word in str(field.annotation) for word in secret) else problem["input"]
        was = f"={shown!r}" if shown else ""
        lines.append(f"{name}{was}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
