"""PI regulator with delay predictor, for a plant of one pole, one zero and a delay.

Per sample, with u[j] the output given j samples ago and (a, b0, b1, d) the model:

    e = y - a y1 - b0 u[d] + b1 u[d+1]              what the model did not foresee
    q = q + (1 - beta)(e - q)                       integral action
    p = y, then d - 1 times: p = a p + b0 u - b1 u_before + q      the current when this output will act
    m' = s m + (1 - s) r                            reference model
    u = (m' + lambda (p - m) - a p - q + b1 u[1]) / b0

In the record the sum stands as a PI: feed-forward (m' - a m + b1 u[1]) / b0, proportional (lambda - a)(p - m) / b0,
integral -q / b0. Where the output is limited, m becomes what the model says will flow: nothing winds up.

docs/control.md derives it. Predictor: Smith, Chem. Eng. Prog. 53 (1957) 217; internal model control: Morari and
Zafiriou, "Robust Process Control", Prentice Hall 1989.
"""
from libc.math cimport fabs, isfinite
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

from ionto_rt.core.elementary cimport exact_exp, exact_log, quantised
from ionto_rt.core.types cimport PlantModel, RegulatorTerms

cdef enum:
    SCHEDULE_TICKS = 16         # between two looks
    QUICK_TURNS = 2
    TURNS = 4
    TURN_TICKS = 24             # between two of them

cdef double POLE_SEEN = 0.35    # below it, pole over gain_before is no measure of the series impedance
cdef double OSCILLATION_RATIO = 0.05
cdef double TURN_RESCALE = 1.5
cdef double RAIL = 0.97         # of the compliance voltage: the stage no longer regulates


cdef inline double given(const PredictiveState* state, int32_t ticks) noexcept nogil:
    """The output given so many ticks ago."""
    return state.outputs[(state.output_at + 1 - ticks) & (OUTPUT_HISTORY - 1)]


cdef inline double gain_at_rest(const PlantModel* model) noexcept nogil:
    return (model.gain - model.gain_before) / (1.0 - model.pole)


cdef inline double unforeseen(const PredictiveState* state, const PlantModel* model, double measured) noexcept nogil:
    return (measured - model.pole * state.previous_measured - model.gain * given(state, model.delay_ticks)
            + model.gain_before * given(state, model.delay_ticks + 1))


cdef inline double within(double value, double low, double high) noexcept nogil:
    return low if value < low else high if value > high else value


cdef inline void push(PredictiveState* state, double output, double reference) noexcept nogil:
    state.output_at = (state.output_at + 1) & (OUTPUT_HISTORY - 1)
    state.outputs[state.output_at] = output
    state.references[state.output_at] = reference
    state.output = output


cdef void take_model(PredictiveState* state, const PredictiveConfig* config, const PlantModel* model) noexcept nogil:
    """The model, and what an open lead needs of it: R = a/b1, (R || Rp) C from a, Rp C = that times (R + Rp)/R."""
    cdef double whole
    cdef int32_t _k
    state.model = model[0]
    state.rescaled = 1.0
    state.spike_share = 1.0
    if not config.voltage_source:
        return
    whole = 1.0 / gain_at_rest(model)
    # Where the samples do not show the first instant of a step, the least there can be.
    state.series_ohm = config.series_least_ohm
    state.open_decay = 0.0
    if model.gain_before > 0.0 and model.pole > 0.0:
        if model.pole > POLE_SEEN:
            state.series_ohm = within(model.pole / model.gain_before, config.series_least_ohm, 1.0 / model.gain)
        state.open_decay = exact_exp(exact_log(model.pole) * within(state.series_ohm / whole, 0.0, 1.0))
    # A step of the output drives the inverse of this more current at once than at rest.
    state.spike_share = within(state.series_ohm / whole, 0.01, 1.0)
    state.open_decay_ahead = 1.0
    for _k in range(model.delay_ticks):
        state.open_decay_ahead *= state.open_decay


cdef void predictive_reset(PredictiveState* state, const PredictiveConfig* config, const PlantModel* model,
                           double output, double offset, double measured_a) noexcept nogil:
    cdef int32_t k
    memset(state, 0, sizeof(state[0]))
    take_model(state, config, model)
    remember_probed(state)
    state.output = output
    state.offset = offset
    for k in range(OUTPUT_HISTORY):
        state.outputs[k] = output
    state.reference = measured_a
    state.previous_measured = measured_a
    state.inner_v = output - measured_a * state.series_ohm
    state.disturbance = unforeseen(state, &state.model, measured_a)


cdef void predictive_adopt(PredictiveState* state, const PredictiveConfig* config,
                           const PlantModel* model) noexcept nogil:
    if state.started:
        # The next unforeseen part is what it was under the old model.
        state.disturbance += (
            (state.model.pole - model.pole) * state.previous_measured
            + state.model.gain * given(state, state.model.delay_ticks) - model.gain * given(state, model.delay_ticks)
            - state.model.gain_before * given(state, state.model.delay_ticks + 1)
            + model.gain_before * given(state, model.delay_ticks + 1)
        )
    take_model(state, config, model)


cdef void remember_probed(PredictiveState* state) noexcept nogil:
    cdef const PlantModel* model = &state.model
    cdef double series = 1.0 / model.gain, whole = 1.0 / gain_at_rest(model), parallel
    state.probed_ticks_per_ohm = 0.0
    if model.gain_before > 0.0 and model.pole > 0.0:
        series = within(model.pole / model.gain_before, 0.0, series)
        parallel = whole - series
        if parallel > 1e-6 * whole:
            state.probed_ticks_per_ohm = -1.0 / exact_log(model.pole) * whole / (series * parallel)
    state.probed_series_ohm = series
    state.probed_whole_ohm = whole


cdef bint schedule(PredictiveState* state, const PredictiveConfig* config, double setpoint,
                   double measured) noexcept nogil:
    """Skin conducts the better the more current it carries: on a voltage source the model's impedance follows it down.

    V/I is an impedance only at rest: means over several time constants of output, current and setpoint must agree that
    it is. Never up again: with less impedance than there is a loop is slow, with more it diverges, and at a low level
    the electrodes' potential makes V/I too large. True: the model changed.
    """
    cdef double share, whole, series, parallel, ticks
    cdef PlantModel model
    ticks = 4.0 * state.probed_ticks_per_ohm * (state.probed_whole_ohm - state.probed_series_ohm)
    share = 1.0 / (ticks if ticks > config.schedule_ticks else config.schedule_ticks)
    state.mean_output += share * (given(state, state.model.delay_ticks) - state.offset - state.mean_output)
    state.mean_measured += share * (measured - state.mean_measured)
    state.mean_setpoint += share * (setpoint - state.mean_setpoint)
    state.schedule_at += 1
    if state.schedule_at < SCHEDULE_TICKS:
        return False
    state.schedule_at = 0
    if (fabs(state.mean_setpoint - setpoint) > 0.1 * fabs(setpoint)
            or fabs(state.mean_measured - setpoint) > 0.2 * fabs(setpoint)
            or fabs(state.mean_measured) < config.contact_floor_a):
        return False
    whole = state.mean_output / state.mean_measured
    if not whole > config.series_least_ohm:
        whole = config.series_least_ohm
    if whole * gain_at_rest(&state.model) > 1.0 - config.schedule_ratio:
        return False
    series = state.probed_series_ohm
    if series > 0.98 * whole:
        series = 0.98 * whole
    parallel = whole - series
    ticks = series * parallel / whole * state.probed_ticks_per_ohm
    model.delay_ticks = state.model.delay_ticks
    model.pole = exact_exp(-1.0 / ticks) if ticks > 0.05 else 0.0
    model.gain = (1.0 - (1.0 - model.pole) * parallel / whole) / series
    model.gain_before = model.pole / series
    predictive_adopt(state, config, &model)
    return True


cdef void predictive_skip(PredictiveState* state, uint32_t ticks) noexcept nogil:
    cdef uint32_t _k
    for _k in range(ticks if ticks < OUTPUT_HISTORY else OUTPUT_HISTORY):
        push(state, state.output, state.references[state.output_at])
    if ticks:
        state.started = 0


cdef void predictive_applied(PredictiveState* state, double output, int32_t ticks) noexcept nogil:
    if isfinite(output):
        state.outputs[(state.output_at + 1 - ticks) & (OUTPUT_HISTORY - 1)] = output


cdef inline double least_reference(const PredictiveState* state) noexcept nogil:
    """Of the references that this sample may answer, the one nearest to zero; 0 if they differ in sign."""
    cdef double low, high, one
    cdef int32_t k
    low = high = state.references[(state.output_at + 1 - state.model.delay_ticks) & (OUTPUT_HISTORY - 1)]
    for k in range(state.model.delay_ticks + 1, state.model.delay_ticks + 3):
        one = state.references[(state.output_at + 1 - k) & (OUTPUT_HISTORY - 1)]
        low = one if one < low else low
        high = one if one > high else high
    return low if low > 0.0 else -high if high < 0.0 else 0.0


cdef double rescale(PredictiveState* state, const PredictiveConfig* config, double ratio) noexcept nogil:
    """So many times less impedance, within rescale_most of the model that was adopted; returns what became of it."""
    if ratio * state.rescaled > config.rescale_most:
        ratio = config.rescale_most / state.rescaled
    state.rescaled *= ratio
    state.model.gain *= ratio
    state.model.gain_before *= ratio
    state.disturbance *= ratio
    return ratio


cdef bint damp_oscillation(PredictiveState* state, const PredictiveConfig* config, double unforeseen_a,
                           double least_reference_a) noexcept nogil:
    """Large surprises that turn over in quick succession are a loop that was told too much impedance: skin whose
    resistance has fallen faster than the schedule follows. Less of it makes any loop slower. True: the model changed.
    """
    cdef double surprise = unforeseen_a - state.disturbance
    cdef double least = OSCILLATION_RATIO * least_reference_a
    cdef int32_t sign = 1 if surprise > 0.0 else -1
    if least < config.contact_floor_a:
        least = config.contact_floor_a
    state.turn_ticks += 1
    if state.turn_ticks > TURN_TICKS:
        state.turns = 0
    if not (state.started and fabs(surprise) > least) or sign == state.turn_sign:
        return False
    state.turn_sign = sign
    state.turn_ticks = 0
    state.turns += 1
    if state.turns < TURNS:
        return False
    state.turns = 0
    rescale(state, config, TURN_RESCALE)
    return True


cdef bint believe_jump(PredictiveState* state, const PredictiveConfig* config, double measured,
                       double unforeseen_a) noexcept nogil:
    """An impedance that has fallen at once: the model would be told too much of it, and the loop ring. True: the model
    changed.
    """
    cdef double foreseen = measured - unforeseen_a + state.disturbance
    cdef double ratio, low, high, one
    cdef int32_t k
    if state.jump_rest > 0:
        state.jump_rest -= 1
        return False
    if not (state.started and fabs(foreseen) >= config.contact_floor_a):
        return False
    ratio = measured / foreseen
    if ratio < config.jump_ratio:
        return False
    low = high = given(state, 1)
    for k in range(2, state.model.delay_ticks + 3):
        one = given(state, k)
        low = one if one < low else low
        high = one if one > high else high
    if high - low > 0.05 * (fabs(high) if fabs(high) > fabs(low) else fabs(low)):
        return False
    ratio = rescale(state, config, ratio)
    # What the old load let flow is no part of the new one's past.
    state.previous_measured *= ratio
    state.jump_rest = 20 + 4 * <uint32_t>state.model.delay_ticks
    return True


cdef inline uint32_t heed_surprise(PredictiveState* state, const PredictiveConfig* config, double surprise,
                                   double least_reference_a) noexcept nogil:
    """Ticks for which the disturbance filter is quick, its rest included.

    A load that has changed surprises in one direction. What turns over and over is a loop whose delay is not the
    model's: it would grow as long as the filter is quick, so the second turn ends that.
    """
    cdef double least = config.surprise_ratio * least_reference_a
    cdef int32_t sign = 1 if surprise > 0.0 else -1
    cdef uint32_t left = state.quick_left
    # At low levels noise is more than a share of them.
    if least < config.contact_floor_a:
        least = config.contact_floor_a
    if left == 0:
        if fabs(surprise) > least:
            left = config.quick_ticks + config.quick_rest_ticks
            state.quick_sign = sign
            state.quick_turns = 0
        return left
    left -= 1
    if left > config.quick_rest_ticks and fabs(surprise) > 0.5 * least and sign != state.quick_sign:
        state.quick_sign = sign
        state.quick_turns += 1
        if state.quick_turns >= QUICK_TURNS:
            left = config.quick_rest_ticks
    return left


cdef double safe_output(const PredictiveState* state, const PredictiveConfig* config, double setpoint) noexcept nogil:
    """While contact is lost: enough to see it come back, little enough to do no harm then.

    The load's capacitance holds its voltage for a while. A voltage source that fell to zero at once would discharge it
    through the contact that comes back, so its output follows the voltage that the model expects inside.
    """
    cdef double level = fabs(setpoint), safe, rest_ohm
    if not config.voltage_source:
        safe = within(0.05 * level, config.contact_floor_a, level) / gain_at_rest(&state.model)
        return state.offset + (safe if setpoint >= 0.0 else -safe)
    rest_ohm = 1.0 / gain_at_rest(&state.model)
    safe = 0.05 * level * state.series_ohm
    if safe < config.contact_floor_a * rest_ohm:
        safe = config.contact_floor_a * rest_ohm
    if safe > 0.9 * level * state.series_ohm:
        safe = 0.9 * level * state.series_ohm
    return state.offset + (state.inner_v - state.offset) * state.open_decay_ahead + (safe if setpoint >= 0.0 else -safe)


cdef inline void judge_contact(PredictiveState* state, const PredictiveConfig* config, double measured, double voltage,
                               double least_reference_a) noexcept nogil:
    cdef double size = fabs(measured), expected = least_reference_a
    if not state.contact_lost:
        if expected >= config.contact_floor_a and (
                size < 0.15 * expected if config.voltage_source
                else size < 0.05 * expected and fabs(voltage) >= RAIL * config.compliance_v):
            state.inner_v = state.offset + (state.inner_v - state.offset) * state.open_decay
            state.open_run += 1
            if state.open_run >= config.open_ticks:
                state.contact_lost = 1
                state.opens += 1
                state.good_run = 0
        else:
            state.open_run = 0
            if config.voltage_source:
                state.inner_v = given(state, state.model.delay_ticks) - measured * state.series_ohm
        return
    state.inner_v = state.offset + (state.inner_v - state.offset) * state.open_decay
    expected = fabs(given(state, state.model.delay_ticks) - state.offset) * gain_at_rest(&state.model)
    if expected > config.contact_floor_a:
        expected = config.contact_floor_a
    if size >= 0.4 * expected and expected > 0.0:
        state.good_run += 1
        if state.good_run >= config.good_ticks:
            state.contact_lost = 0
            state.open_run = 0
            state.recovering = 1
            state.ceiling_a = size
            state.reference = measured
            state.disturbance = unforeseen(state, &state.model, measured)
    else:
        state.good_run = 0


cdef int predictive_step(PredictiveState* state, const PredictiveConfig* config, double setpoint_a, double tone_a,
                         double measured_a, double voltage_v, int32_t at_limit, RegulatorTerms* terms) noexcept nogil:
    cdef const PlantModel* model = &state.model
    cdef double a = model.pole, b0 = model.gain, b1 = model.gain_before
    cdef double setpoint = setpoint_a, filter_pole, surprise, disturbance, predicted, reference, target, before, least
    cdef double wanted, output, low, high, centre, room, fed, proportional, integral, step, up, down, carried
    cdef int32_t k
    cdef uint32_t quick_left
    cdef bint limited
    if not (isfinite(setpoint_a) and isfinite(tone_a) and isfinite(measured_a) and isfinite(voltage_v)):
        terms.fault = 1
        terms.output = state.output
        return 1
    terms.fault = 0
    terms.saturated = 0

    least = least_reference(state)
    judge_contact(state, config, measured_a, voltage_v, least)
    if state.contact_lost:
        output = quantised(within(safe_output(state, config, setpoint), config.output_min, config.output_max),
                           config.output_lsb)
        state.previous_measured = measured_a
        state.reference = 0.0
        state.tone = 0.0
        state.started = 1
        push(state, output, 0.0)
        terms.output = output
        terms.unlimited = output
        terms.feed_forward = output
        terms.proportional = 0.0
        terms.integral = 0.0
        terms.derivative = 0.0
        return 0
    if state.recovering:
        # No faster than the ramp, and so that level and spike together stay below the setpoint.
        step = (1.0 + config.recontact_ratio) * fabs(setpoint) - state.ceiling_a
        step *= 0.4 * state.spike_share
        if step > config.recontact_ratio * fabs(setpoint):
            step = config.recontact_ratio * fabs(setpoint)
        state.ceiling_a += step if step > 0.0 else 0.0
        if state.ceiling_a >= fabs(setpoint):
            state.recovering = 0
        else:
            setpoint = state.ceiling_a if setpoint >= 0.0 else -state.ceiling_a

    surprise = unforeseen(state, model, measured_a)
    if config.jump_ratio > 0.0:
        if believe_jump(state, config, measured_a, surprise):
            surprise = unforeseen(state, model, measured_a)
        if damp_oscillation(state, config, surprise, least):
            surprise = unforeseen(state, model, measured_a)
    if config.voltage_source and config.schedule_ticks > 0:
        if schedule(state, config, setpoint, measured_a):
            surprise = unforeseen(state, model, measured_a)
    a = model.pole
    b0 = model.gain
    b1 = model.gain_before
    disturbance = state.disturbance
    quick_left = state.quick_left
    limited = at_limit or (
        not config.voltage_source and config.compliance_v > 0.0 and fabs(voltage_v) >= RAIL * config.compliance_v
        and fabs(measured_a) < (0.998 if fabs(voltage_v) >= 0.995 * config.compliance_v else 0.9) * fabs(setpoint))
    if state.started and not limited:
        filter_pole = config.integral_pole_most
        if config.surprise_ratio > 0.0:
            quick_left = heed_surprise(state, config, surprise - disturbance, least)
        if quick_left > config.quick_rest_ticks and config.quick_pole_most < filter_pole:
            filter_pole = config.quick_pole_most
        filter_pole = a if a < filter_pole else filter_pole
        disturbance += (1.0 - filter_pole) * (surprise - disturbance)
    predicted = measured_a
    for k in range(model.delay_ticks - 1, 0, -1):
        predicted = a * predicted + b0 * given(state, k) - b1 * given(state, k + 1) + disturbance
    before = state.reference + state.tone
    if limited:
        # The stage does not follow: what it lacks is no error of the loop, and must not be made up for at release.
        predicted = before
    reference = config.setpoint_pole * state.reference + (1.0 - config.setpoint_pole) * setpoint
    target = reference + tone_a
    fed = (target - a * before + b1 * given(state, 1)) / b0
    proportional = (config.tracking_pole - a) * (predicted - before) / b0
    integral = -disturbance / b0
    wanted = fed + proportional + integral

    low = config.output_min
    high = config.output_max
    if config.trim_ratio > 0.0:
        centre = state.offset + setpoint / gain_at_rest(model)
        room = config.trim_ratio * fabs(setpoint / gain_at_rest(model)) + config.trim_floor + fabs(tone_a) / b0
        low = within(centre - room, config.output_min, config.output_max)
        high = within(centre + room, config.output_min, config.output_max)
    step = config.slew_per_tick
    if config.spike_a > 0.0 and (step == 0.0 or config.spike_a * state.series_ohm < step):
        step = config.spike_a * state.series_ohm
    if step > 0.0:
        # Towards zero the output is free. The trim's limits give way to the step's, wherever they lie.
        up = (state.output if state.output > 0.0 else 0.0) + step
        down = (state.output if state.output < 0.0 else 0.0) - step
        low = within(low, down, up)
        high = within(high, down, up)
    if state.manual:
        low = high = within(state.manual_output, config.output_min, config.output_max)
    # What a code cannot express is carried on, so that the mean of the output is not quantised.
    output = quantised(within(wanted + state.carried, low, high), config.output_lsb)
    # A voltage source's code is worth more current than its reading: there it would be heard.
    carried = state.carried + wanted - output if not config.voltage_source else 0.0
    if not (carried < config.output_lsb and carried > -config.output_lsb):
        carried = 0.0
    if wanted > high or wanted < low:
        carried = 0.0
        reference = a * predicted + b0 * output - b1 * given(state, 1) + disturbance - tone_a
        if output >= config.output_max or output <= config.output_min:
            terms.saturated = 1 if wanted > high else -1
            state.saturated_ticks += 1
    if not (isfinite(output) and isfinite(reference) and isfinite(disturbance)):
        terms.fault = 1
        terms.output = state.output
        return 1

    state.disturbance = disturbance
    state.quick_left = quick_left
    state.carried = carried
    state.reference = reference
    state.tone = tone_a
    state.previous_measured = measured_a
    state.started = 1
    push(state, output, target)
    terms.output = output
    terms.proportional = proportional
    terms.integral = integral
    terms.derivative = 0.0
    terms.feed_forward = fed
    terms.unlimited = wanted
    return 0
