"""The web server of a gateway: only configurations that nginx accepts, and no secret outside its tmpfs."""

import hashlib
import json
import urllib.error
import urllib.request

import pytest
from parts import Lab, Part, bridge_address

pytestmark = pytest.mark.docker

SECRET = "9f" * 32
CONFIGURATION = """
pid /tmp/nginx.pid;
worker_processes 1;
events {{}}
http {{
  access_log /dev/stderr;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server {{
    listen 8080;
    location / {{ proxy_set_header X-Ray-Authorization "Bearer {secret}"; return 200 "{answer}"; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def web(lab: Lab) -> Part:
    """A web server on the bridge."""
    return lab.web("web", "bridge")


def configuration(answer: str) -> dict[str, str]:
    """A message whose server answers `answer`."""
    return {"type": "config", "nginx": CONFIGURATION.format(secret=SECRET, answer=answer)}


def served(web: Part) -> str:
    """What the server answers."""
    return urllib.request.urlopen(f"http://{bridge_address(web)}:8080/", timeout=10).read().decode()


def test_configuration_is_served_and_replaced_while_it_runs(web: Part) -> None:
    """`serving` names the digest of the text, and is said once requests get the new answer."""
    for answer in ("one", "two"):
        message = configuration(answer)
        since = web.mark()
        web.send(message)
        digest = hashlib.sha256(message["nginx"].encode()).hexdigest()
        assert web.wait_type("serving", since=since)["digest"] == digest
        assert served(web) == answer
    since = web.mark()
    web.send({"type": "hello"})
    assert web.wait_type("serving", since=since)["digest"] == digest


def test_broken_configuration_is_refused_and_the_old_one_stays(web: Part) -> None:
    """Nginx tests it first; what it quotes of the text is not repeated."""
    web.send(configuration("kept"))
    web.wait_type("serving", digest=hashlib.sha256(configuration("kept")["nginx"].encode()).hexdigest())
    for broken in ("}", f"bearer_{SECRET};", "include /etc/shadow;"):
        since = web.mark()
        web.send({"type": "config", "nginx": configuration("broken")["nginx"] + broken})
        refused = web.wait_type("refused", since=since)
        assert refused["reason"]
        assert SECRET not in refused["reason"]
    for wrong in ({"type": "config"}, {"type": "config", "nginx": 5}, {"nginx": ""}, "{", json.dumps([1])):
        since = web.mark()
        web.send(wrong)
        assert web.wait_type("refused", since=since)["reason"]
    assert served(web) == "kept"


def test_web_server_leaves_no_secret_and_ends_at_once(lab: Lab) -> None:
    """Neither description nor logs of the container hold what the configuration holds."""
    web = lab.web("leaving-web", "bridge")
    web.send(configuration("here"))
    web.wait_type("serving")
    assert served(web) == "here"
    assert SECRET not in web.said() + json.dumps(web.inspect())
    assert web.stop(within_s=60) < 30
    assert web.inspect()["State"]["ExitCode"] == 0


def test_dead_nginx_takes_its_container_down(lab: Lab) -> None:
    """A stopped container is noticed and started again."""
    web = lab.web("dying-web", "bridge")
    web.send(configuration("here"))
    web.wait_type("serving")
    web.run("sh", "-c", "kill -9 $(cat /tmp/nginx.pid)")
    assert "nginx ended" in web.wait_type("fatal")["reason"]
    assert web.wait_exit() == 1


def test_configuration_that_names_the_streams_gets_their_program(lab: Lab) -> None:
    """Any other runs without: a front carries no streams."""
    web = lab.web("streaming-web", "bridge")
    web.send(configuration("without"))
    web.wait_type("serving")
    assert web.run("sh", "-c", "test -S /run/corral/streams.sock")[0] == 1
    text = configuration("with")["nginx"].replace(
        "location / {", "location /streams { proxy_pass http://unix:/run/corral/streams.sock; } location / {"
    )
    web.send({"type": "config", "nginx": text})
    web.wait_type("serving", digest=hashlib.sha256(text.encode()).hexdigest())
    assert web.run("sh", "-c", "until test -S /run/corral/streams.sock; do sleep 0.05; done")[0] == 0
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{bridge_address(web)}:8080/streams", timeout=10)
    assert refused.value.code == 400
    assert b"corral-tcp" in refused.value.read()
