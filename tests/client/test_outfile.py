"""Files that a user names: whole or not there, never replaced unasked, and what is not a regular file stays what it is."""

from __future__ import annotations

import os
import pty
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from offrl import outfile
from offrl.errors import Conflict, DiskFull, InvalidInput


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_new_file_has_the_umasks_mode_and_nothing_beside_it(tmp_path):
    before = os.umask(0o027)
    try:
        assert outfile.write(tmp_path / "a", "text") == tmp_path / "a"
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_text() == "text"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert left(tmp_path) == ["a"]
    outfile.write(tmp_path / "secret", b"x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_other_content_is_refused_the_same_is_left_alone_and_force_replaces_it_with_its_mode(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"mine")
    path.chmod(0o604)
    before = path.stat()
    with pytest.raises(Conflict, match=r"a exists and has other content") as caught:
        outfile.write(path, b"new")
    assert caught.value.exit_status == 2
    assert "--force" in caught.value.hint and "force=True" in caught.value.hint
    outfile.write(path, b"mine")
    assert (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) == (before.st_ino, before.st_mtime_ns, b"mine")
    outfile.write(path, b"new", force=True)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o604)
    assert left(tmp_path) == ["a"]


@pytest.mark.parametrize("there", [False, True])
def test_an_error_on_the_way_leaves_things_as_they_were(tmp_path, there):
    path = tmp_path / "a"
    if there:
        path.write_bytes(b"mine")
    with pytest.raises(ZeroDivisionError), outfile.writing(path, force=True) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert left(tmp_path) == (["a"] if there else [])
    assert not there or path.read_bytes() == b"mine"


def test_a_link_is_written_through_and_stays(tmp_path):
    (tmp_path / "inner").mkdir()
    target = tmp_path / "inner" / "real"
    for content in (b"one", b"two"):  # the first makes the file that the link leads to
        link = tmp_path / "link"
        if not link.is_symlink():
            link.symlink_to("inner/real")
        outfile.write(link, content, force=True)
        assert link.is_symlink() and target.read_bytes() == content
    with pytest.raises(Conflict):
        outfile.write(tmp_path / "link", b"three")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(InvalidInput, match=r"cannot write .*round"):
        outfile.write(tmp_path / "round", b"")
    assert left(tmp_path) == ["inner", "link", "round"]


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_pipe_is_written_into_once_the_content_is_whole(tmp_path, through_a_link):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = os.urandom(300_000)  # more than a pipe holds
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    path = pipe
    if through_a_link:
        path = tmp_path / "link"
        path.symlink_to(pipe)
    outfile.write(path, content)
    reader.join(120)
    assert read == [content]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_pipe_without_a_reader_and_one_whose_reader_goes_are_one_line(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(outfile, "READER_S", 0.1)
    with pytest.raises(InvalidInput, match="nobody reads from this pipe"):
        outfile.write(pipe, b"x")
    with subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'rb').read(1)", pipe]):
        monkeypatch.setattr(outfile, "READER_S", 30)
        with pytest.raises(InvalidInput, match="its reader has gone"):
            outfile.write(pipe, bytes(1 << 20))
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_terminals_and_the_null_device_are_written_into():
    ours, theirs = pty.openpty()
    try:
        outfile.write(os.ttyname(theirs), b"to the terminal")
        assert os.read(ours, 100) == b"to the terminal"
    finally:
        os.close(ours)
        os.close(theirs)
    outfile.write("/dev/null", b"away")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("sink", ["pipe", "file", "appended"])
def test_stdout_by_name_is_this_processs_stdout_whatever_it_is(tmp_path, name, sink):
    program = [sys.executable, "-c", "import sys; from offrl import outfile; outfile.write(sys.argv[1], b'content')", name]
    if sink == "pipe":
        assert subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout == b"content"
        return
    path = tmp_path / "out"
    path.write_bytes(b"before ")
    with open(path, "ab" if sink == "appended" else "wb") as file:
        subprocess.run(program, stdout=file, check=True)
        file.write(b" after")
    assert path.read_bytes() == (b"before content after" if sink == "appended" else b"content after")


def test_what_cannot_be_a_file_is_one_line_before_anything_is_made(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{short}/s")
        cases = {
            tmp_path: "it is a folder",
            f"{short}/s": "it is a socket",
            tmp_path / "none" / "a": "its folder does not exist",
            f"{tmp_path}/new/": "it names a folder",
            "": "is not the path of a file",
            "a\0b": "is not the path of a file",
            tmp_path / ("a" * 300): "File name too long",
        }
        (tmp_path / "plain").write_text("")
        cases[tmp_path / "plain" / "a"] = "Not a directory"
        for path, said in cases.items():
            with pytest.raises(InvalidInput, match=said):
                outfile.place(path)
            with pytest.raises(InvalidInput, match=said), outfile.writing(path):
                raise AssertionError("the block was entered")
        assert stat.S_ISSOCK(os.stat(f"{short}/s").st_mode)
    assert left(tmp_path) == ["plain"]


def test_a_folder_that_takes_no_file_is_not_called_absent():
    with pytest.raises(InvalidInput, match="no file can be made in /proc"), outfile.writing("/proc/none"):
        raise AssertionError("the block was entered")


def test_a_full_disk_leaves_nothing(tmp_path):
    with pytest.raises(DiskFull, match="no space left for /dev/full"):
        outfile.write("/dev/full", b"x")


def test_a_name_as_long_as_may_be_is_no_problem(tmp_path):
    outfile.write(tmp_path / ("a" * 255), b"x")
    assert left(tmp_path) == ["a" * 255]
