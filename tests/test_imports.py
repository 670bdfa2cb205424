"""The import rules of the project: what may import what, kept for the whole repository."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"offrl_store": ROOT / "datastore" / "offrl_store", "offrl": ROOT / "client" / "offrl", "offrld": ROOT / "offrld"}

# What each part of offrld may import of the others; everything may import offrl and offrl_store, `settings`, and the other files
# directly in offrld. Each line of the work plane contains those above it.
STATE = {"state"}
PREPARATION = {"preprocess", "nets", "settings"}
ENGINE = PREPARATION | STATE | {"engine"}
LOSSES = ENGINE | {"losses"}
ALGOS = LOSSES | {"algos"}
OUTPUTS = ALGOS | {"export", "evaluate", "collect", "importers"}
MAY = {
    "state": STATE,
    "preprocess": PREPARATION,
    "nets": PREPARATION,
    "engine": ENGINE,
    "losses": LOSSES,
    "algos": ALGOS,
    "importers": {"importers", "settings"},
    "export": OUTPUTS,
    "evaluate": OUTPUTS,
    "collect": OUTPUTS,
    "inprocess": OUTPUTS | {"inprocess"},
    "datasets": OUTPUTS | {"datasets", "inprocess"},
    "worker": OUTPUTS | {"datasets", "worker", "inprocess"},
    "executors": {"executors"} | STATE,
    "daemon": {"daemon", "executors"} | STATE,
    "demo": {"demo", "collect"},
}
# What each room of a package may import of the others; the files beside the rooms are in GROUND (below all rooms) or above them.
ROOMS = {
    "offrld.engine": {
        "definition": set(),
        "batches": {"definition"},
        "updates": {"definition", "batches"},
        "learner": {"definition", "batches", "updates"},
    },
    "offrld.daemon": {
        "queue": set(),
        "access": {"queue"},
        "storage": {"queue", "access"},
        "health": {"queue"},
        "workers": {"queue", "storage", "health"},
        "transport": {"access"},
        "handlers": {"queue", "access", "storage", "health", "workers"},
    },
}
GROUND = {"offrld.engine": set(), "offrld.daemon": {"config", "settings_list", "logs", "passes"}}
ABOVE_FOR = {("offrld.daemon", "handlers"): {"app"}}  # requests are answered with the whole daemon at hand
FACES = {"docs", "embedded", "sb3", "sklearn"}  # files directly in offrld: import paths of users, and the generator of a page
WORK_PLANE = (OUTPUTS | {"datasets", "worker"}) - {"settings"} - STATE  # the daemon checks settings by their rules; no torch
HEAVY = ("torch", "gymnasium", "h5py", "onnx", "onnxscript", "safetensors", "tensorboard", "mujoco", "pandas", "scipy")


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of the three packages."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            yield ".".join(part for part in parts if part != "__init__"), path


@functools.cache
def imports(name: str, path: Path) -> list[tuple[str, int, bool]]:
    """Every module that a file imports, wherever in it; the line; and whether only a type checker imports it.

    A name imported from a package is given with the package.
    """
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [(alias.name, node.lineno, id(node) in for_types) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            imported += [(f"{base}.{alias.name}", node.lineno, id(node) in for_types) for alias in node.names]
    return imported


def part(module: str) -> str:
    """The part of offrld that a module belongs to: offrld.algos.iql -> algos."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[0] == "offrld" else ""


def broken(rule) -> list[str]:
    """Places where ``rule(importing module, imported module)`` is true."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {name} imports {imported}"
        for name, path in modules()
        for imported, line, for_types in imports(name, path)
        if not for_types and rule(name, imported)
    ]


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_the_store_imports_neither_client_nor_daemon_and_the_client_not_the_daemon() -> None:
    assert not broken(lambda name, imported: inside(name, "offrl_store") and (inside(imported, "offrl") or inside(imported, "offrld")))
    assert not broken(lambda name, imported: inside(name, "offrl") and inside(imported, "offrld") and not _starts_a_daemon(name))


def _starts_a_daemon(name: str) -> bool:
    """`offrl serve` and `offrl demo` are commands of the client that run the daemon on the machine where it is installed."""
    return name.startswith("offrl.cli.") and name.rpartition(".")[2] in ("serve", "demo", "service")


def test_the_parts_of_offrld_keep_their_order() -> None:
    def rule(name: str, imported: str) -> bool:
        here, there = part(name), part(imported)
        return here in MAY and there in MAY and there not in MAY[here]

    assert not broken(rule)


@pytest.mark.parametrize("package", list(ROOMS))
def test_the_rooms_of_a_package_keep_their_order(package: str) -> None:
    rooms = ROOMS[package]
    below = {**rooms, "": set(rooms)}
    folder = ROOT / package.replace(".", "/")
    assert {path.name for path in folder.iterdir() if (path / "__init__.py").exists()} == set(rooms)

    def room(module: str) -> tuple[str, str]:
        """Room and file: offrld.daemon.queue.events -> (queue, events); of a file beside the rooms the room is ""."""
        first, _, rest = module.removeprefix(package + ".").partition(".")
        return (first, rest) if first in rooms else ("", first)

    def rule(name: str, imported: str) -> bool:
        if not name.startswith(package + ".") or not imported.startswith(package + "."):
            return False
        (here, file), (there, other) = room(name), room(imported)
        if here == there:
            return here == "" and file in GROUND[package] and other not in GROUND[package]
        if there == "":
            return other not in GROUND[package] | ABOVE_FOR.get((package, here), set())
        return (file in GROUND[package] and here == "") or there not in below[here]

    assert not broken(rule)


def test_the_control_plane_imports_nothing_of_the_work_plane() -> None:
    def rule(name: str, imported: str) -> bool:
        control = part(name) in ("daemon", "executors", "state") or inside(name, "offrl") or inside(name, "offrl_store")
        if part(name) in ("daemon", "executors", "state") and part(imported) in WORK_PLANE:
            return True
        return control and imported.split(".")[0] == "torch"

    assert not broken(rule)


def test_an_algorithm_imports_engine_losses_and_nets_only() -> None:
    def rule(name: str, imported: str) -> bool:
        if not name.startswith("offrld.algos.") or not inside(imported, "offrld"):
            return False
        return part(imported) not in ("engine", "losses", "nets") and not inside(imported, "offrld.settings")

    assert not broken(rule)


def test_a_file_directly_in_offrld_imports_no_part_unless_it_is_a_public_face() -> None:
    """Every part may import these files, so that they stand below all parts."""

    def rule(name: str, imported: str) -> bool:
        return (
            name.startswith("offrld.")
            and name.count(".") == 1
            and part(name) not in FACES | set(MAY)
            and part(imported) in set(MAY) - {"settings"}
        )

    assert not broken(rule)


def test_every_part_of_offrld_has_its_rule() -> None:
    folders = {path.name for path in (ROOT / "offrld").iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders <= set(MAY)


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports for type checkers count too: a reader follows them like the others."""
    known = dict(modules())

    def module_of(imported: str) -> str | None:
        """The module that an import names, itself or as the place of the imported name."""
        return imported if imported in known else imported.rpartition(".")[0] if imported.rpartition(".")[0] in known else None

    graph = {name: {module_of(imported) for imported, *_ in imports(name, path)} - {None, name} for name, path in known.items()}
    assert len(graph) > 300
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the modules of a circle


@pytest.mark.parametrize("module", ["offrld.daemon.main", "offrl.wire", "offrl.client"])
def test_what_answers_at_once_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {*HEAVY, "onnxruntime"}


def test_networks_load_the_compiler_only_where_something_is_compiled() -> None:
    """It takes longer than all else that a worker loads before its first update."""
    program = "import sys, offrld.worker.train; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
