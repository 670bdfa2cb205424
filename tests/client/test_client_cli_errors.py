"""What the command line says when something is wrong: one line and an exit status, or one JSON value."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [["ping"], ["status"], ["submit", "bc", "--dataset", "d"], ["datasets", "ls"], ["wait", "j"]])
def test_no_daemon_is_one_line_and_exit_status_3(arguments, cli, nowhere):
    plain = cli(*arguments)
    assert (plain.status, plain.out) == (3, "")
    assert (
        plain.err
        == f"error: no daemon at ipc://{nowhere}/run/offrld.sock; start one with `offrl serve`, or name its address with OFFRL_URL\n"
    )
    as_json = cli(*arguments, "--json")
    assert (as_json.status, as_json.err) == (3, "")
    assert as_json.json["error"]["code"] == "no_daemon"
    assert set(as_json.json["error"]) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "nonsense"),
        (["submit", "bc"], "--dataset"),
        (["submit", "bc", "--dataset", "d", "--steps", "many"], "many"),
        (["submit", "bc", "--dataset", "d", "--seeds", "3-1"], "3-1"),
        (["submit", "bc", "--dataset", "d", "--seeds", "0-1", "--seed", "3"], "--seed 3"),
        (["submit", "bc", "--dataset", "d", "--set", "alpha"], "alpha"),
        (["submit", "bc", "--dataset", "d", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (["status", "--nonsense"], "--nonsense"),
        (["datasets", "nonsense"], "nonsense"),
        (["evaluate", "/nowhere.onnx", "--env", "CartPole-v1"], "/nowhere.onnx"),
    ],
)
def test_bad_usage_is_one_line_and_exit_status_2(arguments, says, cli, nowhere):
    plain = cli(*arguments)
    assert (plain.status, plain.out) == (2, "")
    assert plain.err.startswith("error: ")
    assert plain.err.count("\n") == 1
    assert says in plain.err
    as_json = cli(*arguments, "--json")
    assert as_json.status == 2
    assert set(as_json.json["error"]) == {"code", "message", "hint"}


def test_an_address_that_is_none_is_bad_input(cli, monkeypatch):
    monkeypatch.setenv("OFFRL_URL", "box")
    ran = cli("ping")
    assert ran.status == 2
    assert "'box' is not the address" in ran.err


def test_a_defect_is_one_line_too(cli, nowhere, monkeypatch):
    monkeypatch.setattr("offrl.address.resolve", lambda url=None: 1 / 0)
    ran = cli("ping", "--json")
    assert ran.status == 1
    assert ran.json["error"]["code"] == "internal"
    assert "ZeroDivisionError" in ran.json["error"]["message"]


def test_help_and_version(cli):
    assert cli("--version").out.startswith("offrl ")
    ran = cli("--help")
    assert ran.status == 0
    assert "datasets" in ran.out
    assert cli().status == 2


def test_serve_says_what_to_install_where_torch_is_missing(cli, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    for command in ("serve", "demo"):
        ran = cli(command)
        assert ran.status == 1
        assert ran.err == 'error: the daemon needs torch, which is not installed; pip install "offrl[daemon]"\n'


def test_a_reader_that_goes_away_is_no_error(daemon):
    shell = f"{sys.executable} -m offrl.cli algos --json | head -c 1"
    ran = subprocess.run(["bash", "-c", shell], env={**os.environ, "OFFRL_URL": daemon.url}, capture_output=True, text=True, timeout=180)
    assert ran.stdout == "["
    assert ran.stderr == ""


def test_the_process_ends_with_the_status(nowhere, offrl_process):
    ran = offrl_process("ping", env={"OFFRLD_STATE_DIR": str(nowhere)})
    assert ran.returncode == 3
    assert "Traceback" not in ran.stderr
