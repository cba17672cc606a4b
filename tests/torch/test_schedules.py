"""Pruning amid a user's own training: ramps, rewinding, penalties."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from tests.torch.torch_networks import Block, Residual, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def image() -> Any:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def flops(model: nn.Module) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(image()[:1])
    return int(counter.get_total_flops())


def train_once(model: nn.Module, optimizer: Any, extra: Any = None) -> None:
    optimizer.zero_grad()
    loss = model(image()).square().mean()
    (loss if extra is None else loss + extra()).backward()
    optimizer.step()


# --- ramps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ramp", "wanted"),
    [
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("exponential", [0.2**0.25, 0.2**0.5, 0.2**0.75, 0.2]),
        # Zhu & Gupta: sparsity s_f - s_f (1 - t/n)^3 with s_f = 0.8
        ("cubic", [1 - (0.8 - 0.8 * 0.75**3), 1 - (0.8 - 0.8 * 0.125), 1 - (0.8 - 0.8 / 64), 0.2]),
    ],
)
def test_ramps(ramp: Any, wanted: list[float]) -> None:
    assert spa.ratios(0.2, 4, ramp) == pytest.approx(wanted, rel=1e-12)
    assert spa.ratios(0.2, 1, ramp) == [0.2]


@pytest.mark.parametrize("ramp", ["linear", "exponential", "cubic"])
def test_a_schedule_prunes_in_place_between_steps(ramp: Any) -> None:
    model = settled(Residual())
    whole = flops(model)
    optimizer = optim.AdamW(model.parameters(), 1e-3)
    held = [*model.parameters()]
    schedule = spa.Schedule(
        model, image(), flops=0.4, steps=3, ramp=ramp, optimizer=optimizer, round_to=1
    )
    assert flops(model) == whole  # the trial changes nothing
    reached = []
    for _ in range(5):
        train_once(model.train(), optimizer)
        schedule.step()
        reached.append(flops(model.eval()) / whole)
        assert schedule.ratio == pytest.approx(reached[-1], rel=1e-12)
    for got, wanted in zip(reached, schedule.ratios, strict=False):
        assert 0.85 * wanted < got <= wanted
    assert reached[2:] == reached[2:3] * 3  # done
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    state = optimizer.state[model.a[0].weight]["exp_avg"]
    assert state.shape == model.a[0].weight.shape != (32, 16, 1, 1)
    small = spa.apply_plan(Residual(), spa.plan_of(model))
    small.load_state_dict(model.state_dict())
    assert torch.equal(small.eval()(image()), model(image()))


def test_a_schedule_goes_on_from_a_checkpoint() -> None:
    def start() -> tuple[Any, Any, Any]:
        model = settled(Residual())
        optimizer = optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        schedule = spa.Schedule(model, image(), params=0.4, steps=3, optimizer=optimizer)
        return model, optimizer, schedule

    def go_on(model: Any, optimizer: Any, schedule: Any) -> None:
        train_once(model, optimizer)
        schedule.step()

    first = start()
    go_on(*first)
    go_on(*first)
    checkpoint = copy.deepcopy([each.state_dict() for each in first])
    go_on(*first)
    second = start()
    second[2].load_state_dict(checkpoint[2])
    second[0].load_state_dict(checkpoint[0])
    second[1].load_state_dict(checkpoint[1])
    go_on(*second)
    assert second[2].ratio == first[2].ratio <= 0.4
    assert torch.equal(first[0](image()), second[0](image()))


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x).reshape(-1, 4, 8).relu())


def test_a_plan_of_several_steps_is_applied_step_by_step() -> None:
    model = settled(Residual())
    optimizer = optim.AdamW(model.parameters(), 1e-3)
    whole, x = copy.deepcopy(model), image()
    for share in (0.7, 0.5):
        train_once(model.train(), optimizer)
        pruned = spa.prune(model.eval(), x, flops=share)
        spa.apply_plan_(model, spa.plan_of(pruned), optimizer)
        torch.testing.assert_close(model(x), pruned(x))
    at_once = spa.apply_plan(whole, spa.plan_of(model))
    assert [p.shape for p in at_once.parameters()] == [p.shape for p in model.parameters()]
    other = spa.plan_of(spa.prune(whole, x, flops=0.3, criterion="random"))
    with pytest.raises(spa_graph.OptionError, match="the plan is for another module"):
        spa.apply_plan_(model, other)


def test_a_step_is_reported() -> None:
    model = settled(Residual())
    schedule = spa.Schedule(model, image(), flops=0.5)
    schedule.step()
    assert spa.report_of(model)["ratio"]["flops"] <= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "tailor"}, "unknown criterion `tailor`"),
        ({"criterion": "taylor"}, "needs gradients: give data and loss"),
        ({"criterion": "taylor", "data": [], "loss": "mse"}, "data yields no batch"),
        ({"criterion": "taylor", "data": [(1, 2)], "loss": "mode"}, "unknown loss `mode`"),
    ],
)
def test_options_are_checked_before_the_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(spa_graph.OptionError, match=message):
        spa.Schedule(settled(Residual()), image(), flops=0.5, **options)


def test_optimizers_are_checked_before_the_training() -> None:
    model = settled(Residual())
    for optimizer, message in (
        (optim.LBFGS(model.parameters()), "LBFGS keeps all parameters as one vector"),
        (optim.SGD(Residual().parameters(), 0.1), "has no parameter of this module"),
    ):
        with pytest.raises(spa_graph.OptionError, match=message):
            spa.Schedule(model, image(), flops=0.5, optimizer=optimizer)


def test_bad_schedules_are_refused_before_the_training() -> None:
    model = settled(Residual())
    for options, kind, message in (
        ({"flops": 0.5, "ramp": "steep"}, spa_graph.OptionError, "ramp steep: choose among linear"),
        ({"flops": 0.5, "steps": 0}, spa_graph.OptionError, "steps must be at least 1, not 0"),
        ({"flops": 1.5}, spa_graph.OptionError, "must lie between 0 and 1, not 1.5"),
        ({"ratio": 0.5}, spa_graph.OptionError, "needs one budget"),
        ({"flops": 0.5, "params": 0.5}, spa_graph.OptionError, "needs one budget"),
        ({"flops": 1e-5}, spa_graph.BudgetError, "can't be reached"),
    ):
        with pytest.raises(kind, match=message):
            spa.Schedule(model, image(), **options)
    with pytest.raises(spa_graph.RewriteError, match=r"test_schedules.py:\d+ .*reshape"):
        spa.Schedule(settled(HardCoded()), torch.randn(2, 6), params=0.9)


# --- rewinding --------------------------------------------------------------------------------


def test_rewinding_gives_what_pruning_the_early_network_by_the_plan_gives() -> None:
    model = settled(Residual())
    early = copy.deepcopy(model)
    optimizer = optim.SGD(model.parameters(), 1e-2)
    schedule = spa.Schedule(model, image(), flops=0.4, steps=2, optimizer=optimizer)
    for _ in range(2):
        train_once(model.train(), optimizer)
        schedule.step()
    wanted = spa.apply_plan(early, spa.plan_of(model)).state_dict()
    assert not torch.equal(model.head.weight, wanted["head.weight"])
    spa.rewind(model, early.state_dict())
    got = model.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    graph = spa.prune(early, image(), flops=0.5, return_type="graph")
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.add_(1)
    spa.rewind(graph, early.state_dict())
    torch.testing.assert_close(
        graph(image()), spa.apply_plan(early, spa.plan_of(graph), image())(image())
    )


def test_a_state_of_another_module_is_refused() -> None:
    pruned = spa.prune(settled(Residual()), image(), flops=0.5)
    before = copy.deepcopy(pruned.state_dict())
    with pytest.raises(spa_graph.OptionError, match="has no `"):
        spa.rewind(pruned, Block().state_dict())
    with pytest.raises(spa_graph.OptionError, match="is of another module: its `"):
        spa.rewind(pruned, pruned.state_dict())
    after = pruned.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


# --- penalties --------------------------------------------------------------------------------


def chain() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 2.0], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([2.0, 1.0, 0.0]))
        model[2].weight.copy_(torch.tensor([[4.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
    return model


def test_group_lasso_by_hand() -> None:
    """Channels hold 1 2 | 2 | 4 0, then 0 2 | 1 | 2 0, then zeros: norms 5, 3, 0, five elements."""
    model = chain()
    penalty = spa.group_penalty(model, torch.ones(1, 2), strength=0.1)
    value = penalty()
    torch.testing.assert_close(value, torch.tensor(0.1 * 5**0.5 * 8))
    value.backward()
    weight = model[0].weight
    torch.testing.assert_close(
        weight.grad, 0.1 * 5**0.5 * weight.detach() / torch.tensor([[5.0], [3.0], [1.0]])
    )
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_ridge_touches_what_a_plan_removes_alone() -> None:
    model = chain()
    plan = spa.plan_of(spa.prune(model, torch.ones(1, 2), ratio=0.34))
    assert plan.kept["0.weight"][0].tolist() == [0, 1]
    with torch.no_grad():
        model[0].weight[2] = torch.tensor([3.0, 4.0])
    penalty = spa.group_penalty(model, torch.ones(1, 2), kind="ridge", plan=plan, strength=2)
    torch.testing.assert_close(penalty(), torch.tensor(25.0))
    penalty().backward()
    assert model[0].weight.grad.tolist() == [[0, 0], [0, 0], [6, 8]]
    penalty.grow(3, at_most=4)
    assert penalty.strength == 4
    torch.testing.assert_close(penalty(), torch.tensor(50.0))


def test_shared_and_overlapping_weights_count_once_per_channel() -> None:
    """A square weight of a residual sum: element (i, j) goes with channel i and with channel j."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(2, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.last = nn.Linear(3, 1, bias=False)

        def forward(self, x: Any) -> Any:
            x = self.first(x)
            x = x + self.inner(x)
            return self.last(x + self.inner(x))

    model = settled(Square())
    w = [p.detach() for p in model.parameters()]
    squares = w[0].square().sum(1) + w[1].square().sum(0) + w[1].square().sum(1) + w[2][0].square()
    wanted = (9 * squares).sqrt().sum()  # 2 + 3 + 3 + 1 elements
    torch.testing.assert_close(spa.group_penalty(model, torch.ones(1, 2), strength=1)(), wanted)


def test_growing_regularisation_makes_removal_harmless() -> None:
    """What a plan removes does nothing any more once the penalty has grown."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    inputs = torch.randn(64, 6)
    targets = torch.sin(inputs[:, :4])
    plan = spa.plan_of(spa.prune(model, inputs, ratio=0.5))

    def harm() -> float:
        small = spa.apply_plan(model, plan)
        return float((small(inputs) - model(inputs)).square().mean().detach())

    before = harm()
    penalty = spa.group_penalty(model, inputs, kind="ridge", plan=plan, strength=0)
    optimizer = optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(inputs), targets) + penalty()).backward()
        optimizer.step()
        penalty.grow(1e-2, at_most=1)
    assert harm() < 1e-4 * before
    assert nn.functional.mse_loss(spa.apply_plan(model, plan)(inputs), targets) < 0.1


def test_lasso_shortens_all_channels_alike_until_they_are_empty() -> None:
    """Each step takes rate x sqrt(5) off each norm, however large it is."""
    model = chain()
    penalty = spa.group_penalty(model, torch.ones(1, 2), strength=1)
    optimizer = optim.SGD(model.parameters(), 0.1)
    for _ in range(13):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    norms = torch.cat([model[0].weight, model[0].bias[:, None], model[2].weight.T], 1).norm(dim=1)
    lost = 1.3 * 5**0.5
    torch.testing.assert_close(norms.detach(), torch.tensor([5 - lost, 3 - lost, 0]))


def test_penalties_of_the_wrong_module_are_refused() -> None:
    model = settled(Residual())
    penalty = spa.group_penalty(model, image())
    with pytest.raises(spa_graph.OptionError, match="kind l0: choose among lasso, ridge"):
        spa.group_penalty(model, image(), kind="l0")
    plan = spa.plan_of(spa.prune(model, image(), flops=0.5))
    with pytest.raises(spa_graph.OptionError, match="the plan is for another network"):
        spa.group_penalty(settled(Block()), torch.randn(2, 5, 32), plan=plan)
    spa.apply_plan_(model, plan)
    with pytest.raises(spa_graph.ModelError, match="pruned since, so make the penalty again"):
        penalty()
    frozen = settled(Residual()).requires_grad_(False)
    with pytest.raises(spa_graph.ModelError, match="nothing to penalise"):
        spa.group_penalty(frozen, image())
