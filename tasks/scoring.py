"""A registered version that scores, and the ASGI app around it.

The app speaks MLflow's scoring protocol: POST /invocations, GET /ping, /health and /version. It knows neither MLflow nor a registry: whoever
starts it gives `look`, which tells of the version to serve. What is refused is one line of JSON, `{"error": …}`, and never a patient's cell.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedrounds.core.dictionary import DICTIONARY, Dictionary, check
from fedrounds.core.errors import FedroundsError, StateError
from fedrounds.core.scoring import MOST_BYTES, MOST_ROWS, Refused, columns
from fedrounds.core.study import Binary, Category, Multiclass, canonical

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

WAITING = 64  # requests that may wait for their turn


class Scored(NamedTuple):
    """Rows of a file with their predictions, why one is refused, and which features have an unknown level: all as text."""

    names: list[str]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, repr=False, eq=False)
class Version:
    """A registered version, loaded.

    Args:
        tags: what MLflow's registry says of it.
        spread: its pipeline's first step (`core.export.spreading`).
        width: how many numbers it predicts of a patient.
    """

    number: str
    tags: Mapping[str, str]
    dictionary: Dictionary
    pipeline: Any
    spread: Callable[[Any], Any]
    width: int = 1

    @classmethod
    def load(cls, folder: Path, number: str, tags: Mapping[str, str]) -> Version:
        """Read a model folder as MLflow keeps it.

        Raises:
            StateError: it has no dictionary, as versions of earlier releases, or one of a later release; its model is damaged.
        """
        from zipfile import BadZipFile

        from pydantic import ValidationError
        from skops.io.exceptions import UntrustedTypesFoundException

        from fedrounds.core.export import spreading
        from fedrounds.tasks.lean import skops_io
        from fedrounds.tasks.model_folder import MODEL, PROGRAM
        from fedrounds.tasks.track import TRUSTED

        try:
            dictionary = Dictionary.model_validate_json((folder / DICTIONARY).read_bytes())
        except FileNotFoundError:
            raise StateError(
                f"expected {DICTIONARY} beside the model of version {number}, found none, as an earlier release wrote it:"
                " `fedrounds repair` adds it"
            ) from None
        except ValidationError as error:
            raise StateError(
                f"expected a {DICTIONARY} of this release at version {number}, found {error.error_count()} differences:"
                " serve it with the release that wrote it"
            ) from None
        if not (folder / MODEL).exists() and (folder / PROGRAM).exists():
            raise StateError(
                f"expected at version {number} a model that scikit-learn holds, found a PyTorch module's program:"
                " `mlflow models serve` answers for it, without this study's checks"
            )
        try:
            pipeline = skops_io().load(folder / MODEL, trusted=TRUSTED)
            made = cls(number, tags, dictionary, pipeline, spreading(pipeline, dictionary.features))
            return replace(made, width=made.proved())
        except (UntrustedTypesFoundException, BadZipFile, AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"expected at version {number} a model as Fedrounds writes it, found one that is damaged or of other types"
                f" ({type(error).__name__}): `fedrounds repair` after moving it away"
            ) from None

    def proved(self) -> int:
        """How many numbers it predicts of a patient, after a comparison with the whole pipeline that also spares the first caller a wait."""
        import numpy as np

        from fedrounds.core.export import frame

        cells: dict[str, Any] = {}
        for feature in self.dictionary.features:
            if isinstance(feature, Category):
                cells[feature.name] = feature.categories[0], feature.categories[-1], None
            else:
                cells[feature.name] = *(feature.range or (0.5, 1.5)), None
        rows = check(self.dictionary, cells).values
        expected = _predict(self.pipeline, frame(self.dictionary.features, rows))
        if not np.allclose(self.predict(rows), expected, rtol=1e-12, atol=1e-12, equal_nan=True):
            raise StateError(
                f"expected the parts of version {self.number} to predict what its pipeline does, found that they do not:"
                " do not serve it with this release"
            )
        return expected[0].size

    def predict(self, values: Any) -> Any:
        """(n, features) as `check` gives them -> (n,) values, or (n, k) probabilities or components: what MLflow gives."""
        return _predict(self.pipeline[1:], self.spread(values))

    def answer(self, body: bytes, most: int = MOST_ROWS) -> dict[str, Any]:
        """What a request is answered.

        Raises:
            Refused: what is asked does not keep to the protocol or the dictionary.
        """
        import numpy as np

        given = columns(body, self.dictionary, most)
        found = check(self.dictionary, given)
        if found.faults:
            raise Refused(422, "; ".join(map(str, found.faults)))
        predictions = self.predict(found.values)
        if not np.isfinite(predictions).all():
            raise Refused(
                422, "expected rows that the model has a number for, found that its prediction has no end: check them"
            )
        told: dict[str, Any] = {"predictions": predictions.tolist()}
        return told | ({"unknown": found.unknown} if found.unknown else {})

    def scored(self, cells: Mapping[str, Sequence[str]]) -> Scored:
        """Rows of a file of text: each its predictions, or why it is refused."""
        import numpy as np

        found = check(self.dictionary, cells, spelled=True)
        count = len(found.values)
        refused, unknown = [""] * count, [""] * count
        for fault in found.faults:
            for row in fault.rows:
                refused[row - 1] += (
                    "; " if refused[row - 1] else ""
                ) + f"expected {fault.expected} in '{fault.feature}'"
        for name, rows in found.unknown.items():
            for row in rows:
                unknown[row - 1] += (", " if unknown[row - 1] else "") + name
        good = np.array([not words for words in refused], bool)
        names = self._names()
        predictions = np.full((count, len(names)), np.nan)
        if good.any():
            made = np.asarray(self.predict(found.values[good]), np.float64)
            predictions[good] = made[:, 1:] if self.dictionary.target.kind == "binary" else made.reshape(good.sum(), -1)
        for row in np.flatnonzero(good & ~np.isfinite(predictions).all(axis=1)):
            refused[row] = "expected a row that the model has a number for"
        cells_of = [
            ["" if words else repr(float(it)) for it in row] for row, words in zip(predictions, refused, strict=True)
        ]
        return Scored(names, [(*row, *words) for row, *words in zip(cells_of, refused, unknown, strict=True)])

    def _names(self) -> list[str]:
        """What the columns of predictions are called in a file."""
        target = self.dictionary.target
        if isinstance(target, Binary):
            return ["probability"]
        if isinstance(target, Multiclass):
            return [f"probability of {canonical(label)}" for label in target.classes]
        return ["prediction"] if self.width == 1 else [f"component {k}" for k in range(1, self.width + 1)]

    def about(self) -> dict[str, Any]:
        """Which model it is."""
        words = ("round", "model_digest", "decision")
        told = {word: self.tags[f"fedrounds.{word}"] for word in words if f"fedrounds.{word}" in self.tags}
        return {"study": self.dictionary.study, "version": self.number, "study_digest": self.dictionary.digest, **told}


def _predict(fitted: Any, rows: Any) -> Any:
    return (fitted.predict_proba if hasattr(fitted, "predict_proba") else fitted.predict)(rows)


@dataclass
class Served:
    """The version that answers, and how it follows the registry.

    Args:
        current: what answers first.
        look: gives a newer version, or None while `current` is the one to serve. Runs in a thread; may raise.
        every_s: how often to look.
    """

    current: Version
    look: Callable[[Version], Version | None]
    every_s: float
    trouble: str = ""  # what kept the last look from its answer
    since: float = 0.0
    asked: asyncio.Event = field(default_factory=asyncio.Event, repr=False)  # to look at once

    async def follow(self) -> None:
        """Look for ever. A registry that fails changes nothing but what /health says."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.asked.wait(), self.every_s)
            self.asked.clear()
            await self.turn()

    async def turn(self) -> None:
        """Look once."""
        try:
            newer = await asyncio.to_thread(self.look, self.current)
        except Exception as error:  # whatever a registry may raise: the loaded version goes on
            self.since = self.since if self.trouble else time.time()
            self.trouble = str(error) if isinstance(error, FedroundsError) else type(error).__name__
            return
        self.trouble = ""
        if newer is not None:
            self.current = newer
            settle()

    def health(self) -> dict[str, Any]:
        """What /health says."""
        told = {"status": "ok", "version": self.current.number, "registry": "ok"}
        if self.trouble:
            told["registry"] = f"failing since {time.strftime('%FT%TZ', time.gmtime(self.since))}: {self.trouble}"
        return told


def settle() -> None:
    """Let the collector never again walk over libraries and model: a full walk takes as long as several requests."""
    gc.collect()
    gc.freeze()


def app(served: Served, timeout_s: float, most_rows: int = MOST_ROWS, most_bytes: int = MOST_BYTES) -> Starlette:
    """The app.

    Args:
        timeout_s: in which a body must have arrived.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
    from starlette.responses import Response as answer  # noqa: N813 (what it is here)
    from starlette.routing import Route

    turns = ThreadPoolExecutor(1, "score")  # one at a time: more would only take the interpreter from each other
    waiting: list[None] = []

    async def invocations(request: Request) -> Response:
        try:
            body = await _body(request, timeout_s, most_bytes)
            if len(waiting) >= WAITING:
                raise Refused(503, f"expected fewer than {WAITING} requests at once, found more: try again soon")
            waiting.append(None)
            try:
                now = served.current
                loop = asyncio.get_running_loop()
                told = await loop.run_in_executor(turns, _answer, now, body, most_rows)
            finally:
                waiting.pop()
        except Refused as refused:
            return _refusal(refused.status, str(refused))
        return answer(told, media_type="application/json", headers={"X-Model-Version": now.number})

    async def ping(_: Request) -> Response:
        return answer("\n", media_type="application/json")

    async def health(_: Request) -> Response:
        return JSONResponse(served.health())

    async def about(_: Request) -> Response:
        return JSONResponse({"fedrounds": version("fedrounds"), **served.current.about()})

    async def elsewhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        wanted = {404: "POST /invocations, GET /ping, /health or /version", 405: "another method at this path"}
        said = (
            f"expected {wanted[error.status_code]}, found {request.method}"
            if error.status_code in wanted
            else error.detail
        )
        return _refusal(error.status_code, said, dict(error.headers or {}))

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(served.follow())
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, served.asked.set)
        yield
        following.cancel()
        turns.shutdown(wait=False, cancel_futures=True)

    routes = [
        Route("/invocations", invocations, methods=["POST"]),
        Route("/ping", ping),
        Route("/health", health),
        Route("/version", about),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: elsewhere}, lifespan=life)


def _answer(now: Version, body: bytes, most_rows: int) -> bytes:
    return json.dumps(now.answer(body, most_rows), allow_nan=False).encode()


def _refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """One line; after a body that we did not read to its end nothing else can be told apart on the connection, so it closes."""
    from starlette.responses import JSONResponse

    close = {"Connection": "close"} if status in (400, 408, 413, 415) else {}
    return JSONResponse({"error": message}, status, {**(headers or {}), **close})


def _head(request: Request, most: int) -> Refused | None:
    """What is wrong with a request before its body has come."""
    kind, *parameters = (part.strip().lower() for part in request.headers.get("content-type", "").split(";"))
    if kind != "application/json" or any(it not in ("", "charset=utf-8", 'charset="utf-8"') for it in parameters):
        return Refused(415, "expected Content-Type: application/json, in UTF-8, found another or none")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        return Refused(415, "expected a body that is not compressed, found a Content-Encoding")
    said = request.headers.get("content-length", "")
    return _too_long(most) if said.isdecimal() and int(said) > most else None


def _too_long(most: int) -> Refused:
    return Refused(
        413, f"expected a body of at most {most} bytes, found a longer one: send the rows in several requests"
    )


async def _body(request: Request, timeout_s: float, most: int) -> bytes:
    """The body, while it is neither too long nor too slow.

    Who is refused by the head alone is listened to all the same, up to a point, unless it asked first: closing on a sender resets the
    connection, and the reason is lost.
    """
    from starlette.requests import ClientDisconnect

    refused = _head(request, most)
    if refused and "expect" in request.headers:
        raise refused
    parts: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                length += len(part)
                if length > most:
                    refused = refused or _too_long(most)
                    parts.clear()
                if length > 10 * most:
                    break
                if not refused:
                    parts.append(part)
    except TimeoutError:
        late = f"expected the whole body within {timeout_s:g} s, found a part: is Content-Length right?"
        raise (refused or Refused(408, late)) from None
    except ClientDisconnect:
        raise Refused(400, "expected the whole body, found that the connection ended before it") from None
    if refused:
        raise refused
    return b"".join(parts)
