"""Skin between two electrodes: a state model with memory, not a resistor. The load of the virtual device.

V = I (R_lead + R_body) + E + sum over both sites of (V_site + I rho/(A a)),   I/(A a) = j_p(V_site, n) + C dV_site/dt
j_p = g0 V sqrt(1 + (V/Vn)^2) + n V;   n relaxes towards gmax x^4/(1 + x^4), x = |V|/(Vh p): in seconds upwards, in
about 25 min downwards.

Every voltage and current counts positive when the active pad is the anode. Areas are in cm2, and what is per area is
per cm2; everything else is SI.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum SkinName:
    SKIN_TYPICAL = 0
    SKIN_DRY = 1                # g0 / 10
    SKIN_HAIRY = 2              # gmax x 0.3
    SKIN_SWEATING = 3           # g0 x 5
    SKIN_WOUNDED = 4            # n = 1 mS/cm2 from the start

cdef struct SkinSite:
    double area_cm2             # of the pad
    double contact_fraction     # share of it that is wetted, (0, 1]
    double fresh_s_cm2          # g0
    double corner_v             # Vn
    double half_v               # Vh
    double pore_max_s_cm2       # gmax
    double factor_positive      # p while V_site > 0
    double factor_negative      # p while V_site < 0
    double onset_s              # upwards: tau = max(onset_least_s, onset_s / (1 + (|V| / (onset_v p))^3))
    double onset_least_s
    double onset_v
    double recovery_s           # downwards
    double capacitance_f_cm2
    double series_ohm_cm2       # rho
    double voltage_v            # state: V_site
    double pore_s_cm2           # state: n

cdef struct SkinState:
    SkinSite active
    SkinSite passive            # at the return electrode
    double lead_ohm
    double body_ohm
    double open_ohm             # fault: added to the leads; 0: none
    double shunt_ohm            # fault: a bridge between the leads; 0: none
    double half_cell_v          # standing difference of the electrodes' potentials
    double polarisation_v       # most that both electrodes polarise against the current
    double polarisation_half_a  # current at half of it
    double polarisation_s       # time constant
    double electrode_v          # state: polarisation in force

# A skin by name on pads of these areas. seed 0: the nominal subject; any other draws one.
cdef void skin_named(SkinState* skin, int32_t name, uint64_t seed, double active_cm2, double return_cm2) noexcept nogil
# A fixed load instead: series_ohm + (parallel_ohm || capacitance_f), no memory, no electrode potential.
cdef void skin_linear(SkinState* skin, double series_ohm, double parallel_ohm, double capacitance_f) noexcept nogil
cdef double skin_series_ohm(const SkinState* skin) noexcept nogil
# Terminal voltage at this instant if current_a flows through the skin.
cdef double skin_voltage(const SkinState* skin, double current_a) noexcept nogil
# Voltage of the active terminal against a sentinel electrode beside the pad: lead, half of what the electrodes
# polarise, the site with its series part.
cdef double skin_sentinel_voltage(const SkinState* skin, double current_a) noexcept nogil
# Current at this instant from source_v behind source_ohm.
cdef double skin_current(const SkinState* skin, double source_v, double source_ohm) noexcept nogil
# One sub-step of the capacitances. mean_a, mean_v: mean over the sub-step of what is forced. Second order, and stable
# for any step_s. skin_force_voltage returns the mean current.
cdef void skin_force_current(SkinState* skin, double mean_a, double step_s) noexcept nogil
cdef double skin_force_voltage(SkinState* skin, double mean_v, double source_ohm, double step_s) noexcept nogil
# The slow states (pores, polarisation) over step_s: once per sample period, after its sub-steps.
cdef void skin_age(SkinState* skin, double mean_a, double step_s) noexcept nogil

cdef inline uint64_t noise_next(uint64_t* state) noexcept nogil:
    """Xorshift64*; state must not be 0."""
    cdef uint64_t x = state[0]
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    state[0] = x
    return x * <uint64_t>0x2545F4914F6CDD1D

cdef inline double noise_uniform(uint64_t* state) noexcept nogil:
    return <double>(noise_next(state) >> 11) * (1.0 / 9007199254740992.0)

cdef inline double noise_normal(uint64_t* state) noexcept nogil:
    """Zero mean, unit variance, within +-3.46: the sum of four uniforms of 16 bits out of one draw."""
    cdef uint64_t x = noise_next(state)
    cdef int32_t total = <int32_t>((x & 0xFFFF) + ((x >> 16) & 0xFFFF) + ((x >> 32) & 0xFFFF) + (x >> 48))
    return (<double>total - 131070.0) * (1.0 / 37837.22656)
