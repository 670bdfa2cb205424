"""What is uploaded of a file or a folder, values given as text, and what `import offrl` loads."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest

import offrl
from offrl import download, upload
from offrl.cli.values import seed_list, setting, settings
from offrl.client import flat
from offrl.errors import CheckFailed, InvalidInput


def test_a_folder_is_named_with_its_own_name_and_without_hidden_files(tmp_path):
    root = tmp_path / "replay"
    (root / "data").mkdir(parents=True)
    (root / "data" / "main.hdf5").write_bytes(b"abc")
    (root / ".DS_Store").write_bytes(b"")
    (root / ".git").mkdir()
    (root / ".git" / "x").write_bytes(b"")
    assert [(file.name, file.size) for file in upload.scan(root)] == [("replay/data/main.hdf5", 3)]


def test_the_name_of_a_file_comes_from_its_stem_and_its_content(tmp_path):
    a, b = tmp_path / "hopper medium.hdf5", tmp_path / "b.hdf5"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    first = upload.content_name(upload.scan(a), a)
    assert first.startswith("hopper-medium-")
    assert first == upload.content_name(upload.scan(a), a)
    a.write_bytes(b"two")
    assert upload.content_name(upload.scan(a), a) != first


def test_symbolic_links_in_a_folder_are_refused(tmp_path):
    (tmp_path / "secret").symlink_to("/etc/hostname")
    with pytest.raises(InvalidInput, match="secret is a symbolic link"):
        upload.scan(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "empty", "fifo"])
def test_what_cannot_be_uploaded_is_named(kind, tmp_path):
    path = tmp_path / "source"
    if kind == "empty":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(InvalidInput, match="source"):
        upload.scan(path)


def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a").write_text("a")
    with tarfile.open(tmp_path / "good.tar", "w") as tar:
        tar.add(inside, arcname="store")
    download.unpack(tmp_path / "good.tar", tmp_path / "out")
    assert (tmp_path / "out" / "store" / "a").read_text() == "a"

    (tmp_path / "bad").mkdir()
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.add(inside / "a", arcname="ok")
        tar.add(inside / "a", arcname="../../escaped")
    with pytest.raises(CheckFailed):
        download.unpack(tmp_path / "bad.tar", tmp_path / "bad" / "out")
    assert not (tmp_path / "escaped").exists()
    assert list((tmp_path / "bad").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("alpha=2.5", "alpha", 2.5),
        ("n=3", "n", 3),
        ("critic_encoder.units=[256,256]", "critic_encoder.units", [256, 256]),
        ("layer_norm=true", "layer_norm", True),
        ("observation_scaler=min_max", "observation_scaler", "min_max"),
        ('name="a b"', "name", "a b"),
        ("limit=null", "limit", None),
        (" alpha = 1e-3 ", "alpha", 1e-3),
    ],
)
def test_set_takes_a_toml_value_or_a_bare_word(text, name, value):
    assert setting(text) == (name, value)


@pytest.mark.parametrize(
    "text",
    [
        "alpha",
        "=1",
        "a b=1",
        "alpha=",
        "units=[256,",
        "x=1\ny=2",
        "x={a=",
        'x="unclosed',
        "x=1#half",
        "x=1,",
        "x=1" + "0" * 5000,
        "x=" + "[" * 3000 + "]" * 3000,
    ],
)
def test_set_refuses_what_it_cannot_read(text):
    with pytest.raises(InvalidInput, match="--set") as caught:
        setting(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("content", ["x = 1" + "0" * 5000, "x = " + "[" * 3000 + "]" * 3000, b"\xff"])
def test_a_file_of_settings_that_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "settings.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match="is not TOML"):
        settings(str(path), [])


def test_set_goes_before_the_file(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text("alpha = 1.0\n[critic_encoder]\nunits = [8]\n")
    assert settings(str(path), ["alpha=2.0"]) == {"alpha": 2.0, "critic_encoder.units": [8]}
    path.write_text("alpha =")
    with pytest.raises(InvalidInput, match="not TOML"):
        settings(str(path), [])


@pytest.mark.parametrize(("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("0,2,5", [0, 2, 5]), ("7", [7]), ("0-1, 5", [0, 1, 5])])
def test_seeds_are_ranges_and_lists(text, seeds):
    assert seed_list(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-", "-1", "1,1", "0-99999999", "1.5"])
def test_seeds_that_make_no_sense_are_named(text):
    with pytest.raises(InvalidInput, match="--seeds"):
        seed_list(text)


def test_settings_given_in_python_become_plain_values_under_dotted_names():
    assert flat({"critic_encoder": {"units": (np.int64(8), 4)}, "alpha": np.float32(0.5)}) == {"critic_encoder.units": [8, 4], "alpha": 0.5}
    with pytest.raises(InvalidInput, match="alpha"):
        flat({"alpha": object()})


def test_import_offrl_loads_nothing_heavy():
    code = "import sys, offrl; offrl.__version__; print([m for m in ('torch', 'zmq', 'onnxruntime', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_client_loads_neither_torch_nor_onnxruntime():
    code = "import sys, offrl; offrl.Client, offrl.Job; print([m for m in ('torch', 'onnxruntime', 'gymnasium') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_can_be_had():
    for name in offrl.__all__:
        assert getattr(offrl, name) is not None
    assert set(offrl.__all__) <= set(dir(offrl))
    with pytest.raises(AttributeError, match="nothing"):
        offrl.nothing  # noqa: B018
