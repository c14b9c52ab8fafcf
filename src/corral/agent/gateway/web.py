"""
The web server of one leaf, as an nginx configuration: it swaps the gateway's secret for the cluster's Ray token.

It runs in the leaf's network namespace, from which alone the head is reachable, and serves only who knows the leaf's
secret (the front and the probe). The text holds the token: it goes to the container over stdin into a tmpfs.
"""

import re

from corral.core.errors import invariant
from corral.wire.agent import LeafSpec, Secrets

LEAF_PORT = 8080
DASHBOARD_PORT = 8265
LEAF_SECRET_HEADER = "X-Corral-Leaf-Secret"  # noqa: S105 (a header's name)

UPLOAD_BYTES_MAX = "2g"
"""nginx's own notation; the limit on a job's uploads."""
STREAM_TIMEOUT = "1d"
"""A job's log may say nothing for hours."""

STREAM_PATH = "/_corral/tcp"
STREAM_PROTOCOL = "corral-tcp"
STREAMS_SOCKET = "/run/corral/streams.sock"

_ADDRESS = re.compile(r"^[0-9.]{7,15}$")
_HEX = re.compile(r"^[0-9a-f]{32,128}$")

# A head is a stranger's machine: none of its answers may steer nginx itself (X-Accel-Redirect would serve an internal
# location), leave a cookie or a login prompt at the gateway's origin, or open it to other origins.
UPSTREAM_RULES = """
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_connect_timeout 5s;
      proxy_read_timeout {timeout};
      proxy_send_timeout {timeout};
      proxy_redirect off;
      proxy_ignore_headers X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset;
      proxy_hide_header Set-Cookie;
      proxy_hide_header Set-Cookie2;
      proxy_hide_header WWW-Authenticate;
      proxy_hide_header Alt-Svc;
      proxy_hide_header Clear-Site-Data;
      proxy_hide_header Service-Worker-Allowed;
      proxy_hide_header Strict-Transport-Security;
      proxy_hide_header Access-Control-Allow-Origin;
      proxy_hide_header Access-Control-Allow-Credentials;
      proxy_hide_header Access-Control-Allow-Headers;
      proxy_hide_header Access-Control-Allow-Methods;
      proxy_hide_header Access-Control-Expose-Headers;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $corral_upgrade;
      proxy_set_header Connection $corral_connection;
      proxy_set_header Authorization "";
      proxy_set_header Cookie "";
""".replace("{timeout}", STREAM_TIMEOUT)

HTTP_RULES = f"""
    server_tokens off;
    access_log off;
    default_type application/octet-stream;
    absolute_redirect off;
    client_max_body_size {UPLOAD_BYTES_MAX};
    client_body_timeout 60s;
    client_header_timeout 10s;
    large_client_header_buffers 4 16k;
    client_body_temp_path /tmp/client_body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    map_hash_bucket_size 256;
    # WebSocket alone may change the protocol, and our own streams at their own place: any other upgrade would be a
    # tunnel past the rules of this file.
    map "$http_upgrade $uri" $corral_upgrade {{
      default '';
      "~*^websocket " websocket;
      "~^{STREAM_PROTOCOL} (?:/c/[^/]+)?{STREAM_PATH}/[0-9]+$" {STREAM_PROTOCOL};
    }}
    map $corral_upgrade $corral_connection {{ default upgrade; '' ''; }}
"""


def leaf_configuration(
    leaf: LeafSpec,
    secrets: Secrets,
    leaf_secret: str,
    *,
    listen: str = str(LEAF_PORT),
    head: str | None = None,
    streams: str = STREAMS_SOCKET,
) -> str:
    """
    The whole nginx configuration of one leaf.

    Args:
        leaf: names the head's mesh address.
        secrets: the cluster's Ray token.
        leaf_secret: hex; what a request must carry to be served at all.
        listen: address and port of nginx's `listen`.
        head: `ip:port` of the head's dashboard, where it is not at its usual place (tests).
        streams: path of the socket of the program that carries streams.
    """
    invariant(_HEX.match(leaf_secret), "a leaf's secret is hexadecimal")
    invariant(_ADDRESS.match(leaf.head_address), "a head's address is an IPv4 address")
    return f"""\
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
{HTTP_RULES}
    map $http_x_corral_leaf_secret $corral_is_known {{ default 0; "{leaf_secret}" 1; }}
    server {{
      listen {listen};
      location ~ "^{STREAM_PATH}/(?<stream_port>[0-9]{{1,5}})$" {{
        if ($corral_is_known = 0) {{ return 404; }}
        proxy_pass http://unix:{streams};
{UPSTREAM_RULES}
        proxy_set_header {LEAF_SECRET_HEADER} "";
        proxy_set_header X-Ray-Authorization "";
        proxy_set_header X-Corral-Target {(head or leaf.head_address).partition(":")[0]}:$stream_port;
      }}
      location /_corral/ {{ return 404; }}
      location / {{
        if ($corral_is_known = 0) {{ return 404; }}
        proxy_pass http://{head or f"{leaf.head_address}:{DASHBOARD_PORT}"};
{UPSTREAM_RULES}
        proxy_set_header {LEAF_SECRET_HEADER} "";
        proxy_set_header X-Ray-Authorization "Bearer {secrets.ray_token}";
      }}
    }}
}}
"""
