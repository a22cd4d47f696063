"""A port with faults: frames between host and device, both ways, are lost, spoilt, held back or made up by a script.

It stands in front of another `struct Port`. A tick is one read of the host's that went through to that port: with a
device that sends a sample each period, one period. Nothing is drawn but from the seed, so a script repeats exactly.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ionto_rt.core.types cimport Port

cdef enum:
    WIRE_FAULTS = 64            # of one script
    HELD_FRAMES = 1024          # frames that wait, one way
    HELD_BYTES = 131072
    PASS_BYTES = 4096           # of one read of the port behind

cdef enum WireFaultKind:
    WIRE_DROP = 0               # frames are lost
    WIRE_DUPLICATE = 1          # come twice
    WIRE_FLIP = 2               # value bits of each are turned over
    WIRE_TRUNCATE = 3           # lose their last value bytes, the delimiter among them
    WIRE_SPLIT = 4              # the second half comes a tick later
    WIRE_GARBAGE = 5            # value bytes of noise ahead of each
    WIRE_DELAY = 6              # come value ticks later
    WIRE_REORDER = 7            # change places with the next one
    WIRE_STALL = 8              # nothing passes, then all of it at once
    WIRE_DISCONNECT = 9         # the port closes for good
    WIRE_KINDS = 10

cdef enum Way:
    TO_HOST = 0
    TO_DEVICE = 1

cdef struct WireFault:
    uint64_t from_tick
    uint64_t until_tick         # the first tick without it
    int32_t kind                # WireFaultKind
    int32_t way                 # Way
    uint32_t value

cdef struct HeldFrame:
    uint64_t due                # tick at which it goes on
    uint32_t at                 # in bytes
    uint32_t length

# Frames on their way, in the order in which they came.
cdef struct HeldFrames:
    uint32_t count
    uint32_t used               # of bytes
    uint64_t dropped            # found no room
    HeldFrame frames[1024]
    uint8_t bytes[131072]

cdef struct FaultPortState:
    Port inner
    Port port                   # this one, for the host
    uint64_t tick
    uint64_t noise
    uint64_t change_tick        # at which `active` is next worked out
    uint64_t active[2]          # a bit for each fault in force, by Way
    WireFault faults[64]
    uint32_t fault_count
    uint64_t touched[10]        # frames that each kind has acted on
    int32_t clocked             # 1: the device runs in lock-step, and is asked for something where it would wait
    int32_t gone
    uint32_t ready_at           # bytes that the host's last read had no room for
    uint32_t ready_length
    HeldFrames held[2]
    uint8_t ready[131072]

# The state is to be zeros, `inner` that of the port behind. Nothing is in force yet.
cdef void fault_port_start(FaultPortState* state, uint64_t seed) noexcept nogil
# One more fault, from a tick on for so many; 0 if there is no room for it.
cdef int fault_port_add(FaultPortState* state, int32_t kind, int32_t way, uint64_t from_tick, uint64_t ticks,
                        uint32_t value) noexcept nogil
# The functions of struct Port; context is a FaultPortState*.
cdef int64_t fault_port_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil
cdef int64_t fault_port_write(void* context, const uint8_t* data, size_t length) noexcept nogil
