"""The study file: what it may say, what it means, and what is refused with a reason."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fedrounds.core.operations import Operations
from fedrounds.core.plan import build
from fedrounds.core.strategy import PRESETS
from fedrounds.core.study import Study, canonical

WORDS = {
    "name": "toy",
    "target": {"kind": "binary", "column": "y", "positive": ["yes"], "negative": ["no"]},
    "features": [
        {"type": "number", "name": "age", "range": [0, 120]},
        {"type": "category", "name": "sex", "categories": ["f", "m"]},
        {"type": "category", "name": "cp", "categories": [1, 2, 3], "encode": "drop_first"},
    ],
    "model": {"kind": "logistic"},
    "algorithm": "fedavg",
}


def refusal(**changes):
    """What is said about a study with these words changed."""
    with pytest.raises(ValidationError) as caught:
        Study.model_validate(WORDS | changes)
    return str(caught.value)


def test_a_feature_becomes_the_columns_of_its_encoding():
    plan = build(Study.model_validate(WORDS))
    assert plan.columns == ("age", "sex=f", "sex=m", "sex=other", "cp=2", "cp=3")
    assert plan.ones
    assert plan.family.layout.size == 7


@pytest.mark.parametrize(
    ("cell", "meaning"),
    [
        ("63.0", "63"), (" 63 ", "63"), (63, "63"), (63.0, "63"), ("6.3e1", "63"), ("-0.0", "0"), ("0.50", "0.5"),
        ("1_000", "1_000"), ("No ", "No"), ("", ""), ("?", "?"), (True, "1"), ("1e400", "1e400"), ("NaN", "NaN"),
    ],
)  # fmt: skip
def test_one_meaning_has_one_text(cell, meaning):
    assert canonical(cell if cell is not True else 1) == meaning


def test_the_digest_is_of_the_meaning_not_of_the_spelling():
    plain = Study.model_validate(WORDS).digest
    spelt = WORDS | {"algorithm": {"preset": "fedavg", "server": {"kind": "sgd", "rate": 1}}, "seed": 0}
    assert Study.model_validate(spelt).digest == plain
    assert Study.model_validate(dict(reversed(WORDS.items()))).digest == plain


def test_prose_about_the_protocol_is_not_the_protocol():
    assert Study.model_validate(WORDS | {"title": "t", "note": "n"}).digest == Study.model_validate(WORDS).digest


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"seed": 1},
        {"weights": "uniform"},
        {"validation": {"bins": 49}},
        {"preprocess": {"missing": "drop_row"}},
        {"algorithm": "fedadam"},
        {"features": WORDS["features"][:2]},
        {"model": {"kind": "logistic", "l2": 0.1}},
    ],
)
def test_any_change_of_the_protocol_changes_the_digest(change):
    assert Study.model_validate(WORDS | change).digest != Study.model_validate(WORDS).digest


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_a_local_and_a_server_rule(preset):
    algorithm = Study.model_validate(WORDS | {"algorithm": preset}).algorithm
    assert (algorithm.local.kind, algorithm.server.kind) == PRESETS[preset]
    assert algorithm.combine.kind == "weighted_mean"


def test_a_preset_takes_numbers_for_its_parts():
    study = Study.model_validate(WORDS | {"algorithm": {"preset": "fedadam", "server": {"rate": 0.5}}})
    assert (study.algorithm.server.rate, study.algorithm.server.beta_2) == (0.5, 0.99)


def test_a_preset_may_have_adam_at_the_sites():
    study = Study.model_validate(WORDS | {"algorithm": {"preset": "fedadam", "local": {"kind": "adam", "rate": 0.1}}})
    assert study.algorithm.local.kind == "adam"


def test_three_parts_need_no_preset():
    parts = {"local": {"kind": "proximal", "mu": 1.0}, "server": {"kind": "yogi"}}
    assert Study.model_validate(WORDS | {"algorithm": parts}).algorithm.preset is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "fedfoo"}, "expected a preset out of fedavg, fedavgm"),
        ({"algorithm": {"preset": "fedadam", "server": {"kind": "yogi"}}}, "preset 'fedadam' means server 'adam', found 'yogi'"),
        ({"algorithm": {"preset": "fedprox", "local": {"kind": "sgd"}}}, "preset 'fedprox' means local 'proximal', found 'sgd'"),
        ({"algorithm": {"preset": "fedavg", "local": {"rate": 0}}}, "greater than 0"),
        ({"algorithm": {"preset": "fedavg", "local": {"rate": float("inf")}}}, "finite"),
        ({"model": {"kind": "linear"}}, "a binary target goes with logistic or svm or naive_bayes or mlp or module or boosting, found model"),
        ({"target": {"kind": "regression", "column": "y"}}, "a regression target goes with linear or huber or poisson or gamma or"),
        ({"target": {"kind": "binary", "column": "y"}}, "positive_above"),
        ({"target": {"kind": "binary", "column": "y", "positive": ["yes"]}}, "both"),
        ({"target": {"kind": "binary", "column": "y", "positive_above": 0, "positive": ["a"], "negative": ["b"]}}, "either"),
        ({"target": WORDS["target"] | {"column": "age"}}, "'age' is the target and cannot be a feature too"),
        ({"patient_id": "age"}, "'age' is the patient_id and cannot be a feature too"),
        ({"event_time": "age"}, "'age' is the event_time"),
        ({"validation": {"fold": "age"}}, "'age' is the fold"),
        ({"features": WORDS["features"][:1] * 2}, "expected each feature once, found age twice"),
        ({"features": []}, "at least 1"),
        ({"features": [{"type": "number", "name": "a", "range": [1, 1]}]}, "range of 'a' must go from low to high"),
        ({"features": [{"type": "category", "name": "a", "categories": ["1", 1.0]}]}, "categories of 'a' must differ"),
        ({"name": "../up"}, "pattern"),
        ({"name": "a\n"}, "pattern"),
        ({"unknown": 1}, "Extra inputs are not permitted"),
        ({"validation": {"fraction": 1.0}}, "less than 1"),
        ({"weights": {"a": 0.0}}, "greater than 0"),
    ],
)  # fmt: skip
def test_what_a_study_cannot_mean_is_refused_with_the_reason(changes, said):
    assert said in refusal(**changes)


@pytest.mark.parametrize(
    ("quorum", "sites", "needed"),
    [(2, 4, 2), (5, 4, 5), (0.5, 4, 2), (0.5, 5, 3), (0.55, 100, 55), (1.0, 7, 7), (0.001, 3, 1), (0.1, 30, 3)],
)
def test_a_quorum_is_a_number_of_sites_or_a_fraction_rounded_up(quorum, sites, needed):
    assert Operations(rounds=1, quorum=quorum).quorum_of(sites) == needed


def test_a_quorum_of_none_is_refused():
    for quorum in (0, 0.0, -1, 1.5):
        with pytest.raises(ValidationError):
            Operations(rounds=1, quorum=quorum)
