"""A round's model on disk, as MLflow reads it: a folder that is there as a whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from fedrounds.core.plan import Plan
from fedrounds.core.state import RunState


class ModelFolder:
    """An MLflow model of a state: skops, a signature, an example of made-up rows, fixed requirements.

    `save`, MLflow's own, writes the first; of a later one only what differs is written anew: the model, its size, its run, its time, its id.
    """

    def __init__(self, plan: Plan, save: Callable[[Plan, Any, Path], None]) -> None:
        self.plan, self.save = plan, save
        self.steps: Any = None
        self.first: dict[str, bytes] = {}

    def write(self, state: RunState, run: str, folder: Path) -> None:
        """Write the state's model for a run; a half-written one of an earlier try is replaced."""
        import skops.io

        from fedrounds.core.export import pipeline, preprocessing

        self.steps = self.steps or preprocessing(self.plan, state.statistics)
        model = pipeline(self.plan, state, self.steps)
        scratch = folder.with_name("model.new")
        for old in (scratch, folder):
            shutil.rmtree(old, ignore_errors=True)
        if not self.first:
            self.save(self.plan, model, scratch)
            self.first = {file.name: file.read_bytes() for file in scratch.iterdir()}
        else:
            scratch.mkdir()
            for name, content in self.first.items():
                (scratch / name).write_bytes(content)
            skops.io.dump(model, scratch / "model.skops")
        document = yaml.safe_load(self.first["MLmodel"])
        document |= {
            "run_id": run,
            "artifact_path": "model",
            "model_uuid": uuid.uuid4().hex,
            "model_size_bytes": sum(file.stat().st_size for file in scratch.iterdir()),
            "utc_time_created": str(datetime.now(UTC).replace(tzinfo=None)),
        }
        (scratch / "MLmodel").write_text(yaml.safe_dump(document))
        scratch.rename(folder)
