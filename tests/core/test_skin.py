"""The skin model against the numbers it was fitted to, and its integration against itself at finer steps."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionto_rt.core.skin import Skin, skin_names

ACTIVE_ANODE, ACTIVE_CATHODE = 1.0, -1.0


def clinic_skin(name: str = "typical") -> Skin:
    """8 cm2 and 25 cm2, 600 ohm in all, electrodes of 1 V."""
    skin = Skin(name, active_area_cm2=8.0, return_area_cm2=25.0)
    skin.body_ohm = 600.0 - 400.0 / 8.0 - 400.0 / 25.0
    skin.polarisation_v = 1.0
    return skin


def ramp(skin: Skin, current_a: float, seconds: float, then_s: float) -> tuple[float, float]:
    """(peak, last) magnitude of the voltage over a ramp from zero and a hold."""
    peak = 0.0
    steps = max(1, round(seconds * 1000))
    for k in range(steps):
        peak = max(peak, abs(skin.force_current(current_a * (k + 1) / steps, 1e-3)))
    for _ in range(1000):
        peak = max(peak, abs(skin.force_current(current_a, 1e-3)))
    return peak, abs(skin.force_current(current_a, 1e-3, round(then_s * 1000)))


@pytest.mark.parametrize(
    ("current_a", "sign", "after_5_s", "after_30_s"),
    [
        (0.5e-3, ACTIVE_CATHODE, 1.80, 1.57),
        (0.5e-3, ACTIVE_ANODE, 2.40, 2.13),
        (1e-3, ACTIVE_CATHODE, 2.02, 1.86),
        (1e-3, ACTIVE_ANODE, 2.89, 2.53),
        (2e-3, ACTIVE_CATHODE, 2.30, 2.20),
        (2e-3, ACTIVE_ANODE, 3.27, 3.01),
    ],
)
def test_seven_square_centimetres_fall_to_the_published_plateau(current_a, sign, after_5_s, after_30_s):
    skin = Skin(active_area_cm2=7.0)
    skin.force_current(sign * current_a, 1e-3, 5000)
    assert abs(skin.active_v) == pytest.approx(after_5_s, rel=0.03)
    skin.force_current(sign * current_a, 1e-3, 25000)
    assert abs(skin.active_v) == pytest.approx(after_30_s, rel=0.03)


def test_four_milliamperes_after_a_ramp_of_30_s_peak_at_9_volt_and_settle_at_8_5():
    peak, last = ramp(clinic_skin(), -4e-3, 30.0, 600.0)
    assert peak == pytest.approx(9.0, rel=0.03)
    assert last == pytest.approx(8.5, rel=0.03)


@pytest.mark.parametrize(
    ("name", "ramp_s", "peak_v"),
    [("typical", 2, 10.4), ("typical", 5, 9.8), ("typical", 10, 9.5), ("dry", 2, 10.9), ("dry", 10, 9.7)],
)
def test_a_slower_ramp_takes_the_peak_off_the_voltage(name, ramp_s, peak_v):
    assert ramp(clinic_skin(name), -4e-3, ramp_s, 1.0)[0] == pytest.approx(peak_v, rel=0.03)


def test_resistance_recovers_in_half_an_hour_to_about_three_times_its_value_at_the_end():
    skin = Skin(active_area_cm2=8.0)
    skin.force_current(-4e-3, 2e-3, 600_000)
    end = skin.active_ohm_cm2
    ratios = []
    for minutes in (1, 9, 20, 30):
        skin.force_current(0.0, 10e-3, minutes * 6000)
        ratios.append(skin.active_ohm_cm2 / end)
    # The published numbers are for a site without polarity factor; a cathode's pores open a little further.
    assert ratios == pytest.approx([1.04, 1.44, 2.87, 6.6], rel=0.08)


def test_half_the_contact_nearly_doubles_the_voltage_at_once_and_the_skin_hides_it_in_a_minute():
    skin = clinic_skin()
    ramp(skin, -4e-3, 30.0, 600.0)
    assert abs(skin.active_v) == pytest.approx(2.52, rel=0.03)
    series = skin.series_ohm
    skin.contact_fraction = 0.5
    assert skin.series_ohm - series == pytest.approx(400.0 / 8.0)
    skin.force_current(-4e-3, 1e-3, 5)
    assert abs(skin.active_v) == pytest.approx(4.59, rel=0.05)
    skin.force_current(-4e-3, 1e-3, 60_000)
    assert abs(skin.active_v) == pytest.approx(3.00, rel=0.03)


def test_perfusion_currents_see_fresh_skin():
    small = Skin(active_area_cm2=0.7)
    small.force_current(7e-6, 1e-3, 20_000)
    assert abs(small.active_v) == pytest.approx(0.785, rel=0.03)
    pulse = Skin(active_area_cm2=1.0)
    pulse.force_current(100e-6, 1e-3, 20_000)
    assert abs(pulse.active_v) == pytest.approx(2.03, rel=0.35)


def test_subjects_spread_as_people_do():
    """150 draws at 0.1 mA/cm2 for 120 s: 8.7, 16.2 and 28.5 kohm cm2 at the 5th, 50th and 95th percentile."""
    values = []
    for seed in range(1, 151):
        skin = Skin(seed=seed, active_area_cm2=1.0, return_area_cm2=100.0)
        skin.force_current(-0.1e-3 * skin.contact_fraction, 2e-3, 60_000, 4)
        values.append(abs(skin.active_v) / 0.1e-3)
    values.sort()
    assert values[75] == pytest.approx(16.2e3, rel=0.2)
    assert values[142] / values[7] == pytest.approx(3.3, rel=0.25)


def test_named_skins_differ_from_typical_in_what_their_name_says():
    def fresh(name):
        return Skin(name).active_ohm_cm2

    assert skin_names() == ("typical", "dry", "hairy", "sweating", "wounded")
    assert fresh("typical") == pytest.approx(100e3)
    assert fresh("dry") == pytest.approx(1e6)
    assert fresh("sweating") == pytest.approx(20e3)
    assert fresh("wounded") == pytest.approx(1.0 / (1e-5 + 1e-3))
    hairy, typical = Skin("hairy"), Skin("typical")
    for skin in (hairy, typical):
        skin.force_current(-4e-3, 1e-3, 60_000)
    assert hairy.active_ohm_cm2 > 1.3 * typical.active_ohm_cm2


def test_seed_zero_is_the_nominal_subject_and_a_seed_is_always_the_same_one():
    assert Skin(seed=0).active_ohm_cm2 == pytest.approx(100e3)
    assert Skin(seed=7).active_ohm_cm2 == Skin(seed=7).active_ohm_cm2 != Skin(seed=8).active_ohm_cm2


def test_polarity_of_the_active_pad_decides_which_site_is_the_anode():
    anode, cathode = Skin(return_area_cm2=8.0), Skin(return_area_cm2=8.0)
    anode.force_current(1e-3, 1e-3, 5000)
    cathode.force_current(-1e-3, 1e-3, 5000)
    assert anode.active_v == -cathode.return_v
    assert anode.return_v == -cathode.active_v
    assert anode.active_v > anode.return_v > 0.0


@given(
    current_a=st.floats(1e-6, 4e-3),
    sample_s=st.sampled_from([1e-4, 1e-3, 2e-3]),
    polarity=st.sampled_from([ACTIVE_ANODE, ACTIVE_CATHODE]),
)
def test_sub_steps_as_the_device_takes_them_are_fine_enough(current_a, sample_s, polarity):
    coarse, fine = Skin(), Skin()
    steps = max(2, math.ceil(sample_s / 125e-6 - 1e-9))
    for _ in range(10):
        v_coarse = coarse.force_current(polarity * current_a, sample_s, 1, steps)
        v_fine = fine.force_current(polarity * current_a, sample_s, 1, 64 * steps)
        assert v_coarse == pytest.approx(v_fine, rel=0.01, abs=1e-3)


def test_the_error_falls_with_the_square_of_the_sub_step():
    def after(substeps):
        skin = Skin()
        skin.force_current(1e-3, 2e-3, 1, substeps)
        return skin.active_v

    exact = after(4096)
    errors = [abs(after(steps) - exact) for steps in (16, 32, 64, 128)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > 1.7


def test_behind_a_source_the_error_falls_with_the_square_of_the_sub_step():
    def charge(substeps):
        return Skin().force_voltage(5.0, 2000.0, 2e-3, 1, substeps)

    exact = charge(8192)
    errors = [abs(charge(steps) - exact) for steps in (16, 32, 64)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > 1.7


@given(
    source_v=st.floats(-140.0, 140.0),
    source_ohm=st.floats(0.0, 1e9),
    step_s=st.floats(1e-6, 10.0),
    name=st.sampled_from(skin_names()),
)
def test_no_step_is_too_long_to_be_stable(source_v, source_ohm, step_s, name):
    skin = Skin(name)
    bound = 1.5 * abs(source_v) + 1.0
    for _ in range(50):
        skin.force_voltage(source_v, source_ohm, step_s, 1, 1)
        assert abs(skin.active_v) < bound
        assert abs(skin.return_v) < bound


@given(current_a=st.floats(-40e-3, 40e-3), step_s=st.floats(1e-6, 10.0), name=st.sampled_from(skin_names()))
def test_a_forced_current_never_makes_the_voltage_grow_without_bound(current_a, step_s, name):
    skin = Skin(name, active_area_cm2=1.0, return_area_cm2=1.0)
    for _ in range(50):
        voltage = skin.force_current(current_a, step_s, 1, 1)
        assert math.isfinite(voltage)
        assert voltage * current_a >= 0.0
    assert abs(voltage) < 1e6


def test_forced_voltage_and_forced_current_agree():
    by_current, by_voltage = Skin(), Skin()
    for skin in (by_current, by_voltage):
        skin.polarisation_v = 0.0
    for _ in range(2000):
        by_current.force_current(1e-3, 1e-3)
    end_v = by_current.voltage_v(1e-3)
    # A source so far away that the skin does not move its current.
    by_voltage.force_voltage(1e-3 * 1e9 + end_v, 1e9, 1e-3, 2000)
    assert by_voltage.active_v == pytest.approx(by_current.active_v, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"name": "silk"}, "silk"), ({"active_area_cm2": 0.0}, "areas"), ({"return_area_cm2": -1.0}, "areas")],
)
def test_what_no_skin_is_like_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Skin(**options)
