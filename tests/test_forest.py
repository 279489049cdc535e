"""The regression table as files beside a registered version: numbers at full precision, one page, one picture."""

from __future__ import annotations

import csv
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from test_glm import SIZES, fitted, study_of, tables

from fedrounds.core.regression import Regression, Row, regression
from fedrounds.reports import forest
from fedrounds.tasks import model_artifacts


@pytest.mark.parametrize(
    ("model", "ratio"),
    [("logistic", "Odds ratio"), ("linear", None), ("poisson", "Rate ratio"), ("gamma", "Ratio of means")],
)
def test_a_registered_version_has_the_table_beside_it(model: str, ratio: str | None, tmp_path):
    plan, state = fitted(study_of(model), tables(model))
    model_artifacts.write(plan, state, tmp_path)
    found = regression(plan, state)
    assert found is not None
    with (tmp_path / "regression.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["term"] for row in rows] == ["age", "dose", "ward=b", "ward=c", "intercept"]
    for row, of in zip(rows, found.rows, strict=True):
        assert (float(row["estimate"]), float(row["low"]), float(row["high"])) == (of.value, of.low, of.high)
        assert ("ratio" in row) == (ratio is not None)
    page = (tmp_path / "regression.html").read_text()
    assert f"Fitted to {sum(SIZES.values())} training patients" in page
    assert (f">{ratio}<" in page) == (ratio is not None)
    picture = ET.parse(tmp_path / "regression.svg").getroot()
    points = [mark for mark in picture.iter() if mark.get("class") == "point"]
    assert len(points) == 4  # the intercept is no effect
    assert set(np.load(tmp_path / "parameters.npz")) == {"coef", "intercept"}


def test_an_averaged_model_has_no_such_table(tmp_path):
    study = study_of("logistic", algorithm="fedavg")
    model_artifacts.write(
        *fitted(study, {site: table for site, table in tables("logistic").items() if site != "south"}), tmp_path
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["parameters.npz", "statistics.npz", "study.json"]


def test_a_coefficient_beyond_the_picture_stays_in_it():
    rows = (
        Row("a", 900.0, 1.0, 900.0, 0.0, 898.0, 902.0),
        Row("b", 0.5, 0.1, 5.0, 0.001, 0.3, 0.7),
        Row("intercept", 0, 1, 0, 1, -2, 2),
    )
    picture = forest.picture(Regression("logistic", "odds ratio", rows, 100, False))
    ends = [float(mark.get("cx")) for mark in ET.fromstring(picture).iter() if mark.get("class") == "point"]
    assert max(ends) <= 600 + 1e-9
