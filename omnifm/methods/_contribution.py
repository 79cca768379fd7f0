"""What a site of OmniFM contributes to the bank: how it is computed at the site, and how the server checks it.

Letters: n patients, m centroids, d token width.
"""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from omnifm.method import LocalRound, ServerView, Tensors
from omnifm.model import OmniModel
from omnifm.parts.knowledge import retrieve, spherical_kmeans
from omnifm.parts.routing import profile
from omnifm.parts.spectral import SpectralTokenizer
from omnifm.update import Update

MIN_PATIENTS = 3
"""Minimum number of patients behind a centroid that leaves the site: the mean of one patient would be that patient."""


# At the site.
def patient_tokens(local: LocalRound, tokenizer: SpectralTokenizer | None = None) -> dict[str, Tensor]:
    """Mean token of every patient (n d) by modality; without a tokenizer, with the model's."""
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


def centroids_of(patients: dict[str, Tensor], most: int) -> tuple[Tensors, dict[str, object]]:
    """At most `most` centroids per modality, each over several patients: no token of one image or patient leaves.

    Args:
        patients: mean tokens by modality, see `patient_tokens`.
        most: maximum number of centroids per modality.

    Returns:
        The tensor `centroids` (m d), or nothing if no modality has enough patients; and the modality of each.
    """
    rows: list[Tensor] = []
    modalities: list[str] = []
    for modality, means in patients.items():
        if len(means) >= MIN_PATIENTS:
            rows.append(_safe_centroids(means, most))
            modalities += [modality] * len(rows[-1])
    return ({"centroids": torch.cat(rows)} if rows else {}), {"centroid_modalities": modalities}


def profile_of(patients: dict[str, Tensor]) -> Tensors:
    """The tensor `profile`: mean and spread of the patients' tokens; nothing if there are too few patients."""
    tokens = list(patients.values())
    # Per modality, because one patient with three modalities is still one patient.
    if max(len(means) for means in tokens) < MIN_PATIENTS:
        return {}
    return {"profile": profile(torch.cat(tokens))}


def _safe_centroids(means: Float[Tensor, "n d"], most: int) -> Float[Tensor, "m d"]:
    """The largest number of centroids, up to `most`, such that each is the nearest one of MIN_PATIENTS patients."""
    for num in range(min(most, len(means) // MIN_PATIENTS), 1, -1):
        centroids = spherical_kmeans(means, num, seed=0)
        nearest = retrieve(means, centroids, None, 1)[:, 0]
        if nearest.bincount(minlength=len(centroids)).min() >= MIN_PATIENTS:
            return centroids
    return spherical_kmeans(means, 1, seed=0)


# At the server.
def why_refused(update: Update, view: ServerView, dim: int, most: int, num_hits: int | None) -> str | None:
    """Why a contribution to the bank breaks a rule, or None; the site's weights are judged separately.

    A site may send `most` centroids per modality that it has described.  The bank keeps the last entry of every
    modality, so a site that could invent modalities could fill the bank.

    Args:
        update: a site's reply.
        view: what the server knows about the sites.
        dim: d, width of a centroid.
        most: maximum number of centroids per modality.
        num_hits: number of `hits` that the reply must hold; None if it needs none.
    """
    centroids = update.extra.get("centroids")
    modalities = update.facts.get("centroid_modalities")
    if centroids is None or centroids.ndim != 2 or not len(centroids) or centroids.dtype != torch.float32:
        return "it must hold centroids, float32 in rows"
    if not isinstance(modalities, list) or not all(isinstance(m, str) and len(m) <= 16 for m in modalities):
        return "it must hold the modality of each centroid"
    if len(modalities) != len(centroids):
        return f"{len(centroids)} centroids must have as many modalities; got {len(modalities)}"
    if centroids.shape[1:] != (dim,) or max(Counter(modalities).values()) > most:
        return f"centroids must be at most {most} per modality; got {tuple(centroids.shape)}"
    if foreign := set(modalities) - view.modalities.get(update.site, set(modalities)) - {""}:
        return f"centroids must be of modalities that the site has described; got {len(foreign)} others"
    if not torch.isfinite(centroids).all() or (centroids.norm(dim=1) - 1).abs().max() > 1e-3:
        return "centroids must be finite and of unit length"
    return None if num_hits is None else _why_hits_refused(update.extra.get("hits"), num_hits)


def _why_hits_refused(hits: Tensor | None, num_hits: int) -> str | None:
    """Why these are not the shares of the shortlist's entries, or None."""
    if hits is None or (hits.dtype, hits.shape) != (torch.float32, (num_hits,)):
        return f"hits must be {num_hits} shares, float32"
    if not ((hits >= 0) & (hits <= 1)).all():
        return f"hits must be {num_hits} shares in [0, 1]"
    return None
