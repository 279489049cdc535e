"""A champion under differential privacy: each guarantee of `core/privacy/compared.py`, the rule that heeds noise, and weakened builds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from pydantic import ValidationError

from fedrounds.core import answer, promotion
from fedrounds.core.answer import Policy, handle
from fedrounds.core.champion import judged
from fedrounds.core.errors import StudyError, UpdateRejected
from fedrounds.core.masked import TOGETHER
from fedrounds.core.messages import Reply, decode, encode
from fedrounds.core.operations import Operations, Promotion
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy import private
from fedrounds.core.privacy.accounting import epsilon
from fedrounds.core.privacy.compared import SENSITIVITY, mechanism, sums, variances, vector
from fedrounds.core.privacy.forecast import forecast
from fedrounds.core.privacy.noise import Bits
from fedrounds.core.privacy.patient import Scores
from fedrounds.core.promotion import beyond_noise, interval, judge
from fedrounds.core.round import close_exchange, open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.state import Champion
from fedrounds.core.study import Study
from fedrounds.site.budget import Budgets
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import privacy
from fedrounds.tasks.ward import Ward

SITES = ("east", "north", "south", "west")
STATED = {"unit": "patient", "epsilon": 4.0, "delta": 1e-3, "patients": 400, "rounds": 8, "steps": 1}
ASKED = {"share": 0.4, "clip": 0.5, "every": 2}


def protocol(scores=ASKED, masked=False, **dp):
    """A study of one number; without a word where `scores` is None."""
    found = {
        "name": "champions",
        "weights": "uniform",
        "features": [{"type": "number", "name": "age", "range": [0, 100]}],
        "target": {"kind": "binary", "column": "ill", "positive": ["yes"], "negative": ["no"]},
        "model": {"kind": "logistic"},
        "algorithm": {"preset": "fedavg", "local": {"rate": 0.5}},
        "privacy": {"dp": STATED | dp | ({} if scores is None else {"scores": scores})},
    }
    if masked:
        found["privacy"]["protect"] = {"kind": "masked"}
    return found


def study(**changes):
    return Study.model_validate(protocol(**changes))


PLAN = build(study())
DP = PLAN.study.privacy.dp


def rows(judging=500, seed=0, training=60):
    """Patients of whom age makes ill: a design matrix, and who judges."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.normal(size=judging + training), np.ones(judging + training)])
    y = (rng.random(len(X)) < 1 / (1 + np.exp(-2 * X[:, 0]))).astype(float)
    return Rows(X[judging:], y[judging:], X[:judging], y[:judging])


GOOD, POOR = np.array([1.5, 0.0]), np.array([0.0, 0.0])


def state_of(plan=PLAN, round=4, theta=GOOD, champion=POOR, of=2):
    """A version and the champion that it must beat."""
    start = plan.start(plan.no_statistics())
    return replace(start, round=round, theta=theta, champion=None if champion is None else Champion(of, champion))


def visit(state, plan=PLAN, sites=SITES, policy=OPEN, judging=500):
    """The closed visit that scores a state's model."""
    asking = open_round(state, plan, "score", sites)
    found = [
        handle(asking.request, {}, rows(judging, i), plan, policy, site, np.random.default_rng(0))[1]
        for i, site in enumerate(sites)
    ]
    return close_exchange(asking, plan, found)


def differences(theta=GOOD, champion=POOR, clip=0.5, judging=500, sites=SITES):
    """Every judging patient's difference of losses, cut as the study says."""
    family, parts = PLAN.family, []
    for i, _ in enumerate(sites):
        own = rows(judging, i)
        here, there = (family.losses(family.predict(model, own.X_valid), own.y_valid) for model in (theta, champion))
        parts.append(np.clip(here - there, -clip, clip))
    return parts


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_study_without_the_word_is_the_study_that_it_was():
    plain = study(scores=None)
    assert "scores" not in plain.model_dump()["privacy"]["dp"]
    assert plain.digest == "e2218fed24eb10a25e9bcbf8917a6ff48ec4b6f83211e711367a9c0ab930ddf8"
    assert plain.digest != PLAN.digest
    plan = build(plain)
    request = open_round(state_of(plan), plan, "score", SITES).request
    assert "champion" not in request.arrays
    assert handle(request, {}, rows(), plan, Policy(), "east", np.random.default_rng(0))[1].arrays == {}
    assert private.events(plain, "score", champion=True) == ()
    assert judged(state_of(plan), visit(state_of(plan), plan), Promotion(), known=False)[1] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": {"every": 5}}, "expected two versions or more to compare in privacy.dp.rounds = 8"),
        ({"scores": {"every": 2, "share": 0.7}}, "expected something of ε left for training"),
        ({"scores": {"every": 2, "clip": 0}}, "greater than 0"),
        ({"unit": "hospital", "hospitals": 12, "masked": True}, "in which one hospital can hide tells too little"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        study(**changes)


def test_how_it_is_run_must_go_with_the_noise():
    privacy.agrees(PLAN.study, Operations(rounds=8, promotion=Promotion(margin=0.2, approval="required")))
    with pytest.raises(StudyError, match="heed the noise in it as if it were none"):
        privacy.agrees(PLAN.study, Operations(rounds=8, promotion=Promotion(confidence=0.0)))
    nobody = Study.model_validate(protocol() | {"validation": {"fraction": 0}})
    with pytest.raises(StudyError, match="there are none: state validation"):
        privacy.agrees(nobody, Operations(rounds=8))


def test_all_that_is_released_costs_what_the_study_states():
    first, train, score = (private.events(PLAN.study, ask, champion=True) for ask in ("statistics", "train", "score"))
    assert 1.59 < epsilon(score * 3, 1e-3) <= 1.6, "0.4 of 4, for versions 4, 6 and 8"
    assert 3.99 < epsilon([*first, *train * 8, *score * 3], 1e-3) <= 4.0
    assert private.events(PLAN.study, "score") == (), "without a champion nothing is told"


def test_the_forecast_of_each_round_is_what_the_ledger_says_after_it(tmp_path):
    found, budgets = forecast(PLAN, 4, 8), Budgets(tmp_path / "budget.db")
    asked = ["statistics", *["train", "train", "score"] * 4]
    for number, ask in enumerate(asked):
        events = private.events(PLAN.study, ask, champion=number > 3)
        if events:
            assert isinstance(budgets.reserve("north", "s", number, str(number), events, DP.budget), int)
        if ask == "score":
            at = asked[: number + 1].count("train")
            assert epsilon(budgets.spent("north")["s"], 1e-3) == pytest.approx(found.epsilons[at], rel=1e-12)
    budgets.close()
    judging = 4 * 400 / 3
    assert found.doubt == pytest.approx(1.959964 * mechanism(DP).deviation * 0.5 * 2 / judging)
    assert not found.warnings
    drowned = build(study(epsilon=0.2, scores={"share": 0.01, "every": 1}, patients=20))
    assert any("no version can be promoted" in text for text in forecast(drowned, 3, 8).warnings)


# --- what leaves ------------------------------------------------------------------------------------------------------


def test_a_patient_moves_the_vector_by_at_most_the_sensitivity_whatever_the_losses_are():
    rng = np.random.default_rng(0)
    for _ in range(500):
        losses, others = rng.exponential(rng.choice([0.1, 1.0, 1e300], (2, 6)))
        losses[-1] = rng.choice([losses[-1], np.inf, np.nan, 0.0])
        others[-1] = rng.choice([others[-1], np.inf, np.nan, 0.0])
        moved = vector(losses, others, 0.5) - vector(losses[:-1], others[:-1], 0.5)
        assert np.linalg.norm(moved) <= SENSITIVITY + 1e-12
    assert np.linalg.norm(vector(np.array([9.0]), np.array([0.0]), 0.5)) == pytest.approx(SENSITIVITY), "and no less"
    assert vector(np.array([np.nan]), np.array([0.1]), 0.5)[1] == 1.0, "what is no number is the version's fault"


def test_the_sums_of_the_vector_are_those_of_the_patients():
    d = differences()
    for part, losses in zip(d, d, strict=True):
        found = sums(vector(losses, np.zeros_like(losses), 0.5), 0.5)
        assert found == pytest.approx([len(part), part.sum(), part @ part])


def test_nothing_of_the_rows_leaves_without_noise():
    request = open_round(state_of(), PLAN, "score", SITES).request
    said = [handle(request, {}, rows(), PLAN, Policy(), "east", np.random.default_rng(0))[1].arrays for _ in range(2)]
    assert [set(arrays) for arrays in said] == [{"compared"}] * 2
    assert all((said[0]["compared"] != said[1]["compared"]).tolist()), "the study's seed has no say"
    with pytest.raises(UpdateRejected, match="noised numbers alone"):
        private.only_noised(PLAN.study, "score", {"compared": np.zeros(3), "scores": np.zeros(4)})
    bare = differences()[0]
    exact = np.array([len(bare), bare.sum(), bare @ bare])
    assert all(abs(said[0]["compared"] - exact) > 0)


def test_the_noise_in_what_is_sent_has_the_variance_that_is_reckoned_with():
    score, data = PLAN.algorithms["score"], rows(20)
    payload = {"theta": GOOD, "champion": POOR}
    drawn = np.array([score.answer(payload, {}, data, np.random.default_rng(0))[1]["compared"] for _ in range(4000)])
    expected = variances(mechanism(DP).deviation, 0.5)
    assert drawn.var(0) == pytest.approx(expected, rel=0.1)
    assert mechanism(DP).deviation == pytest.approx(SENSITIVITY * DP.scores_event().multiplier, rel=0.05)
    bare = differences(judging=20)[0]
    assert (abs(drawn.mean(0) - [20, bare.sum(), bare @ bare]) < 5 * np.sqrt(expected / 4000)).all()


def test_what_is_folded_adds_up_over_sites_with_its_noise():
    closed = visit(state_of())
    assert sorted(closed.paired) == list(SITES)
    d = np.concatenate(differences())
    total = np.sum(list(closed.paired.values()), axis=0)
    assert total[3:] == pytest.approx(4 * variances(mechanism(DP).deviation, 0.5))
    assert (abs(total[:3] - [len(d), d.sum(), d @ d]) < 6 * np.sqrt(total[3:])).all()
    assert closed.scores == {}


def test_under_masks_the_sum_alone_is_known_and_its_noise_is_made_together():
    plan = build(study(masked=True))
    data = {site: rows(seed=i) for i, site in enumerate(SITES)}
    [closed] = simulate(plan, data, 0, state=state_of(plan))
    assert set(closed.paired) == {TOGETHER}
    total, d = closed.paired[TOGETHER], np.concatenate(differences())
    made = mechanism(plan.study.privacy.dp).deviation * sqrt(
        4 / 3
    )  # all are there: what was added for one who might be lost is taken out
    assert total[3:] == pytest.approx(variances(made, 0.5))
    assert (abs(total[:3] - [len(d), d.sum(), d @ d]) < 6 * np.sqrt(total[3:])).all()
    state, decision = judged(state_of(plan), closed, Promotion(), known=False)
    assert (state.champion.round, decision.outcome) == (4, "promoted")
    assert "over all sites together" in decision.reason


def test_a_hospital_that_keeps_scores_at_home_or_has_too_few_patients_sends_nothing_of_them():
    for policy, judging in ((Policy(local_metrics=False), 500), (Policy(minimum_patients=50), 1)):
        request = open_round(state_of(), PLAN, "score", SITES).request
        said = handle(request, {}, rows(judging), PLAN, policy, "east", np.random.default_rng(0))[1]
        assert said.arrays["compared"].tolist() == [0, 0, 0]
    closed = visit(state_of(), policy=Policy(local_metrics=False))
    assert (
        judged(state_of(), closed, Promotion(), False)[1].reason == "kept the champion: no site has scored both models"
    )


def test_under_masks_the_true_count_of_a_hospital_decides_nothing():
    found = {"compared": np.array([0.4 * 3, 1.0, 0.5])}
    assert answer.withhold(found, 10, alone=False)["compared"].tolist() == [0.4 * 3, 1.0, 0.5]
    assert answer.withhold(found, 10, scores=False, alone=False)["compared"].tolist() == [0, 0, 0]


# --- when -------------------------------------------------------------------------------------------------------------


def test_a_version_is_compared_once_in_so_many_rounds_and_no_schedule_releases_more():
    asked = [r for r in range(9) if "champion" in open_round(state_of(round=r), PLAN, "score", SITES).request.arrays]
    assert asked == [4, 6, 8], "and 2 is the champion itself"
    assert len(asked) == Scores(**ASKED).comparisons(8)
    assert "champion" not in open_round(state_of(), PLAN, "train", SITES).request.arrays


def test_the_first_version_that_is_due_becomes_champion_for_nothing():
    none = state_of(round=2, champion=None)
    closed = visit(none)
    assert open_round(none, PLAN, "score", SITES).request.arrays.keys() == {"theta", *none.statistics}
    state, decision = judged(none, closed, Promotion(), known=False)
    assert (state.champion.round, decision.reason) == (2, "promoted: it is the first model")
    early = state_of(round=3, champion=None)
    assert judged(early, visit(early), Promotion(), known=False)[1] is None


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_the_interval_is_wider_by_the_noise_that_is_known():
    found = interval(np.array([100.0, -10.0, 5.0, 25.0, 4.0, 0.01]), 0.95)
    spread = (5.0 + 0.75 * 1.9842169 * 0.1 - 1.0) / 99
    half = 1.9842169 * sqrt(spread / 100 + (4.0 + 0.01 * 25.0) / 100**2)
    assert found == pytest.approx((100, -0.1, -0.1 - half, -0.1 + half), rel=1e-6)
    silent = interval(np.array([100.0, -10.0, 5.0, 0.0, 0.0, 0.0]), 0.95)
    assert silent == interval(np.array([100.0, -10.0, 5.0]), 0.95)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99, 0.999])
def test_a_version_that_is_no_better_passes_no_oftener_than_without_noise_whatever_the_spread(confidence):
    from scipy.special import ndtr, ndtri

    t, grid = ndtri((1 + confidence) / 2), np.linspace(-7, 7, 3001)
    weight = np.exp(-grid * grid / 2) / np.exp(-grid * grid / 2).sum()
    ratio = sqrt(variances(1.0, 1.0)[2])  # of the noise in Σd² to that in Σd, both in clips
    worst = {0.0: 0.0, promotion.HIDDEN: 0.0}
    for noise in (0.3, 1.0, 3.0, 10.0, 30.0):
        for spread in [0.0, *noise * np.geomspace(0.01, 1e4, 40)]:
            for hidden in worst:
                told = np.maximum(spread + ratio * noise * (grid + hidden * t), 0.0) + noise**2
                passes = float(weight @ ndtr(-t * np.sqrt(told / (spread + noise**2))))
                worst[hidden] = max(worst[hidden], passes)
    assert worst[promotion.HIDDEN] <= 1.005 * (1 - confidence) / 2
    assert worst[0.0] > 1.005 * (1 - confidence) / 2 or confidence < 0.9, "taken at its word Σd² would let more pass"


def promoted(theta, count=400, heed=True):
    """How often real comparisons of a version with the champion are passed, by noise alone where both are one model."""
    release, passed = mechanism(DP), 0
    bare = [vector(d, np.zeros_like(d), 0.5) for d in differences(theta)]
    for _ in range(count):
        noise = variances(release.deviation, 0.5) if heed else []
        paired = {
            site: np.append(sums(release.release(one, Bits()), 0.5), noise)
            for site, one in zip(SITES, bare, strict=True)
        }
        scores = {site: (np.ones(4), np.zeros(0)) for site in SITES}
        passed += judge(Promotion(margin=9.0), scores, paired).promote
    return passed / count


def test_noise_promotes_nobody_and_a_better_version_is_promoted():
    assert promoted(GOOD) == 1.0
    assert promoted(POOR) <= 0.025 + 5 * sqrt(0.025 * 0.975 / 400)
    assert promoted(POOR, heed=False) > 0.3, "a rule that does not heed the noise is moved by it"


def test_a_site_vetoes_where_its_loss_rose_by_more_than_noise_explains_and_noise_alone_vetoes_nothing():
    noise = variances(mechanism(DP).deviation, 0.5)
    fell = {site: np.append([500.0, -60.0, 20.0], noise) for site in SITES}
    blurred = fell | {"west": np.append([40.0, 2.2 + 1.5 * sqrt(noise[1]), 2.0], noise)}
    decision = judge(Promotion(), {}, blurred)
    assert decision.promote
    assert decision.reason.startswith("promoted: the loss fell by ")
    assert "noise included) over 4 sites; worst at 'west', " in decision.reason
    assert decision.reason.endswith(" less its noise")
    worse = fell | {"west": np.append([200.0, 60.0, 25.0], noise)}
    reason = judge(Promotion(), {}, worse).reason
    rise = beyond_noise(worse["west"], 4, 0.95)
    assert reason.startswith(f"kept the champion: the loss at 'west' rose by {rise:.4g} more than its noise explains")
    assert 0.05 < rise < 0.3


def test_a_patients_loss_is_read_off_an_exact_comparison_and_not_off_a_noised_one():
    own = rows(40)
    less = replace_judging(own)
    payload, score = {"theta": GOOD, "champion": POOR}, PLAN.algorithms["score"]

    def guesses(release):
        """How often who is there is told right, by the sum of differences with and without one patient."""
        middle = (bare(own) + bare(less)) / 2
        high = bare(own) > bare(less)
        found = [(release(own) > middle) == high for _ in range(300)] + [
            (release(less) <= middle) == high for _ in range(300)
        ]
        return np.mean(found)

    def bare(data):
        family = PLAN.family
        here, there = (family.losses(family.predict(model, data.X_valid), data.y_valid) for model in (GOOD, POOR))
        return float(vector(here, there, 0.5)[1])

    assert guesses(bare) == 1.0
    eps = epsilon(private.events(PLAN.study, "score", champion=True), 1e-3)
    most = np.exp(eps) / (1 + np.exp(eps)) + 1e-3
    found = guesses(
        lambda data: float(score.answer(payload, {}, data, np.random.default_rng(0))[1]["compared"][1]) / 0.5
    )
    assert found < most + 3 * 0.5 / sqrt(600)
    assert most < 0.75


def replace_judging(data):
    """The same patients but for the judging one whose two losses are furthest apart."""
    gone = int(np.argmax(np.abs(data.X_valid[:, 0])))
    return Rows(data.X, data.y, np.delete(data.X_valid, gone, 0), np.delete(data.y_valid, gone))


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ward(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{age},{'yes' if rng.random() < age / 120 else 'no'}" for age in rng.integers(20, 90, 400)]
    (tmp_path / "north.csv").write_text("age,ill\n" + "\n".join(lines) + "\n")
    made = Ward(
        SiteFile.model_validate({"name": "north", "source": {"kind": "csv", "path": "north.csv"}}), PLAN, tmp_path
    )
    made.load()
    made.budgets = kept = Budgets(tmp_path / "budget.db")
    yield made
    kept.close()


def question(state):
    return encode(open_round(state, PLAN, "score", ["north"]).request)


def test_a_comparison_is_charged_once_and_what_has_no_champion_is_free(ward):
    assert not decode(ward.answer(question(state_of(round=2, champion=None))), Reply).refusal
    assert ward.budgets.spent("north") == {}
    first = ward.answer(question(state_of()))
    assert ward.answer(question(state_of())) == first, "the same question has the same noise"
    assert ward.budgets.spent("north") == {PLAN.digest: [DP.scores_event()]}


def test_a_coordinator_that_asks_without_end_is_refused_by_the_ledger(ward):
    for number in range(1000):
        reply = decode(ward.answer(question(state_of(theta=GOOD + number))), Reply)
        if reply.refusal:
            break
    assert reply.refusal.startswith("its privacy budget would be exceeded: the study may spend ε = 4")
    assert epsilon(ward.budgets.spent("north")[PLAN.digest], 1e-3) <= 4.0


def test_a_site_that_is_killed_while_it_compares_has_spent(tmp_path, ward):
    ward.budgets.close()
    (tmp_path / "study.json").write_text(json.dumps(protocol()))
    (tmp_path / "question").write_bytes(question(state_of()))
    script = (
        "import json, os, signal, sys; from pathlib import Path; from fedrounds.core.plan import build; from fedrounds.core.study import Study\n"
        "from fedrounds.site.budget import Budgets; from fedrounds.sources.site_file import SiteFile; from fedrounds.tasks.ward import Ward\n"
        "here = Path(sys.argv[1]); plan = build(Study.model_validate(json.loads((here / 'study.json').read_text())))\n"
        "ward = Ward(SiteFile.model_validate({'name': 'north', 'source': {'kind': 'csv', 'path': 'north.csv'}}), plan, here)\n"
        "ward.load(); ward.budgets = Budgets(here / 'budget.db')\n"
        "ward._answered = lambda asked, memory: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ward.answer((here / 'question').read_bytes())\n"
    )
    dead = subprocess.run([sys.executable, "-c", script, tmp_path], check=False, timeout=120)
    assert dead.returncode == -signal.SIGKILL
    ward.budgets = Budgets(tmp_path / "budget.db")
    assert ward.budgets.spent("north") == {PLAN.digest: [DP.scores_event()]}
    assert not decode(ward.answer(question(state_of())), Reply).refusal
    assert ward.budgets.spent("north") == {PLAN.digest: [DP.scores_event()] * 2}, "asked again it is another draw"
