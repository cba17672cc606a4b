"""ONNX networks in torch: the operator matrix computes what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

import spa_graph  # noqa: E402
from spa_graph.errors import ModelError, OptionError  # noqa: E402
from spa_graph.models_zoo.demo import load_heldout, model_path  # noqa: E402
from spa_graph.passes.importance import CRITERIA, hutchinson  # noqa: E402
from spa_graph.runtime.inputs import random_inputs  # noqa: E402
from spa_graph.torch.onnx_gradients import batches  # noqa: E402
from spa_graph.torch.onnx_module import OnnxModule  # noqa: E402
from spa_graph.torch.onnx_operators import OPERATORS  # noqa: E402
from tests.conftest import Command, listing  # noqa: E402
from tests.models import CHAIN, network, outputs, stored  # noqa: E402
from tests.operators.harness import Row  # noqa: E402
from tests.operators.test_matrix import FAMILIES  # noqa: E402
from tests.test_importance_probes import TRANSPOSED  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROWS = [entry for family in FAMILIES for entry in family.ROWS if entry.runs]
FROM_GRADIENTS = sorted(name for name, make in CRITERIA.items() if make(0).needs_gradients)
NOT_YET = "can't be run in torch yet"


def run(model: OnnxModule, feeds: Any) -> list[Any]:
    found = model(**{name: torch.from_numpy(np.array(each)) for name, each in feeds.items()})
    return [each.detach().numpy() for each in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_operators_compute_what_onnx_runtime_computes(entry: Row) -> None:
    message = entry.model()
    try:
        model = OnnxModule(message)
        feeds = random_inputs(model._graph)
        got = run(model, feeds)
    except ModelError as error:
        if NOT_YET not in str(error):
            raise
        pytest.skip(str(error))
    for found, wanted in zip(got, outputs(message, feeds), strict=True):
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        scale = max(float(np.abs(wanted).max(initial=0)), 1.0)
        half = wanted.dtype == np.float16  # rounded to 11 bits, in another order
        rtol, atol = (4e-3, 2e-3) if half else (1e-4, 1e-5)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol * scale)


def test_what_torch_runs_covers_the_common_operators() -> None:
    """Those of the trained networks in models_zoo.trained, the demo and torch's exports of CNNs."""
    assert OPERATORS.keys() >= {
        "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat",
        "ConstantOfShape", "Conv", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
        "GreaterOrEqual", "HardSigmoid", "Identity", "LSTM", "LayerNormalization", "MatMul", "Max",
        "MaxPool", "Mul", "Pad", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMean",
        "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt",
        "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
    }  # fmt: skip


# --- the module ------------------------------------------------------------------------------


def test_weights_are_parameters_by_their_names_and_statistics_are_buffers() -> None:
    model = OnnxModule(model_path())
    names = {name for name, _ in model.named_parameters()}
    graph = spa_graph.analyze(model_path()).graph
    assert names <= graph.parameters.keys()
    norms = [o for o in graph.operators if o.op_type == "BatchNormalization"]
    assert norms and all({*o.inputs[1:3]} <= names for o in norms)
    buffers = {name for name, _ in model.named_buffers()}
    assert all({*o.inputs[3:5]} <= buffers for o in norms)


def test_it_goes_back_to_onnx_unchanged_and_trained() -> None:
    message = onnx.load(model_path())
    model = OnnxModule(message)
    feeds = random_inputs(model._graph)
    assert isinstance(model.to_onnx(), onnx.ModelProto)
    for name, array in stored(model.to_onnx()).items():
        np.testing.assert_array_equal(array, stored(message)[name])
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images, labels = load_heldout()
    x, target = torch.from_numpy(images[:64]), torch.from_numpy(labels[:64])
    before = torch.nn.functional.cross_entropy(model(x), target)
    before.backward()
    optimizer.step()
    trained = model.eval().to_onnx()
    onnx.checker.check_model(trained)
    assert trained.graph.input == message.graph.input
    assert trained.graph.output == message.graph.output
    assert [n.op_type for n in trained.graph.node] == [n.op_type for n in message.graph.node]
    (got,), (wanted,) = run(model, feeds), outputs(trained, feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    (old,) = outputs(message, feeds)
    assert np.abs(wanted - old).max() > 1e-2  # weights and statistics moved


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "the network takes x; given were "),
        ((torch.zeros(1, 3, 8, 8),) * 2, "takes x; given were x and 2 by position"),
        ((torch.zeros(1, 4, 8, 8),), r"Conv `.*` fails in torch: "),
    ],
)
def test_what_it_is_not_made_for_it_refuses(given: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        OnnxModule(network(CHAIN))(*given)


def test_an_operator_that_torch_does_not_run_is_named() -> None:
    text = """
    net (float[N,4] x) => (float[N,3] y) <float[4,3] w> { h = MatMul(x, w) y = ThresholdedRelu(h) }
    """
    with pytest.raises(ModelError, match=r"^ThresholdedRelu can't be run in torch yet"):
        OnnxModule(network(text))


def test_names_that_clash_with_modules_are_held_under_others() -> None:
    text = """
    net (float[N,4] x) => (float[N,4] y) <float[4,4] train, float[4,4] eval, float[4,4] forward>
    { h = MatMul(x, train) g = MatMul(h, eval) y = MatMul(g, forward) }
    """
    message = network(text)
    model = OnnxModule(message)
    feeds = random_inputs(model._graph)
    np.testing.assert_allclose(run(model, feeds)[0], outputs(message, feeds)[0], rtol=1e-5)
    assert len(list(model.parameters())) == 3


# --- gradients -------------------------------------------------------------------------------


def heldout(count: int = 64) -> dict[str, Any]:
    images, labels = load_heldout()
    return {"image": images[:count], "labels": labels[:count]}


@pytest.mark.parametrize("name", FROM_GRADIENTS)
def test_all_criteria_prune_onnx_networks(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(hutchinson, "PROBES", 2)
    monkeypatch.setattr(CRITERIA["synflow"](0).__class__, "rounds", 3)
    given = {} if name == "synflow" else {"data": heldout(16), "loss": "cross-entropy"}
    result = spa_graph.prune(model_path(), flops=0.6, criterion=name, **given)
    assert 0.5 < result.report["ratio"]["flops"] <= 0.6
    assert result.report["verification"]


def test_a_module_and_its_export_have_the_same_gradients(tmp_path: Path) -> None:
    """The scores of both frontends, group by group."""
    import spa_graph.torch as spa

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5),
    ).eval()  # fmt: skip
    x, target = torch.randn(12, 3, 8, 8), torch.arange(12) % 5
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        module, (x,), path, input_names=["x"], dynamic_shapes=({0: "n"},), optimize=False
    )
    how: dict[str, Any] = {"ratio": 0.5, "criterion": "taylor", "loss": "cross-entropy"}
    plan = spa.plan_of(spa.prune(module, x, data=[(x, target)], **how))
    result = spa_graph.prune(path, data={"x": x.numpy(), "t": target.numpy()}, **how)
    conv = plan.kept["3.weight"][0]
    assert 0 < len(conv) < 8
    np.testing.assert_array_equal(result.plan.kept["3.weight"][0], conv)


def test_iterables_of_batches_will_do() -> None:
    x = torch.randn(8, 3, 8, 8)
    pairs = [(x, torch.arange(8) % 5)]
    model = network(CHAIN)
    result = spa_graph.prune(model, flops=0.6, criterion="snip", data=pairs, loss="cross-entropy")
    assert result.report["options"]["data"] == "a list"
    assert result.report["ratio"]["flops"] <= 0.6


@pytest.mark.parametrize("name", FROM_GRADIENTS)
@pytest.mark.parametrize("groups", ["groups", "within"])
def test_grouped_transposed_convolutions_are_read(name: str, groups: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(hutchinson, "PROBES", 2)
    monkeypatch.setattr(CRITERIA["synflow"](0).__class__, "rounds", 3)
    model = network(TRANSPOSED)
    graph = spa_graph.analyze(model).graph
    (given,) = graph.inputs
    x = np.random.default_rng(0).standard_normal(tuple(e.nominal for e in graph.shapes[given]))
    (y,) = outputs(model, {given: x.astype(np.float32)})
    data = {given: x, "t": np.zeros((len(x), *y.shape[2:]), np.int64)}
    options = {"groups": groups, "data": data, "loss": "cross-entropy"}
    result = spa_graph.prune(model, ratio=0.5, criterion=name, **options)
    assert result.report["ratio"]["flops"] < 1


@pytest.mark.parametrize("name", ["taylor", "crop-it"])
def test_gradients_go_with_calibration(name: str) -> None:
    """The loss chooses within groups, distortion how many of each, and what is left is refitted."""
    x = np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32)
    data = {"x": x, "t": np.arange(48) % 5}
    given = {"criterion": name, "data": data, "loss": "cross-entropy", "calibrate": x}
    result = spa_graph.prune(network(CHAIN), flops=0.5, **given)
    assert result.report["ratio"]["flops"] <= 0.5
    assert result.report["calibration"]["probes"] and result.report["calibration"]["reconstruction"]


def test_with_data_the_criterion_is_taylor() -> None:
    x = torch.randn(8, 3, 8, 8)
    pairs = [(x, torch.arange(8) % 5)]
    with spa_graph.api.ready(network(CHAIN), data=pairs, loss="cross-entropy") as found:
        assert found.ranking.criterion.name == "taylor"
        kept = [found.prune(flops=r).report["ratio"]["flops"] for r in (0.8, 0.5)]
    assert 0.5 < kept[0] <= 0.8 and kept[1] <= 0.5


GRAPH = spa_graph.analyze(network(CHAIN)).graph
IMAGES = np.zeros((4, 3, 8, 8))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": IMAGES}, r"an array for each input \(x\) and one for the targets; it holds x"),
        ({"x": IMAGES, "a": IMAGES, "b": IMAGES}, "it holds a, b, x"),
        ({"y": np.zeros(4)}, "it holds y"),
        ({"x": IMAGES, "y": np.zeros(3)}, "different numbers of samples: x 4, y 3"),
    ],
)
def test_arrays_that_do_not_fit(arrays: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        batches(arrays, GRAPH)


def test_arrays_become_batches_of_the_right_types() -> None:
    found = batches({"x": np.zeros((70, 3, 8, 8)), "y": np.zeros(70, np.uint8)}, GRAPH)
    assert [len(target) for _, target in found] == [32, 32, 6]
    assert found[0][0]["x"].dtype == torch.float32 and found[0][1].dtype == torch.int64


# --- the command line ------------------------------------------------------------------------

FAST = ("--flops", 0.6, "--latency-seconds", 0)


@pytest.fixture
def train(chain: Path) -> Path:
    path = chain.with_name("train.npz")
    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(path, x=x, label=generator.integers(0, 5, 40))
    return path


def test_the_command_line_prunes_by_gradients(process: Command, chain: Path, train: Path) -> None:
    options = ("--criterion", "taylor", "--data", train.name, "--loss", "cross-entropy")
    ran = process("chain.onnx", *options, *FAST, "--report", "r.json")
    assert ran.code == 0, ran.err
    assert "verified" in ran.out
    assert {"chain.pruned.onnx", "r.json"} <= listing(chain.parent).keys()


def test_bytes_for_an_input_of_real_numbers(process: Command, chain: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    np.savez(chain.with_name("train.npz"), x=x, label=generator.integers(0, 5, 40))
    options = ("--data", "train.npz", "--finetune", 2)
    ran = process("chain.onnx", *options, *FAST, "--quiet")
    assert ran.code == 0, ran.err
    (line,) = ran.err.splitlines()
    assert line.startswith("spa-prune: --data: `x` is uint8 from ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--criterion", "taylor"), "`taylor` needs gradients: give --data and --loss"),
        (("--criterion", "taylor", "--data", "train.npz"), "--data needs --loss"),
        (("--criterion", "taylor", "--loss", "mse"), "--loss needs --data"),
        (
            ("--criterion", "taylor", "--data", "no.npz", "--loss", "mse"),
            "cannot read --data no",
        ),
        (("--criterion", "l1", "--data", "train.npz", "--loss", "mse"), "--data has no effect"),
        (
            ("--criterion", "l1", "--data", "train.npz", "--finetune", "1", "--samples", "9"),
            "--samples has no effect: --finetune trains on all of --data",
        ),
        (("--criterion", "taylor", "--data", "chain.onnx", "--loss", "mse"), "no .npz file"),
        (("--criterion", "taylor", "--data", "train.npz", "--loss", "best"), "unknown loss `best`"),
    ],
)
def test_bad_options(
    process: Command, chain: Path, train: Path, options: tuple[str, ...], said: str
) -> None:
    before = listing(chain.parent)
    ran = process("chain.onnx", *options, *FAST)
    assert ran.code == 2 and said in ran.err, ran.err
    assert "Traceback" not in ran.err and listing(chain.parent) == before
    assert train.exists()
