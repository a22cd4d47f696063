"""Two-degree-of-freedom PID with feed-forward: u = ff r + kp (b r' - y) + I + D.

r' is the setpoint `delay_ticks` ago (0: now): what the feed-forward has asked for cannot have arrived before, and an
integral that runs on it in the meantime would overshoot by itself.

D is the filtered derivative of (c r' - y), backward Euler of kd s / (1 + Tf s). With c = 0 it acts on the measured
value alone, so that a step of the setpoint gives no kick. Form: Astrom and Hagglund, "Advanced PID Control", ISA 2006,
chapter 3.
"""
import math

from libc.math cimport INFINITY, isfinite
from libc.stdint cimport int32_t
from libc.string cimport memset

import numpy as np

from ionto_rt.core.types cimport RegulatorTerms


cdef void regulator_reset(RegulatorState* state, double output) noexcept nogil:
    state.integral = 0.0
    state.derivative = 0.0
    state.previous_measured = 0.0
    state.previous_derivative_input = 0.0
    state.previous_error = 0.0
    state.output = output
    state.manual_output = output
    memset(&state.setpoints, 0, sizeof(state.setpoints))
    state.setpoint_at = 0
    state.hold = 0
    state.started = 0


cdef void regulator_retune(RegulatorState* state, const RegulatorConfig* old, const RegulatorConfig* new,
                           double setpoint_a, double measured_a) noexcept nogil:
    cdef double gain_old = state.gain if old.scheduled else 1.0
    cdef double gain_new = state.gain if new.scheduled else 1.0
    cdef double derivative = state.derivative
    cdef double reference
    if not (isfinite(setpoint_a) and isfinite(measured_a)):
        return
    reference = setpoint_a if new.delay_ticks == 0 else state.setpoints[(state.setpoint_at + 1 - new.delay_ticks) & 7]
    if old.kd * gain_old != 0.0:
        derivative = state.derivative * (new.kd * gain_new / (old.kd * gain_old))
    else:
        derivative = 0.0
    state.integral += (
        (old.feed_forward - new.feed_forward) * setpoint_a
        + old.kp * gain_old * (old.setpoint_weight * reference - measured_a)
        - new.kp * gain_new * (new.setpoint_weight * reference - measured_a)
        + state.derivative - derivative
    )
    state.derivative = derivative
    state.previous_derivative_input += (new.derivative_weight - old.derivative_weight) * reference


cdef void regulator_set_mode(RegulatorState* state, int32_t mode, double manual_output) noexcept nogil:
    state.mode = mode
    if mode == MODE_MANUAL and isfinite(manual_output):
        state.manual_output = manual_output


cdef int regulator_step(RegulatorState* state, const RegulatorConfig* config, double setpoint_a, double measured_a,
                        RegulatorTerms* terms) noexcept nogil:
    cdef double gain = state.gain if config.scheduled else 1.0
    cdef double error, step_i, integral, derivative_input, fed, proportional, derivative, wanted, output, low, high
    cdef double tracking, reference, used
    cdef int32_t at
    if not (isfinite(setpoint_a) and isfinite(measured_a)):
        terms.fault = 1
        terms.output = state.output
        return 1

    at = (state.setpoint_at + 1) & 7
    reference = setpoint_a if config.delay_ticks == 0 else state.setpoints[(at - config.delay_ticks) & 7]
    error = reference - measured_a
    fed = config.feed_forward * setpoint_a
    proportional = config.kp * gain * (config.setpoint_weight * reference - measured_a)

    derivative_input = config.derivative_weight * reference - measured_a
    if state.started:
        derivative = (
            config.derivative_filter_s * state.derivative
            + config.kd * gain * (derivative_input - state.previous_derivative_input)
        ) / (config.derivative_filter_s + config.tick_s)
    else:
        derivative = 0.0

    if config.integration == INTEGRATION_TRAPEZOIDAL:
        step_i = config.ki * gain * config.tick_s * 0.5 * (error + state.previous_error)
    else:
        step_i = config.ki * gain * config.tick_s * error
    if state.hold:
        step_i = 0.0
        proportional = 0.0
        derivative = 0.0
    integral = state.integral
    if config.integration != INTEGRATION_FORWARD:
        integral += step_i

    wanted = proportional + integral + derivative + fed
    used = integral
    low = config.output_min
    high = config.output_max
    if config.slew_per_tick > 0.0:
        if state.output - config.slew_per_tick > low:
            low = state.output - config.slew_per_tick
        if state.output + config.slew_per_tick < high:
            high = state.output + config.slew_per_tick
        if config.free_fall and state.output >= 0.0 and low > -config.slew_per_tick:
            low = -config.slew_per_tick
        if config.free_fall and state.output <= 0.0 and high < config.slew_per_tick:
            high = config.slew_per_tick
        if low < config.output_min:
            low = config.output_min
        if high > config.output_max:
            high = config.output_max
        if low > config.output_max:
            low = config.output_max
        if high < config.output_min:
            high = config.output_min
    if state.mode == MODE_MANUAL:
        output = state.manual_output
    else:
        output = wanted
    if output > high:
        output = high
    elif output < low:
        output = low

    if state.mode == MODE_MANUAL:
        # The integral follows the hand, so that automatic takes over without a jump.
        integral = output - proportional - derivative - fed
    else:
        if config.anti_windup == ANTI_WINDUP_CONDITIONAL and (wanted - output) * step_i > 0.0:
            # Only what pushes further into the limit is left out.
            if config.integration != INTEGRATION_FORWARD:
                integral = state.integral
        elif config.integration == INTEGRATION_FORWARD:
            integral += step_i
        if config.anti_windup == ANTI_WINDUP_BACK_CALCULATION and config.ki != 0.0 and not state.hold:
            tracking = config.tick_s / config.tracking_s if config.tracking_s > config.tick_s else 1.0
            integral += (output - wanted) * tracking

    if not (isfinite(integral) and isfinite(derivative) and isfinite(output)):
        terms.fault = 1
        terms.output = state.output
        return 1
    state.setpoints[at] = setpoint_a
    state.setpoint_at = at
    state.integral = integral
    state.derivative = derivative
    state.previous_derivative_input = derivative_input
    state.previous_measured = measured_a
    state.previous_error = error
    state.output = output
    state.started = 1

    terms.saturated = 0
    if output != (state.manual_output if state.mode == MODE_MANUAL else wanted):
        if output == config.output_max:
            terms.saturated = 1
            state.saturated_ticks += 1
        elif output == config.output_min:
            terms.saturated = -1
            state.saturated_ticks += 1
        else:
            state.slewed_ticks += 1

    terms.fault = 0
    terms.output = output
    terms.proportional = proportional
    terms.integral = used
    terms.derivative = derivative
    terms.feed_forward = fed
    terms.unlimited = wanted
    return 0


_INTEGRATION = {
    "backward": INTEGRATION_BACKWARD, "forward": INTEGRATION_FORWARD, "trapezoidal": INTEGRATION_TRAPEZOIDAL,
}
_ANTI_WINDUP = {
    "none": ANTI_WINDUP_NONE, "back-calculation": ANTI_WINDUP_BACK_CALCULATION, "conditional": ANTI_WINDUP_CONDITIONAL,
}


cdef RegulatorConfig _config(dict given) except *:
    """A checked configuration; ValueError names the field, its value and what it must be."""
    cdef RegulatorConfig config
    names = ("tick_s", "kp", "ki", "kd", "derivative_filter_s", "setpoint_weight", "derivative_weight", "feed_forward",
             "slew_per_tick", "tracking_s")
    for name in names:
        if not math.isfinite(given[name]):
            raise ValueError(f"{name} = {given[name]}: must be finite")
    for name in ("tick_s",):
        if not given[name] > 0.0:
            raise ValueError(f"{name} = {given[name]}: must be above 0")
    for name in ("derivative_filter_s", "slew_per_tick", "tracking_s"):
        if given[name] < 0.0:
            raise ValueError(f"{name} = {given[name]}: must not be negative")
    if not given["output_min"] < given["output_max"]:
        raise ValueError(f"output_min = {given['output_min']}: must be below output_max = {given['output_max']}")
    if not 0 <= given["delay_ticks"] <= 7:
        raise ValueError(f"delay_ticks = {given['delay_ticks']}: must be 0 to 7")
    if given["integration"] not in _INTEGRATION:
        raise ValueError(f"integration = {given['integration']!r}: must be one of {', '.join(_INTEGRATION)}")
    if given["anti_windup"] not in _ANTI_WINDUP:
        raise ValueError(f"anti_windup = {given['anti_windup']!r}: must be one of {', '.join(_ANTI_WINDUP)}")
    config.tick_s = given["tick_s"]
    config.kp = given["kp"]
    config.ki = given["ki"]
    config.kd = given["kd"]
    config.derivative_filter_s = given["derivative_filter_s"]
    config.setpoint_weight = given["setpoint_weight"]
    config.derivative_weight = given["derivative_weight"]
    config.feed_forward = given["feed_forward"]
    config.output_min = given["output_min"]
    config.output_max = given["output_max"]
    config.slew_per_tick = given["slew_per_tick"]
    config.tracking_s = given["tracking_s"]
    config.delay_ticks = given["delay_ticks"]
    config.integration = _INTEGRATION[given["integration"]]
    config.anti_windup = _ANTI_WINDUP[given["anti_windup"]]
    config.free_fall = given["free_fall"]
    config.scheduled = 0
    return config


cdef class Regulator:
    """The regulator of the tick, for one channel.

    Parameters are those of `RegulatorConfig` in regulator.pxd: `tick_s` in s, `kp` in output units per A, `ki` per A s,
    `kd` s per A; outputs are A (current source) or V (voltage source), between `output_min` and `output_max`.
    `integration` is "backward", "forward" or "trapezoidal"; `anti_windup` is "none", "back-calculation" or
    "conditional". ValueError if a parameter is out of range; a refused change leaves the old gains in force.
    """
    cdef RegulatorConfig config
    cdef RegulatorState state
    cdef RegulatorTerms last
    cdef dict given
    cdef double setpoint_a

    def __init__(self, *, double tick_s, double kp=0.0, double ki=0.0, double kd=0.0, double derivative_filter_s=0.0,
                 double setpoint_weight=1.0, double derivative_weight=0.0, double feed_forward=0.0,
                 double output_min=-INFINITY, double output_max=INFINITY, double slew_per_tick=0.0,
                 double tracking_s=0.0, int delay_ticks=0, bint free_fall=False, str integration="backward",
                 str anti_windup="conditional", double output=0.0):
        self.given = {
            "tick_s": tick_s, "kp": kp, "ki": ki, "kd": kd, "derivative_filter_s": derivative_filter_s,
            "setpoint_weight": setpoint_weight, "derivative_weight": derivative_weight, "feed_forward": feed_forward,
            "output_min": output_min, "output_max": output_max, "slew_per_tick": slew_per_tick,
            "tracking_s": tracking_s, "delay_ticks": delay_ticks, "free_fall": free_fall,
            "integration": integration, "anti_windup": anti_windup,
        }
        self.config = _config(self.given)
        self.state.gain = 1.0
        self.reset(output)

    def reset(self, double output=0.0):
        """Forget everything; `output` (A or V) is where slew limiting starts from."""
        if not math.isfinite(output):
            raise ValueError(f"output = {output}: must be finite")
        regulator_reset(&self.state, output)
        self.state.mode = MODE_AUTOMATIC
        self.state.saturated_ticks = 0
        self.state.slewed_ticks = 0
        self.last = {"output": output, "proportional": 0.0, "integral": 0.0, "derivative": 0.0, "feed_forward": 0.0,
                     "unlimited": output, "fault": 0, "saturated": 0}

    def step(self, double setpoint_a, double measured_a) -> float:
        """One tick: setpoint and measured value in A; the output in A or V.

        A non-finite input changes no state: the last output is returned and `fault` is True.
        """
        self.setpoint_a = setpoint_a if isfinite(setpoint_a) else self.setpoint_a
        regulator_step(&self.state, &self.config, setpoint_a, measured_a, &self.last)
        return self.last.output

    def run(self, setpoint_a, measured_a):
        """`step` for each pair of two float64 arrays of one shape (n,); the outputs, shape (n,)."""
        cdef double[::1] setpoints = np.ascontiguousarray(setpoint_a, dtype=np.float64)
        cdef double[::1] measured = np.ascontiguousarray(measured_a, dtype=np.float64)
        cdef Py_ssize_t n = setpoints.shape[0], k
        if measured.shape[0] != n:
            raise ValueError(f"setpoint_a has {n} values and measured_a {measured.shape[0]}: must be equal")
        result = np.empty(n, dtype=np.float64)
        cdef double[::1] outputs = result
        with nogil:
            for k in range(n):
                regulator_step(&self.state, &self.config, setpoints[k], measured[k], &self.last)
                outputs[k] = self.last.output
        if n and isfinite(setpoints[n - 1]):
            self.setpoint_a = setpoints[n - 1]
        return result

    def retune(self, **changes):
        """Change parameters without a jump of the output. ValueError leaves the old ones in force."""
        unknown = set(changes) - set(self.given)
        if unknown:
            raise ValueError(f"unknown parameter {sorted(unknown)[0]!r}: must be one of {', '.join(self.given)}")
        given = {**self.given, **changes}
        cdef RegulatorConfig new = _config(given)
        regulator_retune(&self.state, &self.config, &new, self.setpoint_a, self.state.previous_measured)
        self.config = new
        self.given = given

    def manual(self, double output):
        """Hold `output` (A or V); the integral tracks it, so that `automatic` takes over without a jump."""
        if not math.isfinite(output):
            raise ValueError(f"output = {output}: must be finite")
        regulator_set_mode(&self.state, MODE_MANUAL, output)

    def automatic(self):
        """Regulate again, from the output in force."""
        regulator_set_mode(&self.state, MODE_AUTOMATIC, 0.0)

    def hold(self, bint held=True):
        """Freeze the integral and leave P and D out: for a plant at a limit that the regulator cannot see."""
        self.state.hold = held

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

    @property
    def saturated_ticks(self) -> int:
        """Ticks at an output limit since the last reset."""
        return self.state.saturated_ticks

    @property
    def slewed_ticks(self) -> int:
        """Ticks at the slew limit since the last reset."""
        return self.state.slewed_ticks

    @property
    def parameters(self) -> dict:
        """The parameters in force; `Regulator(**parameters)` makes an equal one."""
        return dict(self.given)

    def __repr__(self):
        return f"Regulator({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"
