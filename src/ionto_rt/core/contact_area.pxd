"""Estimate -> contact area: a sequential test for a pad that loses or gains contact. docs/estimator.md derives it."""
from libc.stdint cimport int32_t, uint32_t
from ionto_rt.core.types cimport LoadFit

cdef struct ContactAreaConfig:
    double site_share           # share of the pad watched in the total of 1/C, (0, 1]; 1: its own sentinel
    double series_share         # share of Rs that scales with the area, [0, 1]
    double series_spread        # deviation of ln Rs that leads and body cause by themselves, within one block
    double noise_floor          # least deviation of ln(area) in one block: skin, not electronics
    double sigma_most           # blocks that know ln(area) worse than this are blind
    double step                 # ln(area) that the test is made for; larger ones are found sooner
    double blocks_to_false_alarm  # mean number of blocks between false alarms
    double baseline_blocks      # time constant with which the baseline follows the skin
    double moving_blocks        # time constant while the current moves, and the skin with it
    double moving_ratio         # change of the current from block to block that counts as moving
    uint32_t start_blocks       # that make the first baseline
    uint32_t moving_hold_blocks  # for which it still counts as moving

cdef struct ContactAreaState:
    uint32_t blocks             # that the baseline rests on
    int32_t sight               # rises with blocks that see the load, falls twice as fast with blind ones
    uint32_t tone               # of the baseline: other tones shift what the fit shows
    uint32_t moving_left
    double last_a
    double baseline[3]          # of ln Rs, ln Rp, ln C
    double seen[3]              # of the last block that saw the load
    double last                 # ln(area) of the last block
    double noise                # variance of ln(area), by the differences of blocks
    double sum_lower            # cumulative sums, in standard deviations
    double sum_higher
    double threshold            # of both
    double log_area             # smoothed
    double area_ratio           # the pad's area over that of the baseline; 0: not known yet
    double area_sigma           # deviation of its logarithm in one block
    int32_t alarm               # AreaAlarm
    int32_t held                # 1: a loss of area is acted on: the baseline stands until it is reset

# One block's fit, and its mean current. tone: any number that changes with the tones. While too
# few blocks see the load (sample rate too low for its corner, tones too small) there is no verdict and no ratio.
cdef void contact_area_step(ContactAreaState* state, const ContactAreaConfig* config, const LoadFit* fit,
                            uint32_t tone, double current_a) noexcept nogil
# Forget the baseline: what is there is taken for good contact (a new pad, or the operator's word).
cdef void contact_area_reset(ContactAreaState* state) noexcept nogil
