"""What masked sums cost, beside Flower's own SecAgg+ where its environment is there (`benchmarks/README.md`).

    python benchmarks/privacy_masks.py [--runs 5] [--quick]

One exchange in memory: clip and round, mask, sign and hash at every site; add up, agree, open and unmask at the server. Keys and shares are
made for 32 exchanges at a time: a thirty-second part of them is charged to one, and is part of every figure. Flower's rounds and ours
alternate, each in a process of its own. Writes docs/privacy-masks.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedrounds.core import identity
from fedrounds.core.privacy import epoch as epochs
from fedrounds.core.privacy import secagg, unmask
from fedrounds.core.privacy.grid import Bits, Grid

HERE = Path(__file__).parent
FLOWER = HERE / ".flower-venv" / "bin" / "python"
PAGE = HERE.parent / "docs" / "privacy-masks.md"
BATCH = 32
ANNOUNCED = bytes(32)


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    @contextmanager
    def of(self, name: str, share: float = 1.0) -> Iterator[None]:
        """Count what happens within to a name."""
        started = time.perf_counter()
        yield
        self.found[name] = self.found.get(name, 0.0) + (time.perf_counter() - started) * share


def measure(sites: int, size: int, drops: int, bits: Bits, batch: int = BATCH) -> dict[str, float]:
    """One exchange: seconds of set-up at a site, of all sites, of the server; bytes of masked words; the largest error of the mean."""
    names = [f"s{number:03d}" for number in range(sites)]
    keys = {site: identity.new_key() for site in names}
    roster = {site: identity.public_key(key) for site, key in keys.items()}
    clock, part = Clock(), 1 / batch
    vaults: dict[str, secagg.Vault] = {}
    made, dealt, opened = {}, {}, {}
    for site in names:
        with clock.of("set-up", part):
            vaults[site], made[site] = secagg.make_keys(secagg.Vault(), keys[site], "s", site, 1, batch, roster)
    with clock.of("server", part):
        epoch = epochs.epoch_of("s", 1, made.items(), roster)
    for site in names:
        with clock.of("set-up", part):
            vaults[site], dealt[site] = secagg.deal(vaults[site], keys[site], site, epoch, roster)
        with clock.of("server", part):
            unmask.dealt_by(epoch, site, dealt[site], roster)
    grid, rng = Grid(np.array(8.0 if bits == 32 else 0.5), bits, clip=True), np.random.default_rng(0)
    alive, total, true, uploads, wire = names[: sites - drops], {}, np.zeros(size), {}, 0
    for site in alive:
        update = rng.normal(0, 0.01, size)
        true += update
        with clock.of("sites"):
            words = {"words": grid.words("words", update, sites)[0]}
            vaults[site], sent = secagg.protect(vaults[site], keys[site], site, words, ANNOUNCED, 0, names)
        signature = sent.pop("signature").tobytes()
        wire = sent["words"].nbytes + len(signature)
        with clock.of("server"):
            uploads[site] = unmask.heard(epoch, ANNOUNCED, site, sent, signature, roster)
            if total:
                total["words"] += sent["words"]
            else:
                total = {"words": sent["words"].copy()}
    signed = {}
    for site in alive:
        with clock.of("sites"):
            vaults[site], said = secagg.agree(vaults[site], keys[site], site, ANNOUNCED, 0, alive, uploads, roster)
        signed[site] = said["signature"].tobytes()
    with clock.of("server"):
        signed = unmask.signatures_over(ANNOUNCED, alive, signed, roster)
    holders = epoch.holders()
    for site in alive:
        held = {d: dealt[d]["sealed"][0, holders[d].index(site)].tobytes() for d in names if site in holders[d]}
        with clock.of("sites"):
            vaults[site], said = secagg.disclose(vaults[site], site, ANNOUNCED, 0, names, alive, signed, held, roster)
        opened[site] = said["shares"]
    with clock.of("server"):
        unmask.unmask(epoch, total, ANNOUNCED, 0, names, alive, dealt, opened)
        mean = grid.numbers(total["words"], sites) / len(alive)
    found = clock.found
    return {
        "set-up": found["set-up"] / sites,
        "sites": found["sites"] + found["set-up"],
        "site": found["sites"] / len(alive),
        "server": found["server"],
        "wire": wire,
        "error": float(np.abs(mean - true / len(alive)).max()),
    }


class Worker:
    """A process that measures: a line of numbers in, a line of JSON out."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *numbers: int) -> dict[str, float]:
        """One measurement. Raises RuntimeError where the process has ended."""
        assert self.process.stdin
        assert self.process.stdout
        print(*numbers, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"expected a measurement, found the end of {self.process.args}")
        return json.loads(line)

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def total(found: dict[str, float]) -> float:
    """Seconds of everybody."""
    return found["sites"] + found["server"]


def beside_flower(runs: int, size: int) -> Iterator[str]:
    """Rows of the table: ten sites, alternating."""
    own = Worker(sys.executable, __file__, "--worker")
    other = Worker(str(FLOWER), "-B", str(HERE / "flower" / "masks.py"))
    try:
        for bits in (16, 32):
            for drops in (0, 1):
                pairs: list[tuple[dict[str, float], dict[str, float]]] = []
                for turn in range(runs + 1):
                    pair = own.ask(10, size, drops, bits), other.ask(10, size, drops)
                    pairs += [pair] if turn else []  # the first warms up
                ratios = sorted(total(theirs) / total(ours) for ours, theirs in pairs)
                ours, theirs = (median(total(pair[side]) for pair in pairs) for side in (0, 1))
                one, their = pairs[0]
                yield (
                    f"| u{bits}, {drops or 'none'} lost | {ours:.3f} | {theirs:.2f} | {ratios[0]:.1f} – **{median(ratios):.1f}** –"
                    f" {ratios[-1]:.1f} | {one['wire'] / size:.4f} | {their['wire'] / size:.4f} |"
                    f" {one['error']:.1e} | {their['error']:.1e} |"
                )
    finally:
        own.end()
        other.end()


def large(cases: list[tuple[int, int, int, Bits, int]]) -> Iterator[str]:
    """Rows of the second table."""
    for sites, size, drops, bits, batch in cases:
        own = Worker(sys.executable, __file__, "--worker")
        try:
            found = own.ask(sites, size, drops, bits, batch)
        finally:
            own.end()
        yield (
            f"| {sites} | {size:,} | u{bits} | {drops} | {found['site'] * 1e3:.0f} | {found['set-up'] * 1e3:.1f} |"
            f" {found['server']:.2f} |"
        )


def main() -> None:
    """Print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs beside Flower")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing written")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        for line in sys.stdin:
            numbers: list[Any] = [int(number) for number in line.split()]
            print(json.dumps(measure(*numbers)), flush=True)
        return
    size = 100_000 if asked.quick else 1_000_000
    page = [
        "# What masked sums cost",
        "",
        f"`python benchmarks/privacy_masks.py`: {asked.runs} pairs, alternating, medians; two cores.",
        "",
        f"Ten sites, {size:,} numbers, one exchange, keys and shares, signatures and digests included. Seconds of all sites and the server",
        "together. Flower 1.42.0 is its `SecAggPlusWorkflow` with `secaggplus_mod`, every site a neighbour of every other, the same threshold.",
        "",
        "| case | ours, s | Flower, s | times faster: least – median – most | our bytes a number | theirs | our error | theirs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if FLOWER.exists():
        for row in beside_flower(asked.runs, size):
            print(row, flush=True)
            page.append(row)
    else:
        print("Flower's environment is not there: benchmarks/README.md says how it is made")
    page += [
        "",
        "Large: one run each. Set-up is keys and shares of one exchange at one site, an epoch's cost over its batch.",
        "",
        "| sites | numbers | words | lost | a site, ms | set-up, ms | server, s |",
        "|---|---|---|---|---|---|---|",
    ]
    cases: list[tuple[int, int, int, Bits, int]] = [(10, 25_000_000, 1, 16, 32), (10, 25_000_000, 1, 32, 32)]
    for row in large([(10, 100_000, 1, 16, 32)] if asked.quick else [*cases, (200, 100_000, 60, 16, 16)]):
        print(row, flush=True)
        page.append(row)
    if not asked.quick and FLOWER.exists():
        PAGE.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
