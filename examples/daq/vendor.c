/* Simulation behind vendor.h: the card, and wired to it a voltage-controlled current source, a relay, and a patient of
 * 600 ohm + (20 kohm || 100 nF).
 *
 *   output 0      +-10 V -> +-4 mA, up to 40 V
 *   input 0, 1    current by two shunts, 0.5 mA/V; the second reads 0.1 % high
 *   input 2       voltage of the active against the return terminal, 5 V/V
 *   line relay    closes the relay; its second contact is line contact
 *   line watchdog a retriggerable monostable of 100 ms in series with the relay's coil: without an edge for so long the
 *                 relay opens, whatever the computer does
 *   line limit    the current source is at its voltage limit
 *
 * Nothing runs in the background: each call first brings the simulation up to the clock, event by event. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vendor.h"

enum { FIFO_SCANS = 4096 };
#define MONOSTABLE_NS 100000000u
#define SOURCE_A_PER_V 0.4e-3
#define SOURCE_LIMIT_V 40.0
#define SHUNT_A_PER_V 0.5e-3
#define DIVIDER_V_PER_V 5.0
#define SERIES_OHM 600.0
#define PARALLEL_OHM 20e3
#define CAPACITANCE_F 100e-9

struct acq_card {
    pthread_mutex_t lock;
    uint64_t now_ns;                /* up to here everything has happened */
    uint64_t started_ns, period_ns; /* of timed acquisition; 0: not running */
    uint64_t scans, taken;          /* since acq_start; taken: read by the host */
    int overrun;
    double output_v, pending_v;
    uint32_t lines, pending_lines;
    int pending;
    uint64_t edge_ns;               /* of the watchdog line */
    int coil;                       /* the monostable lets the relay be closed */
    uint32_t openings;
    double capacitor_v, net_charge_c;
    uint64_t noise;
    acq_scan fifo[FIFO_SCANS];
};

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int relay_closed(const acq_card *card)
{
    return card->coil && (card->lines & ACQ_LINE_RELAY);
}

static double current_a(const acq_card *card, int *limited)
{
    double asked = card->output_v * SOURCE_A_PER_V;
    double most = (SOURCE_LIMIT_V - card->capacitor_v) / SERIES_OHM;
    double least = (-SOURCE_LIMIT_V - card->capacitor_v) / SERIES_OHM;
    *limited = relay_closed(card) && (asked > most || asked < least);
    if (!relay_closed(card))
        return 0.0;
    return asked > most ? most : asked < least ? least : asked;
}

static void run_patient(acq_card *card, uint64_t until_ns)
{
    int limited;
    double dt = (double)(until_ns - card->now_ns) * 1e-9, i = current_a(card, &limited);
    double end_v = i * PARALLEL_OHM;
    card->capacitor_v = end_v + (card->capacitor_v - end_v) * exp(-dt / (PARALLEL_OHM * CAPACITANCE_F));
    card->net_charge_c += i * dt;
    card->now_ns = until_ns;
}

static double converted(acq_card *card, double volts)
{
    double noise, counts;
    card->noise ^= card->noise << 13;
    card->noise ^= card->noise >> 7;
    card->noise ^= card->noise << 17;
    noise = (double)(card->noise >> 11) / 9007199254740992.0 - 0.5;
    counts = rint(volts / ACQ_COUNT_V + noise);
    return (counts > 32767.0 ? 32767.0 : counts < -32768.0 ? -32768.0 : counts) * ACQ_COUNT_V;
}

static void take(acq_card *card, acq_scan *scan)
{
    int limited;
    double i = current_a(card, &limited);
    double v = relay_closed(card) ? i * SERIES_OHM + card->capacitor_v : 0.0;
    scan->number = card->scans;
    scan->volts[0] = converted(card, i / SHUNT_A_PER_V);
    scan->volts[1] = converted(card, i / SHUNT_A_PER_V * 1.001);
    scan->volts[2] = converted(card, v / DIVIDER_V_PER_V);
    scan->lines = (card->lines & (ACQ_LINE_RELAY | ACQ_LINE_WATCHDOG)) | (relay_closed(card) ? ACQ_LINE_CONTACT : 0u) |
                  (limited ? ACQ_LINE_LIMIT : 0u);
}

static void put_out(acq_card *card, double volts, uint32_t lines)
{
    if ((lines ^ card->lines) & ACQ_LINE_WATCHDOG) {
        card->edge_ns = card->now_ns;
        card->coil = 1;
    }
    card->output_v = volts;
    card->lines = lines;
}

static void catch_up(acq_card *card, uint64_t until_ns)
{
    for (;;) {
        uint64_t scan_ns = card->period_ns ? card->started_ns + (card->scans + 1) * card->period_ns : UINT64_MAX;
        uint64_t open_ns = card->coil ? card->edge_ns + MONOSTABLE_NS : UINT64_MAX;
        uint64_t next_ns = scan_ns < open_ns ? scan_ns : open_ns;
        if (next_ns > until_ns)
            break;
        run_patient(card, next_ns);
        if (next_ns == open_ns) {
            card->openings += (uint32_t)relay_closed(card);
            card->coil = 0;
            continue;
        }
        if (card->scans - card->taken >= FIFO_SCANS)
            card->overrun = 1;
        else
            take(card, &card->fifo[card->scans % FIFO_SCANS]);
        card->scans++;
        if (card->pending) {
            card->pending = 0;
            put_out(card, card->pending_v, card->pending_lines);
        }
    }
    run_patient(card, until_ns);
}

static void enter(acq_card *card)
{
    uint64_t now_ns;
    pthread_mutex_lock(&card->lock);
    now_ns = clock_ns();
    if (now_ns > card->now_ns)
        catch_up(card, now_ns);
}

static void leave(acq_card *card)
{
    pthread_mutex_unlock(&card->lock);
}

int acq_open(const char *name, acq_card **card)
{
    pthread_mutexattr_t kind;
    if (name == NULL || card == NULL)
        return ACQ_E_PARAMETER;
    if (strcmp(name, "Acq1") != 0)
        return ACQ_E_NO_DEVICE;
    *card = calloc(1, sizeof(**card));
    if (*card == NULL)
        return ACQ_E_NO_DEVICE;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&(*card)->lock, &kind);
    pthread_mutexattr_destroy(&kind);
    (*card)->now_ns = clock_ns();
    (*card)->noise = 0x9E3779B97F4A7C15u;
    return ACQ_OK;
}

void acq_close(acq_card *card)
{
    pthread_mutex_destroy(&card->lock);
    free(card);
}

int acq_start(acq_card *card, uint64_t period_ns)
{
    int result = ACQ_OK;
    enter(card);
    if (card->period_ns)
        result = ACQ_E_STATE;
    else if (period_ns < 10000)
        result = ACQ_E_PARAMETER;
    else {
        card->started_ns = card->now_ns;
        card->period_ns = period_ns;
        card->scans = card->taken = 0;
        card->overrun = card->pending = 0;
    }
    leave(card);
    return result;
}

int acq_stop(acq_card *card)
{
    enter(card);
    card->period_ns = 0;
    if (card->pending) {
        card->pending = 0;
        put_out(card, card->pending_v, card->pending_lines);
    }
    leave(card);
    return ACQ_OK;
}

int acq_read(acq_card *card, acq_scan *scans, uint32_t most, int64_t timeout_us, uint32_t *count)
{
    uint64_t until_ns = clock_ns() + (uint64_t)timeout_us * 1000u, next_ns;
    struct timespec next;
    int result = ACQ_E_TIMEOUT;
    *count = 0;
    for (;;) {
        enter(card);
        if (card->overrun || !card->period_ns) {
            result = card->overrun ? ACQ_E_OVERRUN : ACQ_E_STATE;
            leave(card);
            return result;
        }
        while (*count < most && card->taken < card->scans) {
            scans[(*count)++] = card->fifo[card->taken++ % FIFO_SCANS];
            result = ACQ_OK;
        }
        next_ns = card->started_ns + (card->scans + 1) * card->period_ns;
        leave(card);
        if (result == ACQ_OK || next_ns > until_ns)
            return result;
        next.tv_sec = (time_t)(next_ns / 1000000000u);
        next.tv_nsec = (long)(next_ns % 1000000000u);
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
}

int acq_read_now(acq_card *card, acq_scan *scan)
{
    int result = ACQ_OK;
    enter(card);
    if (card->period_ns)
        result = ACQ_E_STATE;
    else {
        take(card, scan);
        card->scans++;
    }
    leave(card);
    return result;
}

int acq_write(acq_card *card, double volts, uint32_t lines, uint64_t *scan)
{
    if (!(volts >= -10.0 && volts <= 10.0))
        return ACQ_E_PARAMETER;
    enter(card);
    *scan = card->scans;
    if (card->period_ns) {
        card->pending = 1;
        card->pending_v = volts;
        card->pending_lines = lines;
    } else
        put_out(card, volts, lines);
    leave(card);
    return ACQ_OK;
}

void acq_patient(acq_card *card, double *net_charge_c, double *current, uint32_t *watchdog_openings)
{
    int limited;
    enter(card);
    *net_charge_c = card->net_charge_c;
    *current = current_a(card, &limited);
    *watchdog_openings = card->openings;
    leave(card);
}
