"""Sample -> estimate: total resistance, Rs, Rp, C from two probe tones, contact; with uncertainty.

docs/estimator.md derives the equations. A block is `block_ticks` long, best a whole number of mains periods (0.1 s).
A tone is a whole number of periods in it: its "bin".
"""
from libc.stdint cimport int32_t, int64_t, uint32_t
from ionto_rt.core.types cimport Estimate, LoadFit

cdef enum:
    WINDOW_BLOCKS = 10          # blocks whose phasors are added up, coherently
    TONES = 2                   # low and high
    WAVES = 4                   # and hum of 50 and of 60 Hz, which is no noise

cdef struct ImpedanceConfig:
    double tick_s
    double tone_a               # peak of each of the two tones; 0: no tone
    double corner_hz            # of the load that the first tones are chosen for: 1/(2 pi Rp C)
    double retune_factor        # tones are chosen anew when the corner has moved by this factor; 0: never
    double electrode_emf_v      # one standard deviation of the unknown electrode potential
    double voltage_noise_v      # converter noise floor, one standard deviation
    double current_noise_a
    double skew_s               # how much later than the current the voltage is sampled
    double output_time_s        # time constant of the output stage; 0: it follows at once
    double ballast_ohm          # of a voltage source; 0: a current source
    double open_ratio           # contact is lost below this share of the setpoint
    double open_floor_a         # no verdict on contact below this setpoint
    double open_voltage_v       # and only at or above this voltage
    int32_t smooth              # 1: the current is band-limited; 0: held from sample to sample, sampled at its end
    int32_t open_any_voltage    # 1: once contact was good, whatever the voltage (voltage source)
    uint32_t open_ticks
    uint32_t good_ticks
    uint32_t block_ticks        # at least 8
    uint32_t low_bin            # fixed tones, in periods per block; 0: chosen for the corner
    uint32_t high_bin

# The phasors of one block, and what is known of their noise.
cdef struct BlockPhasors:
    double voltage_re[2]
    double voltage_im[2]
    double current_re[2]
    double current_im[2]
    double voltage_noise        # variance of one sample
    double current_noise

cdef struct ImpedanceState:
    uint32_t phase_ticks        # within one block's length, by which the tones repeat
    uint32_t block_fill
    uint32_t settle_left        # ticks until the load has forgotten what came before the tones
    uint32_t open_run
    uint32_t good_run
    int32_t tone_on             # of the sample before
    uint32_t bins[2]            # periods per block, low and high; 0: not chosen yet
    uint32_t away_run           # blocks in a row whose corner asks for other tones
    uint32_t blind_run          # blocks in a row that showed no load
    double corner_hz            # of the load that the tones are for
    double cosine[4]            # of the WAVES, at phase_ticks; zeros: not there
    double sine[4]
    double turn_cosine[4]       # what one tick turns them by
    double turn_sine[4]
    double t_cosine[4]          # sums over this block of t cos and t sin
    double t_sine[4]
    double first_v              # sums count from the block's first sample
    double first_i
    double sum_v
    double sum_i
    double sum_vt
    double sum_it
    double sum_vc[4]
    double sum_vs[4]
    double sum_ic[4]
    double sum_is[4]
    double sum_vv
    double sum_ii
    BlockPhasors blocks[10]     # the last WINDOW_BLOCKS
    uint32_t blocks_kept
    uint32_t blocks_at
    double quiet_v2             # variance of a voltage sample as it usually is; 0: no block yet
    Estimate estimate

# One good sample of current and voltage. setpoint_a is the one in force when the sample was taken (the nearest to zero
# of the loop's delay); tone_on: the tones were part of it.
cdef void impedance_step(ImpedanceState* state, const ImpedanceConfig* config, double current_a, double voltage_v,
                         double setpoint_a, int32_t tone_on) noexcept nogil
# The tones to add to the setpoint of this tick.
cdef double impedance_tone(const ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil
# Samples were lost: the open block is dropped, the tones keep the device's time.
cdef void impedance_break(ImpedanceState* state, const ImpedanceConfig* config, uint32_t ticks) noexcept nogil
# Tones for a load of this corner frequency, from the next tick on. The open block is dropped, the estimate stays. Fixed
# tones (low_bin, high_bin of the config) stay as they are.
cdef void impedance_choose_tones(ImpedanceState* state, const ImpedanceConfig* config, double corner_hz) noexcept nogil
# The tones and the time of another state of the same configuration: for a second voltage under one current.
cdef void impedance_follow(ImpedanceState* state, const ImpedanceState* leader) noexcept nogil
# Rms of the mains (50 and 60 Hz) in the current of the block that the last step has closed.
cdef double impedance_hum(const ImpedanceState* state, const ImpedanceConfig* config) noexcept nogil
# Impedance of the load in `fit` as the samples show it at `turns` periods per tick: re, im.
cdef void impedance_model(const ImpedanceConfig* config, double series_ohm, double parallel_ohm, double capacitance_f,
                          double turns, double* re, double* im) noexcept nogil
