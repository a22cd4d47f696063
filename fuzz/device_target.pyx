"""What holds of a device's firmware whatever its host sends: sessions of good, bad and hostile frames in any order.

The first byte chooses the device, the others are acts: what the host sends, and periods that pass. Good frames are made
with the device's own token and nonces, which no fuzzer would guess. `one_input` gives 0, or the number of the property
that is broken.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ionto_rt.core.types cimport MAX_CHANNELS, Port
from ionto_rt.core.virtual_device cimport (
    DEVICE_ARMED,
    DEVICE_EXPIRED,
    DEVICE_IDLE,
    DEVICE_TRIPPED,
    TRANSMIT_BYTES,
    VirtualChannel,
    VirtualDeviceState,
    virtual_device_advance,
    virtual_device_receive,
    virtual_device_run_down,
    virtual_device_transmit,
)
from ionto_rt.core.wire cimport (
    FRAME_ARM,
    FRAME_COMMAND,
    FRAME_COUNTERS_REQUEST,
    FRAME_DISARM,
    FRAME_HELLO,
    FRAME_HELLO_REQUEST,
    FRAME_LIMITS,
    MAX_FRAME,
    MAX_PAYLOAD,
    PROTOCOL_VERSION,
    Receiver,
    put_u16,
    put_u32,
    put_u64,
    wire_encode,
    wire_receive,
)

from ionto_rt.core.virtual_device import VirtualDevice

cdef enum:
    DEVICES = 3
    NONCES = 2048               # as the device keeps
    MOST_ACTS = 200
    MOST_PERIODS = 3000         # of one input: the device's own time, so that no input takes long

cdef enum Broken:
    BROKEN_NOTHING = 0
    BROKEN_PHASE = 1
    BROKEN_OUTPUT = 2           # a code outside the limits in force, or without a session that is armed
    BROKEN_LEASE = 3            # longer than the session's limit, or output without one
    BROKEN_RELAY = 4            # closed where it must be open
    BROKEN_CHARGE = 5           # the net count is larger than the absolute one
    BROKEN_BUFFER = 6           # more waits for the host than there is room for
    BROKEN_DEAF = 7             # a good request behind a delimiter is not answered
    BROKEN_RUN_DOWN = 8         # on, after its host has gone

# A device, and what it was when it was made.
cdef struct Kept:
    VirtualDeviceState* device
    VirtualDeviceState fresh
    VirtualChannel* fresh_channels

# What the rest of an input says.
cdef struct Script:
    const uint8_t* data
    size_t length

cdef Kept kept[DEVICES]


cdef inline uint8_t next_byte(Script* script) noexcept nogil:
    cdef uint8_t value
    if script.length == 0:
        return 0
    value = script.data[0]
    script.data += 1
    script.length -= 1
    return value


cdef inline uint16_t next_word(Script* script) noexcept nogil:
    return <uint16_t>(next_byte(script) | <uint32_t>next_byte(script) << 8)


cdef void send(VirtualDeviceState* device, const uint8_t* payload, size_t length) noexcept nogil:
    cdef uint8_t frame[MAX_FRAME]
    cdef size_t written = wire_encode(payload, length, frame)
    virtual_device_receive(device, frame, written)


cdef void send_raw(VirtualDeviceState* device, Script* script, bint framed) noexcept nogil:
    """Bytes of the script, as they are or as the payload of a good frame."""
    cdef size_t length = 1 + (next_byte(script) & 0x7F)
    cdef uint8_t* own
    if length > script.length:
        length = script.length
    if length == 0:
        return
    own = <uint8_t*>malloc(length)
    memcpy(own, script.data, length)
    script.data += length
    script.length -= length
    if framed:
        send(device, own, length)
    else:
        virtual_device_receive(device, own, length)
    free(own)


cdef void send_limits(VirtualDeviceState* device, Script* script) noexcept nogil:
    """Good limits of a range; with a bit of the next byte set, something of them is another."""
    cdef uint8_t payload[12 + 20 * MAX_CHANNELS]
    cdef uint8_t change = next_byte(script)
    cdef uint8_t chosen = next_byte(script) & 1
    cdef uint32_t c
    cdef uint8_t* at
    memset(payload, 0, sizeof(payload))
    payload[0] = FRAME_LIMITS
    payload[1] = chosen if not change & 1 else next_byte(script)
    put_u16(payload + 2, 80 if not change & 2 else next_word(script))
    put_u32(payload + 4, 0x1234ABCD)
    put_u32(payload + 8, 100000 if not change & 4 else next_word(script))
    for c in range(device.channels):
        at = payload + 12 + 20 * c
        put_u32(at, 3000 if not change & 8 else <uint32_t>next_word(script) << (next_byte(script) & 0xF))
        put_u32(at + 4, <uint32_t>(-3000 if not change & 16 else -<int32_t>next_word(script)))
        put_u32(at + 8, 3000 if not change & 32 else next_word(script))
        put_u64(at + 12, <uint64_t>1 << (44 if not change & 64 else next_byte(script) & 0x3F))
    send(device, payload, 12 + 20 * device.channels - (1 if change & 128 else 0))


cdef void send_session(VirtualDeviceState* device, Script* script, uint8_t type_) noexcept nogil:
    """ARM or DISARM."""
    cdef uint8_t payload[8]
    cdef uint8_t change = next_byte(script)
    payload[0] = type_
    payload[1] = <uint8_t>(1 << (change & 3))
    put_u16(payload + 2, 0)
    put_u32(payload + 4, device.token ^ (1 if change & 0x80 else 0))
    send(device, payload, 8 - (1 if change & 0x40 else 0))


cdef void send_command(VirtualDeviceState* device, Script* script) noexcept nogil:
    """A command that answers one of the last samples; a bit of the next byte makes something of it wrong."""
    cdef uint8_t payload[14 + 4 * MAX_CHANNELS + 4]
    cdef uint8_t change = next_byte(script)
    cdef uint32_t index = device.samples - 1 - (change & 3)
    cdef size_t length = 14 + 4 * <size_t>device.channels
    cdef uint32_t c
    payload[0] = FRAME_COMMAND
    payload[1] = <uint8_t>(0 if change & 4 else 1)
    put_u32(payload + 2, index)
    put_u32(payload + 6, device.token ^ (1 if change & 8 else 0))
    put_u16(payload + 10, device.nonces[index % NONCES] ^ (1 if change & 16 else 0))
    put_u16(payload + 12, device.lease_max_ticks if not change & 32 else next_byte(script))
    for c in range(device.channels):
        put_u32(payload + 14 + 4 * c, <uint32_t><int32_t>(<int32_t>next_word(script) - 32768))
    if device.channels > 1:
        put_u32(payload + length, 0xFFFFFFFF if not change & 64 else next_byte(script))
        length += 4
    send(device, payload, length - (1 if change & 128 else 0))


cdef int state_is_safe(const VirtualDeviceState* device) noexcept nogil:
    cdef const VirtualChannel* one
    cdef uint32_t c
    if not DEVICE_IDLE <= device.phase <= DEVICE_TRIPPED:
        return BROKEN_PHASE
    if device.lease_left > device.lease_max_ticks:
        return BROKEN_LEASE
    if device.transmit_length > <size_t>TRANSMIT_BYTES * device.channels:
        return BROKEN_BUFFER
    for c in range(device.channels):
        one = &device.channel[c]
        if one.applied_code != 0:
            if device.phase != DEVICE_ARMED or not one.output_code_min <= one.applied_code <= one.output_code_max:
                return BROKEN_OUTPUT
            if device.lease_left == 0:
                return BROKEN_LEASE
        if one.front_end.relay_closed and device.phase != DEVICE_ARMED:
            if device.phase != DEVICE_EXPIRED or device.relay_left == 0:
                return BROKEN_RELAY
        if one.absolute_codes < 0 or one.net_codes > one.absolute_codes or -one.net_codes > one.absolute_codes:
            return BROKEN_CHARGE
    return BROKEN_NOTHING


cdef bint still_hears(VirtualDeviceState* device) noexcept nogil:
    """Whether the device answers a request for its hello, behind a delimiter."""
    cdef uint8_t out[2048]
    cdef uint8_t payload[MAX_PAYLOAD + 4]
    cdef uint8_t request[2]
    cdef Receiver receiver
    cdef size_t length, used, got, at
    cdef bint heard = False
    while virtual_device_transmit(device, out, sizeof(out)):
        pass
    out[0] = 0
    virtual_device_receive(device, out, 1)
    request[:] = [FRAME_HELLO_REQUEST, PROTOCOL_VERSION]
    send(device, request, 2)
    memset(&receiver, 0, sizeof(Receiver))
    while True:
        length = virtual_device_transmit(device, out, sizeof(out))
        if length == 0:
            return heard
        at = 0
        while at < length:
            used = wire_receive(&receiver, out + at, length - at, payload, &got)
            at += used
            if got and payload[0] == FRAME_HELLO:
                heard = True


cdef int one_input(const uint8_t* data, size_t length) noexcept nogil:
    cdef Script script
    cdef Kept* one
    cdef VirtualDeviceState* device
    cdef uint8_t out[256]
    cdef uint8_t chosen, request
    cdef int broken = BROKEN_NOTHING
    cdef int _act
    cdef uint32_t c, _period
    cdef uint64_t start
    script.data = data
    script.length = length
    one = &kept[next_byte(&script) % DEVICES]
    device = one.device
    memcpy(device, &one.fresh, sizeof(VirtualDeviceState))
    memcpy(device.channel, one.fresh_channels, device.channels * sizeof(VirtualChannel))
    start = device.ticks
    for _act in range(MOST_ACTS):
        if script.length == 0 or broken or device.ticks - start > MOST_PERIODS:
            break
        chosen = next_byte(&script) % 12
        if chosen < 3:
            send_command(device, &script)
        elif chosen == 3:
            send_raw(device, &script, False)
        elif chosen == 4:
            send_raw(device, &script, True)
        elif chosen == 5:
            send_limits(device, &script)
        elif chosen == 6:
            send_session(device, &script, FRAME_ARM)
        elif chosen == 7:
            send_session(device, &script, FRAME_DISARM)
        elif chosen == 8:
            request = FRAME_COUNTERS_REQUEST
            send(device, &request, 1)
        elif chosen == 9:
            virtual_device_transmit(device, out, next_byte(&script))
        elif chosen == 10 or chosen == 11:
            for _period in range(1 + <uint32_t>(next_byte(&script) & (0x7F if chosen == 10 else 3))):
                virtual_device_advance(device)
                broken = state_is_safe(device)
                if broken:
                    break
        if broken == BROKEN_NOTHING:
            broken = state_is_safe(device)
    if broken == BROKEN_NOTHING and not still_hears(device):
        broken = BROKEN_DEAF
    if broken == BROKEN_NOTHING:
        virtual_device_run_down(device)
        for c in range(device.channels):
            if device.channel[c].front_end.relay_closed or device.channel[c].applied_code:
                broken = BROKEN_RUN_DOWN
    return broken


cdef void keep(Kept* one, device) except *:
    capsule = device.port_capsule()
    one.device = <VirtualDeviceState*>(<Port*>PyCapsule_GetPointer(capsule, "ionto_rt.core.types.Port")).context
    one.fresh = one.device[0]
    one.fresh_channels = <VirtualChannel*>calloc(one.device.channels, sizeof(VirtualChannel))
    memcpy(one.fresh_channels, one.device.channel, one.device.channels * sizeof(VirtualChannel))
    # It lives as long as the process.
    CAPSULES.append(capsule)


CAPSULES = []
keep(&kept[0], VirtualDevice(pacing=7, substeps=1))
keep(&kept[1], VirtualDevice(pacing=7, substeps=1, channels=3, front_end="voltage", sentinel=1))
keep(&kept[2], VirtualDevice(pacing=7, substeps=1, load=(600.0, 2000.0, 240e-9), skew_us=100.0))


def replay(bytes data) -> int:
    """0, or the number of the property that these bytes break."""
    return one_input(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
