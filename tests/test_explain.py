"""What explains a model: its sums against scikit-learn's pipeline and the `shap` package on pooled rows, who is left out of them, what each
hospital brought against models trained by hand, and the command with what it writes.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from itertools import combinations, product
from math import factorial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import test_baselines as compared
import test_simple_studies as simple
import test_survival_study as survival
from hidden_study import SITES, cohorts
from hidden_study import study as hidden
from pydantic import ValidationError
from sklearn.metrics import log_loss, roc_auc_score
from test_baselines import Page, ledger_of

from fedrounds.cli.main import main
from fedrounds.core import baselines
from fedrounds.core.answer import Policy
from fedrounds.core.attribution import attributing, blocks, reference
from fedrounds.core.contribution import NEAR, ORDERS, contribution, sampled, shapley
from fedrounds.core.errors import QuorumError, StudyError
from fedrounds.core.explain import grids, told
from fedrounds.core.explained import understood
from fedrounds.core.export import pipeline
from fedrounds.core.masked import TOGETHER
from fedrounds.core.messages import Reply, decode
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Cohort, Rows, encode
from fedrounds.core.privacy.disclosure import few_of, withhold
from fedrounds.core.privacy.settings import Privacy
from fedrounds.core.simulate import OPEN, asked, simulate
from fedrounds.core.study import Study
from fedrounds.reports import explained as drawn
from fedrounds.tasks import baselines as noted
from fedrounds.tasks.explain import _found, require
from fedrounds.tasks.matrix import Ready
from fedrounds.tasks.preview import samples

WARDS = ["red", "blue", "green", None]


def plain(model: str = "logistic", **more) -> Study:
    """The study of hidden_study, hiding nothing."""
    return Study.model_validate(hidden(model).model_dump(exclude={"privacy"}) | {"privacy": Privacy()} | more)


def trained(of: Study, rounds: int = 2, **options):
    plan = build(of)
    data = cohorts(of, **options)
    return plan, data, list(simulate(plan, data, rounds))[-1].state


@pytest.fixture(scope="module")
def logistic():
    """A trained study, its rows, its sums, and the same patients as one data frame."""
    cuts = [{"feature": "ward"}, {"feature": "age", "cuts": [45, 55]}]
    plan, data, state = trained(plain(explain={"repeats": 3, "subgroups": cuts}))
    parts = asked(plan, data, "explain", state).explained
    judging = {site: cohort.values[cohort.valid] for site, cohort in data.items()}
    frames = {site: frame(values) for site, values in judging.items()}
    y = np.concatenate([cohort.y[cohort.valid] for cohort in data.values()])
    return SimpleNamespace(
        plan=plan, data=data, state=state, parts=parts, frames=frames, y=y, pipe=pipeline(plan, state)
    )


def frame(values: np.ndarray) -> pd.DataFrame:
    ward = [WARDS[3 if np.isnan(level) else int(level)] for level in values[:, 2]]
    return pd.DataFrame({"age": values[:, 0], "dose": values[:, 1], "ward": pd.Series(ward, dtype=object)})


def summed(parts: dict) -> dict[str, np.ndarray]:
    return {name: sum(sums[name] for sums in parts.values()) for name in next(iter(parts.values()))}


# --- sums against one pool of the rows --------------------------------------------------------------------------------


def test_permutation_importance_is_the_pooled_one_under_the_same_permutations(logistic):
    found = understood(logistic.plan, logistic.state.statistics, logistic.parts)
    before = log_loss(logistic.y, logistic.pipe.predict_proba(pd.concat(logistic.frames.values())))
    drawing = {site: logistic.plan.rng(logistic.state.round, site) for site in SITES}
    for feature, said in zip(("age", "dose", "ward"), found["features"], strict=True):
        rises = []
        for _ in range(3):
            mixed = {site: part.reset_index(drop=True) for site, part in logistic.frames.items()}
            for site, part in mixed.items():
                order = drawing[site].permutation(len(part))
                mixed[site] = part.assign(**{feature: part[feature].to_numpy()[order]})
            rises.append(log_loss(logistic.y, logistic.pipe.predict_proba(pd.concat(mixed.values()))) - before)
        assert said["feature"] == feature
        assert said["importance"] == pytest.approx(np.mean(rises), rel=0, abs=1e-9)
        assert said["deviation"] == pytest.approx(np.std(rises, ddof=1), rel=0, abs=1e-9)
    assert found["features"][1]["importance"] > 10 * abs(
        found["features"][0]["importance"]
    )  # the dose is what is asked for


def test_partial_dependence_is_the_pooled_mean_prediction(logistic):
    found = understood(logistic.plan, logistic.state.statistics, logistic.parts)["dependence"]
    pool = pd.concat(logistic.frames.values())
    assert [(panel["feature"], len(panel["points"])) for panel in found] == [("age", 9), ("dose", 9), ("ward", 2)]
    for panel in found:
        for point, mean in zip(panel["points"], panel["means"][0], strict=True):
            expected = logistic.pipe.predict_proba(pool.assign(**{panel["feature"]: point}))[:, 1].mean()
            assert mean == pytest.approx(expected, rel=0, abs=1e-9)


def test_a_grid_stays_within_two_deviations_and_the_dictionarys_range():
    narrow = [
        {"type": "number", "name": "age", "range": [45, 120], "missing": ["?"]},
        {"type": "number", "name": "dose", "range": [-10, 10]},
        {"type": "category", "name": "ward", "categories": ["red", "blue"], "encode": "drop_first", "missing": ["?"]},
    ]
    of = build(plain(features=narrow))
    statistics = {
        "impute": np.array([50.0, 0.0, 1.0]),
        "center": np.array([50.0, 0.5, 0.0]),
        "scale": np.array([9.0, 2.0, 1.0]),
    }
    age, dose, ward = grids(of.study, statistics)
    np.testing.assert_allclose(age, np.linspace(45, 68, 9))
    np.testing.assert_allclose(dose, np.linspace(-3.5, 4.5, 9))
    assert ward.tolist() == [0.0, 1.0]
    raw = build(plain(features=[{"type": "number", "name": "dose"}], preprocess={"standardise": "none"}))
    assert [grid.size for grid in grids(raw.study, {})] == [0]  # nothing public says where its values lie
    assert "dependence" not in raw.algorithms["explain"].shapes(0)


def test_subgroups_are_scored_as_their_patients_are(logistic):
    found = understood(logistic.plan, logistic.state.statistics, logistic.parts)
    pool = pd.concat(logistic.frames.values(), ignore_index=True)
    p = logistic.pipe.predict_proba(pool)[:, 1]
    age = pool["age"].to_numpy()
    masks = {
        ("ward", "red"): pool["ward"] == "red",
        ("ward", "other"): pool["ward"] == "green",
        ("ward", "missing"): pool["ward"].isna(),
        ("age", "below 45"): age < 45,
        ("age", "45 to below 55"): (age >= 45) & (age < 55),
        ("age", "missing"): np.isnan(age),
    }
    told = {(p["feature"], g["group"]): g["everywhere"] for p in found["subgroups"] for g in p["groups"]}
    for key, mask in masks.items():
        mask = np.asarray(mask)
        if mask.sum() < 10:
            assert key not in told
            continue
        assert told[key]["n"] == mask.sum()
        assert told[key]["log_loss"] == pytest.approx(log_loss(logistic.y[mask], p[mask]), rel=1e-9)
        assert abs(told[key]["auc"] - roc_auc_score(logistic.y[mask], p[mask])) <= told[key]["auc_error"]
    assert any(key in told for key in masks if key[0] == "ward")
    assert any(key in told for key in masks if key[0] == "age")


# --- Shapley values of features ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of shap's colours
def test_shap_sums_of_a_linear_model_are_those_of_the_shap_package_on_pooled_rows(logistic):
    import shap

    plan, state = logistic.plan, logistic.state
    rows = [encode(cohort, plan.study, state.statistics, plan.ones) for cohort in logistic.data.values()]
    width = len(plan.columns)
    train, X = (np.concatenate([getattr(one, name)[:, :width] for one in rows]) for name in ("X", "X_valid"))
    estimator, at = plan.family.estimator(state.theta), reference(plan.study, state.statistics)
    found = summed(logistic.parts)["attribution"][:, 0]
    ours = shap.LinearExplainer(estimator, at[None]).shap_values(X)
    by_feature = np.stack([ours[:, part].sum(1) for part in blocks(plan.study)], axis=1)
    np.testing.assert_allclose(found[:, 0], by_feature.sum(0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[:, 1], np.abs(by_feature).sum(0), rtol=0, atol=1e-9)
    pooled = shap.LinearExplainer(estimator, shap.maskers.Independent(train, max_samples=len(train))).shap_values(X)
    np.testing.assert_allclose(
        found[:2, 1], np.abs(pooled[:, :2]).sum(0), rtol=0, atol=1e-9
    )  # numbers: the agreed mean is theirs
    assert at[:2].tolist() == [0.0, 0.0]
    assert sorted(at[2:].tolist()) == [0.0, 0.0, 1.0]  # the most frequent ward


def grown(kind: str, features: list, values: np.ndarray, y: np.ndarray):
    target = (
        {"kind": "multiclass", "column": "y", "classes": ["a", "b", "c"]}
        if kind == "multiclass"
        else {"kind": kind, "column": "y"}
    )
    target |= {"positive_above": 0.5} if kind == "binary" else {}
    of = Study.model_validate(
        {
            "name": "grown",
            "target": target,
            "features": features,
            "model": {"kind": "boosting", "most": 6, "trees": 6, "depth": 3, "bins": 16, "min_rows": 10},
            "algorithm": "exact",
        }
    )
    plan, half = build(of), np.arange(len(y)) % 2 == 0
    data = {
        site: Cohort(site, values[part], y[part], np.arange(int(part.sum())) % 3 == 0, {})
        for site, part in (("a", half), ("b", ~half))
    }
    return plan, data, list(simulate(plan, data, 1))[-1].state


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_shap_sums_of_trees_are_those_of_the_shap_package(kind):
    import shap

    rng = np.random.default_rng(3)
    values = rng.normal(size=(240, 4))
    score = values[:, 0] * values[:, 1] + values[:, 2]
    y = {
        "regression": score,
        "binary": (score > 0).astype(float),
        "multiclass": np.digitize(score, [-0.7, 0.7]).astype(float),
    }[kind]
    plan, data, state = grown(kind, [{"type": "number", "name": name} for name in "abcd"], values, y)
    found = summed(asked(plan, data, "explain", state).explained)["attribution"]
    X = np.concatenate(
        [encode(cohort, plan.study, state.statistics, plan.ones).X_valid[:, :4] for cohort in data.values()]
    )
    at = reference(plan.study, state.statistics)
    explainer = shap.TreeExplainer(plan.family.estimator(state.theta), at[None], feature_perturbation="interventional")
    theirs = explainer.shap_values(X, check_additivity=False).reshape(len(X), 4, -1)
    np.testing.assert_allclose(found[:, :, 0], theirs.sum(0), rtol=1e-6, atol=1e-6)  # theirs come of float32 leaves
    np.testing.assert_allclose(found[:, :, 1], np.abs(theirs).sum(0), rtol=1e-6, atol=1e-6)
    assert np.abs(found).max() > 1


def test_a_category_is_one_feature_of_a_forest_by_shapleys_own_formula():
    rng = np.random.default_rng(5)
    values = np.column_stack([rng.normal(size=(200, 2)), rng.integers(0, 4, 200)]).astype(float)
    y = values[:, 0] + 2.0 * (values[:, 2] == 1) - values[:, 1] * (values[:, 2] == 3)
    features = [
        {"type": "number", "name": "a"},
        {"type": "number", "name": "b"},
        {"type": "category", "name": "c", "categories": ["0", "1", "2", "3"]},
    ]
    plan, data, state = grown("regression", features, values, y)
    X = encode(data["a"], plan.study, state.statistics, plan.ones).X_valid[:20]
    at, parts = reference(plan.study, state.statistics), blocks(plan.study)
    attribute, outputs = attributing(plan.study, plan.family, plan.classes)
    found = attribute(state.theta, X, at)[:, :, 0]

    def score(own: tuple[int, ...]) -> np.ndarray:
        mixed = X.copy()
        for j in set(range(3)) - set(own):
            mixed[:, parts[j]] = at[parts[j]]
        return plan.family.predict(state.theta, mixed)

    for j in range(3):
        others = [i for i in range(3) if i != j]
        expected = 0.0
        for size in range(3):
            for chosen in combinations(others, size):
                weight = factorial(size) * factorial(2 - size) / factorial(3)
                expected = expected + weight * (score((*chosen, j)) - score(chosen))
        np.testing.assert_allclose(found[:, j], expected, rtol=0, atol=1e-12)
    assert outputs == 1


# --- what leaves ------------------------------------------------------------------------------------------------------


def test_what_is_hidden_of_a_parting_can_never_be_subtracted_to_fewer_than_the_minimum():
    for counts in product(range(7), repeat=4):
        n = np.array(counts, float)
        few = few_of(n, 4)
        assert not ((n > 0) & (n < 4) & ~few).any()
        hidden_patients = n[few].sum()
        assert hidden_patients == 0 or hidden_patients >= 4 or not ((n > 0) & ~few).any()


def test_nothing_of_few_patients_leaves_and_histograms_of_groups_only_where_nothing_leaves_a_process(logistic):
    sums = {name: array.copy() for name, array in logistic.parts["west"].items()}
    n = sums["scores"][0]
    thinned = withhold(sums, 6, fine=True)
    kept = thinned["subgroup.0"][:, 0]
    assert not ((kept > 0) & (kept < 6)).any()
    assert n - kept.sum() == 0 or n - kept.sum() >= 6
    assert 0 < thinned["subgroup.0.histogram"].sum() == kept.sum()
    assert withhold(sums, 6, fine=False)["subgroup.0.histogram"].sum() == 0
    for gone in (withhold(sums, 6, scores=False), withhold(sums, int(n) + 1)):
        assert gone.keys() == sums.keys()
        assert not any(array.any() for array in gone.values())


def test_shapley_values_of_a_category_with_a_rare_level_leave_as_of_nobody(logistic):
    plan, state = logistic.plan, logistic.state
    cohort = logistic.data["west"]
    values = np.vstack([cohort.values[:20], cohort.values[:20]])
    values[:, 2] = [0.0] * 30 + [1.0] * 7 + [2.0] * 3  # with one coefficient a level, Σφ would be how many have it
    data = {"west": Cohort("west", values, np.resize([0.0, 1.0], 40), np.ones(40, bool), {})}
    data["west"].valid[::2] = False
    found = {}
    for minimum in (1, 3, 11):
        policy = Policy(minimum_patients=minimum, explanations=True)
        found[minimum] = asked(plan, data, "explain", state, policy).explained["west"]
    assert [sums["attributed"].tolist() for sums in found.values()] == [[20, 20, 20], [20, 20, 0], [20, 20, 0]]
    assert found[1]["attribution"][2].any()
    assert not found[3]["attribution"][2].any()
    assert found[3]["attribution"][:2].all()
    told_ = understood(plan, state.statistics, {"west": found[3]})["features"]
    assert [one["weight"] == [None] for one in told_] == [False, False, True]


def test_a_hospital_answers_nothing_of_it_unless_its_people_say_so(logistic):
    plan, data, state = logistic.plan, logistic.data, logistic.state
    with pytest.raises(QuorumError, match="explanations = true"):
        asked(plan, data, "explain", state, Policy(minimum_patients=1))
    one = {site: Policy(minimum_patients=1, explanations=site == "north") for site in data}
    closed = asked(plan, data, "explain", state, one)
    assert list(closed.explained) == ["north"]
    assert sorted(closed.refused) == ["east", "south", "west"]
    with pytest.raises(QuorumError, match="finer than the 49"):
        asked(plan, data, "explain", state, Policy(minimum_patients=1, explanations=True, finest_bins=49))


@pytest.mark.parametrize("model", ["linear", "multinomial", "mlp"])
def test_sums_under_masks_are_the_sums_of_all_and_of_nobody_alone(model):
    plan = build(hidden(model))
    data = cohorts(plan.study)
    state = list(simulate(build(plain(model)), data, 1))[-1].state
    rows = np.array([float(sum((~cohort.valid).sum() for cohort in data.values()))])
    state = replace(plan.start({**state.statistics, "rows": rows}), round=1, theta=state.theta)
    closed = asked(plan, data, "explain", state)
    assert list(closed.explained) == [TOGETHER]
    assert closed.heard == SITES
    algorithm = plan.algorithms["explain"]
    own = {
        site: withhold(algorithm.answer(algorithm.ask(state), {}, data[site], plan.rng(1, site))[1], 1)
        for site in SITES
    }
    for name, array in summed(own).items():
        np.testing.assert_allclose(closed.explained[TOGETHER][name], array, rtol=0, atol=4 * 2.0**-9, err_msg=name)
    found = understood(plan, state.statistics, closed.explained)
    assert found["sites"] == {}
    assert all(group["sites"] == {} for parting in found["subgroups"] for group in parting["groups"])


@pytest.mark.parametrize("way", ["groups", "encryption"])
def test_of_groups_under_masks_and_of_encrypted_sums_it_is_all_together_too(way):
    words = {"kind": "masked", "groups": 3} if way == "groups" else {"kind": "ckks", "key_holder": "east"}
    more = {"algorithm": {"preset": "fedmedian"}, "weights": "uniform"} if way == "groups" else {}
    plan = build(plain(privacy={"protect": words}, **more))
    data = {
        f"{site}{k or ''}": it for site, it in cohorts(plan.study).items() for k in range(3 if way == "groups" else 1)
    }
    closed = asked(plan, data, "explain", plan.start(plan.no_statistics()))
    assert list(closed.explained) == [TOGETHER]
    assert closed.heard == tuple(sorted(data))
    assert closed.explained[TOGETHER]["scores"][0] == sum(it.valid.sum() for it in data.values())


def test_a_study_that_hides_its_sums_is_explained_without_saying_what_a_hospital_brought(tmp_path):
    plan = build(hidden())
    data = cohorts(plan.study)
    state = list(simulate(plan, data, 1))[-1].state
    wards = {site: SimpleNamespace(cohort=cohort, policy=OPEN, fingerprint=site) for site, cohort in data.items()}
    note = _found(Ready(plan, wards, state, "lineage", "token", {}))
    assert note["contribution"] == {
        "none": "the study hides its sums: what a hospital brought is not to be known from one model to the next"
    }
    assert (note["masked"], note["sites"]) == (4, {})
    page = Page(drawn.page(note, "hidden"))
    assert "Sums of 4 hospitals were opened together: how the model does at one of them is not known." in page.text
    with compared.Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.begin(plan.study)
        folder = SimpleNamespace(study=plan.study)
        noted.compare(
            SimpleNamespace(wards=wards, last={"sites": wards}, state=state, plan=plan, ledger=ledger, folder=folder)
        )
        assert ledger.noted("baselines") == {"sites": list(SITES), "token": noted.about(wards, 1)}


def test_an_agent_whose_people_allow_it_sends_what_was_previewed_and_no_other_does(apart):
    study = apart(policy="explanations = true")
    (sample,) = [it.message for it in samples(study.hospital("north")) if it.ask == "explain"]
    found = decode(sample, Reply).arrays
    assert found["scores"][0] >= 10
    assert found["shuffled"].any()
    cells = [array[:, 0] for name, array in found.items() if name.startswith("subgroup.") and array.ndim == 2]
    assert all(((n == 0) | (n >= 10)).all() for n in cells)
    assert any(n.any() for n in cells)
    assert not any(array.any() for name, array in found.items() if name.startswith("subgroup.") and array.ndim > 2)
    with study.run() as run:  # of this hospital alone, as the sample is
        run.wards = {"north": run.wards["north"]}
        run.folder = replace(run.folder, operations=run.folder.operations.model_copy(update={"quorum": 1}))
        study.gate(run)
        study.visit(run, "statistics")
        assert study.ask(run, run.open("explain"), ["north"]) == [sample]
        study.set_policy("north", "")
        study.gate(run)
        (refused,) = study.ask(run, run.open("explain"), ["north"])
    assert "explanations = true" in decode(refused, Reply).refusal
    assert "explain" not in [it.ask for it in samples(study.hospital("north"))]


def test_noise_lets_nothing_leave_that_is_not_noised():
    noised = compared.study(
        features=[{"type": "number", "name": "a", "range": [0, 1]}],
        algorithm="fedavg",
        weights="uniform",
        privacy={"dp": {"unit": "patient", "epsilon": 3.0, "patients": 200, "rounds": 5}},
    )
    with pytest.raises(StudyError, match="found one that is differentially private"):
        require(noised)
    assert "explain" not in build(noised).algorithms


# --- what a study says of it ------------------------------------------------------------------------------------------


def test_a_study_that_says_nothing_of_it_keeps_its_digest_and_tells_categories_apart():
    assert plain().digest == plain(explain={"repeats": 5}).digest
    assert plain().digest != plain(explain={"repeats": 4}).digest != plain(explain={"subgroups": []}).digest
    shapes = build(plain()).algorithms["explain"].shapes(0)
    assert shapes["subgroup.0"] == (4, 4)  # red, blue, other, missing
    assert "subgroup.1" not in shapes
    assert "subgroup.0" not in build(plain(explain={"subgroups": []})).algorithms["explain"].shapes(0)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([{"feature": "height"}], "found 'height': name one of them"),
        ([{"feature": "age"}], "a number needs `cuts`"),
        ([{"feature": "ward", "cuts": [1]}], "a category has its levels"),
        ([{"feature": "age", "cuts": [50, 50]}], "must rise"),
        ([{"feature": "age", "cuts": [50]}, {"feature": "age", "cuts": [51]}], "each feature once"),
    ],
)
def test_subgroups_that_cannot_be_told_apart_are_refused_in_words(groups, said):
    with pytest.raises(ValidationError, match=said):
        plain(explain={"subgroups": groups})


@pytest.mark.parametrize("name", simple.MODELS)
def test_every_kind_of_model_is_explained_by_what_it_has(name):
    plan, data, closed = simple.run(name)
    state = closed[-1].state
    found = understood(plan, state.statistics, asked(plan, data, "explain", state).explained)
    assert len(found["features"]) == len(plan.study.features)
    assert all(np.isfinite(one["importance"]) for one in found["features"])
    assert bool(found["dependence"]) == (plan.task != "none")
    assert bool(found["scores"]) == ("coef" in plan.family.layout.shapes)
    note = {"round": 1, "asked": sorted(data), "masked": 0, "refused": {}, "contribution": {"none": "a test"}, **found}
    assert "h3" not in Page(drawn.page(note, "a <b>title</b>")).open


def test_a_survival_model_is_explained_by_the_risk_until_the_end_of_its_grid():
    plan = build(survival.study_of())
    data = survival.cohorts(plan.study)
    state = list(simulate(plan, data, 1))[-1].state
    found = understood(plan, state.statistics, asked(plan, data, "explain", state).explained)
    rows = [encode(cohort, plan.study, state.statistics, plan.ones) for cohort in data.values()]
    X = np.concatenate([part.X_valid for part in rows])
    panel, part = found["dependence"][0], blocks(plan.study)[0]
    X[:, part] = (panel["points"][4] - state.statistics["center"][part]) / state.statistics["scale"][part]
    hazard = plan.family.predict(state.theta, X)[:, -1]
    assert panel["means"][0][4] == pytest.approx(np.mean(1 - np.exp(-hazard)), rel=1e-9)
    assert told("survival", np.array([[0.3, 0.1, 0.2]]))[0, 0] == pytest.approx(1 - np.exp(-0.2))


# --- what each hospital brought ---------------------------------------------------------------------------------------


def test_shapleys_values_of_a_game_worked_by_hand():
    gloves = {"a": 1, "b": 0, "c": 0}  # a left glove and two right ones: a pair is worth 1

    def pair(players: frozenset[str]) -> float:
        return float(any(gloves[p] for p in players) and any(not gloves[p] for p in players))

    found = shapley("abc", pair)
    assert found == pytest.approx({"a": 4 / 6, "b": 1 / 6, "c": 1 / 6}, abs=1e-15)
    drawn_ = sampled("abc", pair, np.random.default_rng(1), 2000)
    for player, (value, error) in drawn_.items():
        assert abs(value - found[player]) < 4 * error < 0.06


def test_a_model_of_fewer_sites_is_put_together_from_the_updates_of_all():
    data = compared.rows()
    of = compared.setting(compared.study(), data, rounds=3)
    theta = compared.trained(of)
    found = contribution(of, theta)
    assert (found.same, found.anew, found.orders, found.unfit) == (True, False, 0, 0)
    assert not contribution(of, np.nextafter(theta, 1.0)).same  # another history led to that one
    X, y = (np.concatenate([getattr(data[site], name) for site in sorted(data)]) for name in ("X_valid", "y_valid"))
    path, at = [], np.zeros(4)
    for _ in range(3):  # the updates that all made, from where all stood
        path.append({site: compared.descended(at, [part]) - at for site, part in data.items()})
        at = at + np.average(list(path[-1].values()), axis=0, weights=[len(part.y) for part in data.values()])
    np.testing.assert_allclose(at, theta, rtol=1e-12)

    def worth(sites) -> float:
        model = np.zeros(4)
        for updates in path if sites else []:
            model = model + np.average([updates[s] for s in sites], axis=0, weights=[len(data[s].y) for s in sites])
        return log_loss(y, np.full(len(y), 0.5)) - log_loss(y, 1 / (1 + np.exp(-X @ model)))

    expected = shapley(sorted(data), lambda sites: worth(sorted(sites)))
    for site, share in found.shares.items():
        assert share.shapley == pytest.approx(expected[site], rel=0, abs=1e-12)
        assert share.alone == pytest.approx(worth([site]), rel=0, abs=1e-12)
        assert share.last == pytest.approx(worth(sorted(data)) - worth(sorted(set(data) - {site})), rel=0, abs=1e-12)
        assert share.error == 0
    assert sum(share.shapley for share in found.shares.values()) == pytest.approx(found.whole, rel=1e-12)


def test_a_study_that_began_with_a_registered_version_is_put_together_and_compared_from_there():
    data = compared.rows()
    cold = compared.setting(compared.study(), data, rounds=2)
    of = replace(cold, start=np.array([0.5, -0.5, 0.25, 0.1]))
    start = replace(of.plan.start(of.statistics), theta=of.start)
    theta = list(simulate(of.plan, data, 2, state=start))[-1].state.theta
    found = contribution(of, theta)
    assert (found.same, contribution(cold, theta).same) == (True, False)
    X, y = (np.concatenate([getattr(data[site], name) for site in sorted(data)]) for name in ("X_valid", "y_valid"))
    before, after = (log_loss(y, 1 / (1 + np.exp(-X @ model))) for model in (of.start, theta))
    assert found.whole == pytest.approx(before - after, rel=1e-9)
    alone, site = of.start, sorted(data)[0]
    for _ in range(2):
        alone = compared.descended(alone, [data[site]])
    np.testing.assert_allclose(baselines.local(of, site).state.theta, alone, rtol=1e-9)
    assert not np.allclose(baselines.cyclic(of).state.theta, baselines.cyclic(cold).state.theta, rtol=1e-3)


def test_momentum_at_the_server_and_memory_at_the_sites_are_put_together_too():
    data = compared.rows()
    for algorithm in (
        {"preset": "fedadam", "server": {"rate": 0.05}},
        {"preset": "scaffold", "local": {"kind": "scaffold", "rate": 0.1}},
    ):
        of = compared.setting(compared.study(algorithm=algorithm), data, rounds=3)
        found = contribution(of, compared.trained(of))
        assert found.same
        assert sum(share.shapley for share in found.shares.values()) == pytest.approx(found.whole, rel=1e-9)


def test_an_exact_fit_is_made_anew_of_every_set_of_sites():
    data = compared.rows(numbers=True)
    of = compared.setting(compared.study(**compared.LINEAR), data, rounds=1)
    found = contribution(of, compared.trained(of))
    assert (found.same, found.anew) == (True, True)

    def loss(sites) -> float:
        X, y, X_valid, y_valid = (
            np.concatenate([getattr(data[site], name) for site in chosen])
            for chosen, name in ((sites, "X"), (sites, "y"), (sorted(data), "X_valid"), (sorted(data), "y_valid"))
        )
        return float(np.mean((y_valid - X_valid @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2))

    first = float(np.mean(np.concatenate([part.y_valid for part in data.values()]) ** 2))
    for site, share in found.shares.items():
        assert share.alone == pytest.approx(first - loss([site]), rel=1e-9)
        assert share.last == pytest.approx(loss(sorted(set(data) - {site})) - loss(sorted(data)), rel=1e-6, abs=1e-12)
    many = {f"{site}-{k}": part for site, part in data.items() for k in range(3)}
    with pytest.raises(StudyError, match="at most 8 sites"):
        contribution(compared.setting(compared.study(**compared.LINEAR), many, rounds=1), np.zeros(4))


def test_of_many_sites_orders_are_drawn_by_the_studys_seed_and_the_shares_still_add_up():
    rng = np.random.default_rng(2)
    parts = list(compared.rows().values())
    X, y = np.concatenate([p.X for p in parts]), np.concatenate([p.y for p in parts])
    X_valid, y_valid = np.concatenate([p.X_valid for p in parts]), np.concatenate([p.y_valid for p in parts])
    cut = np.array_split(rng.permutation(len(y)), 9)
    data = {f"s{k}": Rows(X[own], y[own], X_valid[k::9], y_valid[k::9]) for k, own in enumerate(cut)}
    of = compared.setting(compared.study(), data, rounds=2)
    theta = compared.trained(of)
    found = contribution(of, theta)
    assert found == contribution(of, theta)
    assert (found.orders, found.same) == (ORDERS, True)
    assert abs(sum(share.shapley for share in found.shares.values()) - found.whole) <= NEAR * found.whole
    assert all(share.error > 0 for share in found.shares.values())


def test_what_each_of_many_hospitals_brought_is_told_by_drawn_orders():
    plan = build(plain())
    data = {f"{site}{k}": cohort for site, cohort in cohorts(plan.study).items() for k in range(17)}
    state = list(simulate(plan, data, 1))[-1].state
    wards = {site: SimpleNamespace(cohort=cohort, policy=OPEN, fingerprint=site) for site, cohort in data.items()}
    found = _found(Ready(plan, wards, state, "lineage", "token", {}))["contribution"]
    assert (len(found["shares"]), found["orders"], found["same"]) == (68, ORDERS, True)
    assert sum(share["shapley"] for share in found["shares"].values()) == pytest.approx(found["whole"], rel=NEAR)


def test_updates_of_few_sites_that_cannot_be_combined_are_no_contribution():
    data = compared.rows() | {"south": compared.rows()["east"], "centre": compared.rows()["west"]}
    krum = compared.FEDAVG | {"preset": "krum", "combine": {"attackers": 1}}
    of = compared.setting(compared.study(algorithm=krum, weights="uniform"), data)
    with pytest.raises(
        StudyError,
        match="expected updates that any sites can be combined of, found: expected 5 updates or more for Krum",
    ):
        contribution(of, compared.trained(of))


def test_a_site_that_shows_no_scores_is_weighed_by_those_of_others():
    data = compared.rows()
    of = compared.setting(compared.study(), data, west=compared.FREE.model_copy(update={"local_metrics": False}))
    found = contribution(of, compared.trained(of))
    X, y = (
        np.concatenate([getattr(data[site], name) for site in ("east", "north")]) for name in ("X_valid", "y_valid")
    )
    theta = baselines.of_sites(of, data.keys()).state.theta
    assert found.whole == pytest.approx(np.log(2) - log_loss(y, 1 / (1 + np.exp(-X @ theta))), rel=1e-12)
    assert list(found.shares) == ["east", "north", "west"]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told_of(toy_study, tmp_path_factory, program):
    """A study that has run, and what the command says of it."""
    folder = toy_study.copy(tmp_path_factory.mktemp("explain") / "toy")
    done = program("explain", folder, "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def lying(folder):
    (found,) = (folder / "mlruns" / "artifacts").glob("*/artifacts/explain")
    return found


def test_the_command_tells_of_the_champion_what_the_run_itself_has_scored(told_of):
    folder, said = told_of
    with ledger_of(folder) as ledger:
        note, visits, best = ledger.noted("explained"), ledger.visits(), ledger.standing().champion
    assert {key: note[key] for key in note if key != "token"} == {key: said[key] for key in said if key != "study"}
    record = next(visit.record for visit in visits if visit.record["scored"] == best)
    assert said["round"] == best
    assert said["everywhere"] == record["metrics"]
    assert said["sites"] == {site: found["metrics"] for site, found in record["sites"].items()}
    with ledger_of(folder) as ledger:
        names = [feature.name for feature in ledger.study().features]
    assert [one["feature"] for one in said["features"]] == names
    assert said["contribution"]["same"] is True
    shares = said["contribution"]["shares"]
    assert sum(share["shapley"] for share in shares.values()) == pytest.approx(said["contribution"]["whole"], rel=1e-9)
    for parting in said["subgroups"]:
        for group in parting["groups"]:
            assert all(found["n"] >= 10 for found in (group["everywhere"], *group["sites"].values()))
            assert group["everywhere"]["n"] == sum(found["n"] for found in group["sites"].values())


def test_files_and_pages_beside_the_lineage_say_the_same(told_of):
    folder, said = told_of
    names = sorted(file.name for file in lying(folder).iterdir())
    assert names == [
        "contribution.csv",
        "dependence.csv",
        "explained.html",
        "features.csv",
        "groups.csv",
        "importance.svg",
    ]
    with (lying(folder) / "features.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["site"]]
    assert {row["feature"]: float(row["importance"]) for row in rows} == {
        one["feature"]: one["importance"] for one in said["features"]
    }
    assert [float(row["mean_abs_phi"]) for row in rows] == [one["weight"][0] for one in said["features"]]
    page = Page((lying(folder) / "explained.html").read_text())
    assert {"importance-title", "dependence-title", "contribution-title"} <= page.ids
    report = Page((lying(folder).parent / "report.html").read_text())
    assert "explained-heading" in report.ids
    assert "rise of the log-loss when a feature is permuted" in report.text


def test_repair_writes_them_again_and_asking_again_asks_nobody(told_of, program, capfd, monkeypatch):
    folder, _ = told_of
    before = {file.name: file.read_bytes() for file in lying(folder).iterdir()}
    shutil.rmtree(lying(folder))
    assert program("repair", folder).returncode == 0
    assert {file.name: file.read_bytes() for file in lying(folder).iterdir()} == before
    monkeypatch.setattr("fedrounds.tasks.explain._found", None)
    assert main(["explain", str(folder)]) == 0
    out = capfd.readouterr().out
    assert out.startswith("for whom")
    assert "log-loss rises by" in out
    assert "share of the fall of log-loss" in out


def test_it_is_refused_in_one_line_where_it_cannot_be(new_study, tmp_path, capfd):
    (tmp_path / "coordinator.toml").write_text("")
    for folder, code, words in (
        (tmp_path, 10, "expected another `public` in"),
        (new_study, 15, "expected a study that has run"),
    ):
        assert main(["explain", str(folder)]) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert words in err
