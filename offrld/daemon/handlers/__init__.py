"""One function per request, by subject. ``HANDLERS`` says which answers what: ``handler(app, request) -> reply``, mostly async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from offrl import wire
from offrld.daemon.app import App
from offrld.daemon.handlers import artifacts, backups, care, datasets, follow, jobs, queue, service, uploads

Handler = Callable[[App, Any], wire.Reply | Awaitable[wire.Reply]]

HANDLERS: dict[type[wire.Request], Handler] = {
    wire.Ping: service.ping,
    wire.Algorithms: service.algorithms,
    wire.ReadAudit: service.read_audit,
    wire.Submit: jobs.submit,
    wire.Rerun: jobs.rerun,
    wire.ListJobs: jobs.list_jobs,
    wire.GetJob: jobs.get_job,
    wire.ControlJob: jobs.control_job,
    wire.GetQueue: queue.get_queue,
    wire.ControlQueue: queue.control_queue,
    wire.GetEvents: follow.get_events,
    wire.ReadLog: follow.read_log,
    wire.ListDatasets: datasets.list_datasets,
    wire.GetDataset: datasets.get_dataset,
    wire.RemoveDataset: datasets.remove_dataset,
    wire.OpenUpload: uploads.open_upload,
    wire.WriteChunk: uploads.write_chunk,
    wire.FinishUpload: uploads.finish_upload,
    wire.ListUploads: uploads.list_uploads,
    wire.RemoveUpload: uploads.remove_upload,
    wire.OpenArtifact: artifacts.open_artifact,
    wire.ReadArtifact: artifacts.read_artifact,
    wire.Overview: care.overview,
    wire.Checkup: care.checkup,
    wire.Prune: care.prune,
    wire.BeginBackup: backups.begin_backup,
    wire.ReadBackup: backups.read_backup,
    wire.EndBackup: backups.end_backup,
    wire.GetSettings: care.get_settings,
}
