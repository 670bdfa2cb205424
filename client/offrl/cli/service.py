"""Commands about the service itself: serve, demo, ping, config, algos."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Annotated, Any

import typer

from offrl.cli import completion
from offrl.cli.connecting import connect
from offrl.cli.output import Json, emit, number, pairs, say, table, talk, write
from offrl_store.errors import OffrlError

NEEDED = ("torch", "gymnasium", "h5py", "safetensors", "onnx")  # what the extra `daemon` brings
INSTALL = 'pip install "offrl[daemon]"'
SETTING = ["setting", "type", "default", "meaning"]


def register(app: typer.Typer) -> None:
    """Put the commands of this file into ``app``."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(demo)
    app.command()(ping)
    app.command()(config)
    app.command()(algos)


def serve(
    context: typer.Context,
    state_dir: Annotated[str | None, typer.Option("--state-dir", metavar="D", help="State folder: queue, datasets and jobs.")] = None,
    bind: Annotated[
        str | None, typer.Option("--bind", metavar="URL", help="Address to listen on; by default ipc://D/run/offrld.sock.")
    ] = None,
    config: Annotated[str | None, typer.Option("--config", metavar="F", help="File with settings; by default D/offrld.toml.")] = None,
) -> None:
    """Run the daemon in the foreground until Ctrl-C. Further options are passed to `offrld`."""
    require_daemon()
    given = [("--state-dir", state_dir), ("--bind", bind), ("--config", config)]
    options = [part for name, value in given if value is not None for part in (name, value)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "offrld.daemon.main", "--banner", *options, *context.args])


def demo(context: typer.Context, as_json: Json = False) -> None:
    """Collect data, train, fetch and evaluate in about a minute, with a daemon in a temporary folder."""
    require_daemon()
    sys.stdout.flush()
    process = subprocess.Popen([sys.executable, "-m", "offrld.demo.demo", *(["--json"] if as_json else []), *context.args])
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:  # the child has got it as well, and cleans up
            continue
    raise typer.Exit(128 - status if status < 0 else status)


def ping(as_json: Json = False) -> None:
    """Check that the daemon is reachable, and which user it sees you as."""

    with connect() as client:
        pong = client.ping()
        if as_json:
            emit({**pong.model_dump(mode="json"), "url": client.url})
        else:
            say(f"offrld {pong.version} (protocol {pong.protocol}) at {client.url}, state in {pong.state_dir}, up {pong.uptime_s:.0f} s")
            if pong.caller:
                say(f"connected as {pong.caller} ({pong.role})")


def config(
    default: Annotated[bool, typer.Option("--default", help="Print an offrld.toml with the default of every setting.")] = False,
    as_json: Json = False,
) -> None:
    """Show every setting of the daemon: value, default, source and meaning."""
    if default:
        if importlib.util.find_spec("offrld") is None:
            error = OffrlError("the daemon is not installed here", hint=f"run it on the daemon's machine, or {INSTALL}")
            error.code = "not_installed"
            raise error
        command = [sys.executable, "-m", "offrld.daemon.main", "--default-config"]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        emit({"toml": text}) if as_json else write(text)
        return

    with connect() as client:
        found = client.settings()
    if as_json:
        emit(found)
        return
    shown = [
        [each.name, _value(each.value), "" if each.source == "default" else _value(each.default), each.source, each.help]
        for each in found.settings
    ]
    table(["setting", "value", "default", "from", "meaning"], shown)
    say(f"file: {found.file}")


def _value(value: Any) -> str:
    """A value as it stands in offrld.toml."""
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def algos(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show all settings of this algorithm.", autocompletion=completion.algorithms)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the algorithms, or the settings of one."""

    with connect() as client:
        found = client.algos() if name is None else [client.algos(name)]
        problems = client.algo_problems() if name is None else []
    if as_json:
        emit(found)
    elif name is None:
        table(["name", "actions", "summary"], [[each["name"], each["actions"], each["summary"]] for each in found])
    else:
        _describe(found[0])
    for problem in problems:
        talk(f"not usable: {problem}")


def _describe(algorithm: dict[str, Any]) -> None:
    pairs(
        [
            ("name", algorithm["name"]),
            ("summary", algorithm["summary"]),
            ("actions", algorithm["actions"]),
            ("paper", algorithm.get("paper", "")),
        ]
    )
    for setting, wanted in (algorithm.get("inputs") or {}).items():
        say(f"{setting}: takes another job, of {'any algorithm that acts' if wanted == 'policy' else wanted}")
    for preset, values in (algorithm.get("presets") or {}).items():
        say(f"preset {preset}: " + (", ".join(f"{key}={default_text(value)}" for key, value in values.items()) or "the defaults"))
    known = algorithm["config"]
    own = [name for name in known if "." not in name]
    say()
    table(SETTING, [_row(name, name, known) for name in own])
    for slots in _alike(known).values():
        first, *others = slots
        say()
        say(f"{', '.join(slots)} (--set {first}.NAME=VALUE)")
        rows = []
        for full in (name for name in known if name.rpartition(".")[0] == first):
            name = full.rpartition(".")[2]
            row = _row(name, full, known)
            differing = [f"{slot}: {default}" for slot in others if (default := _default(known[f"{slot}.{name}"])) != row[2]]
            row[2] = "; ".join([row[2], *differing])
            rows.append(row)
        table(SETTING, rows)


def _alike(known: dict[str, Any]) -> dict[tuple[str, ...], list[str]]:
    """The components, those of one kind together: by the names and meanings of their settings."""
    settings: dict[str, list[str]] = {}
    for full, described in known.items():
        slot, _, name = full.rpartition(".")
        if slot:
            settings.setdefault(slot, []).append(f"{name}: {described.get('help')}")
    kinds: dict[tuple[str, ...], list[str]] = {}
    for slot, names in settings.items():
        kinds.setdefault(tuple(names), []).append(slot)
    return kinds


def _row(shown: str, name: str, known: dict[str, Any]) -> list[str]:
    return [shown, str(known[name].get("type", "")), _default(known[name]), meaning(name, known[name], known)]


def _default(described: dict[str, Any]) -> str:
    return default_text(described.get("default"))


def default_text(value: Any) -> str:
    """A default as `--set` takes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return number(value) if isinstance(value, float) else str(value)


def meaning(name: str, described: dict[str, Any], known: dict[str, Any]) -> str:
    """Help, unit, choices, and the types for which the setting counts, by the short name of a neighbour in ``known``."""
    unit = f" [{described['unit']}]" if described.get("unit") else ""
    choices = f" ({' | '.join(map(str, described['choices']))})" if described.get("choices") else ""
    group = name.rpartition(".")[0]
    only = []
    for other, words in (described.get("only") or {}).items():
        rest = [word for word in known[other].get("choices") or () if word not in words]
        short = other.removeprefix(f"{group}.")
        only.append(
            f"not with {short} {' or '.join(rest)}"
            if 0 < len(rest) < len(words)
            else f"only with {short} {' or '.join(words) or 'of another package'}"
        )
    return "; ".join([str(described.get("help", "")) + unit + choices, *only])


def require_daemon() -> None:
    """One line and the command that helps, where the daemon's packages are not installed."""
    missing = [name for name in ("offrld", *NEEDED) if importlib.util.find_spec(name) is None]
    if missing:
        error = OffrlError(
            f"the daemon needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed", hint=INSTALL
        )
        error.code = "not_installed"
        raise error
