"""`fedrounds promote` and `fedrounds rollback`: a person's word on a version."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedrounds.cli.study import opened

if TYPE_CHECKING:
    from fedrounds.tasks.acts import Done
    from fedrounds.tasks.folder import Folder


def promote(
    directory: Path,
    state: Path | None,
    round: int | None,
    turn_down: bool,
    reason: str,
    by: str | None,
    as_json: bool,
) -> int:
    """Approve the version that waits for it, or turn it down; with `round`, make any version that was scored champion."""
    from fedrounds.tasks import acts

    folder, place = opened(directory, None, state)
    if turn_down:
        return _say(folder, acts.reject(place, reason=reason, by=_name(by)), as_json)
    return _say(folder, acts.promote(place, round, reason=reason, by=_name(by)), as_json)


def rollback(directory: Path, state: Path | None, to: int | None, reason: str, by: str | None, as_json: bool) -> int:
    """Go back to the champion before the present one, or to that of round `to`."""
    from fedrounds.tasks import acts

    folder, place = opened(directory, None, state)
    return _say(folder, acts.rollback(place, to, reason=reason, by=_name(by)), as_json)


def _say(folder: Folder, done: Done, as_json: bool) -> int:
    from fedrounds.ledger.standing import said

    now, act, study = done.standing, done.act, folder.study.name
    if as_json:
        document = {
            "study": study,
            "act": act and {"act": act.act, "round": act.round, "reason": act.reason, "by": act.by, "at": act.at},
            "champion": now.champion,
            "challenger": now.challenger,
            "reports": done.reports,
        }
        print(json.dumps(document, ensure_ascii=False))
        return 0
    for report in done.reports:
        print(report)
    champion = f"the champion is round {now.champion}" if now.champion else "there is no champion"
    if act is None:
        print(f"{study}: nothing to do: {champion} already.")
    elif act.act == "rollback":
        print(f"{study}: {said(act)}.")
    else:
        print(f"{study}: round {act.round} {said(act)}; {champion}.")
    return 0


def _name(by: str | None) -> str:
    """Who acts: the name that was given, or the user's on this machine."""
    if by and by.strip():
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return "unknown"
