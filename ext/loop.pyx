"""The loop: waits for the device, ticks every channel, answers.

One thread per device runs `loop_run` without the GIL. It allocates nothing, opens nothing and blocks only on the
device. Python reaches it through rings, a sticky stop flag, and the two cells of the heartbeat, challenge and answer.
On a virtual clock Python calls it for a bounded number of ticks and drains the rings before the next call, so that none
is ever lost.

A deadline is missed when an answer is written after the next sample was due. A device that paces itself goes on
meanwhile: its samples queue, each is ticked in order, and one command answers the newest. Where the host paces, the
instants that have passed, or come less than half a period from then, are skipped: a whole number of periods, and the
phase of the rest stays.
"""
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.errno cimport EINTR, EINVAL, ETIMEDOUT, errno
from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_RDWR, open as c_open
from posix.time cimport CLOCK_MONOTONIC, timespec
from posix.unistd cimport close as c_close, dup2

import numpy as np

from ionto_rt.core.black_box cimport (
    BOX_COMMANDS, BOX_RECEIVED, BOX_SAMPLES, BOX_SENT, BlackBox, BoxEntry, box_add, box_close, box_first, box_load,
    box_load_u64, box_open, box_pin, box_store,
)
from ionto_rt.core.clock cimport clock_now_ns, histogram_add, histogram_percentile, lateness_us
from ionto_rt.core.controller cimport ControllerState, controller_tick
from ionto_rt.core.guard cimport heartbeat_answer
from ionto_rt.core.host_thread cimport STACK_BYTES, ThreadUsage, thread_touch_stack, thread_usage
from ionto_rt.core.port cimport port_close_reading, port_open_reading, port_read, port_write
from ionto_rt.core.ring cimport (
    Ring, ring_close, ring_commit, ring_newest, ring_open, ring_push, ring_slot, ring_take,
)
from ionto_rt.core.types cimport (
    ALL_CHANNELS, DAQ_VERSION, END_COMPLETE, END_NONE, END_OPERATOR, EVENT_TRIP, LOOP_SEQUENCE, MAX_CHANNELS,
    ON_TRIP_CONTINUE,
    ON_TRIP_PAUSE, OPERATOR_NONE, OPERATOR_PAUSE, OPERATOR_RESUME, OPERATOR_STOP, PACING_HOST, PORT_VERSION,
    SAMPLE_GOOD, STOP_RAMP_DOWN, TRIP_NONE,
    Command, Daq, Port, Sample, Tick, TickInput,
)
from ionto_rt.core.wire cimport (
    FRAME_ERROR, FRAME_SAMPLE, MAX_FRAME, MAX_PAYLOAD, wire_encode, wire_get_sample, wire_get_sentinel,
    wire_put_command, wire_receive,
)

from ionto_rt.core.clock import LatencyHistogram
from ionto_rt.core.controller import empty_ticks

cdef extern from "time.h" nogil:
    int TIMER_ABSTIME
    int clock_nanosleep(int clock, int flags, const timespec* until, timespec* left)

cdef extern from "sys/mman.h" nogil:
    int mlock(const void* address, size_t length)

cdef extern from *:
    """
    static inline int32_t load_i32(const int32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline uint64_t load_u64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline uint32_t load_u32(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void store_u32(uint32_t *at, uint32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    static inline void store_i32(int32_t *at, int32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    static inline void raise_i32(int32_t *at, int32_t value) {
        int32_t seen = __atomic_load_n(at, __ATOMIC_ACQUIRE);
        while (seen < value
               && !__atomic_compare_exchange_n(at, &seen, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) { }
    }
    /* Writes each page without changing it, so that none faults later. */
    static void touch(void *memory, size_t length) {
        for (size_t at = 0; at < length; at += 4096)
            __atomic_fetch_add((uint8_t *)memory + at, 0, __ATOMIC_RELAXED);
        if (length)
            __atomic_fetch_add((uint8_t *)memory + length - 1, 0, __ATOMIC_RELAXED);
    }
    """
    int32_t load_i32(const int32_t* at) nogil
    uint64_t load_u64(const uint64_t* at) nogil
    uint32_t load_u32(const uint32_t* at) nogil
    void store_u32(uint32_t* at, uint32_t value) nogil
    void store_i32(int32_t* at, int32_t value) nogil
    void raise_i32(int32_t* at, int32_t value) nogil
    void touch(void* memory, size_t length) nogil


cdef inline int64_t max_i64(int64_t a, int64_t b) noexcept nogil:
    return a if a > b else b


cdef inline uint64_t timed_ns(const LoopState* loop) noexcept nogil:
    """Now; 0 on a virtual clock, where nothing is timed."""
    return 0 if loop.virtual_clock else clock_now_ns()


cdef inline uint32_t newer(uint32_t a, uint32_t b) noexcept nogil:
    return a if <int32_t>(a - b) > 0 else b


cdef void take_requests(LoopState* loop, OperatorRequest* requests) noexcept nogil:
    """At most one command of the operator for each channel in each sample period. A stop or a pause waits behind no
    other; the queue then waits for the next period. What was resumed before it was paused stays paused.
    """
    cdef OperatorRequest request
    cdef uint32_t channel, asked
    cdef bint waits = False
    memset(requests, 0, loop.channels * sizeof(OperatorRequest))
    for channel in range(loop.channels):
        asked = newer(load_u32(&loop.stop_asked[channel]), load_u32(&loop.stop_all_asked))
        if asked != loop.stop_given[channel]:
            loop.stop_given[channel] = asked
            requests[channel].command = OPERATOR_STOP
        else:
            asked = newer(load_u32(&loop.pause_asked[channel]), load_u32(&loop.pause_all_asked))
            if asked == loop.pause_given[channel]:
                continue
            loop.pause_given[channel] = asked
            requests[channel].command = OPERATOR_PAUSE
        requests[channel].sequence = asked
        waits = True
    if waits:
        return
    memset(&request, 0, sizeof(request))
    if not ring_take(&loop.operators, &request, 1):
        return
    for channel in range(loop.channels):
        if request.channel != ALL_CHANNELS and request.channel != channel:
            continue
        if request.command == OPERATOR_RESUME and <int32_t>(loop.pause_given[channel] - request.sequence) > 0:
            continue
        requests[channel] = request


cdef void ask_others(LoopState* loop, uint32_t faulted) noexcept nogil:
    """One channel has ended short by itself: what the treatment wants of those that go on. Where their current flows
    through it (H42) they stop in any case.
    """
    cdef uint32_t channel
    cdef bint foreign = loop.controllers[faulted].guard.foreign != 0
    if loop.on_trip == ON_TRIP_CONTINUE and not foreign:
        return
    for channel in range(loop.channels):
        if channel == faulted or loop.faulted[channel] or loop.over[channel]:
            continue
        if loop.on_trip == ON_TRIP_PAUSE and not foreign:
            loop.others_pause[channel] = 1
        else:
            loop.others_stop[channel] = 1


cdef inline bint has_room(const Ring* ring) noexcept nogil:
    return ring.head - load_u64(&ring.tail) < ring.capacity


cdef void tick_period(LoopState* loop, const Sample* samples, uint64_t now_ns) noexcept nogil:
    """One sample period: the tick of every channel, in order; what one asks of the others acts in the next period."""
    cdef TickInput given
    cdef OperatorRequest requests[32]
    cdef Tick* row
    cdef uint64_t age_us
    cdef uint32_t channel, ended = 0
    cdef int32_t stop = load_i32(&loop.stop)
    cdef uint8_t fallen[32]
    memset(&given, 0, sizeof(given))
    memset(fallen, 0, sizeof(fallen))
    given.host_time_us = loop.virtual_host_us if loop.virtual_clock else (now_ns - loop.started_ns) // 1000 + 1
    if given.host_time_us:
        if loop.pacing == PACING_HOST:
            age_us = loop.timing.phase_ns[LOOP_PHASE_WAIT] // 1000
            given.host_late_us = <uint32_t>age_us if age_us >> 32 == 0 else ~<uint32_t>0
        else:
            given.host_late_us = lateness_us(&loop.lateness, samples[0].device_time_us, given.host_time_us)
        if given.host_late_us > loop.worst_late_us:
            loop.worst_late_us = given.host_late_us
        if <uint64_t>given.host_late_us * 1000 > loop.period_ns:
            loop.late += 1
        loop.batch_age_ns[loop.batch] = <int64_t>given.host_late_us * 1000 - <int64_t>now_ns
    given.heartbeat = load_u32(&loop.heartbeat)
    take_requests(loop, requests)
    for channel in range(loop.channels):
        given.sample = samples[channel]
        given.channel = <uint8_t>channel
        given.stop = stop
        if loop.others_stop[channel] and stop < STOP_RAMP_DOWN:
            given.stop = STOP_RAMP_DOWN
        given.operator_sequence = requests[channel].sequence
        given.operator_command = requests[channel].command
        given.operator_value_a = requests[channel].value_a
        if given.operator_sequence == 0 and loop.others_pause[channel]:
            loop.others_pause[channel] = 0
            loop.loop_sequence += 1
            given.operator_sequence = <uint32_t>LOOP_SEQUENCE | loop.loop_sequence
            given.operator_command = OPERATOR_PAUSE
        row = <Tick*>ring_slot(&loop.telemetry)
        if row == NULL:
            row = &loop.spare
        controller_tick(loop.controllers[channel], &given, row, &loop.commands[channel])
        if row.sample_fault != SAMPLE_GOOD:
            loop.bad_samples += 1
        if row.end_reason and not row.close_relay:
            ended += 1
        if not loop.faulted[channel] and (row.trip != TRIP_NONE or (
                row.end_reason != END_NONE and row.end_reason != END_COMPLETE and row.end_reason != END_OPERATOR)):
            fallen[channel] = 1
            loop.faulted[channel] = 1
        if loop.controllers[channel].guard.foreign:
            fallen[channel] = 1
        if row.end_reason != END_NONE:
            loop.over[channel] = 1
        if channel == 0:
            loop.lost += row.lost_ticks
        if row.events:
            if row.events & EVENT_TRIP:
                box_pin(&loop.box, loop.ticks)
        # After one that found no room the next row says what has become of it, whether anything changed in it or not.
        if row.events or (loop.owed[channel] and has_room(&loop.events)):
            loop.owed[channel] = not ring_push(&loop.events, row)
            if loop.owed[channel]:
                loop.missed[channel] = row[0]
        if row != &loop.spare:
            ring_commit(&loop.telemetry)
    for channel in range(loop.channels):
        if fallen[channel]:
            ask_others(loop, channel)
    # Of all channels the same: they share token, inputs and ticks.
    store_u32(&loop.challenge, loop.controllers[0].guard.challenge)
    if ended == loop.channels:
        loop.ending += 1
    loop.ticks += 1
    loop.timing.index = samples[0].index
    if loop.batch + 1 < BATCH_PERIODS:
        loop.batch += 1


cdef void note_timing(LoopState* loop) noexcept nogil:
    """The answer in work is done: whether it was the slowest, and, had it missed its deadline, by which phase."""
    cdef uint64_t total = 0, worst = 0
    cdef int phase, slowest = 0
    for phase in range(LOOP_PHASES):
        total += loop.timing.phase_ns[phase]
        worst += loop.worst.phase_ns[phase]
        if loop.timing.phase_ns[phase] > loop.timing.phase_ns[slowest]:
            slowest = phase
    if total > worst:
        loop.worst = loop.timing
    if total > loop.period_ns:
        loop.deadlines_missed += 1
        loop.missed_by_phase[slowest] += 1


cdef void send_commands(LoopState* loop) noexcept nogil:
    """One command for each channel of the device, in one write. The times of both phases go into loop.timing."""
    cdef uint8_t payload[MAX_PAYLOAD]
    cdef uint8_t frame[MAX_FRAME]
    cdef size_t length
    cdef int64_t written
    cdef uint32_t channel
    cdef uint64_t began_ns = timed_ns(loop), encoded_ns
    for channel in range(loop.channels, loop.device_channels):
        loop.commands[channel] = loop.commands[0]
        loop.commands[channel].code = 0
        loop.commands[channel].flags = 0
    if loop.daq.send != NULL:
        encoded_ns = began_ns
        written = loop.daq.send(loop.daq.context, loop.commands)
        box_add(&loop.box, BOX_COMMANDS, loop.commands, loop.device_channels * sizeof(Command), <int32_t>written,
                encoded_ns, loop.ticks)
    else:
        length = wire_put_command(loop.commands, loop.device_channels, payload)
        length = wire_encode(payload, length, frame)
        encoded_ns = timed_ns(loop)
        written = loop.port.write(loop.port.context, frame, length)
        box_add(&loop.box, BOX_SENT, frame, length, <int32_t>written, encoded_ns, loop.ticks)
    loop.timing.phase_ns[LOOP_PHASE_ENCODE] = encoded_ns - began_ns
    loop.timing.phase_ns[LOOP_PHASE_WRITE] = timed_ns(loop) - encoded_ns
    if written < 0 and written != -ETIMEDOUT:
        loop.error = <int32_t>-written
        store_i32(&loop.status, LOOP_DEVICE_LOST)
        return
    loop.sent += 1


cdef void close_answer(LoopState* loop, uint64_t read_ns) noexcept nogil:
    """After the write of a device-paced loop: how long it took, and how old each sample had become."""
    cdef uint64_t done_ns, took_ns
    cdef int64_t age_ns
    cdef uint32_t k
    if not loop.virtual_clock:
        done_ns = clock_now_ns()
        took_ns = done_ns - read_ns
        histogram_add(&loop.answer, took_ns)
        for k in range(loop.batch):
            age_ns = loop.batch_age_ns[k] + <int64_t>done_ns
            histogram_add(&loop.age, <uint64_t>age_ns if age_ns > 0 else 0)
        note_timing(loop)
    loop.batch = 0


cdef bint next_frame(LoopState* loop) noexcept nogil:
    """Decodes bytes that are there up to the next sample: True, and it lies in loop.samples."""
    cdef uint8_t payload[MAX_PAYLOAD + 4]
    cdef uint32_t channels
    cdef size_t length
    while loop.parsed < loop.pending:
        loop.parsed += <uint32_t>wire_receive(
            &loop.receiver, loop.bytes + loop.parsed, loop.pending - loop.parsed, payload, &length
        )
        if length == 0:
            continue
        if payload[0] == FRAME_SAMPLE:
            if not wire_get_sample(payload, length, loop.samples, &channels):
                continue
            if channels != loop.device_channels:
                loop.foreign += 1
                continue
            if (loop.controllers[0].config.calibration.sentinel_lsb_v > 0.0
                    and not wire_get_sentinel(payload, length, loop.samples, channels)):
                continue
            return True
        if payload[0] == FRAME_ERROR and length >= 2:
            loop.device_errors += 1
            loop.last_error_code = payload[1]
    return False


cdef bint queued(LoopState* loop, uint64_t read_ns) noexcept nogil:
    """The next sample period out of what was read at read_ns; loop.samples_at says where."""
    if loop.daq.receive == NULL:
        loop.samples_at = 0
        return next_frame(loop)
    if loop.parsed == loop.pending:
        return False
    loop.samples_at = loop.parsed * loop.device_channels
    loop.parsed += 1
    box_add(&loop.box, BOX_SAMPLES, loop.samples + loop.samples_at, loop.device_channels * sizeof(Sample),
            <int32_t>loop.device_channels, read_ns, loop.ticks)
    return True


cdef bint await_samples(LoopState* loop, uint64_t* read_ns) noexcept nogil:
    """Waits once for the device. False: no sample yet, or the device is gone, which loop.status says.

    *read_ns is when the read came back; 0 on a virtual clock.
    """
    cdef int64_t count
    cdef uint64_t now_ns
    if loop.parsed == loop.pending:
        if loop.daq.receive != NULL:
            count = loop.daq.receive(loop.daq.context, loop.samples, loop.batch_most, 20000)
            if count > loop.batch_most:
                count = -EINVAL
        else:
            count = loop.port.read(loop.port.context, loop.bytes, READ_BYTES, 20000)
        if count < 0:
            loop.error = <int32_t>-count
            store_i32(&loop.status, LOOP_DEVICE_LOST)
            return False
        loop.pending = <uint32_t>count
        loop.parsed = 0
        read_ns[0] = timed_ns(loop)
        if count > 0 and loop.daq.receive == NULL:
            box_add(&loop.box, BOX_RECEIVED, loop.bytes, <size_t>count, <int32_t>count, read_ns[0], loop.ticks)
    else:
        read_ns[0] = timed_ns(loop)
    if queued(loop, read_ns[0]):
        loop.silent_since_ns = 0
        return True
    now_ns = clock_now_ns()
    if loop.silent_since_ns == 0:
        loop.silent_since_ns = now_ns
    elif now_ns - loop.silent_since_ns > loop.silence_us * 1000:
        store_i32(&loop.status, LOOP_DEVICE_SILENT)
    return False


cdef void run_device_paced(LoopState* loop, uint64_t last) noexcept nogil:
    cdef uint64_t read_ns, from_ns, decoded_ns
    cdef bint more
    while loop.status == LOOP_RUNNING and loop.ticks < last:
        if not await_samples(loop, &read_ns):
            continue
        memset(&loop.timing, 0, sizeof(loop.timing))
        from_ns = read_ns
        more = True
        # Every queued sample is ticked in order; only the last output is sent.
        while more:
            decoded_ns = timed_ns(loop)
            tick_period(loop, loop.samples + loop.samples_at, decoded_ns)
            if not loop.virtual_clock:
                if loop.batch == 1:
                    # How old the first sample was before anything was done about it.
                    loop.timing.phase_ns[LOOP_PHASE_WAIT] = <uint64_t>max_i64(
                        loop.batch_age_ns[0] + <int64_t>read_ns, 0
                    )
                loop.timing.phase_ns[LOOP_PHASE_DECODE] += decoded_ns - from_ns
                from_ns = clock_now_ns()
                loop.timing.phase_ns[LOOP_PHASE_TICK] += from_ns - decoded_ns
            more = loop.ticks < last and queued(loop, read_ns)
        send_commands(loop)
        close_answer(loop, read_ns)
        if loop.status == LOOP_RUNNING and loop.ending > ENDING_TICKS:
            store_i32(&loop.status, LOOP_ENDED)


cdef void sleep_until(uint64_t until_ns) noexcept nogil:
    cdef timespec until
    until.tv_sec = <long>(until_ns // 1000000000)
    until.tv_nsec = <long>(until_ns % 1000000000)
    while clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR:
        pass


cdef void run_host_paced(LoopState* loop, uint64_t last) noexcept nogil:
    """A command at each planned instant, and the sample that answers it. The first sample comes with arming."""
    cdef uint64_t now_ns, late_ns, skipped, read_ns, wrote_ns, decoded_ns
    while loop.status == LOOP_RUNNING and loop.ticks < last:
        if loop.planned_ns:
            sleep_until(loop.planned_ns)
            now_ns = clock_now_ns()
            late_ns = now_ns - loop.planned_ns if now_ns > loop.planned_ns else 0
            histogram_add(&loop.wake_up, late_ns)
            # Nor is an instant met that comes less than half a period from here: two commands in quick succession would
            # be two periods to a device that counts at least one for each.
            skipped = (late_ns + loop.period_ns // 2) // loop.period_ns
            loop.skipped_periods += skipped
            loop.planned_ns += (skipped + 1) * loop.period_ns
            memset(&loop.timing, 0, sizeof(loop.timing))
            send_commands(loop)
            if loop.ending > ENDING_TICKS and loop.status == LOOP_RUNNING:
                store_i32(&loop.status, LOOP_ENDED)
                break
        else:
            late_ns = 0
        wrote_ns = clock_now_ns()
        while loop.status == LOOP_RUNNING and not await_samples(loop, &read_ns):
            pass
        if loop.status != LOOP_RUNNING:
            break
        if loop.planned_ns == 0:
            loop.planned_ns = read_ns + loop.period_ns
        loop.timing.phase_ns[LOOP_PHASE_WAIT] = late_ns + (read_ns - wrote_ns)
        decoded_ns = clock_now_ns()
        loop.timing.phase_ns[LOOP_PHASE_DECODE] = decoded_ns - read_ns
        tick_period(loop, loop.samples + loop.samples_at, decoded_ns)
        now_ns = clock_now_ns()
        loop.timing.phase_ns[LOOP_PHASE_TICK] = now_ns - decoded_ns
        histogram_add(&loop.answer, now_ns - read_ns)
        note_timing(loop)
        loop.batch = 0


cdef int loop_run(LoopState* loop, uint64_t ticks) noexcept nogil:
    cdef ThreadUsage before, after
    if not loop.virtual_clock:
        thread_touch_stack(STACK_BYTES)
    thread_usage(&before)
    if loop.started_ns == 0:
        loop.started_ns = clock_now_ns()
    if loop.pacing == PACING_HOST and not loop.virtual_clock:
        run_host_paced(loop, loop.ticks + ticks)
    else:
        run_device_paced(loop, loop.ticks + ticks)
    thread_usage(&after)
    loop.processor_ns += after.processor_ns - before.processor_ns
    loop.minor_faults += after.minor_faults - before.minor_faults
    loop.major_faults += after.major_faults - before.major_faults
    loop.voluntary_switches += after.voluntary_switches - before.voluntary_switches
    loop.involuntary_switches += after.involuntary_switches - before.involuntary_switches
    return loop.status


cdef taken(Ring* ring, Py_ssize_t most):
    """Rows that are ready, at most `most`. As bytes they go into the array: numpy describes a struct slowly."""
    cdef uint64_t ready = load_u64(&ring.head) - ring.tail
    cdef uint8_t[::1] memory
    rows = empty_ticks(most if ready > <uint64_t>most else <Py_ssize_t>ready)
    if len(rows):
        memory = rows.view(np.uint8)
        ring_take(ring, &memory[0], len(rows))
    return rows


cdef histogram_of(const Histogram* histogram):
    found = LatencyHistogram()
    memcpy(PyCapsule_GetPointer(found.capsule, b"ionto_rt.core.Histogram"), histogram, sizeof(Histogram))
    return found


cdef int lock_code() except -1:
    """Locks what the loop's code is mapped from: the core's modules and the C library. 0, or errno of the first no."""
    cdef int failed = 0
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            parts = line.split(maxsplit=5)
            if len(parts) < 6 or not parts[1].startswith("r"):
                continue
            path = parts[5]
            if "/ionto_rt/core/" not in path and "/libc.so" not in path and "/libc-" not in path:
                continue
            start, end = (int(text, 16) for text in parts[0].split("-"))
            if mlock(<void*><uintptr_t>start, end - start) and not failed:
                failed = errno
    return failed


cdef struct BoxHead:
    uint64_t host_ns
    uint64_t tick
    uint32_t length
    int32_t outcome
    int32_t kind
    int32_t unused


cdef enum:
    # The longest frames of a sample and of a command together, of one channel and for each further one.
    MOST_FRAMES_OF_ONE = 72
    MOST_FRAMES_OF_FURTHER = 48

BLACK_BOX_S = 2.0
# An orchestrator that stands still for longer has lost its heartbeat: so many rows have room, each with an event.
EVENTS_S = 2.5
LEAST_EVENTS = 1024
PHASES = ("wait", "decode", "tick", "encode", "write")
STATUSES = ("running", "ended", "silent", "lost", "refused")


cdef class Loop:
    """The loop of one device.

    `controllers` is a `Controller`, or a list of one for each channel; `port` a file descriptor (int, owned by the
    loop while it runs), a PyCapsule "ionto_rt.core.types.Port" (bytes) or a PyCapsule "ionto_rt.core.types.Daq"
    (samples and commands; both must outlive the loop). `virtual_clock` leaves host time out of the tick (lock-step).
    `ring_rows` is the room for telemetry; `silence_s` how long the device may say nothing. `pacing` is a Pacing,
    `on_trip` an OnTrip. `device_channels` is how many channels the device has, if more than are driven: the others
    stay at zero. ValueError if these do not fit; OSError if the rings cannot be mapped.
    """
    cdef LoopState* state
    cdef object controllers
    cdef object port
    cdef uint32_t sequence

    def __cinit__(self):
        self.state = <LoopState*>calloc(1, sizeof(LoopState))
        if self.state == NULL:
            raise MemoryError
        self.state.descriptor.fd = -1
        self.state.descriptor.reading = -1

    def __dealloc__(self):
        if self.state != NULL:
            port_close_reading(&self.state.descriptor)
            ring_close(&self.state.telemetry)
            ring_close(&self.state.events)
            ring_close(&self.state.operators)
            box_close(&self.state.box)
            free(self.state)

    def __init__(self, controllers, port, *, bint virtual_clock, uint64_t ring_rows=16384, double silence_s=0.5,
                 int32_t pacing=1, int32_t on_trip=0, uint32_t device_channels=0):
        cdef int failed
        cdef uint32_t channel
        cdef uint64_t events
        self.controllers = list(controllers) if isinstance(controllers, (list, tuple)) else [controllers]
        if ring_rows < 2:
            raise ValueError(f"ring_rows = {ring_rows}: must be at least 2")
        if not 1 <= len(self.controllers) <= MAX_CHANNELS:
            raise ValueError(f"{len(self.controllers)} controllers: must be 1 to {MAX_CHANNELS}")
        self.state.channels = <uint32_t>len(self.controllers)
        self.state.device_channels = device_channels or self.state.channels
        if not self.state.channels <= self.state.device_channels <= MAX_CHANNELS:
            raise ValueError(f"device_channels = {device_channels}: must be {self.state.channels} to {MAX_CHANNELS}")
        self.port = port
        for channel in range(self.state.channels):
            capsule = self.controllers[channel].capsule
            self.state.controllers[channel] = <ControllerState*>PyCapsule_GetPointer(
                capsule, b"ionto_rt.core.ControllerState"
            )
        self.state.challenge = self.state.controllers[0].guard.challenge
        self.attach(port)
        self.state.virtual_clock = virtual_clock
        self.state.pacing = pacing
        self.state.on_trip = on_trip
        if self.state.daq.receive != NULL and not virtual_clock and self.state.daq.pacing != <uint32_t>pacing:
            raise ValueError(f"the device has pacing {self.state.daq.pacing}, the loop {pacing}")
        self.state.silence_us = <uint64_t>(silence_s * 1e6)
        self.state.period_ns = <uint64_t>(self.state.controllers[0].config.calibration.tick_s * 1e9 + 0.5)
        events = <uint64_t>(EVENTS_S / self.state.controllers[0].config.calibration.tick_s + 0.5)
        if events < <uint64_t>LEAST_EVENTS:
            events = <uint64_t>LEAST_EVENTS
        self.state.batch_most = min(<uint32_t>BATCH_PERIODS, <uint32_t>SAMPLES // self.state.device_channels)
        for failed in (
            ring_open(&self.state.telemetry, sizeof(Tick), ring_rows),
            ring_open(&self.state.events, sizeof(Tick), self.state.channels * events),
            ring_open(&self.state.operators, sizeof(OperatorRequest), OPERATOR_QUEUE),
            self.open_box(),
        ):
            if failed:
                raise OSError(-failed, os.strerror(-failed))

    cdef int open_box(self) noexcept:
        cdef uint64_t channels = self.state.device_channels
        cdef uint64_t window = <uint64_t>(BLACK_BOX_S / self.state.controllers[0].config.calibration.tick_s + 0.5)
        cdef uint64_t of_frames = MOST_FRAMES_OF_ONE + MOST_FRAMES_OF_FURTHER * (channels - 1)
        cdef uint64_t of_structs = channels * (sizeof(Sample) + sizeof(Command))
        return box_open(&self.state.box, window, of_frames if self.state.daq.receive == NULL else of_structs)

    cdef int attach(self, port) except -1:
        cdef Port* given
        cdef Daq* daq
        if isinstance(port, int):
            self.state.descriptor.fd = port
            self.state.port.version = PORT_VERSION
            self.state.port.size = sizeof(Port)
            self.state.port.context = &self.state.descriptor
            self.state.port.read = port_read
            self.state.port.write = port_write
        elif PyCapsule_IsValid(port, b"ionto_rt.core.types.Daq"):
            daq = <Daq*>PyCapsule_GetPointer(port, b"ionto_rt.core.types.Daq")
            if daq.version != DAQ_VERSION or daq.size < sizeof(Daq) or daq.receive == NULL or daq.send == NULL:
                raise ValueError(f"device interface of version {daq.version}: this loop needs {DAQ_VERSION}")
            if daq.channels != self.state.device_channels:
                raise ValueError(f"the device has {daq.channels} channels, the loop {self.state.device_channels}")
            self.state.daq = daq[0]
        else:
            given = <Port*>PyCapsule_GetPointer(port, b"ionto_rt.core.types.Port")
            if given.version != PORT_VERSION or given.size < sizeof(Port):
                raise ValueError(f"port version {given.version}: this loop needs {PORT_VERSION}")
            self.state.port = given[0]
        return 0

    def lock_memory(self) -> str:
        """Lock rings, states and the loop's code into memory: "locked", or why not. Never required."""
        cdef int failed = 0
        cdef uint32_t channel
        cdef BlackBox* box = &self.state.box
        if (mlock(box.entries, box.capacity * sizeof(BoxEntry)) or mlock(box.bytes, box.room)
                or mlock(self.state.telemetry.rows, self.state.telemetry.row_bytes * self.state.telemetry.capacity)
                or mlock(self.state.events.rows, self.state.events.row_bytes * self.state.events.capacity)):
            failed = errno
        for channel in range(self.state.channels):
            touch(self.state.controllers[channel], sizeof(ControllerState))
            if mlock(self.state.controllers[channel], sizeof(ControllerState)):
                failed = errno
        touch(self.state, sizeof(LoopState))
        if mlock(self.state, sizeof(LoopState)):
            failed = errno
        failed = failed or lock_code()
        return "locked" if not failed else f"not locked: {os.strerror(failed)}"

    def run(self, uint64_t ticks=1 << 62) -> str:
        """Tick until every programme has ended, the device fails or `ticks` sample periods are done.

        Returns running, ended, silent or lost.
        """
        cdef int status
        with nogil:
            # Open only while it is used: a device must see its host go.
            if self.state.descriptor.fd >= 0 and not self.state.abandoned:
                port_open_reading(&self.state.descriptor)
            if self.state.abandoned:
                store_i32(&self.state.status, LOOP_DEVICE_LOST)
            status = loop_run(self.state, ticks)
            port_close_reading(&self.state.descriptor)
        return STATUSES[status]

    def abandon(self):
        """In a forked child: whatever it has of the device's port leads nowhere, and its copy of the loop is dead."""
        cdef int nowhere
        self.state.abandoned = 1
        store_i32(&self.state.status, LOOP_DEVICE_LOST)
        port_close_reading(&self.state.descriptor)
        if self.state.descriptor.fd >= 0:
            nowhere = c_open("/dev/null", O_RDWR)
            if nowhere >= 0:
                dup2(nowhere, self.state.descriptor.fd)
                c_close(nowhere)

    @property
    def black_box(self) -> dict | None:
        """Of the first trip since `take_black_box`: its tick (sample periods ticked before it), and whether the rings
        are full of what came after it. None without one.
        """
        cdef BlackBox* box = &self.state.box
        if not box_load(&box.pinned):
            return None
        return {"trip_tick": box.trip_tick, "full": box_load_u64(&box.left_out) > 0}

    def take_black_box(self) -> dict:
        """All that went over the port from 2 s before the first trip on, which is then let go; what of it found no room
        is counted in `left_out`.

        Without a trip the last 2 s; then the loop must not run. `records` are bytes, each a BoxHead (host_ns, tick,
        length, outcome, kind; docs/black-box.md) and its data.
        """
        cdef BlackBox* box = &self.state.box
        cdef bint pinned = box_load(&box.pinned)
        cdef uint64_t head = box_load_u64(&box.head), first, number, size = 0
        cdef BoxEntry* entry
        cdef BoxHead kept
        cdef uint8_t* at
        first = box.pinned_from if pinned else box_first(box, self.state.ticks)
        for number in range(first, head):
            size += sizeof(BoxHead) + box.entries[number & (box.capacity - 1)].length
        records = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        at = <uint8_t*>PyBytes_AS_STRING(records)
        with nogil:
            for number in range(first, head):
                entry = box.entries + (number & (box.capacity - 1))
                kept.host_ns = entry.host_ns - self.state.started_ns if entry.host_ns else 0
                kept.tick = entry.tick
                kept.length = entry.length
                kept.outcome = entry.outcome
                kept.kind = entry.kind
                kept.unused = 0
                memcpy(at, &kept, sizeof(BoxHead))
                memcpy(at + sizeof(BoxHead), box.bytes + (entry.at & (box.room - 1)), entry.length)
                at += sizeof(BoxHead) + entry.length
        found = {
            "trip_tick": box.trip_tick if pinned else None, "entries": head - first,
            "left_out": box_load_u64(&box.left_out) if pinned else 0, "window_ticks": box.window_ticks,
            "records": records,
        }
        if pinned:
            box_store(&box.pinned, 0)
        return found

    @property
    def status(self) -> str:
        """As `run` returns it, readable while the loop runs in another thread."""
        return STATUSES[load_i32(&self.state.status)]

    @property
    def error(self) -> str:
        """What the port said when it failed; empty if it did not."""
        return os.strerror(self.state.error) if self.state.error else ""

    @property
    def channels(self) -> int:
        """How many channels are driven."""
        return self.state.channels

    def drain(self, Py_ssize_t most=4096):
        """Rows of telemetry that are ready, oldest first, at most `most`: a structured array of shape (n,)."""
        return taken(&self.state.telemetry, most)

    def drain_events(self):
        """Rows in which something changed (`events` not 0), as `drain`; they have a ring of their own.

        Of rows that found it full (`events_dropped` in `counters`) the channel's next row comes instead, whatever its
        events, so that no state is missed; once the loop is over, the last of them itself.
        """
        cdef bint over = load_i32(&self.state.status) != LOOP_RUNNING
        cdef uint8_t[::1] memory
        cdef uint32_t channel
        rows = [taken(&self.state.events, self.state.events.capacity)]
        for channel in range(self.state.channels):
            if over and self.state.owed[channel]:
                self.state.owed[channel] = 0
                row = empty_ticks(1)
                memory = row.view(np.uint8)
                memcpy(&memory[0], &self.state.missed[channel], sizeof(Tick))
                rows.append(row)
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def newest(self):
        """The newest row of each channel that has one, for a screen: shape (channels,) at most; takes nothing away."""
        cdef uint8_t[::1] memory
        rows = empty_ticks(self.state.channels)
        memory = rows.view(np.uint8)
        return rows[:ring_newest(&self.state.telemetry, &memory[0], len(rows))]

    def beat(self):
        """Read the challenge and answer it. See `answer`; for those whose work between both is done elsewhere."""
        store_u32(&self.state.heartbeat, heartbeat_answer(load_u32(&self.state.challenge)))

    @property
    def challenge(self) -> int:
        """What the next heartbeat must answer."""
        return load_u32(&self.state.challenge)

    def answer(self, uint32_t value):
        """Renew the heartbeat: `ionto_rt.heartbeat.answer_of` the challenge that was read before the work was done.

        Without one for 2 s of ticks the guard ramps down; by a wrong one it switches off at once. One thread answers.
        """
        store_u32(&self.state.heartbeat, value)

    def operator(self, int32_t command, double value_a=0.0, int channel=ALL_CHANNELS) -> int:
        """Queue an OperatorCommand for the next free tick of one channel, or of all: its number, or 0: no room.

        A pause and a stop wait behind nothing, and always have room; a resume that was queued before a pause no longer
        counts. ValueError: no such command or channel, or a value that is not finite.
        """
        cdef OperatorRequest request
        if not <int32_t>OPERATOR_NONE < command <= <int32_t>OPERATOR_STOP:
            raise ValueError(f"operator's command {command}: must be {OPERATOR_NONE + 1} to {OPERATOR_STOP}")
        if not isfinite(value_a):
            raise ValueError(f"operator's value {value_a} A: must be finite")
        if channel != ALL_CHANNELS and not 0 <= channel < <int>self.state.channels:
            raise ValueError(f"channel {channel}: must be 0 to {self.state.channels - 1}")
        self.sequence += 1
        memset(&request, 0, sizeof(request))
        request.sequence = self.sequence
        request.command = command
        request.value_a = value_a
        request.channel = <uint8_t>channel
        if command == OPERATOR_PAUSE:
            store_u32(&self.state.pause_all_asked if channel == ALL_CHANNELS else &self.state.pause_asked[channel],
                      self.sequence)
            return self.sequence
        if command == OPERATOR_STOP:
            store_u32(&self.state.stop_all_asked if channel == ALL_CHANNELS else &self.state.stop_asked[channel],
                      self.sequence)
            return self.sequence
        return self.sequence if ring_push(&self.state.operators, &request) else 0

    def stop(self, int32_t level):
        """Raise the sticky stop flag of all channels: 1 ramps down, 2 switches off at once. Nothing lowers it."""
        raise_i32(&self.state.stop, level)

    @property
    def counters(self) -> dict:
        """Counts since the start, readable at any time; those of the thread after `run` has returned."""
        return {
            "ticks": self.state.ticks, "lost": self.state.lost, "bad_samples": self.state.bad_samples,
            "bad_frames": self.state.receiver.bad_frames, "foreign": self.state.foreign, "late": self.state.late,
            "sent": self.state.sent, "device_errors": self.state.device_errors,
            "last_device_error": self.state.last_error_code, "worst_late_us": self.state.worst_late_us,
            "skipped_periods": self.state.skipped_periods, "deadlines_missed": self.state.deadlines_missed,
            "missed_by_phase": {name: self.state.missed_by_phase[k] for k, name in enumerate(PHASES)},
            "ring_dropped": self.state.telemetry.dropped, "ring_high_water": self.state.telemetry.high_water,
            "ring_rows": self.state.telemetry.capacity, "events_dropped": self.state.events.dropped,
            "minor_faults": self.state.minor_faults, "major_faults": self.state.major_faults,
            "voluntary_switches": self.state.voluntary_switches,
            "involuntary_switches": self.state.involuntary_switches, "processor_s": self.state.processor_ns * 1e-9,
        }

    @property
    def histograms(self) -> dict:
        """Copies as `LatencyHistogram`, of what the loop has timed; nothing is timed on a virtual clock.

        "answer": from samples read to command written (host-paced: to the command worked out). "age", device-paced: of
        each sample, from its earliest possible arrival to its answer written. "wake_up", host-paced: how late after
        each planned instant.
        """
        if self.state.virtual_clock:
            return {}
        found = {"answer": histogram_of(&self.state.answer)}
        if self.state.pacing == PACING_HOST:
            found["wake_up"] = histogram_of(&self.state.wake_up)
        else:
            found["age"] = histogram_of(&self.state.age)
        return found

    @property
    def worst(self) -> dict:
        """The slowest answer: the index of its newest sample, and what each phase took in ns."""
        timing = {name: self.state.worst.phase_ns[k] for k, name in enumerate(PHASES)}
        return {"index": self.state.worst.index, **timing}

    @property
    def latency_us(self) -> dict:
        """Of "answer" in `histograms`, in us: p50, p99, p999, p9999, max; all 0 on a virtual clock."""
        shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}
        found = {name: histogram_percentile(&self.state.answer, share) / 1000.0 for name, share in shares.items()}
        return found | {"max": self.state.answer.highest_ns / 1000.0}
