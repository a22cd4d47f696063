"""The tick: one pure pass over the stages, (state, input) -> (state, row).

    sample -> ledger -> impedance -> programme -> probe or regulator -> guard -> row, command

The ledger is stepped first, because programme and guard decide on charge that includes this sample.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport fabs, isfinite
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import numpy as np

from ionto_rt.core.contact_area cimport contact_area_reset, contact_area_step
from ionto_rt.core.guard cimport GuardInput, guard_begin, guard_checksum, guard_step
from ionto_rt.core.guard_estimates cimport EstimateInput, estimates_glance, estimates_operator, estimates_step
from ionto_rt.core.impedance cimport (
    ImpedanceConfig, impedance_break, impedance_choose_tones, impedance_follow, impedance_hum, impedance_step,
    impedance_tone,
)
from ionto_rt.core.ledger cimport ledger_coulombs, ledger_step
from ionto_rt.core.predictive cimport (
    OUTPUT_HISTORY, predictive_adopt, predictive_applied, predictive_reset, predictive_skip, predictive_step,
)
from ionto_rt.core.probe cimport PROBE_IDLE, Identified, probe_begin, probe_read_back, probe_step
from ionto_rt.core.programme cimport ProgrammeInput, programme_fault, programme_step
from ionto_rt.core.regulator cimport regulator_reset, regulator_step
from ionto_rt.core.types cimport (
    ACTION_OFF, ACTION_RAMP_DOWN, AREA_SMALLER, COMMAND_CLOSE_RELAY, EVENT_ADVICE, EVENT_BAD_SAMPLE, EVENT_CONTACT,
    EVENT_END, EVENT_GAP, EVENT_LIMITED, EVENT_OPERATOR, EVENT_PAUSE, EVENT_PHASE, EVENT_SEGMENT, EVENT_STATUS,
    EVENT_TRIP, FRONT_END_CURRENT_SOURCE, HISTORY_TICKS, LAW_PREDICTIVE, MAX_SEGMENTS, OPERATOR_NONE, OPERATOR_RESUME,
    PHASE_CONTACT_CHECK, PHASE_PAUSE, PHASE_RAMP_DOWN, PHASE_RAMP_UP, PHASE_SELF_TEST, PHASE_TREATMENT, PROBE_GOOD,
    SAMPLE_GOOD, SAMPLE_NOT_FINITE, SAMPLE_OUT_OF_RANGE, SAMPLE_REPEATED, STATUS_COMPLIANCE, TRIP_HUNTING, TRIP_NONE,
    Calibration, Command, Estimate, PlantModel, RegulatorTerms, Sample, Segment, Setpoint, Tick, TickInput, Verdict,
)

cdef extern from *:
    """
    #ifndef IONTO_RT_TICK
    #define IONTO_RT_TICK ""
    #endif
    """
    const char* IONTO_RT_TICK

# Of the sources of the tick, by the build; empty where another build made it.
TICK_SHA256 = IONTO_RT_TICK.decode("ascii")

cdef enum:
    DELAY_TICKS = 4             # a sample may belong to any of this many setpoints
    MOST_BLOCK_TICKS = 1 << 20


cdef double POTENTIAL_MOST_V = 3.0  # of electrodes; inert ones reach 2 V
cdef double HALF_ROOT = 0.7071067811865476
cdef double TWO_PI = 6.283185307179586


cdef inline bint beyond(int32_t code, int32_t limit) noexcept nogil:
    return code > limit or code < -limit


cdef int32_t judge_sample(const ControllerState* controller, const Sample* sample, double current_a, double redundant_a,
                          double voltage_v) noexcept nogil:
    cdef int32_t limit = controller.config.calibration.code_limit
    if controller.started and <int32_t>(sample.index - controller.last_index) <= 0:
        return SAMPLE_REPEATED
    if beyond(sample.current_code, limit) or beyond(sample.redundant_code, limit) or beyond(sample.voltage_code, limit):
        return SAMPLE_OUT_OF_RANGE
    if not (isfinite(current_a) and isfinite(redundant_a) and isfinite(voltage_v)):
        return SAMPLE_NOT_FINITE
    return SAMPLE_GOOD


cdef int32_t to_code(double output, const Calibration* calibration) noexcept nogil:
    """Nearest output code, within the converter's range."""
    cdef double code = output / calibration.output_lsb + calibration.output_offset_q16 / 65536.0
    if code >= calibration.output_code_max:
        return calibration.output_code_max
    if code <= calibration.output_code_min:
        return calibration.output_code_min
    return <int32_t>(code + 0.5) if code >= 0.0 else -<int32_t>(0.5 - code)


cdef inline double lowest_setpoint(const ControllerState* controller) noexcept nogil:
    """Of the last setpoints the one nearest to zero; 0 if they differ in sign."""
    cdef double low = controller.setpoints[controller.history_at], high = low, level
    cdef int k
    for k in range(1, DELAY_TICKS):
        level = controller.setpoints[(controller.history_at - <uint32_t>k) & (HISTORY_TICKS - 1)]
        low = level if level < low else low
        high = level if level > high else high
    return low if low > 0.0 else high if high < 0.0 else 0.0


cdef inline int32_t tone_was_on(const ControllerState* controller) noexcept nogil:
    """1: the tone was part of all the setpoints a sample may belong to; 0: of none; -1: of some."""
    cdef int32_t count = 0
    cdef int k
    for k in range(DELAY_TICKS):
        count += controller.tone_on[(controller.history_at - <uint32_t>k) & (HISTORY_TICKS - 1)]
    return 1 if count == DELAY_TICKS else 0 if count == 0 else -1


cdef void take_load(ControllerState* controller, double output, double current_a) noexcept nogil:
    """The contact check is over: its plant goes to the regulator, its load into the estimate."""
    cdef const Identified* found = &controller.probe.found
    cdef Estimate* estimate = &controller.impedance.estimate
    cdef double gain = (found.model.gain - found.model.gain_before) / (1.0 - found.model.pole)
    estimate.resistance_ohm = found.resistance_ohm
    estimate.resistance_sigma_ohm = found.resistance_sigma_ohm
    estimate.series_ohm = found.series_ohm
    estimate.series_sigma_ohm = found.series_sigma_ohm
    if found.series_sigma_ohm < 0.05 * found.series_ohm:
        controller.estimates.series_known_ohm = found.series_ohm
    estimate.parallel_ohm = found.parallel_ohm
    estimate.parallel_sigma_ohm = found.parallel_sigma_ohm
    estimate.capacitance_f = found.capacitance_f
    estimate.capacitance_sigma_f = found.capacitance_sigma_f
    if found.parallel_ohm > 0.0 and found.capacitance_f > 0.0:
        impedance_choose_tones(
            &controller.impedance, &controller.config.impedance,
            1.0 / (TWO_PI * found.parallel_ohm * found.capacitance_f)
        )
    predictive_reset(
        &controller.predictive, &controller.config.predictive, &found.model, output, found.null_output, current_a
    )
    # A current source's gain goes into the PID's feed-forward once.
    if controller.config.calibration.front_end == FRONT_END_CURRENT_SOURCE:
        controller.tuned.feed_forward = controller.config.regulator.feed_forward / gain


cdef inline double applied_output(const Sample* sample, const Calibration* calibration) noexcept nogil:
    """A or V."""
    return (sample.applied_code - calibration.output_offset_q16 / 65536.0) * calibration.output_lsb


cdef double drive(ControllerState* controller, const Sample* sample, const Setpoint* setpoint, double tone,
                  double current_a, double voltage_v, uint32_t lost, RegulatorTerms* terms) noexcept nogil:
    """The output that answers this sample: of the contact check, of the regulator, or none. Returns terms.output."""
    cdef const ControllerConfig* config = &controller.config
    cdef const Calibration* calibration = &config.calibration
    cdef int32_t at_limit
    if not setpoint.close_relay:
        controller.probe.phase = PROBE_IDLE
        regulator_reset(&controller.regulator, 0.0)
        if setpoint.phase == PHASE_SELF_TEST and calibration.front_end != FRONT_END_CURRENT_SOURCE:
            # With the relay open the pads show the electrodes' potential: the stage waits there for the relay.
            terms.output = voltage_v
            if terms.output > POTENTIAL_MOST_V:
                terms.output = POTENTIAL_MOST_V
            if terms.output < -POTENTIAL_MOST_V:
                terms.output = -POTENTIAL_MOST_V
        return terms.output
    if setpoint.probing:
        if controller.probe.phase == PROBE_IDLE:
            probe_begin(
                &controller.probe,
                controller.last_output if calibration.front_end != FRONT_END_CURRENT_SOURCE else 0.0
            )
        probe_read_back(
            &controller.probe, applied_output(sample, calibration), sample.index - sample.applied_index, lost
        )
        probe_step(&controller.probe, &config.probe, current_a, voltage_v, &terms.output)
        terms.unlimited = terms.output
        if controller.probe.verdict == PROBE_GOOD:
            take_load(controller, terms.output, current_a)
        return terms.output
    if controller.probe.verdict != PROBE_GOOD and setpoint.phase == PHASE_PAUSE:
        # A pause of the contact check: no current flows at its centre.
        terms.output = controller.probe.centre
        controller.probe.phase = PROBE_IDLE
        return terms.output
    at_limit = (sample.status & STATUS_COMPLIANCE) != 0
    # A programme without a contact check has no model: the PID regulates it.
    if config.law == LAW_PREDICTIVE and controller.probe.verdict == PROBE_GOOD:
        predictive_applied(&controller.predictive, applied_output(sample, calibration), config.probe.delay_ticks)
        predictive_step(
            &controller.predictive, &config.predictive, setpoint.level_a, tone, current_a, voltage_v, at_limit, terms
        )
    else:
        controller.regulator.hold = at_limit or fabs(voltage_v) >= 0.97 * calibration.compliance_v
        regulator_step(&controller.regulator, &controller.tuned, setpoint.current_a, current_a, terms)
    return terms.output


cdef void step_sentinel(ControllerState* controller, int32_t sentinel_code, double current_a, double sentinel_v,
                        int32_t tone_on) noexcept nogil:
    """The active site alone, by the same estimator. A reading out of range is left out, and no fault of the sample."""
    # The tones are chosen for the whole load, not for the site.
    cdef ImpedanceConfig config = controller.config.impedance
    config.retune_factor = 0.0
    if beyond(sentinel_code, controller.config.calibration.code_limit) or not isfinite(sentinel_v):
        impedance_break(&controller.sentinel, &config, 1)
        return
    impedance_step(&controller.sentinel, &config, current_a, sentinel_v, lowest_setpoint(controller), tone_on)


cdef void halve_gain(ControllerState* controller) noexcept nogil:
    """H34, without a jump of the output. Of a model with half of the load's impedance any loop is slow, and stable."""
    cdef PlantModel model = controller.predictive.model
    controller.loop_gain *= 0.5
    controller.tuned.kp *= 0.5
    controller.tuned.ki *= 0.5
    controller.tuned.kd *= 0.5
    if model.gain > 0.0:
        model.gain *= 2.0
        model.gain_before *= 2.0
        predictive_adopt(&controller.predictive, &controller.config.predictive, &model)


cdef void controller_start(ControllerState* controller) noexcept nogil:
    cdef ControllerConfig* config = &controller.config
    memset(&controller.impedance, 0, sizeof(controller.impedance))
    contact_area_reset(&controller.contact_area)
    memset(&controller.sentinel, 0, sizeof(controller.sentinel))
    memset(&controller.programme, 0, sizeof(controller.programme))
    memset(&controller.regulator, 0, sizeof(controller.regulator))
    memset(&controller.probe, 0, sizeof(controller.probe))
    memset(&controller.predictive, 0, sizeof(controller.predictive))
    memset(&controller.guard, 0, sizeof(controller.guard))
    memset(&controller.estimates, 0, sizeof(controller.estimates))
    memset(&controller.ledger, 0, sizeof(controller.ledger))
    memset(&controller.setpoints, 0, sizeof(controller.setpoints))
    memset(&controller.tone_on, 0, sizeof(controller.tone_on))
    controller.regulator.gain = 1.0
    controller.tuned = config.regulator
    controller.programme.ceiling_a = config.programme.level_limit_a
    controller.started = 0
    controller.last_index = 0
    controller.last_output = 0.0
    controller.last_nonce = 0
    controller.last_status = 0
    controller.contact = 0
    controller.phase = 0
    controller.history_at = 0
    controller.missing_ticks = 0
    controller.hum_a = 0.0
    controller.loop_gain = 1.0
    config.guard.checksum = guard_checksum(&config.guard)
    guard_begin(&controller.guard, config.token)


cdef void controller_tick(ControllerState* controller, const TickInput* given, Tick* row,
                          Command* command) noexcept nogil:
    cdef const ControllerConfig* config = &controller.config
    cdef const Calibration* calibration = &config.calibration
    cdef const Sample* sample = &given.sample
    cdef ProgrammeInput programme
    cdef EstimateInput estimates
    cdef GuardInput guard
    cdef Setpoint setpoint
    cdef RegulatorTerms terms
    cdef Verdict verdict
    cdef double current_a, redundant_a, voltage_v, sentinel_v = 0.0, tone = 0.0
    cdef uint32_t lost = 0, unseen = 0, segment_before = controller.programme.segment
    cdef int32_t fault, tone_on, finite = 1
    cdef int32_t phase_before = controller.phase, end_before = controller.programme.end_reason
    cdef int32_t limited_before = controller.programme.limited, trip_before = controller.guard.trip
    cdef uint32_t advice_before = controller.estimates.verdict.advice
    cdef uint32_t block_before = controller.impedance.estimate.block
    cdef int32_t pause_before = controller.guard.pause, action_before = controller.guard.action
    cdef int32_t operator_command = given.operator_command

    if operator_command == OPERATOR_RESUME and not controller.programme.paused and pause_before == TRIP_NONE:
        # Nothing is paused: the word would say of pads that nobody has looked at that they are good.
        operator_command = OPERATOR_NONE
    current_a = (sample.current_code - calibration.current_offset_q16 / 65536.0) * calibration.current_lsb_a
    redundant_a = (sample.redundant_code - calibration.redundant_offset_q16 / 65536.0) * calibration.redundant_lsb_a
    voltage_v = (sample.voltage_code - calibration.voltage_offset_q16 / 65536.0) * calibration.voltage_lsb_v
    if calibration.sentinel_lsb_v > 0.0:
        sentinel_v = (
            sample.sentinel_code - calibration.sentinel_offset_q16 / 65536.0
        ) * calibration.sentinel_lsb_v
    fault = judge_sample(controller, sample, current_a, redundant_a, voltage_v)

    memset(&setpoint, 0, sizeof(setpoint))
    memset(&terms, 0, sizeof(terms))
    if fault == SAMPLE_GOOD:
        if controller.started:
            lost = sample.index - controller.last_index - 1
        ledger_step(&controller.ledger, sample, lost, calibration)

        tone_on = tone_was_on(controller)
        if lost or tone_on < 0:
            impedance_break(&controller.impedance, &config.impedance, lost)
            impedance_break(&controller.sentinel, &config.impedance, lost)
        if calibration.sentinel_lsb_v > 0.0:
            impedance_follow(&controller.sentinel, &controller.impedance)
        impedance_step(
            &controller.impedance, &config.impedance, current_a, voltage_v, lowest_setpoint(controller), tone_on > 0
        )
        if calibration.sentinel_lsb_v > 0.0:
            step_sentinel(controller, sample.sentinel_code, current_a, sentinel_v, tone_on > 0)

        if controller.impedance.estimate.block != block_before:
            controller.hum_a = impedance_hum(&controller.impedance, &config.impedance)
            controller.contact_area.held = controller.estimates.verdict.cap_a > 0.0
            contact_area_step(
                &controller.contact_area, &config.contact_area, &controller.impedance.estimate.latest,
                controller.impedance.bins[0] ^ controller.impedance.bins[1] << 16, controller.impedance.estimate.mean_a,
            )

            estimates.current_a = controller.impedance.estimate.mean_a
            estimates.hum_a = controller.hum_a
            estimates.hum_v = HALF_ROOT * controller.impedance.estimate.hum_v
            estimates.area_ratio = controller.contact_area.area_ratio
            estimates.area_smaller = controller.contact_area.alarm == AREA_SMALLER
            estimates.limited = controller.programme.limited
            # While the guard ramps down for a cause, its slope is no mains; nor is the contact check's excitation.
            estimates.pausing = (controller.phase == PHASE_PAUSE or controller.phase == PHASE_CONTACT_CHECK
                                 or controller.guard.pause != TRIP_NONE
                                 or controller.guard.action >= ACTION_RAMP_DOWN)
            estimates_step(
                &controller.estimates, &config.estimates, &controller.impedance.estimate, &estimates
            )

        controller.estimates.glance_v += voltage_v
        controller.estimates.glance_sum_a += current_a
        controller.estimates.glance_fill += 1
        if controller.estimates.glance_fill >= config.estimates.glance_ticks:
            estimates_glance(
                &controller.estimates, &config.estimates,
                controller.estimates.glance_sum_a / controller.estimates.glance_fill,
                controller.estimates.glance_v / controller.estimates.glance_fill
            )
            controller.estimates.glance_v = controller.estimates.glance_sum_a = 0.0
            controller.estimates.glance_fill = 0

        if controller.guard.action >= ACTION_RAMP_DOWN:
            programme_fault(&controller.programme)
        programme.cap_a = controller.estimates.verdict.cap_a
        programme.ticks = 1 + lost
        programme.contact = controller.impedance.estimate.contact
        programme.pause = controller.guard.pause != TRIP_NONE
        programme.operator_command = operator_command
        programme.stop = given.stop
        programme.operator_value_a = given.operator_value_a
        programme.current_a = current_a
        programme.redundant_a = redundant_a
        programme.voltage_v = voltage_v
        programme.probe_verdict = controller.probe.verdict
        programme.net_c = ledger_coulombs(controller.ledger.net_codes, calibration)
        programme_step(&controller.programme, &config.programme, controller.segments, &programme, &setpoint)

        tone_on = (
            config.impedance.tone_a > 0.0
            and (setpoint.phase == PHASE_TREATMENT or setpoint.phase == PHASE_RAMP_UP
                 or setpoint.phase == PHASE_RAMP_DOWN)
            and fabs(setpoint.level_a) >= 10.0 * config.impedance.tone_a
        )
        if tone_on:
            tone = impedance_tone(&controller.impedance, &config.impedance)
            setpoint.current_a += tone

        if lost:
            predictive_skip(&controller.predictive, lost)
        drive(controller, sample, &setpoint, tone, current_a, voltage_v, lost, &terms)
        if terms.fault:
            finite = 0
        if not (isfinite(setpoint.current_a) and isfinite(terms.output)
                and isfinite(controller.impedance.estimate.resistance_ohm)):
            finite = 0
        guard.output_code = to_code(terms.output, calibration) if finite else controller.guard.last_code
        guard.close_relay = setpoint.close_relay
        guard.setpoint_a = setpoint.current_a

        controller.history_at = (controller.history_at + 1) & (HISTORY_TICKS - 1)
        controller.setpoints[controller.history_at] = setpoint.current_a
        controller.tone_on[controller.history_at] = tone_on
        controller.last_index = sample.index
        controller.last_nonce = sample.nonce
        controller.last_output = terms.output
        controller.started = 1
        # The guard was called for refused samples too: what is left was lost on the way.
        unseen = lost - controller.missing_ticks if lost > controller.missing_ticks else 0
        controller.missing_ticks = 0
    else:
        # One bad sample changes no state: the last command is renewed, and only the guard counts. What the operator
        # said is no part of the sample.
        if fault != SAMPLE_REPEATED:
            controller.missing_ticks += 1
        memset(&programme, 0, sizeof(programme))
        programme.operator_command = operator_command
        programme.operator_value_a = given.operator_value_a
        programme.stop = given.stop
        programme.net_c = ledger_coulombs(controller.ledger.net_codes, calibration)
        programme_step(&controller.programme, &config.programme, controller.segments, &programme, &setpoint)
        setpoint.current_a = controller.setpoints[controller.history_at]
        guard.output_code = controller.guard.last_code
        guard.close_relay = controller.guard.relay_closed
        guard.setpoint_a = setpoint.current_a
        terms.output = controller.last_output

    guard.sample_good = fault == SAMPLE_GOOD
    guard.saturated = fault == SAMPLE_OUT_OF_RANGE and (
        beyond(sample.current_code, calibration.code_limit) or beyond(sample.redundant_code, calibration.code_limit))
    guard.probe_a = config.probe.current_a if setpoint.probing else 0.0
    guard.current_code = sample.current_code
    guard.redundant_code = sample.redundant_code
    guard.voltage_code = sample.voltage_code
    guard.status = sample.status
    # A sample that comes again is no time that passes.
    guard.ticks = 0 if fault == SAMPLE_REPEATED else 1 + unseen
    guard.device_time_us = sample.device_time_us
    guard.host_late_us = given.host_late_us
    guard.host_time_us = given.host_time_us
    guard.heartbeat = given.heartbeat
    guard.stop = given.stop
    guard.operator_command = operator_command
    guard.finite = finite
    guard.armed_output = setpoint.close_relay
    guard.absolute_codes = controller.ledger.absolute_codes
    guard.net_codes = controller.ledger.net_codes
    guard.device_net_codes = controller.ledger.device_net_codes
    if operator_command == OPERATOR_RESUME:
        # The operator has seen to the pads: what is there counts as good contact from here on.
        contact_area_reset(&controller.contact_area)
    if operator_command:
        estimates_operator(&controller.estimates, operator_command, controller.guard.pause)
    guard.estimate_trip = controller.estimates.verdict.trip
    guard.estimate_pause = controller.estimates.verdict.pause
    guard.estimate_latched = controller.estimates.verdict.latched
    controller.estimates.verdict.pause = TRIP_NONE
    controller.estimates.verdict.latched = 0
    guard.area_alarm = controller.contact_area.alarm
    guard.area_ratio = controller.contact_area.area_ratio
    guard.applied_age_ticks = sample.index - sample.applied_index
    guard.index = sample.index
    guard.applied_index = sample.applied_index
    guard.applied_code = sample.applied_code
    guard.limited = setpoint.limited
    guard.hum_a = controller.hum_a
    guard.token = config.token
    guard_step(&controller.guard, &config.guard, &guard, &verdict)
    if verdict.pause == TRIP_HUNTING and pause_before != TRIP_HUNTING:
        halve_gain(controller)
    if verdict.action == ACTION_OFF:
        programme_fault(&controller.programme)
        setpoint.phase = controller.programme.phase
        setpoint.end_reason = controller.programme.end_reason
    elif verdict.action == ACTION_RAMP_DOWN:
        setpoint.phase = PHASE_RAMP_DOWN

    # A sample that comes again must not stand in the way of the answer to the newest one.
    command.index = sample.index if fault != SAMPLE_REPEATED else controller.last_index
    command.token = config.token
    command.nonce = sample.nonce if fault != SAMPLE_REPEATED else controller.last_nonce
    command.lease_ticks = config.lease_ticks
    command.flags = COMMAND_CLOSE_RELAY if verdict.close_relay else 0
    command.code = verdict.output_code

    row.index = sample.index
    row.device_time_us = sample.device_time_us
    row.applied_index = sample.applied_index
    row.host_late_us = given.host_late_us
    row.heartbeat = given.heartbeat
    row.lost_ticks = lost
    row.host_time_us = given.host_time_us
    row.device_charge_codes = sample.charge_codes
    row.current_code = sample.current_code
    row.redundant_code = sample.redundant_code
    row.voltage_code = sample.voltage_code
    row.applied_code = sample.applied_code
    row.nonce = sample.nonce
    row.status = sample.status
    row.stop = given.stop
    row.operator_command = given.operator_command
    row.operator_sequence = given.operator_sequence
    row.operator_value_a = given.operator_value_a
    row.channel = given.channel
    row.current_a = current_a
    row.redundant_a = redundant_a
    row.voltage_v = voltage_v
    row.setpoint_a = setpoint.current_a
    row.level_a = setpoint.level_a
    row.prescribed_a = setpoint.prescribed_a
    row.delivered_c = setpoint.delivered_c
    row.resistance_ohm = controller.impedance.estimate.resistance_ohm
    row.resistance_sigma_ohm = controller.impedance.estimate.resistance_sigma_ohm
    row.series_ohm = controller.impedance.estimate.series_ohm
    row.series_sigma_ohm = controller.impedance.estimate.series_sigma_ohm
    row.parallel_ohm = controller.impedance.estimate.parallel_ohm
    row.parallel_sigma_ohm = controller.impedance.estimate.parallel_sigma_ohm
    row.capacitance_f = controller.impedance.estimate.capacitance_f
    row.capacitance_sigma_f = controller.impedance.estimate.capacitance_sigma_f
    row.proportional = terms.proportional
    row.integral = terms.integral
    row.derivative = terms.derivative
    row.feed_forward = terms.feed_forward
    row.unlimited = terms.unlimited
    row.output = terms.output
    row.model_pole = controller.predictive.model.pole
    row.model_gain = controller.predictive.model.gain
    row.model_gain_before = controller.predictive.model.gain_before
    row.model_delay_ticks = controller.predictive.model.delay_ticks
    row.quick_ticks = (
        controller.predictive.quick_left - config.predictive.quick_rest_ticks
        if controller.predictive.quick_left > config.predictive.quick_rest_ticks else 0
    )
    row.probe_verdict = controller.probe.verdict
    row.net_codes = controller.ledger.net_codes
    row.absolute_codes = controller.ledger.absolute_codes
    row.output_code = verdict.output_code
    row.phase = setpoint.phase
    row.segment = setpoint.segment
    row.step = setpoint.step
    row.end_reason = setpoint.end_reason
    row.contact = controller.impedance.estimate.contact
    row.saturated = terms.saturated
    row.limited = setpoint.limited
    row.action = verdict.action
    row.challenge = controller.guard.challenge
    row.trip = verdict.trip
    row.pause = verdict.pause
    row.pause_latched = controller.guard.pause_latched
    row.sample_fault = fault
    row.close_relay = verdict.close_relay
    row.estimate_block = controller.impedance.estimate.block
    row.emf_v = controller.impedance.estimate.emf_v
    row.emf_sigma_v = controller.impedance.estimate.emf_sigma_v
    row.low_tone_hz = controller.impedance.estimate.low_tone_hz
    row.high_tone_hz = controller.impedance.estimate.high_tone_hz
    row.misfit = controller.impedance.estimate.misfit
    row.window_blocks = controller.impedance.estimate.window_blocks
    row.area_ratio = controller.contact_area.area_ratio
    row.area_sigma = controller.contact_area.area_sigma
    row.area_alarm = controller.contact_area.alarm
    row.cap_a = controller.estimates.verdict.cap_a
    row.advice = controller.estimates.verdict.advice
    row.hum_a = controller.hum_a
    row.loop_gain = controller.loop_gain
    row.sentinel_code = sample.sentinel_code
    row.sentinel_v = sentinel_v
    row.active_series_ohm = controller.sentinel.estimate.series_ohm
    row.active_parallel_ohm = controller.sentinel.estimate.parallel_ohm
    row.active_capacitance_f = controller.sentinel.estimate.capacitance_f
    row.events = (
        (EVENT_PHASE if row.phase != phase_before else 0)
        | (EVENT_TRIP if row.trip != trip_before or (controller.guard.action != action_before) else 0)
        | (EVENT_SEGMENT if controller.programme.segment != segment_before else 0)
        | (EVENT_OPERATOR if given.operator_sequence else 0)
        | (EVENT_LIMITED if controller.programme.limited != limited_before else 0)
        | (EVENT_CONTACT if row.contact != controller.contact else 0)
        | (EVENT_BAD_SAMPLE if fault != SAMPLE_GOOD else 0)
        | (EVENT_GAP if lost else 0)
        | (EVENT_PAUSE if controller.guard.pause != pause_before else 0)
        | (EVENT_STATUS if fault == SAMPLE_GOOD and row.status != controller.last_status else 0)
        | (EVENT_ADVICE if row.advice != advice_before else 0)
        | (EVENT_END if row.end_reason != end_before else 0)
    )
    controller.contact = row.contact
    controller.phase = row.phase
    if fault == SAMPLE_GOOD:
        controller.last_status = sample.status


cdef void read_input(const Tick* row, TickInput* given) noexcept nogil:
    """The inputs of a recorded row."""
    given.sample.index = row.index
    given.sample.device_time_us = row.device_time_us
    given.sample.applied_index = row.applied_index
    given.sample.nonce = row.nonce
    given.sample.status = row.status
    given.sample.current_code = row.current_code
    given.sample.redundant_code = row.redundant_code
    given.sample.voltage_code = row.voltage_code
    given.sample.applied_code = row.applied_code
    given.sample.charge_codes = row.device_charge_codes
    given.sample.sentinel_code = row.sentinel_code
    given.host_late_us = row.host_late_us
    given.host_time_us = row.host_time_us
    given.heartbeat = row.heartbeat
    given.operator_sequence = row.operator_sequence
    given.operator_command = row.operator_command
    given.stop = row.stop
    given.operator_value_a = row.operator_value_a
    given.channel = row.channel


def _row_type():
    cdef Tick one
    cdef Tick[::1] view = <Tick[:1:1]>&one
    return np.asarray(view).dtype


_ROW = _row_type()      # kept: numpy takes a millisecond to parse the struct's description


def empty_ticks(Py_ssize_t n):
    """n zeroed rows of telemetry: a structured array of shape (n,) with the fields of struct Tick."""
    return np.zeros(n, dtype=_ROW)


def empty_config() -> dict:
    """A configuration of zeros: all the names that this version of the tick has."""
    cdef ControllerConfig config
    memset(&config, 0, sizeof(config))
    return config


def empty_segment() -> dict:
    """A segment of zeros."""
    cdef Segment segment
    memset(&segment, 0, sizeof(segment))
    return segment


cdef class Controller:
    """The tick of one channel: every stage, from sample to command.

    `config` is a dict of struct ControllerConfig (calibration, impedance, programme, regulator, guard, lease_ticks,
    token); `segments` a list of 1 to 4096 dicts of struct Segment. ValueError if one is missing, or too many, or if
    blocks or the loop's delay are of a length that the tick cannot count.
    """
    cdef ControllerState* state

    def __cinit__(self):
        self.state = <ControllerState*>calloc(1, sizeof(ControllerState))
        if self.state == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.state)

    def __init__(self, dict config, list segments):
        cdef Py_ssize_t k
        if not 1 <= len(segments) <= MAX_SEGMENTS:
            raise ValueError(f"{len(segments)} segments: must be 1 to {MAX_SEGMENTS}")
        config = {**config, "programme": {**config["programme"], "segments": len(segments)},
                  "guard": {**config["guard"], "checksum": 0}}
        self.state.config = config
        # What the tick divides by and counts to: a record's configuration may say anything.
        if not 8 <= self.state.config.impedance.block_ticks <= MOST_BLOCK_TICKS:
            raise ValueError(f"impedance.block_ticks = {self.state.config.impedance.block_ticks}: must be 8 to "
                             f"{<int>MOST_BLOCK_TICKS}")
        if not 0 <= self.state.config.probe.delay_ticks <= OUTPUT_HISTORY:
            raise ValueError(f"probe.delay_ticks = {self.state.config.probe.delay_ticks}: must be 0 to "
                             f"{<int>OUTPUT_HISTORY}")
        for k in range(len(segments)):
            self.state.segments[k] = segments[k]
        controller_start(self.state)

    def start(self):
        """Back to the state before the first tick."""
        controller_start(self.state)

    @property
    def capsule(self):
        """The state in a PyCapsule "ionto_rt.core.ControllerState"; valid while this object lives."""
        return PyCapsule_New(<void*>self.state, b"ionto_rt.core.ControllerState", NULL)

    @property
    def config(self) -> dict:
        """The configuration, as a dict of struct ControllerConfig."""
        return self.state.config

    @property
    def segments(self) -> list:
        """The programme's segments, as dicts of struct Segment."""
        return [self.state.segments[k] for k in range(self.state.config.programme.segments)]

    def step(self, dict sample, *, uint32_t host_late_us=0, uint64_t host_time_us=0, uint32_t heartbeat=0,
             uint32_t operator_sequence=0, int32_t operator_command=0, double operator_value_a=0.0,
             int32_t stop=0) -> tuple:
        """One tick from a dict of struct Sample and the other inputs of struct TickInput: (row, command), as dicts."""
        cdef TickInput given
        cdef Tick row
        cdef Command command
        memset(&given, 0, sizeof(given))
        memset(&row, 0, sizeof(row))
        given.sample = {"sentinel_code": 0, **sample}
        given.host_late_us = host_late_us
        given.host_time_us = host_time_us
        given.heartbeat = heartbeat
        given.operator_sequence = operator_sequence
        given.operator_command = operator_command
        given.operator_value_a = operator_value_a
        given.stop = stop
        controller_tick(self.state, &given, &row, &command)
        return row, command

    def run(self, rows):
        """Tick through the inputs in a structured array of rows, shape (n,): the resulting rows, same shape and type.

        This is replay: what was recorded, run again, must equal what was recorded.
        """
        # By field: numpy leaves a struct's padding out when it joins arrays.
        cdef const Tick[::1] inputs = np.ascontiguousarray(rows, dtype=empty_ticks(0).dtype)
        cdef Py_ssize_t n = inputs.shape[0], k
        result = empty_ticks(n)
        cdef Tick[::1] outputs = result
        cdef TickInput given
        cdef Command command
        memset(&given, 0, sizeof(given))
        with nogil:
            for k in range(n):
                read_input(&inputs[k], &given)
                controller_tick(self.state, &given, &outputs[k], &command)
        return result

    @property
    def stages(self) -> dict:
        """The state of each stage, as dicts: impedance, contact_area, programme, probe, regulator, predictive, guard,
        estimates (the guard's rows on them), ledger.
        """
        return {
            "impedance": self.state.impedance, "contact_area": self.state.contact_area,
            "programme": self.state.programme, "probe": self.state.probe, "regulator": self.state.regulator,
            "predictive": self.state.predictive, "guard": self.state.guard,
            "estimates": self.state.estimates, "ledger": self.state.ledger,
        }
