"""The calling thread as the host's kernel sees it: what it was given, what it used up."""
from libc.stdint cimport uint64_t

# Of the calling thread since it began. A difference of two readings is what lay between them.
cdef struct ThreadUsage:
    uint64_t minor_faults           # pages that were mapped when first touched
    uint64_t major_faults           # pages that had to be read from a disk
    uint64_t voluntary_switches     # it waited
    uint64_t involuntary_switches   # another took its processor
    uint64_t processor_ns

cdef void thread_usage(ThreadUsage* usage) noexcept nogil
