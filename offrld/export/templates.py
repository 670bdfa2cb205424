"""Traced graphs of policies, kept between jobs.

Tracing a policy takes three seconds of processor time, most of it to load the exporter. Policies of one structure share one graph, so a
job looks for a graph that an earlier job traced. A file holds the graph without the values of parameters. It needs no more trust than a
graph of the same process: the parity check verifies every policy file, and a difference leads to a fresh trace.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError

from offrl import __version__
from offrl_store.disk import read_small, write_atomic

KEPT = 64  # files; the least recently used ones are removed
MOST_BYTES = 64 << 20  # limit of a file's size: it holds no parameters
NAMES = "names"  # metadata key: the initializers that are tensors of the module


@dataclass
class Template:
    """A traced module. Every export writes new weights into its initializers."""

    file: onnx.ModelProto  # outputs: the action and the next context
    scored: onnx.ModelProto | None  # outputs: these and the scores; only for the parity check
    names: list[str] = field(default_factory=list)  # initializers that are tensors of the module

    @classmethod
    def of(cls, model: onnx.ModelProto, names: list[str], *, scored: bool) -> Template:
        """Make a template from a traced graph; if ``scored``, its last output is the scores."""
        if not scored:
            return cls(model, None, names)
        file = copy.deepcopy(model)
        del file.graph.output[-1]
        drop_unused(file.graph)
        return cls(file, model, names)


class Templates:
    """The templates in a folder, which the first template creates. If the folder cannot be read or written, nothing is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, structure: str) -> Template | None:
        """Return the template for modules of that structure, with zeros as values; None if there is no sound one."""
        path = self._path(structure)
        try:
            model = onnx.load_model_from_string(read_small(path, MOST_BYTES))
            about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
            names, scored = [str(name) for name in about[NAMES]], bool(about["scored"])
            del model.metadata_props[:]
            template = Template.of(model, names, scored=scored)
            os.utime(path)
        except (OSError, DecodeError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return template

    def keep(self, structure: str, template: Template) -> None:
        """Write a template for later jobs; a failed write is not an error."""
        model = copy.deepcopy(template.scored or template.file)
        for tensor in model.graph.initializer:
            if tensor.name in template.names:
                tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {NAMES: json.dumps(template.names), "scored": json.dumps(template.scored is not None)})
        with contextlib.suppress(OSError):  # for example a full disk: the next job traces again
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path(structure), model.SerializeToString(), shared=True)
            self._prune()

    def _path(self, structure: str) -> Path:
        versions = (__version__, torch.__version__, onnx.__version__)
        return self._folder / f"{hashlib.sha256(repr((versions, structure)).encode()).hexdigest()[:32]}.onnx"

    def _prune(self) -> None:
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[KEPT:]:
            with contextlib.suppress(OSError):  # for example a folder: the others are removed all the same
                path.unlink(missing_ok=True)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes and initializers that no output needs."""
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            nodes.append(copy.deepcopy(node))
            needed.update(node.input)
    tensors = [copy.deepcopy(tensor) for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(tensors)
