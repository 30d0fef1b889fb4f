"""`fairlead doctor`: what this machine can do, and why not the rest."""

from __future__ import annotations

from typing import Annotated, Any

import typer

EXTRAS = {
    "train": (
        ("torch", "transformers", "safetensors", "tokenizers", "peft"),
        "training, and local models at full speed",
    ),
    "hub": (("datasets",), "data sets from the hub"),
    "guard": (("starlette", "uvicorn", "aiohttp", "onnxruntime"), "the guard as a server"),
    "report": (("altair", "vl_convert"), "extra charts"),
    "history": (("sqlalchemy",), "versions over time"),
    "inspect": (("inspect_ai",), "Inspect tasks and logs"),
}
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN")


def doctor(
    live: Annotated[
        str | None,
        typer.Option(
            "--live", metavar="MODEL", help="Also ask this model for one short reply (openai/NAME@URL, a folder, …)."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine can do, and why not the rest.

    Prints versions, cores, memory and disk, which optional parts are installed, and whether API keys are set (never
    their values). With --live it also asks a model for one short reply, which may cost a few tokens.
    """
    findings = examine()
    if live:
        findings["live"] = _ask(live)
    if as_json:
        from fairlead.cli.terminal import print_json

        print_json(findings)
    else:
        for line in _lines(findings):
            typer.echo(line)
    if live and not findings["live"]["answered"]:
        raise typer.Exit(4)


def examine() -> dict[str, Any]:
    """Everything that can be known without loading anything heavy."""
    import importlib.util
    import os
    import platform
    import shutil
    from pathlib import Path

    from fairlead import __version__, apprentice
    from fairlead.stack.identity import cores, version_of

    extras = {}
    for name, (packages, gives) in EXTRAS.items():
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
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
        "keys": {name: bool(os.environ.get(name)) for name in KEYS},
    }


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
        if live["answered"]:
            lines.append(f"{live['model']} answered in {live['seconds']} s: {live['reply']!r}")
            lines.append(f"it can: {', '.join(live['capabilities'])}")
        else:
            lines.append(f"{live['model']} did not answer: {live['why']}")
    return lines
