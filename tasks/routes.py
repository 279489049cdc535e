"""FastAPI's routes as they are asked for: a router of hundreds is not built whole for the one that answers.

A router that is included in another has its routes built anew, with a pydantic schema for every parameter and answer, when the first request
looks for its way: all of its routes, and those of every router that was asked in vain before it. For Prefect's server that is a third of the
CPU time of its start. Here a router's route is built when a path fits it; openapi.json and `url_path_for` still see them all.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

_asked: ContextVar[str | None] = ContextVar("asked", default=None)  # the path that looks for its route


def as_asked() -> None:
    """Let FastAPI build an included router's routes one by one, in this process. A release that has no such routers is left alone."""
    from fastapi import routing

    included: Any = getattr(routing, "_IncludedRouter", None)
    if included is None or hasattr(included, "_one_by_one"):
        return
    whole, match = included.effective_candidates, included._match

    def effective_candidates(self: Any) -> list[Any]:
        path = _asked.get()
        nested = any(isinstance(route, included) for route in self.original_router.routes)
        return whole(self) if path is None or nested else _fitting(self, path)

    def _match(self: Any, scope: Any) -> Any:
        before = _asked.set(routing.get_route_path(scope) if scope["type"] == "http" else None)
        try:
            return match(self, scope)
        finally:
            _asked.reset(before)

    included.effective_candidates, included._match, included._one_by_one = effective_candidates, _match, True


def _fitting(router: Any, path: str) -> list[Any]:
    """The candidates whose path fits, in their order, each built once; what is not an API's, a socket say, is one of them always."""
    from fastapi import routing

    version = router.original_router._get_routes_version()
    if router.__dict__.get("_known", (None,))[0] != version:
        routes = [
            (
                route,
                isinstance(route, routing.APIRoute) and routing.compile_path(router.include_context.path_for(route))[0],
            )
            for route in router.original_router.routes
        ]
        router.__dict__["_known"] = version, routes, {}
    _, routes, built = router.__dict__["_known"]
    numbers = [number for number, (_, pattern) in enumerate(routes) if not pattern or pattern.match(path)]
    for number in numbers:
        if number not in built:
            with router._effective_routes_lock:
                built[number] = router._build_effective_context(routes[number][0])
    return [built[number] for number in numbers if built[number] is not None]
