"""The guard: last before encoding. It shares no code with the regulator, and converts for itself."""
from libc.math cimport fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ionto_rt.core.stops cimport STOP_GUARD, STOP_HEARTBEAT, STOP_IN_FORCE, STOP_PLAUSIBILITY
from ionto_rt.core.types cimport (
    ACTION_NONE, ACTION_OFF, ACTION_PAUSE, ACTION_RAMP_DOWN, AREA_SMALLER, HISTORY_TICKS, OPERATOR_RESUME,
    STATUS_CHARGE_CAP, STATUS_CLAMPED, STATUS_COMPLIANCE, STATUS_LEAKAGE, STATUS_LEASE_EXPIRED, STATUS_OVER_CURRENT,
    STATUS_OVER_TEMPERATURE, STATUS_PATIENT_STOP, STATUS_RELAY_CLOSED, STATUS_SELF_TEST_FAILED, STATUS_SUPPLY_LOW,
    STATUS_SUPPLY_WARNING, STATUS_TIME_CAP, STOP_NOW, TRIP_CHARGE_CAP, TRIP_CHARGE_MISMATCH, TRIP_CONTACT_AREA,
    TRIP_CROSS_LEAKAGE, TRIP_DEADLINES, TRIP_DENSITY, TRIP_DEVICE_CAP, TRIP_DEVICE_CLOCK, TRIP_DEVICE_SELF_TEST,
    TRIP_ELECTRODE_SPENT, TRIP_HEARTBEAT, TRIP_HOST_SUSPENDED, TRIP_HUNTING, TRIP_INTERFERENCE,
    TRIP_INTERMITTENT_LEAD, TRIP_LEAKAGE, TRIP_LEASE_LAPSED, TRIP_LIMITS_CORRUPT, TRIP_LOST_SAMPLES, TRIP_NONE,
    TRIP_NOT_FINITE, TRIP_OPEN_LEAD, TRIP_OPERATOR_STOP, TRIP_OUTPUT_MISMATCH, TRIP_OVER_CURRENT,
    TRIP_OVER_CURRENT_MEAN, TRIP_PATIENT_STOP, TRIP_POLARITY, TRIP_READINGS_DISAGREE, TRIP_READING_STUCK,
    TRIP_REVERSAL, TRIP_SESSION_TIME, TRIP_SHORT, TRIP_STALE_DATA, TRIP_SUPPLY_LOW, TRIP_TEMPERATURE,
    TRIP_UNDER_CURRENT, TRIP_WATCHDOG, Verdict,
)

cdef enum:
    SETTLE_TICKS = 8            # a measured current may belong to a setpoint this many ticks old
    CONTACT_TICKS = 4           # for an open lead the lowest of these last setpoints counts
    DEADLINE_WINDOW = 100
    CHECKSUM_TICKS = 500        # a second at the slowest rate; not one of the limits, which may be what is corrupt
    SENT = 128                  # commands that an echo is compared with
    REST_RUN = 3                # tenths: by then skin that was driven has let go of its charge
    RIPPLE_RUN = 3              # blocks of ripple in a row: by then the estimator knows whether it is the mains
    PRESSED_SAMPLES = 2         # H45
    FOREIGN_TICKS = 10          # H42
    SWITCHED_OFF = (STATUS_LEASE_EXPIRED | STATUS_OVER_CURRENT | STATUS_CHARGE_CAP | STATUS_TIME_CAP | STATUS_LEAKAGE
                    | STATUS_SELF_TEST_FAILED)
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


cdef inline int stop_of(int32_t cause) noexcept nogil:
    """Which of the guard's three stops a row belongs to."""
    if cause == TRIP_HEARTBEAT or cause == TRIP_WATCHDOG:
        return STOP_HEARTBEAT
    if (cause == TRIP_OVER_CURRENT or cause == TRIP_OVER_CURRENT_MEAN or cause == TRIP_UNDER_CURRENT
            or cause == TRIP_POLARITY or cause == TRIP_OUTPUT_MISMATCH or cause == TRIP_READING_STUCK
            or cause == TRIP_READINGS_DISAGREE or cause == TRIP_CHARGE_MISMATCH):
        return STOP_PLAUSIBILITY
    return STOP_GUARD


cdef void trip(GuardState* state, int32_t cause, int32_t action) noexcept nogil:
    if not STOP_IN_FORCE(stop_of(cause)):
        return
    if state.trip == TRIP_NONE:
        state.trip = cause
    if action > state.action:
        state.action = action


cdef void pause(GuardState* state, int32_t cause, int32_t latched) noexcept nogil:
    if not STOP_IN_FORCE(stop_of(cause)):
        return
    if state.pause == TRIP_NONE or (latched and not state.pause_latched):
        # What waits for a person goes before what would have ended by itself: that is what he has to be told.
        state.pause = cause
        state.pause_latched = latched
    state.good_run = 0


cdef void pause_and_retry(GuardState* state, const GuardLimits* limits, int32_t cause) noexcept nogil:
    """A pause that ends by itself so many times, and then waits for the operator."""
    if state.pause == TRIP_NONE:
        pause(state, cause, 1 if state.retried >= limits.retries else 0)
        state.retried += 1


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


cdef void check_lease(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H20: what the device echoes must be a command whose lease can still run. One that came late may be two leases old
    when it lapses; a device that holds on for longer keeps no leases, and would not let go of a host that died."""
    if (given.status & (STATUS_RELAY_CLOSED | STATUS_LEASE_EXPIRED) == STATUS_RELAY_CLOSED
            and (<double>given.applied_age_ticks - 2.5) * limits.tick_s > 2e-6 * limits.lease_us):
        trip(state, TRIP_OUTPUT_MISMATCH, ACTION_OFF)


cdef void check_status(GuardState* state, const GuardInput* given) noexcept nogil:
    """H29, H39, H40, H44, H45, H49, H55: what the device says of itself. Before its readings: where it has switched
    off, they and the code in force are no longer those that were asked for, and the cause is the one that it names.
    """
    if given.status & STATUS_LEASE_EXPIRED:
        trip(state, TRIP_LEASE_LAPSED, ACTION_OFF)
    if given.status & (STATUS_OVER_CURRENT | STATUS_CHARGE_CAP | STATUS_TIME_CAP):
        trip(state, TRIP_DEVICE_CAP, ACTION_OFF)
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


cdef inline void count_overruns(GuardState* state, const GuardLimits* limits, bint overrun) noexcept nogil:
    """H26, over the last hundred ticks."""
    cdef uint32_t word = state.overruns_ticks >> 6
    cdef uint64_t bit = <uint64_t>1 << (state.overruns_ticks & 63)
    state.overruns_window -= state.overrun_bits[word] & bit != 0
    state.overrun_bits[word] &= ~bit
    state.overruns_ticks = state.overruns_ticks + 1 if state.overruns_ticks + 1 < DEADLINE_WINDOW else 0
    if not overrun:
        return
    state.overrun_bits[word] |= bit
    state.overruns_window += 1
    if state.overruns_window > limits.overruns_stop:
        trip(state, TRIP_DEADLINES, ACTION_RAMP_DOWN)
    elif state.overruns_window > limits.overruns_pause:
        pause(state, TRIP_DEADLINES, 0)


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
    count_overruns(state, limits, given.host_late_us > limits.overrun_us)

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
        if difference > <int64_t>(device_us * limits.clock_ppm // 1000000):
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


cdef void judge_tenth(GuardState* state, const GuardLimits* limits) noexcept nogil:
    """H02, H03, H13, H23, H42: means over the tenth of a second that has just ended, and over the last second.

    The two tones go through whole periods in a tenth. While the setpoint moves, that of the tenth before still counts:
    it forgives the loop's delay, a command that stood, and how slowly skin lets a voltage source down.
    """
    cdef double n = state.density_fill, total = 0.0
    cdef double most = state.set_sum if state.set_sum > state.set_before else state.set_before
    cdef double least = state.set_sum if state.set_sum < state.set_before else state.set_before
    cdef int k
    state.density_block_a[state.density_blocks % 10] = state.density_sum / n
    state.density_blocks += 1
    if state.density_blocks >= 10:
        for k in range(10):
            total += state.density_block_a[k]
        if total / 10.0 > limits.density_trip_a:
            trip(state, TRIP_DENSITY, ACTION_RAMP_DOWN)
    if fabs(state.disagree_sum / n) > limits.disagree_a:
        trip(state, TRIP_READINGS_DISAGREE, ACTION_RAMP_DOWN)

    total = limits.over_mean_ratio * most
    if total < most + n * limits.over_mean_margin_a:
        total = most + n * limits.over_mean_margin_a
    # Where next to nothing is asked for, H01 judges alone.
    if most >= n * limits.open_floor_a and fabs(state.along_sum) > total:
        trip(state, TRIP_OVER_CURRENT_MEAN, ACTION_RAMP_DOWN)

    # H42: what flows through a site at rest is another channel's.
    state.rest_run = state.rest_run + 1 if not state.rest_void and fabs(state.rest_sum) > n * limits.rest_a else 0
    if state.rest_run >= REST_RUN:
        trip(state, TRIP_CROSS_LEAKAGE, ACTION_RAMP_DOWN)
    state.rest_void = 0
    state.rest_sum = 0.0

    if state.under_void or state.pause != TRIP_NONE or state.action >= ACTION_RAMP_DOWN:
        state.under_blocks = 0
    else:
        total = limits.under_ratio * least
        if total > least - n * limits.under_margin_a:
            total = least - n * limits.under_margin_a
        state.under_block[state.under_blocks % 10] = state.along_sum - total
        state.under_blocks += 1
        if state.under_blocks >= 10:
            total = 0.0
            for k in range(10):
                total += state.under_block[k]
            if total < 0.0:
                pause_and_retry(state, limits, TRIP_UNDER_CURRENT)
                state.under_blocks = 0
    state.under_void = 0
    state.set_before = state.set_sum
    state.density_sum = state.disagree_sum = state.along_sum = state.set_sum = 0.0
    state.density_fill = 0


cdef void check_echo(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H20: the code that the device says it applied, against the one that was sent with that index.

    By index, so that a command that is late, lost or never sent is none. A device that clamps to the limits it was
    given may put out less than it was told, in the same direction, and says so; one that has switched itself off says
    why, which is the cause then. Where the command in force is older than what is remembered, and was never seen
    before, there is nothing to compare it with.
    """
    cdef uint32_t slot = given.applied_index & (SENT - 1)
    cdef int64_t told, said
    if given.status & SWITCHED_OFF:
        state.mismatch_run = 0
        return
    if given.applied_index + <uint32_t>1 != state.echo_next:
        if state.sent_next[slot] != given.applied_index + <uint32_t>1:
            state.mismatch_run = 0
            return
        state.echo_next = state.sent_next[slot]
        state.echo_code = state.sent_code[slot]
    if given.applied_code != state.echo_code:
        told = state.echo_code - <int64_t>limits.output_zero_code
        said = given.applied_code - <int64_t>limits.output_zero_code
        if not (given.status & STATUS_CLAMPED and (0 <= said <= told or told <= said <= 0)):
            state.mismatch_run += given.ticks
            if state.mismatch_run >= limits.mismatch_ticks:
                trip(state, TRIP_OUTPUT_MISMATCH, ACTION_OFF)
            return
    state.mismatch_run = 0


cdef void stand_still(GuardState* state, const GuardLimits* limits, FlatReading* reading,
                      uint32_t ticks) noexcept nogil:
    cdef double level = state.setpoints[(state.history_at - 1) & (HISTORY_TICKS - 1)]
    if reading.run == 0:
        reading.low = reading.high = level
    reading.run += ticks
    if level < reading.low:
        reading.low = level
    if level > reading.high:
        reading.high = level
    if reading.run >= limits.flat_ticks and reading.high - reading.low > limits.flat_move_a:
        trip(state, TRIP_READING_STUCK, ACTION_OFF)


cdef inline void check_flat(GuardState* state, const GuardLimits* limits, const GuardInput* given,
                            bint legitimate) noexcept nogil:
    """H22: a reading that repeats one code while tone or ramp move the setpoint. Without a tone, at a level that
    stands, at the stage's limit, or without contact it may: nothing was told to move, or nothing can.
    """
    if given.current_code != state.flat[0].code or legitimate:
        state.flat[0].code = given.current_code
        state.flat[0].run = 0
    else:
        stand_still(state, limits, &state.flat[0], given.ticks)
    if given.redundant_code != state.flat[1].code or legitimate:
        state.flat[1].code = given.redundant_code
        state.flat[1].run = 0
    else:
        stand_still(state, limits, &state.flat[1], given.ticks)


cdef inline void check_ripple(GuardState* state, const GuardLimits* limits, const GuardInput* given, double along,
                              double lowest, double highest) noexcept nogil:
    """H34: what the current does beside every setpoint that it may belong to. In the guard's own ramp down there is
    none: the current falls, as it must.
    """
    cdef double apart, mean, square, limit
    if lowest < limits.open_floor_a or state.action >= ACTION_RAMP_DOWN:
        state.ripple_fill = state.ripple_run = 0
        state.ripple_sum = state.ripple_square = 0.0
        return
    apart = along - highest if along > highest else along - lowest if along < lowest else 0.0
    state.ripple_sum += apart
    state.ripple_square += apart * apart
    state.ripple_fill += 1
    if state.ripple_fill < limits.ripple_ticks:
        return
    mean = state.ripple_sum / state.ripple_fill
    square = state.ripple_square / state.ripple_fill - mean * mean
    limit = limits.ripple_ratio * lowest
    if limit < limits.ripple_margin_a:
        limit = limits.ripple_margin_a
    if square > limit * limit:
        state.ripple_run += 1
        # Of mains that began within the blocks the estimator has seen at least half an amplitude.
        if state.ripple_run >= RIPPLE_RUN and given.hum_a * given.hum_a < 0.2 * square:
            pause_and_retry(state, limits, TRIP_HUNTING)
    else:
        state.ripple_run = 0
    state.ripple_fill = 0
    state.ripple_sum = state.ripple_square = 0.0


cdef void check_probe(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H17: in the contact check the current follows the output's changes. Through any load that is passive their
    product is positive; where wires or a reading are swapped it is negative, beyond what noise can do.
    """
    cdef double output = <double>given.applied_code - state.probe_code
    cdef double reading = <double>given.redundant_code - state.probe_reading
    if state.probe_fill == 0:
        state.probe_product = state.probe_output = state.probe_current = 0.0
    else:
        state.probe_product += output * reading
        state.probe_output += output * output
        state.probe_current += reading * reading
    state.probe_code = given.applied_code
    state.probe_reading = given.redundant_code
    state.probe_fill += 1
    if state.probe_fill > limits.probe_ticks:
        # A reading that moves by less than four codes may be noise alone: no current, no direction.
        if (state.probe_current > 16.0 * limits.probe_ticks and state.probe_product < 0.0
                and state.probe_product * state.probe_product > 0.5 * state.probe_output * state.probe_current):
            trip(state, TRIP_POLARITY, ACTION_OFF)
        state.probe_fill = 1
        state.probe_product = state.probe_output = state.probe_current = 0.0


cdef inline void check_direction(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H52: the setpoint changes its direction through a hold at zero alone."""
    cdef int32_t direction
    if given.setpoint_a == 0.0:
        state.zero_run += given.ticks
        return
    direction = 1 if given.setpoint_a > 0.0 else -1
    if direction != state.direction:
        if state.direction != 0 and state.zero_run < limits.hold_ticks:
            trip(state, TRIP_REVERSAL, ACTION_RAMP_DOWN)
        state.direction = direction
    state.zero_run = 0


cdef inline bint check_foreign(GuardState* state, const GuardLimits* limits, const GuardInput* given,
                               double current) noexcept nogil:
    """H42: through a channel whose relay is open flows what another one drives. Nothing here can stop it: the loop
    stops the others, whatever the treatment wants of them. 1: it is so, and no other row's matter.
    """
    cdef bint looked_at = state.begun
    if not looked_at and state.action == ACTION_OFF:
        # A channel that tripped before it began: what only one of its two readings sees may be why it did.
        looked_at = fabs((given.current_code - limits.current_offset_q16 / 65536.0)
                         * limits.current_lsb_a) >= limits.open_floor_a
    if given.status & STATUS_RELAY_CLOSED or state.relay_closed or not looked_at or current < limits.open_floor_a:
        state.foreign_run = 0
        return False
    state.foreign_run += given.ticks
    if state.foreign_run >= FOREIGN_TICKS:
        state.foreign = 1
        trip(state, TRIP_CROSS_LEAKAGE, ACTION_OFF)
    return True


cdef void check_sample(GuardState* state, const GuardLimits* limits, const GuardInput* given) noexcept nogil:
    """H01 to H03, H05, H07 to H09, H13, H15, H17, H20, H22, H23, H34, H42, H43 from the redundant reading."""
    cdef double signed_current = (given.redundant_code - limits.redundant_offset_q16 / 65536.0) * limits.redundant_lsb_a
    cdef double current = fabs(signed_current)
    cdef double newest = state.setpoints[state.history_at]
    cdef double voltage = fabs((given.voltage_code - limits.voltage_offset_q16 / 65536.0) * limits.voltage_lsb_v)
    cdef double highest = 0.0, lowest = fabs(newest), level, along
    cdef bint limiting
    cdef int k
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
    if given.probe_a > 0.0:
        state.probe_bound_a = given.probe_a
        state.probe_left = SETTLE_TICKS
    elif state.probe_left:
        # A contact check that has ended, by a pause too, is in the readings for as long as a setpoint.
        state.probe_left -= given.ticks if given.ticks < state.probe_left else state.probe_left
    if state.probe_left and state.probe_bound_a > highest:
        highest = state.probe_bound_a
    if highest > limits.current_limit_a:
        highest = limits.current_limit_a

    limiting = given.limited or given.status & STATUS_COMPLIANCE or voltage >= limits.limit_voltage_v
    along = signed_current if newest >= 0.0 else -signed_current

    level = limits.over_ratio * highest
    if level < highest + limits.over_margin_a:
        level = highest + limits.over_margin_a
    if check_foreign(state, limits, given, current):
        state.over_run = 0
    elif current > level:
        state.over_run += given.ticks
        if state.over_run >= limits.over_ticks:
            trip(state, TRIP_OVER_CURRENT, ACTION_OFF)
    else:
        state.over_run = 0

    if lowest < limits.open_floor_a:
        state.established = 0
        state.reversed_run = 0
    elif along >= 0.5 * lowest:
        state.established = 1
        state.reversed_run = 0
    elif along <= -0.5 * lowest:
        state.reversed_run += given.ticks
        if state.reversed_run >= limits.polarity_ticks:
            trip(state, TRIP_POLARITY, ACTION_OFF)
    else:
        state.reversed_run = 0
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

    state.density_sum += current
    state.disagree_sum += (
        given.current_code - limits.current_offset_q16 / 65536.0
    ) * limits.current_lsb_a - signed_current
    state.along_sum += along
    state.rest_sum += signed_current
    if highest > 0.0 or not given.armed_output:
        state.rest_void = 1
    level = state.setpoints[(state.history_at - 1) & (HISTORY_TICKS - 1)]
    state.set_sum += level if newest >= 0.0 else -level
    if limiting or lowest < limits.open_floor_a:
        state.under_void = 1
    state.density_fill += 1
    if state.density_fill >= (limits.second_ticks // 10 if limits.second_ticks >= 10 else 1):
        judge_tenth(state, limits)

    check_echo(state, limits, given)
    check_flat(state, limits, given, limiting or lowest < limits.open_floor_a)
    check_ripple(state, limits, given, along, lowest, highest)
    if given.probe_a > 0.0:
        check_probe(state, limits, given)
    else:
        state.probe_fill = 0

    # An estimate stops current, but is never the only thing that does: the density row above counts on nominal area.
    if given.area_alarm == AREA_SMALLER:
        if given.area_ratio < limits.area_stop_ratio:
            trip(state, TRIP_CONTACT_AREA, ACTION_RAMP_DOWN)
        elif given.area_ratio < limits.area_pause_ratio:
            pause(state, TRIP_CONTACT_AREA, 1)

    if given.estimate_trip:
        trip(state, given.estimate_trip, ACTION_RAMP_DOWN)
    if given.estimate_pause and given.estimate_latched:
        pause(state, given.estimate_pause, 1)
    elif given.estimate_pause:
        pause_and_retry(state, limits, given.estimate_pause)

    if given.absolute_codes > limits.charge_cap_codes:
        trip(state, TRIP_CHARGE_CAP, ACTION_RAMP_DOWN)
    if given.absolute_codes > limits.pad_charge_codes:
        trip(state, TRIP_ELECTRODE_SPENT, ACTION_RAMP_DOWN)
    if apart(given.net_codes, given.device_net_codes, limits.charge_mismatch_codes):
        trip(state, TRIP_CHARGE_MISMATCH, ACTION_RAMP_DOWN)


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
    if given.operator_command == OPERATOR_RESUME:
        state.retried = 0
    if state.pause == TRIP_NONE:
        return
    if given.setpoint_a != 0.0 and (
            state.pause == TRIP_UNDER_CURRENT or state.pause == TRIP_HUNTING or state.pause == TRIP_INTERFERENCE):
        state.good_run = 0      # a retry begins from rest
    else:
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
    # A slope that is not above zero is a corrupt one.
    if slope > 0.0 and state.output_code > zero + slope:
        state.output_code -= slope
    elif slope > 0.0 and state.output_code < zero - slope:
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
    if limits.output_code_min > state.zero_code or limits.output_code_max < state.zero_code:
        # Not to wait for the checksum: a range without zero would send its end at once.
        trip(state, TRIP_LIMITS_CORRUPT, ACTION_OFF)
    if not given.finite or not isfinite(given.setpoint_a):
        trip(state, TRIP_NOT_FINITE, ACTION_OFF)
    if given.stop >= STOP_NOW:
        trip(state, TRIP_OPERATOR_STOP, ACTION_OFF)
    end_pause(state, limits, given)
    check_time(state, limits, given)
    check_heartbeat(state, limits, given)
    check_gaps(state, limits, given)
    if given.saturated:
        # No reading is taken from it, but it does not speak for a small current either.
        state.over_run += given.ticks
        if state.over_run >= limits.over_ticks:
            trip(state, TRIP_OVER_CURRENT, ACTION_OFF)
    if given.sample_good:
        check_status(state, given)
        check_sample(state, limits, given)
        if given.applied_age_ticks > SETTLE_TICKS:
            check_lease(state, limits, given)
    check_direction(state, limits, given)

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
    if not state.sent_any or <int32_t>(given.index - state.sent_newest) > 0:
        # Of two answers to one index the device takes the first.
        state.sent_any = 1
        state.sent_newest = given.index
        state.sent_next[given.index & (SENT - 1)] = given.index + <uint32_t>1
        state.sent_code[given.index & (SENT - 1)] = code
    state.last_code = code
    state.relay_closed = verdict.close_relay
    state.begun |= verdict.close_relay
    verdict.output_code = code
    verdict.trip = state.trip
    verdict.pause = state.pause
    verdict.action = state.action
    if state.action == ACTION_NONE and verdict.pause:
        verdict.action = ACTION_PAUSE
