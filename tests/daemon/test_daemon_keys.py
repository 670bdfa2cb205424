"""Keys on tcp with real sockets: which keys are accepted, what each role may do, and that a removed key is refused at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from daemon_harness import Connection, Daemon, gateway, until

from offrl import Client, address, keys, wire
from offrl.errors import NoDaemon, NotAllowed, Unknown
from offrl.job import ImportSpec, TrainSpec
from offrl_store.errors import OffrlError
from offrld.daemon.handlers import HANDLERS

SETTINGS = "max_connections = 40\n[slots]\ntrain = 2\n[grace]\ncancel_s = 0.3\npause_s = 0.3\nstop_s = 2\n[audit]\nmax_bytes = 1048576\n"


class Keyed:
    """A daemon that listens on tcp with keys, and its clients by the name of their key."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon, self.folder = daemon, folder
        daemon.start("--bind", "tcp://127.0.0.1:0")
        self.url = "tcp://" + re.findall(r"listening on tcp://(\S+),", daemon.output.read_text())[-1]
        self._open: list[Client] = []

    def key(self, name: str, role: str | None = None, *, server: str | None = None) -> Path:
        """Make a key file; the daemon accepts the key if ``role`` is given."""
        path = self.folder / f"{name}.key"
        pair = keys.KeyPair.new()
        keys.write_client(path, name, pair, keys.server_pair(self.daemon.state).public if server is None else server)
        if role is not None:
            keys.add(self.daemon.state, name, pair.public, role)
        return path

    def client(self, name: str, role: str | None = None, **options: object) -> Client:
        path = self.folder / f"{name}.key"
        self._open.append(Client(self.url, key=path if path.exists() else self.key(name, role), timeout=60.0, **options))
        return self._open[-1]

    def audit(self) -> list[dict]:
        return [json.loads(line) for line in (self.daemon.state / "audit.log").read_text().splitlines()]

    def close(self) -> None:
        for client in self._open:
            client.close()
        self._open.clear()


@pytest.fixture(scope="module")
def shared(folders: Callable[[], Path]) -> Iterator[Keyed]:
    folder = folders()
    daemon = Daemon(folder, SETTINGS)
    made = Keyed(daemon, folder)
    yield made
    made.close()
    daemon.close()
    assert "Traceback" not in daemon.output.read_text(), daemon.output.read_text()


@pytest.fixture
def keyed(shared: Keyed) -> Iterator[Keyed]:
    yield shared
    shared.close()


# ----------------------------------------------------------------------------------------------------------------- handshake
def test_a_listed_key_is_accepted_and_known_by_name(keyed: Keyed) -> None:
    pong = keyed.client("known", "reader").ping()
    assert (pong.caller, pong.role) == ("known", "reader")
    with Client(keyed.daemon.url) as local:  # the local socket is there beside the tcp address
        assert (local.ping().caller, local.ping().role) == ("local", "operator")


def refused(keyed: Keyed, path: Path | str) -> NotAllowed:
    began = time.monotonic()
    with pytest.raises(NotAllowed) as caught:
        Client(keyed.url, key=path).close()
    assert time.monotonic() - began < 30  # half of what a request without an answer takes
    assert caught.value.exit_status == 4
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_unlisted_key_is_refused_with_the_command_that_adds_it(keyed: Keyed) -> None:
    path = keyed.key("stranger")
    error = refused(keyed, path)
    assert "'stranger'" in str(error)
    assert f"offrl keys add stranger {keys.read_client(path).public}" in error.hint
    assert keys.read_client(path).secret not in str(error) + error.hint + keyed.daemon.output.read_text()


def test_a_client_without_a_key_sees_how_to_get_one(keyed: Keyed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = refused(keyed, "")
    assert "OFFRL_KEY" in str(error)
    assert "offrl keys new" in error.hint
    assert "does not exist" in str(refused(keyed, "/nowhere/offrl.key"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("OFFRL_KEY", raising=False)
    monkeypatch.setattr(address, "probe", lambda url: pytest.fail("nothing may be sent to another machine without a key"))
    with pytest.raises(NotAllowed, match="registered keys only"):
        Client("tcp://192.0.2.1:7733")


def test_a_daemon_with_another_key_is_not_trusted(keyed: Keyed) -> None:
    error = refused(keyed, keyed.key("deceived", "operator", server=keys.KeyPair.new().public))
    assert "not the daemon" in str(error)
    assert "offrl keys server" in error.hint
    assert "does not name the daemon's public key" in str(refused(keyed, keyed.key("half", "operator", server="")))


def test_a_secret_key_that_others_can_read_is_not_used(keyed: Keyed) -> None:
    path = keyed.key("open", "reader")
    path.chmod(0o644)
    assert "0644" in str(refused(keyed, path))


def test_a_key_is_not_shown_to_a_daemon_without_keys(new_daemon: Callable[..., Daemon], keyed: Keyed) -> None:
    daemon = new_daemon().start("--bind", "tcp://127.0.0.1:0", "--insecure")
    url = "tcp://" + re.findall(r"listening on tcp://(\S+),", daemon.output.read_text())[-1]
    with pytest.raises(NotAllowed, match="has no keys"):
        Client(url, key=keyed.key("careful", "reader"))
    with Client(url, key="") as anyone:
        assert (anyone.ping().caller, anyone.ping().role) == ("anyone", "operator")


def test_the_key_file_of_the_host_overrides_the_common_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("OFFRL_KEY", raising=False)
    assert keys.find("tcp://box:7733") is None
    for name in ("offrl.key", "box.key"):
        keys.write_client(tmp_path / "offrl" / name, "me", keys.KeyPair.new())
    assert keys.find("tcp://box:7733") == tmp_path / "offrl" / "box.key"
    assert keys.find("tcp://other:7733") == tmp_path / "offrl" / "offrl.key"
    monkeypatch.setenv("OFFRL_KEY", str(tmp_path / "offrl" / "offrl.key"))
    assert keys.find("tcp://box:7733") == tmp_path / "offrl" / "offrl.key"
    monkeypatch.setenv("OFFRL_KEY", "")
    assert keys.find("tcp://box:7733") is None


# --------------------------------------------------------------------------------------------------------------------- roles
def requests(job: str, dataset: str) -> dict[type[wire.Request], wire.Request]:
    """One well-formed request of every type; what it asks for may fail, but not for want of rights."""
    return {
        wire.Ping: wire.Ping(),
        wire.Algorithms: wire.Algorithms(),
        wire.ReadAudit: wire.ReadAudit(),
        wire.Overview: wire.Overview(),
        wire.GetSettings: wire.GetSettings(),
        wire.Checkup: wire.Checkup(),
        wire.Submit: wire.Submit(spec=TrainSpec(algorithm="anything", dataset=dataset, steps=1, config={"behaviour": "normal"})),
        wire.Rerun: wire.Rerun(job=job),
        wire.Prune: wire.Prune(dry_run=True),
        wire.BeginBackup: wire.BeginBackup(),
        wire.ReadBackup: wire.ReadBackup(backup="none", path="queue.sqlite", offset=0, size=1),
        wire.EndBackup: wire.EndBackup(backup="none"),
        wire.ListJobs: wire.ListJobs(),
        wire.GetJob: wire.GetJob(job=job),
        wire.GetEvents: wire.GetEvents(job=job),
        wire.ReadLog: wire.ReadLog(job=job),
        wire.ControlJob: wire.ControlJob(job=job, action="cancel"),
        wire.GetQueue: wire.GetQueue(),
        wire.ControlQueue: wire.ControlQueue(action="resume"),
        wire.ListDatasets: wire.ListDatasets(),
        wire.GetDataset: wire.GetDataset(name=dataset),
        wire.RemoveDataset: wire.RemoveDataset(name="no-such-dataset"),
        wire.OpenUpload: wire.OpenUpload(upload="u-role", files=[wire.FileEntry(path="a", size=1, sha256="0" * 64)]),
        wire.WriteChunk: wire.WriteChunk(upload="u-none", path="a", offset=0, data=b"", crc32=0),
        wire.FinishUpload: wire.FinishUpload(upload="u-none"),
        wire.ListUploads: wire.ListUploads(),
        wire.RemoveUpload: wire.RemoveUpload(upload="u-none"),
        wire.OpenArtifact: wire.OpenArtifact(job=job, kind="metrics"),
        wire.ReadArtifact: wire.ReadArtifact(job=job, path="x", offset=0, size=1),
    }


def test_every_request_has_a_handler_and_a_least_role_and_an_example_here() -> None:
    types = set(get_args(get_args(wire.AnyRequest)[0]))
    assert types == set(wire.REQUESTS) == set(HANDLERS) == set(requests("j", "d"))
    assert all(kind.role in keys.ROLES for kind in types)


@pytest.mark.parametrize("role", keys.ROLES)
@pytest.mark.parametrize("kind", sorted(wire.REQUESTS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_each_role_may_do_exactly_what_the_table_says(keyed: Keyed, role: str, kind: type[wire.Request]) -> None:
    client = keyed.client(f"role-{role}", role)
    with Client(keyed.daemon.url) as local:
        datasets = {found.name for found in local.request(wire.ListDatasets()).datasets}
    if "for-roles" not in datasets:
        keyed.daemon.dataset("for-roles")
    submitter = keyed.client("role-submitter", "submitter")
    job = "none"
    if kind in (wire.ControlJob, wire.GetJob, wire.GetEvents):
        job = submitter.request(requests("j", "for-roles")[wire.Submit]).job
    allowed = keys.ROLES.index(role) >= keys.ROLES.index(kind.role)
    try:
        client.request(requests(job, "for-roles")[kind])
        code = ""
    except OffrlError as error:
        code = error.code
        if code == "not_allowed":
            assert f"role-{role}" in str(error)
            assert kind.role in str(error)
    assert (code != "not_allowed") is allowed, code


def test_a_submitter_changes_its_own_jobs_only(keyed: Keyed) -> None:
    dataset = keyed.daemon.dataset("owned")
    spec = TrainSpec(algorithm="anything", dataset=dataset, steps=3, config={"behaviour": "hang"})
    mine, other, operator = keyed.client("mine", "submitter"), keyed.client("other", "submitter"), keyed.client("boss", "operator")
    for action in ("cancel", "pause", "resume", "retry", "remove"):
        job = mine.request(wire.Submit(spec=spec)).job
        assert operator.job(job).info().owner == "mine"
        with pytest.raises(NotAllowed, match=f"'other' \\(submitter\\).*job {job} belongs to 'mine'"):
            other.request(wire.ControlJob(job=job, action=action))
        mine.request(wire.ControlJob(job=job, action="cancel"))
        until(lambda job=job: mine.job(job).info().state == "cancelled")
        operator.request(wire.ControlJob(job=job, action="remove"))
    local = keyed.daemon.train(dataset, "hang")
    assert keyed.daemon.job(local).owner == "local"
    with pytest.raises(NotAllowed, match="belongs to 'local'"):
        mine.request(wire.ControlJob(job=local, action="cancel"))
    operator.request(wire.ControlJob(job=local, action="cancel"))


def test_the_user_who_adds_a_dataset_owns_it(keyed: Keyed) -> None:
    arm1, arm2, looks = keyed.client("arm1", "submitter"), keyed.client("arm2", "submitter"), keyed.client("looks", "reader")
    empty = wire.FileEntry(path="a.bin", size=0, sha256=hashlib.sha256(b"").hexdigest())
    arm1.request(wire.OpenUpload(upload="up-of-arm1", files=[empty]))
    assert [info.owner for info in arm1.uploads()] == ["arm1"]
    assert "up-of-arm1" not in {info.upload for info in arm2.uploads()}
    with pytest.raises(NotAllowed, match="somebody else's"):
        arm2.remove_upload("up-of-arm1")
    arm1.request(wire.FinishUpload(upload="up-of-arm1"))
    job = arm1.request(wire.Submit(spec=ImportSpec(dataset="of-arm1", upload="up-of-arm1"))).job
    assert arm1.job(job).wait().state == "succeeded"
    assert arm2.datasets.show("of-arm1").owner == "arm1"
    with pytest.raises(NotAllowed, match=r"'arm2'.* its own datasets only: 'of-arm1' belongs to 'arm1'"):
        arm2.datasets.rm("of-arm1")
    with pytest.raises(NotAllowed, match="may not remove datasets: this requires the role submitter"):
        looks.datasets.rm("of-arm1")
    arm1.datasets.rm("of-arm1")
    arm1.request(wire.OpenUpload(upload="up-left", files=[empty.model_copy(update={"size": 1})]))
    arm1.remove_upload("up-left")
    with pytest.raises(Unknown, match="no upload 'up-left'"):
        arm1.remove_upload("up-left")


def test_a_reader_is_refused_before_anything_happens(keyed: Keyed) -> None:
    reader = keyed.client("only-looks", "reader")
    with pytest.raises(NotAllowed, match=r"key 'only-looks' \(reader\) may not submit: this requires the role submitter"):
        reader.request(wire.Submit(spec=ImportSpec(dataset="sneaked", upload="u")))
    assert all(job.last.dataset != "sneaked" for job in reader.jobs("all"))


# ---------------------------------------------------------------------------------------------------------------- revocation
def test_a_removed_key_is_refused_at_once_even_on_an_open_connection(keyed: Keyed) -> None:
    client = keyed.client("leaving", "operator")
    client.ping()
    keys.remove(keyed.daemon.state, "leaving")
    with pytest.raises(NotAllowed, match="not accepted any more"):
        client.ping()
    assert "'leaving'" in str(refused(keyed, keyed.folder / "leaving.key"))
    keys.add(keyed.daemon.state, "leaving", keys.read_client(keyed.folder / "leaving.key").public, "reader")
    assert client.ping().role == "reader"


def test_a_new_role_takes_effect_at_once(keyed: Keyed) -> None:
    client = keyed.client("demoted", "operator")
    assert client.ping().role == "operator"
    keys.set_role(keyed.daemon.state, "demoted", "reader")
    assert client.ping().role == "reader"
    path = keys.clients_dir(keyed.daemon.state) / "demoted.toml"
    with path.open("r+") as file:  # by hand, in place: its folder does not change
        text = file.read().replace("reader", "submitter", 1)
        file.seek(0)
        file.write(text)
    until(lambda: client.ping().role == "submitter")


def test_a_waiting_client_gets_no_event_after_its_key_was_removed(keyed: Keyed) -> None:
    dataset = keyed.daemon.dataset("waited-for")
    job = keyed.daemon.train(dataset, "hang")
    until(lambda: keyed.daemon.events(job)[-1].type == "progress", "the last event before the job hangs")
    cursor = keyed.daemon.events(job)[-1].n
    key = keys.read_client(keyed.key("waiting", "reader"))
    connection = Connection(keyed.daemon.context, keyed.url, key)
    events = connection.send(wire.GetEvents(job=job, cursor=cursor, wait_s=20.0))
    assert connection.ask(wire.Ping()).caller == "waiting"  # the request before it waits by now
    keys.remove(keyed.daemon.state, "waiting")
    keyed.daemon.control(job, "cancel")
    with pytest.raises(NotAllowed, match="not accepted any more"):
        connection.receive(events, wire.Events)
    connection.socket.close()


def test_a_damaged_key_file_is_refused_and_affects_no_other_key(keyed: Keyed) -> None:
    client = keyed.client("fine", "reader")
    folder = keys.clients_dir(keyed.daemon.state)
    broken = keyed.key("broken", "operator")
    (folder / "broken.toml").write_text("role = [")
    os.symlink("/etc/passwd", folder / "link.toml")
    (folder / "loose.toml").write_text((folder / "fine.toml").read_text().replace("reader", "operator"))
    (folder / "loose.toml").chmod(0o666)
    assert "'broken'" in str(refused(keyed, broken))
    assert client.ping().role == "reader"
    for name in ("broken", "link", "loose"):
        (folder / f"{name}.toml").unlink()


# ------------------------------------------------------------------------------------------------------------------ the bounds
def test_half_open_connections_are_bounded_and_time_out_while_others_continue(keyed: Keyed) -> None:
    client = keyed.client("inside", "reader")
    host, port = keyed.url.removeprefix("tcp://").split(":")
    descriptors = Path(f"/proc/{gateway(keyed.daemon)}/fd")
    before = len(list(descriptors.iterdir()))
    silent = []
    try:
        for _ in range(200):  # nothing is said on them
            silent.append(socket.create_connection((host, int(port)), timeout=60))
            client.ping()
        until(lambda: len(list(descriptors.iterdir())) <= before + 40, "no more than 40 connections are kept")
        assert len(list(descriptors.iterdir())) >= before + 20
        assert "no more are accepted" in keyed.daemon.output.read_text()
        assert not _comes_in(keyed)
        client.ping()
        for connection in silent:  # the first ones were let wait, and then closed by the daemon as well
            while connection.recv(1000):
                pass
        until(lambda: _comes_in(keyed), "a new client, when the silent ones have timed out", 20)
    finally:
        for connection in silent:
            connection.close()


def _comes_in(keyed: Keyed) -> bool:
    try:
        with Client(keyed.url, key=keyed.folder / "inside.key") as client:
            return client.ping().caller == "inside"
    except (NoDaemon, NotAllowed):
        return False


# ----------------------------------------------------------------------------------------------------------------------- audit
def test_a_change_is_in_the_audit_log_before_it_is_acknowledged(keyed: Keyed) -> None:
    dataset = keyed.daemon.dataset("audited")
    client = keyed.client("acts", "submitter")
    job = client.request(requests("j", dataset)[wire.Submit]).job
    line = keyed.audit()[-1]
    assert (line["caller"], line["role"], line["address"], line["action"]) == ("acts", "submitter", "127.0.0.1", "submit")
    assert (line["job"], line["dataset"], line["outcome"]) == (job, dataset, "ok")
    with pytest.raises(NotAllowed):
        client.request(wire.RemoveDataset(name=dataset))
    until(lambda: [line for line in keyed.audit() if line["caller"] == "acts" and line["outcome"] == "not_allowed"])
    before = len(keyed.audit())
    client.jobs()
    client.ping()
    assert len(keyed.audit()) == before
    keys.remove(keyed.daemon.state, "acts")
    until(lambda: keyed.audit()[-1]["action"] == "key_removed" and keyed.audit()[-1]["key"] == "acts")
    assert [line["n"] for line in keyed.audit()] == list(range(1, len(keyed.audit()) + 1))
    assert (keyed.daemon.state / "audit.log").stat().st_mode & 0o777 == 0o600


def test_an_operator_reads_the_log_in_parts(keyed: Keyed) -> None:
    operator = keyed.client("auditor", "operator")
    everything = keyed.audit()
    read = list(operator.audit())
    assert read[: len(everything)] == everything
    part = operator.request(wire.ReadAudit(after=2, limit=3))
    assert ([entry["n"] for entry in part.entries], part.more) == ([3, 4, 5], True)
    assert list(operator.audit(since=time.time() + 60)) == []


# ------------------------------------------------------------------------------------------------------------------------ files
def test_secrets_are_made_for_their_owner_alone_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int, int]] = []
    real = os.open

    def spy(path: os.PathLike[str], flags: int, mode: int = 0o777, **more: object) -> int:
        opened.append((os.fspath(path), flags, mode))
        return real(path, flags, mode, **more)

    old = os.umask(0)
    try:
        monkeypatch.setattr(os, "open", spy)
        pair = keys.server_pair(tmp_path)
        keys.write_client(tmp_path / "robot.key", "robot", keys.KeyPair.new(), pair.public)
        keys.add(tmp_path, "robot", keys.read_client(tmp_path / "robot.key").public, "reader")
    finally:
        os.umask(old)
    made = [(path, flags, mode) for path, flags, mode in opened if flags & os.O_CREAT]
    assert len(made) == 3
    assert all(flags & os.O_EXCL and mode == 0o600 for _, flags, mode in made), made
    for path in (keys.server_file(tmp_path), tmp_path / "robot.key", keys.clients_dir(tmp_path) / "robot.toml"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["robot.key", "robot.toml", "server.key"]
    assert keys.server_pair(tmp_path) == pair
    assert pair.secret not in repr(pair)


def test_a_daemon_whose_secret_key_others_can_read_does_not_start(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon()
    keys.server_pair(daemon.state)
    keys.server_file(daemon.state).chmod(0o640)
    status, lines = daemon.refused("--state-dir", str(daemon.state), "--bind", "tcp://127.0.0.1:0")
    assert (status, len(lines)) == (4, 1), lines
    assert "server.key has mode 0640" in lines[0]


# ------------------------------------------------------------------------------------------------------------- the local socket
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_group_may_use_the_socket_and_others_may_not(new_daemon: Callable[..., Daemon]) -> None:
    import grp
    import pwd

    group, nobody = grp.getgrnam("daemon"), pwd.getpwnam("nobody")
    daemon = new_daemon(f'socket_group = "{group.gr_name}"\nlocal_role = "submitter"\n')
    daemon.state.parent.chmod(0o711)  # a temporary folder is its user's alone
    daemon.start()
    socket_file = daemon.state / "run" / "offrld.sock"
    modes = [path.stat().st_mode & 0o777 for path in (daemon.state, socket_file.parent, socket_file)]
    assert modes == [0o710, 0o750, 0o660]
    assert socket_file.stat().st_gid == group.gr_gid
    # Everything is imported before the rights are given up: the user may not be able to read this installation.
    code = "import os, sys, offrl; offrl.Client(sys.argv[1]).ping()\nfrom offrl.errors import NotAllowed\n"
    code += "os.setgroups([int(group) for group in sys.argv[4:]]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))\n"
    code += "try: pong = offrl.Client(sys.argv[1]).ping(); print(pong.caller, pong.role)\nexcept NotAllowed as error: print(error)"

    def ask(*groups: int) -> str:
        who = [str(number) for number in (nobody.pw_uid, nobody.pw_gid, *groups)]
        return subprocess.run([sys.executable, "-c", code, daemon.url, *who], stdout=subprocess.PIPE, text=True, timeout=60).stdout

    assert ask(group.gr_gid).split() == ["local:nobody", "submitter"]
    assert "you may not use the daemon" in ask()
    assert (daemon.ask(wire.Ping()).caller, daemon.ask(wire.Ping()).role) == ("local", "operator")


def test_an_unknown_group_is_named(new_daemon: Callable[..., Daemon]) -> None:
    status, lines = new_daemon('socket_group = "no-such-group"\n').refused()
    assert (status, len(lines)) == (2, 1), lines
    assert "no-such-group" in lines[0]
