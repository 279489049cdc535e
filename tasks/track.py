"""MLflow as a projection of the ledger: written from it, never read to decide. Runs as a helper process: `python -m fedrounds.tasks.track`.

Parent run: the lineage. One child run a round, with its registered version. One child run a site (up to 50), a step a round.
Everything is looked up by its tags before it is made, and every point carries the ledger's time: writing a visit twice changes nothing.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedrounds.core.errors import ServiceError
from fedrounds.core.plan import Plan, build
from fedrounds.ledger import Entry, Ledger
from fedrounds.reports.drift import drift_points
from fedrounds.reports.summary import SHOWN, gate_words, model_note, note, round_note, study_note
from fedrounds.reports.words import trained_on
from fedrounds.tasks import model_artifacts
from fedrounds.tasks.audit import log_tags
from fedrounds.tasks.child import serve
from fedrounds.tasks.decisions import Decisions
from fedrounds.tasks.mlflow_server import make_store
from fedrounds.tasks.model_folder import model_folder
from fedrounds.tasks.plain import flat, numbers
from fedrounds.tasks.repair import Mending
from fedrounds.tasks.report import publish

NOT_IN = ("excluded", "warned", "refused")  # sites that are not in a round as all others are
JUDGED = (
    "metrics",
    "personal",
    "training",
    "masked",
)  # what a visit tells of a model, at a site; masked: that it took part
MOST_SITE_RUNS = 50
MOST_VERSIONS = 200_000  # that MLflow lists at once
# What skops may load of our pipelines beside scikit-learn's own types; fixed here, never taken from a site.
TRUSTED = ["numpy.dtype", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]


class Projection:
    """One ledger's projection into one MLflow store.

    A store that lacks the lineage although the ledger was written to it is written anew; with `repair` one that lacks any part of it is too.
    """

    def __init__(self, ledger: Ledger, mlruns: Path, tracking: str | None = None, repair: bool = False) -> None:
        from mlflow import MlflowClient

        self.ledger, self.artifacts = ledger, mlruns / "artifacts"
        self.client = MlflowClient(tracking or f"sqlite:///{mlruns / 'mlflow.db'}")
        lineage = ledger.lineage()
        assert lineage is not None
        self.lineage, self.study = lineage, ledger.study()
        self.plan = build(self.study)
        self.mending = Mending(self.client, self.study.name) if repair else None
        self.made = self.mending.made if self.mending else Counter[str]()
        self.experiment = self._experiment()
        self.runs = self._known_runs()
        self.versions = self._known_versions()
        lost = "lineage" not in self.runs and ledger.projected() > 0
        if repair or lost:
            ledger.forget_projected()
        self.points: defaultdict[str, list[Any]] = defaultdict(list)  # what a run is about -> metrics not yet written
        # (metrics or training, round) -> the visit that first had them of its model
        self.first: dict[tuple[str, int], int] = {}
        self.seen = 0
        self.decisions = Decisions(
            self.client, ledger, self.study, lineage.lineage, self.versions, self.runs, self.artifacts
        )
        self.reports = self.decisions.reports  # what was put right that somebody else had changed
        if lost and not repair:
            self.reports.append(
                f"MLflow's store had lost the runs of '{self.study.name}': they were written anew from the ledger"
            )
        self.decided: dict[int, Mapping[str, Any]] = {}  # round -> the record that decided on it, not yet written
        self.template = model_folder(self.plan, _save, mlruns / ".cache" / f"model-{self.study.name}.zip")

    # --- what is there already ----------------------------------------------------------------------------------------

    def _experiment(self) -> str:
        name = self.study.name
        found = self.client.get_experiment_by_name(name)
        if found is None:
            self.artifacts.mkdir(parents=True, exist_ok=True)
            tags = {"mlflow.note.content": study_note(self.study), "mlflow.experimentKind": "custom_model_development"}
            return self.client.create_experiment(name, self.artifacts.as_uri(), tags)
        if found.lifecycle_stage != "active" and self.mending:
            return self.mending.experiment(found)
        if found.lifecycle_stage != "active":
            raise ServiceError(
                f"expected MLflow's experiment '{name}' to be active, found it deleted: restore it in the MLflow UI"
            )
        return found.experiment_id

    def _known_runs(self) -> dict[str, str]:
        """What a run is about ("lineage", "round 3", "site north") -> its id."""
        from mlflow.entities import ViewType

        found: list[Any] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                f"tags.`fedrounds.lineage` = '{self.lineage.lineage}'",
                ViewType.ALL if self.mending else ViewType.ACTIVE_ONLY,
                max_results=1000,
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                break
        if self.mending:
            return self.mending.known(found)
        return {run.data.tags["fedrounds.about"]: run.info.run_id for run in found}

    def _known_versions(self) -> dict[int, str]:
        """Round -> registered version."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(
                self.study.name, {"fedrounds.study": self.study.name}, model_note(self.study)
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self.client.search_model_versions(
            f"name = '{self.study.name}' and tags.`fedrounds.lineage` = '{self.lineage.lineage}'", MOST_VERSIONS
        )
        return {int(version.tags["fedrounds.round"]): version.version for version in found}

    def run(self, about: str, started: float, **tags: str) -> str:
        """The id of the run about something, made if it is not there."""
        own = {
            "fedrounds.lineage": self.lineage.lineage,
            "fedrounds.about": about,
            "fedrounds.study_digest": self.lineage.digest,
            **tags,
        }
        if about != "lineage":
            own["mlflow.parentRunId"] = self.runs["lineage"]
        if about in self.runs and self.mending:
            self.mending.run(self.runs[about], own)
        if about not in self.runs:
            name = f"{self.study.name} · {self.lineage.lineage[:6]}" if about == "lineage" else about
            made = self.client.create_run(self.experiment, int(started * 1000), own, name)
            self.runs[about] = made.info.run_id
            self.made["runs"] += 1
        return self.runs[about]

    # --- projecting ---------------------------------------------------------------------------------------------------

    def project(self) -> int:
        """Write every visit, and every act of a person, that is not yet written; returns how many visits."""
        last = self.ledger.progress()
        pending = self.ledger.unprojected()
        visit = pending[-1] if pending else last.visit if last else 0
        acts = [act for act in self.ledger.unprojected_acts() if act.visit <= visit]
        self.decisions.restore()
        if pending:
            self._visits(pending)
        if pending or acts:
            self.decisions.write(visit, self.decided, acts)
            self._flush()
            self.decisions.point(visit)
            self.decided.clear()
        for number in pending:
            self.ledger.mark_projected(number)
        if acts:
            self.ledger.mark_acts_projected(acts[-1].number)
            self.tell()
        return len(pending)

    def _visits(self, pending: Sequence[int]) -> None:
        if not self.seen:
            self._open_lineage()
        for entry in self.ledger.visits(after=self.seen, limit=pending[-1] - self.seen):
            for what in (kind for kind in JUDGED if entry.record.get(kind)):
                self.first.setdefault((what, entry.record["scored"]), entry.visit)
            if entry.visit in pending:
                self._visit(entry)
            self.seen = entry.visit

    def _open_lineage(self) -> None:
        from mlflow.entities import Param

        run = self.run("lineage", self.lineage.created)
        params = [
            Param(key, str(value)[:500])
            for key, value in flat(self.study.model_dump(mode="json", exclude={"features"}))
        ]
        self.client.log_batch(run, params=params[:100])
        self.client.log_dict(run, self.study.model_dump(mode="json"), "study.json")

    def _visit(self, entry: Entry) -> None:
        record, when = entry.record, int(entry.committed * 1000)
        for what in ("metrics", "personal", "training"):
            if self._first(what, entry):
                self._points("lineage", record[what], when, record["scored"])
        if self._first("metrics", entry) and record["scored"] > 0:
            values = {**record["metrics"], **record.get("personal", {})}
            self._points(f"round {record['scored']}", values, when, record["scored"])
        if entry.ask == "train":
            self._round(entry)
        self._sites(entry, when)
        for about, values in drift_points(self.study, entry, self._first("metrics", entry)).items():
            if about in self.runs:  # a site has one once it was scored
                self._points(about, values, when, entry.round if record["scored"] is None else record["scored"])
        self._points("lineage", record.get("privacy", {}), when, entry.round)
        self.decided |= {record["scored"]: record} if record["decision"] else {}

    def _first(self, what: str, entry: Entry) -> bool:
        """Whether no earlier visit scored, or trained, the same model: a chart has a point a round."""
        return self.first.get((what, entry.record["scored"])) == entry.visit

    def _round(self, entry: Entry) -> None:
        """The round's run, its parameters as an artifact and its registered version."""
        record, about = entry.record, f"round {entry.round}"
        tags = {
            "fedrounds.suite_hash": entry.suite_hash,
            "fedrounds.model_digest": entry.model,
            "fedrounds.visit": str(entry.visit),
            "mlflow.note.content": round_note(record),
        }
        told = {kind: record[kind] for kind in NOT_IN} | {"gate": gate_words(record)}
        told |= {"participation": record.get("participation")}
        tags |= {f"fedrounds.{kind}": json.dumps(it, ensure_ascii=False)[:5000] for kind, it in told.items() if it}
        run = self.run(about, entry.started, **tags)
        sites = record["sites"].values()
        self._points(
            about,
            {
                "sites": len(sites),
                "patients": trained_on(record),
                "bytes_from_sites": sum(site["bytes_out"] for site in sites),
                "bytes_to_sites": sum(site["bytes_in"] for site in sites),
                "seconds": entry.committed - entry.started,
            },
            int(entry.committed * 1000),
            entry.round,
        )
        self._register(entry, run)
        self.client.set_terminated(run, end_time=int(entry.committed * 1000))

    def _register(self, entry: Entry, run: str) -> None:
        """The round's version; one that is there is left as it is, but for what a repair finds missing."""
        folder, number = self.artifacts / run / "artifacts", self.versions.get(entry.round)
        if number and not self.mending:
            return
        tags = log_tags(self.ledger, entry.visit) | {
            "fedrounds.lineage": self.lineage.lineage,
            "fedrounds.round": str(entry.round),
            "fedrounds.study_digest": self.lineage.digest,
            "fedrounds.suite_hash": entry.suite_hash,
            "fedrounds.model_digest": entry.model,
        }
        if number and self.mending:
            write = partial(self._write_model, entry, run, folder)
            if not self.mending.version(number, run, tags, folder, self.template.model, write):
                return
            self.decisions.forget(number)
        self._write_model(entry, run, folder)
        version = self.client.create_model_version(
            self.study.name,
            source=(folder / "model").as_uri(),
            run_id=run,
            tags=tags,
            description=f"Round {entry.round}: not scored yet.",
        )
        self.versions[entry.round] = version.version
        self.made["versions"] += 1

    def _write_model(self, entry: Entry, run: str, folder: Path) -> None:
        state = self.ledger.state(entry.visit)
        folder.mkdir(parents=True, exist_ok=True)
        self.template.write(state, run, folder / "model")
        model_artifacts.write(self.plan, state, folder)
        (folder / "verdicts.json").write_text(json.dumps({kind: entry.record[kind] for kind in NOT_IN}, indent=2))

    def _sites(self, entry: Entry, when: int) -> None:
        sites: Mapping[str, Any] = entry.record["sites"]
        if len(sites) > MOST_SITE_RUNS:
            rows = [{"site": name, **numbers(site)} for name, site in sites.items()]
            table = {key: [row.get(key) for row in rows] for key in sorted({key for row in rows for key in row})}
            self.client.log_dict(self.runs["lineage"], table, f"sites/visit_{entry.visit:05d}.json")
            return
        for name, site in sites.items():
            for what in (kind for kind in JUDGED if kind in site and self._first(kind, entry)):
                self.run(f"site {name}", self.lineage.created, **{"fedrounds.site": name})
                traffic = ("bytes_out", "bytes_in") if what in ("metrics", "masked") else ()
                more = {key: site[key] for key in traffic}
                self._points(f"site {name}", {**site[what], **more}, when, entry.record["scored"])

    def _points(self, about: str, values: Mapping[str, Any], when: int, step: int) -> None:
        from mlflow.entities import Metric

        self.points[about] += [
            Metric(SHOWN.get(key, key), float(value), when, step) for key, value in values.items() if value is not None
        ]

    def _flush(self) -> None:
        from mlflow.entities import RunTag

        for about in dict.fromkeys([*self.points, *self.decisions.tags]):
            points, tags = self.points[about], self.decisions.tags.get(about, {})
            for start in range(0, max(len(points), 1), 1000):
                batch = [RunTag(key, value) for key, value in tags.items()] if start == 0 else []
                self.client.log_batch(self.runs[about], metrics=points[start : start + 1000], tags=batch)
        self.points.clear()
        self.decisions.tags.clear()

    # --- the end of a run ---------------------------------------------------------------------------------------------

    def end(self, plots: Path) -> None:
        """The plots that lie beside the ledger, and the run's end."""
        entries = self.ledger.visits()
        shutil.copytree(plots, self.artifacts / self.runs["lineage"] / "artifacts" / "plots", dirs_exist_ok=True)
        for about, made in self.runs.items():
            if about == "lineage" or about.startswith("site "):
                self.client.set_terminated(made, end_time=int(entries[-1].committed * 1000))

    def tell(self) -> None:
        """The report, its model's card and the note beside the lineage's run."""
        run = self.runs["lineage"]
        publish(self.ledger, self.artifacts / run / "artifacts")
        place = f"#/experiments/{self.experiment}/runs/{run}/artifacts"
        table, standing = self.ledger.noted("baselines") or {}, self.ledger.standing()
        self.client.set_tag(run, "mlflow.note.content", note(self.study, self.ledger.visits(), table, standing, place))


def _save(plan: Plan, model: Any, folder: Path) -> None:
    """Write a model as MLflow does."""
    from importlib.metadata import version

    import mlflow.sklearn
    from mlflow.models import infer_signature

    from fedrounds.core.export import example

    predict = "predict_proba" if hasattr(model, "predict_proba") else "predict"
    made_up = example(plan.study)
    mlflow.sklearn.save_model(
        model,
        str(folder),
        serialization_format="skops",
        skops_trusted_types=TRUSTED,
        signature=infer_signature(made_up, getattr(model, predict)(made_up)),
        input_example=made_up,
        pyfunc_predict_fn=predict,
        pip_requirements=[f"{name}=={version(name)}" for name in ("scikit-learn", "skops", "numpy", "pandas")],
    )


def _warm() -> None:
    import warnings

    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.INFO)
    from mlflow.store.model_registry import sqlalchemy_store as versions  # noqa: F401
    from mlflow.store.tracking import sqlalchemy_store as runs  # noqa: F401


_projections: dict[str, Projection] = {}


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    key, repair = request["ledger"], bool(request.get("repair"))
    if key not in _projections:
        mlruns, tracking = Path(request["mlruns"]), request.get("tracking")
        if tracking is None:
            make_store(mlruns / "mlflow.db", Path(request["own"]) / "mlflow.new")
        _projections[key] = Projection(Ledger.open(key if "://" in key else Path(key)), mlruns, tracking, repair)
    projection = _projections[key]
    written = projection.project()
    if request.get("tell"):
        projection.tell()
    if request.get("end"):
        projection.end(Path(request["own"]) / "plots")
    made = {**projection.made, "aliases": projection.decisions.moved}
    return {"written": written, "reports": projection.reports, "made": made}


if __name__ == "__main__":
    serve(_handle, _warm)
