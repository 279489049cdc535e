"""The dictionary of a registered version: cells mean what they mean in training, and what cannot be meant is told without being shown."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import test_export as export

from fedrounds.core.dictionary import Dictionary, check, described, numbered
from fedrounds.core.errors import DataContractError
from fedrounds.core.preprocess import clean
from fedrounds.core.scoring import Refused, columns
from fedrounds.core.study import Study

FEATURES = [
    {"type": "number", "name": "age", "unit": "years", "range": [18, 110]},
    {"type": "number", "name": "dose", "missing": [-9, "NA"]},
    {"type": "category", "name": "smoker", "categories": ["never", "now"], "missing": ["?"]},
    {"type": "category", "name": "sex", "categories": [0, 1], "encode": "drop_first"},
]
WELL = {"age": 63, "dose": 1.5, "smoker": "now", "sex": 1}


def dictionary(features=FEATURES, **more) -> Dictionary:
    given = {"name": "small", "target": {"kind": "regression", "column": "y"}, "features": features}
    return Dictionary.model_validate_json(
        described(Study.model_validate(given | {"model": {"kind": "linear"}, "algorithm": "fedavg"} | more))
    )


def checked(cells=None, spelled=False, of=None):
    row = WELL | (cells or {})
    return check(of or dictionary(), {name: [cell] for name, cell in row.items()}, spelled)


# --- what cells mean --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["impute", "drop_row"])
def test_cells_mean_what_they_mean_in_training(missing):
    of = export.study(preprocess={"missing": missing})
    frame = export.raw(400, seed=3)
    dense = clean(export.table(frame), export.study(), "north")
    asked = frame.astype(object).where(frame.notna(), None)
    found = check(Dictionary.model_validate_json(described(of)), {name: asked[name].tolist() for name in asked})
    np.testing.assert_array_equal(found.values, dense.values)
    empty = {fault.feature: set(fault.rows) for fault in found.faults}
    where = {f.name: set(np.flatnonzero(np.isnan(dense.values[:, j])) + 1) for j, f in enumerate(of.features)}
    assert empty == ({} if missing == "impute" else {name: rows for name, rows in where.items() if rows})


def test_a_file_of_text_means_the_same():
    frame = export.raw(200, seed=4)
    text = {name: ["" if cell is None or cell != cell else str(cell) for cell in frame[name]] for name in frame}
    dense = clean(export.table(frame), export.study(), "north")
    found = check(Dictionary.model_validate_json(described(export.study())), text, spelled=True)
    np.testing.assert_array_equal(found.values, dense.values)


@pytest.mark.parametrize(
    ("cells", "means"),
    [
        ({}, [63, 1.5, 1, 1]),
        ({"age": None, "dose": "NA", "smoker": "?", "sex": None}, [np.nan, np.nan, np.nan, np.nan]),
        ({"age": 18, "dose": -9.0, "smoker": "", "sex": "1.0"}, [18, np.nan, np.nan, 1]),
        ({"age": 110.0, "smoker": "later", "sex": 7}, [110, 1.5, 2, np.nan]),
    ],
)
def test_codes_nulls_and_levels_by_hand(cells, means):
    found = checked(cells)
    np.testing.assert_array_equal(found.values, [means])
    assert found.faults == ()
    assert found.unknown == ({"smoker": (1,), "sex": (1,)} if cells.get("smoker") == "later" else {})


@pytest.mark.parametrize(
    "cell", ["63", True, False, [63], {"x": 1}, 17.999, 110.001, 10**400, 1e308, -1e400, "63 years"]
)
def test_what_is_no_number_in_its_range_is_a_fault_that_shows_no_cell(cell):
    found = checked({"age": cell})
    assert [str(fault) for fault in found.faults] == [
        "expected a number from 18 to 110 years in 'age', found otherwise in row 1"
    ]
    assert np.isnan(found.values[0, 0])


@pytest.mark.parametrize("cell", ["nan", "inf", "1_000", "1e999", "six", "0x1F", "17"])
def test_so_is_what_spells_none_in_a_file_of_text(cell):
    assert [fault.feature for fault in checked({"age": cell}, spelled=True).faults] == ["age"]
    assert checked({"age": " 63.0 "}, spelled=True).values[0, 0] == 63.0


@pytest.mark.parametrize("cell", [True, [1], {"level": 1}])
def test_a_level_is_text_or_a_number(cell):
    (fault,) = checked({"sex": cell}).faults
    assert str(fault) == "expected one of its 2 levels, as text or number in 'sex', found otherwise in row 1"


def test_an_unknown_level_is_missing_where_the_first_is_dropped_and_refused_if_the_study_drops_such_rows():
    of = dictionary(preprocess={"missing": "drop_row"})
    found = checked({"smoker": "later", "sex": 7}, of=of)
    assert [(fault.feature, fault.rows) for fault in found.faults] == [("sex", (1,))]
    assert found.unknown == {"smoker": (1,), "sex": (1,)}


def test_the_document_is_the_studys_dictionary_and_a_later_format_is_refused():
    document = json.loads(described(export.study()))
    assert [feature["name"] for feature in document["features"]] == [feature["name"] for feature in export.FEATURES]
    assert Dictionary.model_validate(document).digest == export.study().digest
    with pytest.raises(ValueError, match="format"):
        Dictionary.model_validate(document | {"format": 2})


def test_many_rows_are_counted_after_the_tenth():
    assert numbered(range(1, 13)) == "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more"


# --- the four forms ---------------------------------------------------------------------------------------------------

ROWS = [WELL, WELL | {"age": None, "smoker": "never"}]
FORMS = {
    "dataframe_split": {
        "columns": list(WELL)[::-1],
        "data": [list(row.values())[::-1] for row in ROWS],
        "index": [4, 5],
    },
    "dataframe_records": [dict(reversed(row.items())) for row in ROWS],
    "instances": ROWS,
    "inputs": {name: [row[name] for row in ROWS] for name in WELL},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_four_forms_say_the_same_in_any_order_of_columns(form):
    found = columns(json.dumps({form: FORMS[form]}).encode(), dictionary())
    assert {name: list(cells) for name, cells in found.items()} == FORMS["inputs"]


def test_what_pandas_writes_is_understood():
    body = f'{{"dataframe_split": {pd.DataFrame(ROWS).to_json(orient="split")}}}'
    found = columns(body.encode(), dictionary())
    assert list(found["age"]) == [63.0, None]


def test_more_rows_than_allowed_are_too_many():
    with pytest.raises(Refused, match="expected at most 1 rows in one request, found 2") as refused:
        columns(json.dumps({"instances": ROWS}).encode(), dictionary(), most=1)
    assert refused.value.status == 413
    assert isinstance(refused.value, DataContractError)
