"""Settings: what each variable takes, and the sentence that a bad one stops the start with."""

import ipaddress
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.config import Settings, load, variables
from service.errors import ConfigError
from service.settings import split_secrets
from tests.running import make_settings

HIDDEN = "hidden-7f3a"
SECRET_VARIABLES = [
    "DATABASE_URL",
    "DATABASE_DIRECT_URL",
    "BRIDGE_WEBHOOK_SECRET",
    "CAUSEWAY_ADMIN_TOKEN",
    "CAUSEWAY_STREAM_TOKEN",
    "CAUSEWAY_SECRET_KEY",
    "CAUSEWAY_NATS_URL",
    "CAUSEWAY_NATS_CREDENTIALS",
    "CAUSEWAY_NATS_PASSWORD",
    "CAUSEWAY_NATS_TOKEN",
]
FIELDS = Settings.model_fields
NUMBERS = [name for name, field in variables().items() if FIELDS[field].annotation in (int, float)]


def refusal(**environ: str) -> str:
    """Return the sentence with which `environ` is refused."""
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert caught.value.__cause__ is None or not isinstance(caught.value.__cause__, ValidationError)
    return str(caught.value)


def test_nothing_set_gives_every_default() -> None:
    settings = load({})
    for name, field in FIELDS.items():
        assert getattr(settings, name) == field.default, name
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.body_max_bytes == 256 * 1024
    assert settings.secrets == ()


@pytest.mark.parametrize("name", variables())
def test_an_empty_variable_counts_as_unset(name: str) -> None:
    assert load({name: "", f"{name}_FILE": ""}) == load({})


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSEWAY_PORT", "4711")
    assert load().port == 4711
    assert load({}).port == 8000


def test_only_load_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSEWAY_HEARTBEAT_S", "99")
    assert make_settings().heartbeat_s == 15.0


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load({}).port = 1


def test_values_become_what_they_mean() -> None:
    settings = load(
        {
            "BRIDGE_WEBHOOK_SECRET": " new , old\n",
            "CAUSEWAY_ALLOWED_IPS": "63.32.31.5, 10.1.2.3/8,,2001:db8::/32",
            "CAUSEWAY_BODY_TIMEOUT_S": "0.5",
            "CAUSEWAY_SOURCES_DIR": "/etc/sources",
            "CAUSEWAY_UNKNOWN": "ignored",
        }
    )
    assert settings.secrets == ("new", "old")
    assert settings.allowed_ips == tuple(
        ipaddress.ip_network(it) for it in ("63.32.31.5/32", "10.0.0.0/8", "2001:db8::/32")
    )
    assert settings.body_timeout_s == 0.5
    assert settings.sources_dir == Path("/etc/sources")


BAD = [
    ("CAUSEWAY_PORT", "http", r"integer"),
    ("CAUSEWAY_PORT", "65536", r"less than or equal to 65535"),
    ("CAUSEWAY_PORT", "-1", r"greater than or equal to 0"),
    ("CAUSEWAY_LOG_LEVEL", "loud", r"debug\|info\|warning\|error"),
    ("CAUSEWAY_ALLOWED_IPS", "63.32.31.5,bridge", r"'bridge' .* IPv4 or IPv6 network"),
    ("CAUSEWAY_TRUSTED_PROXIES", "10.0.0.0/99", r"IPv4 or IPv6 network"),
    ("CAUSEWAY_BODY_MAX_BYTES", "10", r"greater than or equal to 1024"),
    ("CAUSEWAY_BODY_MAX_BYTES", "256K", r"integer"),
    ("CAUSEWAY_DUPLICATE_WINDOW_S", "3600", r"greater than or equal to 172800"),
    ("CAUSEWAY_RETENTION_S", "99999999999999", r"less than or equal to 3153600000"),
    ("CAUSEWAY_ERASE_DELAY_S", "99999999999999", r"less than or equal to 3153600000"),
    ("CAUSEWAY_HEARTBEAT_S", "0", r"greater than 0"),
    ("CAUSEWAY_POLL_S", "61", r"less than or equal to 60"),
    ("CAUSEWAY_DRAIN_S", "-1", r"greater than or equal to 0"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: str, expected: str) -> None:
    sentence = refusal(**{name: value})
    assert sentence.startswith(f"{name}={value!r}: ")
    assert re.search(expected, sentence)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x", "1e400"])
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_must_be_a_finite_number(name: str, value: str) -> None:
    assert refusal(**{name: value}).startswith(f"{name}={value!r}: ")


def test_all_that_is_wrong_is_said_at_once() -> None:
    sentence = refusal(CAUSEWAY_PORT="x", CAUSEWAY_HEARTBEAT_S="x")
    assert "CAUSEWAY_PORT" in sentence
    assert "CAUSEWAY_HEARTBEAT_S" in sentence


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BRIDGE_WEBHOOK_SECRET", f"{HIDDEN},{HIDDEN}2,{HIDDEN}3", "one or two secrets"),
        ("BRIDGE_WEBHOOK_SECRET", " , ", "one or two secrets"),
        ("CAUSEWAY_ADMIN_TOKEN", HIDDEN, "at least 16 characters"),
        ("CAUSEWAY_STREAM_TOKEN", HIDDEN, "at least 16 characters"),
    ],
)
def test_a_bad_secret_is_named_and_never_shown(name: str, value: str, expected: str) -> None:
    sentence = refusal(**{name: value})
    assert sentence.startswith(f"{name}: ")
    assert expected in sentence
    assert HIDDEN not in sentence


BAD_DSNS = [
    f"{HIDDEN}",
    f"mysql://u:{HIDDEN}@host/db",
    f"postgresql://u:{HIDDEN}#x@host/db",
    f"postgresql://u:5432#{HIDDEN}@host/db",
    f"postgresql://u:{HIDDEN}/x@host/db",
    f"postgresql://u:{HIDDEN}?x@host/db",
    f"postgresql://u:x@{HIDDEN}@host/db",
    f"postgresql://u:{HIDDEN}[@host/db",
    f"postgresql://u:{HIDDEN}\u2100@host/db",
    f"postgresql://host:{HIDDEN}/db",
]
GOOD_DSNS = [
    "postgresql://u:p%23%2F@host/db",
    "postgres://u@host:5432/db?sslmode=verify-full",
    "postgresql://u:p@one:5432,two:5433/db?target_session_attrs=primary",
    "postgresql://u:p@[2001:db8::1]:5432,[2001:db8::2]/db",
    "postgresql://u@/db?host=/run/postgresql&port=5433",
    "postgresql:///db",
]


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_DIRECT_URL"])
@pytest.mark.parametrize("dsn", BAD_DSNS)
def test_a_database_url_whose_password_would_be_quoted_is_refused(name: str, dsn: str) -> None:
    sentence = refusal(**{name: dsn})
    assert sentence.startswith(f"{name}: postgresql://user:password@host:5432/database was")
    assert HIDDEN not in sentence


@pytest.mark.parametrize("dsn", GOOD_DSNS)
def test_every_way_to_write_a_database_url_is_good(dsn: str) -> None:
    settings = load({"DATABASE_URL": dsn})
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == dsn


def test_a_good_secret_beside_a_bad_setting_is_never_shown() -> None:
    secrets = {
        name: f"postgresql://u:{HIDDEN}@h/db"
        if name.startswith("DATABASE")
        else f"nats://u:{HIDDEN}@h"
        if name == "CAUSEWAY_NATS_URL"
        else f"{HIDDEN}-token-0123456789-0123456789"
        for name in SECRET_VARIABLES
    }
    assert HIDDEN not in refusal(**secrets, CAUSEWAY_PORT="x")
    settings = load(secrets)
    assert HIDDEN not in repr(settings) + str(settings) + settings.model_dump_json()


def test_every_secret_setting_is_known_as_one() -> None:
    secret = [name for name, field in variables().items() if "Secret" in str(FIELDS[field])]
    assert sorted(secret) == sorted(SECRET_VARIABLES)


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_a_secret_can_come_from_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    scheme = "nats" if name == "CAUSEWAY_NATS_URL" else "postgresql"
    file.write_text(f"{scheme}://from-a-file/0123456789\n")
    value = getattr(load({f"{name}_FILE": str(file)}), variables()[name])
    value = value[0] if isinstance(value, tuple) else value
    assert value.get_secret_value() == f"{scheme}://from-a-file/0123456789"


def test_any_setting_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("4711\n")
    assert load({"CAUSEWAY_PORT_FILE": str(tmp_path / "port")}).port == 4711
    (tmp_path / "empty").write_text("\n")
    assert load({"CAUSEWAY_PORT_FILE": str(tmp_path / "empty")}).port == 8000


@pytest.mark.parametrize("name", variables())
def test_a_variable_and_its_file_are_too_much(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(HIDDEN)
    sentence = refusal(**{name: HIDDEN, f"{name}_FILE": str(tmp_path / "file")})
    assert sentence == f"{name} and {name}_FILE are both set: unset one of them"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    sentence = refusal(CAUSEWAY_ADMIN_TOKEN_FILE=str(missing))
    assert sentence.startswith(f"CAUSEWAY_ADMIN_TOKEN_FILE={missing}: cannot be read: ")
    assert "No such file" in sentence
    (tmp_path / "bytes").write_bytes(HIDDEN.encode() + b"\xff")
    sentence = refusal(CAUSEWAY_ADMIN_TOKEN_FILE=str(tmp_path / "bytes"))
    assert "cannot be read" in sentence
    assert HIDDEN not in sentence


def test_every_setting_says_what_it_is_and_names_its_unit() -> None:
    for name, field in variables().items():
        assert FIELDS[field].description, name
        assert name.startswith(("CAUSEWAY_", "DATABASE_", "BRIDGE_")), name
        if FIELDS[field].annotation is float:
            assert name.endswith("_S"), name


@pytest.mark.parametrize(
    ("text", "secrets"),
    [("a", ("a",)), ("a,b", ("a", "b")), ("a\nb\n", ("a", "b")), (" a ,\r\n b", ("a", "b"))],
)
def test_one_or_two_secrets_are_separated_by_commas_or_line_ends(
    text: str, secrets: tuple[str, ...]
) -> None:
    assert split_secrets(text) == secrets


@pytest.mark.parametrize("text", ["", ",", "\n", "a,b,c"])
def test_no_secret_or_three_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="one or two secrets were expected"):
        split_secrets(text)


@pytest.mark.parametrize(
    "url", ["host:4222", "http://host:4222", "nats://", "nats://a, ,nats://b", "nats://a:b:c"]
)
def test_an_address_of_nats_that_cannot_be_one_is_refused(url: str) -> None:
    assert refusal(CAUSEWAY_NATS_URL=url).startswith("CAUSEWAY_NATS_URL: nats://host:4222 or")


def test_addresses_of_nats_are_separated_by_commas() -> None:
    settings = load({"CAUSEWAY_NATS_URL": "nats://u:p@a:4222, tls://b"})
    assert settings.nats_urls == ("nats://u:p@a:4222", "tls://b")
    assert load({}).nats_urls == ()
