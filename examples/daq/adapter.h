/* A vendor's card as an ionto_rt device. adapter_daq() is for the loop; the rest is called before and after it, here
 * from Python by ctypes. Functions return 0 or -errno. */
#ifndef ACQ_ADAPTER_H
#define ACQ_ADAPTER_H

#include <stdint.h>

#include "ionto_rt/daq.h"

typedef struct adapter adapter;

typedef struct adapter_limits {
    uint32_t token;
    uint32_t session_ticks;
    int64_t charge_cap_codes;
    int32_t current_cap_code;
    int32_t output_code_min;
    int32_t output_code_max;
    uint32_t lease_max_ticks;
} adapter_limits;

typedef struct adapter_counters {
    uint32_t status;
    uint32_t token;
    uint32_t samples;
    uint32_t late;
    uint32_t lapsed;
    uint32_t refused;
    int64_t net_codes;
    int64_t absolute_codes;
} adapter_counters;

/* pacing: IONTO_PACING_DEVICE or IONTO_PACING_HOST. NULL: no such card, or no memory. */
adapter *adapter_open(const char *card, uint32_t pacing, uint64_t period_ns);
const ionto_daq *adapter_daq(const adapter *device);
int adapter_push_limits(adapter *device, const adapter_limits *limits);
int adapter_arm(adapter *device, uint32_t token);
void adapter_disarm(adapter *device);
void adapter_count(adapter *device, adapter_counters *counters);
void adapter_close(adapter *device);
/* For the tests: acq_patient of the card. */
void adapter_patient(adapter *device, double *net_charge_c, double *current_a, uint32_t *watchdog_openings);

#endif
