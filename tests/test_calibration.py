"""Calibration data: every form that it comes in, and what is said of bad ones."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from spa_graph import OptionError, analyze
from spa_graph.errors import SpaWarning
from spa_graph.graph import Graph
from spa_graph.runtime.calibration import Calibration, Preprocess, best_calibration, calibration
from spa_graph.runtime.calibration.wanted import wanted
from tests.models import CHAIN, network

IMAGE_AND_STATE = """
both (float[T,4] frames, float[1,1,4] state, int64 rate) => (float[T,3] y) <float[4,3] w>
{
    s = Squeeze(state)
    r = Cast<to = 1>(rate)
    a = Add(frames, s)
    b = Mul(a, r)
    y = MatMul(b, w)
}
"""
FIXED = """
fixed (float[2,4] x) => (float[2,3] y) <float[4,3] w> { y = MatMul(x, w) }
"""
TOKENS = """
tokens (int64[batch,length] ids, int64[batch,length] mask) => (float[batch,length,3] y)
<float[10,4] table, float[4,3] w>
{
    e = Gather(table, ids)
    m = Cast<to = 1>(mask)
    a = Unsqueeze(m, axis)
    b = Mul(e, a)
    y = MatMul(b, w)
}
""".replace("float[4,3] w>", "float[4,3] w, int64[1] axis = {2}>")


def graph_of(text: str) -> Graph:
    return analyze(network(text)).graph


@pytest.fixture(scope="module")
def chain_graph() -> Graph:
    """Takes `x`, float32 [N,3,8,8]."""
    return graph_of(CHAIN)


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def joined(batches: Calibration, name: str = "x") -> Any:
    return np.concatenate([feeds[name] for feeds in batches])


def assert_same_each_time(batches: Calibration) -> None:
    for first, second in itertools.zip_longest(batches, batches):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


# --- forms ---------------------------------------------------------------------------------------


def test_npz_by_name_and_alone(tmp_path: Path, chain_graph: Graph) -> None:
    data = images(40)
    for name in ("x", "arr_0"):  # what numpy calls one without a name
        np.savez_compressed(tmp_path / "c.npz", **{name: data})
        got = calibration(tmp_path / "c.npz", chain_graph)
        np.testing.assert_array_equal(joined(got), data)
        assert (got.source, got.kind, got.count) == ("c.npz (40 samples)", "data", 40)
        assert len(got) == len(list(got)) == 2
        assert_same_each_time(got)


def test_batches_of_several_inputs_may_have_several_names() -> None:
    """As Keras' exporter writes them; the length of a sequence is another free axis."""
    model = network("""net (float[unk1,4] x, float[unk2,7,5] s) => (float[o,3] y)
        <float[4,3] wa, float[5,3] wb>
        { a = MatMul(x, wa) b = MatMul(s, wb) m = ReduceMean<axes = [1], keepdims = 0>(b)
          y = Add(a, m) }""")
    graph, given = analyze(model).graph, ir.from_proto(model)
    assert [want.axis for want in wanted(graph, given)] == [0, 0]
    longer = [{"x": (n, 4), "s": (n + 6, 7, 5)} for n in (1, 2)]
    assert [want.axis for want in wanted(replace(graph, samples=longer), given)] == [0, None]
    batches = {"x": np.zeros((40, 4), np.float32), "s": np.zeros((40, 7, 5), np.float32)}
    assert {len(feeds["s"]) - len(feeds["x"]) for feeds in calibration(batches, graph)} == {0}


def test_an_array_of_another_name_is_refused(tmp_path: Path, chain_graph: Graph) -> None:
    np.savez(tmp_path / "c.npz", labels=images(4))
    with pytest.raises(OptionError, match="no input `labels`; its inputs are `x`"):
        calibration(tmp_path / "c.npz", chain_graph)


def test_npy_of_other_types_is_converted(tmp_path: Path, chain_graph: Graph) -> None:
    for dtype in (np.float64, np.uint8):
        data = np.abs(images(3) * 10).astype(dtype)
        np.save(tmp_path / "c.npy", data)
        stored = pytest.warns(SpaWarning, match="uint8 from 0 to")
        with stored if dtype == np.uint8 else nullcontext():
            (feeds,) = calibration(str(tmp_path / "c.npy"), chain_graph)
        assert feeds["x"].dtype == np.float32
        np.testing.assert_array_equal(feeds["x"], data.astype(np.float32))


def test_large_npz_is_mapped(
    tmp_path: Path, chain_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spa_graph.runtime.calibration.sources.MAPPED_FROM", 0)
    np.savez_compressed(tmp_path / "c.npz", x=images(5))
    got = calibration(tmp_path / "c.npz", chain_graph)
    np.testing.assert_array_equal(joined(got), images(5))


def test_more_samples_than_asked_are_a_seeded_choice(chain_graph: Graph) -> None:
    data = images(50)
    first, again, other = (
        joined(calibration(data, chain_graph, samples=10, seed=seed)) for seed in (0, 0, 1)
    )
    assert len(first) == 10
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("form", ["dict", "array", "tuple", "list of batches", "function"])
def test_python_objects(form: str, chain_graph: Graph) -> None:
    data = images(12)

    def function(samples: int) -> Any:
        assert samples == 256
        return ({"x": part} for part in np.split(data, 3))

    given = {
        "dict": {"x": data},
        "array": data,
        "tuple": (data,),
        "list of batches": [(part, "label") for part in np.split(data, 3)],
        "function": function,
    }[form]
    got = calibration(given, chain_graph)
    np.testing.assert_array_equal(joined(got), data)
    assert_same_each_time(got)


class Tensor:
    """Looks like a tensor of another framework."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def detach(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self._array


def test_loaders_give_tensors_and_labels(chain_graph: Graph) -> None:
    data = images(6)
    loader = [[Tensor(part), Tensor(np.zeros(len(part)))] for part in np.split(data, 2)]
    np.testing.assert_array_equal(joined(calibration(loader, chain_graph)), data)


def test_endless_generators_are_read_as_far_as_needed(chain_graph: Graph) -> None:
    def endless() -> Iterator[Any]:
        for seed in itertools.count():
            assert seed < 5
            yield images(1, seed)[0]

    got = calibration(endless, chain_graph, samples=5)
    assert got.count == 5
    assert_same_each_time(got)


def test_streams_beyond_memory_go_to_disk(
    chain_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spa_graph.runtime.calibration.pieces.IN_MEMORY", 1000)
    data = images(6)
    np.testing.assert_array_equal(joined(calibration(list(data), chain_graph)), data)


def test_functions_by_name(
    tmp_path: Path, chain_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_calibration.py").write_text(
        "import numpy as np\n"
        "def make(samples, seed):\n"
        "    return np.full((samples, 3, 8, 8), seed, np.float32)\n"
        "def fail():\n"
        "    raise KeyError('nowhere')\n"
    )
    monkeypatch.chdir(tmp_path)
    got = calibration("my_calibration:make", chain_graph, samples=7, seed=3)
    assert (joined(got) == 3).all()
    assert got.source == "my_calibration:make (7 samples)"
    for spec, says in (
        ("my_calibration:fail", "it failed: KeyError: 'nowhere'"),
        ("my_calibration:gone", "my_calibration has no `gone`"),
        ("not_a_module_at_all:f", "can't import not_a_module_at_all"),
    ):
        with pytest.raises(OptionError, match=says):
            calibration(spec, chain_graph)
    sys.modules.pop("my_calibration")


def test_state_and_scalar_go_with_every_batch() -> None:
    graph = graph_of(IMAGE_AND_STATE)
    frames = np.arange(300 * 4, dtype=np.float32).reshape(300, 4)
    state = np.ones((1, 1, 4), np.float32)
    given = {"frames": frames, "state": state, "rate": np.array(16000)}
    got = calibration(given, graph, samples=300)
    assert [len(feeds["frames"]) for feeds in got] == [256, 44]
    assert all(feeds["rate"] == 16000 for feeds in got)
    np.testing.assert_array_equal(joined(got, "frames"), frames)
    fit, held = got.split(0.75)  # a sequence is cut, never mixed
    np.testing.assert_array_equal(joined(fit, "frames"), frames[:225])
    np.testing.assert_array_equal(joined(held, "frames"), frames[225:])


def test_sequences_of_several_lengths_are_batched_by_length() -> None:
    graph = graph_of(TOKENS)
    lengths = [3, 5, 3, 5, 5]
    items = [{"ids": np.full(n, n), "mask": np.ones(n)} for n in lengths]
    got = calibration(items, graph)
    assert [feeds["ids"].shape for feeds in got] == [(2, 3), (3, 5)]
    assert all(feeds["mask"].dtype == np.int64 for feeds in got)


def test_fixed_batches_are_respected() -> None:
    graph = graph_of(FIXED)
    got = calibration(np.ones((7, 4), np.float32), graph)
    assert [feeds["x"].shape for feeds in got] == [(2, 4)] * 3
    stacked = calibration(np.ones((3, 2, 4), np.float32), graph)
    assert [feeds["x"].shape for feeds in stacked] == [(2, 4)] * 3
    alone = calibration(np.ones((1, 4), np.float32), graph)
    assert [feeds["x"].shape for feeds in alone] == [(2, 4)]
    says = (
        r"\[3, 2, 5\], but the network's input is float32\[2, 4\], with any number .* along axis 0"
    )
    with pytest.raises(OptionError, match=says):
        calibration(np.ones((3, 2, 5), np.float32), graph)
    with pytest.raises(OptionError, match="batch is fixed at 2"):
        calibration(np.ones((8, 4)), graph, batch=4)


def test_split_is_disjoint_and_seeded(chain_graph: Graph) -> None:
    data = images(20)
    got = calibration(data, chain_graph, batch=4)
    fit, held = got.split(0.8)
    assert (fit.count, held.count, fit.shared) == (16, 4, False)
    rows = {row.tobytes() for part in (fit, held) for row in joined(part)}
    assert rows == {row.tobytes() for row in data}
    np.testing.assert_array_equal(joined(held), joined(got.split(0.8)[1]))
    one = calibration(data[:1], chain_graph).split(0.8)
    assert all(part.shared and part.count == 1 for part in one)
    with pytest.raises(OptionError, match="between 0 and 1"):
        got.split(1.0)


# --- images --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of 16 x 32 pixels: red, green and blue on their left half, else black."""
    pillow = pytest.importorskip("PIL.Image")
    for number in range(3):
        pixels = np.zeros((16, 32, 3), np.uint8)
        pixels[:, :16, number] = 255
        (tmp_path / "photos" / str(number)).mkdir(parents=True)
        pillow.fromarray(pixels).save(tmp_path / "photos" / str(number) / "image.png")
    return tmp_path / "photos"


def test_images_default_to_the_inputs_size(folder: Path, chain_graph: Graph) -> None:
    got = calibration(folder, chain_graph)
    (feeds,) = got
    assert feeds["x"].shape == (3, 3, 8, 8)
    np.testing.assert_allclose(feeds["x"][0, :, 0, 0], [1, 0, 0])
    assert got.source == "photos/, resized to 8x8 and divided by 255 (3 samples)"


def test_preprocessing_steps(folder: Path, chain_graph: Graph) -> None:
    steps = "resize=8,crop=8,scale=1/255,mean=0.5:0.25:0,std=0.5:0.25:1,color=bgr"
    (feeds,) = calibration(folder, chain_graph, preprocess=steps)
    np.testing.assert_allclose(feeds["x"][0, :, 0, 0], [-1, -1, 1])  # blue, green, red
    np.testing.assert_allclose(feeds["x"][0, :, 0, 7], [-1, -1, 0])
    gray = Preprocess(resize=(8, 8), color="gray", scale=1.0)
    (feeds,) = calibration(folder, chain_graph, preprocess=gray)
    assert np.ptp(feeds["x"][1, :, 0, 0]) == 0 and feeds["x"][1, 0, 0, 0] > 100


def test_imagenet_preset() -> None:
    parsed = Preprocess.parse("imagenet,color=bgr")
    assert (parsed.resize, parsed.crop, parsed.color) == (256, 224, "bgr")


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ("rezise=8", "`rezise=8` is no step"),
        ("resize=8x8x8", "can't read `8x8x8` for resize; say 256 or 48x320"),
        ("std=0", "can't read `0` for std"),
        ("scale=1/0", "can't read `1/0` for scale"),
        ("mean=1:2", "gives 2 numbers, but input `x` has 3 channels"),
        ("resize=9", r"shape \[1, 3, 9, 18\], but the network's input is float32\[\?, 3, 8, 8\]"),
        ("color=cmyk", "say rgb, bgr or gray"),
    ],
)
def test_bad_steps(steps: str, says: str, folder: Path, chain_graph: Graph) -> None:
    with pytest.raises(OptionError, match=says):
        list(calibration(folder, chain_graph, preprocess=steps))


def test_bad_images(folder: Path, tmp_path: Path, chain_graph: Graph) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(OptionError, match=r"cannot read the image .*broken\.jpg"):
        list(calibration(folder, chain_graph))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="no images in"):
        calibration(tmp_path / "empty", chain_graph)
    with pytest.raises(OptionError, match=r"whose only input is an image.*`ids`"):
        calibration(folder, graph_of(TOKENS))
    with pytest.raises(OptionError, match="--preprocess is for a folder"):
        calibration("data-free", chain_graph, preprocess="imagenet")


# --- bad input -----------------------------------------------------------------------------------

BAD: list[tuple[Any, str]] = [
    ("gone.npz", r"no such file: gone\.npz"),
    ("gone", r"no such file: gone; give a \.npz"),
    ({"y": images(2)}, "no input `y`; its inputs are `x`"),
    ({"x": images(2)[:, :2]}, r"shape \[2, 2, 8, 8\], but the network's input is float32"),
    (np.zeros((2, 5)), r"shape \[2, 5\], but the network's input is float32\[\?, 3, 8, 8\]"),
    (np.zeros((8, 8, 3)), r"shape \[8, 8, 3\], but the network's input is float32\[\?, 3, 8, 8\]$"),
    (np.zeros((0, 3, 8, 8)), r"`x` is empty, its shape is \[0, 3, 8, 8\]"),
    (np.full((2, 3, 8, 8), np.nan), "`x` has NaN"),
    (np.full((2, 3, 8, 8), "a"), "`x` holds <U1"),
    (np.zeros((2, 3, 8, 8), complex), "`x` holds complex128"),
    ([], "it is empty"),
    ([images(2), np.zeros(3)], "batch 1"),
    (7, "a int is no calibration data"),
    (lambda: None, "a NoneType is no calibration data"),
    ([[[1, 2], [3]]], "no array|shape"),
]


@pytest.mark.parametrize(("given", "says"), BAD, ids=[says[:20] for _, says in BAD])
def test_bad_data(given: Any, says: str, chain_graph: Graph) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        list(calibration(given, chain_graph))
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path, chain_graph: Graph) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", x=images(2), labels=np.zeros(2))
    np.savez(tmp_path / "none.npz")
    (tmp_path / "notes.txt").write_text("hello")
    for name, says in (
        ("text.npz", "cannot read text.npz"),
        ("pickled.npy", "cannot read pickled.npy: it holds Python objects"),
        ("two.npz", "two.npz holds `labels`; name its arrays like the network's inputs: `x`"),
        ("none.npz", "none.npz holds no arrays"),
        ("notes.txt", r"notes.txt is not a \.npz"),
    ):
        with pytest.raises(OptionError, match=says):
            calibration(tmp_path / name, chain_graph)


def test_bad_integers() -> None:
    graph = graph_of(TOKENS)
    ids = np.ones((4, 6), int)
    with pytest.raises(OptionError, match="`ids` is float64 and has numbers that are no int64"):
        list(calibration({"ids": ids + 0.5, "mask": ids}, graph))
    with pytest.raises(OptionError, match="nothing for input `mask`"):
        calibration({"ids": ids}, graph)
    with pytest.raises(OptionError, match="one array, but the network has the inputs `ids`"):
        calibration(ids, graph)
    with pytest.raises(OptionError, match="`mask` has 3 samples, `ids` has 4; give equally many"):
        calibration({"ids": ids, "mask": ids[:3]}, graph)
    (feeds,) = calibration({"ids": ids.astype(float), "mask": ids > 0}, graph)
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}


# --- data-free -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["data-free", "data-free:gaussian", "data-free:uniform"])
@pytest.mark.parametrize("text", [CHAIN, TOKENS, IMAGE_AND_STATE, FIXED])
def test_data_free_feeds_any_network(method: str, text: str) -> None:
    graph = graph_of(text)
    got = calibration(method, graph, samples=10)
    assert (got.kind, got.count) == ("random tokens" if text is TOKENS else "data-free", 10)
    for feeds in got:
        for name in graph.inputs:
            assert feeds[name].dtype == graph.dtypes[name]
            assert feeds[name].shape[1:] == graph.samples[0][name][1:]
    assert_same_each_time(got)


def test_data_free_samples_do_not_depend_on_batches(chain_graph: Graph) -> None:
    whole, cut = (calibration("data-free", chain_graph, samples=9, batch=n) for n in (9, 2))
    np.testing.assert_array_equal(joined(whole), joined(cut))
    other = calibration("data-free", chain_graph, samples=9, seed=1)
    assert (joined(whole) != joined(other)).any()


def test_data_free_tokens_lie_in_the_table() -> None:
    (feeds,) = calibration("data-free", graph_of(TOKENS), samples=32)
    assert set(np.unique(feeds["ids"])) == set(range(10))
    assert (feeds["mask"] == 1).all()


def test_random_tokens_are_not_what_one_should_refit_to() -> None:
    positions = """net (int64[batch,length] position_ids) => (float[batch,length,3] y)
        <float[10,4] table, float[4,3] w> { e = Gather(table, position_ids) y = MatMul(e, w) }"""
    labelled = """net (float[N,3,8,8] x, int64[N] label) => (float[N,4,6,6] y)
        <float[4,3,3,3] w, float[10,4] table, int64[2] axes = {2, 3}>
        { h = Conv(x, w) e = Gather(table, label) u = Unsqueeze(e, axes) y = Add(h, u) }"""
    texts = (CHAIN, TOKENS, positions, labelled)
    said = [best_calibration(graph_of(text)) for text in texts]
    assert said == ["data-free", "FILE", "data-free", "data-free"]


def test_data_free_methods_are_named(chain_graph: Graph) -> None:
    with pytest.raises(OptionError, match="data-free:magic: choose among structured, gaussian"):
        calibration("data-free:magic", chain_graph)
