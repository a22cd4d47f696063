"""The campaign's sessions; the .pxd says how time passes in them, and what is checked stands below, rule by rule.

What a check may not know: how the stage it checks works it out. Charge is summed up again from the codes, times are
counted on the device's clock, and what truly flows is read from the plant.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EIO
from libc.math cimport fabs, sqrt
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ionto_rt.core.controller cimport ControllerConfig, ControllerState, controller_start
from ionto_rt.core.fault_port cimport (
    FaultPortState, fault_port_add, fault_port_read, fault_port_start, fault_port_write,
)
from ionto_rt.core.guard cimport GuardLimits, heartbeat_answer
from ionto_rt.core.loop cimport LOOP_DEVICE_SILENT, LOOP_ENDED, OperatorRequest, loop_run
from ionto_rt.core.ring cimport Ring, ring_close, ring_open, ring_push
from ionto_rt.core.types cimport (
    ACTION_OFF, ACTION_RAMP_DOWN, CONTACT_LOST, END_COMPLETE, END_CONTACT_OPEN, END_CONTACT_OUTSIDE,
    END_CONTACT_UNCLEAR, END_NONE, END_OPERATOR, EVENT_ADVICE, EVENT_BAD_SAMPLE, EVENT_CONTACT, EVENT_END, EVENT_GAP,
    EVENT_LIMITED, EVENT_PAUSE, EVENT_PHASE, EVENT_STATUS, EVENT_TRIP, FRONT_END_CURRENT_SOURCE, ON_TRIP_STOP,
    OPERATOR_PAUSE, OPERATOR_RESUME, OPERATOR_STOP, PACING_DEVICE, PHASE_COMPLETE, PHASE_CONTACT_CHECK, PHASE_PAUSE,
    PHASE_RAMP_DOWN, PHASE_SELF_TEST, PORT_VERSION, SAMPLE_GOOD, SAMPLE_REPEATED, STATUS_CHARGE_CAP,
    STATUS_LEASE_EXPIRED, STATUS_OVER_CURRENT, STATUS_TIME_CAP, STOP_NOW, STOP_RAMP_DOWN, TRIP_CHARGE_CAP,
    TRIP_CHARGE_MISMATCH, TRIP_DEVICE_CAP, TRIP_HEARTBEAT, TRIP_HOST_SUSPENDED, TRIP_HUNTING, TRIP_LEASE_LAPSED,
    TRIP_LOST_SAMPLES, TRIP_NONE, TRIP_OPERATOR_STOP, TRIP_SESSION_TIME, TRIP_STALE_DATA, TRIP_UNDER_CURRENT,
    Calibration, Port, Segment, Tick,
)
from ionto_rt.core.virtual_device cimport (
    DEVICE_ARMED, DEVICE_IDLE, FAULT_CROSSTALK, FAULTS, TRANSMIT_BYTES, ScriptedFault, VirtualChannel,
    VirtualDeviceState, virtual_device_advance, virtual_device_receive, virtual_device_transmit,
)
from ionto_rt.core.wire cimport (
    FRAME_ARM, FRAME_COMMAND, FRAME_DISARM, FRAME_HELLO_REQUEST, MAX_FRAME, put_u16, put_u32, wire_encode,
)

INVARIANT_NAMES = (
    "holds", "cap", "rise", "ledger", "counts", "latch", "off-time", "lease-time", "descent", "stop-time", "dose",
    "event", "lost-tick", "end-zero", "guard-missed", "guard-early", "phase-order", "charge", "false-alarm",
    "pause-time", "setpoint", "command", "others",
)
ACT_NAMES = (
    "device", "wire", "operator", "stop", "heartbeat-stops", "heartbeat-wrong", "host-sleeps", "host-clock",
    "host-dies", "limits", "not-finite", "ledger", "foreign", "reverse", "device-count", "mark",
)
SEEN_NAMES = (
    "phase", "trip", "pause", "end", "limited", "contact-lost", "gap", "bad-sample", "status", "late", "device-off",
    "resumed", "loop", "refused", "bad-frames", "advice",
)

cdef double FLOOR_A = 1e-9      # an open relay lets flow exactly nothing
cdef double SILENT_S = 0.5


cdef inline uint64_t draw(uint64_t* noise) noexcept nogil:
    """splitmix64."""
    cdef uint64_t z
    noise[0] += <uint64_t>0x9E3779B97F4A7C15
    z = noise[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline void fold(Campaign* c, uint64_t value) noexcept nogil:
    c.digest = (c.digest ^ value) * <uint64_t>0x100000001B3
    c.digest ^= c.digest >> 29


cdef inline uint64_t bits(double value) noexcept nogil:
    cdef uint64_t made
    memcpy(&made, &value, 8)
    return made


cdef void violate(Campaign* c, int32_t which, uint32_t channel, double found, double allowed) noexcept nogil:
    """The first violation ends the session."""
    if c.violated != HOLDS:
        return
    c.violated = which
    c.violated_channel = channel
    c.violated_tick = <int64_t>c.tick
    c.found = found
    c.allowed = allowed


cdef void note(Campaign* c, int32_t what, int32_t code, uint32_t channel, int32_t phase) noexcept nogil:
    cdef Seen* one
    if c.seen_count == SEEN:
        return
    one = &c.seen[c.seen_count]
    c.seen_count += 1
    one.what = what
    one.code = code
    one.channel = channel
    one.phase = phase
    one.tick = <int64_t>c.tick


cdef inline void note_once(Campaign* c, Watch* w, int32_t what, int32_t code, uint32_t channel) noexcept nogil:
    """At most once in each phase."""
    if w.noted >> what & 1:
        return
    w.noted |= <uint64_t>1 << what
    note(c, what, code, channel, w.phase)


# The script.

cdef inline void fault_device(Campaign* c, uint32_t channel, int32_t kind, double value) noexcept nogil:
    cdef ScriptedFault* fault
    if c.device.fault_count == FAULTS:
        return
    fault = &c.device.faults[c.device.fault_count]
    c.device.fault_count += 1
    fault.time_s = 0.0
    fault.kind = kind
    fault.value = value
    fault.channel = channel
    c.plant_tick = <int64_t>c.tick


cdef void operate(Campaign* c, int32_t command, double value, uint32_t channel) noexcept nogil:
    cdef OperatorRequest request
    c.sequence += 1
    memset(&request, 0, sizeof(request))
    request.sequence = c.sequence
    request.command = command
    request.value_a = value
    request.channel = <uint8_t>channel
    ring_push(&c.loop.operators, &request)


cdef void spoil_state(ControllerState* controller, int32_t which) noexcept nogil:
    cdef double nan = 0.0
    nan = nan / nan
    if which == FINITE_ESTIMATE:
        controller.impedance.estimate.resistance_ohm = nan
    elif which == FINITE_SETPOINT:
        controller.programme.level_a = nan
    else:
        controller.predictive.disturbance = nan
        controller.regulator.integral = nan


cdef void intrude(Campaign* c) noexcept nogil:
    """A second host speaks on the device's port: it knows the protocol, but not the session's token."""
    cdef uint8_t payload[64]
    cdef uint8_t frame[MAX_FRAME]
    cdef uint8_t[4] types
    cdef uint32_t k, n
    types[0] = FRAME_COMMAND
    types[1] = FRAME_ARM
    types[2] = FRAME_DISARM
    types[3] = FRAME_HELLO_REQUEST
    for n in range(4):
        for k in range(64):
            payload[k] = <uint8_t>(draw(&c.noise) >> 56)
        payload[0] = types[n]
        virtual_device_receive(&c.device, frame, wire_encode(payload, 64, frame))
    c.wire_faulted = 1


cdef void do_act(Campaign* c, Act* act) noexcept nogil:
    cdef GuardLimits* table
    cdef uint8_t* limits
    cdef uint64_t bit
    act.fired = <int64_t>c.tick
    act.fired_phase = c.watch[act.channel].phase
    act.until = act.fired + act.length_ticks if act.length_ticks else -1
    if act.kind == ACT_DEVICE:
        c.plant_faulted = 1
        if act.code == FAULT_CROSSTALK:
            c.crossed = 1
        fault_device(c, act.channel, act.code, act.value)
        if act.undo < 0:
            act.until = -1
    elif act.kind == ACT_WIRE:
        c.wire_faulted = 1
        fault_port_add(c.port, act.code & 15, act.code >> 4, c.port.tick + 1, act.length_ticks, <uint32_t>act.value)
        act.until = -1
    elif act.kind == ACT_OPERATOR:
        operate(c, act.code, act.value, act.channel)
    elif act.kind == ACT_STOP:
        if act.code > c.loop.stop:
            c.loop.stop = act.code
    elif act.kind == ACT_HEARTBEAT_STOPS:
        c.heart_stopped += 1
    elif act.kind == ACT_HEARTBEAT_WRONG:
        c.heart_wrong += 1
    elif act.kind == ACT_HOST_SLEEPS:
        c.sleep_periods += <uint64_t>act.value
        c.wire_faulted = 1
    elif act.kind == ACT_HOST_CLOCK:
        c.host_rate = 1.0 + 1e-6 * act.value
        c.wire_faulted = 1
    elif act.kind == ACT_HOST_DIES:
        c.dead = 1
        c.wire_faulted = 1
    elif act.kind == ACT_LIMITS:
        table = &c.controllers[act.channel].config.guard
        limits = <uint8_t*>table
        bit = <uint64_t>act.value % (8 * <uint64_t>(<uint8_t*>&table.checksum - limits))
        limits[bit >> 3] ^= <uint8_t>(1 << (bit & 7))
        if c.watch[act.channel].limits_spoilt < 0:
            c.watch[act.channel].limits_spoilt = <int64_t>c.tick
    elif act.kind == ACT_NOT_FINITE:
        spoil_state(c.controllers[act.channel], act.code)
        if c.watch[act.channel].not_finite < 0:
            c.watch[act.channel].not_finite = <int64_t>c.tick
    elif act.kind == ACT_LEDGER:
        c.controllers[act.channel].ledger.net_codes += 65536
    elif act.kind == ACT_FOREIGN:
        intrude(c)
    elif act.kind == ACT_REVERSE:
        c.controllers[act.channel].config.programme.polarity *= -1.0
        c.watch[act.channel].reversed_at = <int64_t>c.tick
        c.plant_faulted = 1
    elif act.kind == ACT_DEVICE_COUNT:
        c.channel[act.channel].net_codes += <int64_t>act.value
        c.reading_faulted = 1


cdef void undo_act(Campaign* c, Act* act) noexcept nogil:
    act.until = -1
    if act.kind == ACT_DEVICE:
        fault_device(c, act.channel, act.undo, act.undo_value)
    elif act.kind == ACT_HEARTBEAT_STOPS:
        c.heart_stopped -= 1
    elif act.kind == ACT_HEARTBEAT_WRONG:
        c.heart_wrong -= 1
    elif act.kind == ACT_HOST_CLOCK:
        c.host_rate = 1.0


cdef void do_acts(Campaign* c) noexcept nogil:
    """What is due at this tick."""
    cdef Act* act
    cdef uint32_t k
    c.next_due = INT64_MAX
    for k in range(c.act_count):
        act = &c.acts[k]
        if act.fired < 0 and act.due >= 0:
            if act.due <= <int64_t>c.tick:
                do_act(c, act)
            elif act.due < c.next_due:
                c.next_due = act.due
        if act.until >= 0:
            if act.until <= <int64_t>c.tick:
                undo_act(c, act)
            elif act.until < c.next_due:
                c.next_due = act.until


cdef void phase_began(Campaign* c, uint32_t channel, int32_t phase) noexcept nogil:
    cdef Act* act
    cdef uint32_t k
    for k in range(c.act_count):
        act = &c.acts[k]
        if act.due < 0 and act.phase == phase and act.channel == channel:
            act.due = <int64_t>c.tick + act.after_ticks
            if act.due < c.next_due:
                c.next_due = act.due


# Rows: what the host says of a tick.

cdef inline int64_t bounded(int64_t a, int64_t b) noexcept nogil:
    """a + b within +-(2**63 - 1)."""
    if b > 0 and a > INT64_MAX - b:
        return INT64_MAX
    if b < 0 and a < -INT64_MAX - b:
        return -INT64_MAX
    return a + b


cdef bint may_follow(int32_t was, int32_t now, const Tick* row) noexcept nogil:
    """Whether a phase may follow another."""
    if now == was or (now == PHASE_RAMP_DOWN and row.trip != TRIP_NONE):
        return True
    if now >= PHASE_COMPLETE:
        return was < PHASE_COMPLETE
    if was >= PHASE_COMPLETE:
        return False
    if was == PHASE_SELF_TEST:
        return now == PHASE_CONTACT_CHECK or now == PHASE_PAUSE
    if now == PHASE_SELF_TEST:
        return False
    if now == PHASE_CONTACT_CHECK:
        return was == PHASE_PAUSE
    return True


cdef void check_ledger(Campaign* c, Watch* w, const Tick* row, const Calibration* calibration) noexcept nogil:
    """Charge equals samples, and what was not seen is what the device counted; both sums run side by side."""
    cdef int64_t codes = <int64_t>row.current_code * 65536 - calibration.current_offset_q16
    cdef int64_t gap, most
    if w.started and row.lost_ticks:
        gap = row.device_charge_codes - w.device_codes - codes
        most = <int64_t>row.lost_ticks * calibration.code_limit * 65536
        if gap > most or gap < -most:
            gap = most if gap > most else -most
            w.clamped = 1
        w.net_codes += gap
        w.absolute_codes += gap if gap >= 0 else -gap
    w.net_codes += codes
    w.absolute_codes += codes if codes >= 0 else -codes
    w.device_codes = row.device_charge_codes
    if row.net_codes != w.net_codes:
        violate(c, LEDGER, row.channel, <double>row.net_codes, <double>w.net_codes)
    if row.absolute_codes != w.absolute_codes:
        violate(c, LEDGER, row.channel, <double>row.absolute_codes, <double>w.absolute_codes)
    if not w.started:
        w.base_codes = row.net_codes - row.device_charge_codes
    elif row.net_codes - row.device_charge_codes != w.base_codes and not w.clamped and not c.reading_faulted:
        violate(c, COUNTS, row.channel, <double>(row.net_codes - row.device_charge_codes), <double>w.base_codes)


cdef void check_guard(Campaign* c, Watch* w, const Tick* row, const GuardLimits* limits, uint32_t ticks) noexcept nogil:
    """The rows of the guard that are plain counts and comparisons: at the limit nothing, one step beyond it."""
    cdef bint good = row.sample_fault == SAMPLE_GOOD
    cdef bint off = False, down = False, late_off, late_down, heart, lost, cap, lease, time_up, charge, apart_
    cdef uint64_t mismatch
    cdef int32_t fresh = row.trip if w.trip == TRIP_NONE else TRIP_NONE
    cdef double highest, level
    cdef uint32_t k

    if row.heartbeat != w.heartbeat:
        w.heartbeat = row.heartbeat
        w.heartbeat_age = 0
    else:
        w.heartbeat_age += ticks
    w.missing_run += ticks - 1 if good else 1
    heart = w.heartbeat_age >= limits.heartbeat_ticks
    lost = w.missing_run > limits.gap_stop_ticks
    time_up = w.ticks > limits.session_ticks
    late_off = row.host_late_us > limits.lease_us
    late_down = row.host_late_us > limits.late_stop_us
    cap = good and (row.status & (STATUS_OVER_CURRENT | STATUS_CHARGE_CAP | STATUS_TIME_CAP)) != 0
    lease = good and (row.status & STATUS_LEASE_EXPIRED) != 0
    charge = good and row.absolute_codes > limits.charge_cap_codes
    mismatch = (
        <uint64_t>row.net_codes - <uint64_t>row.device_charge_codes if row.net_codes >= row.device_charge_codes
        else <uint64_t>row.device_charge_codes - <uint64_t>row.net_codes
    )
    apart_ = good and mismatch > <uint64_t>limits.charge_mismatch_codes
    if good:
        w.missing_run = 0

    # More than the setpoint: judged late enough that any reading has had the time to follow.
    # A guard that ramps down judges by what was in force when it began.
    if row.action < ACTION_RAMP_DOWN:
        level = fabs(row.setpoint_a)
        if row.phase == PHASE_CONTACT_CHECK and level < c.controllers[row.channel].config.probe.current_a:
            level = c.controllers[row.channel].config.probe.current_a
        w.over_at = (w.over_at + 1) & (PAST - 1)
        w.over_levels_a[w.over_at] = level
    highest = 0.0
    for k in range(<uint32_t>PAST):
        if w.over_levels_a[k] > highest:
            highest = w.over_levels_a[k]
    level = limits.over_ratio * highest
    if level < highest + limits.over_margin_a:
        level = highest + limits.over_margin_a
    if good and fabs(row.redundant_a) > 1.001 * level and row.index - row.applied_index <= 8:
        w.over_run += 1
    else:
        w.over_run = 0

    # What the safe ramp down itself does to the current is no finding.
    if (row.pause != w.pause and w.action >= ACTION_RAMP_DOWN
            and (row.pause == TRIP_HUNTING or row.pause == TRIP_UNDER_CURRENT)):
        violate(c, GUARD_EARLY, row.channel, row.pause, 0.0)

    if w.limits_spoilt >= 0:
        # Whatever the limits say now: within the second in which they are verified it is off.
        if <int64_t>c.tick - w.limits_spoilt > 1000 + 2 * 255 and row.action != ACTION_OFF and w.action != ACTION_OFF:
            violate(c, GUARD_MISSED, row.channel, row.action, <int32_t>ACTION_OFF)
        return
    off = late_off or cap or lease or row.stop >= STOP_NOW or w.over_run > limits.over_ticks + PAST
    down = heart or lost or time_up or late_down or charge or apart_
    if off and row.action != ACTION_OFF:
        violate(c, GUARD_MISSED, row.channel, row.action, <int32_t>ACTION_OFF)
    if down and row.action < ACTION_RAMP_DOWN:
        violate(c, GUARD_MISSED, row.channel, row.action, <int32_t>ACTION_RAMP_DOWN)
    if row.pause == TRIP_NONE and row.trip == TRIP_NONE and w.missing_run > limits.gap_pause_ticks:
        violate(c, GUARD_MISSED, row.channel, w.missing_run, limits.gap_pause_ticks)
    if ((fresh == TRIP_HEARTBEAT and not heart) or (fresh == TRIP_LOST_SAMPLES and not lost)
            or (fresh == TRIP_SESSION_TIME and not time_up) or (fresh == TRIP_STALE_DATA and not late_down)
            or (fresh == TRIP_HOST_SUSPENDED and not late_off) or (fresh == TRIP_DEVICE_CAP and not cap)
            or (fresh == TRIP_LEASE_LAPSED and not lease) or (fresh == TRIP_CHARGE_CAP and not charge)
            or (fresh == TRIP_CHARGE_MISMATCH and not apart_)
            or (fresh == TRIP_OPERATOR_STOP and row.stop < STOP_NOW)):
        violate(c, GUARD_EARLY, row.channel, fresh, 0.0)


cdef inline uint32_t newer(uint32_t index, const Campaign* c) noexcept nogil:
    """The first index that no accepted answer has had. What is decided on a sample that comes again is answered for one
    that was answered before, and that the device refuses.
    """
    if c.any_accepted and <int32_t>(c.accept_index - index) > 0:
        return c.accept_index + <uint32_t>1
    return index + <uint32_t>1


cdef void check_latch(Campaign* c, Watch* w, const Tick* row) noexcept nogil:
    """The first cause is kept, urgency only rises, and what waits for a person waits."""
    if w.trip != TRIP_NONE and row.trip != w.trip:
        violate(c, LATCH, row.channel, row.trip, w.trip)
    if w.action >= ACTION_RAMP_DOWN and row.action < w.action:
        violate(c, LATCH, row.channel, row.action, w.action)
    if row.trip != TRIP_NONE and row.action < ACTION_RAMP_DOWN:
        violate(c, LATCH, row.channel, row.action, <int32_t>ACTION_RAMP_DOWN)
    if row.stop < w.stop:
        violate(c, LATCH, row.channel, row.stop, w.stop)
    if w.end_reason != END_NONE and row.end_reason != w.end_reason:
        violate(c, LATCH, row.channel, row.end_reason, w.end_reason)
    if w.pause == TRIP_LOST_SAMPLES and row.pause != w.pause and row.operator_command != OPERATOR_RESUME:
        violate(c, LATCH, row.channel, row.pause, w.pause)
    if not may_follow(w.phase, row.phase, row):
        violate(c, PHASE_ORDER, row.channel, row.phase, w.phase)
    if row.action == ACTION_OFF and (row.output_code != 0 or row.close_relay):
        violate(c, LATCH, row.channel, row.output_code, 0.0)
    if w.end_reason != END_NONE and row.action < ACTION_RAMP_DOWN and row.close_relay:
        violate(c, LATCH, row.channel, row.close_relay, 0.0)


cdef void check_output(Campaign* c, Watch* w, const Tick* row, const ControllerState* controller,
                       uint32_t ticks) noexcept nogil:
    """What was asked for and sent: rises within their limit, descents that descend, stops and pauses that stop."""
    cdef const ControllerConfig* config = &controller.config
    cdef double level = fabs(row.level_a), code = fabs(<double>row.output_code), before = fabs(<double>w.output_code)
    cdef double most = c.scenario.rise_most_a[row.channel], slope, sign, was, rise
    cdef double zero = config.calibration.output_offset_q16 / 65536.0
    cdef bint good = row.sample_fault == SAMPLE_GOOD
    if w.not_finite >= 0 or w.reversed_at >= 0:
        return
    if level > fabs(w.level_a) + most * 1.000001 + 1e-15:
        violate(c, SETPOINT, row.channel, level - fabs(w.level_a), most)
    if level > config.programme.level_limit_a * (1.0 + 1e-9):
        violate(c, SETPOINT, row.channel, level, config.programme.level_limit_a)
    most = c.scenario.slew_codes[row.channel]
    if most > 0.0 and row.action < ACTION_RAMP_DOWN:
        if row.phase == PHASE_CONTACT_CHECK or w.phase == PHASE_CONTACT_CHECK:
            most += 2.0 * config.probe.current_a / config.calibration.output_lsb
        # From where the output was, or from zero where it lay on the other side: so far a step is free.
        sign = 1.0 if row.output_code >= zero else -1.0
        was = sign * (w.output_code - zero)
        rise = sign * (row.output_code - zero) - (was if was > 0.0 else 0.0)
        if rise > most + 2.0:
            violate(c, RISE, row.channel, rise, most)
    if row.action == ACTION_RAMP_DOWN:
        if w.action < ACTION_RAMP_DOWN:
            w.descent_codes = before
            ticks = 1
        w.descent_codes -= config.guard.stop_slope_codes * ticks
        if w.descent_codes < 0.0:
            w.descent_codes = 0.0
        if code > before or (code > w.descent_codes + 1.0 and w.limits_spoilt < 0):
            violate(c, DESCENT, row.channel, code, w.descent_codes)
    slope = config.programme.slope_down_a_per_tick
    if w.stop_since >= 0:
        w.stop_rows += 1 if good else 0
        if level > fabs(w.level_a) + 1e-15:
            violate(c, STOP_TIME, row.channel, level, fabs(w.level_a))
        if row.end_reason == END_NONE and w.stop_rows > <uint64_t>(config.programme.level_limit_a / slope) + 20:
            violate(c, STOP_TIME, row.channel, <double>w.stop_rows, config.programme.level_limit_a / slope)
    elif row.stop or row.operator_command == OPERATOR_STOP:
        w.stop_since = <int64_t>c.tick
    if row.pause != TRIP_NONE and w.pause != TRIP_NONE and good:
        w.pause_rows += 1
        if level > fabs(w.level_a) + 1e-15:
            violate(c, PAUSE_TIME, row.channel, level, fabs(w.level_a))
        if level > 0.0 and w.pause_rows > <uint64_t>(config.programme.level_limit_a / slope) + 20:
            violate(c, PAUSE_TIME, row.channel, <double>w.pause_rows, config.programme.level_limit_a / slope)
    elif row.pause == TRIP_NONE:
        w.pause_rows = 0
    # The operator's pause lasts until he resumes.
    if row.operator_command == OPERATOR_RESUME or row.end_reason != END_NONE:
        w.held = 0
    elif w.held and good and row.phase > PHASE_CONTACT_CHECK:
        w.held_rows += 1
        if level > fabs(w.level_a) + 1e-15:
            violate(c, PAUSE_TIME, row.channel, level, fabs(w.level_a))
        if level > 0.0 and w.held_rows > <uint64_t>(config.programme.level_limit_a / slope) + 20:
            violate(c, PAUSE_TIME, row.channel, <double>w.held_rows, config.programme.level_limit_a / slope)
    if row.operator_command == OPERATOR_PAUSE and row.end_reason == END_NONE and not w.held:
        w.held = 1
        w.held_rows = 0


cdef void check_event(Campaign* c, Watch* w, const Tick* row) noexcept nogil:
    """No change without its event, no event without its change, and each once in the ring of events."""
    cdef Ring* ring = &c.loop.events
    cdef const Tick* told
    cdef uint32_t due = 0
    cdef uint32_t watched = (EVENT_PHASE | EVENT_TRIP | EVENT_PAUSE | EVENT_END | EVENT_CONTACT | EVENT_LIMITED
                             | EVENT_ADVICE | EVENT_GAP | EVENT_BAD_SAMPLE | EVENT_STATUS)
    if row.phase != w.phase:
        due |= EVENT_PHASE
    if row.trip != w.trip or (row.action >= ACTION_RAMP_DOWN and row.action != w.action):
        due |= EVENT_TRIP
    if row.pause != w.pause:
        due |= EVENT_PAUSE
    if row.end_reason != w.end_reason:
        due |= EVENT_END
    if row.contact != w.contact:
        due |= EVENT_CONTACT
    if row.limited != w.limited:
        due |= EVENT_LIMITED
    if row.advice != w.advice:
        due |= EVENT_ADVICE
    if row.lost_ticks:
        due |= EVENT_GAP
    if row.sample_fault != SAMPLE_GOOD:
        due |= EVENT_BAD_SAMPLE
    elif row.status != w.status:
        due |= EVENT_STATUS
    if (row.events & watched) != due:
        violate(c, EVENT, row.channel, row.events & watched, due)
    if row.events:
        if ring.tail == ring.head:
            violate(c, EVENT, row.channel, 0.0, 1.0)
            return
        told = <const Tick*>(ring.rows + ring.tail_at * ring.row_bytes)
        if told.index != row.index or told.channel != row.channel or told.events != row.events:
            violate(c, EVENT, row.channel, told.events, row.events)
        ring.tail_at = ring.tail_at + 1 if ring.tail_at + 1 < ring.capacity else 0
        ring.tail += 1


cdef void note_row(Campaign* c, Watch* w, const Tick* row) noexcept nogil:
    cdef uint32_t channel = row.channel
    if row.trip != w.trip:
        note(c, SEEN_TRIP, row.trip, channel, w.phase)
    if row.pause != w.pause:
        note(c, SEEN_PAUSE if row.pause else SEEN_RESUMED, row.pause if row.pause else w.pause, channel, w.phase)
    if row.end_reason != w.end_reason:
        note(c, SEEN_END, row.end_reason, channel, w.phase)
    if row.limited and not w.limited:
        note_once(c, w, SEEN_LIMITED, 1, channel)
    if row.advice & ~w.advice:
        note(c, SEEN_ADVICE, <int32_t>(row.advice & ~w.advice), channel, w.phase)
    if row.contact == CONTACT_LOST and w.contact != CONTACT_LOST:
        note_once(c, w, SEEN_CONTACT_LOST, 1, channel)
    if row.lost_ticks:
        note_once(c, w, SEEN_GAP, <int32_t>row.lost_ticks, channel)
    if row.sample_fault != SAMPLE_GOOD:
        note_once(c, w, SEEN_BAD_SAMPLE, row.sample_fault, channel)
    elif row.status & ~w.status:
        note(c, SEEN_STATUS, <int32_t>(row.status & ~w.status), channel, w.phase)
    if <double>row.host_late_us > 1e6 * c.scenario.tick_s:
        note_once(c, w, SEEN_LATE, 1, channel)
    if row.phase != w.phase:
        note(c, SEEN_PHASE, row.phase, channel, w.phase)


cdef void check_others(Campaign* c, const Watch* w, const Tick* row) noexcept nogil:
    """One channel has ended short by itself: if the treatment says so, the others are told in the next period."""
    cdef bint fell = row.trip != TRIP_NONE or (
        row.end_reason != END_NONE and row.end_reason != END_COMPLETE and row.end_reason != END_OPERATOR)
    if fell:
        if c.fallen < 0:
            c.fallen = row.channel
            c.fallen_row = c.rows
        return
    if c.fallen < 0 or row.end_reason != END_NONE or c.rows < c.fallen_row + c.scenario.channels:
        return
    if c.scenario.on_trip == ON_TRIP_STOP and row.stop < STOP_RAMP_DOWN:
        violate(c, OTHERS, row.channel, row.stop, <int32_t>STOP_RAMP_DOWN)


cdef void check_row(Campaign* c, const Tick* row) noexcept nogil:
    cdef Watch* w = &c.watch[row.channel]
    cdef const ControllerState* controller = c.controllers[row.channel]
    cdef bint good = row.sample_fault == SAMPLE_GOOD
    cdef uint32_t ticks = 1, lost = 0, unseen
    cdef int32_t phase = w.phase
    if good:
        if w.started:
            lost = row.index - w.last_index - 1
            if lost != row.lost_ticks:
                violate(c, LOST_TICK, row.channel, row.lost_ticks, lost)
        unseen = lost - w.missed if lost > w.missed else 0
        ticks = 1 + unseen
        check_ledger(c, w, row, &controller.config.calibration)
    else:
        if row.sample_fault == SAMPLE_REPEATED:
            ticks = 0
        if row.net_codes != w.net_codes or row.absolute_codes != w.absolute_codes:
            violate(c, LEDGER, row.channel, <double>row.net_codes, <double>w.net_codes)
    w.ticks += ticks
    check_event(c, w, row)
    if w.any:
        check_latch(c, w, row)
    check_guard(c, w, row, &controller.config.guard, ticks)
    check_output(c, w, row, controller, ticks)
    if not c.act_count and (row.trip != TRIP_NONE or row.pause != TRIP_NONE):
        violate(c, FALSE_ALARM, row.channel, row.trip, row.pause)
    check_others(c, w, row)
    note_row(c, w, row)

    fold(c, row.index ^ <uint64_t><uint32_t>row.output_code << 32)
    fold(c, <uint64_t>row.net_codes ^ bits(row.level_a))
    fold(c, <uint64_t>(row.phase | row.trip << 8 | row.action << 16 | row.pause << 24) ^ <uint64_t>row.events << 40)
    if row.action == ACTION_OFF and w.off_since < 0:
        w.off_since = <int64_t>c.tick
        w.off_index = row.index if row.sample_fault != SAMPLE_REPEATED else newer(w.last_index, c)
    w.any = 1
    if good:
        w.started = 1
        w.last_index = row.index
        w.missed = 0
        w.status = row.status
    elif row.sample_fault != SAMPLE_REPEATED:
        w.missed += 1
    w.gaps += lost
    w.phase = row.phase
    w.trip = row.trip
    w.action = row.action
    w.pause = row.pause
    w.end_reason = row.end_reason
    w.contact = row.contact
    w.limited = row.limited
    w.advice = row.advice
    w.stop = row.stop
    w.segment = row.segment
    w.close_relay = row.close_relay
    w.output_code = row.output_code
    w.level_a = row.level_a
    w.setpoint_a = row.setpoint_a
    c.rows += 1
    if row.phase != phase:
        w.noted = 0
        phase_began(c, row.channel, row.phase)


cdef void settle(Campaign* c) noexcept nogil:
    """Every row since the last visit, in its order."""
    cdef Ring* ring = &c.loop.telemetry
    cdef uint32_t channel = 0
    cdef const Tick* row
    while ring.tail != ring.head and c.violated == HOLDS:
        row = <const Tick*>(ring.rows + ring.tail_at * ring.row_bytes)
        if row.channel != channel:
            violate(c, LOST_TICK, row.channel, row.channel, channel)
            return
        check_row(c, row)
        channel = channel + 1 if channel + 1 < c.scenario.channels else 0
        ring.tail_at = ring.tail_at + 1 if ring.tail_at + 1 < ring.capacity else 0
        ring.tail += 1
    if c.loop.events.tail != c.loop.events.head:
        violate(c, EVENT, 0, <double>(c.loop.events.head - c.loop.events.tail), 0.0)
    if ring.dropped or c.loop.events.dropped or c.rows != c.loop.ticks * c.scenario.channels:
        violate(c, LOST_TICK, 0, <double>c.rows, <double>(c.loop.ticks * c.scenario.channels))


# The plant: what truly happened in a sample period.

cdef inline bint bridged(const Campaign* c, const VirtualChannel* one) noexcept nogil:
    """Skin current that is not the output stage's: across a bridge, or from another channel."""
    return one.skin.shunt_ohm > 0.0 or c.crossed


cdef void check_truth(Campaign* c) noexcept nogil:
    cdef const VirtualChannel* one
    cdef const ControllerConfig* config
    cdef Watch* w
    cdef uint32_t channel
    cdef double current_a, mean_a, peak_a, most, step
    cdef int64_t tick = <int64_t>c.tick
    cdef bint silent = c.accept_tick < 0 or tick - c.accept_tick > <int64_t>c.cap_ticks
    cdef bint disturbed = c.plant_tick >= 0 and tick - c.plant_tick <= 4
    for channel in range(c.scenario.channels):
        one = &c.channel[channel]
        w = &c.watch[channel]
        config = &c.scenario.config[channel]
        current_a = fabs(one.period.charge_c) / one.front_end.period_s
        mean_a = one.period.absolute_c / one.front_end.period_s
        fold(c, bits(one.period.charge_c))

        # The cap: a comparator needs a sub-step, and what it has cut off stays off. Across a bridge skin discharges by
        # itself; there what leaves the output stage counts.
        peak_a = fabs(one.front_end.source_a) if bridged(c, one) else one.period.peak_a
        if peak_a > one.comparator_a * 1.000001 and not one.period.tripped:
            w.peak_over += 1.0
            if config.calibration.front_end == FRONT_END_CURRENT_SOURCE or w.peak_over > 1.0:
                violate(c, CAP, channel, peak_a, one.comparator_a)
        else:
            w.peak_over = 0.0
        if mean_a > one.comparator_a * 1.000001 and not one.period.tripped and not bridged(c, one):
            violate(c, CAP, channel, mean_a, one.comparator_a)

        # Nothing flows without a fresh command.
        if silent and current_a > FLOOR_A and not c.crossed:
            violate(c, LEASE_TIME, channel, current_a, <double>(tick - c.accept_tick))
        # Off is off, as soon as the device has been told.
        if w.off_since >= 0:
            if w.off_heard < 0 and c.any_accepted and <int32_t>(c.accept_index - w.off_index) >= 0:
                w.off_heard = tick
            if (w.off_heard >= 0 and tick - w.off_heard > <int64_t>c.off_ticks + 2 and current_a > FLOOR_A
                    and not c.crossed):
                violate(c, OFF_TIME, channel, current_a, <double>(tick - w.off_heard))

        # A current source shows what it was told: no rise beyond the slew, whatever was lost on the way.
        if config.calibration.front_end == FRONT_END_CURRENT_SOURCE:
            step = c.scenario.slew_codes[channel] * config.calibration.output_lsb * 1.04
            most = w.before_a if w.before_a > w.before2_a else w.before2_a
            most += step * (2.0 + <double>(c.device.applied_index - c.applied_index))
            most += 2.0 * config.probe.current_a + 4.0 * config.impedance.tone_a
            most += 4.0 * config.calibration.current_lsb_a
            if current_a > most and not disturbed and not one.period.limited and not c.plant_faulted:
                violate(c, RISE, channel, current_a, most)
        w.before2_a = w.before_a
        w.before_a = current_a
        w.charge_c += one.period.charge_c
        w.absolute_c += one.period.absolute_c
    c.applied_index = c.device.applied_index


cdef void one_period(Campaign* c) noexcept nogil:
    """A sample period of the device, and what the orchestrator does in it."""
    cdef uint32_t channel
    cdef Watch* w
    if c.tick >= <uint64_t>c.next_due:
        do_acts(c)
    virtual_device_advance(&c.device)
    c.tick += 1
    c.host_us += 1e6 * c.scenario.tick_s * c.host_rate
    check_truth(c)
    if c.device.phase != c.device_phase:
        note(c, SEEN_DEVICE_OFF, c.device.phase, 0, c.watch[0].phase)
        c.device_phase = c.device.phase
    if c.tick % c.visit_ticks:
        return
    if not c.heart_stopped:
        c.loop.heartbeat = <uint32_t>draw(&c.noise) if c.heart_wrong else heartbeat_answer(c.loop.challenge)
    for channel in range(c.scenario.channels):
        w = &c.watch[channel]
        # What a person must resume, and not a pause of the plan.
        if c.controllers[channel].programme.paused or c.controllers[channel].guard.pause_latched:
            w.pause_since += 1
            if w.pause_since >= c.patience_visits:
                w.pause_since = 0
                operate(c, OPERATOR_RESUME if c.resumes else OPERATOR_STOP, 0.0, channel)
        else:
            w.pause_since = 0
    if c.tick >= c.most_ticks and c.loop.stop < STOP_RAMP_DOWN:
        c.loop.stop = STOP_RAMP_DOWN
        c.asked_to_end = 1


cdef int64_t device_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil:
    """The port behind the faults: a period passes, unless bytes of the last one still wait."""
    cdef Campaign* c = <Campaign*>context
    if c.device.transmit_length == 0:
        one_period(c)
        while c.sleep_periods and c.violated == HOLDS:
            c.sleep_periods -= 1
            one_period(c)
        c.loop.virtual_host_us = <uint64_t>c.host_us if c.clock else 0
    if c.dead or c.violated != HOLDS or c.device.unplugged:
        return -EIO
    return <int64_t>virtual_device_transmit(&c.device, data, capacity)


cdef int64_t device_write(void* context, const uint8_t* data, size_t length) noexcept nogil:
    cdef Campaign* c = <Campaign*>context
    virtual_device_receive(&c.device, data, length)
    if c.device.any_accepted and (not c.any_accepted or c.device.newest_index != c.accept_index):
        c.any_accepted = 1
        c.accept_index = c.device.newest_index
        c.accept_tick = <int64_t>c.tick
    return <int64_t>length


cdef int64_t host_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil:
    """The port that the loop has: what it has ticked is looked at before anything else happens."""
    cdef Campaign* c = <Campaign*>context
    cdef int64_t count
    settle(c)
    if c.violated != HOLDS:
        return -EIO
    count = fault_port_read(c.port, data, capacity, timeout_us)
    if count > 0:
        c.lost_before = c.tick
    elif count == 0 and <double>(c.tick - c.lost_before) * c.scenario.tick_s > SILENT_S:
        c.loop.status = LOOP_DEVICE_SILENT
    if c.asked_to_end and c.tick > c.most_ticks + c.most_ticks // 4 + 20 * c.cap_ticks * 10:
        violate(c, STOP_TIME, 0, <double>c.tick, <double>c.most_ticks)
    return count


cdef int64_t host_write(void* context, const uint8_t* data, size_t length) noexcept nogil:
    cdef Campaign* c = <Campaign*>context
    return fault_port_write(c.port, data, length)


# A session.

cdef void empty(Ring* ring) noexcept nogil:
    ring.head = 0
    ring.tail = 0
    ring.head_at = 0
    ring.tail_at = 0
    ring.dropped = 0
    ring.high_water = 0


cdef void tell_device(Campaign* c, uint8_t type_) noexcept nogil:
    cdef uint8_t payload[8]
    cdef uint8_t frame[MAX_FRAME]
    payload[0] = type_
    payload[1] = PACING_DEVICE if type_ == FRAME_ARM else 0
    put_u16(payload + 2, 0)
    put_u32(payload + 4, c.device.token)
    virtual_device_receive(&c.device, frame, wire_encode(payload, 8, frame))
    c.device.transmit_length = 0


cdef void begin(Campaign* c) noexcept nogil:
    cdef const Scenario* scenario = c.scenario
    cdef const VirtualDeviceState* made = scenario.device
    cdef ControllerState* controller
    cdef uint32_t channel, k
    cdef Watch* w
    c.noise = c.seed
    memcpy(&c.device, made, sizeof(VirtualDeviceState))
    memcpy(c.channel, made.channel, made.channels * sizeof(VirtualChannel))
    c.device.channel = c.channel
    c.device.transmit = c.transmit
    c.device.transmit_length = 0
    c.device.truth = NULL
    c.device.state_path = NULL
    c.device.state_spare_path = NULL
    c.device.round_trip = NULL
    c.device.port.context = &c.device
    c.device.noise = draw(&c.noise) | 1
    for channel in range(scenario.channels):
        c.channel[channel].front_end.noise = draw(&c.noise) | 1
        c.channel[channel].skin.processes.noise = draw(&c.noise) | 1

    memset(c.watch, 0, sizeof(c.watch))
    c.seen_count = 0
    c.violated = HOLDS
    c.found = 0.0
    c.allowed = 0.0
    c.violated_tick = -1
    c.violated_channel = 0
    c.tick = 0
    c.rows = 0
    c.digest = <uint64_t>0xCBF29CE484222325
    c.visit_ticks = <uint64_t>(0.1 / scenario.tick_s + 0.5)
    c.cap_ticks = <uint64_t>(0.1 / scenario.tick_s + 0.5)
    c.off_ticks = <uint64_t>(0.02 / scenario.tick_s + 0.5)
    c.sleep_periods = 0
    c.host_us = 1.0
    c.host_rate = 1.0
    c.heart_stopped = 0
    c.heart_wrong = 0
    c.dead = 0
    c.asked_to_end = 0
    c.plant_tick = -1
    c.accept_tick = -1
    c.accept_index = 0
    c.any_accepted = 0
    c.applied_index = 0
    c.sequence = 0
    c.wire_faulted = 0
    c.plant_faulted = 0
    c.reading_faulted = 0
    c.crossed = 0
    c.fallen = -1
    c.lost_before = 0
    # At the least the operator resumes while the current still falls.
    c.patience_visits = 8 * (1 + <int64_t>(draw(&c.noise) >> 62))
    c.next_due = INT64_MAX

    memset(c.loop, 0, sizeof(LoopState))
    empty(&c.telemetry)
    empty(&c.events)
    empty(&c.operators)
    c.loop.telemetry = c.telemetry
    c.loop.events = c.events
    c.loop.operators = c.operators
    c.loop.descriptor.fd = -1
    c.loop.descriptor.reading = -1
    c.loop.channels = scenario.channels
    c.loop.device_channels = made.channels
    c.loop.virtual_clock = 1
    c.loop.pacing = PACING_DEVICE
    c.loop.on_trip = scenario.on_trip
    c.loop.silence_us = 1000000000000
    c.loop.period_ns = <uint64_t>(scenario.tick_s * 1e9 + 0.5)
    c.loop.port.version = PORT_VERSION
    c.loop.port.size = sizeof(Port)
    c.loop.port.context = c
    c.loop.port.read = host_read
    c.loop.port.write = host_write
    c.port.inner = c.loop.port
    c.port.inner.read = device_read
    c.port.inner.write = device_write
    fault_port_start(c.port, draw(&c.noise))

    for channel in range(scenario.channels):
        controller = c.controllers[channel]
        controller.config = scenario.config[channel]
        memcpy(controller.segments, scenario.segments[channel],
               scenario.config[channel].programme.segments * sizeof(Segment))
        controller_start(controller)
        c.loop.controllers[channel] = controller
        c.loop.challenge = controller.guard.challenge
        w = &c.watch[channel]
        w.off_since = -1
        w.off_heard = -1
        w.stop_since = -1
        w.limits_spoilt = -1
        w.not_finite = -1
        w.reversed_at = -1
    for k in range(c.act_count):
        c.acts[k].fired = -1
        c.acts[k].until = -1
        c.acts[k].fired_phase = -1
        c.acts[k].due = c.acts[k].after_ticks if c.acts[k].phase <= PHASE_SELF_TEST else -1
        if 0 <= c.acts[k].due < c.next_due:
            c.next_due = c.acts[k].due
    tell_device(c, FRAME_ARM)
    c.device_phase = c.device.phase


cdef bint refused_by_contact(const Campaign* c) noexcept nogil:
    """A load that the contact check does not take ends a session with nothing wrong."""
    cdef uint32_t channel
    for channel in range(c.scenario.channels):
        if c.watch[channel].end_reason in (END_CONTACT_OPEN, END_CONTACT_OUTSIDE, END_CONTACT_UNCLEAR):
            return True
    return False


cdef void check_end(Campaign* c) noexcept nogil:
    """The host is gone, or has disarmed: nothing flows, and the sums are those of the plant."""
    cdef const VirtualChannel* one
    cdef const ControllerConfig* config
    cdef Watch* w
    cdef uint32_t channel
    cdef uint64_t left = c.cap_ticks + 2 * c.off_ticks + 4
    cdef double tick_s = c.scenario.tick_s, counted, level, allowed, noise_c, lsb_a
    cdef bint closed = True, still = True
    if c.loop.status == LOOP_ENDED:
        tell_device(c, FRAME_DISARM)
    while left and closed:
        closed = still
        still = False
        if c.device.phase != DEVICE_IDLE:
            virtual_device_advance(&c.device)
            c.tick += 1
            check_truth(c)
            if c.device.phase != c.device_phase:
                note(c, SEEN_DEVICE_OFF, c.device.phase, 0, c.watch[0].phase)
                c.device_phase = c.device.phase
        for channel in range(c.scenario.channels):
            still = still or c.channel[channel].front_end.relay_closed != 0
        left -= 1
    for channel in range(c.scenario.channels):
        one = &c.channel[channel]
        w = &c.watch[channel]
        config = &c.scenario.config[channel]
        if one.front_end.relay_closed or (one.period.charge_c != 0.0 and not c.crossed):
            violate(c, END_ZERO, channel, fabs(one.period.charge_c) / tick_s, 0.0)
        lsb_a = config.calibration.current_lsb_a
        noise_c = (6.0 * sqrt(<double>c.tick) + 0.02 * <double>c.tick + 4.0) * lsb_a * tick_s
        level = config.programme.level_limit_a
        # The device counts at the end of each period, the plant all of it.
        counted = <double>one.net_codes * (lsb_a * tick_s / 65536.0)
        allowed = 0.0005 * one.absolute_c + noise_c + 4.0 * level * tick_s + 2e-6
        if not c.plant_faulted and not c.reading_faulted and fabs(counted - one.charge_c) > allowed:
            violate(c, CHARGE, channel, counted - one.charge_c, allowed)
        # The dose: one tick at the setpoint; what flows while nobody can say so; and the guard's own ramp down.
        allowed = level * tick_s * 2.0 + 0.0005 * one.absolute_c + noise_c + 2e-6
        if c.wire_faulted:
            allowed += level * 0.11
        if c.plant_faulted:
            allowed += 1.25 * level * 1.0
        if w.trip != TRIP_NONE:
            allowed += level * level / 2e-3 + level * 0.02
        counted = config.programme.polarity * one.charge_c - c.scenario.prescribed_c[channel]
        if counted > allowed:
            violate(c, DOSE, channel, counted, allowed)
        if c.act_count == 0 and c.violated == HOLDS and not refused_by_contact(c):
            if c.loop.status != LOOP_ENDED or w.end_reason != END_COMPLETE:
                violate(c, FALSE_ALARM, channel, w.end_reason, <int32_t>END_COMPLETE)
            if fabs(counted) > allowed:
                violate(c, DOSE, channel, counted, allowed)
    if not c.wire_faulted and not c.plant_faulted and c.device.refused and c.device_phase == DEVICE_ARMED:
        violate(c, COMMAND, 0, c.device.refused, 0.0)
    if c.device.refused:
        note(c, SEEN_REFUSED, <int32_t>c.device.refused, 0, c.watch[0].phase)
    if c.loop.receiver.bad_frames:
        note(c, SEEN_BAD_FRAMES, <int32_t>c.loop.receiver.bad_frames, 0, c.watch[0].phase)
    note(c, SEEN_LOOP, c.loop.status, 0, c.watch[0].phase)
    fold(c, c.rows)
    fold(c, c.tick)


cdef void campaign_run(Campaign* c) noexcept nogil:
    begin(c)
    loop_run(c.loop, <uint64_t>1 << 62)
    settle(c)
    if c.violated == HOLDS:
        check_end(c)


cdef class Simulator:
    """Sessions of the campaign, one after the other, in memory that is made once."""
    cdef Campaign* state
    cdef list scenarios
    cdef list kept

    def __cinit__(self):
        cdef uint32_t channel
        self.state = <Campaign*>calloc(1, sizeof(Campaign))
        if self.state == NULL:
            raise MemoryError
        self.state.loop = <LoopState*>calloc(1, sizeof(LoopState))
        self.state.port = <FaultPortState*>calloc(1, sizeof(FaultPortState))
        self.state.transmit = <uint8_t*>calloc(CHANNELS, TRANSMIT_BYTES)
        if self.state.loop == NULL or self.state.port == NULL or self.state.transmit == NULL:
            raise MemoryError
        for channel in range(<uint32_t>CHANNELS):
            self.state.controllers[channel] = <ControllerState*>calloc(1, sizeof(ControllerState))
            if self.state.controllers[channel] == NULL:
                raise MemoryError
        if (ring_open(&self.state.telemetry, sizeof(Tick), ROWS) or ring_open(&self.state.events, sizeof(Tick), ROWS)
                or ring_open(&self.state.operators, sizeof(OperatorRequest), 64)):
            raise MemoryError

    def __dealloc__(self):
        cdef uint32_t channel
        if self.state == NULL:
            return
        for channel in range(<uint32_t>CHANNELS):
            free(self.state.controllers[channel])
        ring_close(&self.state.telemetry)
        ring_close(&self.state.events)
        ring_close(&self.state.operators)
        free(self.state.loop)
        free(self.state.port)
        free(self.state.transmit)
        free(self.state)

    def run(self, Prepared prepared, uint64_t seed, list acts, *, uint64_t most_ticks, bint resumes=True,
            bint clock=True) -> dict:
        """One session of a prepared scenario, from arming to the open relay.

        acts: (kind, code, phase, undo, channel, after_ticks, length_ticks, value, undo_value), as struct Act has them.
        Returns ticks (of the device), rows, digest, violation (None, or a dict), seen and fired: what became of acts.
        """
        cdef Campaign* c = self.state
        cdef uint32_t k
        cdef Act* act
        if len(acts) > ACTS:
            raise ValueError(f"{len(acts)} acts: at most {ACTS}")
        c.scenario = &prepared.scenario
        c.seed = seed
        c.most_ticks = most_ticks
        c.resumes = resumes
        c.clock = clock
        c.act_count = <uint32_t>len(acts)
        for k in range(c.act_count):
            act = &c.acts[k]
            (act.kind, act.code, act.phase, act.undo, act.channel, act.after_ticks, act.length_ticks, act.value,
             act.undo_value) = acts[k]
            if not 0 <= act.kind < ACT_KINDS or act.channel >= c.scenario.channels:
                raise ValueError(f"act {acts[k]}: no such kind or channel")
        with nogil:
            campaign_run(c)
        violation = None
        if c.violated != HOLDS:
            violation = {
                "invariant": INVARIANT_NAMES[c.violated], "channel": c.violated_channel, "tick": c.violated_tick,
                "found": c.found, "allowed": c.allowed,
            }
        return {
            "ticks": c.tick, "rows": c.rows, "digest": c.digest, "violation": violation, "status": c.loop.status,
            "seen": [(SEEN_NAMES[c.seen[k].what], c.seen[k].code, c.seen[k].channel, c.seen[k].phase, c.seen[k].tick)
                     for k in range(c.seen_count)],
            "fired": [(c.acts[k].fired, c.acts[k].fired_phase) for k in range(c.act_count)],
            "truth": [(c.channel[k].charge_c, c.channel[k].absolute_c, c.channel[k].net_codes, c.watch[k].net_codes)
                      for k in range(c.scenario.channels)],
        }


cdef class Prepared:
    """A scenario: a virtual device that has its limits, and the plan of each channel.

    device: its PyCapsule "ionto_rt.core.types.Port" (the device of it is copied for each session). channels: a list of
    dicts with config (struct ControllerConfig), segments, prescribed_c, rise_most_a and slew_codes.
    """
    cdef Scenario scenario
    cdef object device

    def __cinit__(self):
        memset(&self.scenario, 0, sizeof(Scenario))

    def __dealloc__(self):
        cdef uint32_t channel
        for channel in range(<uint32_t>CHANNELS):
            free(self.scenario.segments[channel])

    def __init__(self, device, list channels, *, int32_t on_trip=0):
        cdef uint32_t channel
        cdef Py_ssize_t k
        if not 1 <= len(channels) <= CHANNELS:
            raise ValueError(f"{len(channels)} channels: must be 1 to {CHANNELS}")
        self.device = device
        self.scenario.device = <const VirtualDeviceState*>(
            <Port*>PyCapsule_GetPointer(device, b"ionto_rt.core.types.Port")
        ).context
        if self.scenario.device.channels != <uint32_t>len(channels):
            raise ValueError(f"the device has {self.scenario.device.channels} channels, the plan {len(channels)}")
        self.scenario.channels = <uint32_t>len(channels)
        self.scenario.on_trip = on_trip
        self.scenario.tick_s = 1e-9 * self.scenario.device.sample_period_ns
        for channel, one in enumerate(channels):
            segments = one["segments"]
            self.scenario.config[channel] = {
                **one["config"], "programme": {**one["config"]["programme"], "segments": len(segments)},
            }
            self.scenario.segments[channel] = <Segment*>calloc(len(segments), sizeof(Segment))
            if self.scenario.segments[channel] == NULL:
                raise MemoryError
            for k in range(len(segments)):
                self.scenario.segments[channel][k] = segments[k]
            self.scenario.prescribed_c[channel] = one["prescribed_c"]
            self.scenario.rise_most_a[channel] = one["rise_most_a"]
            self.scenario.slew_codes[channel] = one["slew_codes"]
