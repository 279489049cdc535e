"""A server's routes are built when a path fits them, and answer as if they had all been there."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, WebSocket, routing
from pydantic import BaseModel
if sys.argv[1] == "as asked":
    from fedrounds.tasks.routes import as_asked
    as_asked()
    as_asked()
built, whole = [], routing._IncludedRouter._build_effective_context
routing._IncludedRouter._build_effective_context = lambda self, route: (built.append(route.path), whole(self, route))[1]

class Thing(BaseModel):
    number: int

inner, outer, app = APIRouter(prefix="/inner"), APIRouter(prefix="/outer"), FastAPI()
other, sockets = APIRouter(prefix="/other"), APIRouter()
@inner.get("/{word}")
def word(word: str, twice: bool = False) -> list[str]: return [word] * (1 + twice)
@inner.post("/things")
def things(thing: Thing) -> Thing: return thing
@other.get("/{number}")
def number(number: int = Path(ge=0)) -> int: return number
@other.get("/{number}/more")
def more(number: int, request: Request) -> str: return str(request.url_for("more", number=number))
@sockets.websocket("/talk")
async def talk(socket: WebSocket):
    await socket.accept(); await socket.send_text(await socket.receive_text()); await socket.close()
outer.include_router(inner)
for router in (outer, other, sockets): app.include_router(router, dependencies=[Depends(lambda: None)])
@app.get("/late")
def late() -> str: return "late"

import warnings; warnings.simplefilter("ignore")
from fastapi.testclient import TestClient
client, said = TestClient(app), []
built.clear()
def ask(method, path, **more):
    answer = client.request(method, path, **more)
    said.append([method, path, answer.status_code, answer.headers.get("allow"), answer.json()])
ask("GET", "/other/3")
said.append([path for path in built if path != "/talk"] if sys.argv[1] == "as asked" else ["/other/{number}"])
ask("GET", "/outer/inner/a?twice=1"); ask("POST", "/outer/inner/things", json={"number": 1})
ask("POST", "/outer/inner/things", json={"number": "x"}); ask("DELETE", "/outer/inner/things")
ask("GET", "/other/-1"); ask("GET", "/other/7/more"); ask("GET", "/late"); ask("GET", "/nowhere"); ask("GET", "/outer/inner/b")
with client.websocket_connect("/talk") as socket:
    socket.send_text("hello"); said.append(socket.receive_text())
@other.get("/7/later")
def later() -> str: return "added after the first request"
ask("GET", "/other/7/later")
ask("GET", "/openapi.json")
print(json.dumps(said))
"""


def answers(how: str) -> list:
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_a_server_whose_routes_are_built_as_they_are_asked_for_answers_every_request_as_before():
    lean, whole = answers("as asked"), answers("as ever")
    assert lean == whole
    assert lean[1] == ["/other/{number}"]  # one request, one route
    assert lean[2][2:] == [200, None, ["a", "a"]]
    assert [said[2] for said in lean if len(said) == 5 and isinstance(said, list)] == [
        200,
        200,
        200,
        422,
        405,
        422,
        200,
        200,
        404,
        200,
        200,
        200,
    ]
