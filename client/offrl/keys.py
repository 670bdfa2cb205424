"""CURVE keys as files: the client's key file, the daemon's own key, and the daemon's list of accepted clients.

All are small TOML texts, with keys as 64 hexadecimal digits (a shell passes them on as they are).

    client's key file, 0600    name, public, secret, server         ~/.config/offrl/offrl.key, or where OFFRL_KEY says
    STATE_DIR/keys/server.key  public, secret                       0600
    STATE_DIR/keys/clients/    NAME.toml: public, role, added       one file per client, so that adding and removing one is one
                                                                    system call that a running daemon sees whole or not at all

A secret is written to a file that is 0600 from its creation and gets its name when it is whole; one that others may read is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offrl import outfile
from offrl.address import user_folder
from offrl.errors import Conflict, InvalidInput, NotAllowed, Unknown, nearest
from offrl_store.disk import sync_folder, write_atomic, write_new

ROLES = ("reader", "submitter", "operator")  # each may do what those before it may
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = ("local", "anyone", "offrld")  # callers that are no keys
FILE_LIMIT = 4096  # bytes of a key file
MAX_CLIENTS = 10_000
NEW_HINT = "create a key with `offrl keys new NAME`; register it with `offrl keys add NAME PUBLIC --role ROLE` on the daemon's machine"
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair. ``public`` and ``secret`` are 64 hexadecimal digits."""

    public: str
    secret: str

    @classmethod
    def new(cls) -> KeyPair:
        import zmq
        from zmq.utils import z85

        if not zmq.has("curve"):
            raise InvalidInput("this installation of pyzmq has no CURVE", hint="install pyzmq from its wheel: pip install pyzmq")
        public, secret = zmq.curve_keypair()
        return cls(z85.decode(public).hex(), z85.decode(secret).hex())

    def __repr__(self) -> str:  # a secret never gets into a log by accident
        return f"KeyPair({self.public!r})"


@dataclass(frozen=True, repr=False)
class ClientKey(KeyPair):
    """What a client's key file holds: who it is, and which daemon it trusts (``server``: its public key, or "")."""

    name: str
    server: str
    path: str


@dataclass(frozen=True)
class Entry:
    """One client of the daemon's list. ``added``: seconds since the epoch."""

    name: str
    public: str
    role: str
    added: float = 0.0


# ------------------------------------------------------------------------------------------------------------ the client's file
def config_dir() -> Path | None:
    """Return $XDG_CONFIG_HOME/offrl or ~/.config/offrl; None for a user without a home."""
    base = user_folder("XDG_CONFIG_HOME", ".config")
    return None if base is None else Path(base) / "offrl"


def find(url: str, named: str | os.PathLike[str] | None = None) -> Path | None:
    """The key file for the daemon at ``url``: ``named``, else OFFRL_KEY, else HOST.key or offrl.key of `config_dir`; None: there is none.

    An empty name or OFFRL_KEY means that none shall be used. The file that is named has to be there: `NotAllowed`.
    """
    given = os.environ.get("OFFRL_KEY") if named is None else os.fspath(named)
    if given is not None:
        if not given:
            return None
        path = Path(os.path.expanduser(given))  # unlike Path.expanduser, it takes a user who is not there for a name
        if not path.exists():
            raise NotAllowed(f"the key file {path} does not exist", hint=NEW_HINT)
        return path
    host = url.partition("://")[2].rpartition(":")[0].strip("[]")
    names = ["offrl.key"] if "/" in host or not host else [f"{host}.key", "offrl.key"]
    folder = config_dir()
    return None if folder is None else next((path for name in names if (path := folder / name).exists()), None)


def read_client(path: Path) -> ClientKey:
    """The client's key file. `NotAllowed` where others may read it, `InvalidInput` where it is none."""
    values = _values(path, secret=True)
    return ClientKey(
        _key(path, values, "public"),
        _key(path, values, "secret"),
        str(values.get("name") or path.stem),
        _key(path, values, "server") if values.get("server") else "",
        str(path),
    )


def client_text(name: str, pair: KeyPair, server: str = "") -> str:
    """What stands in a client's key file."""
    check_name(name)
    lines = [f"# The key of {name} for an offrld daemon. Whoever has this file is {name}: keep it to yourself (mode 0600)."]
    lines += [f'name = "{name}"', f'public = "{pair.public}"', f'secret = "{pair.secret}"']
    lines += [f'server = "{server}"'] if server else ["# The daemon's public key, as `offrl keys server` prints it there:", '# server = ""']
    return "\n".join(lines) + "\n"


def write_client(path: Path, name: str, pair: KeyPair, server: str = "", *, force: bool = False) -> None:
    """Write a client's key file (0600); `Conflict` where there is a file already, unless ``force``."""
    text = client_text(name, pair, server)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(error, path) from None
    if force:
        outfile.write(path, text, force=True, mode=0o600)
    else:
        _write_new(path, text, f"{path} exists", "it may be in use: choose another file with --out, or replace it with --force")


# ------------------------------------------------------------------------------------------------------------- the daemon's files
def server_file(state_dir: Path) -> Path:
    return state_dir / "keys" / "server.key"


def clients_dir(state_dir: Path) -> Path:
    return state_dir / "keys" / "clients"


def prepare(state_dir: Path) -> None:
    """Make the folders, for the owner of the state folder alone (root may be the one who asks). `InvalidInput` where that fails."""
    try:
        with _as_owner(state_dir):
            for folder in (state_dir / "keys", clients_dir(state_dir)):
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(error, state_dir) from None


def server_pair(state_dir: Path) -> KeyPair:
    """The daemon's own pair, made where there is none."""
    prepare(state_dir)
    path = server_file(state_dir)
    if not path.exists():
        pair = KeyPair.new()
        text = f'# The key of this offrld: clients know it by the public half.\npublic = "{pair.public}"\nsecret = "{pair.secret}"\n'
        with _as_owner(state_dir), contextlib.suppress(Conflict):  # another process was faster: its key is the one
            _write_new(path, text, str(path), "")
    values = _values(path, secret=True)
    return KeyPair(_key(path, values, "public"), _key(path, values, "secret"))


def add(state_dir: Path, name: str, public: str, role: str) -> Entry:
    """Let a client in. Raises `Conflict` where the name or the key is listed, `InvalidInput` for what is not a name, key or role."""
    check_name(name)
    entry = Entry(name, check_public(public), check_role(role), float(int(time.time())))
    prepare(state_dir)
    for other in entries(state_dir)[0]:
        if other.public == entry.public and other.name != name:
            raise Conflict(f"this public key is listed as {other.name!r}", hint="create a key for each client: `offrl keys new NAME`")
    path = clients_dir(state_dir) / f"{name}.toml"
    hint = f"`offrl keys role {name} ROLE` changes its role, `offrl keys rm {name}` removes it"
    with _as_owner(state_dir):
        _write_new(path, _entry_text(entry), f"{name!r} is already registered", hint)
    return entry


def set_role(state_dir: Path, name: str, role: str) -> Entry:
    """Give a listed client another role. Raises `Unknown`, `InvalidInput`."""
    check_role(role)
    path = _listed(state_dir, name)
    old = read_entry(path)
    entry = Entry(name, old.public, role, old.added)
    with _as_owner(state_dir):
        try:
            write_atomic(path, _entry_text(entry).encode(), mode=0o600, shared=True)
        except OSError as error:
            raise _unusable(error, path) from None
    return entry


def remove(state_dir: Path, name: str) -> None:
    """Shut a client out. Raises `Unknown`."""
    path = _listed(state_dir, name)
    try:
        with _as_owner(state_dir):
            path.unlink()
            sync_folder(path.parent)
    except OSError as error:
        raise _unusable(error, path) from None


def entries(state_dir: Path) -> tuple[list[Entry], list[str]]:
    """The list by name, and a line for each file in it that cannot be read (that client is not accepted)."""
    found: list[Entry] = []
    wrong: list[str] = []
    try:
        paths = sorted(clients_dir(state_dir).glob("*.toml"))
    except OSError as error:
        raise _unusable(error, state_dir) from None
    for path in paths:
        try:
            found.append(read_entry(path))
        except (InvalidInput, NotAllowed) as error:
            wrong.append(str(error))
    return found, wrong


def read_entry(path: Path) -> Entry:
    """One file of the list. Raises `InvalidInput`, `NotAllowed` where others may change it."""
    values = _values(path, secret=False)
    role, added = values.get("role"), values.get("added", 0)
    if role not in ROLES or not NAME.fullmatch(path.stem) or path.stem in RESERVED:
        raise InvalidInput(f"{path} does not describe a client: name {path.stem!r}, role {role!r}", hint=f"roles: {', '.join(ROLES)}")
    return Entry(path.stem, _key(path, values, "public"), str(role), float(added) if isinstance(added, int | float) else 0.0)


# ---------------------------------------------------------------------------------------------------------------------- checks
def check_name(name: str) -> str:
    if not NAME.fullmatch(name) or name in RESERVED:
        raise InvalidInput(
            f"{name!r} is not a valid name for a key", hint="letters, digits, '.', '_' and '-', at most 64; a letter or digit first"
        )
    return name


def check_role(role: str) -> str:
    if role not in ROLES:
        raise InvalidInput(f"no role {role!r}", hint=f"roles: {', '.join(ROLES)}")
    return role


def check_public(text: str) -> str:
    """A public key as 64 hexadecimal digits. Raises `InvalidInput`."""
    public = text.strip().lower()
    if not _HEX.fullmatch(public):
        raise InvalidInput(f"{text[:80]!r} is not a public key", hint="64 hexadecimal digits, as `offrl keys new` prints them")
    return public


# ----------------------------------------------------------------------------------------------------------------------- files
def _values(path: Path, *, secret: bool) -> dict[str, Any]:
    """The TOML in a small file. Looked at through its descriptor: what was checked is what is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            mode = stat.S_IMODE(found.st_mode)
            if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_LIMIT:
                raise InvalidInput(f"{path} is not a key file", hint=NEW_HINT)
            if mode & (0o077 if secret else 0o022):
                what = "others may read the secret key in it" if secret else "others may change it"
                raise NotAllowed(f"{path} has mode {mode:04o}: {what}", hint=f"chmod 600 {path}")
            text = file.read(FILE_LIMIT + 1)
        return tomllib.loads(text.decode())
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist", hint=NEW_HINT) from None
    except PermissionError:
        raise NotAllowed(f"{path} cannot be read by this user", hint="it must belong to the user who uses it") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise InvalidInput(f"{path} is not a key file: it is not TOML", hint=NEW_HINT) from None


def _key(path: Path, values: dict[str, Any], field: str) -> str:
    value = values.get(field)
    if not isinstance(value, str) or not _HEX.fullmatch(value.lower()):  # the value is not shown: it may be a secret
        raise InvalidInput(f"{path} is not a key file: {field!r} must be 64 hexadecimal digits", hint=NEW_HINT)
    return value.lower()


def _entry_text(entry: Entry) -> str:
    return f'public = "{entry.public}"\nrole = "{entry.role}"  # {", ".join(ROLES)}\nadded = {int(entry.added)}\n'


def _listed(state_dir: Path, name: str) -> Path:
    path = clients_dir(state_dir) / f"{name}.toml"
    if not NAME.fullmatch(name) or not path.exists():
        known = sorted(other.stem for other in clients_dir(state_dir).glob("*.toml"))
        raise Unknown(f"no key {name!r} in {path.parent}", hint=nearest(name, known) or "`offrl keys ls` lists the registered keys")
    return path


def _write_new(path: Path, text: str, exists: str, hint: str) -> None:
    """Write a key file, 0600 from its creation, whole or not at all; `Conflict` (``exists``) if its name is taken."""
    try:
        write_new(path, text.encode(), mode=0o600)
    except FileExistsError:
        raise Conflict(exists, hint=hint) from None
    except OSError as error:
        raise _unusable(error, path) from None


@contextlib.contextmanager
def _as_owner(state_dir: Path) -> Iterator[None]:
    """Where root manages the keys of the service's user, be that user meanwhile: it must be able to read the files, and a link that it
    has put there leads root nowhere."""
    owner = state_dir.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def _unusable(error: OSError, path: Path) -> InvalidInput | NotAllowed:
    if isinstance(error, PermissionError):
        return NotAllowed(f"{path}: {error.strerror}", hint="keys are managed by the service's own user: sudo -u offrld offrl keys ...")
    return InvalidInput(f"{path}: {error.strerror or error}", hint="choose another folder with --state-dir or --out")
