"""The service under a real systemd, from its installation to its removal. Slow: `make test-systemd`, as root."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator

import pytest
from machine import ROOT, Machine, missing, until

pytestmark = pytest.mark.slow
AS_SERVICE = "OFFRLD_STATE_DIR=/var/lib/offrld /opt/offrld/bin/offrl"
LONG = "td3_bc --dataset data --steps 100000000 --seed 3"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    if why := missing():
        pytest.skip(why)
    machine = Machine()
    try:
        machine.start()
        yield machine
    finally:
        machine.close()


def offrl(machine: Machine, arguments: str) -> str:
    return machine.run(f"{AS_SERVICE} {arguments}", user="offrld", talk=False)


def status(machine: Machine, job: str) -> dict:
    return json.loads(offrl(machine, f"status {job} --json"))


def running_at(machine: Machine, job: str, step: int) -> dict:
    """The job's status once it runs and has passed the step."""
    return until(lambda: (found := status(machine, job))["state"] == "running" and found["step"] > step and found, f"{job} after {step}")


def main_pid(machine: Machine) -> int:
    return int(machine.property("MainPID"))


@pytest.fixture(scope="module")
def service(machine: Machine) -> Machine:
    """Installed and started as docs/operations.md says, with the packages of this source tree in /opt/offrld."""
    machine.run("/usr/bin/python3 -m venv --without-pip /opt/offrld")
    packages = sysconfig.get_path("purelib")
    here = f"/opt/offrld/lib/python{sysconfig.get_python_version()}/site-packages/here.pth"
    machine.run(f"echo 'import site; site.addsitedir(\"{packages}\")' > {here}")
    for name, module in (("offrld", "offrld.daemon.main"), ("offrl", "offrl.cli")):
        script = f"#!/opt/offrld/bin/python\\nimport sys\\nfrom {module} import main\\nsys.exit(main())\\n"
        machine.run(f"printf '{script}' > /opt/offrld/bin/{name} && chmod 755 /opt/offrld/bin/{name}")
    machine.run(f"make -C {ROOT} install-service")
    machine.run("systemctl enable --now offrld")
    return machine


@pytest.fixture(scope="module")
def dataset(service: Machine) -> Machine:
    program = (
        "import numpy as np; r = np.random.default_rng(0); n = 2000; "
        "np.savez('/var/lib/offrld/data.npz', observations=r.normal(size=(n, 3)).astype('f4'), "
        "actions=r.uniform(-1, 1, (n, 1)).astype('f4'), rewards=r.normal(size=n).astype('f4'), "
        "terminals=np.zeros(n, bool), timeouts=np.arange(n) % 200 == 199)"
    )
    service.run(f'/opt/offrld/bin/python -c "{program}"', user="offrld")
    offrl(service, "datasets add data /var/lib/offrld/data.npz")
    return service


def test_it_starts_and_reports_its_state(service: Machine) -> None:
    assert service.property("ActiveState") == "active"
    assert "listening on ipc:///var/lib/offrld/run/offrld.sock" in service.property("StatusText")
    shown = service.run("systemctl status offrld")
    assert "Status:" in shown
    assert "enabled" in shown
    assert json.loads(offrl(service, "ping --json"))["state_dir"] == "/var/lib/offrld"
    assert service.run("stat -c '%U %a' /var/lib/offrld /var/lib/offrld/run").split("\n")[:2] == ["offrld 700", "offrld 700"]


def test_no_other_user_can_open_the_socket(service: Machine) -> None:
    assert "exit 4" in service.run(f"{AS_SERVICE} ping; echo exit $?", user="nobody", check=False).replace("exit 3", "exit 4")


def test_it_is_confined(service: Machine) -> None:
    """What the unit promises, seen from a process in its place."""
    pid = main_pid(service)
    known = service.run(f"cat /proc/{pid}/status")
    assert "NoNewPrivs:\t1" in known
    assert "CapEff:\t0000000000000000" in known
    assert "Seccomp:\t2" in known
    inside = f"nsenter -t {pid} -m --"
    assert "Read-only" in service.run(f"{inside} touch /etc/x", check=False)
    assert service.run(f"{inside} ls /root", check=False).strip() == "" or "denied" in service.run(f"{inside} ls /root", check=False)
    assert not any(name.startswith(("sd", "vd", "nvme")) for name in service.run(f"{inside} ls /dev").split())


def test_a_job_trains_as_the_services_user_and_its_policy_is_fetched(dataset: Machine) -> None:
    job = offrl(dataset, "submit td3_bc --dataset data --steps 200 --wait --json")
    assert json.loads(job)["state"] == "succeeded"
    name = json.loads(job)["job"]
    assert dataset.run(f"stat -c %U /var/lib/offrld/jobs/{name}").strip() == "offrld"
    offrl(dataset, f"fetch {name} --out /var/lib/offrld/policy.onnx")
    dataset.run("test -s /var/lib/offrld/policy.onnx")


def test_after_kill_9_it_is_restarted_and_the_job_continues(dataset: Machine) -> None:
    job = offrl(dataset, f"submit {LONG}").strip()
    before = running_at(dataset, job, 0)
    first = main_pid(dataset)
    dataset.run(f"kill -9 {first}")
    until(lambda: main_pid(dataset) not in (0, first) and dataset.property("ActiveState") == "active", "a new process")
    assert int(dataset.property("NRestarts")) >= 1
    assert running_at(dataset, job, before["step"])["attempt"] >= 2
    offrl(dataset, f"cancel {job}")


def test_a_hung_service_is_restarted(dataset: Machine) -> None:
    """SIGSTOP: nothing feeds the watchdog any more. The unit waits for a minute, here for some seconds."""
    dataset.run("mkdir -p /etc/systemd/system/offrld.service.d")
    dataset.run("printf '[Service]\\nWatchdogSec=6\\n' > /etc/systemd/system/offrld.service.d/test.conf")
    dataset.run("systemctl daemon-reload && systemctl restart offrld")
    first = main_pid(dataset)
    dataset.run(f"kill -STOP {first}")
    until(lambda: main_pid(dataset) not in (0, first) and dataset.property("ActiveState") == "active", "a new process")
    assert "watchdog" in dataset.run("journalctl -u offrld --no-pager").lower()
    dataset.run("rm /etc/systemd/system/offrld.service.d/test.conf && systemctl daemon-reload && systemctl restart offrld")
    assert json.loads(offrl(dataset, "ping --json"))["uptime_s"] >= 0


def test_a_stop_writes_a_checkpoint_within_the_grace_and_leaves_no_process(dataset: Machine) -> None:
    job = offrl(dataset, f"submit {LONG}").strip()
    running_at(dataset, job, 0)
    dataset.run("time systemctl stop offrld")
    assert dataset.property("Result") == "success"
    assert dataset.property("ExecMainStatus") == "0"
    kept = dataset.run(f"ls /var/lib/offrld/jobs/{job}/checkpoints").split()
    assert kept
    assert dataset.run("pgrep -u offrld -c .", check=False).strip() == "0"
    dataset.run("systemctl start offrld")
    assert running_at(dataset, job, 0)["attempt"] >= 2
    offrl(dataset, f"cancel {job}")


def test_bad_settings_are_reported_and_not_retried(dataset: Machine) -> None:
    dataset.run("echo 'no_such = 1' >> /var/lib/offrld/offrld.toml")
    dataset.run("systemctl restart offrld", check=False)
    until(lambda: dataset.property("ActiveState") == "failed", "it has given up")
    assert dataset.property("ExecMainStatus") == "2"
    assert "no setting 'no_such'" in dataset.run("journalctl -u offrld --no-pager")
    dataset.run("sed -i /no_such/d /var/lib/offrld/offrld.toml && systemctl reset-failed offrld && systemctl start offrld")
    offrl(dataset, "ping")


def test_two_robots_connect_with_their_keys(dataset: Machine) -> None:
    """Each in a network namespace of its own, on a wire to the box, as docs/operations.md has it."""
    dataset.run("echo 'bind = \"tcp://10.9.0.1:7733\"' >> /var/lib/offrld/offrld.toml")
    dataset.run("ip link add robots type bridge && ip addr add 10.9.0.1/24 dev robots && ip link set robots up")
    for number, name in enumerate(("arm1", "arm2"), 2):
        dataset.run(f"ip netns add {name} && ip link add {name} type veth peer name eth0 netns {name}")
        dataset.run(f"ip link set {name} master robots up")
        dataset.run(f"ip -n {name} addr add 10.9.0.{number}/24 dev eth0 && ip -n {name} link set eth0 up")
        dataset.run(f"useradd -m -d /srv/{name} {name}")
    dataset.run("systemctl restart offrld")
    server = offrl(dataset, "keys server").strip()
    offrl(dataset, "keys new arm1 --role submitter --out /var/lib/offrld/arm1.key")
    dataset.run("install -d -o arm1 -g arm1 -m 700 /srv/arm1/.config /srv/arm1/.config/offrl")
    dataset.run("install -o arm1 -g arm1 -m 600 /var/lib/offrld/arm1.key /srv/arm1/.config/offrl/offrl.key && rm /var/lib/offrld/arm1.key")

    def robot(name: str, arguments: str) -> str:
        words = f"HOME=/srv/{name} OFFRL_URL=tcp://10.9.0.1:7733 /opt/offrld/bin/offrl {arguments}"
        return dataset.run(f"ip netns exec {name} runuser -u {name} -- env {words}; echo exit $?")

    made = robot("arm2", f"keys new arm2 --server {server} --json")
    public = json.loads(made.rpartition("exit")[0])["public"]
    refused = robot("arm2", "ping")
    assert "does not accept the key 'arm2'" in refused
    assert "exit 4" in refused
    offrl(dataset, f"keys add arm2 {public} --role reader")
    assert "arm1" in robot("arm1", "ping")
    assert "(reader)" in robot("arm2", "ping")
    dataset.run("cp /var/lib/offrld/data.npz /srv/arm1/ && chown arm1 /srv/arm1/data.npz")
    assert "exit 0" in robot("arm1", "datasets add arm1-data /srv/arm1/data.npz")
    trained = robot("arm1", "submit td3_bc --dataset arm1-data --steps 100 --wait")
    assert "exit 0" in trained, trained
    assert "exit 4" in robot("arm2", "submit td3_bc --dataset arm1-data --steps 100")
    audit = offrl(dataset, "audit --since 1d")
    assert "arm1" in audit


def test_uninstalling_leaves_the_data(dataset: Machine) -> None:
    dataset.run(f"make -C {ROOT} uninstall-service")
    assert "could not be found" in dataset.run("systemctl status offrld", check=False)
    dataset.run("test -s /var/lib/offrld/queue.sqlite && test -d /var/lib/offrld/datasets/data && id offrld")
