"""Pictures of a study, as PNG bytes: its rounds, its sites, its calibration, its drift.

A picture is a solid white card, so it reads the same in MLflow's light and dark themes. Colours are Okabe and Ito's
(2008), and shape or dash always says the same as the colour. matplotlib is imported when a picture is drawn and only
through its objects: no pyplot, no global state. The same numbers give the same bytes.

`None`, NaN and infinity all mean "not measured": no dot is drawn and no value is invented for it.
"""

from fedrounds.reports.calibration import calibration
from fedrounds.reports.heatmap import heatmap, history
from fedrounds.reports.rounds import rounds
from fedrounds.reports.sites import sites

__all__ = ["calibration", "heatmap", "history", "rounds", "sites"]
