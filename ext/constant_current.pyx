"""The bare regulator: contact probe, then constant current, for embedders without treatment, guard and record."""
import math

from libc.math cimport fabs, isfinite
from libc.stdint cimport int32_t
from libc.string cimport memset

from ionto_rt.core.predictive cimport predictive_reset, predictive_step
from ionto_rt.core.probe cimport PROBE_PERIOD, probe_begin, probe_step
from ionto_rt.core.types cimport (
    PROBE_GOOD, PROBE_OPEN, PROBE_OUTSIDE, PROBE_RUNNING, PROBE_SHORT, PROBE_UNCLEAR, RegulatorTerms,
)

PROBE_MOST_A = 50e-6
"""No current of the probe passes it: less than what is felt at any pad."""
PROBE_RATIO = 0.3
"""Nor this share of the setpoint."""
OFFSET_RATIO = 0.02
"""Of the setpoint: a current source's offset at rest, 1 % at most in the survey, and as much for noise."""
PROBE_LEAST_S = 0.4
PROBE_LEAST_PERIODS = 4
PROBE_MOST_S = 2.0
TRACKING_POLE = 0.6
SETPOINT_POLE = 0.25
INTEGRAL_SHARE = 0.6
"""The disturbance filter's pole is at most 1 - share/(delay + 1). A faster one recovers sooner; this one stays stable
with a delay that is one tick off its model's, whatever the load (docs/control.md)."""
QUICK_POLE_MOST = 0.6
SURPRISE_RATIO = 0.02
QUICK_TICKS = 64
QUICK_REST_TICKS = 512
TRIM_RATIO = 0.03
"""A current source is off by its gain error, and that is measured: beyond 3 % the loop would hide a fault."""
TRIM_FLOOR_RATIO = 0.001
PARALLEL_RATIO_MOST = 19.0
"""Rp to Rs + ballast: part of the certificate (docs/control.md)."""
SERIES_LEAST_OHM = 100.0
SHORT_OHM = 100.0
OPEN_OHM = 2e6
RECONTACT_RATIO = 0.02
JUMP_RATIO = 1.3
RESCALE_MOST = 4.0
SCHEDULE_RATIO = 0.15
SCHEDULE_S = 0.02

VERDICTS = {
    PROBE_RUNNING: "running", PROBE_GOOD: "good", PROBE_OPEN: "open", PROBE_SHORT: "short",
    PROBE_OUTSIDE: "outside", PROBE_UNCLEAR: "unclear",
}


cdef void constant_current_begin(ConstantCurrentState* state, double output) noexcept nogil:
    memset(state, 0, sizeof(state[0]))
    probe_begin(&state.probe, output)


cdef int32_t constant_current_step(ConstantCurrentState* state, const ConstantCurrentConfig* config, double setpoint_a,
                                   double tone_a, double measured_a, double voltage_v,
                                   RegulatorTerms* terms) noexcept nogil:
    cdef int32_t verdict
    if state.regulating:
        predictive_step(&state.regulator, &config.regulator, setpoint_a, tone_a, measured_a, voltage_v, 0, terms)
        return PROBE_GOOD
    memset(terms, 0, sizeof(terms[0]))
    if not (isfinite(setpoint_a) and isfinite(tone_a) and isfinite(measured_a) and isfinite(voltage_v)):
        terms.fault = 1
        terms.output = state.probe.output
        return state.probe.verdict
    verdict = state.probe.verdict
    if verdict == PROBE_RUNNING:
        verdict = probe_step(&state.probe, &config.probe, measured_a, voltage_v, &terms.output)
        if verdict == PROBE_GOOD:
            state.regulating = 1
            predictive_reset(&state.regulator, &config.regulator, &state.probe.found.model, terms.output,
                             state.probe.found.null_output, measured_a)
    if verdict != PROBE_RUNNING and verdict != PROBE_GOOD:
        terms.output = 0.0
    return verdict


def nulled_most_a(double probe_a, double setpoint_a) -> float:
    """Largest reading at rest (A) that is taken for a current source's offset, and nulled."""
    return max(probe_a, OFFSET_RATIO * fabs(setpoint_a))


def probe_periods(double tick_s) -> int:
    """Periods of the excitation that are averaged."""
    return max(PROBE_LEAST_PERIODS, 2 * math.ceil(PROBE_LEAST_S / (2 * PROBE_PERIOD * tick_s)))


def nominal_probe_ticks(double tick_s) -> int:
    """How long the probe takes where the response is not small in codes: excitation and fit, about 0.6 s at 1 kHz."""
    return (probe_periods(tick_s) + 1) * PROBE_PERIOD + 100


def configure(*, front_end, double tick_s, double full_scale_a, double compliance_v, double current_lsb_a,
              double output_lsb, double output_min, double output_max, int delay_ticks, double ballast_ohm=0.0,
              double probe_a=PROBE_MOST_A):
    """Probe and regulator of one channel, as a dict of struct ConstantCurrentConfig.

    front_end is "current" or "voltage"; output_lsb, output_min and output_max are in A or V accordingly; probe_a bounds
    the current of the probe (A), at most 50 uA. ValueError names what is out of range.
    """
    if front_end not in ("current", "voltage"):
        raise ValueError(f"front_end = {front_end!r}: must be current or voltage")
    for name, value in (("tick_s", tick_s), ("full_scale_a", full_scale_a), ("compliance_v", compliance_v),
                        ("current_lsb_a", current_lsb_a), ("probe_a", probe_a)):
        if not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"{name} = {value}: must be above 0")
    for name, value in (("output_lsb", output_lsb), ("ballast_ohm", ballast_ohm)):
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{name} = {value}: must not be negative")
    if not output_min < output_max:
        raise ValueError(f"output_min = {output_min}: must be below output_max = {output_max}")
    if not 1 <= delay_ticks <= 10:
        raise ValueError(f"delay_ticks = {delay_ticks}: must be 1 to 10")
    probe_a = min(probe_a, PROBE_MOST_A)
    voltage = front_end == "voltage"
    periods = probe_periods(tick_s)
    return {
        "probe": {
            "tick_s": tick_s, "current_a": probe_a, "offset_a": probe_a, "current_lsb_a": current_lsb_a,
            "output_lsb": output_lsb,
            "output_min": output_min, "output_max": output_max, "ballast_ohm": ballast_ohm,
            "series_least_ohm": SERIES_LEAST_OHM, "compliance_v": compliance_v,
            "open_ohm": min(OPEN_OHM, 0.9 * compliance_v / probe_a) if not voltage else OPEN_OHM,
            "short_ohm": SHORT_OHM, "parallel_ratio_most": PARALLEL_RATIO_MOST, "voltage_source": int(voltage),
            "delay_ticks": delay_ticks, "periods": periods,
            "periods_most": max(periods, 2 * math.floor(PROBE_MOST_S / (2 * PROBE_PERIOD * tick_s))),
        },
        "regulator": {
            "tracking_pole": TRACKING_POLE, "setpoint_pole": SETPOINT_POLE,
            "integral_pole_most": 1.0 - INTEGRAL_SHARE / (delay_ticks + 1.0),
            "quick_pole_most": QUICK_POLE_MOST, "surprise_ratio": SURPRISE_RATIO, "quick_ticks": QUICK_TICKS,
            "quick_rest_ticks": QUICK_REST_TICKS,
            "output_min": output_min, "output_max": output_max, "output_lsb": output_lsb, "slew_per_tick": 0.0,
            "spike_a": 0.0,
            "trim_ratio": 0.0 if voltage else TRIM_RATIO, "trim_floor": TRIM_FLOOR_RATIO * full_scale_a,
            "compliance_v": compliance_v, "contact_floor_a": 25.0 * current_lsb_a,
            "recontact_ratio": RECONTACT_RATIO, "jump_ratio": JUMP_RATIO if voltage else 0.0,
            "rescale_most": RESCALE_MOST,
            "series_least_ohm": ballast_ohm + SERIES_LEAST_OHM if voltage else 0.0,
            "schedule_ratio": SCHEDULE_RATIO, "schedule_ticks": max(8, round(SCHEDULE_S / tick_s)) if voltage else 0,
            "voltage_source": int(voltage), "open_ticks": 2 if voltage else 3,
            "good_ticks": 3,
        },
    }


cdef class ConstantCurrentRegulator:
    """Probe, then constant current: one channel, one `step` per sample.

    The first steps probe the load with at most 50 uA and 0.3 of the first setpoint, charge-balanced, and identify the
    plant (`identified`). Of a current source an offset of up to that or 2 % of the setpoint is nulled before; where
    more is read the verdict is "unclear". Then the setpoint is followed. On an open or shorted lead, or a load outside
    the certified region, `verdict` says so and the output stays zero.

    Args:
        front_end: "current" (outputs in A) or "voltage" (outputs in V, behind ballast_ohm).
        tick_s: sample period, s.
        full_scale_a, current_lsb_a: of the range in use, A.
        compliance_v: of the output stage, V.
        output_lsb: one output code, A or V; 0 for an output that is not quantised.
        delay_ticks: sample k is the first to show the output given in answer to sample k - delay_ticks; 1 to 10.
        output_min, output_max: limits of the output, A or V.
        setpoint_pole, tracking_pole, slew_per_tick: see PredictiveConfig in predictive.pxd.

    Raises:
        ValueError: a parameter is out of range.
    """
    cdef ConstantCurrentConfig config
    cdef ConstantCurrentState state
    cdef RegulatorTerms last
    cdef int32_t begun

    def __init__(self, *, front_end, double tick_s, double full_scale_a, double compliance_v, double current_lsb_a=0.0,
                 double output_lsb=0.0, double output_min=-math.inf, double output_max=math.inf, int delay_ticks=2,
                 double ballast_ohm=0.0, double setpoint_pole=SETPOINT_POLE, double tracking_pole=TRACKING_POLE,
                 double slew_per_tick=0.0):
        widest = 1.25 * full_scale_a if front_end == "current" else compliance_v
        for name, value in (("setpoint_pole", setpoint_pole), ("tracking_pole", tracking_pole)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} = {value}: must be at least 0 and below 1")
        if not (math.isfinite(slew_per_tick) and slew_per_tick >= 0.0):
            raise ValueError(f"slew_per_tick = {slew_per_tick}: must not be negative")
        given = configure(
            front_end=front_end, tick_s=tick_s, full_scale_a=full_scale_a, compliance_v=compliance_v,
            current_lsb_a=current_lsb_a or full_scale_a / 32768.0, output_lsb=output_lsb,
            output_min=max(output_min, -widest), output_max=min(output_max, widest), delay_ticks=delay_ticks,
            ballast_ohm=ballast_ohm)
        given["regulator"].update(setpoint_pole=setpoint_pole, tracking_pole=tracking_pole, slew_per_tick=slew_per_tick)
        self.config = given
        constant_current_begin(&self.state, 0.0)
        memset(&self.last, 0, sizeof(self.last))

    def step(self, double setpoint_a, double measured_a, double voltage_v=0.0, double tone_a=0.0) -> float:
        """One sample: setpoint, measured current (A), voltage at the pads (V); the output, A or V.

        tone_a is added to the setpoint past the reference model. A non-finite input changes no state.
        """
        if not self.begun and isfinite(setpoint_a) and setpoint_a != 0.0:
            self.begun = 1
            self.config.probe.current_a = min(self.config.probe.current_a, PROBE_RATIO * fabs(setpoint_a))
            self.config.probe.offset_a = nulled_most_a(self.config.probe.current_a, setpoint_a)
        constant_current_step(&self.state, &self.config, setpoint_a, tone_a, measured_a, voltage_v, &self.last)
        return self.last.output

    def manual(self, double output):
        """Hold `output` (A or V); the reference follows what flows, so that `automatic` takes over without a jump.

        ValueError if it is not finite, or before the load is identified.
        """
        if not math.isfinite(output):
            raise ValueError(f"output = {output}: must be finite")
        if not self.state.regulating:
            raise ValueError(f"output = {output}: the load is not identified yet (verdict {self.verdict})")
        self.state.regulator.manual_output = output
        self.state.regulator.manual = 1

    def automatic(self):
        """Regulate again, from the output in force."""
        self.state.regulator.manual = 0

    @property
    def verdict(self) -> str:
        """running, good, open, short, outside (of the certified region) or unclear."""
        return VERDICTS[self.state.probe.verdict]

    @property
    def identified(self) -> dict:
        """What the probe found: a dict of struct Identified, the model in `model`."""
        return self.state.probe.found

    @property
    def contact_lost(self) -> bool:
        """True while the lead is open: the output is at the level that sees it come back."""
        return self.state.regulator.contact_lost != 0

    @property
    def terms(self) -> dict:
        """The last step's terms: output, proportional, integral, derivative, feed_forward, unlimited, saturated."""
        return {name: value for name, value in (<dict>self.last).items() if name != "fault"}

    @property
    def fault(self) -> bool:
        """True if the last step's inputs were not finite."""
        return self.last.fault != 0

    @property
    def state_values(self) -> dict:
        """Every field of the state, for comparison in tests and records."""
        return self.state
