"""Single-producer single-consumer ring of fixed-size rows in memory that Python does not own."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct Ring:
    uint8_t* rows
    size_t row_bytes
    uint64_t capacity           # rows
    uint64_t head               # rows ever pushed; written by the producer
    uint64_t tail               # rows ever taken; written by the consumer
    uint64_t dropped            # rows that found the ring full
    uint64_t high_water
    uint64_t head_at            # head modulo capacity, the producer's own
    uint64_t tail_at            # tail modulo capacity, the consumer's own

cdef int ring_open(Ring* ring, size_t row_bytes, uint64_t capacity) noexcept nogil   # 0, or -errno
cdef void ring_close(Ring* ring) noexcept nogil
# Where the next row goes, or NULL when the ring is full, which is counted. ring_commit hands it to the consumer.
cdef void* ring_slot(Ring* ring) noexcept nogil
cdef void ring_commit(Ring* ring) noexcept nogil
cdef int ring_push(Ring* ring, const void* row) noexcept nogil                       # 1, or 0 when full
cdef uint64_t ring_take(Ring* ring, void* rows, uint64_t most) noexcept nogil        # rows copied
# The newest `most` rows, taken or not, oldest first; returns how many there are. Safe beside a producer that has room
# for as many again before it comes round.
cdef uint64_t ring_newest(const Ring* ring, void* rows, uint64_t most) noexcept nogil
