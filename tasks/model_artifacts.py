"""What lies beside a registered version: all that another study starts from, and the regression table of an exact fit."""

from __future__ import annotations

from pathlib import Path

from fedrounds.core.plan import Plan
from fedrounds.core.regression import regression
from fedrounds.core.state import RunState


def write(plan: Plan, state: RunState, folder: Path) -> None:
    """Write parameters.npz, statistics.npz and study.json and, of an exact fit of coefficients, regression.csv, .html and .svg."""
    import json

    import numpy as np

    from fedrounds.reports import forest

    named = plan.family.named or plan.family.layout.split
    np.savez(folder / "parameters.npz", **named(state.theta))
    np.savez(folder / "statistics.npz", **state.statistics)
    (folder / "study.json").write_text(json.dumps(plan.study.model_dump(mode="json"), indent=2), encoding="utf-8")
    found = regression(plan, state)
    if found is None:
        return
    title = f"{plan.study.title or plan.study.name}: round {state.round}"
    for kind, text in (
        ("csv", forest.as_csv(found)),
        ("html", forest.page(found, title)),
        ("svg", forest.picture(found)),
    ):
        (folder / f"regression.{kind}").write_text(text, encoding="utf-8")
