"""A champion under differential privacy, measured: what noised comparisons let pass, and what they cost. Writes docs/privacy-scores.md.

python benchmarks/privacy_scores.py [SEEDS]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from privacy_dp import ROUNDS, _split, auc, study, wdbc
from privacy_together import dealt

from fedrounds.core.champion import judged
from fedrounds.core.operations import Promotion
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Cohort, encode
from fedrounds.core.privacy.compared import mechanism, sums, variances, vector
from fedrounds.core.privacy.noise import Bits
from fedrounds.core.privacy.patient import Differential
from fedrounds.core.promotion import judge
from fedrounds.core.round import Closed, close_exchange, open_round
from fedrounds.core.simulate import OPEN, handle
from fedrounds.core.study import Study

PAGE = Path(__file__).resolve().parent.parent / "docs" / "privacy-scores.md"
MARK = "<!-- measured -->"
DRAWS = 2000
SPREAD = 0.15  # standard deviation of a patient's difference of losses: about that between two rounds' logistic models


def rates() -> Iterator[str]:
    """How often versions are promoted that are as good as the champion, or better by a known amount."""
    yield "| judging at each of 4 sites | promoted though as good | better by .02 | better by .05 | without noise: .02 | without noise: .05 |"
    yield "|---|---|---|---|---|---|"
    rng = np.random.default_rng(0)
    for judging in (30, 150, 750, 3750):
        dp = Differential.model_validate(
            {
                "unit": "patient",
                "epsilon": 3.0,
                "patients": 4 * judging,
                "rounds": 50,
                "scores": {"share": 0.3, "every": 10, "clip": 0.5},
            }
        )
        release, scores = mechanism(dp), {f"s{k}": (np.ones(4), np.zeros(0)) for k in range(4)}

        def rate(
            better: float, noise: bool, judging: int = judging, release: Any = release, scores: Any = scores
        ) -> str:
            passed = 0
            for _ in range(DRAWS):
                paired: dict[str, Any] = {}
                for site in scores:
                    d = rng.normal(-better, SPREAD, judging)
                    bare = vector(d, np.zeros(judging), 0.5)
                    told = sums(release.release(bare, Bits()) if noise else bare, 0.5)
                    paired[site] = np.append(told, variances(release.deviation, 0.5) if noise else [])
                passed += judge(Promotion(margin=1.0), scores, paired).promote
            return f"{100 * passed / DRAWS:.1f} %"

        cells = [rate(0.0, True), rate(0.02, True), rate(0.05, True), rate(0.02, False), rate(0.05, False)]
        yield f"| {judging} | {' | '.join(cells)} |"


def lived(plan: Plan, cohorts: list[Cohort]) -> tuple[Any, Any, int]:
    """The newest state, the champion's, and how many versions were promoted."""
    state, promoted = plan.start(), 0
    data: dict[str, Any] = {it.site: it for it in cohorts}

    def visit(ask: Any) -> Closed:
        asking = open_round(state, plan, ask, data)
        replies = [
            handle(asking.request, {}, data[site], plan, OPEN, site, np.random.default_rng(0))[1]
            for site in sorted(data)
        ]
        closed = close_exchange(asking, plan, replies)
        assert isinstance(closed, Closed)
        return closed

    state = visit("statistics").state
    data = {it.site: encode(it, plan.study, state.statistics, plan.ones) for it in cohorts}
    for _ in range(ROUNDS):
        state, decision = judged(state, visit("score"), Promotion(margin=1.0), known=False)
        promoted += decision is not None and decision.promote
        state = visit("train").state
    state, decision = judged(state, visit("score"), Promotion(margin=1.0), known=False)
    assert state.champion
    return state, replace(state, theta=state.champion.theta), promoted + (decision is not None and decision.promote)


def models(seeds: int) -> Iterator[str]:
    """AUC of the newest version and of the champion."""
    table, features = wdbc()
    target = {"kind": "binary", "column": "ill", "positive": ["yes"], "negative": ["no"]}
    yield "| WDBC, 4 sites, 114 train and 28 judge at each | newest, without the word | newest | champion | its round, of 60 | promoted, of 6 |"
    yield "|---|---|---|---|---|---|"
    for eps in (1.0, 3.0, 8.0):
        words = study("wdbc", features, target, eps, 114).model_dump(mode="json", exclude={"title", "note"})
        silent = build(Study.model_validate(words))
        words["privacy"]["dp"] |= {"statistics": 0.4, "scores": {"share": 0.3, "every": 10, "clip": 0.5}}
        plan = build(Study.model_validate(words))
        found: dict[str, list[float]] = {name: [] for name in ("silent", "newest", "champion", "round", "promoted")}
        for seed in range(seeds):
            cohorts = dealt(plan, table, *_split(seed, table), seed, 4)
            newest, champion, promoted = lived(plan, cohorts)
            found["newest"].append(auc(plan, newest, cohorts))
            found["champion"].append(auc(plan, champion, cohorts))
            found["round"].append(newest.champion.round)
            found["promoted"].append(promoted)
            found["silent"].append(auc(silent, _trained(silent, cohorts), cohorts))
        cells = [f"{np.mean(found[name]):.4f} ± {np.std(found[name]):.4f}" for name in ("silent", "newest", "champion")]
        yield f"| ε = {eps:g} | {' | '.join(cells)} | {np.mean(found['round']):.0f} | {np.mean(found['promoted']):.1f} |"


def _trained(plan: Plan, cohorts: list[Cohort]) -> Any:
    from fedrounds.core.simulate import simulate

    *_, last = simulate(plan, {it.site: it for it in cohorts}, ROUNDS)
    return last.state


def main() -> None:
    """Measure, print, and write what was measured into the page."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    lines = [*rates(), "", *models(seeds)]
    print("\n".join(lines))
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(
        f"{head}{MARK}\n\nBy `python benchmarks/privacy_scores.py {seeds}`.\n\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
