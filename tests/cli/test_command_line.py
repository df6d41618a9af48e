"""What holds for every command: help, exit codes, one line for errors, JSON everywhere, and a quick start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

import token_meter
from tests.cli.conftest import Cli, clean_environment
from token_meter.cli.app import app


def _commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_the_commands_are_those_that_are_documented() -> None:
    assert {" ".join(path) for path in COMMANDS} == {
        "demo", "setup", "usage", "doctor", "version", "import", "events tail", "events export", "events show",
        "events void", "events reassign", "customers list", "customers show", "customers set", "customers import",
        "customers export", "customers pause", "customers resume", "prices list", "prices show", "prices history",
        "prices diff", "prices sync", "prices check", "prices held", "prices accept", "prices reject",
        "plans list", "plans show", "plans apply", "plans subscriptions", "plans subscribe", "plans unsubscribe",
        "plans cancel", "plans default",
        "plans estimated", "plans example", "credits grant", "credits buy", "credits list", "credits refund",
        "credits void",
        "credits expire", "credits journal", "credits recharge", "invoice show", "invoice run", "invoice finalise",
        "invoice list", "invoice void", "invoice pay", "invoice credit-note", "invoice verify", "invoice export",
        "invoice accrual", "invoice seller", "budgets set", "budgets list", "budgets show", "budgets reset",
        "budgets remove", "budgets holds", "budgets watch", "budgets unreachable", "credits balance", "credits policy",
        "notices list", "notices endpoints", "notices add", "notices remove", "notices rotate", "notices enable",
        "notices replay", "notices test", "notices deliver", "deliver status", "deliver run", "deliver check",
        "deliver retry", "deliver forget", "deliver quarantine list", "deliver quarantine release",
        "deliver quarantine discard", "deliver quarantine drop", "reconcile sink",
    }  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_takes_json_and_tells_its_exit_codes(cli: Cli, path: tuple[str, ...]) -> None:
    result = cli(*path, "--help")

    assert result.code == 0
    assert "--json" in result.out
    assert "Exit codes: 0 it worked" in result.out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    assert [option.name for option in COMMANDS[path].params if not getattr(option, "help", None)] == []


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"token-meter {token_meter.__version__}\n"
    assert cli("version", "--json").json["token-meter"] == token_meter.__version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["usagee"], "Did you mean 'usage'?"), (["events", "tial"], "Did you mean 'tail'?"), (["--wat"], "--wat. See `")],
)
def test_an_unknown_command_is_one_line(program: Cli, arguments: list[str], said: str) -> None:
    result = program(*arguments)

    assert (result.code, result.out) == (2, "")
    assert said in result.err and result.err.count("\n") == 1


def test_colours_are_for_terminals_only(program: Cli) -> None:
    assert "\x1b" not in program("version").out + program("doctor").out + program("--help").out


def test_help_loads_no_database_and_no_sdk() -> None:
    """That is what makes it quick; a time would depend on the machine."""
    heavy = ["sqlalchemy", "alembic", "openai", "anthropic", "google.genai", "psycopg", "token_meter.testing"]
    script = (
        "import sys\nfrom token_meter.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"sys.stderr.write(' '.join(name for name in {heavy!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean_environment())

    assert (done.returncode, done.stderr) == (0, "")


def test_shell_completion_is_offered(program: Cli) -> None:
    result = program(_TOKEN_METER_COMPLETE="complete_bash", COMP_WORDS="token-meter us", COMP_CWORD="1")

    assert result.out.split() == ["usage"]
