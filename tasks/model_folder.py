"""A round's model on disk, as MLflow reads it: a folder that is there as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from fedrounds import core
from fedrounds.core.dictionary import DICTIONARY, described
from fedrounds.core.plan import Plan
from fedrounds.core.state import RunState
from fedrounds.tasks.mould import Mould, cast

MODEL = "model.skops"
PROGRAM = "artifacts/program.pt2"  # of a PyTorch module, in its place
WRITERS = ("mlflow", "scikit-learn", "skops", "numpy", "pandas")  # what another release of writes another folder
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def model_folder(plan: Plan, save: Callable[[Plan, Any, Path], None], kept: Path) -> ModelFolder:
    """The folder of a study's models, as MLflow's flavour for their kind reads it; `save` and `kept` are of scikit-learn's."""
    if plan.study.model.flavour == "sklearn":
        return ModelFolder(plan, save, kept)
    from fedrounds.tasks.module_folder import ModuleFolder

    return ModuleFolder(plan, kept)


class ModelFolder:
    """An MLflow model of a state: skops, a signature, an example of made-up rows, fixed requirements.

    Beside MLflow's files lies the dictionary by which rows are checked before they are served.

    `save`, MLflow's own, writes the first; of a later one only what differs is written anew: the model's parameters, its size, its run, its
    time, its id. The first stays in `kept` for later runs with the same statistics, which then need neither scikit-learn nor skops.
    """

    model = MODEL  # the one file of the folder that holds parameters

    def __init__(self, plan: Plan, save: Callable[[Plan, Any, Path], None], kept: Path) -> None:
        self.plan, self.save, self.kept = plan, save, kept
        self.dictionary = described(plan.study)
        self.steps: Any = None
        self.first: dict[str, bytes] = {}  # all but the model
        self.mould: Mould | None = None

    def write(self, state: RunState, run: str, folder: Path) -> None:
        """Write the state's model for a run; a half-written one of an earlier try is replaced."""
        scratch = folder.with_name("model.new")
        for old in (scratch, folder):
            shutil.rmtree(old, ignore_errors=True)
        if not self.first:
            self._look(state)
        if not self.first:
            self._begin(state, scratch)
        else:
            scratch.mkdir()
            for name, content in {**self.first, self.model: self._model(state)}.items():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).write_bytes(content)
        (scratch / DICTIONARY).write_text(self.dictionary, encoding="utf-8")
        document = yaml.load(self.first["MLmodel"], _Loader)  # noqa: S506 (a safe loader)
        document |= {
            "run_id": run,
            "artifact_path": "model",
            "model_uuid": uuid.uuid4().hex,
            "model_size_bytes": sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file()),
            "utc_time_created": str(datetime.now(UTC).replace(tzinfo=None)),
        }
        (scratch / "MLmodel").write_text(yaml.dump(document, Dumper=_Dumper))
        scratch.rename(folder)

    def _pipeline(self, state: RunState) -> Any:
        from fedrounds.core.export import pipeline, preprocessing

        self.steps = self.steps or preprocessing(self.plan, state.statistics)
        return pipeline(self.plan, state, self.steps)

    def _model(self, state: RunState) -> bytes:
        if self.mould is not None:
            return self.mould.filled(state.theta)
        from fedrounds.tasks.lean import skops_io

        return skops_io().dumps(self._pipeline(state))

    def _begin(self, state: RunState, scratch: Path) -> None:
        """Let MLflow write the folder, and keep what later ones are made from."""
        from fedrounds.tasks.lean import skops_io

        skops_io()  # before MLflow imports it otherwise
        self.save(self.plan, self._pipeline(state), scratch)
        files = {file.name: file.read_bytes() for file in scratch.iterdir()}
        made = cast(state, self._pipeline, files.pop(MODEL))
        self.first = files
        if made is None:
            return
        model, self.mould = made
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        part = self.kept.with_suffix(".new")
        with zipfile.ZipFile(part, "w") as archive:
            archive.writestr("key", self._key(state))
            archive.writestr(MODEL, model)
            for name, content in self.first.items():
                archive.writestr(f"first/{name}", content)
        part.replace(self.kept)

    def _look(self, state: RunState) -> None:
        """Take up what an earlier run kept, if it is of this study, these statistics, this code and these libraries."""
        try:
            with zipfile.ZipFile(self.kept) as archive:  # every member is read against its checksum
                files = {name: archive.read(name) for name in archive.namelist()}
        except (OSError, zipfile.BadZipFile, zlib.error):
            return
        if files.get("key") != self._key(state).encode():
            return
        self.mould = Mould.of(files[MODEL], self.plan.family.layout.size)
        if self.mould is not None:
            self.first = {name.removeprefix("first/"): files[name] for name in files if name.startswith("first/")}

    def _key(self, state: RunState) -> str:
        """What the folder depends on besides the parameters."""
        code = [*sorted(Path(core.__path__[0]).rglob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]
        arrays: Mapping[str, Any] = state.statistics
        said = {
            "study": self.plan.study.model_dump(mode="json"),
            "statistics": {name: [str(arrays[name].dtype), arrays[name].tobytes().hex()] for name in sorted(arrays)},
            "code": [hashlib.sha256(file.read_bytes()).hexdigest() for file in code],
            "writers": [platform.python_version(), *map(version, WRITERS)],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
