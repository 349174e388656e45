"""The relay's settings: keys, networks, switches."""

import ipaddress

import pytest

from service.config import load
from service.errors import ConfigError

KEY = "k" * 32


def test_one_or_two_keys_are_read_the_newest_first() -> None:
    assert load({}).secret_keys == ()
    assert load({"CAUSEWAY_SECRET_KEY": f"{KEY}1,{KEY}2"}).secret_keys == (f"{KEY}1", f"{KEY}2")


@pytest.mark.parametrize("keys", ["short", f"{KEY},short", ",".join([KEY] * 3)])
def test_a_bad_key_stops_the_start_and_is_not_shown(keys: str) -> None:
    with pytest.raises(ConfigError, match="CAUSEWAY_SECRET_KEY") as refused:
        load({"CAUSEWAY_SECRET_KEY": keys})
    assert "short" not in str(refused.value)
    assert KEY not in str(refused.value)


def test_networks_are_a_list_and_http_is_a_switch() -> None:
    settings = load(
        {
            "CAUSEWAY_RELAY_ALLOWED_NETWORKS": "10.0.0.0/8, fd00::/8,127.0.0.1",
            "CAUSEWAY_RELAY_ALLOW_HTTP": "true",
        }
    )
    assert settings.relay_allow_http is True
    assert settings.relay_allowed_networks == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("fd00::/8"),
        ipaddress.ip_network("127.0.0.1/32"),
    )
    with pytest.raises(ConfigError, match="CAUSEWAY_RELAY_ALLOWED_NETWORKS"):
        load({"CAUSEWAY_RELAY_ALLOWED_NETWORKS": "10.0.0.0/33"})
