"""report.html: one page that a hospital's board can read, print and keep. It asks nothing of any network and runs no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

from fedrounds.reports import account, explained, judged, matrix, result, survived
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.markup import Markup, raw, tag
from fedrounds.reports.style import CSS

SECTIONS: tuple[tuple[str, str, Callable[[Evidence], Markup | None]], ...] = (  # in the order of a board's questions
    ("result", "The result", result.headline),
    ("asked", "What the study asks", result.asked),
    ("sites", "The hospitals side by side", result.sites),
    ("matrix", "Every model at every hospital", matrix.compared),
    ("rounds", "The rounds", result.rounds),
    ("gates", "Gates: which data were let in", account.gates),
    ("drift", "Drift of the data", account.drift),
    ("fairness", "Fairness across hospitals", judged.fairness),
    ("calibration", "Calibration", judged.calibration),
    ("survival", "Survival", survived.survived),
    ("coefficients", "What the model says", judged.coefficients),
    ("explained", "The model explained", explained.explained),
    ("champion", "Champion and decisions", account.decisions),
    ("traffic", "What crossed the walls", account.traffic),
    ("privacy", "Privacy", account.privacy),
    ("limits", "Limits, stated plainly", account.limits),
    ("produced", "How this page was made", account.produced),
)


def html(of: Evidence) -> str:
    """The page. The same evidence gives the same bytes."""
    told = [(key, name, told) for key, name, tell in SECTIONS if (told := tell(of))]
    sections = [
        tag("section", tag("h2", name, id=f"{key}-heading"), it, id=key, aria_labelledby=f"{key}-heading")
        for key, name, it in told
    ]
    links = [tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in told]
    last = of.visits[-1] if of.visits else None
    stand = f"{of.study.name} · as of {result.when(last.committed)}" if last else f"{of.study.name} · not begun"
    body = tag(
        "body",
        tag(
            "header",
            tag("p", "Fedrounds · study report", class_="kicker"),
            tag("h1", result.name_of(of)),
            tag("p", stand, class_="soft"),
        ),
        tag("nav", tag("ul", links), aria_label="Sections"),
        tag("main", sections),
        tag("footer", tag("p", account.NOT_FOR_USE)),
    )
    return raw("<!doctype html>\n") + tag("html", _head(of), body, lang="en") + "\n"


def _head(of: Evidence) -> Markup:
    """Nothing may be loaded, run or sent; the one style sheet is allowed by its hash."""
    allowed = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{of.study.name}: study report"),
        tag("style", raw(CSS)),
    )
