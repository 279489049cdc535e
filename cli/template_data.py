"""Made-up patients for the study that `fedrounds init` writes. No real person is in them."""

from __future__ import annotations

import numpy as np

HOSPITALS = {
    "north": (300, 71.0, 0.35),
    "east": (240, 62.0, 0.25),
    "south": (180, 66.0, 0.45),
    "west": (120, 57.0, 0.20),
}
"""Each hospital's rows, mean age and share of patients with diabetes: they differ, as hospitals do."""

COLUMNS = ("patient_id", "age", "sex", "systolic_bp", "creatinine", "smoker", "diabetes", "readmitted")


def toy(seed: int = 0) -> dict[str, str]:
    """A CSV file's text for each hospital; the same seed gives the same text.

    Older patients, high creatinine, diabetes and smoking raise the chance to be readmitted. As in a real export, some cells are empty
    or hold a code: -9 for a blood pressure, NA for a creatinine, `unknown` for a smoker.

    >>> toy()["north"].splitlines()[0]
    'patient_id,age,sex,systolic_bp,creatinine,smoker,diabetes,readmitted'
    """
    seeds = np.random.SeedSequence(seed).spawn(len(HOSPITALS))
    return {
        site: _csv(site, np.random.default_rng(own), *mix)
        for own, (site, mix) in zip(seeds, HOSPITALS.items(), strict=True)
    }


def _csv(site: str, random: np.random.Generator, rows: int, mean_age: float, diabetic: float) -> str:
    age = np.clip(np.rint(random.normal(mean_age, 11, rows)), 18, 98).astype(int)
    sex = random.choice(["f", "m"], rows)
    diabetes = random.random(rows) < diabetic
    smoker = random.choice(["never", "former", "current"], rows, p=[0.5, 0.3, 0.2])
    systolic = np.clip(np.rint(random.normal(110 + 0.4 * age, 15)), 80, 230).astype(int)
    creatinine = np.clip(np.exp(random.normal(-0.1 + 0.15 * diabetes, 0.3)), 0.3, 9.0)
    risk = (
        0.06 * (age - 65)
        + 0.015 * (systolic - 137)
        + 1.5 * (creatinine - 1.0)
        + diabetes
        + 0.9 * (smoker == "current")
        - 0.9
    )
    readmitted = random.random(rows) < 1 / (1 + np.exp(-risk))

    systolic[random.random(rows) < 0.04] = -9
    creatinine_text = np.where(random.random(rows) < 0.06, "NA", [f"{value:.2f}" for value in creatinine])
    smoker = np.where(random.random(rows) < 0.05, "unknown", smoker)
    yes_no = np.array(["no", "yes"])
    columns = (
        [f"{site[0].upper()}{number:04d}" for number in range(1, rows + 1)],
        age,
        sex,
        systolic,
        creatinine_text,
        np.where(random.random(rows) < 0.02, "", smoker),
        yes_no[diabetes.astype(int)],
        yes_no[readmitted.astype(int)],
    )
    lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    return "\n".join(lines) + "\n"
