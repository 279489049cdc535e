"""`fedrounds site join TOKEN`: a hospital's side of the one exchange by which it joins."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedrounds.tasks.joining import Checked

LEAVES = """What leaves:    sums and model updates over this hospital's training patients, scores over its validation patients,
                the gate's verdict (names and counts, none from 1 to 9). `fedrounds site preview {home}` prints every byte.
What does not:  no row, no value of a row, no identifier, no date, no fingerprint of the data, no file or column but those above.
Who reaches in: nobody. The agent connects outwards to {where} alone, and runs installed code on data alone."""


KEEPS = """What leaves:    keys, and sums over three hospitals or more once they are seen to be sums; nothing of a row comes here.
Who reaches in: nobody. It connects outwards to {where} alone."""


def join(token: str, home: Path | None, data: Path | None, site_file: Path | None, holder: bool, as_json: bool) -> int:
    """Check everything, say what will leave, enrol."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    from fedrounds.core import invitation
    from fedrounds.tasks import joining

    invited = invitation.load(token.strip(), time.time())
    place = (home or Path(invited.site)).absolute()
    scratch = joining.prepared(invited, place, data, site_file, holder)
    found = joining.check(scratch, invited)
    if not as_json:
        _tell(found, place, invited.url)
    joining.enrol(scratch, place, invited)
    if as_json:
        print(json.dumps(found.document() | {"home": str(place)}, ensure_ascii=False))
    else:
        print(
            f"Joined. `fedrounds site start {place}` answers from now on; the coordinator takes note at its next look."
        )
    return 0


def _tell(found: Checked, home: Path, where: str) -> None:
    from fedrounds.tasks.verdict import line

    print(f"Study           {found.study} (protocol {found.digest[:12]})")
    print(f"Coordinator     key {found.coordinator}: compare it by telephone")
    print(f"Connection      {where}: the mailbox answers")
    if found.verdict is None:
        print("Part            it holds the key of the study's sums, and has no patients")
        print(KEEPS.format(where=where))
        return
    print(
        f"Table           {found.patients} patients, {len(found.columns)} columns are read: {', '.join(found.columns)}"
    )
    print(f"Gate            {line(found.verdict)}")
    print(f"Policy          {found.refusal or 'this hospital can take part'}")
    print(LEAVES.format(home=home, where=where))
