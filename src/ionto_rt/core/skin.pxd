"""Skin between two electrodes: a state model with memory, not a resistor. The load of the virtual device.

V = I (R_lead + R_body) + E + sum over both sites of (V_site + I rho/(A a)),   I/(A a) = j_p(V_site, n) + C dV_site/dt
j_p = g0 V sqrt(1 + (V/Vn)^2) + n V;   n relaxes towards gmax x^4/(1 + x^4), x = |V|/(Vh p): in seconds upwards, in
about 25 min downwards.

In the place of C there may stand a constant phase element, as a ladder: C_0 beside BRANCHES branches of R_k and C_k in
series. Slow processes (SkinProcesses) change g0, the contact, the series resistance and the electrodes once a sample
period; all of them are off unless asked for. docs/simulator.md derives both, and says what agrees with what.

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

cdef enum:
    BRANCHES = 8

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
    double poration             # factor of electroporation on j_p; 1: whole
    # constant phase element; branches 0: none, and C is capacitance_f_cm2
    int32_t branches
    double lump_f_cm2           # what all of it takes up in one sub-step, by the volt that V_site rises
    double branch_f_cm2[8]      # C_k
    double branch_rate[8]       # 1/(R_k C_k), 1/s
    double branch_keep[8]       # of the difference, over one sub-step
    double branch_give[8]       # C_k (1 - keep), F/cm2
    double branch_lag[8]        # difference that a rise of V_site by 1 V within a sub-step leaves
    double branch_v[8]          # state: voltage of C_k less V_site
    # slow processes: where they began, and how far they are
    double fresh_start_s_cm2
    double contact_start
    double series_start_ohm_cm2
    double contact_share        # fault: of contact_start
    double moved_share          # state: of it in a movement
    double moved_goal
    double moved_s              # state: left of the movement
    double peel_per_s           # fault
    double peeled               # state: share that has come off
    double dry_per_s            # fault
    double dried                # state: growth of the series resistance, share
    double wet                  # state: hydration, 0 to 1
    double duct                 # state: noise of the sweat ducts, share of g0
    double pulsed               # state: reversible electroporation, 0 to 1
    double harmed               # state: lasting electroporation, 0 to 1
    double spent_c              # state: net charge on the electrode
    double electrolysis_v       # state
    double broken               # fault: factor on j_p; 1: whole
    double redox_per_s          # fault: share of REDOX_V that the electrode's potential gains
    double redox                # state: that share
    double redox_v              # state: against the current

# Slow processes, see docs/simulator.md. Zeros: all off.
cdef struct SkinProcesses:
    int32_t running             # any of them, or a fault that takes its time
    int32_t electroporation     # above 20 V over a site
    double hydration            # factor that g0 gains under a wet electrode in the long run; 0: off
    double sweat                # standard deviation of the sweat ducts' noise, share of g0; 0: off
    double motion_per_s         # movements of the active pad
    double loose_per_s          # fault: times that the lead opens for 1 to 100 ms
    double loose_s              # state: left of it
    double electrode_c_cm2      # charge after which an Ag/AgCl electrode electrolyses water; 0: never
    double response_kick        # state: skin conductance response, and what drives it
    double response
    uint64_t noise
    double rise_per_s           # fault: growth of every resistance, share

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
    double ladder_step_s        # sub-step for which the ladders are prepared
    SkinProcesses processes

# Rise of both V_site over one sub-step.
cdef struct SkinRise:
    double active_v
    double passive_v

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
# A constant phase element Z = 1/(admittance (j omega)^exponent) per cm2 in the place of both sites' capacitance.
# 0.5 < exponent < 1; admittance in S s^exponent / cm2. The ladders start empty. Exponent 0: the capacitance alone.
cdef void skin_cpe(SkinState* skin, double exponent, double admittance) noexcept nogil
# The ladders' factors for this sub-step. Called when needed; call it ahead of a loop that must not wait for exp.
cdef void skin_prepare(SkinState* skin, double step_s) noexcept nogil
# contact_start and contact_share into contact_fraction.
cdef void site_contact(SkinSite* site) noexcept nogil
# Processes that are on from now, each 0 for off. See SkinProcesses; motion per minute, electrode in mC/cm2.
cdef void skin_processes(SkinState* skin, double hydration, int32_t electroporation, double sweat,
                         double motion_per_min, double electrode_mc_cm2) noexcept nogil
# seed of the processes' noise.
cdef void skin_seed(SkinState* skin, uint64_t seed) noexcept nogil
# Time constants with which the skin opens, times factor.
cdef void skin_scale_onset(SkinState* skin, double factor) noexcept nogil
# Faults that take their time, from now on: the active pad comes off over so many seconds and then leaves the lead open;
# the series resistance under it grows by a share of its first value each minute; the lead opens for 1 to 100 ms.
cdef void skin_peel(SkinState* skin, double seconds) noexcept nogil
cdef void skin_dry(SkinState* skin, double share_per_min) noexcept nogil
cdef void skin_loosen(SkinState* skin, double per_min) noexcept nogil
# All of the skin's own current times factor, at once, under both pads; 1: whole.
cdef void skin_break(SkinState* skin, double factor) noexcept nogil
# The active electrode is used up: its potential goes 1.2 V against the current within so many seconds; 0: a new one.
cdef void skin_use_up(SkinState* skin, double seconds) noexcept nogil
# All resistances grow by this share of themselves a second; 0: they stay as they are.
cdef void skin_rise(SkinState* skin, double share_per_s) noexcept nogil
# The pad is pressed on again, and the lead is whole.
cdef void skin_mend(SkinState* skin) noexcept nogil
# One sub-step of the capacitances, not yet taken; skin_rise_voltage returns the mean current.
cdef void skin_rise_current(SkinState* skin, double mean_a, double step_s, SkinRise* rise) noexcept nogil
cdef double skin_rise_voltage(SkinState* skin, double mean_v, double source_ohm, double step_s,
                              SkinRise* rise) noexcept nogil
cdef void skin_take(SkinState* skin, const SkinRise* rise) noexcept nogil
# One sub-step of the capacitances. mean_a, mean_v: mean over the sub-step of what is forced. Second order, and stable
# for any step_s. skin_force_voltage returns the mean current.
cdef void skin_force_current(SkinState* skin, double mean_a, double step_s) noexcept nogil
cdef double skin_force_voltage(SkinState* skin, double mean_v, double source_ohm, double step_s) noexcept nogil
# The slow states (pores, polarisation, processes) over step_s: once per sample period, after its sub-steps.
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
