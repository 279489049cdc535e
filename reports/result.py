"""The report's beginning: what was asked, the headline, the rounds, the hospitals side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from fedrounds.core.study import Survival
from fedrounds.reports import charts
from fedrounds.reports.evidence import Evidence, Record
from fedrounds.reports.groups import auc_interval
from fedrounds.reports.markup import Markup, table, tag
from fedrounds.reports.summary import AXIS
from fedrounds.reports.words import count, kind_of, listed, short, shown, trained_on

NAMES = {
    "log_loss": "log-loss",
    "mse": "mean squared error",
    "distance": "mean squared distance",
    "auc": "AUC",
    "r2": "R²",
    "concordance": "concordance",
    "explained": "explained share",
}
SAYS = {  # what a value of the metric means to somebody who has never heard of it
    "binary": "of one patient with the outcome and one without, it gives the higher risk to the right one in {0:.1f} of 100 pairs",
    "multiclass": "of one patient of a class and one of another, it ranks the right one higher in {0:.1f} of 100 pairs, averaged over the classes",
    "survival": "of two patients, it gives the higher risk to the one to whom it happens first in {0:.1f} of 100 pairs",
    "regression": "it explains {0:.1f} % of the variance of the outcome",
    "none": "it accounts for {0:.1f} % of how far they lie from the average patient of the training",
}
ASKED = (
    "Each round asked some of the hospitals, and a model's scores in the next are of those asked there: from round to round they are of"
    " other patients. The last model of a run is scored by all hospitals, and only such a visit decides on a champion."
)


def figure(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A number in a table; a dash where nothing was measured, and a real minus.

    >>> figure(-0.12345), figure(None), figure(0.5, 1, signed=True)
    ('−0.123', '–', '+0.5')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def plain(value: float) -> str:
    """A coefficient to four digits, with a real minus.

    >>> plain(-0.0123456), plain(12345.6)
    ('−0.01235', '12350')
    """
    return (f"{value:.4g}" if abs(value) < 1e4 else f"{float(f'{value:.4g}'):.0f}").replace("-", "−")


def when(seconds: float) -> str:
    """A moment of the ledger, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def asked(of: Evidence) -> Markup:
    """The question, the outcome, the rows, the model, and the digest that a hospital approves."""
    study, target = of.study, of.study.target
    outcome = {
        "regression": f"the number in '{target.column}'",
        "binary": f"yes or no, from '{target.column}'",
        "multiclass": f"one of {len(getattr(target, 'classes', ()))} classes, from '{target.column}'",
        "none": "none: the patients are described, and nothing is predicted",
        "survival": f"when it happens ('{target.column}', after '{getattr(target, 'time', '')}')",
    }[target.kind]
    if isinstance(target, Survival):
        outcome += f", to an interval of {len(target.ends)} up to {target.ends[-1]:g} {target.unit}"
    cut = getattr(target, "positive_above", None)
    if cut is not None:
        outcome += f": yes above {cut:g}"
    numbers = sum(feature.type == "number" for feature in study.features)
    judge, l2 = study.validation, getattr(study.model, "l2", 0.0)
    rows = (
        f"the rows that column '{judge.fold}' names"
        if judge.fold
        else f"{100 * judge.fraction:.3g} % of each hospital's patients"
    )
    facts = [
        ("Question", study.title or study.name),
        ("Where the patients come from", study.note or None),
        ("Outcome", outcome),
        (
            "Told from",
            f"{count(len(study.features), 'feature')}: {count(numbers, 'number')}, {len(study.features) - numbers} with levels",
        ),
        ("Judged on", f"{rows}, which no model learned from"),
        ("Starts from", _origin(of) if of.origin else None),
        ("Model", f"{kind_of(study)}{f', L2 penalty {l2:g}' if l2 else ''}"),
        ("Learning", study.algorithm.title),
        ("Protocol digest", tag("code", study.digest)),
    ]
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in facts if value])


def headline(of: Evidence) -> Markup:
    """One paragraph for a hospital's board, and the numbers in large."""
    metrics, record = of.record["metrics"], of.record
    value = metrics.get(of.metric)
    took_part = sorted({site for visit in of.trained.values() for site in visit.record["sites"]})
    if not of.visits:
        return tag("p", "No round has closed yet: there is nothing to report but the protocol.", class_="lead")
    who = f"{_number(len(took_part)).capitalize()} {'hospital' if len(took_part) == 1 else 'hospitals'} trained one model together"
    parts = [
        f"{who} in {count(of.rounds, 'round')}; what travelled was sums, counts and model updates, never a patient's row."
    ]
    if value is None and of.study.privacy.dp:
        parts.append("How good the model is stays at the hospitals: under differential privacy no score leaves them.")
    elif value is None:
        parts.append("No model could be judged: there were too few patients set aside, or all had the same outcome.")
    else:
        which = f"the champion, round {of.shown}," if of.shown == of.champion else f"of round {of.shown}"
        parts.append(
            f"The model shown here ({which.rstrip(',')}) was judged on {shown(metrics['n'])} patients whom it did not learn from:"
            f" {SAYS[of.study.target.kind].format(100 * value)} ({NAMES[of.metric]} {figure(value)}{_sure(of)})."
        )
        pool = of.baselines.get("pooled_all", {}).get(of.metric) if of.alike else None
        if pool is not None:
            parts.append(f"One pool of all rows, which only a simulation can know, would give {figure(pool)}.")
        parts.append(_against_alone(of) if of.alike else "")
    out = sorted(set(of.last.get("excluded", {})) | set(of.last.get("refused", {})))
    if out:
        parts.append(f"{listed(out)} did not take part in the last round: see Gates.")
    tiles = [
        (NAMES[of.metric], figure(value), _sure(of).removeprefix("; ") or "all hospitals together"),
        ("Judged on", shown(metrics.get("n")), "patients set aside"),
        ("Hospitals", str(len(record["sites"]) or len(took_part)), "scored this model"),
        ("Rounds", str(of.rounds), f"champion: round {of.champion}" if of.champion is not None else "no champion yet"),
    ]
    boxes = [
        tag("div", tag("dt", name), tag("dd", tag("strong", big), tag("span", small))) for name, big, small in tiles
    ]
    return tag("div", tag("p", " ".join(filter(None, parts)), class_="lead"), tag("dl", boxes, class_="tiles"))


def _number(n: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return words[n] if n < len(words) else str(n)


def _sure(of: Evidence) -> str:
    """How sure the headline's value is: by chance, and by the histograms it was computed from."""
    metrics, histogram = of.record["metrics"], np.array(of.record.get("histogram") or [])
    parts: list[str] = []
    if of.study.target.kind == "binary" and "auc" in metrics and histogram.size:
        negative, positive = histogram[0].sum(1)
        parts.append("95 % interval {:.3f} to {:.3f}".format(*auc_interval(metrics["auc"], negative, positive)))
    if f"{of.metric}_error" in metrics:
        parts.append(f"from histograms, exact to {error(metrics[f'{of.metric}_error'])}")
    return "".join(f"; {part}" for part in parts)


def error(value: float) -> str:
    """The largest error of an area in a few digits.

    >>> error(0.00548), error(1e-6)
    ('±0.0055', '±0.0001')
    """
    return f"±{max(value, 1e-4):.4f}"


def _against_alone(of: Evidence) -> str:
    """At how many hospitals the federated model beats their own, where the histograms can tell."""
    gains: dict[str, float] = {}
    same = 0
    for site in of.record["sites"]:
        ours, own = of.of(site, of.metric), of.compared("local", site, of.metric)
        if ours is None or own is None:
            continue
        blurs = of.of(site, f"{of.metric}_error"), of.compared("local", site, f"{of.metric}_error")
        blur = sum(found or 0.0 for found in blurs)
        if abs(ours - own) <= max(blur, 5e-4):
            same += 1
        else:
            gains[site] = ours - own
    if not gains and not same:
        return ""
    better, worse = [s for s in gains if gains[s] > 0], [s for s in gains if gains[s] < 0]
    told = len(gains) + same
    said = f"Against a model of its own, it is better at {len(better)}, worse at {len(worse)} and too close to tell at {same} of {told} hospitals"
    if worse:
        most = min(worse, key=lambda site: gains[site])
        said += f"; it loses most at {most} ({figure(gains[most], signed=True)})"
    return f"{said}."


def rounds(of: Evidence) -> Markup | None:
    """Loss and metric over the rounds, and every round in a table."""
    if not of.scored:
        return None
    if of.study.privacy.dp:  # there is nothing to draw
        return _every_round(of)
    steps = list(of.scored)
    records = [of.scored[step].record for step in steps]
    names = sorted({site for record in records for site in record["sites"]})
    each = {site: [_of(record, site, of.loss) for record in records] for site in names}
    drawn = charts.rounds(
        steps,
        [record["metrics"].get(of.loss) for record in records],
        [record["metrics"].get(of.metric) for record in records],
        each,
        loss_name=AXIS[of.loss],
        metric_name=AXIS[of.metric],
        champion=of.champion if of.champion in of.scored else None,
    )
    asked = tag("p", ASKED, class_="soft") if of.study.participation.fraction < 1 else None
    return tag("div", drawn, asked, _every_round(of))


def _of(record, site: str, metric: str) -> float | None:
    return record["sites"].get(site, {}).get("metrics", {}).get(metric)


def _every_round(of: Evidence) -> Markup:
    body: list[Sequence[object]] = []
    for number in sorted({*of.scored, *of.trained}):
        scored = of.scored[number].record["metrics"] if number in of.scored else {}
        visit = of.trained.get(number)
        sites = visit.record["sites"].values() if visit else ()
        trained = trained_on(visit.record) if visit else None
        body.append(
            (
                f"{number} ★" if number == of.champion else str(number),
                str(len(sites)) if visit else "–",
                shown(trained) if visit else "–",
                figure(scored.get(of.loss), 4),
                figure(scored.get(of.metric), 4),
                size(sum(site["bytes_in"] for site in sites)) if visit else "–",
                size(sum(site["bytes_out"] for site in sites)) if visit else "–",
                figure(visit.committed - visit.started, 2) if visit else "–",
            )
        )
    first = "model it started from" if of.origin else "untrained model"
    head = (
        "Round",
        "Hospitals",
        "Patients trained on",
        NAMES[of.loss],
        NAMES[of.metric],
        "Sent to them",
        "Sent by them",
        "Seconds",
    )
    return table(
        head,
        body,
        f"Every round: its training, and the scores of the model it left (★ champion; round 0 is the {first})",
    )


def size(count: float) -> str:
    """Bytes for people.

    >>> size(808), size(1144 * 40)
    ('808 B', '45.8 kB')
    """
    return f"{count:.0f} B" if count < 1000 else f"{count / 1000:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def sites(of: Evidence) -> Markup | None:
    """Alone, federated, pooled at each hospital."""
    patients = of.baselines.get("patients", {})
    names = [site for site in of.sites if site in of.record["sites"]]
    if not names or of.study.privacy.dp:
        return None

    def rows_of(site: str) -> float:
        return patients.get(site) or of.training_rows.get(site, 0.0) + (of.of(site, "n") or 0.0)

    names.sort(key=lambda site: (-rows_of(site), site))
    rows = [
        (
            site,
            shown(rows_of(site)),
            of.compared("local", site, of.metric),
            of.of(site, of.metric),
            of.compared("pooled", site, of.metric),
            of.of(site, f"{of.metric}_error"),
        )
        for site in names
    ]
    drawn = charts.sites(rows, metric_name=AXIS[of.metric])
    name = NAMES[of.metric]
    body = [
        (
            site,
            said,
            shown(of.of(site, "n")),
            figure(own),
            figure(ours),
            error(blur) if blur is not None else "–",
            figure(pool),
            *_own(of, of.record["sites"].get(site, {})),
            *_since(of, site),
        )
        for site, said, own, ours, pool, blur in rows
    ]
    together = of.record["metrics"]
    body.append(
        (
            "all hospitals",
            shown(sum(map(rows_of, names))),
            shown(together.get("n")),
            "–",
            figure(together.get(of.metric)),
            error(together[f"{of.metric}_error"]) if f"{of.metric}_error" in together else "–",
            figure(of.baselines.get("pooled_all", {}).get(of.metric) if of.same_hospitals else None),
            *_own(of, of.record),
            *_since(of),
        )
    )
    head: tuple[str, ...] = (
        "Hospital",
        "Patients",
        "of them judging",
        f"{name} alone",
        f"{name} federated",
        "largest error",
        f"{name} pooled",
    )
    head += (f"{name} personal", "gain") if _has_own(of) else ()
    head += ("since the start",) if of.origin else ()
    caption = f"{name} of the model of round {of.shown} at each hospital, on patients it did not learn from"
    unlike = f" The model shown is of round {of.shown}, with its hospitals' rows of then: part of what differs between the columns is that."
    compared = (
        f"'Alone' and 'pooled' were trained for {count(of.baselines.get('rounds', of.rounds), 'round')} by the study's own rule on its agreed"
        f" statistics: comparisons, not the best that could be done.{'' if of.alike else unlike}"
        if of.baselines.get("local")
        else "No models to compare with were trained in this run."
    )
    since = (
        f"'Since the start' is how much the {name} has risen since {_origin(of)}, on the same patients."
        if of.origin
        else ""
    )
    said = [tag("p", words, class_="soft") for words in (compared, _personal(of), since) if words]
    return tag("div", drawn, table(head, body, caption), *said)


def _has_own(of: Evidence) -> bool:
    """Whether a hospital's own model is known by itself, which masks leave none."""
    return any("personal" in site for site in of.record["sites"].values())


def _own(of: Evidence, told: Record) -> tuple[str, ...]:
    """What the own models are worth, here or in all, and their gain over the global one; nothing where there are none."""
    if not _has_own(of):
        return ()
    found = told.get("personal", {})
    return figure(found.get(f"personal_{of.metric}")), figure(found.get(f"personal_gain_{of.metric}"), signed=True)


def _personal(of: Evidence) -> str:
    """How much better their own models are, and at how many hospitals, by the loss, which no histogram blurs."""
    own = (site.get("personal", {}).get(f"personal_gain_{of.loss}") for site in of.record["sites"].values())
    known = [gain for gain in own if gain is not None]
    everywhere = of.record.get("personal", {}).get(f"personal_gain_{of.loss}")
    if everywhere is None:
        return ""
    said = (
        f"'Personal' is a model that each hospital trains for itself beside the global one and {of.study.averaging.stays}; 'gain' is how much"
        f" better it is there. Over all patients who judge, each by their own hospital's,"
        f" the gain in {NAMES[of.loss]} is {figure(everywhere, 4, signed=True)}"
    )
    better, worse = sum(gain > 0 for gain in known), sum(gain < 0 for gain in known)
    return (
        f"{said}; it is better at {better} and worse at {worse} of {count(len(known), 'hospital')}."
        if known
        else f"{said}."
    )


def name_of(of: Evidence) -> str:
    """The page's heading."""
    return short(of.study.title or of.study.name, 160)


def _since(of: Evidence, site: str = "") -> tuple[str, ...]:
    return (figure(of.gained(of.record, of.metric, site), signed=True),) if of.origin else ()


def _origin(of: Evidence) -> str:
    return f"version {of.origin['version']} of '{of.origin['name']}' (its round {of.origin['round']})"
