"""Contact probe and identification of the plant that the regulator will meet.

The output follows a maximum-length sequence of 127 ticks around the level at which no current flows, each period with
the opposite sign of the one before ("inverse repeat": Briggs et al., Proc. IEE 114 (1967) 267). So the probe carries no
net charge, and electrode potential, offset, drift and even nonlinearity drop out of the mean of the sign-corrected
periods. The mean is that of the output which the device says was in force, too: a command that came late is another
excitation, and no error. To that mean response the model

    x[n] = a x[n-1] + b0 u[n-d] - b1 u[n-d-1],  x[-1] free

is fitted by its output error, hence without the bias that noise in y(n-1) gives an equation error fit. For a given pole
a the rest is linear least squares, so the fit is a search along one line (time constant, logarithmic) for each delay
tried: no iteration can diverge, and a tick does a fixed part of it.

Voltage source: a = exp(-T/tau), tau = (R || Rp) C, R = Rs + ballast; b0 = (1 - (1 - a) Rp/(R + Rp))/R; b1 = a/R.
Current source: the voltage response to the held current, x[n] = a x[n-1] + (Rs + (1 - a) Rp) u - a Rs u_before.
"""
from libc.math cimport fabs, sqrt
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

from ionto_rt.core.elementary cimport cholesky_solve, exact_exp, exact_log, exact_turn, next_of_127, quantised
from ionto_rt.core.types cimport (
    PROBE_GOOD, PROBE_OPEN, PROBE_OUTSIDE, PROBE_RUNNING, PROBE_SHORT, PROBE_UNCLEAR, PlantModel,
)

cdef enum:
    EVALUATIONS_PER_TICK = 2
    COARSE = 24
    REFINED = 16
    NULL_TRIES = 100
    SETTLED_TICKS = 3           # samples under the output in force before nulling and raising go by one
    GAP_MOST = 16               # samples; after a longer one the excitation begins again
    BEGINNINGS_MOST = 6         # then it ends unclear
    DOUBT_TICKS = 8             # that are left out behind a sample that was lost while commands came late
    USED_LEAST = 64             # samples of the mean period
    KEPT_EIGHTHS = 7            # of the periods of each sign that must have a sample for it to be used
    TERMS = 7                   # of one fit, the pole aside
    SHAPES = 4                  # of these and the pole, what the load is made of

cdef double LEAST_TICKS = 0.12          # time constants tried: from this
cdef double GRID_STEP = 0.47            # in ln(time constant): up to 6,000 ticks
cdef double GOLDEN = 0.6180339887498949
cdef double RAISE = 1.4
cdef double SIGNIFICANT = 16.0         # F ratio of a pole and a zero against none
cdef double GAIN_MOST = 0.1
cdef double RESOLVED_CODES = 100.0     # current codes of one swing that the least number of periods resolves
cdef double SLOW = 0.5                  # a pole above it must belong to a load's series resistance
cdef double SERIES_MOST_OHM = 7000.0    # of leads, body and electrodes: the envelope's 5 kohm, and a margin for noise
cdef double EXCITATION = 0.7            # of current_a: gain errors, and what nulling leaves, come on top
cdef double DRIVE_LEAST = 0.25         # of the excitation as it was given: less was in force where commands hardly came
cdef double WAIT_MOST_S = 2.0           # for outputs to come into force, in all
cdef double STEP_RATIO = 1.0            # of current_a through the least series resistance: the largest step

cdef double sequence[127]


cdef void fill_sequence() noexcept nogil:
    cdef uint32_t register = 127
    cdef int32_t k
    for k in range(PROBE_PERIOD):
        sequence[k] = 1.0 if register & 1 else -1.0
        register = next_of_127(register)


fill_sequence()


cdef inline double driven(const ProbeState* state, int32_t tick) noexcept nogil:
    """The drive at a tick of the period in which tick 0 lies, or of the one before."""
    return state.drive[tick] if tick >= 0 else state.lead[-1 - tick]


cdef inline double fraction(double turns) noexcept nogil:
    return turns - <int32_t>turns


cdef void evaluate(const ProbeState* state, const double* response, int32_t lag, double pole, bint zero,
                   Fit* fit) noexcept nogil:
    """Least squares of the response on the drive of `lag` ticks before, filtered, a decaying start, mains hum and, with
    a zero, the filtered drive of one tick before that.
    """
    cdef double matrix[49]
    cdef double right[7]
    cdef double kept[7]
    cdef double row[7]
    cdef double y, total = 0.0
    cdef int32_t n, i, j, terms = TERMS if zero else TERMS - 1
    memset(matrix, 0, sizeof(matrix))
    memset(right, 0, sizeof(right))
    row[0] = driven(state, -1 - lag)
    row[1] = 1.0
    for n in range(PROBE_PERIOD):
        row[6] = row[0]
        row[0] = pole * row[0] + driven(state, n - lag)
        row[1] *= pole
        for i in range(4):
            row[2 + i] = state.mains[4 * n + i]
        if state.missing[n]:
            continue
        y = response[n]
        for i in range(terms):
            right[i] += row[i] * y
            for j in range(i + 1):
                matrix[i * TERMS + j] += row[i] * row[j]
        total += y * y
    for i in range(terms):
        kept[i] = right[i]
        # A start that has decayed within the first tick leaves nothing to fit.
        matrix[i * TERMS + i] = matrix[i * TERMS + i] * (1.0 + 1e-12) + (1e-9 if i == 1 else 0.0)
    fit.pole = pole
    fit.cost = total
    fit.gain = fit.after = fit.start = 0.0
    if not cholesky_solve(matrix, right, terms, TERMS):
        return
    fit.gain = right[0]
    fit.start = right[1]
    if zero:
        fit.after = right[6]
    for i in range(terms):
        fit.cost -= right[i] * kept[i]
    if fit.cost < 1e-15 * total:
        fit.cost = 1e-15 * total


cdef inline double pole_at(double place) noexcept nogil:
    return exact_exp(-1.0 / (LEAST_TICKS * exact_exp(GRID_STEP * place)))


cdef inline int32_t delay_of(const ProbeConfig* config, int32_t fit_of) noexcept nogil:
    """The delay told first, so that a tie is its."""
    if fit_of == 0:
        return config.delay_ticks
    return config.delay_ticks - 1 if fit_of == 1 else config.delay_ticks + fit_of - 1


cdef inline int32_t lag_of(const ProbeState* state, const ProbeConfig* config, int32_t fit_of) noexcept nogil:
    """Ticks by which the response follows the output in force: none, if the device says itself what that is."""
    return delay_of(config, fit_of) - (config.delay_ticks if state.told else 1)


cdef inline bint can_be(int32_t lag) noexcept nogil:
    return 0 <= lag < PROBE_LEAD


cdef bint minimum_phase(const Fit* fit) noexcept nogil:
    """A zero well beyond the unit circle: the delay is another. A little beyond it the electrodes polarise."""
    return fit.gain > 0.0 and -fit.after < 1.2 * fit.gain and fit.after < 0.7 * fit.gain


cdef bint fit_once(ProbeState* state, const double* response, int32_t lag, bint zero) noexcept nogil:
    """One evaluation of the search along the pole; True when it has ended in state.best."""
    cdef Fit fit
    if state.fit_at == 0:
        state.best.cost = -1.0
        evaluate(state, response, lag, 0.0, False, &state.static_fit)
    if state.fit_at < COARSE:
        evaluate(state, response, lag, pole_at(state.fit_at), zero, &fit)
        if state.best.cost < 0.0 or fit.cost < state.best.cost:
            state.best = fit
            state.low = state.fit_at - 1.0
            state.high = state.fit_at + 1.0
    else:
        if state.fit_at == COARSE:
            state.inner = state.high - GOLDEN * (state.high - state.low)
            state.outer = state.low + GOLDEN * (state.high - state.low)
            state.inner_cost = state.outer_cost = -1.0
        if state.inner_cost < 0.0:
            evaluate(state, response, lag, pole_at(state.inner), zero, &fit)
            state.inner_cost = fit.cost
        else:
            evaluate(state, response, lag, pole_at(state.outer), zero, &fit)
            state.outer_cost = fit.cost
        if fit.cost < state.best.cost:
            state.best = fit
        if state.inner_cost >= 0.0 and state.outer_cost >= 0.0:
            if state.inner_cost < state.outer_cost:
                state.high = state.outer
                state.outer = state.inner
                state.outer_cost = state.inner_cost
                state.inner = state.high - GOLDEN * (state.high - state.low)
                state.inner_cost = -1.0
            else:
                state.low = state.inner
                state.inner = state.outer
                state.inner_cost = state.outer_cost
                state.outer = state.low + GOLDEN * (state.high - state.low)
                state.outer_cost = -1.0
    state.fit_at += 1
    if state.fit_at == COARSE + REFINED:
        state.fit_at = 0
        # A pole that the data do not show is fitted to noise, and its zero to cancel it.
        if (state.static_fit.cost - state.best.cost) * (state.used - TERMS - 1) < 2.0 * SIGNIFICANT * state.best.cost:
            state.best = state.static_fit
        return True
    return False


cdef bint sigmas(const ProbeState* state, int32_t lag, const Fit* fit, double* covariance) noexcept nogil:
    """Covariance (row length SHAPES) of (pole, gain, after, start) from the residual; False if nothing is known."""
    cdef double matrix[49]
    cdef double column[7]
    cdef double kept[16]
    cdef double row[4]
    cdef double now, before, start = 1.0, x, slope = 0.0, last = fit.start
    cdef double variance = fit.cost / (state.used - TERMS - 1)
    cdef int32_t n, i, j, k
    memset(kept, 0, sizeof(kept))
    now = driven(state, -1 - lag)
    for n in range(PROBE_PERIOD):
        before = now
        now = fit.pole * now + driven(state, n - lag)
        start *= fit.pole
        x = fit.gain * now + fit.after * before + fit.start * start
        slope = fit.pole * slope + last
        last = x
        if state.missing[n]:
            continue
        row[0] = slope
        row[1] = now
        row[2] = before
        row[3] = start
        for i in range(SHAPES):
            for j in range(SHAPES):
                kept[i * SHAPES + j] += row[i] * row[j]
    kept[15] += 1e-9
    for j in range(SHAPES):
        for i in range(SHAPES):
            column[i] = 1.0 if i == j else 0.0
            for k in range(SHAPES):
                matrix[i * TERMS + k] = kept[i * SHAPES + k]
            matrix[i * TERMS + i] *= 1.0 + 1e-12
        if not cholesky_solve(matrix, column, SHAPES, TERMS):
            return False
        for i in range(SHAPES):
            covariance[i * SHAPES + j] = variance * column[i]
    return True


cdef void voltage_source_load(double pole, double gain, double before, double tick_s, double* load) noexcept nogil:
    """(Rs + ballast, Rp, C) from the current's response."""
    cdef double whole = (1.0 - pole) / (gain - before)
    cdef double series = pole / before if before > 1e-9 * gain else whole
    if whole < series:
        whole = series
    load[0] = series
    load[1] = whole - series
    load[2] = -tick_s / exact_log(pole) * whole / (series * load[1]) if load[1] > 0.0 and pole > 0.0 else 0.0


cdef void current_source_load(double pole, double gain, double before, double source_pole, double tick_s,
                              double* load) noexcept nogil:
    """(Rs, Rp, C) from the voltage's response to the current that a stage of source_pole lets flow.

    Between samples that current runs exponentially to its new value: the capacitance sees, of the currents at the
    period's end and beginning, the shares now and then.
    """
    cdef double whole = (gain - before) / (1.0 - pole)
    cdef double tau = -tick_s / exact_log(pole), source_tau, lagging, now, then
    cdef double apart
    if source_pole > 1e-6:
        source_tau = -tick_s / exact_log(source_pole)
        apart = tau - source_tau
        if fabs(apart) < 1e-6 * tau:
            apart = 1e-6 * tau
        lagging = source_tau * (pole - source_pole) / apart
    else:
        lagging = 0.0
    now = (1.0 - pole - lagging) / (1.0 - source_pole)
    then = lagging - source_pole * now
    load[1] = (pole * gain - before) / (then + pole * now)
    if load[1] > whole:
        load[1] = whole
    load[0] = whole - load[1]
    load[2] = tau / load[1] if load[1] > 0.0 else 0.0


cdef inline void load_of(const ProbeState* state, const ProbeConfig* config, const double* at,
                         double* load) noexcept nogil:
    if config.voltage_source:
        voltage_source_load(at[0], at[1], at[2], config.tick_s, load)
    else:
        current_source_load(at[0], at[1], at[2], state.found.model.pole, config.tick_s, load)


cdef void find_load(ProbeState* state, const ProbeConfig* config, int32_t lag, const Fit* fit) noexcept nogil:
    """The load from a fit; its uncertainty from the fit's covariance by first differences."""
    cdef double covariance[16]
    cdef double load[3]
    cdef double moved[3]
    cdef double slopes[12]
    cdef double sigma[4]
    cdef double at[3]
    cdef double variance, step, kept
    cdef int32_t i, j, k
    cdef bint known = sigmas(state, lag, fit, covariance)
    if fit.pole == 0.0:
        # Ts is far above the time constant: the samples show the resistance alone.
        state.found.resistance_ohm = (1.0 / fit.gain if config.voltage_source else fit.gain) - config.ballast_ohm
        state.found.resistance_sigma_ohm = (
            sqrt(fit.cost / state.used / (state.used - 2.0)) / state.drive_size / fit.gain * (1.0 / fit.gain)
            if config.voltage_source else sqrt(fit.cost / state.used / (state.used - 2.0)) / state.drive_size)
        return
    at[0] = fit.pole
    at[1] = fit.gain
    at[2] = -fit.after
    load_of(state, config, at, load)
    for j in range(3):
        step = 1e-6 * (1.0 - at[0] if j == 0 and at[0] > 0.5 else fabs(at[j]) + 1e-12)
        kept = at[j]
        at[j] += step
        load_of(state, config, at, moved)
        at[j] = kept
        for i in range(3):
            slopes[i * 3 + j] = (moved[i] - load[i]) / (step if j < 2 else -step)
        slopes[9 + j] = slopes[j] + slopes[3 + j]
    for i in range(4):
        variance = 0.0
        for j in range(3):
            for k in range(3):
                variance += slopes[i * 3 + j] * slopes[i * 3 + k] * covariance[j * SHAPES + k]
        sigma[i] = sqrt(variance) if known and variance >= 0.0 else load[i % 3]
    state.found.series_ohm = load[0] - config.ballast_ohm if config.voltage_source else load[0]
    state.found.parallel_ohm = load[1]
    state.found.capacitance_f = load[2]
    state.found.resistance_ohm = state.found.series_ohm + load[1]
    state.found.series_sigma_ohm = sigma[0]
    state.found.parallel_sigma_ohm = sigma[1]
    state.found.capacitance_sigma_f = sigma[2]
    state.found.resistance_sigma_ohm = sigma[3]


cdef void passive(PlantModel* model, double ratio_most) noexcept nogil:
    """Rp is not negative, and at most ratio_most times Rs + ballast: what noise has put beyond goes back to there."""
    cdef double rest = ratio_most / (1.0 + ratio_most) if ratio_most > 0.0 else 1.0
    cdef double low = model.pole * model.gain, high = low / (1.0 - (1.0 - model.pole) * rest)
    if model.gain_before < low:
        model.gain_before = low
    if model.gain_before > high:
        model.gain_before = high


cdef int32_t median_age(const ProbeState* state) noexcept nogil:
    cdef uint32_t below = 0, total = 0
    cdef int32_t k
    for k in range(PROBE_LEAD):
        total += state.ages[k]
    for k in range(PROBE_LEAD):
        below += state.ages[k]
        if 2 * below >= total:
            return k
    return PROBE_LEAD


cdef double size_of(const ProbeState* state, const double* series) noexcept nogil:
    """Root mean square over what is used of the period."""
    cdef double total = 0.0
    cdef int32_t k
    for k in range(PROBE_PERIOD):
        if not state.missing[k]:
            total += series[k] * series[k]
    return sqrt(total / state.used)


cdef int32_t choose_model(ProbeState* state, const ProbeConfig* config) noexcept nogil:
    """The fits of the current are done: which delay. Returns a verdict if it ends here, else PROBE_RUNNING."""
    cdef int32_t best = -1, k, n, lag, delay
    cdef double covariance[16]
    cdef double fitted[127]
    cdef double seen = size_of(state, state.current), now, before, start = 1.0
    cdef Fit* fit
    if state.drive_size < DRIVE_LEAST * state.half:
        return PROBE_UNCLEAR
    if seen < (0.5 * config.current_lsb_a if config.voltage_source else 0.3 * state.drive_size):
        return PROBE_OPEN
    if seen < config.current_lsb_a:
        return PROBE_UNCLEAR
    for k in range(PROBE_DELAYS):
        if not can_be(lag_of(state, config, k)) or not minimum_phase(&state.fits[k]):
            continue
        # 1.3 times the residual, squared: the delay told stays unless another is clearly better.
        if best < 0 or state.fits[k].cost < (1.0 / 1.69 if best == 0 else 1.0) * state.fits[best].cost:
            best = k
    if best < 0:
        return PROBE_UNCLEAR
    fit = &state.fits[best]
    lag = lag_of(state, config, best)
    delay = lag + state.usual_age_ticks
    # What is certified goes as far as the delays that are tried.
    if delay > delay_of(config, PROBE_DELAYS - 1):
        return PROBE_UNCLEAR
    if config.voltage_source and (
            fit.gain + fit.after <= 0.0
            or (fit.pole > SLOW and fit.pole > -fit.after * (1.3 * config.ballast_ohm + SERIES_MOST_OHM))):
        # No conductance at rest, or a series resistance that no body has: what is slow here are the electrodes, while
        # skin answers within a sample. To the loop that is a resistance.
        evaluate(state, state.current, lag, 0.0, False, fit)
    state.found.model.pole = fit.pole
    state.found.model.gain = fit.gain
    state.found.model.gain_before = -fit.after
    if config.voltage_source:
        passive(&state.found.model, config.parallel_ratio_most)
    state.found.model.delay_ticks = delay
    state.found.residual_a = sqrt(fit.cost / state.used)
    if sigmas(state, lag, fit, covariance):
        state.found.pole_sigma = sqrt(covariance[0])
        state.found.gain_sigma = sqrt(covariance[5])
        state.found.gain_before_sigma = sqrt(covariance[10])
    if not state.found.gain_sigma < 0.5 * fit.gain:
        return PROBE_UNCLEAR
    if config.voltage_source:
        find_load(state, config, lag, fit)
        return PROBE_RUNNING
    # A current source that lets flow a tenth more or less than it says is broken, or says what it is not.
    if fabs((fit.gain + fit.after) / (1.0 - fit.pole) - 1.0) > GAIN_MOST:
        return PROBE_UNCLEAR
    now = driven(state, -1 - lag)
    for n in range(PROBE_PERIOD):
        before = now
        now = fit.pole * now + driven(state, n - lag)
        start *= fit.pole
        fitted[n] = fit.gain * now + fit.after * before + fit.start * start
    for n in range(PROBE_PERIOD):
        state.drive[n] = fitted[n]
    # What it was before the period only shifts the start, which is free.
    for n in range(PROBE_LEAD):
        state.lead[n] = -fitted[PROBE_PERIOD - 1 - n]
    return PROBE_RUNNING


cdef int32_t judge_load(const ProbeState* state, const ProbeConfig* config) noexcept nogil:
    cdef double series = state.found.series_ohm + config.ballast_ohm
    # Converters are out by half a percent, and so is the ballast that has been taken off.
    cdef double doubt = 3.0 * state.found.resistance_sigma_ohm + 0.005 * (
        fabs(state.found.resistance_ohm) + config.ballast_ohm)
    if state.found.resistance_ohm - doubt > config.open_ohm:
        return PROBE_OPEN
    if state.found.resistance_ohm + doubt < config.short_ohm:
        return PROBE_SHORT
    if (config.voltage_source and config.parallel_ratio_most > 0.0
            and state.found.parallel_ohm - 2.0 * state.found.parallel_sigma_ohm
            > config.parallel_ratio_most * (series + 2.0 * state.found.series_sigma_ohm)):
        return PROBE_OUTSIDE
    return PROBE_GOOD


cdef void enter(ProbeState* state, int32_t phase) noexcept nogil:
    state.phase = phase
    state.ticks = 0
    state.tries = 0


cdef void end(ProbeState* state, int32_t verdict) noexcept nogil:
    state.verdict = verdict
    enter(state, PROBE_FINISHED)


cdef void excite(ProbeState* state, const ProbeConfig* config, double current) noexcept nogil:
    cdef double swing = fabs(current - state.nulled_a)
    if config.output_min >= 0.0 and state.centre < state.half:
        state.centre = state.half
    # What is small in codes is looked at for longer.
    state.periods = config.periods
    while swing < RESOLVED_CODES * config.current_lsb_a and 2 * state.periods <= config.periods_most:
        state.periods *= 2
        swing *= 1.4142135623730951
    enter(state, PROBE_EXCITE)


cdef void probe_begin(ProbeState* state, double output) noexcept nogil:
    memset(state, 0, sizeof(state[0]))
    state.phase = PROBE_NULL
    state.centre = output
    state.output = output


cdef void probe_read_back(ProbeState* state, double applied, uint32_t age_ticks, uint32_t lost) noexcept nogil:
    state.told = 1
    state.applied = applied
    state.age_ticks = age_ticks
    state.lost = lost


cdef void null_current(ProbeState* state, const ProbeConfig* config, double current) noexcept nogil:
    """An output at zero may let current flow: an electrode potential through a voltage source, an offset of a current
    source. Go to where none flows.
    """
    cdef double least_ohm = config.ballast_ohm + config.series_least_ohm if config.voltage_source else 1.0
    cdef double offset = config.offset_a if config.offset_a > 0.0 else config.current_a
    if state.ticks <= <uint32_t>config.delay_ticks + 2 or state.settled_ticks < SETTLED_TICKS:
        return
    if not config.voltage_source and (fabs(current) > offset or fabs(state.centre - current) > offset):
        # Against a reading that is wrong, what nulls it would be a current of its own.
        state.nulled_a = current
        end(state, PROBE_UNCLEAR)
        return
    if fabs(current) > 0.1 * config.current_a and state.tries < NULL_TRIES:
        # A step through the least impedance never passes zero, and what is only hum moves little.
        state.centre = quantised(state.centre - current * least_ohm, config.output_lsb)
        state.tries += 1
        state.ticks = 0
        return
    state.nulled_a = current
    if fabs(current) > config.current_a:
        end(state, PROBE_UNCLEAR)
        return
    if not config.voltage_source:
        state.half = quantised(
            EXCITATION * config.current_a * (0.5 if config.output_min >= 0.0 else 1.0), config.output_lsb)
        excite(state, config, current + state.half)
        return
    state.half = 0.05 * STEP_RATIO * config.current_a * least_ohm
    if state.half < 2.0 * config.output_lsb:
        state.half = 2.0 * config.output_lsb
    state.half = quantised(state.half, config.output_lsb)
    enter(state, PROBE_RAISE)


cdef void raise_amplitude(ProbeState* state, const ProbeConfig* config, double current) noexcept nogil:
    cdef double most = 0.5 * STEP_RATIO * config.current_a * (config.ballast_ohm + config.series_least_ohm)
    if state.ticks < <uint32_t>config.delay_ticks + 2 or state.settled_ticks < SETTLED_TICKS:
        return
    if fabs(current - state.nulled_a) >= 0.5 * config.current_a:
        excite(state, config, current)
        return
    if state.half >= most / RAISE:
        excite(state, config, current)
        return
    state.half = quantised(state.half * RAISE, config.output_lsb)
    state.tries += 1
    state.ticks = 0


cdef inline uint32_t least(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef inline void give(ProbeState* state, double output) noexcept nogil:
    state.given_at = (state.given_at + 1) & (PROBE_LEAD - 1)
    state.given[state.given_at] = output


cdef bint take_drive(ProbeState* state, double drive) noexcept nogil:
    """The drive at the next tick of the excitation, of a period of either sign; True if the tick counts."""
    cdef uint32_t period = state.ticks // PROBE_PERIOD, at = state.ticks % PROBE_PERIOD
    cdef double sign = (-1.0 if period & 1 else 1.0) / state.periods
    cdef bint counts = 0 < period <= state.periods
    cdef int32_t k
    if counts:
        if at == 0:
            for k in range(PROBE_LEAD):
                state.lead[k] += sign * state.recent[(state.recent_at - <uint32_t>k) & (PROBE_LEAD - 1)]
        state.drive[at] += sign * drive
    state.recent_at = (state.recent_at + 1) & (PROBE_LEAD - 1)
    state.recent[state.recent_at] = drive
    return counts


cdef void take(ProbeState* state, double current, double voltage) noexcept nogil:
    cdef uint32_t at = state.ticks % PROBE_PERIOD
    cdef int32_t odd = (state.ticks // PROBE_PERIOD) & 1
    cdef bint doubted = state.doubted_ticks > 0
    if doubted:
        state.doubted_ticks -= 1
    if not take_drive(state, state.in_force - state.centre):
        return
    state.ages[least(state.age_ticks, PROBE_LEAD - 1)] += 1
    if doubted:
        return
    state.samples[odd * PROBE_PERIOD + at] += 1
    if odd:
        state.odd_current[at] += current
        state.odd_voltage[at] += voltage
    else:
        state.current[at] += current
        state.voltage[at] += voltage


cdef bint begin_again(ProbeState* state) noexcept nogil:
    """False if it has begun too often."""
    memset(state.current, 0, sizeof(state.current))
    memset(state.voltage, 0, sizeof(state.voltage))
    memset(state.odd_current, 0, sizeof(state.odd_current))
    memset(state.odd_voltage, 0, sizeof(state.odd_voltage))
    memset(state.samples, 0, sizeof(state.samples))
    memset(state.drive, 0, sizeof(state.drive))
    memset(state.lead, 0, sizeof(state.lead))
    memset(state.ages, 0, sizeof(state.ages))
    state.doubted_ticks = 0
    state.rail_run = 0
    state.ticks = 0
    state.beginnings += 1
    return state.beginnings < BEGINNINGS_MOST


cdef bint take_gap(ProbeState* state, const ProbeConfig* config) noexcept nogil:
    """Samples that were lost: nothing is fitted there. What was in force is known all the same: the command that was
    due, or where its sample was lost too, the one before it; none newer than what the next sample tells, none older
    than what the last one told. Where commands came late besides, it may have been another, and what follows is left
    out too. False if this was one gap too many.
    """
    cdef uint32_t now = least(state.age_ticks, PROBE_LEAD), last = least(state.last_age_ticks, PROBE_LEAD)
    cdef int32_t usual = <int32_t>(now if now < last else last), newest, oldest, age, k
    cdef int32_t lost = <int32_t>state.lost, ahead
    cdef bint late, doubted
    if state.lost > GAP_MOST:
        return begin_again(state)
    if usual < config.delay_ticks:
        usual = config.delay_ticks
    late = <int32_t>last > usual or (<int32_t>now > usual and <int32_t>now > lost + 1)
    for ahead in range(1, lost + 1):
        newest = <int32_t>now - (lost + 1 - ahead)
        oldest = <int32_t>last + ahead
        if newest < config.delay_ticks:
            newest = config.delay_ticks
        age = usual
        if age < newest:
            age = newest
        if age > oldest:
            age = oldest
        if age > PROBE_LEAD - 1:
            age = PROBE_LEAD - 1
        give(state, state.output)
        doubted = False
        for k in range(newest, oldest + 1):
            if late and k < PROBE_LEAD and (
                    state.given[(state.given_at - <uint32_t>k) & (PROBE_LEAD - 1)]
                    != state.given[(state.given_at - <uint32_t>age) & (PROBE_LEAD - 1)]):
                doubted = True
        if doubted:
            state.doubted_ticks = DOUBT_TICKS
        take_drive(state, state.given[(state.given_at - <uint32_t>age) & (PROBE_LEAD - 1)] - state.centre)
        state.ticks += 1
    return True


cdef void take_means(ProbeState* state) noexcept nogil:
    """Of each sample of the period: half the difference of both signs."""
    cdef uint32_t kept = (KEPT_EIGHTHS * state.periods + 15) // 16, of_even, of_odd
    cdef int32_t k
    state.used = 0
    for k in range(PROBE_PERIOD):
        of_even = state.samples[k]
        of_odd = state.samples[PROBE_PERIOD + k]
        state.missing[k] = of_even < kept or of_odd < kept
        if state.missing[k]:
            continue
        state.used += 1
        state.current[k] = 0.5 * (state.current[k] / of_even - state.odd_current[k] / of_odd)
        state.voltage[k] = 0.5 * (state.voltage[k] / of_even - state.odd_voltage[k] / of_odd)


cdef void take_read_back(ProbeState* state, const ProbeConfig* config) noexcept nogil:
    """What the sample says of the output in force; of a device that says nothing, what was given last."""
    if not state.told:
        state.applied = state.output
        state.age_ticks = 1
        state.lost = 0
    # A code that no output has is no read-back.
    if config.output_min - config.output_lsb <= state.applied <= config.output_max + config.output_lsb:
        state.in_force = state.applied
    if fabs(state.in_force - state.output) <= 0.75 * config.output_lsb:
        state.settled_ticks += 1
    else:
        state.settled_ticks = 0


cdef void excitation_step(ProbeState* state, const ProbeConfig* config, double current_a,
                          double voltage_v) noexcept nogil:
    cdef int32_t _k
    if not take_gap(state, config):
        end(state, PROBE_UNCLEAR)
        return
    take(state, current_a, voltage_v)
    if not config.voltage_source:
        # Into an open lead the stage runs to its rail; no need to go on.
        if fabs(voltage_v) >= 0.97 * config.compliance_v and fabs(current_a) < 0.3 * state.half:
            state.rail_run += 1
        else:
            state.rail_run = 0
        if state.rail_run >= PROBE_PERIOD:
            end(state, PROBE_OPEN)
            return
    if state.ticks + 1 < (state.periods + 1) * PROBE_PERIOD:
        return
    take_means(state)
    if state.used < USED_LEAST:
        end(state, PROBE_UNCLEAR)
        return
    state.usual_age_ticks = median_age(state)
    state.drive_size = size_of(state, state.drive)
    for _k in range(PROBE_PERIOD):
        exact_turn(fraction(_k * 50.0 * config.tick_s), &state.mains[4 * _k], &state.mains[4 * _k + 1])
        exact_turn(fraction(_k * 60.0 * config.tick_s), &state.mains[4 * _k + 2], &state.mains[4 * _k + 3])
    enter(state, PROBE_FIT)


cdef void fit_step(ProbeState* state, const ProbeConfig* config) noexcept nogil:
    cdef int32_t _k
    for _k in range(EVALUATIONS_PER_TICK):
        if state.fit_of < PROBE_DELAYS:
            if not can_be(lag_of(state, config, state.fit_of)):
                state.fit_of += 1
            elif fit_once(state, state.current, lag_of(state, config, state.fit_of), config.voltage_source != 0):
                state.fits[state.fit_of] = state.best
                state.fit_of += 1
            else:
                continue
            if state.fit_of == PROBE_DELAYS:
                state.verdict = choose_model(state, config)
                if state.verdict == PROBE_RUNNING and config.voltage_source:
                    state.verdict = judge_load(state, config)
        elif fit_once(state, state.voltage, 0, True):
            find_load(state, config, 0, &state.best)
            state.verdict = judge_load(state, config)
        if state.verdict != PROBE_RUNNING:
            state.found.null_output = state.centre
            enter(state, PROBE_FINISHED)
            break


cdef int32_t probe_step(ProbeState* state, const ProbeConfig* config, double current_a, double voltage_v,
                        double* output) noexcept nogil:
    take_read_back(state, config)
    if (state.phase == PROBE_NULL or state.phase == PROBE_RAISE) and state.settled_ticks == 0:
        state.waited_ticks += 1
        if state.waited_ticks * config.tick_s > WAIT_MOST_S:
            end(state, PROBE_UNCLEAR)
    if state.phase == PROBE_NULL:
        null_current(state, config, current_a)
    elif state.phase == PROBE_RAISE:
        raise_amplitude(state, config, current_a)
    elif state.phase == PROBE_EXCITE:
        excitation_step(state, config, current_a, voltage_v)
    elif state.phase == PROBE_FIT:
        fit_step(state, config)

    state.output = state.centre
    if state.phase == PROBE_RAISE:
        state.output += -state.half if state.tries & 1 else state.half
    elif state.phase == PROBE_EXCITE:
        state.output += state.half * (
            sequence[state.ticks % PROBE_PERIOD] if (state.ticks // PROBE_PERIOD) & 1 == 0
            else -sequence[state.ticks % PROBE_PERIOD])
    if state.output > config.output_max:
        state.output = config.output_max
    if state.output < config.output_min:
        state.output = config.output_min
    state.ticks += 1
    give(state, state.output)
    state.last_age_ticks = state.age_ticks
    output[0] = state.output
    return state.verdict
