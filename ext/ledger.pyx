"""Charge: an int64 sum of current codes, in 1/65536 code; coulombs only when read."""
from libc.stdint cimport int64_t, uint32_t

from ionto_rt.core.types cimport Calibration, Sample


cdef void ledger_step(Ledger* ledger, const Sample* sample, uint32_t gap_ticks,
                      const Calibration* calibration) noexcept nogil:
    cdef int64_t codes = <int64_t>sample.current_code * 65536 - calibration.current_offset_q16
    cdef int64_t lost, most
    if gap_ticks:
        # The device counted what the host did not see; what it claims is bounded by what its converter can read.
        lost = sample.charge_codes - ledger.device_net_codes - codes
        most = <int64_t>gap_ticks * calibration.code_limit * 65536
        if lost > most:
            lost = most
        elif lost < -most:
            lost = -most
        ledger.net_codes += lost
        ledger.absolute_codes += lost if lost >= 0 else -lost
        ledger.booked_codes += lost
    ledger.net_codes += codes
    ledger.absolute_codes += codes if codes >= 0 else -codes
    ledger.device_net_codes = sample.charge_codes
    ledger.ticks += gap_ticks + 1


cdef double ledger_coulombs(int64_t codes, const Calibration* calibration) noexcept nogil:
    return <double>codes * (calibration.current_lsb_a * calibration.tick_s / 65536.0)
