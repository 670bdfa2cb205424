"""Minari's datasets by id: from the local root, or downloaded whole from the remote that Minari itself would use.

Remotes: ``hf://NAME`` (Hugging Face, or the mirror in HF_ENDPOINT), ``gcp://BUCKET``, an http address with the datasets below it by id
(HDF5 only, because such a server has no listing), or a folder. A dataset is downloaded into a hidden folder beside its final one, and
renamed when all of its files are complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode

from offrl.named import Named
from offrl_store.disk import disk_errors, publish
from offrl_store.errors import InvalidInput
from offrld.datasets import places
from offrld.datasets.download import GCS, Progress, fetch, read_json
from offrld.importers import open_source
from offrld.importers.source import Source

File = tuple[str, str, str | None]  # path below the dataset's folder, address, sha256 if it is listed


def find_folder(name: str, message: Callable[[str], None], progress: Progress | None = None) -> Path:
    """Find or download the folder of a dataset. Raises `InvalidInput`, `DownloadFailed`, `DiskFull`."""
    root, remote = places.minari_folder(), places.minari_remote()
    folder = root / name
    if (folder / "data" / "metadata.json").is_file():
        return folder
    if not places.is_address(remote):
        mirror = Path(os.path.expanduser(remote)) / name
        if (mirror / "data" / "metadata.json").is_file():
            return mirror
        raise InvalidInput(f"neither {root} nor {remote} holds {name}", hint="put its folder, with data/metadata.json, into one of them")
    places.check_downloads(name, root)
    message(f"downloading {name} from {remote}")
    part = folder.with_name(f".{folder.name}.part")
    with disk_errors(folder):
        for path, url, sha256 in _files(name, remote, part, progress):
            fetch(url, part / path, progress=progress, sha256=sha256)
        publish(part, folder)
    return folder


def _files(name: str, remote: str, part: Path, progress: Progress | None) -> Iterator[File]:
    """Yield the files of a dataset, by the remote's listing."""
    scheme, _, place = remote.partition("://")
    if scheme == "hf":
        namespace, _, rest = name.partition("/")
        host = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        repository = f"{place}/{namespace}"
        listed = read_json(f"{host}/api/datasets/{quote(repository)}/tree/main/{quote(rest)}?recursive=true")
        files = [
            (
                each["path"].removeprefix(f"{rest}/"),
                f"{host}/datasets/{quote(repository)}/resolve/main/{quote(each['path'])}",
                (each.get("lfs") or {}).get("oid"),
            )
            for each in listed
            if each.get("type") == "file"
        ]
    elif scheme in ("gcp", "gs"):
        files, token = [], ""
        while True:
            query = urlencode({"prefix": f"{name}/"} | ({"pageToken": token} if token else {}))
            page = read_json(f"{GCS}storage/v1/b/{place}/o?{query}")
            files += [
                (each["name"].removeprefix(f"{name}/"), f"{GCS}{place}/{quote(each['name'])}", None) for each in page.get("items", [])
            ]
            token = page.get("nextPageToken", "")
            if not token:
                break
    else:
        base = f"{remote.rstrip('/')}/{quote(name)}"
        yield "data/metadata.json", f"{base}/data/metadata.json", None
        stated = json.loads((part / "data" / "metadata.json").read_text())
        if stated.get("data_format", "hdf5") != "hdf5":
            raise InvalidInput(
                f"{name} has the format {stated['data_format']}, whose files the server does not list",
                hint=f"copy its folder to {places.minari_folder() / name}",
            )
        files = [("data/main_data.hdf5", f"{base}/data/main_data.hdf5", None)]
    for path, url, sha256 in files:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise InvalidInput(f"{remote} lists a file {path!r} for {name}", hint="this is not the listing of a dataset; check the remote")
        if not path.endswith("/"):
            yield path, url, sha256


def open_named(
    named: Named, message: Callable[[str], None], progress: Progress | None, *, options: Mapping[str, Any], skip_bad: bool
) -> Source:
    """Open the episodes of an id. Raises `InvalidInput`, `DownloadFailed`, `DiskFull`."""
    return open_source(find_folder(named.name, message, progress), "minari", options=options, skip_bad=skip_bad)
