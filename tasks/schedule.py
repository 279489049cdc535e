"""What a tick needs to know of a study that is open, and what is remembered after it. No Prefect in here.

The ledger keeps two notes: `finished`, the visit behind which nothing was left to do, and `tick`, when the last tick that came to an end
had started. What data a site's last trained visit saw is the site's own: its file `sites.json` keeps it, and nothing else reads it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import UTC, datetime

from fedrounds.core.errors import FedroundsError
from fedrounds.core.schedule import Tick, decide
from fedrounds.tasks.calendar import following, zone
from fedrounds.tasks.run import Run
from fedrounds.tasks.verdict import Verdict, line
from fedrounds.tasks.ward import Ward


def look(run: Run, due: datetime, now: datetime) -> Tick:
    """Decide on the tick that was due at `due`; rows are read only where the answer depends on them."""
    schedule = run.folder.operations.schedule
    if schedule is None:  # it was taken out of operations.toml after it was deployed
        return Tick(
            "skip",
            "operations.toml has no [schedule] any more: `fedrounds deploy DIR --remove` takes it off the server",
        )
    noted = run.ledger.noted("tick")
    known = {
        "following": following(schedule, due),
        "covered": datetime.fromtimestamp(noted["started"], UTC) if noted else None,
        "unfinished": unfinished(run),
    }
    local = now.astimezone(zone(schedule))
    tick = decide(schedule, local, due, **known)
    if tick.action == "skip" or known["unfinished"] or not schedule.skip_unchanged or run.carrier == "mail":
        return tick
    return decide(schedule, local, due, **known, news=news(run))


def unfinished(run: Run) -> bool:
    """Whether a run of the study began and did not reach its end."""
    return run.visit > 0 and run.ledger.noted("finished") != run.visit


def news(run: Run) -> list[str]:
    """Sites whose data, or what they are judged by, differ from the last trained visit's. Where in doubt, they are new."""
    for ward in run.wards.values():
        with suppress(FedroundsError):  # the run says so, where it tries again what may pass
            if ward.cohort is None:
                ward.load(strict=False)
    return [name for name, ward in run.wards.items() if run.memory.trained(name) != _seen(run, ward)]


def remember(run: Run) -> None:
    """Write down which data the sites' last trained visit saw; call it when the visits are committed, so that a crash before it asks anew."""
    run.memory.keep_trained({name: _seen(run, ward) for name, ward in run.wards.items()})


def settle(run: Run, started: datetime) -> None:
    """Note that a tick came to an end, well or not: what was due until it started was its own."""
    run.ledger.note("tick", {"started": started.timestamp()})


def _seen(run: Run, ward: Ward) -> str:
    """A digest of a site's rows and of what decides whether it takes part; empty where no rows were read, which is nothing new twice."""
    if not ward.fingerprint:
        return ""
    rules = run.folder.operations.model_dump(mode="json", include={"sites", "quorum", "gate"})
    suite = run.folder.suite.hash if run.folder.suite else ""
    site = ward.site.model_dump(mode="json", include={"policy", "absent"})
    return hashlib.sha256(json.dumps([ward.fingerprint, suite, rules, site], sort_keys=True).encode()).hexdigest()


def told(run: Run, outcome: str, reason: str, due: datetime, before: int) -> str:
    """The tick's artifact: what was due, what became of it, which sites sat out and why."""
    schedule = run.folder.operations.schedule
    place = zone(schedule) if schedule else UTC
    rounds = "no round trained" if run.state.round == before else f"round {before} → {run.state.round}"
    champion = run.state.champion
    rows = [
        ("due", f"{due.astimezone(place):%a %Y-%m-%d %H:%M:%S %Z}"),
        ("rounds", rounds),
        ("model", f"`{run.state.model_digest[:12]}`" if run.visit else "none yet"),
        ("champion", f"round {champion.round}" if champion else "none yet"),
    ]
    heads = [f"| outcome | **{outcome}** |", "|---|---|"]  # a table has a head; an empty one shows as a bar
    table = "\n".join([*heads, *(f"| {name} | {value} |" for name, value in rows)])
    sat_out = [name for name in run.excluded if name in run.verdicts]
    return (
        "\n\n".join([f"# {run.folder.study.name}: {outcome.lower()}", reason, table, *_gate(run.verdicts, sat_out)])
        + "\n"
    )


def _gate(verdicts: dict[str, Verdict], sat_out: list[str]) -> list[str]:
    if not verdicts:
        return []
    heard = [
        f"- {name}: {line(verdict)}{' — **sat out**' if name in sat_out else ''}" for name, verdict in verdicts.items()
    ]
    return ["## Gate", "\n".join(heard)]
