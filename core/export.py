"""A trained model as a scikit-learn pipeline, preprocessing included: it predicts without any code of ours.

Its input is a data frame with the dictionary's columns: numbers as float64, a category as text (as float64 where every level is a
number), NaN or None where missing. Missing codes of the same type as their column are understood too; a text code in a column of numbers
(a `?`) has to be read as NaN. Rows with a missing feature are imputed, also in a study that dropped such rows from training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Statistics, columns_of
from fedrounds.core.study import Category, Feature, Number, Study, canonical

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from fedrounds.core.plan import Plan
    from fedrounds.core.state import RunState


def pipeline(plan: Plan, state: RunState, before: Sequence[tuple[str, Any]] | None = None) -> Pipeline:
    """The fitted pipeline of the state's model; predictions equal the core's to 1e-12.

    Args:
        before: what `preprocessing` gave for the same statistics, to spare making it again.
    """
    from sklearn.pipeline import Pipeline

    return Pipeline([*(before or preprocessing(plan, state.statistics)), ("model", plan.family.estimator(state.theta))])


def preprocessing(plan: Plan, statistics: Statistics) -> list[tuple[str, Any]]:
    """The fitted steps before the model: fill and spread the columns (n, features) to (n, width), then centre and scale."""
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import StandardScaler

    steps: list[tuple[str, Any, list[int]]] = []
    blocks = _blocks(plan.study.features)
    for block in blocks:
        names = [plan.study.features[j].name for j in block]
        steps.append((" ".join(names), _encoder(plan.study.features[block[0]]), block))
    columns = ColumnTransformer(steps, verbose_feature_names_out=False)
    columns.fit(example(plan.study, rows=2))  # fits copies of the steps: what they fill with is set afterwards
    fitted: list[tuple[str, Any, Any]] = columns.transformers_
    for (_, made, _), block in zip(fitted, blocks, strict=True):
        _set_fill(made, plan.study.features[block[0]], statistics["impute"][block])
    scaler = StandardScaler().fit(np.zeros((2, len(plan.columns))))
    scaler.mean_, scaler.scale_ = statistics["center"], statistics["scale"]
    scaler.var_ = scaler.scale_**2
    return [("columns", columns), ("standardise", scaler)]


def _blocks(features: Sequence[Feature]) -> list[list[int]]:
    """Neighbouring numbers with the same missing codes share a step; a category has its own."""
    blocks: list[list[int]] = []
    for j, feature in enumerate(features):
        previous = features[j - 1] if j else None
        shared = isinstance(feature, Number) and isinstance(previous, Number) and feature.missing == previous.missing
        if shared:
            blocks[-1].append(j)
        else:
            blocks.append([j])
    return blocks


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


def frame(features: Sequence[Feature], values: Array) -> Any:
    """Cleaned values (n, features), as `clean` and `dictionary.check` give them, as the data frame that the pipeline takes."""
    import pandas as pd

    made: dict[str, Any] = {}
    for j, feature in enumerate(features):
        column = values[:, j]
        if isinstance(feature, Category):
            cells = np.array([*_levels(feature), _other(feature), np.nan if numeric(feature) else None])
            column = cells[np.where(np.isnan(column), len(cells) - 1, column).astype(np.intp)]
        made[feature.name] = column
    return pd.DataFrame(made)


def spreading(fitted: Pipeline, features: Sequence[Feature]) -> Callable[[Array], Array]:
    """What a pipeline's first step does to cleaned values: (n, features) -> (n, width), to the bit and in a hundredth of its time.

    scikit-learn checks each column in a dozen places, and takes as long for one patient as for a thousand. So it is asked once what it makes
    of every level, of any other value and of a missing one; what remains is looking that up. A number passes as it is.
    """
    counts = [len(feature.categories) + 2 if isinstance(feature, Category) else 1 for feature in features]
    asked = np.full((max(counts), len(features)), np.nan)
    for j, count in enumerate(counts):
        asked[: count - 1, j] = np.arange(count - 1)
    made: Array = np.asarray(fitted.named_steps["columns"].transform(frame(features, asked)), np.float64)
    ends = np.cumsum([len(columns_of(feature)) for feature in features])
    tables = [block[:count] for block, count in zip(np.split(made, ends[:-1], axis=1), counts, strict=True)]

    def spread(values: Array) -> Array:
        blocks: list[Array] = []
        for column, table, feature in zip(values.T, tables, features, strict=True):
            filled: Any = np.where(
                np.isnan(column), table[0, 0] if isinstance(feature, Number) else len(table) - 1, column
            )
            blocks.append(filled[:, None] if isinstance(feature, Number) else table[filled.astype(np.intp)])
        return np.concatenate(blocks, axis=1)

    return spread


def _other(feature: Category) -> Any:
    """A value that is no level and no missing code."""
    listed: list[Any] = [cell for cell in _listed(feature) if cell is not None]
    if numeric(feature):
        return 2.0 * float(np.abs(listed).max()) + 1.0
    return "other than " + "".join(listed)


def _encoder(feature: Feature) -> Any:
    """Fill and, for a category, spread over 0/1 columns in the order of `columns_of`; serves a block of like numbers."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    if isinstance(feature, Number):
        return Pipeline(_fill(_codes(feature)))
    listed = _listed(feature)
    unseen = len(listed) + 1 if feature.encode == "one_hot" else np.nan
    places: Any = [[*listed, np.nan]]  # scikit-learn's stubs know only "auto"
    level = OrdinalEncoder(
        categories=places,
        handle_unknown="use_encoded_value",
        unknown_value=unseen,
        encoded_missing_value=np.nan,
    )
    known = [float(listed.index(name)) for name in _levels(feature)]
    kept = known[1:] if feature.encode == "drop_first" else [*known, float(unseen)]
    columns: Any = [sorted(kept)]
    spread = OneHotEncoder(categories=columns, handle_unknown="ignore", sparse_output=False)
    steps: list[tuple[str, Any]] = [("level", level), *_fill([listed.index(code) for code in _codes(feature)])]
    steps.append(("spread", spread))
    if kept != sorted(kept):
        steps.append(("order", ColumnTransformer([("levels", "passthrough", [sorted(kept).index(k) for k in kept])])))
    return Pipeline(steps)


def _codes(feature: Feature) -> list[Any]:
    """What means missing beside NaN; a text code cannot be in a column of numbers."""
    codes = [code for code in dict.fromkeys(map(canonical, feature.missing)) if code]
    return [float(code) for code in codes if _is_number(code)] if numeric(feature) else [*codes, None]


def _listed(feature: Category) -> list[Any]:
    """Levels and missing codes; a cell becomes its place in here. Numbers are in order, as scikit-learn wants them."""
    listed = list(dict.fromkeys([*_levels(feature), *_codes(feature)]))
    return sorted(listed) if numeric(feature) else listed


def _fill(codes: list[Any]) -> list[tuple[str, Any]]:
    """Steps that put a value in place of NaN, then of each code."""
    from sklearn.impute import SimpleImputer

    kept: dict[str, Any] = {"keep_empty_features": True}
    return [(f"missing {i}", SimpleImputer(missing_values=code, **kept)) for i, code in enumerate([np.nan, *codes])]


def _set_fill(fitted: Any, feature: Feature, impute: Vector) -> None:
    """Let the fitted steps fill with the study's statistics; an imputed `other` is any code that no level has."""
    from sklearn.impute import SimpleImputer

    steps = fitted.named_steps
    if isinstance(feature, Category):
        listed, unseen = _listed(feature), steps["level"].unknown_value
        places = [*(float(listed.index(level)) for level in _levels(feature)), unseen]
        impute = np.array([places[int(level)] for level in impute])
    for step in steps.values():
        if isinstance(step, SimpleImputer):
            step.statistics_ = np.asarray(impute, np.float64)


def _levels(feature: Category) -> list[Any]:
    levels = [canonical(level) for level in feature.categories]
    return [float(level) for level in levels] if numeric(feature) else levels


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
