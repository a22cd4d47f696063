"""Firmware of the virtual device: session, leases, caps, samples, faults, truth; the .pxd has the order of a period."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New, PyCapsule_SetContext, PyCapsule_GetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EINTR, EIO, ETIMEDOUT, errno
from libc.math cimport ceil, fabs, pow
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport rename, snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset, strdup, strncpy
from posix.fcntl cimport O_CREAT, O_TRUNC, O_WRONLY, open as c_open
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close as c_close, read as c_read, write as c_write

from ionto_rt.core.clock cimport HISTOGRAM_BUCKETS, bucket_end, histogram_add, histogram_percentile
from ionto_rt.core.frontend cimport (
    RANGES,
    FrontEndRange,
    frontend_hum,
    frontend_output,
    frontend_read,
    frontend_read_later,
    frontend_read_sentinel,
    frontend_run,
    frontend_share_calibration,
    frontend_start,
    frontend_stick,
    frontend_wire_sentinel,
    frontend_zero,
)
from ionto_rt.core.skin cimport (
    noise_next,
    site_contact,
    skin_break,
    skin_cpe,
    skin_dry,
    skin_linear,
    skin_loosen,
    skin_mend,
    skin_named,
    skin_peel,
    skin_prepare,
    skin_processes,
    skin_rise,
    skin_scale_onset,
    skin_series_ohm,
    skin_use_up,
)
from ionto_rt.core.stops cimport STOP_DEVICE, STOP_IN_FORCE
from ionto_rt.core.types cimport (
    COMMAND_CLOSE_RELAY,
    FRONT_END_CURRENT_SOURCE,
    FRONT_END_VOLTAGE_SOURCE,
    MAX_CHANNELS,
    PACING_DEVICE,
    PACING_HOST,
    PACING_LOCK_STEP,
    PORT_VERSION,
    STATUS_CHARGE_CAP,
    STATUS_CLAMPED,
    STATUS_COMPLIANCE,
    STATUS_LATE,
    STATUS_LEAKAGE,
    STATUS_LEASE_EXPIRED,
    STATUS_OVER_CURRENT,
    STATUS_OVER_TEMPERATURE,
    STATUS_PATIENT_STOP,
    STATUS_RELAY_CLOSED,
    STATUS_SELF_TEST_FAILED,
    STATUS_SPEAKER_FAULT,
    STATUS_SUPPLY_LOW,
    STATUS_SUPPLY_WARNING,
    STATUS_TIME_CAP,
    Command,
    Port,
    Sample,
)
from ionto_rt.core.wire cimport (
    FEATURE_CHANNEL_CHARGES,
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
    LIMITS_FIXED_BYTES = 12
    LIMITS_CHANNEL_BYTES = 20
    ARM_BYTES = 8
    COUNTERS_BYTES = 44
    CHARGES_BYTES = 16          # of a channel from 1 on, in a hello and in the counters
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
cdef const char* TRUTH_CHANNEL = "channel,"         # ahead of it, where there are several
FAULT_KINDS = (
    "open", "close", "short", "area", "unplug", "stall", "stuck", "peel", "dry", "loose", "leak", "return-area",
    "stuck-told", "dac", "dac-told", "adc-flat", "adc-gain", "adc-gain-redundant", "gain", "polarity", "delay", "hum",
    "crosstalk", "redox", "breakdown", "rising", "hot", "clock", "stop-button", "leakage", "supply-warning",
    "supply-low", "post-fail", "speaker", "lie-limits", "identity", "absurd", "flood", "repeat", "replayed",
    "deaf", "lease-stuck"
)
# Of all channels at once.
DEVICE_FAULTS = ("unplug", "stall", *FAULT_KINDS[FAULT_CLOCK:])
# Of the faults that take a value: what it is, and its limits.
FAULT_VALUES = {
    "area": ("share", 1e-3, 1.0),
    "return-area": ("share", 1e-3, 1.0),
    "stall": ("s", 1e-6, 3600.0),
    "peel": ("s", 1e-3, 1e5),
    "dry": ("% a minute", 1e-3, 1e4),
    "loose": ("a minute", 1e-3, 1e4),
    "leak": ("ohm", 1.0, 1e9),
    "dac": ("% of its highest code", -100.0, 100.0),
    "dac-told": ("% of its highest code", -100.0, 100.0),
    "adc-flat": ("for the current reading 1, for the redundant one 2, for both 3", 1.0, 3.0),
    "adc-gain": ("times", 0.0, 10.0),
    "adc-gain-redundant": ("times", 0.0, 10.0),
    "gain": ("times", 0.0, 100.0),
    "delay": ("sample periods", 1.0, DELAY_MOST - 1),
    "hum": ("mV", 0.0, 1e5),
    "crosstalk": ("ohm", 1.0, 1e9),
    "redox": ("s", 1e-3, 1e5),
    "breakdown": ("times", 1e-3, 1e3),
    "rising": ("% a second", 1e-3, 1e3),
    "clock": ("times", 0.5, 2.0),
    "stop-button": ("s", 1e-6, 3600.0),
    "absurd": ("number of a claim", 1.0, ABSURD_CLAIMS),
    "flood": ("frames a sample period", 1.0, 1000.0),
    "deaf": ("s", 1e-6, 3600.0),
}
OFF = -1e6      # as a value: ends the fault
# The faults that can be ended, and what is without one.
FAULT_OFF = {
    "area": 1.0, "return-area": 1.0, "dry": 0.0, "loose": 0.0, "leak": 0.0, "dac": -1e3, "dac-told": -1e3,
    "adc-flat": 0.0, "adc-gain": 1.0, "adc-gain-redundant": 1.0, "gain": 1.0, "delay": 0.0, "hum": 0.0,
    "crosstalk": 0.0, "redox": 0.0, "breakdown": 1.0, "rising": 0.0, "clock": 1.0, "stop-button": 0.0, "absurd": 0.0,
    "flood": 0.0, "deaf": 0.0, **dict.fromkeys(
        ("stuck", "stuck-told", "polarity", "hot", "leakage", "supply-warning", "supply-low", "post-fail", "speaker",
         "lie-limits", "identity", "repeat", "replayed", "lease-stuck"), -1.0),
}
SERVE_ENDS = ("closed", "unplugged", "silent", "stopped", "idle", "failed")
PHASES = ("idle", "configured", "armed", "expired", "tripped")


cdef inline bint running(const VirtualDeviceState* device) noexcept nogil:
    return device.phase >= DEVICE_ARMED


cdef inline bint hosted(const VirtualDeviceState* device) noexcept nogil:
    return running(device) and device.pacing == PACING_HOST


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef bint send(VirtualDeviceState* device, const uint8_t* payload, size_t length) noexcept nogil:
    """Whether there was room for it."""
    if device.transmit_length + MAX_FRAME > TRANSMIT_BYTES * <size_t>device.channels:
        device.dropped += 1
        return False
    device.transmit_length += wire_encode(payload, length, device.transmit + device.transmit_length)
    return True


cdef void send_error(VirtualDeviceState* device, uint8_t code, uint8_t offending, uint32_t index) noexcept nogil:
    cdef uint8_t payload[8]
    payload[0] = FRAME_ERROR
    payload[1] = code
    payload[2] = offending
    payload[3] = 0
    put_u32(payload + 4, index)
    send(device, payload, 8)


cdef void send_hello(VirtualDeviceState* device) noexcept nogil:
    cdef uint8_t payload[HELLO_FIXED_BYTES + HELLO_RANGE_BYTES * RANGES + HELLO_FEATURE_BYTES
                         + CHARGES_BYTES * (MAX_CHANNELS - 1)]
    cdef const FrontEndState* front_end = &device.channel[0].front_end
    cdef size_t length = HELLO_FIXED_BYTES + HELLO_RANGE_BYTES * RANGES
    cdef const FrontEndRange* one
    cdef uint8_t* at
    cdef uint32_t c
    cdef int k
    memset(payload, 0, sizeof(payload))
    payload[0] = FRAME_HELLO
    payload[1] = PROTOCOL_VERSION
    payload[2] = <uint8_t>device.channels
    payload[3] = device.pacing_offered
    payload[4] = <uint8_t>front_end.kind
    payload[5] = RANGES
    put_u16(payload + 6, device.lease_most_ticks)
    put_u32(payload + 8, device.firmware_version)
    put_u32(payload + 12, device.sample_period_ns)
    put_u32(payload + 16, <uint32_t>(1e3 * front_end.compliance_v + 0.5))
    put_u32(payload + 20, front_end.voltage_lsb_nv)
    put_u32(payload + 24, <uint32_t>front_end.voltage_offset_q16)
    put_u32(payload + 28, 32767)
    memcpy(payload + 32, device.model, 16)
    memcpy(payload + 48, device.serial, 16)
    if device.identity:
        payload[48] = b"x" if payload[48] != b"x" else b"y"
    put_u32(payload + 64, device.last_token)
    put_u64(payload + 68, <uint64_t>device.channel[0].last_net_codes)
    put_u64(payload + 76, <uint64_t>device.channel[0].last_absolute_codes)
    put_u32(payload + 84, device.last_samples)
    payload[88] = device.last_range
    for k in range(RANGES):
        one = &front_end.ranges[k]
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
    if front_end.sentinel_lsb_nv or device.channels > 1:
        if front_end.sentinel_lsb_nv:
            payload[length] = FEATURE_SENTINEL
            put_u32(payload + length + 4, front_end.sentinel_lsb_nv)
            put_u32(payload + length + 8, <uint32_t>front_end.sentinel_offset_q16)
        if device.channels > 1:
            payload[length] |= FEATURE_CHANNEL_CHARGES
        length += HELLO_FEATURE_BYTES
    for c in range(1, device.channels):
        put_u64(payload + length, <uint64_t>device.channel[c].last_net_codes)
        put_u64(payload + length + 8, <uint64_t>device.channel[c].last_absolute_codes)
        length += CHARGES_BYTES
    if device.absurd:
        make_absurd(payload, device.absurd)
    send(device, payload, length)


cdef void make_absurd(uint8_t* hello, uint32_t claim) noexcept nogil:
    """One field of the hello beyond what docs/wire-protocol.md allows it; of a range, the third one's."""
    cdef uint8_t* one = hello + HELLO_FIXED_BYTES + HELLO_RANGE_BYTES * 2
    if claim == 1:
        hello[2] = 0                        # channels
    elif claim == 2:
        hello[2] = MAX_CHANNELS + 1
    elif claim == 3:
        hello[3] = 0                        # pacing
    elif claim == 4:
        hello[4] = 7                        # front-end
    elif claim == 5:
        hello[5] = 0                        # ranges
    elif claim == 6:
        hello[5] = 29                       # more than are there
    elif claim == 7:
        put_u16(hello + 6, 0)               # longest lease
    elif claim == 8:
        put_u16(hello + 6, 65535)           # beyond 100 ms
    elif claim == 9:
        put_u32(hello + 12, 0)              # sample period
    elif claim == 10:
        put_u32(hello + 12, 4000000000)
    elif claim == 11:
        put_u32(hello + 16, 0)              # compliance voltage
    elif claim == 12:
        put_u32(hello + 20, 0)              # voltage per code
    elif claim == 13:
        put_u32(hello + 28, 0)              # code limit
    elif claim == 14:
        put_u32(hello + 28, 0x80000000)
    elif claim == 15:
        put_u32(one, 0)                     # full scale
    elif claim == 16:
        put_u32(one, 4000000000)
    elif claim == 17:
        put_u32(one + 4, 0)                 # current per code
    elif claim == 18:
        put_u32(one + 12, 0)                # redundant current per code
    elif claim == 19:
        put_u32(one + 20, 0)                # output per code
    elif claim == 20:
        put_u16(one + 24, 100)              # lowest output code
    elif claim == 21:
        put_u16(one + 26, 0)                # highest output code


cdef void send_counters(VirtualDeviceState* device, uint8_t type_) noexcept nogil:
    cdef uint8_t payload[COUNTERS_BYTES + CHARGES_BYTES * (MAX_CHANNELS - 1)]
    cdef size_t length = COUNTERS_BYTES
    cdef uint32_t c
    payload[0] = type_
    payload[1] = 0
    put_u16(payload + 2, device.status_latched | device.status_fault & STATUS_SELF_TEST_FAILED)
    put_u32(payload + 4, device.token)
    put_u32(payload + 8, device.samples)
    put_u32(payload + 12, device.late)
    put_u32(payload + 16, device.lapsed)
    put_u32(payload + 20, device.refused)
    put_u32(payload + 24, <uint32_t>(device.receiver.bad_frames - device.bad_frames_before))
    put_u64(payload + 28, <uint64_t>device.channel[0].net_codes)
    put_u64(payload + 36, <uint64_t>device.channel[0].absolute_codes)
    for c in range(1, device.channels):
        put_u64(payload + length, <uint64_t>device.channel[c].net_codes)
        put_u64(payload + length + 8, <uint64_t>device.channel[c].absolute_codes)
        length += CHARGES_BYTES
    send(device, payload, length)


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
    cdef const VirtualChannel* one
    cdef uint32_t c
    for c in range(device.channels):
        one = &device.channel[c]
        if device.truth_length + TRUTH_ROW_BYTES > TRUTH_BYTES:
            flush_truth(device)
        if device.channels > 1:
            device.truth_length += snprintf(device.truth + device.truth_length, TRUTH_ROW_BYTES, "%u,", c)
        device.truth_length += snprintf(
            device.truth + device.truth_length, TRUTH_ROW_BYTES,
            "%u,%.7f,%.9g,%.9g,%.12g,%.12g,%.9g,%d,%u,%d,%d,%.6g\n",
            device.samples, 1e-9 * device.sample_period_ns * device.ticks,
            one.period.charge_c / one.front_end.period_s, one.period.peak_a, one.charge_c, one.absolute_c,
            one.front_end.voltage_v, one.applied_code, device.lease_left, one.front_end.relay_closed,
            <int>(device.status_latched & STATUS_LEASE_EXPIRED) // STATUS_LEASE_EXPIRED,
            one.skin.active.contact_fraction)


cdef int replace_file(const char* path, const char* spare_path, const char* text, size_t length) noexcept nogil:
    """Replaces a file in one rename, so that a reader finds the old one or the new one; 0 or errno."""
    cdef int error = 0
    cdef int fd = c_open(spare_path, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
    if fd < 0:
        return errno
    if c_write(fd, text, length) != <ssize_t>length:
        error = errno if errno else EIO
    c_close(fd)
    if error == 0 and rename(spare_path, path) != 0:
        error = errno
    return error


cdef void save_state(VirtualDeviceState* device) noexcept nogil:
    cdef char text[2048]
    cdef size_t length
    cdef uint32_t c
    cdef int error
    if device.state_path == NULL:
        return
    length = snprintf(
        text, sizeof(text),
        '{"format": 1, "serial": "%.16s", "token": %u, "range": %u, "samples": %u, "net_codes": %lld, '
        '"absolute_codes": %lld',
        device.serial, device.last_token, <unsigned int>device.last_range, device.last_samples,
        <long long>device.channel[0].last_net_codes, <long long>device.channel[0].last_absolute_codes)
    for c in range(1, device.channels):
        length += snprintf(
            text + length, sizeof(text) - length, "%s[%lld, %lld]", b', "further_channels": [' if c == 1 else b", ",
            <long long>device.channel[c].last_net_codes, <long long>device.channel[c].last_absolute_codes)
    length += snprintf(text + length, sizeof(text) - length, "]}\n" if device.channels > 1 else "}\n")
    error = replace_file(device.state_path, device.state_spare_path, text, length)
    if error:
        device.state_error = error


cdef void save_round_trip(VirtualDeviceState* device) noexcept nogil:
    """What was measured since arming, once."""
    cdef RoundTrip* trip_ = device.round_trip
    cdef const char* separator = ""
    cdef size_t length
    cdef int bucket, error
    if trip_ == NULL or not trip_.due:
        return
    trip_.due = 0
    length = snprintf(
        trip_.text, sizeof(trip_.text),
        '{"samples": %llu, "answered": %llu, "late": %u, "dropped": %llu, "p50_us": %.3f, "p90_us": %.3f, '
        '"p99_us": %.3f, "p999_us": %.3f, "p9999_us": %.3f, "max_us": %.3f, "mean_us": %.3f, "counts": [',
        <unsigned long long>trip_.samples, <unsigned long long>trip_.histogram.total, device.late,
        <unsigned long long>(device.dropped - trip_.dropped_before),
        1e-3 * histogram_percentile(&trip_.histogram, 0.5), 1e-3 * histogram_percentile(&trip_.histogram, 0.9),
        1e-3 * histogram_percentile(&trip_.histogram, 0.99), 1e-3 * histogram_percentile(&trip_.histogram, 0.999),
        1e-3 * histogram_percentile(&trip_.histogram, 0.9999), 1e-3 * trip_.histogram.highest_ns,
        1e-3 * trip_.histogram.sum_ns / trip_.histogram.total if trip_.histogram.total else 0.0)
    for bucket in range(HISTOGRAM_BUCKETS):
        if trip_.histogram.counts[bucket]:
            length += snprintf(
                trip_.text + length, sizeof(trip_.text) - length, "%s[%llu, %llu]", separator,
                <unsigned long long>bucket_end(bucket), <unsigned long long>trip_.histogram.counts[bucket])
            separator = ", "
    length += snprintf(trip_.text + length, sizeof(trip_.text) - length, "]}\n")
    error = replace_file(trip_.path, trip_.spare_path, trip_.text, length)
    if error:
        trip_.error = error


cdef inline void remember(VirtualDeviceState* device) noexcept nogil:
    cdef uint32_t c
    device.last_token = device.token
    device.last_range = device.range
    device.last_samples = device.samples
    for c in range(device.channels):
        device.channel[c].last_net_codes = device.channel[c].net_codes
        device.channel[c].last_absolute_codes = device.channel[c].absolute_codes


cdef inline void count(VirtualChannel* one, int64_t charge, int64_t periods) noexcept nogil:
    one.net_codes += periods * charge
    one.absolute_codes += periods * (charge if charge >= 0 else -charge)


cdef inline int64_t charge_of(const VirtualChannel* one, int32_t current_code) noexcept nogil:
    return <int64_t>current_code * 65536 - one.front_end.ranges[one.front_end.range].current_offset_q16


cdef void count_passed(VirtualDeviceState* device) noexcept nogil:
    """The host paces, and the output is about to be switched off: charge that no sample will count. Where the
    comparator has opened the relay already, at the cap."""
    cdef VirtualChannel* one
    cdef int32_t codes[3]
    cdef uint32_t c
    if device.uncounted == 0:
        return
    for c in range(device.channels):
        one = &device.channel[c]
        frontend_read(&one.front_end, codes)
        if one.period.tripped:
            codes[0] = one.current_cap_code if one.applied_code >= 0 else -one.current_cap_code
        count(one, charge_of(one, codes[0]), device.uncounted)
    device.uncounted = 0
    remember(device)


cdef void switch_off(VirtualDeviceState* device, bint relay) noexcept nogil:
    """Outputs to zero, and the relays open if they are to be."""
    cdef VirtualChannel* one
    cdef uint32_t c
    count_passed(device)
    for c in range(device.channels):
        one = &device.channel[c]
        frontend_zero(&one.front_end)
        one.applied_code = 0
        one.status_command = 0
        if relay:
            one.front_end.relay_closed = 0
    device.lease_left = 0
    device.pending = 0
    if relay:
        device.relay_left = 0


cdef void trip(VirtualDeviceState* device, uint16_t status) noexcept nogil:
    switch_off(device, True)
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
        inject(device, fault.channel, fault.kind, fault.value)


cdef void inject(VirtualDeviceState* device, uint32_t channel, int32_t kind, double value) noexcept nogil:
    cdef VirtualChannel* one = &device.channel[channel]
    if kind == FAULT_OPEN:
        one.skin.open_ohm = OPEN_OHM
    elif kind == FAULT_CLOSE:
        skin_mend(&one.skin)
    elif kind == FAULT_SHORT:
        one.skin.shunt_ohm = SHORT_OHM
    elif kind == FAULT_AREA:
        one.skin.active.contact_share = value
        site_contact(&one.skin.active)
    elif kind == FAULT_UNPLUG:
        device.unplugged = 1
    elif kind == FAULT_STALL:
        device.stall_until = device.ticks + <uint64_t>(value * 1e9 / device.sample_period_ns + 0.5)
    elif kind == FAULT_STUCK:
        if value < 0.0:
            unstick(one)
        else:
            one.front_end.stuck = 1
            one.told = 0
    elif kind == FAULT_PEEL:
        skin_peel(&one.skin, value)
    elif kind == FAULT_DRY:
        skin_dry(&one.skin, 0.01 * value)
    elif kind == FAULT_LOOSE:
        skin_loosen(&one.skin, value)
    elif kind == FAULT_LEAK:
        one.skin.shunt_ohm = value
    elif kind == FAULT_RETURN_AREA:
        one.skin.passive.contact_share = value
        site_contact(&one.skin.passive)
    elif kind < FAULT_CLOCK:
        inject_electrical(device, one, kind, value)
    else:
        inject_device(device, kind, value)


cdef inline void stick(VirtualChannel* one, int32_t code, int32_t told) noexcept nogil:
    frontend_stick(&one.front_end, code)
    one.told = told
    one.told_code = code


cdef void inject_electrical(VirtualDeviceState* device, VirtualChannel* one, int32_t kind, double value) noexcept nogil:
    """Faults of one channel's output stage, readings and skin."""
    cdef FrontEndState* front_end = &one.front_end
    cdef uint32_t c
    if kind == FAULT_STUCK_TOLD:
        if value < 0.0:
            unstick(one)
        else:
            front_end.stuck = 1
            one.told = 1
            one.told_code = one.applied_code
    elif kind == FAULT_DAC or kind == FAULT_DAC_TOLD:
        if value < -100.0:
            unstick(one)
        else:
            stick(one, <int32_t>(0.01 * value * front_end.ranges[front_end.range].output_code_max),
                  kind == FAULT_DAC_TOLD)
    elif kind == FAULT_ADC_FLAT:
        front_end.flat = <int32_t>value
    elif kind == FAULT_ADC_GAIN:
        front_end.reading_factor[0] = value
    elif kind == FAULT_ADC_GAIN_REDUNDANT:
        front_end.reading_factor[1] = value
    elif kind == FAULT_GAIN:
        front_end.output_factor = value if front_end.output_factor > 0.0 else -value
    elif kind == FAULT_POLARITY:
        front_end.output_factor = fabs(front_end.output_factor) * (1.0 if value < 0.0 else -1.0)
    elif kind == FAULT_DELAY:
        one.delay_ticks = <uint32_t>value
        for c in range(<uint32_t>DELAY_MOST):
            one.delayed[c] = one.applied_code
    elif kind == FAULT_HUM:
        front_end.hum_v = 1e-3 * value
    elif kind == FAULT_CROSSTALK:
        one.bridge_ohm = value
        device.bridged = 0
        for c in range(device.channels):
            device.bridged |= device.channel[c].bridge_ohm > 0.0
            device.channel[c].bridge_a = 0.0
            device.channel[c].front_end.bridge_a = 0.0
    elif kind == FAULT_REDOX:
        skin_use_up(&one.skin, value)
    elif kind == FAULT_BREAKDOWN:
        skin_break(&one.skin, value)
    elif kind == FAULT_RISING:
        skin_rise(&one.skin, 0.01 * value)
    elif kind == FAULT_HOT:
        one.status_fault = 0 if value < 0.0 else STATUS_OVER_TEMPERATURE


cdef inline void unstick(VirtualChannel* one) noexcept nogil:
    one.front_end.stuck = 0
    one.told = 0
    frontend_output(&one.front_end, one.applied_code)


cdef inline void set_status(VirtualDeviceState* device, uint16_t bit, double value) noexcept nogil:
    if value < 0.0:
        device.status_fault &= <uint16_t>~bit
    else:
        device.status_fault |= bit


cdef void inject_device(VirtualDeviceState* device, int32_t kind, double value) noexcept nogil:
    """Faults of what the channels share: clock, supply, safety inputs, and what it says on the wire."""
    cdef int32_t on = value >= 0.0
    if kind == FAULT_CLOCK:
        device.pace_ns = <int64_t>(device.sample_period_ns * value + 0.5)
    elif kind == FAULT_STOP_BUTTON:
        device.pressed_until = device.ticks + <uint64_t>(value * 1e9 / device.sample_period_ns + 0.5)
    elif kind == FAULT_LEAKAGE:
        device.leaking = on
    elif kind == FAULT_SUPPLY_WARNING:
        set_status(device, STATUS_SUPPLY_WARNING, value)
    elif kind == FAULT_SUPPLY_LOW:
        set_status(device, STATUS_SUPPLY_LOW, value)
    elif kind == FAULT_POST_FAIL:
        set_status(device, STATUS_SELF_TEST_FAILED, value)
    elif kind == FAULT_SPEAKER:
        set_status(device, STATUS_SPEAKER_FAULT, value)
    elif kind == FAULT_LIE_LIMITS:
        device.lie_limits = on
    elif kind == FAULT_IDENTITY:
        device.identity = on
    elif kind == FAULT_ABSURD:
        device.absurd = <uint32_t>value
    elif kind == FAULT_FLOOD:
        device.flood = <uint32_t>value
    elif kind == FAULT_REPEAT:
        device.repeat = on
    elif kind == FAULT_DEAF:
        device.deaf_until = device.ticks + <uint64_t>(value * 1e9 / device.sample_period_ns + 0.5)
    elif kind == FAULT_LEASE_STUCK:
        device.lease_stuck = on
    elif kind == FAULT_REPLAYED:
        device.replayed = on
        device.old_length = 0


cdef void cross_bridges(VirtualDeviceState* device) noexcept nogil:
    """Currents between the active terminals of neighbours, for the next period: implicitly, by what the skins of both
    would rise in it, so that a small resistance does not swing."""
    cdef VirtualChannel* one
    cdef VirtualChannel* other
    cdef double inner_ohm
    cdef uint32_t c
    for c in range(device.channels):
        device.channel[c].front_end.bridge_a = 0.0
    for c in range(device.channels - 1):
        one = &device.channel[c]
        other = &device.channel[c + 1]
        if not one.bridge_ohm > 0.0:
            continue
        inner_ohm = rise_ohm(one) + rise_ohm(other)
        one.bridge_a += (one.front_end.voltage_v - other.front_end.voltage_v - one.bridge_ohm * one.bridge_a) / (
            one.bridge_ohm + inner_ohm)
        one.front_end.bridge_a -= one.bridge_a
        other.front_end.bridge_a += one.bridge_a


cdef inline double rise_ohm(const VirtualChannel* one) noexcept nogil:
    """By how much the voltage at the pads rises within a period, by the ampere."""
    return skin_series_ohm(&one.skin) + one.front_end.period_s * (
        1.0 / (one.skin.active.capacitance_f_cm2 * one.skin.active.area_cm2)
        + 1.0 / (one.skin.passive.capacitance_f_cm2 * one.skin.passive.area_cm2))


cdef void delay_outputs(VirtualDeviceState* device) noexcept nogil:
    """At a boundary, of channels whose output is late."""
    cdef VirtualChannel* one
    cdef uint32_t c
    for c in range(device.channels):
        one = &device.channel[c]
        if one.delay_ticks == 0:
            continue
        one.delayed[one.delay_at % DELAY_MOST] = one.applied_code
        frontend_output(&one.front_end, one.delayed[(one.delay_at - one.delay_ticks) % DELAY_MOST])
        one.delay_at += 1


cdef inline bint stalled(const VirtualDeviceState* device) noexcept nogil:
    return device.ticks <= device.stall_until and device.stall_until > 0


cdef inline void take_sample(VirtualDeviceState* device, uint32_t index, int64_t periods,
                             Sample* samples) noexcept nogil:
    """Sample `index`; its codes are counted for so many periods."""
    cdef uint32_t time_us = <uint32_t>(device.ticks * device.sample_period_ns // 1000)
    cdef uint16_t nonce = <uint16_t>(noise_next(&device.noise) >> 48)
    cdef int32_t codes[3]
    cdef VirtualChannel* one
    cdef Sample* sample
    cdef uint32_t c
    for c in range(device.channels):
        one = &device.channel[c]
        sample = &samples[c]
        frontend_read(&one.front_end, codes)
        count(one, charge_of(one, codes[0]), periods)
        sample.index = index
        sample.device_time_us = time_us
        sample.applied_index = device.applied_index
        sample.nonce = nonce
        sample.status = device.status_latched | one.status_command | device.status_fault | one.status_fault
        if device.ticks <= device.pressed_until and device.pressed_until > 0:
            sample.status |= STATUS_PATIENT_STOP
        if one.front_end.relay_closed:
            sample.status |= STATUS_RELAY_CLOSED
        if one.period.limited:
            sample.status |= STATUS_COMPLIANCE
        sample.current_code = codes[0]
        sample.redundant_code = codes[1]
        sample.voltage_code = codes[2]
        sample.sentinel_code = 0
        if one.front_end.sentinel_lsb_nv and not device.skew_s > 0.0:
            sample.sentinel_code = frontend_read_sentinel(&one.front_end, &one.skin)
        sample.applied_code = one.told_code if one.told else one.applied_code
        sample.charge_codes = one.net_codes
    device.nonces[index % NONCES] = nonce


cdef void send_sample(VirtualDeviceState* device, Sample* samples) noexcept nogil:
    """Behind the boundary: by then a voltage reading that comes later is under the command that acts from there."""
    cdef uint8_t payload[MAX_PAYLOAD]
    cdef size_t length
    cdef uint32_t c, _c
    if device.skew_s > 0.0:
        for c in range(device.channels):
            frontend_read_later(
                &device.channel[c].front_end, &device.channel[c].skin, device.skew_s, &samples[c].voltage_code,
                &samples[c].sentinel_code
            )
    if stalled(device) or device.unplugged:
        return
    length = wire_put_sample(samples, device.channels, payload)
    if device.channel[0].front_end.sentinel_lsb_nv:
        length = wire_put_sentinel(samples, device.channels, payload)
    if device.flood:
        for _c in range(device.flood):
            send_counters(device, FRAME_COUNTERS)
    if send(device, payload, length) and device.round_trip != NULL:
        device.round_trip.samples += 1
    if device.repeat:
        send(device, payload, length)
    if device.replayed:
        if device.old_length == 0:
            device.old_length = length
            memcpy(device.old, payload, length)
        send(device, device.old, device.old_length)


cdef void expire(VirtualDeviceState* device) noexcept nogil:
    switch_off(device, False)
    device.lapsed += 1
    device.status_latched |= STATUS_LEASE_EXPIRED
    device.phase = DEVICE_EXPIRED
    device.relay_left = device.relay_ticks
    device.save_due = 1


cdef inline bint capped(VirtualDeviceState* device) noexcept nogil:
    """Whether a cap of charge or time has tripped the device at this boundary."""
    cdef uint32_t c
    if not STOP_IN_FORCE(STOP_DEVICE):
        return False
    for c in range(device.channels):
        if device.channel[c].absolute_codes >= device.channel[c].charge_cap_codes:
            trip(device, STATUS_CHARGE_CAP)
            return True
    if device.samples >= device.session_ticks_max:
        trip(device, STATUS_TIME_CAP)
        return True
    return False


cdef void act(VirtualDeviceState* device) noexcept nogil:
    """The accepted command comes into force."""
    cdef VirtualChannel* one
    cdef uint16_t status = 0
    cdef int32_t code
    cdef uint32_t c
    device.pending = 0
    if device.channel[0].command.index + 2 < device.samples:
        device.late += 1
        status = STATUS_LATE
    for c in range(device.channels):
        one = &device.channel[c]
        one.status_command = status
        code = one.command.code
        if code > one.output_code_max:
            code = one.output_code_max
        elif code < one.output_code_min:
            code = one.output_code_min
        if code != one.command.code:
            one.status_command |= STATUS_CLAMPED
        one.applied_code = code
        one.front_end.relay_closed = 1 if one.command.flags & COMMAND_CLOSE_RELAY else 0
        if device.status_fault & STATUS_SELF_TEST_FAILED:
            one.front_end.relay_closed = 0
        if one.delay_ticks == 0:
            frontend_output(&one.front_end, code)
    device.applied_index = device.channel[0].command.index
    device.lease_left = device.channel[0].command.lease_ticks


cdef inline void cross_boundary(VirtualDeviceState* device) noexcept nogil:
    """Boundary at the end of a period; its index is samples - 1."""
    cdef uint32_t c
    if device.relay_left:
        device.relay_left -= 1
        if device.relay_left == 0:
            for c in range(device.channels):
                device.channel[c].front_end.relay_closed = 0
    if device.phase != DEVICE_ARMED or capped(device):
        return
    if device.pending:
        act(device)
    elif device.lease_left and STOP_IN_FORCE(STOP_DEVICE) and not device.lease_stuck:
        device.lease_left -= 1
        if device.lease_left == 0:
            expire(device)
            return
    delay_outputs(device)


cdef inline bint run_plants(VirtualDeviceState* device) noexcept nogil:
    """One period of every front-end and skin; whether a comparator has opened its relay."""
    cdef VirtualChannel* one
    cdef bint tripped = False
    cdef uint32_t c
    for c in range(device.channels):
        one = &device.channel[c]
        frontend_run(&one.front_end, &one.skin, one.comparator_a, &one.period)
        one.charge_c += one.period.charge_c
        one.absolute_c += one.period.absolute_c
        tripped |= one.period.tripped
    device.ticks += 1
    if device.bridged:
        cross_bridges(device)
    return tripped


cdef inline void run_period(VirtualDeviceState* device) noexcept nogil:
    """A period up to its boundary."""
    apply_faults(device)
    if device.leaking and device.phase != DEVICE_TRIPPED:
        trip(device, STATUS_LEAKAGE)
    if run_plants(device):
        trip(device, STATUS_OVER_CURRENT)
    if device.truth_fd >= 0:
        write_truth(device)


cdef inline void end_period(VirtualDeviceState* device) noexcept nogil:
    if device.truth_fd >= 0 and device.ticks % device.flush_ticks == 0:
        flush_truth(device)
    if device.save_due or device.ticks % device.save_ticks == 0:
        device.save_due = 0
        save_state(device)


cdef void sample_period(VirtualDeviceState* device) noexcept nogil:
    """A period that ends with a sample."""
    cdef Sample samples[MAX_CHANNELS]
    run_period(device)
    take_sample(device, device.samples, 1 + <int64_t>device.uncounted, samples)
    device.uncounted = 0
    device.samples += 1
    remember(device)
    cross_boundary(device)
    send_sample(device, samples)
    end_period(device)


cdef void silent_period(VirtualDeviceState* device) noexcept nogil:
    """The host paces, and has sent no command in this period."""
    device.uncounted += 1
    run_period(device)
    device.nonces[device.samples % NONCES] = <uint16_t>(noise_next(&device.noise) >> 48)
    device.samples += 1
    device.passed += 1
    cross_boundary(device)
    end_period(device)


cdef void virtual_device_advance(VirtualDeviceState* device) noexcept nogil:
    if not running(device):
        return
    if device.pacing == PACING_HOST:
        silent_period(device)
    else:
        sample_period(device)


cdef uint32_t catch_up(VirtualDeviceState* device) noexcept nogil:
    """The host paces, and a frame has come: every period that has passed but the last one, which a command may still
    end. How many periods the next sample ends."""
    cdef int64_t elapsed
    cdef uint32_t periods = 1
    if device.timed:
        elapsed = monotonic_ns() - device.boundary_ns + device.pace_ns // 2
        if elapsed >= 2 * device.pace_ns:
            periods = <uint32_t>(elapsed // device.pace_ns)
    while device.passed + 1 < periods:
        silent_period(device)
    return periods if periods > device.passed else device.passed


cdef void answer(VirtualDeviceState* device, uint32_t periods) noexcept nogil:
    """The host paces: the sample and the boundary behind a command, so many periods after the last sample."""
    cdef Sample samples[MAX_CHANNELS]
    cdef int64_t lead
    if device.timed:
        # The timer's grid is kept, so that no rounding adds up; a host that is far ahead of it sets it back. A late
        # command (two periods) and the next in time (one at least) make a lead of one, which the following wear off.
        device.boundary_ns += periods * device.pace_ns
        lead = monotonic_ns() + 3 * device.pace_ns // 2
        if device.boundary_ns > lead:
            device.boundary_ns = lead
    if device.passed < periods:
        sample_period(device)
    else:
        take_sample(device, device.samples - 1, device.uncounted, samples)
        device.uncounted = 0
        remember(device)
        if device.phase == DEVICE_ARMED and not capped(device) and device.pending:
            act(device)
        send_sample(device, samples)
    device.passed = 0


cdef void disarm(VirtualDeviceState* device) noexcept nogil:
    """Output zero and relay open, and one period more for the truth to show it. No sample goes with it."""
    switch_off(device, True)
    if running(device):
        run_plants(device)
        if device.truth_fd >= 0:
            write_truth(device)
            flush_truth(device)
    device.phase = DEVICE_IDLE
    save_round_trip(device)


cdef void take_limits(VirtualDeviceState* device, const uint8_t* payload) noexcept nogil:
    cdef const FrontEndRange* one
    cdef VirtualChannel* channel
    cdef const uint8_t* at
    cdef uint8_t back[LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * MAX_CHANNELS]
    cdef size_t length = LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * <size_t>device.channels
    cdef uint8_t chosen
    cdef uint16_t lease
    cdef uint32_t c, ticks
    cdef int32_t cap, least, most
    cdef bint good
    if device.phase == DEVICE_ARMED:
        send_error(device, WIRE_ERROR_STATE, FRAME_LIMITS, NO_INDEX)
        return
    if payload[1] >= RANGES:
        send_error(device, WIRE_ERROR_LIMITS, FRAME_LIMITS, NO_INDEX)
        return
    chosen = payload[1]
    lease = get_u16(payload + 2)
    ticks = get_u32(payload + 8)
    one = &device.channel[0].front_end.ranges[chosen]
    good = lease > 0 and lease <= device.lease_most_ticks and ticks > 0
    for c in range(device.channels):
        at = payload + LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * c
        cap = <int32_t>get_u32(at)
        least = <int32_t>get_u32(at + 4)
        most = <int32_t>get_u32(at + 8)
        if (<int64_t>get_u64(at + 12) <= 0 or cap <= 0
                or cap * (1e-15 * one.current_lsb_fa) > 1.2501e-9 * one.full_scale_na
                or least > 0 or most < 0 or least < one.output_code_min or most > one.output_code_max):
            good = False
    if not good:
        send_error(device, WIRE_ERROR_LIMITS, FRAME_LIMITS, NO_INDEX)
        return
    if running(device):
        disarm(device)
    device.range = chosen
    device.lease_max_ticks = lease
    device.token = get_u32(payload + 4)
    device.session_ticks_max = ticks
    back[0] = FRAME_LIMITS_READ_BACK
    back[1] = device.range
    put_u16(back + 2, device.lease_max_ticks)
    put_u32(back + 4, device.token)
    put_u32(back + 8, device.session_ticks_max)
    for c in range(device.channels):
        at = payload + LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * c
        channel = &device.channel[c]
        channel.front_end.range = chosen
        channel.current_cap_code = <int32_t>get_u32(at)
        channel.output_code_min = <int32_t>get_u32(at + 4)
        channel.output_code_max = <int32_t>get_u32(at + 8)
        channel.charge_cap_codes = <int64_t>get_u64(at + 12)
        channel.comparator_a = channel.current_cap_code * (1e-15 * one.current_lsb_fa)
        if not STOP_IN_FORCE(STOP_DEVICE):
            channel.comparator_a = 1e9
        put_u32(back + LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * c, <uint32_t>channel.current_cap_code)
        put_u32(back + LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * c + 4, <uint32_t>channel.output_code_min)
        put_u32(back + LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * c + 8, <uint32_t>channel.output_code_max)
        put_u64(back + LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * c + 12, <uint64_t>channel.charge_cap_codes)
    if device.lie_limits:
        put_u32(back + LIMITS_FIXED_BYTES, <uint32_t>device.channel[0].current_cap_code + 1)
    device.phase = DEVICE_CONFIGURED
    send(device, back, length)


cdef void take_arm(VirtualDeviceState* device, const uint8_t* payload) noexcept nogil:
    cdef uint8_t reply[ARM_BYTES]
    cdef uint8_t pacing
    cdef uint32_t c
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
    save_round_trip(device)
    switch_off(device, True)
    device.pacing = pacing
    device.samples = 0
    device.late = 0
    device.lapsed = 0
    device.refused = 0
    device.bad_frames_before = device.receiver.bad_frames
    for c in range(device.channels):
        device.channel[c].net_codes = 0
        device.channel[c].absolute_codes = 0
        memset(device.channel[c].delayed, 0, sizeof(device.channel[c].delayed))
    device.passed = 0
    device.uncounted = 0
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
    device.boundary_ns = monotonic_ns() if device.timed else 0
    begin_round_trip(device)
    if pacing == PACING_LOCK_STEP:
        advance_lock_step(device)
    elif pacing == PACING_HOST:
        sample_period(device)


cdef void take_disarm(VirtualDeviceState* device, const uint8_t* payload) noexcept nogil:
    if device.phase == DEVICE_IDLE:
        send_error(device, WIRE_ERROR_STATE, FRAME_DISARM, NO_INDEX)
        return
    if get_u32(payload + 4) != device.token:
        send_error(device, WIRE_ERROR_TOKEN, FRAME_DISARM, NO_INDEX)
        return
    if hosted(device):
        catch_up(device)
    disarm(device)
    save_state(device)
    send_counters(device, FRAME_DISARMED)


cdef void take_command(VirtualDeviceState* device, const uint8_t* payload, size_t length) noexcept nogil:
    cdef Command commands[MAX_CHANNELS]
    cdef const Command* command = &commands[0]
    cdef uint32_t channels = device.channels
    cdef uint32_t c
    cdef uint8_t error = 0
    if device.ticks <= device.deaf_until and device.deaf_until > 0:
        return
    if not wire_get_command(payload, length, commands, &channels):
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
    for c in range(device.channels):
        device.channel[c].command = commands[c]
    device.pending = 1
    time_round_trip(device, command.index)


cdef inline bint measured(const VirtualDeviceState* device) noexcept nogil:
    """Whether round trips are: by the wall clock, so not in lock-step."""
    return device.round_trip != NULL and device.timed and running(device) and device.pacing != PACING_LOCK_STEP


cdef void begin_round_trip(VirtualDeviceState* device) noexcept nogil:
    cdef RoundTrip* measure = device.round_trip
    if not measured(device):
        return
    memset(&measure.histogram, 0, sizeof(measure.histogram))
    memset(measure.written_ns, 0, sizeof(measure.written_ns))
    measure.written = 0
    measure.answered = 0
    measure.samples = 0
    measure.dropped_before = device.dropped
    measure.due = 1


cdef void note_written(VirtualDeviceState* device) noexcept nogil:
    """Samples that the next write(2) is the first to be given."""
    cdef RoundTrip* measure = device.round_trip
    cdef int64_t now
    if not measured(device) or measure.written == device.samples:
        return
    now = monotonic_ns()
    if device.samples - measure.written > NONCES:
        measure.written = device.samples - NONCES
    while measure.written != device.samples:
        measure.written_ns[measure.written % NONCES] = now
        measure.written += 1


cdef void time_round_trip(VirtualDeviceState* device, uint32_t index) noexcept nogil:
    """A command that answers sample `index` has been accepted, and with it the samples before that had no own answer.

    So what a host that was late did not answer has its time too, as corrected for coordinated omission.
    """
    cdef RoundTrip* measure = device.round_trip
    if not measured(device):
        return
    # Where the host paces, indexes jump over samples that were never sent.
    if device.pacing != PACING_DEVICE or index + 1 - measure.answered > NONCES:
        measure.answered = index
    while measure.answered != index + 1:
        if measure.written_ns[measure.answered % NONCES]:
            histogram_add(
                &measure.histogram, <uint64_t>(measure.read_ns - measure.written_ns[measure.answered % NONCES])
            )
        measure.answered += 1


cdef size_t least_bytes(const VirtualDeviceState* device, uint8_t type_) noexcept nogil:
    """A shorter payload of this type cannot be read; a longer one has fields of a later version."""
    if type_ == FRAME_HELLO_REQUEST:
        return 2
    if type_ == FRAME_LIMITS:
        return LIMITS_FIXED_BYTES + LIMITS_CHANNEL_BYTES * <size_t>device.channels
    if type_ == FRAME_ARM or type_ == FRAME_DISARM:
        return ARM_BYTES
    return 1


cdef void handle(VirtualDeviceState* device, const uint8_t* payload, size_t length) noexcept nogil:
    cdef uint8_t type_ = payload[0]
    cdef uint32_t periods
    if length < least_bytes(device, type_):
        send_error(device, WIRE_ERROR_UNDECODABLE, type_, NO_INDEX)
    elif type_ == FRAME_COMMAND:
        if not hosted(device):
            take_command(device, payload, length)
        else:
            periods = catch_up(device)
            take_command(device, payload, length)
            answer(device, periods)
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


cdef bint any_relay_closed(const VirtualDeviceState* device) noexcept nogil:
    cdef uint32_t c
    for c in range(device.channels):
        if device.channel[c].front_end.relay_closed:
            return True
    return False


cdef void virtual_device_run_down(VirtualDeviceState* device) noexcept nogil:
    # Bounded by the longest lease that can be in force or pending, and the relay's delay.
    cdef uint32_t left = 2 * device.lease_most_ticks + device.relay_ticks + 4
    device.unplugged = 1
    if device.phase == DEVICE_ARMED and device.lease_left == 0 and not device.pending:
        disarm(device)
    while left and running(device) and (device.phase == DEVICE_ARMED or any_relay_closed(device)):
        virtual_device_advance(device)
        left -= 1
    virtual_device_advance(device)
    count_passed(device)
    device.phase = DEVICE_IDLE
    device.transmit_length = 0
    device.unplugged = 0
    if device.truth_fd >= 0:
        flush_truth(device)
    save_state(device)
    save_round_trip(device)


cdef int drain(VirtualDeviceState* device, int fd) noexcept nogil:
    """Writes what waits for the host; 0, or -errno when the port is gone. What a full port does not take waits on."""
    cdef ssize_t written
    note_written(device)
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


cdef int64_t next_instant_ns(const VirtualDeviceState* device) noexcept nogil:
    """The host paces: when a lease runs out or a relay opens, if nothing comes; at the latest 0.1 s from the last."""
    cdef int64_t periods = device.flush_ticks
    if device.lease_left and device.lease_left < periods:
        periods = device.lease_left
    if device.relay_left and device.relay_left < periods:
        periods = device.relay_left
    return device.boundary_ns + (device.passed + periods) * device.pace_ns


cdef int32_t serve_port(VirtualDeviceState* device, int fd, int* keep_fd, int stop_fd, int64_t idle_ms) noexcept nogil:
    cdef uint8_t data[4096]
    cdef pollfd fds[2]
    cdef timespec wait
    cdef int64_t now = monotonic_ns()
    cdef int64_t heard = now
    cdef int64_t wait_ns
    cdef ssize_t length
    cdef bint clocked = False
    cdef bint was_clocked, asleep
    cdef int ready
    # The default slack of 50 us would be a twentieth of a sample period.
    prctl(PR_SET_TIMERSLACK, <unsigned long>1, 0, 0, 0)
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
        was_clocked = clocked
        clocked = running(device) and device.pacing != PACING_LOCK_STEP
        asleep = False
        if hosted(device):
            wait_ns = next_instant_ns(device) - now
        elif clocked:
            wait_ns = device.boundary_ns + device.pace_ns - now
            # No command acts before the boundary, so none needs to be read before it; only who measures has to look up.
            asleep = device.round_trip == NULL and device.transmit_length == 0
        elif running(device):
            wait_ns = heard + SILENCE_NS - now
            if wait_ns <= 0:
                virtual_device_run_down(device)
                return SERVE_SILENT
        else:
            wait_ns = heard + idle_ms * 1000000 - now
            if wait_ns <= 0:
                return SERVE_IDLE
        if clocked != was_clocked:
            ask_priority(DEVICE_PRIORITY if clocked else 0)
        if wait_ns < 0:
            wait_ns = 0
        wait.tv_sec = wait_ns // 1000000000
        wait.tv_nsec = wait_ns % 1000000000
        fds[0].fd = -1 if asleep else fd
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
        if asleep or (ready > 0 and fds[0].revents & POLLIN):
            length = c_read(fd, data, sizeof(data))
            if length > 0:
                heard = monotonic_ns()
                if device.round_trip != NULL:
                    device.round_trip.read_ns = heard
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
        if hosted(device):
            now = monotonic_ns()
            if now >= next_instant_ns(device):
                while hosted(device) and now - device.boundary_ns >= (<int64_t>device.passed + 1) * device.pace_ns:
                    silent_period(device)
        elif running(device) and device.pacing == PACING_DEVICE:
            if monotonic_ns() >= device.boundary_ns + device.pace_ns:
                device.boundary_ns += device.pace_ns
                sample_period(device)


cdef int32_t virtual_device_serve(VirtualDeviceState* device, int fd, int* keep_fd, int stop_fd,
                                  int64_t idle_ms) noexcept nogil:
    cdef int32_t end
    device.timed = 1
    device.boundary_ns = monotonic_ns()
    end = serve_port(device, fd, keep_fd, stop_fd, idle_ms)
    device.timed = 0
    return end


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


cdef class Channel:
    """What truly is on one channel of a `VirtualDevice`, and the device's counts of it."""

    cdef VirtualDevice device
    cdef VirtualChannel* one

    @property
    def current_a(self):
        """True mean current through the skin over the last period, A."""
        return self.one.period.charge_c / self.one.front_end.period_s

    @property
    def current_peak_a(self):
        """Largest true magnitude through the skin in the last period, A."""
        return self.one.period.peak_a

    @property
    def charge_c(self):
        """True net charge through the skin since the device was made, C."""
        return self.one.charge_c

    @property
    def absolute_charge_c(self):
        """True charge through the skin in either direction since the device was made, C."""
        return self.one.absolute_c

    @property
    def voltage_v(self):
        """True voltage at the pads at the end of the last period, V."""
        return self.one.front_end.voltage_v

    @property
    def applied_code(self):
        """Output code in force."""
        return self.one.applied_code

    @property
    def relay_closed(self):
        """Whether the relay is closed."""
        return bool(self.one.front_end.relay_closed)

    @property
    def contact_fraction(self):
        """Wetted share of the active pad."""
        return self.one.skin.active.contact_fraction

    @property
    def net_codes(self):
        """The device's own net charge count of the session in force or last, 1/65536 code."""
        return self.one.net_codes

    @property
    def absolute_codes(self):
        """The device's own absolute charge count of that session, 1/65536 code."""
        return self.one.absolute_codes


cdef class VirtualDevice:
    """A DAQ with skin attached, in this process.

    Args:
        channels: 1-32. Channel c has the skin and the converters' errors of seed + c; load and skin are of all alike.
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
        pacing: Pacing bits to offer: 1 device, 2 host, 4 lock-step.
        clock_error_ppm: how much longer the device's sample period is than it says.
        serial: at most 15 characters.
        faults: (kind, value, time_s) or (kind, value, time_s, channel) in the order of their times; kind is one of
            FAULT_KINDS, time_s counts armed device time. What value means is in FAULT_VALUES; else it is unused. Those
            of DEVICE_FAULTS have no channel.
        truth_fd: descriptor of the truth file, or -1. state_path: file that remembers the last session, or None.
        round_trip_path: file for the round trips of each session that is served in real time, or None.

    Raises:
        ValueError: a value outside these.
    """

    cdef VirtualDeviceState* device

    def __cinit__(self, *_, uint32_t channels=1, **__):
        check(1 <= channels <= MAX_CHANNELS, f"{channels} channels", f"1 to {MAX_CHANNELS}")
        self.device = <VirtualDeviceState*>calloc(1, sizeof(VirtualDeviceState))
        if self.device == NULL:
            raise MemoryError("virtual device")
        self.device.truth_fd = -1
        self.device.channels = channels
        self.device.channel = <VirtualChannel*>calloc(channels, sizeof(VirtualChannel))
        self.device.transmit = <uint8_t*>calloc(channels, TRANSMIT_BYTES)
        if self.device.channel == NULL or self.device.transmit == NULL:
            raise MemoryError("virtual device")

    def __dealloc__(self):
        if self.device != NULL:
            if self.device.round_trip != NULL:
                free(self.device.round_trip.path)
                free(self.device.round_trip.spare_path)
                free(self.device.round_trip)
            free(self.device.channel)
            free(self.device.transmit)
            free(self.device.truth)
            free(self.device.state_path)
            free(self.device.state_spare_path)
            free(self.device)

    def __init__(self, *, uint32_t channels=1, str skin="typical", uint64_t seed=0, load=None, str front_end="current",
                 double sample_rate_hz=1000.0, double active_area_cm2=8.0, double return_area_cm2=25.0,
                 double onset_scale=1.0, double compliance_v=60.0, double bandwidth_hz=2000.0,
                 double dac_gain_error=0.015, double dac_offset_codes=0.25, double noise_codes=1.0, double hum_v=0.0,
                 double hum_hz=50.0, double jitter_us=0.0, double skew_us=0.0, int sentinel=0, double cpe_exponent=0.0,
                 double hydration=0.0, int electroporation=0, double sweat=0.0, double motion_per_min=0.0,
                 double electrode_mc_cm2=0.0, double half_cell_v=0.0, uint32_t substeps=0,
                 int pacing=PACING_DEVICE | PACING_LOCK_STEP, double clock_error_ppm=0.0,
                 str serial="VIRTUAL-0001", faults=(), int truth_fd=-1, state_path=None,
                 round_trip_path=None):
        cdef VirtualDeviceState* device = self.device
        cdef VirtualChannel* one
        cdef bytes header = (TRUTH_CHANNEL if channels > 1 else b"") + TRUTH_HEADER
        cdef bytes kept, spare
        cdef uint32_t c, of_channel
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
        check(0 < pacing <= PACING_DEVICE | PACING_HOST | PACING_LOCK_STEP, f"pacing {pacing}",
              "a sum of 1 (device), 2 (host) and 4 (lock-step)")
        check(serial.isascii() and serial.isprintable() and '"' not in serial and "\\" not in serial
              and 0 < len(serial) <= 15, f"serial {serial!r}", "1 to 15 plain characters")
        check(len(faults) <= FAULTS, f"{len(faults)} faults", f"at most {FAULTS}")
        if load is not None:
            series_ohm, parallel_ohm, capacitance_f = load
            check(series_ohm > 0.0 and parallel_ohm > 0.0 and capacitance_f > 0.0, f"load {load}", "positive")
        device.sample_period_ns = <uint32_t>(1e9 / sample_rate_hz + 0.5)
        device.pace_ns = <int64_t>(device.sample_period_ns * (1.0 + 1e-6 * clock_error_ppm) + 0.5)
        for c in range(channels):
            one = &device.channel[c]
            skin_named(&one.skin, skin_number(skin), seed + c, active_area_cm2, return_area_cm2)
            skin_scale_onset(&one.skin, onset_scale)
            skin_cpe(&one.skin, cpe_exponent,
                     one.skin.active.capacitance_f_cm2 * pow(CPE_RAD_S, 1.0 - cpe_exponent))
            skin_processes(&one.skin, hydration, electroporation, sweat, motion_per_min, electrode_mc_cm2)
            if load is not None:
                check(not (cpe_exponent or one.skin.processes.running), "a process of the skin", "not with a load")
                skin_linear(&one.skin, series_ohm, parallel_ohm, capacitance_f)
            one.skin.half_cell_v = half_cell_v
            frontend_start(&one.front_end,
                           FRONT_END_CURRENT_SOURCE if front_end == "current" else FRONT_END_VOLTAGE_SOURCE,
                           1e-9 * device.sample_period_ns, substeps, compliance_v, bandwidth_hz, dac_gain_error,
                           dac_offset_codes, noise_codes, hum_v, seed + c)
            frontend_hum(&one.front_end, hum_v, hum_hz)
            most_us = 0.5e6 * one.front_end.substep_s
            check(0.0 <= jitter_us <= most_us, f"jitter {jitter_us} us", f"0 to {most_us:g}, half a sub-step")
            one.front_end.jitter_s = 1e-6 * jitter_us
            skin_prepare(&one.skin, one.front_end.substep_s)
            if sentinel:
                frontend_wire_sentinel(&one.front_end)
            if c > 0:
                frontend_share_calibration(&one.front_end, &device.channel[0].front_end)
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
        for k, (kind, value, time_s, *channel) in enumerate(faults):
            of_channel = channel[0] if channel else 0
            check(of_channel < channels, f"fault {kind} of channel {of_channel}", f"0 to {channels - 1}")
            check(not channel or kind not in DEVICE_FAULTS, f"fault {kind} of channel {of_channel}",
                  "it is the whole device's, write it without a channel")
            check(kind in FAULT_KINDS, f"fault {kind!r}", "one of " + ", ".join(FAULT_KINDS))
            check(time_s >= previous, f"fault {kind} at {time_s} s", "not before the one ahead of it")
            value = fault_value(kind, value)
            previous = time_s
            device.faults[k].kind = <int32_t>FAULT_KINDS.index(kind)
            device.faults[k].value = value
            device.faults[k].time_s = time_s
            device.faults[k].channel = of_channel
        device.fault_count = <uint32_t>len(faults)
        # What it says before it is armed is wrong from the start.
        for k in range(<int>device.fault_count):
            if device.faults[k].time_s == 0.0 and device.faults[k].kind >= FAULT_CLOCK:
                inject(device, 0, device.faults[k].kind, device.faults[k].value)
        if state_path is not None:
            kept = str(state_path).encode()
            spare = kept + b".new"
            device.state_path = strdup(kept)
            device.state_spare_path = strdup(spare)
        if round_trip_path is not None:
            kept = str(round_trip_path).encode()
            spare = kept + b".new"
            device.round_trip = <RoundTrip*>calloc(1, sizeof(RoundTrip))
            if device.round_trip == NULL:
                raise MemoryError("round trips")
            device.round_trip.path = strdup(kept)
            device.round_trip.spare_path = strdup(spare)
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

    def recall(self, *, uint32_t token, uint8_t range, uint32_t samples, int64_t net_codes, int64_t absolute_codes,
               further_channels=()):
        """The last session of an earlier run, for the hello to report.

        further_channels: (net_codes, absolute_codes) of the channels from 1 on.
        """
        cdef uint32_t c
        check(len(further_channels) == self.device.channels - 1, f"{1 + len(further_channels)} channels to recall",
              f"{self.device.channels}")
        self.device.last_token = token
        self.device.last_range = range
        self.device.last_samples = samples
        self.device.channel[0].last_net_codes = net_codes
        self.device.channel[0].last_absolute_codes = absolute_codes
        for c, (net_codes, absolute_codes) in enumerate(further_channels, 1):
            self.device.channel[c].last_net_codes = net_codes
            self.device.channel[c].last_absolute_codes = absolute_codes

    def receive(self, bytes data):
        """Bytes from the host. In lock-step each complete frame is followed by one sample period; when the host paces,
        each command ends the periods that have passed since the last sample, at least one.
        """
        virtual_device_receive(self.device, <const uint8_t*><const char*>data, len(data))

    def transmit(self, size_t most=1 << 30):
        """Takes up to ``most`` of the bytes that wait for the host; the rest waits on."""
        cdef size_t length = self.device.transmit_length if self.device.transmit_length < most else most
        data = PyBytes_FromStringAndSize(<char*>self.device.transmit, length)
        sent(self.device, length)
        return data

    def advance(self, uint64_t periods=1):
        """Sample periods pass; nothing happens unless armed (or latched after arming). When the host paces: on the
        device's timer, without samples.
        """
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

    def channel(self, uint32_t number):
        """A `Channel`: what truly is on it, and the device's counts of it. IndexError if there is none."""
        if number >= self.device.channels:
            raise IndexError(f"channel {number}: the device has {self.device.channels}")
        cdef Channel found = Channel.__new__(Channel)
        found.device = self
        found.one = &self.device.channel[number]
        return found

    cdef void fault(self, uint32_t channel, int32_t kind, double value) except *:
        self.channel(channel)
        inject(self.device, channel, kind, value)

    def inject(self, str kind, value=0.0, channel=0):
        """A fault at once: one of FAULT_KINDS, its value as in FAULT_VALUES, or OFF to end it.

        ValueError: no such fault or channel, a value beyond its limits, or one that cannot be ended.
        """
        check(kind in FAULT_KINDS, f"fault {kind!r}", "one of " + ", ".join(FAULT_KINDS))
        self.fault(channel, <int32_t>FAULT_KINDS.index(kind), fault_value(kind, value))

    def open_lead(self, channel=0):
        """The active lead comes off: 1 Gohm in series."""
        self.fault(channel, FAULT_OPEN, 0.0)

    def close_lead(self, channel=0):
        """Leads as they were: neither open nor bridged."""
        self.fault(channel, FAULT_CLOSE, 0.0)

    def short_leads(self, channel=0):
        """20 ohm between the leads."""
        self.fault(channel, FAULT_SHORT, 0.0)

    def lift_pad(self, double share, channel=0):
        """The active pad keeps this share of its contact at the start, above 0 and at most 1."""
        check(0.0 < share <= 1.0, f"share {share}", "above 0 and at most 1")
        self.fault(channel, FAULT_AREA, share)

    def unplug(self):
        """The port closes."""
        self.fault(0, FAULT_UNPLUG, 0.0)

    def stall(self, double seconds):
        """Samples of the next seconds of device time are never sent."""
        self.fault(0, FAULT_STALL, seconds)

    def stick_output(self, channel=0):
        """The output converter keeps its value whatever is asked."""
        self.fault(channel, FAULT_STUCK, 0.0)

    @property
    def channels(self):
        """How many channels it has; what stands below of one channel is of channel 0."""
        return self.device.channels

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
        return self.channel(0).current_a

    @property
    def current_peak_a(self):
        """Largest true magnitude through the skin in the last period, A."""
        return self.channel(0).current_peak_a

    @property
    def charge_c(self):
        """True net charge through the skin since the device was made, C."""
        return self.channel(0).charge_c

    @property
    def absolute_charge_c(self):
        """True charge through the skin in either direction since the device was made, C."""
        return self.channel(0).absolute_charge_c

    @property
    def voltage_v(self):
        """True voltage at the pads at the end of the last period, V."""
        return self.channel(0).voltage_v

    @property
    def applied_code(self):
        """Output code in force."""
        return self.channel(0).applied_code

    @property
    def lease_ticks_left(self):
        """Sample periods left of the lease in force; 0: none."""
        return self.device.lease_left

    @property
    def relay_closed(self):
        """Whether the relay is closed."""
        return self.channel(0).relay_closed

    @property
    def contact_fraction(self):
        """Wetted share of the active pad."""
        return self.channel(0).contact_fraction

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
        return self.channel(0).net_codes

    @property
    def absolute_codes(self):
        """The device's own absolute charge count of that session, 1/65536 code."""
        return self.channel(0).absolute_codes

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
        """errno of failed writes of (truth, state, round trips); 0: none."""
        cdef int32_t round_trip = 0 if self.device.round_trip == NULL else self.device.round_trip.error
        return self.device.truth_error, self.device.state_error, round_trip


cdef double fault_value(str kind, double value) except *:
    """What `inject` takes, of a value within its limits or OFF."""
    if value == OFF:
        check(kind in FAULT_OFF, f"end of fault {kind}", "one of " + ", ".join(FAULT_OFF))
        return FAULT_OFF[kind]
    if kind in FAULT_VALUES:
        what, least, most = FAULT_VALUES[kind]
        check(least <= value <= most, f"fault {kind} of {value} {what}", f"{least:g} to {most:g}")
    return value


def check(bint good, str what, str allowed):
    """ValueError that names what and what is allowed, unless good."""
    if not good:
        raise ValueError(f"{what} is out of range: {allowed}")
