"""The treatment, compiled to segments: tick and charge -> setpoint.

Levels are magnitudes; the sign comes last, from the polarity. Delivered charge is net, in the treatment's direction.
A dose step starts its ramp-down where delivered plus ramp charge meets the dose; the ramp itself is charge-aware: at
each tick the level is the largest from which the remaining charge still suffices to ramp down.
"""
from libc.math cimport fabs, isfinite, sqrt
from libc.stdint cimport int32_t

from ionto_rt.core.types cimport (
    CONTACT_LOST, END_COMPLETE, END_CONTACT_OPEN, END_CONTACT_OUTSIDE, END_CONTACT_SHORT, END_CONTACT_UNCLEAR, END_NONE,
    END_OPERATOR, END_SELF_TEST, END_TRIP, OPERATOR_PAUSE, OPERATOR_RESUME, OPERATOR_STOP, OPERATOR_TRIM, PHASE_ABORTED,
    PHASE_COMPLETE, PHASE_CONTACT_CHECK, PHASE_FAULTED, PHASE_PAUSE, PHASE_RAMP_DOWN, PHASE_RAMP_UP, PHASE_SELF_TEST,
    PHASE_TREATMENT, PROBE_GOOD, PROBE_OPEN, PROBE_OUTSIDE, PROBE_RUNNING, PROBE_SHORT, SEGMENT_CONTACT_CHECK,
    SEGMENT_DELIVER, SEGMENT_RAMP_DOWN, SEGMENT_REST, SEGMENT_SELF_TEST, Segment, Setpoint,
)


cdef void end(ProgrammeState* state, int32_t phase, int32_t reason) noexcept nogil:
    state.phase = phase
    state.end_reason = reason
    state.level_a = 0.0


cdef void programme_fault(ProgrammeState* state) noexcept nogil:
    if state.end_reason == END_NONE:
        end(state, PHASE_FAULTED, END_TRIP)


cdef inline double in_force(const ProgrammeState* state) noexcept nogil:
    """The level that the setpoint has, derating included."""
    return state.ceiling_a if state.limited and state.level_a > state.ceiling_a else state.level_a


cdef double ramp_ticks(double level, double slope) noexcept nogil:
    """Charge, per tick, of the ramp level - slope, level - 2 slope, ... 0 that follows a tick at level."""
    return 0.5 * level * (level / slope - 1.0) if slope > 0.0 and level > slope else 0.0


cdef double fitting_level(double charge, double slope) noexcept nogil:
    """Largest level L of which one tick and then the ramp down deliver no more than charge, per tick:
    L + L (L - slope) / (2 slope) <= charge.
    """
    if charge <= 0.0:
        return 0.0
    if slope <= 0.0:
        return charge
    return sqrt(0.25 * slope * slope + 2.0 * slope * charge) - 0.5 * slope


cdef void clear_zero(ProgrammeState* state) noexcept nogil:
    state.zero_a = 0.0
    state.zero_redundant_a = 0.0
    state.zero_n = 0.0


cdef void next_segment(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                       double delivered) noexcept nogil:
    state.segment += 1
    state.segment_ticks = 0
    clear_zero(state)
    if state.segment >= config.segments:
        end(state, PHASE_COMPLETE, END_COMPLETE)
    elif segments[state.segment].kind == SEGMENT_DELIVER:
        # What is on its way belongs to the step before.
        state.step_start_c = delivered + in_force(state) * config.tick_s * config.loop_delay_ticks


cdef double approach(double level, double target, double rise, double fall) noexcept nogil:
    """One tick from level towards target; a slope of 0 arrives at once. Rounding does not add a tick to a ramp."""
    if target > level:
        return level + rise if rise > 0.0 and target - level > rise * 1.000001 else target
    return level - fall if fall > 0.0 and level - target > fall * 1.000001 else target


cdef void serve_operator(ProgrammeState* state, const ProgrammeConfig* config,
                         const ProgrammeInput* given) noexcept nogil:
    if given.operator_command == OPERATOR_PAUSE:
        state.paused = 1
    elif given.operator_command == OPERATOR_RESUME:
        state.paused = 0
    elif given.operator_command == OPERATOR_STOP:
        state.stopping = 1
    elif given.operator_command == OPERATOR_TRIM and isfinite(given.operator_value_a):
        state.trim_a += given.operator_value_a
        state.trimming = 1
        if state.trim_a > config.level_limit_a:
            state.trim_a = config.level_limit_a
        if state.trim_a < -config.level_limit_a:
            state.trim_a = -config.level_limit_a
    if given.stop:
        state.stopping = 1


cdef void self_test(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                    const ProgrammeInput* given, double delivered) noexcept nogil:
    cdef double mean, redundant
    state.phase = PHASE_SELF_TEST
    state.level_a = 0.0
    if state.stopping:
        end(state, PHASE_ABORTED, END_OPERATOR)
        return
    state.zero_a += given.current_a
    state.zero_redundant_a += given.redundant_a
    state.zero_n += 1.0
    if state.segment_ticks < segments[state.segment].duration_ticks:
        return
    mean = state.zero_a / state.zero_n
    redundant = state.zero_redundant_a / state.zero_n
    if (mean <= config.zero_tolerance_a and mean >= -config.zero_tolerance_a
            and redundant <= config.zero_tolerance_a and redundant >= -config.zero_tolerance_a):
        next_segment(state, config, segments, delivered)
    else:
        end(state, PHASE_FAULTED, END_SELF_TEST)


cdef void contact_check(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                        const ProgrammeInput* given, double delivered) noexcept nogil:
    """The probe drives the output until it has a verdict. It is a current too: a pause makes it begin again."""
    state.phase = PHASE_CONTACT_CHECK
    state.level_a = 0.0
    if state.stopping:
        end(state, PHASE_ABORTED, END_OPERATOR)
    elif state.paused or given.pause:
        state.phase = PHASE_PAUSE
    elif given.probe_verdict == PROBE_GOOD:
        next_segment(state, config, segments, delivered)
        advance(state, config, segments, given, delivered)
    elif given.probe_verdict == PROBE_OPEN:
        end(state, PHASE_ABORTED, END_CONTACT_OPEN)
    elif given.probe_verdict == PROBE_SHORT:
        end(state, PHASE_ABORTED, END_CONTACT_SHORT)
    elif given.probe_verdict == PROBE_OUTSIDE:
        end(state, PHASE_ABORTED, END_CONTACT_OUTSIDE)
    elif given.probe_verdict != PROBE_RUNNING:
        end(state, PHASE_ABORTED, END_CONTACT_UNCLEAR)


cdef double remaining_charge(const ProgrammeState* state, const Segment* segment, double delivered) noexcept nogil:
    cdef double target = segment.charge_total_c
    if segment.charge_c > 0.0 and state.step_start_c + segment.charge_c < target:
        target = state.step_start_c + segment.charge_c
    return target - delivered


cdef void deliver(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                  const ProgrammeInput* given, double delivered) noexcept nogil:
    cdef const Segment* segment = &segments[state.segment]
    cdef double target = segment.level_a, rise = segment.slope_a_per_tick, fall = segment.slope_a_per_tick
    cdef double now, remaining, lack_now, lack_next, most, level
    if target > 0.0:
        target += state.trim_a
    if target < 0.0:
        target = 0.0
    if target > config.level_limit_a:
        target = config.level_limit_a
    if (state.trimming or state.trim_a != 0.0) and (fall == 0.0 or fall > config.slope_down_a_per_tick):
        fall = config.slope_down_a_per_tick
    if state.recovering or state.trimming or state.trim_a != 0.0:
        if rise == 0.0 or rise > config.slope_up_a_per_tick:
            rise = config.slope_up_a_per_tick
    level = approach(state.level_a, target, rise, fall)
    if level >= target:
        state.recovering = 0
    if level == target:
        state.trimming = 0

    # Per tick: what is neither counted nor on its way.
    now = in_force(state)
    remaining = remaining_charge(state, segment, delivered) / config.tick_s - now * config.loop_delay_ticks
    if level > now and segment.charge_total_c > 0.0 and (segment.charge_c > 0.0 or state.recovering or state.limited):
        # Near its end a dose does not rise to where the ramp down would take it past the dose.
        most = fitting_level(remaining, segment.ramp_out_a_per_tick)
        if most < now:
            most = now
        if level > most:
            level = most
    # What the charge would lack if the ramp down began now, and after one more tick. A dose ends where that tick takes
    # it further away; a time ends by ticks, and by charge only a whole tick beyond.
    lack_now = remaining - ramp_ticks(now, segment.ramp_out_a_per_tick)
    lack_next = remaining - level - ramp_ticks(level, segment.ramp_out_a_per_tick)
    if (segment.charge_total_c > 0.0 and -lack_next >= fabs(lack_now)
            and lack_next <= (0.0 if segment.charge_c > 0.0 else -level)) or (
            segment.duration_ticks > 0 and state.segment_ticks >= segment.duration_ticks):
        next_segment(state, config, segments, delivered)
        advance(state, config, segments, given, delivered)
        return
    state.phase = PHASE_RAMP_UP if level < target or level > state.level_a else PHASE_TREATMENT
    state.level_a = level


cdef void ramp_down(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                    const ProgrammeInput* given, double delivered) noexcept nogil:
    cdef const Segment* segment = &segments[state.segment]
    cdef double slope = segment.slope_a_per_tick, remaining, most
    state.phase = PHASE_RAMP_DOWN
    state.level_a = in_force(state)
    if slope <= 0.0 or state.level_a <= 0.0:
        state.level_a = 0.0
    elif segment.charge_c > 0.0:
        remaining = remaining_charge(state, segment, delivered) / config.tick_s
        most = fitting_level(remaining - state.level_a * config.loop_delay_ticks, slope)
        if most < state.level_a:
            state.level_a = most if most > 0.5 * slope else 0.0
    else:
        state.level_a = approach(state.level_a, 0.0, slope, slope)
        if segment.charge_total_c > 0.0 and segment.charge_total_c <= delivered:
            state.level_a = 0.0
    if state.level_a == 0.0:
        next_segment(state, config, segments, delivered)
        if slope > 0.0:
            state.segment_ticks = -1    # the tick that reaches zero is the ramp's last
        if state.phase == PHASE_RAMP_DOWN and segments[state.segment].kind == SEGMENT_REST:
            state.phase = PHASE_PAUSE


cdef void lower(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                double delivered) noexcept nogil:
    """One tick of a stop or a pause: down the ramp, and with no more than the segment may still deliver."""
    cdef const Segment* segment = &segments[state.segment]
    cdef double now = in_force(state), remaining
    state.level_a = approach(now, 0.0, config.slope_down_a_per_tick, config.slope_down_a_per_tick)
    if segment.charge_total_c > 0.0 and state.level_a > 0.0:
        remaining = remaining_charge(state, segment, delivered) / config.tick_s - now * config.loop_delay_ticks
        if state.level_a > remaining:
            state.level_a = remaining if remaining > 0.0 else 0.0


cdef void advance(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                  const ProgrammeInput* given, double delivered) noexcept nogil:
    """The level of this tick, by the kind of the segment in force."""
    cdef int32_t kind
    if state.end_reason != END_NONE:
        return
    kind = segments[state.segment].kind
    if kind == SEGMENT_SELF_TEST:
        self_test(state, config, segments, given, delivered)
    elif kind == SEGMENT_CONTACT_CHECK:
        contact_check(state, config, segments, given, delivered)
    elif state.stopping:
        state.phase = PHASE_RAMP_DOWN
        lower(state, config, segments, delivered)
        if state.level_a <= 0.0:
            end(state, PHASE_ABORTED, END_OPERATOR)
    elif state.paused or given.pause:
        state.recovering = 1
        lower(state, config, segments, delivered)
        state.phase = PHASE_PAUSE if state.level_a <= 0.0 else PHASE_RAMP_DOWN
    elif kind == SEGMENT_DELIVER:
        deliver(state, config, segments, given, delivered)
    elif kind == SEGMENT_RAMP_DOWN:
        ramp_down(state, config, segments, given, delivered)
    else:
        state.phase = PHASE_PAUSE
        state.level_a = 0.0
        if state.segment_ticks >= segments[state.segment].duration_ticks:
            next_segment(state, config, segments, delivered)
            advance(state, config, segments, given, delivered)


cdef void derate(ProgrammeState* state, const ProgrammeConfig* config, const ProgrammeInput* given) noexcept nogil:
    """H04: at the compliance limit the setpoint follows what can flow, and the time grows instead. H06: after lost
    contact the current starts again from the contact level, on a ramp. H13: on a pad that has lost area it stays at
    what the density allows.
    """
    derate_by_load(state, config, given)
    if given.cap_a > 0.0 and state.level_a > given.cap_a:
        if not state.limited or state.ceiling_a > given.cap_a:
            state.ceiling_a = given.cap_a
        state.limited = 1


cdef void derate_by_load(ProgrammeState* state, const ProgrammeConfig* config,
                         const ProgrammeInput* given) noexcept nogil:
    cdef double current = fabs(given.current_a)
    cdef double voltage = fabs(given.voltage_v)
    if given.contact == CONTACT_LOST:
        state.limited = 1
        state.ceiling_a = config.contact_level_a
        state.compliance_run = 0
        return
    if config.compliance_v > 0.0 and voltage >= 0.95 * config.compliance_v:
        state.compliance_run += given.ticks
        if state.compliance_run >= config.compliance_ticks:
            if not state.limited:
                state.limited = 1
                state.ceiling_a = state.level_a
            if 0.98 * current < state.ceiling_a:
                state.ceiling_a = 0.98 * current
            if state.ceiling_a < config.contact_level_a:
                state.ceiling_a = config.contact_level_a
        return
    state.compliance_run = 0
    if state.limited:
        state.ceiling_a += config.slope_up_a_per_tick
        if state.ceiling_a >= state.level_a:
            state.limited = 0


cdef void programme_step(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                         const ProgrammeInput* given, Setpoint* setpoint) noexcept nogil:
    cdef double delivered = config.polarity * given.net_c
    cdef double level
    cdef bint running = state.end_reason == END_NONE
    if running:
        serve_operator(state, config, given)
    if running and given.ticks:
        if not (state.paused or given.pause or state.stopping):
            state.segment_ticks += given.ticks
        advance(state, config, segments, given, delivered)
        derate(state, config, given)
    level = state.level_a
    setpoint.prescribed_a = config.polarity * level
    if state.limited and level > state.ceiling_a:
        level = state.ceiling_a
    setpoint.limited = state.limited
    setpoint.level_a = config.polarity * level
    setpoint.current_a = setpoint.level_a
    setpoint.phase = state.phase
    setpoint.segment = <int32_t>state.segment
    setpoint.step = segments[state.segment].step if state.segment < config.segments else -1
    setpoint.end_reason = state.end_reason
    setpoint.close_relay = state.end_reason == END_NONE and state.phase != PHASE_SELF_TEST
    setpoint.probing = setpoint.close_relay and state.phase == PHASE_CONTACT_CHECK
    setpoint.delivered_c = delivered
