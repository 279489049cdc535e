"""`handle` is all that runs on patient data: a request comes in, sums over the site's patients go out, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, StringConstraints

from fedrounds.core import encrypted, encrypting, masked, sheets, worse
from fedrounds.core.algorithm import SiteState, Sums
from fedrounds.core.codec import foreign, widen, written
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.frozen import Frozen
from fedrounds.core.groups import roster_of
from fedrounds.core.masked import Self
from fedrounds.core.messages import OF_TABLE, Reply, Request, answer_to
from fedrounds.core.models.module import Entry
from fedrounds.core.params import Array
from fedrounds.core.phases import PHASES
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Cohort, Rows, encode
from fedrounds.core.privacy.disclosure import withhold
from fedrounds.core.privacy.epoch import FEWEST
from fedrounds.core.privacy.holder import Safe
from fedrounds.core.privacy.private import only_noised
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.round import sheet_of
from fedrounds.core.study import Category

NO_ROWS = "it holds the study's key as a third party: it has no patients, and answers what concerns the key alone"


class Policy(Frozen):
    """What a hospital allows.

    `minimum_patients`: below it nothing about a group of patients leaves, be it the cohort, a level or the validation rows.
    `finest_bins`: score histograms no finer than this may leave (a run in one process lifts it).
    `merge_scores`: whether cells of score histograms with fewer than `minimum_patients` leave together (a run in one process lifts it too).
    `local_metrics`: whether the scores of a model on this hospital's validation rows may leave.
    `explanations`: whether it answers what explains a model: sums over validation rows by subgroup, by permuted feature, by a feature's
    values, and of Shapley values (a run in one process lifts it).
    `parameters_per_patient`: of a regression (linear, logistic, multinomial); `most_levels`, `levels_per_patient`, `longest_level`: of a
    category in the dictionary, the last in letters. 0: any. DataSHIELD's defaults are 0.33, 40, 0.33 and 80.
    `families`, `algorithms`: the models and presets (or local rules) that it trains; none named: all.
    `modules`: installed PyTorch modules that a study may train here, as "package.module:Class"; none named: none. Naming one runs its code.
    `columns`: those of its table that a study may name; none named: all.
    `studies`: the protocols that it takes part in, by the first 12 digits or more of their digest; none named: all.
    `rounds_per_day`: training rounds that it answers between two midnights; 0: any number.
    `epsilon`, `delta`: what all studies together may spend of its privacy on its rows; 0: each study what it states, and no sum over them.
    `approval`: whether a person here says yes: never, once for each protocol, or to each round.

    From `columns` on an agent (`fedrounds site start`) heeds them; a run in one process does not.
    """

    minimum_patients: int = Field(default=10, ge=1)
    finest_bins: int = Field(default=50, ge=2)
    merge_scores: bool = True
    local_metrics: bool = True
    explanations: bool = False
    parameters_per_patient: float = Field(default=0.0, ge=0, le=1)
    most_levels: int = Field(default=0, ge=0)
    levels_per_patient: float = Field(default=0.0, ge=0, le=1)
    longest_level: int = Field(default=0, ge=0)
    families: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    modules: tuple[Entry, ...] = ()
    columns: tuple[str, ...] = ()
    studies: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12,64}$")], ...] = ()
    rounds_per_day: int = Field(default=0, ge=0)
    epsilon: float = Field(default=0.0, ge=0, le=1000)
    delta: float = Field(default=1e-5, gt=0, lt=0.1)
    approval: Literal["auto", "once", "every_round"] = "auto"


def handle(
    request: Request,
    state: SiteState,
    data: Cohort | Rows,
    plan: Plan,
    policy: Policy,
    site: str,
    rng: np.random.Generator,
) -> tuple[SiteState, Reply]:
    """Answer one request.

    Args:
        data: the site's clean table, or its rows already encoded by the request's statistics (a request for statistics or a profile needs the table).
        rng: what training draws from; the same seed gives the same bytes.

    Returns:
        The site's new state and its reply. What the policy or the data do not allow gets a refusal, and leaves the state as it was.
    """
    if plan.study.masked:
        return state, answer_to(request, site, "its study masks its sums: it sends none that are not")
    after, refusal, sums = _answered(request, state, data, plan, policy, rng)
    return after, answer_to(request, site, refusal, sums)


def handle_masked(
    request: Request,
    vault: Vault | Safe,
    me: Self,
    state: SiteState,
    data: Cohort | Rows | None,
    plan: Plan,
    policy: Policy,
    rng: np.random.Generator,
) -> tuple[Vault | Safe, SiteState, Reply]:
    """Answer one request of a study that masks its sums, or encrypts them.

    Args:
        vault: the site's secrets for this study. The one that comes back must be stored before the reply leaves.
        data: not needed for what touches no row (`PHASES`).

    Returns:
        As `handle`, with the vault. What is not allowed gets a refusal; no UpdateRejected leaves.
    """
    try:
        if plan.study.masked is None:
            raise UpdateRejected("its study does not mask its sums: it was asked as if it did")
        if request.study != plan.digest:
            raise UpdateRejected(foreign_study(request, plan))
        ckks = encrypted.protecting(plan.study)
        if ckks and ckks.holder == me.site and request.ask not in PHASES:
            raise UpdateRejected(NO_ROWS)
        counted = ckks.counted(me.roster) if ckks else len(me.roster)
        if plan.study.masked.margin is not None and counted < worse.FEWEST:
            raise UpdateRejected(f"its study counts who got worse, which takes {worse.FEWEST} sites on the roster")
        groups = plan.study.masked.groups
        me = replace(me, roster=roster_of(me.site, me.roster, groups, plan.digest))
        if groups > 1 and len(me.roster) < FEWEST:
            raise UpdateRejected(f"its group under masks has fewer than {FEWEST} sites on the roster")
        if request.ask in PHASES:
            after, arrays = _phase(request, vault, me, plan)
            return after, state, answer_to(request, me.site, "", arrays)
        assert data is not None
        asked = encrypting.announced_by(request) if ckks else masked.announced_by(request)
        left, refusal, sums = _answered(
            asked, state, data, plan, policy.model_copy(update={"merge_scores": False}), rng
        )
        if refusal:
            raise UpdateRejected(refusal)
        weighed = sheets.weighed(plan.study, sums, me.site, sheets.scale(plan.study, asked.arrays))
        if isinstance(vault, Safe):
            assert ckks is not None
            arrays = encrypting.protect_sums(request, weighed, sheet_of(plan, asked), vault, me, ckks)
            return vault, left, answer_to(request, me.site, "", arrays)
        after, arrays = masked.protect(request, weighed, sheet_of(plan, asked), vault, me)
        return after, left, answer_to(request, me.site, "", arrays)
    except UpdateRejected as error:
        return vault, state, answer_to(request, me.site, str(error))


def empty(plan: Plan) -> Vault | Safe:
    """The secrets of a site that has none yet, of the kind that the study's sums are hidden by."""
    return Safe() if encrypted.protecting(plan.study) else Vault()


def _phase(request: Request, vault: Vault | Safe, me: Self, plan: Plan) -> tuple[Vault | Safe, Mapping[str, Array]]:
    ckks = encrypted.protecting(plan.study)
    if isinstance(vault, Safe):
        assert ckks is not None
        return encrypting.answer_phase(request, vault, me, ckks)
    return masked.answer_phase(request, vault, me)


def _answered(
    request: Request, state: SiteState, data: Cohort | Rows, plan: Plan, policy: Policy, rng: np.random.Generator
) -> tuple[SiteState, str, Sums]:
    """The new state, why nothing is answered (empty if something is), and the sums."""
    sums: Sums = {}
    refusal = _refusal(request, data, plan, policy)
    if not refusal:
        with np.errstate(all="ignore"):  # what overflows is seen below
            asked = widen(request.arrays)
            if isinstance(data, Cohort) and request.ask not in OF_TABLE:
                data = encode(data, plan.study, asked, plan.ones)
            try:
                after, sums = plan.algorithms[request.ask].answer(asked, state, data, rng)
            except UpdateRejected as error:
                return state, str(error), {}
        if all(np.isfinite(array).all() for array in sums.values()):
            try:
                thinned = withhold(
                    sums,
                    policy.minimum_patients,
                    policy.local_metrics,
                    fine=not policy.merge_scores,
                    alone=plan.study.masked is None,
                    by_time=plan.task == "survival",
                )
                noised = only_noised(plan.study, request.ask, thinned)
                sums = written(noised, plan.study.protocol.codec, request, rng)
                state = after
            except UpdateRejected as error:
                refusal, sums = str(error), {}
        else:
            refusal, sums = "its numbers are no longer finite: lower the learning rate or standardise the features", {}
    return state, refusal, sums


def below(policy: Policy) -> str:
    """Why a small site is refused; how small it is stays there."""
    return f"its training patients are below the site's minimum cohort of {policy.minimum_patients}"


def foreign_study(request: Request, plan: Plan) -> str:
    """Why a request about another study is refused."""
    return (
        f"expected study {plan.digest[:12]}, was asked about {request.study[:12]}: the study file here is another one"
    )


def _refusal(request: Request, data: Cohort | Rows, plan: Plan, policy: Policy) -> str:
    """Why this request is not answered; empty if it is."""
    if request.study != plan.digest:
        return foreign_study(request, plan)
    if request.ask not in plan.algorithms:
        return f"expected to be asked for one of {', '.join(plan.algorithms)}, was asked for '{request.ask}'"
    if unwanted := _unwanted(plan, policy):
        return unwanted
    takes = plan.algorithms[request.ask].takes(request.exchange)
    if not takes.keys() - {"champion"} <= request.arrays.keys() <= takes.keys():
        return f"expected arrays {sorted(takes)}, was asked with {len(request.arrays)} others"
    for name, array in request.arrays.items():
        if array.shape != takes[name]:
            return f"expected {name} of shape {takes[name]}, was asked with {array.shape}: the study file here is another one"
    if said := foreign(request.arrays, plan.study.protocol.codec):
        return f"{said}: the study file here is another one"
    train = int(np.count_nonzero(~data.valid)) if isinstance(data, Cohort) else len(data.y)
    if train < policy.minimum_patients:
        return below(policy)
    if refusal := crowded(plan, policy, train):
        return refusal
    if request.ask == "explain" and not policy.explanations:
        return "it answers nothing that explains a model, unless `explanations = true` under [policy] allows it"
    if plan.bins > policy.finest_bins and request.ask not in ("statistics", "profile"):
        return f"score histograms of {plan.bins} bins are finer than the {policy.finest_bins} that the site allows"
    return ""


def crowded(plan: Plan, policy: Policy, patients: int) -> str:
    """Why a model or a dictionary has too much in it for so many training patients; empty if it has not.

    A model with nearly as many parameters as patients, or a category with nearly as many levels, tells of each patient. These are the
    limits that DataSHIELD enforces (`nfilter.glm`, `nfilter.levels.max`, `nfilter.levels.density`, `nfilter.string`).
    """
    family = plan.study.model.kind
    if policy.parameters_per_patient and "coef" in plan.family.layout.shapes:
        most = policy.parameters_per_patient * patients
        if plan.family.layout.size > most:
            return (
                f"its {family} regression has {plan.family.layout.size} parameters: the site allows {policy.parameters_per_patient:g}"
                " for each training patient, and has too few"
            )
    if not (policy.most_levels or policy.levels_per_patient or policy.longest_level):
        return ""
    for feature in plan.study.features:
        levels = feature.categories if isinstance(feature, Category) else ()
        if policy.most_levels and len(levels) > policy.most_levels:
            return f"'{feature.name}' has {len(levels)} levels: the site allows {policy.most_levels}"
        if policy.levels_per_patient and len(levels) > policy.levels_per_patient * patients:
            return (
                f"'{feature.name}' has {len(levels)} levels: the site allows {policy.levels_per_patient:g} for each training patient,"
                " and has too few"
            )
        longest = max((len(str(level)) for level in levels), default=0)
        if policy.longest_level and longest > policy.longest_level:
            return f"a level of '{feature.name}' has {longest} letters: the site allows {policy.longest_level}"
    return ""


def _unwanted(plan: Plan, policy: Policy) -> str:
    """Why this kind of study is none that the site takes part in; empty if it is."""
    family, algorithm = plan.study.model.kind, plan.study.algorithm
    if policy.families and family not in policy.families:
        return f"its model is {family}: the site trains {', '.join(policy.families)} alone"
    if policy.algorithms and not set(algorithm.names) & set(policy.algorithms):
        return f"its algorithm is {algorithm.names[0]}: the site trains by {', '.join(policy.algorithms)} alone"
    return plan.family.unready(policy.modules)
