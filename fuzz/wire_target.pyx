"""What holds of the wire's functions whatever bytes they are given.

`one_input` gives 0, or the number of the property that is broken. It is what libFuzzer calls (`make fuzz`), and what
the tests replay the corpus through.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

from ionto_rt.core.types cimport MAX_CHANNELS, Command, Sample
from ionto_rt.core.wire cimport (
    COMMAND_CHANNEL_BYTES,
    COMMAND_HEADER_BYTES,
    COMMAND_RELAYS_BYTES,
    MAX_FRAME,
    MAX_PAYLOAD,
    Receiver,
    wire_crc32,
    wire_encode,
    wire_get_command,
    wire_get_sample,
    wire_get_sentinel,
    wire_put_command,
    wire_put_sample,
    wire_put_sentinel,
    wire_receive,
)

cdef enum:
    COMMAND_MOST_BYTES = COMMAND_HEADER_BYTES + COMMAND_CHANNEL_BYTES * MAX_CHANNELS + COMMAND_RELAYS_BYTES
    LONGEST_REFERENCE = 48      # bytes of which the CRC is computed bit by bit as well
    KNOWN_BYTES = 3
    CRC_POLYNOMIAL = 0xEDB88320

cdef enum Broken:
    BROKEN_NOTHING = 0
    BROKEN_SAMPLE_CHANNELS = 1  # a sample of no channel, or of too many, was read
    BROKEN_SAMPLE_AGAIN = 2     # a sample that was read is written as other bytes
    BROKEN_SENTINEL_AGAIN = 3
    BROKEN_COMMAND_CHANNELS = 4
    BROKEN_COMMAND_AGAIN = 5    # a command that was read and written reads as another one
    BROKEN_FRAME = 6            # a frame is too long, or has a zero before its end
    BROKEN_ROUND_TRIP = 7       # what is encoded is received as something else
    BROKEN_CHUNKS = 8           # what is received depends on how the bytes come
    BROKEN_RESYNCHRONISE = 9    # a good frame behind a delimiter is not received
    BROKEN_CRC = 10
    BROKEN_CONSUMED = 11        # the receiver says that it took no byte, or more than there were

cdef uint64_t FNV_PRIME = 0x100000001B3

# As large as their users' own, and not a byte more: made once, because a sanitizer's allocator is slow.
cdef uint8_t* received = <uint8_t*>malloc(MAX_PAYLOAD + 4)
cdef uint8_t* frame = <uint8_t*>malloc(MAX_FRAME)
cdef uint8_t* written_again = <uint8_t*>malloc(MAX_PAYLOAD)

# What was received, boiled down.
cdef struct Heard:
    uint64_t payloads
    uint64_t hash


cdef void hear(Heard* heard, const uint8_t* payload, size_t length) noexcept nogil:
    cdef size_t at
    heard.payloads += 1
    heard.hash = (heard.hash ^ length) * FNV_PRIME
    for at in range(length):
        heard.hash = (heard.hash ^ payload[at]) * FNV_PRIME


cdef uint32_t crc_bit_by_bit(const uint8_t* data, size_t length) noexcept nogil:
    cdef uint32_t crc = 0xFFFFFFFF
    cdef size_t at
    cdef int _bit
    for at in range(length):
        crc ^= data[at]
        for _bit in range(8):
            crc = (crc >> 1) ^ (CRC_POLYNOMIAL if crc & 1 else 0)
    return ~crc


cdef int check_sample(const uint8_t* payload, size_t length) noexcept nogil:
    cdef Sample samples[MAX_CHANNELS]
    cdef uint32_t channels = 0
    cdef size_t written
    if not wire_get_sample(payload, length, samples, &channels):
        return BROKEN_NOTHING
    if not 1 <= channels <= MAX_CHANNELS:
        return BROKEN_SAMPLE_CHANNELS
    written = wire_put_sample(samples, channels, written_again)
    if written > length or memcmp(written_again, payload, written) != 0:
        return BROKEN_SAMPLE_AGAIN
    if wire_get_sentinel(payload, length, samples, channels):
        written = wire_put_sentinel(samples, channels, written_again)
        if written > length or memcmp(written_again, payload, written) != 0:
            return BROKEN_SENTINEL_AGAIN
    return BROKEN_NOTHING


cdef int check_command(const uint8_t* payload, size_t length, uint32_t count) noexcept nogil:
    cdef Command commands[MAX_CHANNELS]
    cdef Command again[MAX_CHANNELS]
    cdef uint32_t channels = count
    cdef uint32_t c
    cdef size_t written
    if not wire_get_command(payload, length, commands, &channels):
        return BROKEN_NOTHING
    if channels != count or not 1 <= channels <= MAX_CHANNELS:
        return BROKEN_COMMAND_CHANNELS
    written = wire_put_command(commands, channels, written_again)
    if written > length or not wire_get_command(written_again, written, again, &channels):
        return BROKEN_COMMAND_AGAIN
    for c in range(count):
        if (commands[c].index != again[c].index or commands[c].token != again[c].token
                or commands[c].nonce != again[c].nonce or commands[c].lease_ticks != again[c].lease_ticks
                or commands[c].flags != again[c].flags or commands[c].code != again[c].code):
            return BROKEN_COMMAND_AGAIN
    return BROKEN_NOTHING


cdef int check_payload(const uint8_t* payload, size_t length) noexcept nogil:
    """Every reader on a payload that ends where its memory ends."""
    cdef uint32_t counts[6]
    cdef uint8_t* own = <uint8_t*>malloc(length)
    cdef int broken
    cdef int k
    counts[:] = [1, 2, 3, MAX_CHANNELS, 0, 0xFFFFFFFF]
    memcpy(own, payload, length)
    broken = check_sample(own, length)
    for k in range(6):
        if broken == BROKEN_NOTHING:
            broken = check_command(own, length, counts[k])
    free(own)
    return broken


cdef int listen(Receiver* receiver, const uint8_t* data, size_t length, Heard* heard) noexcept nogil:
    """Hand over bytes that come at once, and note what they complete."""
    cdef size_t used, payload_length
    cdef int broken
    while length:
        used = wire_receive(receiver, data, length, received, &payload_length)
        if used == 0 or used > length:
            return BROKEN_CONSUMED
        data += used
        length -= used
        if payload_length:
            hear(heard, received, payload_length)
            broken = check_payload(received, payload_length)
            if broken:
                return broken
    return BROKEN_NOTHING


cdef int check_stream(const uint8_t* data, size_t length) noexcept nogil:
    """Bytes of a port, at once and in pieces; behind them a delimiter and a good frame."""
    cdef Receiver whole, pieces
    cdef Heard heard_whole, heard_pieces
    cdef size_t at = 0, piece
    cdef uint8_t known[KNOWN_BYTES]
    cdef uint64_t before
    cdef int broken
    memset(&whole, 0, sizeof(Receiver))
    memset(&pieces, 0, sizeof(Receiver))
    memset(&heard_whole, 0, sizeof(Heard))
    memset(&heard_pieces, 0, sizeof(Heard))
    broken = listen(&whole, data, length, &heard_whole)
    while at < length and broken == BROKEN_NOTHING:
        piece = 1 + (data[at] & 0x3F)
        if piece > length - at:
            piece = length - at
        broken = listen(&pieces, data + at, piece, &heard_pieces)
        at += piece
    if broken:
        return broken
    if (heard_whole.payloads != heard_pieces.payloads or heard_whole.hash != heard_pieces.hash
            or whole.frames != pieces.frames or whole.bad_frames != pieces.bad_frames
            or whole.length != pieces.length or whole.overflow != pieces.overflow
            or memcmp(whole.data, pieces.data, whole.length) != 0):
        return BROKEN_CHUNKS
    known[:] = [7, 0, 9]
    frame[0] = 0
    broken = listen(&whole, frame, 1, &heard_whole)
    before = whole.frames
    piece = wire_encode(known, KNOWN_BYTES, frame)
    if broken == BROKEN_NOTHING:
        broken = listen(&whole, frame, piece, &heard_whole)
    if broken == BROKEN_NOTHING and (whole.frames != before + 1 or memcmp(received, known, KNOWN_BYTES) != 0):
        return BROKEN_RESYNCHRONISE
    return broken


cdef int check_encoding(const uint8_t* data, size_t length) noexcept nogil:
    """The bytes as a payload: encoded and received."""
    cdef Receiver receiver
    cdef size_t written = wire_encode(data, length, frame)
    cdef size_t got
    if length == 0 or length > MAX_PAYLOAD:
        return BROKEN_FRAME if written else BROKEN_NOTHING
    if written == 0 or written > MAX_FRAME or memchr(frame, 0, written) != <void*>(frame + written - 1):
        return BROKEN_FRAME
    memset(&receiver, 0, sizeof(Receiver))
    if wire_receive(&receiver, frame, written, received, &got) != written:
        return BROKEN_CONSUMED
    if got != length or memcmp(received, data, length) != 0 or receiver.frames != 1 or receiver.bad_frames:
        return BROKEN_ROUND_TRIP
    if length <= LONGEST_REFERENCE and wire_crc32(data, length) != crc_bit_by_bit(data, length):
        return BROKEN_CRC
    return check_payload(data, length)


cdef int one_input(const uint8_t* data, size_t length) noexcept nogil:
    cdef int broken = check_stream(data, length)
    if broken == BROKEN_NOTHING:
        broken = check_encoding(data, length)
    return broken


def replay(bytes data) -> int:
    """0, or the number of the property that these bytes break."""
    return one_input(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
