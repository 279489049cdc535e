"""site.toml: a hospital's own file. Local and secret: where its rows are, what it allows. It is never merged with the study."""

from __future__ import annotations

from fedrounds.core.answer import Policy
from fedrounds.core.study import Name
from fedrounds.sources.options import Options, Source


class SiteFile(Options):
    """One hospital.

    `absent` lists features that it does not record; `split_key` is the secret by which it draws validation rows (two runs with the same
    key draw the same); `simulated` says that the hospital is made up, though its patients may be real.
    """

    name: Name
    source: Source
    absent: tuple[str, ...] = ()
    split_key: str = ""
    simulated: bool = False
    policy: Policy = Policy()
