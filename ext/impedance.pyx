"""Sample -> estimate.

Two tones ride on the current. Over one block, least squares on [1, t, cos, sin of both tones and of the mains] gives
the phasors of voltage and current; they are added up over the last ten blocks. Z = V/I at two frequencies is four
numbers for three unknowns: a closed form (Sanathanan and Koerner 1963) starts, a few bounded Gauss-Newton steps on what
the sampling shows of Rs + (Rp || C) end, and their normal matrix is the inverse of the covariance. docs/estimator.md
derives it. The chord V/I, with the electrode potential as its uncertainty, stays known without a tone.
"""
import math

from libc.math cimport M_PI, fabs, isfinite, sqrt
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

import numpy as np

from ionto_rt.core.elementary cimport exact_exp, exact_log, exact_turn
from ionto_rt.core.types cimport CONTACT_GOOD, CONTACT_LOST, CONTACT_UNKNOWN, Estimate, LoadFit

cdef enum:
    LOW = 0
    HIGH = 1
    FIFTY = 2                   # hum of either mains
    SIXTY = 3
    STEPS = 8                   # of Gauss and Newton at the most
    AWAY_BLOCKS = 3             # blocks in a row before tones are chosen anew

cdef double LOW_RATIO = 0.4     # of the corner frequency
cdef double HIGH_RATIO = 6.0
cdef double HIGH_SHARE = 0.3    # of the sample rate, at the most
cdef double CHANGED = 40.0      # squared deviations, four degrees of freedom: once in 2e7 blocks by chance
cdef double CHANGED_LEAST = 0.01
cdef double SEEN = 0.25         # variance of a logarithm above which a parameter is not seen
cdef double DELTA = 1e-4


cdef inline double square(double x) noexcept nogil:
    return x * x


cdef inline uint32_t rounded(double x) noexcept nogil:
    return <uint32_t>(x + 0.5)


cdef inline uint32_t bin_of(const ImpedanceConfig* config, double hz) noexcept nogil:
    """Periods per block of hz, if they are whole; else 0."""
    cdef double periods = hz * config.tick_s * config.block_ticks
    cdef uint32_t whole = rounded(periods) if periods < 1e6 else 0
    return whole if whole > 0 and fabs(periods - whole) < 1e-6 * periods else 0


cdef inline bint hums(const ImpedanceConfig* config, uint32_t tone) noexcept nogil:
    """1: a harmonic of 50 or 60 Hz mains."""
    cdef uint32_t fifty = bin_of(config, 50.0), sixty = bin_of(config, 60.0)
    return (fifty and tone % fifty == 0) or (sixty and tone % sixty == 0)


cdef inline uint32_t hum_bin(const ImpedanceState* state, const ImpedanceConfig* config, double hz) noexcept nogil:
    """Periods of the mains in a block, to be told from noise; 0 where they are not whole, or a tone lies there."""
    cdef uint32_t own = bin_of(config, hz)
    return 0 if 2 * own >= config.block_ticks or own == state.bins[LOW] or own == state.bins[HIGH] else own


cdef inline uint32_t divisor(uint32_t a, uint32_t b) noexcept nogil:
    """The greatest common one, in at most 48 rounds (Lame)."""
    cdef uint32_t rest
    while b:
        rest = a % b
        a = b
        b = rest
    return a


cdef inline bint suits(const ImpedanceConfig* config, uint32_t high, uint32_t low, double most) noexcept nogil:
    """A high tone off the mains and off what the low one's distortion makes. It shares no divisor with the block: each
    sample meets another phase, and the converter's steps average out."""
    return (low + 1 < high <= most and not hums(config, high) and high != 2 * low and high != 3 * low
            and divisor(high, config.block_ticks) == 1)


cdef void set_phase(ImpedanceState* state, const ImpedanceConfig* config, int k, uint32_t periods) noexcept nogil:
    """Phasor and turn of one tone, from the exact number of turns."""
    if periods == 0:
        state.cosine[k] = state.sine[k] = state.turn_cosine[k] = state.turn_sine[k] = 0.0
        return
    exact_turn(<double>periods / config.block_ticks, &state.turn_cosine[k], &state.turn_sine[k])
    exact_turn(
        <double>((periods * state.phase_ticks) % config.block_ticks) / config.block_ticks,
        &state.cosine[k], &state.sine[k],
    )


cdef void set_phases(ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil:
    set_phase(state, config, LOW, state.bins[LOW])
    set_phase(state, config, HIGH, state.bins[HIGH])
    set_phase(state, config, FIFTY, hum_bin(state, config, 50.0))
    set_phase(state, config, SIXTY, hum_bin(state, config, 60.0))


cdef inline void turn(ImpedanceState* state, int k) noexcept nogil:
    cdef double c = state.cosine[k]
    state.cosine[k] = c * state.turn_cosine[k] - state.sine[k] * state.turn_sine[k]
    state.sine[k] = c * state.turn_sine[k] + state.sine[k] * state.turn_cosine[k]


cdef uint32_t settling(const ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil:
    """Ticks in which a load of the chosen corner forgets: eight time constants and the delay; at most a block."""
    cdef double ticks = 4.0 + 8.0 / (2.0 * M_PI * state.corner_hz * config.tick_s)
    return <uint32_t>ticks if ticks < config.block_ticks else config.block_ticks


cdef void drop_block(ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil:
    state.block_fill = 0
    state.settle_left = settling(state, config)


cdef void impedance_choose_tones(ImpedanceState* state, const ImpedanceConfig* config, double corner_hz) noexcept nogil:
    cdef double spacing_hz = 1.0 / (config.tick_s * config.block_ticks)
    cdef double most = HIGH_SHARE * config.block_ticks
    cdef uint32_t low = config.low_bin, high = config.high_bin, near, step, _step
    if not corner_hz > spacing_hz:
        corner_hz = spacing_hz
    if corner_hz > 0.5 / config.tick_s:
        corner_hz = 0.5 / config.tick_s
    state.corner_hz = corner_hz
    if low == 0 or high == 0:
        high = rounded(HIGH_RATIO * corner_hz / spacing_hz) if HIGH_RATIO * corner_hz / spacing_hz < most else \
            <uint32_t>most
        if high < 4:
            high = 4
        low = rounded(LOW_RATIO * corner_hz / spacing_hz)
        if low > high // 3:
            low = high // 3
        if low < 2:
            low = 2
        for _step in range(3):
            if hums(config, low) and low > 2:
                low -= 1
        near = high
        for step in range(1, 13):
            if suits(config, near, low, most):
                high = near
                break
            near = high + step // 2 if step & 1 == 0 else high - (step + 1) // 2
    if low == state.bins[LOW] and high == state.bins[HIGH]:
        return
    state.bins[LOW] = low
    state.bins[HIGH] = high
    set_phases(state, config)
    state.estimate.low_tone_hz = low * spacing_hz
    state.estimate.high_tone_hz = high * spacing_hz
    state.blocks_kept = state.blocks_at = 0
    state.away_run = state.blind_run = 0
    drop_block(state, config)


cdef void impedance_follow(ImpedanceState* state, const ImpedanceState* leader) noexcept nogil:
    cdef int k
    if state.bins[LOW] == leader.bins[LOW] and state.bins[HIGH] == leader.bins[HIGH] \
            and state.phase_ticks == leader.phase_ticks:
        return
    state.corner_hz = leader.corner_hz
    state.phase_ticks = leader.phase_ticks
    for k in range(TONES):
        state.bins[k] = leader.bins[k]
    for k in range(WAVES):
        state.cosine[k] = leader.cosine[k]
        state.sine[k] = leader.sine[k]
        state.turn_cosine[k] = leader.turn_cosine[k]
        state.turn_sine[k] = leader.turn_sine[k]
    state.estimate.low_tone_hz = leader.estimate.low_tone_hz
    state.estimate.high_tone_hz = leader.estimate.high_tone_hz
    state.blocks_kept = state.blocks_at = 0
    state.block_fill = 0
    state.settle_left = leader.settle_left


cdef double impedance_tone(const ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil:
    return config.tone_a * (state.sine[LOW] + state.sine[HIGH])


cdef inline void divide(double a, double b, double c, double d, double* re, double* im) noexcept nogil:
    """(a + jb) / (c + jd)"""
    cdef double size = 1.0 / (c * c + d * d)
    re[0] = (a * c + b * d) * size
    im[0] = (b * c - a * d) * size


cdef inline double output_pole(const ImpedanceConfig* config) noexcept nogil:
    """Of the output stage, per tick; 0: it follows at once."""
    return exact_exp(-config.tick_s / config.output_time_s) if config.output_time_s > 0.0 else 0.0


cdef void model_at(const ImpedanceConfig* config, double p, double rs, double rp, double c,
                   const double* turns, const double* cosine, const double* sine, double* z) noexcept nogil:
    """Z of both tones, re and im in turn. p: output_pole. cosine, sine: of a turn per tick, w = cosine - j sine."""
    cdef double total = rs + config.ballast_ohm, share = 1.0, tau = rp * c
    cdef double a, g, later = 1.0, x, ratio = 0.0, re, im, nre, nim, now_re, now_im, skew_c, skew_s
    cdef double moved = 0.0, lag = 0.0, next_re, next_im, flow_re, flow_im
    cdef int k
    if config.smooth:
        for k in range(TONES):
            x = 2.0 * M_PI * turns[k] / config.tick_s * tau
            re = rs + rp / (1.0 + x * x)
            im = -rp * x / (1.0 + x * x)
            x = turns[k] * config.skew_s / config.tick_s
            exact_turn(x if x >= 0.0 else -x, &skew_c, &skew_s)
            skew_s = skew_s if x >= 0.0 else -skew_s
            z[2 * k] = re * skew_c - im * skew_s
            z[2 * k + 1] = re * skew_s + im * skew_c
        return
    if config.ballast_ohm > 0.0:
        share = rp / (total + rp)
        tau = tau * total / (total + rp)
    a = exact_exp(-config.tick_s / tau)
    g = 0.0
    if config.output_time_s > 0.0:
        ratio = tau / config.output_time_s - 1.0
        if fabs(ratio) < 1e-6:
            g = a * config.tick_s / config.output_time_s
        else:
            g = (a - p) / ratio
    if config.skew_s != 0.0:
        later = exact_exp(-config.skew_s / tau)
    if config.skew_s > 0.0 and config.output_time_s > 0.0:
        moved = exact_exp(-config.skew_s / config.output_time_s)
        lag = later * config.skew_s / config.output_time_s if fabs(ratio) < 1e-6 else (later - moved) / ratio
    for k in range(TONES):
        # vc over what drives it: ((1 - a)(1 - pw) - g (1 - w)) / ((1 - p)(1 - aw))
        nre = (1.0 - a) * (1.0 - p * cosine[k]) - g * (1.0 - cosine[k])
        nim = ((1.0 - a) * p - g) * sine[k]
        divide(nre, nim, (1.0 - p) * (1.0 - a * cosine[k]), (1.0 - p) * a * sine[k], &re, &im)
        now_re = re
        now_im = im
        flow_re = next_re = 1.0
        flow_im = next_im = 0.0
        if config.skew_s > 0.0:
            # The voltage is read under the next value, (1/w - p)/(1 - p) of this sample's, on the way to it.
            next_re = (cosine[k] - p) / (1.0 - p)
            next_im = sine[k] / (1.0 - p)
            flow_re = next_re + (1.0 - next_re) * moved
            flow_im = next_im - next_im * moved
        re = re * later + next_re * (1.0 - later) + (1.0 - next_re) * lag
        im = im * later + next_im * (1.0 - later) - next_im * lag
        if config.ballast_ohm > 0.0:
            # Per volt of the source: current (1 - vc)/total, voltage rs (1 - vc)/total + vc.
            divide(rs * flow_re + (total - rs) * share * re, rs * flow_im + (total - rs) * share * im,
                   1.0 - share * now_re, -share * now_im, &z[2 * k], &z[2 * k + 1])
        else:
            z[2 * k] = rs * flow_re + rp * re
            z[2 * k + 1] = rs * flow_im + rp * im


cdef void impedance_model(const ImpedanceConfig* config, double series_ohm, double parallel_ohm, double capacitance_f,
                          double turns, double* re, double* im) noexcept nogil:
    cdef double both[2]
    cdef double cosine[2]
    cdef double sine[2]
    cdef double z[4]
    both[0] = both[1] = turns
    exact_turn(turns, &cosine[0], &sine[0])
    cosine[1] = cosine[0]
    sine[1] = sine[0]
    model_at(config, output_pole(config), series_ohm, parallel_ohm, capacitance_f, both, cosine, sine, z)
    re[0] = z[0]
    im[0] = z[1]


cdef bint invert(const double* m, double* inverse) noexcept nogil:
    """Of a symmetric 3 x 3 matrix, both as 00 01 02 11 12 22; 0: singular."""
    cdef double a = m[3] * m[5] - m[4] * m[4], b = m[2] * m[4] - m[1] * m[5], c = m[1] * m[4] - m[2] * m[3]
    cdef double size = m[0] * a + m[1] * b + m[2] * c
    if not size > 0.0:
        return False
    inverse[0] = a / size
    inverse[1] = b / size
    inverse[2] = c / size
    inverse[3] = (m[0] * m[5] - m[2] * m[2]) / size
    inverse[4] = (m[1] * m[2] - m[0] * m[4]) / size
    inverse[5] = (m[0] * m[3] - m[1] * m[1]) / size
    return True


cdef bint factor(const double* covariance, double* lower) noexcept nogil:
    """Cholesky factor of a symmetric 4 x 4 matrix; 0: not positive definite."""
    cdef int j, k, m
    cdef double total
    for j in range(4):
        for k in range(j + 1):
            total = covariance[4 * j + k]
            for m in range(k):
                total -= lower[4 * j + m] * lower[4 * k + m]
            if j != k:
                lower[4 * j + k] = total / lower[4 * k + k]
            elif total > 0.0:
                lower[4 * j + j] = sqrt(total)
            else:
                return False
    return True


cdef inline void whiten(const double* lower, double* r) noexcept nogil:
    """Four errors of that covariance into four of variance 1, in place."""
    cdef int j, k
    for j in range(4):
        for k in range(j):
            r[j] -= lower[4 * j + k] * r[k]
        r[j] /= lower[4 * j + j]


cdef bint start_of_fit(const ImpedanceState* state, const ImpedanceConfig* config, const double* z,
                       const double* covariance, double* series, double* parallel, double* capacitance) noexcept nogil:
    """Z (1 + T s) = R0 + T Rs s is linear in R0, T Rs, T: weighted least squares, twice (Sanathanan and Koerner).

    s = 1 - w for a held current, j omega per tick for a smooth one; T turns into C by what holds the current.
    """
    cdef double normal[6]
    cdef double inverse[6]
    cdef double right[3]
    cdef double row[3]
    cdef double weight, s_re, s_im, big = 0.0, r0, product, tau, share = 1.0
    cdef int k, part, j, _pass
    for _pass in range(2):
        memset(normal, 0, sizeof(normal))
        memset(right, 0, sizeof(right))
        for k in range(TONES):
            if config.smooth:
                s_re = 0.0
                s_im = 2.0 * M_PI * state.bins[k] / config.block_ticks
            else:
                s_re = 1.0 - state.turn_cosine[k]
                s_im = state.turn_sine[k]
            weight = 1.0 / (
                (covariance[10 * k] + covariance[10 * k + 5]) * (square(1.0 + big * s_re) + square(big * s_im))
            )
            for part in range(2):
                row[0] = 0.0 if part else 1.0
                row[1] = s_im if part else s_re
                row[2] = -(s_re * z[2 * k + 1] + s_im * z[2 * k]) if part else s_im * z[2 * k + 1] - s_re * z[2 * k]
                normal[0] += weight * row[0] * row[0]
                normal[1] += weight * row[0] * row[1]
                normal[2] += weight * row[0] * row[2]
                normal[3] += weight * row[1] * row[1]
                normal[4] += weight * row[1] * row[2]
                normal[5] += weight * row[2] * row[2]
                for j in range(3):
                    right[j] += weight * row[j] * z[2 * k + part]
        if not invert(normal, inverse):
            return False
        r0 = inverse[0] * right[0] + inverse[1] * right[1] + inverse[2] * right[2]
        product = inverse[1] * right[0] + inverse[3] * right[1] + inverse[4] * right[2]
        big = inverse[2] * right[0] + inverse[4] * right[1] + inverse[5] * right[2]
        if not big > 0.0:
            return False
    series[0] = product / big
    if not series[0] > 0.02 * z[2]:
        series[0] = 0.02 * z[2] if z[2] > 0.0 else 0.02 * r0
    parallel[0] = r0 - series[0]
    if not (parallel[0] > 0.0 and series[0] > 0.0):
        return False
    if config.smooth:
        tau = big * config.tick_s
    else:
        if config.ballast_ohm > 0.0:
            share = (series[0] + config.ballast_ohm) / (series[0] + config.ballast_ohm + parallel[0])
        tau = config.tick_s / (exact_log(1.0 + 1.0 / (big * share)) * share)
    capacitance[0] = tau / parallel[0]
    return isfinite(capacitance[0]) and capacitance[0] > 0.0


cdef bint refine(const ImpedanceState* state, const ImpedanceConfig* config, double pole, const double* z,
                 const double* lower, double* at, LoadFit* fit) noexcept nogil:
    """Gauss-Newton on the logarithms of Rs, Rp, C from `at`; 0: no minimum within its steps, or not seen there."""
    cdef double normal[6]
    cdef double inverse[6]
    cdef double right[3]
    cdef double step[3]
    cdef double turns[2]
    cdef double here[4]
    cdef double above[4]
    cdef double below[4]
    cdef double slope[12]
    cdef double keep, longest = 1.0
    cdef int j, k, m, _n
    turns[0] = <double>state.bins[LOW] / config.block_ticks
    turns[1] = <double>state.bins[HIGH] / config.block_ticks
    for _n in range(STEPS):
        model_at(config, pole, at[0], at[1], at[2], turns, state.turn_cosine, state.turn_sine, here)
        for k in range(4):
            here[k] = z[k] - here[k]
        whiten(lower, here)
        for j in range(3):
            keep = at[j]
            at[j] = keep * (1.0 + DELTA)
            model_at(config, pole, at[0], at[1], at[2], turns, state.turn_cosine, state.turn_sine, above)
            at[j] = keep * (1.0 - DELTA)
            model_at(config, pole, at[0], at[1], at[2], turns, state.turn_cosine, state.turn_sine, below)
            at[j] = keep
            for k in range(4):
                slope[4 * j + k] = (above[k] - below[k]) / (2.0 * DELTA)
            whiten(lower, &slope[4 * j])
        m = 0
        for j in range(3):
            right[j] = 0.0
            for k in range(4):
                right[j] += slope[4 * j + k] * here[k]
        for j in range(3):
            for k in range(j, 3):
                normal[m] = (
                    slope[4 * j] * slope[4 * k] + slope[4 * j + 1] * slope[4 * k + 1]
                    + slope[4 * j + 2] * slope[4 * k + 2] + slope[4 * j + 3] * slope[4 * k + 3]
                )
                m += 1
        if not invert(normal, inverse):
            return False
        step[0] = inverse[0] * right[0] + inverse[1] * right[1] + inverse[2] * right[2]
        step[1] = inverse[1] * right[0] + inverse[3] * right[1] + inverse[4] * right[2]
        step[2] = inverse[2] * right[0] + inverse[4] * right[1] + inverse[5] * right[2]
        longest = 0.0
        for j in range(3):
            if not isfinite(step[j]):
                return False
            step[j] = 1.0 if step[j] > 1.0 else -1.0 if step[j] < -1.0 else step[j]
            at[j] *= exact_exp(step[j])
            longest = fabs(step[j]) if fabs(step[j]) > longest else longest
        if longest < 1e-7:
            break
    if longest > 1e-2 or not (inverse[0] < SEEN and inverse[3] < SEEN and inverse[5] < SEEN):
        return False
    model_at(config, pole, at[0], at[1], at[2], turns, state.turn_cosine, state.turn_sine, here)
    for k in range(4):
        here[k] = z[k] - here[k]
    whiten(lower, here)
    keep = sqrt(square(here[0]) + square(here[1]) + square(here[2]) + square(here[3]))
    if not (isfinite(keep) and isfinite(at[0]) and isfinite(at[1]) and isfinite(at[2])):
        return False
    fit.series_ohm = at[0]
    fit.parallel_ohm = at[1]
    fit.capacitance_f = at[2]
    fit.misfit = keep
    for k in range(6):
        fit.covariance[k] = inverse[k]
    return True


cdef void fit_load(const ImpedanceState* state, const ImpedanceConfig* config, const double* z,
                   const double* covariance, LoadFit* fit) noexcept nogil:
    """Maximum likelihood of Rs, Rp, C by their logarithms, from both tones; zeros where they are not seen."""
    cdef double lower[16]
    cdef double at[3]
    cdef double turns[2]
    cdef double with_[4]
    cdef double without[4]
    cdef double undone[4]
    cdef double re, im, pole = output_pole(config)
    cdef ImpedanceConfig plain
    cdef int k
    memset(fit, 0, sizeof(fit[0]))
    if not factor(covariance, lower):
        return
    if start_of_fit(state, config, z, covariance, &at[0], &at[1], &at[2]) \
            and refine(state, config, pole, z, lower, at, fit):
        return
    if not (config.output_time_s > 0.0 or config.skew_s != 0.0):
        return
    # Output stage and skew turn the phasors, by what hardly depends on the load: undone for another start.
    plain = config[0]
    plain.output_time_s = plain.skew_s = 0.0
    turns[0] = <double>state.bins[LOW] / config.block_ticks
    turns[1] = <double>state.bins[HIGH] / config.block_ticks
    re = sqrt(square(z[0]) + square(z[1]))
    im = 1.0 / (2.0 * M_PI * state.corner_hz * re)
    model_at(config, pole, 1e-3 * re, re, im, turns, state.turn_cosine, state.turn_sine, with_)
    model_at(&plain, 0.0, 1e-3 * re, re, im, turns, state.turn_cosine, state.turn_sine, without)
    for k in range(TONES):
        divide(without[2 * k], without[2 * k + 1], with_[2 * k], with_[2 * k + 1], &re, &im)
        undone[2 * k] = z[2 * k] * re - z[2 * k + 1] * im
        undone[2 * k + 1] = z[2 * k] * im + z[2 * k + 1] * re
    if start_of_fit(state, &plain, undone, covariance, &at[0], &at[1], &at[2]) \
            and refine(state, config, pole, z, lower, at, fit):
        return
    # Where even that lies on no Rs + (Rp || C): the corner that the tones are for.
    at[0] = 0.5 * z[2]
    at[1] = z[0] - at[0]
    if at[0] > 0.0 and at[1] > 0.0:
        at[2] = 1.0 / (2.0 * M_PI * state.corner_hz * at[1])
        refine(state, config, pole, z, lower, at, fit)


cdef bint ratio_of(const ImpedanceState* state, const ImpedanceConfig* config, const BlockPhasors* sum_, double blocks,
                   double* z, double* covariance) noexcept nogil:
    """Z of both tones from summed phasors of that many blocks, with its 4 x 4 covariance; 0: too little current.

    White noise of the samples, and what the joint slope [t] costs: one error that all four share.
    """
    cdef double n = <double>config.block_ticks, spread = (n * n - 1.0) / (12.0 * n)
    cdef double volt = sum_.voltage_noise / blocks, amp = sum_.current_noise / blocks, size, white, re, im
    cdef double shared_v[4]
    cdef double shared_i[4]
    cdef int j, k
    for k in range(WAVES):
        spread -= (square(state.t_cosine[k]) + square(state.t_sine[k])) * 2.0 / n
    spread = 2.0 / (n * sqrt(spread))
    memset(covariance, 0, 16 * sizeof(double))
    for k in range(TONES):
        size = square(sum_.current_re[k]) + square(sum_.current_im[k])
        if not size > square(0.1 * config.tone_a * blocks):
            return False
        divide(sum_.voltage_re[k], sum_.voltage_im[k], sum_.current_re[k], sum_.current_im[k],
               &z[2 * k], &z[2 * k + 1])
        divide(state.t_cosine[k] * spread, -state.t_sine[k] * spread, sum_.current_re[k] / blocks,
               sum_.current_im[k] / blocks, &re, &im)
        shared_v[2 * k] = re
        shared_v[2 * k + 1] = im
        shared_i[2 * k] = re * z[2 * k] - im * z[2 * k + 1]
        shared_i[2 * k + 1] = re * z[2 * k + 1] + im * z[2 * k]
        white = 2.0 / n * (volt + (square(z[2 * k]) + square(z[2 * k + 1])) * amp) * square(blocks) / size
        covariance[10 * k] = white
        covariance[10 * k + 5] = white
    for j in range(4):
        for k in range(4):
            covariance[4 * j + k] += shared_v[j] * shared_v[k] * volt + shared_i[j] * shared_i[k] * amp
    return True


cdef void add_phasors(BlockPhasors* total, const BlockPhasors* one) noexcept nogil:
    cdef int k
    for k in range(TONES):
        total.voltage_re[k] += one.voltage_re[k]
        total.voltage_im[k] += one.voltage_im[k]
        total.current_re[k] += one.current_re[k]
        total.current_im[k] += one.current_im[k]
    total.voltage_noise += one.voltage_noise
    total.current_noise += one.current_noise


cdef double window_of(const ImpedanceState* state, BlockPhasors* total) noexcept nogil:
    """Sum of the blocks kept (their noise as its mean), and how many they are."""
    cdef uint32_t k
    memset(total, 0, sizeof(total[0]))
    for k in range(state.blocks_kept):
        add_phasors(total, &state.blocks[k])
    if state.blocks_kept:
        total.voltage_noise /= state.blocks_kept
        total.current_noise /= state.blocks_kept
    return <double>state.blocks_kept


cdef bint has_changed(const double* z, const double* covariance, const double* before,
                      const double* before_covariance) noexcept nogil:
    """1: two impedances differ by more than chance, and by more than a slow drift does from block to block."""
    cdef double both[16]
    cdef double lower[16]
    cdef double apart[4]
    cdef double far = 0.0
    cdef int k
    for k in range(16):
        both[k] = covariance[k] + before_covariance[k]
    for k in range(4):
        apart[k] = z[k] - before[k]
    for k in range(TONES):
        if (square(apart[2 * k]) + square(apart[2 * k + 1])
                > square(CHANGED_LEAST) * (square(before[2 * k]) + square(before[2 * k + 1]))):
            far = 1.0
    if far == 0.0 or not factor(both, lower):
        return False
    whiten(lower, apart)
    return square(apart[0]) + square(apart[1]) + square(apart[2]) + square(apart[3]) > CHANGED


cdef void block_phasors(ImpedanceState* state, const ImpedanceConfig* config, BlockPhasors* block) noexcept nogil:
    """Joint least squares of one block. The tones are orthogonal to 1 and to each other; t is made so."""
    cdef double n = <double>config.block_ticks, half = 0.5 * n
    cdef double spread = (n * n - 1.0) / (12.0 * n)
    cdef double slope_v = state.sum_vt, slope_i = state.sum_it, vc, vs, ic, is_, hum_v
    cdef double noise_v = state.sum_vv - state.sum_v * state.sum_v / n
    cdef double noise_i = state.sum_ii - state.sum_i * state.sum_i / n
    cdef int k
    for k in range(WAVES):
        spread -= (square(state.t_cosine[k]) + square(state.t_sine[k])) / half
        slope_v -= (state.t_cosine[k] * state.sum_vc[k] + state.t_sine[k] * state.sum_vs[k]) / half
        slope_i -= (state.t_cosine[k] * state.sum_ic[k] + state.t_sine[k] * state.sum_is[k]) / half
    slope_v /= spread
    slope_i /= spread
    noise_v -= slope_v * state.sum_vt
    noise_i -= slope_i * state.sum_it
    for k in range(WAVES):
        vc = (state.sum_vc[k] - slope_v * state.t_cosine[k]) / half
        vs = (state.sum_vs[k] - slope_v * state.t_sine[k]) / half
        ic = (state.sum_ic[k] - slope_i * state.t_cosine[k]) / half
        is_ = (state.sum_is[k] - slope_i * state.t_sine[k]) / half
        noise_v -= vc * state.sum_vc[k] + vs * state.sum_vs[k]
        noise_i -= ic * state.sum_ic[k] + is_ * state.sum_is[k]
        if k == FIFTY:
            state.estimate.hum_v = sqrt(vc * vc + vs * vs)
        elif k == SIXTY:
            hum_v = sqrt(vc * vc + vs * vs)
            if hum_v > state.estimate.hum_v:
                state.estimate.hum_v = hum_v
        else:
            # The real part of (re + j im) exp(j phase) is c cos + s sin.
            block.voltage_re[k] = vc
            block.voltage_im[k] = -vs
            block.current_re[k] = ic
            block.current_im[k] = -is_
    noise_v /= n - 10.0
    noise_i /= n - 10.0
    block.voltage_noise = noise_v if noise_v > square(config.voltage_noise_v) else square(config.voltage_noise_v)
    block.current_noise = noise_i if noise_i > square(config.current_noise_a) else square(config.current_noise_a)
    # Where a model reading has no noise at all, the fit still needs weights.
    if not block.voltage_noise > 0.0:
        block.voltage_noise = 1e-24
    if not block.current_noise > 0.0:
        block.current_noise = 1e-36


cdef bint is_disturbed(ImpedanceState* state, const ImpedanceConfig* config, const BlockPhasors* block) noexcept nogil:
    """1: something stepped or kicked within this block: its residual is beyond chance larger than usual.

    A step leaks far more into a low tone than white noise of the same power. What stays noisy becomes usual.
    """
    cdef double noise = block.voltage_noise, limit
    if state.quiet_v2 == 0.0:
        state.quiet_v2 = noise
        return False
    limit = (1.5 + 7.0 * sqrt(2.0 / config.block_ticks)) * state.quiet_v2
    if noise < state.quiet_v2:
        state.quiet_v2 += 0.5 * (noise - state.quiet_v2)
    else:
        state.quiet_v2 += 0.1 * ((noise if noise < 4.0 * state.quiet_v2 else 4.0 * state.quiet_v2) - state.quiet_v2)
    return noise > limit


cdef void retune(ImpedanceState* state, const ImpedanceConfig* config, const LoadFit* fit,
                 double low_re) noexcept nogil:
    """Other tones where the corner has moved for several blocks, or where these have shown no load for a window."""
    cdef double corner_hz, factor_
    if not config.retune_factor > 1.0:
        return
    if fit.parallel_ohm > 0.0:
        state.blind_run = 0
        corner_hz = 1.0 / (2.0 * M_PI * fit.parallel_ohm * fit.capacitance_f)
        factor_ = corner_hz / state.corner_hz
        if (factor_ > config.retune_factor or factor_ * config.retune_factor < 1.0) and \
                fit.covariance[3] + 2.0 * fit.covariance[4] + fit.covariance[5] < 0.04:
            state.away_run += 1
            if state.away_run >= AWAY_BLOCKS:
                state.away_run = 0
                impedance_choose_tones(state, config, corner_hz)
        else:
            state.away_run = 0
        return
    state.away_run = 0
    state.blind_run += 1
    if state.blind_run >= WINDOW_BLOCKS:
        state.blind_run = 0
        # Far less impedance than the chord: the tones lie above the corner.
        impedance_choose_tones(
            state, config, state.corner_hz * (1.0 / 3.0 if low_re < 0.5 * fabs(state.estimate.resistance_ohm) else 3.0)
        )


cdef void forget_load(Estimate* estimate) noexcept nogil:
    estimate.series_ohm = estimate.parallel_ohm = estimate.capacitance_f = 0.0
    estimate.series_sigma_ohm = estimate.parallel_sigma_ohm = estimate.capacitance_sigma_f = 0.0
    estimate.emf_v = estimate.emf_sigma_v = estimate.misfit = 0.0


cdef void close_block(ImpedanceState* state, const ImpedanceConfig* config, int32_t tone_on) noexcept nogil:
    """A bounded fit: at most four times eight Gauss-Newton steps of a few hundred operations, once a block."""
    cdef Estimate* estimate = &state.estimate
    cdef BlockPhasors block
    cdef BlockPhasors total
    cdef LoadFit fit
    cdef double n = <double>config.block_ticks, kept, scale, variance
    cdef double mean_v = state.first_v + state.sum_v / n, mean_i = state.first_i + state.sum_i / n
    cdef double z[4]
    cdef double before[4]
    cdef double covariance[16]
    cdef double before_covariance[16]
    cdef double r0, r0_sigma
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
    estimate.mean_a = mean_i
    memset(&estimate.latest, 0, sizeof(estimate.latest))
    if tone_on and config.tone_a > 0.0:
        block_phasors(state, config, &block)
    if not tone_on or config.tone_a <= 0.0 or not ratio_of(state, config, &block, 1.0, z, covariance):
        forget_load(estimate)
        state.blocks_kept = state.blocks_at = 0
        estimate.window_blocks = 0
        return
    if is_disturbed(state, config, &block):
        estimate.latest.disturbed = 1
        return
    kept = window_of(state, &total)
    if kept > 0.0 and (not ratio_of(state, config, &total, kept, before, before_covariance)
                       or has_changed(z, covariance, before, before_covariance)):
        state.blocks_kept = state.blocks_at = 0
    state.blocks[state.blocks_at] = block
    state.blocks_at = (state.blocks_at + 1) % WINDOW_BLOCKS
    if state.blocks_kept < WINDOW_BLOCKS:
        state.blocks_kept += 1
    estimate.window_blocks = state.blocks_kept
    forget_load(estimate)
    fit_load(state, config, z, covariance, &estimate.latest)
    if state.blocks_kept == 1:
        fit = estimate.latest
    else:
        kept = window_of(state, &total)
        if not ratio_of(state, config, &total, kept, z, covariance):
            return
        fit_load(state, config, z, covariance, &fit)
    if fit.parallel_ohm > 0.0:
        # A load that is no Rs + (Rp || C) fits to neither tone: its numbers are as uncertain as that.
        scale = fit.misfit / 3.0 if fit.misfit > 3.0 else 1.0
        estimate.series_ohm = fit.series_ohm
        estimate.parallel_ohm = fit.parallel_ohm
        estimate.capacitance_f = fit.capacitance_f
        estimate.series_sigma_ohm = scale * fit.series_ohm * sqrt(fit.covariance[0])
        estimate.parallel_sigma_ohm = scale * fit.parallel_ohm * sqrt(fit.covariance[3])
        estimate.capacitance_sigma_f = scale * fit.capacitance_f * sqrt(fit.covariance[5])
        estimate.misfit = fit.misfit
        variance = (
            square(fit.series_ohm) * fit.covariance[0] + square(fit.parallel_ohm) * fit.covariance[3]
            + 2.0 * fit.series_ohm * fit.parallel_ohm * fit.covariance[1]
        )
        estimate.emf_v = mean_v - mean_i * (fit.series_ohm + fit.parallel_ohm)
        estimate.emf_sigma_v = sqrt(square(scale * mean_i) * variance + block.voltage_noise / n)
    retune(state, config, &fit, z[0])


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


cdef void open_block(ImpedanceState* state, double current_a, double voltage_v) noexcept nogil:
    """The sums of t cos and t sin follow from the phase at the start: exp(j phase) / (exp(j turn) - 1)."""
    cdef double half
    cdef int k
    state.first_v = voltage_v
    state.first_i = current_a
    state.sum_v = state.sum_i = state.sum_vt = state.sum_it = state.sum_vv = state.sum_ii = 0.0
    for k in range(WAVES):
        state.sum_vc[k] = state.sum_vs[k] = state.sum_ic[k] = state.sum_is[k] = 0.0
        half = 0.5 * state.turn_sine[k] / (1.0 - state.turn_cosine[k])
        state.t_cosine[k] = -0.5 * state.cosine[k] + half * state.sine[k]
        state.t_sine[k] = -0.5 * state.sine[k] - half * state.cosine[k]


cdef void impedance_step(ImpedanceState* state, const ImpedanceConfig* config, double current_a, double voltage_v,
                         double setpoint_a, int32_t tone_on) noexcept nogil:
    cdef double t, v, i, least
    cdef int k
    if state.bins[LOW] == 0:
        impedance_choose_tones(state, config, config.corner_hz)
    judge_contact(
        state, config, current_a if setpoint_a >= 0.0 else -current_a, fabs(voltage_v), fabs(setpoint_a)
    )
    if tone_on != state.tone_on:
        state.tone_on = tone_on
        drop_block(state, config)
    if state.estimate.contact == CONTACT_LOST:
        drop_block(state, config)
    elif state.settle_left:
        state.settle_left -= 1
    else:
        if state.block_fill == 0:
            open_block(state, current_a, voltage_v)
        t = (state.block_fill - 0.5 * (config.block_ticks - 1.0)) / config.block_ticks
        v = voltage_v - state.first_v
        i = current_a - state.first_i
        state.sum_v += v
        state.sum_i += i
        state.sum_vt += v * t
        state.sum_it += i * t
        for k in range(WAVES):
            state.sum_vc[k] += v * state.cosine[k]
            state.sum_vs[k] += v * state.sine[k]
            state.sum_ic[k] += i * state.cosine[k]
            state.sum_is[k] += i * state.sine[k]
        state.sum_vv += v * v
        state.sum_ii += i * i
        state.block_fill += 1
        if state.block_fill == config.block_ticks:
            state.block_fill = 0
            i = state.first_i * config.block_ticks + state.sum_i
            least = config.open_floor_a * config.block_ticks
            if i > least or -i > least:
                close_block(state, config, tone_on)
    for k in range(WAVES):
        turn(state, k)
    state.phase_ticks += 1
    if state.phase_ticks >= config.block_ticks:
        state.phase_ticks = 0
        for k in range(WAVES):
            if state.turn_cosine[k] != 0.0 or state.turn_sine[k] != 0.0:
                state.cosine[k] = 1.0
                state.sine[k] = 0.0


cdef double impedance_hum(const ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil:
    cdef double half = 0.5 * config.block_ticks
    cdef double spread = (4.0 * half * half - 1.0) / (24.0 * half), slope = state.sum_it, power = 0.0
    cdef int k
    for k in range(WAVES):
        spread -= (square(state.t_cosine[k]) + square(state.t_sine[k])) / half
        slope -= (state.t_cosine[k] * state.sum_ic[k] + state.t_sine[k] * state.sum_is[k]) / half
    slope /= spread
    for k in range(FIFTY, WAVES):
        power += square((state.sum_ic[k] - slope * state.t_cosine[k]) / half)
        power += square((state.sum_is[k] - slope * state.t_sine[k]) / half)
    return sqrt(0.5 * power)


cdef void impedance_break(ImpedanceState* state, const ImpedanceConfig* config, uint32_t ticks) noexcept nogil:
    if state.bins[LOW] == 0:
        impedance_choose_tones(state, config, config.corner_hz)
    drop_block(state, config)
    if ticks:
        state.phase_ticks = (state.phase_ticks + ticks % config.block_ticks) % config.block_ticks
        set_phases(state, config)


def assign_tones(corners_hz, *, double tick_s, int block_ticks=0):
    """Tones for several channels on one body, none of them another's, its double or triple, or a harmonic of mains.

    corners_hz: corner frequency of each channel's load, Hz. Returns a list of (low, high) in periods per block, to be
    given as `bins`. ValueError if there are more channels than free bins.
    """
    cdef ImpedanceConfig config
    cdef ImpedanceState state
    cdef int n = block_ticks if block_ticks else max(16, round(0.1 / tick_s))
    memset(&config, 0, sizeof(config))
    config.tick_s = tick_s
    config.block_ticks = n
    taken = set()
    chosen = []

    def free(k, least, most):
        return least <= k <= most and k not in taken and not hums(&config, k)

    for corner in corners_hz:
        memset(&state, 0, sizeof(state))
        impedance_choose_tones(&state, &config, corner)
        pair = []
        for wanted in (state.bins[LOW], state.bins[HIGH]):
            near = sorted(range(2, int(0.3 * n) + 1), key=lambda k: (abs(k - wanted), k))
            found = next((k for k in near if free(k, 2, int(0.3 * n)) and all(k not in (2 * p, 3 * p) for p in pair)),
                         None)
            if found is None:
                raise ValueError(f"{len(list(corners_hz))} channels need more tones than a block of {n} ticks has")
            pair.append(found)
            taken.update((found, 2 * found, 3 * found))
        chosen.append((min(pair), max(pair)))
    return chosen


cdef class ImpedanceEstimator:
    """The impedance estimator of the tick, for one channel: Rs + (Rp || C) from two tones on the current.

        estimator = ImpedanceEstimator(tick_s=2e-4, tone_a=19e-6, corner_hz=332)
        for each sample: drive level_a + estimator.tone(), measure, estimator.step(current_a, voltage_v)
        estimator.estimate["series_ohm"], ["series_sigma_ohm"], ...

    Args:
        tick_s: sample period, s.
        tone_a: peak of each of the two tones, A; 0: no tone, total resistance only.
        corner_hz: 1/(2 pi Rp C) of the load, roughly. The tones lie at about 0.4 and 5 times it, at most at 0.3 of the
            sample rate, never on a harmonic of 50 or 60 Hz.
        retune_factor: tones are chosen anew, between blocks, when the corner has moved by this factor; 0: never.
        block_ticks: length of a block; 0: 0.1 s, whole periods of 50 and of 60 Hz.
        bins: (low, high), fixed tones in periods per block; None: chosen.
        current_between_samples: "held": the current is a staircase, each value held for one period and sampled, as the
            voltage is, at its end (a current source behind a converter; with ballast_ohm the voltage is what is held).
            "smooth": both are samples of band-limited signals, so that Z = Z(j omega).
        output_time_s: time constant with which a held output settles, s; 0: at once.
        ballast_ohm: of a voltage source, ohm; 0: a current source.
        skew_s: how much later than the current the voltage is sampled, s. Uncalibrated it adds skew_s / C to Rs.
        electrode_emf_v: one standard deviation of the unknown electrode potential (V), in the chord's uncertainty.
        voltage_noise_v, current_noise_a: noise floor of one sample; above it the noise is measured.
        open_ratio, open_floor_a, open_voltage_v, open_any_voltage, open_ticks, good_ticks: the verdict on contact.

    Raises:
        ValueError: a parameter out of range.
    """
    cdef ImpedanceConfig config
    cdef ImpedanceState state

    def __init__(self, *, double tick_s, double tone_a=0.0, double corner_hz=200.0, double retune_factor=1.6,
                 int block_ticks=0, bins=None, str current_between_samples="held", double output_time_s=0.0,
                 double ballast_ohm=0.0, double skew_s=0.0, double electrode_emf_v=0.5, double voltage_noise_v=0.0,
                 double current_noise_a=0.0, double open_ratio=0.1, double open_floor_a=1e-6,
                 double open_voltage_v=0.0, bint open_any_voltage=False, int open_ticks=3, int good_ticks=3):
        for name, value in (("tick_s", tick_s), ("open_floor_a", open_floor_a), ("corner_hz", corner_hz)):
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} = {value}: must be above 0")
        for name, value in (("tone_a", tone_a), ("electrode_emf_v", electrode_emf_v),
                            ("voltage_noise_v", voltage_noise_v), ("current_noise_a", current_noise_a),
                            ("open_ratio", open_ratio), ("open_voltage_v", open_voltage_v),
                            ("output_time_s", output_time_s), ("ballast_ohm", ballast_ohm)):
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} = {value}: must not be negative")
        if not (retune_factor == 0.0 or 1.1 <= retune_factor < math.inf):
            raise ValueError(f"retune_factor = {retune_factor}: must be 0 (never) or at least 1.1")
        if not abs(skew_s) < tick_s:
            raise ValueError(f"skew_s = {skew_s}: must be less than a sample period of {tick_s} s")
        if current_between_samples not in ("held", "smooth"):
            raise ValueError(f"current_between_samples = {current_between_samples!r}: must be 'held' or 'smooth'")
        if block_ticks == 0:
            block_ticks = max(16, round(0.1 / tick_s))
        if not 16 <= block_ticks <= 100_000:
            raise ValueError(f"block_ticks = {block_ticks}: must be 0 (0.1 s) or 16 to 100000")
        low, high = bins if bins is not None else (0, 0)
        if bins is not None and not 1 <= low < high < 0.5 * block_ticks:
            raise ValueError(f"bins = {bins}: must be two rising numbers from 1 to below {block_ticks} / 2")
        if open_ticks < 1 or good_ticks < 1:
            raise ValueError("open_ticks and good_ticks must be at least 1")
        self.config = {
            "tick_s": tick_s, "tone_a": tone_a, "corner_hz": corner_hz, "retune_factor": retune_factor,
            "electrode_emf_v": electrode_emf_v, "voltage_noise_v": voltage_noise_v, "current_noise_a": current_noise_a,
            "skew_s": skew_s, "output_time_s": output_time_s, "ballast_ohm": ballast_ohm,
            "open_ratio": open_ratio, "open_floor_a": open_floor_a, "open_voltage_v": open_voltage_v,
            "smooth": current_between_samples == "smooth", "open_any_voltage": open_any_voltage,
            "open_ticks": open_ticks, "good_ticks": good_ticks, "block_ticks": block_ticks, "low_bin": low,
            "high_bin": high,
        }
        memset(&self.state, 0, sizeof(self.state))
        impedance_choose_tones(&self.state, &self.config, corner_hz)

    def tone(self) -> float:
        """The tones (A) to add to the setpoint of the next step."""
        return impedance_tone(&self.state, &self.config)

    def choose_tones(self, double corner_hz) -> None:
        """Tones for a load of this corner frequency (Hz), from the next step on. Fixed `bins` stay."""
        if not (math.isfinite(corner_hz) and corner_hz > 0.0):
            raise ValueError(f"corner_hz = {corner_hz}: must be above 0")
        impedance_choose_tones(&self.state, &self.config, corner_hz)

    def follow(self, ImpedanceEstimator leader) -> None:
        """Take over tones and time of another estimator with the same tick_s and block_ticks.

        So a second voltage under the same current (a sentinel electrode's) is estimated with the leader's tones; call
        it before each step.
        """
        if leader.config.block_ticks != self.config.block_ticks or leader.config.tick_s != self.config.tick_s:
            raise ValueError("an estimator follows one of the same tick_s and block_ticks")
        impedance_follow(&self.state, &leader.state)

    def model(self, double series_ohm, double parallel_ohm, double capacitance_f, double hz) -> complex:
        """Impedance (ohm) of Rs + (Rp || C) at `hz`, as this estimator's sampling shows it."""
        cdef double re, im
        impedance_model(&self.config, series_ohm, parallel_ohm, capacitance_f, hz * self.config.tick_s, &re, &im)
        return complex(re, im)

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

    def fits(self, current_a, voltage_v):
        """`step` for arrays of shape (n,), tones on: the fits of the blocks that closed, shape (blocks, 11).

        Columns: Rs, Rp, C, the six covariances of struct LoadFit, disturbed, mean current (A).
        """
        cdef double[::1] currents = np.ascontiguousarray(current_a, dtype=np.float64)
        cdef double[::1] voltages = np.ascontiguousarray(voltage_v, dtype=np.float64)
        cdef Py_ssize_t n = currents.shape[0], k, closed = 0
        cdef int j
        cdef uint32_t before
        if voltages.shape[0] != n:
            raise ValueError("current_a and voltage_v must have one shape")
        result = np.zeros((n // self.config.block_ticks + 1, 11))
        cdef double[:, ::1] rows = result
        cdef const Estimate* estimate = &self.state.estimate
        with nogil:
            for k in range(n):
                before = estimate.block
                if isfinite(currents[k]) and isfinite(voltages[k]):
                    impedance_step(&self.state, &self.config, currents[k], voltages[k], 0.0, 1)
                if estimate.block != before:
                    rows[closed, 0] = estimate.latest.series_ohm
                    rows[closed, 1] = estimate.latest.parallel_ohm
                    rows[closed, 2] = estimate.latest.capacitance_f
                    for j in range(6):
                        rows[closed, 3 + j] = estimate.latest.covariance[j]
                    rows[closed, 9] = estimate.latest.disturbed
                    rows[closed, 10] = estimate.mean_a
                    closed += 1
        return result[:closed]

    @property
    def estimate(self) -> dict:
        """The estimate in force, as a dict of struct Estimate."""
        return self.state.estimate

    @property
    def state_values(self) -> dict:
        """Every field of the state, for comparison in tests and records."""
        return self.state
