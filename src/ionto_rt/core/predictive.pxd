"""PI regulator with delay predictor: setpoint, measured value -> output. Public, append-only; plain structs."""
from libc.stdint cimport int32_t, uint32_t, uint64_t
from ionto_rt.core.types cimport PlantModel, RegulatorTerms

cdef enum:
    OUTPUT_HISTORY = 16

cdef struct PredictiveConfig:
    double tracking_pole        # of the error's decay: robustness
    double setpoint_pole        # of the reference model
    double integral_pole_most   # the disturbance filter's pole is the plant's, at most this
    double quick_pole_most      # and this for quick_ticks after a surprise, then not for quick_rest_ticks
    double surprise_ratio       # of the reference: an unforeseen part beyond it is a surprise; 0: there are none
    uint32_t quick_ticks
    uint32_t quick_rest_ticks
    double output_min
    double output_max
    double output_lsb           # one output code; 0: the output is not quantised
    double slew_per_tick        # largest change of the output away from zero in one tick; 0: no limit
    double spike_a              # voltage source: largest current that a step of the output may add; 0: no limit
    double trim_ratio           # output stays within this share of what the model asks for at rest; 0: no such limit
    double trim_floor           # plus this much (output units)
    double compliance_v         # a stage at 97 % of it does not regulate; 0: unknown
    double contact_floor_a      # no verdict on contact below this reference
    double recontact_ratio      # of the setpoint, per tick: the ramp back after lost contact
    double jump_ratio           # a current so many times the predicted one, output at rest: a lower impedance; 0: never
    double series_least_ohm     # voltage source: least impedance that a step of the output can meet, ballast included
    double rescale_most         # and so much of it is believed, over the model that was adopted
    double schedule_ratio       # voltage source: at rest, an impedance off the model's by this share moves it; 0: never
    uint32_t schedule_ticks     # time constant of the means that the schedule looks at
    int32_t voltage_source      # 1: an open lead is seen by the current alone
    uint32_t open_ticks
    uint32_t good_ticks

cdef struct PredictiveState:
    PlantModel model
    double outputs[16]          # applied, newest at output_at
    double references[16]       # reference current, tone included, newest at output_at
    int32_t output_at
    int32_t started
    double previous_measured
    double disturbance          # what the model does not explain, A per tick
    double reference            # without the tone
    double tone
    double carried              # what quantisation has left out so far, less than a code
    double output
    double probed_series_ohm    # of the model given: series and whole impedance, and time constant over their parallel
    double probed_whole_ohm
    double probed_ticks_per_ohm
    double mean_output          # schedule: exponential means
    double mean_measured
    double mean_setpoint
    uint32_t schedule_at
    int32_t turn_sign           # of the last large surprise
    uint32_t turn_ticks         # since it turned
    uint32_t turns              # in quick succession
    int32_t quick_sign          # of the last surprise while the filter is quick
    uint32_t quick_turns        # how often it has changed
    uint32_t quick_left         # ticks until the disturbance filter is slow again, the rest included
    double rescaled             # gain in force over the adopted model's
    uint32_t jump_rest          # ticks until another jump is believed
    double series_ohm           # voltage source: the impedance that a step of the output meets
    double spike_share          # series_ohm over the impedance at rest; 1 for a current source
    double open_decay           # of the load's inner voltage in one tick of an open lead
    double open_decay_ahead     # and until an output acts
    double inner_v              # voltage source: output at which no current would flow just now
    double offset               # output at which no current flows at rest
    double manual_output
    int32_t manual              # 1: the output follows manual_output, and the reference what flows
    double ceiling_a            # of the ramp back after lost contact
    int32_t recovering
    int32_t contact_lost
    uint32_t open_run
    uint32_t good_run
    uint64_t saturated_ticks
    uint64_t opens

# From an output in force long enough for its current to stand; offset: the output at which no current flows.
cdef void predictive_reset(PredictiveState* state, const PredictiveConfig* config, const PlantModel* model,
                           double output, double offset, double measured_a) noexcept nogil
# Another model, without a jump of the output.
cdef void predictive_adopt(PredictiveState* state, const PredictiveConfig* config,
                           const PlantModel* model) noexcept nogil
# Samples were lost: the last output stayed in force.
cdef void predictive_skip(PredictiveState* state, uint32_t ticks) noexcept nogil
# The device says what was in force while this sample was taken: the output given `ticks` samples ago.
cdef void predictive_applied(PredictiveState* state, double output, int32_t ticks) noexcept nogil
# tone_a is tracked exactly, past the reference model. at_limit: the stage says that it does not regulate.
# Returns 0, or 1 if an input was not finite: then the state is untouched and the output is the last one.
cdef int predictive_step(PredictiveState* state, const PredictiveConfig* config, double setpoint_a, double tone_a,
                         double measured_a, double voltage_v, int32_t at_limit, RegulatorTerms* terms) noexcept nogil
