"""Charge: an int64 sum of current codes, in 1/65536 code; coulombs only when read."""
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from ionto_rt.core.types cimport Calibration, Sample


cdef inline int64_t total(int64_t a, int64_t b) noexcept nogil:
    """a + b, but never beyond +-(2**63 - 1): a device may claim anything."""
    if b > 0 and a > INT64_MAX - b:
        return INT64_MAX
    if b < 0 and a < -INT64_MAX - b:
        return -INT64_MAX
    return a + b


cdef inline int64_t difference(int64_t a, int64_t b) noexcept nogil:
    """a - b, bounded likewise."""
    if b < 0 and a > INT64_MAX + b:
        return INT64_MAX
    if b > 0 and a < -INT64_MAX + b:
        return -INT64_MAX
    return a - b


cdef void ledger_step(Ledger* ledger, const Sample* sample, uint32_t gap_ticks,
                      const Calibration* calibration) noexcept nogil:
    cdef int64_t codes = <int64_t>sample.current_code * 65536 - calibration.current_offset_q16
    cdef int64_t lost, most
    if gap_ticks:
        # The device counted what the host did not see; what it claims is bounded by what its converter can read.
        lost = difference(difference(sample.charge_codes, ledger.device_net_codes), codes)
        most = <int64_t>gap_ticks * calibration.code_limit
        most = most * 65536 if most <= INT64_MAX // 65536 else INT64_MAX
        if lost > most:
            lost = most
        elif lost < -most:
            lost = -most
        ledger.net_codes = total(ledger.net_codes, lost)
        ledger.absolute_codes = total(ledger.absolute_codes, lost if lost >= 0 else -lost)
        ledger.booked_codes = total(ledger.booked_codes, lost)
    ledger.net_codes = total(ledger.net_codes, codes)
    ledger.absolute_codes = total(ledger.absolute_codes, codes if codes >= 0 else -codes)
    ledger.device_net_codes = sample.charge_codes
    ledger.ticks += gap_ticks + 1


cdef double ledger_coulombs(int64_t codes, const Calibration* calibration) noexcept nogil:
    return <double>codes * (calibration.current_lsb_a * calibration.tick_s / 65536.0)
