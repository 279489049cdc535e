"""The exact target on real hospitals: FLamby's heart-disease recipe, four sites, against the pooled fit (shared/data/README.md)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fedrounds.core import evaluate
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.sources import CsvSource, FoldFile, load

HEART = Path(__file__).parents[2] / "shared" / "data" / "heart_disease_uci"
COLUMNS = [
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
    "num",
]
SITES = ["cleveland", "hungarian", "switzerland", "va"]
INPUTS = ["age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"]

pytestmark = pytest.mark.skipif(not HEART.is_dir(), reason=f"the real heart-disease data are not here ({HEART})")


def study() -> Study:
    """13 inputs in the benchmark's order, all standardised, and scikit-learn's C = 1 over 486 training rows."""
    return Study.model_validate(
        {
            "name": "heart",
            "target": {"kind": "binary", "column": "num", "positive_above": 0},
            "features": [
                *({"type": "number", "name": name, "missing": ["?"]} for name in INPUTS),
                {
                    "type": "category",
                    "name": "cp",
                    "categories": [1, 2, 3, 4],
                    "missing": ["?"],
                    "encode": "drop_first",
                },
                {
                    "type": "category",
                    "name": "restecg",
                    "categories": [0, 1, 2],
                    "missing": ["?"],
                    "encode": "drop_first",
                },
            ],
            "preprocess": {"missing": "drop_row", "standardise": "all"},
            "validation": {"fold": "fold", "bins": 1000},
            "model": {"kind": "logistic", "l2": 1 / 486},
            "algorithm": {"preset": "fedavg", "local": {"rate": 2.0, "epochs": 1, "batch": "all"}},
        }
    )


def cohorts():
    """Each hospital's raw file with the published split."""
    found = {}
    for site in SITES:
        fold = FoldFile(path="flamby_split.csv", where={"site": site}, row="row_in_file_0based")
        source = CsvSource(path=f"processed.{site}.data", header=False, columns=tuple(COLUMNS), fold=fold)
        found[site] = clean(load(source, HEART, site), study(), site)
    return found


def test_federated_logistic_on_four_real_hospitals_is_the_pooled_fit():
    data, plan = cohorts(), build(study())
    assert {site: (int((~c.valid).sum()), int(c.valid.sum())) for site, c in data.items()} == {
        "cleveland": (199, 104),
        "hungarian": (172, 89),
        "switzerland": (30, 16),
        "va": (85, 45),
    }
    *_, last = simulate(plan, data, rounds=500)
    with (HEART / "reference_pooled_logistic.csv").open() as stream:
        reference = list(csv.DictReader(stream))
    assert [*plan.columns, "intercept"] == [row["feature"].replace("_", "=") for row in reference]

    def column(name):
        return np.array([float(row[name]) for row in reference if row[name]])

    np.testing.assert_allclose(last.state.statistics["center"], column("train_mean"), rtol=0, atol=1e-8)
    np.testing.assert_allclose(last.state.statistics["scale"], column("train_sd_ddof1"), rtol=0, atol=1e-8)
    np.testing.assert_allclose(last.state.theta, column("coef_standardised_C1"), rtol=0, atol=1e-6)

    pooled = evaluate.metrics("binary", *evaluate.total(last.scores))
    assert pooled["n"] == 254
    assert pooled["auc"] == pytest.approx(0.8812, abs=0.001)
    assert pooled["accuracy"] == pytest.approx(0.7953, abs=0.004)
    assert pooled["log_loss"] == pytest.approx(0.4355, abs=0.0001)
    assert pooled["brier"] == pytest.approx(0.1378, abs=0.0001)
    by_site = {site: evaluate.metrics("binary", *scores)["accuracy"] for site, scores in last.scores.items()}
    assert by_site == pytest.approx(
        {"cleveland": 0.7788, "hungarian": 0.7978, "switzerland": 0.8125, "va": 0.8222}, abs=0.00005
    )
