"""Commands about keys: new, add, role, ls, rm, server. They read and write files of this machine and need no daemon."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from offrl.cli.output import Json, emit, say, table, talk, write
from offrl.errors import InvalidInput

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the robot, machine or person.")]
Role = Annotated[str, typer.Option("--role", metavar="ROLE", help="reader, submitter or operator.")]
StateDir = Annotated[
    str | None, typer.Option("--state-dir", metavar="D", help="The daemon's state folder; by default the one that `offrl serve` uses.")
]


def register(app: typer.Typer) -> None:
    """Put the commands of this file into ``app``."""
    for command in (new, add, role, ls, rm, server):
        app.command()(command)


def new(
    name: Name,
    role: Role = "submitter",
    out: Annotated[str | None, typer.Option("--out", metavar="F", help="The key file to write; - is stdout.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing key file.")] = False,
    server: Annotated[
        str, typer.Option("--server", metavar="KEY", help="The daemon's public key, if the daemon runs on another machine.")
    ] = "",
    no_register: Annotated[bool, typer.Option("--no-register", help="Only create the key pair, even on the daemon's machine.")] = False,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Create a client's key file. On the daemon's machine this also registers the key; elsewhere, send the printed public key to the
    daemon's administrator."""
    from offrl import keys

    keys.check_name(name)
    keys.check_role(role)
    server = keys.check_public(server) if server else ""
    folder = None if no_register or (server and state_dir is None) else _state_dir(state_dir, needed=state_dir is not None)
    pair = keys.KeyPair.new()
    if folder is not None:
        server = keys.server_pair(folder).public
    if out == "-" and as_json:
        raise InvalidInput("- and --json both are for stdout", hint="name a file, or leave --json out")
    home = keys.config_dir() if out is None and folder is None else Path()
    if home is None:
        raise InvalidInput("this user has no home for the key file", hint="name the file with --out, or set HOME")
    path = Path(out) if out is not None else Path(f"{name}.key") if folder is not None else home / "offrl.key"
    if folder is not None:
        keys.add(folder, name, pair.public, role)
    try:
        if out == "-":
            write(keys.client_text(name, pair, server))
        else:
            keys.write_client(path, name, pair, server, force=force)
    except BaseException:
        if folder is not None:
            keys.remove(folder, name)
        raise
    if as_json:
        listed = {"registered": folder is not None, "role": role if folder is not None else None}
        emit({"name": name, "public": pair.public, "file": str(path), "server": server or None, **listed})
        return
    wrote = "the key file went to stdout" if out == "-" else f"wrote {path}"
    if out != "-":
        say(pair.public)
    if folder is None:
        talk(f"{wrote}; on the daemon's machine: offrl keys add {name} {pair.public} --role {role}")
        if not server:
            talk('then put server = "..." into it: `offrl keys server` prints it there')
    else:
        talk(f"{wrote} and registered {name} as {role} ({folder}); move the file to its machine as ~/.config/offrl/offrl.key (mode 0600)")


def add(
    name: Name,
    public: Annotated[str, typer.Argument(metavar="PUBLIC", help="The public key, 64 hexadecimal digits.")],
    role: Role,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Register a key that was created elsewhere. Prints the line that its key file needs."""
    from offrl import keys

    folder = _folder(state_dir)
    entry = keys.add(folder, name, public, role)
    own = keys.server_pair(folder).public
    if as_json:
        emit({"name": name, "role": entry.role, "public": entry.public, "server": own})
    else:
        say(f"{name} is registered as {entry.role}; its key file needs the line:")
        say(f'server = "{own}"')


def role(
    name: Name,
    new_role: Annotated[str, typer.Argument(metavar="ROLE", help="reader, submitter or operator.")],
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Change the role of a key; takes effect at once."""
    from offrl import keys

    entry = keys.set_role(_folder(state_dir), name, new_role)
    emit({"name": name, "role": entry.role, "public": entry.public}) if as_json else say(f"{name} is {entry.role} now")


def ls(state_dir: StateDir = None, as_json: Json = False) -> None:
    """List the registered keys."""
    from offrl import keys

    entries, problems = keys.entries(_folder(state_dir))
    if as_json:
        emit([{"name": entry.name, "role": entry.role, "public": entry.public, "added": entry.added} for entry in entries])
    else:
        rows = [[entry.name, entry.role, time.strftime("%Y-%m-%d", time.localtime(entry.added)), entry.public] for entry in entries]
        table(["name", "role", "added", "public"], rows)
    for line in problems:
        talk(f"not accepted: {line}")


def rm(name: Name, state_dir: StateDir = None, as_json: Json = False) -> None:
    """Remove a key; its open connections are closed at once."""
    from offrl import keys

    keys.remove(_folder(state_dir), name)
    emit({"name": name, "removed": True}) if as_json else say(f"removed {name}")


def server(state_dir: StateDir = None, as_json: Json = False) -> None:
    """Print the daemon's public key, which clients need."""
    from offrl import keys

    public = keys.server_pair(_folder(state_dir)).public
    emit({"server": public}) if as_json else say(public)


# ------------------------------------------------------------------------------------------------------------------- plumbing
def _folder(named: str | None) -> Path:
    folder = _state_dir(named, needed=True)
    assert folder is not None
    return folder


def state_folder(named: str | None) -> Path:
    """Return the state folder that a daemon would use or create: ``named``, $OFFRLD_STATE_DIR, an existing one, the user's."""
    from offrl import address

    chosen = named or os.environ.get("OFFRLD_STATE_DIR")
    places = [Path(place) for place in address.usual_state_dirs()]
    return Path(chosen) if chosen else next((place for place in places if place.is_dir()), places[0])


def _state_dir(named: str | None, *, needed: bool) -> Path | None:
    """Return the daemon's state folder on this machine, None if there is none.

    If it is ``needed``, raise `InvalidInput` if it is missing and `NotAllowed` if this user may not change it.
    """
    from offrl import address
    from offrl.errors import NotAllowed

    chosen = named or os.environ.get("OFFRLD_STATE_DIR")
    places = [Path(chosen)] if chosen else [Path(place) for place in address.usual_state_dirs()]
    existing = [place for place in places if place.is_dir()]
    usable = [place for place in existing if os.access(place, os.R_OK | os.W_OK | os.X_OK)]
    if usable:
        return usable[0].resolve()
    if not needed and not chosen:
        return None
    if existing:
        hint = "keys are managed by the service's own user: sudo -u offrld offrl keys ..."
        raise NotAllowed(f"you may not change {existing[0]}", hint=hint)
    where = " or ".join(map(str, places))
    raise InvalidInput(f"no daemon's state folder at {where}", hint="run this on the daemon's machine, or name the folder with --state-dir")
