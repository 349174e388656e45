"""The settings of ingest, log and stream: names that a user sees, defaults, units and checks.

A pure value; `config.py` reads it from the environment together with the relay's.
"""

import ipaddress
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, SecretStr, field_validator

from service.dsn import Dsn
from service.roles import ALL, Roles, parse_roles

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Networks = tuple[Network, ...]
Secrets = tuple[SecretStr, ...]
MAX_SECRETS = 2  # a Bridge webhook has at most two secrets at a time


def split_secrets(text: str) -> tuple[str, ...]:
    """Return the one or two secrets in `text`, which commas or line ends separate.

    Raises ValueError for none, or for more than two; its message shows no secret.
    """
    secrets = tuple(part.strip() for part in text.replace("\n", ",").split(",") if part.strip())
    if not 1 <= len(secrets) <= MAX_SECRETS:
        raise ValueError(f"one or two secrets were expected, comma-separated, not {len(secrets)}")
    return secrets


def parse_networks(value: Any) -> Any:
    """Return the networks or addresses in a comma-separated text; leave anything else to the type.

    Raises ValueError naming the part that is none.
    """
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(ipaddress.ip_network(part, strict=False) for part in parts)


class CoreSettings(BaseModel):
    """What ingest, log and stream are told."""

    database_url: Dsn | None = Field(
        None,
        validation_alias="DATABASE_URL",
        description="Postgres 15 or newer. Unset: an embedded Postgres is started.",
    )
    database_direct_url: Dsn | None = Field(
        None,
        validation_alias="DATABASE_DIRECT_URL",
        description="The same database without a pooler between, if `DATABASE_URL` is one: "
        "LISTEN and the append need a session of their own.",
    )
    bridge_webhook_secret: Secrets = Field(
        (),
        validation_alias="BRIDGE_WEBHOOK_SECRET",
        description="The webhook's secret in Bridge's dashboard, for the source `default`; while "
        "it is being changed the new and the old one, comma-separated.",
    )
    sources_dir: Path | None = Field(
        None,
        validation_alias="CAUSEWAY_SOURCES_DIR",
        description="A folder with one file for each further source: the name is the source, the "
        "content one or two secrets. Read again when it changes.",
    )
    admin_token: SecretStr | None = Field(
        None,
        validation_alias="CAUSEWAY_ADMIN_TOKEN",
        description="A bootstrap token with every scope, at least 16 characters.",
    )
    stream_token: SecretStr | None = Field(
        None,
        validation_alias="CAUSEWAY_STREAM_TOKEN",
        description="A bootstrap token with the scope `stream`, at least 16 characters.",
    )
    data_dir: Path | None = Field(
        None,
        validation_alias="CAUSEWAY_DATA_DIR",
        description="Where the embedded Postgres keeps its data. Unset: `/var/lib/causeway` for "
        "root, else `~/.local/share/causeway`.",
    )
    host: str = Field(
        "127.0.0.1", validation_alias="CAUSEWAY_HOST", description="The address to listen on."
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        validation_alias="CAUSEWAY_PORT",
        description="The port to listen on; 0 takes a free one and logs it.",
    )
    roles: Roles = Field(
        ALL,
        validation_alias="CAUSEWAY_ROLES",
        description="What this process does, comma-separated: `ingest`, `stream`, `relay`, "
        "`admin`, `mirror`. Unset: all but `mirror`.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        validation_alias="CAUSEWAY_WORKERS",
        description="Processes that share the port.",
    )
    allowed_ips: Networks = Field(
        (),
        validation_alias="CAUSEWAY_ALLOWED_IPS",
        description="Addresses or networks that may call `/webhooks/bridge`, comma-separated. "
        "Unset: all. Bridge's are 63.32.31.5, 52.215.247.62, 34.249.92.209.",
    )
    trusted_proxies: Networks = Field(
        (),
        validation_alias="CAUSEWAY_TRUSTED_PROXIES",
        description="Proxies whose `X-Forwarded-For` is believed. Unset: none.",
    )
    log_level: str = Field(
        "info",
        pattern="^(debug|info|warning|error)$",
        validation_alias="CAUSEWAY_LOG_LEVEL",
        description="`debug`, `info`, `warning` or `error`.",
    )
    traces: bool = Field(
        False,
        validation_alias="CAUSEWAY_TRACES",
        description="`true` sends OpenTelemetry traces, as the standard `OTEL_*` variables say; "
        "needs the extra `otel`.",
    )
    body_max_bytes: int = Field(
        256 * 1024,
        ge=1024,
        le=16 * 1024 * 1024,
        validation_alias="CAUSEWAY_BODY_MAX_BYTES",
        description="A longer webhook body gets 413.",
    )
    body_timeout_s: float = Field(
        10.0,
        gt=0,
        validation_alias="CAUSEWAY_BODY_TIMEOUT_S",
        description="A webhook body must have arrived by then, else 408.",
    )
    head_timeout_s: float = Field(
        10.0,
        gt=0,
        validation_alias="CAUSEWAY_HEAD_TIMEOUT_S",
        description="A request's line and headers must have arrived by then, else 408; a "
        "connection on which nothing comes is closed.",
    )
    connections_max: int = Field(
        30_000,
        ge=16,
        validation_alias="CAUSEWAY_CONNECTIONS_MAX",
        description="Open connections of one process, streams included, or as many as it may open "
        "files; those that wait longest without a request make room for more.",
    )
    append_queue_events: int = Field(
        10_000,
        ge=1,
        validation_alias="CAUSEWAY_APPEND_QUEUE_EVENTS",
        description="Events that may wait for their commit; more get 503.",
    )
    append_queue_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        validation_alias="CAUSEWAY_APPEND_QUEUE_BYTES",
        description="Bytes of bodies that may wait for their commit; more get 503.",
    )
    append_batch_events: int = Field(
        500,
        ge=1,
        le=10_000,
        validation_alias="CAUSEWAY_APPEND_BATCH_EVENTS",
        description="Events in one commit at the most.",
    )
    append_timeout_s: float = Field(
        10.0,
        gt=0,
        validation_alias="CAUSEWAY_APPEND_TIMEOUT_S",
        description="A commit that has not answered by then counts as failed: 503.",
    )
    duplicate_window_s: int = Field(
        7 * 86400,
        ge=2 * 86400,
        validation_alias="CAUSEWAY_DUPLICATE_WINDOW_S",
        description="How long the same bytes from the same source count as the same event. "
        "Bridge retries for up to two days.",
    )
    pool_max_connections: int = Field(
        8,
        ge=1,
        validation_alias="CAUSEWAY_POOL_MAX_CONNECTIONS",
        description="Postgres connections for reading. Append and tail hold three more.",
    )
    poll_s: float = Field(
        1.0,
        gt=0,
        le=60,
        validation_alias="CAUSEWAY_POLL_S",
        description="The tail looks for new events this often even if nobody wakes it.",
    )
    window_events: int = Field(
        10_000,
        ge=1,
        validation_alias="CAUSEWAY_WINDOW_EVENTS",
        description="The newest events, kept in memory for the streams.",
    )
    window_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        validation_alias="CAUSEWAY_WINDOW_BYTES",
        description="The window's size in memory at the most.",
    )
    stream_max: int = Field(
        20_000,
        ge=1,
        validation_alias="CAUSEWAY_STREAM_MAX",
        description="Open streams in one process; more get 429.",
    )
    stream_max_per_token: int = Field(
        2_000,
        ge=1,
        validation_alias="CAUSEWAY_STREAM_MAX_PER_TOKEN",
        description="Open streams of one token in one process; more get 429.",
    )
    consumers_max: int = Field(
        500,
        ge=1,
        validation_alias="CAUSEWAY_CONSUMERS_MAX",
        description="Named consumers of the log; one more gets 409.",
    )
    stream_max_age_s: float = Field(
        3600.0,
        gt=0,
        validation_alias="CAUSEWAY_STREAM_MAX_AGE_S",
        description="A stream is ended at 80 to 100 % of this age; its client resumes elsewhere.",
    )
    heartbeat_s: float = Field(
        15.0,
        gt=0,
        validation_alias="CAUSEWAY_HEARTBEAT_S",
        description="A comment is sent after this much silence, and a filtered stream's id moves.",
    )
    checkpoint_events: int = Field(
        1000,
        ge=1,
        validation_alias="CAUSEWAY_CHECKPOINT_EVENTS",
        description="A filtered stream's id moves after this many events that did not match.",
    )
    send_timeout_s: float = Field(
        30.0,
        gt=0,
        validation_alias="CAUSEWAY_SEND_TIMEOUT_S",
        description="A stream whose client takes nothing for this long is ended.",
    )
    drain_s: float = Field(
        10.0,
        ge=0,
        validation_alias="CAUSEWAY_DRAIN_S",
        description="At SIGTERM the open streams are ended one after another over this time.",
    )
    shutdown_s: float = Field(
        10.0,
        gt=0,
        validation_alias="CAUSEWAY_SHUTDOWN_S",
        description="After the drain, what is still open is cut after this time.",
    )

    @field_validator("bridge_webhook_secret", mode="before")
    @classmethod
    def _parse_secrets(cls, value: Any) -> Any:
        return split_secrets(value) if isinstance(value, str) else value

    @field_validator("roles", mode="before")
    @classmethod
    def _parse_roles(cls, value: Any) -> Any:
        return parse_roles(value) if isinstance(value, str) else value

    @field_validator("allowed_ips", "trusted_proxies", mode="before")
    @classmethod
    def _parse_networks(cls, value: Any) -> Any:
        return parse_networks(value)

    @field_validator("admin_token", "stream_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("a token has at least 16 characters")
        return value

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """The secrets of the source `default`; empty if there are none."""
        return tuple(secret.get_secret_value() for secret in self.bridge_webhook_secret)
