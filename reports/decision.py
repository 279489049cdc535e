"""A decision on a version, for a person who has to judge it: the sentence, every check of the rule, and each hospital's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHECKS = {
    "improvement": "upper end of the pooled mean difference, below",
    "margin": "worst hospital's mean difference, at most",
    "worse": "hospitals whose mean difference is above the protocol's margin, at most",
    "gates": "hospitals whose data did not pass the gate, at most",
}


def decision_markdown(study: str, round: int, decision: Mapping[str, Any]) -> str:
    """Markdown of `record["decision"]`. Differences are loss of the version minus loss of the champion: below 0 is better."""
    reason = decision["reason"]
    parts = [f"### {study}: the version of round {round}", f"{reason[:1].upper()}{reason[1:]}."]
    if decision.get("checks"):
        rows = [
            f"| {CHECKS.get(check['rule'], check['rule'])} | {_number(check['limit'])} | {_number(check['found'])} "
            f"| {'holds' if check['passed'] else 'fails'} |"
            for check in decision["checks"]
        ]
        parts.append("\n".join(["| rule | limit | found | |", "|---|---:|---:|---|", *rows]))
    if decision.get("paired"):
        found = {**decision["sites"], "all sites": decision["paired"]}
        confidence = decision["paired"]["confidence"]
        interval = f"{100 * confidence:g} % interval" if confidence else "no interval asked"
        rows = [
            f"| {site} | {'fewer than 10' if it['n'] is None else it['n']} | {_number(it['mean'])} "
            f"| {f'{_number(low)} to {_number(high)}' if confidence else '–'} |"
            for site, it in found.items()
            for low, high in [(it["low"], it["high"])]
        ]
        head = [f"| site | validation patients | mean difference | {interval} |", "|---|---:|---:|---|"]
        parts.append("\n".join([*head, *rows]))
        parts.append("Difference: loss of this version − loss of the champion, patient by patient; below 0 is better.")
    return "\n\n".join(parts) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
