"""A mailbox for messages between a coordinator and a site: four verbs, the same over every store.

    put(name, data)   the object is there, whole; again changes nothing        list(folder)   whole objects, in name order
    get(name)         its bytes, checked; None where there is no whole one     drop(name)     it is gone (the coordinator's, after commit)

An object is kept in pieces, so that a broken transfer goes on where it stopped and memory is that of a few pieces at each end, whatever the
size. All pieces but the last lie beside it as `digest.0000`, `digest.0001`, …, each of PIECE bytes; the last lies under the name itself and
is written last. So an object is there when its name is, and a small one is one file.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO, NamedTuple, Protocol

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.messages import LARGEST_MESSAGE
from fedrounds.exchange.name import Name, folder_of

PIECE = 8 << 20
MOST = LARGEST_MESSAGE + (1 << 10)  # a message in its envelope


class Store(Protocol):
    """What a place must promise to hold an exchange. Paths are names, folders and pieces: checked, relative, without surprises.

    What may pass by itself (a broken connection, a server that restarts) is tried again inside; what stays raises ServiceError.
    """

    def write(self, path: str, data: bytes) -> None:
        """The bytes are there, all of them, and stay so; until then whatever was there before is. Folders are made as needed."""
        ...

    def read(self, path: str, largest: int) -> bytes | None:
        """The bytes, or None where there are none. Raises UpdateRejected, without reading on, where they are more than `largest`."""
        ...

    def scan(self, folder: str) -> Mapping[str, int | None]:
        """What is directly in a folder: the size of a file, None for a folder. What is still being written is not there."""
        ...

    def remove(self, path: str) -> None:
        """The file is gone; nothing happens where there is none."""
        ...


@dataclass(frozen=True)
class Exchange:
    """A mailbox in a store.

    Guarantees:
        * an object's bytes are those of its name, or `put` refuses them before a byte has travelled: no other bytes ever take its place;
        * `put` again sends nothing, two at once leave one whole object, and a broken one goes on after the last whole piece;
        * an object that is not whole is not listed, and reads as absent;
        * `get` and `fetch` give the bytes of the name, or refuse: damage is never handed on;
        * `list` is in name order, and of one folder alone: what other rounds hold is not even looked at;
        * at most a few pieces are in memory at either end, and no more than `largest` bytes are ever read.

    Args:
        at_once: how many pieces `put` has under way, the last one always alone. More than one pays where an answer is waited for.
    """

    store: Store
    at_once: int = 1

    def put(self, name: Name, data: bytes | BinaryIO) -> None:
        """Have the object there, whole.

        Args:
            data: its bytes, or a file open for reading and seeking (from its start to its end).

        Raises:
            UpdateRejected: the bytes are not those of the name, or more than a message may have.
            ServiceError: the store did not do its part.
        """
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        size = source.seek(0, io.SEEK_END)
        if size > MOST:
            raise UpdateRejected(f"expected an object of at most {MOST} bytes, found {size}: nothing was sent")
        source.seek(0)
        sha = sha256()
        while piece := source.read(PIECE):
            sha.update(piece)
        if sha.hexdigest() != name.digest:
            raise UpdateRejected(f"expected the bytes named {name.digest[:12]}, found others: nothing was sent")
        there = self.store.scan(name.folder)
        missing = [piece for piece in _pieces(name, size) if there.get(piece.path) != piece.length]
        beside = [piece for piece in missing if piece.path != name.digest]
        with ThreadPoolExecutor(self.at_once) as threads:
            under_way = deque[Future[None]]()
            for piece in beside:
                if len(under_way) == self.at_once:
                    under_way.popleft().result()
                under_way.append(threads.submit(self._write, name, piece, _read(source, piece)))
            for written in under_way:
                written.result()
        for piece in missing[len(beside) :]:
            self._write(name, piece, _read(source, piece))

    def _write(self, name: Name, piece: _Piece, data: bytes) -> None:
        self.store.write(f"{name.folder}/{piece.path}", data)

    def get(self, name: Name, largest: int = MOST) -> bytes | None:
        """The object's bytes, or None where there is no whole one. Raises what `fetch` does."""
        into = io.BytesIO()
        return into.getvalue() if self.fetch(name, into, largest) else None

    def fetch(self, name: Name, into: BinaryIO, largest: int = MOST) -> bool:
        """Write the object to a file; False where there is no whole one.

        Args:
            into: open for reading, writing and seeking. Whole pieces of a broken fetch are kept there, and not fetched again.

        Raises:
            UpdateRejected: the object is damaged or larger than `largest`; the file is left empty.
            ServiceError: the store did not do its part; the file holds what had come.
        """
        last = self._read(f"{name.folder}/{name.digest}", PIECE, into)
        if last is None:
            return False
        size, pieces = 0, 0
        if sha256(last).hexdigest() != name.digest:  # then more of it lies beside
            there = self.store.scan(name.folder)
            while there.get(f"{name.digest}.{pieces:04d}") == PIECE:
                pieces += 1
            size = pieces * PIECE
        if size + len(last) > largest:
            _emptied(into)
            raise UpdateRejected(
                f"expected an object of at most {largest} bytes, found {size + len(last)}: it was refused unread"
            )
        kept = min(into.seek(0, io.SEEK_END) // PIECE, pieces)
        for start in sorted(
            {kept, 0}, reverse=True
        ):  # what an earlier fetch left may be of another object: then from the beginning
            whole = self._joined(name, into, start, pieces, last)
            if whole is not False:
                return whole is True
        _emptied(into)
        raise UpdateRejected(
            f"expected the bytes named {name.digest[:12]}, found others: the object was damaged, drop it and have it put again"
        )

    def list(self, folder: str = "") -> list[Name]:
        """Names of the whole objects in a folder and the folders in it, in order. Raises UpdateRejected if it is no folder."""
        return sorted(self._found(folder_of(folder)))

    def folders(self, folder: str = "") -> list[str]:
        """What folders are directly in a folder, in order; what is in them is not looked at."""
        inside = self.store.scan(folder_of(folder))
        paths = [f"{folder}/{child}" if folder else child for child, size in inside.items() if size is None]
        return sorted(path for path in paths if _is(folder_of, path))

    def drop(self, name: Name) -> None:
        """Have the object gone: its name first, so that it reads as absent at once; then the rest, also what a broken `put` left."""
        self.store.remove(f"{name.folder}/{name.digest}")
        for path in sorted(self.store.scan(name.folder)):
            if re.fullmatch(rf"{name.digest}\.[0-9]{{4}}", path):
                self.store.remove(f"{name.folder}/{path}")

    def _joined(self, name: Name, into: BinaryIO, kept: int, pieces: int, last: bytes) -> bool | None:
        """Whether the pieces, the first `kept` of them from the file, make the object; None where it was dropped meanwhile."""
        sha = sha256()
        into.seek(0)
        for _ in range(kept):
            sha.update(into.read(PIECE))
        into.truncate(kept * PIECE)
        for number in range(kept, pieces):
            piece = self._read(f"{name.folder}/{name.digest}.{number:04d}", PIECE, into)
            if piece is None:
                _emptied(into)
                return None
            sha.update(piece)
            into.write(piece)
            del piece  # before the next one comes
        sha.update(last)
        into.write(last)
        return sha.hexdigest() == name.digest

    def _read(self, path: str, largest: int, into: BinaryIO) -> bytes | None:
        try:
            return self.store.read(path, largest)
        except UpdateRejected:
            _emptied(into)
            raise

    def _found(self, folder: str) -> Iterator[Name]:
        depth = folder.count("/") + 1 if folder else 0
        for child, size in self.store.scan(folder).items():
            path = f"{folder}/{child}" if folder else child
            if depth == 3 and size is not None and _is(Name.parse, path):
                yield Name.parse(path)
            elif depth < 3 and size is None and _is(folder_of, path):
                yield from self._found(path)


class _Piece(NamedTuple):
    path: str  # in the object's folder
    start: int
    length: int


def _pieces(name: Name, size: int) -> Iterator[_Piece]:
    """The pieces of an object, the one under the name itself last."""
    before = max(0, (size - 1) // PIECE)
    for number in range(before):
        yield _Piece(f"{name.digest}.{number:04d}", number * PIECE, PIECE)
    yield _Piece(name.digest, before * PIECE, size - before * PIECE)


def _read(source: BinaryIO, piece: _Piece) -> bytes:
    source.seek(piece.start)
    return source.read(piece.length)


def _emptied(into: BinaryIO) -> None:
    into.seek(0)
    into.truncate()


def _is(read: Callable[[str], object], text: str) -> bool:
    """What is no name is not ours: somebody else's file, or one still being written."""
    try:
        read(text)
    except UpdateRejected:
        return False
    return True
