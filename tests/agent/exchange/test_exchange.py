"""The one exchange on a clock that stands still, and over real HTTP."""

import asyncio
import gzip
import random
from datetime import UTC, datetime, timedelta

import aiohttp
import jwt
import pytest
from aiohttp import web

from corral.agent.control_plane import (
    CertificateRefused,
    ControlPlane,
    ControlPlaneRefused,
    ControlPlaneUnreachable,
    HostTokens,
    ReplyUnreadable,
    ServerTime,
    UrlRefused,
    fetch_ca,
    is_encrypted,
    pinned_session,
)
from corral.agent.enrol import enrol_request, public_key_text
from corral.agent.exchange import REPORTS_AT_ONCE, REPORTS_PER_S, Exchanger
from corral.agent.settings import new_key
from corral.core.clock import SystemClock
from corral.testing.clock import FakeClock, settle
from corral.wire.agent import Desired, Identity, Report, Revision, encode

HOST = "hst_01hzzzzzzzzzzzzzzzzzzzzzzz"


def a_desired(number: int = 1) -> Desired:
    return Desired(revision=Revision(1, number), server_time=datetime(2026, 1, 1, tzinfo=UTC), intent="active")


class Desk:
    """A control plane whose answers a test gives one by one."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.answers: list[asyncio.Future[Desired | None]] = []

    async def exchange(self, report: Report) -> Desired | None:
        self.reports.append(report)
        answer: asyncio.Future[Desired | None] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        return await answer


class Bench:
    """An exchanger with everything around it in plain sight."""

    def __init__(self) -> None:
        self.desk, self.clock, self.changed = Desk(), FakeClock(), asyncio.Event()
        self.taken: list[Desired] = []
        self.arrived: list[int] = []
        self.sequence = 0
        self.exchanger = Exchanger(
            self.desk, report=self._report, take=self._take, sent=lambda report: self.arrived.append(report.sequence),
            changed=self.changed, time=ServerTime(self.clock), clock=self.clock, jitter=random.Random(1),
        )  # fmt: skip

    def _report(self) -> Report:
        self.sequence += 1
        return Report(sequence=self.sequence, applied=Revision(0, 0), seen=Revision(0, 0))

    async def _take(self, desired: Desired) -> None:
        self.taken.append(desired)


@pytest.fixture
async def bench():
    bench = Bench()
    task = asyncio.create_task(bench.exchanger.run())
    await settle()
    yield bench
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_each_reply_is_taken_and_the_next_report_goes_out(bench):
    """Report, held reply, report."""
    bench.desk.answers[0].set_result(a_desired())
    await settle()
    assert [desired.revision.number for desired in bench.taken] == [1]
    assert len(bench.desk.reports) == 2
    assert bench.arrived == [1]


async def test_news_is_reported_at_once_while_a_reply_is_held(bench):
    """The held reply still counts when it comes."""
    bench.changed.set()
    await bench.clock.run_for(0.03)
    assert len(bench.desk.reports) == 2
    bench.desk.answers[0].set_result(a_desired(1))
    await settle()
    assert [desired.revision.number for desired in bench.taken] == [1]


async def test_a_burst_of_news_becomes_few_reports(bench):
    """A hundred changes within 100 ms are at most one report each 20 ms, and the last is never lost."""
    for _ in range(100):
        bench.changed.set()
        await bench.clock.run_for(0.001)
    await bench.clock.run_for(0.05)
    assert 2 <= len(bench.desk.reports) <= 8
    assert not bench.changed.is_set()


async def test_an_absent_control_plane_is_asked_less_and_less(bench):
    """Back-off up to 30 s, and no loss of what changes meanwhile."""
    started = bench.clock.monotonic()
    for number in range(12):
        bench.desk.answers[number].set_exception(ControlPlaneUnreachable("down"))
        bench.changed.set()
        while len(bench.desk.reports) == number + 1:
            await bench.clock.run_for(0.25)
    elapsed = bench.clock.monotonic() - started
    assert 80 < elapsed < 12 * 30
    bench.desk.answers[-1].set_result(a_desired())
    await settle()
    assert bench.taken


async def test_a_refused_host_does_not_hammer(bench):
    """After the first refusal, which may be about time, seconds pass between tries."""
    for _ in range(20):
        if not bench.desk.answers[-1].done():
            bench.desk.answers[-1].set_exception(ControlPlaneRefused("no", status=403, reason="host_refused"))
        bench.changed.set()
        await bench.clock.run_for(0.5)
    assert len(bench.desk.reports) <= 5


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server():
    """A control plane that answers what `server.answer` says and keeps what it was asked."""

    class Server:
        def __init__(self) -> None:
            self.answer = web.Response(status=204)
            self.headers: list[dict[str, str]] = []
            self.bodies: list[bytes] = []
            self.url = ""

        async def serve(self, request: web.Request) -> web.Response:
            self.headers.append(dict(request.headers))
            self.bodies.append(await request.read())
            kept = self.answer  # a response object can be sent only once
            return web.Response(body=kept.body, status=kept.status, headers=kept.headers)

    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def plane(server):
    key, clock = new_key(), FakeClock(datetime(2031, 5, 5, tzinfo=UTC))  # years ahead: a wrong wall clock
    time = ServerTime(clock)
    tokens = HostTokens(host_id=HOST, audience="corral-x", key=key, time=time)
    async with pinned_session("") as session:
        plane = ControlPlane(session, server.url, time=time, tokens=tokens)
        plane.key, plane.time, plane.clock, plane.tokens = key, time, clock, tokens  # type: ignore[attr-defined]
        yield plane


def a_report() -> Report:
    return Report(sequence=1, applied=Revision(0, 0), seen=Revision(0, 0), hold_s=0)


async def test_tokens_are_made_with_the_servers_time(plane, server):
    """The first reply tells the time; from then on a host with a wrong wall clock makes good tokens."""
    server.answer = web.Response(body=encode(a_desired()))
    assert await plane.exchange(a_report()) == a_desired()
    assert plane.time.now() == datetime(2026, 1, 1, tzinfo=UTC)
    years = datetime(2031, 5, 5, tzinfo=UTC) - datetime(2026, 1, 1, tzinfo=UTC)
    assert plane.time.skew_s() == pytest.approx(years.total_seconds())
    await plane.exchange(a_report())
    token = server.headers[-1]["Authorization"].removeprefix("Bearer ")
    claims = jwt.decode(
        token, plane.key.public_key(), algorithms=["EdDSA"], audience="corral-x", options={"verify_exp": False}
    )
    assert (claims["sub"], claims["iat"]) == (HOST, int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()))
    assert claims["exp"] - claims["iat"] <= 900


async def test_tokens_are_kept_until_they_are_about_to_expire(plane):
    """One signature for many exchanges."""
    first = plane.tokens.token()
    plane.clock.advance(700)
    assert plane.tokens.token() == first
    plane.clock.advance(100)
    assert plane.tokens.token() != first


async def test_a_refusal_tells_the_time_and_drops_the_token(plane, server):
    """An agent that starts with a wrong clock is refused once, learns the time from the reply, and gets in."""
    server.answer = web.json_response(
        {"code": "host_refused", "detail": "not valid at this time"}, status=401,
        headers={"Date": "Thu, 01 Jan 2026 00:00:00 GMT"},
    )  # fmt: skip
    before = plane.tokens.token()
    with pytest.raises(ControlPlaneRefused) as refused:
        await plane.exchange(a_report())
    assert (refused.value.status, refused.value.reason) == (401, "host_refused")
    assert plane.time.now() - datetime(2026, 1, 1, tzinfo=UTC) < timedelta(seconds=5)
    assert plane.tokens.token() != before


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"revision":[1,1]}', b"\xff\xfe",
     encode(a_desired())[:-1] + b',"mounts":["/"]}',
     encode(a_desired()).replace(b'"active"', b'"obey"'),
     b"[" * 100_000],
)  # fmt: skip
async def test_what_cannot_be_read_is_refused(plane, server, body):
    """A field that nobody agreed on is no desired state at all."""
    server.answer = web.Response(body=body)
    with pytest.raises((ReplyUnreadable, ControlPlaneRefused)):
        await plane.exchange(a_report())


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_control_plane_in_trouble_counts_as_absent(plane, server, status):
    """Nothing is concluded from it about this host."""
    server.answer = web.Response(status=status)
    with pytest.raises(ControlPlaneUnreachable):
        await plane.exchange(a_report())


async def test_redirects_are_not_followed(plane, server):
    """The token goes to the pinned origin and nowhere else."""
    server.answer = web.Response(status=307, headers={"Location": server.url + "/elsewhere"})
    with pytest.raises(ControlPlaneRefused):
        await plane.exchange(a_report())
    assert len(server.headers) == 1


async def test_an_absent_control_plane_is_a_typed_error():
    """Nobody listens there."""
    async with pinned_session("") as session:
        plane = ControlPlane(session, "http://127.0.0.1:1", time=ServerTime(SystemClock()))
        with pytest.raises(ControlPlaneUnreachable):
            await plane.exchange(a_report())


@pytest.mark.parametrize(
    "url", ["", "corral", "ftp://x", "http://corral.example", "http://host.docker.internal:8470", "http://10.0.0.1",
            "https://", "https://h:notaport"]
)  # fmt: skip
def test_plain_http_is_for_loopback_alone(url):
    """A token in the clear would be anybody's."""
    with pytest.raises(UrlRefused):
        is_encrypted(url)
    assert is_encrypted("https://corral.example:8470")
    assert not is_encrypted("http://localhost:8470")


async def test_the_pinned_certificate_is_the_only_one_trusted(tmp_path):
    """Another hash is refused before anything is sent; the right one works though its dates are over."""
    ca_pem, ca_hash, context = expired_authority(tmp_path)

    async def serve(request: web.Request) -> web.Response:
        return web.Response(text=ca_pem) if request.path == "/ca.pem" else web.Response(status=204)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        with pytest.raises(CertificateRefused):
            await fetch_ca(url, "0" * 64)
        pinned = await fetch_ca(url, ca_hash.upper())
        async with pinned_session(pinned) as session:
            assert await ControlPlane(session, url, time=ServerTime(SystemClock())).exchange(a_report()) is None
        async with aiohttp.ClientSession() as stranger:
            with pytest.raises(ControlPlaneUnreachable):
                await ControlPlane(stranger, url, time=ServerTime(SystemClock())).exchange(a_report())
    finally:
        await runner.cleanup()


def expired_authority(folder):
    """A CA and a server certificate for 127.0.0.1, both long over; as PEM, hash and server context."""
    import hashlib
    import ssl
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def certify(subject, key, issuer, issuer_key, extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2001, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2002, 1, 1, tzinfo=UTC))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(issuer_key, hashes.SHA256())

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    ca = certify("ca", ca_key, "ca", ca_key, [(x509.BasicConstraints(True, None), True), (usage, True),
                 (x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)])  # fmt: skip
    leaf = certify("leaf", key, "ca", ca_key, [
        (x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False),
    ])  # fmt: skip
    pem = folder / "server.pem"
    pem.write_bytes(
        leaf.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    der = ca.public_bytes(serialization.Encoding.DER)
    return ca.public_bytes(serialization.Encoding.PEM).decode(), hashlib.sha256(der).hexdigest(), context


def test_the_enrolment_is_signed_by_the_hosts_key():
    """The control plane checks it as `devices.enrol` does: over token, line feed, public key."""
    import base64

    key = new_key()
    request = enrol_request(
        "tok.secret", key, Identity(machine_id="m", engine_id="e"), name="", role="host", development=False,
        agent_version="0",
    )  # fmt: skip
    assert request.public_key == public_key_text(key)
    key.public_key().verify(base64.b64decode(request.signature), f"tok.secret\n{request.public_key}".encode())


async def test_a_control_plane_that_holds_no_reply_is_not_hammered(bench):
    """One without room answers at once; a host that asked again at once would make it worse."""
    for _ in range(20):
        while not bench.desk.answers[-1].done():
            bench.desk.answers[-1].set_result(
                Desired(revision=Revision(0, 0), server_time=datetime(2026, 1, 1, tzinfo=UTC), intent="active")
            )
            await settle()
        await bench.clock.run_for(1)
    assert len(bench.desk.reports) <= 10
    news = len(bench.desk.reports)
    bench.changed.set()
    await bench.clock.run_for(0.1)
    assert len(bench.desk.reports) == news + 1


async def test_revisions_without_end_are_paced(bench):
    """A control plane that always has something new cannot make a host spin."""
    for number in range(1, 400):
        for answer in bench.desk.answers:
            if not answer.done():
                answer.set_result(a_desired(number))
        await bench.clock.run_for(0.05)
    assert len(bench.desk.reports) <= REPORTS_AT_ONCE + 20 * REPORTS_PER_S + 5


async def test_a_failure_to_take_what_came_late_is_not_lost(bench):
    """It ends the process loudly, as any bug must; the engine starts it anew."""

    async def fail(_: Desired) -> None:
        raise ZeroDivisionError

    exchanger = Exchanger(
        bench.desk, report=bench._report, take=fail, sent=lambda _: None, changed=bench.changed,
        time=ServerTime(bench.clock), clock=bench.clock,
    )  # fmt: skip
    task = asyncio.create_task(exchanger.run())
    await settle()
    bench.changed.set()
    await bench.clock.run_for(0.03)
    bench.desk.answers[1].set_result(a_desired())
    bench.changed.set()
    await bench.clock.run_for(1)
    for answer in bench.desk.answers:
        if not answer.done():
            answer.set_result(a_desired(7))
    await bench.clock.run_for(1)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(task, 1)


@pytest.mark.parametrize("year", [1, 1999, 9999])
async def test_an_impossible_server_time_is_not_taken(plane, year):
    """Sums with it would overflow, and tokens with it be worthless."""
    time = ServerTime(SystemClock())
    time.heard(datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert time.skew_s() is None


async def test_compressed_replies_are_not_unfolded(plane, server):
    """A few bytes could become gigabytes."""
    server.answer = web.Response(body=gzip.compress(encode(a_desired())), headers={"Content-Encoding": "gzip"})
    with pytest.raises(ReplyUnreadable):
        await plane.exchange(a_report())
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [400, 200])
async def test_deep_and_broken_replies_are_typed_errors(plane, server, status):
    """Whatever the status: neither nesting nor bytes that are no text end the agent."""
    for body in (b"[" * 100_000, b'{"detail":"\xff"}', b'{"revision":[1,1],"x":' + b"[" * 100_000):
        server.answer = web.Response(status=status, body=body)
        with pytest.raises((ReplyUnreadable, ControlPlaneRefused)):
            await plane.exchange(a_report())
