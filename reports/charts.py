"""The report's pictures, as inline SVG: rounds, sites, calibration, coefficients, drift.

Okabe and Ito's colours (2008); shape or dash always says the same as the colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from fedrounds.core.coefficients import Coefficient
from fedrounds.reports import svg
from fedrounds.reports.groups import Group
from fedrounds.reports.markup import Markup, tag
from fedrounds.reports.words import Numbers, count, number, short, spread

W = 720.0
MOST_NAMED = 10  # site lines with names: five colours times two dashes
MOST_ROWS = 50
MOST_BARS = 25


def rounds(
    steps: Sequence[int],
    loss: Numbers,
    metric: Numbers,
    site_losses: Mapping[str, Numbers],
    *,
    loss_name: str,
    metric_name: str,
    champion: int | None,
) -> Markup:
    """Loss (all sites thick, each site thin) over metric, by round; the champion is dotted and starred."""
    named = [short(name, 18) for name in site_losses] if len(site_losses) <= MOST_NAMED else []
    right = W - 26 - max([svg.wide(name) for name in named] + [svg.wide("all 0.0000")])
    x = svg.Scale(min(steps) - 0.15, max(steps) + 0.15, 64, right)
    whole = [value for value in svg.ticks(x.low, x.high, 10) if value == int(value)]
    drawn: list[object] = []
    for top, bottom, values, name, each in (
        (34, 254, loss, loss_name, site_losses),
        (320, 450, metric, metric_name, {}),
    ):
        ys = [number(y) for series in (values, *each.values()) for y in series]
        seen = [y for y in ys if not math.isnan(y)]
        log = bool(seen) and min(seen) > 0 and max(seen) > 50 * min(seen)
        y = svg.around(seen, bottom, top, log=log)
        drawn += [svg.words(8, top - 16, f"{name}, log scale" if log else name), *svg.grid_y(y, 64, right)]
        drawn += svg.grid_x(x, top, bottom, whole)
        if not seen:
            drawn.append(svg.words((64 + right) / 2, (top + bottom) / 2, "not measured", at="middle", look="soft"))
        ends: list[tuple[float, float, str, str]] = []
        for i, (site, series) in enumerate(each.items()):
            look = f"s{i % 5}{' dashed' if i >= 5 else ''} thin" if named else "bundle"
            points = _points(x, y, steps, series)
            if points:
                drawn.append(tag("g", tag("title", site), svg.path(points, look)))
            if points and named:
                ends.append((*points[-1], named[i], look))
        points = _points(x, y, steps, values)
        if points:
            drawn.append(svg.path(points, "all"))
            final = next(number(v) for v in reversed(values) if not math.isnan(number(v)))
            ends.append((*points[-1], f"all {final:.4g}", "all"))
        drawn += _ends(ends, right, top, bottom)
        if champion is not None:
            drawn.append(svg.line(x(champion), top, x(champion), bottom, "champion"))
            at = dict(zip(steps, metric, strict=True)).get(champion)
            if values is metric and at is not None and not math.isnan(number(at)):
                drawn.append(svg.star(x(champion), y(at), 9, "star"))
    drawn.append(svg.words((64 + right) / 2, 492, "federated round", at="middle"))
    says = f"The thick line is all hospitals together, thin lines are {count(len(site_losses), 'hospital')}."
    if champion is not None:
        says += f" The dotted line and the star mark the champion, round {champion}."
    return svg.picture("rounds", W, 504, f"{loss_name} and {metric_name} by round", says, drawn)


def _points(x: svg.Scale, y: svg.Scale, steps: Sequence[int], values: Numbers) -> list[tuple[float, float]]:
    measured = [(s, number(v)) for s, v in zip(steps, values, strict=True)]
    return [(x(s), y(v)) for s, v in measured if not math.isnan(v)]


def _ends(ends: Sequence[tuple[float, float, str, str]], right: float, top: float, bottom: float) -> list[Markup]:
    """Names of the lines, led to from each one's last point and moved apart."""
    drawn: list[Markup] = []
    heights = spread([y - top for _, y, *_ in ends], 16, bottom - top)
    for (x, y, name, look), height in zip(ends, heights, strict=True):
        plain = look.removesuffix(" thin")
        drawn.append(svg.path([(x, y), (right, y), (right + 14, top + height)], f"{plain} lead"))
        drawn.append(svg.words(right + 18, top + height + 4.5, name, look="bold" if look == "all" else None))
    return drawn


def sites(
    rows: Sequence[tuple[str, str, float | None, float | None, float | None, float | None]], *, metric_name: str
) -> Markup:
    """A row a site: its own model (ring), the federated one (disc, with the largest error of its metric), the pooled one (bar).

    Args:
        rows: name, patients in words, alone, federated, pooled, error; the largest site first, at most fifty are drawn.
    """
    kept = rows[:MOST_ROWS]
    labels = [f"{short(name, 22)} ({said})" for name, said, *_ in kept]
    told = [
        any(row[k] is not None for row in kept) for k in (2, 3, 4)
    ]  # a kind of model that no site has needs no word at each
    notes = [_lost(values[:3], told) for _, _, *values in kept]
    left = 12 + max(map(svg.wide, labels))
    right = W - 12 - max(map(svg.wide, notes), default=0)
    step, top = (26 if len(kept) <= 12 else 19), 44.0
    bottom = top + step * len(kept)
    values = [number(v) for _, _, *three, error in kept for v in three]
    ends = [number(f) + side * number(error) for _, _, _, f, _, error in kept for side in (-1, 1) if error is not None]
    x = svg.around([*values, *ends], left, right)
    drawn: list[object] = [_legend(left, told)]
    drawn += svg.grid_x(x, top, bottom)
    for i, (name, _, *three, error) in enumerate(kept):
        y = top + step * (i + 0.5)
        own, all_of_us, pool = map(number, three)
        drawn.append(svg.words(left - 10, y + 4.5, labels[i], at="end"))
        seen = [value for value in (own, all_of_us, pool) if not math.isnan(value)]
        inside: list[object] = [tag("title", name)]
        if seen:
            inside.append(svg.line(x(min(seen)), y, x(max(seen)), y, "span"))
        if error and not math.isnan(all_of_us):
            inside.append(svg.line(x(all_of_us - error), y, x(all_of_us + error), y, "error"))
        inside += [] if math.isnan(pool) else [svg.line(x(pool), y - 8, x(pool), y + 8, "pool")]
        inside += [] if math.isnan(own) else [svg.circle(x(own), y, 6, "own")]
        inside += [] if math.isnan(all_of_us) else [svg.circle(x(all_of_us), y, 4, "ours")]
        drawn += [tag("g", *inside), svg.words(right + 8, y + 4.5, notes[i], look="soft") if notes[i] else None]
    drawn.append(svg.words((left + right) / 2, bottom + 40, metric_name, at="middle"))
    which = (
        f"The {MOST_ROWS} largest of {len(rows)} hospitals" if len(rows) > MOST_ROWS else count(len(rows), "hospital")
    )
    says = (
        f"{which}, the largest on top. "
        + ("Ring: the hospital's own model. " if told[0] else "")
        + "Disc: the federated model"
    )
    says += ", with the largest possible error of its area. " if any(error for *_, error in kept) else ". "
    says += "Bar: one pool of all rows, which only a simulation can know." if told[2] else ""
    return svg.picture("sites", W, bottom + 52, f"{metric_name} at each hospital", says, drawn)


def _lost(values: Sequence[float | None], told: Sequence[bool]) -> str:
    kinds = zip(("alone", "federated", "pooled"), values, told, strict=True)
    gone = [math.isnan(number(value)) for _, value, told_of in kinds if told_of]
    if gone and all(gone):
        return "not measured"
    names = [name for name, told_of in zip(("alone", "federated", "pooled"), told, strict=True) if told_of]
    lost = [name for name, absent in zip(names, gone, strict=True) if absent]
    return f"no {', '.join(lost)}" if lost else ""


def _legend(left: float, told: Sequence[bool]) -> Markup:
    y, x = 18.0, left
    parts: list[object] = []
    for (look, name), told_of in zip((("own", "alone"), ("ours", "federated"), ("pool", "pooled")), told, strict=True):
        if not told_of:
            continue
        mark = (
            svg.line(x + 6, y - 8, x + 6, y + 8, "pool")
            if look == "pool"
            else svg.circle(x + 6, y, 6 if look == "own" else 4, look)
        )
        parts += [mark, svg.words(x + 18, y + 4.5, name)]
        x += 40 + svg.wide(name)
    return tag("g", *parts)


def calibration(found: Sequence[Group]) -> Markup:
    """Observed against predicted risk, with 95 % intervals, over a strip of how many patients each group holds."""
    end = next((e for e in (0.1, 0.2, 0.5) if all(max(g.predicted, g.interval[1]) <= e for g in found)), 1.0)
    x, y = svg.Scale(0, end, 62, 420), svg.Scale(0, end, 372, 30)
    tall = svg.Scale(0, 1.15 * max(g.rows for g in found), 500, 426)
    drawn: list[object] = [svg.words(8, 16, "observed share of patients"), *svg.grid_y(y, 62, 420)]
    drawn += svg.grid_x(x, 30, 372)
    drawn.append(svg.line(x(0), y(0), x(end), y(end), "perfect"))
    for g in found:
        low, high = g.interval
        drawn.append(svg.line(x(g.predicted), y(max(low, 0)), x(g.predicted), y(min(high, end)), "error"))
    drawn.append(svg.path([(x(g.predicted), y(g.observed)) for g in found], "all"))
    for g in found:
        said = f"{g.rows} patients: predicted {g.predicted:.1%}, observed {g.observed:.1%}"
        drawn.append(tag("g", tag("title", said), svg.circle(x(g.predicted), y(g.observed), 4.5, "ours")))
    drawn.append(svg.words(8, 416, "patients"))
    gaps = [(b.predicted - a.predicted) for a, b in pairwise(found)]
    width = min(24.0, 0.8 * (x(min(gaps)) - x(0)) if gaps else 24.0)
    drawn += svg.grid_y(tall, 62, 420, 3)
    drawn += [
        svg.box(x(g.predicted) - width / 2, tall(g.rows), width, 500 - tall(g.rows), "bar", f"{g.rows} patients")
        for g in found
    ]
    drawn.append(svg.words(241, 532, "predicted risk (same axis above and below)", at="middle"))
    drawn.append(svg.line(62, 500, 420, 500, "axis"))
    says = "Dots on the dashed diagonal: of patients told a risk of 20 %, it happens to 20 %. Vertical bars are 95 % intervals (Wilson)."
    return svg.picture("calibration", 440, 544, "Observed against predicted risk", says, drawn, look="square")


def coefficients(columns: Sequence[tuple[str, float]], *, odds: bool, axis: str) -> Markup:
    """Bars from no effect, the strongest first; an odds ratio on its logarithmic axis.

    Args:
        columns: name, and the change of the linear predictor that the bar shows.
        odds: whether the axis is in odds ratios.
    """
    strongest = sorted(columns, key=lambda column: -abs(column[1]))[:MOST_BARS]
    labels = [short(name, 34) for name, _ in strongest]
    left, right, top, step = 12 + max(map(svg.wide, labels)), W - 70, 14.0, 24
    bottom = top + step * len(strongest)
    x = svg.around([0.0, *(value for _, value in strongest)], left, right)
    if odds:
        ratios = [
            r for r in (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10) if x.low <= math.log(r) <= x.high
        ]
        drawn: list[object] = []
        last = -math.inf
        for ratio in sorted(ratios):
            at = x(math.log(ratio))
            drawn.append(svg.line(at, top, at, bottom, "grid"))
            if at - last > 38:
                drawn.append(svg.words(at, bottom + 18, svg.say(ratio), at="middle", look="soft"))
                last = at
    else:
        drawn = list(svg.grid_x(x, top, bottom))
    drawn.append(svg.line(x(0), top, x(0), bottom, "axis"))
    for i, (name, value) in enumerate(strongest):
        y = top + step * i
        shown = f"{math.exp(value):.2f}" if odds else f"{value:.3g}".replace("-", "−")
        drawn.append(svg.words(left - 10, y + step / 2 + 4.5, labels[i], at="end"))
        look = "bar" if value >= 0 else "bar less"
        drawn.append(svg.box(min(x(0), x(value)), y + 5, abs(x(value) - x(0)), step - 10, look, f"{name}: {shown}"))
        drawn.append(svg.words(right + 8, y + step / 2 + 4.5, shown, look="soft"))
    drawn.append(svg.words((left + right) / 2, bottom + 40, axis, at="middle"))
    rest = len(columns) - len(strongest)
    says = f"The strongest first{f'; {rest} weaker ones are in the table alone' if rest else ''}. Solid bars raise, hatched bars lower."
    hatch = tag(
        "pattern",
        svg.line(0, 0, 0, 6, "hatch"),
        id="less",
        width=6,
        height=6,
        patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )
    return svg.picture("coefficients", W, bottom + 52, axis, says, tag("defs", hatch), drawn)


def named(column: Coefficient) -> str:
    """A bar's name: what the change is per.

    >>> named(Coefficient("age", "years", None, (0.1,), None, 9.43))
    'age (per 9.4 years)'
    """
    if column.level is not None:
        return f"{column.feature} = {column.level}"
    unit = column.unit.split(",")[0].strip()
    return f"{column.feature} (per {column.scale:.2g}{f' {unit}' if unit else ''})"


def heatmap(
    key: str, found: Mapping[str, Mapping[str, float | None]], warn: float, hold: float, *, title: str, says: str
) -> Markup:
    """Sites by features, shaded by PSI; a triangle above the warning, a square above the limit. `says` tells what they mean."""
    dark = max(min(hold, 2.5 * warn), 1e-9)
    features = list(dict.fromkeys(feature for row in found.values() for feature in row))
    labels, heads = [short(site, 22) for site in found], [short(feature, 18) for feature in features]
    left = 12 + max(map(svg.wide, labels), default=0)
    cell = min(44.0, max(18.0, (W - left - 60) / max(len(features), 1)))
    row, top = (24 if len(found) <= 12 else 18), 14 + max(map(svg.wide, heads), default=0) * 0.72
    width = max(W, left + cell * len(features) + 90)
    drawn: list[object] = []
    for j, head in enumerate(heads):
        x = left + cell * (j + 0.5) + 4
        drawn.append(tag("text", head, transform=f"translate({svg.px(x)} {svg.px(top - 6)}) rotate(-45)"))
    for i, (site, values) in enumerate(found.items()):
        y = top + row * i
        drawn.append(svg.words(left - 10, y + row / 2 + 4.5, labels[i], at="end"))
        for j, feature in enumerate(features):
            value, x = values.get(feature), left + cell * j
            said = f"{site} · {feature}: " + ("not measured" if value is None else f"PSI {value:.3f}")
            shade = "none" if value is None else f"h{min(4, int(4 * value / dark))}"
            drawn.append(svg.box(x + 1, y + 1, cell - 2, row - 2, f"cell {shade}", said))
            middle, centre = x + cell / 2, y + row / 2
            if value is not None and value >= hold:
                drawn.append(svg.box(middle - 4, centre - 4, 8, 8, "mark"))
            elif value is not None and value >= warn:
                points = f"{svg.px(middle)},{svg.px(centre - 5)} {svg.px(middle + 5)},{svg.px(centre + 4)} {svg.px(middle - 5)},{svg.px(centre + 4)}"
                drawn.append(tag("polygon", points=points, class_="mark"))
    return svg.picture(key, width, top + row * len(found) + 12, title, says, drawn)
