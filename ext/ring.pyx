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


cdef void* ring_slot(Ring* ring) noexcept nogil:
    cdef uint64_t used = ring.head - ring_load(&ring.tail)
    if used >= ring.capacity:
        ring_store(&ring.dropped, ring.dropped + 1)
        return NULL
    if used + 1 > ring.high_water:
        ring_store(&ring.high_water, used + 1)
    return ring.rows + ring.head_at * ring.row_bytes


cdef void ring_commit(Ring* ring) noexcept nogil:
    ring.head_at = ring.head_at + 1 if ring.head_at + 1 < ring.capacity else 0
    ring_store(&ring.head, ring.head + 1)


cdef int ring_push(Ring* ring, const void* row) noexcept nogil:
    cdef void* slot = ring_slot(ring)
    if slot == NULL:
        return 0
    memcpy(slot, row, ring.row_bytes)
    ring_commit(ring)
    return 1


cdef uint64_t ring_take(Ring* ring, void* rows, uint64_t most) noexcept nogil:
    cdef uint64_t ready = ring_load(&ring.head) - ring.tail
    cdef uint64_t first
    if ready > most:
        ready = most
    first = ring.capacity - ring.tail_at
    if first > ready:
        first = ready
    memcpy(rows, ring.rows + ring.tail_at * ring.row_bytes, first * ring.row_bytes)
    memcpy(<uint8_t*>rows + first * ring.row_bytes, ring.rows, (ready - first) * ring.row_bytes)
    ring.tail_at += ready
    if ring.tail_at >= ring.capacity:
        ring.tail_at -= ring.capacity
    ring_store(&ring.tail, ring.tail + ready)
    return ready


cdef uint64_t ring_newest(const Ring* ring, void* rows, uint64_t most) noexcept nogil:
    cdef uint64_t head = ring_load(&ring.head), k
    if most > head:
        most = head
    if most > ring.capacity:
        most = ring.capacity
    for k in range(most):
        memcpy(<uint8_t*>rows + k * ring.row_bytes, ring.rows + ((head - most + k) % ring.capacity) * ring.row_bytes,
               ring.row_bytes)
    return most
