"""`fedrounds site start | status | preview | approve`: what a hospital's IT does with its agent."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrounds.tasks.agent import Visit
    from fedrounds.tasks.hospital import Hospital


def start(home: Path, as_json: bool) -> int:
    """Answer questions until it is stopped; a line for each on standard output."""
    with hospital_at(home) as hospital:
        from fedrounds.tasks.agent import alone, serve

        say = _say_json if as_json else _say
        with alone(home), _visits(hospital, home, say) as visit:
            say(
                f"agent of '{hospital.name}': looks outwards every {hospital.file.agent.poll:g} s, opens no port to others"
            )
            closed = "outside its hours: it waits"
            serve(hospital, visit, say, threading.Event(), lambda state: say(closed) if state == "closed" else None)
    return 0


@contextmanager
def _visits(hospital: Hospital, home: Path, say: Callable[[str], None]) -> Iterator[Visit]:
    """How a question is answered: as a flow run on the hospital's own Prefect server, or without one."""
    if hospital.file.agent.prefect == "off":
        yield hospital.answer
        return
    from fedrounds.cli.run import quiet, surroundings
    from fedrounds.tasks.prefect_server import PrefectServer, settings

    state = home / "state"
    server = PrefectServer(state / "prefect", state / "agent.log", templates=state)
    try:
        with surroundings(settings(state / "prefect", server.api_url)):
            server.wait()
            say(f"Prefect of '{hospital.name}': {server.api_url.removesuffix('/api')} (this machine alone)")
            with quiet(state / "agent.log"):
                from fedrounds.flows.hospital import visit

            def answer(letter: Any) -> Any:
                with quiet(state / "agent.log"):
                    return asyncio.run(visit(hospital, letter))

            yield answer
    finally:
        server.stop()


def status(home: Path, as_json: bool) -> int:
    """What was asked, what became of it, what left, what waits for a person."""
    with hospital_at(home) as hospital:
        from fedrounds.tasks.hospital import summary

        found = summary(hospital.book)
    if as_json:
        print(json.dumps({"site": hospital.name, **found}, ensure_ascii=False))
        return 0
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in found["outcomes"].items()) or "none yet"
    print(
        f"{hospital.name}: requests: {outcomes}; {found['bytes_in']:,} bytes came in, {found['bytes_out']:,} bytes left"
    )
    print(
        f"  all {found['log']['requests']} are as they were written down; keep this elsewhere: {found['log']['head'][:32]}"
    )
    for study, kept in found["witnessed"].items():
        origin, size, root = kept["note"].split("\n")[:3]
        anew = f", begun anew {len(kept['before'])} times" if kept["before"] else ""
        print(f"  the coordinator's log of study {study[:12]}: {size} leaves witnessed, root {root}, {origin}{anew}")
    if found["waits"]:
        study, number, kind = found["waits"]
        print(
            f"waits for a person: {'study' if kind == 'once' else f'round {number} of study'} {study[:12]} (`fedrounds site approve {home}`)"
        )
    for it in found["asked"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(it["at"]))
        about = f"round {it['round']} {it['ask']}" if it["study"] else "?"
        reason = f": {it['reason']}" if it["reason"] else ""
        print(
            f"  {when}  {about:<20} {it['outcome']:<9} in {it['bytes_in']:>8,} out {it['bytes_out']:>8,}  {it['seconds']:.2f} s{reason}"
        )
    return 0


def preview(home: Path, as_json: bool) -> int:
    """The bytes of sample replies in readable form: what would leave, and nothing leaves."""
    with hospital_at(home) as hospital:
        from fedrounds.tasks.preview import samples

        found = [sample.document() for sample in samples(hospital)]
    if as_json:
        print(json.dumps({"site": hospital.name, "replies": found}, ensure_ascii=False))
        return 0
    print("Sample replies, made from your rows just now. Nothing was sent. Every byte is in the lines below.")
    for it in found:
        print(
            f"\n{it['ask']}: {it['bytes']:,} bytes, SHA-256 {it['sha256'][:16]}…, in an envelope of {it['envelope']} bytes"
        )
        print(f"  header  {json.dumps(it['header'], ensure_ascii=False)}")
        for name, array in it["arrays"].items():
            print(f"  {name:<10} {array['shape']} {json.dumps(array['values'])}")
    return 0


def approve(home: Path, as_json: bool) -> int:
    """Say yes to what waits for a person."""
    with hospital_at(home) as hospital:
        from fedrounds.tasks.consent import approve

        approved = approve(hospital.book)
    if as_json:
        print(json.dumps({"site": hospital.name, "approved": approved or None}, ensure_ascii=False))
    else:
        print(f"approved: {approved}" if approved else "nothing waits for approval")
    return 0


@contextmanager
def hospital_at(home: Path) -> Iterator[Hospital]:
    """The hospital of a folder, closed at the end. Raises StudyError where the folder is none."""
    from fedrounds.core.errors import StudyError

    if not (home / "site.toml").is_file():
        raise StudyError(
            f"expected a hospital's folder with site.toml at {home}, found none: `fedrounds site join` writes it"
        )
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before numpy: the same sums everywhere
    from fedrounds.tasks.hospital import Hospital

    hospital = Hospital(home)
    try:
        yield hospital
    finally:
        hospital.close()


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}", flush=True)


def _say_json(line: str) -> None:
    print(json.dumps({"at": time.time(), "said": line}, ensure_ascii=False), flush=True)
