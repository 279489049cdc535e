"""A round's PyTorch module on disk, as MLflow reads it: preprocessing by skops, the module as a program (`torch.export`), and a file that joins them.

Whoever loads it needs MLflow, PyTorch, scikit-learn and skops; neither Fedrounds nor the package that the module came from.
"""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedrounds.core.errors import ServiceError
from fedrounds.core.plan import Plan
from fedrounds.core.state import RunState
from fedrounds.tasks.model_folder import PROGRAM, ModelFolder

NEEDED = ("mlflow", "torch", "scikit-learn", "skops", "numpy", "pandas")


class ModuleFolder(ModelFolder):
    """The first folder of a run is MLflow's; of a later one the program holds other parameters, and nothing else differs but the run."""

    model = PROGRAM

    def __init__(self, plan: Plan, kept: Path) -> None:
        super().__init__(plan, _save, kept)
        self.program: Any = None

    def _look(self, state: RunState) -> None:
        """Nothing is kept between runs: what the module's package says is not known by any hash of ours."""

    def _begin(self, state: RunState, scratch: Path) -> None:
        import torch

        module = self.plan.family.estimator(state.theta)
        rows = torch.zeros((2, len(self.plan.columns)), dtype=torch.float64)
        failure = ""
        try:
            self.program = torch.export.export(module.eval(), (rows,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        except Exception as error:  # it raises whatever the module's own code makes it stumble over
            failure = type(error).__name__
        if failure:
            raise ServiceError(
                f"expected a module that torch.export can follow, so that a version can be registered, found {failure} with"
                f" {self.plan.study.model.runs[0]}: its code must not hang on the numbers in its rows"
            )
        for node in self.program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it tells where files lie on this machine
        self.save(self.plan, (self._steps(state), self._model(state)), scratch)
        files = {file.relative_to(scratch).as_posix(): file for file in scratch.rglob("*") if file.is_file()}
        self.first = {name: file.read_bytes() for name, file in files.items() if name != PROGRAM}
        self.first["MLmodel"] = _here(self.first["MLmodel"])

    def _model(self, state: RunState) -> bytes:
        import torch

        self.program.state_dict["theta"].copy_(torch.from_numpy(state.theta.copy()))
        out = io.BytesIO()
        torch.export.save(self.program, out)
        return out.getvalue()

    def _steps(self, state: RunState) -> Any:
        from sklearn.pipeline import Pipeline

        from fedrounds.core.export import preprocessing

        return Pipeline(preprocessing(self.plan, state.statistics))


def _here(document: bytes) -> bytes:
    """An MLmodel that names files by where they lie in its folder alone: MLflow notes where they came from too, on this machine."""
    import yaml

    said = yaml.safe_load(document)
    flavour = said["flavors"]["python_function"]
    flavour["model_code_path"] = Path(flavour["model_code_path"]).name
    for artifact in flavour["artifacts"].values():
        artifact["uri"] = artifact["path"]
    return yaml.safe_dump(said).encode()


def _save(plan: Plan, model: Any, folder: Path) -> None:
    """Write a model as MLflow does."""
    import mlflow.pyfunc
    import numpy as np
    import skops.io
    import torch
    from mlflow.models import infer_signature

    from fedrounds.core.export import example

    steps, program = model
    made_up = example(plan.study)
    with TemporaryDirectory() as scratch, torch.no_grad():
        written = {"preprocessing": Path(scratch) / "preprocessing.skops", "program": Path(scratch) / "program.pt2"}
        skops.io.dump(steps, written["preprocessing"])
        written["program"].write_bytes(program)
        X = torch.from_numpy(np.ascontiguousarray(steps.transform(made_up)))
        found = torch.export.load(io.BytesIO(program)).module()(X).numpy()
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("predictor.py")),
            artifacts={name: str(file) for name, file in written.items()},
            signature=infer_signature(made_up, found),
            input_example=made_up,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in NEEDED],
        )
