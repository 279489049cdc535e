"""A made-up test-negative study of a vaccine: `python studies/vaccine/make_data.py` writes data/COUNTRY.csv. Nobody in it ever lived.

Among people tested because they were ill, the odds ratio of vaccination between those with the infection and those without is one minus
the effectiveness (Jackson and Nelson 2013, Vaccine 31, 2165). Truth: EFFECTIVENESS, the same in every country; how much infection there is,
and who was vaccinated, differ from country to country and from month to month.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

COUNTRIES = {"alba": 2400, "borea": 1500, "cassia": 3100, "dorna": 900}  # people tested
EFFECTIVENESS = {"primary": 0.55, "booster": 0.80}
LEVEL = {
    "alba": -0.4,
    "borea": 0.0,
    "cassia": -0.7,
    "dorna": 0.3,
}  # log-odds of infection in an unvaccinated person of 50 in month 1
UPTAKE = {"alba": 0.75, "borea": 0.6, "cassia": 0.5, "dorna": 0.8}
MONTH = np.array([0.0, 0.5, 0.9, 0.6, 0.1, -0.3])
COLUMNS = ("person_id", "vaccine", "age", "chronic", "month", "country", "infected")


def people(country: str, seed: int) -> list[tuple[object, ...]]:
    """A country's rows, in order of the test."""
    rng, n = np.random.default_rng([seed, *country.encode()]), COUNTRIES[country]
    age = rng.gamma(6, 8, n).clip(18, 100).round()
    chronic = rng.random(n) < 1 / (1 + np.exp((60 - age) / 9))
    month = np.sort(rng.integers(0, len(MONTH), n))
    vaccinated = rng.random(n) < UPTAKE[country] * np.where(age > 60, 1.15, 0.95)
    boosted = vaccinated & (rng.random(n) < 0.15 * month)
    vaccine = np.where(boosted, "booster", np.where(vaccinated, "primary", "none"))
    protection = {"none": 0.0} | {dose: np.log(1 - part) for dose, part in EFFECTIVENESS.items()}
    score = LEVEL[country] + MONTH[month] + 0.008 * (age - 50) + 0.15 * chronic + [protection[dose] for dose in vaccine]
    infected = rng.random(n) < 1 / (1 + np.exp(-score))
    identity = [f"{country[0]}{number:05d}" for number in range(1, n + 1)]
    whole = [values.astype(int).tolist() for values in (age, chronic, month + 1)]
    return list(zip(identity, vaccine.tolist(), *whole, [country] * n, infected.astype(int).tolist(), strict=True))


def main() -> None:
    """Write every country's file."""
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    for country in COUNTRIES:
        with (folder / f"{country}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *people(country, seed=23)])


if __name__ == "__main__":
    main()
