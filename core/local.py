"""What a site does with the global model: one small function a paper.

A step is a pair `init`, `step`: memory, model and gradient in, memory and model out. `walk` takes it over the rows; what bends the gradient
on the way (a proximal term, a control variate) makes another rule of the same step. Beside each stands the word for it in a study, whose
`rule()` it is: a plain one has a `visit` alone, one with memory also says what travels beside the model and beside the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.algorithm import Payload, SiteState
from fedrounds.core.frozen import Fraction, NonNegative, Rate
from fedrounds.core.pace import Batch, Gradient, Heard, Left, Memory, Own, Pace, Rule, Shapes, Step, Work, aside, walk
from fedrounds.core.params import Array, Vector

Train = Callable[[Gradient, Vector, Array, Array, np.random.Generator], Vector]


# --- plain rules ------------------------------------------------------------------------------------------------------


def _train(step: Step, epochs: int, batch: Batch) -> Train:
    def train(gradient: Gradient, theta: Vector, X: Array, y: Array, rng: np.random.Generator) -> Vector:
        return walk(step, gradient, theta, X, y, rng, epochs, batch)[0]

    return train


class Sgd(Pace):
    """Plain mini-batch gradient descent at the site (McMahan et al. 2017, algorithm 1)."""

    kind: Literal["sgd"]

    def rule(self) -> Rule:
        """What a site does."""
        return self.plain(descent)


def descent(rate: float) -> Step:
    """theta - rate * gradient."""

    def step(memory: Memory, theta: Vector, g: Vector) -> tuple[Memory, Vector]:
        theta -= rate * g
        return memory, theta

    return Step(_zeros(), step)


def sgd(rate: float, epochs: int, batch: Batch) -> Train:
    """Mini-batch gradient descent: theta - rate * gradient, `epochs` times over the rows (McMahan et al. 2017, algorithm 1)."""
    return _train(descent(rate), epochs, batch)


class Momentum(Pace):
    """Heavy ball at the site (Polyak 1964), or Nesterov's momentum (Sutskever et al. 2013); its memory is fresh each round."""

    kind: Literal["momentum"]
    beta: Fraction = 0.9
    nesterov: bool = False

    def rule(self) -> Rule:
        """What a site does."""
        return self.plain(lambda rate: heavy_ball(rate, self.beta, self.nesterov))


def heavy_ball(rate: float, beta: float, nesterov: bool = False) -> Step:
    """v = beta v + g; theta - rate v (Polyak 1964, equation 9), or theta - rate (g + beta v): Nesterov's gradient a step ahead, in the
    variables of Sutskever et al. 2013, equations 3 and 4, moved to where the gradient is taken."""

    def step(memory: Memory, theta: Vector, g: Vector) -> tuple[Memory, Vector]:
        v = beta * memory["v"] + g
        theta -= rate * (g + beta * v if nesterov else v)
        return {"v": v}, theta

    return Step(_zeros("v"), step)


class Adam(Pace):
    """Adam at the site, its memory fresh each round (Kingma and Ba 2015)."""

    kind: Literal["adam"]
    rate: Rate = 0.01
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Rate = 1e-8

    def rule(self) -> Rule:
        """What a site does."""
        return self.plain(lambda rate: adaptive(rate, self.beta_1, self.beta_2, self.epsilon))


def adaptive(rate: float, beta_1: float, beta_2: float, epsilon: float) -> Step:
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1)."""

    def step(memory: Memory, theta: Vector, g: Vector) -> tuple[Memory, Vector]:
        t = int(memory["t"][0]) + 1
        m = beta_1 * memory["m"] + (1 - beta_1) * g
        v = beta_2 * memory["v"] + (1 - beta_2) * g * g
        theta -= rate * (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
        return {"t": memory["t"][:1] + 1, "m": m, "v": v}, theta

    return Step(_zeros("t", "m", "v"), step)


def adam(rate: float, epochs: int, batch: Batch, beta_1: float, beta_2: float, epsilon: float) -> Train:
    """Adam over the rows (Kingma and Ba 2015, algorithm 1); its memory starts anew each round."""
    return _train(adaptive(rate, beta_1, beta_2, epsilon), epochs, batch)


class Proximal(Pace):
    """Gradient descent tied to the global model by mu/2 |w - w_global|^2 (Li et al. 2020, FedProx)."""

    kind: Literal["proximal"]
    mu: NonNegative = 0.01

    def rule(self) -> Rule:
        """What a site does."""

        def visit(work: Work, theta: Vector, memory: SiteState, sent: Payload) -> Left:
            del memory
            return Left(
                self.walk(descent(self.rate_at(sent)), work, theta, tied(work.gradient, self.mu, theta))[0] - theta
            )

        return Rule(visit, self.sends, self.asks)


def tied(gradient: Gradient, mu: float, start: Vector) -> Gradient:
    """The gradient of the objective + mu/2 |theta - start|^2, start (size,) (Li et al. 2020, FedProx, equation 2)."""
    return lambda theta, X, y: gradient(theta, X, y) + mu * (theta - start)


def proximal(mu: float, rate: float, epochs: int, batch: Batch) -> Train:
    """Gradient descent on the objective + mu/2 |theta - theta_global|^2 (Li et al. 2020, FedProx, equation 2)."""
    descend = sgd(rate, epochs, batch)

    def train(gradient: Gradient, theta: Vector, X: Array, y: Array, rng: np.random.Generator) -> Vector:
        return descend(tied(gradient, mu, theta), theta, X, y, rng)

    return train


def _zeros(*names: str) -> Callable[[int], Memory]:
    """Memory that has seen nothing."""

    def init(size: int) -> Memory:
        return {name: np.zeros(size) for name in names}

    return init


# --- rules whose update is not all ------------------------------------------------------------------------------------


class Fednova(Pace):
    """Gradient descent whose updates count by the step, so that a site that takes more steps does not pull harder (Wang et al. 2020)."""

    kind: Literal["fednova"]
    alone: ClassVar[bool] = False

    def rule(self) -> Rule:
        """What a site does."""
        return fednova(self)


def fednova(pace: Pace) -> Rule:
    """delta_i = (theta_i - theta) / tau_i for tau_i steps; theta + tau * sum(lambda_i delta_i) with tau = sum(lambda_i tau_i), lambda adding
    up to 1 (Wang et al. 2020, FedNova, equation 11 with the weights p = w and plain local steps, |a_i| = tau_i)."""

    def visit(work: Work, theta: Vector, memory: SiteState, sent: Payload) -> Left:
        del memory
        w, steps = pace.walk(descent(pace.rate_at(sent)), work, theta)
        return Left((w - theta) / steps, beside={"steps": np.array([float(steps)])})

    def close(kept: Memory, update: Vector, heard: Heard) -> tuple[Memory, Vector]:
        weights = sum(share for share, _ in heard.values())
        return kept, update * (sum(share * float(sums["steps"][0]) for share, sums in heard.values()) / weights)

    return Rule(visit, pace.sends, pace.asks, _steps, close)


class Scaffold(Pace):
    """Gradient descent corrected by control variates: what all sites' gradients are, less what the site's own is (Karimireddy et al. 2020)."""

    kind: Literal["scaffold"]
    alone: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    def rule(self) -> Rule:
        """What a site does."""
        return scaffold(self)


def scaffold(pace: Pace) -> Rule:
    """y <- y - rate (g(y) - c_i + c), K times; c_i <- c_i - c + (x - y) / (K rate) (Karimireddy et al. 2020, SCAFFOLD, algorithm 1, option II).
    c is the mean of the c_i (`controls`)."""

    def visit(work: Work, theta: Vector, memory: SiteState, sent: Payload) -> Left:
        rate, everybody = pace.rate_at(sent), sent["control"]
        own = memory.get("control", np.zeros_like(theta))
        tilt = everybody - own
        w, steps = pace.walk(descent(rate), work, theta, lambda w, X, y: work.gradient(w, X, y) + tilt)
        after = {"control": own - everybody + (theta - w) / (steps * rate)}
        return Left(w - theta, after, after)

    def sends(size: int) -> Shapes:
        return {**_control(size), **pace.sends(size)}

    def asks(kept: Memory, number: int, size: int) -> Payload:
        return {"control": mean_control(kept, size), **pace.asks(kept, number, size)}

    def close(kept: Memory, update: Vector, heard: Heard) -> tuple[Memory, Vector]:
        return controls(kept, heard), update

    return Rule(visit, sends, asks, _control, close)


class Feddyn(Pace):
    """Gradient descent on an objective that a site tilts a little more each round, until all sites' optima are one (Acar et al. 2021)."""

    kind: Literal["feddyn"]
    alpha: Rate = 0.1
    alone: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    def rule(self) -> Rule:
        """What a site does."""
        return feddyn(self, self.alpha)


def feddyn(pace: Pace, alpha: float) -> Rule:
    """The site descends L_i(w) - g_i w + alpha/2 |w - theta|^2 and lets g_i <- g_i - alpha (w - theta); theta <- mean of w - h / alpha with h the
    mean of the g_i (Acar et al. 2021, FedDyn, algorithm 1, where h is kept as a sum of changes: the same number)."""

    def visit(work: Work, theta: Vector, memory: SiteState, sent: Payload) -> Left:
        own = memory.get("control", np.zeros_like(theta))
        pull = tied(work.gradient, alpha, theta)
        w, _ = pace.walk(descent(pace.rate_at(sent)), work, theta, lambda w, X, y: pull(w, X, y) - own)
        after = {"control": own - alpha * (w - theta)}
        return Left(w - theta, after, after)

    def close(kept: Memory, update: Vector, heard: Heard) -> tuple[Memory, Vector]:
        kept = controls(kept, heard)
        return kept, update - mean_control(kept, update.size) / alpha

    return Rule(visit, pace.sends, pace.asks, _control, close)


def _control(size: int) -> Shapes:
    return {"control": (size,)}


def _steps(size: int) -> Shapes:
    del size
    return {"steps": (1,)}


def controls(kept: Memory, heard: Heard) -> Memory:
    """Each site's last control (size,) and lambda (1,), of all that were ever heard: a model a site. A site that was not heard keeps its own."""
    found = {f"control.{site}": sums["control"] for site, (_, sums) in heard.items()}
    return {**kept, **found, **{f"share.{site}": np.array([share]) for site, (share, _) in heard.items()}}


def mean_control(kept: Memory, size: int) -> Vector:
    """Their mean (size,) by lambda, in site order, over the sites that ever took part; zero before the first.

    How many sites there are need not be known. With all of them in each round it is the papers' mean over all N.
    """
    total, weight = np.zeros(size), 0.0
    for name in sorted(name for name in kept if name.startswith("control.")):
        share = float(kept[name.replace("control", "share", 1)][0])
        total, weight = total + share * kept[name], weight + share
    return total / weight if weight else total


# --- rules with a model of the site's own -----------------------------------------------------------------------------


class Ditto(Pace):
    """Gradient descent, and beside it a model of the site's own, tied to the global one by pull/2 |v - w_global|^2 (Li et al. 2021)."""

    kind: Literal["ditto"]
    pull: NonNegative = 0.1
    remembers: ClassVar[bool] = True

    def rule(self) -> Rule:
        """What a site does."""
        return ditto(self, self.pull)

    def own(self) -> Own:
        """What the last round that closed left; the global model before the first."""

        def model(work: Work, theta: Vector, memory: SiteState) -> Vector:
            del work
            return memory.get("personal", theta)

        return model


def ditto(pace: Pace, pull: float) -> Rule:
    """v <- v - rate (g(v) + pull (v - theta)), from where the last round left v, and the global model's update by plain descent (Li et al. 2021,
    Ditto, algorithm 1 with pull = lambda, and FedAvg for the global model). v starts from the model that first came in, and stays."""

    def visit(work: Work, theta: Vector, memory: SiteState, sent: Payload) -> Left:
        step = descent(pace.rate_at(sent))
        apart = work._replace(rng=aside(work.rng))  # so that the global model is FedAvg's bit for bit
        v, _ = pace.walk(step, apart, memory.get("personal", theta), tied(work.gradient, pull, theta))
        return Left(pace.walk(step, work, theta)[0] - theta, {"personal": v})

    return Rule(visit, pace.sends, pace.asks)


def require(local: Pace, combine: str, hidden: bool, noised: bool) -> None:
    """Raise ValueError where a local rule does not go with the rest of the study.

    Args:
        combine: the kind of the combining rule.
        hidden: whether sums are masked or encrypted.
        noised: whether differential privacy holds.
    """
    if noised and not (local.alone and local.usual):
        raise ValueError(
            "differential privacy counts what an update tells, and no more: leave out the local rule's steps, decay and early_stop, and name a"
            " rule that sends its update alone"
        )
    if local.remembers and not local.alone and hidden:
        raise ValueError(
            "a control stands in the place of the one that its site sent before, so the coordinator must know each site's own, which masks hide:"
            " leave out privacy.protect, or name another local rule"
        )
    if local.remembers and not local.alone and combine != "weighted_mean":
        raise ValueError(
            f"controls cancel in the mean of the updates, and in nothing else: expected combine 'weighted_mean', found '{combine}'"
        )


Local = Annotated[Sgd | Momentum | Adam | Proximal | Fednova | Scaffold | Feddyn | Ditto, Field(discriminator="kind")]
