/* A device that is called, not spoken to: what a vendor's library must be wrapped into to be the device in the loop.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Fill an ionto_daq, keep it in memory for as long as a loop may call it, and hand its address to
 * ionto_rt.device.daq_capsule(); the capsule is what ionto_rt.core.loop.Loop takes as its port. C11 and C++11; this
 * header needs no library. Find it with python -c "import ionto_rt; print(ionto_rt.get_include())".
 *
 * Threads. The loop calls receive and send from one thread, never both at once, and that thread does not hold Python's
 * global lock. Neither function may allocate or free memory, open or close files, write to a log, call Python, or wait
 * for anything but the device: receive for its next sample, at most timeout_us; send for as long as one write to the
 * device takes. Everything else (opening, limits, arming, disarming, closing) happens outside the loop, before it runs
 * and after it has returned, in whatever thread.
 *
 * Codes. Currents and voltages are converter counts, value = (code - offset_q16 / 65536) * lsb, with the offsets and
 * scales that the device's hello says. The record keeps codes, charge is an integer sum of them, and a calibration can
 * be corrected afterwards. A library that gives volts: divide by the size of a count and round to nearest.
 *
 * Growth. ionto_daq grows at its end only, and size says how much of it its maker knew: set it to sizeof(ionto_daq).
 * ionto_sample and ionto_command lie in arrays, so that they cannot grow: if they change, or if a field changes its
 * meaning, IONTO_DAQ_VERSION does. A loop refuses a version that it does not know before it calls anything.
 */
#ifndef IONTO_RT_DAQ_H
#define IONTO_RT_DAQ_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Name of the PyCapsule whose pointer is an ionto_daq. */
#define IONTO_DAQ_CAPSULE "ionto_rt.core.types.Daq"

enum {
    IONTO_DAQ_VERSION = 1,
    IONTO_MAX_CHANNELS = 32
};

/* ionto_daq.pacing: one of these, the one that the loop is told. */
enum {
    IONTO_PACING_DEVICE = 1,        /* the device's clock sets the sample periods; receive waits for it */
    IONTO_PACING_HOST = 2,          /* the loop's clock does; each send is followed by one receive, which reads */
    IONTO_PACING_LOCK_STEP = 4      /* simulations: one sample for each send, on a clock that stands still otherwise */
};

/* Bits of ionto_sample.status. Those called latched stay until the device is armed again, with the output at zero and
 * the relay open. */
enum {
    IONTO_STATUS_RELAY_CLOSED = 1,
    IONTO_STATUS_COMPLIANCE = 2,    /* the output stage is at its voltage limit */
    IONTO_STATUS_LEASE_EXPIRED = 4, /* a command was not renewed within its lease; latched */
    IONTO_STATUS_OVER_CURRENT = 8,  /* the device's own current cap acted; latched */
    IONTO_STATUS_CHARGE_CAP = 16,   /* its own charge cap; latched */
    IONTO_STATUS_TIME_CAP = 32,     /* its own cap on the time of a session; latched */
    IONTO_STATUS_CLAMPED = 64,      /* the command in force was beyond the output limits and was clamped to them */
    IONTO_STATUS_LATE = 128,        /* the command in force acted later than one period after the sample it answers */
    /* From here on what a device has a sensor for; zero without one. Debounced and filtered: the host acts on
     * PATIENT_STOP in two samples in a row, on the others in one. */
    IONTO_STATUS_PATIENT_STOP = 256,        /* the patient's stop button is held down */
    IONTO_STATUS_LEAKAGE = 512,             /* leakage beyond the device's limit: it has switched off; latched */
    IONTO_STATUS_SUPPLY_WARNING = 1024,     /* supply below its reserve; it lasts for more than 3 minutes */
    IONTO_STATUS_SUPPLY_LOW = 2048,         /* less than 3 minutes of supply left */
    IONTO_STATUS_OVER_TEMPERATURE = 4096,   /* a pad above 41 C or the board above 55 C */
    IONTO_STATUS_SELF_TEST_FAILED = 8192,   /* the power-on self-test failed: the device closes no relay */
    IONTO_STATUS_SPEAKER_FAULT = 16384      /* the alarm's sound did not come back in the loop-back */
};

/* Bits of ionto_command.flags; others are zero. */
enum {
    IONTO_COMMAND_CLOSE_RELAY = 1   /* clear: open it */
};

/* One sample of one channel, all readings of one instant. */
typedef struct ionto_sample {
    uint32_t index;                 /* sample periods since arming, from 0, modulo 2^32; one that is missing is lost */
    uint32_t device_time_us;        /* of the device's own clock, us, modulo 2^32; the guard compares it with the host's */
    uint32_t applied_index;         /* index answered by the command in force; 0xFFFFFFFF before the first */
    uint16_t nonce;                 /* any number; the command that answers this sample echoes it */
    uint16_t status;                /* IONTO_STATUS_* */
    int32_t current_code;           /* current out of the active terminal, beyond +-code_limit of the hello a fault */
    int32_t redundant_code;         /* the same by a second, independent reading; the guard goes by it alone */
    int32_t voltage_code;           /* of the active against the return terminal */
    int32_t applied_code;           /* output code in force while this sample was taken */
    int64_t charge_codes;           /* net charge since arming: the sum over all sample periods, lost ones too, of
                                       65536 * current_code - current_offset_q16, in 1/65536 code */
    int32_t sentinel_code;          /* voltage of the active terminal against the sentinel electrode; 0 without one */
} ionto_sample;

/* What the loop wants of one channel. */
typedef struct ionto_command {
    uint32_t index;                 /* of the sample that it answers */
    uint32_t token;                 /* of the session, as it was armed; never 0 */
    uint16_t nonce;                 /* of that sample */
    uint16_t lease_ticks;           /* sample periods that it holds, from when it acts; 1 to the limits' most. Then the
                                       output goes to zero and the relay opens, whether or not anybody calls */
    uint8_t flags;                  /* IONTO_COMMAND_* */
    int32_t code;                   /* output code: current or voltage, as the hello's front-end says */
} ionto_command;

/* A device. When: sample k is taken at the beginning of period k; the command that answers it acts right behind the
 * taking of sample k + 1, so that sample k + 2 is the first to show it. A device whose commands always act otherwise
 * works as well (the contact check finds delays of 1 to 12 periods), one on which they act now so, now so, does not.
 */
typedef struct ionto_daq {
    uint32_t version;               /* IONTO_DAQ_VERSION */
    uint32_t size;                  /* sizeof(ionto_daq) */
    void *context;                  /* handed to both functions; the loop does not touch it */
    uint32_t channels;              /* 1 to IONTO_MAX_CHANNELS */
    uint32_t pacing;                /* one of IONTO_PACING_* */
    /* Fills in up to `most` sample periods of `channels` samples each: period by period, in each channel by channel,
     * oldest first. All samples of a period have one index. Returns how many periods: as many as are there, after
     * waiting up to timeout_us for the first; 0 if none came, which is an error after half a second of it; or -errno if
     * the device is gone, which ends the session: -ENODEV, or -EIO for what the library calls otherwise.
     * Host-paced: one period, which begins now, after each send; the first call, after arming, gives sample 0. If n
     * periods of the clock have passed since the last one (to the nearest, at least 1), index advances by n. */
    int32_t (*receive)(void *context, ionto_sample *samples, uint32_t most, int64_t timeout_us);
    /* Takes one command for each channel, all of them the answer to the newest sample. Returns 0, also for a command
     * that the device refuses (another token, a nonce or index that is not of a sample just given, a lease of 0 or too
     * long): what was in force stays, and its lease runs on. -ETIMEDOUT if the device took nothing this time; any other
     * -errno if it is gone. */
    int32_t (*send)(void *context, const ionto_command *commands);
} ionto_daq;

#ifdef __cplusplus
}
#endif

#endif
