"""The loop: blocks on the device, ticks, answers.

One thread per device runs `loop_run` without the GIL. It allocates nothing, opens nothing and blocks only on the port.
Python reaches it through rings, a sticky stop flag and the heartbeat cell. On a virtual clock Python calls it for a
bounded number of ticks and drains the rings before the next call, so that none is ever lost.
"""
import os

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EAGAIN, EINTR, EIO, ETIMEDOUT, errno
from libc.stdint cimport int32_t, int64_t, intptr_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport read, write

import numpy as np

from ionto_rt.core.clock cimport clock_now_ns, histogram_add, histogram_percentile, lateness_us
from ionto_rt.core.controller cimport ControllerState, controller_tick
from ionto_rt.core.ring cimport Ring, ring_close, ring_open, ring_push, ring_take
from ionto_rt.core.types cimport (
    PORT_VERSION, SAMPLE_GOOD, Port, Sample, Tick, TickInput,
)
from ionto_rt.core.wire cimport (
    FRAME_ERROR, FRAME_SAMPLE, MAX_FRAME, MAX_PAYLOAD, wire_encode, wire_get_sample, wire_get_sentinel,
    wire_put_command, wire_receive,
)

from ionto_rt.core.controller import empty_ticks

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    short POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL

cdef extern from "sys/mman.h" nogil:
    int mlock(const void* address, size_t length)

cdef extern from *:
    """
    static inline int32_t load_i32(const int32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline uint64_t load_u64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline uint32_t load_u32(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void store_u32(uint32_t *at, uint32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    static inline void raise_i32(int32_t *at, int32_t value) {
        int32_t seen = __atomic_load_n(at, __ATOMIC_ACQUIRE);
        while (seen < value
               && !__atomic_compare_exchange_n(at, &seen, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) { }
    }
    """
    int32_t load_i32(const int32_t* at) nogil
    uint64_t load_u64(const uint64_t* at) nogil
    uint32_t load_u32(const uint32_t* at) nogil
    void store_u32(uint32_t* at, uint32_t value) nogil
    void raise_i32(int32_t* at, int32_t value) nogil


cdef int64_t fd_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil:
    """Bytes of a file descriptor; waits in poll, so that a blocking and a non-blocking descriptor behave alike."""
    cdef pollfd waiting
    cdef int ready
    cdef int64_t count
    waiting.fd = <int><intptr_t>context
    waiting.events = POLLIN
    waiting.revents = 0
    ready = poll(&waiting, 1, <int>((timeout_us + 999) // 1000))
    if ready < 0:
        return 0 if errno == EINTR else -errno
    if ready == 0:
        return 0
    if waiting.revents & POLLNVAL:
        return -EIO
    count = read(waiting.fd, data, capacity)
    if count < 0:
        return 0 if errno == EINTR or errno == EAGAIN else -errno
    if count == 0:
        return -EIO             # hung up
    return count


cdef int64_t fd_write(void* context, const uint8_t* data, size_t length) noexcept nogil:
    """All of data, or -errno; gives up after 20 ms of a full buffer: the lease then does its work."""
    cdef pollfd waiting
    cdef size_t done = 0
    cdef int64_t count
    waiting.fd = <int><intptr_t>context
    waiting.events = POLLOUT
    while done < length:
        count = write(waiting.fd, data + done, length - done)
        if count > 0:
            done += <size_t>count
            continue
        if count < 0 and errno == EINTR:
            continue
        if count < 0 and errno != EAGAIN:
            return -errno
        waiting.revents = 0
        if poll(&waiting, 1, 20) <= 0:
            return -ETIMEDOUT
    return <int64_t>done


cdef int send(LoopState* loop) noexcept nogil:
    cdef uint8_t payload[MAX_PAYLOAD]
    cdef uint8_t frame[MAX_FRAME]
    cdef size_t length = wire_put_command(&loop.command, 1, payload)
    cdef int64_t written
    length = wire_encode(payload, length, frame)
    written = loop.port.write(loop.port.context, frame, length)
    if written < 0 and written != -ETIMEDOUT:
        loop.error = <int32_t>-written
        return LOOP_DEVICE_LOST
    loop.sent += 1
    return LOOP_RUNNING


cdef void tick(LoopState* loop, const Sample* sample) noexcept nogil:
    cdef TickInput given
    cdef Tick row
    cdef OperatorRequest request
    cdef uint64_t now_us
    memset(&given, 0, sizeof(given))
    given.sample = sample[0]
    if not loop.virtual_clock:
        now_us = (clock_now_ns() - loop.started_ns) // 1000 + 1
        given.host_time_us = now_us
        given.host_late_us = lateness_us(&loop.lateness, sample.device_time_us, now_us)
        if given.host_late_us > loop.worst_late_us:
            loop.worst_late_us = given.host_late_us
        if given.host_late_us * 1e-6 > loop.controller.config.calibration.tick_s:
            loop.late += 1
    given.heartbeat = load_u32(&loop.heartbeat)
    given.stop = load_i32(&loop.stop)
    if ring_take(&loop.operators, &request, 1):
        given.operator_sequence = request.sequence
        given.operator_command = request.command
        given.operator_value_a = request.value_a
    controller_tick(loop.controller, &given, &row, &loop.command)
    loop.ticks += 1
    loop.lost += row.lost_ticks
    if row.sample_fault != SAMPLE_GOOD:
        loop.bad_samples += 1
    if row.end_reason and not row.close_relay:
        loop.ending += 1
    ring_push(&loop.telemetry, &row)
    if row.events:
        ring_push(&loop.events, &row)


cdef int loop_run(LoopState* loop, uint64_t ticks) noexcept nogil:
    cdef uint8_t payload[MAX_PAYLOAD + 4]
    cdef Sample samples[32]
    cdef uint32_t channels
    cdef size_t length
    cdef int64_t count
    cdef uint64_t last = loop.ticks + ticks, heard_ns = clock_now_ns(), began_ns
    cdef bint answer, sentinel = loop.controller.config.calibration.sentinel_lsb_v > 0.0
    if loop.started_ns == 0:
        loop.started_ns = heard_ns
    while loop.status == LOOP_RUNNING and loop.ticks < last:
        if loop.parsed == loop.pending:
            count = loop.port.read(loop.port.context, loop.bytes, READ_BYTES, 20000)
            if count < 0:
                loop.error = <int32_t>-count
                loop.status = LOOP_DEVICE_LOST
                break
            if count == 0:
                if clock_now_ns() - heard_ns > loop.silence_us * 1000:
                    loop.status = LOOP_DEVICE_SILENT
                continue
            loop.pending = <uint32_t>count
            loop.parsed = 0
        began_ns = clock_now_ns()
        answer = False
        # Every queued sample is ticked in order; only the last output is sent.
        while loop.parsed < loop.pending and loop.ticks < last:
            loop.parsed += <uint32_t>wire_receive(
                &loop.receiver, loop.bytes + loop.parsed, loop.pending - loop.parsed, payload, &length
            )
            if length == 0:
                continue
            if (payload[0] == FRAME_SAMPLE and wire_get_sample(payload, length, samples, &channels)
                    and (not sentinel or wire_get_sentinel(payload, length, samples, channels))):
                tick(loop, &samples[0])
                heard_ns = began_ns
                answer = True
            elif payload[0] == FRAME_ERROR and length >= 2:
                loop.device_errors += 1
                loop.last_error_code = payload[1]
        if answer:
            loop.status = send(loop)
            histogram_add(&loop.latency, clock_now_ns() - began_ns)
            if loop.status == LOOP_RUNNING and loop.ending > ENDING_TICKS:
                loop.status = LOOP_ENDED
        elif began_ns - heard_ns > loop.silence_us * 1000:
            loop.status = LOOP_DEVICE_SILENT    # bytes, but no sample among them
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


cdef class Loop:
    """The loop of one device.

    `controller` is a `Controller`; `port` a file descriptor (int, owned by the loop while it runs) or a PyCapsule
    "ionto_rt.core.types.Port". `virtual_clock` leaves host time out of the tick (lock-step). `ring_rows` is a power of
    two; `silence_s` how long the device may say nothing. OSError if the rings cannot be mapped.
    """
    cdef LoopState* state
    cdef object controller
    cdef object port
    cdef uint32_t sequence

    def __cinit__(self):
        self.state = <LoopState*>calloc(1, sizeof(LoopState))
        if self.state == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.state != NULL:
            ring_close(&self.state.telemetry)
            ring_close(&self.state.events)
            ring_close(&self.state.operators)
            free(self.state)

    def __init__(self, controller, port, *, bint virtual_clock, uint64_t ring_rows=16384, double silence_s=0.5):
        cdef Port* given
        cdef int failed
        if ring_rows < 2 or ring_rows & (ring_rows - 1):
            raise ValueError(f"ring_rows = {ring_rows}: must be a power of two")
        self.controller = controller
        self.port = port
        capsule = controller.capsule
        self.state.controller = <ControllerState*>PyCapsule_GetPointer(capsule, b"ionto_rt.core.ControllerState")
        if isinstance(port, int):
            self.state.port.version = PORT_VERSION
            self.state.port.size = sizeof(Port)
            self.state.port.context = <void*><intptr_t>port
            self.state.port.read = fd_read
            self.state.port.write = fd_write
        else:
            given = <Port*>PyCapsule_GetPointer(port, b"ionto_rt.core.types.Port")
            if given.version != PORT_VERSION or given.size < sizeof(Port):
                raise ValueError(f"port version {given.version}: this loop needs {PORT_VERSION}")
            self.state.port = given[0]
        self.state.virtual_clock = virtual_clock
        self.state.silence_us = <uint64_t>(silence_s * 1e6)
        for failed in (
            ring_open(&self.state.telemetry, sizeof(Tick), ring_rows),
            ring_open(&self.state.events, sizeof(Tick), 1024),
            ring_open(&self.state.operators, sizeof(OperatorRequest), OPERATOR_QUEUE),
        ):
            if failed:
                raise OSError(-failed, os.strerror(-failed))

    def lock_memory(self) -> str:
        """Lock rings and states into memory: "locked", or why not. Never required."""
        cdef int failed = 0
        if (mlock(self.state.telemetry.rows, self.state.telemetry.row_bytes * self.state.telemetry.capacity)
                or mlock(self.state.events.rows, self.state.events.row_bytes * self.state.events.capacity)
                or mlock(self.state.controller, sizeof(ControllerState)) or mlock(self.state, sizeof(LoopState))):
            failed = errno
        return "locked" if not failed else f"not locked: {os.strerror(failed)}"

    def run(self, uint64_t ticks=1 << 62) -> str:
        """Tick until the programme ends, the device fails or `ticks` are done: running, ended, silent or lost."""
        cdef int status
        with nogil:
            status = loop_run(self.state, ticks)
        return ("running", "ended", "silent", "lost", "refused")[status]

    @property
    def status(self) -> str:
        """As `run` returns it, readable while the loop runs in another thread."""
        return ("running", "ended", "silent", "lost", "refused")[self.state.status]

    @property
    def error(self) -> str:
        """What the port said when it failed; empty if it did not."""
        return os.strerror(self.state.error) if self.state.error else ""

    def drain(self, Py_ssize_t most=4096):
        """Rows of telemetry that are ready, oldest first, at most `most`: a structured array of shape (n,)."""
        return taken(&self.state.telemetry, most)

    def drain_events(self):
        """Rows in which something changed (`events` not 0), as `drain`; they have a ring of their own."""
        return taken(&self.state.events, 1024)

    def beat(self):
        """Renew the heartbeat: without it for 2 s of ticks the guard ramps down."""
        store_u32(&self.state.heartbeat, self.state.heartbeat + 1)

    def operator(self, int32_t command, double value_a=0.0) -> int:
        """Queue an OperatorCommand for the next free tick; its number, or 0 if the queue is full."""
        cdef OperatorRequest request
        self.sequence += 1
        request.sequence = self.sequence
        request.command = command
        request.value_a = value_a
        return self.sequence if ring_push(&self.state.operators, &request) else 0

    def stop(self, int32_t level):
        """Raise the sticky stop flag: 1 ramps down, 2 switches off at once. Nothing lowers it."""
        raise_i32(&self.state.stop, level)

    @property
    def counters(self) -> dict:
        """Counts since the start, readable at any time."""
        return {
            "ticks": self.state.ticks, "lost": self.state.lost, "bad_samples": self.state.bad_samples,
            "bad_frames": self.state.receiver.bad_frames, "late": self.state.late, "sent": self.state.sent,
            "device_errors": self.state.device_errors, "last_device_error": self.state.last_error_code,
            "worst_late_us": self.state.worst_late_us, "ring_dropped": self.state.telemetry.dropped,
            "ring_high_water": self.state.telemetry.high_water, "ring_rows": self.state.telemetry.capacity,
            "events_dropped": self.state.events.dropped,
        }

    @property
    def latency_us(self) -> dict:
        """From bytes read to command written, in us: p50, p99, p999, max."""
        return {
            "p50": histogram_percentile(&self.state.latency, 0.5) / 1000.0,
            "p99": histogram_percentile(&self.state.latency, 0.99) / 1000.0,
            "p999": histogram_percentile(&self.state.latency, 0.999) / 1000.0,
            "max": self.state.latency.highest_ns / 1000.0,
        }
