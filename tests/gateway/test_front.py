"""The front and a leaf as real nginx processes: who passes, what reaches the head, and what never leaves."""

import asyncio
import json
import subprocess
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from gateway.conftest import FOREIGN_KEY, KEY, LEAF_SECRET, RAY_TOKEN, SESSION, Gateway

BEARER = {"Authorization": f"Bearer {KEY}"}
VISIT = {"Host": "mnist.localhost", "Cookie": f"corral_session={SESSION}"}


async def ask(
    session: aiohttp.ClientSession, gateway: Gateway, path: str, headers: dict[str, str], method: str = "GET"
) -> tuple[int, str, dict[str, str]]:
    async with session.request(
        method, URL(gateway.url + path, encoded=True), headers=headers, allow_redirects=False
    ) as response:
        return response.status, await response.text(), dict(response.headers)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/c/mnist/", BEARER, 200),
        ("/c/mnist/api/jobs/", {"Authorization": f"bearer {KEY}"}, 200),
        ("/c/mnist", BEARER, 308),
        ("/c/mnist/", {}, 401),
        ("/c/mnist/", {"Authorization": "Bearer nonsense"}, 401),
        ("/c/mnist/", {"Authorization": f"Basic {KEY}"}, 401),
        ("/c/mnist/", {"Authorization": "Bearer " + "x" * 2000}, 401),
        ("/c/mnist/", {"Cookie": f"corral_session={SESSION}"}, 401),
        ("/c/mnist/", {"X-Ray-Authorization": f"Bearer {RAY_TOKEN}"}, 401),
        ("/c/mnist/", {"Authorization": f"Bearer {FOREIGN_KEY}"}, 404),
        ("/c/nosuch/", BEARER, 404),
        ("/c/nosuch/", {}, 401),
        ("/c/Mnist/", BEARER, 404),
        ("/c/-mnist/", BEARER, 404),
        ("/c/mnist_x/", BEARER, 404),
        ("/c/mnist%00/", BEARER, 400),
        ("/c/%6dnist/", BEARER, 400),
        ("/c/" + "a" * 41 + "/", BEARER, 404),
        ("/c/", BEARER, 404),
        ("/c//mnist/", BEARER, 400),
        ("//c/mnist/", BEARER, 400),
        ("/", BEARER, 404),
        ("/_corral/authorise", BEARER, 404),
        ("/_corral/enter?ticket=good-ticket", BEARER, 404),
        ("/c/other/../mnist/", BEARER, 400),
        ("/c/mnist/../mnist/", BEARER, 400),
        ("/c/mnist/%2e%2e/other/", BEARER, 400),
        ("/c/mnist/..%2fother/", BEARER, 400),
        ("/c/mnist/./x", BEARER, 400),
        ("/c/mnist/..", BEARER, 404),
        ("/c/mnist/a..b", BEARER, 200),
        ("/c/mnist/logs?file=../x", BEARER, 200),
        ("/c/mnist/", BEARER | {"Origin": "https://evil.example"}, 403),
        ("/c/mnist/", BEARER | {"Origin": "null"}, 403),
        ("/c/mnist/", BEARER | {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/c/mnist/", BEARER | {"Sec-Fetch-Site": "same-site"}, 403),
        ("/c/mnist/", BEARER | {"Sec-Fetch-Site": "none"}, 200),
    ],
)
async def test_path_form_takes_keys_and_nothing_else(gateway, browserless, path, headers, status):
    """Programs pass with a valid key of the cluster's renter; a cookie, another's key or an odd path do not."""
    answered, body, _ = await ask(browserless, gateway, path, headers)
    assert answered == status, body
    if status >= 400:
        assert gateway.head.requests == []


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", VISIT, 200),
        ("/static/js/main.js", VISIT | {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors"}, 200),
        ("/", {"Host": "mnist.localhost"}, 401),
        ("/", {"Host": "mnist.localhost", "Cookie": "corral_session=wrong"}, 401),
        ("/", {"Host": "mnist.localhost", "Cookie": "corral_session="}, 401),
        ("/", {"Host": "mnist.localhost", "Cookie": "a b;;=;corral_session"}, 401),
        ("/", {"Host": "mnist.localhost", "Cookie": f"__Host-corral_session={SESSION}"}, 401),
        ("/", {"Host": "mnist.localhost"} | BEARER, 401),
        ("/", VISIT | {"Host": "nosuch.localhost"}, 401),
        ("/", VISIT | {"Host": "localhost"}, 404),
        ("/", VISIT | {"Host": "evil.mnist.localhost"}, 404),
        ("/", VISIT | {"Host": "MNIST.localhost"}, 200),
        ("/_corral/authorise", VISIT, 401),
        ("/_corral/other", VISIT, 401),
        ("/%2e%2e/x", VISIT, 400),
        ("/", VISIT | {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ("/", VISIT | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        (
            "/",
            VISIT | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
            200,
        ),
        ("/sw.js", VISIT | {"Service-Worker": "script", "Sec-Fetch-Site": "same-origin"}, 403),
    ],
)
async def test_origin_form_takes_the_visit_and_nothing_else(gateway, browserless, path, headers, status):
    """Browsers pass with the cookie of the cluster's own origin; a key does not count there."""
    answered, body, _ = await ask(browserless, gateway, path, headers)
    assert answered == status, body
    if status >= 400:
        assert gateway.head.requests == []


@pytest.mark.parametrize("origin", ["https://evil.example", "http://other.localhost", "null", "http://localhost"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "GET"])
async def test_a_page_of_another_origin_changes_nothing_with_the_visitors_cookie(gateway, browserless, origin, method):
    """The cookie alone is no consent: a foreign Origin is refused before anybody is asked."""
    status, _, _ = await ask(browserless, gateway, "/api/jobs/", VISIT | {"Origin": origin}, method)
    assert status == 403
    assert gateway.head.requests == []
    assert gateway.control_plane.asked == []


async def test_a_foreign_page_opens_no_websocket(gateway, browserless):
    """Browsers do not hold WebSockets to the same-origin rule; the front does."""
    for headers in (VISIT, BEARER | {"Host": "localhost"}):
        path = "/api/jobs/x/logs/tail" if headers is VISIT else "/c/mnist/api/jobs/x/logs/tail"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await browserless.ws_connect(gateway.url + path, headers=headers | {"Origin": "https://evil.example"})
        assert refused.value.status == 403
    assert gateway.head.requests == []


@pytest.mark.parametrize(
    ("path", "headers", "arrives"),
    [
        ("/c/mnist/api/jobs/", BEARER, "/api/jobs/"),
        ("/c/mnist/api/packages/gcs/a%2Fb%20c.zip?x=%2F..", BEARER, "/api/packages/gcs/a%2Fb%20c.zip?x=%2F.."),
        ("/c/mnist//double//slash", BEARER, "//double//slash"),
        ("/c/mnist/", BEARER, "/"),
        ("/c/mnist/c/other/", BEARER, "/c/other/"),
        ("/a%20b/%E2%82%AC?q=1&r=%26", VISIT, "/a%20b/%E2%82%AC?q=1&r=%26"),
    ],
)
async def test_the_head_gets_the_path_as_it_was_sent(gateway, browserless, path, headers, arrives):
    """Job ids and package names may hold escapes: decoding them on the way would name something else."""
    status, _, _ = await ask(browserless, gateway, path, headers)
    assert status == 200
    assert [raw for _, raw, _ in gateway.head.requests] == [arrives]


@pytest.mark.parametrize(("path", "headers"), [("/c/mnist/x", BEARER), ("/x", VISIT)])
async def test_the_head_gets_rays_token_and_neither_key_nor_cookie(gateway, browserless, path, headers):
    """The swap: what opens the network stays at the gateway, what opens Ray is added behind it."""
    sent = headers | {"X-Ray-Authorization": "Bearer mine", "X-Corral-Leaf-Secret": "guess"}
    await ask(browserless, gateway, path, sent)
    [(_, _, received)] = gateway.head.requests
    assert received["X-Ray-Authorization"] == f"Bearer {RAY_TOKEN}"
    assert "Authorization" not in received
    assert "Cookie" not in received
    assert LEAF_SECRET not in json.dumps(received)
    assert KEY not in json.dumps(received)
    assert SESSION not in json.dumps(received)


@pytest.mark.parametrize(
    ("path", "headers"), [("/c/mnist/", BEARER), ("/", VISIT), ("/c/mnist/steer", BEARER), ("/steer", VISIT)]
)
async def test_a_hostile_head_can_neither_steer_the_gateway_nor_mark_the_browser(gateway, browserless, path, headers):
    """Cookies, login prompts, grants to other origins and nginx's own steering headers stop at the gateway."""
    status, body, answered = await ask(browserless, gateway, path, headers)
    assert status == 200
    assert body == "page of the head"
    for name in ("Set-Cookie", "WWW-Authenticate", "Alt-Svc", "Access-Control-Allow-Origin", "X-Corral-Leaf-Secret",
                 "Service-Worker-Allowed", "X-Corral-Leaf", "X-Accel-Redirect"):  # fmt: skip
        assert name not in answered
    assert RAY_TOKEN not in json.dumps(answered)
    assert LEAF_SECRET not in json.dumps(answered)
    assert answered["Cross-Origin-Resource-Policy"] == "same-origin"
    if headers is VISIT:
        assert "frame-ancestors 'self'" in answered["Content-Security-Policy"]
        assert answered["X-Frame-Options"] == "SAMEORIGIN"
    else:
        assert answered["Content-Security-Policy"].startswith("sandbox")


@pytest.mark.parametrize(("path", "headers"), [("/c/mnist/api/jobs/x/logs/tail", BEARER), ("/api/x/logs/tail", VISIT)])
async def test_a_log_is_followed_over_websocket(gateway, browserless, path, headers):
    """Ray's log tail is a WebSocket; it passes in both forms."""
    async with browserless.ws_connect(gateway.url + path, headers=headers) as connection:
        await connection.send_str("line 1")
        assert await connection.receive_str(timeout=10) == "log: line 1"
    [(_, _, received)] = gateway.head.requests
    assert received["X-Ray-Authorization"] == f"Bearer {RAY_TOKEN}"


async def test_no_other_protocol_is_tunnelled(gateway, browserless):
    """An upgrade to anything but WebSocket would be a way past the header rules."""
    await ask(browserless, gateway, "/c/mnist/x", BEARER | {"Upgrade": "h2c", "Connection": "Upgrade"})
    [(_, _, received)] = gateway.head.requests
    assert "Upgrade" not in received


async def test_an_upload_streams_to_the_head_while_it_is_sent(gateway, browserless):
    """50 MB pass; the head sees the first bytes before the last are sent, so nothing is stored on the way."""
    piece, count = b"\0" * 2**20, 50
    half_sent = asyncio.Event()

    async def body():
        for number in range(count):
            if number == count // 2:
                half_sent.set()
                async with asyncio.timeout(20):
                    await gateway.head.has_begun.wait()
            yield piece

    async with browserless.put(
        gateway.url + "/c/mnist/api/packages/gcs/p.zip", data=body(), headers=BEARER
    ) as response:
        assert response.status == 200
        assert (await response.json())["received"] == count * len(piece)
    assert half_sent.is_set()


async def test_an_upload_over_the_limit_is_refused_at_once(gateway, browserless):
    """2 GiB is the most; the length tells before a byte is read."""
    headers = BEARER | {"Content-Length": str(3 * 2**30)}
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"PUT /c/mnist/api/x HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_the_ticket_works_once_and_leaves_a_host_only_cookie(gateway, browserless):
    """`corral dashboard` opens this link; what remains is a cookie for this origin alone."""
    host = {"Host": "mnist.localhost"}
    status, _, answered = await ask(browserless, gateway, "/_corral/enter?ticket=good-ticket", host)
    assert (status, answered["Location"]) == (303, "/")
    cookie = answered["Set-Cookie"]
    assert cookie.startswith(f"corral_session={SESSION};")
    assert {"HttpOnly", "Path=/", "SameSite=Strict", "Max-Age=3600"} <= {part.strip() for part in cookie.split(";")}
    assert "domain" not in cookie.lower()
    assert answered["Clear-Site-Data"] == '"storage"'
    assert answered["Referrer-Policy"] == "no-referrer"

    status, body, answered = await ask(browserless, gateway, "/_corral/enter?ticket=good-ticket", host)
    assert status == 401
    assert "corral dashboard" in body
    assert "Set-Cookie" not in answered


async def test_a_link_on_another_site_leads_on_by_a_page(gateway, browserless):
    """After a redirect that another site began, browsers hold back a Strict cookie: a page of ours begins anew."""
    headers = {"Host": "mnist.localhost", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    status, body, answered = await ask(browserless, gateway, "/_corral/enter?ticket=good-ticket", headers)
    assert status == 200
    assert 'http-equiv="refresh"' in body
    assert answered["Set-Cookie"].startswith("corral_session=")


@pytest.mark.parametrize(
    "path",
    ["/_corral/enter", "/_corral/enter?ticket=", "/_corral/enter?ticket=" + "x" * 3000, "/_corral/enter?ticket=%00"],
)
async def test_a_bad_ticket_gets_the_friendly_page(gateway, browserless, path):
    """Whatever is wrong with a ticket, the visitor is told what to do."""
    status, body, _ = await ask(browserless, gateway, path, {"Host": "mnist.localhost"})
    assert status == 401
    assert "corral dashboard NAME" in body


async def test_refusals_tell_programs_what_to_do(gateway, browserless):
    """problem+json with a stable code and a hint."""
    for headers, status, code in (
        ({}, 401, "key_missing"),
        ({"Authorization": f"Bearer {FOREIGN_KEY}"}, 404, "cluster_unknown"),
    ):
        answered, body, received = await ask(browserless, gateway, "/c/mnist/", headers)
        assert answered == status
        assert received["Content-Type"] == "application/problem+json"
        problem = json.loads(body)
        assert (problem["status"], problem["code"]) == (status, code)
        assert problem["hint"]


async def test_unknown_and_foreign_clusters_look_the_same(gateway, browserless):
    """Nobody learns from a gateway which clusters exist."""
    unknown = await ask(browserless, gateway, "/c/nosuch/", BEARER)
    foreign = await ask(browserless, gateway, "/c/mnist/", {"Authorization": f"Bearer {FOREIGN_KEY}"})
    gateway.leaf_targets.clear()
    ended = await ask(browserless, gateway, "/c/mnist/", BEARER)
    assert unknown[:2] == foreign[:2] == ended[:2]


async def test_an_absent_control_plane_is_told_as_such(gateway, browserless):
    """Nobody passes unasked, and the answer does not blame the key; a remembered yes still holds."""
    await ask(browserless, gateway, "/c/mnist/", BEARER)
    gateway.control_plane.is_down = True
    assert (await ask(browserless, gateway, "/c/mnist/", BEARER))[0] == 200
    assert (await ask(browserless, gateway, "/c/mnist/", {"Authorization": "Bearer other"}))[0] == 503
    status, body, _ = await ask(browserless, gateway, "/_corral/enter?ticket=good-ticket", {"Host": "mnist.localhost"})
    assert status == 503
    assert "Try again" in body


async def test_a_page_of_many_files_asks_once(gateway, browserless):
    """Thirty requests at a time with one visit are one question to the control plane."""
    answers = await asyncio.gather(*(ask(browserless, gateway, f"/static/{n}.js", VISIT) for n in range(30)))
    assert {status for status, _, _ in answers} == {200}
    assert len(gateway.control_plane.asked) == 1


async def test_a_dead_head_is_told_as_such(gateway, browserless):
    """The leaf cannot reach the head: programs get a problem, browsers a page."""
    gateway.leaf_targets["mnist"] = type(gateway.leaf_targets["mnist"])(
        cluster_id=gateway.leaf_targets["mnist"].cluster_id, address="127.0.0.2", secret=LEAF_SECRET
    )
    status, body, _ = await ask(browserless, gateway, "/c/mnist/", BEARER)
    assert (status, json.loads(body)["code"]) == (503, "cluster_unreachable")
    status, body, _ = await ask(browserless, gateway, "/", VISIT)
    assert status == 503
    assert "corral show" in body


async def test_a_leaf_serves_only_who_knows_its_secret(gateway, browserless):
    """Other containers on the bridge reach the leaf's port; they get nothing there."""
    for headers in ({}, {"X-Corral-Leaf-Secret": "wrong"}, {"X-Corral-Leaf-Secret": ""}, BEARER):
        async with browserless.get(gateway.leaf_url + "/api/jobs/", headers=headers) as response:
            assert response.status == 404
    assert gateway.head.requests == []


async def test_no_secret_is_seen_in_logs_or_process_lists(gateway, browserless):
    """Ray's token, the leaf's secret, keys, tickets and visits stay out of what others can read."""
    await ask(browserless, gateway, "/c/mnist/", BEARER)
    await ask(browserless, gateway, "/_corral/enter?ticket=good-ticket", {"Host": "mnist.localhost"})
    gateway.leaf_targets["mnist"] = type(gateway.leaf_targets["mnist"])(
        cluster_id=gateway.leaf_targets["mnist"].cluster_id, address="127.0.0.2", secret=LEAF_SECRET
    )
    await ask(browserless, gateway, "/c/mnist/", BEARER)
    (gateway.folder / "socket").unlink()
    await ask(browserless, gateway, "/_corral/enter?ticket=another-ticket", {"Host": "mnist.localhost"})
    processes = await asyncio.to_thread(
        subprocess.run, ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    )
    seen = await asyncio.to_thread(Path(gateway.log).read_text) + processes.stdout
    for secret in (RAY_TOKEN, LEAF_SECRET, KEY, SESSION, "good-ticket", "another-ticket"):
        assert secret not in seen
