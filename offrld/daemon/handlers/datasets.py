"""Requests about datasets: list, show, remove."""

from __future__ import annotations

from offrl import wire
from offrld.daemon import datasets
from offrld.daemon.app import App


async def list_datasets(app: App, request: wire.ListDatasets) -> wire.DatasetList:
    """All datasets."""
    return wire.DatasetList(datasets=await app.database.survey(datasets.listing))


async def get_dataset(app: App, request: wire.GetDataset) -> wire.DatasetInfo:
    """One dataset."""
    return await app.database.read(datasets.get, request.name)


async def remove_dataset(app: App, request: wire.RemoveDataset) -> wire.Done:
    """Forget a dataset and delete its store; refused while an unfinished job uses it."""
    await app.removal.dataset(request.name)
    return wire.Done()
