"""The frame of a site's Data Docs page: Great Expectations renders what was found, and nothing on the page is fetched from anywhere.

Its own page asks a dozen servers for style sheets, scripts and a logo; a hospital's browser should ask none. So the page's sections stand
here in a plain page with a policy that forbids every request, readable in light and in dark.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

KEPT = (  # of a result: counts of rows, and shares of them
    "element_count",
    "missing_count",
    "missing_percent",
    "unexpected_count",
    "unexpected_percent",
    "unexpected_percent_nonmissing",
    "unexpected_percent_total",
)
ACTIVE = re.compile(
    r"<(script|link|img|iframe)\b[^>]*>(?:.*?</\1>)?|\son\w+=\"[^\"]*\"|</?a\b[^>]*>", re.DOTALL | re.IGNORECASE
)
STYLE = """
:root { color-scheme: light dark; --line: #8888884d; --soft: #8888881a; --bad: #b33a00; --good: #00664b; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff9a5c; --good: #56d3a8; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h5, h6 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 1rem; }
td, th { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { background: var(--soft); } th:first-child { width: 4rem; } th:last-child { width: 11rem; }
.popover, .modal, hr { display: none; } .badge { background: var(--soft); border-radius: .3rem; padding: 0 .3rem; }
.text-danger { color: var(--bad); font-weight: 600; } .text-success { color: var(--good); } .lead { opacity: .75; }
.fa-check-circle::before { content: "✓ holds"; } .fa-times::before, .fa-exclamation-triangle::before { content: "✗ fails"; }
[id$="subheader"] { display: none; }
@media print { body { margin: 0; max-width: none; } tr { break-inside: avoid; } }
"""


def counts_alone(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a result, what is about numbers of rows: no observed value (a minimum is some patient's), no list of cells.

    >>> counts_alone({"element_count": 300, "observed_value": 17.3, "partial_unexpected_list": [1]})
    {'element_count': 300}
    """
    return {key: result[key] for key in KEPT if key in result}


def page(site: str, study: str, said: str, sections: Iterable[str]) -> str:
    """The page of a site: what its gate said, then what Great Expectations renders of each column."""
    body = "\n".join(ACTIVE.sub("", section) for section in sections)
    words = {"site": html.escape(site), "study": html.escape(study), "said": html.escape(said)}
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{words['study']} · {words['site']}</title><style>{STYLE}</style></head>\n<body>"
        f"<h1>{words['site']} · {words['study']}</h1>\n<p>{words['said']}</p>\n"
        f'<p class="lead">This page stays at the site. It holds counts and no values.</p>\n{body}\n</body></html>\n'
    )
