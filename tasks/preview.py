"""What would leave a hospital, shown to its privacy officer before anything does: real replies from its rows, which go nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fedrounds.core.errors import StudyError
from fedrounds.core.identity import ENVELOPE
from fedrounds.core.messages import Ask, Request, encode, unpack
from fedrounds.core.round import Asking, close_exchange, open_round
from fedrounds.tasks.hospital import Hospital
from fedrounds.tasks.joined import newest

ASKS: tuple[Ask, ...] = ("gate", "statistics", "profile", "train", "score")


@dataclass(frozen=True)
class Sample:
    """A message as it would leave."""

    ask: str
    message: bytes

    def document(self) -> dict[str, Any]:
        """Every byte of it, in words and numbers."""
        header, arrays = unpack(self.message)
        values = {
            name: {"shape": list(array.shape), "values": array.ravel().tolist()} for name, array in arrays.items()
        }
        digest = sha256(self.message).hexdigest()
        return {
            "ask": self.ask,
            "bytes": len(self.message),
            "sha256": digest,
            "envelope": ENVELOPE,
            "header": header,
            "arrays": values,
        }


def samples(hospital: Hospital) -> Iterator[Sample]:
    """A reply to each kind of question, by this hospital's rows and policy; its book and its mailbox stay as they were.

    The statistics of the sample are the hospital's own, where a study's are those of all; the model is the initial one.

    Raises:
        StudyError: the study does not fit the hospital.
        ServiceError: the study is not in the mailbox.
    """
    joined = hospital.joined(newest(hospital.mailbox, hospital.coordinator, hospital.name))
    if isinstance(joined, str):
        raise StudyError(joined)
    verdict = hospital.verdict(joined)
    start = joined.plan.start()
    base = start.model_digest
    gate = Request(start.study, 0, 0, "gate", base, {})
    yield Sample("gate", hospital.finding(gate, verdict, fresh=bool(joined.ward.fingerprint)))
    if verdict.action in ("exclude", "halt"):  # nothing else would leave
        return
    if joined.plan.study.privacy.dp:  # a sample would cost privacy as an answer does
        return
    state = start
    for ask in ASKS[1:]:
        asking: Any = open_round(state, joined.plan, ask, [hospital.name])
        while isinstance(asking, Asking):
            _, reply = joined.ward.reply(asking.request, {})
            yield Sample(ask, encode(reply))
            if reply.refusal:
                return
            asking = close_exchange(asking, joined.plan, [reply])
        if ask == "statistics":
            state = asking.state
