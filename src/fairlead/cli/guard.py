"""`fairlead guard`: the guard as a proxy, and what belongs to it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The guard: in front of any model, in the wire formats of its clients.")

for _name in ("guard_audit", "guard_train", "guard_bench"):  # each adds its commands to `app`
    try:
        importlib.import_module(f"fairlead.cli.{_name}").add(app)
    except ModuleNotFoundError as missing:
        if missing.name != f"fairlead.cli.{_name}":
            raise


@app.command()
def serve(
    upstream: Annotated[
        str | None, typer.Option("--upstream", metavar="URL", help="The model's server: https://api.openai.com, …")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="M", help="A model in this process instead: apprentice, ./dir.")
    ] = None,
    constitution: Annotated[
        str, typer.Option("--constitution", "-c", metavar="C", help="What is guarded: a file or a pack.")
    ] = "hhh",
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Settings, YAML: limits, deadlines, what passes.")
    ] = None,
    tenants: Annotated[
        Path | None, typer.Option("--tenants", metavar="FILE", help="Who may ask, by hashed keys, YAML.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address; any but loopback needs --tenants.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8080,
    admin_port: Annotated[
        int, typer.Option("--admin-port", min=-1, max=65535, help="Metrics and reload, on loopback; -1 for none.")
    ] = 8081,
    upstream_key: Annotated[
        str | None,
        typer.Option(
            "--upstream-key",
            metavar="VARIABLE",
            help="Environment variable of the server's key, or of its VARIABLE_FILE.",
        ),
    ] = None,
    critic: Annotated[
        str | None, typer.Option("--critic", metavar="M", help="A model that reads the principles no code can check.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option("--classifier", metavar="DIR", help="As trained by `fairlead guard train`.")
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", metavar="DIR", help="Probes of --model, by `fairlead guard train --probe`."),
    ] = None,
    audit: Annotated[Path | None, typer.Option("--audit", metavar="FILE", help="Keep a tamper-evident log.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Do nothing; report what would have been done.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=256, help="Processes.", show_default="1")
    ] = None,
) -> None:
    """Put the guard in front of a model and speak OpenAI's and Anthropic's formats, streaming and not.

    Clients change their base URL and nothing else. No byte of a reply leaves before the checks that cover it have
    passed; what a principle decides is a normal answer in the client's format, what is broken is an error with a
    reason. Start-up prints which principles make a stream wait and what nobody checks. SIGHUP reloads, SIGTERM drains.
    """
    from fairlead.errors import InputError, MissingResource

    if (upstream is None) == (model is None):
        raise InputError("name who answers: either --upstream URL or --model MODEL")
    if probe is not None and model is None:
        raise InputError("--probe reads a model in this process: name it with --model, or leave the probe out")
    try:
        from fairlead.guard.proxy.serve import Place, serve
        from fairlead.guard.proxy.setup import Options
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fairlead"):
            raise
        raise MissingResource(
            f"this needs {error.name}, which is not installed: pip install 'fairlead[guard]'"
        ) from None
    options = Options(
        constitution,
        upstream,
        upstream_key,
        model,
        policy,
        tenants,
        audit,
        shadow,
        workers,
        critic,
        classifier,
        probe,
    )
    place = Place(host, port, None if admin_port < 0 else admin_port)
    code = serve(options, place, lambda line: typer.echo(line, err=True))
    if code == 130:
        typer.echo("stopped; what was in flight has ended", err=True)
        raise SystemExit(code)  # and not as an interrupted command, which would go on where it was
    if code:
        raise typer.Exit(code)


@app.command()
def key(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="Id of the tenant, for the line to copy.")] = "tenant",
) -> None:
    """Draw a key for a tenant: printed once, with the line for the tenant file, which holds its digest alone."""
    from fairlead.guard.proxy.tenants import draw_key

    drawn, digest = draw_key()
    typer.echo(drawn)
    typer.echo(f'  - name: {name}\n    keys: ["{digest}"]', err=True)
