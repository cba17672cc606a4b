"""What a run needs in memory, measured in a process of its own (Linux only)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from spa_graph.frontends.onnx import files
from spa_graph.models_zoo.builder import Builder
from spa_graph.runtime import heap

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of resident memory"
)
MEGABYTE = 10**6
PRUNE = """
import sys, spa_graph
from pathlib import Path

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
spa_graph.prune(sys.argv[1], flops=0.5, output=sys.argv[2])
print(status("VmHWM") - before)
"""


def peak_of_prune(model: Path, before: str = "") -> int:
    """Bytes that a run uses at most, beyond the idle process.

    Args:
        before: Python that is run first.
    """
    command = [sys.executable, "-c", before + PRUNE, str(model), str(model.with_name("small.onnx"))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_features_are_returned_as_soon_as_they_are_read(tmp_path: Path) -> None:
    """Of the features of 24 layers (679 MB at a batch of two), two are needed at a time."""
    net = Builder("wide")
    x = net.input("image", ("batch", 3, 512, 512))
    for number in range(12):
        # another size each time, so that no block fits where another was
        x = net.relu(net.conv(f"conv{number}", x, 3 if number == 0 else 7 + number, 8 + number, 1))
    model = net.finish(net.linear("head", net.pool(x), 19, 10), ("batch", 10))
    path = tmp_path / "wide.onnx"
    path.write_bytes(model.SerializeToString())
    largest = 2 * 19 * 512 * 512 * 4  # a batch of two
    assert peak_of_prune(path) < 2 * largest + 40 * MEGABYTE


def test_attention_that_is_larger_than_all_weights_is_run_in_pieces(tmp_path: Path) -> None:
    """Six scores of 38 MB for each element of a batch are needed at once, three by one operator."""
    net, tokens = Builder("scores"), 1536
    x = net.input("x", ("batch", tokens, 16))
    q, k, v = (net.reshape(net.linear(name, x, 16, 16), 0, 0, 4, 4) for name in "qkv")
    scores = net.op("MatMul", net.transpose(q, 0, 2, 1, 3), net.transpose(k, 0, 2, 3, 1))
    kinds = ("Tanh", "Sigmoid", "Relu", "Abs", "Erf")
    for each in [net.op(kind, scores) for kind in kinds]:
        scores = net.op("Add", scores, each)
    mixed = net.transpose(net.op("MatMul", scores, net.transpose(v, 0, 2, 1, 3)), 0, 2, 1, 3)
    y = net.linear("out", net.reshape(mixed, 0, 0, 16), 16, 16)
    path = tmp_path / "scores.onnx"
    path.write_bytes(net.finish(y, ("batch", tokens, 16)).SerializeToString())
    one = 4 * tokens * tokens * 4  # all heads
    room = "from spa_graph.passes import frugal; frugal.LEAST_ROOM = 1 << {}\n"
    # the pruned network, with half of the heads, is run at a batch of two: as one with all
    assert peak_of_prune(path, room.format(26)) < 3 * one + 80 * MEGABYTE
    assert peak_of_prune(path, room.format(30)) > 5 * one


def test_weights_in_many_files_do_not_stay_in_memory(tmp_path: Path) -> None:
    """PyTorch writes large networks with a file for each weight."""
    net = Builder("layers")
    x = net.input("x", ("batch", 512))
    for number in range(64):
        x = net.linear(f"layer{number}", x, 512, 512)
    path = tmp_path / "model.onnx"
    model = net.finish(x, ("batch", 512))
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=False)
    before = _mapped()
    weights = files.load(path).graph.initializers.values()
    read = sum(value.const_value.numpy().sum() != 0 for value in weights if value.const_value)
    assert read >= 64  # of 1 MB each
    assert _mapped() - before < 32 * MEGABYTE


def _mapped() -> int:
    """Bytes of files that are in this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile:"))


def test_the_heap_is_as_before_behind_a_run() -> None:
    """Freed memory is kept again: what is allocated next costs no new pages.

    In a process of its own, whose heap has no free blocks yet.
    """
    code = "from tests.test_memory import pages_of_three; print(*pages_of_three())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    within, behind = map(int, done.stdout.split())
    assert within > 500
    assert behind < 100


def pages_of_three() -> tuple[int, int]:
    """Fresh pages for 3 MB while blocks are returned, and behind it the second time."""
    with heap.returning(1):
        within = _fresh_pages()
    _fresh_pages()
    return within, _fresh_pages()


def _fresh_pages() -> int:
    """Pages that the system had to give for 3 MB; from 4 on numpy asks for large ones."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(3 * MEGABYTE, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
