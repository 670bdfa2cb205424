"""The command line ``offrl``: `main` runs a command and turns what goes wrong into one line and an exit status.

Exit status: 0 done; 1 the job or a check failed, the disk is full, or stdout cannot be written; 2 bad usage or bad input; 3 no daemon, or
one of another protocol; 4 not allowed; 130 interrupted; 141 nobody reads stdout any more. With ``--json`` an error is
``{"error": {"code", "message", "hint"}}`` on stdout.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

ITSELF = ("serve",)  # commands that print nothing on stdout: they do without one
# Fields of requests under the names of options, where these are others.
_NAMES = {
    "seeds": ("seed", "seeds", "trials", "first_seed"), "dataset": ("dataset", "into", "name"), "start_at": ("at",), "start_in_s": ("at",),
    "config": ("sets",), "jobs": ("keep",), "options": ("option",),
    "id": ("job",),
}  # fmt: skip


def main() -> None:
    """Run the command of ``sys.argv``."""
    from offrl import streams

    arguments = sys.argv[1:]
    sys.exit(streams.run(lambda: run(arguments), needs_stdout=arguments[:1] not in ([name] for name in ITSELF)))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit status. Raises `offrl.streams.OutputFailed` where stdout refuses what the command prints."""
    from offrl.errors import OffrlError, to_wire
    from offrl.streams import OutputFailed

    arguments = list(arguments)
    as_json = "--json" in arguments
    try:
        from offrl.cli.app import command

        status = command().main(args=arguments, prog_name="offrl", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except OutputFailed:
        raise
    except OffrlError as error:
        extra = error.info.model_dump(mode="json") if hasattr(error, "info") else {}
        own = _as_typed(error, arguments) if getattr(error, "field", "") else to_wire(error)
        return _report(as_json, (extra.get("error") if as_json else None) or own, error.exit_status, extra)
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if (status := _of_typer(error, arguments, as_json)) is not None:
            return status
        if os.environ.get("OFFRL_DEBUG"):
            raise
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return _report(as_json, {"code": "internal", "message": message, "hint": "a defect of offrl: OFFRL_DEBUG=1 shows where"}, 1)


def _of_typer(error: Any, arguments: list[str], as_json: bool) -> int | None:
    """Report an error that Typer raised and return its exit status; None for any other exception."""
    kind = type(error).__name__
    if kind == "Abort":
        return 130
    if kind == "NoArgsIsHelpError":
        from offrl.cli.output import write

        if help_text := error.ctx.get_help():  # with rich it prints by itself
            write(help_text + "\n")
        return 2
    if hasattr(error, "format_message"):  # an unknown command or option, a missing argument
        return _report(as_json, {"code": "usage", **_usage(error, arguments)}, 2)
    return None


def _report(as_json: bool, error: dict[str, str], status: int, extra: dict[str, Any] | None = None) -> int:
    """Print an error. ``extra``: the job that failed, whose keys stand beside ``error`` in the JSON."""
    from offrl.cli.output import emit, talk

    if as_json:
        emit({**(extra or {}), "error": error})
    else:
        talk(f"error: {error['message']}" + (f"; {error['hint']}" if error["hint"] else ""))
    return status


def _as_typed(error: Any, arguments: list[str]) -> dict[str, str]:
    """An error about a field of a request, with the option's name instead of the field's."""
    from offrl.cli.app import command
    from offrl.errors import to_wire

    found, path = command(), ["offrl"]
    for argument in arguments:
        if argument not in getattr(found, "commands", {}):
            break
        found = found.commands[argument]
        path.append(argument)
    field = re.split(r"\W", error.field, maxsplit=1)[0]
    names = [_typed(param, arguments) for param in found.params if param.name in (field, *_NAMES.get(field, ()))]
    names.sort(key=lambda name: not _given(name, arguments))
    said = to_wire(error)
    if names:
        said["message"] = names[0] + said["message"].removeprefix(error.field)
    return said | {"hint": said["hint"] or f"see `{' '.join(path)} --help`"}


def _usage(error: Any, arguments: list[str]) -> dict[str, str]:
    """What Typer says about a command line, in the words of the other errors: the option, what it takes, what it got."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "offrl"
    help_hint = f"see `{path} --help`"
    kind = type(error).__name__
    if kind == "NoSuchOption" and context is not None:
        from offrl.errors import likely

        known = [name for param in context.command.params for name in param.opts if name.startswith("--")]
        close = likely(error.option_name, known)
        hint = f"did you mean {close}?" if close else help_hint
        if close is None and "--set" in known and error.option_name.startswith("--"):
            name = error.option_name.lstrip("-").replace("-", "_")
            hint = f"if it is a setting of the algorithm, pass --set {name}=VALUE; {help_hint}"
        return {"message": f"{path} has no option {error.option_name}", "hint": hint}
    message = " ".join(error.format_message().split()).rstrip(".")
    param = getattr(error, "param", None)
    if kind == "BadParameter" and param is not None:
        option = _typed(param, arguments)
        message = f"{option}: {' '.join(error.message.split()).rstrip('.')}"
        message = message.replace("is not a valid integer", "is not a whole number").replace("is not a valid float", "is not a number")
    return {"message": message, "hint": getattr(error, "hint", "") or help_hint}


def _typed(param: Any, arguments: list[str]) -> str:
    """An option as it stands on the command line, or the name of an argument."""
    names = [name for name in param.opts if name.startswith("-")]
    return next((name for name in names if _given(name, arguments)), names[0] if names else param.metavar or param.name)


def _given(option: str, arguments: list[str]) -> bool:
    return any(argument.partition("=")[0] == option for argument in arguments)


__all__ = ["main", "run"]
