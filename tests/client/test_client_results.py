"""What commands write and say about a job: files that are not replaced unasked, stdout, the next step, an error once."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from client_daemon import wait_for

import offrl


def arrays(steps: int = 60) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "observations": draw.normal(size=(steps, 3)).astype(np.float32),
        "actions": draw.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": np.ones(steps, np.float32),
        "terminals": np.arange(steps) % 10 == 9,
    }


@pytest.fixture(scope="module")
def job(daemon) -> str:
    """A job of two seeds, so that there are two policies of different content."""
    with offrl.Client(daemon.url) as client:
        client.datasets.add("results", arrays())
        made = client.submit("bc", dataset="results", steps=3, seeds=[0, 1])
        made.wait()
        return made.id


def piped(line: str, url: str, cwd: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OFFRL_URL": url, "PY": sys.executable}
    return subprocess.run(["bash", "-c", line], env=environment, cwd=cwd, capture_output=True, timeout=120)


def test_a_file_of_other_content_is_replaced_only_by_force(job, offrl_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert offrl_cli("fetch", job).status == 0
    first = (tmp_path / "policy.onnx").read_bytes()
    assert offrl_cli("fetch", job).status == 0  # the same content is not a conflict
    refused = offrl_cli("fetch", job, "--seed", "1")
    assert refused.status == 2
    assert "--force" in refused.err and refused.err.count("\n") == 1
    assert (tmp_path / "policy.onnx").read_bytes() == first
    assert offrl_cli("fetch", job, "--seed", "1", "--force").status == 0
    assert (tmp_path / "policy.onnx").read_bytes() != first
    (tmp_path / "out.npz").write_text("mine")
    assert offrl_cli("datasets", "export", "results", "out.npz").status == 2
    assert (tmp_path / "out.npz").read_text() == "mine"
    assert offrl_cli("datasets", "export", "results", "out.npz", "--force").status == 0
    assert np.load(tmp_path / "out.npz")["observations"].shape == (60, 3)


def test_saved_commands_are_not_replaced_either(offrl_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text('algorithm = "bc"\ndataset = "d"\nsteps = 1e3\n[grid]\nlearning_rate = [0.1, 0.2]\n')
    assert offrl_cli("sweep", "grid.toml", "--save", "jobs.sh").status == 0
    assert offrl_cli("sweep", "grid.toml", "--save", "jobs.sh").status == 0
    assert offrl_cli("sweep", "grid.toml", "--trials", "2", "--save", "jobs.sh").status == 2
    assert offrl_cli("sweep", "grid.toml", "--trials", "2", "--save", "jobs.sh", "--force").status == 0
    assert offrl_cli("sweep", "grid.toml", "--save", "-").out == offrl_cli("sweep", "grid.toml").out
    os.mkfifo(tmp_path / "pipe")
    line = '(cat pipe > read &) ; "$PY" -m offrl.cli sweep grid.toml --save pipe && sleep 0.2'
    assert piped(line, "ipc:///none", tmp_path).returncode == 0
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    wait_for(lambda: (tmp_path / "read").read_text().count("\n") == 2, "the commands in the pipe")


def test_a_key_file_is_replaced_by_force_alone_and_goes_to_stdout(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli("keys", "new", "arm", "--no-register", "--out", "a.key").status == 0
    before = (tmp_path / "a.key").read_text()
    assert cli("keys", "new", "arm", "--no-register", "--out", "a.key").status == 2
    assert (tmp_path / "a.key").read_text() == before
    assert cli("keys", "new", "arm", "--no-register", "--out", "a.key", "--force").status == 0
    assert (tmp_path / "a.key").read_text() != before
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    ran = cli("keys", "new", "arm", "--no-register", "--out", "-")
    assert ran.status == 0
    assert 'name = "arm"' in ran.out and "secret = " in ran.out
    assert "keys add arm" in ran.err


def test_a_key_that_cannot_be_written_is_not_let_in(cli, tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    ran = cli("keys", "new", "arm", "--out", tmp_path / "nowhere" / "\0", "--state-dir", state)
    assert ran.status != 0
    (tmp_path / "there.key").write_text("x")
    assert cli("keys", "new", "arm", "--out", tmp_path / "there.key", "--state-dir", state).status == 2
    assert cli("keys", "ls", "--state-dir", state, "--json").json == []


def test_stdout_takes_files_and_nothing_else(job, daemon, tmp_path):
    line = f'"$PY" -m offrl.cli fetch {job} --out - > policy.onnx && "$PY" -m offrl.cli fetch {job} --out same.onnx'
    ran = piped(line, daemon.url, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "policy.onnx").read_bytes() == (tmp_path / "same.onnx").read_bytes()
    ran = piped('"$PY" -m offrl.cli datasets export results - --format npz > out.npz', daemon.url, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert np.load(tmp_path / "out.npz")["rewards"].shape == (60,)
    for line, name in ((f"fetch {job} --out /dev/stdout", "policy.onnx"), ("datasets export results /dev/stdout --format npz", "out.npz")):
        ran = piped(f'"$PY" -m offrl.cli {line} | cat > it', daemon.url, tmp_path)
        assert (tmp_path / "it").read_bytes() == (tmp_path / name).read_bytes(), ran.stderr
    ran = piped('"$PY" -m offrl.cli datasets export results out.csv', daemon.url, tmp_path)
    assert ran.returncode == 2 and not (tmp_path / "out.csv").exists()
    assert b".npz" in ran.stderr
    for line in (f"fetch {job} --out - --json", "datasets export results -", "datasets export results - --format lerobot"):
        ran = piped(f'"$PY" -m offrl.cli {line}', daemon.url, tmp_path)
        assert (ran.returncode, ran.stdout if "--json" not in line else b"") == (2, b"")
    assert piped(f'"$PY" -m offrl.cli fetch {job} --out - > /dev/full', daemon.url, tmp_path).returncode == 1


def test_the_next_command_and_nothing_about_the_engine(daemon, offrl_cli):
    ran = offrl_cli("submit", "bc", "--dataset", "results", "--steps", "5", "--set", "batch_size=1e1", "--wait")
    assert ran.status == 0, ran.err
    made = ran.out.strip()
    assert ran.err.splitlines()[-1] == f"fetch its policy: offrl fetch {made}"
    lines = ran.err.splitlines()
    assert len(lines) == len(set(lines))
    for text in (ran.err, offrl_cli("logs", made).out):
        assert "linear layers" not in text and "feed:" not in text
    assert "feed: " in (daemon.state_dir / "jobs" / made / "engine.log").read_text()
    ran = offrl_cli("submit", "random_policy", "--dataset", "results", "--steps", "5", "--wait")
    assert ran.status == 0, ran.err


def test_a_failure_is_said_once(offrl_cli, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    ran = offrl_cli("datasets", "add", "bad", bad)
    assert ran.status == 2
    why = ran.err.splitlines()[-1]
    assert why.startswith("error: ")
    assert sum(why.removeprefix("error: ").split(";")[0] in line for line in ran.err.splitlines()) == 1
    ran = offrl_cli("submit", "bc", "--dataset", bad)  # whose own options are others
    assert ran.status == 2
    assert "--map" not in ran.err or "offrl datasets add NAME" in ran.err


def test_an_import_tells_its_size_once(offrl_cli, tmp_path):
    np.savez(tmp_path / "d.npz", **arrays())
    ran = offrl_cli("datasets", "add", "once", tmp_path / "d.npz")
    assert ran.status == 0, ran.err
    assert "6 episodes" not in ran.err
    assert "episodes" in ran.out


def test_an_unknown_job_is_answered_with_the_newest(job, client, offrl_cli):
    newest = [each.id for each in reversed(client.jobs())][:5]
    ran = offrl_cli("logs", "nosuch")
    assert (ran.status, ran.err) == (2, f"error: no job 'nosuch'; the newest: {', '.join(newest)}\n")


def test_the_same_sweep_with_other_options_takes_a_name(job, offrl_cli, client, tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text('algorithm = "bc"\ndataset = "results"\nsteps = 2\n[grid]\nlearning_rate = [0.1]\n')
    first = offrl_cli("sweep", grid, "--submit", "--json")
    assert first.status == 0, first.out
    assert offrl_cli("sweep", grid, "--submit", "--json").json == first.json
    refused = offrl_cli("sweep", grid, "--set", "steps=3", "--submit")
    assert refused.status == 2 and "--name" in refused.err
    again = offrl_cli("sweep", grid, "--set", "steps=3", "--name", "longer", "--submit", "--json")
    assert again.status == 0, again.out
    assert again.json[0]["name"] == f"longer-{first.json[0]['name']}"
    assert again.json[0]["job"] != first.json[0]["job"]
    for each in (*first.json, *again.json):
        client.job(each["job"]).wait()
    assert offrl_cli("sweep", grid, "--name", "a b", "--submit").status == 2


def read_until(stream, text: str) -> None:
    """Read lines up to the one with ``text``; if the stream ends first, fail with all that it held."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} is not in the output:\n{''.join(lines)}")


def test_a_command_says_that_the_daemon_has_gone_and_is_back(own_daemon):
    daemon = own_daemon.start()
    with offrl.Client(daemon.url) as client:
        client.datasets.add("d", arrays())
        made = client.submit("bc", dataset="d", steps=10**9)
    environment = {**os.environ, "OFFRL_URL": daemon.url}
    command = [sys.executable, "-m", "offrl.cli", "wait", made.id]
    waiting = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert made.id in waiting.stderr.readline()
        own_daemon.stop()
        read_until(waiting.stderr, "no daemon there any more")
        own_daemon.start()
        read_until(waiting.stderr, "the daemon is back")
        with offrl.Client(daemon.url) as client:
            client.job(made.id).cancel()
        waiting.communicate(timeout=60)
        assert waiting.returncode == 1
    finally:
        if waiting.poll() is None:
            waiting.send_signal(signal.SIGKILL)
            waiting.wait()


def test_serve_says_what_to_type_next(tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory(prefix="offrl-", dir="/tmp") as folder:
        process = subprocess.Popen([sys.executable, "-m", "offrl.cli", "serve", "--state-dir", folder], stderr=subprocess.PIPE, text=True)
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if line.startswith("in another terminal: "):
                    break
            assert f"offrld is ready at ipc://{folder}/run/offrld.sock" in "".join(lines)
            assert f"export OFFRL_URL=ipc://{folder}/run/offrld.sock; offrl datasets add NAME FILE" in lines[-1]
        finally:
            process.terminate()
            process.wait(60)
            process.stderr.close()
