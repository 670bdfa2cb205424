"""Downloads: resumed where they were cut, checked against the server's words, whole or not there."""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from offrl.errors import DownloadFailed
from offrld.datasets.crc32c import crc32c
from offrld.datasets.download import fetch, gzip_damage, https

SIZE = 3_000_000


@pytest.fixture
def content(server):
    data = np.random.default_rng(0).bytes(SIZE)
    (server.root / "big.bin").write_bytes(data)
    return data


def left(folder):
    """Every file of a folder but locks, hidden ones too."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock")) if folder.exists() else []


def test_a_cut_connection_is_resumed_where_it_ended(server, content, tmp_path):
    server.cuts = [1_000_000, 500_000]
    seen = []
    target = fetch(f"{server.url}/big.bin", tmp_path / "here" / "big.bin", progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == content
    starts = [None if span is None else int(span[6:-1]) for _, span in server.asked]
    assert starts[0] is None and len(starts) == 3 and 0 < starts[1] <= 1_000_000 and starts[1] < starts[2] <= 1_500_000
    assert seen[-1] == (SIZE, SIZE) and left(target.parent) == ["big.bin"]
    fetch(f"{server.url}/big.bin", target)
    assert len(server.asked) == 3  # it is there


def test_a_killed_download_leaves_no_file_and_the_next_one_goes_on(server, content, tmp_path):
    target = tmp_path / "here" / "big.bin"
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom offrld.datasets.download import fetch\n"
        "def stop(done, total):\n    if done > 1_500_000: os.kill(os.getpid(), 9)\n"
        "fetch(sys.argv[1], Path(sys.argv[2]), progress=stop)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, f"{server.url}/big.bin", str(target)], check=False)
    assert done.returncode == -9 and not target.exists()
    fetch(f"{server.url}/big.bin", target)
    assert target.read_bytes() == content
    assert server.asked[-1][1] is not None and int(server.asked[-1][1][6:-1]) >= 1_000_000
    assert left(target.parent) == ["big.bin"]


def test_another_version_of_the_object_is_fetched_from_its_beginning(server, content, tmp_path):
    target = tmp_path / "big.bin"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/big.bin", target, progress=stop)
    assert (tmp_path / ".big.bin.part").stat().st_size > 0
    other = content[::-1]
    (server.root / "big.bin").write_bytes(other)
    assert fetch(f"{server.url}/big.bin", target).read_bytes() == other
    assert server.asked[-1][1] is not None  # the rest was asked for, and the server said no


def test_a_server_without_ranges_is_asked_for_all_of_it_again(server, content, tmp_path):
    server.no_ranges, server.cuts = True, [1_000_000]
    assert fetch(f"{server.url}/big.bin", tmp_path / "big.bin").read_bytes() == content


@pytest.mark.parametrize("hashes", [("md5",), ("crc32c",)])
def test_bytes_that_are_not_those_announced_are_thrown_away(server, content, tmp_path, hashes):
    server.hashes, server.crc32c = hashes, base64.b64encode(crc32c(content).to_bytes(4, "big")).decode()
    server.spoil = True
    with pytest.raises(DownloadFailed, match=hashes[0]):
        fetch(f"{server.url}/big.bin", tmp_path / "here" / "big.bin")
    assert left(tmp_path / "here") == []
    server.spoil = False
    assert fetch(f"{server.url}/big.bin", tmp_path / "here" / "big.bin").read_bytes() == content


def test_a_listed_sha256_is_compared(server, content, tmp_path):
    with pytest.raises(DownloadFailed, match="sha256"):
        fetch(f"{server.url}/big.bin", tmp_path / "big.bin", sha256="0" * 64)
    assert not (tmp_path / "big.bin").exists()


def test_a_gzip_file_without_hashes_is_checked_by_its_own_sum(server, tmp_path):
    server.hashes = ()
    whole = gzip.compress(b"frames " * 100_000)
    (server.root / "a.gz").write_bytes(whole)
    assert gzip_damage(fetch(f"{server.url}/a.gz", tmp_path / "a.gz")) == ""
    for name, data in (("cut.gz", whole[:-5]), ("spoilt.gz", whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]), ("no.gz", b"<html>")):
        (server.root / name).write_bytes(data)
        with pytest.raises(DownloadFailed, match="gzip"):
            fetch(f"{server.url}/{name}", tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_missing_object_and_an_unreachable_server_are_one_line(server, tmp_path):
    with pytest.raises(DownloadFailed, match="404"):
        fetch(f"{server.url}/none", tmp_path / "none")
    assert len(server.asked) == 1
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9"):
        fetch("http://127.0.0.1:9/big.bin", tmp_path / "big.bin")
    assert left(tmp_path) == ["served"]


def test_a_server_that_is_busy_is_asked_again(server, content, tmp_path):
    server.statuses = [503, 429]
    assert fetch(f"{server.url}/big.bin", tmp_path / "big.bin").read_bytes() == content
    server.statuses = [503] * 9
    with pytest.raises(DownloadFailed, match="503"):
        fetch(f"{server.url}/big.bin", tmp_path / "again.bin")


def test_two_that_want_the_same_file_fetch_it_once(server, content, tmp_path):
    threads = [threading.Thread(target=fetch, args=(f"{server.url}/big.bin", tmp_path / "big.bin")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1 and (tmp_path / "big.bin").read_bytes() == content


def test_crc32c_is_that_of_the_rfc_in_one_piece_and_in_many():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the polynomial
    assert crc32c(b"\x00" * 32) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(bytes(range(32))) == 0x46DD794E
    data = np.random.default_rng(1).bytes(100_001)
    parts = 0
    for start in range(0, len(data), 7_919):
        parts = crc32c(data[start : start + 7_919], parts)
    assert parts == crc32c(data)


def test_a_bucket_is_read_at_its_public_address():
    assert https("gs://atari-replay-datasets/dqn/Pong") == "https://storage.googleapis.com/atari-replay-datasets/dqn/Pong"
    assert https("http://mirror/x") == "http://mirror/x"
