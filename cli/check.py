"""`fedrounds check`: everything that can be wrong is found without training, and nothing is written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.cli.run import compatible
from fedrounds.cli.study import loaded, opened
from fedrounds.core.errors import StudyError

if TYPE_CHECKING:
    from fedrounds.tasks.folder import Folder


WHAT = {
    "halt": "would halt the run",
    "exclude": "would sit out",
    "down-weight": "would count for less",
    "warn": "would take part all the same",
}


def check(directory: Path, data: Path | None, state: Path | None, gate: bool, as_json: bool) -> int:
    """Validate files, data contracts and cohorts; with `gate`, run the suites too. Exit code 12 if a gate fails."""
    folder, place = opened(directory, data, state)
    wards = loaded(folder)
    for ward in wards.values():
        if not ward.refusal() and (said := ward.plan.family.unready(ward.policy.modules)):
            raise StudyError(said)
    anew = compatible(folder, place, fresh=True)
    verdicts = _gate(folder) if gate else {}
    sites = [
        {
            "site": name,
            "patients": ward.load(),
            "refusal": ward.refusal(),
            "dropped": dict(ward.cohort.dropped) if ward.cohort else {},
            **(dict(zip(("passed", "gate", "action"), verdicts[name], strict=True)) if gate else {}),
        }
        for name, ward in wards.items()
    ]
    failed = [name for name, (passed, *_) in verdicts.items() if not passed]
    if as_json:
        digest = folder.study.digest
        print(
            json.dumps(
                {
                    "study": folder.study.name,
                    "digest": digest,
                    "sites": sites,
                    "failed_gates": failed,
                    "needs_fresh": anew,
                },
                ensure_ascii=False,
            )
        )
    else:
        _print(folder, sites, gate, failed, anew)
    return 12 if failed else 0


def _gate(folder: Folder) -> dict[str, tuple[bool, str, str]]:
    """site -> (passed, one line, action); without a suite the contract alone counts."""
    if folder.suite is None:
        return dict.fromkeys(folder.sites, (True, "no suite", "pass"))
    from fedrounds.tasks.gate import check as run_suite
    from fedrounds.tasks.verdict import line

    verdicts = {name: run_suite(folder, name) for name in folder.sites}
    return {name: (verdict.passed, line(verdict), verdict.action) for name, verdict in verdicts.items()}


def _print(folder: Folder, sites: list[dict[str, Any]], gate: bool, failed: list[str], anew: bool) -> None:
    from fedrounds.tasks.calendar import following

    study = folder.study
    algorithm = study.algorithm.preset or "own algorithm"
    model = " ".join((study.model.kind, *study.model.runs))
    print(f"{study.name}: {len(study.features)} features, {model}, {algorithm}, digest {study.digest[:12]}")
    some = study.participation
    if some.title:
        print(
            f"  a round asks {some.asked(len(sites))} of {len(sites)} sites and closes with {some.goal(len(sites))}: {some.title}"
        )
    for site in sites:
        dropped = ", ".join(f"{count} left out: {reason}" for reason, count in site["dropped"].items())
        parts = [
            f"{site['patients']} patients",
            dropped,
            site["refusal"] and f"takes no part: {site['refusal']}",
            site.get("gate", ""),
        ]
        print(f"  {site['site']}: " + "; ".join(part for part in parts if part))
    if schedule := folder.operations.schedule:
        tick = following(schedule, datetime.now(UTC))
        print(
            f"  next tick of its calendar: {tick:%A %Y-%m-%d %H:%M} {schedule.timezone}; `fedrounds deploy` has it run"
        )
    if anew:
        print("the protocol is another than the one that ran here: `fedrounds run --fresh` starts its own lineage")
    if failed:
        for action, what in WHAT.items():
            named = [site["site"] for site in sites if site["site"] in failed and site["action"] == action]
            if named:
                print(f"gate failed at {', '.join(named)}, which {what}: mend the data there")
    else:
        print("ready to run" + ("" if gate else " (`--gate` runs the suites too)"))
