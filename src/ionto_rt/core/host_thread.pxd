"""The calling thread as the host's kernel sees it: what it was given, what it used up."""
from libc.stdint cimport uint64_t

# Of the calling thread since it began. A difference of two readings is what lay between them.
cdef struct ThreadUsage:
    uint64_t minor_faults           # pages that were mapped when first touched
    uint64_t major_faults           # pages that had to be read from a disk
    uint64_t voluntary_switches     # it waited
    uint64_t involuntary_switches   # another took its processor
    uint64_t processor_ns

cdef enum:
    STACK_BYTES = 65536             # more than the loops use

# Touches as much of the calling thread's stack below this call, or what there is of it, so that no page faults later.
cdef size_t thread_touch_stack(size_t bytes) noexcept nogil
cdef void thread_usage(ThreadUsage* usage) noexcept nogil
