"""The contract of a method: which tensors travel, and how the server combines them.  The defaults are FedAvg.

One class holds both halves of a federated algorithm, the server's and the site's, so that a method such as FedProx can
be read in one file from top to bottom.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from omnifm.records import Facts, Json
from omnifm.statistics import KEYS
from omnifm.task import Backbone, Batch, Task
from omnifm.update import Score, Update, clean

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Output:
    """What a model returns: the prediction and, from OmniModel, its spectral side.

    `token` (b d), `retrieved` (b k d), `chosen` (b k) rows of the shortlist.
    """

    prediction: Tensor
    token: Tensor | None = None
    retrieved: Tensor | None = None
    chosen: Tensor | None = None


class Model(nn.Module):
    """What a method trains.  `forward(batch, extra)` returns an `Output`; `extra` are the method's received tensors."""

    backbone: Backbone

    def forward(self, batch: Batch, extra: Tensors) -> Output:
        raise NotImplementedError

    def personal(self) -> Sequence[nn.Module | nn.Parameter]:
        """Modules and parameters that stay at the site when the head does."""
        return self.backbone.head()


@dataclass(frozen=True)
class Partition:
    """Which part each tensor of a model belongs to.

    `shared` travels between server and sites.  `personal` and `buffers` stay at the site.  `frozen` is never trained.
    The part follows from the module that owns the tensor, never from a substring of its name.  Integer buffers, such
    as batch normalisation's counter of steps, always belong to `buffers`.

    Attributes:
        sizes: dtype and shape by name of tensor.
    """

    shared: tuple[str, ...]
    personal: tuple[str, ...]
    buffers: tuple[str, ...]
    frozen: tuple[str, ...]
    sizes: dict[str, tuple[str, tuple[int, ...]]] = field(repr=False)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        personal: Sequence[nn.Module | nn.Parameter] = (),
        only: Sequence[nn.Module] | None = None,
        share_buffers: bool = True,
    ) -> Partition:
        """Divide a model.

        Args:
            personal: modules or parameters that stay at the site.
            only: if given, nothing outside these modules is shared.
            share_buffers: whether floating-point buffers of shared modules are averaged.
        """
        home = _owned(personal)
        public = None if only is None else _owned(only)
        parts: dict[str, list[str]] = {"shared": [], "personal": [], "buffers": [], "frozen": []}

        def stays(value: Tensor) -> bool:
            return id(value) in home or (public is not None and id(value) not in public)

        for name, parameter in model.named_parameters():
            kind = "frozen" if not parameter.requires_grad else "personal" if stays(parameter) else "shared"
            parts[kind].append(name)
        for name, buffer in model.named_buffers():
            travels = share_buffers and buffer.is_floating_point() and not stays(buffer)
            parts["shared" if travels else "buffers"].append(name)
        state = model.state_dict()
        kept = {name: [n for n in names if n in state] for name, names in parts.items()}
        sizes = {name: (str(state[name].dtype), tuple(state[name].shape)) for names in kept.values() for name in names}
        return cls(**{name: tuple(names) for name, names in kept.items()}, sizes=sizes)

    def hash(self) -> str:
        """SHA-256 of the names, dtypes and shapes of all parts.  Every reply carries it and the server compares it."""
        record = {part: {name: self.sizes[name] for name in getattr(self, part)} for part in self.parts()}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def count(self, part: str) -> int:
        """Number of values in 'shared', 'personal', 'buffers' or 'frozen'."""
        return sum(torch.Size(self.sizes[name][1]).numel() for name in getattr(self, part))

    def refuse(self, tensors: Tensors) -> str | None:
        """Return why these tensors are not exactly the shared part with finite values, or None if they are."""
        if missing := sorted(set(self.shared) - set(tensors)):
            return f"lacks {len(missing)} shared tensors, first {missing[0]!r}"
        if foreign := sorted(set(tensors) - set(self.shared)):
            return f"has {len(foreign)} tensors that are not shared, first {foreign[0]!r}"
        for name in self.shared:
            got = (str(tensors[name].dtype), tuple(tensors[name].shape))
            if got != self.sizes[name]:
                return f"{name!r} must be {self.sizes[name]}; got {got}"
            if not torch.isfinite(tensors[name]).all():
                return f"{name!r} must be finite; got NaN or infinity"
        return None

    def pick(self, model: nn.Module, part: str) -> Tensors:
        """Copy the current values of one part to the CPU."""
        state = model.state_dict()
        return {name: clean(state[name]) for name in getattr(self, part)}

    @staticmethod
    def parts() -> tuple[str, ...]:
        """Names of the parts."""
        return ("shared", "personal", "buffers", "frozen")


def _owned(owners: Sequence[nn.Module | nn.Parameter]) -> set[int]:
    found: set[int] = set()
    for owner in owners:
        if isinstance(owner, nn.Parameter):
            found.add(id(owner))
        else:
            found.update(id(value) for value in [*owner.parameters(), *owner.buffers()])
    return found


@dataclass
class LocalRound:
    """What a method sees at a site during one round.  Nothing in it leaves the site.

    Attributes:
        site, round, seed: name of the site, number of the round, and the seed of the round's random draws.
        num_epochs: number of passes over the training cases.
        model: the site's model, holding the received shared part and its own personal part.
        task, partition: the task, and which part each tensor of the model belongs to.
        received: shared tensors as received.
        extra: the method's own tensors, as received.
        memory: tensors that the method keeps at this site from round to round; they are written to its disk.
        batches: () -> one epoch of training batches on the device, in a new random order at each call.
        side_batches: a second stream of shuffled batches, for anything that a method learns besides the model (for
            example FedALA's mixing weights).  Its own random order leaves `batches` identical for every method.
        views: () -> (view (1, c, *space), patient, modality) of every training case, in order and without
            augmentation.  If dataset.json names no patient, all cases of one image count as one patient's.
        optimizer: makes the round's optimiser for the given parameters, with the job's schedule and clipping.
        accumulate: number of batches per optimisation step.
        autocast: the precision in which the model computes.
        scaler: keeps gradients of half precision from vanishing; without effect in other precisions.
        validate: () -> scores of the current model on the validation split.
        scratch: storage for the method's own use until the round ends.
    """

    site: str
    round: int
    seed: int
    num_epochs: int
    model: Model
    task: Task
    partition: Partition
    received: Tensors
    extra: Tensors
    memory: Tensors
    batches: Callable[[], Iterator[Batch]]
    side_batches: Callable[[], Iterator[Batch]]
    views: Callable[[], Iterator[tuple[Tensor, str, str]]]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    validate: Callable[[], dict[str, Score]]
    accumulate: int = 1
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    scratch: Json = field(default_factory=dict)


@dataclass(frozen=True)
class ServerView:
    """What the server knows about the federation when it calls a method; nothing of it is sent to a site.

    Attributes:
        round: 0 for the answers of the seed stage, else the number of the training round, from 1.
        num_rounds: number of rounds of the run.
        sizes: number of training cases of every site of the federation, present or not, after the limit on a site's
            weight (`federation.limits.capped`).  The same numbers come back as `Update.num_samples`.
        modalities: modalities that each site has described.
        labels: label names by label value that each site has described; empty for tasks without labels.
    """

    round: int = 0
    num_rounds: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    modalities: Mapping[str, frozenset[str]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class Method:
    """A federated algorithm; subclasses override what differs from FedAvg (McMahan et al. 2017, arXiv 1602.05629)."""

    Settings: ClassVar[type]
    when: ClassVar[str] = ""
    """When to choose the method, in one sentence; `omnifm methods` shows it.  Every method has its own."""
    travels: ClassVar[str] = ""
    """What a site and the server send each other, in one sentence."""
    seeds: ClassVar[bool] = False
    """Whether the server asks every site for `seed` before the first training round."""
    sends: ClassVar[frozenset[str]] = frozenset()
    """Names of the tensors that the method may put into `Update.extra`.  Site and server refuse any other name."""
    says: ClassVar[frozenset[str]] = frozenset()
    """Keys that the method may put into `Update.facts`.  Site and server refuse any other key."""
    judges: ClassVar[frozenset[str]] = frozenset()
    """Names among `sends` that the method checks itself, in `judge`.  The size of any other tensor that a site sends
    after training is limited by the size of the other sites', as that of the weights is."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    # Both ends.
    def build(self, task: Task) -> Model:
        """Build the model from the current random state; the server and every site build the same."""
        raise NotImplementedError

    def partition(self, model: Model) -> Partition:
        """Decide which tensors are shared; all of them by default."""
        return Partition.of(model)

    # The server's half.
    def start(self, shared: Tensors) -> None:
        """Called once at the server with the initial shared part, also after a restart."""

    def judge(self, update: Update, view: ServerView) -> dict[str, str]:
        """Return the tensors of `judges` that must not be used, each with the reason; the weights are still used.

        The server removes them from the update before the method receives it, and writes the reasons to the audit.
        """
        return {}

    def receive_seeds(self, updates: Sequence[Update], view: ServerView) -> None:
        """Take the replies of the seed stage, sorted by site."""

    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """Return what this site receives: (shared part, the method's own tensors)."""
        return shared, {}

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Combine accepted updates into the new shared part.

        Args:
            shared: the shared part that the round began with.
            updates: sorted by site; they are read from disk, and can be iterated more than once.
        """
        return weighted_mean(shared, updates)

    def monitors(self) -> Json:
        """Return the state of the knowledge bank for the history; empty if the method has none."""
        return {}

    def server_state(self) -> tuple[Tensors, Json]:
        """Return what the server must remember, as tensors and a JSON record, for the checkpoint."""
        return {}, {}

    def restore(self, tensors: Tensors, record: Json) -> None:
        """Take back what `server_state` returned."""

    def undeclared(self, update: Update, metrics: Iterable[str]) -> str | None:
        """Return what an update holds that its stage, the method and the task do not declare, or None.

        Args:
            metrics: names of the task's metrics.
        """
        keys = set(Facts.__annotations__) if update.stage == "describe" else self.says
        for kind, found, allowed in (
            ("tensor", set(update.extra), self.sends if update.stage in ("seed", "train") else set()),
            ("fact", set(update.facts), keys),
            ("metric", {*update.before, *update.after}, set(metrics)),
            ("statistic", set(update.statistics), KEYS if update.stage == "evaluate" else set()),
            ("shared tensor", set(update.shared) if update.stage != "train" else set(), set()),
        ):
            if foreign := sorted(found - set(allowed)):
                return f"it holds {len(foreign)} {kind}s that are not declared"
        return None

    # The site's half.
    def seed(self, local: LocalRound) -> tuple[Tensors, Json]:
        """Answer the seed stage: (tensors, JSON record) for `Update.extra` and `Update.facts`."""
        return {}, {}

    def receive(self, local: LocalRound) -> None:
        """Called before the received model is scored, to set what it needs besides its tensors."""

    def begin(self, local: LocalRound) -> None:
        """Called before the first training step."""

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """Return a term that is added to the task's loss of one batch."""
        return 0.0

    def correct_gradients(self, local: LocalRound) -> None:
        """Called after the backward pass and before the optimiser's step."""

    def finish(self, local: LocalRound) -> tuple[Tensors, Json]:
        """Called after the last step; return (tensors, JSON record) for `Update.extra` and `Update.facts`."""
        return {}, {}

    def personalise(self, local: LocalRound) -> None:
        """Change the model that the site keeps, after the update was taken from it; by default nothing changes."""

    def train(self, local: LocalRound) -> float:
        """Train for `num_epochs` passes; return the mean loss over all steps."""
        local.model.train()
        optimizer = local.optimizer(p for p in local.model.parameters() if p.requires_grad)
        losses: list[float] = []
        for _ in range(local.num_epochs):
            losses += self.epoch(local, optimizer)
        return sum(losses) / len(losses)

    def epoch(self, local: LocalRound, optimizer: torch.optim.Optimizer) -> list[float]:
        """Make one pass over the training cases; return the loss of each optimisation step."""
        batches = local.batches()
        losses: list[float] = []
        while group := list(islice(batches, local.accumulate)):
            losses.append(self.step(local, group, optimizer))
        return losses

    def step(self, local: LocalRound, batches: Sequence[Batch], optimizer: torch.optim.Optimizer) -> float:
        """Make one optimisation step from the mean gradient of some batches; return their mean loss."""
        optimizer.zero_grad(set_to_none=True)
        losses: list[float] = []
        for batch in batches:
            with local.autocast():
                objective, loss = self.objective(local, batch)
            local.scaler.scale(objective / len(batches)).backward()
            losses.append(loss.item())
        local.scaler.unscale_(optimizer)
        self.correct_gradients(local)
        local.scaler.step(optimizer)
        local.scaler.update()
        return sum(losses) / len(losses)

    def objective(self, local: LocalRound, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what training minimises on a batch, and the loss that is reported; both are scalars."""
        output = local.model(batch, local.extra)
        loss = local.task.loss(output.prediction.float(), batch) + self.extra_loss(local, batch, output)
        return loss, loss


def to_sites(tensors: Tensors) -> dict[str, Tensors]:
    """Split tensors named `<site>/<name>` by site.

    >>> import torch
    >>> to_sites({"site-1/w": torch.ones(1)})
    {'site-1': {'w': tensor([1.])}}
    """
    models: dict[str, Tensors] = {}
    for key, value in tensors.items():
        site, _, name = key.partition("/")
        models.setdefault(site, {})[name] = value
    return models


def moved(updates: Iterable[Update], received: Callable[[str], Tensors]) -> set[str]:
    """Return the names of the shared tensors that at least one site changed, in any bit.

    The others are frozen for now (`Backbone.schedule`).  A method that does more than average must leave them as they
    are.

    Args:
        updates: read until every tensor has been seen to change, so that mostly only the first one is read.
        received: returns what a site was sent, given its name.
    """
    found: set[str] = set()
    for update in updates:
        sent = received(update.site)
        found |= {n for n, v in update.shared.items() if n not in found and not torch.equal(v, sent[n])}
        if len(found) == len(update.shared):
            break
    return found


def weighted_mean(shared: Tensors, updates: Iterable[Update]) -> Tensors:
    """Mean of the shared parts with weights n_k / N (McMahan et al. 2017; OmniFM eq. 2).

    The sum is in float64 and in the order given, so that it does not depend on which site was faster.  Without any
    update, `shared` is returned unchanged.
    """
    total, sums = 0, dict[str, Tensor]()
    for update in updates:
        total += update.num_samples
        for name, value in update.shared.items():
            term = value.double() * update.num_samples
            sums[name] = sums[name].add_(term) if name in sums else term
    return {name: (sums[name] / total).to(value.dtype) if total else value for name, value in shared.items()}
