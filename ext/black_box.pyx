"""The black box: what went over the port, both ways, in rings that keep at least the last seconds of it."""
from libc.errno cimport errno
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

cdef enum:
    ENTRIES_A_TICK = 3          # a frame that comes in two reads, and one that is sent


cdef uint64_t power_of_two(uint64_t least) noexcept nogil:
    cdef uint64_t found = 1
    while found < least:
        found *= 2
    return found


cdef int box_open(BlackBox* box, uint64_t window_ticks, uint64_t tick_bytes) noexcept nogil:
    cdef void* entries
    cdef void* bytes
    memset(box, 0, sizeof(BlackBox))
    box.capacity = power_of_two(BOX_WINDOWS * window_ticks * ENTRIES_A_TICK)
    box.room = power_of_two(BOX_WINDOWS * window_ticks * tick_bytes + BOX_MOST_BYTES)
    box.window_ticks = window_ticks
    entries = mmap(NULL, box.capacity * sizeof(BoxEntry), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if entries == MAP_FAILED:
        return -errno
    bytes = mmap(NULL, box.room + BOX_MOST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if bytes == MAP_FAILED:
        munmap(entries, box.capacity * sizeof(BoxEntry))
        return -errno
    # Touch every page now: none may fault while armed.
    memset(entries, 0, box.capacity * sizeof(BoxEntry))
    memset(bytes, 0, box.room + BOX_MOST_BYTES)
    box.entries = <BoxEntry*>entries
    box.bytes = <uint8_t*>bytes
    return 0


cdef void box_close(BlackBox* box) noexcept nogil:
    if box.entries != NULL:
        munmap(box.entries, box.capacity * sizeof(BoxEntry))
        munmap(box.bytes, box.room + BOX_MOST_BYTES)
        box.entries = NULL


cdef bint box_before(const BlackBox* box, uint64_t number, uint64_t tick) noexcept nogil:
    """Whether an entry lies before the window that ends with `tick`, or its bytes are overwritten."""
    cdef const BoxEntry* entry = box.entries + (number & (box.capacity - 1))
    return entry.tick + box.window_ticks < tick or entry.at + box.room < box.at


cdef uint64_t box_first(const BlackBox* box, uint64_t tick) noexcept nogil:
    cdef uint64_t high = box.head, low = high - box.capacity if high > box.capacity else 0, middle
    while low < high:
        middle = low + (high - low) // 2
        if box_before(box, middle, tick):
            low = middle + 1
        else:
            high = middle
    return low


cdef void box_pin(BlackBox* box, uint64_t tick) noexcept nogil:
    if box.entries == NULL or box_load(&box.pinned):
        return
    box.pinned_from = box_first(box, tick)
    box.last_head = box.pinned_from + box.capacity
    box.last_at = box.entries[box.pinned_from & (box.capacity - 1)].at + box.room if box.pinned_from < box.head else (
        box.at + box.room)
    box.trip_tick = tick
    box_store_u64(&box.left_out, 0)
    box_store(&box.pinned, 1)
