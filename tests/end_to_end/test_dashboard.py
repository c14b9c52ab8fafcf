"""The Ray dashboard in a real browser, behind the gateway; and what a hostile page there cannot do."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from corral.sdk import Client
from corral.testing.local_network import LocalNetwork
from corral.wire import api

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.timeout(300)]

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
READ = """
async (url) => {
  try {
    const answer = await fetch(url, {credentials: 'include'});
    return `${answer.status} ${(await answer.text()).slice(0, 80)}`;
  } catch (error) {
    return 'refused';
  }
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without a history. The control plane's own CA is not in its store, so certificates are not checked."""
    made = browser.new_context(ignore_https_errors=True)
    yield made
    made.close()


def test_dashboard_shows_all_nodes_in_a_browser(renter: Client, cluster: api.Cluster, context: BrowserContext) -> None:
    """`corral dashboard` gives an address that opens Ray's own page, on the cluster's own origin."""
    ticket = renter.create_ticket(cluster.name)
    page = context.new_page()
    page.goto(ticket.url)
    page.goto(f"{_origin(ticket.url)}/#/cluster")
    for node in cluster.nodes:
        page.get_by_text(node.address).first.wait_for(timeout=60_000)
    assert page.url.startswith(f"http://{cluster.name}.localhost:")


def test_ticket_works_once_and_cookie_belongs_to_one_origin(
    renter: Client, cluster: api.Cluster, browser: Browser, context: BrowserContext
) -> None:
    """A ticket that somebody reads over a shoulder is worth nothing, and the cookie goes nowhere else."""
    ticket = renter.create_ticket(cluster.name)
    page = context.new_page()
    page.goto(ticket.url)
    cookies = context.cookies()
    assert [(cookie.get("domain"), cookie.get("httpOnly"), cookie.get("sameSite")) for cookie in cookies] == [
        (f"{cluster.name}.localhost", True, "Strict")
    ]
    stranger = browser.new_context()
    answer = stranger.new_page().goto(ticket.url)
    assert answer is not None
    assert answer.status in (401, 403)
    stranger.close()


def test_hostile_page_of_a_head_reaches_neither_the_control_plane_nor_another_cluster(
    network: LocalNetwork, renter: Client, cluster: api.Cluster, context: BrowserContext
) -> None:
    """Its pages come from a stranger's machine: their scripts act with nobody's rights but the cluster's."""
    page = context.new_page()
    page.goto(renter.create_ticket(cluster.name).url)
    other_origin = f"http://other.localhost:{network.gateway_port}/api/jobs/"
    path_form = f"http://127.0.0.1:{network.gateway_port}/c/{cluster.name}/api/jobs/"
    for url in (f"{network.url}/v1/whoami", f"{network.url}/v1/clusters", other_origin, path_form):
        assert page.evaluate(READ, url) == "refused", url
    with pytest.raises(httpx.HTTPError):
        # Without the pinned CA nobody even speaks to the control plane.
        httpx.get(f"{network.url}/v1/whoami")


def _origin(url: str) -> str:
    return url.partition("/_corral/")[0]
