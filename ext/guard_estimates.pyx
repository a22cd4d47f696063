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
    AREA_RUN = 5
    GLANCES_AFTER = 10          # a breakdown moves a voltage source's current, for some samples
    HUM_RUN = 2
    POTENTIAL_BLOCKS = 50


cdef void estimates_glance(EstimateWatch* watch, const EstimateLimits* limits, double current_a,
                           double voltage_v) noexcept nogil:
    """H11, on the voltage's fall while the current stands: it is at least that of a Rp which falls so far. Rs is what
    was last known of it; the electrodes' potential, which does not fall, is taken as large as it may be. Where that is
    most of the voltage there is no verdict by Rp. Skin bends: where it conducts ten times as well, V/I falls by less,
    and where its corner lies beyond the tones Rs is not known at all. So V/I itself is judged as well.
    """
    cdef double size_a = fabs(current_a), now, before, parallel
    cdef uint32_t k
    if watch.steady_blocks >= SETTLE:
        watch.glances_left = GLANCES_AFTER
    elif watch.glances_left:
        watch.glances_left -= 1
    if size_a < limits.floor_a or watch.glances_left == 0:
        watch.glances = 0
        return
    now = voltage_v / current_a
    for k in range(watch.glances if watch.glances < GLANCES else GLANCES):
        before = watch.glance_ohm[k]
        parallel = before - watch.series_known_ohm - limits.potential_v / size_a
        # A fiftieth is less than what the shortest opening that rides through at 1 kHz takes off a glance.
        if fabs(watch.glance_a[k] - current_a) < 0.02 * size_a and (
                now < limits.fall_ratio * before
                or (parallel > limits.potential_v / size_a
                    and before - now > (1.0 - limits.breakdown_ratio) * parallel)):
            watch.verdict.pause = TRIP_BREAKDOWN
            watch.verdict.latched = 1
    watch.glance_ohm[watch.glances % GLANCES] = now
    watch.glance_a[watch.glances % GLANCES] = current_a
    watch.glances += 1


cdef void forget_rise(Rise* course) noexcept nogil:
    course.second_ohm = 0.0
    course.second_fill = course.seconds = 0


cdef void rising(EstimateWatch* watch, const EstimateLimits* limits, Rise* course,
                 double resistance_ohm) noexcept nogil:
    """H12. A slope, no step: no second of the five makes up half of the rise."""
    cdef double rise, step, largest = 0.0, first, last
    cdef uint32_t k
    course.second_ohm += resistance_ohm
    course.second_fill += 1
    if course.second_fill < SECOND:
        return
    course.seconds_ohm[course.seconds % 6] = course.second_ohm / SECOND
    course.seconds += 1
    course.second_ohm = 0.0
    course.second_fill = 0
    if course.seconds < 6:
        return
    first = course.seconds_ohm[course.seconds % 6]
    last = course.seconds_ohm[(course.seconds - 1) % 6]
    rise = last - first
    for k in range(1, 6):
        step = course.seconds_ohm[(course.seconds + k) % 6] - course.seconds_ohm[(course.seconds + k - 1) % 6]
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


cdef void forget_area(EstimateWatch* watch) noexcept nogil:
    watch.verdict.cap_a = 0.0
    watch.verdict.advice &= ~<uint32_t>ADVICE_AREA
    watch.dense_run = watch.area_run = 0


cdef void density(EstimateWatch* watch, const EstimateLimits* limits, const EstimateInput* given,
                  double current_a) noexcept nogil:
    """H13 on the area that is left: the level is capped, and where the current does not follow it ramps down. The cap
    stays until an operator has resumed, and only falls: an alarm that ends, by the derating too, or a pad that is no
    longer seen, is no contact, and without a baseline that follows the skin the ratio drifts.
    """
    cdef double most = limits.density_a * given.area_ratio
    if watch.verdict.cap_a == 0.0:
        if not (given.area_smaller and 0.0 < given.area_ratio < 1.0):
            return
        watch.verdict.cap_a = most
    elif 0.0 < most < watch.verdict.cap_a:
        # The largest of some blocks in a row: none of them is an outlier.
        if watch.area_run == 0 or most > watch.area_low_a:
            watch.area_low_a = most
        watch.area_run += 1
        if watch.area_run >= AREA_RUN:
            watch.verdict.cap_a = watch.area_low_a
            watch.area_run = 0
    else:
        watch.area_run = 0
    most = watch.verdict.cap_a
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


cdef inline bint apart(double a, double margin, double b, double ratio) noexcept nogil:
    """1: a, give or take the margin, is beyond ratio times b, or below b by it."""
    return a - margin > ratio * b or (a + margin) * ratio < b


cdef inline double known_f(const Estimate* estimate) noexcept nogil:
    return (
        estimate.capacitance_f if estimate.capacitance_sigma_f < 0.05 * estimate.capacitance_f
        and estimate.series_sigma_ohm < 0.05 * estimate.series_ohm else 0.0
    )


cdef void compare(EstimateWatch* watch, const EstimateLimits* limits, const Estimate* estimate,
                  double current_a) noexcept nogil:
    """H48. V/I once the current is back where it was, for skin bends; C, which hardly does, as soon as it is seen."""
    cdef bint changed = False
    # On the way up the tones are small beside the converters' steps: three deviations count for nothing.
    if (watch.before_f > 0.0 and estimate.capacitance_f > 0.0
            and estimate.capacitance_sigma_f < 0.15 * estimate.capacitance_f
            and apart(estimate.capacitance_f, 3.0 * estimate.capacitance_sigma_f, watch.before_f,
                      limits.changed_ratio)):
        watch.seen_run += 1
        changed = watch.seen_run >= BACK_RUN
    else:
        watch.seen_run = 0
    if current_a < 0.9 * watch.before_a:
        watch.back_run = 0
    else:
        watch.back_run += 1
        if watch.back_run >= BACK_RUN:
            watch.resumed = 0
            changed = changed or apart(estimate.resistance_ohm, 0.0, watch.before_ohm, limits.changed_ratio)
    if changed:
        watch.resumed = 0
        watch.verdict.pause = TRIP_PAD_CHANGED
        watch.verdict.latched = 1


cdef void forget_course(EstimateWatch* watch) noexcept nogil:
    forget_rise(&watch.total)
    forget_rise(&watch.tangent)
    watch.potential_v = 0.0
    watch.potential_fill = watch.potentials = 0


cdef void estimates_step(EstimateWatch* watch, const EstimateLimits* limits, const Estimate* estimate,
                         const EstimateInput* given) noexcept nogil:
    cdef double current_a = fabs(given.current_a), tangent_ohm
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
        compare(watch, limits, estimate, current_a)
    if watch.steady_blocks < SETTLE:
        forget_course(watch)
        return
    watch.steady_ohm = estimate.resistance_ohm
    watch.steady_a = current_a
    watch.steady_f = known_f(estimate)
    rising(watch, limits, &watch.total, estimate.resistance_ohm)
    tangent_ohm = estimate.series_ohm + estimate.parallel_ohm
    if (estimate.series_sigma_ohm + estimate.parallel_sigma_ohm < 0.02 * tangent_ohm
            and estimate.series_ohm > 0.0 and estimate.parallel_ohm > 0.0):
        rising(watch, limits, &watch.tangent, tangent_ohm)
    else:
        forget_rise(&watch.tangent)
    potential(watch, limits, estimate, 1.0 if given.current_a > 0.0 else -1.0)
    drying(watch, limits, estimate, given.area_smaller)


cdef void estimates_operator(EstimateWatch* watch, int32_t command, int32_t pause) noexcept nogil:
    if command == OPERATOR_PAUSE and not watch.resumed:
        watch.before_ohm = watch.steady_ohm
        watch.before_a = watch.steady_a
        watch.before_f = watch.steady_f
    elif command == OPERATOR_RESUME:
        # Who resumes after H48 has said so vouches for the pads.
        watch.resumed = 1 if pause == TRIP_NONE and watch.before_ohm > 0.0 else 0
        watch.back_run = watch.seen_run = 0
        watch.series_ohm = 0.0
        watch.glances = watch.glances_left = 0
        watch.verdict.advice = 0
        forget_area(watch)
        forget_course(watch)
