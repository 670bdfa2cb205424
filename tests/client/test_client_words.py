"""Plain words: numbers as people write them, options as they were typed, guesses only where they are good, hints that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer

import offrl
import offrl_store
import offrld
from offrl.cli.app import command
from offrl.cli.values import count, real, setting
from offrl.errors import InvalidInput, likely, nearest

PACKAGES = [Path(package.__file__).parent for package in (offrl, offrl_store, offrld)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e5", 100_000),
        ("100k", 100_000),
        ("1M", 10**6),
        ("1.5M", 1_500_000),
        ("100_000", 100_000),
        ("100,000", 100_000),
        ("1e3", 1000),
        ("2.0", 2),
        ("0", 0),
        ("-5", -5),
        ("+7", 7),
        (" 12 ", 12),
        ("1.5e3", 1500),
        ("2G", 2 * 10**9),
        ("10K", 10_000),
    ],
)
def test_counts_as_people_write_them(text, value):
    assert count(text) == value
    assert type(count(text)) is int


@pytest.mark.parametrize(
    "text", ["1.5", "1e-1", "many", "", "nan", "inf", "1e999", "0x10", "1__0", "10,00", "٣", "1k5", "k", "1e5k5", "9" * 50]
)
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is not a whole number"):
        count(text)


def test_numbers_are_finite():
    assert real("1e-3") == 0.001
    for text in ("nan", "inf", "-inf", "x", ""):
        with pytest.raises(typer.BadParameter, match="is not a number"):
            real(text)


def test_settings_take_the_same_numbers_and_say_how_a_list_is_written():
    assert setting("batch_size=1k") == ("batch_size", 1000)
    assert setting("steps=100_000") == ("steps", 100_000)
    assert setting("type=k") == ("type", "k")
    with pytest.raises(InvalidInput) as caught:
        setting("encoder.units=256,256")
    assert "--set encoder.units=[256,256]" in caught.value.hint


def test_every_option_of_a_number_takes_them():
    """Walks the whole tree of commands: none leaves its numbers to Typer."""

    def walk(found, path):
        for name, each in getattr(found, "commands", {}).items():
            yield from walk(each, f"{path} {name}")
        for param in found.params:
            yield path, param

    found, missed = [], []
    for path, param in walk(command(), "offrl"):
        told = getattr(param, "type_descriptor", None)
        if told is not None and told.annotation in (int, float):
            found.append(param.name)
            if told.parameter_info.parser is None:
                missed.append(f"{path} {param.name}")
    assert missed == []
    assert {"steps", "limit", "days"} <= set(found)


SUBMIT = ["submit", "td3_bc", "--dataset", "d"]
REFUSED = [
    ([*SUBMIT, "--steps", "-5"], "--steps must be 1 or more, got -5; see `offrl submit --help`"),
    ([*SUBMIT, "--steps", "1.5"], "--steps: '1.5' is not a whole number such as 100000, 100_000, 1e5, 100k or 1M; "
                                     "see `offrl submit --help`"),
    ([*SUBMIT, "--seed", "-1"], "--seed must be 0 or more, got -1; see `offrl submit --help`"),
    ([*SUBMIT, "--device", "gpu"], "--device must be auto, cpu, cuda or cuda:N, got 'gpu'; see `offrl submit --help`"),
    ([*SUBMIT, "--threads", "0"], "--threads must be 1 or more, got 0; see `offrl submit --help`"),
    ([*SUBMIT, "--validation", "2"], "--validation must be less than 1.0, got 2.0; see `offrl submit --help`"),
    ([*SUBMIT, "--runner", "fast"], "--runner must be 'auto', 'eager', 'compile' or 'graph', got 'fast'; see `offrl submit --help`"),
    ([*SUBMIT, "--from", "a b"], "--from must be JOB or JOB:SEED, got 'a b'; see `offrl submit --help`"),
    ([*SUBMIT, "--gpu-memory", "0"], "--gpu-memory must be 1 or more, got 0; see `offrl submit --help`"),
    ([*SUBMIT, "--batch-size", "9"], "offrl submit has no option --batch-size; "
                                     "if it is a setting of the algorithm, pass --set batch_size=VALUE; see `offrl submit --help`"),
    ([*SUBMIT, "--stesp", "9"], "offrl submit has no option --stesp; did you mean --steps?"),
    (["collect", "--env", "E", "--into", "a b", "--steps", "1"], "--into must be a name (letters, digits, '.', '_' and '-', at most 100, "
                                                               "of which the first is a letter or digit), got 'a b'; for example a-b"),
    (["collect", "--env", "E", "--into", "a", "--steps", "1", "--step-timeout", "0"],
     "--step-timeout must be more than 0.0, got 0.0; see `offrl collect --help`"),
    (["prune", "--jobs", "-1"], "--jobs must be 0 or more, got -1; see `offrl prune --help`"),
    (["top", "--limit", "0"], "--limit must be 1 or more, got 0; see `offrl top --help`"),
    (["submti"], "offrl has no command 'submti'; did you mean `offrl submit`?"),
    (["report"], "offrl has no command 'report'; see `offrl --help`"),
    (["datasets", "list"], "offrl datasets has no command 'list'; did you mean `offrl datasets ls`?"),
    (["datasets", "frobnicate"], "offrl datasets has no command 'frobnicate'; see `offrl datasets --help`"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=[" ".join(arguments[-2:]) for arguments, _ in REFUSED])
def test_a_refusal_names_option_value_and_what_is_taken(arguments, says, offrl_cli):
    ran = offrl_cli(*arguments)
    assert (ran.status, ran.err) == (2, f"error: {says}\n")


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("submti", ["submit", "status"], "submit"),
        ("report", ["restore", "rerun"], None),
        ("record", ["restore"], None),
        ("jobs", ["logs"], None),
        ("TD3+BC", ["td3", "td3_bc"], "td3_bc"),
        ("bcc", ["bc", "bcq"], "bc"),
        ("iqk", ["iql", "sac"], "iql"),
        ("alfa", ["alpha", "tau"], "alpha"),
        ("ALE/Pong-v5", ["Ant-v5", "Hopper-v5"], None),
        ("Nope-v1", ["Hopper-v5"], None),
        ("CartPoel-v1", ["CartPole-v1"], "CartPole-v1"),
        ("pend", ["pendulum", "hopper"], "pendulum"),
        ("x", ["y"], None),
        ("", ["a"], None),
    ],
)
def test_only_a_near_name_is_suggested(name, known, found):
    assert likely(name, known) == found
    assert nearest(name, known) == (f"did you mean {found!r}?" if found else f"known: {', '.join(sorted(known))}")


def test_help_is_there_by_its_short_name_and_summaries_are_whole(cli):
    ran = cli("-h")
    assert ran.status == 0
    assert "..." not in ran.out.replace("[ARGS]...", "")
    assert cli("datasets", "add", "-h").out == cli("datasets", "add", "--help").out


# ---------------------------------------------------------------------------------------------------------------------- hints
def strings() -> list[tuple[str, str]]:
    """Every text in the three packages that is not a docstring, with the place; what is filled in stands as ``X``."""
    found = []
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            tree = ast.parse(path.read_text())
            docs = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr)
            }
            inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
                id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
            }
            for node in ast.walk(tree):
                place = f"{path.name}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.JoinedStr):
                    found.append((place, "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inside:
                    found.append((place, node.value))
    return found


def tree() -> dict[str, set[str]]:
    """Every command with its options."""
    known: dict[str, set[str]] = {}

    def walk(found, path):
        known[path] = {name for param in found.params for name in (*param.opts, *param.secondary_opts)} | {"-h", "--help"}
        for name, each in getattr(found, "commands", {}).items():
            walk(each, f"{path} {name}")

    walk(command(), "offrl")
    return known


OTHERS = {"--user", "--system", "-p", "-r", "--upgrade", "--index-url", "--extra-index-url", "--state-dir", "--bind", "--insecure",
          "--no-deps",
          "--check-config", "--default-config", "--config", "--now", "--print-config"}  # of pip, systemctl, offrld  # fmt: skip


def test_messages_recommend_only_commands_and_options_that_exist():
    known = tree()
    options = set().union(*known.values()) | OTHERS
    groups = {path for path in known if any(other.startswith(f"{path} ") for other in known)}
    wrong = []
    for place, text in strings():
        for line in re.findall(r"(?<![\w./\"'-])offrl ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)([^`\n;]*)", text):
            words, rest = line[0].split(), line[1]
            path = f"offrl {words[0]}"
            if path in groups and len(words) > 1:
                path = f"{path} {words[1]}"
            quoted = f"`offrl {line[0]}" in text
            if path not in known:
                if quoted:
                    wrong.append((place, path))
                continue
            missing = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest)) - known[path] - OTHERS
            if quoted and missing:
                wrong.append((place, f"{path}: {missing}"))
        for option in re.findall(r"(?<![\w`/.-])--[a-z][a-z-]+(?![\w/])", text):
            if option not in options and " " in text.strip():
                wrong.append((place, option))
    assert wrong == []
