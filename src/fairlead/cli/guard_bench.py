"""`fairlead guard bench`: how fast the proxy is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.common import JsonOption


def add(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    work: Annotated[
        list[str] | None,
        typer.Option("--work", metavar="NAME", help="chat, stream, paced (as a model writes), long; may be repeated."),
    ] = None,
    depth: Annotated[
        list[int] | None, typer.Option("--depth", min=1, help="Requests in flight; may be repeated.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Counted, of each.")] = 10.0,
    warm: Annotated[float, typer.Option("--warm", help="Seconds before, not counted.")] = 2.0,
    workers: Annotated[int, typer.Option("--workers", min=1)] = 1,
    audit: Annotated[bool, typer.Option("--audit/--no-audit", help="With the audit log.")] = True,
    constitution: Annotated[
        Path | None, typer.Option("--constitution", "-c", help="Instead of rules, secrets and canaries.")
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="FILE")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the proxy on this machine: requests per second, and the milliseconds it adds, by percentile.

    A mock of the model's server, the proxy and the client run on loopback, each in a process of its own. Beside what
    goes through the proxy the same is asked of the mock directly; what is added is the difference of percentiles.
    """
    from fairlead.cli.terminal import Terminal, print_json
    from fairlead.errors import MissingResource

    try:
        from fairlead.guard.proxy.bench import measure
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fairlead"):
            raise
        raise MissingResource(f"this needs {error.name}: pip install 'fairlead[guard]'") from None
    terminal = Terminal(quiet_out=as_json)
    found = measure(
        work or ["chat"], depth or [1, 16], seconds=seconds, warm=warm, workers=workers, audit=audit, say=terminal.say,
        constitution=constitution, policy=policy,
    )  # fmt: skip
    if as_json:
        print_json(found)
        return
    for row in found["rows"]:
        added = ", ".join(f"{q} {v:.2f}" for q, v in row["added_ms"].items())
        typer.echo(
            f"{row['work']}, {row['in_flight']} in flight: {row['requests_per_second']:,.0f} requests/s, "
            f"adds {added} ms"
        )
        if "added_first_byte_ms" in row:
            first = ", ".join(f"{q} {v:.2f}" for q, v in row["added_first_byte_ms"].items())
            held = f"; held back by what is read: {row['hold_back_ms']:.0f} ms" if "hold_back_ms" in row else ""
            typer.echo(f"  its first text comes later by {first} ms{held}")
