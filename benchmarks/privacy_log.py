"""What the audit log costs: row 10 of the privacy measurements.

python benchmarks/privacy_log.py [--leaves N]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrounds.cli import verify_log
from fedrounds.core.errors import LogBroken
from fedrounds.core.privacy.log import NOTHING, Signer, examine, statement
from fedrounds.core.privacy.merkle import Tree, consistent, grow, included, leaf_hash, root_of
from fedrounds.core.privacy.note import Checkpoint, pem_of

ORIGIN = "fedrounds/benchmark"
ROOT_7 = "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"
ROOT_8 = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
VECTORS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")


def written(signer: Signer, count: int) -> list[bytes]:
    """So many signed leaves, with the peaks that a ledger keeps."""
    lines, peaks, previous = list[bytes](), tuple[bytes, ...](), NOTHING
    for index in range(count):
        facts = {"index": index, "previous": previous.hex(), "round": index, "sites": {"north": {"bytes_in": 1}}}
        lines.append(signer.envelope(statement("visit", {"model": f"{index:064x}"}, facts)))
        previous = leaf_hash(lines[-1])
        peaks = grow(peaks, index, previous)
    assert root_of(peaks) == Tree([leaf_hash(line) for line in lines]).root()
    return lines


def seconds(work: Callable[[], Any], times: int = 3) -> float:
    """The least of a few runs."""
    found: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def openssl(lines: list[bytes], note: str, public: bytes) -> bool:
    """Whether OpenSSL accepts the checkpoint's signature, and the standard library's verifier the whole log."""
    import base64

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        (folder / "checkpoint").write_text(note)
        (folder / "public.pem").write_text(pem_of(public))
        verify_log.verify(folder)
        body, _, rest = note.partition("\n\n")
        (folder / "words").write_text(f"{body}\n")
        (folder / "signature").write_bytes(base64.b64decode(rest.split()[2])[4:])
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "words"]
        said = subprocess.run([*command, "-sigfile", "signature"], cwd=folder, capture_output=True, check=False)
        return said.returncode == 0


def flips(lines: list[bytes], note: str, public: bytes) -> tuple[int, int]:
    """Bytes of a log and its checkpoint that were flipped one at a time, and how many of those were found."""
    tried = found = 0
    whole = b"\n".join(lines)
    for at in range(len(whole) + len(note.encode())):
        data = bytearray(whole + note.encode())
        data[at] ^= 1
        tried += 1
        try:
            its = bytes(data[len(whole) :]).decode("utf-8", "replace")
            examine(bytes(data[: len(whole)]).split(b"\n"), its, public)
        except LogBroken:
            found += 1
    return tried, found


def main() -> None:
    """Print the row."""
    asking = argparse.ArgumentParser()
    asking.add_argument("--leaves", type=int, default=50_000)
    count = asking.parse_args().leaves
    signer = Signer(bytes(range(32)), ORIGIN)
    rate = count / seconds(lambda: written(signer, count))
    lines = written(signer, count)
    tree = Tree([leaf_hash(line) for line in lines])
    note, root, old = signer.note(Checkpoint(ORIGIN, count, tree.root())), tree.root(), tree.root(count // 3)
    leaf = leaf_hash(lines[count // 2])
    prove = seconds(lambda: included(leaf, count // 2, count, tree.inclusion(count // 2), root), 50)
    growth = seconds(lambda: consistent(count // 3, old, count, root, tree.consistency(count // 3)), 50)
    whole = seconds(lambda: examine(lines, note, signer.public), 1)
    vectors = [leaf_hash(bytes.fromhex(text)) for text in VECTORS]
    right = (Tree(vectors[:7]).root().hex(), Tree(vectors).root().hex()) == (ROOT_7, ROOT_8)
    few = lines[:4]
    head = signer.note(Checkpoint(ORIGIN, 4, tree.root(4)))
    tried, found = flips(few, head, signer.public)
    third = openssl(few, head, signer.public)
    print(f"append and sign: {rate:,.0f} leaves/s ({count:,} leaves; goal 10,000)")
    print(f"inclusion, prove and verify: {1e6 * prove:.0f} µs; consistency: {1e6 * growth:.0f} µs")
    print(f"the whole log verified: {count / whole:,.0f} leaves/s")
    print(f"RFC 6962 roots of 7 and 8 leaves: {'as they must be' if right else 'WRONG'}")
    print(f"OpenSSL and the standard library alone: {'accepted' if third else 'REFUSED'}")
    print(f"flipped bytes found: {found} of {tried}")


if __name__ == "__main__":
    main()
