"""One peer's federated averaging, in a process of its own that `omnifm.bench.cost.peers` starts.

In every peer a site does the same in a round (`Work`): the same network, cases, batches, optimiser steps and validation
scores before and after.  What differs is what carries a round.  Every driver records the time at which each round ends,
and the weights after the first and the last round.

A peer whose package is not installed ends with exit code `MISSING` and a line that names the package.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from omnifm.bench.inputs import site_names
from omnifm.config import Experiment, SiteConfig
from omnifm.federation.server import Federation
from omnifm.method import Tensors, weighted_mean
from omnifm.simulation import InProcess
from omnifm.site.stages import Site
from omnifm.site.training import Course, make_optimizer, seed_everything
from omnifm.update import Payload, Update

MISSING = 77
"""Exit code of a peer that is not installed."""


class Work:
    """The local rounds of one experiment, on weights that a peer hands in.

    Args:
        folder: holds experiment.json and data/<site>/dataset.json; the sites' state is written beside them.
        name: the peer's name, which keeps the states of peers apart.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.experiment = Experiment.from_json((folder / "experiment.json").read_text())
        torch.set_num_threads(self.experiment.train.num_threads)
        self.num_rounds = self.experiment.train.num_rounds
        self.data = folder / "data"
        self.state = folder / name
        self.names = site_names(self.data)
        self.configs = {n: SiteConfig(str(self.data / n), str(self.state / n), "cpu") for n in self.names}

    @property
    def sites(self) -> dict[str, Site]:
        """All sites, opened once and with the agreed specification."""
        return _opened(self)

    def model(self) -> nn.Module:
        """The initial network, the same in every peer."""
        site = self.sites[self.names[0]]
        assert site.spec is not None
        return site.build_model(site.spec)[0]

    def train(self, model: nn.Module, name: str, number: int) -> int:
        """Train the model for one local round, in place, as `Site.reply` does; returns the number of training cases."""
        site = self.sites[name]
        extra: Tensors = {}
        batches = site.loader.batches(seed_everything(self.experiment.seed, name, "train", number))
        site.score(model, extra, "validation")  # type: ignore[arg-type]
        model.train()
        train, num_cases = self.experiment.train, len(site.datalist.training)
        optimizer = make_optimizer(train, Course.of(train, num_cases, number, alone=False), model.parameters())
        for _ in range(self.experiment.train.local_epochs):
            for batch in batches():
                optimizer.zero_grad(set_to_none=True)
                loss = site.task.loss(model(batch, extra).prediction, batch)
                loss.backward()
                optimizer.step()
                loss.item()
        site.score(model, extra, "validation")  # type: ignore[arg-type]
        return len(site.datalist.training)


@dataclass
class Ends:
    """The end of each round (clock time), and the weights after the first."""

    stamps: list[float] = field(default_factory=list)
    first: Tensors = field(default_factory=dict)

    def note(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Record the end of a round with these weights."""
        self.stamps.append(time.time())
        self.first = self.first or {name: value.detach().clone() for name, value in weights.items()}


Ended = tuple[Ends, Mapping[str, torch.Tensor]]
"""What a driver returns: the ends of its rounds, and its last weights."""


class _Context(Protocol):
    """What we read of pfl-research's `CentralContext`."""

    current_central_iteration: int


@lru_cache(maxsize=1)
def _opened(work: Work) -> dict[str, Site]:
    """All sites of the work, after the stage `describe`."""
    sites = {name: Site(work.experiment, name, config) for name, config in work.configs.items()}
    told = {name: site.reply(Payload("describe", 0, "peers")).facts["data"] for name, site in sites.items()}
    spec = sites[work.names[0]].task.agree(told)
    for site in sites.values():
        site.build_model(spec)
    return sites


def plain(work: Work) -> Ended:
    """The shortest loop: load the weights, train each site, average."""
    model, ends = work.model(), Ends()
    shared: Tensors = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(1, work.num_rounds + 1):
        replies = []
        for name in work.names:
            model.load_state_dict(shared)
            count = work.train(model, name, number)
            kept = {key: value.clone() for key, value in model.state_dict().items()}
            replies.append(Update(name, "train", number, "", shared=kept, num_samples=count))
        shared = weighted_mean(shared, replies)
        ends.note(shared)
    return ends, shared


class _Timed(InProcess):
    """Our in-process transport, which also records the end of each round."""

    def __init__(self, work: Work) -> None:
        super().__init__(work.experiment, work.configs)
        self.ends = Ends()

    def closed(self, round_number: int, shared: Tensors) -> None:
        self.ends.note(shared)


def ours(work: Work) -> Ended:
    """The in-process driver of `omnifm.simulation`, with its checkpoints, hashes and checks."""
    transport = _Timed(work)
    federation = Federation(work.experiment, work.state / "server", work.state / "results", transport)
    summary = federation.run()
    if summary["status"] != "COMPLETE":
        raise ValueError(f"the run must be complete; got {summary['reason']}")
    return transport.ends, federation.shared


def pfl(work: Work) -> Ended:
    """pfl-research's simulated backend and FederatedAveraging, with our local round in place of its SGD."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    ends = Ends()

    class Averaging(FederatedAveraging):
        def train_one_user(
            self, initial_model_state: object, model: PyTorchModel, user_dataset: Dataset, central_context: _Context
        ) -> tuple[object, Metrics]:
            number = central_context.current_central_iteration + 1
            work.train(model.pytorch_model, user_dataset.user_id, number)
            return model.get_model_difference(initial_model_state), Metrics()

    class Stamp(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: object, model: PyTorchModel, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            ends.note(model.pytorch_model.state_dict())
            return False, Metrics()

    network = work.model()
    # pfl calls both before the first round only; they must be there.
    network.loss = lambda *_args, **_options: None  # type: ignore[assignment]
    network.metrics = lambda *_args, **_options: {}  # type: ignore[assignment]
    wrapped = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    counts = {name: len(site.datalist.training) for name, site in work.sites.items()}

    def of_user(name: str) -> Dataset:
        return Dataset(raw_data=[torch.zeros(counts[name], 1)], user_id=name)

    backend = SimulatedBackend(
        FederatedDataset(of_user, get_user_sampler("minimize_reuse", work.names)),
        None,
        postprocessors=[WeightByDatapoints()],
    )
    params = NNAlgorithmParams(
        central_num_iterations=work.num_rounds,
        evaluation_frequency=work.num_rounds + 1,
        train_cohort_size=len(work.names),
        val_cohort_size=None,
    )
    local = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=1.0, local_batch_size=None)
    Averaging().run(params, backend, wrapped, local, None, [Stamp()])
    return ends, network.state_dict()


@lru_cache(maxsize=1)
def _flower_work(folder: str) -> tuple[Work, nn.Module]:
    """The work and its network, opened once per worker process of Ray."""
    work = Work(Path(folder), "flower")
    return work, work.model()


def flower(work: Work) -> Ended:
    """Flower's simulation (Ray) with its FedAvg strategy and one worker, since every other peer has one process."""
    from flwr.client import Client, ClientApp, NumPyClient
    from flwr.common import Context, NDArrays, Scalar, ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    folder, names = str(work.data.parent), work.names
    ends = Ends()
    last: Tensors = {}
    initial = work.model().state_dict()

    class Trainer(NumPyClient):
        def __init__(self, name: str) -> None:
            self.name = name

        def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
            local, model = _flower_work(folder)
            model.load_state_dict(dict(zip(initial, map(torch.from_numpy, parameters), strict=True)))
            count = local.train(model, self.name, int(config["round"]))
            return [value.numpy() for value in model.state_dict().values()], count, {}

    def record(number: int, parameters: NDArrays, _config: dict[str, Scalar]) -> None:
        last.update(zip(initial, (torch.from_numpy(np.array(value)) for value in parameters), strict=True))
        if number:  # round 0 has the initial weights
            ends.note(last)

    def server(_context: Context) -> ServerAppComponents:
        strategy = FedAvg(
            fraction_fit=1.0,
            fraction_evaluate=0.0,
            min_fit_clients=len(names),
            min_available_clients=len(names),
            initial_parameters=ndarrays_to_parameters([value.numpy() for value in initial.values()]),
            on_fit_config_fn=lambda number: {"round": number},
            evaluate_fn=record,
        )
        return ServerAppComponents(config=ServerConfig(num_rounds=work.num_rounds), strategy=strategy)

    def client(context: Context) -> Client:
        return Trainer(names[int(context.node_config["partition-id"])]).to_client()

    one_worker = {"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(ServerApp(server_fn=server), ClientApp(client_fn=client), len(names), backend_config=one_worker)
    return ends, last


DRIVERS = {"plain": plain, "ours": ours, "pfl": pfl, "flower": flower}


def main() -> None:
    """Run `<driver> <folder>`; write <driver>.json, <driver>.safetensors and <driver>-first.safetensors into it."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    try:
        ends, weights = DRIVERS[name](Work(folder, name))
    except ModuleNotFoundError as error:
        print(f"{name}: the package {error.name} must be installed (pip install -e .[peers]); it is not")
        sys.exit(MISSING)
    for file, tensors in ((name, weights), (f"{name}-first", ends.first)):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{file}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps({"stamps": ends.stamps}))
