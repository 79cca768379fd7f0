"""Routing (ours, not the paper's): each site receives its own average, in which sites with similar spectra count more.

The distance of two sites is the distance of their mean spectral tokens, in units of the spread of their patients.
Sites that differ no more than the patients within a site are averaged as by FedAvg.  A site with a modality of its own
is averaged with almost nobody.  Spectra do not show which label has which meaning: sites that give one label value
different names are not averaged with each other.

Letters: n sites or patients, d token width, d1 = d + 1.  Everything is float32 or float64 on the CPU and deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from omnifm.update import Update

TINY = 1e-12
"""Added to the spreads, so that two equal sites without spread have likeness 1, not 0 / 0."""


def profile(tokens: Float[Tensor, "n d"]) -> Float[Tensor, " d1"]:
    """A site in d + 1 numbers: the mean of its patients' tokens, then their mean squared distance from this mean.

    >>> profile(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([0.5000, 0.5000, 0.5000])
    """
    mean = tokens.mean(dim=0)
    return torch.cat([mean, (tokens - mean).square().sum(dim=1).mean()[None]])


def is_profile(values: Tensor, dim: int) -> bool:
    """Whether these numbers can be the profile of unit tokens of width `dim`.

    They must be finite float32, with a spread between 0 and 1 - |mean|^2, its value for unit tokens.
    """
    if values.dtype != torch.float32 or values.shape != (dim + 1,) or not bool(values.isfinite().all()):
        return False
    return 0 <= float(values[-1]) <= 1 - float(values[:-1].square().sum()) + 1e-3


def likeness(profiles: Float[Tensor, "n d1"], reach: float) -> Float[Tensor, "n n"]:
    """exp(-|m_i - m_j|^2 / (reach (v_i + v_j))) for means m and spreads v: symmetric, in [0, 1], and 1 with itself.

    >>> likeness(torch.tensor([[0.0, 0.0, 2.0], [3.0, 4.0, 3.0]]), reach=5.0).round(decimals=4)  # exp(-25 / 25)
    tensor([[1.0000, 0.3679],
            [0.3679, 1.0000]], dtype=torch.float64)

    Args:
        profiles: of the sites, from `profile`.
        reach: > 0; the squared distance, in units of the spread, at which the likeness is 1/e.
    """
    means, spreads = profiles[:, :-1].double(), profiles[:, -1].double()
    apart = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.exp(-apart / (reach * (spreads[:, None] + spreads + TINY)))


def contradict(labels: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether two sites give one label value different names; upper and lower case are the same.

    >>> contradict({"1": "Tumour"}, {"1": "tumour", "2": "oedema"}), contradict({"1": "tumour"}, {"1": "liver"})
    (False, True)
    """
    return any(name.casefold() != others.get(value, name).casefold() for value, name in labels.items())


def mixtures(
    updates: Iterable[Update],
    profiles: Mapping[str, Tensor],
    names: Iterable[str],
    reach: float,
    labels: Mapping[str, Mapping[str, str]],
    least: Mapping[str, int],
) -> dict[str, dict[str, Tensor]]:
    """Return each site's own mean of the replies.

    In the mean of site i, reply j has the weight n_j times the likeness of i and j, or 0 where their labels contradict
    each other.  If either site has no profile, the likeness is 1.  Sums are float64, in the order of the replies.

    Args:
        updates: this round's replies; they are iterated once.
        profiles: by site, see `profile`; sites that did not reply receive a mixture too.
        names: tensors to mix.
        reach: see `likeness`.
        labels: label names by label value by site; a site without label names contradicts nobody.
        least: by site, the sum of weights below which it gets no mixture; without an entry any sum above 0 is enough.

    Returns:
        Tensors by name by site, for the sites in `profiles` or `labels`.
    """
    sites = sorted({*profiles, *labels})
    wanted = list(names)
    if not sites:
        return {}
    alike = _likeness_of_all(sites, profiles, reach)
    sums: dict[str, dict[str, Tensor]] = {site: {} for site in sites}
    totals = torch.zeros(len(sites), dtype=torch.float64)
    dtypes: dict[str, torch.dtype] = {}
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


def _likeness_of_all(sites: list[str], profiles: Mapping[str, Tensor], reach: float) -> Float[Tensor, "n n"]:
    """Likeness of all pairs of sites; 1 where a profile is missing."""
    alike = torch.ones(len(sites), len(sites), dtype=torch.float64)
    if known := [row for row, site in enumerate(sites) if site in profiles]:
        alike[torch.tensor(known)[:, None], known] = likeness(torch.stack([profiles[sites[r]] for r in known]), reach)
    return alike
