/* Between the vendor's calls and struct ionto_daq.
 *
 * What a device of its own firmware does below the host, a bare card leaves to this file: leases, caps and output
 * limits. The thread `lease_keeper` switches off when commands stop while this process lives. It cannot when the process
 * or the computer hangs: for that every accepted command moves the card's watchdog line, and a circuit outside the
 * computer opens the relay when the line stands still. Without such a circuit do not connect a person. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "adapter.h"
#include "vendor.h"

enum {
    BATCH = 64,
    WRITES = 128,                   /* that can wait for their scan: more than the card's memory has batches */
    RELAY_AFTER_NS = 10000000       /* the relay parts no current: it opens so long after the output went to zero */
};
#define NO_INDEX UINT32_MAX
#define LATCHED (IONTO_STATUS_LEASE_EXPIRED | IONTO_STATUS_OVER_CURRENT | IONTO_STATUS_CHARGE_CAP | IONTO_STATUS_TIME_CAP)

/* A write and the sample behind which it acts. */
struct written {
    uint64_t acts_at;
    uint32_t index;
    int32_t code;
    uint16_t status;
};

struct adapter {
    ionto_daq daq;
    acq_card *card;
    uint64_t period_ns;
    adapter_limits limits;
    /* The loop's thread and lease_keeper: whoever writes to the card holds it, and for no longer than that. */
    pthread_mutex_t output;
    pthread_cond_t changed;
    pthread_t keeper;
    int armed;
    uint64_t lease_until_ns;        /* 0: none runs */
    uint32_t latched;               /* IONTO_STATUS_* */
    uint64_t latched_at;            /* the first sample behind this one shows it */
    uint32_t lines;
    adapter_counters counters;
    /* The loop's thread alone while armed. */
    uint64_t next;                  /* sample period after the newest sample, from 0 */
    uint64_t sampled_ns;            /* host-paced: when the newest was taken */
    uint64_t started_ns;
    uint32_t answered;
    int answered_any;
    struct written writes[WRITES], in_force;
    uint32_t first_write, write_count;
    int waiting;                    /* host-paced: the next period may begin, and `command` acts in it */
    ionto_command command;          /* of a lease of 0: the last one was refused */
};

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int error_of(int acq)
{
    return acq == ACQ_E_TIMEOUT ? -ETIMEDOUT : acq == ACQ_E_NO_DEVICE ? -ENODEV : -EIO;
}

/* A nonce that can be worked out again when it comes back. */
static uint16_t nonce_of(uint32_t index)
{
    return (uint16_t)(index * 40503u + 0x5AA5u);
}

/* With `output` held: to zero at once, and to `latched`. The relay follows in lease_keeper. */
static void let_go(adapter *device, uint32_t why)
{
    uint64_t scan;
    if (device->latched & LATCHED)
        return;
    device->latched |= why;
    device->counters.lapsed += (why & IONTO_STATUS_LEASE_EXPIRED) != 0;
    acq_write(device->card, 0.0, device->lines, &scan);
    device->latched_at = device->daq.pacing == IONTO_PACING_DEVICE ? scan : (uint64_t)device->counters.samples - 1u;
    device->lease_until_ns = clock_ns() + RELAY_AFTER_NS;
    pthread_cond_signal(&device->changed);
}

/* Waits for the lease in force to run out, and for the relay's turn after that. */
static void *lease_keeper(void *context)
{
    adapter *device = context;
    struct timespec until;
    uint64_t scan;
    pthread_mutex_lock(&device->output);
    while (device->armed) {
        if (device->lease_until_ns == 0) {
            pthread_cond_wait(&device->changed, &device->output);
        } else if (clock_ns() < device->lease_until_ns) {
            until.tv_sec = (time_t)(device->lease_until_ns / 1000000000u);
            until.tv_nsec = (long)(device->lease_until_ns % 1000000000u);
            pthread_cond_timedwait(&device->changed, &device->output, &until);
        } else if (device->latched & LATCHED) {
            device->lines &= ~(uint32_t)ACQ_LINE_RELAY;
            acq_write(device->card, 0.0, device->lines, &scan);
            device->lease_until_ns = 0;
        } else {
            let_go(device, IONTO_STATUS_LEASE_EXPIRED);
        }
    }
    pthread_mutex_unlock(&device->output);
    return NULL;
}

/* Puts a command out. `period`: the newest sample period. */
static int act(adapter *device, const ionto_command *command, uint64_t period)
{
    struct written done;
    uint64_t scan, until_ns;
    int result;
    int32_t code = command->code;
    done.index = command->index;
    done.status = 0;
    if (code < device->limits.output_code_min || code > device->limits.output_code_max) {
        code = code < 0 ? device->limits.output_code_min : device->limits.output_code_max;
        done.status |= IONTO_STATUS_CLAMPED;
    }
    done.code = code;
    pthread_mutex_lock(&device->output);
    if (device->latched & LATCHED) {
        pthread_mutex_unlock(&device->output);
        return 0;
    }
    device->lines ^= ACQ_LINE_WATCHDOG;
    device->lines &= ~(uint32_t)ACQ_LINE_RELAY;
    if (command->flags & IONTO_COMMAND_CLOSE_RELAY)
        device->lines |= ACQ_LINE_RELAY;
    result = acq_write(device->card, code * ACQ_COUNT_V, device->lines, &scan);
    done.acts_at = device->daq.pacing == IONTO_PACING_DEVICE ? scan : period;
    /* lease_keeper looks again when what it waits for has passed; it must hear of what comes sooner. */
    until_ns = clock_ns() + command->lease_ticks * device->period_ns;
    if (device->daq.pacing == IONTO_PACING_DEVICE)
        until_ns += device->period_ns;      /* it acts at the latest one period from now */
    if (device->lease_until_ns == 0 || until_ns < device->lease_until_ns)
        pthread_cond_signal(&device->changed);
    device->lease_until_ns = until_ns;
    if (done.acts_at > (uint64_t)command->index + 1u) {
        done.status |= IONTO_STATUS_LATE;
        device->counters.late++;
    }
    pthread_mutex_unlock(&device->output);
    if (result != ACQ_OK)
        return error_of(result);
    if (device->write_count == WRITES) {
        device->first_write = (device->first_write + 1u) % WRITES;
        device->write_count--;
    }
    device->writes[(device->first_write + device->write_count++) % WRITES] = done;
    return 0;
}

/* Counts, checks and fills in one sample; `lost` periods before it were not read and count as it does. */
static void convert(adapter *device, const acq_scan *scan, uint64_t period, uint64_t lost, ionto_sample *sample)
{
    int64_t charge;
    uint32_t status = 0;
    while (device->write_count && device->writes[device->first_write].acts_at < period) {
        device->in_force = device->writes[device->first_write];
        device->first_write = (device->first_write + 1u) % WRITES;
        device->write_count--;
    }
    memset(sample, 0, sizeof(*sample));
    sample->index = (uint32_t)period;
    sample->device_time_us = (uint32_t)((device->daq.pacing == IONTO_PACING_DEVICE ? (period + 1) * device->period_ns
                                                                                   : clock_ns() - device->started_ns) /
                                        1000u);
    sample->nonce = nonce_of(sample->index);
    sample->current_code = (int32_t)lrint(scan->volts[0] / ACQ_COUNT_V);
    sample->redundant_code = (int32_t)lrint(scan->volts[1] / ACQ_COUNT_V);
    sample->voltage_code = (int32_t)lrint(scan->volts[2] / ACQ_COUNT_V);
    charge = (int64_t)sample->current_code * 65536 * (int64_t)(1 + lost);
    if (scan->lines & ACQ_LINE_CONTACT)
        status |= IONTO_STATUS_RELAY_CLOSED;
    if (scan->lines & ACQ_LINE_LIMIT)
        status |= IONTO_STATUS_COMPLIANCE;
    status |= device->in_force.status;

    pthread_mutex_lock(&device->output);
    device->counters.samples = sample->index + 1u;
    device->counters.net_codes += charge;
    device->counters.absolute_codes += charge < 0 ? -charge : charge;
    if (abs(sample->current_code) >= device->limits.current_cap_code ||
        abs(sample->redundant_code) >= device->limits.current_cap_code)
        let_go(device, IONTO_STATUS_OVER_CURRENT);
    else if (device->counters.absolute_codes >= device->limits.charge_cap_codes)
        let_go(device, IONTO_STATUS_CHARGE_CAP);
    else if (device->counters.samples >= device->limits.session_ticks)
        let_go(device, IONTO_STATUS_TIME_CAP);
    sample->charge_codes = device->counters.net_codes;
    if (period > device->latched_at)
        status |= device->latched;
    pthread_mutex_unlock(&device->output);

    sample->status = (uint16_t)status;
    sample->applied_index = device->in_force.index;
    sample->applied_code = status & LATCHED ? 0 : device->in_force.code;
}

static int32_t receive_timed(adapter *device, ionto_sample *samples, uint32_t most, int64_t timeout_us)
{
    acq_scan scans[BATCH];
    uint32_t count, k;
    int result = acq_read(device->card, scans, most < BATCH ? most : BATCH, timeout_us, &count);
    if (result == ACQ_E_TIMEOUT)
        return 0;
    if (result != ACQ_OK)
        return error_of(result);
    for (k = 0; k < count; k++) {
        convert(device, &scans[k], scans[k].number, scans[k].number - device->next, &samples[k]);
        device->next = scans[k].number + 1;
    }
    return (int32_t)count;
}

static int32_t receive_now(adapter *device, ionto_sample *sample, int64_t timeout_us)
{
    acq_scan scan;
    struct timespec pause;
    uint64_t now_ns, periods = 1;
    int result;
    if (device->next && !device->waiting) {
        /* Nobody has sent anything: no new period begins. */
        pause.tv_sec = (time_t)(timeout_us / 1000000);
        pause.tv_nsec = (long)(timeout_us % 1000000 * 1000);
        nanosleep(&pause, NULL);
        return 0;
    }
    result = acq_read_now(device->card, &scan);
    if (result != ACQ_OK)
        return error_of(result);
    now_ns = clock_ns();
    if (device->next) {
        periods = (now_ns - device->sampled_ns + device->period_ns / 2) / device->period_ns;
        periods = periods ? periods : 1;
    } else
        device->started_ns = now_ns;
    device->sampled_ns = now_ns;
    convert(device, &scan, device->next + periods - 1, periods - 1, sample);
    device->next += periods;
    if (device->waiting) {
        device->waiting = 0;
        if (device->command.lease_ticks)
            result = act(device, &device->command, device->next - 1);
    }
    return result ? result : 1;
}

static int32_t receive(void *context, ionto_sample *samples, uint32_t most, int64_t timeout_us)
{
    adapter *device = context;
    if (most == 0)
        return 0;
    if (device->daq.pacing == IONTO_PACING_DEVICE)
        return receive_timed(device, samples, most, timeout_us);
    return receive_now(device, samples, timeout_us);
}

static int32_t send(void *context, const ionto_command *command)
{
    adapter *device = context;
    uint32_t age = (uint32_t)device->next - 1u - command->index;
    device->waiting = 1;
    if (command->token != device->limits.token || command->nonce != nonce_of(command->index) ||
        age > device->limits.lease_max_ticks || command->lease_ticks == 0 ||
        command->lease_ticks > device->limits.lease_max_ticks ||
        (device->answered_any && (int32_t)(command->index - device->answered) <= 0)) {
        device->command.lease_ticks = 0;
        pthread_mutex_lock(&device->output);
        device->counters.refused++;
        pthread_mutex_unlock(&device->output);
        return 0;
    }
    device->answered = command->index;
    device->answered_any = 1;
    device->command = *command;
    return device->daq.pacing == IONTO_PACING_DEVICE ? act(device, command, 0) : 0;
}

adapter *adapter_open(const char *card, uint32_t pacing, uint64_t period_ns)
{
    pthread_mutexattr_t kind;
    pthread_condattr_t clock;
    adapter *device = calloc(1, sizeof(*device));
    if (device == NULL || acq_open(card, &device->card) != ACQ_OK) {
        free(device);
        return NULL;
    }
    device->period_ns = period_ns;
    device->daq.version = IONTO_DAQ_VERSION;
    device->daq.size = sizeof(ionto_daq);
    device->daq.context = device;
    device->daq.channels = 1;
    device->daq.pacing = pacing;
    device->daq.receive = receive;
    device->daq.send = send;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&device->output, &kind);
    pthread_mutexattr_destroy(&kind);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&device->changed, &clock);
    pthread_condattr_destroy(&clock);
    return device;
}

const ionto_daq *adapter_daq(const adapter *device)
{
    return &device->daq;
}

int adapter_push_limits(adapter *device, const adapter_limits *limits)
{
    if (device->armed)
        return -EBUSY;
    if (limits->token == 0 || limits->session_ticks == 0 || limits->charge_cap_codes <= 0 ||
        limits->current_cap_code <= 0 || limits->output_code_min > 0 || limits->output_code_max < 0 ||
        limits->output_code_min < -32767 || limits->output_code_max > 32767 || limits->lease_max_ticks == 0 ||
        limits->lease_max_ticks * device->period_ns > 100000000u)
        return -EINVAL;
    device->limits = *limits;
    return 0;
}

int adapter_arm(adapter *device, uint32_t token)
{
    uint64_t scan;
    int result;
    if (device->armed)
        return -EBUSY;
    if (token == 0 || token != device->limits.token)
        return -EPERM;
    memset(&device->counters, 0, sizeof(device->counters));
    device->counters.token = token;
    device->latched = device->lines = 0;
    device->lease_until_ns = 0;
    device->next = 0;
    device->answered_any = device->waiting = 0;
    device->first_write = device->write_count = 0;
    memset(&device->in_force, 0, sizeof(device->in_force));
    device->in_force.index = NO_INDEX;
    result = acq_write(device->card, 0.0, 0, &scan);
    if (result == ACQ_OK && device->daq.pacing == IONTO_PACING_DEVICE)
        result = acq_start(device->card, device->period_ns);
    if (result != ACQ_OK)
        return error_of(result);
    device->armed = 1;
    result = pthread_create(&device->keeper, NULL, lease_keeper, device);
    if (result) {
        device->armed = 0;
        acq_stop(device->card);
    }
    return -result;
}

void adapter_disarm(adapter *device)
{
    uint64_t scan;
    if (!device->armed)
        return;
    pthread_mutex_lock(&device->output);
    device->armed = 0;
    acq_stop(device->card);
    acq_write(device->card, 0.0, 0, &scan);
    pthread_cond_signal(&device->changed);
    pthread_mutex_unlock(&device->output);
    pthread_join(device->keeper, NULL);
    device->limits.token = 0;
}

void adapter_count(adapter *device, adapter_counters *counters)
{
    pthread_mutex_lock(&device->output);
    *counters = device->counters;
    counters->status = device->latched;
    pthread_mutex_unlock(&device->output);
}

void adapter_close(adapter *device)
{
    adapter_disarm(device);
    pthread_cond_destroy(&device->changed);
    pthread_mutex_destroy(&device->output);
    acq_close(device->card);
    free(device);
}

void adapter_patient(adapter *device, double *net_charge_c, double *current_a, uint32_t *watchdog_openings)
{
    acq_patient(device->card, net_charge_c, current_a, watchdog_openings);
}
