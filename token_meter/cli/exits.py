"""How a command ends: the exit codes, and one clear line instead of a traceback for what may be expected."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

from typer.core import TyperGroup

from token_meter.cli.text import first_line, printable, without_passwords
from token_meter.errors import NoLedger, TokenMeterError

FINE: Final = 0
TROUBLE: Final = 1
WRONG_USAGE: Final = 2
NOTHING_THERE: Final = 3
INTERRUPTED: Final = 130
READER_GONE: Final = 141

EPILOG: Final = (
    "Exit codes: 0 it worked (also when nothing matched) · 1 something needs a human, or it failed · "
    "2 wrong usage · 3 no ledger or journal there."
)


_NEGATIVE: Final = re.compile(r"-[0-9.].*")


class Failure(TokenMeterError):
    """An expected end of a command: `str(failure)` is the line to show."""

    def __init__(self, message: str, *, code: int = TROUBLE) -> None:
        super().__init__(message)
        self.code = code


class ReaderGone(Exception):
    """The program that read our output went away: there is nobody left to tell anything."""


class Commands(TyperGroup):
    """The group behind every command: turns errors into one line on standard error and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; leaves the process unless `standalone_mode` is off."""
        extra |= {"prog_name": prog_name, "complete_var": complete_var, "windows_expand_args": windows_expand_args}
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a sign gets an escape in its place, not a traceback.
            if reconfigure := getattr(stream, "reconfigure", None):
                reconfigure(errors="backslashreplace")
        sys.exit(self._ended(args, **extra))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Typer would end a process whose reader went away as a failed one."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGone from None

    def _ended(self, args: Sequence[str] | None, **extra: Any) -> int:
        try:
            code = super().main(args, standalone_mode=False, **extra)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return INTERRUPTED
        except (BrokenPipeError, ReaderGone):
            _forget_output()
            return READER_GONE
        except Exception as error:
            told = _told(error)
            if told is None:
                raise
            message, code = told
            sys.stderr.write(f"token-meter: {printable(without_passwords(message))}\n")
        return code if isinstance(code, int) else FINE


def _told(error: Exception) -> tuple[str, int] | None:
    """The line and the exit code for an error that can be expected; None for one that is a fault of ours."""
    if isinstance(error, Failure):
        return str(error), error.code
    if isinstance(error, NoLedger):
        return str(error), NOTHING_THERE
    if isinstance(error, TokenMeterError):
        return str(error), TROUBLE
    # Typer brings its own copy of click or uses the installed one, so its errors are known by their shape.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _usage(error), error.exit_code
    if type(error).__name__ == "Abort" and type(error).__module__.startswith(("typer", "click")):
        return "stopped; nothing was changed", TROUBLE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", TROUBLE
    if type(error).__module__.startswith("sqlalchemy"):
        return f"the ledger cannot be read: {first_line(error)}", TROUBLE
    return None


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    hint = f" See `{context.command_path} --help`." if context else ""
    said = " ".join(str(error.format_message()).split())
    if _NEGATIVE.fullmatch(getattr(error, "option_name", None) or ""):
        said = f"{said.rstrip('.')}: if it is an amount, none here is negative"
    return f"{said}{'' if said.endswith(('.', '?')) else '.'}{hint}"


def _forget_output() -> None:
    """Without this the interpreter would fail once more when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
