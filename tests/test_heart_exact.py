"""The exact target on real hospitals: FLamby's heart-disease recipe, four sites, against the pooled fit (shared/data/README.md)."""

from __future__ import annotations

import csv
from pathlib import Path

import flamby_heart
import numpy as np
import pytest

from fedrounds.core import evaluate
from fedrounds.core.plan import build
from fedrounds.core.simulate import simulate

HEART = Path(__file__).parents[2] / "shared" / "data" / "heart_disease_uci"
pytestmark = pytest.mark.skipif(not HEART.is_dir(), reason=f"the real heart-disease data are not here ({HEART})")


def test_federated_logistic_on_four_real_hospitals_is_the_pooled_fit():
    # scikit-learn's C = 1 over 486 training rows
    of = flamby_heart.study(0, {"preset": "fedavg", "local": {"rate": 2.0, "epochs": 1, "batch": "all"}}, l2=1 / 486)
    data, plan = flamby_heart.cohorts(of), build(of)
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
