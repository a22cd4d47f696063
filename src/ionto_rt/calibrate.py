"""Measuring a device on a load that is known: skew, gains, offsets. Over the same loop, tick and guard as a treatment.

At most 100 uA flow. After the self-test come a low and a high level, whose differences give the gains without the
offsets; a staircase between them, from which `ionto_rt.dummy_fit` has the skew; and a level with the
probe's tones, on which the tick's own estimator shows what it makes of the load with that skew.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ionto_rt.calibration_file import RangeCalibration, measured_now
from ionto_rt.catalogue import Catalogue
from ionto_rt.codes import DeviceStatus, EndReason, FrontEnd, Law, Pacing, SegmentKind, StopFlag, Trip
from ionto_rt.configuration import FIT, RING_S, controller_config, device_limits, ticks_of
from ionto_rt.core.controller import Controller
from ionto_rt.core.loop import Loop
from ionto_rt.device import SessionDevice, new_token
from ionto_rt.dummy_fit import Staircase, StaircaseFit, fit_staircase
from ionto_rt.dummy_load import DummyLoad
from ionto_rt.errors import EndedShortError, RefusedError
from ionto_rt.fitness import examine_for
from ionto_rt.host import deadline_profile, prepare_thread
from ionto_rt.plan import SELF_TEST_S, compile_plan
from ionto_rt.safety import CurrentRange, Limits, OperatorLimits, resolve_limits
from ionto_rt.treatment import Treatment
from ionto_rt.units import Kind as Quantity
from ionto_rt.units import format_quantity

MOST_A = 100e-6
LEVEL_A = 80e-6
"""With the tones on top it stays below 100 uA."""
RIPPLE_RATIO = 10.0
"""H34 judges a level that stands, on skin; here none does, and there is none. H01 and the cap of 100 uA stay."""
LEVEL_RATIO = 0.6
"""And below this share of the range."""
VOLTAGE_V = 4.0
"""Most that the load may carry; the treatment that sets the limits allows 10 V."""
LEAST_CODES = 40.0
"""A level of fewer codes of current or voltage than this calibrates nothing."""
LOW_RATIO = 0.2
HIGH_RATIO = 0.75
"""Of the level, below the ten times that the tones need: the plateaus are without them."""
TONE_RATIO = 0.08
GAIN_MOST = 0.01
"""A driver's error of 5 % has doses wrong by 5 %: what is off by more than this is no device to calibrate."""
OUTPUT_GAIN_MOST = 0.05
"""More than this the contact check does not take into the feed-forward."""
WRONG_LOAD = 0.1
"""Off by more than this the load is another one."""
OPEN_TOLERANCE = 0.5
"""With which the parts are fitted to see whether they are the stated ones."""
MISFIT_MOST = 9.0
LEAST_TOTAL_OHM, MOST_TOTAL_OHM = 200.0, 1e6
"""Less is taken for a short, more for an open lead."""
PLATEAU_S = 1.0
TONES_S = 2.0
STAIRCASE_TICKS = 4000
STAIRCASE_S = 1.0
HOLDS = (1, 1, 2, 3, 5, 8)
RAMP_S = 0.2
SETTLED = 8.0
"""Time constants of the load after which a level is taken for settled."""

TREATMENT = """\
format = 1
title = "calibration"
drug = "perfusion-vehicle"
[electrodes.active]
type = "perfusion-chamber"
area = "1 cm^2"
polarity = "anode"
[electrodes.return]
type = "perfusion-return"
area = "25 cm^2"
[[steps]]
current = "{current}"
time = "60 s"
ramp = "1 s"
"""
"""Where the limits of a calibration come from: a research current, on nobody."""

Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class EstimatorView:
    """Rs, Rp, C of the tick's estimator with the skew that was found; 0 where it does not see one."""

    series_ohm: float
    series_sigma_ohm: float
    parallel_ohm: float
    parallel_sigma_ohm: float
    capacitance_f: float
    capacitance_sigma_f: float


@dataclass(frozen=True)
class RangeMeasurement:
    """What one range has shown. `free` is the fit with hardly any prior knowledge of the load's parts."""

    range_index: int
    full_scale_a: float
    level_a: float
    values: RangeCalibration
    free: StaircaseFit
    estimator: EstimatorView


def check_load(load: DummyLoad, key: str) -> None:
    """RefusedError for a load on which no device can be calibrated."""
    if load.total_ohm < LEAST_TOTAL_OHM:
        raise RefusedError(
            "is taken for a short", key=key, value=str(load), remedy=f"use {LEAST_TOTAL_OHM:.0f} ohm or more"
        )
    if load.total_ohm > MOST_TOTAL_OHM:
        raise RefusedError("is taken for an open lead", key=key, value=str(load), remedy="use 1 Mohm or less in all")
    # One time constant has to be over within a block of the estimator, or nothing of the capacitor is at rest in it.
    if load.parallel_ohm * load.capacitance_f > 0.05:
        raise RefusedError(
            "settles too slowly", key=key, value=str(load), remedy="keep parallel resistor times capacitor below 50 ms"
        )


def level_for(device: SessionDevice, range_index: int, load: DummyLoad) -> float:
    """Highest level of the range on this load, A; 0 if the converters are too coarse for it."""
    chosen = device.hello.ranges[range_index]
    voltage_a = min(VOLTAGE_V, 0.25 * device.hello.compliance_v) / load.total_ohm
    if chosen.ballast_ohm > 0.0:
        voltage_a = min(voltage_a, 0.5 * device.hello.compliance_v / (load.total_ohm + chosen.ballast_ohm))
    level_a = min(LEVEL_A, LEVEL_RATIO * chosen.full_scale_a, voltage_a)
    least_a = LEAST_CODES * max(chosen.current_lsb_a, device.hello.voltage_lsb_v / load.total_ohm)
    return level_a if level_a >= least_a else 0.0


def measure_range(device: SessionDevice, range_index: int, load: DummyLoad, tolerance: float) -> RangeMeasurement:
    """Measure one range on the load, whose parts are known to `tolerance` (share).

    RefusedError before any current has flowed; EndedShortError if it ended short, or the load is not the stated one.
    """
    hello = device.hello
    if hello.channels != 1:
        raise RefusedError(f"the device has {hello.channels} channels, this version drives one", key=device.uri)
    level_a = level_for(device, range_index, load)
    if level_a == 0.0:
        remedy = "use another load, or another range"
        raise RefusedError("the range is too coarse for this load", key=device.uri, remedy=remedy)
    chosen = hello.ranges[range_index]
    most_a = min(MOST_A, chosen.full_scale_a)
    text = TREATMENT.format(current=format_quantity(most_a, Quantity.CURRENT, "uA"))
    treatment = Treatment.parse(text.encode(), "calibration")
    limits = resolve_limits(treatment, Catalogue.load(), hello.capabilities, OperatorLimits(current_a=most_a))
    limits = replace(
        limits,
        current_range=CurrentRange(chosen.full_scale_a, chosen.current_lsb_a, range_index, chosen.ballast_ohm),
    )
    pacing = Pacing.LOCK_STEP if hello.pacing & Pacing.LOCK_STEP else Pacing.DEVICE
    segments, staircase = _segments(hello.tick_s, level_a, load)
    config = _config(device, limits, treatment, load, level_a, pacing)
    rows = _drive(device, config, segments, limits, pacing)
    return _judge(device, range_index, level_a, load, tolerance, config, segments, staircase, rows)


def _segment(kind: SegmentKind, **fields: float) -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("duration_ticks", "level_a", "slope_a_per_tick", "ramp_out_a_per_tick", "charge_c", "charge_total_c"), 0
    )
    return {**nothing, "kind": int(kind), "step": 0, **fields}


def _segments(tick_s: float, level_a: float, load: DummyLoad) -> tuple[list[dict[str, Any]], tuple[int, int]]:
    """The programme, and where in it the staircase begins and ends."""
    settle = ticks_of(max(0.1, SETTLED * load.parallel_ohm * load.capacitance_f), tick_s)
    plateau = settle + ticks_of(PLATEAU_S, tick_s)
    slope = level_a / ticks_of(RAMP_S, tick_s)
    segments = [
        _segment(SegmentKind.SELF_TEST, step=-1, duration_ticks=ticks_of(SELF_TEST_S, tick_s)),
        _segment(SegmentKind.DELIVER, level_a=LOW_RATIO * level_a, slope_a_per_tick=slope, duration_ticks=plateau),
        _segment(SegmentKind.DELIVER, level_a=HIGH_RATIO * level_a, slope_a_per_tick=slope, duration_ticks=plateau),
    ]
    first = len(segments)
    # Levels and holds by chance, the same each time: repeatable, and of every frequency.
    chance = np.random.default_rng(1)
    left = max(STAIRCASE_TICKS, ticks_of(STAIRCASE_S, tick_s))
    while left > 0 and len(segments) < 4000:
        hold = int(chance.choice(HOLDS))
        level = level_a * (LOW_RATIO + (1.0 - LOW_RATIO) * float(chance.random()))
        segments.append(_segment(SegmentKind.DELIVER, level_a=level, duration_ticks=hold))
        left -= hold
    end = len(segments)
    segments += [
        _segment(
            SegmentKind.DELIVER,
            level_a=level_a,
            slope_a_per_tick=slope,
            ramp_out_a_per_tick=slope,
            duration_ticks=settle + ticks_of(TONES_S, tick_s),
        ),
        _segment(SegmentKind.RAMP_DOWN, slope_a_per_tick=slope),
    ]
    return segments, (first, end)


def _config(
    device: SessionDevice,
    limits: Limits,
    treatment: Treatment,
    load: DummyLoad,
    level_a: float,
    pacing: Pacing,
) -> dict[str, Any]:
    profile = FIT
    if pacing == Pacing.DEVICE:
        profile = deadline_profile({"fitness": examine_for(device).as_record()})
    plan = compile_plan(treatment, limits, device.hello.tick_s)
    config = controller_config(device.hello, limits, plan, profile, new_token())
    config["impedance"]["tone_a"] = TONE_RATIO * level_a
    config["impedance"]["electrode_emf_v"] = 0.0
    # Tones of their own choice would be others when the same rows are ticked again with the skew that was found.
    config["impedance"]["retune_factor"] = 0.0
    if not load.resistor:
        config["impedance"]["corner_hz"] = 1.0 / (2.0 * math.pi * load.parallel_ohm * load.capacitance_f)
    # No skin, no contact check: the plain law, which needs to know nothing of the load, and steps that are steps.
    config["law"] = int(Law.PID)
    config["regulator"]["slew_per_tick"] = config["regulator"]["feed_forward"] * 2.0 * level_a
    # Steps of some ticks are what is measured: behind a voltage source the current is never where it is told to be.
    config["guard"]["ripple_ratio"] = RIPPLE_RATIO
    return config


def _drive(
    device: SessionDevice, config: dict[str, Any], segments: list[dict[str, Any]], limits: Limits, pacing: Pacing
) -> Rows:
    """Carry the programme out; all of its rows. EndedShortError if it did not reach its end."""
    virtual = pacing == Pacing.LOCK_STEP
    tick_s = device.hello.tick_s
    loop = Loop(
        Controller(config, segments),
        device.port.loop_port(),
        virtual_clock=virtual,
        ring_rows=1 << max(10, (ticks_of(RING_S, tick_s) - 1).bit_length()),
        silence_s=2.0 if virtual else 0.5,
    )
    device.push_limits(**device_limits(device.hello, limits, config["token"]))
    device.arm(pacing, config["token"])
    kept: list[Rows] = []

    def visit() -> None:
        loop.beat()
        while len(rows := loop.drain(4096)):
            kept.append(rows)

    def guarded(act: Callable[[], object]) -> None:
        try:
            act()
        except KeyboardInterrupt:
            loop.stop(StopFlag.NOW)

    if virtual:
        while loop.status == "running":
            guarded(lambda: loop.run(500))
            guarded(visit)
    else:
        done = threading.Event()

        def run() -> None:
            try:
                prepare_thread()
                loop.run()
            finally:
                done.set()

        thread = threading.Thread(target=run, name="ionto-rt loop")
        thread.start()
        while not done.is_set():
            guarded(lambda: done.wait(0.1))
            guarded(visit)
        thread.join()
    guarded(visit)
    device.disarm(config["token"])
    if loop.status != "ended" or not kept:
        raise EndedShortError(f"{device.uri}: the device was lost while it was calibrated; connect it again")
    rows = np.concatenate(kept)
    last = rows[-1]
    if int(last["end_reason"]) != EndReason.COMPLETE:
        reason = EndReason(int(last["end_reason"]))
        why = Trip(int(last["trip"])).name if reason == EndReason.TRIP else reason.name
        raise EndedShortError(
            f"{device.uri}: ended by {why.lower().replace('_', ' ')}; check that the stated load is connected"
        )
    return rows


def _mean(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean, and its standard deviation from blocks of 20 readings: hum and tones are no white noise."""
    blocks = values[: len(values) // 20 * 20].reshape(-1, 20).mean(axis=1)
    return float(values.mean()), float(blocks.std(ddof=1) / math.sqrt(len(blocks)))


def _slope(low: Rows, high: Rows, name: str) -> tuple[float, float]:
    """Rise of a column over that of the current, from one level to the other, and its standard deviation."""
    rise_a = float(high["current_a"].mean() - low["current_a"].mean())
    slope = float(high[name].mean() - low[name].mean()) / rise_a
    spread = (_mean(level[name] - slope * level["current_a"])[1] for level in (low, high))
    return slope, math.hypot(*spread) / rise_a


def _judge(
    device: SessionDevice,
    range_index: int,
    level_a: float,
    load: DummyLoad,
    tolerance: float,
    config: dict[str, Any],
    segments: list[dict[str, Any]],
    staircase: tuple[int, int],
    rows: Rows,
) -> RangeMeasurement:
    hello, chosen = device.hello, device.hello.ranges[range_index]
    tick_s = hello.tick_s
    where = f"{device.uri}, range of {format_quantity(chosen.full_scale_a, Quantity.CURRENT)}"
    if rows["lost_ticks"].any():
        raise EndedShortError(f"{where}: samples were lost on the way; calibrate again on a quieter host")
    if (rows["status"] & DeviceStatus.COMPLIANCE).any():
        raise EndedShortError(f"{where}: the output came to its voltage limit; check that the stated load is connected")
    rest = rows[(rows["status"] & DeviceStatus.RELAY_CLOSED) == 0]
    rest = rest[10 : ticks_of(SELF_TEST_S, tick_s)]
    offsets = {name: _mean(rest[name]) for name in ("current_a", "redundant_a", "voltage_v")}
    noise_a = max(float(rest["current_a"].std()), chosen.current_lsb_a / math.sqrt(12.0))
    noise_v = max(float(rest["voltage_v"].std()), hello.voltage_lsb_v / math.sqrt(12.0))

    first, end = staircase
    settle = ticks_of(max(0.1, SETTLED * load.parallel_ohm * load.capacitance_f) + RAMP_S, tick_s)
    low, high = (rows[rows["segment"] == at][settle:] for at in (first - 2, first - 1))
    measured_ohm, measured_sigma_ohm = _slope(low, high, "voltage_v")
    gain = measured_ohm / load.total_ohm - 1.0
    share = tolerance * math.hypot(load.series_ohm, load.parallel_ohm) / load.total_ohm
    gain_sigma = math.hypot(measured_sigma_ohm / load.total_ohm, share)
    ratio, redundant_gain_sigma = _slope(low, high, "redundant_a")
    redundant_gain = ratio - 1.0
    if abs(gain) > WRONG_LOAD:
        measured = format_quantity(measured_ohm, Quantity.RESISTANCE, digits=4)
        stated = format_quantity(load.total_ohm, Quantity.RESISTANCE)
        raise EndedShortError(f"{where}: the load has {measured}, not {stated}; connect the stated one")
    for what, value in (("voltage per current", gain), ("second current per first", redundant_gain)):
        if abs(value) > GAIN_MOST:
            raise EndedShortError(
                f"{where}: the {what} is off by {100 * value:+.2f} %, more than {100 * GAIN_MOST:g} %;"
                " correct the device's calibration, or state the load's true value"
            )

    inside = np.flatnonzero((rows["segment"] >= first) & (rows["segment"] < end))
    taken = rows[inside]
    readings = Staircase(
        tick_s=tick_s,
        ballast_ohm=chosen.ballast_ohm if hello.front_end == FrontEnd.VOLTAGE_SOURCE else 0.0,
        applied=taken["applied_code"] * chosen.output_lsb,
        current_a=taken["current_a"].copy(),
        voltage_v=taken["voltage_v"].copy(),
        current_noise_a=noise_a,
        voltage_noise_v=noise_v,
        current_offset_a=offsets["current_a"],
        voltage_offset_v=offsets["voltage_v"],
    )
    shown = _scaled(load, 1.0 + gain)
    free = fit_staircase(readings, shown, OPEN_TOLERANCE)
    _compare(where, shown, free, tolerance)
    fit = fit_staircase(readings, shown, tolerance)
    if abs(fit.output_gain) > OUTPUT_GAIN_MOST:
        raise EndedShortError(
            f"{where}: the output is off by {100 * fit.output_gain:+.2f} %, more than {100 * OUTPUT_GAIN_MOST:g} %;"
            " correct the device's calibration"
        )
    values = RangeCalibration(
        measured_utc=measured_now(),
        load=str(load),
        tolerance=tolerance,
        skew_s=fit.skew_s,
        skew_sigma_s=fit.skew_sigma_s,
        gain=gain,
        gain_sigma=gain_sigma,
        redundant_gain=redundant_gain,
        redundant_gain_sigma=redundant_gain_sigma,
        output_gain=fit.output_gain,
        output_gain_sigma=fit.output_gain_sigma,
        current_offset_a=offsets["current_a"][0],
        current_offset_sigma_a=offsets["current_a"][1],
        redundant_offset_a=offsets["redundant_a"][0],
        redundant_offset_sigma_a=offsets["redundant_a"][1],
        voltage_offset_v=offsets["voltage_v"][0],
        voltage_offset_sigma_v=offsets["voltage_v"][1],
        output_time_s=fit.output_time_s,
        output_time_sigma_s=fit.output_time_sigma_s,
    )
    estimator = _estimator_view(config, segments, rows, fit.skew_s)
    return RangeMeasurement(range_index, chosen.full_scale_a, level_a, values, free, estimator)


def _scaled(load: DummyLoad, factor: float) -> DummyLoad:
    """The load as readings with this gain show it."""
    return DummyLoad(load.series_ohm * factor, load.parallel_ohm * factor, load.capacitance_f / factor)


def _compare(where: str, stated: DummyLoad, free: StaircaseFit, tolerance: float) -> None:
    """EndedShortError if a part, fitted with hardly any prior knowledge of it, is not the stated one; or no fit at all.

    A series resistor that is off and a skew look alike: what the fit cannot tell is in its deviation.
    """
    parts = [("series resistor", free.series_ohm, free.series_sigma_ohm, stated.series_ohm, Quantity.RESISTANCE)]
    if not stated.resistor:
        parts += [
            ("parallel resistor", free.parallel_ohm, free.parallel_sigma_ohm, stated.parallel_ohm, Quantity.RESISTANCE),
            ("capacitor", free.capacitance_f, free.capacitance_sigma_f, stated.capacitance_f, Quantity.CAPACITANCE),
        ]
    for name, value, sigma, meant, kind in parts:
        if abs(math.log(value / meant)) > 3.0 * math.hypot(tolerance, sigma / value):
            raise EndedShortError(
                f"{where}: the {name} has {format_quantity(value, kind, digits=4)}, not"
                f" {format_quantity(meant, kind, digits=4)}; connect the stated load, or give a wider --tolerance"
            )
    if free.misfit > MISFIT_MOST:
        raise EndedShortError(
            f"{where}: the load does not behave like {stated} (misfit {free.misfit:.1f}); connect the stated one"
        )


def _estimator_view(config: dict[str, Any], segments: list[dict[str, Any]], rows: Rows, skew_s: float) -> EstimatorView:
    """The same inputs through the same tick again, its estimator told of the skew; as the tones' level ended."""
    told = {**config, "impedance": {**config["impedance"], "skew_s": skew_s}}
    again = Controller(told, segments).run(rows)
    tones = again[again["segment"] == len(segments) - 2]
    last = tones[-1]
    return EstimatorView(
        *(
            float(last[name])
            for name in (
                "series_ohm",
                "series_sigma_ohm",
                "parallel_ohm",
                "parallel_sigma_ohm",
                "capacitance_f",
                "capacitance_sigma_f",
            )
        )
    )
