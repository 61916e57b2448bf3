"""Compression inside Lightning's Trainer: a callback, and the module and the trainer as they are.

pip install lightning
python examples/lightning_callback.py runs/lightning
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sbs_deploy
import sbs_train


class Compress(pl.Callback):
    """Searches bits and channels in the first `steps` optimizer steps; fine-tuning is what comes after them."""

    def __init__(self, steps: int, calibration: Iterable[Any], **settings: Any) -> None:
        self.steps, self.calibration, self.settings = steps, list(calibration), settings
        self.search: sbs_train.Search | None = None
        self.plan: sbs_train.Plan | None = None
        self.state: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before Lightning makes the optimizers, which shall know the clip values, and before it loads a checkpoint."""
        if self.search is None:
            self.search = sbs_train.Search(
                pl_module, self.calibration[0], steps=self.steps, calibration=self.calibration, **self.settings
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.state is not None and self.search is not None:
            self.search.load_state_dict(self.state)
            self.plan = self.search.plan

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        assert self.search is not None
        if self.plan is None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.search.step(grad_scale=1.0 if scaler is None else scaler.get_scale())

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        assert self.search is not None
        if self.plan is None and trainer.global_step >= self.steps:
            self.plan = self.search.finish()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.search is None else self.search.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


class Digits(pl.LightningModule):
    """A classifier of 8x8 digits; nothing in it knows of compression."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(out: Path, **settings: Any) -> tuple[float, float]:
    """Train, compress and export; part of the images that the model and its engine know."""
    pl.seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    model, loader = Digits(), DataLoader(TensorDataset(x[:1400], y[:1400]), 64, shuffle=True)
    common: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **settings}
    pl.Trainer(max_epochs=6, **common).fit(model, loader)
    compress = Compress(120, [x[:64]], target="30x")
    pl.Trainer(max_epochs=12, callbacks=[compress], **common).fit(model, loader)
    assert compress.plan is not None
    run = sbs_deploy.export(model, compress.plan, out=out, golden=[x[1400:]])
    built = sbs_deploy.build(run, backend="onnxruntime", placement="plan")
    with torch.no_grad():
        known = float((model.eval()(x[1400:]).argmax(1) == y[1400:]).float().mean())
    with sbs_deploy.load(built.path) as engine:
        answers = torch.from_numpy(engine.run({"x": x[1400:].numpy()})["output"])
    print(f"{compress.plan.cost.reduction:.1f}x fewer BOPs; the model knows {100 * known:.1f} % of the images")
    return known, float((answers.argmax(1) == y[1400:]).float().mean())


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lightning")))
