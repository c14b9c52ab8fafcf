"""
The front of a gateway, as an nginx configuration: who is asked, what is passed on, and what is refused at once.

Two forms, kept strictly apart:

- **Path form** `/c/NAME/…` for programs: the key travels in `Authorization: Bearer`; cookies are never looked at.
- **Origin form** `NAME.<domain>` for browsers: a host-only cookie that a one-time ticket has set; `Authorization` is
  never looked at. Each cluster has an origin of its own, because its pages come from a stranger's machine.

The text names no cluster: for each request the authorisation service (`authorise`) answers with the leaf's address and
secret, so that clusters come and go without a reload. Both headers stay between nginx and that service.
"""

import re

from corral.agent.gateway.web import HTTP_RULES, LEAF_SECRET_HEADER, UPSTREAM_RULES
from corral.core.errors import invariant

FRONT_PORT = 8471
AUTH_SOCKET = "/run/auth/socket"

_NAME = "[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?"
_DOMAIN = re.compile(r"^[a-z0-9](?:[a-z0-9.-]{0,200}[a-z0-9])?$")

_SITE_RULES = """
      add_header X-Content-Type-Options nosniff always;
      add_header Referrer-Policy no-referrer always;
      add_header X-Frame-Options SAMEORIGIN always;
      add_header Cross-Origin-Opener-Policy same-origin always;
      add_header Cross-Origin-Resource-Policy same-origin always;
      add_header Content-Security-Policy "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; \
frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'" always;
"""
# The policy lets a page (Ray's dashboard needs inline styles) talk to its own origin and to nothing else: neither to
# the control plane nor to another cluster.


def front_configuration(*, domain: str, listen: str = str(FRONT_PORT), auth_socket: str = AUTH_SOCKET) -> str:
    """
    The whole nginx configuration of a gateway's front.

    Args:
        domain: clusters are served at `NAME.<domain>`; `localhost` in development.
        listen: address and port of nginx's `listen`.
        auth_socket: path of the authorisation service's unix socket.
    """
    invariant(_DOMAIN.match(domain), "a gateway's domain is a DNS name in lower case")
    authorise = f"http://unix:{auth_socket}:/authorise"
    enter = f"http://unix:{auth_socket}:/enter"
    return f"""\
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
{HTTP_RULES}
    # A path that climbs, however it is written; the query is not looked at.
    map $request_uri $corral_climbs {{
      default 0;
      "~*^[^?]*(?:/|\\\\\\\\|%2f|%5c)(?:\\.|%2e){{1,2}}(?:/|\\\\\\\\|%2f|%5c|\\?|$)" 1;
    }}
    # The cluster and the rest, from the request as it came: nothing is decoded on the way to the head.
    map $request_uri $corral_raw_name {{ default ""; "~^/c/(?<raw_name>{_NAME})/" $raw_name; }}
    map $request_uri $corral_rest {{ default "/"; "~^/c/{_NAME}(?<rest>/.*)$" $rest; }}
    # An Origin that is not the very host that was asked; absent is not foreign (programs send none).
    map "$http_origin|$http_host" $corral_foreign_origin {{
      default 1;
      "~^\\|" 0;
      "~*^https?://([^|]+)\\|\\1$" 0;
    }}
    # Browsers tell where a request comes from. Another site may link to a cluster's page, and nothing more.
    map $http_sec_fetch_site $corral_other_site {{ default 0; cross-site 1; same-site 1; }}
    map "$corral_other_site|$request_method|$http_sec_fetch_mode|$http_sec_fetch_dest" $corral_other_site_refused {{
      default 0;
      "~^1\\|GET\\|navigate\\|document$" 0;
      "~^1\\|" 1;
    }}

    server {{
      listen {listen} default_server;
      server_name _;
      error_page 400 /_corral/malformed;
      error_page 401 = @no_key;
      error_page 403 404 = @no_cluster;
      error_page 413 = @too_large;
      error_page 421 = @browser;
      error_page 500 502 503 504 = @unavailable;

      location / {{ return 404; }}
      location = /_corral/health {{ default_type text/plain; return 200 "ok\\n"; }}
      location ~ "^/c/{_NAME}$" {{
        if ($corral_climbs) {{ return 400; }}
        return 308 $uri/$is_args$args;
      }}
      location ~ "^/c/(?<name>{_NAME})/" {{
        if ($corral_climbs) {{ return 400; }}
        if ($corral_raw_name != $name) {{ return 400; }}
        if ($corral_foreign_origin) {{ return 421; }}
        if ($corral_other_site) {{ return 421; }}
        set $corral_form path;
        set $corral_name $name;
        auth_request /_corral/authorise;
        auth_request_set $corral_leaf $upstream_http_x_corral_leaf;
        auth_request_set $corral_leaf_secret $upstream_http_x_corral_leaf_secret;
        proxy_pass http://$corral_leaf$corral_rest;
{UPSTREAM_RULES}
        proxy_set_header {LEAF_SECRET_HEADER} $corral_leaf_secret;
        proxy_set_header X-Ray-Authorization "";
        add_header X-Content-Type-Options nosniff always;
        add_header Content-Security-Policy "sandbox; default-src 'none'" always;
        add_header Cross-Origin-Resource-Policy same-origin always;
      }}
{_authorise_location(authorise)}
{_PROBLEMS}
    }}

    server {{
      listen {listen};
      server_name "~^(?<host_name>{_NAME})\\.{re.escape(domain)}$";
      error_page 400 /_corral/malformed;
      error_page 401 403 404 = @enter_first;
      error_page 413 = @too_large;
      error_page 421 = @foreign;
      error_page 500 502 503 504 = @unavailable_page;

      location = /_corral/enter {{
        # The ticket is in the query: it must not reach the log if the service should not answer.
        error_log stderr emerg;
        limit_except GET {{ deny all; }}
        proxy_pass {enter};
        proxy_pass_request_body off;
        proxy_set_header Content-Length "";
        proxy_set_header Cookie "";
        proxy_set_header Authorization "";
        proxy_set_header X-Corral-Name $host_name;
{_SITE_RULES}
      }}
      location ^~ /_corral/ {{ return 404; }}
      location / {{
        if ($corral_climbs) {{ return 400; }}
        if ($corral_foreign_origin) {{ return 421; }}
        if ($corral_other_site_refused) {{ return 421; }}
        # A service worker would outlive the cluster and serve whoever gets its name next.
        if ($http_service_worker) {{ return 421; }}
        set $corral_form origin;
        set $corral_name $host_name;
        auth_request /_corral/authorise;
        auth_request_set $corral_leaf $upstream_http_x_corral_leaf;
        auth_request_set $corral_leaf_secret $upstream_http_x_corral_leaf_secret;
        proxy_pass http://$corral_leaf$request_uri;
{UPSTREAM_RULES}
        proxy_set_header {LEAF_SECRET_HEADER} $corral_leaf_secret;
        proxy_set_header X-Ray-Authorization "";
{_SITE_RULES}
      }}
{_authorise_location(authorise)}
{_PAGES}
    }}
}}
"""


def _authorise_location(url: str) -> str:
    return f"""
      location = /_corral/authorise {{
        internal;
        proxy_pass {url};
        proxy_pass_request_body off;
        proxy_connect_timeout 2s;
        proxy_read_timeout 10s;
        proxy_set_header Content-Length "";
        proxy_set_header Upgrade "";
        proxy_set_header Connection "";
        proxy_set_header X-Corral-Form $corral_form;
        proxy_set_header X-Corral-Name $corral_name;
      }}"""


def _problem(place: str, status: int, code: str, title: str, detail: str, hint: str) -> str:
    body = (
        f'{{"type":"about:blank","title":"{title}","status":{status},"code":"{code}","detail":"{detail}",'
        f'"hint":"{hint}","facts":{{}}}}'
    )
    # The texts are quoted with apostrophes in nginx's file, so they hold none.
    return f"      location {place} {{ internal; default_type application/problem+json; return {status} '{body}\\n'; }}"


def _page(place: str, status: int, title: str, text: str) -> str:
    body = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><body><h1>{title}</h1><p>{text}</p></body></html>"
    )
    return (
        f"      location {place} {{ internal; default_type text/html; "
        f"add_header Content-Security-Policy \"default-src 'none'; frame-ancestors 'none'\" always; "
        f"add_header Cache-Control no-store always; return {status} '{body}\\n'; }}"
    )


# What nginx cannot even parse has no URI that a named location could keep, so that one page has a URI of its own.
_PROBLEMS = "\n".join(
    (
        _problem(
            "= /_corral/malformed", 400, "path_malformed", "Malformed request",
            "this path cannot be read; nothing was passed on",
            "write it without dot segments",
        ),
        _problem(
            "@no_key", 401, "key_missing", "No valid key",
            "the request carries no valid key of the network; nothing was passed on",
            "send the header Authorization: Bearer KEY, with a key of corral keys create",
        ),
        _problem(
            "@no_cluster", 404, "cluster_unknown", "No such cluster",
            "there is no cluster of yours by this name at this gateway", "corral ps lists your clusters",
        ),
        _problem(
            "@browser", 403, "browser_refused", "Not for browsers",
            "this path is for programs; a page of another site may not use it; nothing was passed on",
            "corral dashboard NAME opens a cluster in a browser",
        ),
        _problem(
            "@too_large", 413, "upload_too_large", "Upload too large", "more than 2 GiB; nothing was passed on",
            "put large data where the job can fetch it",
        ),
        _problem(
            "@unavailable", 503, "cluster_unreachable", "Not reachable now",
            "the cluster or the network does not answer at this moment", "try again; corral show NAME tells its state",
        ),
    )
)  # fmt: skip

_PAGES = "\n".join(
    (
        _page("= /_corral/malformed", 400, "Malformed request", "This path cannot be read. Nothing was passed on."),
        _page(
            "@enter_first", 401, "Your visit has ended",
            "There is no open visit to this cluster in this browser, or it has expired. "
            "Run <code>corral dashboard NAME</code> again and follow the link that it prints.",
        ),
        _page("@foreign", 403, "Refused", "Another site sent this request. Nothing was passed on."),
        _page("@too_large", 413, "Upload too large", "More than 2 GiB. Nothing was passed on."),
        _page(
            "@unavailable_page", 503, "Not reachable now",
            "The cluster or the network does not answer at this moment. Reload the page in a while; "
            "<code>corral show NAME</code> tells its state.",
        ),
    )
)  # fmt: skip
