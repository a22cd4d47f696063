"""The campaign's sessions: loop, controllers and virtual device on a virtual clock, faults by a script, and every
invariant checked in every tick against the script, the rows and the true current.

The device keeps its own time: each read of the loop lets one sample period pass, whether or not the host answers. So
lost, late and stale frames mean here what they mean on a port. Nothing depends on this host's clock or on any other
session: a session is its scenario, its seed and its acts.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ionto_rt.core.controller cimport ControllerConfig, ControllerState
from ionto_rt.core.fault_port cimport FaultPortState
from ionto_rt.core.loop cimport LoopState
from ionto_rt.core.ring cimport Ring
from ionto_rt.core.types cimport Port, Segment, Tick
from ionto_rt.core.virtual_device cimport VirtualChannel, VirtualDeviceState

cdef enum:
    CHANNELS = 4                # of one scenario
    ACTS = 48                   # of one session
    SEEN = 192                  # things noted of one session
    ROWS = 1024                 # of the rings
    PAST = 16                   # rows back

cdef enum ActKind:
    ACT_DEVICE = 0              # code: FaultKind of the virtual device; undone after length_ticks by undo, if >= 0
    ACT_WIRE = 1                # code: WireFaultKind + 16 Way
    ACT_OPERATOR = 2            # code: OperatorCommand
    ACT_STOP = 3                # code: StopFlag
    ACT_HEARTBEAT_STOPS = 4     # for length_ticks; 0: for good
    ACT_HEARTBEAT_WRONG = 5     # beats, but with noise
    ACT_HOST_SLEEPS = 6         # value sample periods pass before the next read
    ACT_HOST_CLOCK = 7          # the host's clock runs value ppm fast against the device's
    ACT_HOST_DIES = 8           # nothing is read or written any more
    ACT_LIMITS = 9              # bit value of the guard's limits turns over
    ACT_NOT_FINITE = 10         # a NaN in the state; code: FINITE_*
    ACT_LEDGER = 11             # one code is added to the host's sum: a planted defect, for tests of the campaign
    ACT_FOREIGN = 12            # a second host, without the token, writes to the device
    ACT_REVERSE = 13            # the programme's polarity turns over in memory
    ACT_DEVICE_COUNT = 14       # value is added to the device's count of charge
    ACT_MARK = 15               # nothing: the hazard is in the scenario
    ACT_KINDS = 16

cdef enum:
    FINITE_REGULATOR = 0
    FINITE_ESTIMATE = 1
    FINITE_SETPOINT = 2

cdef enum SeenKind:
    SEEN_PHASE = 0              # code: Phase that began
    SEEN_TRIP = 1               # code: Trip
    SEEN_PAUSE = 2              # code: Trip of the guard's pause
    SEEN_END = 3                # code: EndReason
    SEEN_LIMITED = 4
    SEEN_CONTACT_LOST = 5
    SEEN_GAP = 6                # the first in a phase
    SEEN_BAD_SAMPLE = 7         # code: SampleFault; the first in a phase
    SEEN_STATUS = 8             # code: DeviceStatus bits that came
    SEEN_LATE = 9               # the first row in a phase that came late by a period
    SEEN_DEVICE_OFF = 10        # code: DevicePhase; the device let go by itself
    SEEN_RESUMED = 11           # a pause of the guard ended
    SEEN_LOOP = 12              # code: LoopStatus at the end
    SEEN_REFUSED = 13           # code: how many frames and commands the device refused
    SEEN_BAD_FRAMES = 14        # code: how many frames the host refused
    SEEN_ADVICE = 15            # code: Advice bits that came

cdef enum Invariant:
    HOLDS = 0
    CAP = 1
    RISE = 2
    LEDGER = 3
    COUNTS = 4
    LATCH = 5
    OFF_TIME = 6
    LEASE_TIME = 7
    DESCENT = 8
    STOP_TIME = 9
    DOSE = 10
    EVENT = 11
    LOST_TICK = 12
    END_ZERO = 13
    GUARD_MISSED = 14
    GUARD_EARLY = 15
    PHASE_ORDER = 16
    CHARGE = 17
    FALSE_ALARM = 18
    PAUSE_TIME = 19
    SETPOINT = 20
    COMMAND = 21
    OTHERS = 22
    INVARIANTS = 23

cdef struct Act:
    int32_t kind                # ActKind
    int32_t code
    int32_t phase               # it waits for this phase of its channel; -1: for nothing
    int32_t undo
    uint32_t channel
    uint32_t after_ticks        # from there, or from arming
    uint32_t length_ticks
    double value
    double undo_value
    # what became of it
    int64_t due                 # device tick; -1: still waits
    int64_t fired               # device tick; -1: never
    int64_t until               # -1: nothing to end
    int32_t fired_phase         # Phase of its channel when it was done

cdef struct Seen:
    int32_t what                # SeenKind
    int32_t code
    uint32_t channel
    int32_t phase               # before it
    int64_t tick                # of the device

# What is fixed in a scenario: a device that has its limits, and each channel's plan.
cdef struct Scenario:
    const VirtualDeviceState* device
    uint32_t channels
    int32_t on_trip
    double tick_s
    ControllerConfig config[4]
    Segment* segments[4]
    double prescribed_c[4]
    double rise_most_a[4]       # of the setpoint in one tick
    double slew_codes[4]        # of the output code in one tick; 0: not checked (voltage source)

# What the checks remember of a channel.
cdef struct Watch:
    int32_t any                 # a row has been seen
    int32_t started             # a good one
    int32_t phase
    int32_t trip
    int32_t action
    int32_t pause
    int32_t pause_latched
    int32_t end_reason
    int32_t contact
    int32_t limited
    int32_t stop
    int32_t segment
    int32_t close_relay
    int32_t output_code
    uint32_t last_index
    uint32_t status
    int64_t net_codes
    int64_t absolute_codes
    int64_t device_codes        # of the last good row
    int64_t base_codes          # host's less device's sum, which stays
    int32_t clamped             # a gap was booked at its bound
    double level_a
    double setpoint_a
    # guard
    uint64_t ticks
    uint32_t missing_run
    uint32_t missed             # bad samples since the last good one
    uint32_t heartbeat
    uint32_t heartbeat_age
    double over_levels_a[16]
    uint32_t over_at
    uint32_t over_run
    double descent_codes
    # times, in device ticks; -1: not
    int64_t off_since
    uint32_t off_index
    int64_t off_heard           # the device has taken a command that says so
    int64_t stop_since
    uint64_t stop_rows
    int64_t pause_since
    uint64_t pause_rows
    uint64_t gaps
    uint64_t noted              # bits of SeenKind noted in this phase
    int64_t limits_spoilt
    int64_t not_finite
    int64_t reversed_at
    # truth
    double before_a
    double before2_a
    double peak_over            # consecutive periods above the cap
    double charge_c
    double absolute_c
    uint32_t advice
    int32_t held                # the operator has paused
    uint64_t held_rows

cdef struct Campaign:
    const Scenario* scenario
    uint64_t seed
    uint64_t noise
    uint64_t most_ticks
    int32_t resumes             # an operator resumes what latched
    int32_t clock               # 1: the host has a clock
    Act acts[48]
    uint32_t act_count
    int64_t next_due
    Seen seen[192]
    uint32_t seen_count
    Watch watch[4]
    # invariants
    int32_t violated            # Invariant
    uint32_t violated_channel
    int64_t violated_tick
    double found
    double allowed
    # the session
    uint64_t tick               # device periods since arming
    uint64_t rows
    uint64_t digest
    uint64_t visit_ticks
    uint64_t cap_ticks          # 100 ms
    uint64_t off_ticks          # 20 ms
    uint64_t sleep_periods
    double host_us
    double host_rate
    int32_t heart_stopped
    int32_t heart_wrong
    int32_t dead
    int32_t asked_to_end
    int64_t plant_tick          # of the last fault of the plant, -1: none
    int64_t accept_tick         # of the last command that the device accepted, -1: none
    uint32_t accept_index
    int32_t any_accepted
    int32_t device_phase
    uint32_t applied_index
    uint32_t sequence
    int32_t wire_faulted        # any fault of wire or host has been in force
    int32_t plant_faulted
    int32_t reading_faulted     # readings or counts no longer tell the truth
    int32_t crossed             # another channel's current reaches this one's skin
    int32_t fallen              # the first channel that ended short by itself; -1: none
    uint64_t fallen_row
    uint64_t lost_before
    # what it runs on
    LoopState* loop
    ControllerState* controllers[4]
    FaultPortState* port
    VirtualDeviceState device
    VirtualChannel channel[4]
    uint8_t* transmit
    Ring telemetry
    Ring events
    Ring operators
    int64_t patience_visits     # until the operator resumes what waits for him

# One session from arming to the open relay. The acts are in place; everything else is worked out from the scenario.
cdef void campaign_run(Campaign* campaign) noexcept nogil
