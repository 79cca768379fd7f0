"""OmniFM: spectral retrieval, cross-attention, prompts and alignment (Liu et al. 2026, arXiv 2603.21660).

A default marked "ours" is our decision where the paper gives no value.  The ablations of table 8 are settings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

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
from omnifm.methods._contribution import centroids_of, patient_tokens, profile_of, why_refused
from omnifm.methods._soup import mix_with_received
from omnifm.model import OmniModel, Parts
from omnifm.parts.alignment import spectral_alignment
from omnifm.parts.knowledge import KnowledgeBank, distinct
from omnifm.parts.routing import contradict, is_profile, mixtures
from omnifm.records import Json
from omnifm.task import Batch, Task
from omnifm.update import Update, prefixed, under


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The method section of a job that uses OmniFM."""

    share: Literal["backbone", "spectral", "all"] = "backbone"
    """What is averaged.  `backbone`: backbone, tokenizer and cross-attention (eq. 2).  `spectral`: the tokenizer only
    (section 3.3).  `all`: the head too (ours, for use with `reach`, so that similar sites have one head)."""
    share_buffers: bool = False
    """Whether normalisation statistics are averaged too.  False keeps each site's own (ours)."""
    share_tokenizer: bool = True
    """Whether the tokenizer is averaged.  False is an ablation in which the sites have only the bank in common."""
    dim: Annotated[int, Field(ge=4, le=1024)] = 64
    """Width d of spectral tokens, 4 to 1024.  A small width holds less information; a large one needs more noise when
    centroids are made private.  The default is ours; 32 to 64 suits private centroids."""
    num_bands: Annotated[int, Field(ge=4, le=256)] = 32
    """Number of radial bands of the spectrum, 4 to 256, for every image size.  Few bands blur the spectrum; with many,
    small images have fewer frequencies than bands.  The default is ours."""
    keep: Fraction = 0.25
    """Radius of the low-pass filter as a share of the Nyquist frequency, in (0, 1].  A small value keeps only coarse
    structure; 1 keeps the whole spectrum.  The default is ours."""
    low_pass: Literal["nyquist", "physical"] = "nyquist"
    """Unit of the radius.  `nyquist`: a share of Nyquist, see `keep`.  `physical`: cycles/mm, see `keep_per_mm`, which
    is the same for scanners with different image sizes; the task must give the voxel size."""
    keep_per_mm: Positive | None = None
    """Radius of the low-pass filter in cycles/mm, > 0; needed for `physical`, and only there.  A small value keeps only
    coarse structure; the maximum is the Nyquist frequency of the finest axis."""
    num_centroids: Annotated[int, Field(ge=1, le=64)] = 1
    """Maximum number m of centroids that a site sends per modality, 1 to 64; each needs at least three patients.  1 is
    the paper's choice; more describe a site in more detail and reveal more about it."""
    num_retrieved: Count = 2
    """Number k of prototypes per sample, >= 1; more are averaged in alignment and attended to in fusion.  The default
    is ours."""
    shortlist: Count = 32
    """Maximum number of bank entries that a site receives, >= 1; it retrieves among them, also without the server.  A
    small number limits the choice; a large one sends more.  The default is ours."""
    center: bool = True
    """Whether the mean of the bank is subtracted before cosines are taken (ours).  Without it all cosines are above
    0.96 in our measurements, and retrieval can hardly tell prototypes apart."""
    exclude_self: bool = True
    """Whether a site's own entries are left out of its shortlist (ours).  With them it mostly retrieves itself, and
    nothing from other sites."""
    local_key: bool = True
    """Whether the sample's own spectral token is one more key of the cross-attention (ours).  Without it the task's
    loss gives the tokenizer no gradient, and all tokens become one vector."""
    align_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight lambda of the alignment loss in eq. (6), >= 0.  0 is the ablation without SPAlign; a large value makes the
    tokens of all sites equal.  The default is ours."""
    retrieval: Literal["bank", "mean"] = "bank"
    """Source of the prototypes.  `bank`: the knowledge bank.  `mean`: one prototype, the running mean of all centroids
    sent, the ablation without GSKR."""
    fusion: Literal["attention", "film"] = "attention"
    """How prototypes act on the backbone's tokens.  `attention`: cross-attention.  `film`: one scale and shift per
    sample, the ablation without ECA."""
    prompting: Literal["prefix_suffix", "linear"] = "prefix_suffix"
    """How the sequence is built.  `prefix_suffix`: [Z || r || c].  `linear`: a linear projection to as many tokens, the
    ablation without PSP."""
    num_suffix: Annotated[int, Field(ge=1, le=64)] = 4
    """Number p of personal suffix tokens, 1 to 64; more give the personal part more capacity.  The default is ours."""
    bank_size: Count = 256
    """Maximum number M of entries in the bank, >= 1.  A small bank forgets; a large one keeps many similar entries.
    The last entry of a site or modality always stays.  The default is ours."""
    ring: Count = 4
    """Maximum number of entries per site, >= 1; the oldest is removed first.  1 keeps only the latest; many let old
    tokens stay longer.  The default is ours."""
    radius: Positive = 1.0
    """Radius rho of the ball onto which entries are projected, > 0 (eq. 7).  Below 1 it shortens centroids, which have
    length 1; from 1 on it changes nothing.  The default is ours."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the moving average of the retrieval frequency, in [0, 1).  0 uses the last round only; near 1 old rounds
    count almost as much.  The default is ours."""
    grace: Annotated[int, Field(ge=0)] = 3
    """Number of rounds in shortlists before an entry can be pruned, >= 0.  0 prunes after the first round; a large
    number keeps unused entries longer.  The default is ours."""
    prune: Annotated[float, Field(ge=0)] = 0.25
    """Delta of eq. (8): an entry retrieved less often than this is pruned, in units of k / M, the share of an average
    entry; >= 0.  0 never prunes; above 1 also average entries are pruned.  The default is ours."""
    ttl: Count = 10
    """Number of rounds after which an entry expires, because an old tokenizer made it; >= 1.  A small number keeps only
    fresh entries; a large one compares tokens of different tokenizers.  The default is ours."""
    reach: Positive | None = None
    """Routing of averages (ours, see `omnifm.parts.routing`): the squared distance of two sites' spectra, in units of
    the spread of their patients, at which each counts 1/e in the other's average of backbone and shared head; > 0.  A
    small value leaves every site to itself; a very large one is the plain average.  Sites whose label names contradict
    each other do not count.  A site that misses a round keeps its own average, unless the replies of similar sites
    together weigh at least as much as the site itself.  Null is the paper's method: one average for all."""
    soup: bool = False
    """Whether a site keeps a mixture of the received and its trained weights: the one that is best on its validation
    split (ours).  False keeps the trained weights.  What the site sends does not change."""


class OmniFM(Method):
    """The paper's method.  The server keeps the knowledge bank, and with `reach` an average for every site."""

    Settings = Settings
    travels = (
        "Backbone, tokenizer and cross-attention, with centroids of spectral tokens; head and prompts stay at the site."
    )
    when = (
        "Choose it where sites differ in modality and one backbone should serve all; compare it with FedAvg and FedPer."
    )
    seeds = True
    sends = judges = frozenset({"centroids", "hits", "profile"})
    says = frozenset({"centroid_modalities"})

    def __init__(self, settings: object) -> None:
        super().__init__(settings)
        s: Settings = self.settings
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
        self.sent: dict[str, list[int]] = {}  # by site: ids of the shortlist that it was sent
        self.last: dict[str, Tensor] = {}  # by site: the centroids that it sent last
        self.profiles: dict[str, Tensor] = {}  # by site, for routing
        self.mixed: dict[str, Tensors] = {}  # by site: its own average, for routing
        self.initial: Tensors = {}  # initial values of what is routed
        self.mean_sum = torch.zeros(s.dim)  # of all centroids sent, for `retrieval` "mean"
        self.mean_count = 0

    # Both ends.
    def build(self, task: Task) -> Model:
        """Build an OmniModel around the task's backbone."""
        s: Settings = self.settings
        parts = Parts(
            dim=s.dim,
            num_bands=s.num_bands,
            keep=s.keep,
            low_pass=s.low_pass,
            keep_per_mm=s.keep_per_mm,
            num_retrieved=s.num_retrieved,
            num_suffix=s.num_suffix,
            local_key=s.local_key,
            fusion=s.fusion,
            prompting=s.prompting,
        )
        spacing = task.spec.get("spacing_mm")
        model = OmniModel(task.backbone(), parts, tuple(spacing) if spacing else None)
        self.first_tokenizer = copy.deepcopy(model.tokenizer).eval()  # its initial values are the same at all sites
        # Tokens of different sites are compared, so routing never changes the tokenizer and the cross-attention.
        self.one_for_all = {f"tokenizer.{n}" for n in model.tokenizer.state_dict()}
        self.one_for_all |= {f"fusion.{n}" for n in model.fusion.state_dict()}
        return model

    def partition(self, model: Model) -> Partition:
        """Head, suffix and reader are personal; for `share` "all" the suffix, for "spectral" all but the tokenizer."""
        assert isinstance(model, OmniModel)
        personal: list[nn.Module | nn.Parameter] = [model.prompts]
        if self.settings.share != "all":
            personal = list(model.personal())
        if not self.settings.share_tokenizer:
            personal.append(model.tokenizer)
        only = [model.tokenizer] if self.settings.share == "spectral" else None
        return Partition.of(model, personal=personal, only=only, share_buffers=self.settings.share_buffers)

    # The server's half.
    def start(self, shared: Tensors) -> None:
        """Keep the initial values of what is routed; after a restart they are drawn again, with the same seed."""
        if self.settings.reach:
            self.initial = {name: value for name, value in shared.items() if name not in self.one_for_all}

    def judge(self, update: Update, view: ServerView) -> dict[str, str]:
        """Check a site's contribution to the bank, and its profile."""
        refused: dict[str, str] = {}
        if "centroids" in update.extra and (reason := self._why_refused(update, view)):
            refused |= dict.fromkeys(("centroids", "hits"), f"nothing enters the bank: {reason}")
        profile = update.extra.get("profile")
        if profile is not None and update.site not in self.profiles and not is_profile(profile, self.settings.dim):
            number = self.settings.dim + 1
            refused["profile"] = f"its profile must be {number} finite float32 numbers of unit tokens; it is not"
        return refused

    def receive_seeds(self, updates: Sequence[Update], view: ServerView) -> None:
        """Seed the bank: K(0) = {s_k}."""
        self._insert(updates, view.round)
        self._keep_profiles(updates)

    def payload(self, site: str, shared: Tensors, view: ServerView) -> tuple[Tensors, Tensors]:
        """The shared part and the site's own shortlist, which names no site.

        An empty `profile` asks the site to send its own.
        """
        shared = self._routed(site, shared, view)
        extra: Tensors = {}
        if self.settings.reach and site not in self.profiles:
            extra["profile"] = torch.zeros(0)
        if self.settings.retrieval == "mean":
            return shared, extra | {"prototypes": self._running_mean()}
        queries = self.last.get(site, torch.zeros(0, self.settings.dim))
        self.sent[site], extra["prototypes"] = self.bank.shortlist(queries, site, self.settings.shortlist)
        return shared, extra | {"mean": self.bank.mean.clone()} if self.settings.center else extra

    def aggregate(self, shared: Tensors, updates: Iterable[Update], view: ServerView) -> Tensors:
        """Update the bank (eq. 7 and 8): insert, project, remove.  Then average the shared part (eq. 2)."""
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
        self._keep_profiles(updates)
        moving = moved(updates, lambda site: self._routed(site, shared, view))
        names = moving - self.one_for_all
        least = {site: size for site, size in view.sizes.items() if site in self.mixed}
        for site, own in mixtures(updates, self.profiles, names, self.settings.reach, view.labels, least).items():
            self.mixed[site] = self.mixed.get(site, {}) | own
        return shared | {name: mean[name] for name in moving}

    def _routed(self, site: str, shared: Tensors, view: ServerView) -> Tensors:
        """The shared part with the site's own average, if routing has made one.

        A site without one receives the average of all sites.  If its label names contradict those of another site, it
        receives the initial weights instead, as if it trained alone.
        """
        if site in self.mixed:
            return shared | self.mixed[site]
        names = view.labels.get(site, {})
        foreign = any(contradict(names, others) for others in view.labels.values())
        return shared | self.initial if foreign else shared

    def monitors(self) -> dict[str, object]:
        """The state of the bank, see `omnifm.parts.knowledge.records.Monitors`."""
        return dict(self.bank.monitors())

    def server_state(self) -> tuple[Tensors, dict[str, object]]:
        """The bank, what each site sent last, and the routed averages."""
        tensors, record = self.bank.state()
        mixed = prefixed(**self.mixed)
        parts = prefixed(bank=tensors, last=self.last, profile=self.profiles, mixed=mixed) | {"mean_sum": self.mean_sum}
        return parts, {"bank": record, "mean_count": self.mean_count}

    def restore(self, tensors: Tensors, record: Json) -> None:
        """Invert `server_state`."""
        self.bank = KnowledgeBank.from_state(under(tensors, "bank"), record["bank"])
        self.last = under(tensors, "last")
        self.profiles = under(tensors, "profile")
        self.mean_sum = tensors["mean_sum"]
        self.mean_count = record["mean_count"]
        self.mixed = to_sites(under(tensors, "mixed"))

    def _keep_profiles(self, updates: Iterable[Update]) -> None:
        """Keep the first profile of each site; all come from the initial tokenizer, so that they can be compared."""
        for update in updates:
            if "profile" in update.extra and update.site not in self.profiles:
                self.profiles[update.site] = update.extra["profile"]

    def _insert(self, updates: Iterable[Update], round_number: int) -> None:
        """Insert the sites' centroids into the bank, modality by modality, without near-duplicates."""
        for update in updates:
            if "centroids" not in update.extra:  # the site has too few patients, or its centroids were refused
                continue
            centroids = update.extra["centroids"]
            for modality in sorted(set(update.facts["centroid_modalities"])):
                rows = [i for i, m in enumerate(update.facts["centroid_modalities"]) if m == modality]
                own = centroids[rows]
                self.bank.insert(own[distinct(own)], update.site, modality, round_number)
            self.last[update.site] = centroids
            self.mean_sum = self.mean_sum + centroids.sum(0)
            self.mean_count += len(centroids)

    def _why_refused(self, update: Update, view: ServerView) -> str | None:
        """Why a contribution to the bank breaks a rule, or None."""
        needs_hits = update.stage == "train" and self.settings.retrieval == "bank"
        num_hits = len(self.sent.get(update.site, [])) if needs_hits else None
        return why_refused(update, view, self.settings.dim, self.settings.num_centroids, num_hits)

    def _running_mean(self) -> Float[Tensor, "1 d"]:
        """The only prototype of `retrieval` "mean"; zeros before the first centroid."""
        return (self.mean_sum / max(1, self.mean_count))[None]

    # The site's half.
    def seed(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Round 0: centroids of the training tokens under the initial tokenizer; with `reach` also the profile.

        A site that missed round 0 is asked for its profile with its first model.
        """
        extra, facts = centroids_of(patient_tokens(local), self.settings.num_centroids)
        return extra | (profile_of(patient_tokens(local, self.first_tokenizer)) if self.settings.reach else {}), facts

    def begin(self, local: LocalRound) -> None:
        """Compute centroids with the received tokenizer: the sensitivity bound of private centroids requires it."""
        local.scratch["centroids"] = centroids_of(patient_tokens(local), self.settings.num_centroids)
        asked = "profile" in local.extra
        local.scratch["profile"] = profile_of(patient_tokens(local, self.first_tokenizer)) if asked else {}
        local.scratch["hits"] = torch.zeros(len(local.extra["prototypes"]), device=local.extra["prototypes"].device)
        local.scratch["queries"] = 0

    def extra_loss(self, local: LocalRound, batch: Batch, output: Output) -> Tensor | float:
        """lambda * SPAlign (eq. 5 and 6); also count which prototypes were retrieved."""
        assert output.token is not None and output.retrieved is not None and output.chosen is not None
        local.scratch["hits"] += torch.bincount(output.chosen.flatten(), minlength=len(local.scratch["hits"]))
        local.scratch["queries"] += len(output.token)
        if self.settings.align_weight == 0:
            return 0.0
        return self.settings.align_weight * spectral_alignment(output.token, output.retrieved)

    def finish(self, local: LocalRound) -> tuple[Tensors, dict[str, object]]:
        """Send the centroids, their modalities, and for each prototype the share of the queries that retrieved it."""
        extra, facts = local.scratch["centroids"]
        hits = local.scratch["hits"] / max(1, local.scratch["queries"])
        return extra | {"hits": hits} | local.scratch["profile"], facts

    def personalise(self, local: LocalRound) -> None:
        """With `soup`, keep the mixture of received and trained weights with the best validation score."""
        if self.settings.soup:
            mix_with_received(local)
