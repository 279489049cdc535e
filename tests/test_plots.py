"""Pictures are PNGs, equal for equal numbers, silent about what was not measured, and no text covers another."""

from __future__ import annotations

import functools
import struct
import subprocess
import sys
import zlib
from itertools import combinations

import pytest

from fedrounds.reports import card, plots
from fedrounds.reports.groups import wilson
from fedrounds.reports.words import spread

PNG = b"\x89PNG\r\n\x1a\n"
WORDS = {"study": "uci-heart", "metric_name": "AUC (0 to 1)"}


def draw_rounds(n_sites, n_rounds=12, champion=8, name="site-{:02d}"):
    steps = range(1, n_rounds + 1)
    each = {
        name.format(i): [None if (t + i) % 3 == 0 else 0.4 + 0.002 * i + 0.3 / t for t in steps] for i in range(n_sites)
    }
    metric = [0.8 - 0.2 / t if t % 2 == 0 else None for t in steps]
    loss = [0.4 + 0.3 / t for t in steps]
    return plots.rounds(
        list(steps), loss, metric, loss_name="log loss (nats)", site_losses=each, champion=champion, **WORDS
    )


def draw_sites(n, name="site-{:02d}"):
    local = [None if i % 4 == 1 else 0.7 + 0.001 * i for i in range(n)]
    federated = [None if i % 8 == 5 else 0.8 for i in range(n)]
    pooled = [None if i % 8 == 5 else 0.82 for i in range(n)]
    names, patients = [name.format(i) for i in range(n)], [1000 - i for i in range(n)]
    return plots.sites(names, local, federated, pooled, patients=patients, **WORDS)


def draw_calibration(means=(0.1, 0.5, 0.9), rates=(0.0, 0.5, 1.0), counts=(30, 20, 10)):
    return plots.calibration(means, rates, counts, study="uci-heart", round=7)


def draw_heatmap(n, features, name="site-{:02d}", **limits):
    names, columns = [name.format(i) for i in range(n)], [f"systolic blood pressure {j}" for j in range(features)]
    each = {
        site: [(None, 0.0, 0.002, 0.12, 0.31, 12.0)[(i + 2 * j) % 6] for j in range(features)]
        for i, site in enumerate(names)
    }
    return plots.heatmap(names, columns, each, study="uci-heart", against="their profile of visit 2", **limits)


def draw_history(n, visits=(2, 5, 9)):
    each = {f"site-{i:02d}": [None if i == t else 0.05 * i * t for t in range(len(visits))] for i in range(n)}
    return plots.history(list(visits), each, study="uci-heart", warn=0.1, hold=0.25, accepted=visits[1:2])


PICTURES = {
    "rounds, 1 site": lambda: draw_rounds(1),
    "rounds, 10 sites": lambda: draw_rounds(10),
    "rounds, 50 sites": lambda: draw_rounds(50),
    "rounds, long names": lambda: draw_rounds(10, name="St. Mary & St. Joseph of the River, campus {}"),
    "rounds, one round": lambda: draw_rounds(4, n_rounds=1, champion=1),
    "rounds, no champion": lambda: draw_rounds(4, champion=None),
    "rounds, no sites": lambda: draw_rounds(0),
    "rounds, no rounds": lambda: draw_rounds(4, n_rounds=0, champion=None),
    "rounds, wild": lambda: plots.rounds(
        [1, 2],
        [0.5, 0.4],
        [None, None],
        study="a study whose name is far longer than any title has room for",
        loss_name="log loss with a long explanation (nats per patient and round)",
        metric_name="area under the receiver operating curve (0 to 1)",
        site_losses={"calm": [0.5, 0.4], "wild": [0.5, 5e6]},
    ),
    "sites, 0": lambda: draw_sites(0),
    "sites, 1": lambda: draw_sites(1),
    "sites, 4": lambda: draw_sites(4),
    "sites, 50": lambda: draw_sites(50),
    "sites, 63": lambda: draw_sites(63),
    "sites, long names": lambda: draw_sites(50, name="St. Mary & St. Joseph of the River, campus {}"),
    "calibration": draw_calibration,
    "calibration, rare": lambda: draw_calibration((0.001, 0.002, 0.05), (0.0, 0.004, 0.06), (9000, 9000, 9000)),
    "heatmap, 4 by 7": lambda: draw_heatmap(4, 7, warn=0.1, hold=0.25),
    "heatmap, 50 by 13": lambda: draw_heatmap(50, 13, warn=0.1, hold=0.25),
    "heatmap, long names and no limits": lambda: draw_heatmap(6, 3, "St. Mary & St. Joseph of the River, campus {}"),
    "heatmap, 1 by 1": lambda: draw_heatmap(1, 1, warn=0.1, hold=0.25),
    "history, 4 sites": lambda: draw_history(4),
    "history, 12 sites": lambda: draw_history(12),
    "history, 1 visit": lambda: draw_history(2, (7,)),
    "calibration, empty": lambda: draw_calibration((None, None), (None, None), (0, 0)),
}


@pytest.fixture
def figures(monkeypatch):
    """The figures behind the bytes, each with the texts that were really drawn."""
    from matplotlib.backends.backend_agg import RendererAgg

    kept, png, draw_text = [], card.png, RendererAgg.draw_text

    def keep(fig):
        fig.drawn = []
        kept.append(fig)
        return png(fig)

    def note(self, *args, mtext=None, **rest):
        kept[-1].drawn.append(mtext)
        draw_text(self, *args, mtext=mtext, **rest)

    monkeypatch.setattr(card, "png", keep)
    monkeypatch.setattr(RendererAgg, "draw_text", note)
    return kept


def words(fig):
    """The drawn texts and their boxes in pixels; a renderer does not tell whose the lines of a broken label are."""
    texts = dict.fromkeys([*filter(None, fig.drawn), *(ax.yaxis.label for ax in fig.axes if ax.get_ylabel())])
    return [(text.get_text(), text.get_window_extent()) for text in texts]


def said(fig):
    return " | ".join(text for text, _ in words(fig))


@functools.cache
def drawn(name: str) -> bytes:
    """A picture as it was drawn first."""
    return PICTURES[name]()


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_a_whole_png(name):
    assert drawn(name).startswith(PNG)
    assert drawn(name).endswith(b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))


def test_a_picture_carries_no_date_and_no_version():
    png = draw_calibration()
    assert not any(chunk in png for chunk in (b"tEXt", b"iTXt", b"zTXt", b"tIME"))


@pytest.mark.parametrize("name", PICTURES)
def test_drawn_again_it_is_the_same_and_no_text_covers_another_or_leaves_the_card(name, figures):
    before = drawn(name)
    figures.clear()
    assert PICTURES[name]() == before
    boxes = words(figures[0])
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figures[0].bbox.x1, text
        assert box.y1 <= figures[0].bbox.y1, text
    assert len(boxes) > 5
    for (one, a), (two, b) in combinations(boxes, 2):
        wide, tall = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 1 or tall <= 1, f"{one!r} covers {two!r}"


def test_a_site_without_a_metric_gets_a_note_and_no_dot(figures):
    plots.sites(["a", "b"], [None, None], [0.8, None], [0.9, float("nan")], patients=[30, 9], **WORDS)
    text = said(figures[0])
    assert "a (n = 30)" in text
    assert "b (n withheld)" in text
    assert "local n/a" in text
    assert "one outcome" not in text
    dots = {line.get_label(): line.get_xdata() for line in figures[0].axes[0].lines}
    assert [x == x for x in dots["local only"]] == [False, False]
    assert [x == x for x in dots["federated"]] == [True, False]


def test_beyond_fifty_sites_the_fifty_largest_are_drawn_and_the_title_says_so(figures):
    draw_sites(63)
    text = said(figures[0])
    assert "the 50 largest of 63 sites" in text
    assert "site-49 (n = 951)" in text
    assert "site-50" not in text


def test_up_to_ten_sites_are_named_and_more_are_not(figures):
    draw_rounds(10)
    draw_rounds(11)
    assert all(f"site-{i:02d}" in said(figures[0]) for i in range(10))
    assert "site-" not in said(figures[1])
    assert "thin: 11 sites" in said(figures[1])


def test_a_cell_says_its_number_and_a_limit_is_a_frame_and_not_a_colour_alone(figures):
    plots.heatmap(
        ["a", "b"], ["age", "sex"], {"a": [0.05, 0.0], "b": [0.12, 0.4]}, study="s", against="x", warn=0.1, hold=0.25
    )
    text = said(figures[0])
    assert all(
        word in text
        for word in ("0.05", "0.12", "0.40", "beyond warn, 0.1", "beyond hold, 0.25", "how far 2 sites lie from x")
    )
    cells, beyond_warn, beyond_hold = figures[0].axes[0].collections
    assert (len(cells.get_paths()), len(beyond_warn.get_paths()), len(beyond_hold.get_paths())) == (4, 1, 1)
    assert beyond_hold.get_linewidth()[0] > 2 * beyond_warn.get_linewidth()[0]
    weights = {t.get_text(): t.get_fontweight() for t in figures[0].axes[0].texts}
    assert (weights["0.40"], weights["0.12"]) == ("bold", "normal")
    rows = [text for text, _ in words(figures[0]) if text in ("a", "b")]
    assert rows == ["b", "a"]  # the furthest site on top


def test_of_many_sites_and_features_the_furthest_are_drawn_and_the_title_says_so(figures):
    names = [f"s{i:02d}" for i in range(51)]
    each = {site: [0.001 * i + 0.01 * j for j in range(31)] for i, site in enumerate(names)}
    plots.heatmap(names, [f"f{j:02d}" for j in range(31)], each, study="s", against="x")
    text = said(figures[0])
    assert "the 50 furthest of 51 sites" in text
    assert "the 30 furthest of 31 features" in text
    assert ("s00" in text, "f00" in text, "s01" in text, "f01" in text) == (False, False, True, True)


def test_the_champion_round_is_marked_in_both_panels(figures):
    draw_rounds(2, champion=8)
    assert "champion, round 8" in said(figures[0])
    assert all(any(list(line.get_xdata()) == [8, 8] for line in ax.lines) for ax in figures[0].axes)


def test_one_diverging_site_turns_the_loss_axis_logarithmic(figures):
    PICTURES["rounds, wild"]()
    assert figures[0].axes[0].get_yscale() == "log"
    assert "log scale" in said(figures[0])
    assert "not measured" in said(figures[0])


def test_a_name_with_dollars_is_a_name_and_not_a_formula(figures):
    plots.sites(["a$\\frac$b"], [0.7], [0.8], [0.9], patients=[30], metric_name="AUC", study="x$_$y")
    assert "a$\\frac$b (n = 30)" in said(figures[0])


def test_the_wilson_interval_of_five_of_ten():
    low, high = wilson(0.5, 10)
    assert low == pytest.approx(0.2366, abs=1e-4)
    assert high == pytest.approx(0.7634, abs=1e-4)


def test_labels_are_spread_in_order_and_stay_inside():
    assert spread([0.5, 0.5, 0.5], 0.25) == [0.5, 0.75, 1.0]
    assert spread([1.0, 0.9], 0.25) == [1.0, 0.75]
    assert spread([0.1, 0.9], 0.25) == [0.1, 0.9]


def test_series_of_unequal_length_are_refused_by_name():
    with pytest.raises(ValueError, match="expected 2 values in federated, got 1"):
        plots.sites(["a", "b"], [0.7, 0.7], [0.8], [0.9, 0.9], patients=[30, 30], **WORDS)


def test_matplotlib_is_not_imported_before_a_picture_and_pyplot_never():
    code = (
        "import sys; from fedrounds.reports import plots; assert 'matplotlib' not in sys.modules;"
        "plots.calibration([0.5], [0.5], [9], study='s', round=1); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pictures_are_the_same_when_matplotlib_was_imported_with_its_manuals():
    code = (
        "{}from fedrounds.reports import card, plots; import hashlib, matplotlib.artist as a;"
        "found = [plots.calibration([0.1, 0.5], [0.2, 0.5], [19, 30], study='s', round=1),"
        "plots.rounds([1, 2], [0.5, 0.4], [0.7, 0.8], study='s', loss_name='l', metric_name='m', site_losses={{'a': [0.5, 0.4]}}, champion=2)];"
        "print(hashlib.sha256(b''.join(found)).hexdigest(), 'linewidth' in (a.kwdoc(card._matplotlib()[1])))"
    )
    said = [
        subprocess.run([sys.executable, "-c", code.format(before)], check=True, capture_output=True, text=True).stdout
        for before in ("", "import matplotlib.figure, matplotlib.backends.backend_agg; ")
    ]
    assert said[0] == said[1]
    assert said[0].endswith("True\n")  # whoever asks for a manual later is given it
