"""The treatment, compiled to segments: tick and charge -> setpoint."""
from libc.stdint cimport int32_t, int64_t, uint32_t
from ionto_rt.core.types cimport Segment, Setpoint

cdef struct ProgrammeConfig:
    double tick_s
    double polarity             # +1 anode, -1 cathode: sign of the active electrode's current
    double level_limit_a        # no setpoint's magnitude passes it
    double slope_up_a_per_tick  # after a pause, lost contact or a derating
    double slope_down_a_per_tick
    double compliance_v         # at 95 % of it the programme derates; 0: never
    double contact_level_a      # level while contact is lost
    double zero_tolerance_a     # self-test: mean reading with the relay open
    double loop_delay_ticks     # from setpoint to current
    uint32_t compliance_ticks   # this long at the limit before derating
    uint32_t segments

cdef struct ProgrammeState:
    uint32_t segment
    int32_t phase
    int32_t end_reason
    int32_t paused              # operator's pause
    int32_t stopping
    int32_t limited
    int32_t recovering          # the ramp back after a pause or a derating
    int32_t trimming            # the ramp to a level that the operator has just changed
    uint32_t compliance_run
    int64_t segment_ticks
    double step_start_c
    double level_a              # magnitude in force
    double ceiling_a            # derating: the level never passes it
    double trim_a
    double zero_a               # self-test: sums of both readings
    double zero_redundant_a
    double zero_n

cdef struct ProgrammeInput:
    uint32_t ticks              # sample periods since the last step: 1 + gap
    int32_t contact             # Contact
    int32_t pause               # the guard asks for a pause
    int32_t operator_command
    int32_t stop
    double operator_value_a
    double current_a            # signed measurement
    double redundant_a
    double voltage_v
    double net_c                # signed net charge since arming
    int32_t probe_verdict       # ProbeVerdict of the contact check
    double cap_a                # highest level that the guard allows; 0: no such cap

cdef void programme_step(ProgrammeState* state, const ProgrammeConfig* config, const Segment* segments,
                         const ProgrammeInput* given, Setpoint* setpoint) noexcept nogil
# A trip has latched: the programme ends here.
cdef void programme_fault(ProgrammeState* state) noexcept nogil
