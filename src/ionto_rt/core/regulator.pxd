"""Two-degree-of-freedom PID: setpoint, measured value -> output. Public, append-only; plain structs and functions.

There is no cdef class here on purpose: vtables are not checked at import, changed signatures are refused.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t
from ionto_rt.core.types cimport RegulatorTerms

cdef enum Integration:
    INTEGRATION_BACKWARD = 0    # I counts the present error before the output is formed
    INTEGRATION_FORWARD = 1     # I counts it after
    INTEGRATION_TRAPEZOIDAL = 2

cdef enum AntiWindup:
    ANTI_WINDUP_NONE = 0
    ANTI_WINDUP_BACK_CALCULATION = 1
    ANTI_WINDUP_CONDITIONAL = 2

cdef enum RegulatorMode:
    MODE_AUTOMATIC = 0
    MODE_MANUAL = 1             # output follows manual_output; the integral tracks it

cdef struct RegulatorConfig:
    double tick_s
    double kp                   # output per A
    double ki                   # output per A s
    double kd                   # output s per A
    double derivative_filter_s  # time constant of the filter on D; 0: none
    double setpoint_weight      # b, on P
    double derivative_weight    # c, on D: 0 differentiates the measured value alone
    double feed_forward         # output per A of setpoint
    double output_min
    double output_max
    double slew_per_tick        # largest change of the output in one tick; 0: no limit
    double tracking_s           # back-calculation time constant; 0: one tick
    int32_t delay_ticks         # the plant's nominal delay, 0 to 7: feedback compares with the setpoint of then
    int32_t integration         # Integration
    int32_t anti_windup         # AntiWindup
    int32_t free_fall           # 1: the slew limit holds for rising magnitudes only; towards zero the output is free
    int32_t scheduled           # 1: gains are multiplied by the schedule hook's factor; off by default

cdef struct RegulatorState:
    double integral
    double derivative
    double previous_measured
    double previous_derivative_input
    double previous_error
    double output
    double manual_output
    double setpoints[8]         # of the last ticks, newest at setpoint_at
    int32_t setpoint_at
    double gain                 # schedule hook: multiplies kp, ki, kd when scheduled
    int32_t mode                # RegulatorMode
    int32_t hold                # 1: at a limit the regulator cannot see (compliance): I is frozen, P and D are left out
    int32_t started             # 0: the next sample is the first
    uint64_t saturated_ticks
    uint64_t slewed_ticks

cdef void regulator_reset(RegulatorState* state, double output) noexcept nogil
# Bumpless: the integral is rewritten so that the output does not jump when the configuration changes.
cdef void regulator_retune(RegulatorState* state, const RegulatorConfig* old, const RegulatorConfig* new,
                           double setpoint_a, double measured_a) noexcept nogil
cdef void regulator_set_mode(RegulatorState* state, int32_t mode, double manual_output) noexcept nogil
# Returns 0, or 1 if an input was not finite: then the state is untouched and the output is the last one.
cdef int regulator_step(RegulatorState* state, const RegulatorConfig* config, double setpoint_a, double measured_a,
                        RegulatorTerms* terms) noexcept nogil
