"""Clusters, classes or components side by side: what a model without coefficients says."""

from __future__ import annotations

from fedrounds.core.portrait import Portrait
from fedrounds.reports.markup import Markup, table, tag
from fedrounds.reports.result import plain

SAYS = {
    "cluster": "A centre is the mean of the patients nearest to it: of a level it is their share. Clusters stand in the order of their starts.",
    "class": "Mean ± standard deviation of the patients of a class: of a level it is their share. Columns are taken as independent within a class.",
    "component": "Loadings of the columns as they were standardised; the largest of each component is positive. What counts is which go together.",
}


def groups_of(of: Portrait, shown: int | None) -> Markup:
    """The table of a portrait, a row a column of the design matrix, and a line on how to read it.

    Args:
        of: The portrait.
        shown: The round whose model it is.
    """
    heads = [f"{of.what.capitalize()} {name}" for name in of.groups]
    if of.shares is not None:
        heads = [f"{head} ({100 * share:.1f} %)" for head, share in zip(heads, of.shares.tolist(), strict=True)]
    body: list[list[object]] = []
    for j, (feature, unit, level) in enumerate(of.columns):
        cells = [plain(float(value)) for value in of.values[j]]
        if of.spreads is not None:
            cells = [f"{cell} ± {plain(float(spread))}" for cell, spread in zip(cells, of.spreads[j], strict=True)]
        body.append([feature if level is None else f"{feature} = {level}", unit or "–", *cells])
    of_what = "The components" if of.what == "component" else f"The {'classes' if of.what == 'class' else 'clusters'}"
    caption = f"{of_what} of the model of round {shown}"
    if of.shares is not None:
        caption += f", which explain {100 * float(of.shares.sum()):.1f} % of the variance together"
    return tag(
        "div", table(("Feature", "Unit", *heads), body, caption, words=(1,)), tag("p", SAYS[of.what], class_="soft")
    )
