"""A port with faults; the .pxd says what they are."""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.errno cimport EIO, ETIMEDOUT
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, memmove

from ionto_rt.core.port cimport FileDescriptor, port_read, port_write
from ionto_rt.core.types cimport PORT_VERSION, Port
from ionto_rt.core.wire cimport FRAME_COUNTERS_REQUEST, MAX_FRAME, wire_encode

WIRE_FAULT_KINDS = (
    "drop", "duplicate", "flip", "truncate", "split", "garbage", "delay", "reorder", "stall", "disconnect"
)
WAYS = ("to-host", "to-device")

cdef enum:
    PIECE_MOST = 1200           # of a frame with what is added to it


cdef inline uint64_t draw(uint64_t* noise) noexcept nogil:
    """splitmix64."""
    cdef uint64_t z
    noise[0] += <uint64_t>0x9E3779B97F4A7C15
    z = noise[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef void fault_port_start(FaultPortState* state, uint64_t seed) noexcept nogil:
    state.port.version = PORT_VERSION
    state.port.size = sizeof(Port)
    state.port.context = state
    state.port.read = fault_port_read
    state.port.write = fault_port_write
    state.noise = seed
    state.tick = 0
    state.change_tick = ~<uint64_t>0
    state.active[<int>TO_HOST] = 0
    state.active[<int>TO_DEVICE] = 0
    state.fault_count = 0
    state.gone = 0
    state.ready_at = 0
    state.ready_length = 0
    state.held[<int>TO_HOST].count = 0
    state.held[<int>TO_HOST].used = 0
    state.held[<int>TO_DEVICE].count = 0
    state.held[<int>TO_DEVICE].used = 0


cdef int fault_port_add(FaultPortState* state, int32_t kind, int32_t way, uint64_t from_tick, uint64_t ticks,
                        uint32_t value) noexcept nogil:
    cdef WireFault* one
    if state.fault_count == WIRE_FAULTS or not 0 <= kind < WIRE_KINDS:
        return 0
    one = &state.faults[state.fault_count]
    state.fault_count += 1
    one.kind = kind
    one.way = TO_DEVICE if way == TO_DEVICE else TO_HOST
    one.from_tick = from_tick
    one.until_tick = from_tick + ticks
    one.value = value
    if one.from_tick < state.change_tick:
        state.change_tick = one.from_tick
    if state.change_tick <= state.tick:
        work_out(state)
    return 1


cdef void work_out(FaultPortState* state) noexcept nogil:
    """Which faults are in force in this tick, and when that changes next."""
    cdef const WireFault* one
    cdef uint32_t k
    state.active[<int>TO_HOST] = 0
    state.active[<int>TO_DEVICE] = 0
    state.change_tick = ~<uint64_t>0
    for k in range(state.fault_count):
        one = &state.faults[k]
        if state.tick >= one.until_tick:
            continue
        if state.tick < one.from_tick:
            if one.from_tick < state.change_tick:
                state.change_tick = one.from_tick
            continue
        state.active[one.way] |= <uint64_t>1 << k
        if one.until_tick < state.change_tick:
            state.change_tick = one.until_tick
        if one.kind == WIRE_DISCONNECT:
            state.touched[<int>WIRE_DISCONNECT] += 1
            state.gone = 1


cdef void hold(HeldFrames* held, const uint8_t* data, size_t length, uint64_t due) noexcept nogil:
    cdef HeldFrame* one
    if length == 0:
        return
    if held.count == HELD_FRAMES or held.used + length > HELD_BYTES:
        held.dropped += 1
        return
    one = &held.frames[held.count]
    held.count += 1
    one.due = due
    one.at = held.used
    one.length = <uint32_t>length
    memcpy(held.bytes + held.used, data, length)
    held.used += <uint32_t>length


cdef size_t release(HeldFrames* held, uint64_t tick, uint8_t* out, size_t room) noexcept nogil:
    """Frames whose time has come go to out, in their order; the others close up."""
    cdef size_t written = 0
    cdef uint32_t k, kept = 0, used = 0
    cdef HeldFrame one
    for k in range(held.count):
        one = held.frames[k]
        if one.due <= tick and written + one.length <= room:
            memcpy(out + written, held.bytes + one.at, one.length)
            written += one.length
            continue
        if one.at != used:
            memmove(held.bytes + used, held.bytes + one.at, one.length)
        one.at = used
        used += one.length
        held.frames[kept] = one
        kept += 1
    held.count = kept
    held.used = used
    return written


cdef void spoil(FaultPortState* state, int32_t way, const uint8_t* frame, size_t length) noexcept nogil:
    """One frame, or what there is of it, through the faults in force; it waits in state.held from here on."""
    cdef uint8_t piece[PIECE_MOST]
    cdef uint64_t active = state.active[way], due = state.tick, at
    cdef const WireFault* one
    cdef uint32_t k, n, _n, copies = 1
    cdef bint split = False
    if length > MAX_FRAME:
        hold(&state.held[way], frame, length, due)
        return
    memcpy(piece, frame, length)
    for k in range(state.fault_count):
        if not active >> k & 1:
            continue
        one = &state.faults[k]
        if one.kind != WIRE_DISCONNECT:
            state.touched[one.kind] += 1
        if one.kind == WIRE_DROP:
            return
        if one.kind == WIRE_DUPLICATE:
            copies = 2
        elif one.kind == WIRE_FLIP:
            for _n in range(one.value):
                at = draw(&state.noise) % (8 * <uint64_t>length)
                piece[at >> 3] ^= <uint8_t>(1 << (at & 7))
        elif one.kind == WIRE_TRUNCATE:
            length -= one.value if one.value < length else length
            if length == 0:
                return
        elif one.kind == WIRE_SPLIT:
            split = length > 1
        elif one.kind == WIRE_GARBAGE:
            n = one.value if length + one.value <= PIECE_MOST else PIECE_MOST - <uint32_t>length
            memmove(piece + n, piece, length)
            length += n
            while n:
                n -= 1
                piece[n] = <uint8_t>(draw(&state.noise) >> 56)
        elif one.kind == WIRE_DELAY:
            due += one.value
        elif one.kind == WIRE_REORDER:
            due += 2
        elif one.kind == WIRE_STALL and one.until_tick > due:
            due = one.until_tick
    for _n in range(copies):
        if split:
            hold(&state.held[way], piece, length // 2, due)
            hold(&state.held[way], piece + length // 2, length - length // 2, due + 1)
        else:
            hold(&state.held[way], piece, length, due)


cdef void spoil_all(FaultPortState* state, int32_t way, const uint8_t* data, size_t length) noexcept nogil:
    cdef const uint8_t* delimiter
    cdef size_t count
    while length:
        delimiter = <const uint8_t*>memchr(data, 0, length)
        count = length if delimiter == NULL else <size_t>(delimiter - data) + 1
        spoil(state, way, data, count)
        data += count
        length -= count


cdef int64_t to_device(FaultPortState* state) noexcept nogil:
    """What is due goes to the device: 0, or -errno."""
    cdef uint8_t out[PASS_BYTES]
    cdef size_t length = 1
    cdef int64_t written
    while length and state.held[<int>TO_DEVICE].count:
        length = release(&state.held[<int>TO_DEVICE], state.tick, out, sizeof(out))
        if length:
            written = state.inner.write(state.inner.context, out, length)
            if written < 0:
                return written
    return 0


cdef void clock_device(FaultPortState* state) noexcept nogil:
    """In lock-step a device waits for a frame, and the host for the sample that never came: ask for its counters."""
    cdef uint8_t payload[1]
    cdef uint8_t frame[MAX_FRAME]
    payload[0] = FRAME_COUNTERS_REQUEST
    state.inner.write(state.inner.context, frame, wire_encode(payload, 1, frame))


cdef int64_t take_ready(FaultPortState* state, uint8_t* data, size_t capacity) noexcept nogil:
    cdef size_t length = state.ready_length - state.ready_at
    if length > capacity:
        length = capacity
    memcpy(data, state.ready + state.ready_at, length)
    state.ready_at += <uint32_t>length
    return <int64_t>length


cdef int64_t fault_port_read(void* context, uint8_t* data, size_t capacity, int64_t timeout_us) noexcept nogil:
    cdef FaultPortState* state = <FaultPortState*>context
    cdef uint8_t came[PASS_BYTES]
    cdef int64_t count
    if state.ready_at < state.ready_length:
        return take_ready(state, data, capacity)
    state.tick += 1
    if state.tick >= state.change_tick:
        work_out(state)
    if state.gone:
        return -EIO
    if not state.active[<int>TO_HOST] and not state.held[<int>TO_HOST].count:
        count = state.inner.read(state.inner.context, data, capacity, timeout_us)
        # A fault that the port behind has just asked for begins with the next frame.
    else:
        count = state.inner.read(state.inner.context, came, sizeof(came), timeout_us)
        if count > 0:
            spoil_all(state, TO_HOST, came, <size_t>count)
        if count >= 0 or (state.clocked and count == -ETIMEDOUT):
            state.ready_at = 0
            state.ready_length = <uint32_t>release(
                &state.held[<int>TO_HOST], state.tick, state.ready, sizeof(state.ready)
            )
            count = take_ready(state, data, capacity)
    if state.clocked and (count == 0 or count == -ETIMEDOUT):
        clock_device(state)
        count = 0
    if count >= 0 and state.held[<int>TO_DEVICE].count:
        if to_device(state) < 0:
            return -EIO
    return count


cdef int64_t fault_port_write(void* context, const uint8_t* data, size_t length) noexcept nogil:
    cdef FaultPortState* state = <FaultPortState*>context
    cdef int64_t failed
    if state.gone:
        return -EIO
    if not state.active[<int>TO_DEVICE] and not state.held[<int>TO_DEVICE].count:
        return state.inner.write(state.inner.context, data, length)
    spoil_all(state, TO_DEVICE, data, length)
    failed = to_device(state)
    return failed if failed < 0 else <int64_t>length


cdef class FaultPort:
    """A port with faults in front of another, for the loop.

    `inner` is a PyCapsule "ionto_rt.core.types.Port" or the file descriptor of a port; it must outlive this object.
    `faults` are (kind, way, from_tick, ticks, value) or without the value, which is 1 then: kind of WIRE_FAULT_KINDS,
    way of WAYS, tick 1 the loop's first read. `clocked` is for a device in lock-step, which would wait for ever for the
    answer to a sample that was lost. ValueError: no such fault, or more than 64.
    """
    cdef FaultPortState* state
    cdef FileDescriptor descriptor
    cdef object inner

    def __cinit__(self):
        self.state = <FaultPortState*>calloc(1, sizeof(FaultPortState))
        if self.state == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.state)

    def __init__(self, inner, faults=(), *, uint64_t seed=0, bint clocked=False):
        self.inner = inner
        if isinstance(inner, int):
            self.descriptor.fd = inner
            self.descriptor.reading = -1
            self.state.inner.version = PORT_VERSION
            self.state.inner.size = sizeof(Port)
            self.state.inner.context = &self.descriptor
            self.state.inner.read = port_read
            self.state.inner.write = port_write
        else:
            self.state.inner = (<Port*>PyCapsule_GetPointer(inner, b"ionto_rt.core.types.Port"))[0]
        fault_port_start(self.state, seed)
        self.state.clocked = clocked
        for fault in faults:
            self.add(*fault)

    def add(self, str kind, str way, uint64_t from_tick, uint64_t ticks=1, uint32_t value=1):
        """One more fault, also while the loop does not run; the arguments are those of `faults`."""
        if kind not in WIRE_FAULT_KINDS or way not in WAYS:
            raise ValueError(f"fault {kind!r} {way!r}: use {', '.join(WIRE_FAULT_KINDS)}, and {' or '.join(WAYS)}")
        if not fault_port_add(self.state, WIRE_FAULT_KINDS.index(kind), WAYS.index(way), from_tick, ticks,
                              value):
            raise ValueError(f"more than {WIRE_FAULTS} faults")

    @property
    def capsule(self):
        """This port in a PyCapsule "ionto_rt.core.types.Port", for `Loop`; valid while this object lives."""
        return PyCapsule_New(&self.state.port, b"ionto_rt.core.types.Port", NULL)

    @property
    def tick(self) -> int:
        """Reads that have gone through."""
        return self.state.tick

    @property
    def touched(self) -> dict:
        """Frames that each kind of fault has acted on."""
        return {kind: self.state.touched[k] for k, kind in enumerate(WIRE_FAULT_KINDS)}
