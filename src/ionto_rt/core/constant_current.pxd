"""The bare regulator: contact probe, then constant current, for embedders without treatment, guard and record."""
from libc.stdint cimport int32_t
from ionto_rt.core.predictive cimport PredictiveConfig, PredictiveState
from ionto_rt.core.probe cimport ProbeConfig, ProbeState
from ionto_rt.core.types cimport RegulatorTerms

cdef struct ConstantCurrentConfig:
    ProbeConfig probe
    PredictiveConfig regulator

cdef struct ConstantCurrentState:
    ProbeState probe
    PredictiveState regulator
    int32_t regulating          # 1: the probe has found a load that may be regulated

cdef void constant_current_begin(ConstantCurrentState* state, double output) noexcept nogil
# One sample -> terms.output. Returns the ProbeVerdict; unless it is PROBE_RUNNING or PROBE_GOOD the output is zero.
cdef int32_t constant_current_step(ConstantCurrentState* state, const ConstantCurrentConfig* config, double setpoint_a,
                                   double tone_a, double measured_a, double voltage_v,
                                   RegulatorTerms* terms) noexcept nogil
