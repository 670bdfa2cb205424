"""systemd accepts the unit without a complaint, and the unit sets what the daemon relies on."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "systemd" / "offrld.service"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Write the unit with a program that exists here and a user that exists everywhere."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = UNIT.read_text().replace("/opt/offrld/bin/offrld", sys.executable).replace("=offrld\nGroup=offrld", "=daemon\nGroup=daemon")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("Documentation"))
    path = tmp_path / "offrld.service"
    path.write_text(text)
    return path


def test_systemd_understands_every_line(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=180)
    complaints = [line for line in done.stderr.splitlines() if "offrld.service" in line]
    assert not complaints  # it exits 0 on an unknown key


def test_the_service_is_confined(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout[-300:]


def test_the_unit_sets_what_the_daemon_relies_on() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"  # else the workers get SIGTERM before the daemon has said what it is about
    assert service["OOMPolicy"] == "continue"  # else one worker's out-of-memory stops the service
    assert service["StateDirectory"] == "offrld"
    assert float(service["TimeoutStopSec"]) > 20
    assert "AF_NETLINK" in service["RestrictAddressFamilies"]  # else ZeroMQ aborts when it listens on tcp
    assert "MemoryDenyWriteExecute" not in service  # compiled kernels need it, on the CPU as well
    assert service["PrivateDevices"] == "yes"


def test_a_file_beside_the_unit_allows_cards_and_each_line_says_why(unit: Path) -> None:
    gpu = UNIT.with_name("offrld-gpu.conf").read_text()
    beside = unit.with_name("offrld.service.d")
    beside.mkdir()
    (beside / "gpu.conf").write_text(gpu)
    test_systemd_understands_every_line(unit)
    lines = gpu.splitlines()
    for number, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            above = next(other for other in reversed(lines[:number]) if other.split("=")[0] != line.split("=")[0])
            assert above.startswith("#"), line


def test_installed_files_are_placed_and_removed_again(tmp_path: Path) -> None:
    """Install into a package folder: nothing on this machine changes."""
    make = ["make", "-s", "-C", str(UNIT.parents[1]), f"DESTDIR={tmp_path}", "PREFIX=/srv/offrld"]
    subprocess.run([*make, "GPU=1", "install-service"], check=True, capture_output=True, timeout=180)
    installed = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert installed == [
        "etc/systemd/system/offrld.service",
        "etc/systemd/system/offrld.service.d/gpu.conf",
        "usr/lib/sysusers.d/offrld.conf",
    ]
    text = (tmp_path / installed[0]).read_text()
    assert "ExecStart=/srv/offrld/bin/offrld" in text
    assert "/opt/offrld" not in text.replace("for /opt/offrld", "")
    subprocess.run([*make, "uninstall-service"], check=True, capture_output=True, timeout=180)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
