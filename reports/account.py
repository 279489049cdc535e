"""The report's end: gates, drift, decisions, bytes, privacy, limits, and how it was produced."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedrounds.core.encrypted import third_party
from fedrounds.core.study import Study
from fedrounds.reports import charts
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.markup import Markup, table, tag
from fedrounds.reports.result import NAMES, error, figure, plain, size, when
from fedrounds.reports.traffic import grid
from fedrounds.reports.words import SMALLEST, count

NOT_FOR_USE = (
    "For research. It has not been validated on later patients or at other hospitals, it is no medical device, and it must not guide the care "
    "of a patient."
)
APART = {
    "process": "All hospitals ran in one process on one machine: a simulation, or hospitals whose data one team may read.",
    "dask": "The hospitals' rows were at the workers of one cluster: a simulation, or hospitals whose data one team may read.",
    "mail": "The hospitals were apart, each with its own agent. Small cells of score histograms were merged: areas under the curve are coarser.",
    "masked mail": "The hospitals were apart, each with its own agent.",
}
MASKED = (
    "There is no differential privacy. Sums were masked: whoever runs the study sees sums over the hospitals that were heard, nothing of one"
    " of them. The masks await outside review."
)
ENCRYPTED = (
    "There is no differential privacy. Sums were encrypted: whoever runs the study sees sums over the hospitals that were heard, nothing of one"
    " of them, unless it is in league with {} or with another member. Sums left it rounded to whole steps of a grid. The protocol awaits"
    " outside review."
)
PRIVATE = (
    "There is no secure aggregation: whoever runs the study sees each hospital's noised updates. The noise's sampler and the accounting of"
    " sampled batches await outside review."
)
TOGETHER = (
    "Sums were masked, and the hospitals made their noise together: whoever runs the study sees noised sums over those that were heard. The masks,"
    " the noise's sampler and the accounting of sampled batches await outside review."
)
LIMITS = (
    "There is no differential privacy and no secure aggregation: whoever runs the study sees each hospital's updates and sums.",
    f"Updates and sums can tell about patients. Counts of 1 to {SMALLEST - 1} are withheld, which is disclosure control and not a proof.",
    "The patients who judge come from the same hospitals and the same time as those who trained: how the model does elsewhere is not known.",
    "Coefficients and odds ratios describe the model. They have no intervals here and say nothing about causes.",
    NOT_FOR_USE,
)
TIMES = (
    "The sums of a fit to times tell how many training patients were last seen in each interval of the grid, few as they may be: of each"
    " hospital, or under masks or encryption of all together. The model's baseline tells of the events in each interval."
)


def gates(of: Evidence) -> Markup | None:
    """Each hospital's verdict in force, and who sat out when and why."""
    if not of.verdicts and not any(visit.record.get("excluded") or visit.record.get("refused") for visit in of.visits):
        return None
    acted: Mapping[str, Any] = of.latest("gate") or {}
    body: list[Sequence[object]] = []
    for site, kept in sorted(of.verdicts.items()):
        verdict, act = kept.verdict, acted.get(site) or {}
        word = f"{'✓ passed' if kept.passed else '✕ failed'} ({count(verdict.get('checks', 0), 'check')})"
        doing = [act["action"]] if act.get("action") else []
        if act.get("factor") not in (None, 1, 1.0):
            doing.append(f"weight × {act['factor']:g}")
        if "quarantined" in act and act["quarantined"] != 0:
            rows = f"fewer than {SMALLEST}" if act["quarantined"] is None else f"{act['quarantined']:,}"
            doing.append(f"{rows} rows set aside")
        for failure in verdict.get("failures") or [None]:
            about = ("", "", "")
            if failure:
                severity = "" if failure.get("severity", "critical") == "critical" else f" ({failure['severity']})"
                about = (failure["expectation"] + severity, failure.get("column") or "", _rows(failure))
            body.append((site, word, *about, ", ".join(doing), verdict.get("note", "")))
    head = ("Hospital", "Verdict", "Expectation that failed", "Column", "Rows", "Action", "Note")
    kept_columns = [i for i in range(len(head)) if i < 2 or any(row[i] for row in body)]
    pruned = [[row[i] for i in kept_columns] for row in body]
    now = table(
        [head[i] for i in kept_columns], pruned, "The gate's verdict on each hospital's present data", words=range(7)
    )
    suite = next((visit.suite_hash for visit in reversed(of.visits) if visit.suite_hash), "")
    rule = of.operations.get("gate", {})
    said = f"Suite: {rule.get('suite') or 'none, the dictionary alone was checked'}{f', hash {suite[:12]}' if suite else ''}."
    if rule.get("policy"):
        said += f" Policy: {rule['policy']}."
    return tag("div", tag("p", said), now if body else None, _sat_out(of))


def _rows(failure: Mapping[str, Any]) -> str:
    if not failure.get("per_row", True):
        return ""
    unexpected, of = failure.get("unexpected_count"), failure.get("element_count")
    said = f"fewer than {SMALLEST}" if unexpected is None else f"{unexpected:,}"
    return said if of is None else f"{said} of {of:,}"


def _sat_out(of: Evidence) -> Markup | None:
    """Hospital and reason -> the rounds without it; one row where a reason held for many rounds."""
    held: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    for visit in of.trained.values():
        for kind, word in (("excluded", "kept out"), ("refused", "refused"), ("warned", "warned")):
            for site, reason in (visit.record.get(kind) or {}).items():
                held[site, word, reason].append(visit.round)
    rows = [(site, word, spans(numbers), reason) for (site, word, reason), numbers in sorted(held.items())]
    if not rows:
        return None
    return table(
        ("Hospital", "What", "Rounds", "Reason"),
        rows,
        "Hospitals that sat out or took part with a warning",
        words=range(4),
    )


def spans(numbers: Iterable[int]) -> str:
    """Rounds in short.

    >>> spans([1, 2, 3, 5, 8, 9])
    '1–3, 5, 8–9'
    """
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in found)


def drift(of: Evidence) -> Markup | None:
    """How far the data moved from the reference visit, and hospitals from one another; only where it was measured."""
    found = of.latest("drift")
    if not found:
        return None
    limit = found.get("limit") or {}
    hold = math.inf if limit.get("hold") is None else limit["hold"]
    warn = min(0.1, hold) if limit.get("warn") is None else limit["warn"]
    parts: list[Any] = []
    worst = found.get("worst") or {}
    if worst.get("psi") is not None:
        parts.append(
            tag("p", f"Furthest from visit {found.get('reference')}: {worst.get('what')} at {worst.get('site')}, PSI {worst['psi']:.3f}. "
                f"A warning starts at {warn:g}; {_holds(hold)}. It is {'held' if found.get('held') else 'not held'}.")
        )  # fmt: skip
    for key, name in (("sites", "Since the reference"), ("between", "Between hospitals")):
        rows = {site: _psi(values) for site, values in (found.get(key) or {}).items()}
        if any(rows.values()):
            says = _legend(key == "sites", warn, hold)
            parts.append(charts.heatmap(f"drift-{key}", rows, warn, hold, title=f"Drift: {name.lower()}", says=says))
            parts.append(_moved(found[key], warn, name))
    return tag("div", parts)


def _legend(reference: bool, warn: float, hold: float) -> str:
    """What shades and marks mean; of hospitals beside each other they warn of nothing, for those differ by nature."""
    says = f"Stronger colour is further from {'the reference' if reference else 'the other hospitals'}. Triangle: PSI of {warn:g} or more"
    says += ", a warning." if reference else "."
    if math.isfinite(hold):
        says += f" Square: {hold:g} or more{', which holds the study' if reference else ''}."
    return says if reference else f"{says} Hospitals differ by nature: nothing is held for it."


def _holds(limit: float) -> str:
    return f"{limit:g} holds the study" if math.isfinite(limit) else "nothing holds the study"


def _psi(values: Mapping[str, Any]) -> dict[str, float | None]:
    found = {feature: (it or {}).get("psi") for feature, it in (values.get("features") or {}).items()}
    label = values.get("label") or {}
    return {**found, **({"label": label["psi"]} if label.get("psi") is not None else {})}


def _moved(sites: Mapping[str, Any], warn: float, name: str) -> Markup:
    """What is above the warning, the furthest first."""
    rows: list[tuple[float, Sequence[object]]] = []
    for site, values in sites.items():
        for feature, it in (values.get("features") or {}).items():
            if it and it.get("psi") is not None and it["psi"] >= warn:
                rows.append((it["psi"], (site, feature, figure(it["psi"]), figure(it.get("ks")), "")))
        label = values.get("label") or {}
        if label.get("psi") is not None and label["psi"] >= warn:
            rates = f"{figure(label.get('reference_rate'))} to {figure(label.get('rate'))}"
            rows.append((label["psi"], (site, "label", figure(label["psi"]), "–", rates)))
    if not rows:
        return tag("p", f"{name}: nothing reached the warning.")
    rows.sort(key=lambda row: -row[0])
    head = ("Hospital", "What moved", "PSI", "KS", "Rate")
    return table(head, [row for _, row in rows[:40]], f"{name}: above the warning, the furthest first", words=(1,))


def decisions(of: Evidence) -> Markup | None:
    """The rule, and every decision on a champion with its reason."""
    if not of.decisions:
        return None
    rule = of.operations.get("promotion", {})
    said = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in rule.items()
        if value not in (None, {}, [])
    )
    records = {visit.visit: visit for visit in of.visits}
    rows: list[tuple[float, Sequence[object]]] = []
    extra = False
    for act in of.acts:
        word = {"promote": "▲ promoted", "reject": "– rejected"}.get(act.act, "▼ rolled back to")
        why = f"{act.by}: {act.reason}" if act.reason else f"by {act.by}"
        mark = tag("span", word, class_="whole")
        rows.append((act.visit + 0.5 + act.number / 1e9, (str(act.round), tag("time", when(act.at)), mark, "–", why)))
    for decision in of.decisions:
        visit = records.get(decision.visit)
        own: Mapping[str, Any] = (
            (visit.record.get("decision") or {}) if visit and visit.record.get("scored") == decision.round else {}
        )
        paired = own.get("paired") or {}
        extra = extra or bool(paired)
        outcome = own.get("outcome") or ("promoted" if decision.promoted else "kept")
        interval = "–" if not paired else f"{plain(paired['mean'])} ({plain(paired['low'])} to {plain(paired['high'])})"
        mark = tag(
            "span", f"{'▲' if outcome == 'promoted' else '–' if outcome == 'kept' else '…'} {outcome}", class_="whole"
        )
        moment = tag("time", when(visit.committed)) if visit else ""
        rows.append((decision.visit, (str(decision.round), moment, mark, interval, decision.reason)))
    rows.sort(key=lambda row: -row[0])
    head = ("Round", "When", "Outcome", "Paired difference of the loss", "Reason")
    keep = [0, 1, 2, *([3] if extra else []), 4]
    caption = "Every decision of the rule and every act of a person, the latest first"
    drawn = table([head[i] for i in keep], [[row[i] for i in keep] for _, row in rows], caption, words=range(5))
    crown = (
        f"The champion is the model of round {of.champion}." if of.champion is not None else "There is no champion yet."
    )
    return tag("div", tag("p", crown + (f" The rule: {said}." if said else "")), _checks(of), drawn)


def _checks(of: Evidence) -> Markup | None:
    """The rules of the last decision that lists them."""
    checks = (of.latest("decision") or {}).get("checks") or []
    rows = [(it["rule"], "✓" if it["passed"] else "✕", _told(it.get("found")), _told(it.get("limit"))) for it in checks]
    return (
        table(("Rule", "Passed", "Found", "Limit"), rows, "The last decision, rule by rule", words=range(4))
        if rows
        else None
    )


def _told(value: Any) -> str:
    return plain(value) if isinstance(value, float) else "–" if value is None else str(value)


def traffic(of: Evidence) -> Markup | None:
    """Bytes each way, by hospital: in all, the least and the most of a training round, and the newest visits one by one."""
    each: defaultdict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for visit in of.visits:
        for site, values in (visit.record.get("sites") or {}).items():
            each[site].append((visit.ask, values.get("bytes_in", 0), values.get("bytes_out", 0)))
    if not each:
        return None
    rows = [
        (site, size(sum(i for _, i, _ in found)), size(sum(o for *_, o in found)), _range(found, 1), _range(found, 2))
        for site, found in sorted(each.items())
    ]
    total = [sum(found[way] for it in each.values() for found in it) for way in (1, 2)]
    rows.append(("all hospitals", size(total[0]), size(total[1]), "–", "–"))
    head = ("Hospital", "Sent to it", "Sent by it", "To it, a training round", "By it, a training round")
    told = table(head, rows, "Bytes that crossed each hospital's wall, over all visits; by round: the table of rounds")
    return tag("div", told, grid(of))


def _range(found: Sequence[tuple[str, int, int]], way: int) -> str:
    seen = [it[way] for it in found if it[0] == "train"]
    if not seen:
        return "–"
    return size(min(seen)) if size(min(seen)) == size(max(seen)) else f"{size(min(seen))} to {size(max(seen))}"


def privacy(of: Evidence) -> Markup:
    """ε, in plain words."""
    dp, spent = of.study.privacy.dp, of.latest("privacy")
    if dp is not None and spent:
        whose, by = "hospital's patients' privacy", "one patient's taking part (one row is taken to be one patient)"
        if dp.unit == "hospital":
            whose, by = "hospital's privacy", "what one hospital sends, all of its patients together"
        left = "What left a hospital was one noised vector of statistics and noised updates"
        if dp.scores:
            left = "What left a hospital was one noised vector of statistics, noised updates, and noised comparisons with the champion"
        if of.study.masked:
            left = "What left the hospitals was masked: whoever runs the study knows noised sums over those that were heard"
        return tag(
            "p",
            tag(
                "strong",
                f"ε = {spent['epsilon']:.3g} at δ = {spent['delta']:.3g} was spent of each {whose}",
            ),
            f", of ε = {dp.epsilon:g}: at most so much more or less likely may anything become that the model or the messages show, by"
            f" {by}. {left}; scores and losses stayed there."
            " Outside of this: the gate's verdict, and that a hospital refused.",
        )
    return tag(
        "p",
        tag(
            "strong",
            "There is no differential privacy in this study: no ε bounds what its model or its messages tell about a patient.",
        ),
        f" What left a hospital was {'encrypted' if of.study.masked.kind == 'ckks' else 'masked'}: whoever runs the study knows sums over the"
        " hospitals that were heard, and nothing of one of them."
        f"{_by_groups(of.study)}"
        if of.study.masked
        else f" What left a hospital was sums, counts and model updates; counts of 1 to {SMALLEST - 1} patients were withheld before they left.",
    )


def _by_groups(study: Study) -> str:
    """What is seen besides where sums are masked by groups; empty where there is one sum."""
    if study.masked is None or study.masked.groups == 1:
        return ""
    return f" The hospitals fall into {study.masked.groups} groups, and the sum of each group is seen by itself."


def limits_of(study: Study) -> tuple[str, ...]:
    """What a report of a study does not show."""
    return (*_limits_of(study)[:2], *([TIMES] if study.target.kind == "survival" else []), *_limits_of(study)[2:])


def _limits_of(study: Study) -> tuple[str, ...]:
    if study.privacy.dp or study.masked:
        ckks = study.masked and study.masked.kind == "ckks"
        whose = "the third party that holds the key" if third_party(study) else "the hospital that holds the key"
        hidden = ENCRYPTED.format(whose) if ckks else TOGETHER if study.masked else PRIVATE
        return (hidden if study.privacy.dp or ckks else f"{MASKED}{_by_groups(study)}", *LIMITS[1:])
    return LIMITS


def apart(record: Mapping[str, Any]) -> str:
    """How far from each other the hospitals of a visit were."""
    carrier = record.get("carrier", "process")
    return APART["masked mail" if carrier == "mail" and record.get("masked") else carrier]


def limits(of: Evidence) -> Markup:
    """What this report does not show."""
    found = [apart(of.record), *limits_of(of.study)]
    if f"{of.metric}_error" in of.record["metrics"]:
        found.insert(
            3,
            f"{NAMES[of.metric]} is computed from score histograms of {of.study.validation.bins} bins: exact to"
            f" {error(of.record['metrics'][f'{of.metric}_error'])}.",
        )
    return tag("ul", [tag("li", item) for item in found])


def produced(of: Evidence) -> Markup:
    """From what this page was made; the same ledger and software give the same bytes."""
    last = of.visits[-1] if of.visits else None
    facts = [
        ("Study", tag("code", of.study.name)),
        ("Lineage", tag("code", of.lineage)),
        ("Protocol digest", tag("code", of.study.digest)),
        ("Begun", when(of.created)),
        ("Ledger's head", f"visit {last.visit}, {when(last.committed)}" if last else "no visit yet"),
        ("Model digest at the head", tag("code", last.model) if last else None),
        ("Audit log's checkpoint", tag("pre", of.checkpoint) if of.checkpoint else None),
        ("Tries that did not close", _failed(of)),
        ("Written by", ", ".join(f"{name} {version}" for name, version in of.software.items())),
    ]
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in facts if value])


def _failed(of: Evidence) -> str | None:
    if not of.failures:
        return None
    last = of.failures[-1]
    return f"{len(of.failures)}; the last at visit {last.visit}, {when(last.failed)}: {last.reason}"
