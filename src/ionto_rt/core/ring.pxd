"""Single-producer single-consumer ring of fixed-size rows in memory that Python does not own."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct Ring:
    uint8_t* rows
    size_t row_bytes
    uint64_t capacity           # rows; a power of two
    uint64_t head               # rows ever pushed; written by the producer
    uint64_t tail               # rows ever taken; written by the consumer
    uint64_t dropped            # rows that found the ring full
    uint64_t high_water

cdef int ring_open(Ring* ring, size_t row_bytes, uint64_t capacity) noexcept nogil   # 0, or -errno
cdef void ring_close(Ring* ring) noexcept nogil
cdef int ring_push(Ring* ring, const void* row) noexcept nogil                       # 1, or 0 when full
cdef uint64_t ring_take(Ring* ring, void* rows, uint64_t most) noexcept nogil        # rows copied
