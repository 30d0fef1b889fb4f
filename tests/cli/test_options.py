"""Options made from a configuration: what is read, what is shown, and what comes of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from fairlead.cli.options import Setting, collected, documented, settings_of


class Adapter(BaseModel):
    """Adapters.

    rank      of the update
    targets   which layers: "all-linear",
              or names
    """

    rank: int = 16
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class Base(BaseModel):
    """What all share.

    lr, speed   how fast
    clip        largest norm; None for none
    """

    lr: Annotated[float, Field(gt=0)] = 1e-5
    speed: float | None = None
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    free: bool = False


class Own(Base):
    """One method; see `Base`.

    lr     of this method
    kind   what it does: one thing or another
    lora   train adapters
    """

    kind: Literal["one", "other"] = "one"
    lora: Adapter | None = None


def settings(**defaults: Any) -> list[Setting]:
    return settings_of(Own, defaults, leave=("speed",), words={"lr": "by size"})


def read(*argv: str) -> dict[str, Any]:
    """What a command with these options makes of a command line."""
    import inspect

    made: dict[str, Any] = {}
    known = settings()

    def command(**given: Any) -> None:
        made.update(collected(given, known))

    command.__signature__ = inspect.Signature([s.parameter for s in known])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(command)
    done = CliRunner().invoke(app, list(argv))
    assert done.exit_code == 0, done.output
    return made


def test_own_fields_stand_first_and_what_is_left_out_is_not_there() -> None:
    flags = [setting.flag for setting in settings()]
    assert flags == ["--kind", "--lora", "--lora-rank", "--lora-targets", "--lr", "--clip", "--betas", "--free"]


def test_help_comes_from_the_docstrings_the_own_one_first() -> None:
    assert documented(Own) == {
        "lr": "of this method", "kind": "what it does: one thing or another", "lora": "train adapters",
        "speed": "how fast", "clip": "largest norm; None for none",
    }  # fmt: skip
    assert documented(Adapter)["targets"] == 'which layers: "all-linear", or names'
    shown = {setting.flag: setting.help for setting in settings()}
    assert (shown["--lr"], shown["--clip"]) == ("Of this method.", "Largest norm; None for none.")
    assert shown["--kind"] == "What it does: one thing or another. One of: one, other."


def test_defaults_are_shown_the_method_s_in_the_place_of_the_field_s() -> None:
    shown = {setting.flag: setting.default for setting in settings(kind="other")}
    assert (shown["--kind"], shown["--lr"], shown["--clip"], shown["--betas"]) == ("other", "by size", "1", "0.9 0.99")
    assert (shown["--free"], shown["--lora"], shown["--lora-rank"]) == ("no", False, "16")


def test_only_what_is_given_is_collected() -> None:
    assert read() == {}
    given = read("--lr", "0.1", "--betas", "0.5", "0.6", "--free", "--kind", "other")
    assert given == {"lr": 0.1, "betas": (0.5, 0.6), "free": True, "kind": "other"}
    assert read("--no-free") == {"free": False}


def test_none_is_a_value_where_it_is_a_choice() -> None:
    assert read("--clip", "none") == {"clip": None}
    assert Own(**read("--clip", "0.5")).clip == 0.5


def test_a_configuration_within_is_a_flag_and_options_of_its_own() -> None:
    assert Own(**read("--lora")).lora == Adapter()
    assert Own(**read("--lora-rank", "4")).lora == Adapter(rank=4)
    assert Own(**read("--lora", "--lora-rank", "4")).lora == Adapter(rank=4)
    assert Own(**read("--lora-targets", "all-linear")).lora == Adapter()
    assert Own(**read("--lora-targets", '["q", "v"]')).lora == Adapter(targets=("q", "v"))
    assert Own(**read()).lora is None
