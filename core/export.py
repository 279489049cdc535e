"""A trained model as a scikit-learn pipeline, preprocessing included: it predicts without any code of ours.

Its input is a data frame with the dictionary's columns: numbers as float64, a category as text (as float64 where every level is a
number), NaN or None where missing. Missing codes of the same type as their column are understood too; a text code in a column of numbers
(a `?`) has to be read as NaN. Rows with a missing feature are imputed, also in a study that dropped such rows from training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedrounds.core.study import Category, Feature, Number, Study, canonical

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from fedrounds.core.plan import Plan
    from fedrounds.core.state import RunState


def pipeline(plan: Plan, state: RunState) -> Pipeline:
    """The fitted pipeline of the state's model; predictions equal the core's to 1e-12."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    features = plan.study.features
    impute = state.statistics["impute"]
    steps = [(f.name, _encoder(f, float(impute[j])), [j]) for j, f in enumerate(features)]
    columns = ColumnTransformer(steps, verbose_feature_names_out=False)
    columns.fit(example(plan.study, rows=2))
    scaler = StandardScaler().fit(np.zeros((2, len(plan.columns))))
    scaler.mean_, scaler.scale_ = state.statistics["center"], state.statistics["scale"]
    scaler.var_ = scaler.scale_**2
    return Pipeline([("columns", columns), ("standardise", scaler), ("model", plan.family.estimator(state.theta))])


def numeric(feature: Feature) -> bool:
    """Whether the pipeline takes this column as float64 (otherwise as text)."""
    return isinstance(feature, Number) or all(_is_number(canonical(level)) for level in feature.categories)


def example(study: Study, rows: int = 3) -> Any:
    """Made-up rows (a data frame) in the dictionary's terms: no patient's."""
    import pandas as pd

    frame: dict[str, Any] = {}
    for feature in study.features:
        if isinstance(feature, Number):
            low, high = feature.range or (0.0, 1.0)
            frame[feature.name] = np.linspace(low, high, rows + 2)[1:-1].round(3)
        else:
            levels = _levels(feature)
            frame[feature.name] = [levels[i % len(levels)] for i in range(rows)]
    return pd.DataFrame(frame)


def _encoder(feature: Feature, impute: float) -> Any:
    """Fill and, for a category, spread over 0/1 columns in the order of `columns_of`."""
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    texts = [code for code in map(canonical, feature.missing) if code and _is_number(code) == numeric(feature)]
    codes: list[Any] = [float(code) for code in texts] if numeric(feature) else [*texts, None]
    if isinstance(feature, Number):
        return Pipeline(_fill(codes, impute))
    levels = _levels(feature)
    last = len(levels) + len(codes)  # levels, then missing codes, then every other value
    unseen = last + 1 if feature.encode == "one_hot" else np.nan
    order = OrdinalEncoder(
        categories=[[*levels, *codes, np.nan]],
        handle_unknown="use_encoded_value",
        unknown_value=unseen,
        encoded_missing_value=np.nan,
    )
    kept = (
        np.arange(float(len(levels)))[1:]
        if feature.encode == "drop_first"
        else np.append(np.arange(float(len(levels))), float(unseen))
    )
    spread = OneHotEncoder(categories=[kept], handle_unknown="ignore", sparse_output=False)
    fill = _fill(list(range(len(levels), last)), impute if impute < len(levels) else unseen)
    return Pipeline([("level", order), *fill, ("spread", spread)])


def _fill(codes: list[Any], value: float) -> list[tuple[str, Any]]:
    """Steps that put `value` in place of NaN, then of each code."""
    from sklearn.impute import SimpleImputer

    return [
        (f"missing {i}", SimpleImputer(missing_values=code, strategy="constant", fill_value=value))
        for i, code in enumerate([np.nan, *codes])
    ]


def _levels(feature: Category) -> list[Any]:
    levels = [canonical(level) for level in feature.categories]
    return [float(level) for level in levels] if numeric(feature) else levels


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
