"""Settings, addresses and the state folder: every mistake gives one line that says what to do."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from offrl.errors import InvalidInput, NotAllowed, Unknown
from offrld.daemon.config import load
from offrld.daemon.notify import notify, watchdog_interval
from offrld.state.folder import StateFolder, default_state_dir


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OFFRLD_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/nonexistent/xdg")


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "offrld.toml").write_text(text)
    return str(tmp_path)


def test_the_command_line_overrides_the_environment_and_that_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "other.toml"
    config.write_text('state_dir = "/from/file"\nbind = "ipc:///file.sock"\n[slots]\ntrain = 3\n')
    settings = load(None, None, str(config))
    assert (str(settings.state_dir), settings.bind, settings.slots.train, settings.slots.light) == ("/from/file", "ipc:///file.sock", 3, 1)
    monkeypatch.setenv("OFFRLD_STATE_DIR", "/from/environment")
    assert str(load(None, None, str(config)).state_dir) == "/from/environment"
    settings = load("/from/line", "ipc:///line.sock", str(config))
    assert (str(settings.state_dir), settings.bind) == ("/from/line", "ipc:///line.sock")
    assert load("/from/line", None, None).bind == "ipc:///from/line/run/offrld.sock"


def test_the_state_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (os.geteuid() == 0 and os.access("/var/lib/offrld", os.W_OK)):
        assert default_state_dir() == Path("/nonexistent/xdg/offrld")
    monkeypatch.setenv("OFFRLD_STATE_DIR", "/x")
    assert default_state_dir() == Path("/x")


@pytest.mark.parametrize(
    ("text", "error", "words", "hint"),
    [
        ("import_root = []", Unknown, "'import_root'", "import_roots"),
        ("[slots]\ntrains = 1", Unknown, "'slots.trains'", "'train'"),
        ("[slots]\ntrain = -1", InvalidInput, "slots.train", ""),
        ('[grace]\nstop_s = "long"', InvalidInput, "'long'", ""),
        ("slots = 3", InvalidInput, "slots", ""),
        ("state_dir =", InvalidInput, "not TOML", ""),
        ('import_roots = ["relative"]', InvalidInput, "'relative'", ""),
        ('log_level = "loud"', InvalidInput, "'loud'", ""),
        ("metrics_port = 1" + "0" * 400, InvalidInput, "metrics_port: a number with hundreds of digits", ""),
        ("a" + ".a" * 2000 + " = 1", InvalidInput, "nested too deeply", ""),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, error: type[Exception], words: str, hint: str) -> None:
    with pytest.raises(error) as caught:
        load(write(tmp_path, text), None, None)
    assert words in str(caught.value)
    assert hint in caught.value.hint
    assert "offrld.toml" in str(caught.value) + caught.value.hint


def test_a_named_config_file_must_exist() -> None:
    with pytest.raises(InvalidInput, match=r"no\.toml does not exist"):
        load(None, None, "/no.toml")


@pytest.mark.parametrize(
    ("url", "insecure", "error"),
    [
        ("ipc://" + "/x" * 60, False, InvalidInput),
        ("tcp://0.0.0.0:1", True, NotAllowed),
        ("tcp://*:1", True, NotAllowed),
        ("tcp://example.org:1", True, NotAllowed),
        ("tcp://10.0.0.1:1", True, NotAllowed),
        ("inproc://x", True, InvalidInput),
        ("nonsense", True, InvalidInput),
        ("ipc://", False, InvalidInput),
    ],
)
def test_an_address_that_must_not_be_used_is_refused(tmp_path: Path, url: str, insecure: bool, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        load(str(tmp_path), url, None, insecure)
    assert caught.value.hint
    for fine in ("tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1"):
        load(str(tmp_path), fine, None, True)
    for fine in ("tcp://0.0.0.0:1", "tcp://*:1", "tcp://10.0.0.1:1"):  # with keys
        load(str(tmp_path), fine, None, False)


def test_a_state_folder_with_a_long_name_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="107") as caught:
        load("/" + "long/" * 30, None, None)
    assert "--state-dir" in caught.value.hint


def test_only_the_user_may_enter_the_run_folder(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    state.runtime.mkdir(parents=True, mode=0o755)
    state.prepare()
    assert state.runtime.stat().st_mode & 0o777 == 0o700
    with pytest.raises(InvalidInput, match="state folder"):
        StateFolder(Path("/proc/nothing")).prepare()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--bind", "tcp://0.0.0.0:0", "--insecure"), 4, "--insecure"),
        (("--state-dir", "/proc/none"), 2, "/proc/none"),
        (("--config", "/no.toml"), 2, "/no.toml"),
        (("--bind", "ipc:///nonexistent/a.sock"), 2, "/nonexistent/a.sock"),
    ],
)
def test_a_daemon_that_cannot_start_says_why_in_one_line(new_daemon, options: tuple[str, ...], status: int, words: str) -> None:
    daemon = new_daemon()
    got, lines = daemon.refused(*options, OFFRLD_STATE_DIR=str(daemon.state))
    assert (got, len(lines)) == (status, 1), lines
    assert words in lines[0]


def test_a_plain_file_is_left_alone_and_a_dead_socket_is_replaced(new_daemon) -> None:
    daemon = new_daemon()
    path = daemon.state / "run" / "offrld.sock"
    path.parent.mkdir()
    path.write_text("something")
    status, lines = daemon.refused()
    assert (status, len(lines)) == (2, 1)
    assert path.read_text() == "something"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    daemon.start()
    assert path.stat().st_mode & 0o777 == 0o600


def test_systemd_is_notified(monkeypatch: pytest.MonkeyPatch, folders) -> None:
    path = str(folders() / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        assert notify("READY=1")
        assert channel.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None


def test_the_service_reports_ready_and_alive_and_stopping(new_daemon, folders, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(folders() / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        channel.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        daemon = new_daemon().start()
        said = channel.recv(1000)
        assert b"READY=1" in said
        while b"WATCHDOG=1" not in said:
            said = channel.recv(1000)
        daemon.stop()
        while b"STOPPING=1" not in said:
            said = channel.recv(1000)
