"""Passes over a recorded input, without the GIL: one stage alone, or the whole tick; of the compiled core, or of its
transcription in C.

Built at bench time against the installed .pxd and with transcription.c, by the flags of the core.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New

import numpy as np

from ionto_rt.core.contact_area cimport ContactAreaState, contact_area_reset, contact_area_step
from ionto_rt.core.controller cimport ControllerState, controller_start, controller_tick
from ionto_rt.core.guard cimport GuardInput, GuardState, guard_begin, guard_step
from ionto_rt.core.impedance cimport (
    ImpedanceConfig, ImpedanceState, impedance_break, impedance_step, impedance_tone,
)
from ionto_rt.core.ledger cimport Ledger, ledger_coulombs, ledger_step
from ionto_rt.core.predictive cimport (
    PredictiveConfig, PredictiveState, predictive_applied, predictive_reset, predictive_step,
)
from ionto_rt.core.probe cimport Identified
from ionto_rt.core.programme cimport ProgrammeInput, ProgrammeState, programme_step
from ionto_rt.core.ring cimport Ring, ring_close, ring_commit, ring_open, ring_slot
from ionto_rt.core.types cimport (
    HISTORY_TICKS, MAX_CHANNELS, PORT_VERSION, PROBE_GOOD, STATUS_COMPLIANCE, TRIP_NONE, Calibration, Command, LoadFit,
    PlantModel, Port, RegulatorTerms, Sample, Setpoint, Tick, TickInput, Verdict,
)
from ionto_rt.core.wire cimport (
    MAX_FRAME, MAX_PAYLOAD, Receiver, wire_encode, wire_get_sample, wire_put_command, wire_put_sample, wire_receive,
)

from ionto_rt.core.controller import empty_ticks

cdef enum:
    DELAY_TICKS = 4             # of the tick: a sample may belong to any of this many setpoints

cdef extern from "transcription.h" nogil:
    enum:
        RELAY_OPEN
        PROBED
        IDENTIFIED
        REGULATED

    ctypedef struct StageInput:
        double current_a
        double voltage_v
        double contact_setpoint_a
        double level_a
        double tone_a
        double probe_output
        uint32_t lost_ticks
        int32_t tone_before
        int32_t tone_now
        int32_t drive

    void c_ledger_step(Ledger*, const Sample*, uint32_t, const Calibration*) noexcept
    void c_impedance_break(ImpedanceState*, const ImpedanceConfig*, uint32_t) noexcept
    void c_impedance_step(ImpedanceState*, const ImpedanceConfig*, double, double, double, int32_t) noexcept
    void c_predictive_applied(PredictiveState*, double, int32_t) noexcept
    void c_predictive_step(PredictiveState*, const PredictiveConfig*, double, double, double, double, int32_t,
                           RegulatorTerms*) noexcept
    void c_tick(const Calibration*, const ImpedanceConfig*, const PredictiveConfig*, const Identified*, const Sample*,
                const StageInput*, Ledger*, ImpedanceState*, PredictiveState*, RegulatorTerms*, double*,
                double*) noexcept

# The stages that the transcription has, from their start.
cdef struct Stages:
    Ledger ledger
    ImpedanceState impedance
    PredictiveState predictive
    RegulatorTerms terms
    double current_a
    double voltage_v

# What the stage for contact area was given when a block closed.
cdef struct Block:
    LoadFit fit
    uint32_t tone
    double mean_a

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
    pass over all n, from that stage's start state; `transcribed` takes that of the transcription.

    AssertionError: after some tick a term of the transcription, or of the state of a stage, has other bits.
    """
    cdef ControllerState* state
    cdef TickInput* ticks
    cdef StageInput* stages
    cdef ProgrammeInput* programmes
    cdef GuardInput* guards
    cdef Command* commands
    cdef Frame* frames
    cdef Block* blocks
    cdef Identified found
    cdef readonly Py_ssize_t closed
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
        self.blocks = <Block*>calloc(self.n, sizeof(Block))
        if not (self.ticks and self.stages and self.programmes and self.guards and self.commands and self.frames
                and self.blocks):
            raise MemoryError

    def __dealloc__(self):
        free(self.ticks)
        free(self.stages)
        free(self.programmes)
        free(self.guards)
        free(self.commands)
        free(self.frames)
        free(self.blocks)

    def __init__(self, controller, rows):
        cdef const Tick[::1] given = np.ascontiguousarray(rows)
        cdef Tick[::1] result
        cdef uint8_t payload[MAX_PAYLOAD]
        cdef uint8_t frame[MAX_FRAME]
        cdef Stages made
        cdef Py_ssize_t k
        self.controller = controller
        self.state = <ControllerState*>PyCapsule_GetPointer(controller.capsule, b"ionto_rt.core.ControllerState")
        self.replayed = empty_ticks(self.n)
        result = self.replayed
        controller_start(self.state)
        memset(&made, 0, sizeof(made))
        for k in range(self.n):
            read_tick(&given[k], &self.ticks[k])
            self.frames[k].length = wire_encode(payload, wire_put_sample(&self.ticks[k].sample, 1, payload), frame)
            if self.frames[k].length > sizeof(self.frames[k].bytes):
                raise ValueError(f"a sample frame of {self.frames[k].length} bytes")
            memcpy(self.frames[k].bytes, frame, self.frames[k].length)
            self.stages[k].contact_setpoint_a = contact_setpoint(self.state)
            self.stages[k].tone_before = tone_before(self.state)
            self.stages[k].drive = REGULATED if self.state.probe.verdict == PROBE_GOOD else PROBED
            self.programmes[k].pause = self.state.guard.pause != TRIP_NONE
            self.programmes[k].probe_verdict = self.state.probe.verdict
            blocks = self.state.impedance.estimate.block
            controller_tick(self.state, &self.ticks[k], &result[k], &self.commands[k])
            self.keep(k, &result[k], self.state.impedance.estimate.block != blocks)
            self.transcribe(k, &made)
            self.compare(k, &result[k], &made)

    cdef void transcribe(self, Py_ssize_t k, Stages* made) noexcept nogil:
        c_tick(
            &self.state.config.calibration, &self.state.config.impedance, &self.state.config.predictive, &self.found,
            &self.ticks[k].sample, &self.stages[k], &made.ledger, &made.impedance, &made.predictive, &made.terms,
            &made.current_a, &made.voltage_v,
        )

    cdef int compare(self, Py_ssize_t k, const Tick* row, const Stages* made) except -1:
        """The readings and terms of a tick, and the states after it, bit by bit."""
        cdef double own[8]
        cdef double other[8]
        own[:] = [row.current_a, row.voltage_v, row.proportional, row.integral, row.derivative, row.feed_forward,
                  row.unlimited, row.output]
        other[:] = [made.current_a, made.voltage_v, made.terms.proportional, made.terms.integral,
                    made.terms.derivative, made.terms.feed_forward, made.terms.unlimited, made.terms.output]
        if memcmp(own, other, sizeof(own)) != 0 or row.saturated != made.terms.saturated:
            raise AssertionError(f"tick {k}: readings and terms {own}; {other} in C")
        if memcmp(&self.state.ledger, &made.ledger, sizeof(made.ledger)) != 0:
            raise AssertionError(f"tick {k}: ledger {self.state.ledger}; {made.ledger} in C")
        if memcmp(&self.state.impedance, &made.impedance, sizeof(made.impedance)) != 0:
            raise AssertionError(f"tick {k}: estimator {apart(self.state.impedance, made.impedance)} (core, C)")
        if memcmp(&self.state.predictive, &made.predictive, sizeof(made.predictive)) != 0:
            raise AssertionError(f"tick {k}: regulator {apart(self.state.predictive, made.predictive)} (core, C)")
        return 0

    cdef void keep(self, Py_ssize_t k, const Tick* row, bint closed) noexcept:
        """What the stages of the tick just done were given."""
        cdef const Calibration* calibration = &self.state.config.calibration
        cdef const TickInput* tick = &self.ticks[k]
        cdef const Sample* sample = &tick.sample
        cdef StageInput* stage = &self.stages[k]
        cdef ProgrammeInput* programme = &self.programmes[k]
        cdef GuardInput* guard = &self.guards[k]
        stage.current_a = row.current_a
        stage.voltage_v = row.voltage_v
        stage.level_a = row.level_a
        stage.tone_now = self.state.tone_on[self.state.history_at]
        stage.tone_a = impedance_tone(&self.state.impedance, &self.state.config.impedance) if stage.tone_now else 0.0
        stage.probe_output = row.output
        stage.lost_ticks = row.lost_ticks
        if not row.close_relay:
            stage.drive = RELAY_OPEN
        elif stage.drive == PROBED and row.probe_verdict == PROBE_GOOD:
            stage.drive = IDENTIFIED
            self.found = self.state.probe.found
        if closed:
            self.blocks[self.closed].fit = self.state.impedance.estimate.latest
            self.blocks[self.closed].tone = self.state.impedance.bins[0] ^ self.state.impedance.bins[1] << 16
            self.blocks[self.closed].mean_a = self.state.impedance.estimate.mean_a
            self.closed += 1

        programme.ticks = 1 + row.lost_ticks
        programme.contact = row.contact
        programme.operator_command = tick.operator_command
        programme.stop = tick.stop
        programme.operator_value_a = tick.operator_value_a
        programme.current_a = row.current_a
        programme.redundant_a = row.redundant_a
        programme.voltage_v = row.voltage_v
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
        guard.probe_a = self.state.config.probe.current_a if stage.drive in (PROBED, IDENTIFIED) else 0.0
        guard.area_alarm = row.area_alarm
        guard.area_ratio = row.area_ratio
        guard.applied_age_ticks = sample.index - sample.applied_index
        guard.token = self.state.config.token
        guard.setpoint_a = row.setpoint_a
        guard.output_code = row.output_code
        guard.close_relay = row.close_relay

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

    def transcribed_tick(self):
        """Readings, ledger, estimator and regulator in C; the last output, A or V."""
        cdef Stages made
        cdef Py_ssize_t k
        memset(&made, 0, sizeof(made))
        with nogil:
            for k in range(self.n):
                self.transcribe(k, &made)
        return made.terms.output

    def tick_times(self, int rounds):
        """The best of some rounds for each whole tick, ns: an array of shape (n,)."""
        cdef Tick row
        cdef Command command
        cdef timespec began, ended
        cdef Py_ssize_t k
        best = np.full(self.n, np.inf)
        cdef double[::1] times = best
        cdef double took
        for _ in range(rounds):
            controller_start(self.state)
            for k in range(self.n):
                clock_gettime(CLOCK_MONOTONIC, &began)
                controller_tick(self.state, &self.ticks[k], &row, &command)
                clock_gettime(CLOCK_MONOTONIC, &ended)
                took = (ended.tv_sec - began.tv_sec) * 1e9 + (ended.tv_nsec - began.tv_nsec)
                times[k] = min(times[k], took)
        return best

    def ledger(self, bint transcribed=False):
        """The ledger; its net charge in 1/65536 code."""
        cdef Ledger ledger
        cdef const Calibration* calibration = &self.state.config.calibration
        cdef Py_ssize_t k
        memset(&ledger, 0, sizeof(ledger))
        with nogil:
            if transcribed:
                for k in range(self.n):
                    c_ledger_step(&ledger, &self.ticks[k].sample, self.stages[k].lost_ticks, calibration)
            else:
                for k in range(self.n):
                    ledger_step(&ledger, &self.ticks[k].sample, self.stages[k].lost_ticks, calibration)
        return ledger.net_codes

    def estimator(self, bint transcribed=False):
        """The impedance estimator, without what the contact check tells it; the last estimate."""
        cdef ImpedanceState state
        cdef const ImpedanceConfig* config = &self.state.config.impedance
        cdef const StageInput* one
        cdef Py_ssize_t k
        memset(&state, 0, sizeof(state))
        with nogil:
            if transcribed:
                for k in range(self.n):
                    one = &self.stages[k]
                    if one.lost_ticks or one.tone_before < 0:
                        c_impedance_break(&state, config, one.lost_ticks)
                    c_impedance_step(
                        &state, config, one.current_a, one.voltage_v, one.contact_setpoint_a, one.tone_before > 0
                    )
            else:
                for k in range(self.n):
                    one = &self.stages[k]
                    if one.lost_ticks or one.tone_before < 0:
                        impedance_break(&state, config, one.lost_ticks)
                    impedance_step(
                        &state, config, one.current_a, one.voltage_v, one.contact_setpoint_a, one.tone_before > 0
                    )
        return state.estimate

    def regulator(self, bint transcribed=False):
        """The regulator, from the end of the contact check; the last output, A or V."""
        cdef PredictiveState state
        cdef const PredictiveConfig* config = &self.state.config.predictive
        cdef const Calibration* calibration = &self.state.config.calibration
        cdef RegulatorTerms terms
        cdef const StageInput* one
        cdef const Sample* sample
        cdef double applied
        cdef int32_t at_limit
        cdef Py_ssize_t k
        memset(&state, 0, sizeof(state))
        memset(&terms, 0, sizeof(terms))
        with nogil:
            for k in range(self.n):
                one = &self.stages[k]
                sample = &self.ticks[k].sample
                if one.drive == IDENTIFIED:
                    predictive_reset(
                        &state, config, &self.found.model, one.probe_output, self.found.null_output, one.current_a
                    )
                if one.drive != REGULATED:
                    continue
                applied = (sample.applied_code - calibration.output_offset_q16 / 65536.0) * calibration.output_lsb
                at_limit = (sample.status & STATUS_COMPLIANCE) != 0
                if transcribed:
                    c_predictive_applied(&state, applied, state.model.delay_ticks)
                    c_predictive_step(
                        &state, config, one.level_a, one.tone_a, one.current_a, one.voltage_v, at_limit, &terms
                    )
                else:
                    predictive_applied(&state, applied, state.model.delay_ticks)
                    predictive_step(
                        &state, config, one.level_a, one.tone_a, one.current_a, one.voltage_v, at_limit, &terms
                    )
        return terms.output

    def contact_area(self):
        """The stage for contact area, which runs when a block closes; the last area ratio."""
        cdef ContactAreaState state
        cdef Py_ssize_t k
        contact_area_reset(&state)
        with nogil:
            for k in range(self.closed):
                contact_area_step(
                    &state, &self.state.config.contact_area, &self.blocks[k].fit, self.blocks[k].tone,
                    self.blocks[k].mean_a,
                )
        return state.area_ratio

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
        guard_begin(&state, self.state.config.token)
        with nogil:
            for k in range(self.n):
                guard_step(&state, &self.state.config.guard, &self.guards[k], &verdict)
        return verdict.output_code, verdict.trip

    def whole_tick(self):
        """From each sample's frame to its command's frame; the last output code."""
        cdef Receiver receiver
        cdef TickInput given
        cdef Tick row
        cdef Command command
        cdef uint8_t payload[MAX_PAYLOAD + 4]
        cdef uint8_t frame[MAX_FRAME]
        cdef size_t length, written = 0
        cdef uint32_t channels
        cdef uint64_t wrong = 0
        cdef Py_ssize_t k
        memset(&receiver, 0, sizeof(receiver))
        with nogil:
            controller_start(self.state)
            for k in range(self.n):
                wire_receive(&receiver, self.frames[k].bytes, self.frames[k].length, payload, &length)
                given = self.ticks[k]
                if not wire_get_sample(payload, length, &given.sample, &channels):
                    wrong += 1
                controller_tick(self.state, &given, &row, &command)
                written += wire_encode(payload, wire_put_command(&command, 1, payload), frame)
        if wrong or not written:
            raise ValueError(f"{wrong} frames decoded wrong")
        return command.code

    def __len__(self):
        return self.n


cdef class Wire:
    """Frames of so many channels, made of a recording's samples and commands; each channel `shift` ticks ahead of the
    one before.
    """
    cdef uint32_t channels
    cdef Py_ssize_t n
    cdef uint8_t* frames
    cdef size_t frame_bytes
    cdef size_t* lengths
    cdef Command* commands

    def __cinit__(self, Recording recording, uint32_t channels, uint32_t shift=1):
        cdef Sample samples[MAX_CHANNELS]
        cdef uint8_t payload[MAX_PAYLOAD]
        cdef uint8_t frame[MAX_FRAME]
        cdef Py_ssize_t k
        cdef uint32_t channel
        self.channels = channels
        self.n = min(len(recording) - MAX_CHANNELS, 4096)
        self.frame_bytes = 64 + 32 * channels
        self.frames = <uint8_t*>calloc(self.n, self.frame_bytes)
        self.lengths = <size_t*>calloc(self.n, sizeof(size_t))
        self.commands = <Command*>calloc(self.n * channels, sizeof(Command))
        if not (self.frames and self.lengths and self.commands):
            raise MemoryError
        for k in range(self.n):
            for channel in range(channels):
                samples[channel] = recording.ticks[k + channel * shift].sample
                self.commands[k * channels + channel] = recording.commands[k + channel * shift]
            self.lengths[k] = wire_encode(payload, wire_put_sample(samples, channels, payload), frame)
            if self.lengths[k] > self.frame_bytes:
                raise ValueError(f"a sample frame of {self.lengths[k]} bytes")
            memcpy(self.frames + k * self.frame_bytes, frame, self.lengths[k])

    def __dealloc__(self):
        free(self.frames)
        free(self.lengths)
        free(self.commands)

    def exchange(self):
        """Decodes each sample frame and encodes each command; bytes written."""
        cdef Receiver receiver
        cdef Sample samples[MAX_CHANNELS]
        cdef uint8_t payload[MAX_PAYLOAD + 4]
        cdef uint8_t frame[MAX_FRAME]
        cdef size_t length, written = 0
        cdef uint32_t channels = 0
        cdef uint64_t wrong = 0
        cdef Py_ssize_t k
        memset(&receiver, 0, sizeof(receiver))
        with nogil:
            for k in range(self.n):
                wire_receive(&receiver, self.frames + k * self.frame_bytes, self.lengths[k], payload, &length)
                if not wire_get_sample(payload, length, samples, &channels) or channels != self.channels:
                    wrong += 1
                length = wire_put_command(&self.commands[k * self.channels], self.channels, payload)
                written += wire_encode(payload, length, frame)
        if wrong:
            raise ValueError(f"{wrong} frames decoded wrong")
        return written

    def __len__(self):
        return self.n


cdef class Rows:
    """A ring of telemetry that nobody reads, with room for one pass."""
    cdef Ring ring
    cdef uint64_t n

    def __cinit__(self, uint64_t n):
        self.n = n
        if ring_open(&self.ring, sizeof(Tick), n):
            raise MemoryError

    def __dealloc__(self):
        ring_close(&self.ring)

    def commit(self):
        """Takes and commits every slot, from an empty ring, without writing the rows; how many."""
        cdef uint64_t taken = 0, _k
        self.ring.head = self.ring.tail = self.ring.head_at = 0
        with nogil:
            for _k in range(self.n):
                taken += ring_slot(&self.ring) != NULL
                ring_commit(&self.ring)
        return taken


cdef struct Script:
    Port port
    const Frame* frames         # of one channel; NULL: of several, below
    const uint8_t* several
    size_t stride
    const size_t* lengths
    Py_ssize_t n
    Py_ssize_t at


cdef int64_t scripted_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil:
    cdef Script* script = <Script*>context
    cdef Py_ssize_t at = script.at
    if at == script.n:
        return 0
    script.at += 1
    if script.frames == NULL:
        memcpy(data, script.several + at * script.stride, script.lengths[at])
        return <int64_t>script.lengths[at]
    memcpy(data, script.frames[at].bytes, script.frames[at].length)
    return <int64_t>script.frames[at].length


cdef int64_t scripted_write(void* context, const uint8_t* data, size_t length) noexcept nogil:
    return <int64_t>length


cdef class ScriptedPort:
    """A port in this process that gives the recording's sample frames, one a read, and forgets what is written; with
    `wire`, its frames of several channels.
    """
    cdef Script script
    cdef Recording recording
    cdef Wire wire

    def __cinit__(self, Recording recording, Wire wire=None):
        self.recording = recording
        self.wire = wire
        self.script.at = 0
        if wire is None:
            self.script.frames = recording.frames
            self.script.n = recording.n
        else:
            self.script.frames = NULL
            self.script.several = wire.frames
            self.script.stride = wire.frame_bytes
            self.script.lengths = wire.lengths
            self.script.n = wire.n
        self.script.port.version = PORT_VERSION
        self.script.port.size = sizeof(Port)
        self.script.port.context = &self.script
        self.script.port.read = scripted_read
        self.script.port.write = scripted_write

    @property
    def capsule(self):
        return PyCapsule_New(&self.script.port, b"ionto_rt.core.types.Port", NULL)


def regulate(dict config, dict model, setpoint_a, measured_a, bint transcribed=False):
    """The regulator on arrays of shape (n,), from rest: its outputs. config, model: of predictive.pxd and types.pxd."""
    cdef PredictiveState state
    cdef PredictiveConfig given = config
    cdef PlantModel plant = model
    cdef RegulatorTerms terms
    cdef const double[::1] setpoints = setpoint_a
    cdef const double[::1] measured = measured_a
    cdef Py_ssize_t n = measured.shape[0], k
    result = np.empty(n)
    cdef double[::1] outputs = result
    predictive_reset(&state, &given, &plant, 0.0, 0.0, 0.0)
    with nogil:
        for k in range(n):
            if transcribed:
                c_predictive_step(&state, &given, setpoints[k], 0.0, measured[k], 0.0, 0, &terms)
            else:
                predictive_step(&state, &given, setpoints[k], 0.0, measured[k], 0.0, 0, &terms)
            outputs[k] = terms.output
    return result


def estimate(dict config, current_a, voltage_v, bint transcribed=False):
    """The estimator on samples of shape (n,), tones on, no setpoint: the last state. config as in impedance.pxd."""
    cdef ImpedanceState state
    cdef ImpedanceConfig given = config
    cdef const double[::1] currents = current_a
    cdef const double[::1] voltages = voltage_v
    cdef Py_ssize_t k
    memset(&state, 0, sizeof(state))
    with nogil:
        for k in range(currents.shape[0]):
            if transcribed:
                c_impedance_step(&state, &given, currents[k], voltages[k], 0.0, 1)
            else:
                impedance_step(&state, &given, currents[k], voltages[k], 0.0, 1)
    return state


def apart(dict own, dict other):
    """The fields that differ, as (own, other)."""
    return {name: (own[name], other[name]) for name in own if own[name] != other[name]}


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
    given.sample.sentinel_code = row.sentinel_code
    given.host_late_us = row.host_late_us
    given.host_time_us = row.host_time_us
    given.heartbeat = row.heartbeat
    given.operator_sequence = row.operator_sequence
    given.operator_command = row.operator_command
    given.stop = row.stop
    given.operator_value_a = row.operator_value_a
