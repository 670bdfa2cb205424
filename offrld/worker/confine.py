"""What a worker may touch of the machine's files, by kind of job; the kernel refuses the rest.

Decoders (HDF5, FFmpeg, Pillow, Arrow, onnxruntime) read bytes that a submitter sent. They are asked to open nothing else; this is the
second wall, for the day when one of them can be talked into it.

* A job that decodes files (import, exports) reads the installation, its source and the datasets; it writes the datasets, its run folder and
  nothing else. An import starts no program, and reaches no network unless it downloads.
* A job that trains or collects runs environments, and only the administrator knows which files those need: it keeps the whole machine, but
  of the state folder it gets what its job is about. Keys, the queue, the audit log and other owners' uploads stay closed.

Restricted is the main thread with all that it starts. The thread that listens to the daemon started earlier; it opens no files.
"""

from __future__ import annotations

import os
import site
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offrl
import offrl_store
import offrld
from offrl.job import KINDS
from offrld import landlock
from offrld.state.files import remove
from offrld.state.folder import StateFolder
from offrld.state.run_folder import RunFolder

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/sys", "/nix", "/gnu", "/run/opengl-driver")
# Of /etc what the loader, the resolver, TLS and the clock read; the rest may hold what is not for everybody.
ETC = (
    "alternatives", "ca-certificates", "gai.conf", "group", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "mime.types", "nsswitch.conf", "passwd", "pki", "resolv.conf", "ssl", "timezone",
)  # fmt: skip
# Of /proc, beside the worker's own entry, what libraries ask about the machine: another process's entry shows its environment.
PROC = ("cgroups", "cpuinfo", "filesystems", "loadavg", "meminfo", "mounts", "self", "stat", "sys", "uptime", "version")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
CARDS = ("nvidia*", "dri", "kfd")


def confine(start: dict[str, Any], state: StateFolder, run: RunFolder) -> int:
    """Restrict this process to what the job of ``start`` needs; the ABI of Landlock that holds, 0 where nothing is restricted.

    Temporary files go to ``tmp/`` of the run folder from then on. Raises `OSError` if the kernel refuses what it offers.
    """
    if not start.get("confine", True) or not landlock.abi():
        return 0
    kind = start["spec"]["kind"]
    strict = KINDS[kind].confined
    downloads = kind == "import" and bool(start["spec"].get("named"))
    remove(run.temporary)  # of an attempt that was killed
    for folder in (run.temporary, state.datasets, state.cache):  # a rule needs a folder that exists
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(run.temporary)
    rules = list(_state_rules(start, state, run))
    if strict:
        rules += _installation(run=kind == "export")
        rules += [(Path(path), landlock.READ) for path in _sources(start)]
        if downloads:
            rules += [(path, landlock.WRITE) for path in _downloads()]
    else:
        rules += _machine_but(state.root.resolve())
    return landlock.restrict(rules, network=not strict or downloads, signals=not strict)


def _state_rules(start: dict[str, Any], state: StateFolder, run: RunFolder) -> Iterator[tuple[Path, int]]:
    """Of the state folder: its own outputs to write; to read, datasets and other jobs' outputs, which every key may read anyway.

    A job that takes another's checkpoint makes a second link to the file. The kernel allows that only if the rights over both folders are
    the same, so such a job may write below ``jobs/``.
    """
    kind = start["spec"]["kind"]
    yield state.root, landlock.READ_DIR  # the quota is measured by file sizes; contents stay closed
    yield run.path, landlock.WRITE
    yield state.cache, landlock.WRITE | landlock.EXECUTE  # Inductor compiles, and loads what it has compiled
    yield state.datasets, landlock.WRITE if KINDS[kind].writes_dataset else landlock.READ
    if not KINDS[kind].decodes:  # those need no checkpoint of another job
        yield state.jobs, landlock.WRITE
    if upload := start["spec"].get("upload"):
        yield state.upload(upload), landlock.READ if kind == "import" else landlock.WRITE
        if kind != "import":  # a job that has kept its upload removes it
            yield state.uploads, landlock.REMOVE_DIR


def _installation(*, run: bool) -> list[tuple[Path, int]]:
    """Python, the packages, the system's libraries and what those read of the machine."""
    packages = [Path(package.__file__).parents[1] for package in (offrl, offrl_store, offrld) if package.__file__]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    places: list[str | Path] = [
        *SYSTEM,
        sys.prefix,
        sys.base_prefix,
        *filter(None, [*sys.path, *libraries]),
        *site.getsitepackages(),
        *packages,
    ]
    rules = [(Path(place), landlock.RUN if run else landlock.READ) for place in places]
    rules += [(Path("/etc", name), landlock.READ) for name in ETC]
    rules += [(Path("/proc", name), landlock.READ) for name in PROC]
    rules += [(Path("/dev", name), landlock.DEVICE) for name in DEVICES]
    if run:
        rules += [(place, landlock.WRITE | landlock.IOCTL_DEV) for name in CARDS for place in Path("/dev").glob(name)]
        rules.append((Path("/dev/shm"), landlock.WRITE))
    return rules


def _sources(start: dict[str, Any]) -> list[str]:
    """What an import of a path of this machine reads. `import_roots.checked` decides whether it may; this only opens the way."""
    path = start["spec"].get("path")
    roots = start.get("import_roots") or ()
    return [path] if path and any(Path(path).is_relative_to(root) for root in roots) else []


def _downloads() -> list[Path]:
    """The folders of named datasets, and the sources that are folders; made here, because a rule needs a folder that exists."""
    from offrld.datasets import places

    folders = [places.d4rl_folder(), places.minari_folder()]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # the import says so if it needs the folder
            continue
    sources = [places.atari_source(), places.d4rl_source(), places.minari_remote()]
    return folders + [Path(os.path.expanduser(source)) for source in sources if source and not places.is_address(source)]


def _machine_but(state: Path) -> Iterator[tuple[Path, int]]:
    """All rights over everything that does not lie on the way to the state folder, and listing of the folders on the way.

    A rule holds for all that is below, and none takes anything back: so each folder on the way gives its other entries one by one. Symbolic
    links are left out: a rule would hold for their target, which may lie on the way.
    """
    for folder in reversed(state.parents):
        yield folder, landlock.READ_DIR
        following = state.parts[len(folder.parts)]
        try:
            entries = [entry.path for entry in os.scandir(folder) if entry.name != following and not entry.is_symlink()]
        except OSError:
            continue
        for entry in entries:
            yield Path(entry), landlock.ALL
