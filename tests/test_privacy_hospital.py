"""Differential privacy of hospitals: each guarantee of `hospital.py` and `updates.py`, and builds that were weakened on purpose."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from pydantic import ValidationError

from fedrounds.core import masked
from fedrounds.core.answer import Policy
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.privacy import joint, private, updates
from fedrounds.core.privacy.accounting import epsilon
from fedrounds.core.privacy.forecast import forecast
from fedrounds.core.privacy.hospital import BIT, Hospitals
from fedrounds.core.privacy.noised import Noised
from fedrounds.core.privacy.updates import clipped
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.tasks import privacy

DP = {"unit": "hospital", "epsilon": 8.0, "hospitals": 12, "rounds": 3}
MASKED = {"kind": "masked"}


def study(protect=None, weights="uniform", algorithm="fedavg", **dp):
    return Study.model_validate(
        {
            "name": "hospitals",
            "patient_id": "id",
            "weights": weights,
            "features": [
                {"type": "number", "name": "age", "range": [0, 100]},
                {"type": "category", "name": "sex", "categories": ["f", "m"]},
            ],
            "target": {"kind": "binary", "column": "ill", "positive": ["yes"], "negative": ["no"]},
            "model": {"kind": "logistic"},
            "algorithm": algorithm,
            "privacy": {"protect": protect or MASKED, "dp": DP | dp},
        }
    )


def cohorts(of, hospitals=12, n=80):
    found = {}
    for seed in range(hospitals):
        rng = np.random.default_rng(seed)
        age, sex = rng.uniform(20, 90, n), np.where(rng.integers(0, 2, n), "m", "f").astype(object)
        ill = np.where(rng.random(n) < 1 / (1 + np.exp(-(age - 55) / 10)), "yes", "no").astype(object)
        ids = np.array(
            [f"p{i // 2}" for i in range(n)], object
        )  # two rows a patient: here a hospital is what is protected
        found[f"h{seed:02}"] = clean(Table({"id": ids, "age": age, "sex": sex, "ill": ill}, {}), of, f"h{seed:02}")
    return found


# --- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protect": {"kind": "plain"}}, "unit 'hospital' needs masked sums: without them the coordinator sees each"),
        ({"protect": MASKED | {"bits": 16}}, "words of 32 or 64 bits"),
        ({"weights": "patients"}, "would tell each hospital's number of patients"),
        ({"hospitals": 2}, "greater than or equal to 3"),
        ({"patients": 200}, "Extra inputs are not permitted"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        study(**changes)


def test_statistics_and_all_rounds_together_cost_what_the_study_states():
    of = study(spare=2)
    first, one = private.events(of, "statistics"), private.events(of, "train")
    assert of.privacy.dp.budget.delta == 1 / 120
    assert 7.99 < epsilon([*first, *one * 5], 1 / 120) <= 8.0
    assert one[0].rate == 1.0, "every hospital is in every sum"


# --- what one hospital adds -------------------------------------------------------------------------------------------


def test_a_hospital_adds_a_vector_of_length_one_at_most_whatever_is_in_it_and_whatever_clip_is_asked_for():
    rng = np.random.default_rng(0)
    for clip in (1e-300, 0.1, 1.0, 1e300, np.inf):
        for scale in (0.0, 1e-300, 1e-3, 1.0, 1e3, 1e300):
            assert np.linalg.norm(clipped(rng.normal(size=20) * scale, clip, bit=False)) <= 1.0
    for bad in (np.nan, np.inf):
        assert not clipped(np.array([1.0, bad]), 1.0, bit=False).any()
    np.testing.assert_allclose(clipped(np.array([0.3, 0.4]), 2.0, bit=False), [0.15, 0.2])


def test_the_bit_and_the_update_together_are_what_the_noise_is_made_for():
    dp = Hospitals.model_validate(DP | {"quantile": 0.5})
    assert clipped(np.array([0.5, 0.0]), 1.0, bit=True).tolist() == [0.5, 0.0, BIT / 2]
    longer = clipped(np.array([30.0, 40.0]), 1.0, bit=True)
    assert longer[-1] == -BIT / 2
    assert np.linalg.norm(longer) <= dp.mechanism(3).sensitivity == sqrt(1 + BIT**2 / 4)
    z = dp.training_event().multiplier
    update, bit = (
        z * dp.mechanism(3).sensitivity,
        z * dp.mechanism(3).sensitivity / BIT,
    )  # noise of each over one clip, over one bit
    assert update == pytest.approx((z**-2 - (2 * bit) ** -2) ** -0.5), "theorem 1 of Andrew et al. 2021"


def test_a_hospitals_statistics_are_means_that_no_number_of_patients_makes_longer():
    of = study()
    answer = build(of).algorithms["statistics"].answer
    for data in cohorts(of, hospitals=3, n=400).values():
        found = answer({}, {}, data, np.random.default_rng(0))[1]["noised"]
        assert found[0] == 1.0
        assert np.linalg.norm(found) <= private.sensitivity(of)


def test_a_build_that_does_not_clip_is_one_in_which_a_hospital_adds_what_it_likes(monkeypatch):
    of, seen = study(algorithm={"preset": "fedavg", "local": {"rate": 50.0}}), []
    real = masked.protect

    def spy(request, sums, sheet, vault, me):
        seen.append(float(np.linalg.norm(sums["delta"])) if "delta" in sums else 0.0)
        return real(request, sums, sheet, vault, me)

    monkeypatch.setattr(masked, "protect", spy)
    list(simulate(build(of), cohorts(of, hospitals=3), 1))
    assert 0.99 < max(seen) <= 1.0
    monkeypatch.setattr(updates, "clipped", lambda delta, clip, bit: delta / clip)
    seen.clear()
    list(simulate(build(of), cohorts(of, hospitals=3), 1))
    assert max(seen) > 2.0


# --- a study ----------------------------------------------------------------------------------------------------------


def test_all_that_leaves_is_noised_and_no_loss_is_told():
    of = study()
    assert isinstance(joint.grids(of, "train", {"delta": (5,), "weight": (1,)})["delta"], Noised)
    for closed in simulate(build(of), cohorts(of, hospitals=4), 2):
        assert [closed.scores, closed.training, closed.paired, closed.profiles] == [{}] * 4
        assert (len(closed.heard), closed.clipped) == (4, 0)


def test_enough_hospitals_still_learn():
    of = study(epsilon=50.0, algorithm={"preset": "fedavg", "local": {"rate": 0.5, "epochs": 5}})
    plan = build(of)
    *_, last = simulate(plan, cohorts(of, hospitals=12), 3)
    assert plan.family.layout.split(last.state.theta)["coef"][0] > 0.3, "age makes ill"


@pytest.mark.parametrize(("start", "way"), [(1e-3, 1), (1e3, -1)])
def test_the_clip_follows_the_updates(monkeypatch, start, way):
    monkeypatch.setattr(
        "fedrounds.core.privacy.noised.discrete_gaussian", lambda sigma, count, bits: np.zeros(count, np.int64)
    )
    of = study(clip=start, quantile=0.5, algorithm="fedavgm")
    found = [closed.state.memory.get("clip") for closed in simulate(build(of), cohorts(of, hospitals=3), 3)]
    clips = [float(clip[0]) for clip in found if clip is not None]
    np.testing.assert_allclose(clips[:3], [start * np.exp(way * 0.1 * k) for k in (1, 2, 3)], rtol=0.01)


def test_without_a_quantile_the_clip_stays():
    of = study()
    *_, last = simulate(build(of), cohorts(of, hospitals=3), 1)
    assert "clip" not in last.state.memory


# --- the forecast -----------------------------------------------------------------------------------------------------


def test_the_forecast_says_the_noise_beside_the_signal_and_warns_where_hospitals_are_few():
    plan = build(study(colluders=0))
    z, d = plan.study.privacy.dp.training_event().multiplier, plan.family.layout.size
    found = forecast(plan, 12, 3)
    assert found.noise == pytest.approx(z * sqrt(d) / 12, rel=0.05), (
        "z √d / K: what was added for three who might be lost is taken out"
    )
    assert len(found.epsilons) == 4
    assert found.epsilons[-1] <= 8.0
    assert not any("none can hide" in text for text in found.warnings)
    assert any("of 4 hospitals none can hide" in text for text in forecast(plan, 4, 3).warnings)
    assert any("the study cannot work" in text for text in forecast(build(study(epsilon=0.5)), 12, 3).warnings)


def test_what_the_ledgers_hold_after_a_run_by_mail_is_what_was_forecast(apart):
    dp = '{ unit = "hospital", epsilon = 4.0, hospitals = 12, rounds = 3, quantile = 0.5, spare = 1 }'
    found = apart(masked=f'{{ kind = "masked" }}\ndp = {dp}', protocol={'weights = "patients"': 'weights = "uniform"'})
    with found.run() as run:
        found.drive(run)
        told, clip = run.ledger.visits()[-1].record, run.state.memory["clip"]
    foreseen = forecast(found.plan, 3, 3)
    for site in found.SITES:
        held = found.hospital(site).budgets.spent(site)[found.plan.digest]
        assert epsilon(held, 1 / 120) == pytest.approx(foreseen.epsilons[-1])
    assert told["privacy"]["epsilon"] == pytest.approx(foreseen.epsilons[-1])
    assert (told["metrics"], told["training"]) == ({}, {})
    assert clip.shape == (1,)


def test_a_hospital_whose_own_budget_counts_patients_takes_part_in_none_that_counts_hospitals():
    assert "counts what is learnt of a patient" in privacy.uncounted(study(), Policy(epsilon=5.0))
    assert privacy.uncounted(study(), Policy()) == ""


def test_a_patient_turns_an_update_into_another_within_the_clip_so_epsilon_is_not_theirs():
    there, back = clipped(np.array([9.0]), 1.0, bit=False), clipped(np.array([-9.0]), 1.0, bit=False)
    assert there - back == pytest.approx(2.0), "twice what a hospital moves the sum that is zero in its place"


def test_a_refusal_for_the_sites_own_budget_is_told_and_costs_nothing(apart):
    dp = '{ unit = "hospital", epsilon = 4.0, hospitals = 12, rounds = 3 }'
    found = apart(
        masked=f'{{ kind = "masked" }}\ndp = {dp}',
        protocol={'weights = "patients"': 'weights = "uniform"'},
        sites=("east", "north", "south", "west"),
    )
    found.set_policy("west", "epsilon = 5.0\n")
    with found.run() as run:
        found.gate(run)
        closed = found.visit(run, "statistics")
    assert closed.heard == ("east", "north", "south")
    assert "this study states ε of a hospital" in closed.refused["west"]
    assert found.hospital("west").budgets.spent("west") == {}
