"""From limits, plan and hello to the numbers that the tick runs on: the dicts of struct ControllerConfig.

Every constant of the tick that is not in the treatment, the catalogue or the hello is here, with its reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ionto_rt.codes import FrontEnd, Law, Pacing
from ionto_rt.core.constant_current import SERIES_LEAST_OHM, configure
from ionto_rt.device import Hello
from ionto_rt.hazards import threshold
from ionto_rt.plan import Plan
from ionto_rt.safety import (
    GUARD_CHARGE_MARGIN_C,
    GUARD_CHARGE_MARGIN_RATIO,
    GUARD_CHARGE_RATIO,
    GUARD_FULL_SCALE_RATIO,
    GUARD_RATIO,
    RANGE_LEAST_PART,
    Limits,
)

TONE_MAX_A = 19e-6
"""Peak of each of the two probe tones: the smaller one measured on people, 38 uA p-p (Khadka 2015)."""
TONE_RATIO = 0.0039
"""Of the smallest level, each: both are a ripple of 0.39 % rms."""
TONE_RATIO_VOLTAGE = 0.003
"""A voltage source lets flow more than it is asked for where skin has less impedance than the model."""
TONE_CORNER_HZ = 150.0
"""Corner that the first tones are chosen for, until the load is known: between fresh and conditioned skin."""
TONE_RETUNE_FACTOR = 1.6
"""By which the corner moves before other tones are worth a lost block: the bound on Rs, Rp, C is flat within it."""
BLOCK_S = 0.1
"""Whole periods of 50 and of 60 Hz."""
OUTPUT_STAGE_HZ = 2000.0
"""Bandwidth of the output stage: that of the virtual device."""
ELECTRODE_EMF_V = 1.0
"""One standard deviation of the unknown electrode potential: Ag/AgCl drops 0.1 V, inert electrodes up to 2 V."""
LOOP_DELAY_TICKS = 1.0
"""Setpoints that are on their way when the next one is chosen: the answer to sample k shows in sample k + 2."""
OPEN_RATIO = threshold("H05", "open_ratio")
OPEN_VOLTAGE_RATIO = threshold("H05", "open_voltage_ratio")
REGULATOR_DELAY_TICKS = 2
REGULATOR_KI_PER_TICK = 0.15
"""Integral gain per tick of the normalised loop. With a delay of two ticks it is stable below 2 sin(pi/6) = 1."""
REGULATOR_KP = 0.1
SLEW_RATIO = 0.02
"""Of the largest level: what the output may rise by in a tick, and what a voltage source's step may drive at once."""
STOP_A_PER_S = 1e-3
"""Ramp of a safe stop (S1)."""
AREA_SERIES_SHARE = 0.1
"""Of Rs that scales with a pad's area: 50 ohm of viable tissue under 8 cm2, of 600 ohm in all."""
AREA_SERIES_SPREAD = 0.1
AREA_NOISE_FLOOR = 0.02
"""Deviation of ln(area) in one block that skin makes by itself; the converters' is a tenth of it."""
AREA_SIGMA_MOST = 0.15
"""Blocks that know ln(area) worse are blind: conditioned skin at 1 kHz, whose corner lies beyond the tones."""
AREA_STEP = 0.16
"""ln(1/0.85): half of it is what the test forgives, so that a baseline that lags behind the skin raises no alarm."""
AREA_FALSE_ALARM_S = 1.08e5
"""One false alarm in 30 h by the threshold; docs/estimator.md has the measured rate."""
AREA_BASELINE_S = 10.0
PROBE_POLARITY_TICKS = 32
"""H17: at least so many changes of the output are compared. Products of independent noise reach -0.7 of their geometric
mean in one of 10^5 such blocks, and noise alone is not judged at all."""
STEADY_RATIO = 0.003
"""Change of the mean current from block to block, as for the contact area."""
RING_S = 8.0
"""Telemetry that the loop's ring holds: the record may stand still for that long."""
LEASE_S = threshold("H21", "lease_s")


@dataclass(frozen=True)
class DeadlineProfile:
    """How late data and ticks may be. Times in us; overruns are late ticks within 100."""

    name: str
    late_pause_us: int
    late_stop_us: int
    overrun_us: int
    overruns_pause: int
    overruns_stop: int


def _profile(name: str) -> DeadlineProfile:
    """As the hazard table has it."""

    def us(hazard: str, what: str) -> int:
        return round(threshold(hazard, f"{name}_{what}") * 1e6)

    return DeadlineProfile(
        name,
        us("H25", "late_pause_s"),
        us("H25", "late_stop_s"),
        us("H26", "overrun_s"),
        round(threshold("H26", f"{name}_overruns_pause")),
        round(threshold("H26", f"{name}_overruns_stop")),
    )


FIT = _profile("fit")
UNFIT = _profile("unfit")
"""Shared virtual machines stall for 30 ms, and one stall makes many ticks late: there the age of the data alone counts.
The device's lease of 80 ms is the stop below it."""


def ticks_of(seconds: float, tick_s: float) -> int:
    """Whole ticks, at least one."""
    return max(1, round(seconds / tick_s))


def ticks_within(seconds: float, tick_s: float) -> int:
    """Whole ticks that are over by then, at least one: for what must have been answered within a time."""
    return max(1, math.floor(seconds / tick_s + 1e-9))


def tone_a(plan: Plan, front_end: FrontEnd) -> float:
    """Peak of each probe tone for a plan; at most the ratio for this front-end of its smallest level."""
    ratio = TONE_RATIO if front_end == FrontEnd.CURRENT_SOURCE else TONE_RATIO_VOLTAGE
    levels = [segment["level_a"] for segment in plan.segments if segment["kind"] == 2 and segment["level_a"] > 0.0]
    return min(TONE_MAX_A, ratio * min(levels)) if levels else 0.0


def controller_config(
    hello: Hello,
    limits: Limits,
    plan: Plan,
    profile: DeadlineProfile,
    token: int,
    *,
    skew_s: float = 0.0,
    pacing: Pacing = Pacing.DEVICE,
) -> dict[str, Any]:
    """The tick's configuration for one session: nested dicts of ints and floats, as struct ControllerConfig.

    skew_s: how much later than the current the device reads the voltage, s. pacing: that of the loop.
    """
    assert limits.current_range is not None
    calibration = hello.calibration(limits.current_range.index)
    tick_s = hello.tick_s
    current_source = hello.front_end == FrontEnd.CURRENT_SOURCE
    compliance_v = min(hello.compliance_v, limits.voltage_max_v)
    lsb_a = calibration["current_lsb_a"]
    probe_a = next(segment["level_a"] for segment in plan.segments if segment["kind"] == 1)
    lease_ticks = min(hello.lease_max_ticks, ticks_of(LEASE_S, tick_s))
    gap_pause_s, gap_stop_s = threshold("H24", "gap_pause_s"), threshold("H24", "gap_stop_s")
    if pacing == Pacing.HOST:
        # No sample was lost: the host itself came late, and may be as late as its deadlines say.
        gap_pause_s = max(gap_pause_s, profile.late_pause_us * 1e-6)
        gap_stop_s = max(gap_stop_s, profile.late_stop_us * 1e-6)
    open_floor_a = max(
        threshold("H05", "open_floor_codes") * lsb_a, threshold("H05", "open_floor_probe_ratio") * probe_a
    )
    contact_level_a = max(probe_a, 2.0 * open_floor_a)
    impedance = {
        "tick_s": tick_s,
        "tone_a": tone_a(plan, hello.front_end),
        "corner_hz": TONE_CORNER_HZ,
        "retune_factor": TONE_RETUNE_FACTOR,
        "electrode_emf_v": ELECTRODE_EMF_V,
        "voltage_noise_v": calibration["voltage_lsb_v"] / math.sqrt(12.0),
        "current_noise_a": lsb_a / math.sqrt(12.0),
        "output_time_s": 1.0 / (2.0 * math.pi * OUTPUT_STAGE_HZ),
        "ballast_ohm": 0.0 if current_source else calibration["ballast_ohm"],
        "skew_s": skew_s,
        "open_ratio": OPEN_RATIO,
        "open_floor_a": open_floor_a,
        "open_voltage_v": OPEN_VOLTAGE_RATIO * compliance_v,
        "smooth": 0,
        "open_any_voltage": 0 if current_source else 1,
        "open_ticks": 3,
        "good_ticks": 3,
        "block_ticks": ticks_of(BLOCK_S, tick_s),
        "low_bin": 0,
        "high_bin": 0,
    }
    ramp_a_per_tick = limits.ramp_rate_a_per_s * tick_s
    programme = {
        "tick_s": tick_s,
        "polarity": float(plan.polarity),
        "level_limit_a": limits.current_max_a,
        "slope_up_a_per_tick": ramp_a_per_tick,
        "slope_down_a_per_tick": max(ramp_a_per_tick, STOP_A_PER_S * tick_s),
        "compliance_v": compliance_v,
        "contact_level_a": contact_level_a,
        "zero_tolerance_a": 0.002 * calibration["full_scale_a"],
        "loop_delay_ticks": LOOP_DELAY_TICKS,
        "compliance_ticks": ticks_of(threshold("H04", "compliance_s"), tick_s),
        "segments": len(plan.segments),
    }
    scale = 1.0 if current_source else calibration["ballast_ohm"] + SERIES_LEAST_OHM
    highest_a = limits.current_max_a
    output_max = calibration["full_scale_a"] * 1.25 if current_source else compliance_v
    regulator = {
        "tick_s": tick_s,
        "kp": REGULATOR_KP * scale,
        "ki": REGULATOR_KI_PER_TICK / tick_s * scale,
        "kd": 0.0,
        "derivative_filter_s": 4.0 * tick_s,
        "setpoint_weight": 1.0,
        "derivative_weight": 0.0,
        "feed_forward": scale,
        "output_min": -output_max,
        "output_max": output_max,
        "slew_per_tick": scale * max(SLEW_RATIO * highest_a, limits.step_max_a, 50.0 * lsb_a),
        "tracking_s": 0.0,
        "delay_ticks": REGULATOR_DELAY_TICKS,
        "integration": 0,
        "anti_windup": 2,
        "free_fall": 1,
        "scheduled": 0,
    }
    constant_current = configure(
        front_end="current" if current_source else "voltage",
        tick_s=tick_s,
        full_scale_a=calibration["full_scale_a"],
        compliance_v=compliance_v,
        current_lsb_a=lsb_a,
        output_lsb=calibration["output_lsb"],
        output_min=-output_max,
        output_max=output_max,
        delay_ticks=REGULATOR_DELAY_TICKS,
        ballast_ohm=calibration["ballast_ohm"],
        probe_a=probe_a,
    )
    constant_current["regulator"].update(
        slew_per_tick=regulator["slew_per_tick"] if current_source else 0.0,
        spike_a=0.0 if current_source else SLEW_RATIO * highest_a + 2.0 * impedance["tone_a"],
    )
    codes_per_coulomb = 65536.0 / (lsb_a * tick_s)
    full_output = highest_a if current_source else compliance_v
    least_a = calibration["full_scale_a"] / RANGE_LEAST_PART
    pad_charge_c = max(
        threshold("H43", "pad_charge_ratio") * limits.pad_charge_c,
        GUARD_CHARGE_RATIO * plan.prescribed_c
        + min(GUARD_CHARGE_MARGIN_C, GUARD_CHARGE_MARGIN_RATIO * plan.prescribed_c),
    )
    guard = {
        "tick_s": tick_s,
        "redundant_lsb_a": calibration["redundant_lsb_a"],
        "voltage_lsb_v": calibration["voltage_lsb_v"],
        "redundant_offset_q16": calibration["redundant_offset_q16"],
        "voltage_offset_q16": calibration["voltage_offset_q16"],
        "current_offset_q16": calibration["current_offset_q16"],
        "output_zero_code": 0,
        "output_code_min": calibration["output_code_min"],
        "output_code_max": calibration["output_code_max"],
        "current_lsb_a": lsb_a,
        "full_scale_a": calibration["full_scale_a"],
        "current_limit_a": highest_a,
        "over_ratio": GUARD_RATIO,
        "over_margin_a": GUARD_FULL_SCALE_RATIO * calibration["full_scale_a"],
        "open_ratio": OPEN_RATIO,
        "open_floor_a": open_floor_a,
        "open_voltage_v": OPEN_VOLTAGE_RATIO * compliance_v,
        "short_voltage_v": threshold("H08", "short_voltage_v"),
        "short_current_a": threshold("H08", "short_current_a"),
        "density_trip_a": limits.density_trip_a,
        "rest_a": threshold("H42", "rest_full_scale_ratio") * calibration["full_scale_a"],
        "disagree_a": threshold("H23", "disagree_full_scale_ratio") * calibration["full_scale_a"],
        "charge_cap_codes": round(limits.charge_cap_c * codes_per_coulomb),
        "charge_mismatch_codes": round(
            threshold("H57", "mismatch_full_scale_s") * calibration["full_scale_a"] * codes_per_coulomb
        ),
        "session_ticks": round(limits.session_time_trip_s / tick_s),
        "open_any_voltage": 0 if current_source else 1,
        "over_ticks": ticks_within(threshold("H01", "over_s"), tick_s),
        "open_ticks": ticks_within(threshold("H05", "open_s"), tick_s),
        "intermittent_count": round(threshold("H07", "intermittent_count")),
        "intermittent_ticks": ticks_of(threshold("H07", "intermittent_s"), tick_s),
        "short_ticks": ticks_within(threshold("H08", "short_s"), tick_s),
        "second_ticks": ticks_of(threshold("H13", "density_mean_s"), tick_s),
        "gap_pause_ticks": ticks_within(gap_pause_s, tick_s),
        "gap_stop_ticks": ticks_within(gap_stop_s, tick_s),
        "late_pause_us": profile.late_pause_us,
        "late_stop_us": profile.late_stop_us,
        "lease_us": round(lease_ticks * tick_s * 1e6),
        "overruns_pause": profile.overruns_pause,
        "overruns_stop": profile.overruns_stop,
        "overrun_us": profile.overrun_us,
        "heartbeat_ticks": ticks_of(threshold("H30", "heartbeat_s"), tick_s),
        "clock_window_us": round(threshold("H53", "clock_window_s") * 1e6),
        "clock_ppm": round(threshold("H53", "clock_ratio") * 1e6),
        "stop_slope_codes": full_output / calibration["output_lsb"] * tick_s * STOP_A_PER_S / highest_a,
        "over_mean_ratio": threshold("H02", "over_mean_ratio"),
        "over_mean_margin_a": (threshold("H02", "over_mean_ratio") - 1.0) * least_a,
        "under_ratio": threshold("H03", "under_ratio"),
        "under_margin_a": (1.0 - threshold("H03", "under_ratio")) * least_a,
        "limit_voltage_v": 0.95 * compliance_v,
        "flat_move_a": threshold("H22", "moved_codes") * max(lsb_a, calibration["redundant_lsb_a"]),
        "ripple_ratio": threshold("H34", "ripple_ratio"),
        "ripple_margin_a": threshold("H34", "ripple_codes") * calibration["redundant_lsb_a"],
        "pad_charge_codes": round(pad_charge_c * codes_per_coulomb),
        "retries": round(threshold("H03", "retries_count")),
        "polarity_ticks": ticks_of(threshold("H17", "reversed_s"), tick_s),
        "probe_ticks": max(PROBE_POLARITY_TICKS, ticks_of(threshold("H17", "probe_s"), tick_s)),
        "mismatch_ticks": 1,
        "flat_ticks": ticks_of(threshold("H22", "flat_s"), tick_s),
        "ripple_ticks": ticks_of(threshold("H34", "ripple_s"), tick_s),
        "hold_ticks": ticks_of(threshold("H52", "hold_s"), tick_s),
        "area_pause_ratio": threshold("H09", "area_pause_ratio"),
        "patient_stop_ticks": ticks_of(threshold("H45", "patient_stop_s"), tick_s),
        "area_stop_ratio": threshold("H09", "area_stop_ratio"),
        "checksum": 0,
    }
    small_m2 = min(limits.area_m2, limits.return_area_m2)
    estimates = {
        "floor_a": open_floor_a,
        "steady_ratio": STEADY_RATIO,
        "breakdown_ratio": threshold("H11", "breakdown_ratio"),
        "fall_ratio": threshold("H11", "fall_ratio"),
        "potential_v": ELECTRODE_EMF_V,
        "glance_ticks": max(1, impedance["block_ticks"] // 5),
        "rising_per_s": threshold("H12", "rising_ratio") / threshold("H12", "rising_s"),
        "drying_ratio": threshold("H10", "drying_ratio"),
        "drying_again_ratio": threshold("H10", "again_ratio"),
        "drying_log_parallel": math.log(threshold("H10", "stable_ratio")),
        "density_a": limits.row("density").value * small_m2,
        "density_ratio": threshold("H13", "density_ratio"),
        "hum_advise_ratio": threshold("H41", "advise_ratio"),
        "hum_pause_ratio": threshold("H41", "pause_ratio"),
        "hum_least_v": threshold("H41", "least_v"),
        "potential_rise_v": threshold("H43", "potential_rise_v"),
        "potential_sigma_v": threshold("H43", "potential_sigma_v"),
        "changed_ratio": threshold("H48", "changed_ratio"),
    }
    contact_area = {
        "site_share": max(limits.area_m2, limits.return_area_m2) / (limits.area_m2 + limits.return_area_m2),
        "series_share": AREA_SERIES_SHARE,
        "series_spread": AREA_SERIES_SPREAD,
        "noise_floor": AREA_NOISE_FLOOR,
        "sigma_most": AREA_SIGMA_MOST,
        "step": AREA_STEP,
        "blocks_to_false_alarm": AREA_FALSE_ALARM_S / BLOCK_S,
        "baseline_blocks": AREA_BASELINE_S / BLOCK_S,
        "moving_blocks": 3.0,
        "moving_ratio": STEADY_RATIO,
        "start_blocks": 10,
        "moving_hold_blocks": 10,
    }
    return {
        "calibration": calibration,
        "impedance": impedance,
        "programme": programme,
        "regulator": regulator,
        "guard": guard,
        "contact_area": contact_area,
        "estimates": estimates,
        "lease_ticks": lease_ticks,
        "token": token,
        "law": int(Law.PREDICTIVE),
        "probe": constant_current["probe"],
        "predictive": constant_current["regulator"],
    }


def device_limits(hello: Hello, limits: Limits | Sequence[Limits], token: int) -> dict[str, Any]:
    """What is pushed to the device and read back, as arguments of `Device.push_limits`.

    limits: of one channel, or of each that is driven, all of one range. The others of the device may put out nothing.
    """
    driven = [limits] if isinstance(limits, Limits) else list(limits)
    channels = [_channel_limits(hello, one, token) for one in driven]
    idle = channels[0] | {"output_code_min": 0, "output_code_max": 0}
    channels += [idle] * (hello.channels - len(channels))
    caps = ("current_cap_code", "output_code_min", "output_code_max", "charge_cap_codes")
    return {
        **channels[0],
        "session_ticks": max(channel["session_ticks"] for channel in channels),
        **{name: [channel[name] for channel in channels] for name in caps},
    }


def _channel_limits(hello: Hello, limits: Limits, token: int) -> dict[str, int]:
    assert limits.current_range is not None
    chosen = hello.ranges[limits.current_range.index]
    compliance_v = min(hello.compliance_v, limits.voltage_max_v)
    # Twice the cap leaves room for a wrong gain of the output stage; the cap itself is on measured current.
    highest = limits.current_cap_a * 2.0 if hello.front_end == FrontEnd.CURRENT_SOURCE else compliance_v
    code = min(chosen.output_code_max, -chosen.output_code_min, math.ceil(highest / chosen.output_lsb))
    return {
        "range_index": limits.current_range.index,
        "lease_max_ticks": hello.lease_max_ticks,
        "token": token,
        "session_ticks": round(limits.session_time_cap_s / hello.tick_s),
        "current_cap_code": min(hello.code_limit, math.ceil(limits.current_cap_a / chosen.current_lsb_a)),
        "output_code_min": -code,
        "output_code_max": code,
        "charge_cap_codes": round(limits.charge_device_cap_c * 65536.0 / (chosen.current_lsb_a * hello.tick_s)),
    }
