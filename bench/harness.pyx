"""Passes over a recorded input through the compiled core, without the GIL: one stage alone, or the whole tick.

Built at bench time against the installed .pxd, with the flags of the core.
"""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from cpython.pycapsule cimport PyCapsule_GetPointer

import numpy as np

from ionto_rt.core.controller cimport ControllerState, controller_start, controller_tick
from ionto_rt.core.guard cimport GuardInput, GuardState, guard_step
from ionto_rt.core.impedance cimport ImpedanceConfig, ImpedanceState, impedance_break, impedance_step
from ionto_rt.core.ledger cimport Ledger, ledger_coulombs, ledger_step
from ionto_rt.core.programme cimport ProgrammeInput, ProgrammeState, programme_step
from ionto_rt.core.regulator cimport RegulatorConfig, RegulatorState, regulator_reset, regulator_step
from ionto_rt.core.types cimport (
    HISTORY_TICKS, TRIP_NONE, Calibration, Command, RegulatorTerms, Sample, Setpoint, Tick, TickInput, Verdict,
)
from ionto_rt.core.wire cimport (
    MAX_FRAME, MAX_PAYLOAD, Receiver, wire_encode, wire_get_sample, wire_put_command, wire_put_sample, wire_receive,
)

from ionto_rt.core.controller import empty_ticks

cdef enum:
    DELAY_TICKS = 4             # of the tick: a sample may belong to any of this many setpoints

# What ledger, estimator and regulator were given, besides the sample.
cdef struct StageInput:
    double current_a
    double voltage_v
    double contact_setpoint_a   # by which the estimator judges contact
    double setpoint_a
    double feed_forward
    uint32_t lost_ticks
    int32_t tone                # 1: on, 0: off, -1: it changed within the loop's delay
    int32_t regulating          # 0: the regulator was reset
    int32_t hold

cdef struct Frame:
    uint8_t bytes[56]
    size_t length


cdef double contact_setpoint(const ControllerState* controller) noexcept nogil:
    cdef double lowest = controller.setpoints[controller.history_at], level
    cdef int k
    for k in range(1, DELAY_TICKS):
        level = controller.setpoints[(controller.history_at - <uint32_t>k) & (HISTORY_TICKS - 1)]
        if level * lowest <= 0.0:
            return 0.0
        if (level if level >= 0.0 else -level) < (lowest if lowest >= 0.0 else -lowest):
            lowest = level
    return lowest


cdef int32_t tone_before(const ControllerState* controller) noexcept nogil:
    cdef int32_t now = controller.tone_on[controller.history_at]
    cdef int k
    for k in range(1, DELAY_TICKS):
        if controller.tone_on[(controller.history_at - <uint32_t>k) & (HISTORY_TICKS - 1)] != now:
            return -1
    return now


cdef class Recording:
    """A recorded input, replayed once so that what each stage was given is known.

    `controller` is an `ionto_rt.core.controller.Controller` in its start state, kept; `rows` are rows of telemetry of
    shape (n,), every sample of them good. `replayed` are the rows of the replay. Each method named for a stage is one
    pass over all n, from that stage's start state.
    """
    cdef ControllerState* state
    cdef TickInput* ticks
    cdef StageInput* stages
    cdef ProgrammeInput* programmes
    cdef GuardInput* guards
    cdef Command* commands
    cdef Frame* frames
    cdef Py_ssize_t n
    cdef readonly object controller
    cdef readonly object replayed

    def __cinit__(self, controller, rows):
        self.n = len(rows)
        self.ticks = <TickInput*>calloc(self.n, sizeof(TickInput))
        self.stages = <StageInput*>calloc(self.n, sizeof(StageInput))
        self.programmes = <ProgrammeInput*>calloc(self.n, sizeof(ProgrammeInput))
        self.guards = <GuardInput*>calloc(self.n, sizeof(GuardInput))
        self.commands = <Command*>calloc(self.n, sizeof(Command))
        self.frames = <Frame*>calloc(self.n, sizeof(Frame))
        if not (self.ticks and self.stages and self.programmes and self.guards and self.commands and self.frames):
            raise MemoryError

    def __dealloc__(self):
        free(self.ticks)
        free(self.stages)
        free(self.programmes)
        free(self.guards)
        free(self.commands)
        free(self.frames)

    def __init__(self, controller, rows):
        cdef const Tick[::1] given = np.ascontiguousarray(rows)
        cdef Tick[::1] result
        cdef uint8_t payload[MAX_PAYLOAD]
        cdef uint8_t frame[MAX_FRAME]
        cdef Py_ssize_t k
        self.controller = controller
        self.state = <ControllerState*>PyCapsule_GetPointer(controller.capsule, b"ionto_rt.core.ControllerState")
        self.replayed = empty_ticks(self.n)
        result = self.replayed
        controller_start(self.state)
        for k in range(self.n):
            read_tick(&given[k], &self.ticks[k])
            self.frames[k].length = wire_encode(payload, wire_put_sample(&self.ticks[k].sample, 1, payload), frame)
            if self.frames[k].length > sizeof(self.frames[k].bytes):
                raise ValueError(f"a sample frame of {self.frames[k].length} bytes")
            memcpy(self.frames[k].bytes, frame, self.frames[k].length)
            self.stages[k].contact_setpoint_a = contact_setpoint(self.state)
            self.stages[k].tone = tone_before(self.state)
            self.programmes[k].pause = self.state.guard.pause != TRIP_NONE
            controller_tick(self.state, &self.ticks[k], &result[k], &self.commands[k])
            self.keep(k, &result[k])

    cdef void keep(self, Py_ssize_t k, const Tick* row) noexcept:
        """What the stages of the tick just done were given."""
        cdef const Calibration* calibration = &self.state.config.calibration
        cdef const TickInput* tick = &self.ticks[k]
        cdef const Sample* sample = &tick.sample
        cdef StageInput* stage = &self.stages[k]
        cdef ProgrammeInput* programme = &self.programmes[k]
        cdef GuardInput* guard = &self.guards[k]
        stage.current_a = row.current_a
        stage.voltage_v = row.voltage_v
        stage.setpoint_a = row.setpoint_a
        stage.feed_forward = self.state.tuned.feed_forward
        stage.lost_ticks = row.lost_ticks
        stage.regulating = self.state.regulator.started
        stage.hold = self.state.regulator.hold

        programme.ticks = 1 + row.lost_ticks
        programme.contact = row.contact
        programme.operator_command = tick.operator_command
        programme.stop = tick.stop
        programme.operator_value_a = tick.operator_value_a
        programme.current_a = row.current_a
        programme.redundant_a = row.redundant_a
        programme.voltage_v = row.voltage_v
        programme.applied = (sample.applied_code - calibration.output_offset_q16 / 65536.0) * calibration.output_lsb
        programme.net_c = ledger_coulombs(row.net_codes, calibration)

        guard.sample_good = 1
        guard.current_code = sample.current_code
        guard.redundant_code = sample.redundant_code
        guard.voltage_code = sample.voltage_code
        guard.status = sample.status
        guard.ticks = 1 + row.lost_ticks
        guard.device_time_us = sample.device_time_us
        guard.host_late_us = tick.host_late_us
        guard.host_time_us = tick.host_time_us
        guard.heartbeat = tick.heartbeat
        guard.stop = tick.stop
        guard.operator_command = tick.operator_command
        guard.finite = 1
        guard.armed_output = row.close_relay
        guard.absolute_codes = row.absolute_codes
        guard.net_codes = row.net_codes
        guard.device_net_codes = sample.charge_codes
        guard.setpoint_a = row.setpoint_a
        guard.output_code = row.output_code
        guard.close_relay = row.close_relay

    def given(self):
        """The inputs of the transcription: one tuple for each tick, in the order of its struct."""
        cdef Py_ssize_t k
        cdef const StageInput* one
        cdef const Sample* sample
        inputs = []
        for k in range(self.n):
            one = &self.stages[k]
            sample = &self.ticks[k].sample
            inputs.append((sample.charge_codes, one.setpoint_a, one.contact_setpoint_a, one.feed_forward,
                           sample.current_code, sample.voltage_code, one.lost_ticks, one.tone, one.regulating,
                           one.hold))
        return inputs

    def tick(self):
        """The whole tick; its last output code."""
        cdef Tick row
        cdef Command command
        cdef Py_ssize_t k
        with nogil:
            controller_start(self.state)
            for k in range(self.n):
                controller_tick(self.state, &self.ticks[k], &row, &command)
        return command.code

    def ledger(self):
        """The ledger; its net charge in 1/65536 code."""
        cdef Ledger ledger
        cdef Py_ssize_t k
        memset(&ledger, 0, sizeof(ledger))
        with nogil:
            for k in range(self.n):
                ledger_step(&ledger, &self.ticks[k].sample, self.stages[k].lost_ticks, &self.state.config.calibration)
        return ledger.net_codes

    def estimator(self):
        """The impedance estimator; the last estimate."""
        cdef ImpedanceState state
        cdef const ImpedanceConfig* config = &self.state.config.impedance
        cdef const StageInput* one
        cdef Py_ssize_t k
        memset(&state, 0, sizeof(state))
        with nogil:
            for k in range(self.n):
                one = &self.stages[k]
                if one.lost_ticks or one.tone < 0:
                    impedance_break(&state, config, one.lost_ticks)
                impedance_step(&state, config, one.current_a, one.voltage_v, one.contact_setpoint_a, one.tone > 0)
        return state.estimate

    def regulator(self):
        """The regulator; the last output, A or V."""
        cdef RegulatorState state
        cdef RegulatorConfig config = self.state.config.regulator
        cdef RegulatorTerms terms
        cdef const StageInput* one
        cdef Py_ssize_t k
        memset(&state, 0, sizeof(state))
        memset(&terms, 0, sizeof(terms))
        state.gain = 1.0
        with nogil:
            for k in range(self.n):
                one = &self.stages[k]
                if one.regulating:
                    state.hold = one.hold
                    config.feed_forward = one.feed_forward
                    regulator_step(&state, &config, one.setpoint_a, one.current_a, &terms)
                else:
                    regulator_reset(&state, 0.0)
                    terms.output = 0.0
        return terms.output

    def programme(self):
        """The programme; the last level, A."""
        cdef ProgrammeState state
        cdef Setpoint setpoint
        cdef Py_ssize_t k
        memset(&state, 0, sizeof(state))
        memset(&setpoint, 0, sizeof(setpoint))
        state.ceiling_a = self.state.config.programme.level_limit_a
        with nogil:
            for k in range(self.n):
                programme_step(
                    &state, &self.state.config.programme, self.state.segments, &self.programmes[k], &setpoint
                )
        return setpoint.level_a

    def guard(self):
        """The guard; the last output code, and the trip that it latched (0: none)."""
        cdef GuardState state
        cdef Verdict verdict
        cdef Py_ssize_t k
        memset(&state, 0, sizeof(state))
        memset(&verdict, 0, sizeof(verdict))
        with nogil:
            for k in range(self.n):
                guard_step(&state, &self.state.config.guard, &self.guards[k], &verdict)
        return verdict.output_code, verdict.trip

    def wire(self):
        """Decodes each sample frame and encodes each command; bytes written."""
        cdef Receiver receiver
        cdef Sample sample
        cdef uint8_t payload[MAX_PAYLOAD + 4]
        cdef uint8_t frame[MAX_FRAME]
        cdef size_t length, written = 0
        cdef uint32_t channels
        cdef uint64_t wrong = 0
        cdef int read
        cdef Py_ssize_t k
        memset(&receiver, 0, sizeof(receiver))
        with nogil:
            for k in range(self.n):
                wire_receive(&receiver, self.frames[k].bytes, self.frames[k].length, payload, &length)
                read = wire_get_sample(payload, length, &sample, &channels)
                if not read or sample.index != self.ticks[k].sample.index:
                    wrong += 1
                written += wire_encode(payload, wire_put_command(&self.commands[k], 1, payload), frame)
        if wrong:
            raise ValueError(f"{wrong} frames decoded wrong")
        return written

    def __len__(self):
        return self.n


cdef void read_tick(const Tick* row, TickInput* given) noexcept:
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
    given.host_late_us = row.host_late_us
    given.host_time_us = row.host_time_us
    given.heartbeat = row.heartbeat
    given.operator_sequence = row.operator_sequence
    given.operator_command = row.operator_command
    given.stop = row.stop
    given.operator_value_a = row.operator_value_a
