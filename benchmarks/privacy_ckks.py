"""What encrypted sums cost, at one site, at the coordinator and at the key holder.

    python benchmarks/privacy_ckks.py [--runs 7] [--quick]

One exchange in memory, four sites. Each figure is the least of the runs, a run doing every step once; beside it stands the processor time,
which does not count what else the machine did. Writes docs/privacy-ckks.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedrounds.core.privacy import ckks, digits, tag
from fedrounds.core.privacy.grid import Grid

PAGE = Path(__file__).parent.parent / "docs" / "privacy-ckks.md"
SITES = 4
GOALS = {"encrypt": 1.0, "add": 0.02, "decrypt": 0.3, "bytes": 33.0, "error": 1e-6}
STEPS = {
    "key": "the holder makes a key (once an epoch)",
    "encrypt": "a site encrypts",
    "tag": "a site tags",
    "check": "the coordinator checks and hashes one site's residues",
    "add": "the coordinator adds one site's residues",
    "proof": "the holder checks that the sum is one",
    "decrypt": "the holder decrypts the sum",
}


class Clock:
    """The least seconds by name: of the wall's clock, and of the processor's."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.own: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure what happens within."""
        wall, own = time.perf_counter(), time.process_time()
        yield
        for kept, spent in ((self.wall, time.perf_counter() - wall), (self.own, time.process_time() - own)):
            kept[name] = min(kept.get(name, spent), spent)


def measure(size: int, runs: int) -> tuple[Clock, float, float, bool]:
    """Seconds, bytes a number, the largest error of the mean, and whether the sum of words came out exactly."""
    from fedrounds.core.privacy.holder import digest_of

    clock, grid, seed = Clock(), Grid(np.array(8.0), 32, clip=True), bytes(range(32))
    layout = {"words.delta": (size, "<u4")}
    exact, error, width = True, 0.0, 0.0
    for run in range(runs):
        rng = np.random.default_rng(run)
        with clock.of("key"):
            secret, public = ckks.new_key()
        updates = [rng.normal(0, 0.01, size) for _ in range(SITES)]
        words = [grid.words("delta", update, SITES)[0] for update in updates]
        ciphers, tags = [], []
        for at, one in enumerate(words):
            split = digits.split({"words.delta": one})
            with clock.of("encrypt"):
                ciphers.append(ckks.encrypt(public, split))
            with clock.of("tag"):
                tags.append(tag.of(seed, bytes([at]) * 32, ciphers[-1]))
            with clock.of("check"):
                ckks.check(ciphers[-1], size)
                digest_of(ciphers[-1])
        total = ciphers[0].copy()
        for cipher in ciphers[1:]:
            with clock.of("add"):
                ckks.add(total, cipher)
        with clock.of("proof"):
            assert tag.holds(seed, [bytes([at]) * 32 for at in range(SITES)], tags, total)
        with clock.of("decrypt"):
            found = ckks.decrypt(secret, total, size)
        summed = digits.join(found, layout)["words.delta"]
        exact &= bool((summed == np.sum(words, axis=0, dtype=np.uint32)).all())
        mean = grid.numbers(summed, SITES) / SITES
        error = max(error, float(np.abs(mean - np.mean(updates, axis=0)).max()))
        width = ciphers[0].nbytes / size
    return clock, width, error, exact


def page(size: int, runs: int) -> list[str]:
    """The rows of one size, and what of the goals was met."""
    clock, width, error, exact = measure(size, runs)
    rows = [f"## {size:,} numbers", "", "| step | seconds | of the processor | goal |", "|---|---|---|---|"]
    for name, said in STEPS.items():
        goal = f"{GOALS[name]:g}" if name in GOALS and size == 1_000_000 else ""
        rows.append(f"| {said} | {clock.wall[name]:.3f} | {clock.own[name]:.3f} | {goal} |")
    rows += [
        "",
        f"{width:.2f} bytes a number. The largest error of the mean is {error:.1e}, all of it rounding to the grid: the sum of the words came out",
        "exactly, in every run." if exact else "**WRONG**.",
    ]
    if size == 1_000_000:
        found = {**clock.own, "bytes": width, "error": error}
        missed = [f"{name} ({found[name]:.3g} for {goal:g})" for name, goal in GOALS.items() if found[name] > goal]
        rows.append(
            f"Goals missed (by the processor's time): {', '.join(missed)}."
            if missed
            else f"Goals: {GOALS['bytes']:g} bytes, an error of {GOALS['error']:g}, and those above, by the processor's time; every one is met."
        )
    return [*rows, ""]


def main() -> None:
    """Print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one small size, nothing written")
    asked = parser.parse_args()
    lines = [
        "# What encrypted sums cost",
        "",
        f"`python benchmarks/privacy_ckks.py`: {SITES} sites, words of 32 bits, clip 8, the least of {asked.runs} runs (of one at two million), one",
        "thread, a machine of two cores that others used as well. TenSEAL 0.3.18. What it protects, and from whom: [privacy.md](privacy.md).",
        "",
    ]
    for size in (10_000,) if asked.quick else (10_000, 100_000, 1_000_000, 2_000_000):
        rows = page(size, asked.runs if size < 2_000_000 else 1)
        print("\n".join(rows), flush=True)
        lines += rows
    if not asked.quick:
        PAGE.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
