"""Modules in, smaller modules of the same class out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from spa_graph.errors import SpaWarning  # noqa: E402
from tests.torch.torch_networks import Block, Residual, Tied, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
IMAGE = (2, 3, 8, 8)


def image(seed: int = 0) -> Any:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(seed))


def tokens() -> Any:
    return torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_result_is_a_smaller_module_of_the_same_class_and_the_input_is_untouched() -> None:
    model = settled(Residual()).train()
    before, attributes = copy.deepcopy(model.state_dict()), copy.deepcopy(vars(model.stem[0]))
    pruned = spa.prune(model, image(), flops=0.5)
    assert type(pruned) is Residual and pruned is not model
    report = spa.report_of(pruned)
    assert 0.3 < report["ratio"]["flops"] <= 0.5
    assert report["verification"]["output_varied"]
    assert_same_state(model, before)
    assert model.training and vars(model.stem[0]).keys() == attributes.keys()
    assert pruned.eval()(image()).shape == (2, 10)
    assert pruned(image()[:1]).shape == (1, 10)


def test_layers_state_their_new_sizes() -> None:
    pruned = spa.prune(settled(Residual()), image(), ratio=0.5)
    a, depthwise = pruned.a[0], pruned.a[3]
    assert (a.in_channels, a.out_channels) == (8, 16)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (16, 16, 16)
    assert pruned.a[1].num_features == 16
    assert (pruned.norm.num_channels, pruned.norm.num_groups) == (8, 2)
    assert pruned.head.in_features == 8 * 4 and pruned.head.out_features == 10
    block = spa.prune(settled(Block()), torch.randn(2, 5, 32), ratio=0.5)
    assert block.attention.num_heads == 2 and block.attention.inner == 16
    assert block.mlp[0].out_features == 32


def test_flops_are_counted_as_by_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = settled(Residual())
    with FlopCounterMode(display=False) as counter:
        model(image()[:1])
    report = spa.report_of(spa.prune(model, image(), flops=0.5))
    assert report["before"]["flops"] == counter.get_total_flops()


def test_training_modes_types_gradients_and_hooks_survive() -> None:
    model = settled(Residual()).double().train()
    model.a[1].eval()
    model.stem[0].weight.requires_grad_(False)
    called = []
    model.head.register_forward_hook(lambda *_: called.append(True))
    pruned = spa.prune(model, image().double(), flops=0.6)
    assert pruned.training and not pruned.a[1].training and pruned.a[0].training
    assert not pruned.stem[0].weight.requires_grad and pruned.head.weight.requires_grad
    assert all(p.dtype == torch.float64 for p in pruned.parameters())
    called.clear()
    pruned(image().double()).sum().backward()
    assert called == [True]
    assert pruned.head.weight.grad.shape == pruned.head.weight.shape


def test_tied_weights_stay_tied() -> None:
    pruned = spa.prune(settled(Tied()), tokens(), params=0.6)
    assert pruned.head.weight is pruned.embedding.weight
    assert pruned(tokens()).shape == (2, 6, 50)
    assert (
        pruned.embedding.embedding_dim
        == pruned.head.in_features
        == pruned.blocks[0].norm1.normalized_shape[0]
    )


def test_both_owners_of_a_tied_weight_state_its_size() -> None:
    tokens = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    pruned = spa.prune(settled(Tied()), tokens, ratio=0.25, scope="residual")
    assert pruned.head.weight is pruned.embedding.weight
    assert (pruned.embedding.embedding_dim, pruned.head.in_features) == (24, 24)
    again = spa.apply_plan(settled(Tied()), spa.plan_of(pruned))
    assert (again.embedding.embedding_dim, again.head.in_features) == (24, 24)


class Chances(nn.Module):
    """Three numbers equal a width: the first is it, the others only happen to."""

    def __init__(self) -> None:
        super().__init__()
        self.width = self.limit = self.classes = 64
        self.first, self.second = nn.Linear(8, 64), nn.Linear(64, 64)

    def forward(self, x: Any, targets: Any = None) -> Any:
        x = self.second(self.first(x).relu().view(-1, self.width).clamp(max=self.limit))
        if targets is None:
            return x
        wanted = nn.functional.one_hot(targets, self.classes).float()
        return nn.functional.cross_entropy(x, wanted)


def test_attributes_that_need_not_change_stay() -> None:
    pruned = spa.prune(settled(Chances()), torch.randn(2, 8), flops=0.5)
    assert pruned.width < 64
    assert (pruned.limit, pruned.classes) == (64, 64)
    assert pruned(torch.randn(2, 8), torch.tensor([1, 60])) > 0


class Auxiliary(nn.Module):
    """A second head is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.aux = nn.Linear(8, 64), nn.Linear(64, 3), nn.Linear(64, 2)

    def forward(self, x: Any) -> Any:
        x = self.first(x).relu()
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_weights_that_the_inputs_do_not_reach_are_told() -> None:
    with pytest.warns(SpaWarning, match="don't reach 2 weights of Auxiliary.*such as `aux.weight`"):
        spa.prune(Auxiliary(), torch.randn(2, 8), flops=0.5)


@pytest.mark.parametrize(("size", "named"), [(4, True), (4, False), (1, False)])
def test_sizes_of_an_exported_program_stay_free(size: int, named: bool) -> None:
    model = settled(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)))
    shapes = {"input": {0: torch.export.Dim("batch")}} if named else None
    program = spa.prune(
        model, torch.randn(size, 8), flops=0.5, return_type="exported", dynamic_shapes=shapes
    )
    assert program.module()(torch.randn(7, 8)).shape == (7, 3)


def test_a_residual_width_can_be_cut_too() -> None:
    model = settled(Tied())
    pruned = spa.prune(model, tokens(), ratio=0.25, scope="residual")
    width = pruned.embedding.weight.shape[1]
    assert width == 24 and pruned.embedding.embedding_dim == 24
    assert pruned.blocks[0].norm1.normalized_shape == (24,)
    assert pruned.head.weight is pruned.embedding.weight


@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "bn-scale", "fpgm", "lamp"])
def test_criteria(criterion: str) -> None:
    pruned = spa.prune(settled(Residual()), image(), flops=0.5, criterion=criterion)
    assert spa.report_of(pruned)["ratio"]["flops"] <= 0.5


def test_channels_are_chosen_by_their_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[0].weight[[1, 4, 6, 7]] *= 1e-3
        model[2].weight[:, [1, 4, 6, 7]] *= 1e-3
    pruned = spa.prune(model, torch.randn(3, 6), ratio=0.5)
    assert torch.equal(pruned[0].weight, model[0].weight[[0, 2, 3, 5]])
    assert torch.equal(pruned[2].weight, model[2].weight[:, [0, 2, 3, 5]])
    assert spa.plan_of(pruned).to_json()["kept"]["0.weight"] == {"0": [0, 2, 3, 5]}


def test_excluded_modules_and_parameters_stay() -> None:
    model = settled(Residual())
    pruned = spa.prune(model, image(), ratio=0.5, exclude=["b.1", "squeeze.1.bias"])
    assert pruned.squeeze[1].out_channels == 8 and pruned.b[0].out_channels == 16
    assert pruned.a[0].out_channels == 16
    with pytest.raises(spa_graph.OptionError, match="exclude nothing: no parameter or module"):
        spa.prune(model, image(), ratio=0.5, exclude="nothing")


def test_limits() -> None:
    pruned = spa.prune(settled(Residual()), image(), flops=0.5, round_to=4, min_channels=6)
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels < 32:
            assert module.out_channels % 4 == 0 and module.out_channels >= 6


@pytest.mark.parametrize("axes", [(), (1,), (1, 2, 3)])
def test_an_axis_that_would_be_squeezed_keeps_two_elements(axes: tuple[int, ...]) -> None:
    """`squeeze` leaves axes of more elements alone, as long as they have more."""

    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Any) -> Any:
            x = self.conv(x).amax((2, 3), keepdim=True)
            x = x.squeeze(axes) if axes else x.squeeze()
            return self.head(x.flatten(1))

    pruned = spa.prune(settled(Squeezing()), image(), ratio=0.95)
    assert pruned.conv.out_channels == pruned.head.in_features == 2
    assert pruned(image(1)).shape == (2, 4)


def test_keyword_inputs_several_outputs_and_free_lengths() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Any, *, scale: Any, flag: bool = True) -> dict[str, Any]:
            y = self.first(x).relu() * scale
            return {"y": self.second(y), "length": x.shape[1], "none": None if flag else y}

    inputs = {"x": torch.randn(2, 5, 8), "scale": torch.rand(2, 5, 1)}
    pruned = spa.prune(settled(Pair()), inputs, flops=0.5)
    assert pruned(**inputs)["y"].shape == (2, 5, 4)
    free = {name: {1: torch.export.Dim("length", min=2, max=64)} for name in inputs}
    pruned = spa.prune(settled(Pair()), inputs, flops=0.5, dynamic_shapes=free)
    assert pruned(torch.randn(1, 9, 8), scale=torch.rand(1, 9, 1))["length"] == 9


def test_a_pruned_module_can_be_pruned_again_and_trained() -> None:
    first = spa.prune(settled(Residual()), image(), flops=0.7)
    second = spa.prune(first, image(), flops=0.7).train()
    before, after = (spa.report_of(second)[when]["flops"] for when in ("before", "after"))
    assert before == spa.report_of(first)["after"]["flops"] and after <= 0.7 * before
    optimizer = torch.optim.SGD(second.parameters(), 1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(second(image()).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_return_types() -> None:
    model = settled(Residual())
    graph = spa.prune(model, image(), flops=0.5, return_type="graph")
    assert isinstance(graph, torch.fx.GraphModule)
    module = spa.prune(model, image(), flops=0.5, return_type="module")
    for size in (1, 2, 3):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-4)
    exported = spa.prune(model, image(), flops=0.5, return_type="exported")
    assert isinstance(exported, torch.export.ExportedProgram)
    torch.testing.assert_close(exported.module()(image()), module(image()), rtol=1e-4, atol=1e-4)
    assert spa.plan_of(exported).to_json()["kept"] == spa.plan_of(graph).to_json()["kept"]
    with pytest.raises(spa_graph.OptionError, match="return_type file: choose among"):
        spa.prune(model, image(), flops=0.5, return_type="file")


@pytest.mark.parametrize("size", [1, 2])
def test_modules_of_a_fixed_batch(size: int) -> None:
    """torch.export takes `len(x)` for a constant."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Any) -> Any:
            return self.second(self.first(x).reshape(len(x), -1, 16).relu())

    x = torch.randn(size, 3, 8)
    pruned = spa.prune(settled(Fixed()), x, ratio=0.5, return_type="graph")
    assert pruned(x).shape == (size, 3, 4)
    with pytest.raises(spa_graph.RewriteError, match=r"test_prune.py:\d+ .*reshape"):
        spa.prune(settled(Fixed()), x, ratio=0.5, return_type="module")


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning"
)  # torch's own, on copying such a graph
def test_the_graph_of_an_exported_program() -> None:
    model = settled(Residual())
    free = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(model, (image(),), dynamic_shapes=free).module()
    pruned = spa.prune(exported, image(), flops=0.5, return_type="graph")
    assert isinstance(pruned, torch.fx.GraphModule)
    want = spa.prune(model, image(), flops=0.5)(image(3))
    torch.testing.assert_close(pruned(image(3)), want)


def test_a_traced_graph_module_is_a_module_too() -> None:
    traced = torch.fx.symbolic_trace(settled(Residual()))
    pruned = spa.prune(traced, image(), flops=0.5)
    assert isinstance(pruned, torch.fx.GraphModule)
    assert pruned(image()).shape == (2, 10)


def test_analyze_tells_groups_and_reasons() -> None:
    analysis = spa.analyze(settled(Residual()), image())
    names = [group.name for group in analysis.groups]
    assert "a.0.weight:0" in names
    assert analysis.coupling.frozen_reasons["head.weight:0"].startswith("is graph output")


def test_the_package_works_without_torch() -> None:
    import subprocess
    import sys

    line = "import sys, spa_graph; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", line], check=True)


def test_the_result_exports_to_onnx(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pruned = spa.prune(settled(Residual()), image(), flops=0.5)
    path = tmp_path / "small.onnx"
    torch.onnx.export(pruned, (image(),), path, dynamo=True, verbose=False)
    session = ort.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: image().numpy()})
    torch.testing.assert_close(torch.from_numpy(got), pruned(image()), rtol=1e-3, atol=1e-4)


class Scaled(nn.Module):
    """A module whose `forward` makes a constant with an element for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x) * torch.tensor([0.5, 0.25, 0.125, 0.06]))


def test_constants_that_forward_makes_need_a_graph() -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="register it as a buffer"):
        pruned = spa.prune(settled(Scaled()), x, ratio=0.5)
    assert isinstance(pruned, torch.fx.GraphModule)
    assert pruned(x).shape == (2, 3)
    with pytest.raises(spa_graph.RewriteError, match="constant with an element for each channel"):
        spa.prune(settled(Scaled()), x, ratio=0.5, return_type="module")
