"""check: read a whole store and report every problem with its place."""

from __future__ import annotations

import contextlib
import os

from offrl_store import format as layout
from offrl_store import staging
from offrl_store.errors import OffrlError
from offrl_store.kernels import kernels
from offrl_store.meta import META_FILE, scan
from offrl_store.stats import STATS_FILE
from offrl_store.stats import load as load_stats
from offrl_store.store import EpisodeStore


def check(path: str | os.PathLike[str]) -> list[str]:
    """Verify every checksum of the store at ``path``. Returns one line per problem; an empty list means that the store is intact."""
    try:
        store = EpisodeStore.open(path)
    except OffrlError as error:
        return [str(error)]
    problems = []
    log = store._log
    chain = log.start
    for number, record in enumerate(log.table, log.base):
        first, rows = int(record["first_row"]), int(record["steps"]) + 1
        _, chain = layout.dump_record(first, rows - 1, record["return"], record["flags"], record["data_crc"], chain)
        if record["chain"].tobytes() != chain:
            if number > log.base or number == 0:  # otherwise the record before it was evicted
                problems.append(f"{layout.LOG_FILE}: the chain breaks at episode {number}")
            chain = record["chain"].tobytes()
        if number < store.first:
            continue  # evicted: its rows are gone
        checksum = 0
        for column in store.schema.columns:
            checksum = kernels().crc32(store.column(column.name)[first : first + rows], checksum)
        if checksum != record["data_crc"]:
            problems.append(f"episode {number}: the rows {first} to {first + rows - 1} do not fit their checksum")
    with open(store.path / layout.LOG_FILE, "rb") as log_file:
        log = layout.read_log(log_file.fileno(), store.path / layout.LOG_FILE, store.schema)
        damaged = layout.damaged_remains(log_file.fileno(), log.base)
    if damaged:
        problems.append(f"{layout.LOG_FILE}: {damaged} records of evicted episodes do not fit their checksum")
    if not log.slots_valid:
        problems.append(f"{layout.LOG_FILE}: one of the two slots of the header is damaged; the next writer repairs it")
    if log.torn:
        problems.append(f"{layout.LOG_FILE}: {log.torn} bytes of an unfinished write at the end; the next writer cuts them off")
    for file in staging.files(store.path):
        episode, _, torn = staging.load(staging.Layout(store.schema, layout.chain_start(store.schema), file.parent), file)
        if torn:
            recoverable = "no step" if episode is None else f"{episode.steps} steps"
            problems.append(f"open/{file.name}: {torn} bytes do not fit their checksum; {recoverable} before them can be recovered")
    with contextlib.suppress(FileNotFoundError):
        numbers = [number for _, number, _ in scan((store.path / META_FILE).read_bytes())]
        problems += [f"{META_FILE}, line {line}: it does not fit its checksum" for line, number in enumerate(numbers, 1) if number is None]
    if (store.path / STATS_FILE).exists() and load_stats(store) is None:
        problems.append(f"{STATS_FILE} is damaged; the next call of stats() replaces it")
    return problems
