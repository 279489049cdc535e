"""What the codec `rotated8` costs and keeps, beside 8 bits without a rotation and with other blocks.

    python benchmarks/privacy_rotation.py [--quick]

Errors are relative, in the 2-norm: of one update, and of the mean of ten sites' updates, each rounded by draws of its own. Training is on
scikit-learn's breast_cancer, four sites, in memory. Writes docs/privacy-rotation.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

from fedrounds.core import rotation
from fedrounds.core.answer import handle
from fedrounds.core.evaluate import metrics, total
from fedrounds.core.messages import encode
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Rows
from fedrounds.core.round import open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study

PAGE = Path(__file__).parent.parent / "docs" / "privacy-rotation.md"
SITES = 10
UPDATES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, d: rng.normal(size=d),
    "heavy-tailed (Student, 2 degrees)": lambda rng, d: rng.standard_t(2, d),
}


def turned(update: np.ndarray, site: int) -> tuple[np.ndarray, float]:
    """What arrives of an update, and bytes a number."""
    codes, scale = rotation.code(update, np.random.default_rng(1), np.random.default_rng([2, site]))
    return rotation.decode(codes, scale, np.random.default_rng(1)), (codes.nbytes + scale.nbytes) / len(update)


def unturned(update: np.ndarray, site: int) -> tuple[np.ndarray, float]:
    """Stochastic rounding to 8 bits by the largest number of all."""
    step = np.abs(update).max() / rotation.LEVELS
    return np.floor(update / step + np.random.default_rng([2, site]).random(len(update))) * step, 1.0


def unturned_blocks(update: np.ndarray, site: int) -> tuple[np.ndarray, float]:
    """The same with a scale for each block, as rotated8 has."""
    blocks = update.reshape(-1, rotation.BLOCK)
    step = np.abs(blocks).max(1, keepdims=True) / rotation.LEVELS
    found = np.floor(blocks / step + np.random.default_rng([2, site]).random(blocks.shape)) * step
    return found.reshape(-1), 1.0 + 4 / rotation.BLOCK


def float32(update: np.ndarray, _site: int) -> tuple[np.ndarray, float]:
    """The codec float32."""
    return update.astype(np.float32).astype(float), 4.0


@contextmanager
def blocks_of(width: int):
    """With blocks of another size."""
    before, rotation.BLOCK = rotation.BLOCK, width
    yield
    rotation.BLOCK = before


def errors(
    way: Callable[[np.ndarray, int], tuple[np.ndarray, float]], update: np.ndarray
) -> tuple[float, float, float]:
    """Relative error of one update, of the mean of SITES equal ones, and bytes a number."""
    found = [way(update, site) for site in range(SITES)]
    norm = np.linalg.norm(update)
    one = float(np.mean([np.linalg.norm(back - update) for back, _ in found]) / norm)
    return one, float(np.linalg.norm(np.mean([back for back, _ in found], axis=0) - update) / norm), found[0][1]


def coding(size: int) -> str:
    """The table of errors."""
    rows = ["| update | how | bytes a number | error of one | of the mean of 10 |", "|---|---|---|---|---|"]
    for kind, draw in UPDATES.items():
        update = draw(np.random.default_rng(0), size)
        ways = [("float32", float32, rotation.BLOCK), ("8 bits, no rotation, one scale", unturned, rotation.BLOCK)]
        ways += [(f"8 bits, no rotation, blocks of {rotation.BLOCK}", unturned_blocks, rotation.BLOCK)]
        ways += [(f"rotated8 with blocks of {width}", turned, width) for width in (32, 64, 128, 256, 1024, 16384)]
        for name, way, width in ways:
            with blocks_of(width):
                one, mean, bytes_ = errors(way, update)
            mark = "**" if name == "rotated8 with blocks of 128" else ""
            rows.append(f"| {kind} | {mark}{name}{mark} | {bytes_:.3f} | {mark}{one:.2g}{mark} | {mean:.2g} |")
    return "\n".join(rows)


def speed(size: int, times: int) -> str:
    """Milliseconds of coding and decoding, least of several."""
    update = np.random.default_rng(0).normal(size=size)
    code, decode = [], []
    for _ in range(times):
        started = time.perf_counter()
        codes, scale = rotation.code(update, np.random.default_rng(1), np.random.default_rng(2))
        between = time.perf_counter()
        rotation.decode(codes, scale, np.random.default_rng(1))
        code.append(between - started)
        decode.append(time.perf_counter() - between)
    return f"{size:,} numbers: {1e3 * min(code):.0f} ms to code at a site, {1e3 * min(decode):.0f} ms to decode for each site at the coordinator."


def plan(model: dict[str, object], codec: str) -> Plan:
    """A study of breast_cancer's thirty numbers."""
    words = {
        "name": "wdbc",
        "target": {"kind": "binary", "column": "y", "positive_above": 0.5},
        "features": [{"type": "number", "name": f"x{i}", "range": [-20, 20]} for i in range(30)],
        "model": model,
        "algorithm": {"preset": "fedavg", "local": {"rate": 0.1, "epochs": 2}},
        "protocol": {"codec": codec},
    }
    return build(Study.model_validate(words))


def wdbc() -> dict[str, Rows]:
    """Four sites, a quarter of each to judge by."""
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    order = np.random.default_rng(0).permutation(len(y))
    found = {}
    for site, part in zip(("east", "north", "south", "west"), np.array_split(order, 4), strict=True):
        design = np.column_stack([X[part], np.ones(len(part))])
        cut = len(part) // 4
        found[site] = Rows(design[cut:], y[part][cut:].astype(float), design[:cut], y[part][:cut].astype(float))
    return found


def training(rounds: int) -> str:
    """The table of trained models."""
    rows = [
        f"| model, {rounds} rounds | codec | log-loss | AUC | parameters differ by | an answer, bytes | a question, bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    data = wdbc()
    for name, model in (
        ("logistic, 31", {"kind": "logistic"}),
        ("MLP of 256, 8,193", {"kind": "mlp", "hidden": [256]}),
    ):
        wide = plan(model, "float64")
        start = wide.start(wide.no_statistics())
        exact = None
        for codec in ("float64", "float32", "rotated8"):
            of = plan(model, codec)
            state = of.start(of.no_statistics())
            state = type(state)(**{**state.__dict__, "theta": start.theta})
            last = list(simulate(of, data, rounds, state=state, rng_of=wide.rng))[-1]
            found = metrics(of.task, *total(last.scores))
            exact = last.state.theta if exact is None else exact
            apart = np.linalg.norm(last.state.theta - exact) / np.linalg.norm(exact)
            asking = open_round(state, of, "train", ["east"])
            reply = handle(asking.request, {}, data["east"], of, OPEN, "east", of.rng(1, "east"))[1]
            sizes = f"{len(encode(reply)):,} | {len(encode(asking.request)):,}"
            rows.append(f"| {name} | {codec} | {found['log_loss']:.5f} | {found['auc']:.4f} | {apart:.1e} | {sizes} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, and write nothing")
    quick = parser.parse_args().quick
    size = 1 << (14 if quick else 18)
    page = f"""# What the codec `rotated8` costs and keeps

`python benchmarks/privacy_rotation.py`: {size:,} numbers, relative errors in the 2-norm; two cores. What the codec is: [design](design.md).

{coding(size)}

The goal was an error of .01 at 1.5 bytes a number or less. Blocks of 128 keep it for one update, not only for the mean of ten: larger blocks have
larger outliers, so wider steps; smaller ones pay for their scales. Without a rotation the largest
number of all, or of its block, sets the step of the others.

{speed(10_000 if quick else 1_000_000, 3 if quick else 7)}

{training(3 if quick else 20)}

Same draws in every row of a model (scikit-learn's breast_cancer, four sites). An answer also holds counts, scores and a histogram of 50 bins as
float64, and its header: of a small model they are most. A question carries parameters as float32, so that what a site scores is the registered
model to 2^-24: 8 bits there would judge another model than the one that is kept.
"""
    print(page)
    if not quick:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
