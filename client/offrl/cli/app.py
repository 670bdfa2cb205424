"""The tree of commands: all groups of commands in one Typer application."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from offrl.cli import audit, backup, collect, datasets, doctor, jobs, keys, policies, queue, service, spool, submit, sweep, top, uploads
from offrl.cli.output import say
from offrl.errors import Unknown, likely

ROOT_HELP = "Train policies from logged data on an offrld daemon, and run them. OFFRL_URL is the daemon's address."


# Habits from other programs: these are not typing errors, so the search for similar names does not find them.
OTHER_WORDS = {"list": ("ls", "status"), "ls": ("status",), "delete": ("rm",), "remove": ("rm",), "import": ("add",)}


class Group(TyperGroup):
    """A group that shows the full summaries of its commands, and suggests a command only for a typing error."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands and their summaries, wrapped instead of cut."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, " ".join((command.help or "").split())) for name, command in commands if command and not command.hidden]
            )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first argument names. Raises `Unknown`."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = self.list_commands(ctx)
            close = likely(args[0], known) or next((word for word in OTHER_WORDS.get(args[0], ()) if word in known), None)
            hint = f"did you mean `{ctx.command_path} {close}`?" if close else f"see `{ctx.command_path} --help`"
            error = Unknown(f"{ctx.command_path} has no command {args[0]!r}", hint=hint)
            error.code = "usage"
            raise error
        return super().resolve_command(ctx, args)


def command() -> Any:
    """Return the command ``offrl``."""
    options: dict[str, Any] = {
        "cls": Group,
        "rich_markup_mode": None,
        "pretty_exceptions_enable": False,
        "context_settings": {"help_option_names": ["-h", "--help"]},
    }
    app = typer.Typer(help=ROOT_HELP, no_args_is_help=True, add_completion=True, **options)
    app.callback()(_root)
    service.register(app)
    top.register(app)
    doctor.register(app)
    group = typer.Typer(help="Add, list, show, remove and export datasets.", no_args_is_help=True, **options)
    datasets.register(group)
    app.add_typer(group, name="datasets")
    group = typer.Typer(help="Create, register, list and remove keys of clients that connect over tcp.", no_args_is_help=True, **options)
    keys.register(group)
    app.add_typer(group, name="keys")
    group = typer.Typer(help="Pause, resume and show the whole queue.", no_args_is_help=True, **options)
    queue.register(group)
    app.add_typer(group, name="queue")
    group = typer.Typer(help="Show and send what a recorder has not sent yet.", no_args_is_help=True, **options)
    spool.register(group)
    app.add_typer(group, name="spool")
    group = typer.Typer(help="List and remove uploads that the daemon keeps.", no_args_is_help=True, **options)
    uploads.register(group)
    app.add_typer(group, name="uploads")
    audit.register(app)
    backup.register(app)
    submit.register(app)
    collect.register(app)
    sweep.register(app)
    jobs.register(app)
    policies.register(app)
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from offrl import __version__

        say(f"offrl {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


_root.__doc__ = ROOT_HELP
