"""What a hospital gains that joins after the others have trained: leave one site out, train, let it join, score it.

The left-out site joins like any late site: it describes its data, answers the stage `seed` with its own centroids, and
receives the shared part and its shortlist of the bank.  It cannot receive a personal head, so three heads are tried:

- the mean of the other sites' heads.  Only the simulation can make it, because it holds all sites in one process.  Over
  FLARE a head never leaves its site;
- a few-shot head, trained from that mean on k cases (per class, where cases have one) with everything else frozen.  The
  number of steps is fixed, because a site with k cases has none left for choosing a checkpoint;
- its own few-shot head, trained in the same way from its initial values.  This is what a newcomer over FLARE can do.

Only the k cases need labels.  The centroids are made from all training images of the site, without labels.

The same few-shot head on the untrained network shows what the federation adds to the k cases.  FedAvg has no personal
head: its model is scored as it is, and after the same few-shot steps on the same modules.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from tqdm import tqdm

from omnifm import simulation
from omnifm.bench.cells import kept
from omnifm.bench.inputs import federation, job_experiment, out_folder, site_names
from omnifm.bench.studies.unseen_table import MOMENTS, Cell, Result, Scores, markdown, tabulate
from omnifm.bench.tables.one_federation import MAIN
from omnifm.config import Experiment, SiteConfig
from omnifm.data.items import Item
from omnifm.method import LocalRound, Partition, ServerView, Tensors
from omnifm.plugins import load_method, plugin
from omnifm.records import Json
from omnifm.site.stages import Site
from omnifm.site.training import Course, make_optimizer
from omnifm.state import History, write_atomic
from omnifm.update import Payload, under

CONTENDERS = {name: MAIN[name] for name in ("FedAvg", "FedPer (matched)", "OmniFM")}
STEPS = 50
"""Optimisation steps of a few-shot head, with the job's own optimiser, rate and batch size."""
MIN_SITES = 3
"""One site is left out, and a federation needs two."""


class Misfit(ValueError):
    """The left-out site's data do not fit what the others agreed on.  This is a result, not a failure."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The end of a federation without the left-out site.

    Attributes:
        spec: what the sites agreed on.
        facts: the data facts of each of them.
        shared: the shared part after the last round.
        tensors, record: the method's state at the server (the bank), as `Method.restore` takes it.
        heads: the personal part of each site, parameters and buffers.
    """

    run_id: str
    spec: Json
    facts: dict[str, Json]
    shared: Tensors
    tensors: Tensors
    record: Json
    heads: dict[str, Tensors]


class FewShot(NamedTuple):
    """How a few-shot head is trained."""

    shots: int
    """Cases, per class where cases have one; at least 1."""
    num_steps: int
    """Optimisation steps; 0 leaves the head as it is."""


def run(
    data: Path,
    out: Path,
    *,
    job: Path,
    num_seeds: int,
    num_rounds: int | None = None,
    num_epochs: int | None = None,
    shots: int = 5,
    num_steps: int = STEPS,
) -> Result:
    """Run what is missing, then write unseen.json and unseen.md.

    Args:
        data: federation folder, one `<site>/dataset.json` per site, at least 3.
        out: folder of the results; runs that it holds are not repeated.
        job: job folder whose experiment.json is run, method by method.
        num_seeds: seeds 0..num_seeds-1.
        num_rounds, num_epochs: rounds, and local epochs per round, in place of the job's.
        shots: number k of cases for the few-shot head, per class where cases have one, at least 1.
        num_steps: optimisation steps of the few-shot head, at least 0; 0 leaves the mean of the others' heads.

    Returns:
        The content of unseen.json.

    Raises:
        ValueError: a folder or the configuration is unusable, or a run was not complete.
    """
    experiment, data, out = job_experiment(job, num_rounds, num_epochs), federation(data), out_folder(out)
    if shots < 1 or num_steps < 0:
        raise ValueError(f"shots must be at least 1 and num_steps at least 0; got {shots} and {num_steps}")
    sites, train = site_names(data, MIN_SITES), experiment.train
    torch.set_num_threads(train.num_threads)  # as sites do in a round
    few_shot = FewShot(shots, num_steps)
    cells: dict[str, list[Cell]] = {name: [] for name in CONTENDERS}
    grid = [(seed, left_out, name) for seed in range(num_seeds) for left_out in sites for name in CONTENDERS]
    for seed, left_out, name in (bar := tqdm(grid, unit="run", disable=None)):
        bar.set_description(f"{name} without {left_out}, seed {seed}")
        contender = replace(experiment, method=CONTENDERS[name], seed=seed)
        cells[name].append(_cell(contender, data, sites, left_out, few_shot, out))
    result: Result = {
        "schema": 1,
        "data": data.name,
        "sites": sites,
        "seeds": num_seeds,
        "num_rounds": train.num_rounds,
        "local_epochs": train.local_epochs,
        "shots": shots,
        "num_steps": num_steps,
        **tabulate(cells, sites, plugin("tasks", experiment.task["name"]).metrics),
    }
    write_atomic(out / "unseen.json", json.dumps(result, indent=1).encode())
    write_atomic(out / "unseen.md", markdown(result, next(iter(result["metrics"]))).encode())
    return result


def _cell(
    experiment: Experiment, data: Path, sites: Sequence[str], left_out: str, few_shot: FewShot, out: Path
) -> Cell:
    """One contender with one site left out, from `out` or run now."""
    key = [experiment.hash(), experiment.seed, data.name, sites, left_out, *few_shot, list(MOMENTS)]

    def run() -> dict[str, object]:
        trained = train_without(experiment, data, [site for site in sites if site != left_out])
        try:
            scores = join(experiment, trained, data, left_out, few_shot)
        except Misfit as error:
            return {"left_out": left_out, "scores": None, "refused": str(error)}
        return {"left_out": left_out, "scores": scores, "refused": None}

    return cast(Cell, kept(out, json.dumps(key), data, sites, run) | {"seed": experiment.seed})


def train_without(experiment: Experiment, data: Path, others: Sequence[str]) -> Trained:
    """Train the other sites; the left-out site's folder is not opened."""
    with tempfile.TemporaryDirectory(prefix="omnifm-unseen-") as name:
        state = Path(name)
        summary = simulation.run(experiment, data, others, state_dir=state, results_dir=state / "results")
        if summary["status"] != "COMPLETE":
            raise ValueError(
                f"{experiment.method}: the run must be complete; got {summary['status']}, {summary['reason']}"
            )
        tensors, record = _stored(state / "server" / experiment.job, "server")
        heads = {site: under(_stored(state / site / experiment.job, "personal")[0], "personal") for site in others}
    facts = {site: told["data"] for site, told in record["facts"].items()}
    return Trained(
        record["run_id"],
        record["spec"],
        facts,
        under(tensors, "shared"),
        under(tensors, "method"),
        record["method"],
        heads,
    )


def _stored(folder: Path, name: str) -> tuple[Tensors, Json]:
    """Tensors and record of a finished run's state."""
    found = History(folder, name).load()
    assert found is not None  # the run was complete
    return found.tensors, found.record


def mean_head(heads: Sequence[Tensors]) -> Tensors:
    """Mean over sites with equal weights; integers (batch norm's counter of steps) are the first site's."""
    means: Tensors = {}
    for name, first in heads[0].items():
        if first.is_floating_point():
            means[name] = torch.stack([head[name].double() for head in heads]).mean(dim=0).to(first.dtype)
        else:
            means[name] = first
    return means


def join(experiment: Experiment, trained: Trained, data: Path, left_out: str, few_shot: FewShot) -> dict[str, Scores]:
    """Let the left-out site join, and score its test split.

    Returns:
        Scores by name of `unseen_table.MOMENTS`.

    Raises:
        Misfit: its data differ in kind from the others', or hold a class that none of them has.
    """
    with tempfile.TemporaryDirectory(prefix="omnifm-unseen-") as state:
        site = Site(experiment, left_out, SiteConfig(str(data / left_out), state, "cpu"))
        payload = welcome(experiment, trained, site)
        few = shot_cases(site.datalist.training, few_shot.shots, experiment.seed)
        site.loader.restrict(training=few)  # nothing later uses the other cases
        head = mean_head(list(trained.heads.values()))
        found: dict[str, Scores] = {}
        untrained, partition = site.build_model(trained.spec)
        blank = replace(payload, shared=partition.pick(untrained, "shared"), extra={})
        num_steps = few_shot.num_steps
        for moment, steps, start, personal in (
            ("untrained", num_steps, blank, {}),
            ("mean_head", 0, payload, head),
            ("few_shot", num_steps, payload, head),
            ("own_head", num_steps, payload, {}),
        ):
            local = site.open_round(start)
            local.model.load_state_dict(personal, strict=False)
            train_head(site, local, steps)
            scores = site.score(local.model, local.extra, "test")
            found[moment] = {metric: score.mean for metric, score in scores.items()}
    return found


def welcome(experiment: Experiment, trained: Trained, site: Site) -> Payload:
    """What the server sends to a site that joins after the last round: the shared part, and its shortlist of the bank.

    Raises:
        Misfit: as `join`.
    """
    told = site.reply(Payload("describe", 0, trained.run_id, {}, {}, {}))
    try:
        site.task.agree(trained.facts | {site.name: told.facts["data"]})
        site.task.configure(trained.spec)
        for item in (item for items in site.datalist.splits().values() for item in items):
            site.task.read(item, site.datalist.labels)
    except ValueError as error:  # RefusedImage, where a case is refused, is a ValueError too
        raise Misfit(str(error)) from None
    method = load_method(experiment)
    method.restore(trained.tensors, trained.record)
    if method.seeds:
        seeds = [site.reply(Payload("seed", 0, trained.run_id, trained.spec, trained.shared, {}))]
        method.receive_seeds(seeds, ServerView())
    shared, extra = method.payload(site.name, trained.shared, ServerView())
    return Payload("evaluate", experiment.train.num_rounds, trained.run_id, trained.spec, shared, extra)


def shot_cases(training: Sequence[Item], shots: int, seed: int) -> tuple[Item, ...]:
    """Draw `shots` cases of every class; where labels are no classes, of all cases.

    Args:
        seed: decides which cases are drawn.
    """
    order = list(training)
    random.Random(seed).shuffle(order)
    groups: dict[str, list[Item]] = {}
    for item in order:
        label = item.get("label")
        groups.setdefault(str(label) if isinstance(label, int | str) else "", []).append(item)
    return tuple(item for _, items in sorted(groups.items()) for item in items[:shots])


def train_head(site: Site, local: LocalRound, num_steps: int) -> None:
    """Train the model's personal modules on the site's training cases; everything else is frozen, statistics too."""
    names = set(Partition.of(local.model, personal=local.model.personal()).personal)
    for name, parameter in local.model.named_parameters():
        parameter.requires_grad_(name in names)
    trained = (p for p in local.model.parameters() if p.requires_grad)
    optimizer = make_optimizer(site.experiment.train, Course(0, num_steps), trained)
    done = 0
    while done < num_steps:
        for module in local.model.modules():
            module.training = any(p.requires_grad for p in module.parameters(recurse=False))
        for batch in local.batches():
            if done == num_steps:
                break
            optimizer.zero_grad(set_to_none=True)
            local.task.loss(local.model(batch, local.extra).prediction, batch).backward()
            optimizer.step()
            done += 1
