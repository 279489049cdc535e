"""`fedrounds init`: a study that is ready to run, with comments that teach its files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from fedrounds.core.errors import StateError

TEMPLATE = Path(__file__).parent / "template"
NAME = "readmission"


def init(directory: Path, as_json: bool) -> int:
    """Write the template and four toy hospitals into a new or empty folder."""
    from fedrounds.cli.template_data import toy
    from fedrounds.tasks.folder import RESERVED

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StateError(f"expected a new or empty folder, found {directory} in use: choose another name")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", directory.resolve().name).strip("-._")[:63] or NAME
    name = NAME if name.lower() in RESERVED else name
    try:
        shutil.copytree(TEMPLATE, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        study = directory / "study.toml"
        study.write_text(study.read_text().replace(f'name = "{NAME}"', f'name = "{name}"'))
        (directory / "data").mkdir(exist_ok=True)
        for site, text in toy(seed=1).items():
            (directory / "data" / f"{site}.csv").write_text(text)
        (directory / "mlruns").mkdir(exist_ok=True)
        (directory / "mlruns" / ".gitignore").write_text("*\n!.gitignore\n")
    except OSError as error:
        raise StateError(
            f"expected to write a study into {directory}, found: {error.strerror}: choose another folder"
        ) from None
    if as_json:
        print(
            json.dumps(
                {
                    "study": name,
                    "folder": str(directory),
                    "files": sorted(str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file()),
                }
            )
        )
    else:
        print(f"{directory} is ready: four toy hospitals, made-up patients.")
        print(f"Next: fedrounds check {directory} --gate; fedrounds run {directory}; fedrounds ui {directory}")
    return 0
