"""The registered version that a study starts from: looked up once, when its lineage begins, and kept in the ledger from then on.

MLflow is asked in a process of its own, as its import takes seconds. What it gives is held to the digests that the version was registered with.
"""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.core.errors import FedroundsError, StateError, StudyError
from fedrounds.core.origin import Origin, begun
from fedrounds.core.params import Vector, digest
from fedrounds.core.plan import Plan
from fedrounds.core.state import RunState, dump, load
from fedrounds.core.study import Study
from fedrounds.tasks.child import Child, serve

if TYPE_CHECKING:
    from fedrounds.ledger import Ledger
    from fedrounds.tasks.folder import State

NOTE = "start"
FILES = ("study.json", "parameters.npz", "statistics.npz")


def beginning(plan: Plan, place: State, ledger: Ledger) -> RunState:
    """The state that the lineage begins with. An alias that moves later changes nothing.

    Raises:
        StudyError: there is no such version, or the study cannot go on from it.
        StateError: what lies beside the version is not what was registered.
        ServiceError: MLflow does not answer.
    """
    start = plan.study.start
    if start is None:
        return plan.start()
    kept = ledger.noted(NOTE)
    if not kept or kept["study"] != plan.digest:
        origin = fetched(start.version, place)
        state = begun(plan, origin)
        name, model = origin.study.name, digest({"theta": state.theta, **origin.statistics}, origin.study.digest)
        about = {"name": name, "version": origin.version, "round": origin.round, "model": model}
        kept = {"study": plan.digest, **about, "state": base64.b64encode(dump(state)).decode()}
        ledger.note(NOTE, kept)
    return load(base64.b64decode(kept["state"]))


def recorded(study: Study, ledger: Ledger) -> Vector | None:
    """The version's model that the lineage began with, None where it began with its seed's."""
    kept = ledger.noted(NOTE) if study.start else None
    return load(base64.b64decode(kept["state"])).theta if kept and kept["study"] == study.digest else None


def fetched(version: str, place: State) -> Origin:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means in the MLflow that a study's state goes to."""
    with tempfile.TemporaryDirectory() as scratch:
        child = Child("fedrounds.tasks.origin", place.log, os.environ)
        try:
            told = child.call({**place.told, "version": version, "into": scratch}).result()
        finally:
            child.close()
        if "missing" in told:
            raise StudyError(
                f"expected a version to start from at {version} in MLflow, found none ({told['missing']}):"
                " register one by a run of that study, or correct `start` in study.toml"
            )
        lost = [name for name in FILES if name not in told["files"]]
        if lost:
            raise StateError(
                f"expected {' and '.join(lost)} beside version {told['number']} at {version}, found none:"
                " an earlier release registered it, and `fedrounds repair` of its study writes them"
            )
        return _read(version, told, Path(scratch))


def _read(version: str, told: dict[str, Any], folder: Path) -> Origin:
    """The files, if they are those that the version's tags were written for."""
    import numpy as np

    try:
        study = Study.model_validate_json((folder / "study.json").read_bytes())
        with np.load(folder / "parameters.npz") as parts:
            theta = np.concatenate([parts[name].reshape(-1) for name in parts.files])
        with np.load(folder / "statistics.npz") as parts:
            statistics = {name: parts[name] for name in parts.files}
        whole = digest({"theta": theta, **statistics}, study.digest) == told["model"]
    except (ValueError, KeyError, OSError, FedroundsError):
        whole = False
    if not whole:
        raise StateError(
            f"expected the files of version {told['number']} at {version} as they were registered (model {told['model'][:12]}), found others:"
            " they were changed in MLflow's artifacts; restore them there"
        )
    return Origin(int(told["number"]), int(told["round"]), study, theta, statistics)


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    """Bring a version's files: the number, its round and digest by its tags, and which of the files there are."""
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    store = Path(request["mlruns"]) / "mlflow.db"
    if "tracking" not in request and not store.exists():
        return {"missing": "no study has registered a model here"}
    client = MlflowClient(request.get("tracking") or f"sqlite:///{store}")
    path = request["version"].removeprefix("models:/")
    try:
        name, _, alias = path.partition("@")
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(*path.split("/"))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return {"missing": error.message.splitlines()[0]}
        raise
    if not {"fedrounds.model_digest", "fedrounds.round"} <= found.tags.keys():
        return {"missing": "the version there is not one of Fedrounds"}
    there = {item.path for item in client.list_artifacts(found.run_id)}
    files = [name for name in FILES if name in there]
    for file in files:
        download_artifacts(
            run_id=found.run_id, artifact_path=file, dst_path=request["into"], tracking_uri=client.tracking_uri
        )
    about = {"round": found.tags["fedrounds.round"], "model": found.tags["fedrounds.model_digest"]}
    return {"number": found.version, "files": files, **about}


if __name__ == "__main__":
    serve(_handle)
