"""Charge: an int64 sum of current codes, in 1/65536 code; coulombs only when read."""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from ionto_rt.core.types cimport Calibration, Sample

cdef struct Ledger:
    int64_t net_codes           # signed sum of (code * 65536 - offset)
    int64_t absolute_codes      # sum of the magnitudes
    int64_t device_net_codes    # device's count at the last good sample
    int64_t booked_codes        # part of net that was booked for lost samples
    uint64_t ticks              # sample periods counted, lost ones included

# One good sample. gap_ticks lost before it are booked from the device's own count.
cdef void ledger_step(Ledger* ledger, const Sample* sample, uint32_t gap_ticks,
                      const Calibration* calibration) noexcept nogil
cdef double ledger_coulombs(int64_t codes, const Calibration* calibration) noexcept nogil
