"""Sample -> estimate: total resistance, Rs, Rp, C from one probe tone, contact; with uncertainty."""
from libc.stdint cimport int32_t, int64_t, uint32_t
from ionto_rt.core.types cimport Estimate

cdef enum:
    TONE_TABLE_SIZE = 1024

cdef struct ImpedanceConfig:
    double tick_s
    double tone_a               # peak of the probe tone; 0: no tone
    double electrode_emf_v      # one standard deviation of the unknown electrode potential
    double nonlinearity         # share of the chord resistance by which the slope resistance may differ
    double voltage_noise_v      # converter noise floor, one standard deviation
    double current_noise_a
    double open_ratio           # contact is lost below this share of the setpoint
    double open_floor_a         # no verdict on contact below this setpoint
    double open_voltage_v       # and only at or above this voltage
    int32_t open_any_voltage    # 1: once contact was good, whatever the voltage (voltage source)
    uint32_t open_ticks
    uint32_t good_ticks
    uint32_t tone_period_ticks  # ticks of one period of the tone; a power of two up to TONE_TABLE_SIZE
    uint32_t block_ticks        # ticks of one block; a multiple of tone_period_ticks

cdef struct ImpedanceState:
    uint32_t phase_ticks        # within one period of the tone
    uint32_t block_fill
    uint32_t open_run
    uint32_t good_run
    double sum_v
    double sum_i
    double sum_vt
    double sum_it
    double sum_vc
    double sum_vs
    double sum_ic
    double sum_is
    double sum_tc
    double sum_ts
    double sum_vv
    double sum_ii
    Estimate estimate

# One good sample of current and voltage. setpoint_a is the one in force when the sample was taken (the nearest to zero
# of the loop's delay); tone_on: the tone was part of it.
cdef void impedance_step(ImpedanceState* state, const ImpedanceConfig* config, double current_a, double voltage_v,
                         double setpoint_a, int32_t tone_on) noexcept nogil
# The tone to add to the setpoint of this tick.
cdef double impedance_tone(const ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil
# Samples were lost: the open block is dropped, the tone's phase keeps the device's time.
cdef void impedance_break(ImpedanceState* state, const ImpedanceConfig* config, uint32_t ticks) noexcept nogil
