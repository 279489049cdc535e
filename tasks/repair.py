"""Repairing MLflow's store from the ledger: what it lost is made again, what it still has is left as it is.

A part of the projector (`tasks.track`), which writes every visit once more; here is what that alone would not bring back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.core.dictionary import DICTIONARY
from fedrounds.core.errors import ServiceError

if TYPE_CHECKING:
    from fedrounds.tasks.folder import State

FILES = (  # of a version, beside the one that holds its model
    "model/MLmodel",
    f"model/{DICTIONARY}",
    "parameters.npz",
    "statistics.npz",
    "study.json",
    "verdicts.json",
)


class Mending:
    """What one repair finds missing, and does about it. `made` counts it by kind."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        self.made: Counter[str] = Counter()
        self._seen: set[str] = set()

    def experiment(self, found: Any) -> str:
        """An experiment that somebody deleted is taken back."""
        self.client.restore_experiment(found.experiment_id)
        self.made["undeleted"] += 1
        return found.experiment_id

    def known(self, pages: list[Any]) -> dict[str, str]:
        """What each run is about -> its id; a run that somebody deleted is taken back, unless it was made anew since."""
        about = {
            stage: {
                run.data.tags["fedrounds.about"]: run.info.run_id for run in pages if run.info.lifecycle_stage == stage
            }
            for stage in ("active", "deleted")
        }
        for name, run in about["deleted"].items():
            if name not in about["active"]:
                self.client.restore_run(run)
                self.made["undeleted"] += 1
        return {**about["deleted"], **about["active"]}

    def run(self, run: str, tags: Mapping[str, str]) -> None:
        """The tags that a run lacks; those that it has may have been edited by people."""
        if run in self._seen:
            return
        self._seen.add(run)
        held = self.client.get_run(run).data.tags
        for key, value in tags.items():
            if key not in held:
                self.client.set_tag(run, key, value)
                self.made["tags"] += 1

    def version(
        self, number: str, run: str, tags: Mapping[str, str], folder: Path, model: str, write: Callable[[], None]
    ) -> bool:
        """The files and tags that a version lacks.

        Args:
            model: the file in the model's folder that holds its parameters.

        Returns:
            Whether the version is to be registered anew, since the run that it names is gone. Its number is then a new one.
        """
        held = self.client.get_model_version(self.name, number)
        if held.run_id != run:
            self.client.delete_model_version(self.name, number)
            return True
        if not all((folder / file).is_file() for file in (*FILES, f"model/{model}")):
            write()
            self.made["files"] += 1
        for key, value in tags.items():
            if key not in held.tags:
                self.client.set_model_version_tag(self.name, number, key, value)
                self.made["tags"] += 1
        return False


def repair(place: State) -> dict[str, Any]:
    """Bring MLflow's store to what the ledger says, by the same helper as a run, while nobody else works on the study.

    Returns:
        How many runs, versions and files were made, how many tags and aliases were set, how much that was deleted was taken back.

    Raises:
        StateError: there is no ledger, or another runner is at work.
        ServiceError: MLflow's store could not be written.
    """
    from fedrounds.reports.summary import plots
    from fedrounds.tasks.acts import held, projector

    with projector(place) as project, held(place) as ledger:
        if ledger.progress() is None:
            return {"visits": 0}
        folder, visits = place.own / "plots", ledger.visits()
        if not folder.exists():
            drawn = plots(ledger.study(), visits, ledger.noted("baselines") or {}, ledger.standing().champion)
            folder.mkdir(parents=True)
            for name, png in drawn.items():
                (folder / f"{name}.png").write_bytes(png)
        answer = project(tell=True, end=True, repair=True)
        if ledger.unprojected():
            raise ServiceError(
                f"expected every visit in MLflow, found {len(ledger.unprojected())} that are not: repair again"
            )
    return {"visits": len(visits), **answer["made"]}
