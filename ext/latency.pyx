"""How late a wake-up comes, and how long a question and its answer take."""
import os

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.errno cimport EINTR, ETIMEDOUT, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, timespec

from ionto_rt.core.clock cimport Histogram, clock_now_ns, histogram_add, histogram_add_expected
from ionto_rt.core.host_thread cimport STACK_BYTES, ThreadUsage, thread_touch_stack, thread_usage
from ionto_rt.core.port cimport port_read, port_write
from ionto_rt.core.types cimport PORT_VERSION, Port
from ionto_rt.core.wire cimport (
    FRAME_COUNTERS, FRAME_COUNTERS_REQUEST, MAX_FRAME, MAX_PAYLOAD, wire_encode, wire_receive,
)

cdef extern from "time.h" nogil:
    int clock_nanosleep(int clock, int flags, const timespec* request, timespec* left)
    int TIMER_ABSTIME

cdef extern from "sys/mman.h" nogil:
    int mlock(const void* address, size_t length)

cdef extern from *:
    """
    static inline int32_t load_i32(const int32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void store_i32(int32_t *at, int32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    """
    int32_t load_i32(const int32_t* at) nogil
    void store_i32(int32_t* at, int32_t value) nogil

cdef enum:
    ECHO_WAIT_US = 50000        # between two looks at the stop flag


cdef void series_begin(Series* series, ThreadUsage* before) noexcept nogil:
    """Touch what the run will touch, so that no page fault falls into it."""
    thread_touch_stack(STACK_BYTES)
    if series.began_ns == 0:
        series.began_ns = clock_now_ns()
    thread_usage(before)


cdef void series_end(Series* series, const ThreadUsage* before, uint64_t began_ns) noexcept nogil:
    cdef ThreadUsage after
    thread_usage(&after)
    series.use.minor_faults += after.minor_faults - before.minor_faults
    series.use.major_faults += after.major_faults - before.major_faults
    series.use.voluntary_switches += after.voluntary_switches - before.voluntary_switches
    series.use.involuntary_switches += after.involuntary_switches - before.involuntary_switches
    series.use.processor_ns += after.processor_ns - before.processor_ns
    series.measured_ns += clock_now_ns() - began_ns


cdef bint sleep_until(Series* series, uint64_t instant_ns) noexcept nogil:
    """False if the stop flag is up."""
    cdef timespec planned
    planned.tv_sec = <long>(instant_ns // 1000000000)
    planned.tv_nsec = <long>(instant_ns % 1000000000)
    while clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &planned, NULL) == EINTR:
        if load_i32(&series.stop):
            return False
    return True


cdef int wake_up_run(WakeUpState* state, uint64_t periods) noexcept nogil:
    cdef Series* series = &state.series
    cdef ThreadUsage before
    cdef uint64_t now, next_ns, late, left = periods, began, backlog
    cdef int end = MEASURE_DONE
    series_begin(series, &before)
    began = clock_now_ns()
    next_ns = began + series.interval_ns
    while left:
        if load_i32(&series.stop) or not sleep_until(series, next_ns):
            end = MEASURE_STOPPED
            break
        now = clock_now_ns()
        late = now - next_ns if now > next_ns else 0
        histogram_add(series.raw, late)
        histogram_add(series.corrected, late)
        if late > series.worst_ns:
            series.worst_ns = late
            series.worst_cycle = series.cycles
            series.worst_at_ns = now - series.began_ns
        series.cycles += 1
        left -= 1
        next_ns += series.interval_ns
        if now > next_ns:
            # Each of these was due as well, and it is known how late it is: no estimate is needed.
            backlog = (now - next_ns - 1) // series.interval_ns + 1
            series.skipped += backlog
            left -= backlog if backlog < left else left
            for _ in range(backlog if backlog < BACKLOG_MOST else BACKLOG_MOST):
                histogram_add(series.corrected, now - next_ns)
                next_ns += series.interval_ns
            if now > next_ns:
                next_ns += ((now - next_ns - 1) // series.interval_ns + 1) * series.interval_ns
    series_end(series, &before, began)
    return end


cdef int64_t take_frames(RoundTripState* state, size_t count) noexcept nogil:
    """Answers among the frames that `count` more bytes complete; what else they complete is counted as foreign."""
    cdef uint8_t payload[MAX_PAYLOAD + 4]
    cdef size_t length, at = 0
    cdef int64_t answers = 0
    while at < count:
        at += wire_receive(&state.receiver, state.bytes + at, count - at, payload, &length)
        if length == 0:
            continue
        if payload[0] == FRAME_COUNTERS and length >= 44:
            answers += 1
        else:
            state.foreign += 1
    return answers


cdef int settle(RoundTripState* state, int64_t wait_us) noexcept nogil:
    """Take what nobody waits for: up to a late answer, or until the device says nothing for `wait_us`."""
    cdef int64_t count, answers = 0
    for _ in range(64):
        count = state.port.read(state.port.context, state.bytes, EXCHANGE_BYTES, wait_us)
        if count < 0:
            state.error = <int32_t>-count
            return MEASURE_LOST
        if count == 0:
            break
        if state.answer_bytes:
            continue
        answers = take_frames(state, <size_t>count)
        state.stale += <uint64_t>answers
        if answers:
            wait_us = 0
    return MEASURE_DONE


cdef int exchange(RoundTripState* state, uint64_t* at) noexcept nogil:
    """One question and its answer; `at` becomes the ends of the phases, counted from the start of the first."""
    cdef uint8_t payload[1]
    cdef uint8_t frame[MAX_FRAME]
    cdef size_t length
    cdef int64_t count, answers = 0
    cdef uint64_t now, before, began = clock_now_ns(), asked, got = 0
    payload[0] = FRAME_COUNTERS_REQUEST
    if state.answer_bytes:
        memset(frame, 1, state.question_bytes)
        length = state.question_bytes
    else:
        length = wire_encode(payload, 1, frame)
    before = clock_now_ns()
    at[EXCHANGE_ENCODE] = before - began
    count = state.port.write(state.port.context, frame, length)
    asked = clock_now_ns()
    at[EXCHANGE_WRITE] = asked - before
    at[EXCHANGE_WAIT] = 0
    at[EXCHANGE_DECODE] = 0
    if count == -ETIMEDOUT:
        return MEASURE_SILENT
    if count < 0:
        state.error = <int32_t>-count
        return MEASURE_LOST
    before = asked
    while answers == 0:
        if before - began >= ANSWER_NS or load_i32(&state.series.stop):
            return MEASURE_SILENT
        count = state.port.read(
            state.port.context, state.bytes, EXCHANGE_BYTES, <int64_t>(ANSWER_NS - (before - began)) // 1000 + 1
        )
        now = clock_now_ns()
        at[EXCHANGE_WAIT] += now - before
        before = now
        if count < 0:
            state.error = <int32_t>-count
            return MEASURE_LOST
        if state.answer_bytes:
            got += <uint64_t>count
            answers = got >= state.answer_bytes
        else:
            answers = take_frames(state, <size_t>count)
        now = clock_now_ns()
        at[EXCHANGE_DECODE] += now - before
        before = now
    state.stale += <uint64_t>(answers - 1)
    return MEASURE_DONE


cdef int round_trip_run(RoundTripState* state, uint64_t periods) noexcept nogil:
    cdef Series* series = &state.series
    cdef ThreadUsage before
    cdef uint64_t phase_ns[EXCHANGE_PHASES]
    cdef uint64_t now, next_ns, took, left = periods, began, backlog
    cdef int phase, end = MEASURE_DONE
    series_begin(series, &before)
    began = clock_now_ns()
    next_ns = began + series.interval_ns
    while left:
        if load_i32(&series.stop) or not sleep_until(series, next_ns):
            end = MEASURE_STOPPED
            break
        end = settle(state, 0)
        if end != MEASURE_DONE:
            break
        end = exchange(state, phase_ns)
        if end == MEASURE_LOST:
            break
        if end == MEASURE_SILENT and load_i32(&series.stop):
            end = MEASURE_STOPPED
            break
        took = 0
        for phase in range(EXCHANGE_PHASES):
            took += phase_ns[phase]
        histogram_add_expected(series.corrected, took, series.interval_ns)
        histogram_add(series.raw, took)
        if took > series.worst_ns:
            series.worst_ns = took
            series.worst_cycle = series.cycles
            series.worst_at_ns = clock_now_ns() - series.began_ns
            for phase in range(EXCHANGE_PHASES):
                state.worst_phase_ns[phase] = phase_ns[phase]
        series.cycles += 1
        if end == MEASURE_SILENT:
            state.timeouts += 1
            state.in_a_row += 1
            if state.in_a_row >= SILENT_IN_A_ROW:
                break
            end = settle(state, ANSWER_NS // 1000)
            if end != MEASURE_DONE:
                break
        else:
            state.in_a_row = 0
        left -= 1
        now = clock_now_ns()
        next_ns += series.interval_ns
        if now > next_ns:
            backlog = (now - next_ns - 1) // series.interval_ns + 1
            series.skipped += backlog
            left -= backlog if backlog < left else left
            next_ns += backlog * series.interval_ns
    series_end(series, &before, began)
    return end


cdef void echo_run(EchoState* state) noexcept nogil:
    cdef int64_t count
    cdef uint64_t got = 0
    memset(state.bytes, 1, sizeof(state.bytes))
    while not load_i32(&state.stop):
        count = port_read(&state.descriptor, state.bytes, EXCHANGE_BYTES, ECHO_WAIT_US)
        if count < 0:
            return
        got += <uint64_t>count
        while got >= state.question_bytes:
            got -= state.question_bytes
            if port_write(&state.descriptor, state.bytes, state.answer_bytes) < 0:
                return


ENDS = ("done", "stopped", "silent", "lost")


cdef Histogram* histogram_of(object histogram) except NULL:
    return <Histogram*>PyCapsule_GetPointer(histogram.capsule, b"ionto_rt.core.Histogram")


cdef class _Series:
    """What both loops count. `raw` and `corrected` are the LatencyHistograms that they count into."""
    cdef Series* series
    cdef object raw
    cdef object corrected

    cdef int begin(self, Series* series, uint64_t interval_ns, object raw, object corrected) except -1:
        if interval_ns == 0 or raw is corrected:
            raise ValueError("an interval of 0, or one histogram for two")
        self.series = series
        self.raw = raw
        self.corrected = corrected
        series.interval_ns = interval_ns
        series.raw = histogram_of(raw)
        series.corrected = histogram_of(corrected)
        return 0

    def stop(self):
        """Raise the sticky stop flag: a run ends within a period, and no other begins."""
        store_i32(&self.series.stop, 1)

    def lock_memory(self) -> str:
        """Lock what the loop writes to into memory: "locked", or why not. Never required."""
        if (mlock(self.series.raw, sizeof(Histogram)) or mlock(self.series.corrected, sizeof(Histogram))
                or mlock(self.series, sizeof(RoundTripState) if isinstance(self, RoundTripLoop)
                         else sizeof(WakeUpState))):
            return f"not locked: {os.strerror(errno)}"
        return "locked"

    @property
    def interval_ns(self) -> int:
        """From one planned instant to the next."""
        return self.series.interval_ns

    @property
    def cycles(self) -> int:
        """Times taken so far."""
        return self.series.cycles

    @property
    def skipped(self) -> int:
        """Periods that went by without one."""
        return self.series.skipped

    @property
    def measured_ns(self) -> int:
        """How long the runs took together."""
        return self.series.measured_ns

    @property
    def worst(self) -> dict:
        """The longest time: `ns`, the number of its cycle from 0, and when it ended, in ns since the first run began.

        A round trip also tells its phases in ns: `encode`, `write`, `wait`, `decode`; they are all of it.
        """
        return {"ns": self.series.worst_ns, "cycle": self.series.worst_cycle, "at_ns": self.series.worst_at_ns}

    @property
    def use(self) -> dict:
        """What the thread used during the runs, as getrusage says: faults, switches, processor_ns."""
        return self.series.use


cdef class WakeUpLoop(_Series):
    """Wake-up jitter: sleeps to planned instants, `interval_ns` apart, and counts how much later it woke.

    As cyclictest does it (clock_nanosleep on absolute times of CLOCK_MONOTONIC): if whole periods have gone by, they
    are skipped. `corrected` counts those, too, with the lateness that each of them had when the thread woke.
    """
    cdef WakeUpState state

    def __cinit__(self):
        memset(&self.state, 0, sizeof(self.state))

    def __init__(self, uint64_t interval_ns, raw, corrected):
        self.begin(&self.state.series, interval_ns, raw, corrected)

    def run(self, uint64_t periods) -> str:
        """Measure for so many periods, without the GIL: done, or stopped."""
        cdef int end
        with nogil:
            end = wake_up_run(&self.state, periods)
        return ENDS[end]


cdef class RoundTripLoop(_Series):
    """Round trips on a device that is not armed: COUNTERS_REQUEST out, COUNTERS back, one each `interval_ns`.

    `port` is a file descriptor (int) or a PyCapsule "ionto_rt.core.types.Port". With `question_bytes` and
    `answer_bytes` (1 to 1024) bare frames go both ways, as an `Echo` answers them. `corrected` is corrected for
    coordinated omission, with the interval. A question that is not answered within 100 ms counts with that time.
    """
    cdef RoundTripState state
    cdef object port

    def __cinit__(self):
        memset(&self.state, 0, sizeof(self.state))

    def __init__(self, port, uint64_t interval_ns, raw, corrected, *, uint32_t question_bytes=0,
                 uint32_t answer_bytes=0):
        if (question_bytes == 0) != (answer_bytes == 0) or question_bytes > MAX_FRAME:
            raise ValueError(f"frames of {question_bytes} and {answer_bytes} bytes")
        self.begin(&self.state.series, interval_ns, raw, corrected)
        self.attach(port)
        self.state.question_bytes = question_bytes
        self.state.answer_bytes = answer_bytes

    cdef int attach(self, port) except -1:
        cdef Port* given
        self.port = port
        if isinstance(port, int):
            self.state.descriptor.fd = port
            self.state.descriptor.reading = -1
            self.state.port.context = &self.state.descriptor
            self.state.port.read = port_read
            self.state.port.write = port_write
            return 0
        if not PyCapsule_IsValid(port, b"ionto_rt.core.types.Port"):
            raise ValueError("no port that carries bytes")
        given = <Port*>PyCapsule_GetPointer(port, b"ionto_rt.core.types.Port")
        if given.version != PORT_VERSION or given.size < sizeof(Port):
            raise ValueError(f"port version {given.version}: this host needs {PORT_VERSION}")
        self.state.port = given[0]
        return 0

    def run(self, uint64_t periods) -> str:
        """Measure for so many periods, without the GIL: done, stopped, silent (20 time-outs in a row), or lost."""
        cdef int end
        with nogil:
            end = round_trip_run(&self.state, periods)
        return ENDS[end]

    @property
    def error(self) -> str:
        """What the port said when it failed; empty if it did not."""
        return os.strerror(self.state.error) if self.state.error else ""

    @property
    def worst(self) -> dict:
        found = super().worst
        names = ("encode", "write", "wait", "decode")
        found.update({name: self.state.worst_phase_ns[phase] for phase, name in enumerate(names)})
        return found

    @property
    def counters(self) -> dict:
        """Time-outs, answers too late or too many (stale), frames of another kind (foreign), and undecodable ones."""
        return {
            "timeouts": self.state.timeouts, "stale": self.state.stale, "foreign": self.state.foreign,
            "bad_frames": self.state.receiver.bad_frames,
        }


cdef class Echo:
    """The far end of a round trip of bare frames on the descriptor `fd`: answers each question of so many bytes."""
    cdef EchoState state

    def __cinit__(self):
        memset(&self.state, 0, sizeof(self.state))

    def __init__(self, int fd, uint32_t question_bytes, uint32_t answer_bytes):
        if not question_bytes or not answer_bytes or answer_bytes > EXCHANGE_BYTES:
            raise ValueError(f"frames of {question_bytes} and {answer_bytes} bytes")
        self.state.descriptor.fd = fd
        self.state.descriptor.reading = -1
        self.state.question_bytes = question_bytes
        self.state.answer_bytes = answer_bytes

    def run(self):
        """Answer, without the GIL, until `stop` or until the port is gone."""
        with nogil:
            echo_run(&self.state)

    def stop(self):
        """Raise the sticky stop flag: `run` ends within 50 ms."""
        store_i32(&self.state.stop, 1)
