"""`profilehouse collect`: the HTTP collector."""

from __future__ import annotations

import click

from profilehouse.errors import ProfilehouseError


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 for a free one.",
)
@click.option(
    "--demo",
    is_flag=True,
    help="Also serve a shop's page that shows the visitor's profile; on this machine only.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    default=20_000,
    show_default=True,
    help="Events that may wait for the log; more are answered with 429.",
)
def collect(host: str, port: int, demo: bool, max_waiting: int) -> None:
    """Take events over HTTP into the event log; serve profiles.

    An event that was accepted (202) is durable in the log. SIGTERM or Ctrl-C stops it after the
    requests that were begun are answered. A file log takes one collector; with Kafka any number may
    run, each in its process.
    """
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    try:
        from profilehouse.web.server import serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ProfilehouseError(
            f"{error}; install the web server: pip install 'profilehouse[web]'"
        ) from error

    settings = load_settings()

    def ready(address: str) -> None:
        click.echo(f"collecting on {address} into {settings.log}", err=True)
        if demo:
            click.echo(f"the demo page: {address}/", err=True)

    serve(Platform(settings), host, port, max_waiting, demo=demo, ready=ready)
