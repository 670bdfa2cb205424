"""Requests about datasets: list, show, remove."""

from __future__ import annotations

from offrl import wire
from offrld.daemon.app import App
from offrld.daemon.queue import datasets, fitting


async def list_datasets(app: App, request: wire.ListDatasets) -> wire.Encoded:
    """List all datasets, one part at a time."""
    return await app.database.survey(datasets.listing, request.after)


async def get_dataset(app: App, request: wire.GetDataset) -> wire.DatasetInfo:
    """Describe one dataset."""
    return fitting.dataset(await app.database.read(datasets.get, request.name))


async def remove_dataset(app: App, request: wire.RemoveDataset) -> wire.Done:
    """Delete a dataset of the caller's (for an operator: anybody's), unless an unfinished job uses it."""
    await app.removal.dataset(request.name, app.caller())
    return wire.Done()
