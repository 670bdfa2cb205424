"""Datasets by name: found locally, downloaded or collected, and returned as a store with its environment.

    store, env = offrld.datasets.get("cartpole-replay")
    store, env = offrld.datasets.get("breakout-mixed-v0")            # d4rl-atari's ids
    store, env = offrld.datasets.get("hopper-medium-v2")             # D4RL, d4rl-pybullet
    store, env = offrld.datasets.get("D4RL/pointmaze/umaze-v2")      # Minari

`offrl.named` lists the names; `places` defines the local folders and the addresses of downloads. `offrl datasets add NAME cartpole-replay`
does the same in a job of the daemon.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from offrl.errors import Unknown, nearest
from offrl.named import Named, find, names
from offrl_store import EpisodeStore
from offrld.importers import common_options, import_into
from offrld.importers.source import BadEpisodes, Source

#: Kind of name -> its options.
OPTIONS = {"collected": ("seed", "steps"), "atari": ("fraction", "seed", "epochs"), "d4rl": (), "minari": ()}

Progress = Callable[[int, int | None], None]


def open_named(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
    message: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> Source:
    """Find, download or collect a dataset. Returns its episodes as an importer does.

    Args:
        options: ``seed`` and ``steps`` of a collected dataset; ``fraction``, ``seed`` and ``epochs`` of Atari. Downloaded datasets also
            take the options of every format (`offrld.importers.common_options.OPTIONS`).
        message: called with a line about each action.
        progress: called with the bytes of a download so far and their total; may raise to stop it.

    Raises:
        Unknown: the name or an option does not exist; the hint is the nearest one.
        DownloadFailed: a file could not be downloaded; its bytes so far are kept.
        InvalidInput: an option is out of range, or the files do not fit the name.
    """
    named, options = find(name), dict(options or {})
    shared = {} if named.kind == "collected" else common_options.OPTIONS
    for option in options:
        if option not in OPTIONS[named.kind] and option not in shared:
            known = [*OPTIONS[named.kind], *shared]
            raise Unknown(f"{name} has no option {option!r}", hint=nearest(option, known) or f"known: {', '.join(known)}")
    shared = {option: options.pop(option) for option in list(options) if option in shared}
    if named.kind == "collected":
        from offrld.datasets import collected

        return collected.open_named(named, message, **options)
    if named.kind == "atari":
        from offrld.datasets import atari

        bad = BadEpisodes(skip_bad, common_options.CommonOptions(**shared))
        return atari.open_named(named, bad, message, progress, **options)
    from offrld.datasets import d4rl, minari

    return (d4rl if named.kind == "d4rl" else minari).open_named(named, message, progress, options=shared, skip_bad=skip_bad)


def get(
    name: str,
    *,
    folder: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    message: Callable[[str], None] = print,
    **env_options: Any,
) -> tuple[EpisodeStore, Any]:
    """Return a dataset as a store, and its environment: ``(store, env)``. ``env`` is None if gymnasium has none for it.

    Args:
        folder: folder of the stores, by default ``$OFFRL_DATASETS``, or else ``~/.offrl/datasets``. A second call for the same name and
            options opens the existing store.
        options: options of `open_named`.
        env_options: options of the environment, for example ``stack=4`` of an Atari game, ``render_mode="rgb_array"``.

    Raises the errors of `open_named`.
    """
    from offrld.datasets import places

    named = find(name)
    root = Path(folder) if folder is not None else places.stores_folder()
    path = root / _store_name(name, options)
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        import_into(open_named(name, options=options, message=message), path, message=message)
    store = EpisodeStore.open(path)
    return store, _environment(named, store, env_options, message)


def get_atari_transitions(game: str, fraction: float = 0.01, index: int = 0, seed: int = 0, **settings: Any) -> tuple[EpisodeStore, Any]:
    """Return a share of the steps of all 50 epochs of a run (``index`` 0 to 4), like d3rlpy's function of this name; see `get`."""
    return get(f"{game}-transitions-v{index}", options={"fraction": fraction, "seed": seed}, **settings)


def _store_name(name: str, options: Mapping[str, Any] | None) -> str:
    """Return the name of the folder for a name and its options."""
    plain = name.replace("/", "--")
    if not options:
        return plain
    return f"{plain}.{hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode()).hexdigest()[:12]}"


def _environment(named: Named, store: EpisodeStore, options: Mapping[str, Any], message: Callable[[str], None]) -> Any:
    from offrl.errors import InvalidInput
    from offrl.rollout import make_env

    env_id = store.metadata.get("env_id") or named.env_id
    if not env_id or ":" in env_id:
        return None
    try:
        return make_env(env_id, **options)
    except InvalidInput as error:  # the data are useful without it
        message(str(error))
        return None


__all__ = ["OPTIONS", "find", "get", "get_atari_transitions", "names", "open_named"]
