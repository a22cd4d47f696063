"""Sample -> estimate of Rs, Rp and C from a pseudo-random binary current.

A maximum-length sequence of 127 ticks, its sign turned on every tick, repeats with the opposite sign ("inverse repeat":
Briggs et al., Proc. IEE 114 (1967) 267): no net charge, and the same power at each odd harmonic of 254 ticks. The
sign-corrected periods of a window are averaged, the outer two by half: constant and slope drop out. What is left of
voltage and current is fitted at all harmonics at once, Z I + hum = V, by Gauss and Newton on the logarithms of Rs, Rp
and C, with the estimator's own model of what the sampling shows. docs/estimator.md derives it. The fit of one window
goes on, a part in each tick, while the next one fills.
"""
import math

from libc.math cimport fabs, isfinite, sqrt
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

import numpy as np

from ionto_rt.core.elementary cimport cholesky_solve, exact_exp, exact_log, exact_turn, next_of_127
from ionto_rt.core.impedance cimport impedance_model
from ionto_rt.core.types cimport Estimate

cdef enum:
    PAIR_TICKS = 254
    SETTLE_TICKS = 254
    IDLE = 0
    SPECTRUM = 1
    START = 2
    REFINE = 3
    START_PASSES = 2
    HARMONICS_PER_TICK = 3      # divides HARMONICS
    STEPS = 12                  # of Gauss and Newton at the most
    PARTS = 3                   # Rs, Rp, C; the rest is hum
    FREEDOM = 119               # 63 complex voltages less the unknowns

cdef double DELTA = 1e-4
cdef double SEEN = 0.25         # variance of a logarithm above which a parameter is not seen

cdef double sequence[254]
cdef double cosine[254]         # of one turn in 254 ticks
cdef double sine[254]


cdef void fill_tables() noexcept nogil:
    cdef uint32_t register = 127
    cdef int32_t k
    for k in range(PAIR_TICKS):
        sequence[k] = 1.0 if (register ^ k) & 1 else -1.0
        register = next_of_127(register)
        exact_turn(k / 254.0, &cosine[k], &sine[k])


fill_tables()


cdef inline double square(double x) noexcept nogil:
    return x * x


cdef inline double fraction(double turns) noexcept nogil:
    return turns - <int32_t>turns


cdef inline uint32_t window_of(const PrbsConfig* config) noexcept nogil:
    """Ticks: one period more than the pairs, for the two halves at the ends."""
    return (2 * config.pairs + 1) * SEQUENCE_TICKS


cdef inline double voltage_variance(const PrbsConfig* config) noexcept nogil:
    # Where a model reading has no noise at all, the fit still needs weights.
    return square(config.load.voltage_noise_v) if config.load.voltage_noise_v > 1e-12 else 1e-24


cdef double prbs_excitation(const PrbsState* state, const PrbsConfig* config) noexcept nogil:
    return config.amplitude_a * sequence[state.tick]


cdef void spectrum(PrbsState* state, const PrbsConfig* config, uint32_t at) noexcept nogil:
    """One harmonic of the mean voltage and current, and of hum as it would show there."""
    cdef Harmonic* one = &state.harmonics[at]
    cdef double hum[4]
    cdef double turn[4]
    cdef double c, s, kept
    cdef uint32_t k = 0
    cdef int32_t n, j
    memset(one, 0, sizeof(one[0]))
    exact_turn(fraction(50.0 * config.load.tick_s), &turn[0], &turn[1])
    exact_turn(fraction(60.0 * config.load.tick_s), &turn[2], &turn[3])
    hum[0] = hum[2] = 1.0
    hum[1] = hum[3] = 0.0
    for n in range(SEQUENCE_TICKS):
        c = cosine[k]
        s = -sine[k]
        one.voltage_re += c * state.mean_voltage[n]
        one.voltage_im += s * state.mean_voltage[n]
        one.current_re += c * state.mean_current[n]
        one.current_im += s * state.mean_current[n]
        for j in range(4):
            one.hum_re[j] += c * hum[j]
            one.hum_im[j] += s * hum[j]
        for j in range(0, 4, 2):
            kept = hum[j]
            hum[j] = kept * turn[j] - hum[j + 1] * turn[j + 1]
            hum[j + 1] = kept * turn[j + 1] + hum[j + 1] * turn[j]
        k = (k + 2 * at + 1) % PAIR_TICKS


cdef bint start_of_fit(PrbsState* state, const PrbsConfig* config) noexcept nogil:
    """Z (1 + T s) = R0 + T Rs s, weighted linear least squares as of the two tones; 0: no load.

    s = 1 - w for a held current, j omega per tick for a smooth one.
    """
    cdef Harmonic* one
    cdef double row[3]
    cdef double power, z_re, z_im, s_re, s_im, weight, share = 1.0, tau, series, parallel, high = 0.0
    cdef double variance_v = voltage_variance(config), variance_a = square(config.load.current_noise_a)
    cdef int32_t k, part, i, j
    memset(state.normal, 0, sizeof(state.normal))
    memset(state.right, 0, sizeof(state.right))
    for k in range(HARMONICS):
        one = &state.harmonics[k]
        power = square(one.current_re) + square(one.current_im)
        if not power > 0.0:
            return False
        z_re = (one.voltage_re * one.current_re + one.voltage_im * one.current_im) / power
        z_im = (one.voltage_im * one.current_re - one.voltage_re * one.current_im) / power
        high = z_re
        if config.load.smooth:
            s_re = 0.0
            s_im = 6.283185307179586 * (2 * k + 1) / 254.0
        else:
            s_re = 1.0 - cosine[2 * k + 1]
            s_im = sine[2 * k + 1]
        weight = power / (
            (variance_v + variance_a * (square(z_re) + square(z_im)))
            * (square(1.0 + state.time_ticks * s_re) + square(state.time_ticks * s_im)))
        for part in range(2):
            row[0] = 0.0 if part else 1.0
            row[1] = s_im if part else s_re
            row[2] = -(s_re * z_im + s_im * z_re) if part else s_im * z_im - s_re * z_re
            for i in range(3):
                for j in range(i + 1):
                    state.normal[7 * i + j] += weight * row[i] * row[j]
                state.right[i] += weight * row[i] * (z_im if part else z_re)
    if not cholesky_solve(state.normal, state.right, 3, PRBS_UNKNOWNS) or not state.right[2] > 0.0:
        return False
    state.time_ticks = state.right[2]
    series = state.right[1] / state.time_ticks
    if not series > 0.02 * high:
        series = 0.02 * (high if high > 0.0 else state.right[0])
    parallel = state.right[0] - series
    if not (series > 0.0 and parallel > 0.0):
        return False
    if config.load.smooth:
        tau = state.time_ticks * config.load.tick_s
    else:
        if config.load.ballast_ohm > 0.0:
            share = (series + config.load.ballast_ohm) / (series + config.load.ballast_ohm + parallel)
        tau = config.load.tick_s / (exact_log(1.0 + 1.0 / (state.time_ticks * share)) * share)
    state.at[0] = series
    state.at[1] = parallel
    state.at[2] = tau / parallel
    return isfinite(state.at[2]) and state.at[2] > 0.0


cdef void add_harmonic(PrbsState* state, const PrbsConfig* config, uint32_t at) noexcept nogil:
    """Its share of the normal equations at state.at. Hum is linear: its unknowns are whole, those of the load steps."""
    cdef const Harmonic* one = &state.harmonics[at]
    cdef double turns = (2 * at + 1) / 254.0
    cdef double row_re[7]
    cdef double row_im[7]
    cdef double re, im, above_re, above_im, below_re, below_im, keep, weight, left_re, left_im
    cdef int32_t i, j
    impedance_model(&config.load, state.at[0], state.at[1], state.at[2], turns, &re, &im)
    for j in range(PARTS):
        keep = state.at[j]
        state.at[j] = keep * (1.0 + DELTA)
        impedance_model(&config.load, state.at[0], state.at[1], state.at[2], turns, &above_re, &above_im)
        state.at[j] = keep * (1.0 - DELTA)
        impedance_model(&config.load, state.at[0], state.at[1], state.at[2], turns, &below_re, &below_im)
        state.at[j] = keep
        above_re = (above_re - below_re) / (2.0 * DELTA)
        above_im = (above_im - below_im) / (2.0 * DELTA)
        row_re[j] = above_re * one.current_re - above_im * one.current_im
        row_im[j] = above_re * one.current_im + above_im * one.current_re
    for j in range(4):
        row_re[PARTS + j] = one.hum_re[j]
        row_im[PARTS + j] = one.hum_im[j]
    left_re = one.voltage_re - (re * one.current_re - im * one.current_im)
    left_im = one.voltage_im - (re * one.current_im + im * one.current_re)
    # Variance of a sum over one period of samples that are the mean of the window's periods.
    weight = square(2.0 * config.pairs) / (
        0.5 * SEQUENCE_TICKS * (2.0 * config.pairs - 0.5)
        * (voltage_variance(config) + (re * re + im * im) * square(config.load.current_noise_a)))
    for i in range(PRBS_UNKNOWNS):
        for j in range(i + 1):
            state.normal[7 * i + j] += weight * (row_re[i] * row_re[j] + row_im[i] * row_im[j])
        state.right[i] += weight * (row_re[i] * left_re + row_im[i] * left_im)
    state.cost += weight * (left_re * left_re + left_im * left_im)


cdef void forget_load(Estimate* estimate) noexcept nogil:
    memset(&estimate.latest, 0, sizeof(estimate.latest))
    estimate.series_ohm = estimate.parallel_ohm = estimate.capacitance_f = 0.0
    estimate.series_sigma_ohm = estimate.parallel_sigma_ohm = estimate.capacitance_sigma_f = 0.0
    estimate.emf_v = estimate.emf_sigma_v = estimate.misfit = 0.0
    estimate.window_blocks = 0


cdef void publish(PrbsState* state, const PrbsConfig* config, const double* covariance, double scale) noexcept nogil:
    """covariance: of the logarithms, 00 01 02 11 12 22; scale: of every deviation, by what the fit left over."""
    cdef Estimate* estimate = &state.estimate
    cdef double series = state.at[0], parallel = state.at[1]
    cdef double variance = (
        square(series) * covariance[0] + square(parallel) * covariance[3] + 2.0 * series * parallel * covariance[1])
    cdef int32_t k
    estimate.series_ohm = estimate.latest.series_ohm = series
    estimate.parallel_ohm = estimate.latest.parallel_ohm = parallel
    estimate.capacitance_f = estimate.latest.capacitance_f = state.at[2]
    estimate.misfit = estimate.latest.misfit = scale
    scale = scale if scale > 1.0 else 1.0
    for k in range(6):
        estimate.latest.covariance[k] = square(scale) * covariance[k]
    estimate.series_sigma_ohm = scale * series * sqrt(covariance[0])
    estimate.parallel_sigma_ohm = scale * parallel * sqrt(covariance[3])
    estimate.capacitance_sigma_f = scale * state.at[2] * sqrt(covariance[5])
    estimate.emf_v = state.mean_v - state.mean_a * (series + parallel)
    estimate.emf_sigma_v = scale * sqrt(square(state.mean_a) * variance + voltage_variance(config) / window_of(config))
    estimate.window_blocks = 1


cdef bint end_step(PrbsState* state, const PrbsConfig* config) noexcept nogil:
    """One Gauss-Newton step; ends the fit when it no longer moves. 0: no minimum within the steps, or not seen there.
    """
    cdef double matrix[49]
    cdef double right[7]
    cdef double covariance[6]
    cdef double left = state.cost, longest = 0.0, step
    cdef int32_t i, j, m = 0
    state.fit_phase = IDLE
    for i in range(PRBS_UNKNOWNS):
        # Hum that no harmonic shows leaves nothing to fit.
        state.normal[8 * i] = state.normal[8 * i] * (1.0 + 1e-12) + 1e-300
        right[i] = state.right[i]
    for i in range(49):
        matrix[i] = state.normal[i]
    if not cholesky_solve(matrix, right, PRBS_UNKNOWNS, PRBS_UNKNOWNS):
        return False
    for i in range(PRBS_UNKNOWNS):
        left -= right[i] * state.right[i]
    for i in range(PARTS):
        step = right[i]
        if not isfinite(step):
            return False
        step = 1.0 if step > 1.0 else -1.0 if step < -1.0 else step
        state.at[i] *= exact_exp(step)
        longest = fabs(step) if fabs(step) > longest else longest
    state.fit_step += 1
    if longest > 1e-7 and state.fit_step < STEPS:
        state.fit_phase = REFINE
        state.fit_at = 0
        return True
    if longest > 1e-2:
        return False
    for i in range(PARTS):
        for j in range(49):
            matrix[j] = state.normal[j]
        memset(right, 0, sizeof(right))
        right[i] = 1.0
        if not cholesky_solve(matrix, right, PRBS_UNKNOWNS, PRBS_UNKNOWNS) or not right[i] < SEEN:
            return False
        if not (isfinite(state.at[i]) and state.at[i] > 0.0):
            return False
        for j in range(i, PARTS):
            covariance[m] = right[j]
            m += 1
    publish(state, config, covariance, sqrt(left / FREEDOM) if left > 0.0 else 0.0)
    return True


cdef void fit_a_part(PrbsState* state, const PrbsConfig* config) noexcept nogil:
    cdef int32_t _k
    if state.fit_phase == SPECTRUM:
        spectrum(state, config, state.fit_at)
        state.fit_at += 1
        if state.fit_at == HARMONICS:
            state.fit_phase = START
            state.fit_at = 0
            state.time_ticks = 0.0
    elif state.fit_phase == START:
        state.fit_phase = START if start_of_fit(state, config) else IDLE
        state.fit_at += 1
        if state.fit_phase == START and state.fit_at == START_PASSES:
            state.fit_phase = REFINE
            state.fit_at = state.fit_step = 0
        if state.fit_phase == IDLE:
            forget_load(&state.estimate)
    elif state.fit_phase == REFINE:
        if state.fit_at == 0:
            memset(state.normal, 0, sizeof(state.normal))
            memset(state.right, 0, sizeof(state.right))
            state.cost = 0.0
        for _k in range(HARMONICS_PER_TICK):
            add_harmonic(state, config, state.fit_at)
            state.fit_at += 1
        if state.fit_at == HARMONICS:
            if not end_step(state, config):
                forget_load(&state.estimate)


cdef void close_window(PrbsState* state, const PrbsConfig* config) noexcept nogil:
    cdef double ticks = window_of(config), r0, sigma
    cdef int32_t k
    for k in range(SEQUENCE_TICKS):
        state.mean_voltage[k] = state.voltage[k] / (2.0 * config.pairs)
        state.mean_current[k] = state.current[k] / (2.0 * config.pairs)
        state.voltage[k] = state.current[k] = 0.0
    state.mean_v = state.first_v + state.total_v / ticks
    state.mean_a = state.first_a + state.total_a / ticks
    state.filled = 0
    state.fit_phase = SPECTRUM
    state.fit_at = 0
    state.estimate.block += 1
    state.estimate.mean_a = state.mean_a
    if state.mean_a == 0.0:
        return
    r0 = state.mean_v / state.mean_a
    sigma = sqrt(
        square(config.load.electrode_emf_v)
        + (square(config.load.voltage_noise_v) + square(r0 * config.load.current_noise_a)) / ticks
    ) / fabs(state.mean_a)
    if isfinite(r0) and isfinite(sigma):
        state.estimate.resistance_ohm = r0
        state.estimate.resistance_sigma_ohm = sigma


cdef void prbs_step(PrbsState* state, const PrbsConfig* config, double current_a, double voltage_v) noexcept nogil:
    cdef double weight, v, a
    cdef uint32_t period, at = state.tick % SEQUENCE_TICKS
    if not state.begun:
        state.begun = 1
        state.settle_left = SETTLE_TICKS
    if state.fit_phase != IDLE:
        fit_a_part(state, config)
    if state.settle_left:
        state.settle_left -= 1
    else:
        if state.filled == 0:
            state.first_v = voltage_v
            state.first_a = current_a
            state.total_v = state.total_a = 0.0
        period = state.filled // SEQUENCE_TICKS
        weight = 0.5 if period == 0 or period == 2 * config.pairs else 1.0
        if state.tick >= SEQUENCE_TICKS:
            weight = -weight
        v = voltage_v - state.first_v
        a = current_a - state.first_a
        state.voltage[at] += weight * v
        state.current[at] += weight * a
        state.total_v += v
        state.total_a += a
        state.filled += 1
        if state.filled == window_of(config):
            close_window(state, config)
    state.tick = (state.tick + 1) % PAIR_TICKS


cdef void prbs_break(PrbsState* state, uint32_t ticks) noexcept nogil:
    state.begun = 1
    state.tick = (state.tick + ticks % PAIR_TICKS) % PAIR_TICKS
    state.filled = 0
    memset(state.voltage, 0, sizeof(state.voltage))
    memset(state.current, 0, sizeof(state.current))
    # To the start of a period.
    state.settle_left = SETTLE_TICKS + (PAIR_TICKS - state.tick) % SEQUENCE_TICKS


cdef class PrbsEstimator:
    """Rs + (Rp || C) from a pseudo-random binary current instead of two tones; not a part of a session's tick.

        estimator = PrbsEstimator(tick_s=2e-4, amplitude_a=19e-6)
        for each sample: drive level_a + estimator.excitation(), measure, estimator.step(current_a, voltage_v)
        estimator.estimate["series_ohm"], ["series_sigma_ohm"], ...

    An estimate is there 317 ticks after a window has closed, at the latest, and stands until the next one is.

    Args:
        tick_s: sample period, s.
        amplitude_a: of the sequence, A: the current lies that much above or below the level.
        pairs: of periods, 254 ticks each, that a window averages; at least 2; 0: as many as last 1 s.
        current_between_samples, output_time_s, ballast_ohm, skew_s, electrode_emf_v: as of ImpedanceEstimator.
        voltage_noise_v, current_noise_a: noise floor of one sample, one standard deviation. Their ratio weighs the
            harmonics; what the fit leaves over widens both.

    Raises:
        ValueError: a parameter out of range.
    """
    cdef PrbsConfig config
    cdef PrbsState state

    def __init__(self, *, double tick_s, double amplitude_a, int pairs=0, str current_between_samples="held",
                 double output_time_s=0.0, double ballast_ohm=0.0, double skew_s=0.0, double electrode_emf_v=0.5,
                 double voltage_noise_v=0.0, double current_noise_a=0.0):
        for name, value in (("tick_s", tick_s), ("amplitude_a", amplitude_a)):
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} = {value}: must be above 0")
        for name, value in (("electrode_emf_v", electrode_emf_v), ("voltage_noise_v", voltage_noise_v),
                            ("current_noise_a", current_noise_a), ("output_time_s", output_time_s),
                            ("ballast_ohm", ballast_ohm)):
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} = {value}: must not be negative")
        if not abs(skew_s) < tick_s:
            raise ValueError(f"skew_s = {skew_s}: must be less than a sample period of {tick_s} s")
        if current_between_samples not in ("held", "smooth"):
            raise ValueError(f"current_between_samples = {current_between_samples!r}: must be 'held' or 'smooth'")
        if pairs == 0:
            pairs = max(2, round(1.0 / (PAIR_TICKS * tick_s)))
        if not 2 <= pairs <= 100_000:
            raise ValueError(f"pairs = {pairs}: must be 0 (1 s) or 2 to 100000")
        memset(&self.config, 0, sizeof(self.config))
        memset(&self.state, 0, sizeof(self.state))
        self.config.amplitude_a = amplitude_a
        self.config.pairs = pairs
        self.config.load.tick_s = tick_s
        self.config.load.output_time_s = output_time_s
        self.config.load.ballast_ohm = ballast_ohm
        self.config.load.skew_s = skew_s
        self.config.load.electrode_emf_v = electrode_emf_v
        self.config.load.voltage_noise_v = voltage_noise_v
        self.config.load.current_noise_a = current_noise_a
        self.config.load.smooth = current_between_samples == "smooth"

    def excitation(self) -> float:
        """What to add (A) to the setpoint of the next step."""
        return prbs_excitation(&self.state, &self.config)

    def skip(self, int ticks) -> None:
        """So many samples were lost: the open window begins anew, the sequence goes on in the device's time."""
        if ticks < 0:
            raise ValueError(f"ticks = {ticks}: must not be negative")
        prbs_break(&self.state, ticks)

    def step(self, double current_a, double voltage_v) -> dict:
        """One sample (A, V); the estimate, as a dict of struct Estimate. A non-finite one changes no state."""
        if isfinite(current_a) and isfinite(voltage_v):
            prbs_step(&self.state, &self.config, current_a, voltage_v)
        return self.state.estimate

    def run(self, current_a, voltage_v) -> dict:
        """`step` for arrays of one shape (n,); the last estimate."""
        cdef double[::1] currents = np.ascontiguousarray(current_a, dtype=np.float64)
        cdef double[::1] voltages = np.ascontiguousarray(voltage_v, dtype=np.float64)
        cdef Py_ssize_t n = currents.shape[0], k
        if voltages.shape[0] != n:
            raise ValueError("current_a and voltage_v must have one shape")
        with nogil:
            for k in range(n):
                if isfinite(currents[k]) and isfinite(voltages[k]):
                    prbs_step(&self.state, &self.config, currents[k], voltages[k])
        return self.state.estimate

    @property
    def window_ticks(self) -> int:
        """Ticks of a window; the first one begins after 254 ticks of settling."""
        return window_of(&self.config)

    @property
    def estimate(self) -> dict:
        """The estimate in force, as a dict of struct Estimate; tones and contact stay 0."""
        return self.state.estimate

    @property
    def state_values(self) -> dict:
        """Every field of the state, for comparison in tests and records."""
        return self.state
