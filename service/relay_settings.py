"""The settings of the relay: names that a user sees, defaults, units and checks. A pure value."""

from functools import cached_property
from typing import Any

from pydantic import BaseModel, Field, field_validator

from service.settings import Networks, Secrets, parse_networks, split_secrets

MIN_KEY_CHARACTERS = 32


class RelaySettings(BaseModel):
    """What the relay and the webhooks' administration are told."""

    secret_key: Secrets = Field(
        (),
        validation_alias="CAUSEWAY_SECRET_KEY",
        description="Encrypts the secrets of outgoing webhooks in the database, at least 32 "
        "characters; while it is being changed the new and the old one, comma-separated. Unset: "
        "no webhooks.",
    )
    relay_max_webhooks: int = Field(
        10,
        ge=1,
        le=1000,
        validation_alias="CAUSEWAY_RELAY_MAX_WEBHOOKS",
        description="Outgoing webhooks of one application; more get 409.",
    )
    relay_timeout_s: float = Field(
        15.0,
        gt=0,
        le=300,
        validation_alias="CAUSEWAY_RELAY_TIMEOUT_S",
        description="A callback must have answered by then, from the connect to the last byte.",
    )
    relay_concurrency: int = Field(
        32,
        ge=1,
        le=1000,
        validation_alias="CAUSEWAY_RELAY_CONCURRENCY",
        description="Calls of one webhook that may be open at once in one process.",
    )
    relay_backfill_per_s: float = Field(
        100.0,
        gt=0,
        validation_alias="CAUSEWAY_RELAY_BACKFILL_PER_S",
        description="History that a new webhook asked for is sent at most this fast.",
    )
    relay_disable_after_s: float = Field(
        5 * 86400.0,
        gt=0,
        validation_alias="CAUSEWAY_RELAY_DISABLE_AFTER_S",
        description="A webhook that failed for this long without one success is disabled.",
    )
    relay_retention_s: int = Field(
        14 * 86400,
        ge=2 * 86400,
        validation_alias="CAUSEWAY_RELAY_RETENTION_S",
        description="Deliveries that succeeded, and their attempts, are kept this long.",
    )
    relay_allow_http: bool = Field(
        False,
        validation_alias="CAUSEWAY_RELAY_ALLOW_HTTP",
        description="`true` allows callback URLs without TLS, for tests and inside a cluster.",
    )
    relay_allowed_networks: Networks = Field(
        (),
        validation_alias="CAUSEWAY_RELAY_ALLOWED_NETWORKS",
        description="Private networks that callbacks may live in, comma-separated. Unset: public "
        "addresses only.",
    )

    @field_validator("secret_key", mode="before")
    @classmethod
    def _parse_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        keys = split_secrets(value)
        if any(len(key) < MIN_KEY_CHARACTERS for key in keys):
            raise ValueError(f"a key has at least {MIN_KEY_CHARACTERS} characters")
        return keys

    @field_validator("relay_allowed_networks", mode="before")
    @classmethod
    def _parse_relay_networks(cls, value: Any) -> Any:
        return parse_networks(value)

    @cached_property
    def secret_keys(self) -> tuple[str, ...]:
        """The keys for stored secrets, the newest first; empty if there are none."""
        return tuple(key.get_secret_value() for key in self.secret_key)
