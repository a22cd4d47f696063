"""A regulated loop on a linear load, in virtual time: for Monte-Carlo surveys and property tests.

The load is Rs + (Rp || C); it is integrated exactly. Sample k is taken at the end of its period, under the output given
delay_ticks samples ago. Peaks count between samples too: a voltage source's current is largest when its output steps.
"""
from libc.math cimport cos, exp, fabs, rint
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memset

import numpy as np

from ionto_rt.core.constant_current cimport (
    ConstantCurrentConfig, ConstantCurrentState, constant_current_begin, constant_current_step,
)
from ionto_rt.core.constant_current import PROBE_RATIO, VERDICTS, configure, nulled_most_a
from ionto_rt.core.predictive cimport predictive_reset
from ionto_rt.core.probe cimport PROBE_NULL
from ionto_rt.core.skin cimport noise_next, noise_normal
from ionto_rt.core.types cimport PROBE_GOOD, PlantModel, RegulatorTerms

cdef enum:
    QUEUE = 16


cdef class Trial:
    """One bare regulator on one linear load.

    Args:
        front_end: "current" or "voltage".
        series_ohm, parallel_ohm, capacitance_f: the load.
        tick_s, delay_ticks: of the loop; told_ticks: the delay that the regulator is told (0: the true one).
        setpoint_a: sets the probe's amplitude.
        full_scale_a, compliance_v, ballast_ohm: of the stage; converters have 16 bits over +- full scale.
        output_bits: other than 16 for the output alone.
        noise_lsb, hum_lsb: standard deviation of the noise, peak of 50 Hz on the current reading, in codes.
        emf_v: electrode potential against the output.
        gain_error, offset_ratio: of the output stage; offset as a share of setpoint_a.
        bandwidth_hz: pole of a current source.
        seed: of the noise.
        options, probe_options: other values for keys of struct PredictiveConfig and ProbeConfig.
    """
    cdef ConstantCurrentConfig config
    cdef ConstantCurrentState state
    cdef RegulatorTerms terms
    cdef double rs, rp, c, rb, tick_s, full_scale_a, compliance_v, noise_lsb, hum_lsb, emf_v, gain, offset, bandwidth_hz
    cdef double inner_v, current, stage, lsb, voltage_lsb, hum_phase, voltage
    cdef double queue[16]
    cdef int32_t at, delay, voltage_source, is_open
    cdef uint64_t noise
    cdef double a, pole, output_lsb

    def __init__(self, *, front_end, double series_ohm, double parallel_ohm, double capacitance_f, double tick_s,
                 int delay_ticks, double setpoint_a, double full_scale_a, double compliance_v=80.0,
                 double ballast_ohm=0.0, double noise_lsb=1.0, double hum_lsb=2.0, double emf_v=0.0,
                 double gain_error=0.0, double offset_ratio=0.0, double bandwidth_hz=2236.0, int told_ticks=0,
                 int output_bits=16, uint64_t seed=1, dict options=None, dict probe_options=None):
        self.voltage_source = front_end == "voltage"
        self.rs, self.rp, self.c = series_ohm, parallel_ohm, capacitance_f
        self.rb = ballast_ohm if self.voltage_source else 0.0
        self.tick_s, self.delay = tick_s, delay_ticks
        self.full_scale_a, self.compliance_v = full_scale_a, compliance_v
        self.noise_lsb, self.hum_lsb, self.emf_v = noise_lsb, hum_lsb, emf_v
        self.gain, self.offset = 1.0 + gain_error, offset_ratio * setpoint_a
        self.bandwidth_hz = bandwidth_hz
        self.lsb = full_scale_a / 32768.0
        self.voltage_lsb = compliance_v / 32768.0
        self.noise = seed * <uint64_t>0x9E3779B97F4A7C15 | 1
        for _ in range(4):
            noise_next(&self.noise)
        self.hum_phase = 6.283185307179586 * <double>(noise_next(&self.noise) >> 11) / 9007199254740992.0
        self.output_lsb = (full_scale_a if front_end == "current" else compliance_v) / 2.0 ** (output_bits - 1)
        output_max = 1.25 * full_scale_a if front_end == "current" else compliance_v
        given = configure(
            front_end=front_end, tick_s=tick_s, full_scale_a=full_scale_a, compliance_v=compliance_v,
            current_lsb_a=self.lsb, output_lsb=self.output_lsb,
            output_min=-output_max, output_max=output_max, delay_ticks=told_ticks or delay_ticks,
            ballast_ohm=self.rb, probe_a=PROBE_RATIO * abs(setpoint_a))
        given["probe"]["offset_a"] = nulled_most_a(given["probe"]["current_a"], setpoint_a)
        given["regulator"].update(options or {})
        given["probe"].update(probe_options or {})
        self.config = given
        constant_current_begin(&self.state, 0.0)
        memset(&self.terms, 0, sizeof(self.terms))
        self.settle()

    cdef void settle(self) noexcept nogil:
        cdef double series = self.rs + self.rb
        cdef double tau = self.rp * self.c
        if self.voltage_source and not self.is_open:
            tau = series * self.rp / (series + self.rp) * self.c
        self.a = exp(-self.tick_s / tau)
        self.pole = exp(-6.283185307179586 * self.bandwidth_hz * self.tick_s)

    cdef double period(self, double output) noexcept nogil:
        """One sample period under output; the largest magnitude of the current."""
        cdef double series = self.rs + self.rb, target = output * self.gain + self.offset, first, g, limit, tau, lag
        cdef double before = self.stage, free_v
        if self.is_open:
            self.inner_v *= self.a
            self.current = 0.0
            self.stage = target + (self.stage - target) * self.pole
            self.voltage = (target if self.voltage_source
                            else self.compliance_v if target > 0.0 else -self.compliance_v if target < 0.0 else 0.0)
            return 0.0
        if self.voltage_source:
            target = output * self.gain
            g = self.rp / (series + self.rp)
            first = (target - self.emf_v - self.inner_v) / series
            self.inner_v = self.a * self.inner_v + (1.0 - self.a) * g * (target - self.emf_v)
            self.current = (target - self.emf_v - self.inner_v) / series
            self.voltage = target - self.current * self.rb
            return fabs(first) if fabs(first) > fabs(self.current) else fabs(self.current)
        tau = self.rp * self.c
        lag = 1.0 / (6.283185307179586 * self.bandwidth_hz)
        lag = lag * (self.a - self.pole) / (tau - lag) if fabs(tau - lag) > 1e-9 * tau else self.tick_s / tau * self.a
        self.stage = target + (before - target) * self.pole
        free_v = self.a * self.inner_v + self.rp * ((1.0 - self.a) * target + (before - target) * lag)
        limit = self.compliance_v
        if fabs(self.stage * self.rs + free_v + self.emf_v) <= limit:
            self.inner_v = free_v
            self.current = self.stage
        else:
            limit = limit if self.stage > 0.0 else -limit
            g = exp(-self.tick_s / (self.rs * self.rp / (self.rs + self.rp) * self.c))
            self.inner_v = g * self.inner_v + (1.0 - g) * self.rp / (self.rs + self.rp) * (limit - self.emf_v)
            self.current = (limit - self.emf_v - self.inner_v) / self.rs
        self.voltage = self.current * self.rs + self.inner_v + self.emf_v
        if fabs(before) > fabs(self.current) and fabs(before) <= fabs(self.stage):
            return fabs(before)
        return fabs(self.current)

    cdef double convert(self, double value, double lsb, double hum) noexcept nogil:
        cdef double codes = rint(value / lsb + hum + self.noise_lsb * noise_normal(&self.noise))
        return lsb * (codes if -40960.0 < codes < 40960.0 else 40960.0 if codes > 0.0 else -40960.0)

    cdef void sample(self, double setpoint, double tone, double* current, double* peak,
                     double* measured) noexcept nogil:
        cdef double voltage
        # The output given `delay` samples ago is in force during the period that ends with this sample.
        peak[0] = self.period(self.queue[(self.at - self.delay) & (QUEUE - 1)])
        current[0] = self.current
        self.hum_phase += 6.283185307179586 * 50.0 * self.tick_s
        measured[0] = self.convert(self.current, self.lsb, self.hum_lsb * cos(self.hum_phase))
        voltage = self.convert(self.voltage, self.voltage_lsb, 0.0)
        constant_current_step(&self.state, &self.config, setpoint, tone, measured[0], voltage, &self.terms)
        # The stage's converter has its codes, whether the regulator knows them or not.
        self.queue[self.at] = self.output_lsb * rint(self.terms.output / self.output_lsb)
        self.at = (self.at + 1) & (QUEUE - 1)

    def run(self, setpoint_a, tone_a=None):
        """Follow setpoint_a (A), an array of shape (n,).

        Returns a float64 array of shape (4, n): true current at each sample (A), largest magnitude in the period before
        it (A), measured current (A), output (A or V).
        """
        cdef const double[::1] setpoints = np.ascontiguousarray(setpoint_a, dtype=np.float64)
        cdef Py_ssize_t n = setpoints.shape[0], k
        cdef const double[::1] tones = np.zeros(n) if tone_a is None else np.ascontiguousarray(tone_a, dtype=np.float64)
        result = np.empty((4, n))
        cdef double[:, ::1] out = result
        with nogil:
            for k in range(n):
                self.sample(setpoints[k], tones[k], &out[0, k], &out[1, k], &out[2, k])
                out[3, k] = self.terms.output
        return result

    def probe(self, int most_ticks=20000):
        """Run the probe to its verdict.

        Returns (verdict, ticks, largest true current in A since the output was nulled): what an electrode potential or
        the stage's offset lets flow before that is none of the probe's.
        """
        cdef int32_t n = 0
        cdef double peak = 0.0, current, now, measured
        with nogil:
            while self.state.probe.verdict == 0 and n < most_ticks:
                self.sample(0.0, 0.0, &current, &now, &measured)
                if self.state.probe.phase != PROBE_NULL:
                    peak = now if now > peak else peak
                n += 1
        return VERDICTS[self.state.probe.verdict], n, peak

    def assume(self, dict model):
        """Regulate from here on by a model, a dict of struct PlantModel, whatever the probe found."""
        cdef PlantModel given = model
        self.state.probe.verdict = PROBE_GOOD
        self.state.regulating = 1
        predictive_reset(&self.state.regulator, &self.config.regulator, &given, self.terms.output,
                         self.state.probe.found.null_output, self.current)

    def load(self, *, series=1.0, parallel=1.0, capacitance=1.0):
        """Multiply the load's parts; contact area times f is series=1/f, parallel=1/f, capacitance=f."""
        self.rs *= series
        self.rp *= parallel
        self.c *= capacitance
        self.settle()

    def open(self):
        """The lead comes off."""
        self.is_open = 1
        self.settle()

    def close(self):
        """The lead is whole again."""
        self.is_open = 0
        self.settle()

    def limit(self, double compliance_v):
        """Another voltage limit of a current source."""
        self.compliance_v = compliance_v

    @property
    def identified(self):
        """What the probe found, as a dict of struct Identified."""
        return self.state.probe.found

    @property
    def regulator(self):
        """State of the regulator, as a dict of struct PredictiveState."""
        return self.state.regulator

    @property
    def plant(self):
        """(pole, gain, gain_before) of the true plant at the samples."""
        cdef double series = self.rs + self.rb
        if not self.voltage_source:
            return self.pole, self.gain * (1.0 - self.pole), 0.0
        g = self.rp / (series + self.rp)
        return self.a, self.gain * (1.0 - (1.0 - self.a) * g) / series, self.gain * self.a / series
