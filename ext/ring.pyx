"""Single-producer single-consumer ring of fixed-size rows in memory that Python does not own."""
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

cdef extern from *:
    """
    static inline uint64_t ring_load(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void ring_store(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    """
    uint64_t ring_load(const uint64_t* at) noexcept nogil
    void ring_store(uint64_t* at, uint64_t value) noexcept nogil


cdef int ring_open(Ring* ring, size_t row_bytes, uint64_t capacity) noexcept nogil:
    cdef void* memory
    memset(ring, 0, sizeof(Ring))
    memory = mmap(NULL, row_bytes * capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        return -errno
    memset(memory, 0, row_bytes * capacity)     # touch every page now: none may fault while armed
    ring.rows = <uint8_t*>memory
    ring.row_bytes = row_bytes
    ring.capacity = capacity
    return 0


cdef void ring_close(Ring* ring) noexcept nogil:
    if ring.rows != NULL:
        munmap(ring.rows, ring.row_bytes * ring.capacity)
        ring.rows = NULL


cdef int ring_push(Ring* ring, const void* row) noexcept nogil:
    cdef uint64_t head = ring.head
    cdef uint64_t used = head - ring_load(&ring.tail)
    if used >= ring.capacity:
        ring_store(&ring.dropped, ring.dropped + 1)
        return 0
    memcpy(ring.rows + (head & (ring.capacity - 1)) * ring.row_bytes, row, ring.row_bytes)
    ring_store(&ring.head, head + 1)
    if used + 1 > ring.high_water:
        ring_store(&ring.high_water, used + 1)
    return 1


cdef uint64_t ring_take(Ring* ring, void* rows, uint64_t most) noexcept nogil:
    cdef uint64_t tail = ring.tail
    cdef uint64_t ready = ring_load(&ring.head) - tail
    cdef uint64_t at, first
    if ready > most:
        ready = most
    at = tail & (ring.capacity - 1)
    first = ring.capacity - at
    if first > ready:
        first = ready
    memcpy(rows, ring.rows + at * ring.row_bytes, first * ring.row_bytes)
    memcpy(<uint8_t*>rows + first * ring.row_bytes, ring.rows, (ready - first) * ring.row_bytes)
    ring_store(&ring.tail, tail + ready)
    return ready
