"""An optimizer goes on with the pruned module: same momenta of what stays, same groups, same rates.

Wanted values are those of an optimizer whose state was sliced by hand, or that trained a small
network whose removed channels are dead, so that they never had any influence.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from tests.torch.torch_networks import Residual, Tied, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: optim.SGD(p, 0.01, momentum=0.9),
    "SGD-plain": lambda p: optim.SGD(p, 0.01),
    "Adam": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, 0.01),
    "Adagrad": lambda p: optim.Adagrad(p, 0.01),
    "Adadelta": lambda p: optim.Adadelta(p, 0.01),
    "Adamax": lambda p: optim.Adamax(p, 0.01),
    "NAdam": lambda p: optim.NAdam(p, 0.01),
    "RAdam": lambda p: optim.RAdam(p, 0.01),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: optim.Rprop(p, 0.01),
    "ASGD": lambda p: optim.ASGD(p, 0.01),
    "Adafactor": lambda p: optim.Adafactor(p, 0.01),
}
DEAD = [1, 4, 6, 7]
ALIVE = [0, 2, 3, 5]


def data() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=generator), torch.randn(16, 4, generator=generator)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


def wide_and_narrow() -> tuple[nn.Module, nn.Module]:
    """A network with dead channels, which get no gradients, and the same without them."""
    wide, narrow = network(8), network(4)
    with torch.no_grad():
        wide[0].weight[DEAD] = 0
        wide[0].bias[DEAD] = -1
        wide[2].weight[:, DEAD] = 0
        narrow[0].weight.copy_(wide[0].weight[ALIVE])
        narrow[0].bias.copy_(wide[0].bias[ALIVE])
        narrow[2].weight.copy_(wide[2].weight[:, ALIVE])
        narrow[2].bias.copy_(wide[2].bias)
    return wide, narrow


def train(model: nn.Module, optimizer: Any, steps: int, scheduler: Any = None) -> None:
    inputs, targets = data()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_training_goes_on_as_if_the_channels_had_never_been(name: str, in_place: bool) -> None:
    """Adafactor's moments are means over channels, so dead ones count in it: see below."""
    if name == "Adafactor":
        pytest.skip("its step depends on means over all channels")
    wide, narrow = wide_and_narrow()
    first, second = OPTIMIZERS[name](wide.parameters()), OPTIMIZERS[name](narrow.parameters())
    train(wide, first, 5)
    train(narrow, second, 5)
    pruned = spa.prune(wide, data()[0], ratio=0.5)
    assert spa.plan_of(pruned).kept["0.weight"][0].tolist() == ALIVE
    if in_place:
        held = [*wide.parameters()]
        spa.apply_plan_(wide, spa.plan_of(pruned), first)
        assert all(a is b for a, b in zip(held, wide.parameters(), strict=True))
        pruned = wide
    else:
        spa.follow(first, wide, pruned)
    train(pruned, first, 5)
    train(narrow, second, 5)
    for got, want in zip(pruned.parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_state_is_sliced_like_the_parameter(name: str) -> None:
    model = settled(Residual()).train()
    optimizer = OPTIMIZERS[name](model.parameters())
    image = torch.randn(4, 3, 8, 8)
    for _ in range(2):
        optimizer.zero_grad()
        model(image).square().mean().backward()
        optimizer.step()
    pruned = spa.prune(model, image, ratio=0.5)
    kept = spa.plan_of(pruned).kept
    before = {n: copy.deepcopy(optimizer.state[p]) for n, p in model.named_parameters()}
    spa.follow(optimizer, model, pruned)
    new = dict(pruned.named_parameters())
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in new.values()
    }
    assert optimizer.state.keys() <= set(new.values())
    cut = 0
    for key, parameter in new.items():
        for what, value in optimizer.state[parameter].items():
            want = before[key][what]
            if isinstance(want, torch.Tensor) and want.numel() > 1:
                for axis, index in kept.get(key, {}).items():
                    want = want if want.shape[axis] == 1 else want[(slice(None),) * axis + (index,)]
                cut += want.shape != before[key][what].shape
            assert (
                torch.equal(torch.as_tensor(value), torch.as_tensor(want))
                if want is not None
                else value is None
            )
    assert cut > 10 or name == "SGD-plain"
    optimizer.zero_grad()
    pruned(image).square().mean().backward()
    optimizer.step()


def test_groups_schedulers_and_other_modules_stay() -> None:
    model, other = settled(Residual()), nn.Linear(3, 2)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = optim.AdamW(
        [
            {"params": decayed, "lr": 0.1},
            {"params": [*rest, *other.parameters()], "weight_decay": 0},
        ],
        lr=0.01,
    )
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    image = torch.randn(2, 3, 8, 8)

    def step(net: nn.Module) -> None:
        (net(image).square().mean() + other(torch.ones(1, 3)).sum()).backward()
        optimizer.step()
        scheduler.step()

    step(model)
    pruned = spa.prune(model, image, flops=0.5)
    spa.follow(optimizer, model, pruned)
    rates = [group["lr"] for group in optimizer.param_groups]
    names = {p: n for n, p in pruned.named_parameters()}
    first, second = (group["params"] for group in optimizer.param_groups)
    assert [names[p] for p in first] == [n for n, p in pruned.named_parameters() if p.ndim > 1]
    assert second[-2] is other.weight and other.weight in optimizer.state
    assert optimizer.param_groups[1]["weight_decay"] == 0
    step(pruned)
    assert all(new < old for new, old in zip(scheduler.get_last_lr(), rates, strict=True))
    state = optimizer.state_dict()
    fresh = optim.AdamW([{"params": first}, {"params": second}])
    fresh.load_state_dict(state)  # checkpoints of it are as usual
    assert fresh.state[first[0]]["exp_avg"].shape == first[0].shape


def test_tied_weights_have_one_state() -> None:
    model = settled(Tied())
    optimizer = optim.Adam(model.parameters())
    tokens = torch.randint(0, 50, (2, 6))
    model(tokens).square().mean().backward()
    optimizer.step()
    momentum = optimizer.state[model.embedding.weight]["exp_avg"].clone()
    pruned = spa.prune(model, tokens, ratio=0.25, scope="residual")
    spa.follow(optimizer, model, pruned)
    kept = spa.plan_of(pruned).kept
    name = next(name for name in ("embedding.weight", "head.weight") if name in kept)
    assert pruned.head.weight is pruned.embedding.weight
    got = optimizer.state[pruned.head.weight]["exp_avg"]
    assert torch.equal(got, momentum[:, kept[name][1]])
    assert len(optimizer.param_groups[0]["params"]) == len([*pruned.parameters()])


def test_a_graph_can_be_followed() -> None:
    wide, _ = wide_and_narrow()
    optimizer = optim.SGD(wide.parameters(), 0.01, momentum=0.9)
    train(wide, optimizer, 2)
    graph = spa.prune(wide, data()[0], ratio=0.5, return_type="graph")
    spa.follow(optimizer, wide, graph)
    before = graph.get_parameter("0.weight").detach().clone()
    assert optimizer.state[graph.get_parameter("0.weight")]["momentum_buffer"].shape == (4, 6)
    train(graph, optimizer, 1)
    assert not torch.equal(graph.get_parameter("0.weight"), before)


def test_a_loss_that_is_still_alive_does_not_matter() -> None:
    """Its graph has nodes with the old shapes, which autograd would use again."""
    wide, narrow = wide_and_narrow()
    optimizer = optim.SGD(wide.parameters(), 0.01)
    inputs, targets = data()
    alive = nn.functional.mse_loss(wide(inputs), targets)
    alive.backward()
    spa.apply_plan_(wide, spa.plan_of(spa.prune(wide, inputs, ratio=0.5)), optimizer)
    assert all(p.grad is None or p is wide[2].bias for p in wide.parameters())
    wide[2].bias.grad = None
    for net in (wide, narrow):
        nn.functional.mse_loss(net(inputs), targets).backward()
    for got, want in zip(wide.parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-5, atol=1e-6)
    assert alive.isfinite()


@pytest.mark.parametrize("kind", ["LBFGS", "SGD"])
def test_what_cannot_be_sliced_is_refused_and_nothing_changes(kind: str) -> None:
    wide, _ = wide_and_narrow()
    inputs, _ = data()
    optimizer = getattr(optim, kind)(wide.parameters())
    message = "LBFGS keeps all parameters as one vector"
    if kind == "SGD":
        optimizer.state[wide[0].weight]["history"] = torch.zeros(99)
        message = r"keeps `history` of `0.weight` as \[99\], .*\[8, 6\]"
    pruned = spa.prune(wide, inputs, ratio=0.5)
    shapes = [p.shape for p in wide.parameters()]
    for call in (
        lambda: spa.follow(optimizer, wide, pruned),
        lambda: spa.apply_plan_(wide, spa.plan_of(pruned), optimizer),
    ):
        with pytest.raises(spa_graph.OptionError, match=message):
            call()
    assert [p.shape for p in wide.parameters()] == shapes
    assert optimizer.param_groups[0]["params"][0] is wide[0].weight
    with pytest.raises(spa_graph.OptionError, match="no result of"):
        spa.follow(optimizer, wide, network(4))
    with pytest.raises(spa_graph.OptionError, match="the plan is for another module"):
        spa.apply_plan_(network(9), spa.plan_of(pruned))


def test_steps_add_up_to_one_plan(tmp_path: Any) -> None:
    """A module that was pruned twice is saved with one plan for the whole module."""
    image = torch.randn(2, 3, 8, 8)
    model = settled(Residual())
    first = spa.prune(model, image, flops=0.7)
    second = spa.prune(first, image, flops=0.7)
    spa.save(second, tmp_path / "small.pt")
    small = spa.load(tmp_path / "small.pt", Residual()).eval()
    assert torch.equal(small(image), second(image))
    torch.testing.assert_close(
        spa.apply_plan(model, spa.plan_of(second))(image), second(image), rtol=0, atol=0
    )
    in_place = copy.deepcopy(model)
    spa.apply_plan_(in_place, spa.plan_of(first))
    again = spa.prune(in_place, image, flops=0.7)
    assert torch.equal(again(image), second(image))
    assert spa.plan_of(again).to_json() == spa.plan_of(second).to_json()


def test_after_a_layer_was_replaced_the_module_counts_as_whole() -> None:
    image = torch.randn(2, 3, 8, 8)
    first = spa.prune(settled(Residual()), image, ratio=0.5)
    first.head = nn.Linear(first.head.in_features, 3)
    second = spa.prune(first, image, ratio=0.25)
    assert spa.plan_of(second).model["shapes"]["a.0.weight"] == [16, 8, 1, 1]
    assert torch.equal(spa.apply_plan(first, spa.plan_of(second))(image), second(image))
