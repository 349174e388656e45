"""The settings of NATS: names that a user sees, defaults, units and checks. A pure value.

For whoever mirrors the log into a JetStream stream, and whoever reads it there.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_validator

from service.retention_settings import parse_size

_SCHEMES = ("nats", "tls")
_STREAM = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its message may quote a password
        return False


class NatsSettings(BaseModel):
    """What the mirror and its readers are told."""

    nats_url: SecretStr | None = Field(
        None,
        validation_alias="CAUSEWAY_NATS_URL",
        description="NATS servers, comma-separated: `nats://host:4222`, or `tls://`. Needed by the "
        "role `mirror` and by `CAUSEWAY_TAIL=nats`.",
    )
    nats_credentials: SecretStr | None = Field(
        None,
        validation_alias="CAUSEWAY_NATS_CREDENTIALS",
        description="The text of a `.creds` file: a user's JWT and seed.",
    )
    nats_user: str | None = Field(
        None,
        validation_alias="CAUSEWAY_NATS_USER",
        description="A user of NATS, with `CAUSEWAY_NATS_PASSWORD`.",
    )
    nats_password: SecretStr | None = Field(
        None, validation_alias="CAUSEWAY_NATS_PASSWORD", description="That user's password."
    )
    nats_token: SecretStr | None = Field(
        None, validation_alias="CAUSEWAY_NATS_TOKEN", description="A token, instead of a user."
    )
    nats_ca: Path | None = Field(
        None,
        validation_alias="CAUSEWAY_NATS_CA",
        description="A PEM file with the authorities that sign the servers' certificates. Unset: "
        "the system's.",
    )
    nats_cert: Path | None = Field(
        None,
        validation_alias="CAUSEWAY_NATS_CERT",
        description="A PEM file with a certificate to log in with, and `CAUSEWAY_NATS_KEY`.",
    )
    nats_key: Path | None = Field(
        None, validation_alias="CAUSEWAY_NATS_KEY", description="A PEM file with its key."
    )
    nats_stream: str = Field(
        "CAUSEWAY",
        validation_alias="CAUSEWAY_NATS_STREAM",
        description="The JetStream stream that mirrors the log.",
    )
    nats_replicas: int = Field(
        1,
        ge=1,
        le=5,
        validation_alias="CAUSEWAY_NATS_REPLICAS",
        description="Servers that keep the stream, when the mirror makes it: 3 in a cluster.",
    )
    nats_retention_s: int | None = Field(
        None,
        ge=60,
        validation_alias="CAUSEWAY_NATS_RETENTION_S",
        description="The stream keeps what is younger, when the mirror makes it. Unset: for ever.",
    )
    nats_retention_bytes: int | None = Field(
        None,
        ge=1024 * 1024,
        validation_alias="CAUSEWAY_NATS_RETENTION_BYTES",
        description="The stream's size at the most, when the mirror makes it, as `500GB` or in "
        "bytes. Unset: no limit.",
    )
    nats_window_events: int = Field(
        2000,
        ge=1,
        le=50_000,
        validation_alias="CAUSEWAY_NATS_WINDOW_EVENTS",
        description="Events that the mirror has published and NATS has not acknowledged yet, at "
        "the most.",
    )

    tail: Literal["postgres", "nats"] = Field(
        "postgres",
        validation_alias="CAUSEWAY_TAIL",
        description="Where streams get new events: `postgres`, or `nats`, the mirror's stream.",
    )
    nats_check_s: float = Field(
        5.0,
        gt=0,
        le=60,
        validation_alias="CAUSEWAY_NATS_CHECK_S",
        description="With `CAUSEWAY_TAIL=nats`: Postgres is asked this often for the log's end and "
        "for erasures.",
    )

    @field_validator("tail")
    @classmethod
    def _check_tail(cls, value: str, info: ValidationInfo) -> str:
        if value == "nats" and not info.data.get("nats_url"):
            raise ValueError("CAUSEWAY_NATS_URL is needed for it")
        return value

    @field_validator("nats_url")
    @classmethod
    def _check_urls(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            urls = [part.strip() for part in value.get_secret_value().split(",")]
            if not all(map(_is_url, urls)):
                raise ValueError("nats://host:4222 or tls://host:4222 was expected, with commas")
        return value

    @field_validator("nats_stream")
    @classmethod
    def _check_stream(cls, value: str) -> str:
        if not _STREAM.fullmatch(value):
            raise ValueError("1 to 64 letters, digits, - and _ were expected")
        return value

    @field_validator("nats_retention_bytes", mode="before")
    @classmethod
    def _parse_nats_size(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value

    @cached_property
    def nats_urls(self) -> tuple[str, ...]:
        """The servers; empty if there are none."""
        text = self.nats_url.get_secret_value() if self.nats_url else ""
        return tuple(part.strip() for part in text.split(",") if part.strip())
