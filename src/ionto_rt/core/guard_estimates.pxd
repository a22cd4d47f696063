"""The guard's second class of rows: those that rest on the estimate, a block at a time, and are never the only stop."""
from libc.stdint cimport int32_t, uint32_t
from ionto_rt.core.types cimport Estimate

cdef struct EstimateLimits:
    double floor_a              # no verdict below this current
    double steady_ratio         # change of the mean current from block to block that counts as moving
    double breakdown_ratio      # H11: Rp below this share of what it was within a second
    double fall_ratio           # H11: or V/I below this share
    double potential_v          # H11: most that the electrodes' potential may be
    double rising_per_s         # H12: slope of V/I over five seconds, as a share of itself
    double drying_ratio         # H10: Rs beyond this share of the least that it was ...
    double drying_again_ratio   # ... until it is below this one
    double drying_log_parallel  # ... while ln Rp has moved by less than this
    double density_a            # H13: density limit x nominal area
    double density_ratio        # H13: and so far beyond it, on the estimated area, the current ramps down
    double hum_advise_ratio     # H41: rms of the mains over the current, or the voltage
    double hum_pause_ratio
    double hum_least_v          # H41: voltage that the ratio is of, where there is less
    double potential_rise_v     # H43: of the electrodes' potential along the current within two minutes
    uint32_t glance_ticks       # of a fifth of a block
    double potential_sigma_v    # H43: known no worse than this
    double changed_ratio        # H48: V/I or C after an operator's pause over that before it, or the other way round

# What one block has shown.
cdef struct EstimateInput:
    double current_a            # its mean
    double hum_a                # rms of the mains in its current
    double hum_v                # and in its voltage
    double area_ratio           # contact area over its baseline; 0: not known
    int32_t area_smaller        # 1: and it is an alarm
    int32_t limited             # 1: the programme derates
    int32_t pausing             # 1: a pause is in force, the safe ramp down or the contact check

cdef struct EstimateVerdict:
    int32_t trip                # Trip: ramp down; 0: none
    int32_t pause               # Trip of the pause that is asked for; 0: none
    int32_t latched             # 1: it waits for the operator
    uint32_t advice             # Advice bits that hold
    double cap_a                # H13: highest level on the contact area that is left; 0: no such cap

# H12: the course of one resistance.
cdef struct Rise:
    double second_ohm           # sum over the second that is open
    uint32_t second_fill
    double seconds_ohm[6]       # and the means of the last six
    uint32_t seconds

cdef struct EstimateWatch:
    EstimateVerdict verdict
    double last_a
    uint32_t steady_blocks      # for which the current has stood
    double series_known_ohm     # H11: Rs as it was last known well
    double glance_ohm[50]       # V/I and current of the last fifths of a block
    double glance_a[50]
    uint32_t glances
    double glance_v             # sums over the fifth that is open
    double glance_sum_a
    uint32_t glance_fill
    uint32_t glances_left       # so many more are judged although the current no longer stands
    uint32_t blocks
    Rise total                  # H12: V/I
    Rise tangent                # H12: Rs + Rp, which no potential dilutes
    double series_ohm           # H10: smoothed
    double series_least_ohm
    double log_parallel         # smoothed, and more so
    double log_parallel_slow
    uint32_t dry_run
    uint32_t dense_run          # H13
    uint32_t hum_run            # H41: blocks in a row beyond either limit
    uint32_t loud_run
    double potential_v          # H43: sum over the five seconds that are open
    uint32_t potential_fill
    double potentials_v[24]     # and the means of the last two minutes
    uint32_t potentials
    double before_ohm           # H48: V/I and current before the operator's pause; 0: none
    double before_a
    double before_f             # and C; 0: not known
    double steady_ohm           # of the last steady block
    double steady_a
    double steady_f             # 0: not known
    int32_t resumed             # 1: to be compared when the current is back
    uint32_t back_run
    uint32_t seen_run           # H48: blocks in a row that know C
    double area_low_a           # H13: the largest that was allowed in the last blocks below the cap,
    uint32_t area_run           # and how many there were in a row

# One block that has closed.
cdef void estimates_step(EstimateWatch* watch, const EstimateLimits* limits, const Estimate* estimate,
                         const EstimateInput* given) noexcept nogil
# A fifth of a block: its mean current and voltage.
cdef void estimates_glance(EstimateWatch* watch, const EstimateLimits* limits, double current_a,
                           double voltage_v) noexcept nogil
# A command of the operator, as it is consumed. pause: Trip of the guard's pause in force before it.
cdef void estimates_operator(EstimateWatch* watch, int32_t command, int32_t pause) noexcept nogil
