"""`fedrounds coordinator roster` and `fedrounds site roster`: agree on whose keys count, before sums are masked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedrounds.cli.agent import hospital_at


def publish(home: Path, as_json: bool) -> int:
    """Write the keys of all hospitals that have joined into a file for them, and say how it is compared."""
    from fedrounds.core.roster import spoken
    from fedrounds.tasks.agreed import publish as written

    file, roster = written(home)
    if as_json:
        print(json.dumps({"file": str(file), "digest": spoken(roster), "sites": list(roster)}))
        return 0
    _show(roster)
    print(f"Written to {file}. Send it to every hospital; there: fedrounds site roster DIR {file.name}")
    print("Each compares the digest with the others' by telephone, not with you.")
    return 0


def agree(home: Path, file: Path | None, as_json: bool) -> int:
    """Show whose keys count here; with a file, go by that one from now on."""
    from fedrounds.core.roster import spoken
    from fedrounds.tasks.agreed import agree as agreed

    with hospital_at(home) as hospital:
        roster = agreed(hospital, file) if file else hospital.roster()
    if as_json:
        print(json.dumps({"site": hospital.name, "digest": spoken(roster) if roster else None, "sites": list(roster)}))
    elif not roster:
        print("no roster yet: `fedrounds site roster DIR FILE` takes the one that the coordinator sends")
    else:
        _show(roster)
        print("Masks go by these keys alone. Compare the digest with the other hospitals' by telephone.")
    return 0


def _show(roster: Mapping[str, bytes]) -> None:
    from fedrounds.core.identity import fingerprint
    from fedrounds.core.roster import spoken

    for name, key in roster.items():
        print(f"  {name:<24} {fingerprint(key)}")
    print(f"digest of the roster: {spoken(roster)}")
