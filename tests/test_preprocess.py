"""From a table to rows: missing cells, statistics by sums, categories, the split, and errors that show no patient."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.impute import SimpleImputer

from fedrounds.core.answer import Policy, handle
from fedrounds.core.errors import DataContractError
from fedrounds.core.params import digest
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Cohort, clean, encode
from fedrounds.core.round import Asking, close_exchange, open_round
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table

CANARY = "CANARY-8271"


def study(features=("a", "b"), **words):
    """Every row in training unless the words say otherwise; a feature is a name or a table."""
    return Study.model_validate(
        {
            "name": "toy",
            "target": {"kind": "regression", "column": "y"},
            "features": [{"type": "number", "name": f} if isinstance(f, str) else f for f in features],
            "validation": {"fraction": 0.0},
            "model": {"kind": "linear"},
            "algorithm": "fedavg",
        }
        | words
    )


def table(**columns):
    """Text where a list holds text, numbers where it holds numbers; a target where none is given."""
    columns = {name: np.array(cells, object if isinstance(cells[0], str) else float) for name, cells in columns.items()}
    rows = len(next(iter(columns.values())))
    return Table({"y": np.arange(float(rows))} | columns)


def category(name="ward", levels=("red", "blue"), **words):
    return {"type": "category", "name": name, "categories": list(levels)} | words


def number(name="a", **words):
    return {"type": "number", "name": name} | words


def column(cells, feature):
    """What the cells of one feature mean."""
    return clean(table(x=cells), study([feature | {"name": "x"}]), "north").values[:, 0].tolist()


def agreed(of, cohorts):
    """The statistics on which these sites agree."""
    return next(iter(simulate(build(of), cohorts, rounds=0))).state.statistics


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def error_of(*arguments, **options):
    """The one line with which cleaning ends."""
    with pytest.raises(DataContractError) as caught:
        clean(*arguments, **options)
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- cells ------------------------------------------------------------------------------------------------------------

nan = pytest.approx(float("nan"), nan_ok=True)


@pytest.mark.parametrize(
    ("cells", "codes", "meaning"),
    [
        (["63.0", "63", " 63 ", "6.3e1"], [], [63, 63, 63, 63]),
        (["1", "", " "], [], [1, nan, nan]),
        (["1", "?", "NA"], ["?", "NA"], [1, nan, nan]),
        (["1", "-9", "-9.0", " -9 "], [-9], [1, nan, nan, nan]),
        (["1", "-9", "-9.0"], ["-9"], [1, nan, nan]),
        (["1", "-9"], ["-9.0"], [1, nan]),
        ([1.0, np.nan, -9.0], [], [1, nan, -9]),
        ([1.0, np.nan, -9.0], [-9], [1, nan, nan]),
        ([1.0, -9.0], ["-9"], [1, nan]),
        (["0", "1"], [0], [nan, 1]),
        (["0", "-0"], [], [0, 0]),
        (["1", "NaN"], ["NaN"], [1, nan]),
    ],
)
def test_a_number_is_missing_by_blank_or_by_code_in_any_spelling(cells, codes, meaning):
    assert column(cells, number(missing=codes)) == meaning


@pytest.mark.parametrize(
    ("cells", "levels", "words", "meaning"),
    [
        (["red", "blue", " red"], ["red", "blue"], {}, [0, 1, 0]),
        (["1", "2.0", "1.0"], [1, 2], {}, [0, 1, 0]),
        ([1.0, 2.0, np.nan], [1, 2], {}, [0, 1, nan]),
        ([1.0, 2.0], ["1", "2"], {}, [0, 1]),
        (["red", "green", ""], ["red", "blue"], {}, [0, 2, nan]),
        (["red", "green", ""], ["red", "blue"], {"encode": "drop_first"}, [0, nan, nan]),
        (["red", "?", "-9.0"], ["red", "blue"], {"missing": ["?", -9]}, [0, nan, nan]),
        (["1_yes", "2_no"], ["1_yes", "2_no"], {}, [0, 1]),
    ],
)
def test_a_category_is_its_level_and_anything_else_is_other_or_missing(cells, levels, words, meaning):
    assert column(cells, category(levels=levels, **words)) == meaning


@pytest.mark.parametrize(
    ("target", "cells", "meaning"),
    [
        ({"kind": "regression"}, ["1.5", "2"], [1.5, 2]),
        ({"kind": "binary", "positive_above": 0}, ["0", "1", "4.0"], [0, 1, 1]),
        ({"kind": "binary", "positive": ["yes", 1], "negative": ["no"]}, ["yes", "1.0", "no "], [1, 1, 0]),
        ({"kind": "multiclass", "classes": ["a", "b", 3]}, ["3.0", "a", "b"], [2, 0, 1]),
    ],
)
def test_a_target_is_read_as_the_study_says_and_rows_without_one_are_dropped(target, cells, meaning):
    models = {"regression": "linear", "binary": "logistic", "multiclass": "multinomial"}
    of = study(["a"], target=target | {"column": "y", "missing": ["?"]}, model={"kind": models[target["kind"]]})
    cohort = clean(table(a=[1.0] * (len(cells) + 2), y=[*cells, "?", ""]), of, "north")
    assert cohort.y.tolist() == meaning
    assert cohort.dropped == {"no target": 2}
    assert cohort.patients == len(meaning)


def test_a_row_with_a_missing_cell_is_imputed_or_dropped_as_the_study_says():
    rows = table(a=[1.0, np.nan, 3.0], b=["1", "2", ""])
    assert clean(rows, study(), "north").patients == 3
    dropped = clean(rows, study(preprocess={"missing": "drop_row"}), "north")
    assert dropped.values.tolist() == [[1, 1]]
    assert dropped.dropped == {"a feature is missing": 2}


# --- statistics -------------------------------------------------------------------------------------------------------


def awkward_sites(count):
    """Sites of unequal size with gaps; one where `a` is constant, one that does not record `b`."""
    rng = np.random.default_rng(count)
    found = {}
    for k in range(count):
        n = 15 + 20 * k
        values = rng.normal([10.0, -3.0, 1e4], [2.0, 0.1, 50.0], (n, 3))
        values[rng.random((n, 3)) < 0.15] = np.nan
        values[0] = 10.0, -3.0, 1e4
        if k == 1:
            values[:, 0] = 7.0
        if k == 2:
            values[:, 1] = np.nan
        found[f"s{k}"] = values
    return found


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("standardise", ["all", "numbers", "none"])
def test_statistics_of_sites_are_scikit_learns_on_pooled_rows(count, standardise):
    ward = category(encode="drop_first")
    of = study(["a", "b", "c", ward], preprocess={"standardise": standardise})
    sites, cohorts, pooled = awkward_sites(count), {}, []
    for k, (site, values) in enumerate(sites.items()):
        red = np.arange(len(values)) % (k + 2) > 0
        columns = dict(zip("abc", values.T, strict=True)) | {"ward": np.where(red, "red", "blue").astype(object)}
        absent = ("b",) if k == 2 else ()
        kept = {name: cells for name, cells in columns.items() if name not in absent}
        cohorts[site] = clean(Table(kept | {"y": np.ones(len(values))}), of, site, absent)
        pooled.append(np.column_stack([values, ~red]))
    pooled = np.concatenate(pooled)

    filled = pooled.copy()
    filled[:, :3] = SimpleImputer().fit_transform(pooled[:, :3])
    chosen = {"all": [True] * 4, "numbers": [True] * 3 + [False], "none": [False] * 4}[standardise]
    center, scale = np.where(chosen, filled.mean(0), 0.0), np.where(chosen, filled.std(0, ddof=1), 1.0)

    statistics = agreed(of, cohorts)
    same(statistics["impute"][:3], SimpleImputer().fit(pooled[:, :3]).statistics_)
    same(statistics["center"], center)
    same(statistics["scale"], scale)
    X = np.concatenate([encode(cohort, of, statistics, ones=True).X for cohort in cohorts.values()])
    same(X, np.column_stack([(filled - center) / scale, np.ones(len(filled))]))


def test_a_column_constant_over_all_sites_is_centred_and_not_blown_up():
    of = study()
    for constant in (0.1, 0.0, -1e9 - 0.3, 1e-20):
        cohorts = {
            site: clean(table(a=[constant] * n, b=list(range(n))), of, site) for site, n in (("s0", 13), ("s1", 1000))
        }
        statistics = agreed(of, cohorts)
        assert statistics["scale"][0] == 1.0
        same(statistics["center"][0], constant)


@pytest.mark.parametrize("unit", [1e-15, 1e-6, 1.0, 1e12])
def test_statistics_do_not_depend_on_the_unit(unit):
    values = np.random.default_rng(1).normal(5, 2, 60) * unit
    of = study(["a"])
    statistics = agreed(of, {f"s{k}": clean(table(a=values[k::2].tolist()), of, f"s{k}") for k in range(2)})
    assert statistics["scale"][0] == pytest.approx(values.std(ddof=1), rel=1e-12)


def test_a_column_with_a_large_offset_keeps_its_digits():
    small = np.random.default_rng(1).integers(-512, 512, 400) / 1024  # exact in float64 at 1e9
    of = study([number(impute=0.0)])  # an imputed constant far from the data spoils nothing either
    cohorts = {f"s{k}": clean(table(a=(1e9 + small)[k::4].tolist()), of, f"s{k}") for k in range(4)}
    statistics = agreed(of, cohorts)
    assert statistics["scale"][0] == pytest.approx(small.std(ddof=1), rel=1e-12)
    assert statistics["center"][0] - 1e9 == pytest.approx(small.mean(), abs=1.2e-7)  # the last digit of 1e9


def test_a_missing_number_becomes_the_mean_or_the_stated_constant():
    of = study(["a", number("b", impute=-1.0)], preprocess={"standardise": "none"})
    cohort = clean(table(a=[1.0, 2.0, np.nan], b=[1.0, np.nan, 3.0]), of, "north")
    assert encode(cohort, of, agreed(of, {"north": cohort}), ones=False).X.tolist() == [[1, 1], [2, -1], [1.5, 3]]


def test_a_missing_category_becomes_the_most_frequent_level_over_all_sites():
    of = study([category()], preprocess={"standardise": "none"})
    cohorts = {
        "east": clean(table(ward=["red", "red", ""]), of, "east"),
        "west": clean(table(ward=["blue", "blue", "blue", "red"]), of, "west"),
    }
    statistics = agreed(of, cohorts)  # three of each: the first level
    assert encode(cohorts["east"], of, statistics, ones=False).X[2].tolist() == [1, 0, 0]
    cohorts["west"] = clean(table(ward=["blue"] * 4), of, "west")
    assert encode(cohorts["east"], of, agreed(of, cohorts), ones=False).X[2].tolist() == [0, 1, 0]


def test_one_hot_has_a_column_a_level_and_one_for_every_other_value():
    of = study([category()], preprocess={"standardise": "none"})
    cohort = clean(table(ward=["red", "blue", "green"]), of, "north")
    assert build(of).columns == ("ward=red", "ward=blue", "ward=other")
    assert encode(cohort, of, agreed(of, {"n": cohort}), ones=True).X.tolist() == [
        [1, 0, 0, 1],
        [0, 1, 0, 1],
        [0, 0, 1, 1],
    ]


def test_drop_first_leaves_out_the_reference_and_takes_another_value_as_missing():
    of = study([category(levels=[1, 2, 3], encode="drop_first")], preprocess={"standardise": "none"})
    cohort = clean(table(ward=["1", "2", "3", "2", "9"]), of, "north")
    assert build(of).columns == ("ward=2", "ward=3")
    assert encode(cohort, of, agreed(of, {"n": cohort}), ones=False).X.tolist() == [
        [0, 0],
        [1, 0],
        [0, 1],
        [1, 0],
        [1, 0],
    ]


def test_statistics_are_of_training_rows_alone():
    of = study(["a"], validation={"fold": "fold"})
    rows = table(a=[1.0, 2.0, 3.0, 1000.0], fold=["train", "train", "train", "test"])
    statistics = agreed(of, {"north": clean(rows, of, "north")})
    assert (statistics["center"].tolist(), statistics["scale"].tolist()) == ([2.0], [1.0])


def test_a_feature_without_a_value_in_any_training_row_is_named():
    of = study(["a"], validation={"fold": "fold"})
    rows = table(a=["", "", "1"], fold=["train", "train", "test"])
    with pytest.raises(DataContractError, match="expected values of feature 'a' at some site, found none"):
        agreed(of, {"north": clean(rows, of, "north")})


def test_rows_are_named_by_the_statistics_that_encoded_them():
    of = study(["a"])
    first, second = (agreed(of, {"n": clean(table(a=[1.0, 2.0, x]), of, "n")}) for x in (3.0, 4.0))
    assert digest(first) != digest(second)
    assert digest(first) == digest(dict(reversed(first.items())))


# --- the split --------------------------------------------------------------------------------------------------------


def split_of(ids, key="secret", fraction=0.25, **words):
    """id -> whether the patient only judges."""
    of = study(["a"], patient_id="id", validation={"fraction": fraction}, **words)
    cohort = clean(table(a=[1.0] * len(ids), id=ids), of, "north", split_key=key)
    return dict(zip(ids, cohort.valid.tolist(), strict=True))


def test_a_patient_never_changes_side_as_data_grow():
    ids = [f"p{i}" for i in range(500)]
    before, after = split_of(ids[:100]), split_of(list(reversed(ids)))
    assert all(after[patient] == side for patient, side in before.items())


def test_all_rows_of_a_patient_are_on_one_side():
    ids = [f"p{i % 50}" for i in range(500)]
    of = study(["a"], patient_id="id", validation={"fraction": 0.5})
    cohort = clean(table(a=[1.0] * 500, id=ids), of, "north", split_key="k")
    sides = {
        patient: {side for name, side in zip(ids, cohort.valid, strict=True) if name == patient} for patient in ids
    }
    assert all(len(side) == 1 for side in sides.values())


def test_the_share_is_about_that_of_the_study():
    ids = [f"p{i}" for i in range(10_000)]
    for fraction in (0.0, 0.1, 0.25, 0.5):
        assert sum(split_of(ids, fraction=fraction).values()) / 10_000 == pytest.approx(fraction, abs=0.015)


def test_a_larger_share_keeps_who_was_in_the_smaller():
    ids = [f"p{i}" for i in range(500)]
    small, large = split_of(ids, fraction=0.1), split_of(ids, fraction=0.5)
    assert all(large[patient] for patient, side in small.items() if side)


def test_the_split_is_the_sites_secret():
    ids = [f"p{i}" for i in range(500)]
    assert split_of(ids, "one") != split_of(ids, "two")


def test_without_an_id_a_row_is_known_by_its_cells():
    of = study(["a"], validation={"fraction": 0.5})
    cells = np.random.default_rng(0).normal(size=100)

    def sides(rows):
        rows = Table({"a": rows, "y": np.zeros(len(rows))})
        return dict(zip(rows.columns["a"], clean(rows, of, "north", split_key="k").valid, strict=True))

    before, after = sides(cells[:50]), sides(cells[::-1])
    assert all(after[cell] == side for cell, side in before.items())


def test_a_fold_column_says_who_judges_and_rows_in_no_fold_are_dropped():
    of = study(["a"], validation={"fold": "fold", "train": ["1"], "valid": ["2.0", "test"]})
    cohort = clean(table(a=[1.0, 2.0, 3.0, 4.0, 5.0], fold=["1.0", "2", "test", "", "9"]), of, "north")
    assert cohort.values[:, 0].tolist() == [1, 2, 3]
    assert cohort.valid.tolist() == [False, True, True]
    assert cohort.dropped == {"in no fold": 2}


def test_rows_are_cut_into_training_and_validation():
    of = study(["a"])
    cohort = Cohort(
        "north", np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2.0, 3.0]), np.array([False, True, False]), {}
    )
    rows = encode(cohort, of, build(of).no_statistics(), ones=False)
    assert [part.tolist() for part in (rows.X, rows.y, rows.X_valid, rows.y_valid)] == [[[1], [3]], [1, 3], [[2]], [2]]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_renamed_column_is_recognised():
    text = error_of(table(A_mean=[1.0], b=[1.0]), study(["a_mean", "b"]), "north")
    assert text == (
        "expected column 'a_mean' at site 'north', found 3 columns without it; 'A_mean' looks like it, renamed:"
        " rename it in the site's data, or list it under `absent` in the site file"
    )


def test_a_missing_column_is_named_without_a_wrong_hint():
    assert "found 2 columns without it: rename it" in error_of(table(zzz=[1.0]), study(["a"]), "north")


@pytest.mark.parametrize("role", ["patient_id", "fold"])
def test_a_missing_id_or_fold_is_named(role):
    words = {"patient_id": "id"} if role == "patient_id" else {"validation": {"fold": "id"}}
    assert "expected column 'id' at site 'north'" in error_of(table(a=[1.0]), study(["a"], **words), "north")


def test_an_absent_feature_counts_as_missing_everywhere_and_must_be_one_of_the_study():
    assert np.isnan(clean(table(a=[1.0]), study(), "north", absent=("b",)).values[:, 1]).all()
    text = error_of(table(a=[1.0]), study(["a"]), "north", absent=("zz",))
    assert text.startswith("expected `absent` to name features of the study, found 'zz' at site 'north'")


def test_a_table_without_rows_is_refused():
    empty = Table({"a": np.zeros(0), "y": np.zeros(0)})
    assert "expected patients at site 'north', found a table without rows" in error_of(empty, study(["a"]), "north")


@pytest.mark.parametrize("feature", [number(missing=["?"]), category("a", missing=["?"])])
def test_a_column_without_any_value_is_named(feature):
    text = error_of(table(a=["", "?"]), study([feature]), "north")
    assert "expected values in column 'a' at site 'north', found all 2 rows missing: list it under `absent`" in text


@pytest.mark.parametrize(
    ("cells", "bad"),
    [
        (["1", CANARY, CANARY], 2),
        (["1", "inf", "2"], 1),
        (["1", "nan", "-inf"], 2),
        (["1_000", "1", "1"], 1),
        ([1.0, np.inf, 2.0], 1),
    ],
)
def test_cells_that_are_no_numbers_are_counted_and_never_shown(cells, bad):
    text = error_of(table(a=cells), study([number(unit="mg/dl")]), "north")
    assert text.startswith(
        f"expected numbers in column 'a' (mg/dl) at site 'north', found {bad} of 3 cells that are none"
    )


def test_an_unknown_label_is_counted_and_never_shown():
    of = study(
        ["a"],
        target={"kind": "binary", "column": "y", "positive": ["yes"], "negative": ["no"]},
        model={"kind": "logistic"},
    )
    text = error_of(table(a=[1.0] * 3, y=["yes", CANARY, "no"]), of, "north")
    assert text.startswith(
        "expected target column 'y' at site 'north' to hold one of 2 stated labels, found 1 of 3 cells"
    )


def test_a_target_without_any_label_is_named():
    text = error_of(table(a=[1.0], y=[""]), study(["a"]), "north")
    assert text.startswith("expected labels in target column 'y' at site 'north', found all 1 rows missing")


def test_a_target_that_is_no_number_is_counted_and_never_shown():
    assert "found 1 of 2 cells that are none" in error_of(table(a=[1.0, 1.0], y=["1", CANARY]), study(["a"]), "north")


@pytest.mark.parametrize("ids", [[CANARY, "", CANARY], [1.0, np.nan, 2.0], ["1", " ", "2"]])
def test_an_empty_id_is_counted_and_no_id_is_shown(ids):
    text = error_of(table(a=[1.0] * 3, id=ids), study(["a"], patient_id="id"), "north")
    assert text.startswith("expected an id in every row of column 'id' at site 'north', found 1 of 3 empty")


def test_what_goes_wrong_shows_no_cell_in_its_chain_either():
    with pytest.raises(DataContractError) as caught:
        clean(table(a=["1", CANARY]), study(["a"]), "north")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_cohort_prints_no_patient():
    cohort = clean(table(a=[71.25, 1.0]), study(["a"]), "north")
    assert "71.25" not in repr(cohort)
    assert "71.25" not in repr(encode(cohort, study(["a"]), build(study(["a"])).no_statistics(), ones=False))


@pytest.mark.parametrize("rule", ["numbers", "none"])
def test_round_0_says_nothing_of_how_many_have_a_rare_level_beside_the_thinned_counts(rule):
    of = Study.model_validate(
        {
            "name": "rare",
            "target": {"kind": "binary", "column": "y", "positive_above": 0},
            "features": [
                {"type": "number", "name": "age", "range": [0, 99]},
                {"type": "category", "name": "kind", "categories": ["a", "b", "c"]},
            ],
            "preprocess": {"standardise": rule},
            "model": {"kind": "logistic"},
            "algorithm": {"preset": "fedavg"},
        }
    )
    values = np.array([[50.0 + row % 7, 0.0] for row in range(40)] + [[60.0, 1.0]] * 3)  # three of level b
    rows = Cohort("north", values, np.arange(43) % 2.0, np.zeros(43, bool), {})
    plan = build(of)
    asking, sent = open_round(plan.start(), plan, "statistics", ["north"]), []
    while isinstance(asking, Asking):
        _, reply = handle(asking.request, {}, rows, plan, Policy(), "north", plan.rng(0, "north"))
        sent.append(reply.arrays)
        asking = close_exchange(asking, plan, [reply])
    first, second = sent
    assert first["levels"].tolist() == [40.0, 0.0, 0.0, 0.0]
    assert (first["sum"][1], second["sum"][1:].tolist(), second["square"][1:].tolist()) == (0.0, [0.0] * 4, [0.0] * 4)
    found = asking.state.statistics
    assert (found["center"][1:].tolist(), found["scale"][1:].tolist()) == ([0.0] * 4, [1.0] * 4)
    assert found["center"][0] == (pytest.approx(values[:, 0].mean(), abs=1e-12) if rule == "numbers" else 0.0)
