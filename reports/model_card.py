"""What a model is for, what it was made from, how good it is and what it is not for: in a summary and on a card.

Both are made from two records of the ledger (the visit that trained the model, the visit that scored it), so that a version's words are
the same however often they are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fedrounds.core.evaluate import HEADLINE, LOSS
from fedrounds.core.study import Study
from fedrounds.reports.account import NOT_FOR_USE, apart, limits_of
from fedrounds.reports.groups import auc_interval
from fedrounds.reports.result import NAMES, error, figure, size
from fedrounds.reports.words import count, how_to_load, kind_of, listed, shown, trained_on

MOST = 4500  # characters of a summary; MLflow refuses a description of more than 5000
Record = Mapping[str, Any]


def summary(study: Study, scored: Record, trained: Record | None = None, acts: Sequence[str] = ()) -> str:
    """What MLflow shows of a version, once its model is scored: at most `MOST` characters, whatever the study.

    The first sentence is what a list of versions has room for. What a model must not be used as is never cut off.

    Args:
        scored: the record of the visit that scored the model.
        trained: that of the visit that trained it.
        acts: what people did about it, a sentence each.
    """
    decision = (scored.get("decision") or {}).get("reason") or "not decided upon"
    first = f"Round {scored['scored']}: {_scores(study, scored)} on the validation patients of {count(len(scored['sites']), 'site')}."
    parts = [
        f"{first} {_sentence(text(decision))}",
        *(_sentence(text(act)) for act in acts[-5:]),
        f"Purpose: {text(study.title or study.name)}",
        text(study.note),
        _data(study, scored, trained),
        _by_site(study, scored),
        _calibration(study, scored),
        _gates(trained or scored),
        "Limits: " + " ".join([apart(scored), *limits_of(study)[:-1]]),
    ]
    tail = f"\n\nNot for use: {NOT_FOR_USE}"
    return short_of("\n\n".join(part for part in parts if part), MOST - len(tail)) + tail


def card(
    study: Study,
    scored: Record,
    trained: Record | None,
    *,
    lineage: str,
    model: str,
    logged: tuple[int, str] | None = None,
) -> str:
    """model_card.md: the summary, then every hospital, the dictionary and how to load the model.

    Args:
        lineage: the lineage's id.
        model: the model's digest.
        logged: the leaf of the audit log that says of its training, and the signed head that holds it.
    """
    name = NAMES[HEADLINE[study.target.kind]]
    rows = [
        f"| hospital | trained on | judged on | {name} | {NAMES[LOSS[study.target.kind]]} | sent by it |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for site, found in sorted(scored["sites"].items()):
        own = found.get("metrics", {})
        made = (trained or {}).get("sites", {}).get(site, {})
        cells = (
            text(site),
            shown(made.get("training", {}).get("patients")),
            shown(own.get("n")),
            figure(own.get(HEADLINE[study.target.kind])),
            figure(own.get(LOSS[study.target.kind])),
            size(made["bytes_out"]) if made else "–",
        )
        rows.append(f"| {' | '.join(cells)} |")
    features = ["| feature | kind | unit or levels | missing |", "|---|---|---|---|"]
    for feature in study.features:
        levels = ", ".join(map(str, getattr(feature, "categories", ())))
        said, codes = ": ".join(filter(None, (feature.unit, levels))), ", ".join(map(str, feature.missing))
        features.append(f"| {text(feature.name)} | {feature.type} | {text(said)} | {text(codes)} |")
    facts = [f"- Model digest: `{model}`", f"- Protocol digest: `{study.digest}`", f"- Lineage: `{lineage}`"]
    if logged:
        head = "\n".join(f"      {line}".rstrip() for line in logged[1].splitlines())
        facts.append(f"- Audit log: leaf {logged[0]} under the checkpoint\n\n{head}")
    load, gives = how_to_load(study)
    parts = [
        f"# Model card: {text(study.title or study.name)}, round {scored['scored']}",
        summary(study, scored, trained),
        "## By hospital",
        "\n".join(rows),
        "## What it is told",
        "\n".join(features),
        f"{_target(study)}; the model is {kind_of(study)}, trained by {study.algorithm.preset or 'a rule of its own'}.",
        "## How to load it",
        f"The champion: `{load}`. It is {gives}, and takes raw rows with the columns above.",
        "## Where it comes from",
        "\n".join(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _target(study: Study) -> str:
    return f"The target is `{text(study.target.column)}`" if study.target.column else "There is no target"


def text(words: str) -> str:
    """A name or a sentence of somebody else's, in markdown: as it is, never as markup.

    >>> text("<b>a|b</b> *c*")
    '&lt;b&gt;a\\\\|b&lt;/b&gt; \\\\*c\\\\*'
    """
    plain = escape(" ".join(words.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "|*`[]" else letter for letter in plain)


def short_of(words: str, most: int) -> str:
    """The beginning of a text, at most so many characters.

    >>> short_of("abcdef", 4), short_of("abc", 4)
    ('abc…', 'abc')
    """
    return words if len(words) <= most else words[: most - 1] + "…"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _scores(study: Study, scored: Record) -> str:
    found, parts = scored["metrics"], []
    for key in dict.fromkeys((LOSS[study.target.kind], HEADLINE[study.target.kind])):
        if key in found:
            blur = f" ({error(found[f'{key}_error'])} by its histograms)" if f"{key}_error" in found else ""
            parts.append(f"{NAMES[key]} {found[key]:.4f}{blur}")
    return ", ".join(parts) or ("compared by noised sums alone" if study.privacy.dp else "no score")


def _data(study: Study, scored: Record, trained: Record | None) -> str:
    if study.privacy.dp:
        return "Data: of how many patients, is known to their hospitals alone."
    parts: list[str] = []
    if trained:
        rows = {site: found["training"]["patients"] for site, found in trained["sites"].items() if "training" in found}
        each = listed([f"{text(site)} {shown(n)}" for site, n in sorted(rows.items())], 12)
        parts.append(f"trained on {shown(trained_on(trained))} patients ({each or 'of all sites together'})")
    parts.append(f"judged on {shown(scored['metrics'].get('n', 0.0))} others")
    return f"Data: {', '.join(parts)}."


def _by_site(study: Study, scored: Record) -> str:
    key = HEADLINE[study.target.kind]
    values = {site: found["metrics"][key] for site, found in scored["sites"].items() if key in found.get("metrics", {})}
    if len(values) < 2:
        return ""
    worst, best = min(values, key=lambda s: (values[s], s)), max(values, key=lambda s: (values[s], s))
    unjudged = sorted(map(text, scored["sites"].keys() - values.keys()))
    said = f"Across hospitals: {NAMES[key]} from {values[worst]:.3f} at {text(worst)} to {values[best]:.3f} at {text(best)}"
    return said + (f"; not judged: {listed(unjudged)}." if unjudged else ".")


def _calibration(study: Study, scored: Record) -> str:
    histogram = np.array(scored.get("histogram") or [])
    if study.target.kind != "binary" or not histogram.size:
        return ""
    no, yes = histogram[0]
    expected = float(((no + yes) * (np.arange(len(no)) + 0.5) / len(no)).sum())
    parts: list[str] = []
    if min(no.sum(), yes.sum()) >= 10 and expected > 0:
        parts.append(f"Calibration: the outcome happened {yes.sum() / expected:.2f} times as often as predicted.")
        if "auc" in scored["metrics"]:
            low, high = auc_interval(scored["metrics"]["auc"], float(no.sum()), float(yes.sum()))
            parts.append(f"95 % interval of the AUC: {low:.3f} to {high:.3f}.")
    return " ".join(parts)


def _gates(record: Record) -> str:
    """Who was let in to train: what each gate said of a hospital that did not simply pass."""
    parts: list[str] = []
    for kind, word in (("excluded", "kept out"), ("refused", "refused"), ("warned", "warned")):
        found = sorted((record.get(kind) or {}).items())
        parts += [f"{text(site)} {word}: {short_of(text(reason), 160)}" for site, reason in found[:4]]
        parts += [f"{len(found) - 4} more {word}"] if len(found) > 4 else []
    acted = sorted(site for site, it in (record.get("gate") or {}).items() if it.get("action") == "down-weight")
    parts += [f"weighed down: {listed(list(map(text, acted)))}"] if acted else []
    return f"Gates: {'; '.join(parts) or 'every hospital passed'}."
