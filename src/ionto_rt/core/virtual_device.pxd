"""The virtual device: firmware, and front-end and skin of each channel; one call for each sample period.

Order of one period k, which runs from boundary k-1 to boundary k:
  1. front-end and skin run the whole period on the command in force;
  2. sample k is taken just before boundary k: its applied_index and applied_code are those in force during period k
     (a voltage reading with skew comes that much after the boundary);
  3. at boundary k the newest accepted command comes into force, or the lease in force loses a tick.
A command that answers sample k and arrives before boundary k+1 acts at boundary k+1, so that sample k+2 is the first
that sees all of it: the loop's delay is two samples. One that arrives later acts at the next boundary and is counted
late. A lease of L ticks covers the L periods after the boundary at which its command acts.

When the host paces, a period is the timer's. One with no command ends at a boundary without a sample; each command is
followed by the sample and the boundary of the period in which it came, so that the order above stays.

Channels share the device's clock, session, lease, nonces and relay timer, and the stated calibration; each has its own
skin, output stage, converters, caps and charges. Whatever switches one channel off, of itself, switches off all.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ionto_rt.core.clock cimport Histogram
from ionto_rt.core.frontend cimport FrontEndPeriod, FrontEndState
from ionto_rt.core.skin cimport SkinState
from ionto_rt.core.types cimport Command, Port
from ionto_rt.core.wire cimport Receiver

cdef enum:
    TRANSMIT_BYTES = 65536      # for each channel
    NONCES = 2048               # samples back for which a command is still known
    FAULTS = 256
    TRUTH_BYTES = 1 << 18
    TRUTH_ROW_BYTES = 512

cdef enum DevicePhase:
    DEVICE_IDLE = 0
    DEVICE_CONFIGURED = 1       # limits accepted and read back
    DEVICE_ARMED = 2
    DEVICE_EXPIRED = 3          # latched: the lease ran out
    DEVICE_TRIPPED = 4          # latched: a cap acted

cdef enum FaultKind:
    FAULT_OPEN = 0              # the active lead comes off: 1 Gohm
    FAULT_CLOSE = 1             # lead and bridge as they were, a peeling pad pressed on again
    FAULT_SHORT = 2             # 20 ohm between the leads
    FAULT_AREA = 3              # contact of the active pad becomes value x what it was at the start
    FAULT_UNPLUG = 4            # the port closes
    FAULT_STALL = 5             # samples of the next value seconds are never sent
    FAULT_STUCK = 6             # the output converter keeps its value
    FAULT_PEEL = 7              # the active pad comes off over value seconds, then its lead is open
    FAULT_DRY = 8               # series resistance of the active pad grows by value percent of the start's a minute
    FAULT_LOOSE = 9             # the lead opens value times a minute, for 1 to 100 ms
    FAULT_LEAK = 10             # value ohm between the leads
    FAULT_RETURN_AREA = 11      # as area, of the return pad
    FAULT_STUCK_TOLD = 12       # as stuck, and applied_code says so
    FAULT_DAC = 13              # the output converter goes to value % of its highest code; applied_code says otherwise
    FAULT_DAC_TOLD = 14         # and applied_code says so
    FAULT_ADC_FLAT = 15         # value 1: the current reading keeps its code, 2: the redundant one, 3: both
    FAULT_ADC_GAIN = 16         # factor on the current reading
    FAULT_ADC_GAIN_REDUNDANT = 17
    FAULT_GAIN = 18             # factor on the output
    FAULT_POLARITY = 19         # the output's sign is reversed
    FAULT_DELAY = 20            # the output follows the command value periods later
    FAULT_HUM = 21              # mV of mains on the voltage reading
    FAULT_CROSSTALK = 22        # value ohm between the active terminals of this channel and the next one
    FAULT_REDOX = 23            # the active electrode's potential goes 1.2 V against the current over value seconds
    FAULT_BREAKDOWN = 24        # all of the skin conducts value times as well, at once
    FAULT_RISING = 25           # every resistance grows by value % a second
    FAULT_HOT = 26              # STATUS_OVER_TEMPERATURE
    # from here on of the whole device
    FAULT_CLOCK = 27            # its sample period is value times what it says
    FAULT_STOP_BUTTON = 28      # the patient's stop button is held for value seconds
    FAULT_LEAKAGE = 29          # leakage beyond the device's limit: it switches off by itself
    FAULT_SUPPLY_WARNING = 30
    FAULT_SUPPLY_LOW = 31
    FAULT_POST_FAIL = 32        # the power-on self-test has failed: relays stay open
    FAULT_SPEAKER = 33
    FAULT_LIE_LIMITS = 34       # LIMITS_READ_BACK tells another current cap
    FAULT_IDENTITY = 35         # HELLO tells another serial number
    FAULT_ABSURD = 36           # HELLO claims what cannot be: value is one of ABSURD_CLAIMS
    FAULT_FLOOD = 37            # value COUNTERS frames ahead of each sample
    FAULT_REPEAT = 38           # each sample is sent twice
    FAULT_REPLAYED = 39         # each sample is followed by one from when the fault began
    FAULT_DEAF = 40             # commands of the next value seconds are not heard
    FAULT_LEASE_STUCK = 41      # no lease runs out

cdef enum:
    ABSURD_CLAIMS = 21
    DELAY_MOST = 64

cdef enum ServeEnd:
    SERVE_CLOSED = 0            # the host closed the port
    SERVE_UNPLUGGED = 1         # fault script
    SERVE_SILENT = 2            # lock-step, and no frame for a second
    SERVE_STOPPED = 3           # stop_fd became readable
    SERVE_IDLE = 4              # nobody spoke for idle_ms, and nothing is armed
    SERVE_FAILED = 5            # the port failed in another way

cdef struct ScriptedFault:
    double time_s               # armed device time
    double value
    int32_t kind                # FaultKind
    uint32_t channel

cdef struct VirtualChannel:
    SkinState skin
    FrontEndState front_end
    FrontEndPeriod period
    # limits in force
    int32_t current_cap_code
    int32_t output_code_min
    int32_t output_code_max
    int64_t charge_cap_codes
    double comparator_a
    # session
    int64_t net_codes
    int64_t absolute_codes
    int32_t applied_code
    uint16_t status_command     # STATUS_LATE, STATUS_CLAMPED of the command in force
    Command command             # accepted, not yet in force
    uint16_t status_fault       # status bits that a fault has set
    int32_t told                # fault: applied_code is told_code
    int32_t told_code
    uint32_t delay_ticks        # fault: the output is that of so many boundaries ago
    uint32_t delay_at
    int32_t delayed[64]         # output codes of the last DELAY_MOST boundaries
    double bridge_ohm           # fault: to the next channel's active terminal; 0: none
    double bridge_a             # over it
    # true totals, over all sessions
    double charge_c
    double absolute_c
    # last session, as the hello reports it
    int64_t last_net_codes
    int64_t last_absolute_codes

# From just before the write(2) of a sample to the read(2) that brought the accepted command answering it; of a session
# in real time.
cdef struct RoundTrip:
    Histogram histogram
    int64_t written_ns[2048]    # by index; as many as NONCES
    int64_t read_ns             # the last read(2) that brought bytes
    uint32_t written            # index of the first sample that no write(2) has been given
    uint32_t answered           # index of the first sample that no command has answered, nor one newer than it
    uint64_t samples            # sent
    uint64_t dropped_before
    int32_t due                 # armed since it was last written to its file
    int32_t error               # errno of the first failed write
    char* path
    char* spare_path            # written first, then renamed
    char text[131072]

cdef struct VirtualDeviceState:
    VirtualChannel* channel     # as many as `channels`, made with the device
    uint32_t channels
    Receiver receiver
    # identity and abilities
    char model[16]
    char serial[16]
    uint32_t sample_period_ns
    int64_t pace_ns             # wall time between samples when the device paces
    uint32_t firmware_version
    uint16_t lease_most_ticks
    uint16_t relay_ticks        # from output zero to relay open after a lapse: 10 ms
    uint8_t pacing_offered      # Pacing bits
    double skew_s               # how much later than the currents the voltage is read
    # limits in force
    int32_t phase               # DevicePhase
    uint8_t pacing              # chosen at arming
    uint8_t range
    uint16_t lease_max_ticks
    uint32_t token
    uint32_t session_ticks_max
    # session
    uint32_t samples            # since arming; the next sample's index
    uint32_t late
    uint32_t lapsed
    uint32_t refused
    uint64_t bad_frames_before
    uint16_t status_latched     # in the status of every channel
    uint32_t applied_index
    uint32_t lease_left
    uint32_t relay_left         # ticks to relay open; 0: not counting
    uint32_t newest_index       # newest index accepted
    int32_t any_accepted
    int32_t pending             # the channels' commands are to come into force
    uint16_t nonces[2048]
    uint64_t noise
    # device clock, over all sessions
    uint64_t ticks
    int32_t timed               # 1: served, so that periods are those of the wall clock
    int64_t boundary_ns         # wall time of the last boundary (device), of the last sample's (host)
    uint32_t passed             # host: periods that have passed since the last sample
    uint32_t uncounted          # host: periods whose charge is not in the count yet
    # last session, as the hello reports it
    uint32_t last_token
    uint32_t last_samples
    uint8_t last_range
    # fault script
    ScriptedFault faults[256]
    uint32_t fault_count
    uint32_t fault_next
    uint64_t stall_until
    uint16_t status_fault       # status bits that a fault has set, on every channel
    uint64_t pressed_until      # the patient's stop button
    int32_t leaking
    int32_t bridged             # a channel has a bridge
    int32_t lie_limits
    int32_t identity
    uint32_t absurd
    uint32_t flood
    int32_t repeat
    int32_t replayed
    uint64_t deaf_until
    int32_t lease_stuck
    size_t old_length           # of the sample that is replayed; 0: the next one will be it
    uint8_t old[1024]
    int32_t unplugged
    int32_t gone                # in process: unplugged, and run down
    # to the host
    uint8_t* transmit           # TRANSMIT_BYTES for each channel
    size_t transmit_length
    uint64_t dropped            # frames that found the buffer full
    # files
    int32_t truth_fd            # -1: none
    int32_t truth_error         # errno of the first failed write
    size_t truth_length
    uint32_t flush_ticks        # 0.1 s
    uint32_t save_ticks         # 1 s
    int32_t save_due
    char* state_path            # NULL: none
    char* state_spare_path      # written first, then renamed
    int32_t state_error
    char* truth
    RoundTrip* round_trip       # NULL: not measured
    Port port

# Bytes from the host. In lock-step each complete frame, good or bad, is followed by one sample period.
cdef void virtual_device_receive(VirtualDeviceState* device, const uint8_t* data, size_t length) noexcept nogil
# Takes bytes that wait for the host; returns how many.
cdef size_t virtual_device_transmit(VirtualDeviceState* device, uint8_t* out, size_t capacity) noexcept nogil
# One sample period, if samples are running (armed, expired or tripped). When the host paces: one without a command.
cdef void virtual_device_advance(VirtualDeviceState* device) noexcept nogil
# The host is gone: runs the clock through the lease's expiry to the open relay, writes truth and state.
cdef void virtual_device_run_down(VirtualDeviceState* device) noexcept nogil
# Serves the port fd (not blocking) until it closes; returns a ServeEnd. *keep_fd (-1: none) is a second descriptor of
# the host's side, closed and set to -1 at the first byte, so that a hang-up means the host. Readable stop_fd (-1: none)
# ends it.
cdef int32_t virtual_device_serve(VirtualDeviceState* device, int fd, int* keep_fd, int stop_fd,
                                  int64_t idle_ms) noexcept nogil
