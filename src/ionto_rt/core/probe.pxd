"""Contact probe and identification: a bounded, charge-balanced excitation before any treatment current."""
from libc.stdint cimport int32_t, uint8_t, uint32_t
from ionto_rt.core.types cimport PlantModel

cdef enum:
    PROBE_PERIOD = 127          # ticks of one period of the pseudo-random sequence
    PROBE_DELAYS = 4            # delays tried: the one told, one less, one and two more
    PROBE_LEAD = 16             # ticks before a period that its response may follow

cdef enum ProbePhase:
    PROBE_IDLE = 0
    PROBE_NULL = 1              # voltage source: to the output at which no current flows
    PROBE_RAISE = 2             # voltage source: up to the amplitude that can be seen
    PROBE_EXCITE = 3
    PROBE_FIT = 4
    PROBE_FINISHED = 5

cdef struct ProbeConfig:
    double tick_s
    double current_a            # no current of the probe passes it
    double current_lsb_a
    double output_lsb
    double output_min
    double output_max
    double ballast_ohm          # voltage source
    double series_least_ohm     # voltage source: least series resistance of a load
    double compliance_v
    double open_ohm             # a load above it is an open lead
    double short_ohm            # and below it a short
    double parallel_ratio_most  # voltage source: of Rp to Rs + ballast; 0: any
    int32_t voltage_source
    int32_t delay_ticks         # as the device states it
    uint32_t periods            # even; one more goes before, for the transient
    uint32_t periods_most       # where the response is but a few codes
    double offset_a             # current source: more at rest is no offset, and is not nulled; 0: current_a

# What the probe found. Sigmas are one standard deviation; a sigma as large as its value says: not seen at this rate.
cdef struct Identified:
    PlantModel model
    double pole_sigma
    double gain_sigma
    double gain_before_sigma
    double series_ohm           # Rs, without the ballast; 0 with Rp and C: the rate shows the resistance alone
    double parallel_ohm
    double capacitance_f
    double series_sigma_ohm
    double parallel_sigma_ohm
    double capacitance_sigma_f
    double resistance_ohm       # Rs + Rp
    double resistance_sigma_ohm
    double residual_a           # root mean square of what the model leaves
    double null_output          # output at which no current flowed

cdef struct Fit:
    double cost
    double pole
    double gain                 # of u[n - delay]
    double after                # of u[n - delay - 1]
    double start

cdef struct ProbeState:
    int32_t phase
    int32_t verdict
    uint32_t ticks              # in this phase
    uint32_t tries
    uint32_t periods            # in force
    uint32_t rail_run
    double centre
    double half
    double output
    double nulled_a             # current at the centre
    double current[127]         # mean response of one period, sign corrected
    double voltage[127]
    double drive[127]           # what the response in work is fitted to: first the outputs in force, less the centre
    double mains[508]           # cosine and sine of 50 and 60 Hz, by tick
    int32_t fit_of              # 0..PROBE_DELAYS-1: current at that delay; PROBE_DELAYS: voltage on that current
    int32_t fit_at
    double low
    double high
    double inner
    double outer
    double inner_cost
    double outer_cost
    Fit best
    Fit static_fit
    Fit fits[4]
    Identified found
    double lead[16]             # of the drive before the period, newest first
    double recent[16]           # last drives, newest at recent_at
    uint32_t recent_at
    double applied              # as the sample has it
    double in_force             # the output, less what is no output
    uint32_t age_ticks          # since the sample that it answers
    uint32_t lost               # samples between the last one and this
    int32_t told                # 1: by the device
    uint32_t last_age_ticks     # of the last sample
    double given[16]            # last outputs, one for each sample, lost ones too; newest at given_at
    uint32_t given_at
    double odd_current[127]     # sums over the periods with the opposite of the sequence; current and voltage hold
    double odd_voltage[127]     # those with the sequence until the excitation is over, then the mean response
    uint32_t samples[254]       # in either sum
    uint8_t missing[127]        # 1: too few of them to be used
    int32_t used                # the others
    int32_t doubted_ticks       # samples to come that are left out
    uint32_t beginnings         # of the excitation, after the first
    uint32_t settled_ticks      # samples under the output given last
    uint32_t waited_ticks       # for outputs to come into force
    uint32_t ages[16]           # samples of the excitation by age_ticks; the last: that and more
    int32_t usual_age_ticks     # their median
    double drive_size           # root mean square of the first drive

# From the output in force; current_a bounds the probe.
cdef void probe_begin(ProbeState* state, double output) noexcept nogil
# Before probe_step, where the sample says which output was in force during its period, and how many samples before it
# lies the one that this answers; lost: samples between the last one and this. Without it the output is taken to be in
# force from the next sample on.
cdef void probe_read_back(ProbeState* state, double applied, uint32_t age_ticks, uint32_t lost) noexcept nogil
# One sample -> *output. Bounded work: a few of the fit's evaluations in a tick. Returns the verdict.
cdef int32_t probe_step(ProbeState* state, const ProbeConfig* config, double current_a, double voltage_v,
                        double* output) noexcept nogil
