"""Stock NVFLARE FedAvg on our task: the client and the network that `omnifm bench cost` compares a FLARE round with.

No job of ours uses these classes and no kit allows them.  `omnifm.bench.cost.flare_round` writes a job for
`nvflare simulator` that names them by their class path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from monai.data import CacheDataset, DataLoader, Dataset
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from torch import Tensor, nn

from omnifm.config import Experiment
from omnifm.data.datalist import read_datalist
from omnifm.data.items import Item
from omnifm.plugins import load_task
from omnifm.site.loader import Prepare
from omnifm.task import Batch, Task
from omnifm.update import Score


class StockConfig(TypedDict):
    """The JSON file that both classes read."""

    experiment: dict[str, object]
    """Our experiment.json."""
    spec: dict[str, object]
    """What our sites agreed on before round 0."""
    data: str
    """Folder with one `<site>/dataset.json` per site."""


def read_config(file: str) -> StockConfig:
    """Read the file that `flare_round` wrote."""
    config: StockConfig = json.loads(Path(file).read_text())
    return config


def agreed_task(config: StockConfig) -> tuple[Experiment, Task]:
    """Our experiment, and its task with the agreed specification."""
    experiment = Experiment.from_json(json.dumps(config["experiment"]))
    task = load_task(experiment)
    task.configure(config["spec"])
    return experiment, task


class Network(nn.Module):
    """MONAI's UNet as our segmentation task builds it, for NVFLARE's PyTorch persistor.

    Args:
        config: path of a `StockConfig` file.
    """

    def __init__(self, config: str) -> None:
        super().__init__()
        unet = agreed_task(read_config(config))[1].backbone().unet
        assert isinstance(unet, nn.Module)
        self.unet = unet

    def forward(self, image: Tensor) -> Tensor:
        """Logits (b, class, *space) of images (b, channel, *space)."""
        logits: Tensor = self.unet(image)
        return logits


class StockTrainer(Executor):
    """A plain NVFLARE client that trains in the client's own process.

    It uses our cases, augmentation, loss and scores, so that only what carries a round differs from ours.

    Args:
        config: path of a `StockConfig` file.
    """

    def __init__(self, config: str) -> None:
        super().__init__()
        self.config = config
        self.net: Network | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Score, train and score again; reply with the weights."""
        if self.net is None:
            self._start(fl_ctx.get_identity_name())
        assert self.net is not None
        model = FLModelUtils.from_shareable(shareable)
        self.net.load_state_dict({name: torch.as_tensor(value) for name, value in model.params.items()})
        self._scores(self.net)
        self._train(self.net)
        dice = self._scores(self.net)["dice"].mean
        reply = FLModel(
            params_type=ParamsType.FULL,
            params={name: value.cpu().numpy() for name, value in self.net.state_dict().items()},
            metrics={"dice": dice or 0.0},
            meta={"NUM_STEPS_CURRENT_ROUND": len(self.training)},
        )
        return FLModelUtils.to_shareable(reply)

    def _start(self, site: str) -> None:
        """Read the site's cases once and keep them prepared in memory, as our own site does."""
        config = read_config(self.config)
        self.experiment, self.task = agreed_task(config)
        torch.set_num_threads(self.experiment.train.num_threads)
        self.net = Network(self.config)
        root = Path(config["data"]) / site
        datalist = read_datalist(root, required=self.task.required, seed=self.experiment.seed)
        self.prepare = Prepare(self.task, datalist.labels)
        self.training = Dataset(self._cached(datalist.training), self.task.augment())
        self.validation = self._cached(datalist.validation)

    def _cached(self, items: tuple[Item, ...]) -> CacheDataset:
        return CacheDataset([dict(item) for item in items], self.prepare, num_workers=None, progress=False)

    def _scores(self, net: Network) -> Mapping[str, Score]:
        """Scores of the validation split."""

        def forward(batch: Batch) -> Tensor:
            output: Tensor = net(batch["image"].as_subclass(Tensor))
            return output

        net.eval()
        with torch.no_grad():
            return self.task.summarise([self.task.score(forward, case) for case in self.validation])

    def _train(self, net: Network) -> None:
        """One local round."""
        train = self.experiment.train
        net.train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=train.lr, weight_decay=train.weight_decay)
        for _ in range(train.local_epochs):
            for loaded in DataLoader(self.training, batch_size=train.batch_size, shuffle=True, num_workers=0):
                batch = {name: value.as_subclass(Tensor) for name, value in loaded.items()}
                optimizer.zero_grad(set_to_none=True)
                loss = self.task.loss(net(batch["image"]), batch)
                loss.backward()
                optimizer.step()
                loss.item()
