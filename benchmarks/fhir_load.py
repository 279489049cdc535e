"""What a FHIR bulk export costs to load: 100,000 observations of about 5,000 patients, in a process of its own.

    python benchmarks/fhir_load.py [--observations 100000] [--packed]

Prints seconds of wall and of CPU, and the process's largest memory, all of Python and NumPy in it. The issue's limits: 20 s, 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import clinic

PART = 500  # patients a file
DAY, WINDOW = "2025-06-01", "window_days = [-365, 0]"
SITE = f"""
kind = "fhir"
path = "export"
index = {{ date = {DAY} }}
columns = [
  {{ column = "age", resource = "Patient", value = "age" }},
  {{ column = "sex", resource = "Patient", value = "gender" }},
  {{ column = "sbp", resource = "Observation", code = ["{clinic.LOINC}|8480-6"], value = "quantity", unit = "mm[Hg]", when = "last", {WINDOW} }},
  {{ column = "dbp", resource = "Observation", code = ["{clinic.LOINC}|8462-4"], value = "quantity", unit = "mm[Hg]", when = "mean", {WINDOW} }},
  {{ column = "glucose", resource = "Observation", code = ["{clinic.LOINC}|2339-0"], value = "quantity", unit = "mg/dL", when = "max" }},
  {{ column = "diabetes", resource = "Condition", code = ["{clinic.SNOMED}|44054006"], when = "any" }},
]
"""


def load(folder: Path) -> dict[str, float]:
    """Load the export in there, and say what it took."""
    import tomllib

    from pydantic import TypeAdapter

    from fedrounds import sources

    source = TypeAdapter(sources.Source).validate_python(tomllib.loads(SITE))
    wall, cpu = time.perf_counter(), time.process_time()
    table = sources.load(source, folder, "north")
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    peak = (
        int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    )  # getrusage would count the parent's too
    return {"rows": table.rows, "columns": len(table.columns), **took, "peak_mib": peak}


def measure(observations: int, packed: bool = False) -> dict[str, float]:
    """Write an export of at least so many Observations, and load it in a new process."""
    with tempfile.TemporaryDirectory() as place:
        folder, count, part = Path(place), 0, 0
        while count < observations:
            people = clinic.made(PART, 9, seed=part, first=clinic.FIRST + PART * part)
            found = [resource for resource in clinic.resources(people) if resource["resourceType"] != "Encounter"]
            clinic.export(found, folder / "export", packed, f"-{part}")
            count, part = count + sum(resource["resourceType"] == "Observation" for resource in found), part + 1
        size = sum(file.stat().st_size for file in (folder / "export").iterdir())
        words = [sys.executable, __file__, "--load", str(folder)]
        said = subprocess.run(words, check=True, capture_output=True, text=True, timeout=1200).stdout
    return {"observations": count, "mib": size / 2**20, **json.loads(said)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--observations", type=int, default=100_000)
    parser.add_argument("--packed", action="store_true", help="as .ndjson.gz")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.load:
        print(json.dumps(load(words.load)))
        return
    found = measure(words.observations, words.packed)
    print(
        f"{found['observations']:,.0f} observations in {found['mib']:.0f} MiB -> {found['rows']:,.0f} patients x {found['columns']:.0f} columns"
    )
    print(
        f"{found['wall']:.1f} s of wall, {found['cpu']:.1f} s of CPU, {found['peak_mib']:.0f} MiB at most; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
