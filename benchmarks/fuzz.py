"""Hostile bytes against everything that reads them: messages, envelopes and `core.answer.handle`. Writes docs/fuzz.md.

make fuzz          or          .venv/bin/python benchmarks/fuzz.py [INPUTS_PER_TARGET [SEED]]

Hypothesis draws the inputs: random bytes, random headers, whole messages with a few bytes changed, and well-formed requests with arrays
that no honest coordinator would send. Anything but an answer or one of the reasons below ends the program with a traceback.
"""

from __future__ import annotations

import datetime as dt
import json
import platform
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fedrounds.core.answer import Policy, handle
from fedrounds.core.codec import width
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.identity import MAGIC as ENVELOPE_MAGIC
from fedrounds.core.identity import PREFIX as ENVELOPE_PREFIX
from fedrounds.core.identity import VERSION, About, public_key, sign, verify
from fedrounds.core.messages import MAGIC, NARROW, PREFIX, PROTOCOL, Reply, Request, decode, encode
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Cohort, clean
from fedrounds.core.round import open_round
from fedrounds.core.study import Study
from fedrounds.core.table import Table

ROOT = Path(__file__).resolve().parent.parent
INPUTS, SEED = 40_000, 2026
LONGEST_S, LARGEST_MB = 5.0, 400  # of one input on a busy machine; of the whole process, on top of its start

REASONS = {  # every reason for which something may be refused, and the words it is known by
    "a message: too large": r"expected a message of at most",
    "a message: too short": r"expected a message of at least",
    "a message: cut short or lengthened": r"expected (a header of \d+ bytes|\d+ bytes for array|a message of \d+ bytes)",
    "a message: not ours": r"expected a Fedrounds message",
    "a message: of another version": r"expected message version",
    "a message: its header is not plain JSON": r"expected (a JSON|each header field once)",
    "a message: of another kind": r"expected a (Request|Reply), found",
    "a message: other header fields": r"expected header fields",
    "a message: a header field of another type or size": r"expected header field '",
    "a message: asks for what cannot be asked": r"expected to be asked for one of",
    "a message: its arrays are not listed plainly": r"expected (a list of arrays|arrays listed as|array '|array \"|each array once)",
    "a message: a number is not finite": r"expected finite numbers",
    "an envelope: too large": r"expected a payload of at most",
    "an envelope: cut short or lengthened": r"expected (a signed message, found|a statement and a signature|a payload of \d+ bytes)",
    "an envelope: not ours": r"expected a signed message of Fedrounds",
    "an envelope: of another version": r"expected envelope version",
    "an envelope: words that are none": r"expected (a site's name|direction request or reply)",
    "an envelope: another key": r"expected a message signed by key",
    "an envelope: forged or damaged": r"expected a signature by key",
    "an envelope: about another study, round, attempt, exchange, site, direction or base": r"expected a message about",
    "an envelope: another payload": r"expected the payload that was signed",
    "an answer: another study": r"expected study \w+, was asked about",
    "an answer: other arrays": r"expected arrays \[.*\], was asked with",
    "an answer: arrays of other shapes": r"expected \w+ of shape .*, was asked with",
    "an answer: below the minimum cohort": r"its training patients are below",
    "an answer: finer histograms than allowed": r"score histograms of \d+ bins",
    "an answer: arrays of another width": r"expected \w+ as float(32|64), found",
    "an answer: an update that float32 cannot hold": r"expected numbers of '\w+' within",
    "an answer: its numbers are no longer finite": r"its numbers are no longer finite",
}
NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 5e-324, 1e16, -1e100, 1e308, -1.7e308]
WORDS = ["theta", "champion", "impute", "center", "scale", "about", "x", "", "../x", "\x1b[2J"]
KEY = bytes(range(32))
PUBLIC = public_key(KEY)


def reason(text: str) -> str:
    """The documented reason that a refusal states. Fails if it states none."""
    for name, words in REASONS.items():
        if re.match(words, text):
            return name
    raise AssertionError(f"a refusal that is not documented: {text}")


# --- what is attacked -------------------------------------------------------------------------------------------------


def victims() -> list[tuple[Plan, Cohort]]:
    """A hospital of 40 patients in studies of every family."""
    rng, n = np.random.default_rng(7), 40
    columns = {
        "id": [str(i) for i in range(n)],
        "age": [
            "" if gap else f"{age:.1f}" for age, gap in zip(rng.normal(60, 10, n), rng.random(n) < 0.1, strict=True)
        ],
        "ward": rng.choice(["red", "blue", "green"], n).tolist(),
        "y": [f"{value:.3f}" for value in rng.normal(size=n)],
        "label": rng.choice(["a", "b", "c"], n).tolist(),
    }
    table = Table({name: np.array(cells, object) for name, cells in columns.items()})
    number, yes = {"kind": "regression", "column": "y"}, {"kind": "binary", "column": "y", "positive_above": 0.0}
    label = {"kind": "multiclass", "column": "label", "classes": ["a", "b", "c"]}
    studies = [
        (number, {"kind": "linear"}, "fedavg"),
        (yes, {"kind": "logistic", "l2": 0.1}, "fedprox"),
        (label, {"kind": "multinomial"}, "fedadam"),
        (yes, {"kind": "mlp", "hidden": [3]}, {"preset": "fedavg", "local": {"kind": "adam"}}),
        (number, {"kind": "linear"}, "fedavgm"),
    ]
    found = []
    for target, model, algorithm in studies:
        features = [
            {"type": "number", "name": "age"},
            {"type": "category", "name": "ward", "categories": ["red", "blue"]},
        ]
        words = {"name": "fuzz", "patient_id": "id", "target": target, "features": features, "model": model}
        wire = {"codec": "float32" if algorithm == "fedavgm" else "float64"}
        study = Study.model_validate({**words, "algorithm": algorithm, "protocol": wire})
        found.append((build(study), clean(table, study, "north")))
    return found


VICTIMS = victims()
PLAN = VICTIMS[1][0]
REQUEST = open_round(PLAN.start(PLAN.no_statistics()), PLAN, "train", ["north"]).request
REPLY = Reply(PLAN.digest, 1, 0, "train", REQUEST.base, "north", "", {"delta": np.ones(3), "train": np.ones(2)})
MESSAGES = [
    encode(REQUEST),
    encode(REPLY),
    encode(replace(REPLY, arrays={**REPLY.arrays, "delta": np.ones(3, np.float32)})),
]
ABOUT = About(PLAN.digest, 1, 0, 0, "north", "reply", REQUEST.base)
ENVELOPES = [sign(KEY, ABOUT, MESSAGES[1]), sign(KEY, replace(ABOUT, direction="request"), MESSAGES[0])]


def read_message(data: bytes) -> str:
    """What becomes of bytes that claim to be a message."""
    said = []
    for kind in (Request, Reply):
        try:
            said.append(f"read as a {type(decode(data, kind)).__name__}")
        except UpdateRejected as refused:
            said.append(reason(str(refused)))
    return next((what for what in said if what.startswith("read")), said[0])


def open_envelope(drawn: tuple[bytes, About]) -> str:
    """What becomes of bytes that claim to be an envelope; none may be accepted that was not made by the key, about these words."""
    signed, about = drawn
    try:
        payload = verify(PUBLIC, about, signed, largest=1 << 16)
    except UpdateRejected as refused:
        return reason(str(refused))
    assert sign(KEY, about, payload) == signed, "a forged envelope was accepted"
    return "accepted: whole, ours and about this"


def ask_hospital(drawn: tuple[int, Request]) -> str:
    """What a hospital answers to a well-formed request of a hostile coordinator; it must travel, and its state stay or be finite."""
    number, request = drawn
    plan, cohort = VICTIMS[number]
    asked = decode(encode(request), Request)
    memory = {"kept": np.ones(1)}
    after, reply = handle(asked, memory, cohort, plan, Policy(), "north", np.random.default_rng(0))
    back = decode(encode(reply), Reply)
    if back.refusal:
        assert after is memory
        assert not back.arrays
        return reason(back.refusal)
    shapes = plan.algorithms[asked.ask].shapes(asked.exchange)
    assert shapes.keys() <= back.arrays.keys()
    assert all(back.arrays[name].shape == shape for name, shape in shapes.items())
    return f"answered: {asked.ask}"


# --- what attacks -----------------------------------------------------------------------------------------------------


def changed(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with up to four places set, cut out or grown."""
    place = st.tuples(st.integers(0, len(data) - 1), st.sampled_from("sid"), st.integers(0, 255))

    def apply(places: list[tuple[int, str, int]]) -> bytes:
        out = bytearray(data)
        for at, how, byte in places:
            at = min(at, len(out) - 1)
            if how == "s":
                out[at] = byte
            elif how == "i":
                out.insert(at, byte)
            else:
                del out[at : at + 1 + byte // 16]
            out = out or bytearray(b"\0")
        return bytes(out)

    return st.lists(place, max_size=4).map(apply)


value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["<f8", "train", "Reply"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
listed = st.lists(
    st.tuples(st.sampled_from(WORDS), st.sampled_from(["<f8", "<f8", "<f4", "|O", ">f8"]), st.lists(st.integers(-1, 4) | st.just(2**40), max_size=5)),
    max_size=3,
)  # fmt: skip
HEADER = {field.name: getattr(REPLY, field.name) for field in fields(Reply) if field.name != "arrays"}


def written(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return PREFIX.pack(MAGIC, NARROW if b'"<f4"' in text else PROTOCOL, len(text)) + text + body


headers = st.builds(
    lambda more, arrays: {"kind": "Reply", **HEADER, "arrays": arrays, **more},
    st.dictionaries(st.sampled_from([*HEADER, "kind", "arrays", "x"]), value, max_size=2),
    listed,
)
messages = st.one_of(
    st.binary(max_size=200),
    *map(changed, MESSAGES),
    st.builds(written, headers, st.binary(max_size=96)),
    st.builds(written, headers, st.just(bytes(24))),
    st.builds(written, headers | value | st.binary(max_size=80), st.binary(max_size=96)),
)

abouts = st.builds(
    lambda name, other: replace(ABOUT, **({name: other[name]} if name else {})),
    st.sampled_from(["", "", "", *(field.name for field in fields(About))]),
    st.fixed_dictionaries(
        {name: st.sampled_from(["0" * 64, "f" * 64]) for name in ("study", "base")}
        | {name: st.integers(0, 2**32 - 1) for name in ("round", "attempt", "exchange")}
        | {"site": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True), "direction": st.just("request")}
    ),
)


def stated(statement: bytes, rest: bytes) -> bytes:
    return (
        ENVELOPE_PREFIX.pack(ENVELOPE_MAGIC, VERSION, len(statement)) + statement[:96] + PUBLIC + statement[128:] + rest
    )


envelopes = st.tuples(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from(ENVELOPES),
        *map(changed, ENVELOPES),
        st.builds(stated, st.binary(min_size=160, max_size=230), st.binary(max_size=100)),
        st.builds(lambda key, payload: sign(key, ABOUT, payload), st.binary(min_size=32, max_size=32), st.binary(max_size=20)),
        st.builds(lambda n: ENVELOPES[0] + bytes(n), st.integers(1, 1 << 17)),
    ),
    abouts,
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, Request]:
    """A request that decodes: right or wrong arrays, and numbers of every size."""
    number = draw(st.integers(0, len(VICTIMS) - 1))
    plan = VICTIMS[number][0]
    ask, exchange = (
        draw(st.sampled_from(["statistics", "train", "score", "profile"])),
        draw(st.sampled_from([0, 0, 1, 2, 2**32 - 1])),
    )
    shapes = dict(plan.algorithms[ask].takes(exchange))
    if draw(st.integers(0, 9)) < 3:
        shapes.pop(draw(st.sampled_from([*shapes, "champion"])), None)
    if draw(st.integers(0, 9)) < 2:
        shapes[draw(st.sampled_from(WORDS))] = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    arrays = {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        usual = draw(st.integers(0, 9)) < 6
        cells = [1.0] * size if usual else draw(st.lists(st.sampled_from(NUMBERS), min_size=size, max_size=size))
        kind = width(name, plan.study.protocol.codec)
        if draw(st.integers(0, 19)) == 0:
            kind = draw(st.sampled_from([np.float32, np.float64]))
        largest = float(np.finfo(kind).max)
        arrays[name] = np.clip(np.array(cells), -largest, largest).astype(kind).reshape(shape)
    study = plan.digest if draw(st.integers(0, 9)) else draw(st.sampled_from(["", "0" * 64, "x" * 1000]))
    base = draw(st.sampled_from(["", "b" * 64]))
    return number, Request(study, draw(st.integers(0, 2**32 - 1)), exchange, ask, base, arrays)


TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], str]]] = {
    "core.messages.decode": (messages, read_message),
    "core.identity.verify": (envelopes, open_envelope),
    "core.answer.handle": (requests(), ask_hospital),
}


# --- the run ----------------------------------------------------------------------------------------------------------


def attack(target: str, inputs: int, number: int = SEED) -> tuple[Counter[str], float]:
    """Run one target; how often each outcome was seen, and the slowest input in seconds."""
    strategy, run = TARGETS[target]
    seen: Counter[str] = Counter()
    slowest = 0.0

    @seed(number)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(drawn: Any) -> None:
        nonlocal slowest
        began = time.perf_counter()
        outcome = run(drawn)
        slowest = max(slowest, time.perf_counter() - began)
        seen[outcome] += 1

    one()
    return seen, slowest


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    inputs = int(sys.argv[1]) if sys.argv[1:] else INPUTS
    number = int(sys.argv[2]) if sys.argv[2:] else SEED
    began, at_start, parts, total = time.monotonic(), megabytes(), [], 0
    for target in TARGETS:
        seen, slowest = attack(target, inputs, number)
        total += seen.total()
        assert slowest < LONGEST_S, f"{target}: an input took {slowest:.1f} s"
        rows = "\n".join(f"| {outcome} | {count:,} |" for outcome, count in sorted(seen.items()))
        parts.append(
            f"## `{target}`: {seen.total():,} inputs, the slowest {slowest * 1000:.0f} ms\n\n| outcome | inputs |\n|---|---|\n{rows}\n"
        )
        print(parts[-1], flush=True)
    grown = megabytes() - at_start
    assert grown < LARGEST_MB, f"the process grew by {grown:.0f} MB"
    if inputs >= INPUTS:
        write(total, number, grown, time.monotonic() - began, parts)


def write(total: int, number: int, grown: float, seconds: float, parts: list[str]) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    head = f"""# Fuzz

Written by `make fuzz` on {dt.date.today()}, commit {commit}, seed {number}, Python {platform.python_version()}, {seconds / 60:.1f} minutes.

**{total:,} hostile inputs** (Hypothesis). No crash, no hang; the process grew by {grown:.0f} MB.
Every refusal was one of the {len(REASONS)} reasons in `benchmarks/fuzz.py`; any other ends the run.

"""
    (ROOT / "docs" / "fuzz.md").write_text(head + "\n".join(parts))


if __name__ == "__main__":
    main()
