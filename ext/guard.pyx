"""The guard: last before encoding. It shares no code with the regulator, and converts for itself."""
from libc.math cimport fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ionto_rt.core.types cimport (
    ACTION_NONE, ACTION_OFF, ACTION_PAUSE, ACTION_RAMP_DOWN, AREA_SMALLER, HISTORY_TICKS, OPERATOR_RESUME,
    STATUS_CHARGE_CAP, STATUS_LEAKAGE, STATUS_LEASE_EXPIRED, STATUS_OVER_CURRENT, STATUS_OVER_TEMPERATURE,
    STATUS_PATIENT_STOP, STATUS_SELF_TEST_FAILED, STATUS_SUPPLY_LOW, STATUS_SUPPLY_WARNING, STATUS_TIME_CAP, STOP_NOW,
    TRIP_CHARGE_CAP,
    TRIP_CHARGE_MISMATCH, TRIP_CONTACT_AREA, TRIP_DEADLINES, TRIP_DENSITY, TRIP_DEVICE_CAP, TRIP_DEVICE_CLOCK,
    TRIP_DEVICE_SELF_TEST,
    TRIP_HEARTBEAT, TRIP_HOST_SUSPENDED, TRIP_INTERMITTENT_LEAD, TRIP_LEAKAGE, TRIP_LEASE_LAPSED, TRIP_LIMITS_CORRUPT,
    TRIP_LOST_SAMPLES, TRIP_NONE, TRIP_NOT_FINITE, TRIP_OPEN_LEAD, TRIP_OPERATOR_STOP, TRIP_OVER_CURRENT,
    TRIP_READINGS_DISAGREE, TRIP_SESSION_TIME, TRIP_SHORT, TRIP_STALE_DATA,
    TRIP_PATIENT_STOP, TRIP_SUPPLY_LOW, TRIP_TEMPERATURE, TRIP_WATCHDOG, Verdict,
)

cdef enum:
    SETTLE_TICKS = 8            # a measured current may belong to a setpoint this many ticks old
    CONTACT_TICKS = 4           # for an open lead the lowest of these last setpoints counts
    DEADLINE_WINDOW = 100
    CHECKSUM_TICKS = 500        # a second at the slowest rate; not one of the limits, which may be what is corrupt
    PRESSED_SAMPLES = 2         # H45
    SENSORS = (STATUS_LEAKAGE | STATUS_OVER_TEMPERATURE | STATUS_PATIENT_STOP | STATUS_SELF_TEST_FAILED
               | STATUS_SUPPLY_LOW | STATUS_SUPPLY_WARNING)


cdef uint32_t guard_checksum(const GuardLimits* limits) noexcept nogil:
    """FNV-1a over the limits as they lie in memory; made and verified in place, padding included."""
    cdef uint32_t hash_ = 2166136261
    cdef const uint8_t* at = <const uint8_t*>limits
    cdef size_t k, size = <size_t>(<const uint8_t*>&limits.checksum - at)
    for k in range(size):
        hash_ = (hash_ ^ at[k]) * <uint32_t>16777619
    return hash_


cdef inline bint apart(int64_t a, int64_t b, int64_t limit) noexcept nogil:
    """1: a and b differ by more than limit. In unsigned numbers: the device may claim any count."""
    return (<uint64_t>a - <uint64_t>b if a >= b else <uint64_t>b - <uint64_t>a) > <uint64_t>limit


cdef void trip(GuardState* state, int32_t cause, int32_t action) noexcept nogil:
    if state.trip == TRIP_NONE:
        state.trip = cause
    if action > state.action:
        state.action = action


cdef void pause(GuardState* state, int32_t cause, int32_t latched) noexcept nogil:
    if state.pause == TRIP_NONE:
        state.pause = cause
    if latched:
        state.pause_latched = 1
    state.good_run = 0


cdef inline uint32_t mix(uint32_t x) noexcept nogil:
    """A permutation in which each bit depends on all."""
    x = (x ^ (x >> 16)) * <uint32_t>0x7FEB352D
    x = (x ^ (x >> 15)) * <uint32_t>0x846CA68B
    return x ^ (x >> 16)


cdef uint32_t heartbeat_challenge(uint32_t token, uint32_t count) noexcept nogil:
    return mix(token + count * <uint32_t>0x9E3779B9)


cdef uint32_t heartbeat_answer(uint32_t challenge) noexcept nogil:
    return mix(challenge ^ <uint32_t>0xA5C35A3C)


cdef inline void challenge_next(GuardState* state, uint32_t token) noexcept nogil:
    state.challenge = heartbeat_challenge(token, state.challenges)
    state.challenges += 1


cdef void guard_begin(GuardState* state, uint32_t token) noexcept nogil:
    challenge_next(state, token)
    if heartbeat_answer(state.challenge) == state.heartbeat:
        # What is in the cell before anybody has spoken must answer nothing.
        challenge_next(state, token)


cdef void check_heartbeat(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H30: the orchestrator must answer in time. H31: what it says must answer the challenge, which nobody can know who
    has not read it: a thread that beats on for a program that hangs does not."""
    if given.heartbeat == state.heartbeat:
        state.heartbeat_age += given.ticks
        if state.heartbeat_age >= limits.heartbeat_ticks:
            trip(state, TRIP_HEARTBEAT, ACTION_RAMP_DOWN)
        return
    if given.heartbeat == heartbeat_answer(state.challenge):
        state.heartbeat_age = 0
        challenge_next(state, given.token)
    else:
        trip(state, TRIP_WATCHDOG, ACTION_OFF)
    state.heartbeat = given.heartbeat


cdef void check_status(GuardState* state, const GuardInput* given) noexcept nogil:
    """H39, H40, H44, H45, H49: what the device's own sensors say."""
    if not given.status & SENSORS:
        state.stop_run = 0
        return
    if given.status & STATUS_SELF_TEST_FAILED:
        trip(state, TRIP_DEVICE_SELF_TEST, ACTION_OFF)
    if given.status & STATUS_LEAKAGE:
        trip(state, TRIP_LEAKAGE, ACTION_OFF)
    if given.status & STATUS_SUPPLY_LOW:
        trip(state, TRIP_SUPPLY_LOW, ACTION_RAMP_DOWN)
    elif given.status & STATUS_SUPPLY_WARNING and not state.begun:
        trip(state, TRIP_SUPPLY_LOW, ACTION_OFF)
    if given.status & STATUS_OVER_TEMPERATURE:
        trip(state, TRIP_TEMPERATURE, ACTION_RAMP_DOWN)
    if not given.status & STATUS_PATIENT_STOP:
        state.stop_run = 0
        return
    state.stop_run += 1
    if state.stop_run == PRESSED_SAMPLES:
        state.stop_presses += 1
        trip(state, TRIP_PATIENT_STOP, ACTION_RAMP_DOWN if state.stop_presses == 1 else ACTION_OFF)


cdef void check_time(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H16, H25, H26, H53: everything that counts ticks or microseconds."""
    cdef uint64_t host, device_us
    cdef int64_t difference
    state.ticks += given.ticks
    if state.ticks > limits.session_ticks:
        trip(state, TRIP_SESSION_TIME, ACTION_RAMP_DOWN)

    if given.host_late_us > limits.lease_us:
        trip(state, TRIP_HOST_SUSPENDED, ACTION_OFF)
    elif given.host_late_us > limits.late_stop_us:
        trip(state, TRIP_STALE_DATA, ACTION_RAMP_DOWN)
    elif given.host_late_us > limits.late_pause_us:
        pause(state, TRIP_STALE_DATA, 0)
    if given.host_late_us > limits.overrun_us:
        state.overruns_window += 1
        if state.overruns_window > limits.overruns_stop:
            trip(state, TRIP_DEADLINES, ACTION_RAMP_DOWN)
        elif state.overruns_window > limits.overruns_pause:
            pause(state, TRIP_DEADLINES, 0)
    state.overruns_ticks += 1
    if state.overruns_ticks >= DEADLINE_WINDOW:
        state.overruns_ticks = 0
        state.overruns_window = 0

    if given.host_time_us == 0 or not given.sample_good:
        return
    host = given.host_time_us - given.host_late_us if given.host_time_us > given.host_late_us else 0
    if state.clock_host_us == 0:
        state.clock_host_us = host
        state.clock_device_us = 0
    else:
        state.clock_device_us += <uint32_t>(given.device_time_us - state.clock_last_us)
    state.clock_last_us = given.device_time_us
    if host > state.clock_host_us and host - state.clock_host_us >= limits.clock_window_us:
        device_us = host - state.clock_host_us
        difference = <int64_t>state.clock_device_us - <int64_t>device_us
        if difference < 0:
            difference = -difference
        if difference > <int64_t>(device_us // 1000000 * limits.clock_ppm):
            trip(state, TRIP_DEVICE_CLOCK, ACTION_RAMP_DOWN)
        state.clock_host_us = host
        state.clock_device_us = 0


cdef void count_open(GuardState* state, const GuardLimits* limits) noexcept nogil:
    """H07: one more interruption that ended by itself, or began."""
    cdef uint32_t most = limits.intermittent_count if limits.intermittent_count < 4 else 3
    state.open_ticks_at[state.opens % (most + 1)] = state.ticks
    state.opens += 1
    if state.opens > most and state.ticks - state.open_ticks_at[state.opens % (most + 1)] <= limits.intermittent_ticks:
        trip(state, TRIP_INTERMITTENT_LEAD, ACTION_RAMP_DOWN)


cdef void check_sample(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H01, H05, H07, H08, H09, H13, H15, H23 and the device's own verdicts, from the redundant reading."""
    cdef double signed_current = (given.redundant_code - limits.redundant_offset_q16 / 65536.0) * limits.redundant_lsb_a
    cdef double current = fabs(signed_current)
    cdef double newest = state.setpoints[state.history_at]
    cdef double voltage = fabs((given.voltage_code - limits.voltage_offset_q16 / 65536.0) * limits.voltage_lsb_v)
    cdef double highest = 0.0, lowest = fabs(newest), level, mean
    cdef int k
    cdef uint32_t tenth
    for k in range(CONTACT_TICKS):
        level = state.setpoints[(state.history_at - <uint32_t>k) & (HISTORY_TICKS - 1)]
        if level * newest <= 0.0:
            lowest = 0.0
        level = fabs(level)
        lowest = level if level < lowest else lowest
        highest = level if level > highest else highest
    for k in range(CONTACT_TICKS, SETTLE_TICKS):
        level = fabs(state.setpoints[(state.history_at - <uint32_t>k) & (HISTORY_TICKS - 1)])
        highest = level if level > highest else highest
    # A command that was not renewed stands until its lease runs out, whatever has been set since.
    if given.applied_age_ticks > SETTLE_TICKS and highest < state.standing_a:
        highest = state.standing_a
    state.standing_a = highest
    highest = given.probe_a if given.probe_a > highest else highest
    if highest > limits.current_limit_a:
        highest = limits.current_limit_a

    level = limits.over_ratio * highest
    if level < highest + limits.over_margin_a:
        level = highest + limits.over_margin_a
    if current > level:
        state.over_run += given.ticks
        if state.over_run >= limits.over_ticks:
            trip(state, TRIP_OVER_CURRENT, ACTION_OFF)
    else:
        state.over_run = 0

    if lowest < limits.open_floor_a:
        state.established = 0
    elif signed_current * newest >= 0.5 * lowest * fabs(newest):
        state.established = 1
    if (state.action < ACTION_RAMP_DOWN and lowest >= limits.open_floor_a and current < limits.open_ratio * lowest
            and (voltage >= limits.open_voltage_v or (limits.open_any_voltage and state.established))):
        if state.open_run == 0:
            count_open(state, limits)
        state.open_run += given.ticks
        if state.open_run >= limits.open_ticks:
            trip(state, TRIP_OPEN_LEAD, ACTION_OFF)
    else:
        state.open_run = 0

    if current > limits.short_current_a and voltage < limits.short_voltage_v:
        state.short_run += given.ticks
        if state.short_run >= limits.short_ticks:
            trip(state, TRIP_SHORT, ACTION_RAMP_DOWN)
    else:
        state.short_run = 0

    # Density over the last second, renewed each tenth.
    tenth = limits.second_ticks // 10 if limits.second_ticks >= 10 else 1
    state.density_sum += current
    state.density_fill += 1
    if state.density_fill >= tenth:
        state.density_block_a[state.density_blocks % 10] = state.density_sum / state.density_fill
        state.density_blocks += 1
        state.density_sum = 0.0
        state.density_fill = 0
        if state.density_blocks >= 10:
            mean = 0.0
            for k in range(10):
                mean += state.density_block_a[k]
            if mean / 10.0 > limits.density_trip_a:
                trip(state, TRIP_DENSITY, ACTION_RAMP_DOWN)

    state.disagree_sum += (
        given.current_code - limits.current_offset_q16 / 65536.0
    ) * limits.current_lsb_a - signed_current
    state.disagree_fill += 1
    if state.disagree_fill >= tenth:
        if fabs(state.disagree_sum / state.disagree_fill) > limits.disagree_a:
            trip(state, TRIP_READINGS_DISAGREE, ACTION_RAMP_DOWN)
        state.disagree_sum = 0.0
        state.disagree_fill = 0

    # An estimate stops current, but is never the only thing that does: the density row above counts on nominal area.
    if given.area_alarm == AREA_SMALLER:
        if given.area_ratio < limits.area_stop_ratio:
            trip(state, TRIP_CONTACT_AREA, ACTION_RAMP_DOWN)
        elif given.area_ratio < limits.area_pause_ratio:
            pause(state, TRIP_CONTACT_AREA, 1)

    if given.absolute_codes > limits.charge_cap_codes:
        trip(state, TRIP_CHARGE_CAP, ACTION_RAMP_DOWN)
    if apart(given.net_codes, given.device_net_codes, limits.charge_mismatch_codes):
        trip(state, TRIP_CHARGE_MISMATCH, ACTION_RAMP_DOWN)

    if given.status & STATUS_LEASE_EXPIRED:
        trip(state, TRIP_LEASE_LAPSED, ACTION_OFF)
    if given.status & (STATUS_OVER_CURRENT | STATUS_CHARGE_CAP | STATUS_TIME_CAP):
        trip(state, TRIP_DEVICE_CAP, ACTION_OFF)


cdef void check_gaps(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H24. A refused sample is a lost one that is known about at once."""
    state.missing_run += given.ticks - 1 if given.sample_good else 1
    if state.missing_run > limits.gap_stop_ticks:
        trip(state, TRIP_LOST_SAMPLES, ACTION_RAMP_DOWN)
    elif state.missing_run > limits.gap_pause_ticks:
        pause(state, TRIP_LOST_SAMPLES, 1)
    if given.sample_good:
        state.missing_run = 0


cdef void end_pause(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    if state.pause == TRIP_NONE:
        return
    state.good_run += given.ticks
    if given.operator_command == OPERATOR_RESUME or (not state.pause_latched and state.good_run >= limits.second_ticks):
        state.pause = TRIP_NONE
        state.pause_latched = 0


cdef int32_t descend(GuardState* state, const GuardLimits* limits, uint32_t ticks) noexcept nogil:
    """The guard's own ramp down, in output codes: it needs neither regulator nor current reading. Time that passed
    without a sample counts: where samples are lost the ramp would last many times as long.
    """
    cdef double zero = state.zero_code
    cdef double slope = limits.stop_slope_codes
    if state.stop_presses:
        # H45: from wherever it is when the button is pressed, within a fixed time.
        if state.descent_codes == 0.0:
            state.descent_codes = fabs(state.output_code - zero) / (
                limits.patient_stop_ticks if limits.patient_stop_ticks else 1)
        if state.descent_codes > slope:
            slope = state.descent_codes
    slope *= ticks
    if state.output_code > zero + slope:
        state.output_code -= slope
    elif state.output_code < zero - slope:
        state.output_code += slope
    else:
        state.output_code = zero
        state.action = ACTION_OFF
    return <int32_t>state.output_code


cdef void guard_step(GuardState* state, const GuardLimits* limits, const GuardInput* given,
                     Verdict* verdict) noexcept nogil:
    cdef int32_t code = given.output_code
    cdef int32_t before = state.action
    state.checksum_age += given.ticks
    if state.checksum_age >= CHECKSUM_TICKS or state.ticks == 0:
        state.checksum_age = 0
        if guard_checksum(limits) != limits.checksum:
            trip(state, TRIP_LIMITS_CORRUPT, ACTION_OFF)
        elif state.ticks == 0:
            state.zero_code = limits.output_zero_code
    if not given.finite or not isfinite(given.setpoint_a):
        trip(state, TRIP_NOT_FINITE, ACTION_OFF)
    if given.stop >= STOP_NOW:
        trip(state, TRIP_OPERATOR_STOP, ACTION_OFF)
    end_pause(state, limits, given)
    check_time(state, limits, given)
    check_heartbeat(state, limits, given)
    check_gaps(state, limits, given)
    if given.sample_good:
        check_sample(state, limits, given)
        check_status(state, given)

    verdict.close_relay = given.close_relay
    if state.action == ACTION_RAMP_DOWN:
        if before != ACTION_RAMP_DOWN:
            state.output_code = state.last_code if state.relay_closed else state.zero_code
        code = descend(state, limits, given.ticks if before == ACTION_RAMP_DOWN else 1)
        verdict.close_relay = state.relay_closed
    if code > limits.output_code_max:
        code = limits.output_code_max
    elif code < limits.output_code_min:
        code = limits.output_code_min
    if state.action == ACTION_OFF:
        # Last, and not by the limits: they may be what is corrupt.
        code = state.zero_code
        verdict.close_relay = 0

    # While the guard ramps down, the current is judged by the setpoint that was in force when it began.
    if state.action < ACTION_RAMP_DOWN:
        state.history_at = (state.history_at + 1) & (HISTORY_TICKS - 1)
        state.setpoints[state.history_at] = given.setpoint_a
    state.last_code = code
    state.relay_closed = verdict.close_relay
    state.begun |= verdict.close_relay
    verdict.output_code = code
    verdict.trip = state.trip
    verdict.pause = state.pause
    verdict.action = state.action
    if state.action == ACTION_NONE and verdict.pause:
        verdict.action = ACTION_PAUSE
