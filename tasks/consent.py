"""What a hospital's policy says to a request before any row is touched, and how a person there says yes."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from fedrounds.core.messages import Request
from fedrounds.core.schedule import within
from fedrounds.site.book import Book
from fedrounds.sources.site_file import Agent, SiteFile


def refusal(request: Request, site: SiteFile, book: Book) -> str:
    """Why the hospital does not answer, by its policy and its book alone; empty if it does. What waits for a person is noted."""
    policy, study = site.policy, request.study
    if policy.studies and not any(study.startswith(digest) for digest in policy.studies):
        return f"study {study[:12]} is none of those that the site takes part in"
    wanted = {"auto": None, "once": study, "every_round": f"{study} {request.round}"}[policy.approval]
    if wanted is not None and wanted not in (book.fact("approved") or []) and request.ask != "gate":
        book.learn("waits", [study, request.round, policy.approval])
        return "it waits for a person's approval at the site (`fedrounds site approve`)"
    if request.ask == "train" and policy.rounds_per_day:
        midnight = now_at(site.agent).replace(hour=0, minute=0, second=0, microsecond=0)
        if book.trained(midnight.timestamp()) >= policy.rounds_per_day:
            return f"the site trains at most {policy.rounds_per_day} rounds a day"
    return ""


def approve(book: Book) -> str:
    """Say yes to what waits for a person; returns what it was, empty where nothing waits."""
    waits = book.fact("waits")
    if waits is None:
        return ""
    study, number, kind = waits
    token = study if kind == "once" else f"{study} {number}"
    book.learn("approved", sorted({*(book.fact("approved") or []), token}))
    book.learn("waits", None)
    return f"study {study[:12]}" if kind == "once" else f"round {number} of study {study[:12]}"


def may_work(agent: Agent, now: datetime | None = None) -> bool:
    """Whether the hospital's hours allow its agent to work."""
    local = now.astimezone(ZoneInfo(agent.timezone)) if now else now_at(agent)
    return not agent.windows or any(within(window, local) for window in agent.windows)


def now_at(agent: Agent) -> datetime:
    """The clock on the hospital's wall."""
    return datetime.now(ZoneInfo(agent.timezone))
