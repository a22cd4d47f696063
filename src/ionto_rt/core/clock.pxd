"""Host clock and latency: how late a sample is, and how long a tick took. Neither enters the tick but as an input."""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef enum:
    HISTOGRAM_SUB_BITS = 7      # 128 buckets an octave: 0.8 % resolution
    HISTOGRAM_BUCKETS = 3328

# Log-linear counts of times in ns, up to 2**32 ns; fixed memory, constant time. The buckets are those of an
# HdrHistogram of two significant digits with 1 as its lowest value.
cdef struct Histogram:
    uint64_t counts[3328]
    uint64_t total
    uint64_t sum_ns
    uint64_t highest_ns

# The best moment so far at which a sample of the device's clock could have been seen: lateness is counted from it.
cdef struct Lateness:
    int32_t started
    uint32_t last_device_us
    uint64_t device_us
    int64_t offset_us           # lowest host - device seen, let rise by drift_ppm
    uint64_t last_rise_us

cdef uint64_t clock_now_ns() noexcept nogil
# The largest time of a bucket.
cdef uint64_t bucket_end(uint32_t bucket) noexcept nogil
cdef void histogram_add(Histogram* histogram, uint64_t value_ns) noexcept nogil
# A time out of a series that should have one each expected_ns: also those that a stall kept from being taken, as
# HdrHistogram corrects for coordinated omission. expected_ns 0: none.
cdef void histogram_add_expected(Histogram* histogram, uint64_t value_ns, uint64_t expected_ns) noexcept nogil
cdef uint64_t histogram_percentile(const Histogram* histogram, double share) noexcept nogil
# Age of a sample in us: host time now less the earliest at which its device time could have been seen.
cdef uint32_t lateness_us(Lateness* lateness, uint32_t device_time_us, uint64_t host_us) noexcept nogil
