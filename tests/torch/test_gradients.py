"""Gradients leave a module as it was, and say in one line what is wrong with data or loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import spa_graph.torch as spa  # noqa: E402
from spa_graph.errors import ModelError, OptionError, SpaError  # noqa: E402
from spa_graph.torch.objective import Objective, make_objective  # noqa: E402
from spa_graph.torch.relevance import Rules, attention, divided, halved, like  # noqa: E402
from spa_graph.torch.watching import watched  # noqa: E402
from tests.torch.test_gradient_criteria import Tokens, images, network, scores, tokens  # noqa: E402
from tests.torch.torch_networks import Block, Residual, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Dropping(nn.Module):
    """Batch statistics and dropout: state that running it in training mode would change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        self.head = nn.Linear(8 * 36, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


@pytest.mark.parametrize("name", ["snip", "grasp", "fisher", "taylor", "mini-llm", "relevance"])
def test_the_module_stays_as_it_was(name: str) -> None:
    torch.manual_seed(5)
    model = Dropping().train()
    model.body[1].eval()
    model.head.bias.requires_grad_(False)
    model(images()[0][0]).sum().backward()
    slopes = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    spa.prune(model, images()[0][0], ratio=0.5, criterion=name, data=images(), loss="cross-entropy")
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(each, before[n]) for n, each in model.state_dict().items())
    assert {n for n, m in model.named_modules() if not m.training} == {"body.1"}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"head.bias"}
    assert all(torch.equal(p.grad, slopes[n]) for n, p in model.named_parameters() if n in slopes)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == slopes.keys()


def test_training_mode_sees_the_statistics_of_the_batch_and_evaluation_the_stored_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    (x, target), *_ = images()
    for mode in (True, False):
        model.train(mode)
        again = copy.deepcopy(model)
        nn.functional.cross_entropy(again(x), target).backward()
        got = network(model, [(x, target)], "cross-entropy").gradient()["0.weight"]
        torch.testing.assert_close(torch.from_numpy(got), again[0].weight.grad)


def test_the_same_seed_gives_the_same_numbers_under_dropout() -> None:
    model = Dropping().train()
    first, second = (scores("snip", model, images(), "cross-entropy") for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("form", ["pair", "mapping", "arguments", "generator", "whole"])
def test_batches_come_in_several_forms(form: str) -> None:
    model = settled(Tokens())
    x, target = tokens()[0]

    def own(net: Any, batch: Any) -> Any:
        given = batch["x"] if isinstance(batch, dict) else batch.x
        labels = batch["y"] if isinstance(batch, dict) else batch.y
        return nn.functional.cross_entropy(net(given), labels)

    class Batch:
        def __init__(self) -> None:
            self.x, self.y = x, target

    data: Any = {
        "pair": [(x, target)],
        "mapping": [{"x": x, "y": target}],
        "arguments": [[({"x": x}), target]],
        "generator": ((each, target) for each in (x,)),
        "whole": [Batch()],
    }[form]
    loss: Any = own if form in ("mapping", "whole") else "cross-entropy"
    want = network(model, [(x, target)], "cross-entropy").gradient()
    got = network(model, data, loss, example=x).gradient()
    assert got.keys() == want.keys()
    assert all(got[name] == pytest.approx(want[name], rel=1e-6) for name in want)


def test_so_many_samples_are_looked_at_as_are_asked_for() -> None:
    def endless() -> Any:
        while True:
            yield images()[0]

    class Endless(torch.utils.data.IterableDataset):
        """Its loaders have no length."""

        def __iter__(self) -> Any:
            return endless()

    assert make_objective(endless(), "mse", 13).count == 18
    loader = torch.utils.data.DataLoader(Endless(), batch_size=None)
    assert make_objective(loader, "mse", 13).count == 18
    assert Objective(images(), nn.functional.mse_loss).count == 8


BAD: list[tuple[dict[str, Any], type[SpaError], str]] = [
    ({"data": []}, OptionError, "data yields no batch"),
    ({"data": iter(())}, OptionError, "data yields no batch"),
    (
        {"data": [torch.zeros(2, 3)], "loss": "mse"},
        OptionError,
        "named takes batches of .inputs, targets., not a Tensor",
    ),
    ({"data": 3}, OptionError, "data must yield batches.*a int doesn't"),
    ({"data": torch.zeros(4, 3, 8, 8)}, OptionError, "data must yield batches.*a Tensor doesn't"),
    ({"data": None}, OptionError, "^loss needs data"),
    ({"loss": None}, OptionError, "^data needs loss"),
    ({"data": None, "loss": None}, OptionError, "`taylor` needs gradients: give data and loss"),
    ({"loss": "best"}, OptionError, "unknown loss `best`; there are: bce, cross-entropy"),
    ({"loss": 3}, OptionError, "loss must be a function or a name, not a int"),
    ({"loss": lambda o, _: o}, OptionError, r"one number per batch.*not \[6, 10\]"),
    ({"loss": lambda *_: 1.0}, OptionError, "one number per batch.*not float"),
    ({"loss": lambda o, _: o.mean() * float("nan")}, ModelError, "the loss of batch 0 is nan"),
    ({"loss": lambda o, _: o.mean() / 0}, ModelError, "the loss of batch 0 is -?inf"),
    ({"loss": lambda o, _: o.detach().mean()}, OptionError, "has no gradient by any weight"),
    ({"loss": lambda _, t: t.nothing}, ModelError, r"fails on batch 0 at .*test_gradients.py"),
    ({"data": [(torch.zeros(2, 4), torch.zeros(2))]}, ModelError, "fails on batch 0"),
    (
        {"criterion": "relevance", "data": [(images()[0][0], torch.zeros(6, 10))]},
        OptionError,
        "explains the output for the right class",
    ),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD)
def test_bad_data_and_losses(given: dict[str, Any], kind: type[SpaError], message: str) -> None:
    options = {"criterion": "taylor", "data": images(), "loss": "cross-entropy"} | given
    with pytest.raises(kind, match=message) as caught:
        spa.prune(Residual(), images()[0][0], flops=0.5, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


# --- relevance -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "batch"), [(Residual, images()[0][0]), (Tokens, tokens()[0][0])])
def test_a_network_with_rules_computes_the_same(kind: Any, batch: Any) -> None:
    model = settled(kind())
    analysis = spa.analyze(model, batch)
    changed = watched(analysis.traced, analysis.reading, Rules(analysis.coupling))
    torch.testing.assert_close(changed(batch), model(batch), rtol=1e-4, atol=1e-5)


def assert_shared_out(source: Any, result: Any, wanted: Any) -> None:
    """The relevance of the result, for random slopes, is that of the operand."""
    slopes = torch.randn(result.shape, dtype=result.dtype)
    (slope,) = torch.autograd.grad((result * slopes).sum(), source)
    torch.testing.assert_close((source * slope).sum(), (wanted * slopes).sum())


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 4)])
def test_normalisations_keep_the_amount_of_relevance(norm: nn.Module) -> None:
    x = torch.randn(3, 4, 8, requires_grad=True)
    analysis = spa.analyze(nn.Sequential(nn.Linear(8, 8), norm, nn.Linear(8, 2)), x.detach())
    operator = next(o for o in analysis.graph.operators if "Normalization" in o.op_type)
    found = divided(operator, [x], lambda given: norm(given[0]))
    torch.testing.assert_close(found, norm(x))
    assert_shared_out(x, found, norm(x))


def test_products_and_attention_keep_the_amount_of_relevance() -> None:
    x, y = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(2))
    found = halved([x, y], lambda given: given[0] * given[1])
    torch.testing.assert_close(found, x * y)
    assert_shared_out(x, found, x * y / 2)
    sdpa = nn.functional.scaled_dot_product_attention
    found = attention([x, x, y], lambda given: sdpa(*given))
    torch.testing.assert_close(found, sdpa(x, x, y))
    assert_shared_out(y, found, sdpa(x, x, y))
    assert torch.autograd.grad(found.sum(), x, allow_unused=True) == (None,)


def test_no_relevance_passes_where_nothing_is() -> None:
    x = torch.tensor([0.0, 2.0], requires_grad=True)
    found = like(torch.tensor([3.0, 5.0]), x)
    torch.testing.assert_close(found, torch.tensor([3.0, 5.0]))
    (slope,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(slope * x, torch.tensor([0.0, 5.0]))


def test_blocks_have_gradients_of_second_order() -> None:
    x = torch.randn(2, 5, 32)
    found = network(settled(Block()), [(x, x)], "mse")
    assert all(abs(each).max() > 0 for each in [found.product(found.gradient())["mlp.0.weight"]])
