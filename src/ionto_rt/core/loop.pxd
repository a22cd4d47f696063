"""The loop: blocks on the device, ticks, answers. Nothing in it knows Python."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from ionto_rt.core.clock cimport Histogram, Lateness
from ionto_rt.core.controller cimport ControllerState
from ionto_rt.core.ring cimport Ring
from ionto_rt.core.types cimport Command, Port
from ionto_rt.core.wire cimport Receiver

cdef enum LoopStatus:
    LOOP_RUNNING = 0            # the given number of ticks was done
    LOOP_ENDED = 1              # the programme ended and its last command was answered
    LOOP_DEVICE_SILENT = 2      # no sample for longer than silence_us
    LOOP_DEVICE_LOST = 3        # the port failed; error holds errno
    LOOP_DEVICE_REFUSED = 4     # the device stopped the session; error holds its code

cdef enum:
    READ_BYTES = 4096
    OPERATOR_QUEUE = 64
    ENDING_TICKS = 50           # recorded after the programme's end, so that the record shows zero

cdef struct OperatorRequest:
    uint32_t sequence
    int32_t command
    double value_a

cdef struct LoopState:
    Port port
    ControllerState* controller
    Receiver receiver
    Ring telemetry
    Ring events
    Ring operators
    Histogram latency
    Lateness lateness
    Command command
    int32_t virtual_clock       # 1: host time and lateness are left out of the tick
    int32_t stop                # sticky; only ever rises
    uint32_t heartbeat
    int32_t status
    int32_t error
    uint32_t ending
    uint64_t silence_us
    uint64_t started_ns
    uint64_t ticks
    uint64_t lost
    uint64_t bad_samples
    uint64_t late               # commands that answered after the next sample was due
    uint64_t sent
    uint64_t device_errors      # ERROR frames
    uint64_t worst_late_us
    uint32_t last_error_code
    uint32_t pending            # bytes of the last read that are not parsed yet
    uint32_t parsed
    uint64_t first_index
    uint8_t bytes[4096]

cdef int loop_run(LoopState* loop, uint64_t ticks) noexcept nogil
