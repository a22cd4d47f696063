"""Output stage, relay and converters of the virtual device. See the .pxd for what they promise."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport ceil, cos, exp, fabs, lrint, sin
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from ionto_rt.core.skin cimport (
    SkinRise,
    SkinState,
    noise_next,
    noise_normal,
    noise_uniform,
    skin_age,
    skin_current,
    skin_force_current,
    skin_force_voltage,
    skin_linear,
    skin_prepare,
    skin_rise_current,
    skin_rise_voltage,
    skin_series_ohm,
    skin_take,
    skin_sentinel_voltage,
    skin_voltage,
)
from ionto_rt.core.types cimport FRONT_END_CURRENT_SOURCE, FRONT_END_VOLTAGE_SOURCE

cdef double SUBSTEP_S = 125e-6
cdef double TWO_PI = 6.283185307179586
cdef double HUM_HZ = 50.0


cdef void frontend_start(FrontEndState* state, int32_t kind, double period_s, uint32_t substeps, double compliance_v,
                         double bandwidth_hz, double gain_error, double offset_codes, double noise_codes, double hum_v,
                         uint64_t seed) noexcept nogil:
    cdef FrontEndRange* one
    cdef double full_scale_a = 40e-6
    cdef double time_s = 1.0 / (TWO_PI * bandwidth_hz)
    cdef double stated, offset
    cdef int k, _k
    memset(state, 0, sizeof(state[0]))
    state.kind = kind
    state.period_s = period_s
    state.substeps = substeps if substeps else <uint32_t>ceil(period_s / SUBSTEP_S - 1e-9)
    if state.substeps < 2 and substeps == 0:
        state.substeps = 2
    state.substep_s = period_s / state.substeps
    state.compliance_v = compliance_v
    state.pole = exp(-state.substep_s / time_s)
    state.pole_mean = (1.0 - state.pole) * time_s / state.substep_s
    state.output_time_s = time_s
    state.output_offset = offset_codes
    state.output_factor = 1.0
    state.reading_factor[0] = 1.0
    state.reading_factor[1] = 1.0
    state.noise_codes = noise_codes
    frontend_hum(state, hum_v, HUM_HZ)
    state.noise = (seed + 1) * <uint64_t>0xD1342543DE82EF95 | 1
    for _k in range(8):
        noise_next(&state.noise)

    state.voltage_lsb_nv = <uint32_t>lrint(1.05e9 * compliance_v / 32768.0)
    offset = 8.0 * noise_uniform(&state.noise) - 4.0
    state.voltage_offset_q16 = <int32_t>lrint(65536.0 * offset)
    state.voltage_offset = offset + residual(state, 0.01)
    state.voltage_codes_per_v = 1e9 / state.voltage_lsb_nv * (1.0 + residual(state, 0.0002))

    for k in range(RANGES):
        one = &state.ranges[k]
        one.full_scale_na = <uint32_t>lrint(1e9 * full_scale_a)
        # The shunts of the two readings are different parts: their codes are worth a few tenths of a percent apart.
        one.current_lsb_fa = <uint32_t>lrint(1.3e15 * full_scale_a / 32768.0 * (1.0 + residual(state, 0.004)))
        one.redundant_lsb_fa = <uint32_t>lrint(1.3e15 * full_scale_a / 32768.0 * (1.0 + residual(state, 0.004)))
        one.current_codes_per_a = 1e15 / one.current_lsb_fa * (1.0 + residual(state, 0.0002))
        one.redundant_codes_per_a = 1e15 / one.redundant_lsb_fa * (1.0 + residual(state, 0.0002))
        offset = 8.0 * noise_uniform(&state.noise) - 4.0
        one.current_offset_q16 = <int32_t>lrint(65536.0 * offset)
        one.current_offset = offset + residual(state, 0.01)
        offset = 8.0 * noise_uniform(&state.noise) - 4.0
        one.redundant_offset_q16 = <int32_t>lrint(65536.0 * offset)
        one.redundant_offset = offset + residual(state, 0.01)
        if kind == FRONT_END_CURRENT_SOURCE:
            one.output_lsb = <uint32_t>lrint(1.3e15 * full_scale_a / 32768.0)
            stated = 1e-15 * one.output_lsb
            one.output_code_max = <int32_t>(1.25 * full_scale_a / stated)
        else:
            # A tenth of the compliance voltage at full scale keeps the loop stable on a load of low resistance.
            one.ballast_mohm = <uint32_t>lrint(1e3 * 0.1 * compliance_v / full_scale_a)
            one.ballast_ohm = 1e-3 * one.ballast_mohm
            one.output_lsb = <uint32_t>lrint(1e12 * compliance_v / 32767.0)
            stated = 1e-12 * one.output_lsb
            one.output_code_max = CODE_LIMIT
        one.output_code_min = -one.output_code_max
        one.output_per_code = stated * (1.0 + gain_error)
        full_scale_a *= 10.0


cdef void frontend_hum(FrontEndState* state, double hum_v, double hum_hz) noexcept nogil:
    state.hum_v = hum_v
    state.hum_hz = hum_hz
    state.hum_cos = 1.0
    state.hum_sin = 0.0
    state.hum_turn_cos = cos(TWO_PI * hum_hz * state.period_s)
    state.hum_turn_sin = sin(TWO_PI * hum_hz * state.period_s)


cdef double residual(FrontEndState* state, double most) noexcept nogil:
    """Uniform within +-most."""
    return most * (2.0 * noise_uniform(&state.noise) - 1.0)


cdef void frontend_output(FrontEndState* state, int32_t code) noexcept nogil:
    cdef double target = (code + state.output_offset) * state.ranges[state.range].output_per_code * state.output_factor
    if state.stuck:
        return
    if state.kind == FRONT_END_VOLTAGE_SOURCE:
        if target > state.compliance_v:
            target = state.compliance_v
        elif target < -state.compliance_v:
            target = -state.compliance_v
    state.target = target


cdef void frontend_stick(FrontEndState* state, int32_t code) noexcept nogil:
    state.stuck = 0
    frontend_output(state, code)
    state.stuck = 1


cdef void frontend_zero(FrontEndState* state) noexcept nogil:
    if not state.stuck:
        state.target = 0.0


cdef void run_current_source(FrontEndState* state, SkinState* skin, double mean_a, double end_a,
                             FrontEndPeriod* period) noexcept nogil:
    """One sub-step with the relay closed; period.charge_c and .peak_a take this sub-step's."""
    cdef double step_s = state.substep_s
    cdef double limit_v, end
    cdef SkinRise rise
    # Whether the voltage limit acts is known at the sub-step's end; so the skin takes the step only then.
    if skin.shunt_ohm > 0.0:
        period.charge_c = skin_rise_voltage(skin, mean_a * skin.shunt_ohm, skin.shunt_ohm, step_s, &rise) * step_s
        end = (skin_current(skin, end_a * skin.shunt_ohm, skin.shunt_ohm)
               - (rise.active_v + rise.passive_v) / (skin.shunt_ohm + skin_series_ohm(skin)))
        limit_v = (end_a - end) * skin.shunt_ohm
    else:
        skin_rise_current(skin, mean_a, step_s, &rise)
        period.charge_c = mean_a * step_s
        end = end_a
        limit_v = skin_voltage(skin, end_a) + rise.active_v + rise.passive_v
    if fabs(limit_v) <= state.compliance_v:
        skin_take(skin, &rise)
        state.source_a = end_a
        state.voltage_v = limit_v if skin.shunt_ohm > 0.0 else skin_voltage(skin, end_a)
        period.peak_a = fabs(end)
        return
    limit_v = state.compliance_v if limit_v > 0.0 else -state.compliance_v
    period.charge_c = skin_rise_voltage(skin, limit_v, 0.0, step_s, &rise) * step_s
    skin_take(skin, &rise)
    state.source_a = skin_current(skin, limit_v, 0.0)
    state.voltage_v = limit_v
    period.peak_a = fabs(state.source_a)
    period.limited = 1
    if skin.shunt_ohm > 0.0:
        state.source_a += limit_v / skin.shunt_ohm


cdef void run_voltage_source(FrontEndState* state, SkinState* skin, double mean_v, double end_v,
                             FrontEndPeriod* period) noexcept nogil:
    """One sub-step with the relay closed; period.charge_c and .peak_a take this sub-step's."""
    cdef double step_s = state.substep_s
    cdef double source_ohm = state.ranges[state.range].ballast_ohm
    cdef double share = 1.0
    cdef double start, end
    if skin.shunt_ohm > 0.0:
        share = skin.shunt_ohm / (skin.shunt_ohm + source_ohm)
        source_ohm = source_ohm * share
    # The output stage is slower than the first instant after a step of the load, never faster than the peak it causes.
    start = fabs(skin_current(skin, state.output * share, source_ohm))
    period.charge_c = skin_force_voltage(skin, mean_v * share, source_ohm, step_s) * step_s
    end = skin_current(skin, end_v * share, source_ohm)
    state.voltage_v = end_v * share - end * source_ohm
    state.source_a = end
    if skin.shunt_ohm > 0.0:
        state.source_a += state.voltage_v / skin.shunt_ohm
    period.peak_a = fabs(end) if fabs(end) > start else start
    if fabs(end_v) >= 0.9999 * state.compliance_v:
        period.limited = 1


cdef void frontend_run(FrontEndState* state, SkinState* skin, double comparator_a,
                       FrontEndPeriod* period) noexcept nogil:
    cdef double step_s = state.substep_s
    cdef double mean, end, bridge_v
    cdef FrontEndPeriod one
    cdef uint32_t _step
    memset(period, 0, sizeof(period[0]))
    one.limited = 0
    for _step in range(state.substeps):
        end = state.output - state.target
        if fabs(end) < 1e-18:
            end = 0.0
        state.before_a = state.source_a
        state.before_v = state.voltage_v
        mean = state.target + end * state.pole_mean
        end = state.target + end * state.pole
        if not state.relay_closed:
            # What comes over a bridge from another channel flows through an open relay's skin all the same.
            one.charge_c = state.bridge_a * step_s
            one.peak_a = fabs(state.bridge_a)
            skin_force_current(skin, state.bridge_a, step_s)
            state.source_a = state.bridge_a
            state.voltage_v = skin_voltage(skin, state.bridge_a)
        elif state.kind == FRONT_END_CURRENT_SOURCE:
            run_current_source(state, skin, mean + state.bridge_a, end + state.bridge_a, &one)
        else:
            bridge_v = state.bridge_a * state.ranges[state.range].ballast_ohm
            run_voltage_source(state, skin, mean + bridge_v, end + bridge_v, &one)
        state.output = end
        period.charge_c += one.charge_c
        period.absolute_c += fabs(one.charge_c)
        if one.peak_a > period.peak_a:
            period.peak_a = one.peak_a
        if fabs(state.source_a) > comparator_a:
            period.tripped = 1
            state.relay_closed = 0
            state.target = 0.0
            state.output = 0.0
            state.source_a = 0.0
    period.limited = one.limited
    skin_age(skin, period.charge_c / state.period_s, state.period_s)
    end = state.hum_cos
    state.hum_cos = end * state.hum_turn_cos - state.hum_sin * state.hum_turn_sin
    state.hum_sin = end * state.hum_turn_sin + state.hum_sin * state.hum_turn_cos
    # One Newton step keeps the phasor's length at 1 over days.
    mean = 1.5 - 0.5 * (state.hum_cos * state.hum_cos + state.hum_sin * state.hum_sin)
    state.hum_cos *= mean
    state.hum_sin *= mean


cdef inline int32_t convert(FrontEndState* state, double codes) noexcept nogil:
    codes += state.noise_codes * noise_normal(&state.noise)
    if codes >= CODE_LIMIT:
        return CODE_LIMIT
    if codes <= -CODE_LIMIT:
        return -CODE_LIMIT
    return <int32_t>lrint(codes)


cdef inline int32_t convert_voltage(FrontEndState* state) noexcept nogil:
    return convert(state, (state.voltage_v + state.hum_v * state.hum_sin) * state.voltage_codes_per_v
                   + state.voltage_offset)


cdef void frontend_read(FrontEndState* state, int32_t* codes) noexcept nogil:
    cdef const FrontEndRange* one = &state.ranges[state.range]
    cdef double current_a = state.source_a
    cdef double voltage_v = state.voltage_v
    cdef double back
    if state.jitter_s > 0.0:
        back = 2.0 * state.jitter_s / state.substep_s * noise_uniform(&state.noise)
        current_a -= back * (state.source_a - state.before_a)
        voltage_v -= back * (state.voltage_v - state.before_v)
    codes[0] = convert(state, state.reading_factor[0] * current_a * one.current_codes_per_a + one.current_offset)
    codes[1] = convert(state, state.reading_factor[1] * current_a * one.redundant_codes_per_a + one.redundant_offset)
    if state.flat:
        if state.flat & 1:
            codes[0] = state.flat_codes[0]
        if state.flat & 2:
            codes[1] = state.flat_codes[1]
    state.flat_codes[0] = codes[0]
    state.flat_codes[1] = codes[1]
    codes[2] = convert(state, (voltage_v + state.hum_v * state.hum_sin) * state.voltage_codes_per_v
                       + state.voltage_offset)


cdef void frontend_wire_sentinel(FrontEndState* state) noexcept nogil:
    cdef double offset = 8.0 * noise_uniform(&state.noise) - 4.0
    state.sentinel_lsb_nv = state.voltage_lsb_nv
    state.sentinel_offset_q16 = <int32_t>lrint(65536.0 * offset)
    state.sentinel_offset = offset + residual(state, 0.01)
    state.sentinel_codes_per_v = 1e9 / state.sentinel_lsb_nv * (1.0 + residual(state, 0.0002))


cdef void frontend_share_calibration(FrontEndState* state, const FrontEndState* of) noexcept nogil:
    cdef FrontEndRange* one
    cdef const FrontEndRange* stated
    cdef int k
    state.voltage_offset += (of.voltage_offset_q16 - state.voltage_offset_q16) / 65536.0
    state.voltage_codes_per_v *= <double>state.voltage_lsb_nv / of.voltage_lsb_nv
    state.voltage_offset_q16 = of.voltage_offset_q16
    state.voltage_lsb_nv = of.voltage_lsb_nv
    if of.sentinel_lsb_nv:
        state.sentinel_offset += (of.sentinel_offset_q16 - state.sentinel_offset_q16) / 65536.0
        state.sentinel_codes_per_v *= <double>state.sentinel_lsb_nv / of.sentinel_lsb_nv
        state.sentinel_offset_q16 = of.sentinel_offset_q16
        state.sentinel_lsb_nv = of.sentinel_lsb_nv
    for k in range(RANGES):
        one = &state.ranges[k]
        stated = &of.ranges[k]
        one.current_codes_per_a *= <double>one.current_lsb_fa / stated.current_lsb_fa
        one.current_offset += (stated.current_offset_q16 - one.current_offset_q16) / 65536.0
        one.redundant_codes_per_a *= <double>one.redundant_lsb_fa / stated.redundant_lsb_fa
        one.redundant_offset += (stated.redundant_offset_q16 - one.redundant_offset_q16) / 65536.0
        one.current_lsb_fa = stated.current_lsb_fa
        one.current_offset_q16 = stated.current_offset_q16
        one.redundant_lsb_fa = stated.redundant_lsb_fa
        one.redundant_offset_q16 = stated.redundant_offset_q16


cdef int32_t frontend_read_sentinel(FrontEndState* state, const SkinState* skin) noexcept nogil:
    cdef double through_a = state.source_a
    if skin.shunt_ohm > 0.0:
        through_a = skin_current(skin, state.voltage_v, 0.0)
    return convert(state, (skin_sentinel_voltage(skin, through_a) + state.hum_v * state.hum_sin)
                   * state.sentinel_codes_per_v + state.sentinel_offset)


cdef void frontend_read_later(FrontEndState* state, const SkinState* skin, double later_s, int32_t* voltage_code,
                              int32_t* sentinel_code) noexcept nogil:
    cdef FrontEndState stage = state[0]
    cdef SkinState load = skin[0]
    cdef FrontEndPeriod period
    stage.period_s = later_s
    stage.substep_s = later_s
    stage.substeps = 1
    stage.pole = exp(-later_s / state.output_time_s)
    stage.pole_mean = (1.0 - stage.pole) * state.output_time_s / later_s
    stage.hum_turn_cos = cos(TWO_PI * state.hum_hz * later_s)
    stage.hum_turn_sin = sin(TWO_PI * state.hum_hz * later_s)
    # The comparator acts in the period itself, which is still to come.
    frontend_run(&stage, &load, 1e9, &period)
    voltage_code[0] = convert_voltage(&stage)
    if stage.sentinel_lsb_nv:
        sentinel_code[0] = frontend_read_sentinel(&stage, &load)
    state.noise = stage.noise


cdef class FrontEnd:
    """The analogue side on a fixed load or on skin, driven by hand.

    Args:
        kind: "current" or "voltage" source.
        series_ohm, parallel_ohm, capacitance_f: the load, series_ohm + (parallel_ohm || capacitance_f), all positive.
        skin: the load instead; it is this very object that is driven.
        sample_rate_hz: 500-10000.
        full_scale_a: 40e-6, 400e-6, 4e-3 or 40e-3.
        compliance_v, bandwidth_hz, gain_error, offset_codes, noise_codes, hum_v: of the stage and its converters.
        hum_hz: of the hum, 40 to 70.
        jitter_s: the samples are taken up to twice this before their boundary, evenly spread; at most half a sub-step.
        substeps: of one sample period; 0 for steps of at most 125 us.
        seed: draws offsets and residual errors of the converters.

    Raises:
        ValueError: another kind or full scale, a load that is not positive, a jitter or hum outside these.
    """

    cdef FrontEndState state
    cdef SkinState fixed
    cdef SkinState* skin
    cdef object keeps
    cdef FrontEndPeriod period
    cdef double comparator_a

    def __init__(self, str kind="current", double series_ohm=600.0, double parallel_ohm=1500.0,
                 double capacitance_f=240e-9, double sample_rate_hz=1000.0, double full_scale_a=4e-3, *, skin=None,
                 double compliance_v=60.0, double bandwidth_hz=2000.0, double gain_error=0.015,
                 double offset_codes=0.25, double noise_codes=1.0, double hum_v=0.0, uint32_t substeps=0,
                 uint64_t seed=0, double comparator_a=1.0, double hum_hz=50.0, double jitter_s=0.0):
        if kind not in ("current", "voltage"):
            raise ValueError(f"front-end {kind!r} is not known: use current or voltage")
        if not (series_ohm > 0.0 and parallel_ohm > 0.0 and capacitance_f > 0.0):
            raise ValueError(f"load {series_ohm} ohm + {parallel_ohm} ohm || {capacitance_f} F must be positive")
        frontend_start(&self.state, FRONT_END_CURRENT_SOURCE if kind == "current" else FRONT_END_VOLTAGE_SOURCE,
                       1.0 / sample_rate_hz, substeps, compliance_v, bandwidth_hz, gain_error, offset_codes,
                       noise_codes, hum_v, seed)
        if not 40.0 <= hum_hz <= 70.0:
            raise ValueError(f"hum of {hum_hz} Hz must be from 40 to 70")
        frontend_hum(&self.state, hum_v, hum_hz)
        if not 0.0 <= jitter_s <= 0.5 * self.state.substep_s:
            raise ValueError(f"jitter {jitter_s} s must be at most half a sub-step, {0.5 * self.state.substep_s:g} s")
        self.state.jitter_s = jitter_s
        if skin is None:
            skin_linear(&self.fixed, series_ohm, parallel_ohm, capacitance_f)
            self.skin = &self.fixed
        else:
            self.keeps = skin
            self.skin = <SkinState*>PyCapsule_GetPointer(skin.capsule(), "ionto_rt.core.skin.SkinState")
            skin_prepare(self.skin, self.state.substep_s)
        scales = [40e-6, 400e-6, 4e-3, 40e-3]
        if full_scale_a not in scales:
            raise ValueError(f"full scale {full_scale_a} A is not one of {scales}")
        self.state.range = scales.index(full_scale_a)
        self.state.relay_closed = 1
        self.comparator_a = comparator_a

    def output(self, int32_t code):
        """Ask the output stage for a code."""
        frontend_output(&self.state, code)

    def zero(self):
        """Disable the output."""
        frontend_zero(&self.state)

    def run(self):
        """One sample period. Returns (current, redundant current, voltage) codes."""
        cdef int32_t codes[3]
        frontend_run(&self.state, self.skin, self.comparator_a, &self.period)
        frontend_read(&self.state, codes)
        return codes[0], codes[1], codes[2]

    def open_lead(self):
        """The lead comes off: 1 Gohm in series."""
        self.skin.open_ohm = 1e9

    def close_lead(self):
        """The lead is whole again."""
        self.skin.open_ohm = 0.0
        self.skin.shunt_ohm = 0.0

    def short_leads(self, double shunt_ohm=20.0):
        """A bridge of shunt_ohm between the leads."""
        self.skin.shunt_ohm = shunt_ohm

    @property
    def range(self):
        """Stated calibration of the range in use, with the field names of the hello."""
        cdef const FrontEndRange* one = &self.state.ranges[self.state.range]
        return {
            "full_scale_na": one.full_scale_na,
            "current_lsb_fa": one.current_lsb_fa,
            "current_offset_q16": one.current_offset_q16,
            "redundant_lsb_fa": one.redundant_lsb_fa,
            "redundant_offset_q16": one.redundant_offset_q16,
            "output_lsb": one.output_lsb,
            "output_code_min": one.output_code_min,
            "output_code_max": one.output_code_max,
            "ballast_mohm": one.ballast_mohm,
        }

    @property
    def voltage_lsb_nv(self):
        """Stated value of one voltage code, nV."""
        return self.state.voltage_lsb_nv

    @property
    def voltage_offset_q16(self):
        """Stated offset of the voltage reading, 1/65536 code."""
        return self.state.voltage_offset_q16

    @property
    def source_a(self):
        """True current out of the stage at the end of the last period, A."""
        return self.state.source_a

    @property
    def voltage_v(self):
        """True voltage at the pads at the end of the last period, V."""
        return self.state.voltage_v

    @property
    def charge_c(self):
        """True charge through the load during the last period, C."""
        return self.period.charge_c

    @property
    def peak_a(self):
        """Largest true magnitude through the load during the last period, A."""
        return self.period.peak_a

    @property
    def limited(self):
        """Whether the stage was at its voltage limit during the last period."""
        return bool(self.period.limited)

    @property
    def relay_closed(self):
        """Whether the relay is closed; the comparator opens it."""
        return bool(self.state.relay_closed)
