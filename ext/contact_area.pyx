"""Estimate -> contact area.

Where contact shrinks to a share a of what it was, that site's Rp and 1/C grow by 1/a, and so does its own part of Rs;
what changes in the skin changes Rp alone. So ln(a) is estimated by generalised least squares from ln Rs and ln C with
ln Rp free, against a baseline that follows the skin slowly, and summed up by two cumulative sums (Page 1954). Their
threshold keeps the stated mean time between false alarms (Siegmund 1985, equation for the two-sided sum of normals).
"""
import math

from libc.math cimport fabs, isfinite, sqrt
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

import numpy as np

from ionto_rt.core.elementary cimport exact_exp, exact_log
from ionto_rt.core.types cimport AREA_LARGER, AREA_SMALLER, AREA_STEADY, LoadFit

cdef enum:
    NOISE_BLOCKS = 50           # over which the deviation of one block is measured
    MEAN_BLOCKS = 3             # over which the ratio is smoothed
    SIGHT = 20                  # the most that it can be


cdef double threshold_of(double drift, double blocks) noexcept nogil:
    """Of a cumulative sum, in standard deviations, for one false alarm in that many blocks on either side together.

    Siegmund: blocks of one side = (exp(2 k b) - 2 k b - 1) / (2 k^2) with b = threshold + 1.166; solved by iteration.
    """
    cdef double least = 2.0 * drift * drift * 2.0 * blocks
    cdef double x = exact_log(1.0 + least)
    cdef int _n
    for _n in range(8):
        x = exact_log(1.0 + x + least)
    x = x / (2.0 * drift) - 1.166
    return x if x > 0.5 else 0.5


cdef double area_of(double log_area, double share) noexcept nogil:
    """Area over the baseline's: ln C of the whole moved by share * log_area, one pad being share of the total 1/C."""
    cdef double inverse = 1.0 + (exact_exp(-share * log_area) - 1.0) / share
    return 1.0 / inverse if inverse > 0.05 else 20.0


cdef void contact_area_reset(ContactAreaState* state) noexcept nogil:
    memset(state, 0, sizeof(state[0]))


cdef void start_over(ContactAreaState* state, uint32_t tone) noexcept nogil:
    state.blocks = 0
    state.sight = 0
    state.tone = tone
    state.area_ratio = 0.0
    state.sum_lower = state.sum_higher = 0.0
    state.alarm = AREA_STEADY


cdef void contact_area_step(ContactAreaState* state, const ContactAreaConfig* config, const LoadFit* fit,
                            uint32_t tone, double current_a) noexcept nogil:
    cdef double y[3]
    cdef double rs_rs, rs_c, c_c, size, w_rs, w_c, apart_rs, apart_c, log_area, variance, sigma, z, drift, gain, limit
    cdef int k
    cdef bint seen = fit.series_ohm > 0.0 and fit.parallel_ohm > 0.0 and fit.capacitance_f > 0.0
    if fabs(current_a - state.last_a) > config.moving_ratio * fabs(current_a):
        state.moving_left = config.moving_hold_blocks
    elif state.moving_left:
        state.moving_left -= 1
    state.last_a = current_a
    if fit.disturbed:
        return
    if seen:
        y[0] = exact_log(fit.series_ohm)
        y[1] = exact_log(fit.parallel_ohm)
        y[2] = exact_log(fit.capacitance_f)
        rs_rs = fit.covariance[0] + config.series_spread * config.series_spread
        rs_c = fit.covariance[2]
        c_c = fit.covariance[5]
        size = rs_rs * c_c - rs_c * rs_c
        # h = (-series share, site share); weights (h' S^-1) / (h' S^-1 h).
        w_rs = (-config.series_share * c_c - config.site_share * rs_c) / size
        w_c = (config.series_share * rs_c + config.site_share * rs_rs) / size
        variance = 1.0 / (config.site_share * w_c - config.series_share * w_rs)
        seen = isfinite(y[0]) and isfinite(y[1]) and isfinite(y[2]) and size > 0.0 \
            and 0.0 < variance < config.sigma_most * config.sigma_most
    if not seen:
        # A load at the edge of sight is seen by lucky blocks alone, which are wrong: no verdict on those.
        state.sight -= 2
        if state.sight <= 0 and not state.held:
            start_over(state, tone)
        return
    if state.sight < SIGHT:
        state.sight += 1

    if tone != state.tone:
        # Other tones show another part of a load that is no single Rs + (Rp || C): what was found so far stays.
        if state.blocks < config.start_blocks:
            start_over(state, tone)
        else:
            for k in range(3):
                state.baseline[k] += y[k] - state.seen[k]
        state.tone = tone
    for k in range(3):
        state.seen[k] = y[k]
    if state.blocks < config.start_blocks:
        state.blocks += 1
        for k in range(3):
            state.baseline[k] += (y[k] - state.baseline[k]) / (
                config.moving_blocks if state.moving_left and config.moving_blocks < state.blocks else state.blocks
            )
        if state.blocks == 1:
            for k in range(3):
                state.baseline[k] = y[k]
            state.log_area = state.noise = state.last = 0.0
        return

    apart_rs = y[0] - state.baseline[0]
    apart_c = y[2] - state.baseline[2]
    log_area = (w_rs * apart_rs + w_c * apart_c) * variance

    if state.noise == 0.0:
        state.noise = variance
    gain = 0.5 * (log_area - state.last) * (log_area - state.last)
    limit = 9.0 * (state.noise if state.noise > variance else variance)
    state.noise += ((gain if gain < limit else limit) - state.noise) / NOISE_BLOCKS
    state.last = log_area
    if variance < state.noise:
        variance = state.noise
    if variance < config.noise_floor * config.noise_floor:
        variance = config.noise_floor * config.noise_floor
    sigma = sqrt(variance)
    z = log_area / sigma
    drift = (1.0 if state.moving_left else 0.5) * config.step / sigma
    state.threshold = threshold_of(drift, config.blocks_to_false_alarm)
    state.sum_lower = bounded(state.sum_lower - z - drift, state.threshold)
    state.sum_higher = bounded(state.sum_higher + z - drift, state.threshold)
    if state.moving_left:
        # Dry skin that gives way on a ramp looks like more contact; that is no alarm.
        state.sum_higher = 0.0
    state.alarm = (
        AREA_SMALLER if state.sum_lower > state.threshold
        else AREA_LARGER if state.sum_higher > state.threshold else AREA_STEADY
    )

    gain = log_area - state.log_area
    state.log_area += gain if gain > 3.0 * sigma or gain < -3.0 * sigma else gain / MEAN_BLOCKS
    state.area_ratio = area_of(state.log_area, config.site_share)
    state.area_sigma = sigma
    if state.alarm == AREA_STEADY and not state.held and (state.moving_left or (
            state.sum_lower < 0.5 * state.threshold and state.sum_higher < 0.5 * state.threshold)):
        # Two sites of unlike skin look like one of another C when the current moves: only a sudden change counts then.
        gain = 1.0 / (config.moving_blocks if state.moving_left else config.baseline_blocks)
        for k in range(3):
            state.baseline[k] += (y[k] - state.baseline[k]) * gain


cdef inline double bounded(double total, double threshold) noexcept nogil:
    """Not below zero; and not so far beyond the threshold that the sum stays there long after its cause."""
    return 0.0 if total < 0.0 else 2.0 * threshold if total > 2.0 * threshold else total


cdef class ContactArea:
    """The test for contact area of the tick, on the fits of an `ImpedanceEstimator` (`estimate["latest"]`).

    Args:
        site_share: share of the watched pad in the total 1/C, (0, 1]; of two pads on like skin A_other / (A + A_other).
            1 where a sentinel electrode shows the pad alone. Without one the alarm is unlocalised: the ratio is what
            this pad would have to have.
        series_share: share of Rs that scales with the area, [0, 1]: leads and body do not.
        series_spread: deviation of ln Rs by leads and body within one block.
        noise_floor: least deviation of ln(area) in one block. Above it, the deviation is measured.
        sigma_most: a block that knows ln(area) worse than this is blind.
        step: size of |ln(area)| that the test is made for.
        blocks_to_false_alarm: mean number of blocks between false alarms, for normal deviations.
        baseline_blocks: time constant of the baseline. A change slower than step / 2 in this time goes into it.
        moving_blocks, moving_ratio, moving_hold_blocks: time constant of the baseline while the mean current changes by
            more than this share from block to block, and for so many blocks after.
        start_blocks: blocks that make the first baseline.

    Raises:
        ValueError: a parameter out of range.
    """
    cdef ContactAreaConfig config
    cdef ContactAreaState state

    def __init__(self, *, double site_share=1.0, double series_share=0.1, double series_spread=0.1,
                 double noise_floor=0.02, double sigma_most=0.15, double step=0.16,
                 double blocks_to_false_alarm=1.08e6,
                 double baseline_blocks=100.0, double moving_blocks=3.0,
                 double moving_ratio=0.003, int start_blocks=10, int moving_hold_blocks=10):
        for name, value, least, most in (
            ("site_share", site_share, 1e-3, 1.0), ("series_share", series_share, 0.0, 1.0),
            ("series_spread", series_spread, 0.0, 10.0), ("noise_floor", noise_floor, 1e-4, 1.0),
            ("sigma_most", sigma_most, 1e-4, 1.0), ("step", step, 0.01, 2.0),
            ("blocks_to_false_alarm", blocks_to_false_alarm, 10.0, 1e12),
            ("baseline_blocks", baseline_blocks, 2.0, 1e9), ("moving_blocks", moving_blocks, 1.0, 1e9),
            ("moving_ratio", moving_ratio, 1e-6, 1e9), ("start_blocks", start_blocks, 1, 1000),
            ("moving_hold_blocks", moving_hold_blocks, 0, 1000),
        ):
            if not (math.isfinite(value) and least <= value <= most):
                raise ValueError(f"{name} = {value}: must be from {least:g} to {most:g}")
        self.config = {
            "site_share": site_share, "series_share": series_share, "series_spread": series_spread,
            "noise_floor": noise_floor, "sigma_most": sigma_most, "step": step,
            "blocks_to_false_alarm": blocks_to_false_alarm,
            "baseline_blocks": baseline_blocks, "moving_blocks": moving_blocks, "moving_ratio": moving_ratio,
            "start_blocks": start_blocks, "moving_hold_blocks": moving_hold_blocks,
        }
        contact_area_reset(&self.state)

    def step(self, dict fit, int tone=0, double current_a=0.0) -> dict:
        """One block's fit (a dict of struct LoadFit) and mean current (A); the state as a dict.

        `tone`: a number that changes with the tones; then the baseline is taken anew.
        """
        cdef LoadFit one = fit
        contact_area_step(&self.state, &self.config, &one, tone, current_a)
        return self.state

    def run(self, fits) -> tuple:
        """Blocks as an array of shape (n, 11), as `ImpedanceEstimator.fits` gives them.

        Returns area ratio and alarm after each block, arrays of shape (n,).
        """
        cdef const double[:, ::1] given = np.ascontiguousarray(fits, dtype=np.float64)
        cdef Py_ssize_t n = given.shape[0], k
        cdef int j
        cdef LoadFit one
        if given.shape[1] != 11:
            raise ValueError("fits must have eleven columns")
        ratios, alarms = np.empty(n), np.empty(n, dtype=np.int32)
        cdef double[::1] ratio = ratios
        cdef int32_t[::1] alarm = alarms
        memset(&one, 0, sizeof(one))
        with nogil:
            for k in range(n):
                one.series_ohm = given[k, 0]
                one.parallel_ohm = given[k, 1]
                one.capacitance_f = given[k, 2]
                for j in range(6):
                    one.covariance[j] = given[k, 3 + j]
                one.disturbed = given[k, 9] != 0.0
                contact_area_step(&self.state, &self.config, &one, 0, given[k, 10])
                ratio[k] = self.state.area_ratio
                alarm[k] = self.state.alarm
        return ratios, alarms

    def reset(self) -> None:
        """Forget the baseline: the contact that is there is taken for good."""
        contact_area_reset(&self.state)

    @property
    def state_values(self) -> dict:
        """Every field of the state."""
        return self.state
