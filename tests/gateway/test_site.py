"""Where a gateway may be reached."""

import pytest

from corral.agent.gateway import GatewayConfigurer, GatewaySite
from corral.agent.gateway.configurer import GatewayAddressRefused


@pytest.mark.parametrize(
    ("address", "domain", "is_secure"),
    [
        ("http://127.0.0.1:8471", "localhost", False),
        ("http://localhost:8471/", "localhost", False),
        ("https://gw.example.org", "gw.example.org", True),
        ("https://192.0.2.1:8471", "localhost", True),
    ],
)
def test_clusters_are_served_below_the_gateways_name(address, domain, is_secure):
    """Without a name of its own, below localhost."""
    site = GatewaySite.at(address)
    assert (site.domain, site.is_secure) == (domain, is_secure)


@pytest.mark.parametrize(
    "address",
    ["", "gw.example.org", "ftp://x", "http://gw.example.org", "http://0.0.0.0:8471", "https://x/path", "https://u@x"],
)
def test_an_address_that_would_carry_keys_in_the_clear_is_refused(address):
    """Plain HTTP is for this machine alone."""
    with pytest.raises(GatewayAddressRefused):
        GatewaySite.at(address)


def test_the_fronts_text_names_no_cluster():
    """So that clusters come and go without a reload."""
    configurer = GatewayConfigurer(GatewaySite.at("https://gw.example.org"))
    text = configurer.front_configuration([])
    assert text == configurer.front_configuration([("mnist", "172.17.0.5", "ab" * 16)])
    assert "daemon" not in text
