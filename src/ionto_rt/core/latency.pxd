"""Loops that measure the host and a device: how late a wake-up comes, how long a question and its answer take.

Both count into histograms that belong to somebody else, allocate nothing, and stop at a sticky flag. A run may be
continued by the next: counts, worst cases and the use of the thread add up.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from ionto_rt.core.clock cimport Histogram
from ionto_rt.core.host_thread cimport ThreadUsage
from ionto_rt.core.port cimport FileDescriptor
from ionto_rt.core.types cimport Port
from ionto_rt.core.wire cimport Receiver

cdef enum MeasureEnd:
    MEASURE_DONE = 0            # the given number of periods has passed
    MEASURE_STOPPED = 1         # the stop flag is up
    MEASURE_SILENT = 2          # no answer to SILENT_IN_A_ROW questions
    MEASURE_LOST = 3            # the port failed; error holds errno

cdef enum:
    ANSWER_NS = 100000000       # the longest that a device may take (docs/wire-protocol.md, section 4)
    SILENT_IN_A_ROW = 20
    BACKLOG_MOST = 1000000      # skipped periods of one wake-up that are counted one by one
    EXCHANGE_BYTES = 4096

cdef enum:                      # phases of an exchange
    EXCHANGE_ENCODE = 0
    EXCHANGE_WRITE = 1
    EXCHANGE_WAIT = 2           # in the port's read
    EXCHANGE_DECODE = 3
    EXCHANGE_PHASES = 4

# A series with one time each interval_ns.
cdef struct Series:
    Histogram* raw              # the times that were taken
    Histogram* corrected        # and those that a stall kept from being taken
    uint64_t interval_ns
    uint64_t began_ns           # CLOCK_MONOTONIC, of the first run
    uint64_t measured_ns        # all runs
    uint64_t cycles             # times taken
    uint64_t skipped            # periods that went by without one
    uint64_t worst_ns
    uint64_t worst_cycle        # from 0
    uint64_t worst_at_ns        # since began_ns
    ThreadUsage use             # of the measuring thread while it measured
    int32_t stop                # sticky; only ever rises

# Sleeps to absolute instants of CLOCK_MONOTONIC, one each interval; a time is how much later than planned it woke.
cdef struct WakeUpState:
    Series series

# Asks and waits for the answer, once each interval. With answer_bytes 0 the question is COUNTERS_REQUEST and the answer
# COUNTERS; else frames of that many bytes go both ways and nothing is encoded or decoded.
cdef struct RoundTripState:
    Series series
    Port port
    FileDescriptor descriptor   # behind the port, where it is one
    Receiver receiver
    uint64_t worst_phase_ns[4]  # EXCHANGE_*, of the worst exchange
    uint64_t timeouts           # questions without an answer in ANSWER_NS; each counts with that time
    uint64_t stale              # answers that nobody waited for any more
    uint64_t foreign            # other frames
    uint32_t in_a_row           # of the time-outs, the newest
    uint32_t question_bytes
    uint32_t answer_bytes
    int32_t error
    uint8_t bytes[4096]

# The far end of a round trip of bare frames: for each question_bytes that come, answer_bytes go back.
cdef struct EchoState:
    FileDescriptor descriptor
    uint32_t question_bytes
    uint32_t answer_bytes
    int32_t stop
    uint8_t bytes[4096]

cdef int wake_up_run(WakeUpState* state, uint64_t periods) noexcept nogil
cdef int round_trip_run(RoundTripState* state, uint64_t periods) noexcept nogil
cdef void echo_run(EchoState* state) noexcept nogil
