# cython: language_level=3, cdivision=True
"""A host program of your own: the regulator holds a current in a loop that never needs the GIL."""
from libc.string cimport memset

from ionto_rt.core.regulator cimport (
    ANTI_WINDUP_CONDITIONAL, INTEGRATION_BACKWARD, RegulatorConfig, RegulatorState, regulator_reset, regulator_step,
)
from ionto_rt.core.types cimport RegulatorTerms


cdef struct Plant:
    double gain             # A per A asked for
    double lag              # share of the remaining way covered in one tick
    double current_a


cdef double plant_step(Plant* plant, double output_a) noexcept nogil:
    plant.current_a += plant.lag * (plant.gain * output_a - plant.current_a)
    return plant.current_a


cdef double run(const RegulatorConfig* config, Plant* plant, double setpoint_a, int ticks,
                double* peak_a) noexcept nogil:
    cdef RegulatorState state
    cdef RegulatorTerms terms
    cdef int _tick
    memset(&state, 0, sizeof(state))
    regulator_reset(&state, 0.0)
    peak_a[0] = 0.0
    for _tick in range(ticks):
        regulator_step(&state, config, setpoint_a, plant.current_a, &terms)
        if plant_step(plant, terms.output) > peak_a[0]:
            peak_a[0] = plant.current_a
    return plant.current_a


def hold(double setpoint_a, int ticks=2000, double gain=0.97) -> dict:
    """Hold setpoint_a for ticks of 1 ms through a source whose gain is off; the last and the highest current, in A."""
    cdef RegulatorConfig config
    cdef Plant plant = Plant(gain=gain, lag=0.5, current_a=0.0)
    cdef double last_a, peak_a
    memset(&config, 0, sizeof(config))
    config.tick_s = 0.001
    config.ki = 100.0
    config.feed_forward = 1.0
    config.setpoint_weight = 1.0
    config.output_min = 0.0
    config.output_max = 0.005
    config.slew_per_tick = 0.00002
    config.integration = INTEGRATION_BACKWARD
    config.anti_windup = ANTI_WINDUP_CONDITIONAL
    with nogil:
        last_a = run(&config, &plant, setpoint_a, ticks, &peak_a)
    return {"current_a": last_a, "peak_a": peak_a}
