"""State model of the skin under both pads, and the Python class that runs it alone.

The current density law, its parameters and the subject variation are an engineering fit to published plateaus,
recoveries and spreads (see docs); they are no clinical facts. What flows in the tick of an in-process device is kept
to + - * / and sqrt; exp is used only when a subject is drawn.
"""
from libc.math cimport exp, fabs, sqrt
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef const char** SKIN_NAMES = ["typical", "dry", "hairy", "sweating", "wounded"]


cdef void site_start(SkinSite* site, double area_cm2) noexcept nogil:
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
    site.voltage_v = 0.0
    site.pore_s_cm2 = 0.0


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
    site_start(&skin.active, active_cm2)
    site_start(&skin.passive, return_cm2)
    if seed:
        draw = seed * <uint64_t>0x9E3779B97F4A7C15 | 1
        for _k in range(8):
            noise_next(&draw)
        fresh = exp(0.7 * noise_normal(&draw))
        half = exp(0.45 * noise_normal(&draw))
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
    skin.lead_ohm = 4.0
    skin.body_ohm = 530.0
    skin.open_ohm = 0.0
    skin.shunt_ohm = 0.0
    skin.half_cell_v = 0.0
    skin.polarisation_v = 1.0
    skin.polarisation_half_a = 1e-6 * active_cm2
    skin.polarisation_s = 0.2
    skin.electrode_v = 0.0


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
    skin.lead_ohm = 0.0
    skin.body_ohm = series_ohm
    skin.polarisation_v = 0.0


cdef inline double site_series_ohm(const SkinSite* site) noexcept nogil:
    return site.series_ohm_cm2 / (site.area_cm2 * site.contact_fraction)


cdef double skin_series_ohm(const SkinState* skin) noexcept nogil:
    return (skin.lead_ohm + skin.body_ohm + skin.open_ohm
            + site_series_ohm(&skin.active) + site_series_ohm(&skin.passive))


cdef inline double skin_inner_v(const SkinState* skin) noexcept nogil:
    return skin.half_cell_v + skin.electrode_v + skin.active.voltage_v + skin.passive.voltage_v


cdef double skin_voltage(const SkinState* skin, double current_a) noexcept nogil:
    return current_a * skin_series_ohm(skin) + skin_inner_v(skin)


cdef double skin_sentinel_voltage(const SkinState* skin, double current_a) noexcept nogil:
    return (current_a * (0.5 * skin.lead_ohm + skin.open_ohm + site_series_ohm(&skin.active))
            + 0.5 * skin.electrode_v + skin.active.voltage_v)


cdef double skin_current(const SkinState* skin, double source_v, double source_ohm) noexcept nogil:
    return (source_v - skin_inner_v(skin)) / (source_ohm + skin_series_ohm(skin))


cdef inline void site_law(const SkinSite* site, double* current_a_cm2, double* slope_s_cm2) noexcept nogil:
    """Density of the skin's own current and its derivative by the voltage."""
    cdef double u = site.voltage_v / site.corner_v
    cdef double square = u * u
    cdef double root = sqrt(1.0 + square)
    current_a_cm2[0] = (site.fresh_s_cm2 * root + site.pore_s_cm2) * site.voltage_v
    slope_s_cm2[0] = site.fresh_s_cm2 * (1.0 + 2.0 * square) / root + site.pore_s_cm2


cdef inline double settled(double value) noexcept nogil:
    """What decays ends at zero instead of among the subnormal numbers, which cost a hundred times as much."""
    return value if fabs(value) > 1e-18 else 0.0


cdef inline void site_force_current(SkinSite* site, double current_a, double step_s) noexcept nogil:
    # V += step phi1(-x) dV/dt with exp(-x) ~ 1/(1 + x + x^2/2): exact to second order, and damps any stiff step.
    cdef double density, slope, x, rate
    site_law(site, &density, &slope)
    rate = step_s / site.capacitance_f_cm2
    x = rate * slope
    site.voltage_v = settled(
        site.voltage_v + (rate * (current_a / (site.area_cm2 * site.contact_fraction) - density)
                          * (1.0 + 0.5 * x) / (1.0 + x + 0.5 * x * x)))


cdef void skin_force_current(SkinState* skin, double mean_a, double step_s) noexcept nogil:
    site_force_current(&skin.active, mean_a, step_s)
    site_force_current(&skin.passive, mean_a, step_s)


cdef double skin_force_voltage(SkinState* skin, double mean_v, double source_ohm, double step_s) noexcept nogil:
    # As site_force_current, for both sites at once: they share the current of the series resistance. The mean of the
    # voltages over the sub-step takes phi2 in the place of phi1.
    cdef double admittance = 1.0 / (source_ohm + skin_series_ohm(skin))
    cdef double start_a = (mean_v - skin_inner_v(skin)) * admittance
    cdef double rate1 = step_s / (skin.active.capacitance_f_cm2 * skin.active.area_cm2 * skin.active.contact_fraction)
    cdef double rate2 = step_s / (skin.passive.capacitance_f_cm2 * skin.passive.area_cm2
                                  * skin.passive.contact_fraction)
    cdef double density1, slope1, density2, slope2
    cdef double x11, x12, x21, x22, d11, d12, d21, d22, inverse, b1, b2, xb1, xb2, r1, r2, m1, m2
    site_law(&skin.active, &density1, &slope1)
    site_law(&skin.passive, &density2, &slope2)
    b1 = rate1 * start_a - step_s / skin.active.capacitance_f_cm2 * density1
    b2 = rate2 * start_a - step_s / skin.passive.capacitance_f_cm2 * density2
    x12 = rate1 * admittance
    x21 = rate2 * admittance
    x11 = x12 + step_s / skin.active.capacitance_f_cm2 * slope1
    x22 = x21 + step_s / skin.passive.capacitance_f_cm2 * slope2
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
    skin.active.voltage_v = settled(skin.active.voltage_v + (d22 * r1 - d12 * r2) * inverse)
    skin.passive.voltage_v = settled(skin.passive.voltage_v + (d11 * r2 - d21 * r1) * inverse)
    return start_a - (m1 + m2) * admittance


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


cdef void skin_age(SkinState* skin, double mean_a, double step_s) noexcept nogil:
    cdef double goal
    site_age(&skin.active, step_s)
    site_age(&skin.passive, step_s)
    # Electrodes polarise against the current within a fraction of a second and let go as fast.
    goal = skin.polarisation_v * mean_a / (fabs(mean_a) + skin.polarisation_half_a)
    skin.electrode_v = settled(
        skin.electrode_v + (goal - skin.electrode_v) * relaxed(step_s / skin.polarisation_s))


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
            contact fractions uniform).
        active_area_cm2, return_area_cm2: areas of the pads, cm2, positive.

    Raises:
        ValueError: unknown name, or an area that is not positive.
    """

    cdef SkinState state

    def __init__(self, str name="typical", uint64_t seed=0, double active_area_cm2=8.0, double return_area_cm2=25.0):
        if not (active_area_cm2 > 0.0 and return_area_cm2 > 0.0):
            raise ValueError(f"pad areas {active_area_cm2} and {return_area_cm2} cm2 must be positive")
        skin_named(&self.state, skin_number(name), seed, active_area_cm2, return_area_cm2)

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
        return 1.0 / (self.state.active.fresh_s_cm2 + self.state.active.pore_s_cm2)

    @property
    def contact_fraction(self):
        """Wetted share of the active pad, (0, 1]."""
        return self.state.active.contact_fraction

    @contact_fraction.setter
    def contact_fraction(self, double value):
        if not 0.0 < value <= 1.0:
            raise ValueError(f"contact fraction {value} must be above 0 and at most 1")
        self.state.active.contact_fraction = value

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
