"""Commands about datasets: add, append, ls, show, rm, export."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from offrl import streams
from offrl.cli import completion, options
from offrl.cli.connecting import connect
from offrl.cli.output import Json, destination, emit, number, pairs, say, size, table
from offrl.export_formats import FILES, FOLDERS, SUFFIXES
from offrl.printable import counted

Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.")]
Known = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.", autocompletion=completion.datasets)]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A file or folder.")]
Format = Annotated[str | None, typer.Option("--format", metavar="F", help="File format; by default detected from the content.")]
OnDaemon = Annotated[bool, typer.Option("--on-daemon", help="SOURCE is a path on the daemon's machine, below one of its import_roots.")]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMNS",
        help="Columns of a table: observation=obs_*,action=act_*,reward=r,episode=ep; or a TOML file.",
    ),
]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the format, with a TOML value; may be repeated.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip bad episodes and report them; by default a bad episode is an error.")]


def register(group: typer.Typer) -> None:
    """Put the commands of this file into ``group``."""
    for command in (add, append, ls, show, rm, export):
        group.command()(command)


def add(
    name: Name,
    source: Source,
    format: Format = None,
    map: Map = None,
    option: Options = None,
    skip_bad: SkipBad = False,
    on_daemon: OnDaemon = False,
    as_json: Json = False,
) -> None:
    """Import a file or folder as a new dataset."""
    _import("add", name, source, as_json, format=format, options=_options(map, option), skip_bad=skip_bad, on_daemon=on_daemon)


def append(
    name: Known,
    source: Source,
    format: Format = None,
    map: Map = None,
    option: Options = None,
    skip_bad: SkipBad = False,
    on_daemon: OnDaemon = False,
    as_json: Json = False,
) -> None:
    """Append the episodes of a file or folder to a dataset. If one is bad, nothing is appended."""
    _import("append", name, source, as_json, format=format, options=_options(map, option), skip_bad=skip_bad, on_daemon=on_daemon)


def ls(as_json: Json = False) -> None:
    """List the datasets."""

    with connect() as client:
        found = client.datasets.ls()
    if as_json:
        emit(found)
        return
    headers = ["name", "episodes", "transitions", "size", "return mean", "used by"]
    rows = [
        [
            each.name,
            number(each.episodes),
            number(each.transitions),
            size(each.bytes),
            number(each.returns.get("mean")),
            " ".join(each.pinned_by),
        ]
        for each in found
    ]
    table(headers, rows, right=headers[1:5])


def show(name: Known, as_json: Json = False) -> None:
    """Show a dataset: its size, fields and returns."""

    with connect() as client:
        _print(client.datasets.show(name), as_json)


def rm(name: Known, as_json: Json = False) -> None:
    """Delete a dataset; refused while an unfinished job uses it."""

    with connect() as client:
        client.datasets.rm(name)
    if as_json:
        emit({"name": name, "removed": True})
    else:
        say(f"removed {name}")


def export(
    name: Known,
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Target path: .hdf5 or .h5 (D4RL), .npz, otherwise the folder of a store; - is stdout.")
    ],
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="F", help=f"{', '.join(list(SUFFIXES)[:-1])} or {list(SUFFIXES)[-1]}."),
    ] = None,
    force: options.Force = False,
    as_json: Json = False,
) -> None:
    """Export a dataset to a file or folder on this machine."""
    from offrl.cli.progress import display
    from offrl.datasets import export_format
    from offrl.errors import InvalidInput

    if out == "-" and (format is None or format in FOLDERS):
        raise InvalidInput("stdout takes one file", hint=f"name its format: --format {', '.join(FILES[:-1])} or {FILES[-1]}")
    with destination(out, "dataset", "a dataset", as_json) as target, connect() as client, display(f"export {name}") as see:
        path = client.datasets.export(name, target, format, force=force, follow=see)
    if out == "-" or (not as_json and streams.is_stdout(path)):
        return
    if as_json:
        emit({"name": name, "path": str(path), "format": export_format(path, format)})
    else:
        say(path)


def _options(maps: list[str] | None, options: list[str] | None) -> dict[str, Any]:
    """The options of a format: ``--map`` is one of them, given more shortly."""
    from offrl.cli.values import column_map, setting

    values = dict(setting(each, "--option") for each in options or [])
    if maps:
        values["map"] = column_map(maps)
    return values


def _import(action: str, name: str, source: str, as_json: bool, **how: Any) -> None:
    from offrl.cli.progress import bytes_bar, display

    with connect() as client, display(f"{action} {name}") as see, bytes_bar(f"upload {source}") as moved:
        run = client.datasets.add if action == "add" else client.datasets.append

        def news(event: Any) -> None:
            """What is not in the result: how much was imported stands there."""
            if event.type != "message" or not event.message.startswith((f"dataset {name}: ", "imported: ", "appended: ")):
                see(event)

        info = run(name, source, progress=moved, follow=news, **how)
    _print(info, as_json)


def _print(info: Any, as_json: bool) -> None:
    if as_json:
        emit(info)
        return
    returns = "  ".join(f"{key} {number(value)}" for key, value in info.returns.items())
    missing = (info.steps or info.transitions) - info.transitions
    transitions = number(info.transitions) + (
        f" of {number(info.steps)} steps: the last step of {counted(missing, 'episode')} has no next observation" if missing else ""
    )
    values = [
        ("name", info.name),
        ("episodes", number(info.episodes)),
        ("transitions", transitions),
        ("size", size(info.bytes)),
        ("returns", returns),
        ("snapshot", info.snapshot),
    ]
    values += [(field, _field(described)) for field, described in info.fields.items()]
    if info.pinned_by:
        values.append(("used by", " ".join(info.pinned_by)))
    if info.skipped_episodes:
        values.append(("left out", f"{number(info.skipped_episodes)} bad episodes"))
        values += [("", f"episode {each.episode}: {each.why}") for each in info.skipped[:20]]
    pairs(values)


def _field(described: Any) -> str:
    if not isinstance(described, dict):
        return str(described)
    shape = "x".join(map(str, described.get("shape", []))) or "scalar"
    choices = f", {described['n']} choices" if "n" in described else ""
    return f"{described.get('dtype', '')} {shape}{choices}"
