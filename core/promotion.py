"""Whether the latest version becomes champion: one rule, and one sentence that says why.

Both models are scored on the same validation rows at the same visit, so their losses are compared patient by patient: a site sends
`[n, Σd, Σd²]` of d = loss(candidate) − loss(champion), and sums of sites add up.

The interval of a mean difference is Student's, two-sided, with n − 1 degrees of freedom (Student 1908), over the patients of all sites
together: it takes patients as independent draws and knows nothing of hospitals as clusters. It is one look: at a confidence of 0.95 a
version that is no better passes once in forty, so a study that asks every round for long should ask for more confidence.

Under differential privacy the three sums hold noise of known variance, which the interval takes in (D'Orazio, Honaker and King 2015,
"Differential privacy for social science inference": the variance of an estimate is that of sampling plus that of the noise):

    mean ± t √( s²/n + (v_Σd + mean² v_n) / n² )            s² from Σd² + ¾ t √v_Σd²

The second term is that of a ratio of two noised sums (delta method). Σd² is taken to be larger than it is told, as too small an s² would promote:
with ¾ a version that is no better passes no oftener than without noise, whatever s² and the noise are (a test goes through them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from fedrounds.core.algorithm import Scores
from fedrounds.core.evaluate import PAIRED
from fedrounds.core.masked import TOGETHER
from fedrounds.core.operations import Promotion
from fedrounds.core.params import Array
from fedrounds.core.worse import Worse

Outcome = Literal["promoted", "kept", "pending"]
HIDDEN = 0.75  # of t standard deviations of the noise in Σd²: so much of it may be missing


class Interval(NamedTuple):
    """A mean difference of losses over n patients, and its confidence interval; None where n is too small for one."""

    n: int
    mean: float
    low: float | None
    high: float | None


class Check(NamedTuple):
    """One part of the rule: what was found, and the limit that it is held against."""

    rule: str
    passed: bool
    found: float | None
    limit: float


class Decision(NamedTuple):
    """What was decided, the sentence that goes on record, and the numbers behind both."""

    outcome: Outcome
    reason: str
    paired: Interval | None = None
    sites: Mapping[str, Interval] = {}
    checks: tuple[Check, ...] = ()
    confidence: float = 0.0
    worse: Worse | None = None  # under masks: how many sites' losses rose

    @property
    def promote(self) -> bool:
        """Whether the version is champion from now on."""
        return self.outcome == "promoted"


def interval(sums: Array, confidence: float) -> Interval:
    """The mean of n differences and its interval, from `[n, Σd, Σd²]` (3,); where there is noise (6,), its variances in each behind them.

    s² = (Σd² − (Σd)²/n) / (n − 1), mean ± t s / √n. A confidence of 0 gives the mean alone; below two patients there is no interval.

    >>> [round(value, 6) for value in interval(np.array([4.0, 8.0, 20.0]), 0.95)]  # 1, 1, 3, 3: t of 3 degrees of freedom is 3.182446
    [4, 2.0, 0.162614, 3.837386]
    """
    from scipy.special import stdtrit  # here, because `fedrounds --help` must not load scipy

    n, total, squares = (float(value) for value in sums[:PAIRED])
    mean = total / n
    if n < 2:
        return Interval(round(n), mean, None, None)
    t = float(stdtrit(n - 1, (1 + confidence) / 2))
    v_n, v_total, v_squares = (float(value) for value in sums[PAIRED:]) if len(sums) > PAIRED else (0.0, 0.0, 0.0)
    spread = max(squares + HIDDEN * t * sqrt(v_squares) - total * mean, 0.0) / (n - 1)
    half = t * sqrt(spread / n + (v_total + mean * mean * v_n) / (n * n))
    return (
        Interval(round(n), mean, mean - half, mean + half) if isfinite(half) else Interval(round(n), mean, None, None)
    )


def beyond_noise(sums: Array, sites: int, confidence: float) -> float:
    """How much of a site's mean difference its own noise does not explain, as one of so many sites; the mean itself where there is no noise.

    `sums` are (3,), or (6,) with the variances of the noise, as `interval` takes them.

    By Bonferroni none of the sites is above its true mean by chance with this confidence; so that noise alone does not veto.

    >>> round(beyond_noise(np.array([100.0, 10.0, 4.0, 0.0, 4.0, 0.0]), 1, 0.95), 6)  # 0.1 less 1.96 times 2 in 100
    0.060801
    """
    mean = float(sums[1] / sums[0])
    if len(sums) == PAIRED:
        return mean
    noise = sqrt(float(sums[PAIRED + 1] + mean * mean * sums[PAIRED])) / float(sums[0])
    return mean - NormalDist().inv_cdf(1 - (1 - confidence) / (2 * sites)) * noise


def judge(
    rule: Promotion,
    candidate: Scores,
    paired: Mapping[str, Array] | None,
    failed: Sequence[str] = (),
    worse: Worse | None = None,
) -> Decision:
    """Hold a version against the rule.

    The upper end of the pooled mean difference's interval must lie below −`rule.improvement`, no site's mean difference (the value, not
    its interval: a small hospital would veto everything) above `rule.margin`, and with `gates = "passed"` no site may be in `failed`.
    What passes waits for a person where `approval` is required.

    Args:
        candidate: what each site's validation rows say of the version, for the sentence; empty where nobody is told.
        paired: site -> [n, Σd, Σd²] against the champion, of sites with validation rows; None if there is no champion. Where noise is in them
            (their variances follow) a site counts as risen by what its noise does not explain.
        failed: sites whose data did not pass the gate in the version's own round.
        worse: under masks, at how many sites the loss rose by more than the protocol's margin, which then takes the place of `rule.margin`:
            there must be none.

    >>> scores = {"east": (np.array([10.0, 4.0, 0, 0]), np.zeros(0)), "west": (np.array([10.0, 7.0, 0, 0]), np.zeros(0))}
    >>> paired = {"east": np.array([10.0, -2.0, 0.4]), "west": np.array([10.0, 1.0, 0.1])}
    >>> judge(Promotion(margin=0.05), scores, paired).reason
    "kept the champion: the loss at 'west' rose by 0.1 from 0.6 to 0.7, the margin is 0.05 (pooled 0.6 to 0.55)"
    """
    gates = [Check("gates", not failed, float(len(failed)), 0.0)] if rule.gates == "passed" else []
    ungated = f"the data of {_named(failed)} did not pass the gate in its round" if gates and failed else ""
    if paired is None:
        if ungated:
            return Decision("kept", f"not promoted: {ungated}", checks=tuple(gates))
        return _passed(rule, "it is the first model", Decision("promoted", "", checks=tuple(gates)))
    shared = sorted(site for site, sums in paired.items() if sums[0] > 0)
    if not shared:
        return Decision("kept", "kept the champion: no site has scored both models", checks=tuple(gates))
    sites = {site: interval(paired[site], rule.confidence) for site in shared}
    total = np.zeros_like(paired[shared[0]])
    for site in shared:
        total = total + paired[site]
    noised = len(total) > PAIRED
    pooled = interval(total, rule.confidence)
    masked = shared == [TOGETHER]  # then there is no site's own to look at
    rises = {site: beyond_noise(paired[site], len(shared), rule.confidence) for site in shared}
    worst = max(shared, key=lambda site: rises[site])
    rise = rises[worst]
    must = 0.0 - rule.improvement
    better = Check("improvement", pooled.high is not None and pooled.high < must, pooled.high, must)
    harmless = Check("margin", rise <= rule.margin, rise, rule.margin)
    if masked and worse:
        harmless = Check("worse", worse.sites == 0, float(worse.sites), 0.0)
    checks = (better, *gates) if masked and not worse else (better, harmless, *gates)
    found = Decision("kept", "", pooled, {} if masked else sites, checks, rule.confidence, worse)
    where = (
        f"; {worse.said}"
        if worse
        else ""
        if masked
        else f"; worst at '{worst}', {rise:+.4g}{' less its noise' if noised else ''}"
    )
    over = "all sites together" if masked else f"{len(shared)} sites"

    change = "noise included" if noised else _change(candidate, shared, pooled)
    sure = f"{_interval(pooled, rule.confidence)}{change}"
    if worse and not harmless.passed:
        why = f"{worse.said} ({change})"
    elif not harmless.passed and noised and not masked:
        why = f"the loss at '{worst}' rose by {rise:.4g} more than its noise explains, the margin is {rule.margin:.4g} ({sure})"
    elif not harmless.passed and not masked:
        now = float(candidate[worst][0][1]) / sites[worst].n
        why = f"the loss at '{worst}' rose by {rise:.4g} from {now - rise:.4g} to {now:.4g}, the margin is {rule.margin:.4g} ({change})"
    elif not better.passed:
        had = "its upper end had to be below" if rule.confidence else "it had to be below"
        why = f"the loss changed by {pooled.mean:+.4g} ({sure}), {had} {must:.4g}{where}"
    elif ungated:
        why = f"{ungated} ({sure})"
    else:
        why = f"the loss fell by {-pooled.mean:.4g} ({sure}) over {over}{where}"
        return _passed(rule, why, found)
    return found._replace(reason=f"kept the champion: {why}")


def _change(candidate: Scores, shared: Sequence[str], pooled: Interval) -> str:
    after = sum(float(candidate[site][0][1]) for site in shared) / pooled.n
    return f"pooled {after - pooled.mean:.4g} to {after:.4g}"


def _passed(rule: Promotion, why: str, found: Decision) -> Decision:
    """The decision on a version that holds against the rule."""
    if rule.approval == "required":
        return found._replace(outcome="pending", reason=f"waits for approval: {why}")
    return found._replace(outcome="promoted", reason=f"promoted: {why}")


def _interval(found: Interval, confidence: float) -> str:
    if found.low is None or found.high is None:
        return "too few patients for an interval; "
    return f"{100 * confidence:g} % interval {found.low:+.4g} to {found.high:+.4g}; " if confidence else ""


def _named(sites: Sequence[str]) -> str:
    """Up to four names.

    >>> _named(["a", "b"]), _named(["a", "b", "c", "d", "e", "f"])
    ("'a', 'b'", "'a', 'b', 'c', 'd' and 2 more")
    """
    more = f" and {len(sites) - 4} more" if len(sites) > 4 else ""
    return ", ".join(f"'{site}'" for site in sites[:4]) + more
