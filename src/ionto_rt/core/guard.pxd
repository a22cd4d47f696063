"""The guard: last before encoding, independent of the regulator, with its own conversion and checked limits."""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from ionto_rt.core.types cimport HISTORY_TICKS, Verdict

cdef struct GuardLimits:
    double tick_s
    double redundant_lsb_a      # the guard's own calibration
    double voltage_lsb_v
    int32_t redundant_offset_q16
    int32_t voltage_offset_q16
    int32_t current_offset_q16
    int32_t output_zero_code    # output code of zero current
    int32_t output_code_min
    int32_t output_code_max
    double current_lsb_a
    double full_scale_a
    double current_limit_a      # prescription limit: highest setpoint; H01 also trips beyond its own trip level
    double over_ratio           # H01: 1.1
    double over_margin_a        # H01: full scale / 50
    double open_ratio           # H05: current below this share of the setpoint ...
    double open_floor_a         # ... when that is at least this ...
    double open_voltage_v       # ... and the voltage at least this
    double short_voltage_v      # H08
    double short_current_a
    double density_trip_a       # H13: 1.1 x density limit x nominal area, on a 1 s mean
    double rest_a               # H42: mean over 0.1 s beside a setpoint of zero
    double disagree_a           # H23: current readings further apart than this, on a 0.1 s mean
    int64_t charge_cap_codes    # H15: absolute, 1/65536 code
    int64_t charge_mismatch_codes
    uint64_t session_ticks      # H16
    int32_t open_any_voltage    # H05: 1: once current was established, whatever the voltage (voltage source)
    uint32_t over_ticks         # H01: 2 ms
    uint32_t open_ticks         # H05: 5 ms
    uint32_t intermittent_count  # H07: more than this many opens ...
    uint32_t intermittent_ticks  # ... within this long
    uint32_t short_ticks        # H08: 20 ms
    uint32_t second_ticks       # ticks of one second
    uint32_t gap_pause_ticks    # H24: lost samples in a row beyond which the programme pauses
    uint32_t gap_stop_ticks     # H24: and beyond which current ramps down
    uint32_t late_pause_us      # H25: age of the sample when ticked
    uint32_t late_stop_us
    uint32_t lease_us           # H28: data older than the lease means that the device has let go
    uint32_t overruns_pause     # H26: late ticks within 100 ticks
    uint32_t overruns_stop
    uint32_t overrun_us         # a tick later than this counts as an overrun
    uint32_t heartbeat_ticks    # H30: 2 s
    uint32_t clock_window_us    # H53: host time over which the device's clock is checked; 10 s
    uint32_t clock_ppm          # H53: 10000
    double stop_slope_codes     # output codes per tick of a ramp down that the guard drives itself
    double area_pause_ratio     # H09: a contact area in alarm below this share of its baseline pauses ...
    double area_stop_ratio      # ... and below this one ramps down
    double over_mean_ratio      # H02: mean of 0.1 s above this share of the setpoint's ...
    double over_mean_margin_a   # ... and beyond them by more than this
    double under_ratio          # H03: mean of 1 s below this share of the setpoint's ...
    double under_margin_a       # ... and short of that by more than this
    double limit_voltage_v      # from here on the stage may be limiting
    double flat_move_a          # H22: by which the setpoint must have moved while a reading stood still
    double ripple_ratio         # H34: deviation from the setpoint, rms over that
    double ripple_margin_a      # H34: rms that noise has
    int64_t pad_charge_codes    # H43: absolute charge beyond which the pads are spent
    uint32_t retries            # H03, H34: pauses that end by themselves before one waits for the operator
    uint32_t polarity_ticks     # H17: current against its setpoint for this long
    uint32_t probe_ticks        # H17: of the contact check, over which output and current are compared
    uint32_t mismatch_ticks     # H20
    uint32_t flat_ticks         # H22: 50 ms
    uint32_t ripple_ticks       # H34: 50 ms; three in a row
    uint32_t hold_ticks         # H52: at zero between two directions; 1 s
    uint32_t patient_stop_ticks  # H45: the ramp down that the patient's button asks for takes this long
    uint32_t checksum           # guard_checksum() of all fields before it

# A reading that has not moved, and between what the setpoint went meanwhile.
cdef struct FlatReading:
    int32_t code
    uint32_t run
    double low
    double high

cdef struct GuardState:
    int32_t trip
    int32_t action
    int32_t pause               # Trip code of the pause in force; 0: none
    int32_t pause_latched       # 1: only the operator's resume ends it
    uint32_t over_run
    uint32_t open_run
    uint32_t short_run
    uint32_t opens
    uint32_t missing_run
    uint32_t overruns_window
    uint32_t overruns_ticks     # place in overrun_bits
    uint32_t good_run
    uint32_t heartbeat
    uint32_t heartbeat_age
    uint32_t checksum_age
    uint32_t density_fill
    uint32_t rest_void          # H42: 1: in the tenth that is open not all setpoints were zero
    double rest_sum
    uint32_t rest_run           # tenths in a row beyond its limit
    uint32_t density_blocks
    uint32_t history_at
    uint64_t ticks
    uint64_t clock_host_us
    uint64_t clock_device_us
    uint32_t clock_last_us
    uint64_t open_ticks_at[4]
    double density_sum
    double density_block_a[10]  # means of the last ten tenths of a second
    double disagree_sum
    double output_code          # of the guard's own ramp down
    double setpoints[16]        # the last HISTORY_TICKS setpoints, signed
    int32_t last_code
    int32_t relay_closed
    int32_t established         # current has reached half of its setpoint since that was last zero
    double standing_a           # highest setpoint that the command in force may have been worked out for
    double along_sum            # of one tenth of a second: current in the setpoint's direction,
    double set_sum              # and the setpoints of the loop's delay before
    double set_before           # of the tenth before this
    double under_block[10]      # what the last tenths had beyond the least
    uint32_t under_blocks
    int32_t under_void          # 1: this tenth says nothing about too little current
    uint32_t retried
    uint32_t reversed_run
    double probe_product        # of the changes of output and current, while the contact check runs
    double probe_output
    double probe_current
    int32_t probe_code
    int32_t probe_reading
    uint32_t probe_fill
    uint32_t mismatch_run
    uint32_t echo_next          # index after that of the command in force, and its code; from zeros: none yet
    int32_t echo_code
    uint32_t sent_next[128]     # index after that of the last commands, by index modulo 128
    int32_t sent_code[128]
    uint32_t sent_newest
    int32_t sent_any
    FlatReading flat[2]         # current, redundant
    double ripple_sum
    double ripple_square
    uint32_t ripple_fill
    uint32_t ripple_run
    uint32_t zero_run           # ticks for which the setpoint has been zero
    int32_t direction           # of the last setpoint that was not zero
    uint32_t challenge          # H31: what the next heartbeat must answer
    uint32_t challenges         # how many have been drawn before it
    uint32_t stop_run           # H45: samples in a row with the button held
    uint32_t stop_presses
    double descent_codes        # slope that the patient has asked for; 0: the guard's own
    int32_t begun               # 1: the relay has been closed
    int32_t zero_code           # output code of zero current, as the limits had it when they were first verified
    uint32_t foreign_run        # H42: ticks with current through an open relay
    int32_t foreign             # 1: that was long enough; stays
    uint64_t overrun_bits[2]    # H26: one for each of the last hundred ticks
    double probe_bound_a        # H01: of the contact check, in force or just ended,
    uint32_t probe_left         # for so many ticks

cdef struct GuardInput:
    int32_t sample_good
    int32_t current_code
    int32_t redundant_code
    int32_t voltage_code
    uint16_t status
    uint32_t ticks              # sample periods since the last call: 1 + gap
    uint32_t device_time_us
    uint32_t host_late_us
    uint64_t host_time_us
    uint32_t heartbeat
    int32_t stop
    int32_t operator_command
    int32_t finite              # 0: estimator, programme or regulator produced a non-finite value
    int32_t armed_output        # 1: the programme has the relay closed
    int64_t absolute_codes
    int64_t net_codes
    int64_t device_net_codes
    double setpoint_a           # of this tick, signed
    int32_t output_code         # what the regulator asks for
    int32_t close_relay
    double probe_a              # bound of the contact check's current while it runs; else 0
    int32_t area_alarm          # AreaAlarm
    double area_ratio
    uint32_t applied_age_ticks  # sample periods since the sample that the command in force answered
    uint32_t index              # of the sample
    uint32_t applied_index
    int32_t applied_code        # the device's echo
    int32_t limited             # 1: the programme derates
    double hum_a                # rms of the mains in the current, by the estimator's last block
    int32_t estimate_trip       # of the rows that rest on the estimate: Trip that ramps down,
    int32_t estimate_pause      # that pauses,
    int32_t estimate_latched    # 1: until the operator resumes
    uint32_t token              # of the session: challenges are drawn from it
    int32_t saturated           # 1: a reading of the current is at or beyond its converter's end

cdef uint32_t guard_checksum(const GuardLimits* limits) noexcept nogil
# The number of that count in a session's sequence of challenges, and what a heartbeat must be to answer one: two
# permutations of 32 bits, so that no two challenges or answers in succession are alike.
cdef uint32_t heartbeat_challenge(uint32_t token, uint32_t count) noexcept nogil
cdef uint32_t heartbeat_answer(uint32_t challenge) noexcept nogil
# The first challenge, on a state of zeros.
cdef void guard_begin(GuardState* state, uint32_t token) noexcept nogil
cdef void guard_step(GuardState* state, const GuardLimits* limits, const GuardInput* given,
                     Verdict* verdict) noexcept nogil
