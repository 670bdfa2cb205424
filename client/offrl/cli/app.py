"""The tree of commands: every group of commands put into one Typer application."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from offrl.cli import audit, backup, collect, datasets, doctor, jobs, keys, policies, queue, service, spool, submit, sweep, top, uploads

ROOT_HELP = "Train policies from logged data on an offrld daemon, and run them. OFFRL_URL names the daemon."


def command() -> Any:
    """The command ``offrl``, ready to be run."""
    options: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}
    app = typer.Typer(help=ROOT_HELP, no_args_is_help=True, add_completion=True, **options)
    app.callback()(_root)
    service.register(app)
    top.register(app)
    doctor.register(app)
    group = typer.Typer(help="Add, list, show, remove and export datasets.", no_args_is_help=True, **options)
    datasets.register(group)
    app.add_typer(group, name="datasets")
    group = typer.Typer(help="Keys of clients that connect over tcp: make, let in, list, shut out.", no_args_is_help=True, **options)
    keys.register(group)
    app.add_typer(group, name="keys")
    group = typer.Typer(help="Pause, resume and show the whole queue.", no_args_is_help=True, **options)
    queue.register(group)
    app.add_typer(group, name="queue")
    group = typer.Typer(help="Send and show what a recorder left in its spool.", no_args_is_help=True, **options)
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

        print(f"offrl {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


_root.__doc__ = ROOT_HELP
