"""A made-up multi-centre trial of a drug: `python studies/trial/make_data.py` writes data/CENTRE.csv. No patient in it ever lived.

Truth: a patient responds with log-odds TRUTH · features + a centre's own shift. The drug helps more where the marker is present.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

CENTRES = {"basel": 260, "lyon": 410, "porto": 190, "turin": 320, "vienna": 150}  # patients
SHIFT = {"basel": 0.15, "lyon": -0.1, "porto": 0.0, "turin": 0.1, "vienna": -0.15}  # what the model does not know
TRUTH = {"treated": 0.45, "marker": -0.1, "treated_marker": 0.9, "age": -0.015, "severity": -0.06, "female": 0.1}
INTERCEPT = 1.6
COLUMNS = ("patient_id", "age", "female", "severity", "marker", "treated", "treated_marker", "responded")


def patients(centre: str, seed: int) -> list[tuple[object, ...]]:
    """A centre's rows, in order of enrolment; the arm is drawn in blocks of four, as trials do."""
    rng, n = np.random.default_rng([seed, *centre.encode()]), CENTRES[centre]
    age = rng.normal(61, 11, n).clip(18, 95).round()
    female, marker = rng.random(n) < 0.48, rng.random(n) < 0.35
    severity = rng.normal(24, 6, n).clip(4, 44).round()
    treated = np.concatenate([rng.permutation([0, 0, 1, 1]) for _ in range(-(-n // 4))])[:n].astype(bool)
    columns = {
        "age": age,
        "female": female,
        "severity": severity,
        "marker": marker,
        "treated": treated,
        "treated_marker": treated & marker,
    }
    score = INTERCEPT + SHIFT[centre] + sum(TRUTH[name] * values for name, values in columns.items())
    responded = rng.random(n) < 1 / (1 + np.exp(-score))
    words = [values.astype(int).tolist() for values in (*columns.values(), responded)]
    identity = [f"{centre[:2]}-{number:04d}" for number in range(1, n + 1)]
    return list(zip(identity, *words, strict=True))


def main() -> None:
    """Write every centre's file."""
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    for centre in CENTRES:
        with (folder / f"{centre}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *patients(centre, seed=11)])


if __name__ == "__main__":
    main()
