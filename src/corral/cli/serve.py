"""The operator's commands: run the control plane, make its first operator. The one module that uses server code."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from corral.cli.output import JsonOption, UsageProblem, is_json, put, put_json, say
from corral.cli.wishes import checked_name

DEFAULT_BIND = "127.0.0.1:8470"
DEFAULT_OPERATOR = "operator"

DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of keys, certificates and the embedded PostgreSQL.")
]

serve_app = typer.Typer(
    help="Run the control plane, or make its first operator (`corral serve init`).", invoke_without_command=True
)


@serve_app.callback()
def serve(
    context: typer.Context,
    bind: Annotated[
        list[str] | None, typer.Option("--bind", help=f"Address to listen on; repeatable. [{DEFAULT_BIND}]")
    ] = None,
    data_dir: DataDirOption = None,
    public_name: Annotated[
        list[str] | None, typer.Option("--public-name", help="Another DNS name or address for the certificate.")
    ] = None,
    public_url: Annotated[
        str | None, typer.Option("--public-url", help="Where people and hosts elsewhere reach this control plane.")
    ] = None,
    gateway_domain: Annotated[
        str | None, typer.Option("--gateway-domain", help="A cluster's pages are at NAME.DOMAIN. [localhost]")
    ] = None,
    prices: Annotated[Path | None, typer.Option("--prices", help="Price file (TOML).")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="JSON file: image name to digest.")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate chain to use (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key (PEM).")] = None,
    no_tls: Annotated[bool, typer.Option("--no-tls", help="Speak plain HTTP; only on loopback addresses.")] = False,
    log_format: Annotated[str | None, typer.Option("--log-format", help="console or json.")] = None,
) -> None:
    """Run the control plane until it is told to stop (SIGTERM, Ctrl-C)."""
    if context.invoked_subcommand is not None:
        context.obj = data_dir
        return
    if (tls_cert is None) != (tls_key is None) or (no_tls and tls_cert is not None):
        raise UsageProblem("give --tls-cert and --tls-key together, and not with --no-tls")
    _need_server()
    from corral.api.listen import parse_bind
    from corral.api.process import ServeOptions
    from corral.api.process import serve as run

    binds = tuple(parse_bind(text) for text in dict.fromkeys(bind or [DEFAULT_BIND]))
    settings = _settings(
        data_dir,
        gateway_domain=gateway_domain,
        prices_file=prices,
        images_file=images,
        log_format=log_format,
        **_urls("http" if no_tls else "https", binds[0].port, public_url),
    )
    run(
        settings,
        ServeOptions(
            binds=binds, names=tuple(public_name or ()), has_tls=not no_tls, certificate=tls_cert, key=tls_key
        ),
    )


@serve_app.command("init")
def init(
    context: typer.Context,
    operator: Annotated[str, typer.Option("--operator", help="Name of the first operator.")] = DEFAULT_OPERATOR,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Make the first operator and print its key: once per database. The control plane must not be running."""
    checked_name(operator)
    _need_server()
    from corral.api.process import initialise

    person, key = initialise(_settings(data_dir or context.obj), operator)
    if is_json():
        put_json({"person": person.name, "person_id": person.id, "key": key})
        return
    say(f"{person.name} is this control plane's first operator. The key below is shown this once:")
    put(key)


@serve_app.command("restored")
def restored(context: typer.Context, data_dir: DataDirOption = None, json: JsonOption = False) -> None:
    """Tell a database restored from a backup that it is one: once, before hosts talk to the control plane again."""
    _need_server()
    from corral.api.process import begin_epoch_after_restore

    epoch = begin_epoch_after_restore(_settings(data_dir or context.obj))
    if is_json():
        put_json({"epoch": epoch})
        return
    say(f"epoch {epoch} begins: hosts take the restored state at once, and end what it does not know")


def _settings(data_dir: Path | None, **options: Any) -> Any:
    from corral.platform.logs import configure_logs
    from corral.platform.settings import read_settings

    settings = read_settings(os.environ, data_dir=data_dir, **options)
    configure_logs(log_format=settings.log_format, level=settings.log_level)
    return settings


def _urls(scheme: str, port: int, public_url: str | None) -> dict[str, str]:
    """Where the API is reached, by people and by the agents' containers, unless the environment says otherwise."""
    here = public_url or os.environ.get("CORRAL_PUBLIC_URL") or f"{scheme}://127.0.0.1:{port}"
    urls = {"public_url": here.rstrip("/")}
    if not os.environ.get("CORRAL_AGENT_URL"):
        # A container's own loopback is not ours: on this machine it reaches us by Docker's name for the host.
        host = here.partition("://")[2].partition("/")[0]
        is_local = host.startswith(("127.", "localhost", "[::1]"))
        urls["agent_url"] = f"{scheme}://host.docker.internal:{port}" if is_local else urls["public_url"]
    return urls


def _need_server() -> None:
    try:
        import asyncpg  # noqa: F401
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageProblem(
            f"the control plane is not installed here ({error.name} is missing)", hint="pip install 'corral[server]'"
        ) from None
