"""Firmware of the virtual device: session, leases, caps, samples, faults, truth; the .pxd has the order of a period."""
from cpython.pycapsule cimport PyCapsule_New, PyCapsule_SetContext, PyCapsule_GetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EINTR, EIO, ETIMEDOUT, errno
from libc.math cimport ceil, pow
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport rename, snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset, strdup, strncpy
from posix.fcntl cimport O_CREAT, O_TRUNC, O_WRONLY, open as c_open
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close as c_close, read as c_read, write as c_write

from ionto_rt.core.frontend cimport (
    RANGES,
    FrontEndRange,
    frontend_hum,
    frontend_output,
    frontend_read,
    frontend_read_later,
    frontend_read_sentinel,
    frontend_run,
    frontend_start,
    frontend_wire_sentinel,
    frontend_zero,
)
from ionto_rt.core.skin cimport (
    noise_next,
    site_contact,
    skin_cpe,
    skin_dry,
    skin_linear,
    skin_loosen,
    skin_mend,
    skin_named,
    skin_peel,
    skin_prepare,
    skin_processes,
    skin_scale_onset,
)
from ionto_rt.core.types cimport (
    COMMAND_CLOSE_RELAY,
    FRONT_END_CURRENT_SOURCE,
    FRONT_END_VOLTAGE_SOURCE,
    PACING_DEVICE,
    PACING_LOCK_STEP,
    PORT_VERSION,
    STATUS_CHARGE_CAP,
    STATUS_CLAMPED,
    STATUS_COMPLIANCE,
    STATUS_LATE,
    STATUS_LEASE_EXPIRED,
    STATUS_OVER_CURRENT,
    STATUS_RELAY_CLOSED,
    STATUS_TIME_CAP,
    Command,
    Port,
    Sample,
)
from ionto_rt.core.wire cimport (
    FEATURE_SENTINEL,
    FRAME_ARM,
    FRAME_ARMED,
    FRAME_COMMAND,
    FRAME_COUNTERS,
    FRAME_COUNTERS_REQUEST,
    FRAME_DISARM,
    FRAME_DISARMED,
    FRAME_ERROR,
    FRAME_HELLO,
    FRAME_HELLO_REQUEST,
    FRAME_LIMITS,
    FRAME_LIMITS_READ_BACK,
    HELLO_FEATURE_BYTES,
    MAX_FRAME,
    MAX_PAYLOAD,
    PROTOCOL_VERSION,
    WIRE_ERROR_LEASE,
    WIRE_ERROR_LIMITS,
    WIRE_ERROR_NONCE,
    WIRE_ERROR_PACING,
    WIRE_ERROR_STALE,
    WIRE_ERROR_STATE,
    WIRE_ERROR_TOKEN,
    WIRE_ERROR_UNDECODABLE,
    WIRE_ERROR_UNKNOWN_TYPE,
    WIRE_ERROR_VERSION,
    get_u16,
    get_u32,
    get_u64,
    put_u16,
    put_u32,
    put_u64,
    wire_encode,
    wire_get_command,
    wire_put_sample,
    wire_put_sentinel,
    wire_receive,
)

from ionto_rt.core.skin import skin_number

cdef extern from "sched.h" nogil:
    struct sched_param:
        int sched_priority
    int SCHED_FIFO, SCHED_OTHER
    int sched_setscheduler(int pid, int policy, const sched_param* param)

cdef enum:
    DEVICE_PRIORITY = 30

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, void* mask)
    enum:
        POLLIN
        POLLOUT
        POLLERR
        POLLHUP
        POLLNVAL

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    enum:
        PR_SET_TIMERSLACK

cdef enum:
    HELLO_FIXED_BYTES = 96
    HELLO_RANGE_BYTES = 32
    LIMITS_BYTES = 32
    ARM_BYTES = 8
    COUNTERS_BYTES = 44
    FIRMWARE_VERSION = 0x00010000
    NO_INDEX = 0xFFFFFFFF
    SILENCE_NS = 1000000000     # lock-step: a host silent for this long is gone

cdef double OPEN_OHM = 1e9
cdef double SHORT_OHM = 20.0
cdef double CPE_RAD_S = 100.53096491487338     # 16 Hz
cdef const char* CAPSULE_NAME = "ionto_rt.core.types.Port"
cdef const char* TRUTH_HEADER = (
    "index,device_time_s,current_a,current_peak_a,charge_c,absolute_charge_c,voltage_v,applied_code,lease_ticks_left,"
    "relay_closed,lapsed,contact_fraction\n"
)
FAULT_KINDS = (
    "open", "close", "short", "area", "unplug", "stall", "stuck", "peel", "dry", "loose", "leak", "return-area"
)
# Of the faults that take a value: what it is, and its limits.
FAULT_VALUES = {
    "area": ("share", 1e-3, 1.0),
    "return-area": ("share", 1e-3, 1.0),
    "stall": ("s", 1e-6, 3600.0),
    "peel": ("s", 1e-3, 1e5),
    "dry": ("% a minute", 1e-3, 1e4),
    "loose": ("a minute", 1e-3, 1e4),
    "leak": ("ohm", 1.0, 1e9),
}
SERVE_ENDS = ("closed", "unplugged", "silent", "stopped", "idle", "failed")
PHASES = ("idle", "configured", "armed", "expired", "tripped")


cdef inline bint running(const VirtualDeviceState* device) noexcept nogil:
    return device.phase >= DEVICE_ARMED


cdef void send(VirtualDeviceState* device, const uint8_t* payload, size_t length) noexcept nogil:
    if device.transmit_length + MAX_FRAME > TRANSMIT_BYTES:
        device.dropped += 1
        return
    device.transmit_length += wire_encode(payload, length, device.transmit + device.transmit_length)


cdef void send_error(VirtualDeviceState* device, uint8_t code, uint8_t offending, uint32_t index) noexcept nogil:
    cdef uint8_t payload[8]
    payload[0] = FRAME_ERROR
    payload[1] = code
    payload[2] = offending
    payload[3] = 0
    put_u32(payload + 4, index)
    send(device, payload, 8)


cdef void send_hello(VirtualDeviceState* device) noexcept nogil:
    cdef uint8_t payload[HELLO_FIXED_BYTES + HELLO_RANGE_BYTES * RANGES + HELLO_FEATURE_BYTES]
    cdef size_t length = HELLO_FIXED_BYTES + HELLO_RANGE_BYTES * RANGES
    cdef const FrontEndRange* one
    cdef uint8_t* at
    cdef int k
    memset(payload, 0, sizeof(payload))
    payload[0] = FRAME_HELLO
    payload[1] = PROTOCOL_VERSION
    payload[2] = 1
    payload[3] = device.pacing_offered
    payload[4] = <uint8_t>device.front_end.kind
    payload[5] = RANGES
    put_u16(payload + 6, device.lease_most_ticks)
    put_u32(payload + 8, device.firmware_version)
    put_u32(payload + 12, device.sample_period_ns)
    put_u32(payload + 16, <uint32_t>(1e3 * device.front_end.compliance_v + 0.5))
    put_u32(payload + 20, device.front_end.voltage_lsb_nv)
    put_u32(payload + 24, <uint32_t>device.front_end.voltage_offset_q16)
    put_u32(payload + 28, 32767)
    memcpy(payload + 32, device.model, 16)
    memcpy(payload + 48, device.serial, 16)
    put_u32(payload + 64, device.last_token)
    put_u64(payload + 68, <uint64_t>device.last_net_codes)
    put_u64(payload + 76, <uint64_t>device.last_absolute_codes)
    put_u32(payload + 84, device.last_samples)
    payload[88] = device.last_range
    for k in range(RANGES):
        one = &device.front_end.ranges[k]
        at = payload + HELLO_FIXED_BYTES + HELLO_RANGE_BYTES * k
        put_u32(at, one.full_scale_na)
        put_u32(at + 4, one.current_lsb_fa)
        put_u32(at + 8, <uint32_t>one.current_offset_q16)
        put_u32(at + 12, one.redundant_lsb_fa)
        put_u32(at + 16, <uint32_t>one.redundant_offset_q16)
        put_u32(at + 20, one.output_lsb)
        put_u16(at + 24, <uint16_t>(<uint32_t>one.output_code_min & 0xFFFF))
        put_u16(at + 26, <uint16_t>(<uint32_t>one.output_code_max & 0xFFFF))
        put_u32(at + 28, one.ballast_mohm)
    if device.front_end.sentinel_lsb_nv:
        payload[length] = FEATURE_SENTINEL
        put_u32(payload + length + 4, device.front_end.sentinel_lsb_nv)
        put_u32(payload + length + 8, <uint32_t>device.front_end.sentinel_offset_q16)
        length += HELLO_FEATURE_BYTES
    send(device, payload, length)


cdef void send_counters(VirtualDeviceState* device, uint8_t type_) noexcept nogil:
    cdef uint8_t payload[COUNTERS_BYTES]
    payload[0] = type_
    payload[1] = 0
    put_u16(payload + 2, device.status_latched)
    put_u32(payload + 4, device.token)
    put_u32(payload + 8, device.samples)
    put_u32(payload + 12, device.late)
    put_u32(payload + 16, device.lapsed)
    put_u32(payload + 20, device.refused)
    put_u32(payload + 24, <uint32_t>(device.receiver.bad_frames - device.bad_frames_before))
    put_u64(payload + 28, <uint64_t>device.net_codes)
    put_u64(payload + 36, <uint64_t>device.absolute_codes)
    send(device, payload, COUNTERS_BYTES)


cdef void flush_truth(VirtualDeviceState* device) noexcept nogil:
    cdef size_t at = 0
    cdef ssize_t written
    while at < device.truth_length:
        written = c_write(device.truth_fd, device.truth + at, device.truth_length - at)
        if written < 0:
            if errno == EINTR:
                continue
            if device.truth_error == 0:
                device.truth_error = errno
            break
        at += written
    device.truth_length = 0


cdef void write_truth(VirtualDeviceState* device) noexcept nogil:
    if device.truth_length + TRUTH_ROW_BYTES > TRUTH_BYTES:
        flush_truth(device)
    device.truth_length += snprintf(
        device.truth + device.truth_length, TRUTH_ROW_BYTES,
        "%u,%.7f,%.9g,%.9g,%.12g,%.12g,%.9g,%d,%u,%d,%d,%.6g\n",
        device.samples, 1e-9 * device.sample_period_ns * device.ticks,
        device.period.charge_c / device.front_end.period_s, device.period.peak_a, device.charge_c, device.absolute_c,
        device.front_end.voltage_v, device.applied_code, device.lease_left, device.front_end.relay_closed,
        <int>(device.status_latched & STATUS_LEASE_EXPIRED) // STATUS_LEASE_EXPIRED,
        device.skin.active.contact_fraction)


cdef void save_state(VirtualDeviceState* device) noexcept nogil:
    """Replaces the state file in one rename, so that a reader finds the old one or the new one."""
    cdef char text[512]
    cdef int length, fd
    if device.state_path == NULL:
        return
    length = snprintf(
        text, sizeof(text),
        '{"format": 1, "serial": "%.16s", "token": %u, "range": %u, "samples": %u, "net_codes": %lld, '
        '"absolute_codes": %lld}\n',
        device.serial, device.last_token, <unsigned int>device.last_range, device.last_samples,
        <long long>device.last_net_codes, <long long>device.last_absolute_codes)
    fd = c_open(device.state_spare_path, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
    if fd < 0 or c_write(fd, text, length) != length:
        device.state_error = errno
        if fd >= 0:
            c_close(fd)
        return
    c_close(fd)
    if rename(device.state_spare_path, device.state_path) != 0:
        device.state_error = errno


cdef void remember(VirtualDeviceState* device) noexcept nogil:
    device.last_token = device.token
    device.last_range = device.range
    device.last_samples = device.samples
    device.last_net_codes = device.net_codes
    device.last_absolute_codes = device.absolute_codes


cdef void output_zero(VirtualDeviceState* device) noexcept nogil:
    frontend_zero(&device.front_end)
    device.applied_code = 0
    device.lease_left = 0
    device.pending = 0
    device.status_command = 0


cdef void trip(VirtualDeviceState* device, uint16_t status) noexcept nogil:
    output_zero(device)
    device.front_end.relay_closed = 0
    device.relay_left = 0
    device.status_latched |= status
    device.phase = DEVICE_TRIPPED
    device.save_due = 1


cdef void apply_faults(VirtualDeviceState* device) noexcept nogil:
    """Faults whose time has come, at the start of a period."""
    cdef ScriptedFault* fault
    while device.fault_next < device.fault_count:
        fault = &device.faults[device.fault_next]
        if fault.time_s * 1e9 > <double>device.ticks * device.sample_period_ns + 0.5:
            return
        device.fault_next += 1
        inject(device, fault.kind, fault.value)


cdef void inject(VirtualDeviceState* device, int32_t kind, double value) noexcept nogil:
    if kind == FAULT_OPEN:
        device.skin.open_ohm = OPEN_OHM
    elif kind == FAULT_CLOSE:
        skin_mend(&device.skin)
    elif kind == FAULT_SHORT:
        device.skin.shunt_ohm = SHORT_OHM
    elif kind == FAULT_AREA:
        device.skin.active.contact_share = value
        site_contact(&device.skin.active)
    elif kind == FAULT_UNPLUG:
        device.unplugged = 1
    elif kind == FAULT_STALL:
        device.stall_until = device.ticks + <uint64_t>(value * 1e9 / device.sample_period_ns + 0.5)
    elif kind == FAULT_STUCK:
        device.front_end.stuck = 1
    elif kind == FAULT_PEEL:
        skin_peel(&device.skin, value)
    elif kind == FAULT_DRY:
        skin_dry(&device.skin, 0.01 * value)
    elif kind == FAULT_LOOSE:
        skin_loosen(&device.skin, value)
    elif kind == FAULT_LEAK:
        device.skin.shunt_ohm = value
    elif kind == FAULT_RETURN_AREA:
        device.skin.passive.contact_share = value
        site_contact(&device.skin.passive)


cdef inline bint stalled(const VirtualDeviceState* device) noexcept nogil:
    return device.ticks <= device.stall_until and device.stall_until > 0


cdef void take_sample(VirtualDeviceState* device, Sample* sample) noexcept nogil:
    cdef int32_t codes[3]
    cdef int64_t charge
    frontend_read(&device.front_end, codes)
    charge = <int64_t>codes[0] * 65536 - device.front_end.ranges[device.range].current_offset_q16
    device.net_codes += charge
    device.absolute_codes += charge if charge >= 0 else -charge
    sample.index = device.samples
    sample.device_time_us = <uint32_t>(device.ticks * device.sample_period_ns // 1000)
    sample.applied_index = device.applied_index
    sample.nonce = <uint16_t>(noise_next(&device.noise) >> 48)
    sample.status = device.status_latched | device.status_command
    if device.front_end.relay_closed:
        sample.status |= STATUS_RELAY_CLOSED
    if device.period.limited:
        sample.status |= STATUS_COMPLIANCE
    sample.current_code = codes[0]
    sample.redundant_code = codes[1]
    sample.voltage_code = codes[2]
    sample.sentinel_code = 0
    if device.front_end.sentinel_lsb_nv and not device.skew_s > 0.0:
        sample.sentinel_code = frontend_read_sentinel(&device.front_end, &device.skin)
    sample.applied_code = device.applied_code
    sample.charge_codes = device.net_codes
    device.nonces[sample.index % NONCES] = sample.nonce
    device.samples += 1


cdef void send_sample(VirtualDeviceState* device, Sample* sample) noexcept nogil:
    """Behind the boundary: by then a voltage reading that comes later is under the command that acts from there."""
    cdef uint8_t payload[64]
    cdef size_t length
    if device.skew_s > 0.0:
        frontend_read_later(
            &device.front_end, &device.skin, device.skew_s, &sample.voltage_code, &sample.sentinel_code
        )
    if not stalled(device) and not device.unplugged:
        length = wire_put_sample(sample, 1, payload)
        if device.front_end.sentinel_lsb_nv:
            length = wire_put_sentinel(sample, 1, payload)
        send(device, payload, length)


cdef void expire(VirtualDeviceState* device) noexcept nogil:
    output_zero(device)
    device.lapsed += 1
    device.status_latched |= STATUS_LEASE_EXPIRED
    device.phase = DEVICE_EXPIRED
    device.relay_left = device.relay_ticks
    device.save_due = 1


cdef void cross_boundary(VirtualDeviceState* device) noexcept nogil:
    """Boundary after the sample just taken (index samples - 1)."""
    cdef int32_t code
    if device.relay_left:
        device.relay_left -= 1
        if device.relay_left == 0:
            device.front_end.relay_closed = 0
    if device.phase != DEVICE_ARMED:
        return
    if device.absolute_codes >= device.charge_cap_codes:
        trip(device, STATUS_CHARGE_CAP)
    elif device.samples >= device.session_ticks_max:
        trip(device, STATUS_TIME_CAP)
    elif device.pending:
        device.pending = 0
        device.status_command = 0
        if device.command.index + 2 < device.samples:
            device.late += 1
            device.status_command |= STATUS_LATE
        code = device.command.code
        if code > device.output_code_max:
            code = device.output_code_max
        elif code < device.output_code_min:
            code = device.output_code_min
        if code != device.command.code:
            device.status_command |= STATUS_CLAMPED
        device.applied_code = code
        device.applied_index = device.command.index
        device.lease_left = device.command.lease_ticks
        device.front_end.relay_closed = 1 if device.command.flags & COMMAND_CLOSE_RELAY else 0
        frontend_output(&device.front_end, code)
    elif device.lease_left:
        device.lease_left -= 1
        if device.lease_left == 0:
            expire(device)


cdef void virtual_device_advance(VirtualDeviceState* device) noexcept nogil:
    cdef Sample sample
    if not running(device):
        return
    apply_faults(device)
    frontend_run(&device.front_end, &device.skin, device.comparator_a, &device.period)
    device.ticks += 1
    device.charge_c += device.period.charge_c
    device.absolute_c += device.period.absolute_c
    if device.period.tripped:
        trip(device, STATUS_OVER_CURRENT)
    if device.truth_fd >= 0:
        write_truth(device)
    take_sample(device, &sample)
    remember(device)
    cross_boundary(device)
    send_sample(device, &sample)
    if device.truth_fd >= 0 and device.ticks % device.flush_ticks == 0:
        flush_truth(device)
    if device.save_due or device.ticks % device.save_ticks == 0:
        device.save_due = 0
        save_state(device)


cdef void disarm(VirtualDeviceState* device) noexcept nogil:
    """Output zero and relay open, and one period more for the truth to show it. No sample goes with it."""
    output_zero(device)
    device.front_end.relay_closed = 0
    device.relay_left = 0
    if running(device):
        frontend_run(&device.front_end, &device.skin, device.comparator_a, &device.period)
        device.ticks += 1
        device.charge_c += device.period.charge_c
        device.absolute_c += device.period.absolute_c
        if device.truth_fd >= 0:
            write_truth(device)
            flush_truth(device)
    device.phase = DEVICE_IDLE


cdef void take_limits(VirtualDeviceState* device, const uint8_t* payload) noexcept nogil:
    cdef const FrontEndRange* one
    cdef uint8_t back[LIMITS_BYTES]
    cdef uint8_t chosen
    cdef uint16_t lease
    cdef uint32_t ticks
    cdef int32_t cap, least, most
    cdef int64_t charge
    if device.phase == DEVICE_ARMED:
        send_error(device, WIRE_ERROR_STATE, FRAME_LIMITS, NO_INDEX)
        return
    if payload[1] >= RANGES:
        send_error(device, WIRE_ERROR_LIMITS, FRAME_LIMITS, NO_INDEX)
        return
    chosen = payload[1]
    lease = get_u16(payload + 2)
    ticks = get_u32(payload + 8)
    cap = <int32_t>get_u32(payload + 12)
    least = <int32_t>get_u32(payload + 16)
    most = <int32_t>get_u32(payload + 20)
    charge = <int64_t>get_u64(payload + 24)
    one = &device.front_end.ranges[chosen]
    if (lease == 0 or lease > device.lease_most_ticks or ticks == 0 or charge <= 0 or cap <= 0
            or cap * (1e-15 * one.current_lsb_fa) > 1.2501e-9 * one.full_scale_na
            or least > 0 or most < 0 or least < one.output_code_min or most > one.output_code_max):
        send_error(device, WIRE_ERROR_LIMITS, FRAME_LIMITS, NO_INDEX)
        return
    if running(device):
        disarm(device)
    device.range = chosen
    device.front_end.range = chosen
    device.lease_max_ticks = lease
    device.token = get_u32(payload + 4)
    device.session_ticks_max = ticks
    device.current_cap_code = cap
    device.output_code_min = least
    device.output_code_max = most
    device.charge_cap_codes = charge
    device.comparator_a = cap * (1e-15 * one.current_lsb_fa)
    device.phase = DEVICE_CONFIGURED
    back[0] = FRAME_LIMITS_READ_BACK
    back[1] = device.range
    put_u16(back + 2, device.lease_max_ticks)
    put_u32(back + 4, device.token)
    put_u32(back + 8, device.session_ticks_max)
    put_u32(back + 12, <uint32_t>device.current_cap_code)
    put_u32(back + 16, <uint32_t>device.output_code_min)
    put_u32(back + 20, <uint32_t>device.output_code_max)
    put_u64(back + 24, <uint64_t>device.charge_cap_codes)
    send(device, back, LIMITS_BYTES)


cdef void take_arm(VirtualDeviceState* device, const uint8_t* payload) noexcept nogil:
    cdef uint8_t reply[ARM_BYTES]
    cdef uint8_t pacing
    if device.phase == DEVICE_IDLE or device.phase == DEVICE_ARMED:
        send_error(device, WIRE_ERROR_STATE, FRAME_ARM, NO_INDEX)
        return
    pacing = payload[1]
    if get_u32(payload + 4) != device.token:
        send_error(device, WIRE_ERROR_TOKEN, FRAME_ARM, NO_INDEX)
        return
    if pacing & (pacing - 1) or not pacing & device.pacing_offered:
        send_error(device, WIRE_ERROR_PACING, FRAME_ARM, NO_INDEX)
        return
    output_zero(device)
    device.front_end.relay_closed = 0
    device.relay_left = 0
    device.pacing = pacing
    device.samples = 0
    device.late = 0
    device.lapsed = 0
    device.refused = 0
    device.bad_frames_before = device.receiver.bad_frames
    device.net_codes = 0
    device.absolute_codes = 0
    device.status_latched = 0
    device.applied_index = NO_INDEX
    device.any_accepted = 0
    device.phase = DEVICE_ARMED
    remember(device)
    save_state(device)
    memcpy(reply, payload, ARM_BYTES)
    reply[0] = FRAME_ARMED
    put_u16(reply + 2, 0)
    send(device, reply, ARM_BYTES)
    if pacing == PACING_LOCK_STEP:
        advance_lock_step(device)


cdef void take_disarm(VirtualDeviceState* device, const uint8_t* payload) noexcept nogil:
    if device.phase == DEVICE_IDLE:
        send_error(device, WIRE_ERROR_STATE, FRAME_DISARM, NO_INDEX)
        return
    if get_u32(payload + 4) != device.token:
        send_error(device, WIRE_ERROR_TOKEN, FRAME_DISARM, NO_INDEX)
        return
    disarm(device)
    save_state(device)
    send_counters(device, FRAME_DISARMED)


cdef void take_command(VirtualDeviceState* device, const uint8_t* payload, size_t length) noexcept nogil:
    cdef Command command
    cdef uint32_t channels = 1
    cdef uint8_t error = 0
    if not wire_get_command(payload, length, &command, &channels):
        device.refused += 1
        send_error(device, WIRE_ERROR_UNDECODABLE, FRAME_COMMAND, NO_INDEX)
        return
    if device.phase != DEVICE_ARMED:
        error = WIRE_ERROR_STATE
    elif command.token != device.token:
        error = WIRE_ERROR_TOKEN
    elif device.any_accepted and command.index <= device.newest_index:
        error = WIRE_ERROR_STALE
    elif (command.index >= device.samples or device.samples - command.index > NONCES
            or command.nonce != device.nonces[command.index % NONCES]):
        error = WIRE_ERROR_NONCE
    elif command.lease_ticks == 0 or command.lease_ticks > device.lease_max_ticks:
        error = WIRE_ERROR_LEASE
    if error:
        device.refused += 1
        send_error(device, error, FRAME_COMMAND, command.index)
        return
    device.any_accepted = 1
    device.newest_index = command.index
    device.command = command
    device.pending = 1


cdef size_t least_bytes(uint8_t type_) noexcept nogil:
    """A shorter payload of this type cannot be read; a longer one has fields of a later version."""
    if type_ == FRAME_HELLO_REQUEST:
        return 2
    if type_ == FRAME_LIMITS:
        return LIMITS_BYTES
    if type_ == FRAME_ARM or type_ == FRAME_DISARM:
        return ARM_BYTES
    return 1


cdef void handle(VirtualDeviceState* device, const uint8_t* payload, size_t length) noexcept nogil:
    cdef uint8_t type_ = payload[0]
    if length < least_bytes(type_):
        send_error(device, WIRE_ERROR_UNDECODABLE, type_, NO_INDEX)
    elif type_ == FRAME_COMMAND:
        take_command(device, payload, length)
    elif type_ == FRAME_HELLO_REQUEST:
        if payload[1] != PROTOCOL_VERSION:
            send_error(device, WIRE_ERROR_VERSION, type_, NO_INDEX)
        else:
            send_hello(device)
    elif type_ == FRAME_LIMITS:
        take_limits(device, payload)
    elif type_ == FRAME_ARM:
        take_arm(device, payload)
    elif type_ == FRAME_DISARM:
        take_disarm(device, payload)
    elif type_ == FRAME_COUNTERS_REQUEST:
        send_counters(device, FRAME_COUNTERS)
    else:
        send_error(device, WIRE_ERROR_UNKNOWN_TYPE, type_, NO_INDEX)


cdef void advance_lock_step(VirtualDeviceState* device) noexcept nogil:
    """One period, and those whose samples a stall swallows: the host cannot answer what it never got."""
    virtual_device_advance(device)
    while stalled(device) and running(device) and not device.unplugged:
        virtual_device_advance(device)


cdef void virtual_device_receive(VirtualDeviceState* device, const uint8_t* data, size_t length) noexcept nogil:
    cdef uint8_t payload[MAX_PAYLOAD + 16]
    cdef size_t payload_length, used
    cdef uint64_t frames
    cdef int32_t phase
    cdef bint stepping
    while length:
        frames = device.receiver.frames + device.receiver.bad_frames
        phase = device.phase
        stepping = running(device) and device.pacing == PACING_LOCK_STEP
        used = wire_receive(&device.receiver, data, length, payload, &payload_length)
        data += used
        length -= used
        if device.receiver.frames + device.receiver.bad_frames == frames:
            continue
        if payload_length:
            handle(device, payload, payload_length)
        else:
            # The first byte behind the COBS code is the best guess at the type.
            send_error(device, WIRE_ERROR_UNDECODABLE, device.receiver.data[1], device.samples - 1)
        if stepping and running(device) and not (phase != DEVICE_ARMED and device.phase == DEVICE_ARMED):
            advance_lock_step(device)


cdef size_t virtual_device_transmit(VirtualDeviceState* device, uint8_t* out, size_t capacity) noexcept nogil:
    cdef size_t length = device.transmit_length if device.transmit_length < capacity else capacity
    memcpy(out, device.transmit, length)
    sent(device, length)
    return length


cdef inline void sent(VirtualDeviceState* device, size_t length) noexcept nogil:
    device.transmit_length -= length
    if device.transmit_length:
        memmove(device.transmit, device.transmit + length, device.transmit_length)


cdef void virtual_device_run_down(VirtualDeviceState* device) noexcept nogil:
    # Bounded by the longest lease that can be in force or pending, and the relay's delay.
    cdef uint32_t left = 2 * device.lease_most_ticks + device.relay_ticks + 4
    device.unplugged = 1
    if device.phase == DEVICE_ARMED and device.lease_left == 0 and not device.pending:
        disarm(device)
    while left and running(device) and (device.phase == DEVICE_ARMED or device.front_end.relay_closed):
        virtual_device_advance(device)
        left -= 1
    virtual_device_advance(device)
    device.phase = DEVICE_IDLE
    device.transmit_length = 0
    device.unplugged = 0
    if device.truth_fd >= 0:
        flush_truth(device)
    save_state(device)


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef int drain(VirtualDeviceState* device, int fd) noexcept nogil:
    """Writes what waits for the host; 0, or -errno when the port is gone. What a full port does not take waits on."""
    cdef ssize_t written
    while device.transmit_length:
        written = c_write(fd, device.transmit, device.transmit_length)
        if written > 0:
            sent(device, written)
        elif errno == EAGAIN:
            return 0
        elif errno != EINTR:
            return -errno
    return 0


cdef void ask_priority(int priority) noexcept nogil:
    """A DAQ has a processor of its own; nearest to it is real-time priority, where it may be had. 0 gives it back."""
    cdef sched_param wanted
    wanted.sched_priority = priority
    sched_setscheduler(0, SCHED_FIFO if priority else SCHED_OTHER, &wanted)


cdef int32_t virtual_device_serve(VirtualDeviceState* device, int fd, int* keep_fd, int stop_fd,
                                  int64_t idle_ms) noexcept nogil:
    cdef uint8_t data[4096]
    cdef pollfd fds[2]
    cdef timespec wait
    cdef int64_t now = monotonic_ns()
    cdef int64_t heard = now
    cdef int64_t deadline = 0
    cdef int64_t wait_ns
    cdef ssize_t length
    cdef bint clocked = False
    cdef bint paced
    cdef int ready
    # The default slack of 50 us would be a twentieth of a sample period.
    prctl(PR_SET_TIMERSLACK, <unsigned long>1, 0, 0, 0)
    fds[0].fd = fd
    fds[1].fd = stop_fd
    fds[1].events = POLLIN
    while True:
        if device.unplugged:
            virtual_device_run_down(device)
            return SERVE_UNPLUGGED
        if drain(device, fd) < 0:
            virtual_device_run_down(device)
            return SERVE_CLOSED
        now = monotonic_ns()
        paced = running(device) and device.pacing == PACING_DEVICE
        if paced:
            if not clocked:
                deadline = now + device.pace_ns
                ask_priority(DEVICE_PRIORITY)
            wait_ns = deadline - now
        elif running(device):
            wait_ns = heard + SILENCE_NS - now
            if wait_ns <= 0:
                virtual_device_run_down(device)
                return SERVE_SILENT
        else:
            wait_ns = heard + idle_ms * 1000000 - now
            if wait_ns <= 0:
                return SERVE_IDLE
        if clocked and not paced:
            ask_priority(0)
        clocked = paced
        if wait_ns < 0:
            wait_ns = 0
        wait.tv_sec = wait_ns // 1000000000
        wait.tv_nsec = wait_ns % 1000000000
        fds[0].events = POLLIN | POLLOUT if device.transmit_length else POLLIN
        fds[0].revents = 0
        fds[1].revents = 0
        ready = ppoll(fds, 2 if stop_fd >= 0 else 1, &wait, NULL)
        if ready < 0 and errno != EINTR:
            virtual_device_run_down(device)
            return SERVE_FAILED
        if ready > 0 and fds[1].revents:
            virtual_device_run_down(device)
            return SERVE_STOPPED
        if ready > 0 and fds[0].revents & POLLIN:
            length = c_read(fd, data, sizeof(data))
            if length > 0:
                heard = monotonic_ns()
                if keep_fd[0] >= 0:
                    c_close(keep_fd[0])
                    keep_fd[0] = -1
                virtual_device_receive(device, data, length)
            elif length == 0 or errno not in (EAGAIN, EINTR):
                virtual_device_run_down(device)
                return SERVE_CLOSED
        elif ready > 0 and fds[0].revents & (POLLHUP | POLLERR | POLLNVAL):
            virtual_device_run_down(device)
            return SERVE_CLOSED
        # Commands that came before the boundary are taken above; a device that fell behind catches up, step by step.
        if paced and monotonic_ns() >= deadline:
            virtual_device_advance(device)
            deadline += device.pace_ns


cdef int64_t port_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil:
    cdef VirtualDeviceState* device = <VirtualDeviceState*>context
    if device.transmit_length:
        return <int64_t>virtual_device_transmit(device, data, capacity)
    if device.gone:
        return -EIO
    # In lock-step nothing comes by waiting.
    return -ETIMEDOUT if timeout_us > 0 else 0


cdef int64_t port_write(void* context, const uint8_t* data, size_t length) noexcept nogil:
    cdef VirtualDeviceState* device = <VirtualDeviceState*>context
    if device.gone:
        return -EIO
    virtual_device_receive(device, data, length)
    if device.unplugged:
        virtual_device_run_down(device)
        device.gone = 1
    return <int64_t>length


cdef void release_port(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


cdef class VirtualDevice:
    """A DAQ with skin attached, in this process.

    Args:
        skin: typical, dry, hairy, sweating or wounded.
        seed: of the subject, of noise and of the converters' errors; 0 is the nominal subject.
        load: (series_ohm, parallel_ohm, capacitance_f) instead of skin: series_ohm + (parallel_ohm || capacitance_f).
        front_end: "current" or "voltage" source.
        sample_rate_hz: 500-10000.
        active_area_cm2, return_area_cm2: pads, cm2.
        onset_scale: factor on the time constants with which the skin opens.
        compliance_v: 5-140 V.
        bandwidth_hz: of the output stage.
        dac_gain_error, dac_offset_codes: of the output converter, which nothing calibrates.
        noise_codes: standard deviation of a reading.
        hum_v, hum_hz: peak of the mains on the voltage reading, and its frequency, 40-70 Hz.
        jitter_us: samples are taken up to twice this before their boundary, evenly spread; at most half a sub-step. Not
            for a voltage that is read later than the currents, nor for a sentinel.
        cpe_exponent: of a constant phase element in the place of the skin's capacitance, 0.75-0.98; it has the same
            admittance at 16 Hz. 0: none.
        hydration, electroporation, sweat, motion_per_min, electrode_mc_cm2: slow processes, see
            `ionto_rt.core.skin.Skin`; 0: off.
        half_cell_v: standing difference of the electrodes' potentials.
        skew_us: how much later than the currents the voltage is read, us, 0 to half a sample period.
        sentinel: 1: a sentinel electrode beside the active pad is wired; SAMPLE carries its voltage.
        substeps: of the plant in one sample period; 0 for steps of at most 125 us.
        pacing: Pacing bits to offer: 1 device, 4 lock-step.
        clock_error_ppm: how much longer the device's sample period is than it says.
        serial: at most 15 characters.
        faults: (kind, value, time_s) in the order of their times; kind is one of FAULT_KINDS, time_s counts armed
            device time. What value means is in FAULT_VALUES; else it is unused.
        truth_fd: descriptor of the truth file, or -1. state_path: file that remembers the last session, or None.

    Raises:
        ValueError: a value outside these.
    """

    cdef VirtualDeviceState* device
    cdef bytes state_path

    def __cinit__(self):
        self.device = <VirtualDeviceState*>calloc(1, sizeof(VirtualDeviceState))
        if self.device == NULL:
            raise MemoryError("virtual device")
        self.device.truth_fd = -1

    def __dealloc__(self):
        if self.device != NULL:
            free(self.device.truth)
            free(self.device.state_path)
            free(self.device.state_spare_path)
            free(self.device)

    def __init__(self, *, str skin="typical", uint64_t seed=0, load=None, str front_end="current",
                 double sample_rate_hz=1000.0, double active_area_cm2=8.0, double return_area_cm2=25.0,
                 double onset_scale=1.0, double compliance_v=60.0, double bandwidth_hz=2000.0,
                 double dac_gain_error=0.015, double dac_offset_codes=0.25, double noise_codes=1.0, double hum_v=0.0,
                 double hum_hz=50.0, double jitter_us=0.0, double skew_us=0.0, int sentinel=0, double cpe_exponent=0.0,
                 double hydration=0.0, int electroporation=0, double sweat=0.0, double motion_per_min=0.0,
                 double electrode_mc_cm2=0.0, double half_cell_v=0.0, uint32_t substeps=0,
                 int pacing=PACING_DEVICE | PACING_LOCK_STEP, double clock_error_ppm=0.0,
                 str serial="VIRTUAL-0001", faults=(), int truth_fd=-1, state_path=None):
        cdef VirtualDeviceState* device = self.device
        cdef bytes header = TRUTH_HEADER
        cdef bytes spare
        cdef int k, _k
        check(500.0 <= sample_rate_hz <= 10000.0, f"sample rate {sample_rate_hz} Hz", "500 to 10000")
        check(5.0 <= compliance_v <= 140.0, f"compliance voltage {compliance_v} V", "5 to 140")
        check(100.0 <= bandwidth_hz <= 1e5, f"bandwidth {bandwidth_hz} Hz", "100 to 100000")
        check(0.01 <= active_area_cm2 <= 1000.0, f"active area {active_area_cm2} cm2", "0.01 to 1000")
        check(0.01 <= return_area_cm2 <= 1000.0, f"return area {return_area_cm2} cm2", "0.01 to 1000")
        check(0.01 <= onset_scale <= 100.0, f"onset scale {onset_scale}", "0.01 to 100")
        check(-0.5 <= dac_gain_error <= 0.5, f"DAC gain error {dac_gain_error}", "-0.5 to 0.5")
        check(-1000.0 <= dac_offset_codes <= 1000.0, f"DAC offset {dac_offset_codes} codes", "-1000 to 1000")
        check(0.0 <= noise_codes <= 1000.0, f"noise {noise_codes} codes", "0 to 1000")
        check(0.0 <= hum_v <= 10.0, f"hum {hum_v} V", "0 to 10")
        check(40.0 <= hum_hz <= 70.0, f"hum of {hum_hz} Hz", "40 to 70")
        check(cpe_exponent == 0.0 or 0.75 <= cpe_exponent <= 0.98, f"CPE exponent {cpe_exponent}", "0.75 to 0.98, or 0")
        check(hydration == 0.0 or 1.0 <= hydration <= 20.0, f"hydration {hydration}", "1 to 20, or 0")
        check(electroporation in (0, 1), f"electroporation {electroporation}", "0 or 1")
        check(0.0 <= sweat <= 0.3, f"sweat {sweat}", "0 to 0.3")
        check(0.0 <= motion_per_min <= 60.0, f"motion {motion_per_min} a minute", "0 to 60")
        check(0.0 <= electrode_mc_cm2 <= 1e6, f"electrode charge {electrode_mc_cm2} mC/cm2", "0 to 1000000")
        check(-2.0 <= half_cell_v <= 2.0, f"half-cell difference {half_cell_v} V", "-2 to 2")
        check(0.0 <= skew_us <= 0.5e6 / sample_rate_hz, f"skew {skew_us} us", "0 to half a sample period")
        check(sentinel in (0, 1), f"sentinel {sentinel}", "0 or 1")
        check(substeps <= 1000, f"substeps {substeps}", "0 to 1000")
        check(-1e5 <= clock_error_ppm <= 1e5, f"clock error {clock_error_ppm} ppm", "-100000 to 100000")
        check(front_end in ("current", "voltage"), f"front-end {front_end!r}", "current or voltage")
        check(pacing in (PACING_DEVICE, PACING_LOCK_STEP, PACING_DEVICE | PACING_LOCK_STEP), f"pacing {pacing}",
              "1 (device), 4 (lock-step) or 5 (both)")
        check(serial.isascii() and serial.isprintable() and '"' not in serial and "\\" not in serial
              and 0 < len(serial) <= 15, f"serial {serial!r}", "1 to 15 plain characters")
        check(len(faults) <= FAULTS, f"{len(faults)} faults", f"at most {FAULTS}")
        skin_named(&device.skin, skin_number(skin), seed, active_area_cm2, return_area_cm2)
        skin_scale_onset(&device.skin, onset_scale)
        skin_cpe(&device.skin, cpe_exponent,
                 device.skin.active.capacitance_f_cm2 * pow(CPE_RAD_S, 1.0 - cpe_exponent))
        skin_processes(&device.skin, hydration, electroporation, sweat, motion_per_min, electrode_mc_cm2)
        if load is not None:
            series_ohm, parallel_ohm, capacitance_f = load
            check(series_ohm > 0.0 and parallel_ohm > 0.0 and capacitance_f > 0.0, f"load {load}", "positive")
            check(not (cpe_exponent or device.skin.processes.running), "a process of the skin", "not with a load")
            skin_linear(&device.skin, series_ohm, parallel_ohm, capacitance_f)
        device.skin.half_cell_v = half_cell_v
        device.sample_period_ns = <uint32_t>(1e9 / sample_rate_hz + 0.5)
        device.pace_ns = <int64_t>(device.sample_period_ns * (1.0 + 1e-6 * clock_error_ppm) + 0.5)
        frontend_start(&device.front_end,
                       FRONT_END_CURRENT_SOURCE if front_end == "current" else FRONT_END_VOLTAGE_SOURCE,
                       1e-9 * device.sample_period_ns, substeps, compliance_v, bandwidth_hz, dac_gain_error,
                       dac_offset_codes, noise_codes, hum_v, seed)
        frontend_hum(&device.front_end, hum_v, hum_hz)
        most_us = 0.5e6 * device.front_end.substep_s
        check(0.0 <= jitter_us <= most_us, f"jitter {jitter_us} us", f"0 to {most_us:g}, half a sub-step")
        device.front_end.jitter_s = 1e-6 * jitter_us
        skin_prepare(&device.skin, device.front_end.substep_s)
        if sentinel:
            frontend_wire_sentinel(&device.front_end)
        device.skew_s = 1e-6 * skew_us
        strncpy(device.model, b"ionto-virtual", 15)
        strncpy(device.serial, <bytes>serial.encode("ascii"), 15)
        device.firmware_version = FIRMWARE_VERSION
        device.lease_most_ticks = <uint16_t>(100000000 // device.sample_period_ns)
        device.relay_ticks = <uint16_t>ceil(10e6 / device.sample_period_ns)
        device.flush_ticks = 100000000 // device.sample_period_ns
        device.save_ticks = 1000000000 // device.sample_period_ns
        device.pacing_offered = <uint8_t>pacing
        device.applied_index = NO_INDEX
        device.noise = (seed + 1) * <uint64_t>0xA0761D6478BD642F | 1
        for _k in range(8):
            noise_next(&device.noise)
        previous = 0.0
        for k, (kind, value, time_s) in enumerate(faults):
            check(kind in FAULT_KINDS, f"fault {kind!r}", "one of " + ", ".join(FAULT_KINDS))
            check(time_s >= previous, f"fault {kind} at {time_s} s", "not before the one ahead of it")
            if kind in FAULT_VALUES:
                what, least, most = FAULT_VALUES[kind]
                check(least <= value <= most, f"fault {kind} of {value} {what}", f"{least:g} to {most:g}")
            previous = time_s
            device.faults[k].kind = <int32_t>FAULT_KINDS.index(kind)
            device.faults[k].value = value
            device.faults[k].time_s = time_s
        device.fault_count = <uint32_t>len(faults)
        if state_path is not None:
            self.state_path = str(state_path).encode()
            spare = self.state_path + b".new"
            device.state_path = strdup(self.state_path)
            device.state_spare_path = strdup(spare)
        if truth_fd >= 0:
            device.truth = <char*>calloc(1, TRUTH_BYTES)
            if device.truth == NULL:
                raise MemoryError("truth buffer")
            device.truth_fd = truth_fd
            memcpy(device.truth, <char*>header, len(header))
            device.truth_length = len(header)
            flush_truth(device)
        device.port.version = PORT_VERSION
        device.port.size = sizeof(Port)
        device.port.context = device
        device.port.read = port_read
        device.port.write = port_write

    def recall(self, *, uint32_t token, uint8_t range, uint32_t samples, int64_t net_codes, int64_t absolute_codes):
        """The last session of an earlier run, for the hello to report."""
        self.device.last_token = token
        self.device.last_range = range
        self.device.last_samples = samples
        self.device.last_net_codes = net_codes
        self.device.last_absolute_codes = absolute_codes

    def receive(self, bytes data):
        """Bytes from the host. In lock-step each complete frame is followed by one sample period."""
        virtual_device_receive(self.device, <const uint8_t*><const char*>data, len(data))

    def transmit(self, size_t most=TRANSMIT_BYTES):
        """Takes up to ``most`` of the bytes that wait for the host; the rest waits on."""
        cdef uint8_t data[TRANSMIT_BYTES]
        cdef size_t room = most if most < TRANSMIT_BYTES else TRANSMIT_BYTES
        cdef size_t length = virtual_device_transmit(self.device, data, room)
        return (<char*>data)[:length]

    def advance(self, uint64_t periods=1):
        """Sample periods pass; nothing happens unless armed (or latched after arming)."""
        cdef uint64_t _k
        with nogil:
            for _k in range(periods):
                virtual_device_advance(self.device)

    def run_down(self):
        """The host is gone: the lease runs out, the relay opens, truth and state are written."""
        with nogil:
            virtual_device_run_down(self.device)

    def serve(self, int fd, int keep_fd=-1, int stop_fd=-1, int64_t idle_ms=1000):
        """Serves a port until it closes or nobody has spoken for idle_ms.

        Args:
            fd: descriptor of the port, not blocking.
            keep_fd: a second descriptor of the host's side, closed at the first byte; -1: none.
            stop_fd: readable when it is to end; -1: none.

        Returns:
            (end, keep_fd): one of SERVE_ENDS, and keep_fd or -1 if it was closed.
        """
        cdef int32_t end
        with nogil:
            end = virtual_device_serve(self.device, fd, &keep_fd, stop_fd, idle_ms)
        return SERVE_ENDS[end], keep_fd

    def port_capsule(self):
        """A PyCapsule of a struct Port (ionto_rt.core.types) that talks to this device in process.

        Only lock-step makes sense on it. With nothing to read its read returns -ETIMEDOUT (0 for a time-out of 0), and
        -EIO once unplugged; it never waits. The capsule keeps the device alive.
        """
        capsule = PyCapsule_New(&self.device.port, CAPSULE_NAME, release_port)
        PyCapsule_SetContext(capsule, <void*>self)
        Py_INCREF(self)
        return capsule

    def open_lead(self):
        """The active lead comes off: 1 Gohm in series."""
        inject(self.device, FAULT_OPEN, 0.0)

    def close_lead(self):
        """Leads as they were: neither open nor bridged."""
        inject(self.device, FAULT_CLOSE, 0.0)

    def short_leads(self):
        """20 ohm between the leads."""
        inject(self.device, FAULT_SHORT, 0.0)

    def lift_pad(self, double share):
        """The active pad keeps this share of its contact at the start, above 0 and at most 1."""
        check(0.0 < share <= 1.0, f"share {share}", "above 0 and at most 1")
        inject(self.device, FAULT_AREA, share)

    def unplug(self):
        """The port closes."""
        inject(self.device, FAULT_UNPLUG, 0.0)

    def stall(self, double seconds):
        """Samples of the next seconds of device time are never sent."""
        inject(self.device, FAULT_STALL, seconds)

    def stick_output(self):
        """The output converter keeps its value whatever is asked."""
        inject(self.device, FAULT_STUCK, 0.0)

    @property
    def serial(self):
        """Serial number."""
        return self.device.serial.decode("ascii")

    @property
    def phase(self):
        """One of PHASES."""
        return PHASES[self.device.phase]

    @property
    def current_a(self):
        """True mean current through the skin over the last period, A."""
        return self.device.period.charge_c / self.device.front_end.period_s

    @property
    def current_peak_a(self):
        """Largest true magnitude through the skin in the last period, A."""
        return self.device.period.peak_a

    @property
    def charge_c(self):
        """True net charge through the skin since the device was made, C."""
        return self.device.charge_c

    @property
    def absolute_charge_c(self):
        """True charge through the skin in either direction since the device was made, C."""
        return self.device.absolute_c

    @property
    def voltage_v(self):
        """True voltage at the pads at the end of the last period, V."""
        return self.device.front_end.voltage_v

    @property
    def applied_code(self):
        """Output code in force."""
        return self.device.applied_code

    @property
    def lease_ticks_left(self):
        """Sample periods left of the lease in force; 0: none."""
        return self.device.lease_left

    @property
    def relay_closed(self):
        """Whether the relay is closed."""
        return bool(self.device.front_end.relay_closed)

    @property
    def contact_fraction(self):
        """Wetted share of the active pad."""
        return self.device.skin.active.contact_fraction

    @property
    def ticks(self):
        """Sample periods run since the device was made."""
        return self.device.ticks

    @property
    def samples(self):
        """Samples of the session in force or last."""
        return self.device.samples

    @property
    def net_codes(self):
        """The device's own net charge count of that session, 1/65536 code."""
        return self.device.net_codes

    @property
    def absolute_codes(self):
        """The device's own absolute charge count of that session, 1/65536 code."""
        return self.device.absolute_codes

    @property
    def late(self):
        """Commands of that session that came after their boundary."""
        return self.device.late

    @property
    def lapsed(self):
        """Leases of that session that ran out."""
        return self.device.lapsed

    @property
    def refused(self):
        """Commands of that session that were refused."""
        return self.device.refused

    @property
    def dropped(self):
        """Frames that found the buffer towards the host full."""
        return self.device.dropped

    @property
    def file_errors(self):
        """errno of failed writes of (truth, state); 0: none."""
        return self.device.truth_error, self.device.state_error


def check(bint good, str what, str allowed):
    """ValueError that names what and what is allowed, unless good."""
    if not good:
        raise ValueError(f"{what} is out of range: {allowed}")
