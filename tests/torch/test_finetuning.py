"""Recovery: what a training loop of one's own would do, and no more."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim  # noqa: E402
from torch.nn import functional  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from tests.torch.test_attention import transformers  # noqa: E402
from tests.torch.torch_networks import Block, Residual, Tied, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def batches(count: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 8, 3, 8, 8, generator=generator)
    return [(each, each.mean((1, 2, 3)).gt(0).long()) for each in images]


def pruned(**options: Any) -> tuple[nn.Module, nn.Module]:
    model = settled(Residual())
    return model, spa.prune(model, batches()[0][0], **({"flops": 0.5} | options))


def test_it_is_adamw_with_a_cosine() -> None:
    """The same steps by hand give the same weights."""
    _, small = pruned()
    by_hand = copy.deepcopy(small).train()
    optimizer = optim.AdamW(by_hand.parameters(), 1e-3, weight_decay=0.01)
    wanted = []
    for number in range(8):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * number / 8)) / 2
        optimizer.zero_grad()
        images, labels = batches()[number % 4]
        wanted.append(functional.cross_entropy(by_hand(images), labels))
        wanted[-1].backward()
        optimizer.step()
    losses = spa.finetune(small, batches(), functional.cross_entropy, 2, lr=1e-3)
    means = [sum(map(float, (w.detach() for w in half))) / 4 for half in (wanted[:4], wanted[4:])]
    assert losses == pytest.approx(means, rel=1e-5)
    for got, want in zip(small.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert not small.training


def test_it_recovers_what_pruning_cost() -> None:
    whole, small = pruned(flops=0.7)
    loader = [(x, whole(x).detach()) for x, _ in batches()]

    def error(model: nn.Module) -> float:
        with torch.no_grad():
            return float(sum((model(x) - y).square().mean() for x, y in loader))

    before = error(small)
    losses = spa.finetune(small, loader, "mse", 30, lr=1e-2)
    assert losses[-1] < 0.5 * losses[0] and error(small) < 0.3 * before


def test_norms_and_biases_alone() -> None:
    _, small = pruned()
    small.a[1].weight.requires_grad_(False)
    before, asked = (
        copy.deepcopy(small.state_dict()),
        {name: p.requires_grad for name, p in small.named_parameters()},
    )
    spa.finetune(small, batches(), "cross-entropy", 1, train="norms-and-biases")
    for name, parameter in small.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (parameter.ndim == 1 and name != "a.1.weight"), name
        assert parameter.requires_grad == asked[name]
    with pytest.raises(spa_graph.OptionError, match=r"nothing to train \(norms-and-biases\)"):
        bare = nn.Linear(3, 2, bias=False)
        spa.finetune(
            bare, [(torch.ones(1, 3), torch.zeros(1, 2))], "mse", 1, train="norms-and-biases"
        )


def test_lora_is_merged_and_changes_weights_by_low_rank() -> None:
    transformers()  # which peft imports
    pytest.importorskip("peft")
    _, small = pruned()
    classes, names = [type(m) for m in small.modules()], [*small.state_dict()]
    before, asked = copy.deepcopy(small.state_dict()), [p.requires_grad for p in small.parameters()]
    spa.finetune(small, batches(), "cross-entropy", 2, train="lora", rank=2, lr=1e-2)
    assert [type(m) for m in small.modules()] == classes and [*small.state_dict()] == names
    assert [p.requires_grad for p in small.parameters()] == asked
    for name, module in small.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            change = (module.weight - before[f"{name}.weight"]).flatten(1)
            # of a 3 x 3 convolution the addition is low-rank as (outputs, 2) x (2, all the rest)
            assert 1 <= torch.linalg.matrix_rank(change.double(), rtol=1e-4) <= 2, name
            assert module.bias is None or torch.equal(module.bias, before[f"{name}.bias"])
    assert torch.equal(small.a[3].weight, before["a.3.weight"])  # depthwise


def test_lora_leaves_ties_and_what_attention_reads() -> None:
    transformers()
    pytest.importorskip("peft")
    tied = settled(Tied())
    tokens = torch.randint(0, 50, (4, 6))
    head = tied.head.weight.detach().clone()
    spa.finetune(tied, [(tokens, tokens)], "cross-entropy", 2, train="lora", rank=2)
    assert tied.head.weight is tied.embedding.weight and torch.equal(tied.head.weight, head)
    own = nn.MultiheadAttention
    block = settled(
        Block(attention=lambda width, heads: Attends(own(width, heads, batch_first=True)))
    )
    out = block.attention.inner.out_proj.weight.detach().clone()
    x = torch.randn(2, 5, 32)
    spa.finetune(block, [(x, x)], "mse", 1, train="lora", rank=2)
    assert torch.equal(block.attention.inner.out_proj.weight, out)


class Attends(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x, x, x, need_weights=False)[0]


# --- teachers ---------------------------------------------------------------------------------


def logit_loss(own: Any, wanted: Any, heat: float) -> Any:
    p, q = (torch.softmax(x / heat, -1) for x in (wanted, own))
    return heat**2 * (p * (p.log() - q.log())).sum(-1).mean()


@pytest.mark.parametrize(("weight", "heat"), [(0.5, 2.0), (1.0, 4.0)])
def test_a_teacher_of_logits_by_the_formula(weight: float, heat: float) -> None:
    whole, small = pruned()
    images, labels = batches()[0]
    teacher = spa.Teacher(whole, weight=weight, temperature=heat)
    student = copy.deepcopy(small).train()
    own = student(images)
    task = functional.cross_entropy(own, labels)
    wanted = (1 - weight) * task + weight * logit_loss(own, whole.eval()(images), heat)
    whole.train()
    (loss,) = spa.finetune(small, [(images, labels)], "cross-entropy", 1, teacher=teacher)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert whole.training and all(p.grad is None for p in whole.parameters())


def test_a_teacher_of_inner_layers_compares_the_channels_that_stayed() -> None:
    whole, small = pruned(ratio=0.5, flops=None)
    images, labels = batches()[0]
    teacher = spa.Teacher(whole, weight=0, features=["a.0", "head"], feature_weight=0.5)
    kept = torch.from_numpy(spa.plan_of(small).kept["a.0.weight"][0])
    student = copy.deepcopy(small).train()
    own_a, wanted_a = student.a[0](student.stem(images)), whole.a[0](whole.stem(images))[:, kept]
    own, wanted = student(images), whole(images)

    def distance(a: Any, b: Any) -> Any:
        return (a - b).square().mean() / b.square().mean()

    total = functional.cross_entropy(own, labels)
    total = total + 0.5 * (distance(own_a, wanted_a) + distance(own, wanted))
    (loss,) = spa.finetune(small, [(images, labels)], "cross-entropy", 1, teacher=teacher)
    assert loss == pytest.approx(float(total.detach()), rel=1e-4)


def test_a_teacher_of_values_and_a_loss_of_batches() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Any, y: Any = None) -> dict[str, Any]:
            logits = self.second(self.first(x).relu())
            return {"loss": None if y is None else (logits - y).square().mean(), "logits": logits}

    whole = settled(Named())
    small = spa.prune(whole, {"x": torch.randn(2, 4)}, ratio=0.5)
    batch = {"x": torch.randn(8, 4), "y": torch.randn(8, 2)}
    task = small(**batch)
    wanted = 0.5 * task["loss"] + 0.5 * functional.mse_loss(
        task["logits"], whole(**batch)["logits"]
    )
    (loss,) = spa.finetune(
        small, [batch], lambda model, given: model(**given)["loss"], 1,
        teacher=spa.Teacher(whole, compare="values"),
    )  # fmt: skip
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)


# --- precision and bad input ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_mixed_precision(kind: str) -> None:
    whole, small = pruned()
    seen = []
    small.a[0].register_forward_hook(lambda *given: seen.append(given[2].dtype))
    losses = spa.finetune(
        small, batches(), "cross-entropy", 3, amp=getattr(torch, kind), teacher=whole
    )
    assert set(seen) == {getattr(torch, kind)} and losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in small.parameters())


def test_bad_input_is_one_line() -> None:
    whole, small = pruned()
    small.train()
    state = copy.deepcopy(small.state_dict())
    images, labels = batches()[0]
    nan = [(images * float("nan"), labels)]
    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        ([], "cross-entropy", {}, spa_graph.OptionError, "yields no batch in epoch 1: is the"),
        (nan, "cross-entropy", {}, spa_graph.ModelError, "the loss of batch 0 is nan"),
        (batches(), "best", {}, spa_graph.OptionError, "unknown loss `best`"),
        (batches(), "l1", {"train": "some"}, spa_graph.OptionError, "train some: choose among"),
        (batches(), "l1", {"train": "lora", "rank": 0}, spa_graph.OptionError, "rank must be"),
        (batches(), "l1", {"lr": 0}, spa_graph.OptionError, "lr positive"),
        (batches(), lambda o, _: o, {}, spa_graph.OptionError, "one number per batch"),
        ([(images[:, :2], labels)], "cross-entropy", {}, spa_graph.ModelError, "fails on batch 0"),
        (batches(), "cross-entropy", {"teacher": spa.Teacher(whole, features=["x"])},
         spa_graph.OptionError, "no layer `x` to compare"),
        (batches(), "cross-entropy", {"teacher": spa.Teacher(whole, features=["stem"])},
         spa_graph.OptionError, "layer `stem` gives .*name a layer that wasn't pruned"),
    ]  # fmt: skip
    for loader, loss, options, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            spa.finetune(small, loader, loss, 1, **options)
        assert "\n" not in str(caught.value)
        assert small.training and not small._forward_hooks and not whole._forward_hooks
        assert all(p.requires_grad for p in small.parameters())
    parameters = dict(small.named_parameters())
    assert all(torch.equal(parameters[name], state[name]) for name in parameters)
    with pytest.raises(spa_graph.OptionError, match="no batch in epoch 2"):
        spa.finetune(small, iter(batches()), "cross-entropy", 2)
    for given, message in (({"weight": 2}, "between 0 and 1"), ({"compare": "x"}, "choose among")):
        with pytest.raises(spa_graph.OptionError, match=message):
            spa.Teacher(whole, **given)
