"""The audit log's mathematics: trees, proofs, envelopes, checkpoints, and everything that can be done to a log."""

from __future__ import annotations

import base64
import json
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrounds.core import identity
from fedrounds.core.errors import LogBroken, StateError
from fedrounds.core.privacy import log as logs
from fedrounds.core.privacy import merkle
from fedrounds.core.privacy import note as notes
from fedrounds.core.privacy.log import Signer, examine
from fedrounds.core.privacy.merkle import Tree, consistent, included, leaf_hash
from fedrounds.core.privacy.note import Checkpoint

# The leaves and roots that Certificate Transparency's own tests hold (RFC 6962's reference implementation).
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ORIGIN = "fedrounds/0123abcd"
SIZES = st.integers(1, 70).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def tree(size, salt=b""):
    return Tree([leaf_hash(salt + bytes([number])) for number in range(size)])


def plain_root(leaves):
    """The root as RFC 6962 defines it, without a thought for speed."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\1" + plain_root(leaves[:k]) + plain_root(leaves[k:])).digest()


def written(count, key=KEY, word="north"):
    """A log of so many leaves: its lines, checkpoint and public key."""
    signer, lines, tree = Signer(key, ORIGIN), [], Tree()
    previous = logs.NOTHING
    for index in range(count):
        facts = {"index": index, "previous": previous.hex(), "site": word}
        line = signer.envelope(logs.statement("visit", {"model": f"{index:064x}"}, facts))
        previous = leaf_hash(line)
        tree.append(previous)
        lines.append(line)
    return lines, signer.note(Checkpoint(ORIGIN, count, tree.root())), signer.public


@pytest.mark.parametrize("size", sorted(ROOTS))
def test_the_root_is_that_of_rfc_6962_for_the_leaves_in_their_order(size):
    assert Tree([leaf_hash(leaf) for leaf in LEAVES[:size]]).root().hex() == ROOTS[size]


@given(st.integers(0, 70))
@settings(max_examples=70, deadline=None)
def test_the_tree_of_an_earlier_size_has_the_root_that_it_had_then_and_peaks_give_the_same(size):
    whole, peaks = tree(70), ()
    leaves = [leaf_hash(bytes([number])) for number in range(size)]
    for number, leaf in enumerate(leaves):
        peaks = merkle.grow(peaks, number, leaf)
    assert whole.root(size) == plain_root(leaves) == merkle.root_of(peaks)
    assert len(peaks) == size.bit_count()


@given(SIZES)
@settings(max_examples=200, deadline=None)
def test_no_other_leaf_index_or_root_passes_with_a_true_inclusion_proof(place):
    size, index = place
    whole = tree(size)
    leaf, root, proof = leaf_hash(bytes([index])), whole.root(), whole.inclusion(index)
    assert included(leaf, index, size, proof, root)
    assert not included(leaf_hash(b"other"), index, size, proof, root)
    assert not any(included(leaf, other, size, proof, root) for other in range(-1, size + 1) if other != index)
    assert not included(leaf, index, size, proof, leaf_hash(b"other"))
    assert not included(leaf, index, size, (*proof, leaf), root)
    assert not proof or not included(leaf, index, size, proof[:-1], root)
    assert not any(
        included(leaf, index, size, (*proof[:at], leaf_hash(b"x"), *proof[at + 1 :]), root) for at in range(len(proof))
    )


@given(SIZES)
@settings(max_examples=200, deadline=None)
def test_a_tree_in_which_one_of_the_first_leaves_is_another_is_not_consistent(place):
    size, first = place
    whole, forked = tree(size), tree(size, b"forked")
    old, new, proof = whole.root(first), whole.root(), whole.consistency(first)
    assert consistent(first, old, size, new, proof)
    assert consistent(size, new, size, new, ())
    assert not consistent(size, new, size, forked.root(), ())
    assert not consistent(size + 1, old, size, new, proof)  # a log that shrank
    if first:
        assert not consistent(first, old, size, forked.root(), forked.consistency(first))
        assert not consistent(first, forked.root(first), size, new, proof)
        assert not consistent(first, old, size, new, (*proof, old))
        assert not any(
            consistent(first, old, size, new, (*proof[:at], leaf_hash(b"x"), *proof[at + 1 :]))
            for at in range(len(proof))
        )


def test_no_byte_of_an_envelope_can_be_changed_and_its_signature_still_fit():
    (line,), _, public = written(1)
    assert logs.kind_of(logs.opened(line, public)) == "visit"
    for at in range(len(line)):
        for flip in (1, 32, 128):
            with pytest.raises(LogBroken):
                logs.opened(line[:at] + bytes([line[at] ^ flip]) + line[at + 1 :], public)


def test_no_other_key_can_have_made_an_envelope():
    (line,), _, public = written(1)
    with pytest.raises(LogBroken, match="another key"):
        logs.opened(line, identity.public_key(OTHER))
    envelope = json.loads(written(1, OTHER)[0][0])
    envelope["signatures"][0]["keyid"] = identity.fingerprint(public)
    with pytest.raises(LogBroken, match="signature does not fit"):
        logs.opened(logs.canonical(envelope), public)


def test_an_envelope_is_dsse_around_an_in_toto_statement():
    (line,), _, public = written(1)
    envelope = json.loads(line)
    body = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(body)).encode() + b" " + body
    assert identity.sealed(public, signed, base64.b64decode(envelope["signatures"][0]["sig"]))
    assert json.loads(body) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": "0" * 64}}],
        "predicateType": "urn:fedrounds:visit:v1",
        "predicate": {"index": 0, "previous": "0" * 64, "site": "north"},
    }


def test_a_byte_that_was_changed_in_a_leaf_is_found_and_it_is_said_where():
    lines, note, public = written(5)
    for leaf in range(5):
        for at in range(len(lines[leaf])):
            bad = lines[leaf][:at] + bytes([lines[leaf][at] ^ 1]) + lines[leaf][at + 1 :]
            with pytest.raises(LogBroken, match=rf"^leaf {leaf} of the log"):
                examine([*lines[:leaf], bad, *lines[leaf + 1 :]], note, public)


def test_a_byte_that_was_changed_in_the_checkpoint_or_in_the_key_is_found():
    lines, note, public = written(3)
    raw = note.encode()
    for at in range(len(raw)):
        bad = (raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]).decode("utf-8", "replace")
        with pytest.raises(LogBroken, match="checkpoint"):
            examine(lines, bad, public)
    pem = notes.pem_of(public)
    assert notes.public_from_pem(pem) == public
    for at in range(len(pem)):
        with pytest.raises((LogBroken, StateError)):
            examine(lines, note, notes.public_from_pem(pem[:at] + chr(ord(pem[at]) ^ 1) + pem[at + 1 :]))


def test_a_leaf_that_was_dropped_put_in_or_moved_is_found_and_it_is_said_which():
    lines, note, public = written(6)
    with pytest.raises(LogBroken, match="leaf 2 was dropped"):
        examine([*lines[:2], *lines[3:]], note, public)
    with pytest.raises(LogBroken, match="expected leaf 3 there, found leaf 2: a leaf was moved or put in twice"):
        examine([*lines[:3], lines[2], *lines[3:]], note, public)
    with pytest.raises(LogBroken, match=r"^leaf 1 of the log"):
        examine([lines[0], lines[2], lines[1], *lines[3:]], note, public)


def test_a_log_that_lost_its_end_and_one_with_more_than_was_signed_for_is_found():
    lines, note, public = written(6)
    with pytest.raises(LogBroken, match="expected 6 leaves, as the checkpoint says, found 4: the end of the log"):
        examine(lines[:4], note, public)
    with pytest.raises(LogBroken, match="the checkpoint is an older one"):
        examine(written(7)[0], note, public)


def test_a_history_other_than_the_one_that_was_seen_is_found_though_the_owner_of_the_key_wrote_it():
    lines, note, public = written(6)
    seen = notes.checkpoint_of(written(4)[1], public)
    assert examine(lines, note, public, [seen]).checkpoint.size == 6
    forked, its, _ = written(6, word="south")
    assert examine(forked, its, public).checkpoint.size == 6  # by itself it is a log
    with pytest.raises(LogBroken, match="seen at 4 leaves, found another: it was forked before leaf 4"):
        examine(forked, its, public, [seen])
    with pytest.raises(LogBroken, match="the log was shortened"):
        examine(*written(3), [seen])
    with pytest.raises(LogBroken, match="leaf 4 of the log: it was signed as the successor of another leaf"):
        examine([*lines[:4], *forked[4:]], note, public)
    with pytest.raises(LogBroken, match="the history was forked before leaf 6"):
        examine(lines, its, public)


def test_a_witness_signs_one_checkpoint_at_one_moment_and_a_changed_line_of_its_is_found():
    lines, note, public = written(3)
    head, witnesses = notes.checkpoint_of(note, public), {"north": identity.public_key(OTHER)}
    line = notes.cosign(OTHER, "north", head, 1_764_000_000)
    assert notes.cosigned(line, "north", witnesses["north"], head) == 1_764_000_000
    assert notes.cosigned(line, "north", public, head) is None
    assert notes.cosigned(line, "north", witnesses["north"], Checkpoint(ORIGIN, 2, head.root)) is None
    assert examine(lines, f"{note}{line}\n", public, (), witnesses).witnesses == {"north": 1_764_000_000}
    other = line.replace(line[-3], "B" if line[-3] != "B" else "C")
    with pytest.raises(LogBroken, match=r"'north' cosigned|signed checkpoint"):
        examine(lines, f"{note}{other}\n", public, (), witnesses)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_at_all_are_a_leaf_or_refused(data):
    with pytest.raises(LogBroken):
        logs.opened(data, identity.public_key(KEY))
    with pytest.raises(LogBroken):
        notes.read_note(data.decode("latin-1"))
