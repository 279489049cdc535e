"""A study under differential privacy: what it says, what it refuses, what leaves a site, and what that costs."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from pydantic import ValidationError

from fedrounds.core.answer import Policy, handle
from fedrounds.core.errors import DataContractError, StateError, StudyError, UpdateRejected
from fedrounds.core.messages import Request, decode, encode
from fedrounds.core.operations import Drift, Gate, Operations, Promotion
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.privacy import private
from fedrounds.core.privacy.accounting import epsilon
from fedrounds.core.round import open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.site.budget import Budgets
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import privacy
from fedrounds.tasks.ward import Ward

TEXT = """
name = "private"
patient_id = "id"
weights = "uniform"
features = [
  { type = "number", name = "age", range = [0, 100] },
  { type = "category", name = "sex", categories = ["f", "m"] },
]
target = { kind = "binary", column = "ill", positive = ["yes"], negative = ["no"] }
model = { kind = "logistic" }
algorithm = { preset = "fedavg", local = { rate = 0.5 } }
[privacy]
dp = { unit = "patient", epsilon = 3.0, delta = 1e-3, patients = 400, rounds = 4 }
"""


def protocol(**changes):
    found = tomllib.loads(TEXT)
    dp = changes.pop("dp", {})
    found["privacy"]["dp"] |= dp
    for key in [key for key, value in dp.items() if value is None]:
        del found["privacy"]["dp"][key]
    return found | changes


STUDY = Study.model_validate(protocol())


def table(n=400, seed=1):
    rng = np.random.default_rng(seed)
    age, sex = rng.uniform(20, 90, n), rng.integers(0, 2, n)
    ill = rng.random(n) < 1 / (1 + np.exp(-(age - 55) / 10))
    words = {"id": np.array([f"p{i}" for i in range(n)], object), "sex": np.where(sex, "m", "f").astype(object)}
    words["ill"] = np.where(ill, "yes", "no").astype(object)
    return Table({"age": age, **words}, {})


def cohort(**about):
    return clean(table(**about), STUDY, "north")


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_study_without_it_keeps_its_digest():
    plain = {key: value for key, value in protocol().items() if key != "privacy"}
    assert Study.model_validate(plain).digest == Study.model_validate(plain | {"privacy": {}}).digest
    assert Study.model_validate(plain).digest != STUDY.digest


def test_delta_is_a_tenth_of_a_patient_where_it_is_left_out():
    assert Study.model_validate(protocol(dp={"delta": None})).privacy.dp.budget.delta == 1 / 4000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dp": {"unit": None}}, "discriminator .unit."),
        ({"dp": {"unit": "hospital", "patients": None, "hospitals": 12}}, "needs masked sums"),
        ({"dp": {"patients": None}}, "Field required"),
        ({"weights": "patients"}, "would tell each site's number of patients"),
        ({"algorithm": {"preset": "fedprox"}}, "expected local rule 'sgd', found 'proximal'"),
        ({"algorithm": {"preset": "fedavg", "local": {"epochs": 3}}}, "leave out the local rule's epochs and batch"),
        ({"features": [{"type": "number", "name": "age"}]}, "needs the range of every number"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        Study.model_validate(protocol(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drift": Drift()}, "exact profiles"),
        ({"promotion": Promotion(margin=0.1)}, "exact scores"),
        ({"gate": Gate(quarantine=0.1)}, "set a patient's row aside"),
        ({"rounds": 5}, "found 5 rounds in operations.toml, and noise for 4"),
    ],
)
def test_a_way_of_running_that_tells_more_is_refused(changes, said):
    privacy.agrees(STUDY, Operations(rounds=4))
    with pytest.raises(StudyError, match=said):
        privacy.agrees(STUDY, Operations(**({"rounds": 4} | changes)))


def test_a_patient_with_two_rows_is_refused():
    twice = table()
    twice.columns["id"][1] = "p0"
    with pytest.raises(DataContractError, match="expected one row a patient at site 'north'"):
        clean(twice, STUDY, "north")


def test_statistics_and_all_rounds_together_cost_what_the_study_states():
    dp = STUDY.privacy.dp
    first, one = private.events(STUDY, "statistics"), private.events(STUDY, "train")
    assert 0.89 < epsilon(first, 1e-3) <= 0.9, "0.3 of 3"
    assert 2.99 < epsilon([*first, *one * dp.rounds], 1e-3) <= 3.0
    assert private.events(STUDY, "score") == private.events(STUDY, "profile") == ()


# --- what leaves ------------------------------------------------------------------------------------------------------


def test_nothing_leaves_but_noised_numbers():
    plan, data = build(STUDY), cohort()
    state = plan.start()
    sent = {}
    for closed in simulate(plan, {"north": data, "west": cohort(seed=2)}, 2):
        state = closed.state
        assert [closed.scores, closed.training, closed.paired, closed.profiles] == [{}] * 4
    for ask in ("statistics", "train", "score"):
        at = plan.start() if ask == "statistics" else state
        request = open_round(at, plan, ask, ["north"]).request
        sent[ask] = set(handle(request, {}, data, plan, OPEN, "north", np.random.default_rng(0))[1].arrays)
    assert sent == {"statistics": {"noised"}, "train": {"delta"}, "score": set()}
    asked = Request(plan.digest, 0, 0, "profile", state.model_digest, {})
    assert (
        "was asked for 'profile'" in handle(asked, {}, data, plan, OPEN, "north", np.random.default_rng(0))[1].refusal
    )


def test_whatever_an_algorithm_hands_over_only_noised_numbers_pass_the_wall():
    assert private.only_noised(STUDY, "train", {"delta": np.zeros(1)})
    for ask, names in (("train", ("delta", "train")), ("score", ("scores",)), ("profile", ("cells.age",))):
        with pytest.raises(UpdateRejected, match="noised numbers alone"):
            private.only_noised(STUDY, ask, dict.fromkeys(names, np.zeros(1)))


def test_one_patient_moves_the_statistics_by_at_most_the_sensitivity():
    rng, bound = np.random.default_rng(0), private.sensitivity(STUDY)
    for _ in range(300):
        row = np.array(
            [
                [
                    rng.choice([rng.uniform(-1e6, 1e6), rng.uniform(0, 100), 0.0, 100.0, np.nan]),
                    rng.choice([0, 1, 2, np.nan]),
                ]
            ]
        )
        others = rng.uniform(0, 2, (5, 2)).round()
        moved = private.vector(np.vstack([others, row]), STUDY) - private.vector(others, STUDY)
        assert np.linalg.norm(moved) <= bound + 1e-12
    extreme = private.vector(np.array([[100.0, 1.0]]), STUDY)
    assert np.linalg.norm(extreme) == pytest.approx(bound), "and no smaller bound holds"


def test_statistics_without_noise_are_the_means_and_deviations():
    data = cohort(n=4000)
    agreed = private.agreed(private.vector(data.values[~data.valid], STUDY), STUDY)
    exact = data.values[~data.valid][:, 0]
    assert agreed["impute"][0] == pytest.approx(exact.mean())
    assert (agreed["center"][0], agreed["scale"][0]) == pytest.approx((exact.mean(), exact.std()))
    assert agreed["center"][1:].tolist() == [0, 0, 0]
    assert agreed["scale"][1:].tolist() == [1, 1, 1]


def test_statistics_of_nobody_are_finite():
    agreed = private.agreed(np.full(7, -50.0), STUDY)
    assert all(np.isfinite(array).all() for array in agreed.values())
    assert (agreed["scale"] > 0).all()


def test_a_private_study_still_learns():
    data = {name: cohort(seed=seed) for seed, name in enumerate(("a", "b", "c"))}
    plan = build(STUDY)
    *_, last = simulate(plan, data, 4)
    fitted = plan.family.layout.split(last.state.theta)["coef"]
    assert fitted[0] > 0.3, "age makes ill"


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ward(tmp_path):
    file = tmp_path / "north.csv"
    data = table()
    lines = zip(data.columns["id"], data.columns["age"], data.columns["sex"], data.columns["ill"], strict=True)
    file.write_text("id,age,sex,ill\n" + "".join(f"{i},{a},{s},{t}\n" for i, a, s, t in lines))
    site = SiteFile.model_validate({"name": "north", "source": {"kind": "csv", "path": str(file)}})
    made = Ward(site, build(STUDY), tmp_path)
    made.load()
    made.budgets = kept = Budgets(tmp_path / "budget.db")
    yield made
    kept.close()


def ask(ward, ask="statistics", state=None):
    return encode(open_round(state or ward.plan.start(), ward.plan, ask, ["north"]).request)


def test_the_same_question_has_the_same_bytes_and_spends_once(ward):
    first = ward.answer(ask(ward))
    assert ward.answer(ask(ward)) == first
    assert ward.budgets.spent("north") == {ward.plan.digest: [*private.events(STUDY, "statistics")]}


def test_a_refusal_costs_nothing_and_an_answer_without_a_ledger_is_none(ward):
    ward.policy = Policy(minimum_patients=10_000)
    assert "below the site's minimum" in decode_reply(ward.answer(ask(ward))).refusal
    assert ward.budgets.spent("north") == {}
    ward.budgets = None
    with pytest.raises(StateError, match="expected a privacy budget"):
        ward.answer(ask(ward))


def decode_reply(data):
    from fedrounds.core.messages import Reply

    return decode(data, Reply)


def test_a_round_beyond_the_budget_is_refused_before_a_row_is_touched(ward, monkeypatch):
    state = ward.plan.start(ward.plan.no_statistics())
    ward.answer(ask(ward))
    for number in range(4):
        moved = state.theta + number
        assert not decode_reply(ward.answer(ask(ward, "train", replace_theta(state, moved)))).refusal
    monkeypatch.setattr(ward, "_answered", None)
    refused = decode_reply(ward.answer(ask(ward, "train", replace_theta(state, state.theta + 9))))
    assert refused.refusal.startswith(
        "its privacy budget would be exceeded: the study may spend ε = 3 (δ = 0.001) on its rows, ε = 3 is spent"
    )
    assert not refused.arrays


def replace_theta(state, theta):
    from dataclasses import replace

    return replace(state, theta=theta)


def test_a_study_that_starts_anew_has_not_forgotten_what_it_spent(tmp_path):
    before, after = tmp_path / "a", tmp_path / "b"
    after.mkdir()
    budgets = Budgets(before / privacy.FILE)
    budgets.spend(
        budgets.reserve("north", "s", 1, "q", private.events(STUDY, "train"), STUDY.privacy.dp.budget), b"reply"
    )
    budgets.close()
    privacy.carried_over(before, after)
    carried = Budgets(after / privacy.FILE)
    assert carried.spent("north") == {"s": [*private.events(STUDY, "train")]}
    assert carried.reply("q") == b"reply"
    carried.close()
