"""The report: one page that needs nothing else, shows every peak, and takes no orders from a treatment file."""

import math
import re
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.events import Event
from ionto_rt.record import TELEMETRY, Record, SessionFolder
from ionto_rt.recover import recover
from record_support import (
    TICK,
    channel_facts,
    make_channels,
    make_session,
    receipt_of,
    steady_rows,
    ticked,
    treatment_rows,
)

pytest.importorskip("matplotlib")

from ionto_rt.report import (
    _LANES,
    _alarm_titles,
    _combined,
    _corners,
    _envelope,
    _event_label,
    _figure,
    _Mark,
    _peaks,
    _place,
    report,
)


class Page(HTMLParser):
    """Tags, attributes that could load something, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def image(path: Path) -> np.ndarray[Any, Any]:
    from matplotlib import image as images

    return np.asarray(images.imread(path))


def finished(folder: SessionFolder, **receipt: object) -> Path:
    rows = steady_rows(3000)
    folder.finish(receipt_of(rows, **receipt))  # type: ignore[arg-type]
    return folder.path


def test_the_page_stands_alone_and_holds_receipt_alarms_limits_and_versions(tmp_path: Path) -> None:
    folder = make_session(
        tmp_path,
        steady_rows(3000),
        channels=[channel_facts(limits={"current": {"limit": "4 mA", "trip": "4.4 mA"}})],
        host={"memory locked": False},
        versions={"ionto_rt": "0.1.0"},
    )
    folder.events.write("trip", 2500, safety=True, name="open lead", advice="Press the pad on.")
    paths = report(finished(folder, outcome="faulted"))
    page = Page(paths.html)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "img"})
    assert all(reference.startswith("#") for reference in page.references)
    assert "url(http" not in paths.html.read_text()
    for text in (
        "faulted",
        "40",
        "open lead",
        "Press the pad on.",
        "0:02.500",
        "4.4 mA",
        "memory locked",
        "0.1.0",
        "S-07",
    ):
        assert text in page.text
    assert "format = 1" in page.text
    assert paths.png.read_bytes().startswith(b"\x89PNG")


def test_what_comes_from_a_treatment_file_is_text_and_nothing_else(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script><img src=http://x onerror=y>&amp;$\\frac{$ \x00\x1b]"
    folder = SessionFolder.create(
        tmp_path,
        evil,
        treatment_source=f"name = '{evil}' -- ]]> --> </pre></style>",
        session={
            "subject": evil,
            "channels": [channel_facts(name=evil, site=evil, drug=evil, limits={evil: {evil: evil}}, plan=evil)],
            "host": [evil],
            "versions": {evil: evil},
        },
    )
    folder.open_telemetry(TICK, 1000.0).append(steady_rows(3000))
    folder.events.write("trip", 100, name=evil, advice=evil, more={evil: [evil]})
    folder.events.write(evil, 200)
    paths = report(finished(folder, outcome=evil, notes=[evil], trips=[evil], **{"odd": evil}))
    page = Page(paths.html)
    assert page.tags.isdisjoint({"script", "img"})
    assert page.text.count("<script>alert('x')</script>") >= 12


@pytest.mark.parametrize("count", [2, 7, pytest.param(32, marks=pytest.mark.slow)])
def test_every_channel_has_its_line_its_curves_and_its_alarms(tmp_path: Path, count: int) -> None:
    known = ticked(count)
    folder = make_channels(tmp_path, known)
    folder.events.write("trip", 3009, safety=True, name="OPEN_LEAD", channel=1, title="Lead open", advice="press it on")
    receipt = known.receipt()
    receipt["channels"][1] |= {"outcome": "faulted", "trips": ["OPEN_LEAD"], "load": {"resistance_ohm": 3750.0}}
    folder.finish(receipt)
    paths = report(folder.path)
    page = Page(paths.html)
    assert "site 1: Lead open" in page.text and "Around the first trip" in page.text
    for channel in range(count):
        cells = [f"site {channel}", "complete" if channel != 1 else "faulted"]
        dose = f"{receipt['channels'][channel]['dose_delivered_mamin']:.6g}"
        assert "".join((*cells, dose)) in page.text
        assert f"site {channel}" in page.text and f"{channel} site {channel}" not in page.text
    assert "resistance_ohm 3750" in page.text
    assert paths.html.stat().st_size < 3e6


def test_the_page_of_several_channels_says_once_what_is_the_same_for_all(tmp_path: Path) -> None:
    same, other = {"current": {"limit": "4 mA"}}, {"current": {"limit": "1 mA"}}
    rows = np.repeat(steady_rows(300), 3)
    rows["channel"] = np.arange(len(rows)) % 3
    names = (("left", same), ("middle", same), ("right", other))
    channels = [channel_facts(name=name, limits=limits, plan="one plan") for name, limits in names]
    folder = make_session(tmp_path, rows, channels=channels)
    folder.events.write("phase", 5, channel=2)
    folder.close()
    page = Page(report(folder.path).html)
    assert page.text.count("one plan") == 1 and "Limits: left, middle" in page.text and "Limits: right" in page.text
    assert "Limits: left, middle, right" not in page.text


def test_a_channel_without_a_row_does_not_keep_the_others_from_their_report(tmp_path: Path) -> None:
    known = ticked(5)
    rows = known.rows[known.rows["channel"] != 3]
    for channels in (5, 4):
        own = rows[rows["channel"] < channels]
        folder = make_session(tmp_path, own, channels=known.facts[:channels])
        folder.close()
        assert report(folder.path).png.stat().st_size > 10_000


@pytest.mark.parametrize("rows", [0, 1, 99, 250])
def test_a_session_that_never_ended_has_a_report_too(tmp_path: Path, rows: int) -> None:
    folder = make_session(tmp_path, steady_rows(rows))
    assert "no receipt" in Page(report(folder.path).html).text
    folder.close()
    (folder.path / TELEMETRY).unlink()
    recover(folder.path)
    assert "bound, not measured" in Page(report(folder.path).html).text


def test_values_that_are_not_finite_are_left_out_of_the_plots(tmp_path: Path) -> None:
    rows = steady_rows(3000)
    for name in ("current_a", "voltage_v", "resistance_ohm", "delivered_c", "setpoint_a", "prescribed_a"):
        rows[name][1000:1200] = np.nan
        rows[name][1200:1300] = np.inf
    folder = make_session(tmp_path, rows)
    assert report(finished(folder)).png.stat().st_size > 10_000


def test_ten_minutes_at_1_khz_are_reported_in_five_seconds_and_three_megabytes() -> None:
    with tempfile.TemporaryDirectory() as out:
        folder = make_session(Path(out), treatment_rows(10.5))
        for tick in range(0, 630_000, 4000):
            folder.events.write("contact", tick, name="short open")
        path = finished(folder)
        # Of the processor: the host may be busy.
        begun = time.process_time()
        paths = report(path)
        assert time.process_time() - begun < 5
        assert paths.html.stat().st_size < 3e6 and paths.png.stat().st_size < 3e6


@given(st.lists(st.just(math.nan) | st.floats(-1e9, 1e9), min_size=1, max_size=20), st.integers(1, 500))
def test_no_peak_is_lost_by_thinning_out(values: list[float], repeat: int) -> None:
    data = np.repeat(np.array(values), repeat)
    least, mean, greatest = _envelope(data)
    finite = data[np.isfinite(data)]
    if len(finite):
        assert np.nanmin(least) == finite.min() and np.nanmax(greatest) == finite.max()
    assert len(least) == len(mean) == len(greatest) <= 1400
    places, corners = _corners(data)
    assert places[0] == 0 and places[-1] == len(data) - 1 and len(corners) <= 2800


@given(
    st.lists(
        st.builds(_Mark, st.floats(0, 10), st.text("abc", min_size=1, max_size=34), st.booleans()),
        max_size=30,
        unique=True,
    )
)
def test_no_label_covers_another_label_or_its_line(marks: list[_Mark]) -> None:
    rows = _place(marks, 0.0, 10.0)
    for mark, row in rows.items():
        assert 0 <= row < _LANES
        low, high = mark.span(0.0, 10.0)
        for other, above in rows.items():
            if other is mark:
                continue
            start, end = other.span(0.0, 10.0)
            assert above != row or high <= start or low >= end
            assert above <= row or not low < other.at < high


def test_a_record_that_was_changed_is_reported_with_that_at_its_head(tmp_path: Path) -> None:
    path = finished(make_session(tmp_path, steady_rows(3000)))
    whole = report(path, tmp_path / "whole")
    assert whole.problems == () and "does not verify" not in Page(whole.html).text
    with (path / TELEMETRY).open("r+b") as file:
        file.seek(20_000)
        file.write(b"changed")
    changed = report(path, tmp_path / "changed")
    assert changed.problems and changed.problems[0].startswith(TELEMETRY)
    assert "does not verify" in Page(changed.html).text.partition("Receipt")[0]
    head = slice(0, 120)
    assert (image(changed.png)[head] != image(whole.png)[head]).any()


def test_a_record_without_its_telemetry_is_not_headed_complete_without_a_word(tmp_path: Path) -> None:
    path = finished(make_session(tmp_path, steady_rows(3000)), outcome="complete", reason="dose delivered")
    (path / TELEMETRY).unlink()
    made = report(path)
    head = Page(made.html).text.partition("Receipt")[0]
    assert made.problems and "does not verify" in head and "There is no telemetry" in head
    assert "<span class='outcome good'>" not in made.html.read_text()


def test_a_session_that_has_not_ended_is_not_called_changed(tmp_path: Path) -> None:
    folder = make_session(tmp_path, steady_rows(3000))
    assert report(folder.path).problems == ()
    folder.close()


def test_a_report_that_goes_elsewhere_leaves_the_session_s_folder_alone(tmp_path: Path) -> None:
    path = finished(make_session(tmp_path, steady_rows(300)))
    (path / "report.html").write_text("an earlier one")
    before = {each.name: each.stat().st_mtime_ns for each in [path, *path.iterdir()]}
    made = report(path, tmp_path / "new" / "papers")
    assert made.html.parent == made.png.parent == tmp_path / "new" / "papers"
    assert {each.name: each.stat().st_mtime_ns for each in [path, *path.iterdir()]} == before


def test_without_matplotlib_one_line_says_what_to_install(tmp_path: Path) -> None:
    folder = finished(make_session(tmp_path, steady_rows(100)))
    code = (
        "import sys; sys.modules['matplotlib'] = None; from pathlib import Path\n"
        "from ionto_rt.record import RecordError; from ionto_rt.report import report\n"
        f"try: report(Path({str(folder)!r}))\nexcept RecordError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "report: matplotlib is not installed; pip install 'ionto-rt[report]'\n"


def test_the_page_says_when_each_alarm_stood_and_what_the_operator_did(tmp_path: Path) -> None:
    row = {"alarm": "open-lead", "hazard": "H05", "priority": "MEDIUM", "latched": True, "channel": "", "times": 1,
           "title": "Lead or pad open", "raised_s": 61.25, "gone_s": 61.3, "acknowledged_s": 70.0, "reset_s": None,
           "ended_s": None}  # fmt: skip
    other = row | {"alarm": "derated", "hazard": "H04", "priority": "LOW", "latched": False, "title": "Derated",
                   "acknowledged_s": None, "ended_s": 80.0}  # fmt: skip
    folder = make_session(tmp_path, steady_rows(3000))
    page = report(finished(folder, outcome="faulted", alarm_log=[row, other])).html.read_text()
    table = page.partition("<h2>Alarms</h2>")[2].partition("</table>")[0]
    cells = [re.findall(r"<td>(.*?)</td>", line) for line in table.split("<tr>")[2:]]
    assert cells == [
        ["Lead or pad open [H05]", "medium", "1:01.250", "1", "1:01.300", "1:10.000", "", "stood at the end"],
        ["Derated [H04]", "low", "1:01.250", "1", "1:01.300", "", "clears by itself", "1:20.000"],
    ]
    assert "alarm_log" not in page


def drawn(path: Path) -> list[Any]:
    """The axes of the picture, from above."""
    record = Record.open(path)
    figure = _figure(record, record.telemetry(), record.events().events, ())
    figure.canvas.draw()
    return list(figure.axes)


def opened(rows: np.ndarray[Any, Any], at: int) -> np.ndarray[Any, Any]:
    """A lead of a cathode that opens: 60 V for 4 ms, then no current, while the columns hold their last estimates."""
    for name in ("current_a", "setpoint_a", "voltage_v"):
        rows[name][at:] = 0.0
    rows["voltage_v"][at : at + 4] = -60.0
    rows["resistance_ohm"], rows["series_ohm"], rows["parallel_ohm"] = 2000.0, 600.0, 1000.0
    rows["series_sigma_ohm"], rows["parallel_sigma_ohm"] = 6.0, 6.0
    return rows


def test_where_no_current_flows_no_impedance_is_drawn(tmp_path: Path) -> None:
    path = finished(make_session(tmp_path, opened(steady_rows(3000), 2000)))
    impedance = drawn(path)[4]
    curves = {str(line.get_label()).split(",")[0]: line for line in impedance.get_lines()}
    for name in ("total", "series Rs", "parallel Rp"):
        time_s, value = curves[name].get_data()
        assert np.isfinite(value[(time_s > 0.1) & (time_s < 1.9)]).all()
        assert np.isnan(value[time_s > 2.01]).all()
    words = " ".join(text.get_text() for text in impedance.get_legend().get_texts())
    assert "V/I at the working point" in words and "small signals at the tones" in words


def test_the_voltage_axis_follows_the_treatment_and_a_spike_is_marked_at_its_place(tmp_path: Path) -> None:
    rows = opened(steady_rows(3000), 2000)
    usual = float(-rows["voltage_v"][:2000].min())
    voltage = drawn(finished(make_session(tmp_path, rows)))[3]
    assert usual < voltage.get_ylim()[1] < 2 * usual < 60
    [mark] = voltage.texts
    assert mark.get_text() == "peak 60 V" and mark.xy[0] == pytest.approx(2.0, abs=0.005)
    whole = drawn(finished(make_session(tmp_path / "whole", steady_rows(3000))))[3]
    assert not whole.texts and whole.get_ylim()[1] > usual


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), min_size=1, max_size=50), st.data())
def test_a_peak_is_the_greatest_there_is_in_its_direction(values: list[float], data: st.DataObject) -> None:
    volts = np.array(values)
    flows = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    for sign, at in _peaks(volts, flows):
        assert sign * volts[at] == np.nanmax(sign * volts) > 0


def test_the_picture_is_headed_by_the_treatment_s_title(tmp_path: Path) -> None:
    source = b'format = 1\ntitle = "Lidocaine & more"\n'
    session = {"channels": [channel_facts()], "subject": "S-07", "host": {}, "versions": {}}
    folder = SessionFolder.create(tmp_path, "a-file", treatment_source=source, session=session)
    folder.open_telemetry(TICK, 1000.0).append(steady_rows(3000))
    path = finished(folder)
    page = report(path).html.read_text()
    assert "<title>Lidocaine &amp; more</title>" in page and "<h1>Lidocaine &amp; more<" in page
    assert "file a-file" in page.partition("</h1>")[2].partition("</p>")[0]


def happened(kind: str, **fields: Any) -> Event:
    return Event(0, "", 0, kind, fields)


def test_an_event_s_label_says_what_happened_once_and_in_words() -> None:
    held = happened("held-for-others", alarm="held-for-others", title="Another channel has ended short: this one holds")
    titles = _alarm_titles([held])
    assert _event_label(held, titles) == "Another channel has ended short"
    over = happened("alarm-ended", alarm="held-for-others", priority="LOW")
    assert _event_label(over, titles) == "Another channel has ended short: over"
    assert _event_label(over) == "held for others: over"
    assert _event_label(happened("alarm-cause-gone", alarm="open-lead"), titles) == "open lead: cause gone"
    assert _event_label(happened("operator", command="TRIM", value_a=-1e-4), titles) == "trim -0.1 mA"


def test_labels_of_one_moment_are_one_and_an_alarm_that_was_over_at_once_is_named_once() -> None:
    marks = [
        _Mark(8.004, "Lead or pad open", True),
        _Mark(8.002, "Contact was lost", False),
        _Mark(8.002, "derated", False),
        _Mark(8.004, "Contact was lost: over", False),
        _Mark(9.0, "Lead or pad open: cause gone", False),
    ]
    assert _combined(marks, 0.0, 10.0) == [
        _Mark(8.004, "Lead or pad open", True),
        _Mark(8.004, "Contact was lost · derated", False),
        _Mark(9.0, "Lead or pad open: cause gone", False),
    ]


@given(
    st.lists(st.builds(_Mark, st.floats(0, 10), st.text("abc:. ", min_size=1, max_size=44), st.booleans()), max_size=30)
)
def test_no_label_is_lost_by_joining(marks: list[_Mark]) -> None:
    labels = _combined(marks, 0.0, 10.0)
    for mark in marks:
        told = mark.text.rpartition(": ")[0]
        texts = [text for label in labels for text in label.text.split(" · ")]
        assert mark.text in texts or told in {other.text for other in marks}
    assert all(len(label.text) <= 62 for label in labels)
