"""The source of an import: an upload, or a path on this machine."""

from __future__ import annotations

from pathlib import Path

from offrl.errors import InvalidInput
from offrl.job import ImportSpec
from offrld.state import import_roots
from offrld.state.folder import StateFolder


def source_path(spec: ImportSpec, state: StateFolder, roots: tuple[Path, ...]) -> Path:
    """Return the file or folder that an import reads.

    Raises `NotAllowed` for a path outside the import roots or through a symbolic link, `InvalidInput` if it does not exist.
    """
    if spec.upload is not None:
        files = state.upload_files(spec.upload)
        entries = sorted(files.iterdir()) if files.is_dir() else []
        if not entries:
            raise InvalidInput(f"upload {spec.upload!r} no longer exists", hint="upload the data again: `offrl datasets add`")
        return entries[0] if len(entries) == 1 else files
    assert spec.path is not None
    path = import_roots.checked(spec.path, roots)
    if path.is_dir():
        import_roots.check_tree(path)
    return path
