"""Calibration and reconstruction of modules: what `spa_graph.prune` does for ONNX networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from spa_graph.errors import ModelError, OptionError, VerificationError  # noqa: E402
from spa_graph.torch import twin  # noqa: E402
from tests.torch.test_parity import exported  # noqa: E402
from tests.torch.torch_networks import Block, Residual, Tied, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def mixed(*shape: int, seed: int = 0) -> Any:
    """Samples whose features go together, so that what is left can stand in for what is gone."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(shape[0], 2, generator=generator)
    ways = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(7))
    noise = 0.1 * torch.randn(*shape, generator=generator)
    return torch.einsum("nk,k...->n...", few, ways) + noise


def tokens(count: int, seed: int = 0) -> Any:
    return torch.randint(0, 50, (count, 6), generator=torch.Generator().manual_seed(seed))


class ResNet(nn.Module):
    """A residual network in the order of ResNet-18; its convolutions have no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv3, self.bn3 = nn.Conv2d(24, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        x = self.bn1(self.conv1(x)).relu()
        x = x + self.bn3(self.conv3(self.bn2(self.conv2(x)).relu()))
        return self.fc(x.relu().mean((2, 3)))


class Shuffled(nn.Module):
    """Halves, grouped convolution, channel shuffle: `chunk` and `view` tie what a graph frees."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        a, b = self.stem(x).relu().chunk(2, 1)
        x = torch.cat((a, self.body(b).relu()), 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


class TiedAndWhole(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tied()

    def forward(self, x: Any) -> Any:
        return self.inner(x)


class Biased(nn.Module):
    """Attention with a bias, as T5's: torch.onnx by itself can't export the `reshape` behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.bias = nn.Parameter(torch.randn(heads, 5, 5))

    def forward(self, x: Any) -> Any:
        sizes = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (each(x).view(sizes) for each in (self.query, self.key, self.value))
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[None])
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], -1))


NETWORKS: dict[str, Any] = {
    "resnet": (ResNet, lambda seed: mixed(64, 3, 6, 6, seed=seed)),
    "residual": (Residual, lambda seed: mixed(64, 3, 8, 8, seed=seed)),
    "transformer": (Block, lambda seed: mixed(64, 5, 32, seed=seed)),
    "biased": (lambda: Block(attention=Biased), lambda seed: mixed(64, 5, 32, seed=seed)),
    "tied": (TiedAndWhole, lambda seed: tokens(64, seed)),
    "shuffled": (Shuffled, lambda seed: mixed(64, 3, 6, 6, seed=seed)),
}


def network(name: str) -> tuple[nn.Module, Any]:
    build, data = NETWORKS[name]
    return settled(build()), data


def distance(module: nn.Module, other: nn.Module, x: Any) -> float:
    with torch.no_grad():
        return float((module(x) - other(x)).square().mean())


def state(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, before: dict[str, Any]) -> None:
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_refitted_module_is_nearer_to_the_original(name: str) -> None:
    """On samples that no fit has seen, and for the same channels."""
    model, data = network(name)
    before = state(model)
    options: dict[str, Any] = {"flops": 0.6, "calibrate": data(0), "round_to": 1}
    refitted = spa.prune(model, data(0)[:2], **options)
    sliced = spa.prune(model, data(0)[:2], reconstruct="none", **options)
    assert_same_state(model, before)
    assert type(refitted) is type(sliced) is type(model)
    kept = [spa.plan_of(each).to_json()["kept"] for each in (refitted, sliced)]
    assert kept[0] == kept[1]
    report = spa.report_of(refitted)
    assert report["ratio"]["flops"] <= 0.6
    counts = [report["calibration"][key] for key in ("fitted_to", "held_out", "judged_by")]
    assert counts == [42, 14, 8]
    assert report["calibration"]["criterion"] == "obspa"
    assert not report["calibration"]["reconstruction"]["undone"]
    assert distance(refitted, model, data(1)) < 0.7 * distance(sliced, model, data(1))


def test_module_and_export_are_refitted_alike() -> None:
    model, data = network("resnet")
    x = data(0)
    pruned = spa.prune(model, x[:2], flops=0.5, calibrate=x)
    result = spa_graph.prune(exported(model, x[:2]), flops=0.5, calibrate=x.numpy())
    assert spa.plan_of(pruned).to_json()["kept"] == result.plan.to_json()["kept"]
    stored = result.model.graph.initializers
    for name in ("conv2.weight", "conv3.weight", "fc.bias"):
        want = pruned.state_dict()[name].numpy()
        np.testing.assert_allclose(stored[name].const_value.numpy(), want, rtol=1e-5, atol=1e-6)


def test_three_dimensional_convolutions_without_bias() -> None:
    """onnxscript 0.7.2 gives them a bias of shape (channels, 2), which no runtime takes."""
    layers = [nn.Conv3d(3, 8, 3, bias=False), nn.BatchNorm3d(8), nn.ReLU()]
    layers += [nn.Conv3d(8, 8, 3, padding="same", bias=False), nn.ReLU()]
    layers += [nn.Conv3d(8, 16, 3, stride=2, padding=1, groups=2, bias=False), nn.ReLU()]
    model = settled(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 27, 4)))
    x = mixed(32, 3, 8, 8, 8)
    refitted = spa.prune(model, x[:2], flops=0.5, calibrate=x)
    plain = spa.apply_plan(model, spa.plan_of(refitted), x[:2])
    fresh = mixed(32, 3, 8, 8, 8, seed=1)
    assert distance(refitted, model, fresh) < 0.7 * distance(plain, model, fresh)


class OfMapping(nn.Module):
    """Its only argument is a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.more = nn.Linear(12, 32), nn.Linear(32, 4), nn.Linear(3, 32)

    def forward(self, batch: Any) -> Any:
        return self.second((self.first(batch["image"]) + self.more(batch["meta"])).relu())


@pytest.mark.parametrize("targets", [False, True])
def test_batches_that_are_one_argument(targets: bool) -> None:
    batch = {"image": mixed(32, 12), "meta": mixed(32, 3, seed=1), "label": torch.zeros(32)}
    taken = {name: batch[name][:4] for name in ("image", "meta")}
    model = settled(OfMapping())
    loader = [(batch, torch.zeros(32)) if targets else batch]
    pruned = spa.prune(model, (taken,), flops=0.5, calibrate=loader)
    assert spa.report_of(pruned)["calibration"]["source"].endswith("(32 samples)")
    with pytest.raises(ModelError, match=r"for one argument that is a mapping, give \(mapping,\)"):
        spa.prune(model, taken, flops=0.5)


def test_data_free() -> None:
    model, data = network("resnet")
    pruned = spa.prune(model, data(0)[:2], flops=0.5, calibrate="data-free", samples=64)
    assert "data-free" in spa.report_of(pruned)["calibration"]["source"]
    assert type(pruned) is ResNet


@pytest.mark.parametrize("criterion", ["wanda", "flap", "activation", "taylor"])
def test_criteria(criterion: str) -> None:
    model, data = network("resnet")
    x = data(0)
    gradients: dict[str, Any] = {}
    if criterion == "taylor":
        gradients = {"data": [(x, torch.arange(64) % 10)], "loss": "cross-entropy"}
    pruned = spa.prune(
        model, x[:2], flops=0.5, calibrate=x, criterion=criterion, round_to=1, **gradients
    )
    report = spa.report_of(pruned)
    assert report["options"]["criterion"] == criterion
    assert report["ratio"]["flops"] <= 0.5
    assert report["calibration"]["reconstruction"]["layers"]


@pytest.mark.parametrize("method", ["bias", "bn", "ls", "obspa"])
def test_methods(method: str) -> None:
    model, data = network("residual")
    pruned = spa.prune(model, data(0)[:2], flops=0.6, calibrate=data(0), reconstruct=method)
    found = spa.report_of(pruned)["calibration"]["reconstruction"]
    assert found["after"] <= found["before"]


def test_training_modes_and_statistics_stay() -> None:
    """Some BatchNorms train, some don't; the refit looks at the network as it is used."""
    model, data = network("resnet")
    whole = spa.prune(model, data(0)[:2], flops=0.5, calibrate=data(0))
    model.train()
    model.bn2.eval()
    before = state(model)
    pruned = spa.prune(model, data(0)[:2], flops=0.5, calibrate=data(0))
    assert_same_state(model, before)
    assert (pruned.training, pruned.bn1.training, pruned.bn2.training) == (True, True, False)
    assert_same_state(pruned, state(whole))


def test_tied_weights_stay_tied() -> None:
    model, data = network("tied")
    pruned = spa.prune(model, data(0)[:2], flops=0.6, calibrate=data(0))
    assert pruned.inner.head.weight is pruned.inner.embedding.weight


# --- biases that weren't there ----------------------------------------------------------------


def test_layers_without_a_bias_get_one(tmp_path: Path) -> None:
    """It is saved, loaded, trained by the optimizer that follows, and rewound to nothing."""
    model, data = network("resnet")
    early = state(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruned = spa.prune(model, data(0)[:2], flops=0.5, calibrate=data(0))
    added = pruned.state_dict().keys() - model.state_dict().keys()
    assert added == {"conv2.bias", "conv3.bias"}
    assert pruned.conv2.bias.abs().max() > 0
    spa.save(pruned, tmp_path / "small.pt")
    loaded = spa.load(tmp_path / "small.pt", ResNet()).eval()
    assert distance(loaded, pruned, data(1)) == 0
    spa.follow(optimizer, model, pruned)
    (group,) = optimizer.param_groups
    assert {id(each) for each in group["params"]} == {id(each) for each in pruned.parameters()}
    spa.rewind(pruned, early)
    assert not pruned.conv2.bias.any()
    assert torch.equal(pruned.fc.bias, early["fc.bias"])


def test_a_budget_of_parameters_has_no_room_for_biases() -> None:
    model, data = network("resnet")
    pruned = spa.prune(model, data(0)[:2], params=0.5, calibrate=data(0))
    assert pruned.state_dict().keys() == model.state_dict().keys()
    count = [sum(p.numel() for p in each.parameters()) for each in (pruned, model)]
    assert count[0] <= 0.5 * count[1]


@pytest.mark.parametrize("return_type", ["graph", "exported"])
def test_graphs_are_refitted_without_new_biases(return_type: str) -> None:
    model, data = network("resnet")
    options: dict[str, Any] = {"flops": 0.5, "calibrate": data(0), "return_type": return_type}
    found = [spa.prune(model, data(0)[:2], reconstruct=m, **options) for m in ("ls", "none")]
    graphs = [each.module() if return_type == "exported" else each for each in found]
    far = [distance(graph, model, data(1)[:2]) for graph in graphs]
    assert far[0] < 0.7 * far[1]
    assert "conv2.bias" not in dict(graphs[0].named_parameters())


# --- what people give -------------------------------------------------------------------------


class Named(nn.Module):
    """Two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, first: Any, second: Any) -> Any:
        return self.head((self.a(first) + self.b(second)).relu())


def test_forms_of_loaders() -> None:
    model = settled(Named())
    x, y = mixed(32, 6), mixed(32, 4)
    cut = [slice(0, 16), slice(16, 32)]
    forms: list[Any] = [
        {"first": x, "second": y},
        [(x[own], y[own]) for own in cut],
        [((x[own], y[own]), torch.zeros(16)) for own in cut],
        [{"first": x[own], "second": y[own], "labels": torch.zeros(16)} for own in cut],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16),
        lambda: {"first": x, "second": y},
    ]
    found = [
        spa.prune(model, (x[:2], y[:2]), flops=0.5, calibrate=form, round_to=1) for form in forms
    ]
    for other in found[1:]:
        for one, two in zip(found[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_loader_with_targets() -> None:
    model, data = network("resnet")
    x = data(0)
    loader = [(x[:32], torch.zeros(32)), (x[32:], torch.zeros(32))]
    pruned = spa.prune(model, x[:2], flops=0.5, calibrate=loader)
    assert spa.report_of(pruned)["calibration"]["held_out"] > 0


def test_schedules_rank_by_samples_but_refit_nothing() -> None:
    model, data = network("resnet")
    schedule = spa.Schedule(
        model, data(0)[:2], flops=0.5, steps=2, calibrate=data(0), criterion="wanda"
    )
    schedule.step()
    schedule.step()
    assert schedule.ratio <= 0.5
    assert model.conv2.bias is None
    with pytest.raises(OptionError, match="leave out reconstruct"):
        spa.Schedule(model, data(0)[:2], flops=0.5, calibrate=data(0), reconstruct="ls")


# --- refusals ---------------------------------------------------------------------------------


@torch.library.custom_op("spa_tests::third", mutates_args=())
def third(x: torch.Tensor) -> torch.Tensor:
    return x / 3


@third.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Any) -> Any:
        return third(self.b(self.a(x).relu()))


def test_what_cannot_be_exported_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="calibration runs Custom as ONNX, which torch") as error:
        spa.prune(settled(Custom()), torch.randn(2, 4), flops=0.5, calibrate=torch.randn(8, 4))
    assert "\n" not in str(error.value)
    assert "third" in str(error.value)


def test_bfloat16_is_refused() -> None:
    model, data = network("resnet")
    model = copy.deepcopy(model).to(torch.bfloat16)
    x = data(0).to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"has no torch.bfloat16.*prune model.float"):
        spa.prune(model, x[:2], flops=0.5, calibrate=x)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"criterion": "obspa"}, "add calibrate=loader"),
        ({"reconstruct": "ls"}, "needs calibration data: add calibrate"),
        ({"calibrate": []}, "it is empty"),
        ({"calibrate": torch.randn(4, 5, 6, 6)}, "has shape"),
        ({"calibrate": "absent.npz"}, "no such file"),
        ({"calibrate": torch.full((4, 3, 6, 6), float("nan"))}, "has NaN"),
        (
            {"calibrate": torch.randn(4, 3, 6, 6), "criterion": "snip", "allocation": "distortion",
             "data": [1], "loss": "mse"},
            "allocation distortion can't be had",
        ),
    ],
)  # fmt: skip
def test_bad_input(options: dict[str, Any], said: str) -> None:
    model, data = network("resnet")
    with pytest.raises(OptionError, match=said) as error:
        spa.prune(model, data(0)[:2], flops=0.5, **options)
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_what_was_refitted_is_not_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = network("resnet")
    monkeypatch.setattr(twin, "_take_over", lambda *_: None)
    with pytest.raises(VerificationError, match="the module is not what was refitted"):
        spa.prune(model, data(0)[:2], flops=0.5, calibrate=data(0))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(40, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.table(ids))))


def test_random_tokens_only_choose_channels() -> None:
    model, ids = Tagger(), torch.arange(12).reshape(2, 6)
    by_default = spa.report_of(spa.prune(model, (ids,), ratio=0.5, calibrate="data-free"))
    assert by_default["options"]["reconstruct"] == "none"
    assert "reconstruction" not in by_default["calibration"]
    asked = spa.prune(model, (ids,), ratio=0.5, calibrate="data-free", reconstruct="ls")
    assert spa.report_of(asked)["options"]["reconstruct"] == "ls"
    assert "reconstruction" in spa.report_of(asked)["calibration"]
