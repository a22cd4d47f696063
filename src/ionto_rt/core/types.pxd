"""What the stages of the tick share: plain C structs, enumerations and the port to a device.

SI units inside; the unit is in the name. A `code` is a raw converter count. A tick is one sample period.
Structs are append-only within a major version: embedders compile against them.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    MAX_CHANNELS = 32
    MAX_SEGMENTS = 4096
    HISTORY_TICKS = 16          # how far back the guard and the contact check look at the setpoint
    PORT_VERSION = 1
    DAQ_VERSION = 1
    ALL_CHANNELS = 255          # of an operator's command
    LOOP_SEQUENCE = 0x80000000  # operator_sequence of a command that the loop gave, not a person

cdef enum FrontEnd:
    FRONT_END_CURRENT_SOURCE = 0
    FRONT_END_VOLTAGE_SOURCE = 1

cdef enum Pacing:
    PACING_DEVICE = 1           # the device's own clock paces the samples
    PACING_HOST = 2             # the device only answers
    PACING_LOCK_STEP = 4        # one sample per answered command, on a virtual clock

cdef enum DeviceStatus:         # bits of Sample.status
    STATUS_RELAY_CLOSED = 1
    STATUS_COMPLIANCE = 2       # the output stage is at its voltage limit
    STATUS_LEASE_EXPIRED = 4    # latched until armed again
    STATUS_OVER_CURRENT = 8     # the device's own cap tripped, latched
    STATUS_CHARGE_CAP = 16      # the device's own charge cap, latched
    STATUS_TIME_CAP = 32        # the device's own session time cap, latched
    STATUS_CLAMPED = 64         # the command was outside the pushed output limits and was clamped
    STATUS_LATE = 128           # the command in force came after its boundary
    STATUS_PATIENT_STOP = 256   # the patient's stop button is held down
    STATUS_LEAKAGE = 512        # leakage beyond the device's limit: it has switched off, latched
    STATUS_SUPPLY_WARNING = 1024  # supply below its reserve: enough for some minutes
    STATUS_SUPPLY_LOW = 2048    # less than 3 minutes of supply left
    STATUS_OVER_TEMPERATURE = 4096  # a pad above 41 C or the board above 55 C
    STATUS_SELF_TEST_FAILED = 8192  # the device's power-on self-test, latched
    STATUS_SPEAKER_FAULT = 16384  # the alarm's sound did not come back in the loop-back

cdef enum OperatorCommand:
    OPERATOR_NONE = 0
    OPERATOR_PAUSE = 1
    OPERATOR_RESUME = 2
    OPERATOR_TRIM = 3           # add value_a to the level of the steps, within the limits
    OPERATOR_STOP = 4           # ramp down and end

cdef enum StopFlag:
    STOP_NONE = 0
    STOP_RAMP_DOWN = 1
    STOP_NOW = 2

cdef enum OnTrip:               # what one channel's trip means for the others of its device
    ON_TRIP_STOP = 0            # they ramp down and end
    ON_TRIP_PAUSE = 1           # they ramp down and hold their dose until an operator resumes them
    ON_TRIP_CONTINUE = 2        # they go on

cdef enum SegmentKind:
    SEGMENT_SELF_TEST = 0       # relay open, output zero: the readings must agree on zero
    SEGMENT_CONTACT_CHECK = 1   # charge-balanced probe of level_a: open, short or load
    SEGMENT_DELIVER = 2
    SEGMENT_RAMP_DOWN = 3       # to zero; ends on zero
    SEGMENT_REST = 4            # a prescribed pause at zero

cdef enum Phase:
    PHASE_SELF_TEST = 0
    PHASE_CONTACT_CHECK = 1
    PHASE_RAMP_UP = 2
    PHASE_TREATMENT = 3
    PHASE_PAUSE = 4
    PHASE_RAMP_DOWN = 5
    PHASE_COMPLETE = 6
    PHASE_ABORTED = 7           # ended by the operator, or short of its goal
    PHASE_FAULTED = 8           # a trip latched

cdef enum EndReason:            # why a programme ended
    END_NONE = 0
    END_COMPLETE = 1
    END_OPERATOR = 2
    END_SELF_TEST = 3
    END_CONTACT_OPEN = 4
    END_CONTACT_SHORT = 5
    END_TRIP = 6
    END_CONTACT_OUTSIDE = 7     # a load outside the region that is certified stable
    END_CONTACT_UNCLEAR = 8     # the contact check's response is no load's

cdef enum ProbeVerdict:         # of the contact check
    PROBE_RUNNING = 0
    PROBE_GOOD = 1
    PROBE_OPEN = 2
    PROBE_SHORT = 3
    PROBE_OUTSIDE = 4
    PROBE_UNCLEAR = 5

cdef enum Law:                 # of the regulator
    LAW_PID = 0                 # two-degree-of-freedom PID with feed-forward
    LAW_PREDICTIVE = 1          # PI with delay predictor on the plant that the contact check has identified

cdef enum Contact:
    CONTACT_UNKNOWN = 0
    CONTACT_GOOD = 1
    CONTACT_LOST = 2

cdef enum AreaAlarm:            # of the contact area against its baseline
    AREA_STEADY = 0
    AREA_SMALLER = 1
    AREA_LARGER = 2

cdef enum Action:               # safe states, in rising order of urgency
    ACTION_NONE = 0
    ACTION_DERATE = 1           # S3
    ACTION_PAUSE = 2            # S2
    ACTION_RAMP_DOWN = 3        # S1
    ACTION_OFF = 4              # S0

cdef enum Trip:                 # numbers are those of the hazard matrix
    TRIP_NONE = 0
    TRIP_OVER_CURRENT = 1       # H01
    TRIP_OVER_CURRENT_MEAN = 2  # H02: 100 ms mean above the setpoint
    TRIP_UNDER_CURRENT = 3      # H03: 1 s mean below the setpoint, not limiting
    TRIP_OPEN_LEAD = 5          # H05
    TRIP_INTERMITTENT_LEAD = 7  # H07
    TRIP_SHORT = 8              # H08
    TRIP_CONTACT_AREA = 9       # H09
    TRIP_BREAKDOWN = 11         # H11: the skin's resistance fell at once
    TRIP_RESISTANCE_RISING = 12  # H12
    TRIP_DENSITY = 13           # H13
    TRIP_CHARGE_CAP = 15        # H15
    TRIP_SESSION_TIME = 16      # H16
    TRIP_POLARITY = 17          # H17
    TRIP_OUTPUT_MISMATCH = 20   # H20: the device applied another code than it was told
    TRIP_READING_STUCK = 22     # H22
    TRIP_READINGS_DISAGREE = 23  # H23
    TRIP_LOST_SAMPLES = 24      # H24
    TRIP_STALE_DATA = 25        # H25
    TRIP_DEADLINES = 26         # H26
    TRIP_HOST_SUSPENDED = 28    # H28: data older than a lease: the host stood still
    TRIP_LEASE_LAPSED = 29      # H28, H29: the device let go
    TRIP_HEARTBEAT = 30         # H30: the orchestrator went silent
    TRIP_WATCHDOG = 31          # H31: the heartbeat goes on but does not answer its challenge
    TRIP_NOT_FINITE = 32        # H32
    TRIP_HUNTING = 34           # H34
    TRIP_SUPPLY_LOW = 39        # H39
    TRIP_LEAKAGE = 40           # H40
    TRIP_INTERFERENCE = 41      # H41
    TRIP_CROSS_LEAKAGE = 42     # H42
    TRIP_ELECTRODE_SPENT = 43   # H43
    TRIP_TEMPERATURE = 44       # H44
    TRIP_PATIENT_STOP = 45      # H45
    TRIP_PAD_CHANGED = 48       # H48: another impedance after a pause
    TRIP_DEVICE_SELF_TEST = 49  # H49
    TRIP_REVERSAL = 52          # H52: the setpoint changed its sign without a hold at zero
    TRIP_DEVICE_CLOCK = 53      # H53
    TRIP_LIMITS_CORRUPT = 54    # the guard's own table failed its checksum
    TRIP_DEVICE_CAP = 55        # the device's own cap acted
    TRIP_OPERATOR_STOP = 56     # the sticky stop flag, second press
    TRIP_CHARGE_MISMATCH = 57   # host and device count different charges

cdef enum SampleFault:
    SAMPLE_GOOD = 0
    SAMPLE_OUT_OF_RANGE = 1
    SAMPLE_NOT_FINITE = 2
    SAMPLE_REPEATED = 3         # index not newer than the last one

cdef enum Event:                # bits of Tick.events: what changed in this tick
    EVENT_PHASE = 1
    EVENT_TRIP = 2
    EVENT_SEGMENT = 4
    EVENT_OPERATOR = 8
    EVENT_LIMITED = 16          # compliance derating began or ended
    EVENT_CONTACT = 32
    EVENT_BAD_SAMPLE = 64
    EVENT_GAP = 128
    EVENT_PAUSE = 256           # a pause the guard asked for began or ended
    EVENT_STATUS = 512          # the device's status changed
    EVENT_END = 1024
    EVENT_ADVICE = 2048         # what a person should see to began or ended

cdef enum Advice:               # bits: what a person should see to, while the session goes on
    ADVICE_WET_PADS = 1         # H10
    ADVICE_MAINS = 2            # H41
    ADVICE_AREA = 4             # H13: the level is capped by the contact area that is left

cdef struct Sample:
    uint32_t index              # sample counter of the device, from 0 at arming
    uint32_t device_time_us     # device clock, modulo 2**32
    uint32_t applied_index      # index answered by the command in force
    uint16_t nonce              # to be echoed by the command that answers
    uint16_t status             # DeviceStatus bits
    int32_t current_code
    int32_t redundant_code      # second, independent current reading
    int32_t voltage_code
    int32_t applied_code        # output code in force while this sample was taken
    int64_t charge_codes        # device's net charge: sum of current codes less offset, in 1/65536 code
    int32_t sentinel_code       # voltage of the active terminal against the sentinel electrode; 0 without one

cdef struct Command:
    uint32_t index              # the sample it answers
    uint32_t token              # session token
    uint16_t nonce              # echoed
    uint16_t lease_ticks
    uint8_t flags               # COMMAND_* bits
    int32_t code                # output code

cdef enum CommandFlag:
    COMMAND_CLOSE_RELAY = 1

# Of the range in use; from the device's hello. value = (code - offset_q16/65536) * lsb.
cdef struct Calibration:
    int32_t front_end           # FrontEnd
    int32_t current_offset_q16
    int32_t redundant_offset_q16
    int32_t voltage_offset_q16
    int32_t output_offset_q16
    int32_t code_limit          # a current, redundant or voltage code beyond +-code_limit is a fault
    int32_t output_code_min
    int32_t output_code_max
    double current_lsb_a
    double redundant_lsb_a
    double voltage_lsb_v
    double output_lsb           # A per code (current source) or V per code (voltage source)
    double full_scale_a
    double compliance_v
    double ballast_ohm          # 0 on a current source
    double tick_s               # sample period
    double sentinel_lsb_v       # of the sentinel electrode's reading; 0: none is wired
    int32_t sentinel_offset_q16

cdef struct Segment:
    int32_t kind                # SegmentKind
    int32_t step                # number of the treatment's step, from 0; -1 for service segments
    int64_t duration_ticks      # 0: no end by time
    double level_a              # magnitude of the setpoint
    double slope_a_per_tick     # of the ramp to level_a; 0: at once
    double ramp_out_a_per_tick  # slope of the ramp down that belongs to this step; 0: none follows
    double charge_c             # end when this much has been delivered since the step began; 0: no end by charge
    double charge_total_c       # delivered charge since the session began that is never passed

# Rs + (Rp || C) as one block shows it. covariance is of the logarithms: Rs Rs, Rs Rp, Rs C, Rp Rp, Rp C, C C.
cdef struct LoadFit:
    double series_ohm           # 0, as the others: not seen
    double parallel_ohm
    double capacitance_f
    double misfit               # of the model, in standard deviations; one degree of freedom
    double covariance[6]
    int32_t disturbed           # 1: something stepped within the block, so that its numbers were not taken

cdef struct Estimate:
    double resistance_ohm       # V/I, filtered over one block; 0 until known
    double resistance_sigma_ohm  # one standard deviation, electrode EMF included
    double series_ohm           # Rs; 0 until known
    double parallel_ohm         # Rp
    double capacitance_f        # C
    double series_sigma_ohm
    double parallel_sigma_ohm
    double capacitance_sigma_f
    uint32_t block              # count of closed blocks
    int32_t contact             # Contact
    double emf_v                # where the tangent of slope Rs + Rp meets zero current; its deviation 0: not known
    double emf_sigma_v
    double low_tone_hz          # 0: no tone
    double high_tone_hz
    double misfit               # of Rs + (Rp || C) to both tones, in standard deviations
    double hum_v                # peak of the mains in the last block's voltage
    uint32_t window_blocks      # blocks that Rs, Rp and C rest on
    double mean_a               # current of the last block
    LoadFit latest              # of the last block alone

# i(k) = pole i(k-1) + gain u(k-delay) - gain_before u(k-delay-1) + disturbance; u in A (current source) or V.
cdef struct PlantModel:
    double pole                 # 0 <= pole < 1
    double gain                 # A per output unit, above 0
    double gain_before          # -gain < gain_before < gain: the zero lies inside the unit circle
    int32_t delay_ticks         # 1 to 12: sample k is the first to show the output given at k - delay

cdef struct Setpoint:
    double current_a            # signed; tone included
    double level_a              # signed; without the tone
    double prescribed_a         # signed; what the programme asks for, before derating
    int32_t phase
    int32_t segment
    int32_t step
    int32_t end_reason
    int32_t limited             # 1: derated (compliance, or after lost contact)
    int32_t close_relay
    int32_t probing             # 1: the contact check drives the output
    double delivered_c          # net charge in the direction of the treatment

cdef struct RegulatorTerms:
    double output               # A (current source) or V (voltage source)
    double proportional
    double integral
    double derivative
    double feed_forward
    double unlimited            # output before slew and limits
    int32_t fault               # 1: a non-finite input, state untouched
    int32_t saturated           # -1, 0, 1

cdef struct Verdict:
    int32_t action              # Action in force
    int32_t trip                # first cause; latched
    int32_t output_code
    int32_t close_relay
    int32_t pause               # Trip code of the pause that the programme must make; 0: none

cdef struct TickInput:
    Sample sample
    uint32_t host_late_us       # age of the sample when ticked; 0 on a virtual clock
    uint64_t host_time_us       # host clock since arming; 0 on a virtual clock
    uint32_t heartbeat          # latest value of the orchestrator's cell
    uint32_t operator_sequence  # number of the operator command consumed in this tick; 0: none
    int32_t operator_command    # OperatorCommand
    int32_t stop                # StopFlag
    double operator_value_a
    uint8_t channel             # of the device, from 0

# One row of telemetry: every input and every term of one tick. Its fields are the record's columns.
cdef struct Tick:
    uint32_t index
    uint32_t device_time_us
    uint32_t applied_index
    uint32_t host_late_us
    uint32_t heartbeat
    uint32_t lost_ticks         # result: samples lost, or refused, before this one
    uint64_t host_time_us
    int64_t device_charge_codes
    int32_t current_code
    int32_t redundant_code
    int32_t voltage_code
    int32_t applied_code
    uint16_t nonce
    uint16_t status
    int32_t stop
    int32_t operator_command
    uint32_t operator_sequence
    double operator_value_a
    # from here on: results
    double current_a
    double redundant_a
    double voltage_v
    double setpoint_a
    double level_a
    double prescribed_a
    double delivered_c          # net, in the direction of the treatment
    double resistance_ohm
    double resistance_sigma_ohm
    double series_ohm
    double series_sigma_ohm
    double parallel_ohm
    double parallel_sigma_ohm
    double capacitance_f
    double capacitance_sigma_f
    double proportional
    double integral
    double derivative
    double feed_forward
    double unlimited
    double output               # regulator's output, A or V
    double model_pole           # plant model in force
    double model_gain
    double model_gain_before
    int64_t net_codes           # ledger, 1/65536 code
    int64_t absolute_codes
    int32_t output_code         # what was sent
    int32_t phase
    int32_t segment
    int32_t step
    int32_t end_reason
    int32_t contact
    int32_t saturated
    int32_t limited
    int32_t action
    int32_t trip
    int32_t pause               # Trip code of the pause the guard asks for
    int32_t sample_fault
    int32_t close_relay
    uint32_t estimate_block
    uint32_t events             # Event bits
    int32_t probe_verdict       # ProbeVerdict of the contact check
    int32_t model_delay_ticks
    double emf_v
    double emf_sigma_v
    double low_tone_hz
    double high_tone_hz
    double misfit
    double area_ratio           # contact area over that of its baseline; 0: not known
    double area_sigma           # deviation of its logarithm in one block
    uint32_t window_blocks      # blocks that Rs, Rp and C rest on
    int32_t area_alarm          # AreaAlarm
    int32_t sentinel_code       # an input
    double sentinel_v           # results; all 0 without a sentinel electrode
    double active_series_ohm    # Rs, Rp, C of the active site alone
    double active_parallel_ohm
    double active_capacitance_f
    uint32_t quick_ticks        # that the regulator's integral is still quick, after a surprise
    uint8_t channel             # an input: of the device, from 0
    double hum_a                # rms of the mains in the current of the last block
    double cap_a                # H13: highest level on the contact area that is left; 0: no such cap
    uint32_t advice             # Advice bits
    double loop_gain            # of the regulator, over that of its configuration: halved for each hunting
    uint32_t challenge          # a result: what the next heartbeat must answer
    int32_t pause_latched       # a result: 1: the pause the guard asks for ends by the operator's resume alone

# Bytes to and from a device. read waits up to timeout_us, and returns bytes read, 0 on time-out, or -errno.
cdef struct Port:
    uint32_t version
    uint32_t size
    void* context
    int64_t (*read)(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil
    int64_t (*write)(void* context, const uint8_t* data, size_t length) noexcept nogil

# A device that is called, not spoken to: a vendor's library inside the loop. Both functions run on the loop's thread,
# without the GIL; they must not allocate, nor wait for anything but the device.
cdef struct Daq:
    uint32_t version            # DAQ_VERSION
    uint32_t size               # of this struct, as its maker compiled it
    void* context               # handed back to both functions
    uint32_t channels           # 1 to MAX_CHANNELS
    uint32_t pacing             # PACING_DEVICE: receive waits for the device's clock; PACING_HOST: it reads at once
    # Up to `most` sample periods of `channels` samples each, period by period, oldest first: how many periods came,
    # 0 after timeout_us without one, or -errno when the device is gone.
    int32_t (*receive)(void* context, Sample* samples, uint32_t most, int64_t timeout_us) noexcept nogil
    # One command for each channel, the answer to the newest sample: 0, or -errno.
    int32_t (*send)(void* context, const Command* commands) noexcept nogil
