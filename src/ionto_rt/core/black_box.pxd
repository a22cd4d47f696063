"""The black box: what went over the port, both ways, in rings that keep at least the last seconds of it.

Only the loop's thread adds. A trip pins what lies before it: from there on nothing of that is overwritten, and when the
rings are full of what followed, the rest is left out, until Python has taken it all and lets go.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    static inline int32_t box_load(const int32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void box_store(int32_t *at, int32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    static inline uint64_t box_load_u64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void box_store_u64(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    """
    int32_t box_load(const int32_t* at) noexcept nogil
    void box_store(int32_t* at, int32_t value) noexcept nogil
    uint64_t box_load_u64(const uint64_t* at) noexcept nogil
    void box_store_u64(uint64_t* at, uint64_t value) noexcept nogil

cdef enum BoxKind:
    BOX_RECEIVED = 1            # bytes of one read
    BOX_SENT = 2                # bytes of one write
    BOX_SAMPLES = 3             # struct Sample of each channel: one sample period of a device that is called
    BOX_COMMANDS = 4            # struct Command of each channel, to a device that is called

cdef enum:
    BOX_MOST_BYTES = 4096       # of one entry
    BOX_WINDOWS = 4             # rings hold the window before a trip, and thrice as much after it

cdef struct BoxEntry:
    uint64_t at                 # of its first byte, counted from the beginning of all
    uint64_t host_ns            # clock_now_ns, before a write and after a read; 0 on a virtual clock
    uint64_t tick               # sample periods ticked before it
    uint32_t length
    int32_t outcome             # bytes that the port took, or -errno; of a read its length
    int32_t kind                # BoxKind
    int32_t unused

cdef struct BlackBox:
    BoxEntry* entries           # NULL: nothing is kept
    uint8_t* bytes
    uint64_t capacity           # entries; a power of two
    uint64_t room               # bytes, a power of two; behind them BOX_MOST_BYTES, so that no entry is broken
    uint64_t window_ticks       # kept before a trip
    uint64_t head               # entries ever made
    uint64_t at                 # bytes ever kept
    uint64_t left_out           # entries that found the pinned rings full since the pin
    uint64_t pinned_from        # while pinned: the first entry that is kept,
    uint64_t last_head          # where the rings are full,
    uint64_t last_at
    uint64_t trip_tick          # and the tick of the first trip
    int32_t pinned              # set by the loop, cleared by Python

cdef int box_open(BlackBox* box, uint64_t window_ticks, uint64_t tick_bytes) noexcept nogil      # 0, or -errno
cdef void box_close(BlackBox* box) noexcept nogil
# The first entry of the window before `tick` whose bytes are still there.
cdef uint64_t box_first(const BlackBox* box, uint64_t tick) noexcept nogil
cdef void box_pin(BlackBox* box, uint64_t tick) noexcept nogil

cdef inline void box_add(BlackBox* box, int32_t kind, const void* data, size_t length, int32_t outcome,
                         uint64_t host_ns, uint64_t tick) noexcept nogil:
    cdef BoxEntry* entry
    cdef uint64_t head = box.head, at = box.at
    if box.entries == NULL:
        return
    if box_load(&box.pinned) and (head >= box.last_head or at + length > box.last_at):
        box_store_u64(&box.left_out, box.left_out + 1)
        return
    entry = box.entries + (head & (box.capacity - 1))
    entry.at = at
    entry.host_ns = host_ns
    entry.tick = tick
    entry.length = <uint32_t>length
    entry.outcome = outcome
    entry.kind = kind
    memcpy(box.bytes + (at & (box.room - 1)), data, length)
    box.at = at + length
    box_store_u64(&box.head, head + 1)
