"""Uploads on real files: chunks, damage, resumption, names that would leave the folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offrl.errors import Conflict, DiskFull, InvalidInput, LimitReached, NotAllowed, Unknown
from offrl.wire import FileEntry
from offrld.daemon.access.caller import Caller
from offrld.daemon.storage.uploads import Uploads
from offrld.state.below import open_below, relative_parts

ARM1, ARM2, BOSS = Caller("arm1", "submitter"), Caller("arm2", "submitter"), Caller("boss", "operator")


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    (tmp_path / "uploads").mkdir()
    return Uploads(tmp_path / "uploads", limit=3, keep_free=0)


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def write(uploads: Uploads, path: str, offset: int, data: bytes, upload: str = "u") -> int:
    return uploads.write(upload, path, offset, data, zlib.crc32(data), ARM1)


def test_files_arrive_whole(uploads: Uploads, tmp_path: Path) -> None:
    assert uploads.open("u", [entry("a/b.bin", b"hello"), entry("empty", b"")], ARM1) == {"a/b.bin": 0, "empty": 0}
    with pytest.raises(Conflict):
        uploads.check_usable("u", ARM1)
    assert write(uploads, "a/b.bin", 0, b"hel") == 3
    with pytest.raises(Conflict, match="3 of 5"):
        uploads.finish("u", ARM1)
    assert write(uploads, "a/b.bin", 3, b"lo") == 5
    uploads.finish("u", ARM1)
    uploads.finish("u", ARM1)  # its answer was lost
    uploads.check_usable("u", ARM1)
    assert (tmp_path / "uploads/u/files/a/b.bin").read_bytes() == b"hello"
    assert (tmp_path / "uploads/u/files/empty").read_bytes() == b""
    with pytest.raises(Conflict, match="finished"):
        write(uploads, "a/b.bin", 5, b"")
    uploads.remove("u")
    with pytest.raises(Unknown):
        uploads.check_usable("u", ARM1)


def test_an_upload_used_while_it_is_finished_again_is_reported_gone(uploads: Uploads, tmp_path: Path) -> None:
    uploads.open("u", [entry("empty", b"")], ARM1)
    shutil.rmtree(tmp_path / "uploads/u/files")  # as far as an import has come that has used it up
    with pytest.raises(Unknown, match="upload u is gone"):
        uploads.finish("u", ARM1)


def test_an_upload_continues_from_the_last_stored_byte(uploads: Uploads, tmp_path: Path) -> None:
    files = [entry("a", b"0123456789")]
    uploads.open("u", files, ARM1)
    write(uploads, "a", 0, b"0123")
    again = Uploads(tmp_path / "uploads", keep_free=0)  # of a daemon that was restarted
    assert again.open("u", files, ARM1) == {"a": 4}
    assert write(again, "a", 0, b"0123") == 4  # its answer was lost: acknowledged again
    with pytest.raises(Conflict, match="4 have arrived"):
        write(again, "a", 5, b"56789")
    with pytest.raises(InvalidInput, match="10 bytes"):
        write(again, "a", 4, b"456789!")
    with pytest.raises(Conflict, match="other files"):
        again.open("u", [entry("a", b"other")], ARM1)
    write(again, "a", 4, b"456789")
    again.finish("u", ARM1)


def test_damage_is_found_on_the_way_and_at_the_end(uploads: Uploads) -> None:
    files = [entry("a", b"hello")]
    uploads.open("u", files, ARM1)
    with pytest.raises(InvalidInput, match="CRC-32"):
        uploads.write("u", "a", 0, b"hello", 1, ARM1)
    write(uploads, "a", 0, b"hallo")
    with pytest.raises(InvalidInput, match="SHA-256"):
        uploads.finish("u", ARM1)
    assert uploads.open("u", files, ARM1) == {"a": 0}
    write(uploads, "a", 0, b"hello")
    uploads.finish("u", ARM1)


@pytest.mark.parametrize(
    "paths",
    [
        ["../x"],
        ["/etc/x"],
        ["a/../../x"],
        ["a//b"],
        ["."],
        ["a/"],
        ["a\0b"],
        ["a\nb"],
        ["a\\b"],
        ["x" * 256],
        ["a", "a"],
        ["a", "a/b"],
        ["/".join("a" * 33)],
    ],
)
def test_a_name_that_could_do_harm_is_refused_and_leaves_nothing(uploads: Uploads, tmp_path: Path, paths: list[str]) -> None:
    with pytest.raises(InvalidInput):
        uploads.open("u", [entry(path, b"") for path in paths], ARM1)
    assert not list((tmp_path / "uploads").iterdir())


@given(st.text(min_size=1, max_size=40))
def test_no_accepted_name_leaves_the_folder(path: str) -> None:
    try:
        parts = relative_parts(path)
    except (InvalidInput, UnicodeEncodeError):
        return
    root = Path("/state/uploads/u/files")
    assert Path(os.path.normpath(root.joinpath(*parts))).is_relative_to(root)
    assert len(parts) >= 1


def test_uploads_are_bounded_in_number_and_size(uploads: Uploads, tmp_path: Path) -> None:
    for number in range(3):
        uploads.open(f"u{number}", [entry("a", b"x")], ARM1)
    with pytest.raises(LimitReached, match=r"3 uploads are under way, as many as uploads\.open = 3 allows"):
        uploads.open("one-more", [entry("a", b"x")], ARM1)
    write(uploads, "a", 0, b"x", "u0")
    uploads.finish("u0", ARM1)
    with pytest.raises(DiskFull, match="needs"):
        uploads.open("large", [FileEntry(path="a", size=2**60, sha256="0" * 64)], ARM1)
    assert not (tmp_path / "uploads" / "large").exists()


def test_an_owner_below_the_equal_share_may_begin_even_at_the_limit(uploads: Uploads) -> None:
    for number in range(3):
        uploads.open(f"u{number}", [entry("a", b"x")], ARM1)
    uploads.open("v", [entry("a", b"x")], ARM2)
    for caller in (ARM1, ARM2):
        with pytest.raises(LimitReached, match="uploads are under way"):
            uploads.open("one-more", [entry("a", b"x")], caller)


def test_one_owner_leaves_room_for_the_others(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    uploads = Uploads(tmp_path / "uploads", limit=4, limit_per_owner=2, keep_free=0)
    refused = []

    def begin(number: int) -> None:
        try:
            uploads.open(f"u{number}", [entry("a", b"x")], ARM1)
        except LimitReached as error:
            refused.append(error.message)

    with ThreadPoolExecutor(8) as pool:  # all at once, as the daemon's threads do it
        list(pool.map(begin, range(8)))
    assert refused == ["'arm1' has 2 uploads under way, as many as uploads.open_per_owner = 2 allows"] * 6
    uploads = Uploads(tmp_path / "uploads", limit=4, limit_per_owner=2, keep_free=0)  # of a daemon that was restarted
    uploads.open("other", [entry("a", b"x")], ARM2)
    with pytest.raises(LimitReached, match="'arm1' has 2"):
        uploads.open("one-more", [entry("a", b"x")], ARM1)
    going_on = next(path.name for path in (tmp_path / "uploads").iterdir() if path.name != "other")
    assert uploads.open(going_on, [entry("a", b"x")], ARM1) == {"a": 0}  # what was begun is not refused
    write(uploads, "a", 0, b"x", going_on)
    uploads.finish(going_on, ARM1)
    uploads.open("one-more", [entry("a", b"x")], ARM1)


def test_links_are_not_followed(uploads: Uploads, tmp_path: Path) -> None:
    uploads.open("u", [entry("a/b", b"hello")], ARM1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b").write_bytes(b"")
    files = tmp_path / "uploads/u/files"
    (files / "a/b").unlink()
    (files / "a").rmdir()
    (files / "a").symlink_to(outside)
    with pytest.raises(Unknown):
        write(uploads, "a/b", 0, b"hello")
    assert (outside / "b").read_bytes() == b""
    (files / "pipe").mkdir()
    with pytest.raises(OSError):
        open_below(files, "pipe")


def test_forgotten_uploads_are_found(uploads: Uploads, tmp_path: Path) -> None:
    uploads.open("old", [entry("a", b"x")], ARM1)
    uploads.open("new", [entry("a", b"x")], ARM1)
    for path in [*(tmp_path / "uploads/old").rglob("*"), tmp_path / "uploads/old"]:
        os.utime(path, (1, 1))
    assert Uploads(tmp_path / "uploads").expired(60) == ["old"]  # a daemon that was restarted
    assert uploads.expired(60) == []  # one that saw both of them being begun, whatever the clock says


def test_no_upload_is_lost_because_the_clock_was_set(uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads.open("before", [entry("a", b"x")], ARM1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 365 * 86400)
    assert uploads.expired(60) == []
    uploads.open("after", [entry("a", b"x")], ARM1)
    monkeypatch.setattr(time, "time", lambda: now - 365 * 86400)
    assert uploads.expired(60) == []
    assert set(uploads.expired(0)) == {"before", "after"}  # so it would be seen if they were counted by the wall clock


def test_only_the_owner_and_operators_use_an_upload(uploads: Uploads, tmp_path: Path) -> None:
    files = [entry("a", b"hello")]
    uploads.open("u", files, ARM1)
    for again in (uploads, Uploads(tmp_path / "uploads", keep_free=0)):  # and in a daemon that was restarted
        for act in (
            lambda u=again: u.open("u", files, ARM2),
            lambda u=again: u.write("u", "a", 0, b"hello", zlib.crc32(b"hello"), ARM2),
            lambda u=again: u.finish("u", ARM2),
            lambda u=again: u.check_usable("u", ARM2),
        ):
            with pytest.raises(NotAllowed, match="'arm2'"):
                act()
    assert uploads.open("u", files, BOSS) == {"a": 0}
    write(uploads, "a", 0, b"hello")
    uploads.finish("u", ARM1)
    uploads.check_usable("u", BOSS)
    (tmp_path / "uploads/u/owner").unlink()  # as one that was begun with a daemon that knew no owners
    with pytest.raises(NotAllowed):
        Uploads(tmp_path / "uploads").check_usable("u", ARM1)
    Uploads(tmp_path / "uploads").check_usable("u", BOSS)


# ------------------------------------------------------------------------------------------------------------------ abandoned
def abandon(folder: Path, upload: str, seconds: float) -> None:
    """Make an upload look idle for this long."""
    then = time.time() - seconds
    for path in (folder / upload, *(folder / upload).rglob("*")):
        os.utime(path, (then, then))


def test_an_abandoned_upload_gives_way_to_a_new_one_of_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    before = Uploads(folder, limit=10, limit_per_owner=2, keep_free=0)
    for name, owner in (("old", ARM1), ("older", ARM1), ("theirs", ARM2), ("theirs2", ARM2)):
        before.open(name, [entry("a", b"xy")], owner)
        abandon(folder, name, {"old": 3600, "older": 7200}.get(name, 90_000))
    uploads = Uploads(folder, limit=10, limit_per_owner=2, keep_free=0)  # a restart forgets nothing of it
    uploads.open("new", [entry("a", b"xy")], ARM1)
    assert sorted(path.name for path in folder.iterdir()) == ["new", "old", "theirs", "theirs2"]
    uploads.open("newer", [entry("a", b"xy")], ARM1)
    with pytest.raises(LimitReached, match="'arm1' has 2 uploads under way"):  # both were gone on with just now
        uploads.open("newest", [entry("a", b"xy")], ARM1)
    assert sorted(path.name for path in folder.iterdir()) == ["new", "newer", "theirs", "theirs2"]


def test_an_active_upload_never_gives_way(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    Uploads(folder, keep_free=0).open("slow", [entry("a", b"xy")], ARM1)
    abandon(folder, "slow", 3600)
    uploads = Uploads(folder, limit=10, limit_per_owner=1, keep_free=0)
    write(uploads, "a", 0, b"x", "slow")
    with pytest.raises(LimitReached):
        uploads.open("other", [entry("a", b"xy")], ARM1)
    assert uploads.open("slow", [entry("a", b"xy")], ARM1) == {"a": 1}


def test_uploads_abandoned_by_others_take_nobody_s_place(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    before = Uploads(folder, limit=4, limit_per_owner=2, keep_free=0)
    for number in range(4):
        before.open(f"u{number}", [entry("a", b"xy")], (ARM1, ARM2)[number % 2])
    uploads = Uploads(folder, limit=4, limit_per_owner=2, keep_free=0)
    uploads.open("mine", [entry("a", b"xy")], BOSS)  # a share of his own
    with pytest.raises(LimitReached, match="5 uploads are under way"):
        uploads.open("another", [entry("a", b"xy")], BOSS)
    for number in range(4):
        abandon(folder, f"u{number}", 60)
    uploads = Uploads(folder, limit=4, limit_per_owner=2, keep_free=0)
    uploads.open("another", [entry("a", b"xy")], BOSS)
    assert uploads.outstanding() == (4, 4)  # what nobody brings takes no room of the quota
    assert uploads.still_to_come("u1") == 2


def test_users_see_and_remove_their_own_uploads(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    uploads = Uploads(folder, keep_free=0)
    uploads.open("one", [entry("a", b"xy"), entry("b", b"")], ARM1)
    write(uploads, "a", 0, b"x", "one")
    uploads.open("two", [entry("a", b"")], ARM2)
    uploads.finish("two", ARM2)
    (told,) = uploads.listing(ARM1)
    assert (told.upload, told.owner, told.files, told.size, told.bytes, told.finished) == ("one", "arm1", 2, 2, 1, False)
    assert {info.upload: info.finished for info in uploads.listing(BOSS)} == {"one": False, "two": True}
    with pytest.raises(NotAllowed, match="somebody else's"):
        uploads.check_removable("one", ARM2)
    uploads.check_removable("one", BOSS)
    with pytest.raises(Unknown, match="no upload 'three'"):
        uploads.check_removable("three", BOSS)
