"""Datasets by name: found, fetched or made, and given as a store with the environment that belongs to them.

    store, env = offrld.datasets.get("cartpole-replay")
    store, env = offrld.datasets.get("breakout-mixed-v0")            # d4rl-atari's ids
    store, env = offrld.datasets.get("hopper-medium-v2")             # D4RL, d4rl-pybullet
    store, env = offrld.datasets.get("D4RL/pointmaze/umaze-v2")      # Minari

`offrl.named` says which names there are; `places` where files are looked for and fetched from. `offrl datasets add NAME cartpole-replay`
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

#: The options of each kind of name.
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
    """Find, download or create a dataset; returns its episodes as an importer does.

    Args:
        options: ``seed`` and ``steps`` of a collected one; ``fraction``, ``seed`` and ``epochs`` of Atari; of downloaded ones also those
            that every format takes (`offrld.importers.common_options.OPTIONS`).
        message: called with what is done meanwhile. progress: called with the bytes of a download and their total; may raise to stop.

    Raises:
        Unknown: there is no such name or option; the hint is the nearest one.
        DownloadFailed: a file could not be fetched; what came of it is kept.
        InvalidInput: an option is out of range, or the files are not what the name says.
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
    """A dataset as a store, and its environment: ``(store, env)``; ``env`` is None where gymnasium has none for it.

    Args:
        folder: where stores are kept; the second call for the same name and options opens the one that is there. Default
            ``$OFFRL_DATASETS``, else ``~/.offrl/datasets``.
        options: of `open_named`.
        env_options: of the environment, for example ``stack=4`` of an Atari game, ``render_mode="rgb_array"``.

    Raises as `open_named`.
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
    """A share of the steps of all 50 epochs of a run (``index`` 0 to 4), as d3rlpy's function of that name; see `get`."""
    return get(f"{game}-transitions-v{index}", options={"fraction": fraction, "seed": seed}, **settings)


def _store_name(name: str, options: Mapping[str, Any] | None) -> str:
    """A folder's name for each name and options."""
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
    except InvalidInput as error:  # the data are of use without it
        message(str(error))
        return None


__all__ = ["OPTIONS", "find", "get", "get_atari_transitions", "names", "open_named"]
