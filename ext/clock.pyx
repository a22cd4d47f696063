"""Host clock and latency."""
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef enum:
    DRIFT_PPM = 200             # crystals differ by less


cdef uint64_t clock_now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef uint32_t bucket_of(uint64_t value) noexcept nogil:
    cdef uint32_t shift = 0
    if value >> 32:
        value = ~<uint32_t>0
    while (value >> shift) >= (2 << HISTOGRAM_SUB_BITS):
        shift += 1
    return shift * (1 << HISTOGRAM_SUB_BITS) + <uint32_t>(value >> shift)


cdef uint64_t bucket_end(uint32_t bucket) noexcept nogil:
    cdef uint32_t size = 1 << HISTOGRAM_SUB_BITS
    cdef uint32_t shift = 0 if bucket < 2 * size else bucket // size - 1
    return ((<uint64_t>(bucket - shift * size) + 1) << shift) - 1


cdef void histogram_add(Histogram* histogram, uint64_t value_ns) noexcept nogil:
    histogram.counts[bucket_of(value_ns)] += 1
    histogram.total += 1
    histogram.sum_ns += value_ns
    if value_ns > histogram.highest_ns:
        histogram.highest_ns = value_ns


cdef void histogram_add_expected(Histogram* histogram, uint64_t value_ns, uint64_t expected_ns) noexcept nogil:
    histogram_add(histogram, value_ns)
    if expected_ns == 0:
        return
    while value_ns >= 2 * expected_ns:
        value_ns -= expected_ns
        histogram_add(histogram, value_ns)


cdef uint64_t histogram_percentile(const Histogram* histogram, double share) noexcept nogil:
    cdef uint64_t wanted = <uint64_t>(share * histogram.total + 0.999999), seen = 0
    cdef uint64_t top
    cdef int bucket
    if histogram.total == 0:
        return 0
    if wanted < 1:
        wanted = 1
    for bucket in range(HISTOGRAM_BUCKETS):
        seen += histogram.counts[bucket]
        if seen >= wanted:
            top = bucket_end(bucket)
            return top if top < histogram.highest_ns else histogram.highest_ns
    return histogram.highest_ns


cdef uint32_t lateness_us(Lateness* lateness, uint32_t device_time_us, uint64_t host_us) noexcept nogil:
    cdef int64_t offset, late
    if not lateness.started:
        lateness.started = 1
        lateness.device_us = 0
        lateness.offset_us = <int64_t>host_us
        lateness.last_rise_us = host_us
    else:
        lateness.device_us += <uint32_t>(device_time_us - lateness.last_device_us)
    lateness.last_device_us = device_time_us
    offset = <int64_t>host_us - <int64_t>lateness.device_us
    if host_us - lateness.last_rise_us >= 1000000 // DRIFT_PPM:
        lateness.offset_us += <int64_t>((host_us - lateness.last_rise_us) * DRIFT_PPM // 1000000)
        lateness.last_rise_us = host_us
    if offset < lateness.offset_us:
        lateness.offset_us = offset
    late = offset - lateness.offset_us
    return <uint32_t>late if late >> 32 == 0 else ~<uint32_t>0


cdef class LatencyHistogram:
    """Counts of times in ns in fixed memory, 0.8 % resolution, up to 4.29 s."""
    cdef Histogram histogram

    def __cinit__(self):
        memset(&self.histogram, 0, sizeof(self.histogram))

    def add(self, uint64_t value_ns, uint64_t expected_ns=0):
        """Count one time in ns; with `expected_ns`, also those that it kept from being taken (one each that long)."""
        histogram_add_expected(&self.histogram, value_ns, expected_ns)

    def percentile(self, double share) -> int:
        """The time in ns that `share` (0 to 1) of the counted ones do not exceed; 0 if none was counted."""
        return histogram_percentile(&self.histogram, share)

    @property
    def capsule(self):
        """The histogram in a PyCapsule "ionto_rt.core.Histogram"; valid while this object lives."""
        return PyCapsule_New(<void*>&self.histogram, b"ionto_rt.core.Histogram", NULL)

    def fold(self, other):
        """Add the counts of another LatencyHistogram."""
        cdef LatencyHistogram added = other
        cdef int bucket
        for bucket in range(HISTOGRAM_BUCKETS):
            self.histogram.counts[bucket] += added.histogram.counts[bucket]
        self.histogram.total += added.histogram.total
        self.histogram.sum_ns += added.histogram.sum_ns
        if added.histogram.highest_ns > self.histogram.highest_ns:
            self.histogram.highest_ns = added.histogram.highest_ns

    @classmethod
    def of_counts(cls, counts, uint64_t highest_ns):
        """A histogram with these counts, one for each bucket, and this longest time in ns: as a log has kept them.

        The mean then rests on the middle of each bucket. ValueError if there are not 3328 counts, or if the longest
        time is not in the last bucket that has any.
        """
        import numpy as np

        cdef LatencyHistogram made = cls()
        cdef uint64_t[::1] given = np.ascontiguousarray(counts, dtype=np.uint64)
        cdef int bucket, last = 0
        if given.shape[0] != HISTOGRAM_BUCKETS:
            raise ValueError(f"{given.shape[0]} counts: must be {HISTOGRAM_BUCKETS}")
        for bucket in range(HISTOGRAM_BUCKETS):
            if given[bucket]:
                last = bucket
                made.histogram.counts[bucket] = given[bucket]
                made.histogram.total += given[bucket]
                made.histogram.sum_ns += given[bucket] * (
                    (bucket_end(bucket) + (bucket_end(bucket - 1) + 1 if bucket else 0)) // 2
                )
        if <int>bucket_of(highest_ns) != last:
            raise ValueError(f"{highest_ns} ns is not the longest of these times")
        made.histogram.highest_ns = highest_ns
        return made

    @property
    def total(self) -> int:
        """Times counted."""
        return self.histogram.total

    @property
    def highest_ns(self) -> int:
        """The longest time counted."""
        return self.histogram.highest_ns

    @property
    def mean_ns(self) -> float:
        """Mean of the times counted; 0 if none was."""
        return <double>self.histogram.sum_ns / self.histogram.total if self.histogram.total else 0.0

    @property
    def counts(self):
        """Times in each bucket: array of shape (3328,), uint64. Bucket `k` ends at `bucket_ends()[k]` ns."""
        import numpy as np      # here: the virtual device's process counts without it
        cdef uint64_t[::1] view = <uint64_t[:HISTOGRAM_BUCKETS]>self.histogram.counts
        return np.array(view)


def bucket_ends():
    """The largest time in ns of each bucket: array of shape (3328,), uint64."""
    import numpy as np
    return np.array([bucket_end(bucket) for bucket in range(HISTOGRAM_BUCKETS)], dtype=np.uint64)
