"""What a study under differential privacy will cost, and whether it can work at all, before its first round: public numbers alone."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

from fedrounds.core.plan import Plan
from fedrounds.core.privacy import compared, private, sufficient
from fedrounds.core.privacy.accounting import epsilon
from fedrounds.core.privacy.hospital import Hospitals
from fedrounds.core.privacy.noise import Gaussian
from fedrounds.core.privacy.noised import made
from fedrounds.core.privacy.patient import Differential, Scores
from fedrounds.core.strategy import Exact
from fedrounds.core.study import Study

DROWNED = (
    0.5  # noise over the most that signal can be, after all steps: above it a study is not worth its patients' privacy
)
FEW = 10  # hospitals: with fewer a model that protects one of them was worth little wherever it was measured
BLURRED = 0.25  # of half a range: what the noise may do to a feature's mean over all sites


class Forecast(NamedTuple):
    """A study's course.

    Args:
        epsilons: ε after round 0, 1, …: of each site's rows.
        multiplier: z of training.
        noise: standard deviation of the noise in the averaged step, as a vector's length, over the clip: what a step's signal is at most. Of an
            exact fit: how far it moves an eigenvalue of the sums of all sites, over the number of their patients.
        drowned: the same after all steps, where signal adds up and noise by its square root.
        blurred: standard deviation of the noise in a feature's mean, in halves of its range.
        warnings: why it cannot work, or what to know; empty if there is nothing.
        doubt: how far noise alone makes the interval of a comparison with the champion reach; None where none are made.
    """

    epsilons: tuple[float, ...]
    multiplier: float
    noise: float
    drowned: float
    blurred: float
    warnings: tuple[str, ...]
    doubt: float | None = None


def forecast(plan: Plan, sites: int, rounds: int) -> Forecast | None:
    """The course of so many rounds at so many sites; None without differential privacy.

    The averaged step of K sites has noise of z √d / (q n √K) clips in length, and signal of at most one clip. Under masks the noise is
    made together, and is z √d / (q n K) √(K / (t - c)).

    Raises:
        UpdateRejected: under masks, too few sites are left to make noise.
    """
    dp, study = plan.study.privacy.dp, plan.study
    if dp is None:
        return None
    first, one = dp.statistics_event(), dp.training_event()
    budget, size = dp.budget, plan.family.layout.size
    reach = min(rounds, dp.rounds)
    epsilons = tuple(
        epsilon([first, one._replace(times=one.times * r), *dp.comparing(r)], budget.delta) for r in range(reach + 1)
    )
    exact = isinstance(study.algorithm, Exact)
    if isinstance(dp, Hospitals):  # in clips; what is divided by is the number of hospitals alone
        mechanism, clip, divisor, rows, steps = dp.mechanism(dp.size(size)), 1.0, 1.0, 1.0, 1
    elif exact:  # how far it moves an eigenvalue of the sums (`sufficient.fitted`), over that of a standardised column
        mechanism, clip, divisor, rows, steps = sufficient.mechanism(dp, size), sqrt(0.5), dp.patients, dp.patients, 1
    else:
        mechanism, clip, divisor, rows, steps = (
            Gaussian(dp.clip, one.multiplier, size),
            dp.clip,
            dp.batch,
            dp.patients,
            dp.steps,
        )
    apart = (
        sqrt(made(sites, sites, sites, dp.colluders)) / sites if study.masked else 1 / sqrt(sites)
    )  # of one site's noise in the mean
    noise = mechanism.deviation / clip * sqrt(size) * apart / divisor
    drowned = noise if exact else noise / sqrt(max(reach, 1) * steps)  # each exact fit is a new one
    counts = Gaussian(private.sensitivity(study), first.multiplier, 1 + sum(map(private.shares_of, study.features)))
    blurred = counts.deviation / rows * apart
    doubt = _doubt(dp, dp.scores, study, sites) if isinstance(dp, Differential) and dp.scores else None
    protected = dp.hospitals if isinstance(dp, Hospitals) else dp.patients
    warnings = [
        (
            dp.unit == "hospital" and sites < FEW,
            f"of {sites} hospitals none can hide where something is to be learnt (a step's noise is {noise:.2g} times the clip): expected {FEW}",
        ),
        (
            rounds > dp.rounds,
            f"the budget is calibrated for {dp.rounds} rounds: of {rounds}, sites refuse those after round {dp.rounds}",
        ),
        (
            drowned > DROWNED,
            f"the study cannot work: the noise of all rounds is {drowned:.2g} times what the signal can be at most (state more ε)",
        ),
        (
            blurred > BLURRED,
            f"the noise moves a feature's mean by {blurred:.2g} of half its range: raise privacy.dp.statistics, or ask for fewer features",
        ),
        (
            doubt is not None and dp.scores is not None and doubt > dp.scores.clip,
            "no version can be promoted: the noise in a comparison is larger than all patients' losses can move it: raise privacy.dp.scores.every",
        ),
        (
            budget.delta > 1 / protected,
            f"δ = {budget.delta:.2g} is more than one {dp.unit} in {protected}: state a smaller one",
        ),
        (
            study.masked is not None and not dp.spare,
            "an exchange that is asked again, after a crash or a lost quorum, costs again: state privacy.dp.spare, or the last may be refused",
        ),
        (budget.epsilon > 10, f"ε = {budget.epsilon:.3g} bounds next to nothing of what is learnt about a patient"),
    ]
    said = tuple(text for holds, text in warnings if holds)
    return Forecast(epsilons, one.multiplier, noise, drowned, blurred, said, doubt)


def _doubt(dp: Differential, scores: Scores, study: Study, sites: int) -> float:
    """How far noise alone makes the interval of a comparison reach at 95 %, in loss.

    As many patients judge at each site as `validation.fraction` leaves beside those that train, whatever a fold column says.
    """
    share = study.validation.fraction
    judging = max(sites * dp.patients * share / (1 - share), 1.0)
    times = made(sites, sites, sites, dp.colluders) if study.masked else sites  # the variance that is accounted for
    noise = compared.mechanism(dp).deviation * scores.clip * sqrt(times)
    return NormalDist().inv_cdf(0.975) * noise / judging
