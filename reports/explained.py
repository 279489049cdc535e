"""What a model goes by, for whom it works and what each hospital brought, as the ledger notes it: for the report, and as a page, a picture
and files of numbers beside the lineage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedrounds.reports import alone, pictured, svg
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.markup import Markup, table, tag
from fedrounds.reports.result import NAMES, figure, plain
from fedrounds.reports.words import count, shown

Note = Mapping[str, Any]
MOST_NAMES = 12  # of hospitals in a line
SEEN = 0.0005  # what shows in a figure
STROKES = (
    "text{font:13px system-ui,sans-serif;fill:var(--ink)}text.soft{fill:var(--soft)}.grid{stroke:var(--faint)}.axis{stroke:var(--soft)}"
    ".bar{fill:var(--bar)}.own{fill:none;stroke:var(--own);stroke-width:2.2}.pool{stroke:var(--pool);stroke-width:2.4}"
)


def explained(of: Evidence) -> Markup | None:
    """The report's section, where somebody asked for it."""
    return section(of.explained) if of.explained else None


def page(note: Note, title: str) -> str:
    """One page that stands alone."""
    return alone.page(title, section(note))


def picture(note: Note) -> str:
    """How much the model owes to each feature, as an SVG file."""
    width, height, inside = pictured.bars(_importances(note), _axis(note))
    return alone.picture(width, height, inside, STROKES)


def section(note: Note) -> Markup:
    """Fairness, importance, dependence, attributions and contributions, each with what it does not tell."""
    parts = [_fairness(note), _importance(note), _dependence(note), _contribution(note)]
    return tag("div", tag("p", whom(note)), parts)


def whom(note: Note) -> str:
    """Over whom the figures are, and who did not tell, with each one's reason."""
    refused = note["refused"]
    told = [site for site in note["asked"] if site not in refused]
    names = f": {', '.join(told)}" if 0 < len(told) <= MOST_NAMES else ""
    said = f"These figures are of {len(told)} of {count(len(note['asked']), 'hospital')}{names}."
    silent = "; ".join(f"{site} ({reason})" for site, reason in refused.items())
    return f"{said} Did not tell: {silent}." if silent else said


# --- for whom it works ------------------------------------------------------------------------------------------------


def _fairness(note: Note) -> Markup:
    metric, together = note["metric"], note["everywhere"].get(note["metric"])
    name, body = NAMES[metric], [_row("all patients set aside", note["everywhere"], note)]
    said: list[str] = []
    at = {site: found for site, found in note["sites"].items() if found.get(metric) is not None}
    if len(at) > 1 and together is not None:
        worst = min(at, key=lambda site: at[site][metric])
        gap = together - at[worst][metric]
        blur = _blur(note, at[worst]) + _blur(note, note["everywhere"])
        said.append(
            f"Which hospital is worst in {name} cannot be told: the histograms that left are too coarse."
            if abs(gap) < blur
            else f"The worst hospital, {worst}, lies {figure(abs(gap))} {'below' if gap > 0 else 'above'} all together in {name}"
            f" ({figure(at[worst][metric])} against {figure(together)})."
        )
    body += [_row(site, note["sites"][site], note) for site in sorted(note["sites"])]
    for parting in note["subgroups"]:
        groups = [group for group in parting["groups"] if group["everywhere"].get(metric) is not None]
        if len(groups) > 1:
            low, high = (choose(groups, key=lambda group: group["everywhere"][metric]) for choose in (min, max))
            blur = sum(_blur(note, group["everywhere"]) for group in (low, high))
            said.append(
                f"By {parting['feature']}, the histograms are too coarse to tell where {name} is low."
                if high["everywhere"][metric] - low["everywhere"][metric] < blur
                else f"By {parting['feature']}, {name} goes from {figure(low['everywhere'][metric])} ({low['group']}) to"
                f" {figure(high['everywhere'][metric])} ({high['group']})."
            )
        body += [
            _row(f"{parting['feature']}: {group['group']}", group["everywhere"], note) for group in parting["groups"]
        ]
    head = (
        "Patients",
        "Judged",
        name,
        f"gap in {name}",
        NAMES[note["loss"]],
        *(["Brier score", "accuracy"] if _classes(note) else []),
    )
    caption = f"How well the model of round {note['round']} does for whom, on patients set aside"
    few = (
        "A group of fewer patients at a hospital than its minimum is left out there, and with it the next smallest one where the two could be"
        " told apart by subtracting. Small groups differ by chance alone."
    )
    notes = [few]
    if any(_blur(note, found) >= SEEN for found in (note["everywhere"], *note["sites"].values())):
        notes.append(f"After ±: by how much {name} may be off at most, as it is read from histograms.")
    if note["masked"]:
        notes.append(
            f"Sums of {count(note['masked'], 'hospital')} were opened together: how the model does at one of them is not known."
        )
    return tag(
        "div", tag("h3", "For whom it works"), [tag("p", one) for one in said], table(head, body, caption), _soft(notes)
    )


def _classes(note: Note) -> bool:
    return "brier" in note["everywhere"]


def _row(name: str, found: Mapping[str, float], note: Note) -> list[object]:
    metric, loss = note["metric"], note["loss"]
    value, together = found.get(metric), note["everywhere"].get(metric)
    gap = value - together if value is not None and together is not None else None
    row: list[object] = [
        name,
        shown(found.get("n")),
        _blurred(note, found),
        figure(gap, signed=True),
        figure(found.get(loss)),
    ]
    return row + ([figure(found.get("brier")), figure(found.get("accuracy"))] if _classes(note) else [])


def _blur(note: Note, found: Mapping[str, float]) -> float:
    """By how much a histogram's metric may be off: more where cells of few patients left together."""
    return found.get(f"{note['metric']}_error", 0.0)


def _blurred(note: Note, found: Mapping[str, float]) -> str:
    """The metric, and by how much it may be off where that shows."""
    value, blur = figure(found.get(note["metric"])), _blur(note, found)
    return f"{value} ± {figure(blur)}" if blur >= SEEN else value


# --- what it goes by --------------------------------------------------------------------------------------------------


def _importances(note: Note) -> list[tuple[str, float, float]]:
    found = [(told["feature"], told["importance"], told["deviation"]) for told in note["features"]]
    return sorted(found, key=lambda row: -row[1])


def _axis(note: Note) -> str:
    return f"rise of the {NAMES[note['loss']]} when a feature is permuted"


def _importance(note: Note) -> Markup | None:
    if not note["features"]:
        return tag("p", "Too few patients were set aside to say what the model goes by.")
    width, height, inside = pictured.bars(_importances(note), _axis(note))
    says = (
        f"By how much the {NAMES[note['loss']]} rises when the values of a feature are permuted among the patients of a hospital: the more, the"
        " more the model owes to it. The thin line is one standard deviation over the repeats, to either side; a hollow bar is below 0."
    )
    drawn = svg.picture("importance", width, height, "What the model goes by", says, inside)
    many = len(note["scores"]) > 1
    scores = note["scores"]
    head = ["Feature", "Importance", "± over repeats"]
    head += [
        f"{'mean |φ|' if kind else 'mean φ'}{f' of {label}' if many else ''}" for label in scores for kind in (1, 0)
    ]
    body = []
    for told in sorted(note["features"], key=lambda one: -one["importance"]):
        row = [_named(told), plain(told["importance"]), plain(told["deviation"])]
        row += [_or_dash(told[kind][at]) for at in range(len(scores)) for kind in ("weight", "shift")]
        body.append(row)
    said = (
        "φ is a feature's exact Shapley value for one patient: what it adds to the model's score (before the link, such as log-odds), compared"
        " with the reference patient, who has the agreed mean of each number and the most frequent level of each category. A category's are of the"
        " hospitals where none of its levels is rare."
        if scores
        else "Shapley values of features are worked out for linear models and boosted trees; this model is neither."
    )
    weak = "Features that go together share what they tell: each may look weak because the other is still there."
    caption = f"Features of the model of round {note['round']}, the most important first"
    return tag("div", tag("h3", "What it goes by"), drawn, table(head, body, caption), _soft([said, weak]))


def _named(told: Mapping[str, Any]) -> str:
    return f"{told['feature']} ({told['unit']})" if told["unit"] else told["feature"]


def _or_dash(value: float | None) -> str:
    return "–" if value is None else plain(value)


def _dependence(note: Note) -> Markup | None:
    if not note["dependence"]:
        return None
    order = {told["feature"]: -told["importance"] for told in note["features"]}
    panels = sorted(note["dependence"], key=lambda panel: order[panel["feature"]])[: pictured.MOST_PANELS]
    width, height, inside = pictured.panels(panels, note["outputs"])
    rest = len(note["dependence"]) - len(panels)
    says = (
        "The mean prediction when a feature is set to a value for everybody, all else as it is. Where features go together, some of the"
        " patients so made up do not exist."
        + (f" The {count(rest, 'feature')} that matter least are in dependence.csv alone." if rest else "")
    )
    drawn = svg.picture("dependence", width, height, "How predictions follow each feature", says, inside)
    return tag("div", tag("h3", "How predictions follow each feature"), drawn)


# --- what each hospital brought ---------------------------------------------------------------------------------------


def _contribution(note: Note) -> Markup:
    found, head = note["contribution"], tag("h3", "What each hospital brought")
    if "none" in found:
        return tag("div", head, tag("p", f"Not worked out: {found['none']}."))
    rows = sorted(found["shares"].items(), key=lambda row: -row[1]["shapley"])
    name = NAMES[note["loss"]]
    width, height, inside = pictured.bars(
        [(site, share["shapley"], share["error"]) for site, share in rows], f"share of the fall of the {name}"
    )
    how = (
        f"from {found['orders']} drawn orders; the thin line is one standard error to either side"
        if found["orders"]
        else "over every set of hospitals"
    )
    says = f"Shapley values {how}: all together are the whole fall of the {name}, {plain(found['whole'])}."
    drawn = svg.picture("contribution", width, height, "What each hospital brought", says, inside)
    body = [(site, *(plain(share[key]) for key in ("shapley", "alone", "last"))) for site, share in rows]
    caption = f"By how much the {name} falls, from the first model to that of round {note['round']}, owing to whom"
    made = (
        "Each set of hospitals was fitted anew, by the study's own rule and agreed statistics."
        if found["anew"]
        else "Models of fewer hospitals were put together from the updates that all made in the study's rounds, by its own rule: an approximation,"
        " in which nobody trained anew."
    )
    read = (
        "A share below 0 is of a hospital that made the model worse for the patients set aside. No share says that a hospital's patients matter"
        " less: a small or different hospital may bring little to the others and need the model most."
    )
    notes = [f"{made} {read}"]
    if not found["same"]:
        notes.append(
            "The rounds, made again of the present data, do not lead to the very model that is registered: a gate had set hospitals or rows"
            " aside, or data have changed since."
        )
    if found["unfit"]:
        notes.append(f"{found['unfit']} sets of hospitals fit no model: they count as what the untrained one is worth.")
    return tag(
        "div", head, drawn, table(("Hospital", "Share", "alone", "the last to come"), body, caption), _soft(notes)
    )


def _soft(notes: Iterable[str]) -> list[Markup]:
    return [tag("p", note, class_="soft") for note in notes]


# --- for a terminal ---------------------------------------------------------------------------------------------------


def told(note: Note) -> list[list[tuple[str, ...]]]:
    """For a terminal: tables, each a heading and its lines."""
    metric, loss = NAMES[note["metric"]], NAMES[note["loss"]]
    people = [("all", note["everywhere"]), *sorted(note["sites"].items())]
    people += [(f"{p['feature']}: {g['group']}", g["everywhere"]) for p in note["subgroups"] for g in p["groups"]]
    groups = [(n, shown(f.get("n")), _blurred(note, f), figure(f.get(note["loss"]))) for n, f in people]
    found = [[("for whom", "judged", metric, loss), *groups]]
    features = [(name, plain(value), plain(reach)) for name, value, reach in _importances(note)]
    if features:
        found.append([("feature", f"{loss} rises by", "±"), *features])
    shares = sorted(note["contribution"].get("shares", {}).items(), key=lambda row: -row[1]["shapley"])
    if shares:
        head = ("hospital", f"share of the fall of {loss}", "alone", "the last to come")
        found.append(
            [head, *((site, *(plain(share[key]) for key in ("shapley", "alone", "last"))) for site, share in shares)]
        )
    return found
