"""The tick: one pure pass over the stages, (state, input) -> (state, row)."""
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from ionto_rt.core.contact_area cimport ContactAreaConfig, ContactAreaState
from ionto_rt.core.guard cimport GuardLimits, GuardState
from ionto_rt.core.guard_estimates cimport EstimateLimits, EstimateWatch
from ionto_rt.core.impedance cimport ImpedanceConfig, ImpedanceState
from ionto_rt.core.ledger cimport Ledger
from ionto_rt.core.predictive cimport PredictiveConfig, PredictiveState
from ionto_rt.core.probe cimport ProbeConfig, ProbeState
from ionto_rt.core.programme cimport ProgrammeConfig, ProgrammeState
from ionto_rt.core.regulator cimport RegulatorConfig, RegulatorState
from ionto_rt.core.types cimport Calibration, Command, Segment, Tick, TickInput

cdef struct ControllerConfig:
    Calibration calibration
    ImpedanceConfig impedance
    ProgrammeConfig programme
    RegulatorConfig regulator
    GuardLimits guard
    ContactAreaConfig contact_area
    uint16_t lease_ticks
    uint32_t token
    int32_t law                 # Law
    ProbeConfig probe
    PredictiveConfig predictive
    EstimateLimits estimates

# Everything a channel's tick needs and remembers. Plain memory: no pointer, so it can be copied and compared.
cdef struct ControllerState:
    ControllerConfig config
    ImpedanceState impedance
    ProgrammeState programme
    RegulatorState regulator
    RegulatorConfig tuned       # the PID's configuration with the output gain that the contact check measured
    ProbeState probe
    PredictiveState predictive
    GuardState guard
    Ledger ledger
    int32_t started
    uint32_t last_index
    double last_output          # of the last good sample's answer
    uint16_t last_status
    int32_t phase               # of the last row, trips included
    int32_t contact
    int32_t tone_on[16]
    double setpoints[16]        # last setpoints, newest at history_at
    uint32_t history_at
    uint32_t missing_ticks      # bad samples since the last good one
    ContactAreaState contact_area
    Segment segments[4096]
    EstimateWatch estimates
    double hum_a                # rms of the mains in the current of the last block
    double loop_gain            # 1, halved for each hunting
    ImpedanceState sentinel     # of the active site alone, by the sentinel electrode's voltage
    uint16_t last_nonce         # of the last good sample

cdef void controller_start(ControllerState* controller) noexcept nogil
# One tick. *row receives every input and every term; *command is what must be sent.
cdef void controller_tick(ControllerState* controller, const TickInput* given, Tick* row,
                          Command* command) noexcept nogil
