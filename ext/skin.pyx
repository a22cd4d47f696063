"""State model of the skin under both pads, and the Python class that runs it alone.

The current density law, its parameters and the subject variation are an engineering fit to published plateaus,
recoveries and spreads (see docs); they are no clinical facts. What flows in the tick of an in-process device is kept
to + - * / and sqrt; exp is used only when a subject is drawn or a ladder is made.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport exp, expm1, fabs, pow, sin, sqrt
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

cdef const char** SKIN_NAMES = ["typical", "dry", "hairy", "sweating", "wounded"]

cdef double PI = 3.141592653589793
cdef double OPEN_OHM = 1e9
# Rates of the ladder's branches: each BRANCH_RATIO times the one before. See docs/simulator.md, "Ladder".
cdef double BRANCH_RATIO = 6.0
cdef double BRANCH_FIRST = 1.0
# Added and taken away, it turns what has decayed below 1e-34 into zero; subnormal numbers are a hundred times as slow.
cdef double TINY = 1e-18

cdef double HYDRATION_S = 900.0
cdef double DUCT_S = 15.0
cdef double RESPONSE_PER_S = 2.0 / 60.0
cdef double RESPONSE_FALL_S = 2.5
cdef double RESPONSE_RISE_S = 1.0
cdef double RESPONSE_GAIN = 1.842       # of the kick over the peak that follows it
cdef double MOVED_S = 0.05
cdef double PORATION_V = 20.0
cdef double PORATION_VS = 0.1
cdef double PORATION_S = 2.0
cdef double PORATION_LOSS = 0.8
cdef double HARM_V = 80.0
cdef double HARM_VS = 200.0
cdef double HARM_S = 3600.0
cdef double HARM_LOSS = 0.65
cdef double ELECTROLYSIS_V = 1.5
cdef double ELECTROLYSIS_S = 60.0
cdef double LEAST_CONTACT = 0.02
cdef double REDOX_V = 1.2


cdef void site_start(SkinSite* site, double area_cm2) noexcept nogil:
    memset(site, 0, sizeof(site[0]))
    site.area_cm2 = area_cm2
    site.contact_fraction = 1.0
    site.fresh_s_cm2 = 1e-5
    site.corner_v = 1.0
    site.half_v = 5.0
    site.pore_max_s_cm2 = 1.25e-3
    site.onset_s = 600.0
    site.onset_least_s = 0.2
    site.onset_v = 0.8
    site.recovery_s = 1500.0
    site.capacitance_f_cm2 = 30e-9
    site.series_ohm_cm2 = 400.0
    site.poration = 1.0
    site.broken = 1.0


cdef void site_begin(SkinSite* site) noexcept nogil:
    """What is set at this moment is where the slow processes begin."""
    site.fresh_start_s_cm2 = site.fresh_s_cm2
    site.contact_start = site.contact_fraction
    site.series_start_ohm_cm2 = site.series_ohm_cm2
    site.contact_share = 1.0
    site.moved_share = 1.0
    site.moved_goal = 1.0


cdef void site_factors(SkinSite* site, double positive, double negative) noexcept nogil:
    site.factor_positive = positive
    site.factor_negative = negative


cdef void skin_named(SkinState* skin, int32_t name, uint64_t seed, double active_cm2, double return_cm2) noexcept nogil:
    cdef double anode = 1.25
    cdef double cathode = 0.80
    cdef double fresh = 1.0
    cdef double half = 1.0
    cdef double recovery = 1.0
    cdef uint64_t draw
    cdef SkinSite* sites[2]
    cdef int k, _k
    memset(skin, 0, sizeof(skin[0]))
    site_start(&skin.active, active_cm2)
    site_start(&skin.passive, return_cm2)
    if seed:
        draw = seed * <uint64_t>0x9E3779B97F4A7C15 | 1
        for _k in range(8):
            noise_next(&draw)
        fresh = exp(0.7 * noise_normal(&draw))
        half = exp(0.55 * noise_normal(&draw))
        recovery = exp(0.5 * noise_normal(&draw))
        cathode = 0.7 + 0.2 * noise_uniform(&draw)
        anode = 1.1 + 0.3 * noise_uniform(&draw)
        skin.active.contact_fraction = 0.7 + 0.3 * noise_uniform(&draw)
        skin.passive.contact_fraction = 0.7 + 0.3 * noise_uniform(&draw)
    site_factors(&skin.active, anode, cathode)
    site_factors(&skin.passive, cathode, anode)
    sites[0] = &skin.active
    sites[1] = &skin.passive
    for k in range(2):
        sites[k].fresh_s_cm2 *= fresh
        sites[k].half_v *= half
        sites[k].recovery_s *= recovery
        if name == SKIN_DRY:
            sites[k].fresh_s_cm2 *= 0.1
        elif name == SKIN_HAIRY:
            sites[k].pore_max_s_cm2 *= 0.3
        elif name == SKIN_SWEATING:
            sites[k].fresh_s_cm2 *= 5.0
        elif name == SKIN_WOUNDED:
            sites[k].pore_s_cm2 = 1e-3
        site_begin(sites[k])
    skin_seed(skin, seed)
    skin.lead_ohm = 4.0
    skin.body_ohm = 530.0
    skin.polarisation_v = 1.0
    skin.polarisation_half_a = 1e-6 * active_cm2
    skin.polarisation_s = 0.2


cdef void skin_linear(SkinState* skin, double series_ohm, double parallel_ohm, double capacitance_f) noexcept nogil:
    skin_named(skin, SKIN_TYPICAL, 0, 1.0, 1.0)
    skin.active.corner_v = 1e12
    skin.active.pore_max_s_cm2 = 0.0
    skin.active.series_ohm_cm2 = 0.0
    skin.passive = skin.active
    skin.active.fresh_s_cm2 = 1.0 / parallel_ohm
    skin.active.capacitance_f_cm2 = capacitance_f
    # The second site carries no voltage: a siemens of conductance and a time constant of a nanosecond.
    skin.passive.fresh_s_cm2 = 1e9
    skin.passive.capacitance_f_cm2 = 1.0
    site_begin(&skin.active)
    site_begin(&skin.passive)
    skin.lead_ohm = 0.0
    skin.body_ohm = series_ohm
    skin.polarisation_v = 0.0


cdef void site_ladder(SkinSite* site, double exponent, double admittance) noexcept nogil:
    """Branches for the constant phase element: the trapezoidal rule over log(rate) in s^a = sin(pi a)/pi s times the
    integral of r^(a - 1)/(s + r) dr over all rates r > 0. The faster branches that are left out are a capacitance."""
    cdef double rate = BRANCH_FIRST
    cdef double scale
    cdef int k
    memset(site.branch_v, 0, sizeof(site.branch_v))
    site.branches = 0
    if exponent <= 0.0:
        return
    site.branches = BRANCHES
    scale = admittance * sin(PI * exponent) / PI * 1.791759469228055    # log of BRANCH_RATIO
    for k in range(BRANCHES):
        site.branch_rate[k] = rate
        site.branch_f_cm2[k] = scale * pow(rate, exponent - 1.0)
        rate *= BRANCH_RATIO
    site.capacitance_f_cm2 = scale * pow(rate, exponent - 1.0) / (1.0 - pow(BRANCH_RATIO, exponent - 1.0))


cdef void site_prepare(SkinSite* site, double step_s) noexcept nogil:
    """Exact for a V_site that moves linearly over the sub-step: second order, and stable for any rate."""
    cdef double turns, gone
    cdef int k
    site.lump_f_cm2 = site.capacitance_f_cm2
    for k in range(BRANCHES):
        turns = site.branch_rate[k] * step_s
        gone = -expm1(-turns)
        site.branch_keep[k] = 1.0 - gone
        site.branch_give[k] = site.branch_f_cm2[k] * gone
        site.branch_lag[k] = gone / turns
        site.lump_f_cm2 += site.branch_f_cm2[k] * (1.0 - site.branch_lag[k])


cdef void skin_prepare(SkinState* skin, double step_s) noexcept nogil:
    site_prepare(&skin.active, step_s)
    site_prepare(&skin.passive, step_s)
    skin.ladder_step_s = step_s


cdef void skin_cpe(SkinState* skin, double exponent, double admittance) noexcept nogil:
    site_ladder(&skin.active, exponent, admittance)
    site_ladder(&skin.passive, exponent, admittance)
    skin.ladder_step_s = 0.0


cdef void skin_seed(SkinState* skin, uint64_t seed) noexcept nogil:
    cdef int _k
    skin.processes.noise = (seed + 1) * <uint64_t>0x94D049BB133111EB | 1
    for _k in range(8):
        noise_next(&skin.processes.noise)


cdef inline double site_series_ohm(const SkinSite* site) noexcept nogil:
    return site.series_ohm_cm2 / (site.area_cm2 * site.contact_fraction)


cdef double skin_series_ohm(const SkinState* skin) noexcept nogil:
    return (skin.lead_ohm + skin.body_ohm + skin.open_ohm
            + site_series_ohm(&skin.active) + site_series_ohm(&skin.passive))


cdef inline double skin_inner_v(const SkinState* skin) noexcept nogil:
    return (skin.half_cell_v + skin.electrode_v + skin.active.electrolysis_v + skin.passive.electrolysis_v
            + skin.active.redox_v + skin.active.voltage_v + skin.passive.voltage_v)


cdef double skin_voltage(const SkinState* skin, double current_a) noexcept nogil:
    return current_a * skin_series_ohm(skin) + skin_inner_v(skin)


cdef double skin_sentinel_voltage(const SkinState* skin, double current_a) noexcept nogil:
    return (current_a * (0.5 * skin.lead_ohm + skin.open_ohm + site_series_ohm(&skin.active))
            + 0.5 * skin.electrode_v + skin.active.electrolysis_v + skin.active.redox_v + skin.active.voltage_v)


cdef double skin_current(const SkinState* skin, double source_v, double source_ohm) noexcept nogil:
    return (source_v - skin_inner_v(skin)) / (source_ohm + skin_series_ohm(skin))


cdef inline void site_law(const SkinSite* site, double* current_a_cm2, double* slope_s_cm2) noexcept nogil:
    """Density of the skin's own current and its derivative by the voltage."""
    cdef double u = site.voltage_v / site.corner_v
    cdef double square = u * u
    cdef double root = sqrt(1.0 + square)
    current_a_cm2[0] = site.poration * (site.fresh_s_cm2 * root + site.pore_s_cm2) * site.voltage_v
    slope_s_cm2[0] = site.poration * (site.fresh_s_cm2 * (1.0 + 2.0 * square) / root + site.pore_s_cm2)


cdef inline double site_per_f_cm2(const SkinSite* site, double step_s, double* current_a_cm2) noexcept nogil:
    """step / capacitance; takes what the ladder's branches give in this sub-step off the density of the skin."""
    cdef double given = 0.0
    cdef int k
    if not site.branches:
        return step_s / site.capacitance_f_cm2
    for k in range(BRANCHES):
        given += site.branch_give[k] * site.branch_v[k]
    current_a_cm2[0] -= given / step_s
    return step_s / site.lump_f_cm2


cdef inline double settled(double value) noexcept nogil:
    """What decays ends at zero instead of among the subnormal numbers, which cost a hundred times as much."""
    return value if fabs(value) > 1e-18 else 0.0


cdef inline double site_rise_current(const SkinSite* site, double current_a, double step_s) noexcept nogil:
    # step phi1(-x) dV/dt with exp(-x) ~ 1/(1 + x + x^2/2): exact to second order, and damps any stiff step.
    cdef double density, slope, x, rate
    site_law(site, &density, &slope)
    rate = site_per_f_cm2(site, step_s, &density)
    x = rate * slope
    return (rate * (current_a / (site.area_cm2 * site.contact_fraction) - density)
            * (1.0 + 0.5 * x) / (1.0 + x + 0.5 * x * x))


cdef inline void site_take(SkinSite* site, double rise_v) noexcept nogil:
    cdef int k
    site.voltage_v = settled(site.voltage_v + rise_v)
    if site.branches:
        for k in range(BRANCHES):
            site.branch_v[k] = site.branch_v[k] * site.branch_keep[k] - site.branch_lag[k] * rise_v + TINY - TINY


cdef void skin_rise_current(SkinState* skin, double mean_a, double step_s, SkinRise* rise) noexcept nogil:
    if skin.ladder_step_s != step_s and skin.active.branches:
        skin_prepare(skin, step_s)
    rise.active_v = site_rise_current(&skin.active, mean_a, step_s)
    rise.passive_v = site_rise_current(&skin.passive, mean_a, step_s)


cdef double skin_rise_voltage(SkinState* skin, double mean_v, double source_ohm, double step_s,
                              SkinRise* rise) noexcept nogil:
    # As site_rise_current, for both sites at once: they share the current of the series resistance. The mean of the
    # voltages over the sub-step takes phi2 in the place of phi1.
    cdef double admittance = 1.0 / (source_ohm + skin_series_ohm(skin))
    cdef double start_a = (mean_v - skin_inner_v(skin)) * admittance
    cdef double rate1, rate2, share1, share2
    cdef double density1, slope1, density2, slope2
    cdef double x11, x12, x21, x22, d11, d12, d21, d22, inverse, b1, b2, xb1, xb2, r1, r2, m1, m2
    if skin.ladder_step_s != step_s and skin.active.branches:
        skin_prepare(skin, step_s)
    site_law(&skin.active, &density1, &slope1)
    site_law(&skin.passive, &density2, &slope2)
    rate1 = site_per_f_cm2(&skin.active, step_s, &density1)
    rate2 = site_per_f_cm2(&skin.passive, step_s, &density2)
    share1 = rate1 / (skin.active.area_cm2 * skin.active.contact_fraction)
    share2 = rate2 / (skin.passive.area_cm2 * skin.passive.contact_fraction)
    b1 = share1 * start_a - rate1 * density1
    b2 = share2 * start_a - rate2 * density2
    x12 = share1 * admittance
    x21 = share2 * admittance
    x11 = x12 + rate1 * slope1
    x22 = x21 + rate2 * slope2
    d11 = 1.0 + x11 + 0.5 * (x11 * x11 + x12 * x21)
    d22 = 1.0 + x22 + 0.5 * (x22 * x22 + x12 * x21)
    d12 = x12 + 0.5 * x12 * (x11 + x22)
    d21 = x21 + 0.5 * x21 * (x11 + x22)
    inverse = 1.0 / (d11 * d22 - d12 * d21)
    xb1 = x11 * b1 + x12 * b2
    xb2 = x21 * b1 + x22 * b2
    r1 = 0.5 * (b1 + xb1)
    r2 = 0.5 * (b2 + xb2)
    m1 = (d22 * r1 - d12 * r2) * inverse
    m2 = (d11 * r2 - d21 * r1) * inverse
    r1 = b1 + 0.5 * xb1
    r2 = b2 + 0.5 * xb2
    rise.active_v = (d22 * r1 - d12 * r2) * inverse
    rise.passive_v = (d11 * r2 - d21 * r1) * inverse
    return start_a - (m1 + m2) * admittance


cdef void skin_take(SkinState* skin, const SkinRise* rise) noexcept nogil:
    site_take(&skin.active, rise.active_v)
    site_take(&skin.passive, rise.passive_v)


cdef void skin_force_current(SkinState* skin, double mean_a, double step_s) noexcept nogil:
    cdef SkinRise rise
    skin_rise_current(skin, mean_a, step_s, &rise)
    skin_take(skin, &rise)


cdef double skin_force_voltage(SkinState* skin, double mean_v, double source_ohm, double step_s) noexcept nogil:
    cdef SkinRise rise
    cdef double flowed_a = skin_rise_voltage(skin, mean_v, source_ohm, step_s, &rise)
    skin_take(skin, &rise)
    return flowed_a


cdef inline double relaxed(double x) noexcept nogil:
    """1 - exp(-x) to second order, within 0 and 1 for any x >= 0."""
    return (x + 0.5 * x * x) / (1.0 + x + 0.5 * x * x)


cdef inline void site_age(SkinSite* site, double step_s) noexcept nogil:
    cdef double factor = site.factor_positive if site.voltage_v >= 0.0 else site.factor_negative
    cdef double magnitude = fabs(site.voltage_v)
    cdef double x = magnitude / (site.half_v * factor)
    cdef double fourth = x * x * x * x
    cdef double goal = site.pore_max_s_cm2 * fourth / (1.0 + fourth)
    cdef double time_s = site.recovery_s
    if goal > site.pore_s_cm2:
        x = magnitude / (site.onset_v * factor)
        time_s = site.onset_s / (1.0 + x * x * x)
        if time_s < site.onset_least_s:
            time_s = site.onset_least_s
    site.pore_s_cm2 += (goal - site.pore_s_cm2) * relaxed(step_s / time_s)


cdef void site_contact(SkinSite* site) noexcept nogil:
    site.contact_fraction = site.contact_start * site.contact_share * site.moved_share * (1.0 - site.peeled)


cdef void skin_processes(SkinState* skin, double hydration, int32_t electroporation, double sweat,
                         double motion_per_min, double electrode_mc_cm2) noexcept nogil:
    cdef SkinProcesses* on = &skin.processes
    on.hydration = hydration
    on.electroporation = electroporation
    on.sweat = sweat
    on.motion_per_s = motion_per_min / 60.0
    on.electrode_c_cm2 = 1e-3 * electrode_mc_cm2
    if hydration > 0.0 or electroporation or sweat > 0.0 or motion_per_min > 0.0 or electrode_mc_cm2 > 0.0:
        on.running = 1


cdef void skin_scale_onset(SkinState* skin, double factor) noexcept nogil:
    skin.active.onset_s *= factor
    skin.active.onset_least_s *= factor
    skin.passive.onset_s *= factor
    skin.passive.onset_least_s *= factor


cdef void skin_peel(SkinState* skin, double seconds) noexcept nogil:
    skin.processes.running = 1
    skin.active.peel_per_s = 1.0 / seconds


cdef void skin_dry(SkinState* skin, double share_per_min) noexcept nogil:
    skin.processes.running = 1
    skin.active.dry_per_s = share_per_min / 60.0


cdef void skin_loosen(SkinState* skin, double per_min) noexcept nogil:
    skin.processes.running = 1
    skin.processes.loose_per_s = per_min / 60.0


cdef inline void site_break(SkinSite* site, double factor) noexcept nogil:
    site.poration *= factor / site.broken
    site.broken = factor


cdef void skin_break(SkinState* skin, double factor) noexcept nogil:
    site_break(&skin.active, factor)
    site_break(&skin.passive, factor)


cdef void skin_use_up(SkinState* skin, double seconds) noexcept nogil:
    skin.processes.running = 1
    skin.active.redox_per_s = 1.0 / seconds if seconds > 0.0 else 0.0
    if seconds <= 0.0:
        skin.active.redox = 0.0
        skin.active.redox_v = 0.0


cdef void skin_rise(SkinState* skin, double share_per_s) noexcept nogil:
    skin.processes.running = 1
    skin.processes.rise_per_s = share_per_s


cdef inline void site_rise(SkinSite* site, double factor) noexcept nogil:
    site_break(site, site.broken / factor)
    site.series_start_ohm_cm2 *= factor
    site.series_ohm_cm2 *= factor


cdef void skin_mend(SkinState* skin) noexcept nogil:
    skin.open_ohm = 0.0
    skin.shunt_ohm = 0.0
    skin.processes.loose_per_s = 0.0
    skin.processes.loose_s = 0.0
    skin.active.peel_per_s = 0.0
    if skin.active.peeled > 0.0:
        skin.active.peeled = 0.0
        site_contact(&skin.active)


cdef inline bint chance(uint64_t* noise, double per_s, double step_s) noexcept nogil:
    return per_s > 0.0 and noise_uniform(noise) < per_s * step_s


cdef void site_conductance(SkinSite* site, SkinProcesses* on, double step_s) noexcept nogil:
    """Hydration and sweat into g0; electroporation into the factor on all of the skin's current."""
    cdef double factor = 1.0
    cdef double magnitude = fabs(site.voltage_v)
    cdef double x
    if on.hydration > 0.0:
        site.wet += (1.0 - site.wet) * relaxed(step_s / HYDRATION_S)
        factor += (on.hydration - 1.0) * site.wet
    if on.sweat > 0.0:
        x = relaxed(step_s / DUCT_S)
        site.duct += on.sweat * sqrt(2.0 * x - x * x) * noise_normal(&on.noise) - site.duct * x
        factor *= 1.0 + site.duct + on.response
    site.fresh_s_cm2 = site.fresh_start_s_cm2 * (factor if factor > 0.05 else 0.05)
    if on.electroporation:
        x = magnitude / PORATION_VS if magnitude > PORATION_V else 0.0
        site.pulsed += (x / (x + 1.0 / PORATION_S) - site.pulsed) * relaxed(step_s * (x + 1.0 / PORATION_S))
        x = magnitude / HARM_VS if magnitude > HARM_V else 0.0
        site.harmed += (x / (x + 1.0 / HARM_S) - site.harmed) * relaxed(step_s * (x + 1.0 / HARM_S))
        site.poration = site.broken / ((1.0 - PORATION_LOSS * site.pulsed) * (1.0 - HARM_LOSS * site.harmed))


cdef void site_electrode(SkinSite* site, double electrode_c_cm2, double mean_a, double step_s) noexcept nogil:
    """The coat is used up by net charge; what flows after that electrolyses water, against the current."""
    cdef double goal = 0.0
    site.spent_c += mean_a * step_s
    if mean_a * site.spent_c > 0.0 and fabs(site.spent_c) > electrode_c_cm2 * site.area_cm2:
        goal = ELECTROLYSIS_V if mean_a > 0.0 else -ELECTROLYSIS_V
    site.electrolysis_v = settled(site.electrolysis_v
                                  + (goal - site.electrolysis_v) * relaxed(step_s / ELECTROLYSIS_S))


cdef void skin_process(SkinState* skin, double mean_a, double step_s) noexcept nogil:
    cdef SkinProcesses* on = &skin.processes
    cdef SkinSite* active = &skin.active
    if on.sweat > 0.0:
        if chance(&on.noise, RESPONSE_PER_S, step_s):
            on.response_kick += RESPONSE_GAIN * (0.01 + 0.04 * noise_uniform(&on.noise))
        on.response = settled(on.response + (on.response_kick - on.response) * relaxed(step_s / RESPONSE_RISE_S))
        on.response_kick = settled(on.response_kick * (1.0 - relaxed(step_s / RESPONSE_FALL_S)))
    site_conductance(active, on, step_s)
    site_conductance(&skin.passive, on, step_s)
    if on.motion_per_s > 0.0:
        active.moved_s -= step_s
        if active.moved_s <= 0.0:
            active.moved_goal = 1.0
            if chance(&on.noise, on.motion_per_s, step_s):
                active.moved_goal = 0.3 + 0.6 * noise_uniform(&on.noise)
                active.moved_s = 0.2 + 4.8 * noise_uniform(&on.noise)
        active.moved_share += (active.moved_goal - active.moved_share) * relaxed(step_s / MOVED_S)
    if active.peel_per_s > 0.0:
        active.peeled += active.peel_per_s * step_s
        if active.peeled >= 1.0 - LEAST_CONTACT:
            active.peeled = 1.0 - LEAST_CONTACT
            active.peel_per_s = 0.0
            skin.open_ohm = OPEN_OHM
    site_contact(active)
    if active.dry_per_s > 0.0:
        active.dried += active.dry_per_s * step_s
        active.series_ohm_cm2 = active.series_start_ohm_cm2 * (1.0 + active.dried)
    if on.loose_per_s > 0.0:
        if on.loose_s > 0.0:
            on.loose_s -= step_s
            if on.loose_s <= 0.0:
                skin.open_ohm = 0.0
        elif chance(&on.noise, on.loose_per_s, step_s):
            on.loose_s = 1e-3 + 99e-3 * noise_uniform(&on.noise)
            skin.open_ohm = OPEN_OHM
    if on.rise_per_s > 0.0:
        site_rise(active, 1.0 + on.rise_per_s * step_s)
        site_rise(&skin.passive, 1.0 + on.rise_per_s * step_s)
        skin.body_ohm *= 1.0 + on.rise_per_s * step_s
    if active.redox_per_s > 0.0:
        active.redox += active.redox_per_s * step_s
        if active.redox > 1.0:
            active.redox = 1.0
        active.redox_v = REDOX_V * active.redox if mean_a > 0.0 else -REDOX_V * active.redox if mean_a < 0.0 else 0.0
    if on.electrode_c_cm2 > 0.0:
        site_electrode(active, on.electrode_c_cm2, mean_a, step_s)
        site_electrode(&skin.passive, on.electrode_c_cm2, mean_a, step_s)


cdef void skin_age(SkinState* skin, double mean_a, double step_s) noexcept nogil:
    cdef double goal
    site_age(&skin.active, step_s)
    site_age(&skin.passive, step_s)
    # Electrodes polarise against the current within a fraction of a second and let go as fast.
    goal = skin.polarisation_v * mean_a / (fabs(mean_a) + skin.polarisation_half_a)
    skin.electrode_v = settled(
        skin.electrode_v + (goal - skin.electrode_v) * relaxed(step_s / skin.polarisation_s))
    if skin.processes.running:
        skin_process(skin, mean_a, step_s)


def skin_names():
    """Names of the built-in skins, in the order of their numbers."""
    return tuple(SKIN_NAMES[k].decode() for k in range(5))


def skin_number(str name):
    """Number of a built-in skin; ValueError names the ones there are."""
    names = skin_names()
    if name not in names:
        raise ValueError(f"skin {name!r} is not known: use one of {', '.join(names)}")
    return names.index(name)


cdef class Skin:
    """Skin under two pads, driven by hand.

    Args:
        name: typical, dry, hairy, sweating or wounded.
        seed: 0 for the nominal subject, any other number draws one (g0, Vh, recovery log-normal; polarity factors and
            contact fractions uniform). Also of the noise of sweat and motion.
        active_area_cm2, return_area_cm2: areas of the pads, cm2, positive.
        cpe_exponent: of a constant phase element in the place of each site's capacitance, 0.75 to 0.98; 0: none.
        cpe_admittance_s_cm2: its admittance at 1 rad/s, S s^exponent / cm2.
        hydration: factor that g0 gains under the wet electrode, half of it in 10 minutes, 1 to 20; 0: off.
        electroporation: whether more than 20 V over a site opens it further.
        sweat: standard deviation of the sweat ducts' noise as a share of g0, to 0.3, with skin conductance responses
            of 1 to 5 % twice a minute; 0: off.
        motion_per_min: movements of the active pad, each leaving 0.3 to 0.9 of its contact for 0.2 to 5 s; 0: none.
        electrode_mc_cm2: charge after which the electrodes electrolyse water, +1.5 V each; 0: never.

    Raises:
        ValueError: unknown name, or a value outside these.
    """

    cdef SkinState state

    def __init__(self, str name="typical", uint64_t seed=0, double active_area_cm2=8.0, double return_area_cm2=25.0, *,
                 double cpe_exponent=0.0, double cpe_admittance_s_cm2=60e-9, double hydration=0.0,
                 bint electroporation=False, double sweat=0.0, double motion_per_min=0.0,
                 double electrode_mc_cm2=0.0):
        if not (active_area_cm2 > 0.0 and return_area_cm2 > 0.0):
            raise ValueError(f"pad areas {active_area_cm2} and {return_area_cm2} cm2 must be positive")
        if cpe_exponent != 0.0 and not (0.75 <= cpe_exponent <= 0.98 and cpe_admittance_s_cm2 > 0.0):
            raise ValueError(
                f"constant phase element of exponent {cpe_exponent} and {cpe_admittance_s_cm2} S/cm2: "
                "use 0.75 to 0.98 and a positive admittance"
            )
        for value, what, least, most in (
            (hydration, "hydration", 1.0, 20.0), (sweat, "sweat", 0.0, 0.3), (motion_per_min, "motion", 0.0, 60.0),
            (electrode_mc_cm2, "electrode charge", 0.0, 1e6),
        ):
            if value != 0.0 and not least <= value <= most:
                raise ValueError(f"{what} {value} must be 0 or from {least:g} to {most:g}")
        skin_named(&self.state, skin_number(name), seed, active_area_cm2, return_area_cm2)
        skin_cpe(&self.state, cpe_exponent, cpe_admittance_s_cm2)
        skin_processes(&self.state, hydration, electroporation, sweat, motion_per_min, electrode_mc_cm2)

    def capsule(self):
        """A PyCapsule of this skin's SkinState, for a FrontEnd; whoever takes it must keep this object."""
        return PyCapsule_New(&self.state, "ionto_rt.core.skin.SkinState", NULL)

    def force_current(self, double current_a, double period_s, uint64_t periods=1, uint32_t substeps=8):
        """Hold current_a (A) for some sample periods (s), each of so many sub-steps. Returns the end voltage, V."""
        cdef uint64_t _k
        cdef uint32_t _step
        if not period_s > 0.0 or substeps == 0:
            raise ValueError(f"period {period_s} s and substeps {substeps} must be positive")
        with nogil:
            for _k in range(periods):
                for _step in range(substeps):
                    skin_force_current(&self.state, current_a, period_s / substeps)
                skin_age(&self.state, current_a, period_s)
        return skin_voltage(&self.state, current_a)

    def force_voltage(self, double source_v, double source_ohm, double period_s, uint64_t periods=1,
                      uint32_t substeps=8):
        """Hold source_v (V) behind source_ohm for some sample periods (s). Returns the charge that flowed, C."""
        cdef uint64_t _k
        cdef uint32_t _step
        cdef double period_c
        cdef double total_c = 0.0
        if not period_s > 0.0 or substeps == 0 or source_ohm < 0.0:
            raise ValueError(
                f"period {period_s} s and substeps {substeps} must be positive, {source_ohm} ohm not negative"
            )
        with nogil:
            for _k in range(periods):
                period_c = 0.0
                for _step in range(substeps):
                    period_c += (skin_force_voltage(&self.state, source_v, source_ohm, period_s / substeps)
                                 * (period_s / substeps))
                skin_age(&self.state, period_c / period_s, period_s)
                total_c += period_c
        return total_c

    def current_a(self, double source_v, double source_ohm):
        """Current at this instant, A, from source_v behind source_ohm."""
        return skin_current(&self.state, source_v, source_ohm)

    def voltage_v(self, double current_a):
        """Terminal voltage at this instant, V, were current_a to flow."""
        return skin_voltage(&self.state, current_a)

    @property
    def series_ohm(self):
        """Leads, body and the series parts of both sites, ohm."""
        return skin_series_ohm(&self.state)

    @property
    def active_v(self):
        """Voltage over the skin of the active site, V."""
        return self.state.active.voltage_v

    @property
    def return_v(self):
        """Voltage over the skin of the return site, V."""
        return self.state.passive.voltage_v

    @property
    def active_ohm_cm2(self):
        """Small-signal resistance of the active site's skin at rest, ohm cm2."""
        cdef const SkinSite* site = &self.state.active
        return 1.0 / (site.poration * (site.fresh_s_cm2 + site.pore_s_cm2))

    @property
    def contact_fraction(self):
        """Wetted share of the active pad, (0, 1]."""
        return self.state.active.contact_fraction

    @contact_fraction.setter
    def contact_fraction(self, double value):
        if not 0.0 < value <= 1.0:
            raise ValueError(f"contact fraction {value} must be above 0 and at most 1")
        self.state.active.contact_start = value
        site_contact(&self.state.active)

    @property
    def body_ohm(self):
        """Body and lead resistance that no contact area scales, ohm."""
        return self.state.lead_ohm + self.state.body_ohm

    @body_ohm.setter
    def body_ohm(self, double value):
        if not value > 0.0:
            raise ValueError(f"body resistance {value} ohm must be positive")
        self.state.lead_ohm = 0.0
        self.state.body_ohm = value

    @property
    def polarisation_v(self):
        """Most that the electrodes polarise against the current, V."""
        return self.state.polarisation_v

    @polarisation_v.setter
    def polarisation_v(self, double value):
        self.state.polarisation_v = value

    @property
    def half_cell_v(self):
        """Standing difference of the electrodes' potentials, V."""
        return self.state.half_cell_v

    @half_cell_v.setter
    def half_cell_v(self, double value):
        self.state.half_cell_v = value

    @property
    def polarity_factors(self):
        """(anode, cathode): factors on the voltages at which the skin opens."""
        return self.state.active.factor_positive, self.state.active.factor_negative

    @polarity_factors.setter
    def polarity_factors(self, value):
        anode, cathode = value
        if not (anode > 0.0 and cathode > 0.0):
            raise ValueError(f"polarity factors {value} must be positive")
        site_factors(&self.state.active, anode, cathode)
        site_factors(&self.state.passive, cathode, anode)

    @property
    def series_ohm_cm2(self):
        """Series part of either site, ohm cm2; 0: a membrane in a cell."""
        return self.state.active.series_ohm_cm2

    @series_ohm_cm2.setter
    def series_ohm_cm2(self, double value):
        if not value >= 0.0:
            raise ValueError(f"series part of {value} ohm cm2 must not be negative")
        self.state.active.series_ohm_cm2 = self.state.active.series_start_ohm_cm2 = value
        self.state.passive.series_ohm_cm2 = self.state.passive.series_start_ohm_cm2 = value

    @property
    def onset_s(self):
        """Time constant with which the active site's skin opens at low voltage, s."""
        return self.state.active.onset_s

    def scale_onset(self, double factor):
        """Multiply the time constants with which both sites open."""
        if not factor > 0.0:
            raise ValueError(f"onset scale {factor} must be positive")
        skin_scale_onset(&self.state, factor)

    @property
    def active_pore_s_cm2(self):
        """What the active site has opened by, S/cm2: the state n."""
        return self.state.active.pore_s_cm2

    @property
    def active_chord_ohm_cm2(self):
        """Voltage over direct current density of the active site at its present voltage, ohm cm2."""
        cdef double density, slope
        site_law(&self.state.active, &density, &slope)
        return self.state.active.voltage_v / density if density != 0.0 else self.active_ohm_cm2

    @property
    def electrolysis_v(self):
        """What electrolysis at both electrodes adds to the terminal voltage, V."""
        return self.state.active.electrolysis_v + self.state.passive.electrolysis_v

    @property
    def is_open(self):
        """Whether the lead is off or a pad has come off."""
        return self.state.open_ohm > 0.0

    @property
    def ladder(self):
        """(C_0, ((R_k, C_k), ...)) of the active site's constant phase element, F/cm2 and ohm cm2; branches slow first.

        Without one: (capacitance, ()).
        """
        cdef int k
        cdef const SkinSite* site = &self.state.active
        return site.capacitance_f_cm2, tuple(
            (1.0 / (site.branch_rate[k] * site.branch_f_cm2[k]), site.branch_f_cm2[k]) for k in range(site.branches)
        )

    def peel(self, double seconds):
        """The active pad comes off, its contact shrinking evenly over so many seconds; then the lead is open."""
        if not seconds > 0.0:
            raise ValueError(f"{seconds} s must be positive")
        skin_peel(&self.state, seconds)

    def dry(self, double share_per_min):
        """The series resistance under the active pad grows by this share of its first value each minute."""
        if not share_per_min > 0.0:
            raise ValueError(f"share {share_per_min} must be positive")
        skin_dry(&self.state, share_per_min)

    def loosen(self, double per_min):
        """The lead opens so many times a minute, at random, for 1 to 100 ms each."""
        if not per_min > 0.0:
            raise ValueError(f"{per_min} times a minute must be positive")
        skin_loosen(&self.state, per_min)

    def open_lead(self):
        """The lead comes off: 1 Gohm in series."""
        self.state.open_ohm = OPEN_OHM

    def bridge(self, double shunt_ohm):
        """So many ohm between the leads."""
        if not shunt_ohm > 0.0:
            raise ValueError(f"bridge of {shunt_ohm} ohm must be positive")
        self.state.shunt_ohm = shunt_ohm

    def mend(self):
        """The lead is whole, the bridge gone, and a pad that was peeling is pressed on again."""
        skin_mend(&self.state)
