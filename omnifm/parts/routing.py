"""Ours, not the paper's: each site receives its own mixture of the others' weights, by how alike their spectra are.

Two sites are as far apart as their mean tokens, in units of their patients' own spread.  So hospitals whose patients
differ as much within as between them are averaged as ever, and a modality of its own keeps to itself.  Spectra do not
tell what a site looks for: sites that call one label by other names average nothing with each other.

Letters: n sites or patients, d token width.  Everything here is fp32 or fp64 on the CPU and deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from omnifm.update import Update

TINY = 1e-12
"""Added to spreads, so that equal sites without any stay equal."""


def profile(tokens: Float[Tensor, "n d"]) -> Float[Tensor, " d1"]:
    """A site in d + 1 numbers: the mean of its patients' tokens, and their mean squared distance from it."""
    mean = tokens.mean(dim=0)
    return torch.cat([mean, (tokens - mean).square().sum(dim=1).mean()[None]])


def is_profile(values: Tensor, dim: int) -> bool:
    """Whether a site's numbers can be the profile of unit tokens: finite float32, a mean within the unit ball, and a
    spread that fits it, 1 - |mean|^2 at most."""
    if values.dtype != torch.float32 or values.shape != (dim + 1,) or not bool(values.isfinite().all()):
        return False
    return 0 <= float(values[-1]) <= 1 - float(values[:-1].square().sum()) + 1e-3


def likeness(profiles: Float[Tensor, "n d1"], reach: float) -> Float[Tensor, "n n"]:
    """exp(-|m_i - m_j|^2 / (reach (v_i + v_j))), in [0, 1]: 1 with itself, symmetric.

    Args:
        profiles: of the sites, from `profile`.
        reach: > 0; the squared distance, in units of the spread, at which a likeness is 1/e.
    """
    means, spreads = profiles[:, :-1].double(), profiles[:, -1].double()
    apart = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.exp(-apart / (reach * (spreads[:, None] + spreads + TINY)))


def contradict(labels: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether two sites give one label value two names; letter case does not count."""
    return any(name.casefold() != others.get(value, name).casefold() for value, name in labels.items())


def mixtures(
    updates: Iterable[Update],
    profiles: Mapping[str, Tensor],
    names: Iterable[str],
    reach: float,
    labels: Mapping[str, Mapping[str, str]],
    least: Mapping[str, int],
) -> dict[str, dict[str, Tensor]]:
    """For every site its own mean of the replies: weights n_j times the likeness of i and j, 0 where their labels
    contradict each other.

    Without a profile of both, a reply counts fully: what cannot be compared is not turned away.  Summed in float64 in
    the order given.

    Args:
        updates: this round's replies; may be gone through once only.
        profiles: of sites, also of some that did not reply: they receive a mixture too.
        names: tensors that are mixed.
        reach: as for `likeness`.
        labels: site -> label value -> name; a site without any contradicts nobody.
        least: site -> sum of weights below which it gets no mixture; without an entry any will do that is not zero.
    """
    sites, wanted = sorted({*profiles, *labels}), list(names)
    if not sites:
        return {}
    alike = torch.ones(len(sites), len(sites), dtype=torch.float64)
    if known := [row for row, site in enumerate(sites) if site in profiles]:
        alike[torch.tensor(known)[:, None], known] = likeness(torch.stack([profiles[sites[r]] for r in known]), reach)
    sums: dict[str, dict[str, Tensor]] = {site: {} for site in sites}
    totals, dtypes = torch.zeros(len(sites), dtype=torch.float64), dict[str, torch.dtype]()
    for update in updates:
        column = alike[:, sites.index(update.site)] if update.site in sites else torch.ones(len(sites)).double()
        own = labels.get(update.site, {})
        column = column * torch.tensor([not contradict(own, labels.get(site, {})) for site in sites])
        totals += column * update.num_samples
        for name in wanted:
            value = update.shared[name]
            dtypes[name] = value.dtype
            for site, share in zip(sites, column.tolist(), strict=True):
                term = value.double() * (share * update.num_samples)
                sums[site][name] = sums[site][name].add_(term) if name in sums[site] else term
    means = zip(sites, totals.tolist(), strict=True)
    return {
        site: {n: (v / total).to(dtypes[n]) for n, v in sums[site].items()}
        for site, total in means
        if total > TINY and total >= least.get(site, 0)
    }
