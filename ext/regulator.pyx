"""Two-degree-of-freedom PID with feed-forward: u = ff r + kp (b r' - y) + I + D.

r' is the setpoint `delay_ticks` ago (0: now): what the feed-forward has asked for cannot have arrived before, and an
integral that runs on it in the meantime would overshoot by itself.

D is the filtered derivative of (c r' - y), backward Euler of kd s / (1 + Tf s). With c = 0 it acts on the measured
value alone, so that a step of the setpoint gives no kick. Form: Astrom and Hagglund, "Advanced PID Control", ISA 2006,
chapter 3.
"""
import math

from libc.math cimport INFINITY, isfinite, signbit
from libc.stdint cimport int32_t
from libc.string cimport memset

import numpy as np

from ionto_rt.core.types cimport RegulatorTerms

cdef extern from *:
    """
    /* A branch, which the processor guesses: a select would make the next tick wait for what decides it. */
    #define as_branch(truth) __builtin_expect_with_probability(truth, 0, 0.99)
    """
    bint as_branch(bint truth) noexcept nogil


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


cdef struct Plain:              # a regulator as `is_plain` finds it
    RegulatorConfig config

cdef struct General:
    RegulatorConfig config

ctypedef fused Form:            # one source, compiled for each
    Plain
    General


cdef bint is_plain(const RegulatorState* state, const RegulatorConfig* config) noexcept nogil:
    """A PI with nothing but limits, started: most of a step is then constant."""
    return (
        state.started and config.kd == 0.0 and state.derivative == 0.0 and not signbit(state.derivative)
        and config.delay_ticks == 0 and config.slew_per_tick <= 0.0 and not config.scheduled
        and config.integration == INTEGRATION_BACKWARD and config.anti_windup == ANTI_WINDUP_CONDITIONAL
        and state.mode != MODE_MANUAL and not state.hold
    )


cdef int steps(Form* form, RegulatorState* state, const double* setpoints, const double* measured, double* outputs,
               size_t n, RegulatorTerms* terms) noexcept nogil:
    """n ticks, one after the other; returns the last one's fault. Configuration, state and terms stay in registers in
    between: behind pointers each output written could have changed them.
    """
    cdef RegulatorConfig config = form.config
    cdef RegulatorTerms made = terms[0]
    cdef double gain = state.gain if config.scheduled else 1.0
    cdef double p_gain = config.kp * gain, d_gain = config.kd * gain
    cdef double i_gain = config.ki * gain * config.tick_s, tracking = 1.0
    cdef double held_integral = state.integral, held_derivative = state.derivative, held_error = state.previous_error
    cdef double held_input = state.previous_derivative_input, held_measured = state.previous_measured
    cdef double held_output = state.output, manual_output = state.manual_output
    cdef double setpoint_a, measured_a, error, step_i, integral, derivative_input, derivative_change, fed, proportional
    cdef double derivative, wanted, output, low, high, reference, used
    cdef int32_t at, held_at = state.setpoint_at, started = state.started, hold = state.hold
    cdef bint manual = state.mode == MODE_MANUAL
    cdef size_t k
    if Form is Plain:
        started = 1
        hold = manual = 0
        d_gain = held_derivative = 0.0
        config.delay_ticks = config.scheduled = 0
        config.slew_per_tick = 0.0
        config.integration = INTEGRATION_BACKWARD
        config.anti_windup = ANTI_WINDUP_CONDITIONAL
    if config.integration == INTEGRATION_TRAPEZOIDAL:
        i_gain *= 0.5
    if config.tracking_s > config.tick_s:
        tracking = config.tick_s / config.tracking_s
    for k in range(n):
        setpoint_a = setpoints[k]
        measured_a = measured[k]
        # A plain step's derivative is no number where an input is none, and then neither is its output.
        if Form is General and not (isfinite(setpoint_a) and isfinite(measured_a)):
            outputs[k] = held_output
            made.fault = 1
            continue

        at = (held_at + 1) & 7
        reference = setpoint_a if config.delay_ticks == 0 else state.setpoints[(at - config.delay_ticks) & 7]
        error = reference - measured_a
        fed = config.feed_forward * setpoint_a
        proportional = p_gain * (config.setpoint_weight * reference - measured_a)

        derivative_input = config.derivative_weight * reference - measured_a
        derivative_change = derivative_input - held_input
        if not started:
            derivative = 0.0
        elif Form is Plain:
            # What the division below gives for no gain: 0, or no number if the change is none.
            derivative = 0.0 * derivative_change + 0.0
        else:
            derivative = (
                config.derivative_filter_s * held_derivative + d_gain * derivative_change
            ) / (config.derivative_filter_s + config.tick_s)

        if config.integration == INTEGRATION_TRAPEZOIDAL:
            step_i = i_gain * (error + held_error)
        else:
            step_i = i_gain * error
        if hold:
            step_i = 0.0
            proportional = 0.0
            derivative = 0.0
        integral = held_integral
        if config.integration != INTEGRATION_FORWARD:
            integral += step_i

        wanted = proportional + integral + derivative + fed
        used = integral
        low = config.output_min
        high = config.output_max
        if config.slew_per_tick > 0.0:
            if held_output - config.slew_per_tick > low:
                low = held_output - config.slew_per_tick
            if held_output + config.slew_per_tick < high:
                high = held_output + config.slew_per_tick
            if config.free_fall and held_output >= 0.0 and low > -config.slew_per_tick:
                low = -config.slew_per_tick
            if config.free_fall and held_output <= 0.0 and high < config.slew_per_tick:
                high = config.slew_per_tick
            if low < config.output_min:
                low = config.output_min
            if high > config.output_max:
                high = config.output_max
            if low > config.output_max:
                low = config.output_max
            if high < config.output_min:
                high = config.output_min
        output = manual_output if manual else wanted
        if output > high:
            output = high
        elif output < low:
            output = low

        if manual:
            # The integral follows the hand, so that automatic takes over without a jump.
            integral = output - proportional - derivative - fed
        else:
            if config.anti_windup == ANTI_WINDUP_CONDITIONAL and as_branch((wanted - output) * step_i > 0.0):
                # Only what pushes further into the limit is left out.
                if config.integration != INTEGRATION_FORWARD:
                    integral = held_integral
            elif config.integration == INTEGRATION_FORWARD:
                integral += step_i
            if config.anti_windup == ANTI_WINDUP_BACK_CALCULATION and config.ki != 0.0 and not hold:
                integral += (output - wanted) * tracking

        if not (isfinite(integral) and (Form is Plain or isfinite(derivative)) and isfinite(output)):
            outputs[k] = held_output
            made.fault = 1
            continue
        state.setpoints[at] = setpoint_a
        held_at = at
        held_integral = integral
        held_derivative = derivative
        held_input = derivative_input
        held_measured = measured_a
        held_error = error
        held_output = output
        outputs[k] = output
        started = 1

        made.saturated = 0
        if output != (manual_output if manual else wanted):
            if output == config.output_max:
                made.saturated = 1
                state.saturated_ticks += 1
            elif output == config.output_min:
                made.saturated = -1
                state.saturated_ticks += 1
            else:
                state.slewed_ticks += 1

        made.fault = 0
        made.proportional = proportional
        made.integral = used
        made.derivative = derivative
        made.feed_forward = fed
        made.unlimited = wanted
    state.setpoint_at = held_at
    state.integral = held_integral
    state.derivative = held_derivative
    state.previous_derivative_input = held_input
    state.previous_measured = held_measured
    state.previous_error = held_error
    state.output = held_output
    state.started = started
    made.output = held_output
    terms[0] = made
    return made.fault


cdef int run(RegulatorState* state, const RegulatorConfig* config, const double* setpoints, const double* measured,
             double* outputs, size_t n, RegulatorTerms* terms) noexcept nogil:
    cdef size_t first = 0 if state.started else 1
    if first:
        steps(<General*>config, state, setpoints, measured, outputs, first, terms)
    if n == first:
        return terms.fault
    if is_plain(state, config):
        return steps(<Plain*>config, state, setpoints + first, measured + first, outputs + first, n - first, terms)
    return steps(<General*>config, state, setpoints + first, measured + first, outputs + first, n - first, terms)


cdef int regulator_step(RegulatorState* state, const RegulatorConfig* config, double setpoint_a, double measured_a,
                        RegulatorTerms* terms) noexcept nogil:
    cdef double output
    return run(state, config, &setpoint_a, &measured_a, &output, 1, terms)


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
        cdef Py_ssize_t n = setpoints.shape[0]
        if measured.shape[0] != n:
            raise ValueError(f"setpoint_a has {n} values and measured_a {measured.shape[0]}: must be equal")
        result = np.empty(n, dtype=np.float64)
        cdef double[::1] outputs = result
        if n:
            with nogil:
                run(&self.state, &self.config, &setpoints[0], &measured[0], &outputs[0], <size_t>n, &self.last)
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
