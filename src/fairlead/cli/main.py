"""The command line: `fairlead`. One thin file per command; exit codes are those of DESIGN §7."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from fairlead import __version__
from fairlead.errors import FairleadError

app = typer.Typer(
    name="fairlead",
    help="Lead a language model to a written set of values, and see what that changed and what still slips through.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERNAL, INTERRUPTED, WRONG_INPUT = 70, 130, 2
# Commands raise their own click errors through typer, which may carry its own copy of click.
_ClickError: type[Any] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fairlead {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show Python tracebacks of errors (any place on the line).")
    ] = False,
) -> None:
    pass


@functools.cache
def _command() -> Any:
    """The whole command line. The files of the commands import only typer at the top, so this is quick."""
    from fairlead.cli import align, constitution, doctor, guard, label, measure, train

    app.command("align")(align.align)
    app.command("measure")(measure.measure)
    app.add_typer(train.app, name="train")
    app.add_typer(guard.app, name="guard")
    app.add_typer(label.app, name="label")
    app.add_typer(constitution.app, name="constitution")
    app.command("doctor")(doctor.doctor)
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. The console script passes it to `sys.exit`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = _command()(arguments, prog_name="fairlead", standalone_mode=False)
        sys.stdout.flush()
        return _interrupted() if code == INTERRUPTED else code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):  # typer itself may have turned Ctrl-C into the code above
        return _interrupted()
    except _ClickError as error:
        error.show()
        return WRONG_INPUT
    except BrokenPipeError:
        # Whoever read our output (head, less) has gone: say nothing, and let Python not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last line of defence: everything becomes a code and a sentence
        if debug:
            raise
        return _report(error)


def _interrupted() -> int:
    typer.echo("\ninterrupted; finished work is kept, the same command goes on from there", err=True)
    return INTERRUPTED


def _report(error: Exception) -> int:
    """Print an error in words and return its exit code."""
    if isinstance(error, FairleadError):
        _print_error(str(error))
        return error.exit_code
    known = _known(error)
    if known is not None:
        _print_error(str(known))
        return known.exit_code
    place = _place(error)
    _print_error(
        f"internal error: {type(error).__name__}: {error}{place}\n"
        "This is a fault in Fairlead, not in your input. Run again with --debug for the traceback, "
        "and please report it with the output of `fairlead doctor`."
    )
    return INTERNAL


def _known(error: Exception) -> FairleadError | None:
    """Errors of other libraries that have a plain meaning."""
    from fairlead.errors import InputError, MissingResource
    from fairlead.stack.atomic import full_disk

    if full_disk(error):
        return MissingResource("the disk is full; free some space, or give other places with --out and --cache")
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in {
        "torch",
        "transformers",
        "peft",
    }:
        return MissingResource(f"this needs {error.name}, which is not installed: pip install 'fairlead[train]'")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MissingResource("out of memory; use a smaller model, fewer cases, or a smaller token budget")
    if type(error).__name__ == "CapabilityError":
        return InputError(str(error))
    return None


def _place(error: Exception) -> str:
    trace, last = error.__traceback__, None
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if f"{os.sep}fairlead{os.sep}" in name:
            last = f"{name.rpartition(f'{os.sep}fairlead{os.sep}')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f" ({last})" if last else ""


def _print_error(text: str) -> None:
    typer.echo(f"error: {text}", err=True)


if __name__ == "__main__":
    sys.exit(main())
