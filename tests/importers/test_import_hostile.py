"""Files made to do harm: none leads out of itself, starts a program, or takes more memory than what it holds."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offrl.errors import InvalidInput
from offrl_store.errors import OffrlError
from offrld.importers import frames, import_into, open_source
from offrld.importers.reading import MAX_METADATA_BYTES, parse_json

LIMIT_MB = 400  # of a process with NumPy, h5py and pyarrow: the largest of them took 160

MEASURED = """
import resource, shutil, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from offrl_store.errors import OffrlError
from offrld.importers import import_into
for path in sys.argv[2:]:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    try:
        import_into(path, sys.argv[1])
        print("taken")
    except OffrlError as error:
        print(type(error).__name__, error.message)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss counts what the process was before it was this program
print(int(status["VmHWM"].split()[0]) >> 10)
"""


def measured(paths, tmp_path):
    """What is said of each file, and the peak of memory in MB."""
    command = [sys.executable, "-c", MEASURED, tmp_path / "measured", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    return said, int(peak)


def refused(path, tmp_path, part):
    with pytest.raises(OffrlError, match=part) as caught:
        import_into(path, tmp_path / "store")
    assert caught.value.exit_status == 2 and caught.value.hint and "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


# --- HDF5 ---
@pytest.mark.parametrize("way", ["soft", "soft in a group", "relative soft", "soft of a soft", "external in a group", "data file"])
def test_no_link_of_hdf5_leads_out(tmp_path, write_h5, flat, way):
    secret = write_h5({"observations": flat["observations"] + 40, "inner/observations": flat["observations"] + 40}, "secret.hdf5")
    path = write_h5({**flat, "observations": None})
    with h5py.File(path, "a") as file:
        file["x"] = h5py.ExternalLink(secret, "/")
        if way == "soft":
            file["observations"] = h5py.SoftLink("/x/observations")
        elif way == "soft in a group":
            file["observations/arm"] = h5py.SoftLink("/x/inner/observations")
        elif way == "relative soft":
            file["observations"] = h5py.SoftLink("x/./observations")
        elif way == "soft of a soft":
            file["y"] = h5py.SoftLink("/x/inner")
            file["observations"] = h5py.SoftLink("y/observations")
        elif way == "external in a group":
            file["observations/arm"] = h5py.ExternalLink(secret, "/observations")
        else:
            file.create_dataset("observations/arm", (10, 3), np.float32, external=[(str(secret), 0, 120)])
    refused(path, tmp_path, "a link out of the file|keeps its data in another file")


def test_soft_links_inside_a_file_are_followed(tmp_path, write_h5, flat, same_episodes):
    path = write_h5({**flat, "observations": None, "kept/here": flat["observations"]})
    with h5py.File(path, "a") as file:
        file["kept/there"] = h5py.SoftLink("here")
        file["observations"] = h5py.SoftLink("/kept/there")
    same_episodes(import_into(path, tmp_path / "store").episodes, import_into(flat, tmp_path / "due").episodes)
    with h5py.File(path, "a") as file:
        del file["observations"]
        file["observations"], file["back"] = h5py.SoftLink("/back"), h5py.SoftLink("/observations")
    with pytest.raises(InvalidInput, match="a link out of the file, or to nothing"):
        open_source(path)


def test_filters_that_hdf5_would_load_from_a_library_are_refused(tmp_path, write_h5, flat):
    path = write_h5({**flat, "observations": None})
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", (10, 3), np.float32, chunks=(5, 3), compression=32008, allow_unknown_filter=True)
    refused(path, tmp_path, r"'observations' is compressed by the filter .* \(32008\), which is not read")
    path = write_h5({**flat, "observations": None})
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", data=flat["observations"], compression="lzf", shuffle=True, fletcher32=True)
    assert len(import_into(path, tmp_path / "store")) == 3


def test_metadata_of_a_source_is_bounded_and_what_is_left_out_is_said(tmp_path, write_h5, flat):
    attributes = {"big": "b" * 60_000, "note": "kept"} | {f"a{i}": "v" * 300 for i in range(100)}
    lines = []
    store = import_into(write_h5(flat, attributes=attributes), tmp_path / "store", message=lines.append)
    assert len(json.dumps(store.metadata)) <= MAX_METADATA_BYTES and store.metadata["source_attributes"]["note"] == "kept"
    assert "metadata of the source beyond 65,536 bytes is left out: source_attributes/big" in lines


# --- Memory ---
def bombs(tmp_path, flat):
    """Small files that say much."""

    def archive(name, key, header, blocks):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
            for each, value in flat.items():
                if each != key:
                    with made.open(f"{each}.npy", "w") as entry:
                        np.lib.format.write_array(entry, value)
            with made.open(f"{key}.npy", "w", force_zip64=True) as entry:
                entry.write(header)
                for _ in range(blocks):
                    entry.write(bytes(1 << 24))
        return tmp_path / name

    def header(descr, shape, fortran=False):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": fortran, "shape": shape})
        return file.getvalue()

    yield archive("text.npz", "env_id", header("<U1", (1 << 28,)), 64), "'env_id' cannot be read: it takes 1,073,741,824 bytes"
    yield archive("bounds.npz", "action_low", header("<f8", (1 << 27,)), 64), "'action_low' cannot be read: it takes 1,073,741,824 bytes"
    yield archive("header.npz", "env_id", b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little"), 64), "version"
    yield archive("order.npz", "observations", header("<f8", (10, 1 << 25), True), 160), "one row|Fortran order"
    path = tmp_path / "filled.hdf5"
    with h5py.File(path, "w") as file:
        for key, shape in {"observations": (1 << 32, 3), "actions": (1 << 32, 1), "rewards": (1 << 32,), "terminals": (1 << 32,)}.items():
            file.create_dataset(key, shape, np.float32, chunks=(1 << 16, *shape[1:]))
    yield path, "of which the file keeps 0"
    path = tmp_path / "texts.hdf5"
    with h5py.File(path, "w") as file:
        file.update(flat)
        texts = file.create_dataset("metadata/texts", (200,), h5py.string_dtype())
        texts[:] = "long " * 200_000
        file.attrs["texts"] = "text"
    yield path, "taken"
    path = tmp_path / "mask.hdf5"
    with h5py.File(path, "w") as file:
        demo = {"actions": np.zeros((20, 1), "f4"), "rewards": np.zeros(20), "dones": np.zeros(20, bool), "obs/x": np.zeros((20, 2), "f4")}
        file.update({f"data/demo_0/{key}": value for key, value in demo.items()})
        file.create_dataset("mask/train", (20_000_000,), "S64", chunks=(1 << 14,))
    yield path, "'train' of '/mask' holds 20,000,000 texts|of which the file keeps"
    rows = 200_000
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["e" * 1_000_000]))
    table = {"episode": words, "obs_0": np.zeros(rows), "action_0": np.linspace(0, 1, rows), "reward": np.zeros(rows)}
    pq.write_table(pa.table(table), tmp_path / "words.parquet")
    yield tmp_path / "words.parquet", "taken"


def test_small_files_do_not_unfold_in_memory(tmp_path, flat):
    made = list(bombs(tmp_path, flat))
    said, peak = measured([path for path, _ in made], tmp_path)
    for line, (path, part) in zip(said, made, strict=True):
        assert any(each in line for each in part.split("|")), (path.name, line)
    assert peak < LIMIT_MB


def test_archives_hold_plain_members_each_once(tmp_path, flat):
    for kind, part in {"twice": "holds 'rewards' twice", "lzma": "compressed by method 14", "bzip2": "compressed by method 12"}.items():
        method = {"lzma": zipfile.ZIP_LZMA, "bzip2": zipfile.ZIP_BZIP2}.get(kind, zipfile.ZIP_STORED)
        with zipfile.ZipFile(tmp_path / "data.npz", "w", method) as archive:
            for key in (*flat, "rewards") if kind == "twice" else flat:
                file = io.BytesIO()
                np.lib.format.write_array(file, flat[key])
                if kind == "twice":
                    with pytest.warns() if f"{key}.npy" in archive.namelist() else open(os.devnull):
                        archive.writestr(f"{key}.npy", file.getvalue())
                else:
                    archive.writestr(f"{key}.npy", file.getvalue())
        refused(tmp_path / "data.npz", tmp_path, part)
    np.savez(tmp_path / "data.npz", **flat)
    raw = bytearray((tmp_path / "data.npz").read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the list of members
    (tmp_path / "data.npz").write_bytes(raw)
    refused(tmp_path / "data.npz", tmp_path, "is encrypted")


# --- JSON ---
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested more than 64 deep"),
        ("[" * 1_000_000, "nested more than 64 deep"),
        ('{"a": Infinity}', "Infinity is not a JSON number"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": 1e999}', "1e999 is beyond"),
        ('{"a": 1' + "0" * 10_000 + "}", "a whole number of 10001 digits"),
        ('{"a": 1, "a": 2}', "has the key 'a' twice"),
        ('"' + "x" * (17 << 20) + '"', "is larger than 16,777,216 bytes"),
        (b"\xff\xfe", "is not JSON"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ('"' + '\\"' * 4_000_000, "is not JSON"),
    ],
    ids=range(12),
)
def test_json_is_bounded(text, part):
    with pytest.raises(InvalidInput, match=part) as caught:
        parse_json(text, "info.json")
    assert str(caught.value).startswith("info.json") and caught.value.hint
    assert parse_json('{"low": -Infinity, "text": "[[[[{{{{"}', "info.json", infinite=True) == {"low": float("-inf"), "text": "[[[[{{{{"}


# --- Pictures ---
def film(path, **kind):
    av = pytest.importorskip("av")
    with av.open(path, "w", **kind) as out:
        stream = out.add_stream("mpeg4" if str(path).endswith(".mp4") else "mpeg2video", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[..., 0] = 240
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path


@pytest.mark.parametrize("kind", ["hls", "concat", "concat url", "sdp", "empty"])
def test_a_video_that_names_another_file_is_refused(tmp_path, kind):
    secret = film(tmp_path / "secret.ts", format="mpegts")
    lists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:6.0,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {secret}\n",
        "concat url": f"concat:{secret}",
        "sdp": "v=0\nm=video 5000 RTP/AVP 96\n",
        "empty": "",
    }
    path = tmp_path / "film.mp4"
    path.write_text(lists[kind])
    column = frames.VideoFrames(path, (20, 3, 48, 64), 0.0, 10, "set", "camera")
    with pytest.raises(InvalidInput, match="camera cannot be decoded: it is neither MP4, Matroska, WebM nor AVI"):
        column[0:1]


def test_a_video_is_read_through_its_file_alone(tmp_path):
    column = frames.VideoFrames(film(tmp_path / "film.mp4"), (20, 3, 48, 64), 0.0, 10, "set", "camera")
    assert column[0:20].shape == (20, 3, 48, 64) and column[3:4][0, 0].mean() > 200
    column.close()
    other = frames.VideoFrames(tmp_path / "film.mp4", (20, 3, 24, 32), 0.0, 10, "set", "camera")
    with pytest.raises(InvalidInput, match=r"camera\[0\] is a frame of 48x64"):
        other[0:1]


@pytest.mark.parametrize("kind", ["EPS", "GIF", "BMP", "PPM", "text", "cut", "bomb"])
def test_images_are_of_four_formats(kind):
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    picture = image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8))
    if kind == "text":
        file.write(b"no image")
    elif kind == "bomb":
        image.new("L", (20_000, 20_000)).save(file, "PNG")
    else:
        picture.save(file, "PNG" if kind == "cut" else kind)
    content = file.getvalue()[: 200 if kind == "cut" else None]
    column = frames.EncodedImages(lambda start, stop: [content], (1, 3, 12, 10), "set", "camera")
    with pytest.raises(InvalidInput, match=r"camera\[0\] is (not an image|an image of 20000x20000)"):
        column[0:1]
    for good in ("PNG", "JPEG", "WEBP", "TIFF"):
        file = io.BytesIO()
        picture.save(file, good)
        content = file.getvalue()
        assert column[0:1].shape == (1, 3, 12, 10)
