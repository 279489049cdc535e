"""The numbers that explain a model, as files beside the lineage."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Note = Mapping[str, Any]


def files(note: Note) -> dict[str, str]:
    """The numbers at full precision, by file name; a count below 10 is not told."""
    return {
        "features.csv": _csv(
            (
                "feature",
                "site",
                "importance",
                "deviation",
                *(f"{k}{o and f' {o}'}" for o in note["scores"] for k in ("mean_abs_phi", "mean_phi")),
            ),
            _feature_rows(note),
        ),
        "dependence.csv": _csv(
            ("feature", "value", "output", "mean_prediction"),
            (
                (panel["feature"], point, output, mean)
                for panel in note["dependence"]
                for output, means in zip(note["outputs"], panel["means"], strict=True)
                for point, mean in zip(panel["points"], means, strict=True)
            ),
        ),
        "groups.csv": _csv(("feature", "group", "site", "metric", "value"), _group_rows(note)),
        "contribution.csv": _csv(
            ("site", "shapley", "error", "alone", "last"),
            (
                (site, *(share[key] for key in ("shapley", "error", "alone", "last")))
                for site, share in note["contribution"].get("shares", {}).items()
            ),
        ),
    }


def _feature_rows(note: Note) -> Iterable[Sequence[Any]]:
    for told in note["features"]:
        phi = [told[kind][at] for at in range(len(note["scores"])) for kind in ("weight", "shift")]
        yield told["feature"], "", told["importance"], told["deviation"], *phi
        for site, value in told["sites"].items():
            yield told["feature"], site, value, "", *([""] * len(phi))


def _group_rows(note: Note) -> Iterable[Sequence[Any]]:
    groups = [("", "", note["everywhere"], note["sites"])]
    groups += [(p["feature"], g["group"], g["everywhere"], g["sites"]) for p in note["subgroups"] for g in p["groups"]]
    for feature, group, everywhere, sites in groups:
        for site, found in (("", everywhere), *sites.items()):
            for metric, value in found.items():
                yield feature, group, site, metric, value


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    written = io.StringIO()
    sheet = csv.writer(written, lineterminator="\n")
    sheet.writerow(head)
    sheet.writerows([[repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows])
    return written.getvalue()
