"""Any PyTorch module that is installed and that a site's own file names, as a family (the extra `torch`).

Importing a package runs its code, so nothing is imported when a plan is built: only when the family first works, which a site does after
its policy (`Family.unready`) has said that it may. No code travels: a study holds a name, options and the number of parameters.

Arithmetic is in float64 on one thread with PyTorch's deterministic kernels, so a vector of parameters is a module's exactly, and the same
request gives the same bits with the same release of PyTorch on the same kind of processor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from hashlib import blake2b
from importlib import import_module
from itertools import pairwise
from math import prod
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
from pydantic import Field, StringConstraints

from fedrounds.core.errors import StudyError
from fedrounds.core.frozen import Finite, NonNegative
from fedrounds.core.models.family import Family, Kind, Task
from fedrounds.core.models.mlp import ends
from fedrounds.core.models.predicting import predicting
from fedrounds.core.params import Array, Layout, Vector

Entry = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=200)]
Option = bool | int | Finite | str | tuple[bool | int | Finite | str, ...]
AT_ONCE = 512  # rows that are predicted together
TRIED = 4  # made-up rows on which a module is tried
CLOSE = 1e-9  # by how much a prediction may hang on what else is in its batch: the rounding of a sum in another order
_drawing = Lock()  # PyTorch has one generator that modules draw from


class Module(Kind):
    """A PyTorch module that is installed at every site and named in each site's own file (`modules` under `[policy]`)."""

    targets: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass")
    paper: ClassVar[str] = "Paszke et al. 2019"
    flavour: ClassVar[Literal["sklearn", "pyfunc"]] = "pyfunc"
    kind: Literal["module"]
    name: Entry
    parameters: int = Field(ge=1, le=100_000_000)
    shape: tuple[Annotated[int, Field(ge=1)], ...] = ()
    options: dict[str, Option] = Field(default={})
    l2: NonNegative = 0.0

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        return module(self, width, task, classes)

    @property
    def penalty(self) -> float:
        """0: which of its parameters are weights is known when the module is, so the gradient has the penalty in it."""
        return 0.0

    @property
    def runs(self) -> tuple[str, ...]:
        """The installed code that the model is."""
        return (self.name,)


class Made(NamedTuple):
    """A module that was tried and can be trained.

    Attributes:
        torch: PyTorch.
        net: the module, in float64. What is constant in it is as a module is made under seed 0.
        shapes: of its parameters by name, in its order.
        draws: whether it draws at random as it trains (dropout).
        weighty: (size,) 1.0 where the L2 penalty applies: parameters of two dimensions or more that are trained.
    """

    torch: Any
    net: Any
    shapes: Mapping[str, tuple[int, ...]]
    draws: bool
    weighty: Vector

    def scores(self, theta: Any, rows: Any, training: bool) -> Any:
        """The module's output (n, outputs) with these parameters (size,), of rows (n, *shape)."""
        parts, start = {}, 0
        for name, parameter in self.net.named_parameters():
            stop = start + parameter.numel()
            part = theta[start:stop].reshape(parameter.shape)
            parts[name] = part if parameter.requires_grad else part.detach()
            start = stop
        self.net.train(training)
        out = self.torch.func.functional_call(self.net, parts, (rows,))
        return out.reshape(rows.shape[0], -1)


def module(of: Module, width: int, task: Task, classes: int = 2) -> Family:
    """Linear, σ or softmax outputs of a module's scores, as a multilayer perceptron has them (`mlp.ends`).

    The loss is half the mean squared error or the mean log-loss, so its slope by the scores is p - y, and PyTorch takes that back to the
    parameters. With `l2` the gradient holds l2 θ besides, for parameters of two dimensions or more. What a module draws as it trains is
    seeded from the parameters and the batch: the gradient stays a function of its arguments.

    Args:
        width: columns p of the encoded matrix, without the ones; X is (n, p + 1).
        task: what y is.
        classes: number of classes of the task multiclass; the others have one output.

    Returns:
        A family whose theta is the module's parameters in its own order, each row by row.

    Raises:
        StudyError: the shape does not hold the columns. What only a look at the module tells is raised when the family first works.
    """
    shape = of.shape or (width,)
    if prod(shape) != width:
        raise StudyError(
            f"expected `shape` of the study's module to hold its {width} columns, found {list(shape)}, which holds {prod(shape)}: mend study.toml"
        )
    link, differ, losses = ends(task)
    outputs = classes if task == "multiclass" else 1

    @cache
    def made() -> Made:
        return _made(of, shape, outputs)

    def rows(X: Array) -> Any:
        return made().torch.from_numpy(np.ascontiguousarray(X[:, :width])).reshape(len(X), *shape)

    def init(rng: np.random.Generator) -> Vector:
        start = made()
        with _seeded(start.torch, int(rng.integers(2**63))):
            fresh = _constructed(of, start.torch)
        return np.concatenate([_numbers(one).reshape(-1) for one in fresh.parameters()])

    def gradient(theta: Vector, X: Array, y: Array) -> Vector:
        start = made()
        leaf = start.torch.tensor(theta, dtype=start.torch.float64, requires_grad=True)
        with _seeded(start.torch, _seed(theta, X)) if start.draws else nullcontext():
            scores = start.scores(leaf, rows(X), training=True)
        error = differ(link(_numbers(scores)), y).reshape(len(y), outputs) / len(y)
        (slope,) = start.torch.autograd.grad(scores, leaf, start.torch.from_numpy(error))
        return slope.numpy() + of.l2 * start.weighty * theta

    def predict(theta: Vector, X: Array) -> Array:
        if not len(X):  # few modules take no rows
            return link(np.empty((0, outputs)))
        start = made()
        with start.torch.no_grad():
            leaf = start.torch.tensor(theta, dtype=start.torch.float64)
            parts = np.array_split(X, range(AT_ONCE, len(X), AT_ONCE))
            scores = [_numbers(start.scores(leaf, rows(part), training=False)) for part in parts]
        return link(np.concatenate(scores))

    def unready(allowed: Collection[str]) -> str:
        return of.barred(allowed) or _said(made)

    def named(theta: Vector) -> Mapping[str, Array]:
        return Layout(made().shapes).split(theta)

    def estimator(theta: Vector) -> Any:
        return predicting(made().torch, made().scores, shape, task, theta)

    layout, penalised = Layout({"parameters": (of.parameters,)}), np.ones(of.parameters)
    return Family(layout, penalised, init, gradient, predict, losses, estimator, unready, named)


# --- from a name to a module ------------------------------------------------------------------------------------------


def _made(of: Module, shape: tuple[int, ...], outputs: int) -> Made:
    """The module, tried on made-up rows. Raises StudyError in one line where it cannot be trained so that numbers are right."""
    torch = _torch()
    with _seeded(torch, 0):
        net = _constructed(of, torch)
    parameters = list(net.named_parameters())
    count = sum(one.numel() for _, one in parameters)
    if count != of.parameters:
        raise _wrong(
            of, f"with parameters = {of.parameters}, as study.toml says", f"one with {count} as installed here"
        )
    if not any(one.requires_grad for _, one in parameters):
        raise _wrong(of, "with parameters to train", "none that asks for a gradient")
    weighty = [np.full(one.numel(), float(one.dim() >= 2 and one.requires_grad)) for _, one in parameters]
    shapes = {name: tuple(one.shape) for name, one in parameters}
    tried = Made(torch, net, shapes, False, np.concatenate(weighty))
    return tried._replace(draws=_tried(of, tried, shape, outputs))


def _torch() -> Any:
    torch, failure = None, ""
    try:
        torch = cast(Any, import_module("torch"))
    except Exception as error:  # a wheel built for graphics cards raises OSError where their libraries are not
        failure = type(error).__name__
    if torch is None:
        raise StudyError(
            f"expected PyTorch for a model of kind 'module', found none that can be imported here ({failure}): pip install 'fedrounds[torch]'"
            " (docs/torch.md)"
        )
    torch.set_num_threads(1)  # sums in one order: the same bits on a machine with more cores
    torch.use_deterministic_algorithms(True)
    return torch


def _constructed(of: Module, torch: Any) -> Any:
    """The module as its constructor leaves it, in float64."""
    package, _, name = of.name.partition(":")
    failure = ""
    try:
        kind = getattr(import_module(package), name, None)
    except Exception as error:  # whatever the package's own code raises: its text is not ours to show
        kind, failure = None, type(error).__name__
    if failure:
        raise _wrong(of, f"that can be imported from {package}", failure)
    if not isinstance(kind, type) or not issubclass(kind, torch.nn.Module):
        raise _wrong(of, f"in {package} that is a class of torch.nn.Module", "none")
    net: Any = None
    try:
        net = kind(**of.options).double()
        fit = all(one.is_floating_point() and one.numel() for one in net.parameters())
    except Exception as error:
        fit, failure = False, type(error).__name__
    if not fit:
        raise _wrong(of, "that takes the options of study.toml and then knows its parameters", failure or "others")
    return net


def _tried(of: Module, made: Made, shape: tuple[int, ...], outputs: int) -> bool:
    """Whether it draws at random as it trains; raises StudyError where its numbers would not be those of its parameters and its row."""
    torch, net = made.torch, made.net
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((TRIED, *shape)))
    theta = torch.cat([one.detach().reshape(-1) for one in net.parameters()])
    buffers = {name: (one, one._version) for name, one in net.named_buffers()}
    failure, found = "", list[Any]()
    try:
        with torch.no_grad():
            for training in (False, True):
                for number in (1, 2):
                    with _seeded(torch, number):
                        found.append(_numbers(made.scores(theta, rows, training)))
            fewer = [_numbers(made.scores(theta, rows[:count], False)) for count in (2, 1)]
        leaf = theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(made.scores(leaf, rows, True).sum(), leaf)
    except Exception as error:
        failure, slope, fewer = type(error).__name__, None, []
    if failure:
        raise _wrong(of, f"that takes rows of shape {list(shape)} in float64 and has a gradient", failure)
    if found[0].shape != (TRIED, outputs):
        raise _wrong(of, f"with {outputs} outputs a row", f"{found[0].size / TRIED:g}")
    moved = [name for name, one in net.named_buffers() if buffers.get(name, (None, 0))[0] is not one]
    moved += [name for name, (one, version) in buffers.items() if one._version != version]
    if moved:
        raise _wrong(
            of,
            "whose state is its parameters",
            f"that its buffer {moved[0]} changes as it trains (as batch normalisation's do): use group or layer normalisation",
        )
    if not np.array_equal(found[0], found[1], equal_nan=True):
        raise _wrong(of, "that predicts the same twice", "that it draws at random as it predicts")
    if not np.isfinite(found).all() or not np.isfinite(_numbers(slope)).all():
        raise _wrong(of, "with finite scores and gradient at its start", "others")
    if any(np.abs(found[0][: len(part)] - part).max() > CLOSE for part in fewer):
        raise _wrong(of, "that predicts of a row by that row", "that it looks at the other rows of the batch")
    return not all(np.array_equal(first, second) for first, second in pairwise(found[2:]))


def _said(made: Callable[[], Made]) -> str:
    """What is wrong with a module; empty if nothing is."""
    try:
        made()
    except StudyError as error:
        return str(error)
    return ""


def _wrong(of: Module, expected: str, found: str) -> StudyError:
    return StudyError(
        f"expected a module {of.name} {expected}, found {found}: mend [model] in study.toml, or the package"
    )


@contextmanager
def _seeded(torch: Any, seed: int) -> Generator[None]:
    """Whatever draws from PyTorch in here draws from this seed, and what it drew from before goes on as if nothing had been."""
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _seed(theta: Vector, X: Array) -> int:
    sha = blake2b(theta.tobytes(), digest_size=7)
    sha.update(np.ascontiguousarray(X).tobytes())
    return int.from_bytes(sha.digest(), "big")


def _numbers(tensor: Any) -> Any:
    """The numbers of a tensor as an array of their own."""
    return tensor.detach().numpy().astype(np.float64)
