"""Treatment files: what is read, and the one line that anything else gets."""

import hashlib
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ionto_rt.codes import OnTrip
from ionto_rt.errors import RefusedError, shown
from ionto_rt.toml_source import MAX_BYTES, MAX_LINE, Location, key_lines
from ionto_rt.treatment import MAX_STEPS, Deliver, Pause, Treatment
from treatments import EXAMPLES, mutated, together

BASE = """\
format = 1
title = "test"
drug = "dexamethasone-phosphate"

[electrodes.active]
type = "buffered-pad"
area = "8 cm^2"
polarity = "cathode"

[electrodes.return]
type = "return-pad"
area = "25 cm^2"

[[steps]]
current = "4 mA"
dose = "40 mA*min"
ramp = "30 s"
"""


def refusal(text: str | bytes) -> RefusedError:
    source = text.encode() if isinstance(text, str) else text
    with pytest.raises(RefusedError) as caught:
        Treatment.parse(source, "t.toml")
    line = str(caught.value)
    assert line.isprintable() and line.startswith("t.toml:"), line
    assert caught.value.exit_code == 2
    return caught.value


def swap(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new, 1)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_read_whole(path: Path) -> None:
    treatment = Treatment.load(path)
    assert treatment.source == path.read_bytes()
    assert treatment.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert treatment.path == str(path)


def test_quantities_are_si_inside() -> None:
    treatment = Treatment.parse(BASE.encode())
    step = treatment.steps[0]
    assert isinstance(step, Deliver)
    assert (step.current_a, step.dose_c, step.time_s, step.ramp_s) == (0.004, 2.4, None, 30.0)
    assert treatment.electrodes.active.area_m2 == 8e-4
    assert treatment.polarity == -1


def test_blocks_repeat_by_name_in_order() -> None:
    treatment = Treatment.parse(
        (
            BASE
            + """
[[steps]]
repeat = "pulse"
times = 2
[[blocks.pulse]]
pause = "60 s"
[[blocks.pulse]]
current = "1 mA"
time = "20 s"
"""
        ).encode()
    )
    kinds = [(location, leaf.kind, name) for location, leaf, name in treatment.expanded()]
    assert kinds == [
        (("steps", 0), "deliver", ""),
        (("blocks", "pulse", 0), "pause", "pulse 1/2"),
        (("blocks", "pulse", 1), "deliver", "pulse 1/2"),
        (("blocks", "pulse", 0), "pause", "pulse 2/2"),
        (("blocks", "pulse", 1), "deliver", "pulse 2/2"),
    ]
    assert [location for location, _ in treatment.deliveries()] == [("steps", 0), ("blocks", "pulse", 1)]


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        (swap("format = 1", "format = 2"), 1, "format", "format = 1"),
        (swap("format = 1", "format = true"), 1, "format", "format = 1"),
        (swap("format = 1\n", ""), None, "format", "is missing"),
        (swap("title", "titel"), 2, "titel", 'did you mean "title"?'),
        (swap('"test"', '""'), 2, "title", "is empty"),
        (swap('"test"', '"a\\nb"'), 2, "title", "line breaks"),
        (swap('"test"', f'"{"x" * 201}"'), 2, "title", "longer than 200"),
        (swap('"test"', "5"), 2, "title", "must be text"),
        (swap('title = "test"\n', ""), None, "title", "is missing"),
        (swap("area", "aera"), 7, "electrodes.active.aera", 'did you mean "area"?'),
        (swap('"cathode"', '"minus"'), 8, "electrodes.active.polarity", "'cathode' or 'anode'"),
        (
            swap('[electrodes.return]\ntype = "return-pad"\narea = "25 cm^2"\n', ""),
            5,
            "electrodes.return",
            "is missing",
        ),
        (swap('"8 cm^2"', '"8"'), 7, "electrodes.active.area", "has no unit"),
        (swap('"8 cm^2"', "8"), 7, "electrodes.active.area", "must be text with a unit"),
        (swap('"8 cm^2"', '"8 mA"'), 7, "electrodes.active.area", "has a unit of current, not of area"),
        (swap('"8 cm^2"', '"0 cm^2"'), 7, "electrodes.active.area", "is zero"),
        (swap('"4 mA"', '"nan mA"'), 15, "steps[0].current", "not a number and a unit"),
        (swap('"4 mA"', "nan"), 15, "steps[0].current", "must be text with a unit"),
        (swap('"4 mA"', '"2*2 mA"'), 15, "steps[0].current", "has none of the units"),
        (swap('"4 mA"', '"-4 mA"'), 15, "steps[0].current", "is negative"),
        (swap('"4 mA"', '"0 mA"'), 15, "steps[0].current", "pause"),
        (swap("current =", "curent ="), 15, "steps[0].curent", 'did you mean "current"?'),
        (swap('dose = "40 mA*min"\n', ""), 14, "steps[0]", "neither dose nor time"),
        (swap("ramp =", 'time = "5 min"\nramp ='), 14, "steps[0]", "both dose and time"),
        (swap('current = "4 mA"\n', ""), 14, "steps[0].current", "is missing"),
        (swap("[[steps]]", "[steps]"), 14, "steps", "double brackets"),
        (swap("[[steps]]", "[[step]]"), 14, "step", 'did you mean "steps"?'),
        (BASE + '[[steps]]\npause = "60 s"\ntime = "5 s"\n', 20, "steps[1].time", "unknown key"),
        (BASE + '[[steps]]\nrepeat = "x"\ntimes = 2\n', 19, "steps[1].repeat", "no block has this name"),
        (BASE + '[[steps]]\nrepeat = "x"\n', 18, "steps[1].times", "is missing"),
        (
            BASE + '[[steps]]\nrepeat = "pulze"\ntimes = 2\n[[blocks.pulse]]\npause = "1 s"\n',
            19,
            "steps[1].repeat",
            'did you mean "pulse"?',
        ),
        (
            BASE + '[[blocks.a]]\nrepeat = "a"\ntimes = 2\n',
            18,
            "blocks.a[0]",
            "cannot repeat another block",
        ),
        (
            BASE + '[[steps]]\nrepeat = "p"\ntimes = 0\n[[blocks.p]]\npause = "1 s"\n',
            20,
            "steps[1].times",
            "at least 1",
        ),
        (BASE + '[[steps]]\nrepeat = "p"\ntimes = true\n[[blocks.p]]\npause = "1 s"\n', 20, "steps[1].times", "whole"),
        (BASE + '[["blocks"."a b"]]\npause = "1 s"\n', 18, 'blocks."a b"', "not a name for a block"),
        (swap('drug = "dexamethasone-phosphate"', "drug = {}"), 3, "drug", "must be text"),
        (swap('current = "4 mA"\ndose = "40 mA*min"\nramp = "30 s"', 'pause = "1 s"'), 14, "steps", "delivers current"),
    ],
)
def test_a_mistake_is_told_with_line_key_and_remedy(text: str, line: int | None, key: str, says: str) -> None:
    error = refusal(text)
    assert (error.line, error.key) == (line, key), str(error)
    assert says in str(error)


def test_the_line_tells_file_line_key_value_and_remedy() -> None:
    assert str(refusal(swap('"4 mA"', '"4 volt"'))) == (
        't.toml:15: steps[0].current = "4 volt": has none of the units of current, '
        'mA, uA, \u00b5A, nA, A; write it like "2 mA"'
    )


def test_several_mistakes_are_counted_and_an_unknown_key_comes_first() -> None:
    error = refusal(swap("current", "curent").replace('"8 cm^2"', '"8"'))
    assert error.key == "steps[0].curent"
    assert "2 more problems after this one" in str(error)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x7fELF\x02\x01\x00\x00", "binary"),
        (b"\xff\xfe\x00f", "not text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "not text in UTF-8"),
        (b"this is not TOML", "is not valid TOML"),
        (b"{}", "is not valid TOML"),
        (b"format = 1\nformat = 1\n", "is not valid TOML"),
        (b'format = 1\ntitle = "open\n', "is not valid TOML"),
        (b"x = " + b"[\n" * 100_000, "is nested too deeply"),
        (b"x = " + b"{a=" * 600, "is nested too deeply"),
        (b"x = " + b"9" * 1900, "is missing"),
        (b".".join([b"a"] * 60) + b" = 1", "more than 50 dots"),
        (b".".join([b"a"] * 100_000) + b" = 1", f"longer than {MAX_LINE} characters"),
        (b"x = '" + b"y" * MAX_BYTES, "larger than 512 KiB"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_not_a_treatment_at_all_gets_one_line(source: bytes, says: str) -> None:
    assert says in str(refusal(source))


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read() -> None:
    treatment = Treatment.parse(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert treatment.line_of(("steps", 0, "current")) == 15


def test_paths_that_are_no_files_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for path, says in [
        (tmp_path, "is a folder"),
        (tmp_path / "missing.toml", "no such file"),
        (tmp_path / "loop", "loop of symbolic links"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "file" / "t.toml", "cannot be opened"),
        (Path("/dev/zero"), "not a regular file"),
        ("a\0b", "not a file name"),
        ("x" * 5000, "cannot be opened"),
        ("", "no such file"),
    ]:
        with pytest.raises(RefusedError) as caught:
            Treatment.load(path)
        assert says in str(caught.value) and str(caught.value).isprintable()


def test_a_file_that_grew_beyond_the_bound_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(RefusedError, match="larger than 512 KiB"):
        Treatment.load(path)


def test_the_number_of_steps_is_known_before_any_is_made() -> None:
    leaf = '[[blocks.p]]\npause = "1 s"\n'
    text = BASE + f'[[steps]]\nrepeat = "p"\ntimes = {MAX_STEPS}\n' + leaf
    error = refusal(text)
    assert (error.line, error.key) == (20, "steps[1].times")
    Treatment.parse((BASE + f'[[steps]]\nrepeat = "p"\ntimes = {MAX_STEPS - 1}\n' + leaf).encode())


def test_the_schema_names_every_key_of_the_examples() -> None:
    schema = Treatment.json_schema()
    assert set(schema["properties"]) >= {"format", "title", "drug", "electrodes", "limits", "steps", "blocks"}
    assert schema["additionalProperties"] is False
    assert "current" in schema["$defs"]["Deliver"]["properties"]
    assert schema["$defs"]["Deliver"]["properties"]["current"]["type"] == "string"


LINES = """\
# comment with [brackets] and "quotes"
a = 1  # b = 2
"quoted key" = 'x # y'
'lit.eral' = "c \\" ] } #"
d.e.f = 2
d.e.g = [1, [2,
  3], # [4]
  { h = 5, i.j = [6] },
]
m = \"\"\"
[fake]
k = 1 \\"\"\" still \"\"
\"\"\"\"
l = '''
n = 1''
'''
when = 1979-05-27 07:32:00
[t . u]
v = { w = "}", x = { y = 1 } }
[[arr]]
p = 1
[[arr]]
p = 2
[arr.sub]
q = 3
[[arr.deep]]
r = 4
[[arr.deep]]
r = 5
[z]
"""


def test_the_line_of_every_kind_of_key_is_found() -> None:
    lines = key_lines(LINES)
    expected: dict[Location, int] = {
        ("a",): 2,
        ("quoted key",): 3,
        ("lit.eral",): 4,
        ("d", "e", "f"): 5,
        ("d", "e", "g"): 6,
        ("d", "e", "g", 0): 6,
        ("d", "e", "g", 1, 0): 6,
        ("d", "e", "g", 1, 1): 7,
        ("d", "e", "g", 2, "h"): 8,
        ("d", "e", "g", 2, "i", "j", 0): 8,
        ("m",): 10,
        ("l",): 14,
        ("when",): 17,
        ("t",): 18,
        ("t", "u"): 18,
        ("t", "u", "v", "w"): 19,
        ("t", "u", "v", "x", "y"): 19,
        ("arr",): 20,
        ("arr", 0): 20,
        ("arr", 0, "p"): 21,
        ("arr", 1): 22,
        ("arr", 1, "p"): 23,
        ("arr", 1, "sub"): 24,
        ("arr", 1, "sub", "q"): 25,
        ("arr", 1, "deep", 0, "r"): 27,
        ("arr", 1, "deep", 1): 28,
        ("arr", 1, "deep", 1, "r"): 29,
        ("z",): 30,
    }
    assert {location: lines.get(location) for location in expected} == expected


def locations(value: Any, at: Location = ()) -> set[Location]:
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found = {at} if at else set()
    for key, inner in items:
        found |= locations(inner, (*at, key))
    return found


@pytest.mark.parametrize("text", [LINES, BASE, *(path.read_text() for path in EXAMPLES)])
def test_every_key_and_item_of_a_file_has_a_line(text: str) -> None:
    assert set(key_lines(text)) == locations(tomllib.loads(text))


scalars = st.one_of(
    st.integers(-1000, 1000).map(str),
    st.booleans().map(lambda value: str(value).lower()),
    st.sampled_from(["'l#]}'", '"b\\"#[{"', '"""m\n[x]\n""\\"""""', "'''n\n'x''\n'''", "1.5e3", "inf", "12:30:00"]),
)
inline = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[ # c ]\n" + " ,\n".join(items) + "\n]"),
        st.dictionaries(st.sampled_from(["a", "b.c", '"q.#"', "'='"]), inner, max_size=3).map(
            lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs.items()) + " }"
        ),
    ),
    max_leaves=6,
)
statements = st.one_of(
    st.tuples(st.sampled_from(["a", "b", "c.d", '"e f"', "'g'.h"]), inline).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    st.sampled_from(["[t]", "[t.u]", "[ v . 'w x' ]", "[[x]]", "[[x.y]]", "[x.z]", "", "# [no]"]),
)


@given(st.lists(statements, max_size=12).map("\n".join))
def test_of_any_valid_file_the_found_keys_are_exactly_its_keys(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    assert set(lines) == locations(data)
    rows = text.split("\n")
    for location, line in lines.items():
        last = location[-1]
        if isinstance(last, str) and last.isalnum():
            assert last in rows[line - 1]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_a_mutated_example_is_read_or_refused_in_one_line(source: bytes) -> None:
    try:
        treatment = Treatment.parse(source)
    except RefusedError as error:
        assert str(error).isprintable()
    else:
        leaves = [leaf for channel in treatment.channels for _, leaf, _ in channel.expanded()]
        assert leaves and all(isinstance(leaf, (Deliver, Pause)) for leaf in leaves)


def test_shown_values_are_short() -> None:
    assert len(shown("x" * 10_000)) < 80
    assert shown(10**400) == "a number of more than 60 digits"
    assert shown([1]) == "a list"
    assert shown({"a": 1}) == "a table"


TWO = together([BASE, BASE], "pause")
LINES_OF_TWO = TWO.splitlines()


def swap_in_second(old: str, new: str) -> str:
    first, mark, second = TWO.rpartition("[[channels]]\n")
    assert old in second
    return first + mark + second.replace(old, new, 1)


def line_in_second(text: str) -> int:
    return len(LINES_OF_TWO) - LINES_OF_TWO[::-1].index(text)


def channels_named(*names: str) -> str:
    tables = TWO.split("[[channels]]\n")
    return tables[0] + "".join(
        "[[channels]]\n" + tables[1].replace('name = "0"', f'name = "{name}"') for name in names
    )


def test_a_treatment_of_one_channel_is_that_channel() -> None:
    treatment = Treatment.parse(BASE.encode(), "t.toml")
    (channel,) = treatment.channels
    assert (channel.name, channel.index, treatment.on_channel_trip) == ("", 0, OnTrip.STOP)
    for name in ("title", "subject", "drug", "site", "electrodes", "limits", "steps", "blocks", "name", "polarity"):
        assert getattr(channel, name) == getattr(treatment, name)
    for name in ("source", "sha256", "path"):
        assert getattr(channel, name) == getattr(treatment, name)
    assert channel.line_of(("steps", 0, "current")) == treatment.line_of(("steps", 0, "current")) == 15
    assert str(channel.refuse(("steps",), "no")) == str(treatment.refuse(("steps",), "no"))


def test_each_table_of_channels_is_what_a_file_of_one_channel_would_be() -> None:
    other = swap('"8 cm^2"', '"10 cm^2"').replace('"cathode"', '"anode"').replace("4 mA", "3 mA") + (
        '[limits]\ndose = "50 mA*min"\n[[steps]]\nrepeat = "p"\ntimes = 2\n'
        '[[blocks.p]]\npause = "60 s"\n[[blocks.p]]\ncurrent = "1 mA"\ntime = "20 s"\n'
    )
    treatment = Treatment.parse(together([BASE, other]).encode(), "t.toml")
    assert treatment.on_channel_trip == OnTrip.STOP
    assert [channel.name for channel in treatment.channels] == ["0", "1"]
    assert [channel.index for channel in treatment.channels] == [0, 1]
    for channel, text in zip(treatment.channels, (BASE, other), strict=True):
        alone = Treatment.parse(text.encode())
        for name in ("title", "subject", "drug", "site", "electrodes", "limits", "steps", "blocks", "polarity"):
            assert getattr(channel, name) == getattr(alone, name)
        assert list(channel.expanded()) == list(alone.expanded())
        assert list(channel.deliveries()) == list(alone.deliveries())
        assert (channel.source, channel.sha256, channel.path) == (treatment.source, treatment.sha256, "t.toml")


@pytest.mark.parametrize("word", ["stop", "pause", "continue"])
def test_the_file_says_what_a_trip_means_for_the_other_channels(word: str) -> None:
    treatment = Treatment.parse(TWO.replace('"pause"', f'"{word}"').encode())
    assert treatment.on_channel_trip == OnTrip[word.upper()]


def test_a_channel_finds_its_lines_and_keys_in_the_file() -> None:
    second = Treatment.parse(TWO.encode(), "t.toml").channels[1]
    assert second.line_of(("steps", 0, "current")) == line_in_second('current = "4 mA"')
    assert second.line_of(("limits", "dose")) == line_in_second("[[channels]]")
    error = second.refuse(("steps", 0, "current"), "is too much", "take less")
    line = line_in_second('current = "4 mA"')
    assert str(error) == f't.toml:{line}: channels[1].steps[0].current = "4 mA": is too much; take less'


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        (
            'drug = "x"\n' + TWO + "[[steps]]\n",
            1,
            "drug",
            "stands at the top of a file that has [[channels]]; move to each channel, or remove: drug, steps",
        ),
        (channels_named("a"), 4, "channels[0]", "is the only channel; write its keys at the top"),
        (channels_named(*map(str, range(33))), None, "channels[32]", "a device has 32 at most"),
        (channels_named("left elbow", "Left  elbow"), None, "channels[1].name", "is the name of channels[0] already"),
        (channels_named("left", " "), None, "channels[1].name", "is empty"),
        (channels_named("left", "x" * 61), None, "channels[1].name", "longer than 60"),
        (channels_named("left", "a\\nb"), None, "channels[1].name", "line breaks"),
        (
            swap_in_second('name = "1"\n', ""),
            line_in_second("[[channels]]"),
            "channels[1].name",
            'is missing; add name = "left elbow"',
        ),
        (TWO.replace('"pause"', '"halt"'), 3, "on_channel_trip", "write 'stop', 'pause' or 'continue'"),
        (TWO.replace('"pause"', "true"), 3, "on_channel_trip", "write 'stop', 'pause' or 'continue'"),
        (swap("drug", 'on_channel_trip = "stop"\ndrug'), 3, "on_channel_trip", "there are no other channels"),
        (TWO.replace("on_channel_trip", "on_chanel_trip"), 3, "on_chanel_trip", 'did you mean "on_channel_trip"?'),
        (TWO.replace("[[channels]]", "[[chanels]]").replace("channels.", "chanels."), None, "chanels", '"channels"?'),
        (TWO.partition("[[")[0] + "channels = []\n", 4, "channels", "is empty"),
        (TWO.partition("[[")[0] + "channels = 2\n", 4, "channels", "list of tables in double brackets"),
        (TWO.partition("[[")[0] + "channels = [1, 2]\n", 4, "channels[0]", "must be a table"),
        (TWO.partition("[[")[0] + "[channels]\nname = 1\n", 4, "channels", "list of tables in double brackets"),
        (
            swap_in_second('name = "1"', 'nam = "1"'),
            line_in_second('name = "1"'),
            "channels[1].nam",
            'did you mean "name"?',
        ),
        (
            swap_in_second('name = "1"', 'name = "1"\ntitle = "x"'),
            line_in_second('name = "1"') + 1,
            "channels[1].title",
            "unknown key",
        ),
        (
            swap_in_second("area", "aera"),
            line_in_second('area = "8 cm^2"'),
            "channels[1].electrodes.active.aera",
            'did you mean "area"?',
        ),
        (
            swap_in_second("current =", "curent ="),
            line_in_second('current = "4 mA"'),
            "channels[1].steps[0].curent",
            'did you mean "current"?',
        ),
        (
            swap_in_second('"4 mA"', '"4 volt"'),
            line_in_second('current = "4 mA"'),
            "channels[1].steps[0].current",
            "has none of the units of current",
        ),
        (
            swap_in_second(TWO[TWO.index("[[channels.steps]]") : TWO.index('[[channels]]\nname = "1"')], ""),
            line_in_second("[[channels]]"),
            "channels[1].steps",
            'add [[channels.steps]] with current = "2 mA"',
        ),
        (
            swap_in_second('[channels.electrodes.return]\ntype = "return-pad"\narea = "25 cm^2"\n', ""),
            line_in_second("[channels.electrodes.active]"),
            "channels[1].electrodes.return",
            "add [channels.electrodes.return] with type",
        ),
        (
            TWO + '[[channels.steps]]\nrepeat = "x"\ntimes = 2\n',
            len(LINES_OF_TWO) + 2,
            "channels[1].steps[1].repeat",
            "no block has this name; add [[channels.blocks.NAME]] with its steps",
        ),
        (
            swap_in_second('current = "4 mA"\ndose = "40 mA*min"\nramp = "30 s"', 'pause = "1 s"'),
            line_in_second("[[channels.steps]]"),
            "channels[1].steps",
            "delivers current",
        ),
    ],
)
def test_a_mistake_in_a_file_of_several_channels_is_told_with_its_place(
    text: str, line: int | None, key: str, says: str
) -> None:
    error = refusal(text)
    assert error.key == key and says in str(error), str(error)
    assert error.line == line or (line is None and error.line is not None)


def test_thirty_two_channels_are_read() -> None:
    treatment = Treatment.parse(channels_named(*map(str, range(32))).encode())
    assert [channel.index for channel in treatment.channels] == list(range(32))


@pytest.mark.parametrize("name", ["drug", "steps", "electrodes", "limits", "blocks", "site", "name", "polarity"])
def test_a_treatment_of_several_channels_is_refused_where_one_of_a_single_one_is_needed(name: str) -> None:
    treatment = Treatment.parse(TWO.encode(), "t.toml")
    with pytest.raises(RefusedError, match=r"t\.toml: has 2 channels, where a treatment of one is needed"):
        getattr(treatment, name)
    assert (treatment.title, treatment.line_of(("on_channel_trip",))) == ("test", 3)
    assert "channels" in repr(treatment) and not hasattr(treatment, "nothing")


def test_the_schema_has_either_the_keys_of_one_channel_or_channels() -> None:
    schema = Treatment.json_schema()
    one, several = schema["oneOf"]
    assert set(one["required"]) == {"drug", "electrodes", "steps"} and one["properties"]["channels"] is False
    assert several["required"] == ["channels"] and several["properties"]["steps"] is False
    assert schema["properties"]["on_channel_trip"]["enum"] == ["stop", "pause", "continue"]
    channels = schema["properties"]["channels"]
    assert (channels["minItems"], channels["maxItems"]) == (2, 32)
    channel = schema["$defs"]["Channel"]
    assert channel["additionalProperties"] is False
    assert set(channel["properties"]) == {"name", "drug", "site", "electrodes", "limits", "steps", "blocks"}
