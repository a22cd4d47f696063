"""What the options of a virtual device make of its skin, through the port of an armed device and its truth."""

import cmath
import csv
import struct
from pathlib import Path
from typing import Any

import pytest

from ionto_rt.core.virtual_device import FAULT_KINDS, FAULT_VALUES, VirtualDevice
from ionto_rt.core.wire import FrameReader
from ionto_rt.device import VIRTUAL_OPTIONS, open_device, virtual_arguments
from ionto_rt.errors import RefusedError
from ionto_rt.virtual_device import SimPort, parse_fault


def left_alone(seconds: float, uri: str) -> bytes:
    """What a device sends that is armed and gets no command, its relay open."""
    with open_device(f"sim:{uri}") as device:
        hello = device.hello
        code = round(1.25 * hello.ranges[2].full_scale_a / hello.ranges[2].current_lsb_a)
        device.push_limits(
            range_index=2, lease_max_ticks=80, token=7, session_ticks=1 << 30, current_cap_code=code,
            output_code_min=hello.ranges[2].output_code_min, output_code_max=hello.ranges[2].output_code_max,
            charge_cap_codes=1 << 60,
        )  # fmt: skip
        device.arm(4, 7)  # type: ignore[arg-type]
        virtual: VirtualDevice = device.port.sim.device  # type: ignore[attr-defined]
        virtual.advance(round(seconds * 1000))
        return virtual.transmit()


def truth(tmp_path: Path, seconds: float, uri: str) -> list[dict[str, float]]:
    """Rows of the truth of a device that is left alone."""
    path = tmp_path / "truth.csv"
    left_alone(seconds, f"{uri}&truth={path}")
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_every_fault_that_takes_a_value_has_limits_for_it_and_is_one() -> None:
    assert set(FAULT_VALUES) < set(FAULT_KINDS)
    assert all(least < most for _, least, most in FAULT_VALUES.values())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("peel=120@60", ("peel", 120.0, 60.0)), ("dry=8@5", ("dry", 8.0, 5.0)), ("loose=5@0.5", ("loose", 5.0, 0.5)),
        ("leak=1e5@3", ("leak", 1e5, 3.0)), ("return-area=0.5@2", ("return-area", 0.5, 2.0)),
    ],
)  # fmt: skip
def test_slow_faults_are_written_as_value_and_time(text: str, fault: tuple[str, float, float]) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize("text", ["peel@60", "dry=x@1", "loose=@1", "leak=5", "return-area@1", "peel=1@1+2"])
def test_a_slow_fault_without_its_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        parse_fault(text)


@pytest.mark.parametrize("fault", ["peel=0@1", "dry=1e9@1", "leak=0@1", "return-area=2@1", "loose=0@1"])
def test_a_fault_beyond_its_limits_is_refused_by_name(fault: str) -> None:
    with pytest.raises(ValueError, match=fault.split("=")[0]):
        SimPort(faults=[fault])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpe_exponent": 0.5}, "CPE"), ({"hydration": 0.5}, "hydration"), ({"electroporation": 2}, "electroporation"),
        ({"sweat": 1.0}, "sweat"), ({"motion_per_min": -1.0}, "motion"), ({"electrode_mc_cm2": -1.0}, "electrode"),
        ({"half_cell_v": 3.0}, "half-cell"), ({"hum_hz": 400.0}, "hum"), ({"jitter_us": 100.0}, "half a sub-step"),
        ({"load": (600.0, 1500.0, 1e-7), "sweat": 0.03}, "not with a load"),
        ({"load": (600.0, 1500.0, 1e-7), "cpe_exponent": 0.85}, "not with a load"),
    ],
)  # fmt: skip
def test_options_of_the_skin_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirtualDevice(**options)


def test_the_uri_knows_the_options_of_the_skin() -> None:
    options = {
        "cpe": "0.85", "hydration": "5", "electroporation": "1", "sweat": "0.03", "motion": "0.5", "emf": "0.1",
        "electrode-charge": "100", "onset-scale": "0.3", "hum-hz": "60", "jitter-us": "50", "bandwidth": "1000",
        "substeps": "16",
    }  # fmt: skip
    assert set(options) <= set(VIRTUAL_OPTIONS)
    SimPort(**virtual_arguments({name: [text] for name, text in options.items()} | {"jitter-us": ["25"]}))


def test_a_process_that_is_out_of_range_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(RefusedError, match="hydration"):
        open_device("sim:?hydration=100")


def test_an_electrode_potential_stands_at_the_pads_of_an_open_relay(tmp_path: Path) -> None:
    rows = truth(tmp_path, 0.05, "?emf=0.2&noise=0")
    assert rows[-1]["voltage_v"] == pytest.approx(0.2)


def test_a_peeling_pad_shows_in_the_truth(tmp_path: Path) -> None:
    rows = truth(tmp_path, 1.5, "?fault=peel=1@0.2")
    shares = {round(row["device_time_s"], 3): row["contact_fraction"] for row in rows}
    assert shares[0.2] == 1.0
    assert shares[0.7] == pytest.approx(0.5, abs=0.01)
    assert shares[1.4] == pytest.approx(0.02)


def test_movements_come_as_often_as_asked_and_follow_the_seed(tmp_path: Path) -> None:
    runs = [
        [row["contact_fraction"] for row in truth(tmp_path, 20.0, f"?motion=20&seed={seed}")] for seed in (5, 5, 6)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert min(runs[0]) < 0.9 * max(runs[0])


def test_area_and_movement_multiply(tmp_path: Path) -> None:
    plain = [row["contact_fraction"] for row in truth(tmp_path, 20.0, "?motion=20&seed=5")]
    halved = [row["contact_fraction"] for row in truth(tmp_path, 20.0, "?motion=20&seed=5&fault=area=0.5@0")]
    # The truth has six digits.
    assert halved == pytest.approx([0.5 * share for share in plain], rel=1e-5)


@pytest.mark.parametrize("hum_hz", [50.0, 60.0])
def test_hum_is_as_far_ahead_in_a_voltage_read_later_as_its_frequency_says(hum_hz: float) -> None:
    later_s, phasors = 400e-6, []
    for skew_us in (0.0, 1e6 * later_s):
        sent = left_alone(0.5, f"?hum=1&hum-hz={hum_hz}&noise=0&skew-us={skew_us}")
        samples = [payload for payload in FrameReader().feed(sent) if payload[0] == 0x85][:500]
        assert len(samples) == 500
        codes = [struct.unpack_from("<i", payload, 24)[0] for payload in samples]
        phasors.append(sum(code * cmath.exp(-2j * cmath.pi * hum_hz * k / 1000) for k, code in enumerate(codes)))
    assert cmath.phase(phasors[1] / phasors[0]) == pytest.approx(2.0 * cmath.pi * hum_hz * later_s, rel=0.01)
