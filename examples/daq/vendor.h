/* A pretend vendor's library for a data acquisition card, as such libraries look. vendor.c has a simulated patient
 * where the card would be; adapter.c sees nothing of that. Every function returns 0 or an ACQ_E number below 0. */
#ifndef ACQ_VENDOR_H
#define ACQ_VENDOR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ACQ_OK = 0,
    ACQ_E_PARAMETER = -50003,
    ACQ_E_NO_DEVICE = -50010,
    ACQ_E_TIMEOUT = -50400,
    ACQ_E_OVERRUN = -50410,         /* nobody read, and the card's memory is full */
    ACQ_E_STATE = -50500
};

enum { ACQ_INPUTS = 3 };            /* analog inputs, 16 bit, +-10 V */
#define ACQ_COUNT_V (10.0 / 32768.0)

/* Digital lines, as bits. */
enum {
    ACQ_LINE_RELAY = 1,             /* out */
    ACQ_LINE_WATCHDOG = 2,          /* out */
    ACQ_LINE_CONTACT = 4,           /* in */
    ACQ_LINE_LIMIT = 8              /* in */
};

typedef struct acq_card acq_card;

typedef struct acq_scan {
    uint64_t number;                /* since acq_start, from 0 */
    double volts[ACQ_INPUTS];
    uint32_t lines;
} acq_scan;

int acq_open(const char *name, acq_card **card);
void acq_close(acq_card *card);
/* Timed acquisition: a scan each period, into the card's memory. */
int acq_start(acq_card *card, uint64_t period_ns);
int acq_stop(acq_card *card);
/* Timed: the scans that are there, at most `most`, after waiting up to timeout_us for the first. */
int acq_read(acq_card *card, acq_scan *scans, uint32_t most, int64_t timeout_us, uint32_t *count);
/* Software-timed: one scan, now. */
int acq_read_now(acq_card *card, acq_scan *scan);
/* Analog output, +-10 V, and output lines. In timed acquisition both change behind the next scan, whose number *scan
 * says; otherwise now. */
int acq_write(acq_card *card, double volts, uint32_t lines, uint64_t *scan);

/* Not in a vendor's library: what the simulated patient knows. Charge is the true one since acq_open, C; the watchdog
 * line's circuit has opened the relay `watchdog_openings` times. */
void acq_patient(acq_card *card, double *net_charge_c, double *current_a, uint32_t *watchdog_openings);

#ifdef __cplusplus
}
#endif

#endif
