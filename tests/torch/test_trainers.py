"""Lightning and Hugging Face's Trainer, the real ones: the module shrinks while they train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from tests.torch.test_attention import torchvision, transformers  # noqa: E402
from tests.torch.torch_networks import Residual, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Images(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 8

    def __getitem__(self, place: int) -> Any:
        generator = torch.Generator().manual_seed(place)
        return torch.randn(3, 8, 8, generator=generator), place % 10


def lightning() -> Any:
    torchvision()  # which torchmetrics imports
    pytest.importorskip("lightning", reason="lightning is not installed")
    import lightning.pytorch as pl

    return pl


def lit(pl: Any) -> Any:
    class Lit(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = settled(Residual()).train()
            self.seen: list[Any] = []

        def training_step(self, batch: Any, _: int) -> Any:
            self.seen.append(sum(p.numel() for p in self.net.parameters()))
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Lit()


def trainer(pl: Any, callback: Any, **options: Any) -> Any:
    return pl.Trainer(
        callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **({"devices": 1} | options),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning(precision: str) -> None:
    pl = lightning()
    from spa_graph.torch.lightning import PruningCallback

    callback = PruningCallback(
        "net", torch.randn(2, 3, 8, 8), start=1, every=2, flops=0.4, steps=2, ramp="linear"
    )
    model = lit(pl)
    running = trainer(pl, callback, max_epochs=6, precision=precision)
    running.fit(model, DataLoader(Images(), batch_size=4))
    assert callback.schedule is not None and callback.schedule.done == 2
    assert callback.schedule.ratio <= 0.4
    sizes = model.seen[::2]  # two batches per epoch
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3] > sizes[4] == sizes[5]
    (optimizer,) = running.optimizers
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**6)
    weight = model.net.a[0].weight
    state = optimizer.state[weight]
    assert state["exp_avg"].shape == weight.shape and int(state["step"]) == 12


def test_lightning_refuses_what_cannot_work() -> None:
    pl = lightning()
    from spa_graph.torch.lightning import PruningCallback

    for name, options, message in (
        ("network", {"flops": 0.5}, "Lit has no module `network`"),
        ("net", {"flops": 1e-5}, "can't be reached"),
    ):
        callback = PruningCallback(name, torch.randn(2, 3, 8, 8), **options)
        model = lit(pl)
        with pytest.raises(spa_graph.SpaError, match=message):
            trainer(pl, callback, max_epochs=1).fit(model, DataLoader(Images(), batch_size=4))
        assert model.net.a[0].out_channels == 32
    with pytest.raises(spa_graph.OptionError, match="every at least 1"):
        PruningCallback("net", torch.randn(2, 3, 8, 8), every=0, flops=0.5)


DISTRIBUTED = """
import os
import pathlib
import warnings

import torch
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
from tests.torch.test_trainers import Images, lightning, lit, trainer

pl = lightning()
from spa_graph.torch.lightning import PruningCallback

options = dict(flops=0.5, criterion="random", seed=int(os.environ["RANK"]))
callback = PruningCallback("net", torch.randn(2, 3, 8, 8), **options)
model = lit(pl)
running = trainer(pl, callback, max_epochs=2, devices=2, strategy="ddp")
running.fit(model, DataLoader(Images(), batch_size=2))
numbers = [p.detach().double().sum().item() for p in model.net.parameters()]
path = pathlib.Path(__file__).with_name(os.environ["RANK"] + ".txt")
path.write_text(f"{callback.schedule.ratio} {numbers}")
"""


def test_lightning_in_two_processes(tmp_path: Path) -> None:
    """Each would choose other channels (the criterion is random, with another seed for each)."""
    lightning()
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*line, str(script)], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second  # they saw other data, so gradients were exchanged to the end
    assert 0.3 < float(first.split()[0]) <= 0.5


class Sentences(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 8

    def __getitem__(self, place: int) -> Any:
        tokens = torch.randint(3, 60, (12,), generator=torch.Generator().manual_seed(place))
        return {"input_ids": tokens, "labels": place % 2}


def bert(library: Any) -> Any:
    config = library.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, vocab_size=60,
    )  # fmt: skip
    return settled(library.BertForSequenceClassification(config))


def test_hugging_face(tmp_path: Path) -> None:
    library = transformers()
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from spa_graph.torch.transformers import PruningCallback

    model = bert(library)
    tokens = {"input_ids": torch.stack([Sentences()[i]["input_ids"] for i in range(2)])}
    callback = PruningCallback(tokens, start=1, flops=0.5, steps=2)
    arguments = library.TrainingArguments(
        output_dir=str(tmp_path / "out"), num_train_epochs=4, per_device_train_batch_size=4,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = library.Trainer(
        model=model, args=arguments, train_dataset=Sentences(), callbacks=[callback]
    )
    result = trainer.train()
    assert result.global_step == 8 and callback.schedule is not None
    assert callback.schedule.done == 2 and 0.3 < callback.schedule.ratio <= 0.5
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    assert weight.shape[0] < 64
    state = trainer.optimizer.state[weight]
    assert state["exp_avg"].shape == weight.shape and int(state["step"]) == 8
    spa.save(model, tmp_path / "small.pt")
    small = spa.load(tmp_path / "small.pt", bert(library)).eval()
    torch.testing.assert_close(small(**tokens).logits, model.eval()(**tokens).logits)
