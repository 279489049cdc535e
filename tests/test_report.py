"""report.html and the model's card: all that a ledger tells, as text and never as markup, nothing asked of a network, the same bytes each time."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from fedrounds.core.coefficients import on_original_scale
from fedrounds.core.plan import build
from fedrounds.core.study import Study
from fedrounds.ledger import Decision, Ledger, Verdict
from fedrounds.reports import round_words
from fedrounds.reports.account import NOT_FOR_USE
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.groups import auc_interval, groups
from fedrounds.reports.markup import VOID
from fedrounds.reports.model_card import MOST, card, summary
from fedrounds.reports.page import html
from fedrounds.reports.style import DARK, LIGHT
from fedrounds.reports.words import SMALLEST
from fedrounds.tasks import verdict
from fedrounds.tasks.report import evidence

EVIL = "<b>&\"'"


@dataclass(frozen=True)
class Visited:
    """What an entry of the ledger is to a report."""

    visit: int
    round: int
    ask: str
    record: dict[str, Any] = field(default_factory=dict)
    model: str = "ab" * 32
    suite_hash: str = "cd" * 32
    started: float = 1_700_000_000.0
    committed: float = 1_700_000_001.5


def study(**changes) -> Study:
    given = {
        "name": "made-up",
        "title": "Who comes back?",
        "target": {"kind": "binary", "column": "y", "positive_above": 0},
        "features": [
            {"type": "number", "name": "age", "unit": "years"},
            {"type": "category", "name": "ward", "categories": ["red", "blue"]},
        ],
        "model": {"kind": "logistic"},
        "algorithm": "fedavg",
    }
    return Study.model_validate(given | changes)


def scores(n: float, auc: float | None = 0.8) -> dict[str, float]:
    area = {} if auc is None else {"auc": auc, "auc_error": 0.004}
    return {"n": n, "log_loss": 0.5, "brier": 0.17, "accuracy": 0.75, **area}


def record(scored: int | None, sites: dict[str, float | None], **more) -> dict[str, Any]:
    own = {
        name: {
            "bytes_in": 800,
            "bytes_out": 1200,
            "metrics": scores(40, auc),
            "training": {"patients": 120.0, "train_loss": 0.5, "weight": 120.0},
        }
        for name, auc in sites.items()
    }
    base = {
        "scored": scored,
        "metrics": scores(40.0 * len(sites)) if scored is not None else {},
        "training": {"train_loss": 0.5, "train_loss_plain": 0.5},
        "sites": own,
        "histogram": [[[30.0, 15.0, 5.0], [3.0, 15.0, 32.0]]] if scored is not None else [],
        "refused": {},
        "excluded": {},
        "warned": {},
        "decision": None,
        "champion": None,
    }
    return base | more


def made_up(sites: int = 3, rounds: int = 4, name: str = "site-{:02d}", of: Study | None = None, **more) -> Evidence:
    """A lineage of so many sites and rounds, its champion the last round but one."""
    of = of or study()
    plan = build(of)
    each = {name.format(i): 0.7 + 0.2 * i / max(sites, 1) for i in range(sites)}
    visits = [Visited(1, 0, "statistics", record(None, each))]
    visits += [Visited(r + 1, r, "train", record(r - 1, each)) for r in range(1, rounds + 1)]
    visits.append(Visited(rounds + 2, rounds, "score", record(rounds, each)))
    decisions = [
        Decision(r, r < rounds, f"because of round {r}", "ab" * 32, r + 2) for r in range(1, rounds + 1) if sites
    ]
    passed = {site: Verdict(True, {"checks": 18, "failures": [], "note": ""}) for site in each}
    theta, statistics = plan.start().theta + 0.1, plan.no_statistics()
    champion = max((decision.round for decision in decisions if decision.promoted), default=None)
    found = Evidence(
        of,
        "ee" * 16,
        1_700_000_000.0,
        visits,
        decisions,
        champion=champion,
        verdicts=passed,
        software={"fedrounds": "0"},
    )
    return replace(found.with_coefficients(on_original_scale(plan, theta, statistics)), **more)


class Page(HTMLParser):
    """The text of a page, the headings, and whether every element is closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.text, self.seen = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())


def sections(page: str) -> list[str]:
    return [attrs["id"] for tag, attrs in Page(page).seen if tag == "section"]


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_whole_study_has_every_section_that_has_something_to_say():
    assert sections(html(made_up())) == [
        "result", "asked", "sites", "rounds", "gates", "fairness", "calibration", "coefficients", "champion", "traffic", "privacy", "limits",
        "produced",
    ]  # fmt: skip


def test_the_headline_names_the_champion_its_area_and_how_sure_it_is():
    said = Page(html(made_up())).said
    assert "Three hospitals trained one model together in 4 rounds" in said
    low, high = auc_interval(0.8, 50, 50)
    assert f"(AUC 0.800; 95 % interval {low:.3f} to {high:.3f}; from histograms, exact to ±0.0040)" in said
    assert "the champion, round 3" in said
    assert "higher risk to the right one in 80.0 of 100 pairs" in said
    assert "There is no differential privacy in this study" in said


def test_names_are_text_and_never_markup():
    of = study(
        title=EVIL,
        note=EVIL,
        features=[{"type": "number", "name": EVIL, "unit": EVIL}, {"type": "category", "name": "ward", "categories": [EVIL, "x"]}],
    )  # fmt: skip
    reason = {f"{EVIL}00": EVIL}
    found = made_up(of=of, name=EVIL + "{:02d}")
    visits = [*found.visits[:-1], replace(found.visits[-1], record=found.visits[-1].record | {"excluded": reason})]
    verdicts = {
        f"{EVIL}00": Verdict(False, {"checks": 1, "failures": [{"expectation": EVIL, "column": EVIL}], "note": EVIL})
    }
    page = html(replace(found, visits=visits, verdicts=verdicts, decisions=[Decision(1, True, EVIL, "m", 3)]))
    assert "<b>" not in page
    assert not [tag for tag, _ in Page(page).seen if tag == "b"]
    assert Page(page).said.count(EVIL) > 15


def test_a_gate_is_told_with_expectation_column_counts_and_action():
    failures = [
        {"expectation": "expect_x", "column": "age", "element_count": 303, "unexpected_count": 12},
        {"expectation": "expect_y", "column": None, "element_count": 303, "unexpected_count": None, "severity": "warning"},
        {"expectation": "expect_z", "column": "age", "element_count": None, "unexpected_count": None, "per_row": False},
    ]  # fmt: skip
    found = made_up()
    acted = {"site-01": {"passed": False, "action": "down-weight", "quarantined": None, "factor": 0.5}}
    visits = [*found.visits[:-1], replace(found.visits[-1], record=found.visits[-1].record | {"gate": acted})]
    verdicts = {"site-01": Verdict(False, {"checks": 18, "failures": failures, "note": ""})}
    said = Page(html(replace(found, visits=visits, verdicts=verdicts))).said
    assert "✕ failed (18 checks) expect_x age 12 of 303 down-weight, weight × 0.5, fewer than 10 rows set aside" in said
    assert "expect_y (warning) fewer than 10 of 303" in said


def test_who_sat_out_is_told_by_spans_of_rounds():
    found = made_up(rounds=6)
    visits = [
        replace(v, record=v.record | {"excluded": {"site-09": "age: 12 of 30"}}) if v.round in (1, 2, 3, 5) else v
        for v in found.visits
    ]
    assert "site-09 kept out 1–3, 5 age: 12 of 30" in Page(html(replace(found, visits=visits))).said


def test_drift_shows_only_where_it_was_measured_with_its_limits():
    psi = {"site-00": 0.02, "site-01": 0.14, "site-02": 0.31}
    drift = {
        "reference": 2,
        "sites": {
            site: {
                "features": {"age": {"psi": value, "ks": 0.1}, "ward": {"psi": None, "ks": None}},
                "label": {"psi": 0.12, "rate": 0.41, "reference_rate": 0.3},
            }
            for site, value in psi.items()
        },
        "between": {},
        "worst": {"site": "site-02", "what": "age", "psi": 0.31},
        "limit": {"warn": 0.1, "hold": 0.25},
        "held": True,
    }
    found = made_up()
    profile = Visited(9, 4, "profile", {"drift": drift})
    page = html(replace(found, visits=[*found.visits, profile]))
    assert "drift" in sections(page)
    said = Page(page).said
    assert (
        "Furthest from visit 2: age at site-02, PSI 0.310. A warning starts at 0.1; 0.25 holds the study. It is held."
        in said
    )
    assert "site-02 age 0.310 0.100" in said
    assert "site-00 age 0.020" not in said
    assert "0.300 to 0.410" in said
    assert "Square: 0.25 or more, which holds the study." in said
    assert "nothing is held for it" not in said
    drift |= {"sites": {}, "between": drift["sites"]}
    said = Page(html(replace(found, visits=[*found.visits, profile]))).said
    assert (
        "further from the other hospitals. Triangle: PSI of 0.1 or more. Square: 0.25 or more. Hospitals differ by nature: nothing is held for it."
        in said
    )
    drift["limit"] = {"warn": 0.1, "hold": None}
    assert (
        "A warning starts at 0.1; nothing holds the study."
        in Page(html(replace(found, visits=[*found.visits, profile]))).said
    )


def test_the_decision_of_a_richer_rule_is_told_with_interval_and_checks():
    found = made_up()
    decision = {
        "promote": False,
        "reason": "r",
        "outcome": "pending",
        "paired": {"n": 120, "mean": -0.01, "low": -0.02, "high": 0.001, "confidence": 0.95},
        "sites": {},
        "checks": [{"rule": "per-site margin", "passed": True, "found": 0.01, "limit": 0.05}],
    }
    visits = [*found.visits[:-1], replace(found.visits[-1], record=found.visits[-1].record | {"decision": decision})]
    said = Page(html(replace(found, visits=visits))).said
    assert "… pending −0.01 (−0.02 to 0.001) because of round 4" in said
    assert "per-site margin ✓ 0.01 0.05" in said


def test_coefficients_are_per_unit_and_levels_against_their_average():
    found = made_up()
    plan = build(found.study)
    statistics = plan.no_statistics() | {"center": np.array([60.0, 0, 0, 0]), "scale": np.array([10.0, 1, 1, 1])}
    theta = np.array([0.5, 0.4, 0.0, 0.0, 0.1])  # age per ten years, ward red, blue, other, intercept
    page = html(found.with_coefficients(on_original_scale(plan, theta, statistics)))
    said = Page(page).said
    assert "Intercept all features 0 −2.9" in said  # 0.1 - 0.5 * 60 / 10
    assert "age years 0.05 1.051 10 1.649" in said  # exp(0.05), exp(0.5)
    assert "ward = red against the average level 0.4 1.221" in said  # exp(0.4 - 0.2)
    assert "ward = other against the average level 0 – – –" in said


def test_a_neural_network_says_why_it_has_no_coefficients():
    of = study(model={"kind": "mlp", "hidden": [4, 3]})
    assert "A neural network (hidden layers of 4 and 3 units) has no coefficients" in Page(html(made_up(of=of))).said


# --- few patients -----------------------------------------------------------------------------------------------------


def test_calibration_groups_never_show_few_patients_with_or_without_the_outcome():
    rng = np.random.default_rng(0)
    for _ in range(300):
        histogram = rng.poisson(rng.choice([0.05, 0.5, 3.0, 20.0]), (2, 50)).astype(float)
        found = groups(histogram)
        for group in found:
            yes = round(group.observed * group.rows)
            assert not [n for n in (yes, group.rows - yes, group.rows) if 0 < n < SMALLEST]
        assert sum(group.rows for group in found) == (histogram.sum() if found else 0)
    assert groups(np.array([[3.0, 2.0], [1.0, 30.0]])) == []


def test_the_smallest_count_that_is_shown_is_the_gates():
    assert SMALLEST == verdict.SMALLEST


def test_few_patients_of_a_site_are_not_counted_aloud():
    found = made_up(baselines={"patients": {"site-00": 7}, "local": {}})
    said = Page(html(found)).said
    assert "site-00 (fewer than 10)" in said
    assert "site-00 (7)" not in said


# --- the page itself --------------------------------------------------------------------------------------------------


def test_it_loads_runs_and_sends_nothing():
    page = html(made_up())
    (policy,) = [attrs["content"] for _, attrs in Page(page).seen if "http-equiv" in attrs]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/=]{44}'; base-uri 'none'; form-action 'none'", policy
    )
    assert not [tag for tag, _ in Page(page).seen if tag in ("script", "img", "link", "iframe", "form", "object")]
    asked = [value for _, attrs in Page(page).seen for key, value in attrs.items() if key in ("src", "href", "style")]
    assert all(value.startswith("#") for value in asked)
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_every_picture_has_a_title_and_every_table_a_caption_and_scopes():
    seen = Page(html(made_up())).seen
    pictures = [attrs for tag, attrs in seen if tag == "svg"]
    ids = {attrs.get("id") for _, attrs in seen}
    assert len(pictures) == 4
    assert all(set(attrs["aria-labelledby"].split()) <= ids for attrs in pictures)
    assert sum(tag == "caption" for tag, _ in seen) == sum(tag == "table" for tag, _ in seen) > 5
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in seen if tag == "th")
    given = [attrs["id"] for _, attrs in seen if "id" in attrs]
    assert len(given) == len(set(given))


def luminance(colour: str) -> float:
    digits = colour * 2 if len(colour) == 3 else colour
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_has_a_contrast_of_four_and_a_half(theme):
    colours = dict(re.findall(r"--(\w+):#(\w+);", theme))
    if len(colours["paper"]) == 3:
        colours["paper"] = "ffffff"
    for ink in ("ink", "soft", "accent"):
        for ground in ("paper", "panel"):
            dark, light = sorted((luminance(colours[ink]), luminance(colours[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


@pytest.mark.parametrize(
    "found",
    [
        Evidence(study(), "ee" * 16, 1.7e9),
        Evidence(study(), "ee" * 16, 1.7e9, [Visited(1, 0, "statistics", record(None, {}))]),
        made_up(sites=0),
        made_up(sites=1, rounds=1),
        replace(made_up(), visits=[replace(v, record=record(None, {"a": None})) for v in made_up().visits], decisions=[]),
        replace(made_up(), visits=[replace(v, record=record(v.record["scored"], {"a": None})) for v in made_up().visits]),
    ],
    ids=["no visit", "statistics alone", "no site", "one site, one round", "nothing scored", "a site without an area"],
)  # fmt: skip
def test_little_to_tell_is_told_without_a_crash(found):
    assert {"result", "asked", "privacy", "limits", "produced"} <= set(sections(html(found)))


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ({"kind": "regression", "column": "y", "unit": "days"}, {"kind": "linear"}),
        ({"kind": "multiclass", "column": "y", "classes": ["a", EVIL, 3]}, {"kind": "multinomial"}),
    ],
)
def test_other_kinds_of_studies_are_told_too(target, model):
    page = html(made_up(of=study(target=target, model=model)))
    assert {"coefficients", "sites", "rounds"} <= set(sections(page))
    assert "<b>" not in page


def test_fifty_sites_and_two_hundred_rounds_stay_small_and_quick():
    began = time.perf_counter()
    page = html(made_up(sites=50, rounds=200))
    assert time.perf_counter() - began < 3
    assert len(page.encode()) < 2_000_000
    assert Page(page).said


# --- from a ledger ----------------------------------------------------------------------------------------------------


def test_the_same_ledger_gives_the_same_bytes_and_no_other_library_is_asked(toy_study, program, tmp_path):
    first, second = tmp_path / "a" / "one.html", tmp_path / "two.html"
    said = json.loads(program("report", toy_study.folder, "--out", first, "--json").stdout)
    assert program("report", toy_study.folder, "--out", second).stdout == f"toy: {second}\n"
    assert first.read_bytes() == second.read_bytes()
    assert said == {"study": "toy", "report": str(first), "bytes": first.stat().st_size, "rounds": 3, "champion": 3, "visit": 5}  # fmt: skip
    with Ledger.open(toy_study.state / "ledger.db") as ledger:
        found = evidence(ledger)
        assert html(found).encode() == first.read_bytes()
        last = ledger.visits()[-1]
    page = Page(first.read_text()).said
    assert f"visit {last.visit}" in page
    assert last.model in page
    assert found.study.digest in page
    assert found.operations["rounds"] == 3
    assert [p.name for p in tmp_path.rglob("*.new")] == []


def test_it_needs_a_ledger_and_a_place_to_write(new_study, toy_study, program, tmp_path):
    none = program("report", new_study)
    assert (none.returncode, none.stdout) == (15, "")
    assert "expected a study that has run, found no ledger" in none.stderr
    folder = program("report", toy_study.folder, "--out", tmp_path)
    assert folder.returncode == 15
    assert "found a folder" in folder.stderr
    (tmp_path / "file").write_text("")
    under = program("report", toy_study.folder, "--out", tmp_path / "file" / "x.html")
    assert under.returncode == 15
    assert "expected to write the report" in under.stderr
    assert len(under.stderr.splitlines()) == 1


# --- the model's card ------------------------------------------------------------------------------------------------------

SITES = {"east": 0.8, "north": 0.7, "west": None}


def scored(**more):
    return record(3, SITES, decision={"promote": True, "reason": "promoted: the loss fell by 0.1"}, **more)


def test_the_summary_says_purpose_data_scores_gates_reason_limits_and_what_it_is_not_for():
    said = summary(study(), scored(), record(2, SITES, excluded={"south": "failed 1 of 18 checks — age: 12 of 30"}))
    assert said.startswith(
        "Round 3: log-loss 0.5000, AUC 0.8000 (±0.0040 by its histograms) on the validation patients of 3 sites. "
        "Promoted: the loss fell by 0.1.\n\nPurpose: Who comes back?\n\n"
        "Data: trained on 360 patients (east 120, north 120 and west 120), judged on 120 others."
    )
    assert "AUC from 0.700 at north to 0.800 at east; not judged: west." in said
    assert "Calibration: the outcome happened 0.97 times as often as predicted." in said  # 50 of 33/6 + 30/2 + 37 * 5/6
    assert "95 % interval of the AUC: {:.3f} to {:.3f}.".format(*auc_interval(0.8, 50, 50)) in said
    assert "Gates: south kept out: failed 1 of 18 checks — age: 12 of 30." in said
    assert said.endswith(f"Not for use: {NOT_FOR_USE}")


@pytest.mark.parametrize("length", [0, 3000, 4400, 4500, 20_000])
def test_the_summary_keeps_to_its_characters_and_to_its_last_words(length):
    reason = {f"site-{i:03d}": "x" * length for i in range(200)}
    long = record(3, dict.fromkeys(reason, 0.8), decision={"promote": False, "reason": "k" * length}, warned=reason)
    said = summary(study(title="t" * length, note="n" * length), long, long)
    assert len(said) <= MOST == 4500
    assert said.endswith(NOT_FOR_USE)


def test_a_model_without_any_score_is_told_without_one():
    bare = record(1, {"a": None}, metrics={"n": 0.0}, histogram=[], decision={"promote": True, "reason": "first"})
    bare["sites"]["a"]["metrics"] = {"n": 0.0}
    assert summary(study(), bare).startswith("Round 1: no score on the validation patients of 1 site. First.")
    assert "| a | 120 | 0 | – | – | 1.2 kB |" in card(study(), bare, bare, lineage="l", model="m")


def test_the_card_has_every_hospital_the_dictionary_and_the_digests_and_escapes_names():
    features = [{"type": "number", "name": EVIL, "unit": "a|b", "missing": [-9]}]
    of = study(features=features, title=EVIL)
    said = card(of, scored(), record(2, SITES), lineage="ee" * 16, model="ab" * 32)
    assert said == card(of, scored(), record(2, SITES), lineage="ee" * 16, model="ab" * 32)
    assert "| east | 120 | 40 | 0.800 | 0.500 | 1.2 kB |" in said
    assert "| &lt;b&gt;&amp;\"' | number | a\\|b | -9 |" in said
    assert f"- Model digest: `{'ab' * 32}`" in said
    assert "<b>" not in said


def test_counts_of_few_patients_are_not_told():
    few = scored()
    few["sites"]["east"]["training"]["patients"] = 7.0
    few["sites"]["east"]["metrics"]["n"] = 3.0
    assert "east fewer than 10" in summary(study(), few, few)
    assert "| east | fewer than 10 | fewer than 10 |" in card(study(), few, few, lineage="l", model="m")


# --- a round in Prefect -----------------------------------------------------------------------------------------------


def test_a_round_in_prefect_says_who_trained_how_it_scored_and_what_was_decided():
    said = round_words.markdown(study(title=EVIL), scored(excluded={"south": "age: 12 of 30"}, champion=3), 4, 10)
    assert said.splitlines() == [
        "# &lt;b&gt;&amp;\"'", "",
        "**Round 4 of 10**: 3 hospitals trained on 360 patients, training loss 0.5000.", "",
        "The model of round 3, on 120 validation patients: log-loss 0.5000, AUC 0.8000 (±0.0040 by its histograms).", "",
        "Decision on round 3: promoted: the loss fell by 0.1.", "",
        "Champion: **round 3**.", "",
        "- **south** sat out: age: 12 of 30",
    ]  # fmt: skip
    assert round_words.line(study(), scored(), 4, 10) == "Round 4 of 10 · log-loss after round 3: 0.5000"
    assert round_words.line(study(), scored(), 3, 3) == "Round 3 of 3 · log-loss 0.5000"


def test_a_rounds_table_has_a_row_a_hospital_and_no_empty_column():
    rows = round_words.table(study(), scored())
    assert [row["hospital"] for row in rows] == ["east", "north", "west"]
    assert rows[0]["patients trained on"] == "120"
    closing = scored()
    for site in closing["sites"].values():
        del site["training"]
    assert "training loss" not in round_words.table(study(), closing)[0]
    assert "closed. This visit scored its model." in round_words.markdown(study(), closing, 3, 3)
    assert round_words.table(study(), record(None, {})) == []


def test_sites_without_models_to_compare_with_are_drawn_without_words_about_them():
    said = Page(html(made_up())).said
    assert "Ring:" not in said
    assert "no alone" not in said
    compared = {"local": {"site-00": {"auc": 0.7}}, "pooled": {}, "patients": {}}
    said = Page(html(made_up(baselines=compared))).said
    assert said.count("no alone") == 2
    assert "Ring: the hospital's own model." in said


@pytest.mark.parametrize("unlike", [{"rounds": 4}, {"rounds": 3, "sites": ["site-00", "site-01"]}])
def test_a_model_is_not_held_against_those_of_other_rounds_or_hospitals(unlike):
    compared = {"local": {"site-00": {"auc": 0.6}}, "pooled": {}, "pooled_all": {"auc": 0.9}, "patients": {}}
    like = {"rounds": 3, "sites": ["site-00", "site-01", "site-02"]}
    said = Page(html(made_up(baselines=compared | like))).said
    assert "would give 0.900. Against a model of its own, it is better at 1" in said
    assert "part of what differs" not in said
    said = Page(html(made_up(baselines=compared | like | unlike))).said
    assert "would give" not in said
    assert ("0.900" in said) == ("sites" not in unlike), "of other patients, so it stands beside nothing"
    assert "Against a model of its own" not in said
    assert (
        "The model shown is of round 3, with its hospitals' rows of then: part of what differs between the columns is that."
        in said
    )


def test_where_every_hospital_does_better_than_all_together_the_worst_lies_above():
    def better(record):
        sites = {
            site: its | {"metrics": its["metrics"] | {"auc": 0.9}} if its.get("metrics") else its
            for site, its in record["sites"].items()
        }
        return record | {"sites": sites, "metrics": record["metrics"] | {"auc": 0.85}}

    found = made_up()
    page = html(replace(found, visits=[replace(it, record=better(it.record)) for it in found.visits]))
    assert "The worst hospital lies 0.050 above all hospitals together (0.850)" in Page(page).said
