"""The analogue side of the virtual device: output stage, relay and converters, in front of the skin.

Ranges: 40 uA, 400 uA, 4 mA and 40 mA full scale. One current code is 1.3 full scale / 32768, so that a reading of
1.25 times the largest setpoint does not clip; the voltage code is 1.05 times the compliance voltage / 32768. Converters
saturate at +-32767. The stated calibration is exact but for a residual gain error of at most 0.02 % and a residual
offset of at most 0.01 code; the output converter is not calibrated (gain +1.5 % by default).

Current is sensed behind the relay, voltage at the pads (behind the ballast of a voltage source), so an open relay reads
zero current. The stage recovers from its voltage limit within a sub-step: a pad that comes back meets the current asked
for, not the limit's (a voltage source has no such protection but its ballast).
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ionto_rt.core.skin cimport SkinState

cdef enum:
    RANGES = 4
    CODE_LIMIT = 32767

cdef struct FrontEndRange:
    uint32_t full_scale_na
    uint32_t current_lsb_fa     # stated calibration, as in the hello
    uint32_t redundant_lsb_fa
    uint32_t output_lsb         # fA (current source) or pV (voltage source)
    uint32_t ballast_mohm
    int32_t current_offset_q16
    int32_t redundant_offset_q16
    int32_t output_code_min
    int32_t output_code_max
    double current_codes_per_a  # true converters
    double redundant_codes_per_a
    double current_offset
    double redundant_offset
    double output_per_code      # true output converter, A or V
    double ballast_ohm

cdef struct FrontEndState:
    int32_t kind                # FrontEnd
    int32_t range
    uint32_t substeps           # of one sample period
    uint32_t voltage_lsb_nv     # stated calibration
    int32_t voltage_offset_q16
    double period_s
    double substep_s
    double compliance_v
    double pole                 # exp(-substep / time constant) of the output stage
    double pole_mean            # weight of the start value in the mean over one sub-step
    double output_offset        # of the output converter, codes
    double noise_codes          # one standard deviation
    double hum_v                # peak of 50 Hz on the voltage reading
    double hum_cos
    double hum_sin
    double hum_turn_cos
    double hum_turn_sin
    double voltage_codes_per_v
    double voltage_offset
    uint64_t noise
    FrontEndRange ranges[4]
    int32_t relay_closed        # state
    int32_t stuck               # fault: the output converter keeps its value whatever is asked
    double target               # A or V; what the output stage settles to
    double output               # A or V; where it is
    double source_a             # current out of the stage, at the end of the last sub-step
    double voltage_v            # at the pads
    double jitter_s             # samples are taken up to twice this before the boundary, evenly spread
    double before_a             # source_a and voltage_v, one sub-step before their present values
    double before_v
    double hum_hz
    double output_time_s        # time constant of the output stage
    uint32_t sentinel_lsb_nv    # stated calibration of the sentinel electrode's reading; 0: none is wired
    int32_t sentinel_offset_q16
    double sentinel_codes_per_v
    double sentinel_offset
    double output_factor        # fault: on what is asked of the output stage, sign included; 1: none
    double reading_factor[2]    # faults: on the current and on the redundant reading; 1: none
    int32_t flat                # fault: 1 current and 2 redundant reading keep their codes
    int32_t flat_codes[2]
    double bridge_a             # fault: what other channels drive into this one's skin

# What happened during one sample period, unseen by the converters.
cdef struct FrontEndPeriod:
    double charge_c             # through the skin
    double absolute_c
    double peak_a               # largest magnitude through the skin
    int32_t limited             # 1: at the voltage limit in some sub-step
    int32_t tripped             # 1: the comparator opened the relay

# kind: FrontEnd. substeps 0: of at most 125 us each. gain_error and offset of the output converter; seed draws offsets
# and residual errors of the converters.
cdef void frontend_start(FrontEndState* state, int32_t kind, double period_s, uint32_t substeps, double compliance_v,
                         double bandwidth_hz, double gain_error, double offset_codes, double noise_codes, double hum_v,
                         uint64_t seed) noexcept nogil
# Hum on the voltage reading: peak and frequency.
cdef void frontend_hum(FrontEndState* state, double hum_v, double hum_hz) noexcept nogil
cdef void frontend_output(FrontEndState* state, int32_t code) noexcept nogil
# fault: the output converter goes to this code, and stays.
cdef void frontend_stick(FrontEndState* state, int32_t code) noexcept nogil
# Output disabled: exactly zero, whatever the converter's offset. The stage still takes its bandwidth to get there.
cdef void frontend_zero(FrontEndState* state) noexcept nogil
# One sample period. comparator_a: a larger magnitude out of the stage opens the relay within its sub-step.
cdef void frontend_run(FrontEndState* state, SkinState* skin, double comparator_a,
                       FrontEndPeriod* period) noexcept nogil
# The converters at this instant, or up to a sub-step before it by the jitter: current, redundant current, voltage.
cdef void frontend_read(FrontEndState* state, int32_t* codes) noexcept nogil
# A sentinel electrode is wired from here on; its converter has the scale of the voltage's, and errors of its own.
cdef void frontend_wire_sentinel(FrontEndState* state) noexcept nogil
# The stated calibration of another channel's front-end, of the same kind; the converters keep their errors beside it.
cdef void frontend_share_calibration(FrontEndState* state, const FrontEndState* of) noexcept nogil
# The sentinel electrode's converter at this instant.
cdef int32_t frontend_read_sentinel(FrontEndState* state, const SkinState* skin) noexcept nogil
# Voltage, and sentinel if one is wired, later_s after this instant (below a millisecond), with the output as it is set
# now: stage and skin are run ahead on copies, so that only the converters' noise moves on.
cdef void frontend_read_later(FrontEndState* state, const SkinState* skin, double later_s, int32_t* voltage_code,
                              int32_t* sentinel_code) noexcept nogil
