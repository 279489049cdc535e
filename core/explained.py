"""What the sums of an explanation say, site by site and of all together, as the ledger notes it (`core/explain.py` has the sums)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrounds.core.algorithm import Sums, summed
from fedrounds.core.evaluate import HEADLINE, LOSS, metrics
from fedrounds.core.explain import counts_of, grids
from fedrounds.core.masked import TOGETHER
from fedrounds.core.params import Array
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Statistics
from fedrounds.core.study import Category, Multiclass, canonical
from fedrounds.core.subgroups import partings

FEWEST = 10  # patients: numbers of fewer are told of nobody, whatever the hospitals' policies allow
Told = dict[str, Any]


def understood(plan: Plan, statistics: Statistics, parts: Mapping[str, Sums]) -> Told:
    """All that the sums of the sites say.

    Args:
        parts: site -> its sums, of the shapes that `explain.explaining` states, or under masks those of `(all sites)`.

    Returns:
        `metric`, `loss`: their names. `everywhere`, and `sites`: metrics of all and of each, for whom there are any. `features`: of each the
        `importance` (by how much the mean loss rises when it is permuted), its standard `deviation` over the repeats, the importance at each
        of `sites`, and by score the means of φ (`shift`) and of |φ| (`weight`), if the model has any, over the sites that tell them; None if
        none does. `dependence`: of each feature with a grid the `points` and the mean prediction at each, by output. `subgroups`: of each
        parting its `groups`, with metrics of all and of `sites`. `outputs`: what predictions are of, `scores`: what φ is of.
    """
    whole = summed(parts[site] for site in sorted(parts))
    shown = {} if TOGETHER in parts else {site: sums for site, sums in parts.items() if _judged(sums) >= FEWEST}
    labels = (
        [canonical(label) for label in plan.study.target.classes] if isinstance(plan.study.target, Multiclass) else [""]
    )
    judged = _judged(whole) >= FEWEST
    scores = whole["attribution"].shape[1] if "attribution" in whole else 0
    return {
        "metric": HEADLINE[plan.task],
        "loss": LOSS[plan.task],
        "everywhere": _metrics(plan, whole) if judged else {},
        "sites": {site: _metrics(plan, sums) for site, sums in shown.items()},
        "features": _features(plan, whole, shown) if judged else [],
        "dependence": _dependence(plan, statistics, whole) if judged and "dependence" in whole else [],
        "subgroups": _subgroups(plan, whole, shown),
        "outputs": labels,
        "scores": labels if scores == len(labels) else [""] * scores,
    }


def _judged(sums: Sums) -> float:
    return float(sums["scores"][0])


def _metrics(plan: Plan, sums: Sums) -> dict[str, float]:
    return metrics(plan.task, sums["scores"], sums["histogram"])


def _rises(sums: Sums) -> Array:
    """(features, repeats) by how much the mean loss rises."""
    return (sums["shuffled"] - sums["scores"][1]) / sums["scores"][0]


def _features(plan: Plan, whole: Sums, shown: Mapping[str, Sums]) -> list[Told]:
    rises = _rises(whole)
    found: list[Told] = []
    for j, feature in enumerate(plan.study.features):
        told: Told = {
            "feature": feature.name,
            "unit": feature.unit,
            "importance": float(rises[j].mean()),
            "deviation": float(rises[j].std(ddof=1)) if rises.shape[1] > 1 else 0.0,
            "sites": {site: float(_rises(sums)[j].mean()) for site, sums in shown.items()},
        }
        if "attribution" in whole:
            of = float(whole["attributed"][j])
            means = (
                (whole["attribution"][j] / of).T.tolist()
                if of >= FEWEST
                else [[None] * whole["attribution"].shape[1]] * 2
            )
            told |= {"shift": means[0], "weight": means[1]}
        found.append(told)
    return found


def _dependence(plan: Plan, statistics: Statistics, whole: Sums) -> list[Told]:
    found: list[Told] = []
    means, start = whole["dependence"] / _judged(whole), 0
    grid_of = grids(plan.study, statistics)
    for feature, grid, count in zip(plan.study.features, grid_of, counts_of(plan.study), strict=True):
        if not count:
            continue
        category = isinstance(feature, Category)
        points = [canonical(level) for level in feature.categories] if category else grid.tolist()
        values = means[start : start + count].T.tolist()
        found.append({"feature": feature.name, "unit": feature.unit, "points": points, "means": values})
        start += count
    return found


def _subgroups(plan: Plan, whole: Sums, shown: Mapping[str, Sums]) -> list[Told]:
    found: list[Told] = []
    for number, parting in enumerate(partings(plan.study)):
        name = f"subgroup.{number}"

        def told(sums: Sums, at: int, name: str = name) -> dict[str, float]:
            cell = sums[name][at]
            return metrics(plan.task, cell, sums[f"{name}.histogram"][at]) if cell[0] >= FEWEST else {}

        groups = [
            {
                "group": label,
                "everywhere": told(whole, at),
                "sites": {site: one for site, sums in shown.items() if (one := told(sums, at))},
            }
            for at, label in enumerate(parting.labels)
        ]
        if any(group["everywhere"] for group in groups):
            found.append({"feature": parting.feature, "groups": [group for group in groups if group["everywhere"]]})
    return found
