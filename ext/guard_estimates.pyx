"""Estimate -> pause, ramp down, cap, advice. The second class of the guard's rows: what they rest on is inferred, so
none of them is the only stop. They run when a block of a tenth of a second closes, and cost nothing in between.
"""
from libc.math cimport fabs
from libc.stdint cimport int32_t, uint32_t

from ionto_rt.core.elementary cimport exact_log
from ionto_rt.core.types cimport (
    ADVICE_AREA, ADVICE_MAINS, ADVICE_WET_PADS, OPERATOR_PAUSE, OPERATOR_RESUME, TRIP_BREAKDOWN, TRIP_DENSITY,
    TRIP_ELECTRODE_SPENT, TRIP_INTERFERENCE, TRIP_NONE, TRIP_PAD_CHANGED, TRIP_RESISTANCE_RISING, Estimate,
)

cdef enum:
    SECOND = 10                 # blocks
    GLANCES = 50                # of a fifth of a block, in a second
    SETTLE = 20                 # blocks after which a current that stands has let the skin settle
    SMOOTH = 20
    SLOW = 100
    DRY_RUN = 10
    DENSE_RUN = 10
    BACK_RUN = 5
    HUM_RUN = 2
    POTENTIAL_BLOCKS = 50


cdef void estimates_glance(EstimateWatch* watch, const EstimateLimits* limits, double current_a,
                           double voltage_v) noexcept nogil:
    """H11, on the voltage's fall while the current stands: it is at least that of a Rp which falls so far. Rs is what
    was last known of it; the electrodes' potential, which does not fall, is taken as large as it may be. Where that is
    most of the voltage there is no verdict.
    """
    cdef double size_a = fabs(current_a), now, before, parallel
    cdef uint32_t k
    if size_a < limits.floor_a or watch.steady_blocks < SETTLE:
        watch.glances = 0
        return
    now = voltage_v / current_a
    for k in range(watch.glances if watch.glances < GLANCES else GLANCES):
        before = watch.glance_ohm[k]
        parallel = before - watch.series_known_ohm - limits.potential_v / size_a
        if (fabs(watch.glance_a[k] - current_a) < 0.05 * size_a
                and parallel > limits.potential_v / size_a
                and before - now > (1.0 - limits.breakdown_ratio) * parallel):
            watch.verdict.pause = TRIP_BREAKDOWN
            watch.verdict.latched = 1
    watch.glance_ohm[watch.glances % GLANCES] = now
    watch.glance_a[watch.glances % GLANCES] = current_a
    watch.glances += 1


cdef void rising(EstimateWatch* watch, const EstimateLimits* limits, double resistance_ohm) noexcept nogil:
    """H12. A slope, no step: no second of the five makes up half of the rise."""
    cdef double rise, step, largest = 0.0, first, last
    cdef uint32_t k
    watch.second_ohm += resistance_ohm
    watch.second_fill += 1
    if watch.second_fill < SECOND:
        return
    watch.seconds_ohm[watch.seconds % 6] = watch.second_ohm / SECOND
    watch.seconds += 1
    watch.second_ohm = 0.0
    watch.second_fill = 0
    if watch.seconds < 6:
        return
    first = watch.seconds_ohm[watch.seconds % 6]
    last = watch.seconds_ohm[(watch.seconds - 1) % 6]
    rise = last - first
    for k in range(1, 6):
        step = watch.seconds_ohm[(watch.seconds + k) % 6] - watch.seconds_ohm[(watch.seconds + k - 1) % 6]
        largest = step if step > largest else largest
    if rise > 5.0 * limits.rising_per_s * first and largest <= 0.5 * rise:
        watch.verdict.trip = TRIP_RESISTANCE_RISING


cdef void drying(EstimateWatch* watch, const EstimateLimits* limits, const Estimate* estimate,
                 int32_t area_smaller) noexcept nogil:
    """H10: Rs grows, Rp stays. Where Rp grows along, contact is lost; where it falls, the skin changes."""
    cdef double log_parallel
    cdef bint dry
    if not (estimate.series_ohm > 0.0 and estimate.parallel_ohm > 0.0
            and estimate.series_sigma_ohm < 0.05 * estimate.series_ohm):
        return
    log_parallel = exact_log(estimate.parallel_ohm)
    if watch.series_ohm == 0.0:
        watch.series_ohm = watch.series_least_ohm = estimate.series_ohm
        watch.log_parallel = watch.log_parallel_slow = log_parallel
    watch.series_ohm += (estimate.series_ohm - watch.series_ohm) / SMOOTH
    watch.log_parallel += (log_parallel - watch.log_parallel) / SMOOTH
    watch.log_parallel_slow += (log_parallel - watch.log_parallel_slow) / SLOW
    if watch.series_ohm < watch.series_least_ohm:
        watch.series_least_ohm = watch.series_ohm
    if watch.series_ohm < limits.drying_again_ratio * watch.series_least_ohm:
        watch.verdict.advice &= ~<uint32_t>ADVICE_WET_PADS
    dry = (
        watch.series_ohm > limits.drying_ratio * watch.series_least_ohm and not area_smaller
        and fabs(watch.log_parallel - watch.log_parallel_slow) < limits.drying_log_parallel
    )
    watch.dry_run = watch.dry_run + 1 if dry else 0
    if watch.dry_run >= DRY_RUN:
        watch.verdict.advice |= ADVICE_WET_PADS


cdef void density(EstimateWatch* watch, const EstimateLimits* limits, const EstimateInput* given,
                  double current_a) noexcept nogil:
    """H13 on the area that is left: the level is capped, and where the current does not follow it ramps down."""
    cdef double most
    if not (given.area_smaller and 0.0 < given.area_ratio < 1.0):
        watch.verdict.cap_a = 0.0
        watch.verdict.advice &= ~<uint32_t>ADVICE_AREA
        watch.dense_run = 0
        return
    most = limits.density_a * given.area_ratio
    watch.verdict.cap_a = most
    if current_a > most:
        watch.verdict.advice |= ADVICE_AREA
    watch.dense_run = watch.dense_run + 1 if current_a > limits.density_ratio * most else 0
    if watch.dense_run > DENSE_RUN or most < limits.floor_a:
        watch.verdict.trip = TRIP_DENSITY


cdef void mains(EstimateWatch* watch, const EstimateLimits* limits, const Estimate* estimate,
                const EstimateInput* given, double current_a) noexcept nogil:
    """H41, in the current and on the voltage, in two blocks in a row: a step shows mains too. Below the limit the
    estimator's notch is enough.
    """
    cdef double voltage_v = fabs(estimate.resistance_ohm) * current_a
    cdef double least_v = voltage_v if voltage_v > limits.hum_least_v else limits.hum_least_v
    watch.hum_run = watch.hum_run + 1 if (
        given.hum_a > limits.hum_advise_ratio * current_a or given.hum_v > limits.hum_advise_ratio * least_v) else 0
    watch.loud_run = watch.loud_run + 1 if (
        given.hum_a > limits.hum_pause_ratio * current_a or given.hum_v > limits.hum_pause_ratio * least_v) else 0
    if watch.loud_run >= HUM_RUN:
        watch.verdict.pause = TRIP_INTERFERENCE
    if watch.hum_run >= HUM_RUN:
        watch.verdict.advice |= ADVICE_MAINS
    elif watch.hum_run == 0:
        watch.verdict.advice &= ~<uint32_t>ADVICE_MAINS


cdef void potential(EstimateWatch* watch, const EstimateLimits* limits, const Estimate* estimate,
                    double direction) noexcept nogil:
    """H43: an electrode whose coating is used up needs another reaction's potential."""
    cdef double newest, least
    cdef uint32_t k, kept
    if not 0.0 < estimate.emf_sigma_v < limits.potential_sigma_v:
        return
    watch.potential_v += direction * estimate.emf_v
    watch.potential_fill += 1
    if watch.potential_fill < POTENTIAL_BLOCKS:
        return
    newest = least = watch.potential_v / POTENTIAL_BLOCKS
    watch.potential_v = 0.0
    watch.potential_fill = 0
    watch.potentials_v[watch.potentials % 24] = newest
    watch.potentials += 1
    kept = watch.potentials if watch.potentials < 24 else 24
    for k in range(kept):
        least = watch.potentials_v[k] if watch.potentials_v[k] < least else least
    if newest - least > limits.potential_rise_v:
        watch.verdict.trip = TRIP_ELECTRODE_SPENT


cdef void compare(EstimateWatch* watch, const EstimateLimits* limits, double resistance_ohm,
                  double current_a) noexcept nogil:
    """H48, once the current is back where it was."""
    if current_a < 0.9 * watch.before_a:
        watch.back_run = 0
        return
    watch.back_run += 1
    if watch.back_run < BACK_RUN:
        return
    watch.resumed = 0
    if (resistance_ohm > limits.changed_ratio * watch.before_ohm
            or resistance_ohm * limits.changed_ratio < watch.before_ohm):
        watch.verdict.pause = TRIP_PAD_CHANGED
        watch.verdict.latched = 1


cdef void forget_course(EstimateWatch* watch) noexcept nogil:
    watch.second_ohm = 0.0
    watch.second_fill = watch.seconds = 0
    watch.potential_v = 0.0
    watch.potential_fill = watch.potentials = 0


cdef void estimates_step(EstimateWatch* watch, const EstimateLimits* limits, const Estimate* estimate,
                         const EstimateInput* given) noexcept nogil:
    cdef double current_a = fabs(given.current_a)
    watch.blocks += 1
    if fabs(given.current_a - watch.last_a) > limits.steady_ratio * current_a or given.limited or given.pausing:
        watch.steady_blocks = 0
    else:
        watch.steady_blocks += 1
    watch.last_a = given.current_a
    density(watch, limits, given, current_a)
    if current_a < limits.floor_a or given.pausing:
        forget_course(watch)
        return
    if estimate.series_sigma_ohm < 0.05 * estimate.series_ohm:
        watch.series_known_ohm = estimate.series_ohm
    mains(watch, limits, estimate, given, current_a)
    if watch.resumed:
        compare(watch, limits, estimate.resistance_ohm, current_a)
    if watch.steady_blocks < SETTLE:
        forget_course(watch)
        return
    watch.steady_ohm = estimate.resistance_ohm
    watch.steady_a = current_a
    rising(watch, limits, estimate.resistance_ohm)
    potential(watch, limits, estimate, 1.0 if given.current_a > 0.0 else -1.0)
    drying(watch, limits, estimate, given.area_smaller)


cdef void estimates_operator(EstimateWatch* watch, int32_t command, int32_t pause) noexcept nogil:
    if command == OPERATOR_PAUSE and not watch.resumed:
        watch.before_ohm = watch.steady_ohm
        watch.before_a = watch.steady_a
    elif command == OPERATOR_RESUME:
        # Who resumes after H48 has said so vouches for the pads.
        watch.resumed = 1 if pause == TRIP_NONE and watch.before_ohm > 0.0 else 0
        watch.back_run = 0
        watch.series_ohm = 0.0
        watch.glances = 0
        watch.verdict.advice = 0
        forget_course(watch)
