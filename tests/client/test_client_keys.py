"""`offrl keys` and `offrl audit`: from a new key to a robot that the daemon accepts, and each mistake in one line."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from offrl import keys


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty state folder of this machine, an empty home, and no key by chance."""
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))
    monkeypatch.setenv("OFFRLD_STATE_DIR", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("OFFRL_KEY", raising=False)
    monkeypatch.delenv("OFFRL_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def url(box: Path) -> Iterator[str]:
    """A daemon of that folder on tcp with keys."""
    log = box.parent / f"{box.name}.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "offrld.daemon.main", "--state-dir", str(box), "--bind", "tcp://127.0.0.1:0"]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    end = time.monotonic() + 120
    while not (found := re.search(r"listening on (tcp://\S+),", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    yield found[1]
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    log.unlink()


def test_a_key_made_on_the_daemons_machine_is_let_in_until_it_is_removed(box, url, cli, monkeypatch) -> None:
    made = cli("keys", "new", "arm1", "--role", "reader", "--out", "arm1.key", "--json").json
    assert made["registered"]
    assert made["server"] == cli("keys", "server", "--json").json["server"]
    secret = keys.read_client(Path("arm1.key")).secret
    assert secret not in cli("keys", "ls").out + cli("keys", "server").out
    assert [entry["name"] for entry in cli("keys", "ls", "--json").json] == ["arm1"]
    monkeypatch.setenv("OFFRL_URL", url)
    monkeypatch.setenv("OFFRL_KEY", "arm1.key")
    assert cli("ping", "--json").json["caller"] == "arm1"
    denied = cli("audit")
    assert (denied.status, denied.err.count("\n")) == (4, 1)
    assert "'arm1' (reader)" in denied.err
    assert cli("keys", "role", "arm1", "operator").status == 0
    assert [entry["action"] for entry in cli("audit", "--since", "1h", "--json").json][-2:] == ["key_added", "key_changed"]
    assert "key_changed" in cli("audit").out
    assert cli("audit", "--since", "soon").status == 2
    assert cli("keys", "rm", "arm1").status == 0
    gone = cli("ping")
    assert (gone.status, gone.err.count("\n")) == (4, 1)
    assert "offrl keys add arm1" in gone.err


def test_a_key_made_on_the_robot_is_let_in_by_its_public_half(box, url, cli, monkeypatch, tmp_path) -> None:
    server = cli("keys", "server").out.strip()
    made = cli("keys", "new", "arm2", "--server", server)
    assert "offrl keys add arm2" in made.err
    path = tmp_path / "config" / "offrl" / "offrl.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.entries(box) == ([], [])
    added = cli("keys", "add", "arm2", made.out.strip(), "--role", "submitter")
    assert server in added.out
    monkeypatch.setenv("OFFRL_URL", url)  # the key is found in its usual place
    assert (cli("ping", "--json").json["caller"], cli("ping", "--json").json["role"]) == ("arm2", "submitter")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("new", "a/b"), 2, "'a/b'"),
        (("new", "local"), 2, "'local'"),
        (("new", "x", "--role", "boss"), 2, "reader, submitter, operator"),
        (("new", "x", "--server", "abc"), 2, "'abc'"),
        (("new", "x", "--out", "taken.key/x.key"), 2, "x.key"),
        (("new", "x", "--out", "taken.key"), 2, "taken.key exists"),
        (("new", "known", "--out", "k.key"), 2, "'known' is already registered"),
        (("add", "x", "12", "--role", "reader"), 2, "'12'"),
        (("rm", "knwon"), 2, "'known'"),
        (("rm", "../../x"), 2, "no key"),
        (("role", "known", "king"), 2, "'king'"),
        (("ls", "--state-dir", "/nonexistent"), 2, "/nonexistent"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(box, cli, tmp_path, arguments, status, words) -> None:
    Path("taken.key").write_text("mine")
    keys.add(box, "known", keys.KeyPair.new().public, "reader")
    ran = cli("keys", *arguments)
    assert (ran.status, ran.err.count("\n")) == (status, 1), ran
    assert words in ran.err
    assert Path("taken.key").read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["taken.key"]
    assert [entry.name for entry in keys.entries(box)[0]] == ["known"]


def test_one_key_has_one_name(box, cli) -> None:
    public = keys.KeyPair.new().public
    keys.add(box, "first", public, "reader")
    ran = cli("keys", "add", "second", public, "--role", "operator")
    assert ran.status == 2
    assert "'first'" in ran.err


def test_the_doctor_leaves_nothing_behind_that_its_key_may_not_remove(box, url, cli, monkeypatch) -> None:
    cli("keys", "new", "arm1", "--role", "submitter", "--out", "arm1.key")
    cli("keys", "new", "visitor", "--role", "reader", "--out", "visitor.key")
    monkeypatch.setenv("OFFRL_URL", url)
    monkeypatch.setenv("OFFRL_KEY", "arm1.key")
    found = {check["name"]: check for check in cli("doctor", "--json").json["checks"]}
    assert found["permissions"]["status"] == "ok"
    assert found["training"]["status"] == "warn"
    assert "'arm1' is submitter" in found["training"]["message"]
    assert cli("datasets", "ls", "--json").json == []
    monkeypatch.setenv("OFFRL_KEY", "visitor.key")
    found = {check["name"]: check for check in cli("doctor", "--json").json["checks"]}
    assert "may not run `offrl doctor`: this requires the role submitter" in found["service"]["message"]
    assert (found["service"]["status"], found["training"]["status"]) == ("warn", "warn")
