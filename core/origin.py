"""A start from a model that is registered already (transfer from one study to another)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedrounds.core.errors import StudyError
from fedrounds.core.params import Vector
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Statistics
from fedrounds.core.state import RunState
from fedrounds.core.study import Study

ALIKE: Mapping[str, Callable[[Plan], object]] = {  # in this order: the shape of a PyTorch module is had by running it
    "features": lambda plan: plan.study.features,
    "target": lambda plan: plan.study.target,
    "preprocess": lambda plan: plan.study.preprocess,
    "offset": lambda plan: plan.study.offset,
    "model": lambda plan: (plan.study.model.kind, plan.study.model.runs),
    "shape of the model": lambda plan: plan.family.layout,
}


@dataclass(frozen=True)
class Origin:
    """A registered version.

    Attributes:
        version: its number.
        round: the one that left it.
        study: the protocol that it was trained by.
        theta: its parameters (size,).
        statistics: what its preprocessing goes by.
    """

    version: int
    round: int
    study: Study
    theta: Vector
    statistics: Statistics


def begun(plan: Plan, origin: Origin) -> RunState:
    """The state to begin with: the version's model on the version's preprocessing, so a patient is told what the version tells.

    Another penalty, seed, local rule or way to combine is what a study starts again for, so these may differ.

    Raises:
        StudyError: the version reads other inputs, reads them otherwise, tells something else, or has another shape.
    """
    old = build(origin.study)
    for what, of in ALIKE.items():
        if of(plan) != of(old):
            raise StudyError(
                f"expected a version to start from with the study's {what}, found another {what} in version {origin.version} of"
                f" '{old.study.name}': give study.toml what the version was trained with, or leave out `start`"
            )
    return plan.start({name: origin.statistics[name] for name in plan.no_statistics()}, origin.theta)
