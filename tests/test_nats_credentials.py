"""A user's JWT and key, as in a `.creds` file: tried on a server that trusts an operator alone."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.errors import ConfigError, MirrorUnavailable
from service.nats import connected
from service.nats_credentials import NatsCredentials
from tests.nats_server import NatsServer, nats_server
from tests.running import make_settings

OPERATOR, ACCOUNT, USER, SEED = 14 << 3, 0, 20 << 3, 18 << 3
NO_LIMITS = dict.fromkeys(("conn", "subs", "data", "payload"), -1)


def spelled(raw: bytes) -> str:
    """Return what NATS spells so: with its CRC, in base32."""
    crc = binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(raw + crc).decode().rstrip("=")


class Key:
    """A key of NATS, and what it signs."""

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._key = Ed25519PrivateKey.generate()
        self.public = spelled(bytes([kind]) + self._key.public_key().public_bytes_raw())

    def seed(self, kind: int | None = None) -> str:
        """Return its seed, as one of a `kind` if that is said."""
        kind = self._kind if kind is None else kind
        prefix = bytes([SEED | kind >> 5, (kind & 31) << 3])
        return spelled(prefix + self._key.private_bytes_raw())

    def claims(self, subject: "Key", name: str, **nats: object) -> str:
        """Return a JWT that says so of a key."""
        claims = {"iat": 1, "iss": self.public, "sub": subject.public, "name": name}
        claims["nats"] = {"version": 2} | nats
        claims["jti"] = hashlib.sha256(json.dumps(claims).encode()).hexdigest()
        parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, claims]
        text = ".".join(unpadded(json.dumps(part).encode()) for part in parts)
        return f"{text}.{unpadded(self._key.sign(text.encode()))}"


def unpadded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def creds(jwt: str, seed: str) -> str:
    """Return the text of a `.creds` file, as `nsc` writes it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


@dataclass(frozen=True, slots=True)
class Trusting:
    """A server that trusts an operator, and an account of theirs."""

    server: NatsServer
    account: Key


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.nats.CONNECT_TIMEOUT_S", 60)


@pytest.fixture
def trusting(tmp_path: Path) -> Iterator[Trusting]:
    operator, account = Key(OPERATOR), Key(ACCOUNT)
    more = f"""
    operator: {operator.claims(operator, "operator", type="operator")}
    system_account: {account.public}
    authorization: {{ timeout: 60 }}
    resolver: MEMORY
    resolver_preload: {{
        {account.public}: {operator.claims(account, "ours", type="account", limits=NO_LIMITS)}
    }}
    """
    with nats_server(tmp_path / "nats", more=more) as server:
        yield Trusting(server, account)


async def test_the_user_of_a_creds_file_is_let_in_and_nobody_with_another_key(
    trusting: Trusting,
) -> None:
    user = Key(USER)
    jwt = trusting.account.claims(user, "mirror", type="user", **NO_LIMITS)
    ours = make_settings(nats_url=trusting.server.url, nats_credentials=creds(jwt, user.seed()))
    async with connected(ours, "a test") as connection:
        await connection.client.flush(timeout=60)
    text = creds(jwt, Key(USER).seed())
    other = make_settings(nats_url=trusting.server.url, nats_credentials=text)
    with pytest.raises(MirrorUnavailable, match="Authorization Violation"):
        async with connected(other, "a test"):
            pass


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nothing of the kind", "a user's JWT and seed"),
        (creds("a.b.c", ""), "a user's JWT and seed"),
        (creds("a.b.c", Key(USER).seed()[:-1]), "typing error"),
        (creds("a.b.c", Key(USER).seed()[::-1]), "typing error"),
        (creds("a.b.c", Key(USER).seed(ACCOUNT)), "not a user's"),
        (creds("a.b.c", "1!"), "typing error"),
    ],
)
async def test_what_is_no_creds_file_is_refused_by_its_name(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"CAUSEWAY_NATS_CREDENTIALS: .*{reason}") as caught:
        async with connected(make_settings(nats_credentials=text), "a test"):
            pass
    assert text not in str(caught.value)


def test_the_seed_is_not_shown() -> None:
    user = Key(USER)
    text = repr(NatsCredentials.parse(creds("a.b.c", user.seed())))
    assert "a.b.c" not in text
    assert user.seed() not in text
