"""Sample -> Rs, Rp, C from a pseudo-random binary current: the alternative to the two tones of impedance.pxd.

docs/estimator.md has the equations. The sequence repeats after 127 ticks with the opposite sign.
"""
from libc.stdint cimport int32_t, uint32_t
from ionto_rt.core.impedance cimport ImpedanceConfig
from ionto_rt.core.types cimport Estimate

cdef enum:
    SEQUENCE_TICKS = 127
    HARMONICS = 63              # odd ones of 254 ticks, below half the sample rate
    PRBS_UNKNOWNS = 7           # Rs, Rp, C, and cosine and sine of 50 and 60 Hz hum

cdef struct PrbsConfig:
    ImpedanceConfig load        # tick_s, what holds the current, skew, noise floors, electrode_emf_v; no tones
    double amplitude_a          # of the sequence, either way from the level
    uint32_t pairs              # of periods that a window averages; at least 2

# One frequency of the mean response.
cdef struct Harmonic:
    double voltage_re
    double voltage_im
    double current_re
    double current_im
    double hum_re[4]            # of a unit cosine and sine of 50 Hz, then of 60 Hz
    double hum_im[4]

cdef struct PrbsState:
    uint32_t tick               # within a pair of periods
    uint32_t begun              # 1: past its first tick
    uint32_t settle_left        # ticks until a window begins
    uint32_t filled             # ticks of the open window
    double first_v              # sums count from the window's first sample
    double first_a
    double total_v
    double total_a
    double voltage[127]         # of the open window; sign corrected
    double current[127]
    int32_t fit_phase           # 0: nothing to fit
    uint32_t fit_at             # harmonic, or pass, of this phase
    uint32_t fit_step
    double mean_v               # of the window in work
    double mean_a
    double mean_voltage[127]
    double mean_current[127]
    Harmonic harmonics[63]
    double normal[49]
    double right[7]
    double cost
    double at[3]                # Rs, Rp, C
    double time_ticks           # of the linear fit that starts
    Estimate estimate

# The sequence's share of this tick's current.
cdef double prbs_excitation(const PrbsState* state, const PrbsConfig* config) noexcept nogil
# One good sample. Bounded work: one harmonic's spectrum, or three harmonics of one Gauss-Newton step.
cdef void prbs_step(PrbsState* state, const PrbsConfig* config, double current_a, double voltage_v) noexcept nogil
# Samples were lost: the open window is dropped, the sequence keeps the device's time.
cdef void prbs_break(PrbsState* state, uint32_t ticks) noexcept nogil
