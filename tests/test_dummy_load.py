"""A load of known parts on the virtual device, and a voltage that is read later than the current, in closed form."""

import math

import numpy as np
import pytest

from ionto_rt.dummy_load import LEAST_F, MOST_OHM, DummyLoad
from ionto_rt.units import UnitError
from test_virtual_device import Host, SimPort, sim

DAC_GAIN, DAC_OFFSET = 1.015, 0.25
BANDWIDTH_HZ = 2000.0


@pytest.mark.parametrize(
    "text, load",
    [
        ("1k", DummyLoad(1e3)),
        ("470", DummyLoad(470.0)),
        ("4.7 kohm", DummyLoad(4.7e3)),
        ("1M", DummyLoad(1e6)),
        ("600,2k,240n", DummyLoad(600.0, 2e3, 240e-9)),
        ("600 ohm, 2 kohm, 240 nF", DummyLoad(600.0, 2e3, 240e-9)),
        ("1e3,3e5,20n", DummyLoad(1e3, 3e5, 20e-9)),
        ("500,100k,0.03u", DummyLoad(500.0, 1e5, 30e-9)),
    ],
)
def test_a_load_is_read_by_prefix_or_by_unit(text: str, load: DummyLoad) -> None:
    assert DummyLoad.parse(text) == load
    assert DummyLoad.parse(str(load)) == load


@pytest.mark.parametrize(
    "text", ["", "k", "0", "-1k", "1k,2k", "1,2,3,4", "600,2k,240", "600,240n,2k", "1kk", "nan", "1e9", "9", "1k,2k,1p"]
)
def test_what_is_no_load_is_refused(text: str) -> None:
    with pytest.raises(UnitError):
        DummyLoad.parse(text)


def test_a_resistor_has_no_parallel_part() -> None:
    assert DummyLoad(1e3).resistor and DummyLoad(1e3).total_ohm == 1e3
    assert not DummyLoad(MOST_OHM, 1e3, LEAST_F).resistor


def staircase(host: Host, codes: list[int], **start: object) -> np.ndarray:
    """Commands of these codes, one each tick; columns applied code, current (A) and voltage (V) of each sample."""
    sample = host.start(**start)
    used, info = host.used, host.info
    rows = []
    for code in codes:
        sample = host.step(sample, code=code)
        current = (sample.current - used["current_offset_q16"] / 65536) * used["current_lsb_fa"] * 1e-15
        voltage = (sample.voltage - info.voltage_offset_q16 / 65536) * info.voltage_lsb_nv * 1e-9
        rows.append((sample.applied, current, voltage))
    return np.array(rows)


def voltage_later(load: DummyLoad, currents_a: list[float], tick_s: float, skew_s: float) -> list[float]:
    """Closed form: the current steps to each value at a boundary, behind the stage's pole; the voltage that is read
    skew_s behind the boundary of the sample whose period had that current as its aim.
    """
    tau = 1.0 / (2.0 * math.pi * BANDWIDTH_HZ)
    parallel, capacitance = load.elements[1:]
    rate = 1.0 / (parallel * capacitance)

    def after(start_a: float, aim_a: float, x: float, t: float) -> tuple[float, float]:
        """Current and capacitor voltage t into a period: dx/dt = i/C - rate x, i = aim + (start - aim) exp(-t/tau)."""
        left, decay = math.exp(-t / tau), math.exp(-rate * t)
        steady = aim_a * parallel * (1.0 - decay)
        transient = (start_a - aim_a) / capacitance * (left - decay) / (rate - 1.0 / tau)
        return aim_a + (start_a - aim_a) * left, x * decay + steady + transient

    current = x = 0.0
    found = []
    for aim, following in zip(currents_a, [*currents_a[1:], 0.0], strict=True):
        current, x = after(current, aim, x, tick_s)
        read_a, read_x = after(current, following, x, skew_s)
        found.append(load.series_ohm * read_a + read_x)
    return found


@pytest.mark.parametrize("load", ["1k", "600,2k,240n", "500,100k,30n"])
@pytest.mark.parametrize("rate_hz, skew_us", [(1000.0, 0.0), (1000.0, 10.0), (5000.0, 10.0), (5000.0, 37.0)])
def test_the_voltage_is_that_of_the_later_instant(load: str, rate_hz: float, skew_us: float) -> None:
    """Held current or not: the capacitor charges on, and the step that acts at the boundary has begun."""
    host, _ = sim(
        load=load, noise_codes=0.0, skew_us=skew_us, sample_rate_hz=rate_hz, substeps=40, dac_gain_error=DAC_GAIN - 1.0
    )
    codes = [0] * 3 + [int(code) for code in np.random.default_rng(1).integers(200, 800, 60)] + [800] * 20
    rows = staircase(host, [*codes, 800])
    lsb_a = host.used["output_lsb"] * 1e-15 * DAC_GAIN
    # Until the first command acts the stage is disabled: exactly zero.
    aims = [(code + DAC_OFFSET) * lsb_a if k else 0.0 for k, code in enumerate(rows[:, 0])]
    expected = voltage_later(DummyLoad.parse(load), aims, 1.0 / rate_hz, skew_us * 1e-6)
    lsb_v = host.info.voltage_lsb_nv * 1e-9
    assert np.abs(rows[:-1, 2] - expected[:-1]).max() < 0.52 * lsb_v + 3e-4 * np.abs(expected).max()


def test_a_skew_shows_while_the_current_is_held() -> None:
    """10 us on 30 nF: a current I that charges the capacitor raises the reading by I 10 us / C, 333 ohm for I."""
    readings = []
    for skew_us in (0.0, 10.0):
        host, _ = sim(load="500,100k,30n", noise_codes=0.0, skew_us=skew_us, sample_rate_hz=5000.0, substeps=40)
        readings.append(staircase(host, [0, 0, *[3000] * 10]))
    start = 4
    current = readings[0][start, 1]
    assert np.array_equal(readings[0][:, 1], readings[1][:, 1])
    more_ohm = (readings[1][start, 2] - readings[0][start, 2]) / current
    assert more_ohm == pytest.approx(333.0 * math.exp(-2.5 * 200e-6 / 3e-3), rel=0.1)


def test_without_a_skew_no_bit_of_a_sample_changes() -> None:
    def payloads(**options: float) -> list[tuple[int, ...]]:
        host, _ = sim(load="600,2k,240n", hum_v=0.02, **options)
        sample = host.start()
        found = []
        for _ in range(50):
            sample = host.step(sample, code=500)
            found.append((sample.current, sample.redundant, sample.voltage, sample.nonce, sample.charge))
        return found

    assert payloads() == payloads(skew_us=0.0)


@pytest.mark.parametrize("skew_us", [-1.0, 501.0])
def test_a_skew_beyond_half_a_period_is_refused(skew_us: float) -> None:
    with pytest.raises(ValueError, match=r"skew .* us is out of range"):
        SimPort(skew_us=skew_us)
