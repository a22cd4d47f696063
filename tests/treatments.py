"""Treatments for the tests: the examples, mutations of them, and short texts."""

import re
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import FrontEnd
from ionto_rt.safety import CurrentRange, DeviceCapabilities
from ionto_rt.treatment import Treatment

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))
CATALOGUE = Catalogue.load()

DEVICE = DeviceCapabilities(
    name="test",
    front_end=FrontEnd.CURRENT_SOURCE,
    compliance_v=24.0,
    ranges=(CurrentRange(0.005, 2e-7, 0, 0.0, 0.00625), CurrentRange(0.0002, 1e-8, 1, 0.0, 0.00025)),
    tick_s=1e-3,
    lease_max_ticks=100,
)


def treatment(
    steps: str = '[[steps]]\ncurrent = "4 mA"\ndose = "40 mA*min"\nramp = "30 s"',
    *,
    drug: str = "dexamethasone-phosphate",
    polarity: str = "cathode",
    pad: str = "buffered-pad",
    area: str = "8 cm^2",
    return_pad: str = "return-pad",
    return_area: str = "25 cm^2",
    limits: str = "",
) -> Treatment:
    """A treatment of which the parts that a test is about are given."""
    text = f"""\
format = 1
title = "test"
drug = "{drug}"
[electrodes.active]
type = "{pad}"
area = "{area}"
polarity = "{polarity}"
[electrodes.return]
type = "{return_pad}"
area = "{return_area}"
[limits]
{limits}
{steps}
"""
    return Treatment.parse(text.encode(), "t.toml")


def perfusion(steps: str, area: str = "1 cm^2") -> Treatment:
    """A treatment at research currents: acetylcholine, steps at once up to 100 uA."""
    return treatment(
        steps,
        drug="acetylcholine",
        polarity="anode",
        pad="perfusion-chamber",
        area=area,
        return_pad="perfusion-return",
    )


def together(singles: Sequence[str], on_channel_trip: str = "") -> str:
    """One file of several channels, named 0, 1, ..., each of which asks for what a file of one channel asks for.

    The head (format, title, subject) is that of the first.
    """
    head = [line for line in singles[0].splitlines() if re.match("(format|title|subject) ", line)]
    if on_channel_trip:
        head.append(f'on_channel_trip = "{on_channel_trip}"')
    for name, text in enumerate(singles):
        head += ["[[channels]]", f'name = "{name}"']
        for line in text.splitlines():
            if not re.match("(format|title|subject) ", line):
                head.append(re.sub(r"^(\[+)", r"\1channels.", line))
    return "\n".join(head) + "\n"


SOURCES = [path.read_bytes() for path in EXAMPLES]
FRAGMENTS = [
    b"[[steps]]\n",
    b"[[blocks.pulse]]\n",
    b"[limits]\n",
    b"[[channels]]\n",
    b'name = "left elbow"\n',
    b'on_channel_trip = "pause"\n',
    b'current = "4 mA"\n',
    b'time = "1 s"\n',
    b"times = 999999999999999999999\n",
    b'repeat = "pulse"\n',
    b'pause = "1e9 h"\n',
    b"\0",
    b"\xff",
    b"\r",
    b"[",
    b"]",
    b"{",
    b'"',
    b"'''",
    b"=",
    b"nan",
    b"-",
    b"e99",
    b".",
    b"1979-05-27",
    "\u2028".encode(),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The bytes of an example with a few places overwritten."""
    source = bytearray(draw(st.sampled_from(SOURCES)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(source)))
        length = draw(st.sampled_from([0, 0, 1, 2, 5, 40]))
        source[start : start + length] = draw(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=4)))
    return bytes(source)
