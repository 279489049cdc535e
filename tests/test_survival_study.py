"""A study that predicts when something happens, whole: from tables to a registered version and a report."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from statsmodels.duration.hazard_regression import PHReg
from statsmodels.duration.survfunc import SurvfuncRight

from fedrounds.core.answer import Policy
from fedrounds.core.errors import DataContractError, QuorumError
from fedrounds.core.export import pipeline
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Cohort, clean, encode
from fedrounds.core.regression import regression
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study, Survival
from fedrounds.core.survival import counted, score_bins
from fedrounds.core.table import Table
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.survived import survived, thirds

SIZES = {"east": 110, "north": 180, "west": 260}
GRID: dict[str, Any] = {"last": 1200, "steps": 12}
TARGET: dict[str, Any] = {
    "kind": "survival",
    "time": "days",
    "event": "died",
    "happened": ["yes"],
    "censored": ["no"],
    "grid": GRID,
}
FEATURES = [
    {"type": "number", "name": "age", "unit": "years", "range": [0, 120]},
    {"type": "category", "name": "stage", "categories": [1, 2, 3], "encode": "drop_first"},
    {"type": "number", "name": "marker", "range": [0, 64]},
]


def study_of(**more: Any) -> Study:
    words = {
        "name": "survival",
        "target": TARGET,
        "features": FEATURES,
        "model": {"kind": "cox", "at_risk": 3},
        "algorithm": "exact",
    }
    return Study.model_validate(words | more)


def patients(site: str) -> dict[str, list[Any]]:
    rng = np.random.default_rng(list(SIZES).index(site))
    n = SIZES[site]
    age, stage, marker = rng.normal(62, 11, n).round(), rng.integers(1, 4, n), rng.lognormal(1, 0.6, n).round(2)
    time = rng.exponential(900 * np.exp(-0.03 * (age - 62) - 0.5 * (stage - 2) - 0.1 * (marker - 3)))
    seen = rng.uniform(200, 1800, n)
    died = np.where(time <= seen, "yes", "no")
    days = np.maximum(1, np.minimum(time, seen).round())
    return {
        "age": age.tolist(),
        "stage": stage.tolist(),
        "marker": marker.tolist(),
        "days": days.tolist(),
        "died": died.tolist(),
    }


def table(columns: dict[str, list[Any]]) -> Table:
    return Table({name: np.array(cells, dtype=object if name == "died" else float) for name, cells in columns.items()})


def cohorts(study: Study) -> dict[str, Cohort]:
    return {site: clean(table(patients(site)), study, site) for site in SIZES}


def pooled(plan: Plan, data: dict[str, Cohort], statistics: Any, **options: Any) -> Any:
    rows = [encode(cohort, plan.study, statistics, plan.ones) for cohort in data.values()]
    X, y = np.concatenate([part.X[:, :-1] for part in rows]), np.concatenate([part.y for part in rows])
    sites = np.repeat(np.arange(len(rows)), [len(part.y) for part in rows])
    strata = sites if options.get("strata") else None
    return PHReg(np.abs(y), X, status=(y > 0).astype(int), ties=options.get("ties", "efron"), strata=strata).fit(
        disp=0, gtol=1e-12
    )


@pytest.mark.parametrize("options", [{}, {"ties": "breslow"}, {"strata": "site"}])
def test_a_study_gives_the_hazard_ratios_and_intervals_of_one_fit_in_the_dictionarys_units(
    options: dict[str, Any],
) -> None:
    plan = build(study_of(model={"kind": "cox", "at_risk": 3, **options}))
    data = cohorts(plan.study)
    *_, last, scored = simulate(plan, data, 1)
    oracle = pooled(plan, data, last.state.statistics, **options)
    assert np.abs(last.state.theta[:4] - oracle.params).max() < 1e-8
    found = regression(plan, last.state)
    assert found is not None
    assert found.ratio == "hazard ratio"
    assert [row.name for row in found.rows] == ["age", "stage=2", "stage=3", "marker"]
    scale = last.state.statistics["scale"]
    assert np.abs([row.error for row in found.rows] - oracle.bse / scale).max() < 1e-8
    assert found.patients == sum(int((~cohort.valid).sum()) for cohort in data.values())
    assert sum(int(part[0][0]) for part in scored.scores.values()) == sum(
        int(cohort.valid.sum()) for cohort in data.values()
    )


def test_a_time_beyond_the_grid_counts_as_last_seen_at_its_end_and_an_end_is_in_the_interval_it_ends() -> None:
    study = study_of(target=TARGET | {"grid": [10, 20, 50], "missing": [-9]}, validation={"fraction": 0})
    columns = {
        "days": [10.0, 10.5, 50.0, 51.0, 20.0, -9.0, 7.0],
        "died": ["yes", "no", "yes", "yes", "no", "yes", ""],
        "age": [60.0] * 7,
        "stage": [1.0] * 7,
        "marker": [1.0] * 7,
    }
    found = clean(table(columns), study, "east")
    assert found.y.tolist() == [1.0, -2.0, 3.0, -3.0, -2.0]
    assert found.dropped == {"no target": 2}


def test_equal_steps_end_where_they_say_to_the_last_digit() -> None:
    for steps in range(1, 200):
        target = study_of(target=TARGET | {"grid": {"last": 7 * steps, "steps": steps}}).target
        assert isinstance(target, Survival)
        assert target.ends == tuple(float(7 * step) for step in range(1, steps + 1))


@pytest.mark.parametrize(
    ("days", "died", "said"),
    [
        (0.0, "yes", "expected times above 0 in column 'days' (days) at site 'east', found 1 of 2 that are not"),
        (-3.0, "no", "found 1 of 2 that are not"),
        (5.0, "perhaps", "to hold one of 2 stated labels, found 1 of 2 cells that do not"),
    ],
)
def test_times_that_are_none_and_events_that_nobody_stated_are_refused_with_counts(
    days: float, died: str, said: str
) -> None:
    columns = {
        "days": [9.0, days],
        "died": ["no", died],
        "age": [60.0, 61.0],
        "stage": [1.0, 2.0],
        "marker": [1.0, 2.0],
    }
    with pytest.raises(DataContractError) as caught:
        clean(table(columns), study_of(), "east")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": TARGET | {"grid": [10, 10]}}, "must rise from above 0"),
        ({"target": TARGET | {"grid": [0, 10]}}, "must rise from above 0"),
        ({"target": TARGET | {"event": "days"}}, "two columns"),
        ({"target": TARGET | {"censored": ["yes"]}}, "must not share a label"),
        ({"target": TARGET | {"time": "age"}}, "'age' is the time and cannot be a feature too"),
        ({"model": {"kind": "logistic"}}, "a survival target goes with cox, found model 'logistic'"),
        ({"algorithm": "fedavg"}, "a cox model is fitted by sums"),
    ],
)
def test_a_study_that_cannot_mean_anything_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        study_of(**change)
    assert said in str(caught.value)


@pytest.mark.parametrize("strata", [None, "site"])
@pytest.mark.parametrize(
    "protect", [{"kind": "masked", "clip": 1.0}, {"kind": "ckks", "key_holder": "east", "clip": 1.0}]
)
def test_what_masks_or_encryption_hide_is_the_same_fit_to_their_grid(
    protect: dict[str, Any], strata: str | None
) -> None:
    model = {"kind": "cox", "at_risk": 3, "strata": strata}
    plain, hidden = (build(study_of(model=model, privacy=privacy)) for privacy in ({}, {"protect": protect}))
    data = cohorts(plain.study)
    (*_, one, scores), (*_, other, together) = (list(simulate(plan, data, 1)) for plan in (plain, hidden))
    assert np.abs(one.state.theta - other.state.theta).max() < 1e-6
    assert np.abs(one.state.theta - other.state.theta).max() > 0
    histograms = [sum(part[1] for part in closed.scores.values()) for closed in (scores, together)]
    assert np.array_equal(histograms[0], histograms[1])


def test_a_site_with_few_at_risk_is_refused_by_its_own_words_and_the_others_go_on() -> None:
    plan = build(study_of(model={"kind": "cox", "at_risk": 20}))
    data = cohorts(plan.study)
    few = min(SIZES, key=lambda site: int((~data[site].valid & (np.abs(data[site].y) == 12)).sum()))
    at_end = {site: int((~data[site].valid & (np.abs(data[site].y) == 12)).sum()) for site in SIZES}
    assert at_end[few] < 20 <= sorted(at_end.values())[1]
    *_, closed, _ = simulate(plan, data, 1, quorum=2)
    assert "fewer than 20 of its training patients are at risk from interval" in closed.refused[few]
    rest = {site: cohort for site, cohort in data.items() if site != few}
    oracle = pooled(plan, rest, closed.state.statistics)
    assert np.abs(closed.state.theta[:4] - oracle.params).max() < 1e-8
    with pytest.raises(QuorumError):
        list(simulate(plan, data, 1, quorum=3))


def test_a_histogram_with_small_cells_stays_at_a_site_and_then_no_concordance_is_told() -> None:
    from fedrounds.core.evaluate import metrics, total

    plan = build(study_of())
    data = cohorts(plan.study)
    *_, opened = simulate(plan, data, 1)
    (closed,) = simulate(plan, data, 0, state=opened.state, policy=Policy(minimum_patients=10, finest_bins=50))
    found = metrics(plan.task, *total(closed.scores))
    assert "concordance" not in found
    assert 0.6 < found["concordance_within"] < 0.8
    whole = metrics(plan.task, *total(opened.scores))
    assert whole["concordance_within"] == found["concordance_within"]
    assert abs(whole["concordance"] - found["concordance_within"]) < 0.1
    assert 0 < whole["concordance_error"] < 0.02


def test_a_hospital_apart_sends_no_sums_by_interval_of_few_patients_unless_they_are_masked() -> None:
    apart = Policy(minimum_patients=10, finest_bins=50)
    with pytest.raises(
        QuorumError, match="sums of fewer than 10 of its patients, by bin or by interval of time: mask the sums"
    ):
        list(simulate(build(study_of()), cohorts(study_of()), 1, policy=apart))
    masked = study_of(privacy={"protect": {"kind": "masked"}})
    *_, closed = simulate(build(masked), cohorts(masked), 1, quorum=3, policy=apart)
    assert closed.state.round == 1


def test_the_pipeline_gives_the_linear_predictor_of_the_core() -> None:
    import pandas as pd

    plan = build(study_of(validation={"fraction": 0}))
    data = cohorts(plan.study)
    *_, last, _ = simulate(plan, data, 1)
    frame = pd.DataFrame(patients("west"))[["age", "stage", "marker"]]
    rows = encode(data["west"], plan.study, last.state.statistics, plan.ones)
    expected = plan.family.predict(last.state.theta, rows.X)[:, 0]
    assert np.abs(pipeline(plan, last.state).predict(frame) - expected).max() < 1e-12


def test_a_run_registers_a_version_with_hazard_ratios_and_writes_a_report(
    tmp_path: Path, program: Any, warm: Any, prefect_beside: Any
) -> None:
    import mlflow.sklearn
    import pandas as pd

    folder = tmp_path / "survival"
    (folder / "sites").mkdir(parents=True)
    (folder / "data").mkdir()
    warm(folder / "mlruns")
    for site in SIZES:
        columns = {**patients(site), "fold": ["valid" if i % 4 == 0 else "train" for i in range(SIZES[site])]}
        with (folder / f"data/{site}.csv").open("w", newline="") as file:
            written = csv.writer(file)
            written.writerow(columns)
            written.writerows(zip(*columns.values(), strict=True))
        (folder / f"sites/{site}.toml").write_text(
            f'simulated = true\n[source]\nkind = "csv"\npath = "data/{site}.csv"\n'
        )
    (folder / "operations.toml").write_text("rounds = 1\nquorum = 3\n")
    (folder / "study.toml").write_text(
        """name = "survival"
algorithm = "exact"
features = [
  { type = "number", name = "age", unit = "years", range = [0, 120] },
  { type = "category", name = "stage", categories = [1, 2, 3], encode = "drop_first" },
  { type = "number", name = "marker", range = [0, 64] },
]
[target]
kind = "survival"
time = "days"
event = "died"
happened = ["yes"]
censored = ["no"]
grid = { last = 1200, steps = 12 }
[validation]
fold = "fold"
[model]
kind = "cox"
at_risk = 3
"""
    )
    done = program("run", folder, **prefect_beside)
    assert done.returncode == 0, done.stderr
    assert "concordance" in done.stdout
    sheet = list(csv.DictReader(next(folder.rglob("regression.csv")).open()))
    parts = [patients(site) for site in SIZES]
    age, stage, marker, days = (
        np.concatenate([part[name] for part in parts]) for name in ("age", "stage", "marker", "days")
    )
    trained = np.concatenate([np.arange(size) % 4 > 0 for size in SIZES.values()])
    interval = np.ceil(days / 100)
    died = (np.concatenate([part["died"] for part in parts]) == "yes") & (interval <= 12)
    X = np.column_stack([age, stage == 2, stage == 3, marker]).astype(float)
    oracle = PHReg(np.minimum(interval, 12)[trained], X[trained], status=died[trained].astype(int), ties="efron").fit(
        disp=0, gtol=1e-12
    )
    assert [row["term"] for row in sheet] == ["age", "stage=2", "stage=3", "marker"]
    assert np.abs([float(row["estimate"]) for row in sheet] - oracle.params).max() < 1e-8
    assert np.abs([float(row["standard_error"]) for row in sheet] - oracle.bse).max() < 1e-8
    registered = mlflow.sklearn.load_model(str(next(folder.rglob("MLmodel")).parent))
    frame = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in ("age", "stage", "marker")})
    ours = registered.predict(frame)
    assert np.abs((ours - ours.mean()) - (X - X.mean(0)) @ oracle.params).max() < 1e-6
    report = next(folder.rglob("report.html")).read_text()
    assert "gives the higher risk to the one to whom it happens first" in report
    assert "Hazard ratio" in report
    assert program("status", folder).returncode == 0


def evidence(histogram: np.ndarray) -> Evidence:
    record = {"scored": 1, "histogram": histogram.tolist(), "metrics": {}, "sites": {}}
    visit = SimpleNamespace(visit=2, round=1, ask="score", record=record, committed=0.0, model="")
    return Evidence(study_of(), "", 0.0, visits=(visit,), champion=1)


def test_the_report_has_kaplan_meier_by_thirds_of_risk_and_hides_what_is_about_few() -> None:
    rng = np.random.default_rng(1)
    score = rng.normal(size=900)
    time = np.clip(np.ceil(rng.exponential(9 * np.exp(-score))), 1, 12)
    y = np.where((rng.uniform(size=900) < 0.6) & (time < 12), time, -time)
    cell = score_bins(score, 50)
    histogram = counted(y, 12, cell, 50).transpose(2, 1, 0)
    groups = thirds(histogram)
    assert groups.sum() == 900
    assert (np.abs(groups.sum((1, 2)) - 300) < 40).all()
    low = cell <= np.flatnonzero(np.cumsum(histogram.sum((0, 1))) == groups[0].sum())[0]
    oracle = SurvfuncRight(np.abs(y[low]), y[low] > 0)
    page = str(survived(evidence(histogram)))
    for k in (3, 6, 9):
        assert f"{oracle.surv_prob[oracle.surv_times <= k][-1]:.3f}" in page
    assert "after 300 days" in page
    assert "Log-rank" in page
    few = counted(y[:40], 12, cell[:40], 50).transpose(2, 1, 0)
    assert "too few to show" in str(survived(evidence(few)))
    assert "kept the counts" in str(survived(evidence(np.zeros_like(few))))
