"""Output stage, relay and converters against closed forms on a fixed load."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.core.frontend import FrontEnd
from ionto_rt.core.skin import Skin

FULL_SCALES = (40e-6, 400e-6, 4e-3, 40e-3)
QUIET = {"noise_codes": 0.0, "offset_codes": 0.0, "gain_error": 0.0}


def amperes(front_end: FrontEnd, code: float, reading: str = "current") -> float:
    """What a reading says by the stated calibration."""
    stated = front_end.range
    return (code - stated[f"{reading}_offset_q16"] / 65536) * stated[f"{reading}_lsb_fa"] * 1e-15


def volts(front_end: FrontEnd, code: float) -> float:
    return (code - front_end.voltage_offset_q16 / 65536) * front_end.voltage_lsb_nv * 1e-9


def ask(front_end: FrontEnd, current_a: float) -> int:
    code = round(current_a / (front_end.range["output_lsb"] * 1e-15))
    front_end.output(code)
    return code


@pytest.mark.parametrize("full_scale_a", FULL_SCALES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_current_readings_are_true_to_0_02_percent_and_a_hundredth_of_a_code(full_scale_a, seed):
    stage = FrontEnd(full_scale_a=full_scale_a, seed=seed, **QUIET)
    ask(stage, 0.9 * full_scale_a)
    for _ in range(20):
        codes = stage.run()
    for code, reading in zip(codes, ("current", "redundant"), strict=False):
        lsb = stage.range[f"{reading}_lsb_fa"] * 1e-15
        assert abs(amperes(stage, code, reading) - stage.source_a) <= 0.0002 * stage.source_a + 0.52 * lsb


@pytest.mark.parametrize("full_scale_a", FULL_SCALES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_reading_of_1_25_full_scale_does_not_clip(full_scale_a, sign):
    stage = FrontEnd(full_scale_a=full_scale_a, series_ohm=10.0, parallel_ohm=10.0, seed=3)
    ask(stage, sign * 1.2499 * full_scale_a)
    for _ in range(20):
        codes = stage.run()
    assert all(30_000 < sign * code < 32_767 for code in codes[:2])
    assert not stage.limited


def test_the_output_converter_is_off_by_its_gain_error():
    stage = FrontEnd(gain_error=0.015, offset_codes=0.0, noise_codes=0.0)
    code = ask(stage, 2e-3)
    for _ in range(20):
        stage.run()
    assert stage.source_a == pytest.approx(1.015 * code * stage.range["output_lsb"] * 1e-15, rel=1e-9)


@given(
    bandwidth_hz=st.floats(1000.0, 5000.0),
    sample_rate_hz=st.sampled_from([500.0, 1000.0, 4000.0, 10000.0]),
)
def test_the_current_source_is_one_pole_exactly(bandwidth_hz, sample_rate_hz):
    stage = FrontEnd(bandwidth_hz=bandwidth_hz, sample_rate_hz=sample_rate_hz, **QUIET)
    goal = ask(stage, 1e-3) * stage.range["output_lsb"] * 1e-15
    time_s = 1.0 / (2.0 * math.pi * bandwidth_hz)
    period_s = 1.0 / sample_rate_hz
    total_c = 0.0
    for k in range(1, 6):
        stage.run()
        total_c += stage.charge_c
        assert stage.source_a == pytest.approx(goal * (1.0 - math.exp(-k * period_s / time_s)), rel=1e-9)
        charge = goal * (k * period_s - time_s * (1.0 - math.exp(-k * period_s / time_s)))
        assert total_c == pytest.approx(charge, rel=1e-9)


@given(
    series_ohm=st.floats(100.0, 5000.0),
    parallel_ohm=st.floats(200.0, 100e3),
    capacitance_f=st.floats(1e-9, 2e-6),
)
def test_a_current_step_into_a_fixed_load_follows_its_closed_form(series_ohm, parallel_ohm, capacitance_f):
    stage = FrontEnd(
        series_ohm=series_ohm, parallel_ohm=parallel_ohm, capacitance_f=capacitance_f, bandwidth_hz=1e5,
        full_scale_a=40e-6, compliance_v=140.0, substeps=400, **QUIET,
    )  # fmt: skip
    goal = ask(stage, 30e-6) * stage.range["output_lsb"] * 1e-15
    lag_s = 1.0 / (2.0 * math.pi * 1e5)
    time_s = parallel_ohm * capacitance_f
    for k in range(1, 4):
        stage.run()
        t = k * 1e-3
        if abs(time_s - lag_s) > 0.2 * lag_s:
            bent = (time_s * math.exp(-t / time_s) - lag_s * math.exp(-t / lag_s)) / (time_s - lag_s)
            inner = goal * parallel_ohm * (1.0 - bent)
            assert stage.voltage_v == pytest.approx(inner + goal * series_ohm, rel=2e-3)


def test_the_voltage_reading_is_of_the_pads_and_true():
    stage = FrontEnd(series_ohm=1000.0, parallel_ohm=1500.0, **QUIET)
    ask(stage, 4e-3)
    for _ in range(50):
        codes = stage.run()
    assert stage.voltage_v == pytest.approx(4e-3 * 2500.0, rel=1e-3)
    assert volts(stage, codes[2]) == pytest.approx(stage.voltage_v, abs=0.0002 * 10.0 + 0.6 * 1.05 * 60 / 32768)


@pytest.mark.parametrize("sign", [1, -1])
def test_at_the_compliance_voltage_the_current_gives_way_and_says_so(sign):
    stage = FrontEnd(series_ohm=1000.0, parallel_ohm=29_000.0, compliance_v=30.0, **QUIET)
    ask(stage, sign * 4e-3)
    for _ in range(200):
        stage.run()
    assert stage.limited
    assert stage.voltage_v == pytest.approx(sign * 30.0)
    assert stage.source_a == pytest.approx(sign * 1e-3, rel=1e-3)
    ask(stage, sign * 0.5e-3)
    for _ in range(200):
        stage.run()
    assert not stage.limited
    assert stage.source_a == pytest.approx(sign * 0.5e-3, rel=1e-3)


def test_an_open_lead_carries_nothing_and_its_return_meets_the_current_asked_for():
    stage = FrontEnd(**QUIET)
    ask(stage, 2e-3)
    for _ in range(20):
        stage.run()
    stage.open_lead()
    stage.run()
    assert abs(stage.source_a) < 1e-7
    assert stage.limited
    stage.close_lead()
    stage.run()
    assert stage.peak_a == pytest.approx(2e-3, rel=1e-3)


def test_shorted_leads_take_the_current_away_from_the_skin():
    stage = FrontEnd(**QUIET)
    ask(stage, 4e-3)
    for _ in range(20):
        stage.run()
    stage.short_leads(20.0)
    for _ in range(20):
        codes = stage.run()
    assert amperes(stage, codes[0]) == pytest.approx(4e-3, rel=1e-3)
    assert abs(stage.voltage_v) < 0.3
    assert abs(stage.charge_c) < 0.02 * 4e-3 * 1e-3


def test_the_comparator_opens_the_relay_within_the_period():
    stage = FrontEnd(comparator_a=2e-3, **QUIET)
    ask(stage, 1.99e-3)
    for _ in range(50):
        stage.run()
    assert stage.relay_closed
    ask(stage, 2.02e-3)
    stage.run()
    assert not stage.relay_closed
    assert stage.charge_c < 2.02e-3 * 1e-3
    codes = stage.run()
    assert stage.source_a == 0.0
    assert stage.charge_c == 0.0
    assert abs(amperes(stage, codes[0])) < 0.6 * stage.range["current_lsb_fa"] * 1e-15


def test_a_voltage_source_stands_behind_its_ballast():
    stage = FrontEnd(kind="voltage", series_ohm=600.0, parallel_ohm=1500.0, **QUIET)
    stated = stage.range
    assert stated["ballast_mohm"] == 1_500_000
    code = 8000
    stage.output(code)
    for _ in range(100):
        codes = stage.run()
    source_v = code * stated["output_lsb"] * 1e-12
    assert stage.source_a == pytest.approx(source_v / (1500.0 + 2100.0), rel=1e-6)
    assert stage.voltage_v == pytest.approx(source_v * 2100.0 / 3600.0, rel=1e-6)
    assert amperes(stage, codes[0]) == pytest.approx(stage.source_a, rel=5e-4)


def test_between_samples_a_voltage_step_makes_a_peak_that_no_sample_sees():
    stage = FrontEnd(
        kind="voltage", series_ohm=500.0, parallel_ohm=10_000.0, capacitance_f=30e-9, bandwidth_hz=20e3,
        substeps=100, **QUIET,
    )  # fmt: skip
    stage.output(10_000)
    stage.run()
    sampled = abs(stage.source_a)
    assert stage.peak_a > 2.0 * sampled


def test_a_charge_is_the_same_however_fine_the_sub_steps():
    def total(substeps):
        stage = FrontEnd(kind="voltage", substeps=substeps, **QUIET)
        stage.output(12_000)
        charge = 0.0
        for _ in range(20):
            stage.run()
            charge += stage.charge_c
        return charge

    assert total(8) == pytest.approx(total(2000), rel=2e-3)


def test_noise_is_one_code_and_the_two_readings_are_independent():
    stage = FrontEnd(seed=5)
    ask(stage, 1e-3)
    for _ in range(50):
        stage.run()
    rows = [stage.run() for _ in range(20_000)]
    first, second, third = ([row[k] for row in rows] for k in range(3))
    for column in (first, second, third):
        assert statistics.pstdev(column) == pytest.approx(math.sqrt(1.0 + 1.0 / 12.0), rel=0.03)
    assert abs(statistics.correlation(first, second)) < 0.03
    assert amperes(stage, statistics.fmean(first)) == pytest.approx(stage.source_a, rel=0.0003)


def test_hum_is_50_hz_of_the_amplitude_asked_for():
    stage = FrontEnd(hum_v=0.02, **QUIET)
    readings = [volts(stage, stage.run()[2]) for _ in range(1000)]
    cosine = sum(v * math.cos(2 * math.pi * 50 * k / 1000) for k, v in enumerate(readings)) / 500
    sine = sum(v * math.sin(2 * math.pi * 50 * k / 1000) for k, v in enumerate(readings)) / 500
    assert math.hypot(cosine, sine) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("hum_hz", [50.0, 60.0])
def test_hum_has_the_frequency_asked_for(hum_hz):
    stage = FrontEnd(hum_v=0.02, hum_hz=hum_hz, **QUIET)
    readings = [volts(stage, stage.run()[2]) for _ in range(1000)]
    for at_hz in (50.0, 60.0):
        cosine = sum(v * math.cos(2 * math.pi * at_hz * k / 1000) for k, v in enumerate(readings)) / 500
        sine = sum(v * math.sin(2 * math.pi * at_hz * k / 1000) for k, v in enumerate(readings)) / 500
        assert math.hypot(cosine, sine) == pytest.approx(0.02 if at_hz == hum_hz else 0.0, abs=4e-4)


def test_jitter_samples_at_times_spread_evenly_over_twice_its_size_before_the_boundary():
    """A pole of 20 Hz makes the start of a step a straight line; how far a sample is below its end is its time."""
    jitter_s = 50e-6
    before_s = []
    for seed in range(300):
        stage = FrontEnd(bandwidth_hz=20.0, full_scale_a=40e-3, jitter_s=jitter_s, seed=seed, **QUIET)
        ask(stage, 40e-3)
        codes = stage.run()
        slope_a_s = 2.0 * math.pi * 20.0 * (40e-3 - stage.source_a)
        before_s.append((stage.source_a - amperes(stage, codes[0])) / slope_a_s)
    assert -1e-6 < min(before_s) < 5e-6
    assert 95e-6 < max(before_s) < 102e-6
    assert statistics.fmean(before_s) == pytest.approx(jitter_s, rel=0.1)
    assert statistics.pstdev(before_s) == pytest.approx(2.0 * jitter_s / math.sqrt(12.0), rel=0.1)


def test_an_amplifier_that_limits_holds_a_leak_at_its_voltage_too():
    stage = FrontEnd(compliance_v=20.0, series_ohm=50e3, parallel_ohm=50e3, capacitance_f=1e-9, **QUIET)
    stage.short_leads(100e3)
    ask(stage, 3e-3)
    for _ in range(100):
        stage.run()
    assert stage.limited
    assert stage.voltage_v == pytest.approx(20.0)
    assert stage.source_a == pytest.approx(20.0 / 100e3 + 20.0 / 100e3, rel=1e-3)
    assert stage.charge_c == pytest.approx(20.0 / 100e3 * 1e-3, rel=1e-3)


def test_a_front_end_drives_the_very_skin_it_is_given():
    skin = Skin()
    skin.polarisation_v = 0.0
    stage = FrontEnd(skin=skin, **QUIET)
    ask(stage, 2e-3)
    for _ in range(50):
        stage.run()
    assert skin.active_v > 1.0
    assert stage.voltage_v == pytest.approx(skin.voltage_v(stage.source_a))
    stage.open_lead()
    assert skin.is_open
    stage.close_lead()
    assert not skin.is_open


def test_a_disabled_output_is_exactly_zero_in_the_end():
    stage = FrontEnd(offset_codes=3.0, noise_codes=0.0)
    ask(stage, 1e-3)
    stage.run()
    stage.zero()
    for _ in range(100):
        stage.run()
    assert stage.source_a == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "charge"}, "charge"), ({"full_scale_a": 5e-3}, "full scale"), ({"series_ohm": 0.0}, "load"),
        ({"hum_hz": 400.0}, "hum"), ({"jitter_s": 1e-4}, "half a sub-step"), ({"jitter_s": -1e-6}, "jitter"),
    ],
)
def test_a_front_end_that_is_not_built_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        FrontEnd(**options)
