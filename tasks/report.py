"""The report of a ledger: what it holds is read once, and becomes a page and a card. No MLflow and no Prefect in here."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from fedrounds.core.coefficients import on_original_scale
from fedrounds.core.errors import StateError
from fedrounds.core.plan import build
from fedrounds.core.portrait import portrait
from fedrounds.core.regression import regression
from fedrounds.ledger import Ledger
from fedrounds.reports import explained, explained_csv, matrix
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.model_card import card
from fedrounds.reports.page import html
from fedrounds.reports.traffic import as_csv
from fedrounds.tasks.origin import NOTE

SOFTWARE = ("fedrounds", "numpy", "scipy", "scikit-learn", "prefect", "mlflow", "great-expectations")


def evidence(ledger: Ledger) -> Evidence:
    """Everything that a report is made from.

    Raises:
        StateError: the ledger holds no study yet.
    """
    study, lineage = ledger.study(), ledger.lineage()
    assert lineage is not None
    found = Evidence(
        study=study,
        lineage=lineage.lineage,
        created=lineage.created,
        visits=ledger.visits(),
        decisions=ledger.promotions(),
        acts=ledger.acts(),
        champion=ledger.standing().champion,
        failures=ledger.failures(),
        verdicts=ledger.verdicts(),
        baselines=ledger.noted("baselines") or {},
        matrix=ledger.noted("matrix") or {},
        origin=(ledger.noted(NOTE) or {}) if study.start else {},
        explained=ledger.noted("explained") or {},
        operations=ledger.operations(),
        checkpoint=ledger.checkpoint(),
        software={"Python": sys.version.split()[0], **{name: version(name) for name in SOFTWARE}},
    )
    visit = found.trained.get(found.shown) if found.shown else None
    if visit is None:
        return found
    state = ledger.state(visit.visit)
    plan = build(study)
    told = plan, state.theta, state.statistics
    return found.with_coefficients(on_original_scale(*told), regression(plan, state), portrait(*told))


def write(ledger: Ledger, file: Path) -> Evidence:
    """Write report.html, whole or not at all, and beside it bytes.csv (under another name: NAME.bytes.csv); returns what they were made from.

    Raises:
        StateError: the file cannot be written.
    """
    found = evidence(ledger)
    put(file, html(found))
    put(file.with_name("bytes.csv" if file.name == "report.html" else f"{file.stem}.bytes.csv"), as_csv(found))
    return found


def publish(ledger: Ledger, folder: Path) -> None:
    """Write report.html, bytes.csv, the card of the model that it shows, and every model at every site, among a run's artifacts."""
    found = write(ledger, folder / "report.html")
    if found.matrix:
        title = f"{found.study.title or found.study.name} · every model at every hospital"
        put(folder / "baselines" / "matrix.csv", matrix.as_csv(found.matrix))
        put(folder / "baselines" / "matrix.html", matrix.page(found.matrix, title))
        put(folder / "baselines" / "matrix.svg", matrix.picture(found.matrix))
    if found.explained:
        title = f"{found.study.title or found.study.name} · the model explained"
        put(folder / "explain" / "explained.html", explained.page(found.explained, title))
        put(folder / "explain" / "importance.svg", explained.picture(found.explained))
        for name, text in explained_csv.files(found.explained).items():
            put(folder / "explain" / name, text)
    if found.shown is not None and found.shown in found.scored:
        trained = found.trained.get(found.shown)
        made, model = (trained.record, trained.model) if trained else (None, found.scored[found.shown].base)
        logged = ledger.logged("visit", trained.visit) if trained else None
        told = card(found.study, found.record, made, lineage=found.lineage, model=model, logged=logged)
        put(folder / "model_card.md", told)


def put(file: Path, text: str) -> None:
    """Write a text in place of the file's last one; nothing half-written is ever seen under its name."""
    scratch = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(file)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise StateError(
            f"expected to write the report to {file}, found: {error.strerror}: choose another place with --out"
        ) from None
