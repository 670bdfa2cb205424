"""Durable files: whole or not at all, no other file replaced, and a copy where the file system cannot link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from offrl_store import disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full_disk() -> Iterator[None]:
    def refuse(count: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    disk.limit(refuse)
    yield
    disk.limit(None)


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of another file system than `tmp_path`."""
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two file systems")
    with TemporaryDirectory(dir=shared_memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("shared", [False, True])
def test_a_write_replaces_the_old_content_and_leaves_nothing_else(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"new content"):
        disk.write_atomic(path, content, shared=shared, mode=0o600)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), names(tmp_path)) == (b"new content", 0o600, ["file"])


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("write", [disk.write_atomic, disk.write_new])
def test_a_write_that_the_disk_refuses_leaves_everything_as_it_was(tmp_path: Path, write) -> None:
    path = tmp_path / "file"
    if write is disk.write_atomic:
        path.write_bytes(b"old")
    before = names(tmp_path)
    with pytest.raises(OSError, match="no space left"):
        write(path, b"new")
    assert names(tmp_path) == before
    assert not before or path.read_bytes() == b"old"


def test_a_new_file_replaces_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    disk.write_new(path, b"first", mode=0o600)
    with pytest.raises(FileExistsError):
        disk.write_new(path, b"second")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), names(tmp_path)) == (b"first", 0o600, ["file"])


@pytest.mark.parametrize("code", disk.NO_LINK)
def test_a_new_file_replaces_no_other_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    disk.write_new(path, b"first", mode=0o600)
    with pytest.raises(FileExistsError):
        disk.write_new(path, b"second")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), names(tmp_path)) == (b"first", 0o600, ["file"])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        disk.write_new(tmp_path / "link", b"second")
    assert names(tmp_path) == ["file", "link"]


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"kept")
    (tmp_path / ".file.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        disk.write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "precious").read_bytes() == b"kept"


def test_a_folder_is_published_only_under_a_free_name(tmp_path: Path) -> None:
    for name in ("made", "free", "taken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "file").touch()
    for name in ("taken", "file"):
        with pytest.raises(FileExistsError):
            disk.publish(tmp_path / "made", tmp_path / name)
    (tmp_path / "free" / "free").unlink()
    disk.publish(tmp_path / "made", tmp_path / "free")
    assert names(tmp_path / "free") == ["made"]
    with pytest.raises(FileNotFoundError):
        disk.publish(tmp_path / "made", tmp_path / "taken")


def test_a_link_needs_no_space(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    disk.link_or_copy(tmp_path / "file", tmp_path / "second")
    assert (tmp_path / "second").samefile(tmp_path / "file")
    with pytest.raises(FileExistsError):
        disk.link_or_copy(tmp_path / "file", tmp_path / "second")
    with pytest.raises(FileNotFoundError):
        disk.link_or_copy(tmp_path / "missing", tmp_path / "third")


def test_a_file_of_another_file_system_is_copied_with_its_holes(tmp_path: Path, other_disk: Path) -> None:
    source, target = tmp_path / "file", other_disk / "file"
    with source.open("wb") as file:
        file.write(b"start")
        file.seek(50 << 20)
        file.write(b"end")
        file.truncate(60 << 20)
    disk.link_or_copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= 2 * disk.COPY_BYTES
    assert names(other_disk) == ["file"]
    with pytest.raises(FileExistsError):
        disk.link_or_copy(source, target)


@pytest.mark.usefixtures("full_disk")
def test_a_copy_that_the_disk_refuses_leaves_nothing(tmp_path: Path, other_disk: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(OSError, match="no space left"):
        disk.link_or_copy(tmp_path / "file", other_disk / "file")
    assert names(other_disk) == []


def test_a_tree_is_synced_with_every_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").touch()
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    disk.sync_tree(tmp_path)
    assert sorted(synced) == sorted([tmp_path.name, "inner", "file"])
