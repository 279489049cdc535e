"""`fedrounds site docs`: a site's last validation as a page in a folder of its own. It stays there: no other command reads or sends it."""

from __future__ import annotations

import json
from pathlib import Path

from fedrounds.cli.study import opened


def docs(directory: Path, data: Path | None, state: Path | None, site: str | None, as_json: bool) -> int:
    """Validate anew, and write `STATE/docs/SITE/index.html` for one site or for all."""
    from fedrounds.core.errors import StateError, StudyError
    from fedrounds.tasks import gate

    folder, place = opened(directory, data, state)
    if site is not None and site not in folder.sites:
        raise StudyError(f"expected a site of the study, found '{site}': it has {', '.join(folder.sites)}")
    written: dict[str, str] = {}
    for name in [site] if site else folder.sites:
        text, file = gate.docs(folder, name), place.own / "docs" / name / "index.html"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.parent.chmod(0o700)  # the site's own
            scratch = file.with_suffix(".new")
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(file)
        except OSError as error:
            raise StateError(
                f"expected to write a page to {file}, found: {error.strerror}: choose another folder with --state"
            ) from None
        written[name] = str(file)
    if as_json:
        print(json.dumps({"study": folder.study.name, "docs": written}, ensure_ascii=False))
    else:
        for name, file in written.items():
            print(f"{name}: {file}")
    return 0
