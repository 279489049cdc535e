"""What would leave a hospital, shown to its privacy officer before anything does: real replies from its rows, which go nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from fedrounds.core import encrypted
from fedrounds.core.answer import empty
from fedrounds.core.errors import StudyError
from fedrounds.core.identity import ENVELOPE, new_key, public_key
from fedrounds.core.masked import Self
from fedrounds.core.messages import Ask, Reply, Request, encode, unpack
from fedrounds.core.phases import PHASES
from fedrounds.core.plan import build
from fedrounds.core.privacy.epoch import FEWEST
from fedrounds.core.privacy.settings import Privacy
from fedrounds.core.round import Asking, Roll, close_exchange, open_round
from fedrounds.core.simulate import simulate
from fedrounds.core.worse import FEWEST as FEWEST_COUNTED
from fedrounds.tasks.hospital import Hospital
from fedrounds.tasks.joined import Joined, newest

ASKS: tuple[Ask, ...] = ("statistics", "profile", "train", "score")  # after the gate


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

    Under masks the others are two made-up hospitals, who make keys and send nothing.

    The statistics of the sample are the hospital's own, where a study's are those of all; the model is the initial one.

    Raises:
        StudyError: the study does not fit the hospital.
        ServiceError: the study is not in the mailbox.
    """
    if hospital.file.source is None:
        raise StudyError(
            f"expected a hospital with rows, found '{hospital.name}', which holds a key alone: nothing of a row leaves"
        )
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
    if joined.plan.study.masked:
        yield from _masked(hospital.name, joined)
        return
    state = start
    for ask in (*ASKS, *_explained(joined)):
        asking: Any = open_round(state, joined.plan, ask, [hospital.name])
        while isinstance(asking, Asking):
            _, reply = joined.ward.reply(asking.request, {})
            yield Sample(ask, encode(reply))
            if reply.refusal:
                return
            of, combine = joined.plan.study.participation, joined.plan.study.combine
            if ask == "train" and max(of.minimum, combine.fewest if combine else 1) > 1:  # there is none of one update
                break
            asking = close_exchange(asking, joined.plan, [reply])
        if ask == "statistics":
            state = asking.state


def _explained(joined: Joined) -> tuple[Ask, ...]:
    """What is asked to explain a model, where the hospital answers that."""
    return ("explain",) if joined.ward.policy.explanations else ()


def _masked(name: str, joined: Joined) -> Iterator[Sample]:
    ward, plan = joined.ward, joined.plan
    assert plan.study.masked is not None
    ckks = encrypted.protecting(plan.study)
    fewest = FEWEST_COUNTED if plan.study.masked.margin is not None else FEWEST * plan.study.masked.groups
    others = tuple(f"made-up-{number}" for number in range(1, fewest))
    keys = {one: new_key() for one in sorted({name, *others, *([ckks.opener] if ckks else [])})}
    roster = {one: public_key(key) for one, key in keys.items()}
    vaults, state, asked = {one: empty(plan) for one in keys}, plan.start(), encrypted.patients(plan.study, keys)
    for ask in ("statistics", "train", "score", *_explained(joined)):
        asking: Any = open_round(state, plan, ask, asked, roll=Roll(roster, 1 + vaults[name].number))
        while asking.request.ask in PHASES:  # keys and shares
            replies: list[Reply] = []
            for one in asking.sites:
                me = Self(one, keys[one], roster)
                vaults[one], _, reply = ward.masked(asking.request_to(one), vaults[one], me, {})
                replies.append(reply)
                if one == name:
                    yield Sample(asking.request.ask, encode(reply))
            asking = close_exchange(asking, plan, replies)
        _, _, reply = ward.masked(asking.request_to(name), vaults[name], Self(name, keys[name], roster), {})
        yield Sample(ask, encode(reply))
        if reply.refusal or ward.cohort is None:
            return
        if ask == "statistics":  # that are the hospital's own here
            plain = build(plan.study.model_copy(update={"privacy": Privacy()}))
            agreed = next(simulate(plain, {name: ward.cohort}, 0, policy=ward.policy)).state.statistics
            state = plan.start({**agreed, "rows": np.array([float(np.count_nonzero(~ward.cohort.valid))])})
