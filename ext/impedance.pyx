"""Sample -> estimate.

One block of samples gives the chord resistance V/I and, while the probe tone is on, the complex impedance Z at the
tone: least squares of voltage and current on [1, t, cos, sin] jointly, so that drift does not leak into the tone.
With R0 = Rs + Rp taken from the chord and Z = a - jb, the parallel RC model Rs + Rp/(1 + j w Rp C) is solved in closed
form: x = w Rp C = (R0 - a)/b, Rp = (R0 - a) + b^2/(R0 - a), Rs = R0 - Rp, C = x/(w Rp). The electrode potential and the
skin's nonlinearity make R0 uncertain as a slope resistance. Below the corner the split then says little, and says so:
the uncertainties are the larger of the linear ones and of what a slope resistance lower by its deviation would give.
"""
import math

from libc.math cimport M_PI, fabs, isfinite, sqrt
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

import numpy as np

from ionto_rt.core.types cimport CONTACT_GOOD, CONTACT_LOST, CONTACT_UNKNOWN, Estimate

cdef double tone_cos[TONE_TABLE_SIZE]
cdef double tone_sin[TONE_TABLE_SIZE]


cdef void fill_tone_tables() noexcept nogil:
    """Cosine and sine by halving angles: square roots round the same on every processor, a library's cos does not."""
    cdef int step = TONE_TABLE_SIZE // 4
    cdef int at
    cdef double c = 0.0, s = 1.0
    tone_cos[0] = 1.0
    tone_sin[0] = 0.0
    tone_cos[step] = 0.0
    tone_sin[step] = 1.0
    while step > 1:
        step //= 2
        # Half of the angle before; the sine by division keeps its digits where 1 - c would lose them.
        c = sqrt(0.5 * (1.0 + c))
        s = s / (2.0 * c)
        at = step
        while at < TONE_TABLE_SIZE // 4:
            tone_cos[at] = tone_cos[at - step] * c - tone_sin[at - step] * s
            tone_sin[at] = tone_sin[at - step] * c + tone_cos[at - step] * s
            at += 2 * step
    for at in range(TONE_TABLE_SIZE // 4):
        tone_cos[at + TONE_TABLE_SIZE // 4] = -tone_sin[at]
        tone_sin[at + TONE_TABLE_SIZE // 4] = tone_cos[at]
        tone_cos[at + TONE_TABLE_SIZE // 2] = -tone_cos[at]
        tone_sin[at + TONE_TABLE_SIZE // 2] = -tone_sin[at]
        tone_cos[at + 3 * TONE_TABLE_SIZE // 4] = tone_sin[at]
        tone_sin[at + 3 * TONE_TABLE_SIZE // 4] = -tone_cos[at]


fill_tone_tables()


cdef inline uint32_t table_at(const ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil:
    return state.phase_ticks * (TONE_TABLE_SIZE // config.tone_period_ticks)


cdef double impedance_tone(const ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil:
    return config.tone_a * tone_sin[table_at(state, config)]


cdef void clear_block(ImpedanceState* state) noexcept nogil:
    state.block_fill = 0
    state.sum_v = 0.0
    state.sum_i = 0.0
    state.sum_vt = 0.0
    state.sum_it = 0.0
    state.sum_vc = 0.0
    state.sum_vs = 0.0
    state.sum_ic = 0.0
    state.sum_is = 0.0
    state.sum_tc = 0.0
    state.sum_ts = 0.0
    state.sum_vv = 0.0
    state.sum_ii = 0.0


cdef inline double square(double x) noexcept nogil:
    return x * x


cdef inline void widen(double* sigma, double value, double other) noexcept nogil:
    cdef double apart = value - other if value > other else other - value
    if apart > sigma[0]:
        sigma[0] = apart


cdef void close_block(ImpedanceState* state, const ImpedanceConfig* config, int32_t tone_on) noexcept nogil:
    """A bounded, closed-form fit: about a hundred operations once a block."""
    cdef Estimate* estimate = &state.estimate
    cdef double n = <double>config.block_ticks
    cdef double mean_v = state.sum_v / n, mean_i = state.sum_i / n
    cdef double half = n * 0.5
    cdef double sum_tt = (n * n - 1.0) / (12.0 * n)
    cdef double denominator, slope_v, slope_i, vc, vs, ic, is_, size, noise_v, noise_i, noise_z
    cdef double r0, r0_sigma, slope_sigma, a, b, rise, low, least, x, omega, parallel, series, capacitance, dx
    estimate.block += 1
    if mean_i == 0.0:
        return
    r0 = mean_v / mean_i
    r0_sigma = sqrt(
        square(config.electrode_emf_v) + square(config.voltage_noise_v) / n + square(r0 * config.current_noise_a) / n
    ) / (mean_i if mean_i > 0.0 else -mean_i)
    if not (isfinite(r0) and isfinite(r0_sigma)):
        return
    estimate.resistance_ohm = r0
    estimate.resistance_sigma_ohm = r0_sigma
    estimate.series_ohm = estimate.parallel_ohm = estimate.capacitance_f = 0.0
    estimate.series_sigma_ohm = estimate.parallel_sigma_ohm = estimate.capacitance_sigma_f = 0.0
    if not tone_on or config.tone_a <= 0.0:
        return

    denominator = sum_tt - (square(state.sum_tc) + square(state.sum_ts)) / half
    slope_v = (state.sum_vt - (state.sum_tc * state.sum_vc + state.sum_ts * state.sum_vs) / half) / denominator
    slope_i = (state.sum_it - (state.sum_tc * state.sum_ic + state.sum_ts * state.sum_is) / half) / denominator
    vc = (state.sum_vc - slope_v * state.sum_tc) / half
    vs = (state.sum_vs - slope_v * state.sum_ts) / half
    ic = (state.sum_ic - slope_i * state.sum_tc) / half
    is_ = (state.sum_is - slope_i * state.sum_ts) / half
    size = ic * ic + is_ * is_
    if size <= square(0.1 * config.tone_a):
        return
    noise_v = (
        state.sum_vv - n * square(mean_v) - slope_v * state.sum_vt - vc * state.sum_vc - vs * state.sum_vs
    ) / (n - 4.0)
    noise_i = (
        state.sum_ii - n * square(mean_i) - slope_i * state.sum_it - ic * state.sum_ic - is_ * state.sum_is
    ) / (n - 4.0)
    if not noise_v > square(config.voltage_noise_v):
        noise_v = square(config.voltage_noise_v)
    if not noise_i > square(config.current_noise_a):
        noise_i = square(config.current_noise_a)

    a = (vc * ic + vs * is_) / size
    b = -(vc * is_ - vs * ic) / size
    noise_z = (noise_v + (a * a + b * b) * noise_i) / (half * size)
    rise = r0 - a
    if not (rise > 0.0 and b > 0.0):
        return
    x = rise / b
    omega = 2.0 * M_PI / (config.tone_period_ticks * config.tick_s)
    parallel = rise + b * b / rise
    series = r0 - parallel
    capacitance = x / (omega * parallel)
    if not (series > 0.0 and isfinite(parallel) and isfinite(capacitance)):
        return
    dx = 2.0 * x / (omega * b * square(1.0 + x * x))
    slope_sigma = sqrt(square(r0_sigma) + square(config.nonlinearity * r0))
    low = rise - slope_sigma
    estimate.series_ohm = series
    estimate.parallel_ohm = parallel
    estimate.capacitance_f = capacitance
    estimate.parallel_sigma_ohm = sqrt(
        square((1.0 - 1.0 / (x * x)) * slope_sigma) + (square(1.0 - 1.0 / (x * x)) + square(2.0 / x)) * noise_z
    )
    estimate.series_sigma_ohm = sqrt(
        square(slope_sigma / (x * x)) + (square(1.0 - 1.0 / (x * x)) + square(2.0 / x)) * noise_z
    )
    estimate.capacitance_sigma_f = sqrt(
        square(dx / b * slope_sigma) + (square(dx / b) + square(capacitance / b + dx * x / b)) * noise_z
    )
    widen(&estimate.series_sigma_ohm, series, a - b * b / low if low > 0.0 and a * low > b * b else 0.0)
    widen(&estimate.parallel_sigma_ohm, parallel, low + b * b / low if low > 0.0 else 0.0)
    least = low * low / (omega * b * (low * low + b * b)) if low > 0.0 else 0.0
    widen(&estimate.capacitance_sigma_f, capacitance, least)


cdef void judge_contact(ImpedanceState* state, const ImpedanceConfig* config, double current, double voltage,
                        double setpoint) noexcept nogil:
    """current along the setpoint's direction; voltage and setpoint as magnitudes."""
    if setpoint < config.open_floor_a:
        state.open_run = 0
        state.good_run = 0
        if state.estimate.contact == CONTACT_GOOD:
            state.estimate.contact = CONTACT_UNKNOWN
        return
    if current < config.open_ratio * setpoint and (
            voltage >= config.open_voltage_v or (config.open_any_voltage and state.estimate.contact == CONTACT_GOOD)):
        state.good_run = 0
        state.open_run += 1
        if state.open_run >= config.open_ticks:
            state.estimate.contact = CONTACT_LOST
    elif current >= 0.5 * setpoint:
        state.open_run = 0
        state.good_run += 1
        if state.good_run >= config.good_ticks:
            state.estimate.contact = CONTACT_GOOD
    else:
        state.open_run = 0
        state.good_run = 0


cdef void impedance_step(ImpedanceState* state, const ImpedanceConfig* config, double current_a, double voltage_v,
                         double setpoint_a, int32_t tone_on) noexcept nogil:
    cdef uint32_t at = table_at(state, config)
    cdef double t, least
    judge_contact(
        state, config, current_a if setpoint_a >= 0.0 else -current_a, fabs(voltage_v), fabs(setpoint_a)
    )
    if state.estimate.contact == CONTACT_LOST:
        clear_block(state)
    elif state.block_fill or state.phase_ticks == 0:
        t = (state.block_fill - 0.5 * (config.block_ticks - 1.0)) / config.block_ticks
        state.sum_v += voltage_v
        state.sum_i += current_a
        state.sum_vt += voltage_v * t
        state.sum_it += current_a * t
        state.sum_vc += voltage_v * tone_cos[at]
        state.sum_vs += voltage_v * tone_sin[at]
        state.sum_ic += current_a * tone_cos[at]
        state.sum_is += current_a * tone_sin[at]
        state.sum_tc += t * tone_cos[at]
        state.sum_ts += t * tone_sin[at]
        state.sum_vv += voltage_v * voltage_v
        state.sum_ii += current_a * current_a
        state.block_fill += 1
        if state.block_fill == config.block_ticks:
            least = config.open_floor_a * config.block_ticks
            if state.sum_i > least or -state.sum_i > least:
                close_block(state, config, tone_on)
            clear_block(state)
    state.phase_ticks += 1
    if state.phase_ticks == config.tone_period_ticks:
        state.phase_ticks = 0


cdef void impedance_break(ImpedanceState* state, const ImpedanceConfig* config, uint32_t ticks) noexcept nogil:
    clear_block(state)
    state.phase_ticks = (state.phase_ticks + ticks) % config.tone_period_ticks


def tone_table():
    """Cosine and sine of the probe tone's table, two float64 arrays of shape (1024,)."""
    return (
        np.array([tone_cos[k] for k in range(TONE_TABLE_SIZE)]),
        np.array([tone_sin[k] for k in range(TONE_TABLE_SIZE)]),
    )


cdef class ImpedanceEstimator:
    """The impedance estimator of the tick, for one channel.

    `tick_s` is the sample period in s; `tone_period_ticks` a power of two from 4 to 1024; `block_ticks` a multiple of
    it, best a whole number of mains periods too; `tone_a` the tone's peak in A (0: no tone, resistance only);
    `electrode_emf_v` one standard deviation of the unknown electrode potential (V); `nonlinearity` the share by which
    the slope resistance may differ from the chord. ValueError if a parameter is out of range.
    """
    cdef ImpedanceConfig config
    cdef ImpedanceState state

    def __init__(self, *, double tick_s, double tone_a=0.0, int tone_period_ticks=8, int block_ticks=200,
                 double electrode_emf_v=0.5, double nonlinearity=0.25, double voltage_noise_v=0.0,
                 double current_noise_a=0.0, double open_ratio=0.1, double open_floor_a=1e-6,
                 double open_voltage_v=0.0, bint open_any_voltage=False, int open_ticks=3, int good_ticks=3):
        for name, value in (("tick_s", tick_s), ("open_floor_a", open_floor_a)):
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} = {value}: must be above 0")
        for name, value in (("tone_a", tone_a), ("electrode_emf_v", electrode_emf_v), ("nonlinearity", nonlinearity),
                            ("voltage_noise_v", voltage_noise_v), ("current_noise_a", current_noise_a),
                            ("open_ratio", open_ratio), ("open_voltage_v", open_voltage_v)):
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} = {value}: must not be negative")
        if tone_period_ticks not in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
            raise ValueError(f"tone_period_ticks = {tone_period_ticks}: must be a power of two from 4 to 1024")
        if block_ticks < 2 * tone_period_ticks or block_ticks % tone_period_ticks:
            raise ValueError(f"block_ticks = {block_ticks}: must be a multiple of tone_period_ticks, at least twice it")
        if open_ticks < 1 or good_ticks < 1:
            raise ValueError("open_ticks and good_ticks must be at least 1")
        self.config = {
            "tick_s": tick_s, "tone_a": tone_a, "electrode_emf_v": electrode_emf_v, "nonlinearity": nonlinearity,
            "voltage_noise_v": voltage_noise_v, "current_noise_a": current_noise_a, "open_ratio": open_ratio,
            "open_floor_a": open_floor_a, "open_voltage_v": open_voltage_v, "open_any_voltage": open_any_voltage,
            "open_ticks": open_ticks,
            "good_ticks": good_ticks, "tone_period_ticks": tone_period_ticks, "block_ticks": block_ticks,
        }
        memset(&self.state, 0, sizeof(self.state))

    def tone(self) -> float:
        """The tone (A) to add to the setpoint of the next step."""
        return impedance_tone(&self.state, &self.config)

    def step(self, double current_a, double voltage_v, double setpoint_a=math.nan, bint tone_on=True) -> dict:
        """One sample (A, V) and the setpoint (A) in force; the estimate, as a dict of struct Estimate.

        A non-finite current or voltage changes no state. Without a setpoint, contact is not judged.
        """
        if isfinite(current_a) and isfinite(voltage_v):
            judged = setpoint_a if isfinite(setpoint_a) else 0.0
            impedance_step(&self.state, &self.config, current_a, voltage_v, judged, tone_on)
        return self.state.estimate

    def run(self, current_a, voltage_v, setpoint_a=None, bint tone_on=True) -> dict:
        """`step` for arrays of one shape (n,); the last estimate."""
        cdef double[::1] currents = np.ascontiguousarray(current_a, dtype=np.float64)
        cdef double[::1] voltages = np.ascontiguousarray(voltage_v, dtype=np.float64)
        cdef Py_ssize_t n = currents.shape[0], k
        setpoint_a = np.zeros(n) if setpoint_a is None else setpoint_a
        cdef double[::1] setpoints = np.ascontiguousarray(setpoint_a, dtype=np.float64)
        if voltages.shape[0] != n or setpoints.shape[0] != n:
            raise ValueError("current_a, voltage_v and setpoint_a must have one shape")
        with nogil:
            for k in range(n):
                if isfinite(currents[k]) and isfinite(voltages[k]):
                    impedance_step(&self.state, &self.config, currents[k], voltages[k], setpoints[k], tone_on)
        return self.state.estimate

    @property
    def estimate(self) -> dict:
        """The estimate in force, as a dict of struct Estimate."""
        return self.state.estimate

    @property
    def state_values(self) -> dict:
        """Every field of the state, for comparison in tests and records."""
        return self.state
