"""`fairlead doctor`: what this machine, or a provider's model, can do, and why not the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.cli.common import JsonOption, PricesOption

EXTRAS = {
    "train": (
        ("torch", "transformers", "safetensors", "tokenizers", "peft"),
        "training, and local models at full speed",
    ),
    "hub": (("datasets",), "data sets from the hub"),
    "guard": (("starlette", "uvicorn", "aiohttp", "onnxruntime"), "the guard as a server"),
    "presidio": (("presidio_analyzer",), "names and places in the guard, by presidio"),
    "bedrock": (("boto3",), "models on Amazon Bedrock by AWS credentials"),
    "vertex": (("google.auth",), "models on Vertex AI by Google credentials"),
    "report": (("altair", "vl_convert"), "extra charts"),
    "history": (("sqlalchemy",), "versions over time"),
    "cluster": (("ray",), "labels in bulk under Ray"),
    "inspect": (("inspect_ai",), "Inspect tasks and logs"),
}
KEYS = (
    "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "AWS_BEARER_TOKEN_BEDROCK",
    "CLOUDSDK_AUTH_ACCESS_TOKEN", "TOGETHER_API_KEY", "HF_TOKEN",
)  # fmt: skip


def doctor(
    live: Annotated[
        str | None,
        typer.Option(
            "--live", metavar="MODEL", help="Also ask this model for one short reply (openai/NAME@URL, a folder, …)."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="AMOUNT", help="With --live: find out all it can do for at most '0.05 USD'."),
    ] = None,
    prices: PricesOption = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Where the record goes.", show_default="runs/.cache")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can do, and why not the rest.

    Prints versions, cores, memory and disk, which optional parts are installed, and whether API keys are set (never
    their values). With --live it also asks a model for one short reply, which may cost a few tokens; with a --budget
    it asks a remote model for everything its API offers, about a dozen short requests, and keeps a dated record of what
    it takes and what it refuses, which later runs go by.
    """
    from fairlead.errors import InputError
    from fairlead.models import is_remote

    if budget and not (live and is_remote(live)):
        raise InputError("--budget goes with --live and a remote model (PROVIDER/NAME[@URL])")
    findings = examine()
    ended = None
    if live and budget:
        findings["live"], ended = _probe(live, budget, prices, cache)
    elif live:
        findings["live"] = _ask(live)
    if as_json:
        from fairlead.cli.terminal import print_json

        print_json(findings)
    else:
        for line in _lines(findings):
            typer.echo(line)
    if ended is not None:
        raise ended
    if live and not findings["live"]["answered"]:
        raise typer.Exit(4)


def examine() -> dict[str, Any]:
    """Everything that can be known without loading anything heavy."""
    import os
    import platform
    import shutil

    from fairlead import __version__, apprentice
    from fairlead.stack.identity import cores, version_of

    extras = {}
    for name, (packages, gives) in EXTRAS.items():
        missing = [p for p in packages if not _installed(p)]
        extras[name] = {"installed": not missing, "missing": missing, "gives": gives}
    here = Path.cwd()
    return {
        "fairlead": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "memory_gb": _memory_gb(),
        "disk_free_gb": round(shutil.disk_usage(here).free / 1e9, 1),
        "folder_writable": os.access(here, os.W_OK),
        "torch": version_of("torch"),
        "transformers": version_of("transformers"),
        "gpu": _gpu(),
        "apprentice": (apprentice.path() / "model.safetensors").is_file(),
        "extras": extras,
        "keys": {name: _has_key(name) for name in KEYS},
    }


def _has_key(name: str) -> bool:
    """Whether a key is to be had: from the environment, or from a file that is there and that others cannot read."""
    from fairlead.errors import FairleadError
    from fairlead.models.keys import key_from

    try:
        return bool(key_from(name, url="https://", optional=True, name="doctor"))
    except FairleadError:
        return False


def _installed(package: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it is not there either
        return False


def _memory_gb() -> float | None:
    import os

    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _gpu() -> str:
    """The first GPU by name, or "" and never an import of torch: the driver's own listing is enough."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        run = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.splitlines()[0].strip() if run.returncode == 0 and run.stdout.strip() else ""


def _ask(spec: str) -> dict[str, Any]:
    """One short reply from the model, with how long it took, or why there was none."""
    import time

    from fairlead.errors import FairleadError
    from fairlead.exchange import user
    from fairlead.models import open_model
    from fairlead.models.protocol import Sampling

    started = time.monotonic()
    try:
        model = open_model(spec)
        limit = 16 if "max_tokens" in model.capabilities else None
        reply = model.generate([(user("hello"),)], Sampling(max_tokens=limit))[0][0]
    except FairleadError as error:
        return {"model": spec, "answered": False, "why": str(error)}
    return {
        "model": spec,
        "answered": reply.finish != "error",
        "why": reply.error,
        "seconds": round(time.monotonic() - started, 2),
        "reply": reply.text[:200],
        "capabilities": sorted(model.capabilities),
        "context": model.context,
    }


def _probe(spec: str, budget: str, prices: Path | None, cache: Path | None) -> tuple[dict[str, Any], Any]:
    """What a remote model can do, found out within the budget and kept; and what ended it early, or None."""
    import datetime

    from fairlead.models import Budget, open_model, read_prices
    from fairlead.models.capabilities import RECORDS, write_record
    from fairlead.models.probe import LIMITS, probe
    from fairlead.models.remote import RemoteModel

    model = open_model(spec, budget=Budget.parse(budget), prices=read_prices(prices) if prices else None, limits=LIMITS)
    assert isinstance(model, RemoteModel)
    record, ended = probe(model, today=datetime.datetime.now(datetime.UTC).date().isoformat())
    folder = RECORDS if cache is None else cache / "capabilities"
    path = write_record(record, folder)
    return {"model": spec, "answered": True, "record": str(path), **record.to_json(), "spent": str(model.spent)}, ended


def _found(live: dict[str, Any]) -> list[str]:
    """The record in words."""
    lines = [f"{live['model']} on {live['date']}, spent {live['spent']}", f"it takes: {', '.join(live['can'])}"]
    lines += [f"it refuses {name}: {why}" for name, why in sorted(live["cannot"].items())]
    for name, what in live["found"].items():
        lines.append(f"{name + ':':<10} {what if not isinstance(what, dict) else _pairs(what)}")
    return [*lines, f"kept in {live['record']}; runs in this folder go by it"]


def _pairs(what: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in what.items())


def _lines(found: dict[str, Any]) -> list[str]:
    memory = f"{found['memory_gb']} GB" if found["memory_gb"] else "unknown"
    lines = [
        f"fairlead {found['fairlead']} · Python {found['python']} · {found['platform']}",
        f"cores      {found['cores']}",
        f"memory     {memory}",
        f"disk       {found['disk_free_gb']} GB free here"
        + ("" if found["folder_writable"] else "; this folder is not writable"),
        f"gpu        {found['gpu'] or 'none seen'}",
        f"torch      {found['torch'] or 'not installed'}",
        f"apprentice {'ready' if found['apprentice'] else 'its weights are missing from this installation'}",
        "",
    ]
    for name, extra in found["extras"].items():
        why = (
            "installed"
            if extra["installed"]
            else f"missing {', '.join(extra['missing'])}: pip install 'fairlead[{name}]'"
        )
        lines.append(f"[{name}]".ljust(11) + f"{extra['gives']}: {why}")
    lines.append("")
    lines += [f"{name:<18} {'set' if there else 'not set'}" for name, there in found["keys"].items()]
    if "live" in found:
        live = found["live"]
        lines.append("")
        if "record" in live:
            lines += _found(live)
        elif live["answered"]:
            lines.append(f"{live['model']} answered in {live['seconds']} s: {live['reply']!r}")
            lines.append(f"it can: {', '.join(live['capabilities'])}")
        else:
            lines.append(f"{live['model']} did not answer: {live['why']}")
    return lines
