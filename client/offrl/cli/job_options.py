"""The options of a command that queues a job, made from the job's specification."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from offrl.cli import completion
from offrl.cli.values import count, real
from offrl.job_options import JobOption, job_options

FIRST_OF_QUEUE = "priority"  # the options of a specification are listed before those of queueing
COMPLETIONS = {"start": completion.jobs, "offline": completion.datasets}
Command = TypeVar("Command", bound=Callable[..., None])


def options_of(spec: type[BaseModel]) -> Callable[[Command], Command]:
    """Replace the parameter ``**options`` of a command by the options of ``spec`` that the command does not declare itself.

    The command gets those that the user gave, by field name.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = signature.parameters
        made = [parameter(option) for option in job_options(spec, without=own)]
        # Keyword-only, because required parameters follow optional ones; Typer passes all of them by keyword.
        declared_here = [each.replace(kind=each.KEYWORD_ONLY) for each in own.values() if each.kind is not each.VAR_KEYWORD]
        place = next(i for i, each in enumerate(declared_here) if each.name == FIRST_OF_QUEUE)
        ordered = [*declared_here[:place], *made, *declared_here[place:]]
        names = {declared.name for declared in made}

        def run(**values: Any) -> None:
            unset = {name for name in names if values[name] is None or values[name] is False}
            command(**{name: value for name, value in values.items() if name not in unset})

        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        run.__annotations__ = {declared.name: declared.annotation for declared in ordered}
        return run  # type: ignore[return-value]

    return decorate


def parameter(option: JobOption) -> inspect.Parameter:
    """Return one option as the parameter of a command."""
    required = option.field.is_required()
    default = inspect.Parameter.empty if required else False if option.type is bool else None
    declared = typer.Option(
        option.flag,
        help=help_text(option),
        metavar=option.option.value or None,
        parser={int: count, float: real}.get(option.type),
        autocompletion=COMPLETIONS.get(option.name),
    )
    hint: Any = option.type if required or option.type is bool else option.type | None
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, declared])


def help_text(option: JobOption) -> str:
    """Return an option's help with its choices and its default."""
    choices = f" One of {', '.join(option.choices)}." if option.choices else ""
    return f"{option.option.help}{choices}" + (f" [default: {option.default}]" if option.default else "")
