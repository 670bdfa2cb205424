"""Requests about datasets: list, show, remove."""

from __future__ import annotations

import asyncio
from pathlib import Path

from offrl import wire
from offrld.daemon import datasets, housekeeping
from offrld.daemon.app import App
from offrld.daemon.database import Connection


async def list_datasets(app: App, request: wire.ListDatasets) -> wire.DatasetList:
    """All datasets."""
    return wire.DatasetList(datasets=await app.database.survey(datasets.listing))


async def get_dataset(app: App, request: wire.GetDataset) -> wire.DatasetInfo:
    """One dataset."""
    return await app.database.read(datasets.get, request.name)


async def remove_dataset(app: App, request: wire.RemoveDataset) -> wire.Done:
    """Forget a dataset and delete its store; refused while an unfinished job uses it."""
    aside: list[Path | None] = []

    def work(db: Connection) -> None:
        datasets.remove(db, request.name)
        aside.append(housekeeping.set_aside(app.state.datasets / request.name))

    try:
        await app.database.write(work)
    except BaseException:
        for folder in aside:
            await asyncio.to_thread(housekeeping.put_back, folder)
        raise
    for folder in aside:
        await asyncio.to_thread(housekeeping.delete, folder)
    return wire.Done()
