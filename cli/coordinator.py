"""`fedrounds coordinator`: a coordinator's folder, its servers, and who takes part."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrounds.coordinator.roster import Site

LOOK_S = 0.2


def coordinator(arguments: argparse.Namespace) -> int:
    """Carry out one of its actions."""
    home, as_json = arguments.dir, arguments.json
    match arguments.action:
        case "init":
            return _init(home, arguments.study, arguments.public, arguments.postgres, as_json)
        case "start":
            return _start(home, arguments.only or [], as_json)
        case "invite":
            return _invite(home, arguments.site, arguments.days, as_json)
        case "sites":
            return _sites(home, as_json)
        case "roster":
            from fedrounds.cli.roster import publish

            return publish(home, as_json)
        case _:
            return _change(home, arguments.action, arguments.site, as_json)


def _init(home: Path, study: Path, public: str, postgres: str, as_json: bool) -> int:
    from fedrounds.tasks.founding import found

    config = found(home, study, public, postgres)
    if as_json:
        print(json.dumps({"folder": str(home), **config.model_dump()}))
        return 0
    where = "PostgreSQL" if postgres else "SQLite files, for a trial: name a server with --postgres for more"
    print(f"{home} is ready: keys, configuration, {where}.")
    print(
        f"Hospitals will reach {config.public}, people https://127.0.0.1:{config.ports.staff} (user admin, secrets.toml)."
    )
    print(f"Next: fedrounds coordinator start {home}; then, beside it: fedrounds coordinator invite {home} SITE")
    return 0


def _start(home: Path, only: list[str], as_json: bool) -> int:
    from fedrounds.tasks.services import Services

    def say(line: str) -> None:
        print(
            json.dumps({"at": time.time(), "said": line}) if as_json else f"{time.strftime('%H:%M:%S')} {line}",
            flush=True,
        )

    services = Services(home, only, say)
    try:
        services.start()
        if as_json:
            print(json.dumps({"ready": True, "pids": services.pids(), **services.addresses}), flush=True)
        else:
            print(
                "ready: " + ", ".join(f"{name} {address}" for name, address in services.addresses.items()), flush=True
            )
            print("Ctrl-C ends all of it; hospitals then wait.", flush=True)
        while True:
            services.tend()
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        return 0
    finally:
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, signal.SIG_IGN)  # an impatient second one must not leave a server behind
        services.stop()


def _invite(home: Path, site: str, days: int, as_json: bool) -> int:
    from fedrounds.core.identity import fingerprint
    from fedrounds.tasks.inviting import invite

    invited, token = invite(home, site, days)
    key = fingerprint(bytes.fromhex(invited.coordinator))
    if as_json:
        said = {
            "site": site,
            "token": token,
            "expires": invited.expires,
            "study": invited.study,
            "digest": invited.digest,
            "key": key,
        }
        print(json.dumps(said))
        return 0
    print(token)
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(invited.expires))
    print(
        f"For {site} alone, until {until}, once. Send it as you would a password; an earlier one for {site} holds no more.\n"
        f"There: fedrounds site join TOKEN --data TABLE. Compare by telephone the coordinator's key: {key}",
        file=sys.stderr,
    )
    return 0


def _change(home: Path, action: str, name: str, as_json: bool) -> int:
    from fedrounds.tasks import inviting

    site: Site = getattr(inviting, action)(home, name)
    if as_json:
        print(json.dumps(_document(site)))
    else:
        says = {
            "suspend": "is not asked and not let in until it is resumed",
            "resume": "takes part again",
            "remove": "is out for good",
        }
        print(f"{name} {says[action]}; nothing changes for the others.")
    return 0


def _sites(home: Path, as_json: bool) -> int:
    from fedrounds.coordinator import config, roster

    config.read(home)  # an error where it is no coordinator's folder
    sites = roster.read(home).values()
    if as_json:
        print(json.dumps({"sites": [_document(site) for site in sites]}))
        return 0
    if not sites:
        print(f"nobody yet: fedrounds coordinator invite {home} SITE")
        return 0
    wide = max(4, *(len(site.name) for site in sites))
    print(f"{'site':<{wide}}  status     since             key")
    for site in sites:
        print(f"{site.name:<{wide}}  {site.status:<9}  {_since(site):<16}  {_fingerprint(site)}")
    return 0


def _document(site: Site) -> dict[str, Any]:
    shown = site.model_dump(exclude={"name", "nonce_hash"})
    return {"site": site.name, **shown, "fingerprint": _fingerprint(site)}


def _fingerprint(site: Site) -> str:
    from fedrounds.core.identity import fingerprint

    return fingerprint(bytes.fromhex(site.key)) if site.key else ""


def _since(site: Site) -> str:
    if site.joined:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(site.joined))
    if site.status == "invited":
        return "over" if site.expires <= time.time() else time.strftime("until %m-%d %H:%M", time.gmtime(site.expires))
    return ""
