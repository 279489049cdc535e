"""`fedrounds plan DIR` and `fedrounds site budget DIR`: what a study will cost of its patients' privacy, and what has been spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def plan(directory: Path, state: Path | None, as_json: bool) -> int:
    """Forecast ε by round and over a year of the schedule, and how loud the noise is; writes nothing."""
    from fedrounds.cli.study import opened
    from fedrounds.core.plan import build
    from fedrounds.core.privacy.forecast import forecast
    from fedrounds.tasks.privacy import in_a_year

    folder, _ = opened(directory, None, state)
    year = in_a_year(folder.operations)
    rounds, dp = max(folder.operations.rounds, year), folder.study.privacy.dp
    sites = len(folder.sites) or len(folder.operations.sites or ()) or 1
    found = forecast(build(folder.study), sites, rounds)
    if as_json:
        told: dict[str, Any] = {"study": folder.study.name, "sites": sites, "rounds": rounds, "rounds_in_a_year": year}
        told["privacy"] = found and dp and {"budget": dp.budget._asdict(), **found._asdict()}
        print(json.dumps(told, ensure_ascii=False))
        return 0
    if found is None or dp is None:
        print(f"{folder.study.name}: no differential privacy, so no ε bounds what its model tells about a patient")
        return 0
    whose = "site's patients (one row is a patient)" if dp.unit == "patient" else "hospital as a whole"
    budget, last = dp.budget, len(found.epsilons) - 1
    print(f"{folder.study.name}: ε = {budget.epsilon:g} at δ = {budget.delta:.3g} for each {whose}")
    for number in sorted({0, 1, 2, 5, 10, 20, 50, 100, 200, 500, last}):
        if number <= last:
            print(
                f"  after round {number:>4}  ε = {found.epsilons[number]:.3f}{'  (statistics)' if number == 0 else ''}"
            )
    if year:
        print(f"  the schedule makes {year} rounds in a year; the budget is for {dp.rounds}")
    if folder.study.algorithm.names == ("exact",):
        print(
            f"  the noise in the sums over {sites} sites is {found.noise:.2g} of what a column has in them: far below 1 it is a fit"
        )
    else:
        print(
            f"  a step's noise is {found.noise:.2g} times the clip over {sites} sites, {found.drowned:.2g} of the signal at most after all steps"
        )
    print(f"  a feature's mean is blurred by {found.blurred:.2g} of half its range")
    if found.doubt is not None:
        print(
            f"  a version must lower the mean loss by {found.doubt:.2g} for its comparison's noise alone not to hide it"
        )
    for text in found.warnings:
        print(f"warning: {text}")
    return 0


def budget(directory: Path, state: Path | None, as_json: bool) -> int:
    """What each study has spent on each dataset: of a hospital's folder, or of a study's that ran in one process."""
    from fedrounds.core.privacy.accounting import epsilon
    from fedrounds.site.budget import Budgets
    from fedrounds.tasks.privacy import FILE

    rows: list[dict[str, Any]] = []
    if (directory / "site.toml").is_file():
        from fedrounds.tasks.folder import read_site

        policy = read_site(directory / "site.toml").policy
        file, limit, delta = directory / "state" / FILE, policy.epsilon or None, policy.delta
    else:
        from fedrounds.cli.study import opened

        folder, place = opened(directory, None, state)
        dp = folder.study.privacy.dp
        file, limit, delta = place.own / FILE, None, dp.budget.delta if dp else 1e-5
    broken = 0
    if file.is_file():
        budgets = Budgets(file)
        broken = budgets.broken()
        for dataset in budgets.datasets():
            by_study = budgets.spent(dataset)
            for study, events in by_study.items():
                rows.append(
                    {"dataset": dataset, "study": study, "releases": len(events), "epsilon": epsilon(events, delta)}
                )
            together = [event for events in by_study.values() for event in events]
            rows.append(
                {"dataset": dataset, "study": None, "releases": len(together), "epsilon": epsilon(together, delta)}
            )
        budgets.close()
    if as_json:
        print(json.dumps({"delta": delta, "limit": limit, "spent": rows, "first_broken_line": broken or None}))
        return 14 if broken else 0
    for row in rows:
        about = f"study {row['study'][:12]}" if row["study"] else "all studies"
        bound = f" of {limit:g}" if limit and not row["study"] else ""
        print(
            f"{row['dataset']:<16} {about:<18} ε = {row['epsilon']:.3f}{bound} at δ = {delta:.3g} ({row['releases']} releases)"
        )
    if not rows:
        print("nothing was spent yet")
    if broken:
        print(f"warning: line {broken} of {file} does not follow from the one before: somebody changed the ledger")
    return 14 if broken else 0
