"""Verify an exported audit log of Fedrounds with Python's standard library alone; nothing of Fedrounds is needed.

    python3 verify_log.py FOLDER            FOLDER holds log.jsonl, checkpoint and public.pem; it prints one line
    python3 verify_log.py FOLDER --seen FILE    …and holds it against a checkpoint that you kept from earlier

Exit code 0: every leaf is as it was signed, and the checkpoint is of exactly these. 1: it is not; the line says what. Whose key public.pem
is, no file can tell: compare its fingerprint with what the coordinator told you.

It computes RFC 6962 hashes, and Ed25519 (RFC 8032) in plain Python: some 5 ms a leaf. OpenSSL can check the same signatures.
"""

import base64
import hashlib
import json
import pathlib
import sys

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)
SPKI = bytes.fromhex("302a300506032b6570032100")
DASH = "\N{EM DASH} "
MEMBER = {"masked": "fedrounds keys", "ckks": "fedrounds ckks member"}  # what members sign that go by a roster
STEPS = ("keys", "shares", "agree", "open")  # of a sum that is hidden


class Broken(Exception):
    """The line that says what is wrong."""


def add(a, b):
    """Two points of the curve, in extended coordinates (RFC 8032, 5.1.4)."""
    x1, y1, z1, t1 = a
    x2, y2, z2, t2 = b
    left, right = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    c, d = 2 * t1 * t2 * D % P, 2 * z1 * z2 % P
    e, f, g, h = right - left, d - c, d + c, right + left
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(number, point):
    found = (0, 1, 1, 0)
    while number:
        if number & 1:
            found = add(found, point)
        point, number = add(point, point), number >> 1
    return found


def point_of(raw):
    """A point from its 32 bytes (RFC 8032, 5.1.3)."""
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    if y >= P:
        raise ValueError("no point")
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P or (not x and sign):
        raise ValueError("no point")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = point_of((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def signed_by(public, words, signature):
    """Whether an Ed25519 signature fits (RFC 8032, 5.1.7)."""
    try:
        key, r, s = point_of(public), point_of(signature[:32]), int.from_bytes(signature[32:], "little")
    except ValueError:
        return False
    if len(signature) != 64 or s >= L:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public + words).digest(), "little") % L
    x1, y1, z1, _ = times(s, BASE)
    x2, y2, z2, _ = add(r, times(challenge, key))
    return not ((x1 * z2 - x2 * z1) % P or (y1 * z2 - y2 * z1) % P)


def unb64(text):
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("base64 in another form")
    return raw


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def leaf_hash(line):
    return hashlib.sha256(b"\0" + line).digest()


def root(leaves):
    """The Merkle tree's root (RFC 6962, 2.1)."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + root(leaves[:half]) + root(leaves[half:])).digest()


def fingerprint(public):
    """A key as two people compare it over the telephone."""
    mark = hashlib.sha256(b"fedrounds key\0" + public).hexdigest()[:32]
    return " ".join(mark[i : i + 4] for i in range(0, 32, 4))


def public_key(pem):
    lines = pem.split("\n")
    if (lines[0], lines[2:]) != ("-----BEGIN PUBLIC KEY-----", ["-----END PUBLIC KEY-----", ""]):
        raise Broken("public.pem: it is no public key: a byte was changed")
    try:
        raw = unb64(lines[1])
        if len(raw) != 44 or not raw.startswith(SPKI):
            raise ValueError
    except ValueError:
        raise Broken("public.pem: it is no Ed25519 key: a byte was changed") from None
    return raw[12:]


def checkpoint(note, public, what):
    """Origin, size and root of a signed checkpoint."""
    try:
        body, _, rest = note.partition("\n\n")
        origin, size, head = body.split("\n")
        lines = rest.split("\n")
        if lines.pop() or not all(line.startswith(DASH) for line in lines):
            raise ValueError
        found = {line[len(DASH) :].partition(" ")[0]: unb64(line.rpartition(" ")[2]) for line in lines}
        number, top, raw = int(size), unb64(head), found[origin]
    except (ValueError, LookupError):
        raise Broken(f"{what}: it cannot be read: a byte was changed, or it was cut short") from None
    if raw[:4] != hashlib.sha256(origin.encode() + b"\n\1" + public).digest()[:4]:
        raise Broken(f"{what}: it names another key than public.pem: one of them was changed")
    if not signed_by(public, f"{body}\n".encode(), raw[4:]):
        raise Broken(f"{what}: its signature does not fit: it was changed after it was signed")
    return origin, number, top


def statement(line, public):
    try:
        envelope = json.loads(line)
        body = unb64(envelope["payload"])
        (signature,) = envelope["signatures"]
        said, raw, kind = json.loads(body), unb64(signature["sig"]), envelope["payloadType"]
        if {"index", "previous"} - said["predicate"].keys() or not said["predicateType"]:
            raise LookupError
        same, named = canonical(envelope) == line and canonical(said) == body, signature["keyid"]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Broken("it cannot be read: a byte was changed, or it was cut short") from None
    if not same:
        raise Broken("it is written in another form than a log's")
    if named != fingerprint(public):
        raise Broken("it names another key than public.pem")
    words = b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(body), body)
    if not signed_by(public, words, raw):
        raise Broken("its signature does not fit: it was changed after it was signed")
    return said


def roster(facts, study):
    """The digest of a roster, if it is that of its keys, and enough of its members signed that they go by it."""
    try:
        keys = {site: bytes.fromhex(key) for site, key in facts["keys"].items()}
        body = b"".join(site.encode() + b"\0" + keys[site] for site in sorted(keys))
        agreed = hashlib.sha256(b"fedrounds roster\0" + body).digest()
        head = f"{MEMBER[facts['sums']]}\0{study}\0{facts['epoch']}\0"
        needed = max(3, 2 * len(keys) // 3 + 1) if facts["sums"] == "masked" else 3
        signed = []
        for site, its in facts["signed"].items():
            words = f"{head}{site}\0".encode() + bytes.fromhex(its["made"]) + agreed
            signed.append(signed_by(keys[site], words, bytes.fromhex(its["signature"])))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Broken("it is about a roster, and cannot be read") from None
    if agreed.hex() != facts["digest"]:
        raise Broken("the keys of its roster are not those of its digest: they were swapped")
    if len(signed) < needed or not all(signed):
        raise Broken(f"its roster is not signed by {needed} of its {len(keys)} members or more")
    return agreed.hex()


def look(kind, facts, seen):
    """What a leaf says of rosters; `seen` is what those before it said: the study, whether it hides its sums, the rosters held."""
    if kind == "urn:fedrounds:begun:v1":
        seen |= {"study": facts.get("digest"), "hides": "sums" in facts}
    elif kind == "urn:fedrounds:roster:v1":
        seen["held"].append(roster(facts, seen["study"]))
        seen["hides"] = True
    elif kind == "urn:fedrounds:asked:v1":
        asked_under(facts, seen["held"], seen["hides"])


def asked_under(facts, held, hides):
    """Nothing was asked under a roster that no leaf before holds, nor under none where sums are hidden."""
    ask, named = facts.get("ask"), facts.get("rosters")
    if not named and (ask in STEPS or (hides and ask != "gate")):
        raise Broken("it names no roster, in a study that hides its sums")
    for digest in named or ():
        if digest not in held and ask != "keys":
            raise Broken(f"it was asked under the roster {digest[:12]}, which no leaf before holds: it was swapped")


def verify(folder, seen=None):
    """One line about a log that is as it was signed; raises Broken with one line about one that is not."""
    public = public_key((folder / "public.pem").read_text("latin-1"))
    note = (folder / "checkpoint").read_text("utf-8", "replace")
    origin, size, head = checkpoint(note, public, "checkpoint")
    data = (folder / "log.jsonl").read_bytes()
    lines = data.split(b"\n")
    if lines.pop():
        raise Broken("log.jsonl: its last line has no end: it was cut short")
    leaves, before, rosters = [], "0" * 64, {"study": "", "hides": False, "held": []}
    for number, line in enumerate(lines):
        try:
            said = statement(line, public)
            facts = said["predicate"]
        except Broken as error:
            raise Broken(f"leaf {number}: {error}") from None
        if facts["index"] != number:
            raise Broken(f"leaf {number}: it says that it is leaf {facts['index']}: one was dropped, moved or put in")
        if facts["previous"] != before:
            raise Broken(f"leaf {number}: it follows another leaf than the one before it: the history was forked there")
        try:
            look(said["predicateType"], facts, rosters)
        except Broken as error:
            raise Broken(f"leaf {number}: {error}") from None
        leaves.append(leaf_hash(line))
        before = leaves[-1].hex()
    if len(leaves) != size:
        raise Broken(f"the checkpoint is of {size} leaves, log.jsonl has {len(leaves)}: its end was dropped, or added")
    if root(leaves) != head:
        raise Broken(f"the checkpoint's root is another: the history was forked before leaf {size}")
    if seen:
        its, old, top = checkpoint(seen.read_text("utf-8", "replace"), public, str(seen))
        if its != origin or old > size or root(leaves[:old]) != top:
            raise Broken(f"what was seen at {old} leaves is not how this log begins: it was forked or shortened")
    return f"{origin}: {size} leaves as signed, root {head.hex()}, key {fingerprint(public)}"


def main(words):
    if len(words) not in (1, 3) or (len(words) == 3 and words[1] != "--seen"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(verify(pathlib.Path(words[0]), pathlib.Path(words[2]) if len(words) == 3 else None))
    except (Broken, OSError) as error:
        print(f"verify_log: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
