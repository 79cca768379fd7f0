"""OmniFM: spectral retrieval, cross-attention, prompts and alignment (Liu et al. 2026, arXiv 2603.21660).

Where the paper is silent the defaults are ours and say so; the ablations of table 8 are switches here.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from omnifm.config import STRICT, Count, Fraction, Positive
from omnifm.method import (
    LocalRound,
    Method,
    Model,
    Output,
    Partition,
    ServerView,
    Tensors,
    moved,
    to_sites,
    weighted_mean,
)
from omnifm.methods._soup import mix_with_received
from omnifm.model import OmniModel, Parts
from omnifm.parts.alignment import spectral_alignment
from omnifm.parts.knowledge import KnowledgeBank, distinct, retrieve, spherical_kmeans
from omnifm.parts.routing import contradict, is_profile, mixtures, profile
from omnifm.parts.spectral import SpectralTokenizer
from omnifm.task import Batch, Task
from omnifm.update import Update, prefixed, under

MIN_PATIENTS = 3
"""Patients per centroid below which a modality sends none: the mean of one patient is that patient."""


@dataclass(frozen=True, config=STRICT)
class Settings:
    """OmniFM's section of a job."""

    share: Literal["backbone", "spectral", "all"] = "backbone"
    """What is averaged: backbone, tokenizer and cross-attention (eq. 2), the tokenizer alone (section 3.3), or the head
    too (ours, for `reach`: alike sites have one head, others their own)."""
    share_buffers: bool = False
    """Whether normalisation statistics are averaged; false keeps each site's own."""
    share_tokenizer: bool = True
    """Whether the tokenizer is averaged; false is an ablation: only the bank is common."""
    dim: Annotated[int, Field(ge=4, le=1024)] = 64
    """Spectral width d; 32-64 keeps noise affordable when centroids are made private."""
    num_bands: Annotated[int, Field(ge=4, le=256)] = 32
    """Radial bands R; the same for every image size, so that one tokenizer serves all."""
    keep: Fraction = 0.25
    """Low-pass radius as a share of Nyquist, (0, 1]; 1 keeps the whole spectrum."""
    low_pass: Literal["nyquist", "physical"] = "nyquist"
    """Whether the radius is a share of Nyquist or `keep_per_mm` in cycles/mm, equal for every matrix size."""
    keep_per_mm: Positive | None = None
    """Low-pass radius for `physical`, cycles/mm."""
    num_centroids: Annotated[int, Field(ge=1, le=64)] = 1
    """Most centroids m per modality that a site uploads, one per MIN_PATIENTS patients; 1 is the paper's."""
    num_retrieved: Count = 2
    """Prototypes k per sample."""
    shortlist: Count = 32
    """Bank entries that a site receives; it retrieves among them, offline."""
    center: bool = True
    """Subtract the bank's mean before any cosine; without it all are above 0.96."""
    exclude_self: bool = True
    """Leave a site's own entries out of its shortlist; with them nothing global arrives."""
    local_key: bool = True
    """Whether the image's own token is one more key; without it the tokenizer has no task gradient."""
    align_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Lambda of eq. 6, >= 0; 0 is the ablation without SPAlign."""
    retrieval: Literal["bank", "mean"] = "bank"
    """`mean` is the ablation without GSKR: one prototype, the running mean of all uploaded centroids."""
    fusion: Literal["attention", "film"] = "attention"
    """`film` is the ablation without ECA."""
    prompting: Literal["prefix_suffix", "linear"] = "prefix_suffix"
    """`linear` is the ablation without PSP."""
    num_suffix: Annotated[int, Field(ge=1, le=64)] = 4
    """Suffix tokens p, personal."""
    bank_size: Count = 256
    """Most entries M of the bank."""
    ring: Count = 4
    """Most entries of one site."""
    radius: Positive = 1.0
    """Radius rho of the ball that entries are projected onto (eq. 7)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the retrieval frequency, [0, 1)."""
    grace: Annotated[int, Field(ge=0)] = 3
    """Rounds before an entry may be pruned."""
    prune: Annotated[float, Field(ge=0)] = 0.25
    """Delta of eq. 8 in units of k / M; 0 prunes nothing."""
    ttl: Count = 10
    """Rounds after which an entry, made by an old tokenizer, expires."""
    reach: Positive | None = None
    """Squared distance of two sites' spectra, in units of their patients' spread, at which each counts 1/e in the
    other's average of backbone and shared head (see `routing`, ours); sites whose label names contradict each other
    count nothing.  A site absent from a round keeps its own average, unless those who replied weigh at least as much
    as it does itself, by their likeness.  Null is the paper's one average for all, and so is a huge one where names
    agree."""
    soup: bool = False
    """Whether a site keeps the mixture of received and trained weights that its validation split likes best
    (`omnifm.methods._soup`, ours)."""


class OmniFM(Method):
    """The paper's method; the server's memory is the knowledge bank."""

    Settings = Settings
    seeds = True
    sends = judges = frozenset({"centroids", "hits", "profile"})
    says = frozenset({"centroid_modalities"})

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        s = settings
        self.bank = KnowledgeBank(
            s.dim,
            max_size=s.bank_size,
            radius=s.radius,
            ring=s.ring,
            decay=s.decay,
            grace=s.grace,
            prune=s.prune,
            ttl=s.ttl,
            center=s.center,
            exclude_self=s.exclude_self,
        )
        self.sent: dict[str, list[int]] = {}
        self.last: dict[str, Tensor] = {}
        self.profiles: dict[str, Tensor] = {}
        self.mixed: dict[str, Tensors] = {}
        self.initial: Tensors = {}
        self.mean_sum, self.mean_count = torch.zeros(s.dim), 0

    # Both ends.
    def build(self, task: Task) -> Model:
        """OmniModel around the task's backbone."""
        s = self.settings
        names = (
            "dim",
            "num_bands",
            "keep",
            "low_pass",
            "keep_per_mm",
            "num_retrieved",
            "num_suffix",
            "local_key",
            "fusion",
            "prompting",
        )
        parts, spacing = Parts(**{name: getattr(s, name) for name in names}), task.spec.get("spacing_mm")
        model = OmniModel(task.backbone(), parts, tuple(spacing) if spacing else None)
        self.first_tokenizer = copy.deepcopy(model.tokenizer).eval()  # of the same initial values everywhere
        # Tokens are compared across sites, so the tokenizer and what attends to its tokens stay one for all.
        self.one_for_all = {f"tokenizer.{n}" for n in model.tokenizer.state_dict()}
        self.one_for_all |= {f"fusion.{n}" for n in model.fusion.state_dict()}
        return model

    def partition(self, model: Model) -> Partition:
        """Head, suffix and reader stay home; with share="all" only the suffix does, with "spectral" everything but the
        tokenizer."""
        assert isinstance(model, OmniModel)
        personal = [model.prompts] if self.settings.share == "all" else [*model.personal()]
        personal += [] if self.settings.share_tokenizer else [model.tokenizer]
        only = [model.tokenizer] if self.settings.share == "spectral" else None
        return Partition.of(model, personal=personal, only=only, share_buffers=self.settings.share_buffers)

    # The server's half.
    def start(self, shared: Tensors) -> None:
        """Remember what routed sites start from; drawn again after a restart."""
        if self.settings.reach:
            self.initial = {name: value for name, value in shared.items() if name not in self.one_for_all}

    def judge(self, update: Update, view: ServerView) -> dict[str, str]:
        """Check the contribution to the bank and the profile; see `_refuse`."""
        refused: dict[str, str] = {}
        if "centroids" in update.extra and (reason := self._refuse(update, view)):
            refused |= dict.fromkeys(("centroids", "hits"), f"nothing enters the bank: {reason}")
        profile = update.extra.get("profile")
        if profile is not None and update.site not in self.profiles and not is_profile(profile, self.settings.dim):
            refused["profile"] = f"its profile must be {self.settings.dim + 1} sane float32 numbers; it is not"
        return refused

    def receive_seeds(self, updates: Sequence[Update], view: ServerView) -> None:
        """Seed the bank: K(0) = {s_k}."""
        self._insert(updates, view.round)
        self._profile(updates)

    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The shared part with this site's own shortlist, which names no site; an empty profile asks for the site's."""
        shared, extra = self._routed(site, shared, view), dict[str, Tensor]()
        if self.settings.reach and site not in self.profiles:
            extra["profile"] = torch.zeros(0)
        if self.settings.retrieval == "mean":
            return shared, extra | {"prototypes": self._running_mean()}
        queries = self.last.get(site, torch.zeros(0, self.settings.dim))
        self.sent[site], extra["prototypes"] = self.bank.shortlist(queries, site, self.settings.shortlist)
        return shared, extra | {"mean": self.bank.mean.clone()} if self.settings.center else extra

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Weighted mean of the shared part; then insert, project, prune, cap (eq. 7 and 8)."""
        self._insert(updates, view.round)
        hits = {
            update.site: dict(zip(self.sent[update.site], update.extra["hits"].tolist(), strict=True))
            for update in updates
            if self.sent.get(update.site) and {"centroids", "hits"} <= update.extra.keys()
        }
        self.bank.step(view.round, hits, self.settings.num_retrieved)
        mean = weighted_mean(shared, updates)
        if self.settings.reach is None:
            return mean
        self._profile(updates)
        moving = moved(updates, lambda site: self._routed(site, shared, view))
        names, least = moving - self.one_for_all, {s: n for s, n in view.sizes.items() if s in self.mixed}
        for site, own in mixtures(updates, self.profiles, names, self.settings.reach, view.labels, least).items():
            self.mixed[site] = self.mixed.get(site, {}) | own
        return shared | {name: mean[name] for name in moving}

    def _routed(self, site: str, shared: Tensors, view: ServerView) -> Tensors:
        """The shared part with the site's own mixture.

        A site that has none yet gets the mean of all; where its label names contradict anybody's it starts from the
        initial weights instead, as it would alone.
        """
        if site in self.mixed:
            return shared | self.mixed[site]
        names = view.labels.get(site, {})
        foreign = any(contradict(names, others) for others in view.labels.values())
        return shared | self.initial if foreign else shared

    def monitors(self) -> dict[str, Any]:
        """Size, effective rank, mean cosine and provenance counts of the bank."""
        return dict(self.bank.monitors())

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """The bank, and what each site last uploaded."""
        tensors, record = self.bank.state()
        mixed = prefixed(**self.mixed)
        parts = prefixed(bank=tensors, last=self.last, profile=self.profiles, mixed=mixed) | {"mean_sum": self.mean_sum}
        return parts, {"bank": record, "mean_count": self.mean_count}

    def restore(self, tensors: Tensors, record: dict[str, object]) -> None:
        """Invert `server_state`."""
        self.bank = KnowledgeBank.from_state(under(tensors, "bank"), record["bank"])
        self.last, self.profiles = under(tensors, "last"), under(tensors, "profile")
        self.mean_sum, self.mean_count = tensors["mean_sum"], record["mean_count"]
        self.mixed = to_sites(under(tensors, "mixed"))

    def _profile(self, updates: Iterable[Update]) -> None:
        """Keep the first profile of each site; all are of the initial tokenizer, or they could not be compared."""
        for update in updates:
            if "profile" in update.extra and update.site not in self.profiles:
                self.profiles[update.site] = update.extra["profile"]

    def _insert(self, updates: Iterable[Update], round_number: int) -> None:
        for update in updates:
            if "centroids" not in update.extra:  # too few patients for a mean that is nobody's
                continue
            centroids = update.extra["centroids"]
            for modality in sorted(set(update.facts["centroid_modalities"])):
                rows = [i for i, m in enumerate(update.facts["centroid_modalities"]) if m == modality]
                own = centroids[rows]
                self.bank.insert(own[distinct(own)], update.site, modality, round_number)
            self.last[update.site] = centroids
            self.mean_sum, self.mean_count = self.mean_sum + centroids.sum(0), self.mean_count + len(centroids)

    def _refuse(self, update: Update, view: ServerView) -> str | None:
        """Why a contribution to the bank is not as it must be; the site's weights are judged apart from it.

        A site may send `num_centroids` per modality that it has described: the bank keeps the last entry of every
        modality, so one that could name new ones without end would fill it.
        """
        centroids, hits = update.extra.get("centroids"), update.extra.get("hits")
        modalities = update.facts.get("centroid_modalities")
        if centroids is None or centroids.ndim != 2 or not len(centroids) or centroids.dtype != torch.float32:
            return "it must hold centroids, float32 in rows"
        if not isinstance(modalities, list) or not all(isinstance(m, str) and len(m) <= 16 for m in modalities):
            return "it must hold the modality of each centroid"
        if len(modalities) != len(centroids):
            return f"{len(centroids)} centroids must have as many modalities; got {len(modalities)}"
        if (
            centroids.shape[1:] != (self.settings.dim,)
            or max(Counter(modalities).values()) > self.settings.num_centroids
        ):
            return f"centroids must be at most {self.settings.num_centroids} per modality; got {tuple(centroids.shape)}"
        if foreign := set(modalities) - view.modalities.get(update.site, set(modalities)) - {""}:
            return f"centroids must be of modalities that the site has described; got {len(foreign)} others"
        if not torch.isfinite(centroids).all() or (centroids.norm(dim=1) - 1).abs().max() > 1e-3:
            return "centroids must be finite and of unit length"
        if update.stage == "train" and self.settings.retrieval == "bank":
            sent = len(self.sent.get(update.site, []))
            if hits is None or (hits.dtype, hits.shape) != (torch.float32, (sent,)):
                return f"hits must be {sent} shares, float32"
            if not ((hits >= 0) & (hits <= 1)).all():
                return f"hits must be {sent} shares in [0, 1]"
        return None

    def _running_mean(self) -> Tensor:
        return (self.mean_sum / max(1, self.mean_count))[None]

    # The site's half.
    def seed(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Round 0: centroids of the training tokens under the initial tokenizer, and how far they spread.

        A site that was not there, or whose reply was lost, is asked for its profile with the next model.
        """
        extra, facts = self._centroids(self._patients(local))
        return extra | (self._own_profile(local) if self.settings.reach else {}), facts

    def begin(self, local: LocalRound) -> None:
        """Centroids come from the tokenizer as received, never from the locally tuned one (algorithm.md 8)."""
        local.scratch["centroids"] = self._centroids(self._patients(local))
        local.scratch["profile"] = self._own_profile(local) if "profile" in local.extra else {}
        local.scratch["hits"] = torch.zeros(len(local.extra["prototypes"]), device=local.extra["prototypes"].device)
        local.scratch["queries"] = 0

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """lambda * SPAlign (eq. 5 and 6); on the way, count which prototypes were retrieved."""
        assert output.token is not None and output.retrieved is not None and output.chosen is not None
        local.scratch["hits"] += torch.bincount(output.chosen.flatten(), minlength=len(local.scratch["hits"]))
        local.scratch["queries"] += len(output.token)
        if self.settings.align_weight == 0:
            return 0.0
        return self.settings.align_weight * spectral_alignment(output.token, output.retrieved)

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Centroids, their modalities, and each prototype's share of the round's queries."""
        extra, facts = local.scratch["centroids"]
        hits = local.scratch["hits"] / max(1, local.scratch["queries"])
        return extra | {"hits": hits} | local.scratch["profile"], facts

    def _own_profile(self, local: LocalRound) -> Tensors:
        """How the patients' tokens spread under the initial tokenizer; nothing where no modality has enough of them."""
        tokens = self._patients(local, self.first_tokenizer).values()
        few = max(map(len, tokens)) < MIN_PATIENTS  # one patient in three modalities is one
        return {} if few else {"profile": profile(torch.cat(list(tokens)))}

    def _patients(self, local: LocalRound, tokenizer: SpectralTokenizer | None = None) -> dict[str, Tensor]:
        """Patients' mean tokens (n d) by modality, of the model's tokenizer or another."""
        assert isinstance(local.model, OmniModel)
        tokenizer = tokenizer or local.model.tokenizer
        tokens: dict[str, dict[str, list[Tensor]]] = {}
        local.model.eval()
        with torch.no_grad():
            for view, patient, modality in local.views():
                token = tokenizer.to(view.device)(view, local.model.spacing_mm)[0].cpu()
                tokens.setdefault(modality, {}).setdefault(patient, []).append(token)
        return {
            modality: torch.stack([torch.stack(own).mean(0) for _, own in sorted(patients.items())])
            for modality, patients in sorted(tokens.items())
        }

    def personalise(self, local: LocalRound) -> None:
        """With `soup`, keep the mixture of received and trained weights that scores best on validation."""
        if self.settings.soup:
            mix_with_received(local)

    def _centroids(self, patients: dict[str, Tensor]) -> tuple[Tensors, dict[str, object]]:
        """At most m centroids per modality over patients' mean tokens; no per-image token leaves (algorithm.md 8)."""
        rows, modalities = [], []
        for modality, means in patients.items():
            if len(means) >= MIN_PATIENTS:
                rows.append(_largest_safe_clustering(means, self.settings.num_centroids))
                modalities += [modality] * len(rows[-1])
        return ({"centroids": torch.cat(rows)} if rows else {}), {"centroid_modalities": modalities}


def _largest_safe_clustering(means: Float[Tensor, "n d"], most: int) -> Float[Tensor, "m d"]:
    """As many centroids as can be, at most `most`, each the nearest one of at least MIN_PATIENTS patients."""
    for num in range(min(most, len(means) // MIN_PATIENTS), 1, -1):
        centroids = spherical_kmeans(means, num, seed=0)
        nearest = retrieve(means, centroids, None, 1)[:, 0]
        if nearest.bincount(minlength=len(centroids)).min() >= MIN_PATIENTS:
            return centroids
    return spherical_kmeans(means, 1, seed=0)
