"""Saving, loading and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from tests.torch.test_attention import HardCoded, Own  # noqa: E402
from tests.torch.torch_networks import Block, Residual, Tied, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def image() -> Any:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_saved_module_is_loaded_into_a_new_one(tmp_path: Path) -> None:
    pruned = spa.prune(settled(Residual()), image(), flops=0.5)
    spa.save(pruned, tmp_path / "small.pt")
    model = Residual().eval()
    small = spa.load(tmp_path / "small.pt", model)
    assert type(small) is Residual and small is not model
    assert model.a[0].out_channels == 32
    assert torch.equal(small(image()), pruned(image()))
    assert vars(small.norm)["num_groups"] == pruned.norm.num_groups
    spa.save(small, tmp_path / "again.pt")
    assert torch.equal(spa.load(tmp_path / "again.pt", Residual()).eval()(image()), small(image()))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["again.pt", "small.pt"]


def test_ties_and_attention_are_loaded(tmp_path: Path) -> None:
    for model, x in (
        (settled(Tied()), torch.randint(0, 50, (2, 6))),
        (settled(Block(attention=Own)), torch.randn(2, 5, 32)),
    ):
        pruned = spa.prune(model, x, ratio=0.5)
        spa.save(pruned, tmp_path / "small.pt")
        small = spa.load(tmp_path / "small.pt", model)
        assert torch.equal(small(x), pruned(x))
        assert [type(a) for a in small.modules()] == [type(b) for b in pruned.modules()]
        if isinstance(small, Tied):
            assert small.head.weight is small.embedding.weight


def test_a_saved_graph_is_loaded(tmp_path: Path) -> None:
    model, x = settled(HardCoded()), torch.randn(2, 5, 32)
    graph = spa.prune(model, x, ratio=0.5, return_type="graph")
    spa.save(graph, tmp_path / "small.pt")
    small = spa.load(tmp_path / "small.pt", HardCoded())
    assert isinstance(small, torch.fx.GraphModule)
    assert torch.equal(small(x), graph(x))


def test_a_plan_is_applied_with_and_without_inputs(tmp_path: Path) -> None:
    model = settled(Residual())
    pruned = spa.prune(model, image(), flops=0.5)
    spa.plan_of(pruned).save(tmp_path / "plan.json")
    plan = spa_graph.Plan.load(tmp_path / "plan.json")
    assert torch.equal(spa.apply_plan(model, plan)(image()), pruned(image()))
    assert torch.equal(spa.apply_plan(model, plan, image())(image()), pruned(image()))
    graph = spa.apply_plan(model, plan, image(), return_type="graph")
    torch.testing.assert_close(graph(image()), pruned(image()), rtol=1e-4, atol=1e-5)


def test_biases_that_a_refit_added_have_a_place(tmp_path: Path) -> None:
    layers = nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 8, 3, bias=False)
    model, x = settled(nn.Sequential(*layers)), torch.randn(32, 3, 8, 8)
    pruned = spa.prune(model, x[:2], flops=0.5, calibrate=x)
    assert pruned[2].bias is not None
    again = spa.apply_plan(model, spa.plan_of(pruned))
    again.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(again(x), pruned(x))
    spa.save(pruned, tmp_path / "small.pt")
    torch.testing.assert_close(spa.load(tmp_path / "small.pt", model)(x), pruned(x))
    with pytest.raises(spa_graph.OptionError, match="nowhere does not exist"):
        spa.save(pruned, tmp_path / "nowhere" / "small.pt")


def test_plans_for_another_module_are_rejected() -> None:
    plan = spa.plan_of(spa.prune(settled(Residual()), image(), flops=0.5))
    other = Residual()
    other.a[0] = nn.Conv2d(16, 24, 1, bias=False)
    with pytest.raises(spa_graph.OptionError, match=r"its `a.0.weight` is \[32, 16, 1, 1\]"):
        spa.apply_plan(other, plan)
    del plan.model["attributes"]
    with pytest.raises(spa_graph.OptionError, match="give example_inputs"):
        spa.apply_plan(Residual(), plan)
    del plan.kept["a.0.weight"]
    with pytest.raises(spa_graph.OptionError, match="breaks a coupling"):
        spa.apply_plan(Residual(), plan, image())


def test_files_that_are_none_of_ours(tmp_path: Path) -> None:
    torch.save(Residual().state_dict(), tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no archive")
    for name, message in (
        ("state.pt", "must have format 'spa-torch/1'"),
        ("text.pt", "no file of torch.save"),
        ("absent.pt", "cannot read"),
    ):
        with pytest.raises(spa_graph.OptionError, match=message):
            spa.load(tmp_path / name, Residual())
    with pytest.raises(spa_graph.OptionError, match="no result of"):
        spa.save(Residual(), tmp_path / "x.pt")
