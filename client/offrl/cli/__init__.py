"""The command line ``offrl``: `main` runs a command and turns what goes wrong into one line and an exit status.

Exit status: 0 done; 1 the job or a check failed, or the disk is full; 2 bad usage or bad input; 3 no daemon, or one of another protocol;
4 not allowed; 130 interrupted. With ``--json`` an error is ``{"error": {"code", "message", "hint"}}`` on stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any


def main() -> None:
    """Run the command of ``sys.argv``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit status."""
    status = _guarded(list(arguments))
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone; nothing is left to say, also not when Python flushes at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _guarded(arguments: list[str]) -> int:
    from offrl.errors import OffrlError, to_wire

    as_json = "--json" in arguments
    try:
        from offrl.cli.app import command

        status = command().main(args=arguments, prog_name="offrl", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except OffrlError as error:
        extra = error.info.model_dump(mode="json") if hasattr(error, "info") else {}
        own = extra.get("error") if extra else None
        return _report(
            as_json, own or to_wire(error), error.exit_status, error.message, extra
        )
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if type(error).__name__ == "Abort":
            return 130
        if type(error).__name__ == "NoArgsIsHelpError":
            help_text = error.ctx.get_help()  # with rich it prints by itself
            if help_text:
                print(help_text)
            return 2
        if hasattr(error, "format_message"):  # of Typer: an unknown command or option, a missing argument
            return _report(as_json, {"code": "usage", "message": _usage_message(error, arguments), "hint": _usage(error)}, 2)
        if os.environ.get("OFFRL_DEBUG"):
            raise
        message = _line(f"{type(error).__name__}: {error}")
        return _report(as_json, {"code": "internal", "message": message, "hint": "a defect of offrl: OFFRL_DEBUG=1 shows where"}, 1)


def _report(as_json: bool, error: dict[str, str], status: int, line: str = "", extra: dict | None = None) -> int:
    """Print an error. ``extra``: the job that failed, whose keys stand beside ``error`` in the JSON."""
    if as_json:
        from offrl.cli.output import emit

        emit({**(extra or {}), "error": error})
    else:
        message, hint = line or error["message"], error["hint"]
        print(f"error: {message}" + (f"; {hint}" if hint else ""), file=sys.stderr)
    return status


def _usage_message(error: Any, arguments: list[str]) -> str:
    """Typer's message, with the value that it is about."""
    message = _line(error.format_message()).rstrip(".")
    options = getattr(getattr(error, "param", None), "opts", [])
    for index, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name in options:
            value = value if separator else "".join(arguments[index + 1 : index + 2])
            return message if not value or repr(value) in message else f"{message} (got {value!r})"
    return message


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path if context is not None else 'offrl'} --help`"


def _line(text: str) -> str:
    return " ".join(str(text).split())


__all__ = ["main", "run"]
