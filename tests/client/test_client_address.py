"""Where the client looks for its daemon, and what it says when none is there."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

import offrl
from offrl import address, keys
from offrl.errors import InvalidInput, NoDaemon, NotAllowed
from offrld.datasets import places
from offrld.state.folder import default_state_dir


@pytest.fixture
def short() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="offrl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def listen(folder: Path) -> socket.socket:
    (folder / "run").mkdir(parents=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "run" / "offrld.sock"))
    server.listen()
    return server


def test_the_argument_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("OFFRL_URL", "tcp://box:7733")
    assert address.resolve() == "tcp://box:7733"
    assert address.resolve("ipc:///run/a.sock") == "ipc:///run/a.sock"


def test_the_state_folder_of_the_environment_is_next(monkeypatch):
    monkeypatch.delenv("OFFRL_URL", raising=False)
    monkeypatch.setenv("OFFRLD_STATE_DIR", "/srv/offrld")
    assert address.resolve() == "ipc:///srv/offrld/run/offrld.sock"


def test_the_users_daemon_is_found_without_any_setting(monkeypatch, short):
    monkeypatch.delenv("OFFRL_URL", raising=False)
    monkeypatch.delenv("OFFRLD_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(short))
    with listen(short / "offrld"):
        assert address.resolve() == f"ipc://{short}/offrld/run/offrld.sock"


def test_a_user_without_a_home_gets_no_folder_named_by_a_tilde(monkeypatch, tmp_path):
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", unknown)  # as in a container that runs with a number for a user
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "OFFRLD_STATE_DIR", "OFFRL_KEY", "OFFRL_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert address.usual_state_dirs() == ["/var/lib/offrld"]
    assert keys.find("tcp://127.0.0.1:7733") is None
    for make, way_out in ((default_state_dir, "--state-dir"), (places.stores_folder, "OFFRL_DATASETS")):
        with pytest.raises(InvalidInput, match="this user has no home for") as caught:
            make()
        assert way_out in caught.value.hint
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert address.usual_state_dirs() == ["/srv/state/offrld", "/var/lib/offrld"]
    assert default_state_dir() == Path("/srv/state/offrld")
    assert not list(tmp_path.iterdir())


def test_a_stale_socket_of_the_user_does_not_hide_the_machines_daemon(monkeypatch, short):
    monkeypatch.delenv("OFFRL_URL", raising=False)
    monkeypatch.delenv("OFFRLD_STATE_DIR", raising=False)
    listen(short / "user").close()  # the file stays, nobody listens
    monkeypatch.setattr(address, "usual_state_dirs", lambda: [str(short / "user"), str(short / "machine")])
    with listen(short / "machine"):
        assert address.resolve() == f"ipc://{short}/machine/run/offrld.sock"


def test_no_daemon_names_where_it_was_looked_for_and_the_way_out(monkeypatch, short):
    monkeypatch.delenv("OFFRL_URL", raising=False)
    monkeypatch.delenv("OFFRLD_STATE_DIR", raising=False)
    monkeypatch.setattr(address, "usual_state_dirs", lambda: [str(short / "a"), str(short / "b")])
    with pytest.raises(NoDaemon, match=rf"{short}/a/run/offrld.sock or {short}/b/run/offrld.sock") as caught:
        offrl.Client()
    assert "offrl serve" in caught.value.hint
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("kind", ["missing", "stale", "tcp"])
def test_nobody_there_is_no_daemon(kind, short):
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        url = f"tcp://127.0.0.1:{port}"
    else:
        if kind == "stale":
            listen(short).close()
        url = f"ipc://{short}/run/offrld.sock"
    with pytest.raises(NoDaemon, match=url):
        offrl.Client(url)


def test_somebody_who_does_not_speak_zeromq_is_no_daemon(short, monkeypatch):
    monkeypatch.setattr("offrl.connection.HANDSHAKE_S", 0.3)
    with listen(short), pytest.raises(NoDaemon, match="does not answer as offrld does"):
        offrl.Client(f"ipc://{short}/run/offrld.sock")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
def test_a_socket_of_somebody_else_is_not_allowed(short):
    with listen(short):
        (short / "run").chmod(0)
        with pytest.raises(NotAllowed) as caught:
            offrl.Client(f"ipc://{short}/run/offrld.sock")
        (short / "run").chmod(0o700)
    assert caught.value.exit_status == 4


def test_a_socket_path_that_the_system_cannot_take_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.delenv("OFFRL_URL", raising=False)
    monkeypatch.setenv("OFFRLD_STATE_DIR", "/srv/" + "x" * 100)
    with pytest.raises(InvalidInput, match="107") as caught:
        offrl.Client()
    assert "--state-dir" in caught.value.hint
    fits = "ipc:///" + "x" * 106
    assert address.check(fits) == fits
    with pytest.raises(InvalidInput):
        address.check(fits + "x")


@pytest.mark.parametrize(
    "url", ["", "box:7733", "http://box:80", "tcp://box", "tcp://box:0", "tcp://box:70000", "tcp://:1", "ipc://", "inproc://a"]
)
def test_what_is_no_address_is_named(url):
    with pytest.raises(InvalidInput, match="is not the address of a daemon"):
        address.check(url)
