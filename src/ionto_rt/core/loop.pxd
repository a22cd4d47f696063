"""The loop: waits for the device, ticks every channel, answers. Nothing in it knows Python."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from ionto_rt.core.black_box cimport BlackBox
from ionto_rt.core.clock cimport Histogram, Lateness
from ionto_rt.core.controller cimport ControllerState
from ionto_rt.core.port cimport FileDescriptor
from ionto_rt.core.ring cimport Ring
from ionto_rt.core.types cimport Command, Daq, Port, Sample, Tick
from ionto_rt.core.wire cimport Receiver

cdef enum LoopStatus:
    LOOP_RUNNING = 0            # the given number of ticks was done
    LOOP_ENDED = 1              # every programme ended and its last command was answered
    LOOP_DEVICE_SILENT = 2      # no sample for longer than silence_us
    LOOP_DEVICE_LOST = 3        # the port failed; error holds errno
    LOOP_DEVICE_REFUSED = 4     # the device stopped the session; error holds its code

cdef enum:
    READ_BYTES = 4096
    BATCH_PERIODS = 256         # sample periods that one read can bring: frames of 20 bytes would fit
    SAMPLES = 1024              # of all channels that a device which is called can hand over at once
    OPERATOR_QUEUE = 64
    ENDING_TICKS = 50           # recorded after the programmes' end, so that the record shows zero

# Where the time of one answer goes, in the order in which it passes.
cdef enum:
    # Until the samples were read: how late they were; or how late a planned instant was met, and the device's answer.
    LOOP_PHASE_WAIT = 0
    LOOP_PHASE_DECODE = 1
    LOOP_PHASE_TICK = 2
    LOOP_PHASE_ENCODE = 3
    LOOP_PHASE_WRITE = 4
    LOOP_PHASES = 5

cdef struct OperatorRequest:
    uint32_t sequence
    int32_t command
    double value_a
    uint8_t channel             # ALL_CHANNELS, or one

# One answer, and how long each phase of it took, ns.
cdef struct LoopTiming:
    uint32_t index              # of the newest sample answered
    uint64_t phase_ns[5]

cdef struct LoopState:
    Port port                   # bytes, where daq.receive is NULL
    Daq daq
    FileDescriptor descriptor
    ControllerState* controllers[32]
    uint32_t channels           # that have a programme
    uint32_t device_channels    # of the device; those above `channels` stay at zero with their relays open
    int32_t pacing              # Pacing
    int32_t on_trip             # OnTrip
    Receiver receiver
    Ring telemetry
    Ring events
    Ring operators
    Histogram answer            # from samples read to command written
    Histogram age               # of each sample, device-paced: from its earliest arrival to its answer written
    Histogram wake_up           # host-paced: how late after a planned instant
    Lateness lateness
    Command commands[32]
    int32_t virtual_clock       # 1: host time and lateness are left out of the tick, and nothing is timed
    int32_t stop                # sticky; only ever rises
    uint32_t heartbeat          # the orchestrator's last answer
    uint32_t challenge          # that it must answer next
    int32_t status
    int32_t error
    uint32_t ending
    uint64_t silence_us
    uint64_t period_ns
    uint64_t started_ns
    uint64_t silent_since_ns    # when waiting first brought no sample; 0: it brought one
    uint64_t planned_ns         # host-paced: next instant
    uint64_t ticks              # sample periods
    uint64_t lost
    uint64_t bad_samples
    uint64_t late               # samples ticked after the next one was due
    uint64_t sent
    uint64_t device_errors      # ERROR frames
    uint64_t foreign            # samples of another number of channels
    uint64_t worst_late_us
    uint64_t skipped_periods    # host-paced: instants that had passed before they could be met
    uint64_t deadlines_missed   # answers written after the next sample was due
    uint64_t missed_by_phase[5]  # and what took longest of each
    LoopTiming timing           # of the answer in work
    LoopTiming worst            # of the slowest answer
    uint64_t minor_faults       # of the loop's thread while it ran, and so on
    uint64_t major_faults
    uint64_t voluntary_switches
    uint64_t involuntary_switches
    uint64_t processor_ns
    uint32_t last_error_code
    uint32_t pending            # bytes of the last read that are not parsed yet
    uint32_t parsed
    uint32_t batch              # sample periods ticked since the last answer
    uint32_t batch_most
    uint32_t samples_at         # in samples: the period being ticked
    int32_t abandoned           # 1: this is a forked child's copy
    uint32_t loop_sequence      # commands that the loop itself has given
    uint8_t faulted[32]         # channels that have ended short by themselves
    uint8_t over[32]            # channels that have ended: nothing is asked of them any more
    uint8_t others_stop[32]     # what other channels' faults ask of this one
    uint8_t others_pause[32]
    int64_t batch_age_ns[256]   # of each sample of the batch, less the time at which it was ticked
    Sample samples[1024]
    Tick spare                  # the row of a tick that found the ring full
    uint8_t bytes[4096]
    BlackBox box                # what went over the port
    uint64_t virtual_host_us    # on a virtual clock: the host's clock as a simulation has it; 0: left out of the tick
    # Numbers of the operator's newest pause and stop, of one channel or of all: sticky, as no queue can be too full for
    # them. And those that have reached each channel.
    uint32_t pause_asked[32]
    uint32_t pause_all_asked
    uint32_t pause_given[32]
    uint32_t stop_asked[32]
    uint32_t stop_all_asked
    uint32_t stop_given[32]
    uint8_t owed[32]            # 1: the channel's last row with an event found that ring full
    Tick missed[32]             # that row

cdef int loop_run(LoopState* loop, uint64_t ticks) noexcept nogil
