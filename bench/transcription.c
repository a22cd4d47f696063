/* The arithmetic of a tick in plain C: conversion, ledger, impedance estimator, regulator.
 *
 * Written from the equations that regulator.pyx, impedance.pyx, ledger.pyx and their .pxd state, as somebody would who
 * wants nothing but them: no wire, no programme, no guard, no row. On a recorded input it must give the bits that the
 * compiled core gave, and its time per tick is the floor under the core's. Built with -O2 -ffp-contract=off.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TABLE = 1024 };
enum { BACKWARD, FORWARD, TRAPEZOIDAL };
enum { NO_ANTI_WINDUP, BACK_CALCULATION, CONDITIONAL };
enum { UNKNOWN, GOOD, LOST };

/* Fields by the names of the dicts that configure the core. */
typedef struct {
    double tick_s, kp, ki, kd, derivative_filter_s, setpoint_weight, derivative_weight, output_min, output_max;
    double slew_per_tick, tracking_s;
    int32_t delay_ticks, integration, anti_windup, free_fall;
} RegulatorConfig;

typedef struct {
    double tick_s, tone_a, electrode_emf_v, nonlinearity, voltage_noise_v, current_noise_a, open_ratio, open_floor_a;
    double open_voltage_v;
    int32_t open_any_voltage;
    uint32_t open_ticks, good_ticks, tone_period_ticks, block_ticks;
} ImpedanceConfig;

typedef struct {
    double current_lsb_a, voltage_lsb_v;
    int32_t current_offset_q16, voltage_offset_q16, code_limit;
} Calibration;

typedef struct {
    RegulatorConfig regulator;
    ImpedanceConfig impedance;
    Calibration calibration;
    double tone_cos[TABLE], tone_sin[TABLE];
} Config;

/* What a tick's three stages were given. */
typedef struct {
    int64_t device_charge_codes;
    double setpoint_a;
    double contact_setpoint_a;  /* the setpoint that the estimator judges contact by */
    double feed_forward;
    int32_t current_code, voltage_code;
    uint32_t lost_ticks;
    int32_t tone;               /* 1: on, 0: off, -1: it changed within the loop's delay, so the block is dropped */
    int32_t regulating;         /* 0: the relay is open and the regulator is reset */
    int32_t hold;
} Input;

typedef struct {
    int64_t net_codes, absolute_codes;
    double current_a, voltage_v;
    double resistance_ohm, resistance_sigma_ohm, series_ohm, series_sigma_ohm, parallel_ohm, parallel_sigma_ohm;
    double capacitance_f, capacitance_sigma_f;
    double proportional, integral, derivative, feed_forward, unlimited, output;
    uint32_t estimate_block;
    int32_t contact, saturated;
} Output;

typedef struct {
    int64_t net, absolute, device;
    /* impedance */
    uint32_t phase, fill, open_run, good_run;
    double v, i, vt, it, vc, vs, ic, is, tc, ts, vv, ii;
    /* regulator */
    double integral, derivative, derivative_input, error, last_output, setpoints[8];
    uint32_t setpoint_at;
    int32_t started;
    Output out;
} State;

static double square(double x) { return x * x; }
static double larger(double a, double b) { return b > a ? b : a; }

/* a + b and a - b, never beyond +-(2^63 - 1). */
static int64_t add(int64_t a, int64_t b) {
    if (b > 0 && a > INT64_MAX - b)
        return INT64_MAX;
    if (b < 0 && a < -INT64_MAX - b)
        return -INT64_MAX;
    return a + b;
}

static int64_t subtract(int64_t a, int64_t b) {
    if (b < 0 && a > INT64_MAX + b)
        return INT64_MAX;
    if (b > 0 && a < -INT64_MAX + b)
        return -INT64_MAX;
    return a - b;
}

static void count_charge(State *s, const Calibration *c, const Input *given) {
    int64_t codes = (int64_t)given->current_code * 65536 - c->current_offset_q16;
    if (given->lost_ticks) {
        int64_t most = (int64_t)given->lost_ticks * c->code_limit;
        int64_t lost = subtract(subtract(given->device_charge_codes, s->device), codes);
        most = most <= INT64_MAX / 65536 ? most * 65536 : INT64_MAX;
        lost = lost > most ? most : lost < -most ? -most : lost;
        s->net = add(s->net, lost);
        s->absolute = add(s->absolute, lost >= 0 ? lost : -lost);
    }
    s->net = add(s->net, codes);
    s->absolute = add(s->absolute, codes >= 0 ? codes : -codes);
    s->device = given->device_charge_codes;
}

static void clear_block(State *s) {
    s->fill = 0;
    s->v = s->i = s->vt = s->it = s->vc = s->vs = s->ic = s->is = s->tc = s->ts = s->vv = s->ii = 0.0;
}

static void fit_block(State *s, const ImpedanceConfig *c, int tone_on) {
    Output *o = &s->out;
    double n = c->block_ticks, mean_v = s->v / n, mean_i = s->i / n, half = n * 0.5;
    o->estimate_block++;
    if (mean_i == 0.0)
        return;
    double r0 = mean_v / mean_i;
    double r0_sigma = sqrt(square(c->electrode_emf_v) + square(c->voltage_noise_v) / n
                           + square(r0 * c->current_noise_a) / n) / fabs(mean_i);
    if (!(isfinite(r0) && isfinite(r0_sigma)))
        return;
    o->resistance_ohm = r0;
    o->resistance_sigma_ohm = r0_sigma;
    o->series_ohm = o->parallel_ohm = o->capacitance_f = 0.0;
    o->series_sigma_ohm = o->parallel_sigma_ohm = o->capacitance_sigma_f = 0.0;
    if (!tone_on || c->tone_a <= 0.0)
        return;

    /* Least squares on [1, t, cos, sin]: the tone is orthogonal to 1, and t is made orthogonal to the tone. */
    double tt = (n * n - 1.0) / (12.0 * n) - (square(s->tc) + square(s->ts)) / half;
    double slope_v = (s->vt - (s->tc * s->vc + s->ts * s->vs) / half) / tt;
    double slope_i = (s->it - (s->tc * s->ic + s->ts * s->is) / half) / tt;
    double vc = (s->vc - slope_v * s->tc) / half, vs = (s->vs - slope_v * s->ts) / half;
    double ic = (s->ic - slope_i * s->tc) / half, is = (s->is - slope_i * s->ts) / half;
    double size = ic * ic + is * is;
    if (size <= square(0.1 * c->tone_a))
        return;
    double noise_v = (s->vv - n * square(mean_v) - slope_v * s->vt - vc * s->vc - vs * s->vs) / (n - 4.0);
    double noise_i = (s->ii - n * square(mean_i) - slope_i * s->it - ic * s->ic - is * s->is) / (n - 4.0);
    if (!(noise_v > square(c->voltage_noise_v)))
        noise_v = square(c->voltage_noise_v);
    if (!(noise_i > square(c->current_noise_a)))
        noise_i = square(c->current_noise_a);

    /* Z = a - jb; Rs + Rp/(1 + jx) with x = w Rp C. */
    double a = (vc * ic + vs * is) / size, b = -(vc * is - vs * ic) / size;
    double noise_z = (noise_v + (a * a + b * b) * noise_i) / (half * size);
    double rise = r0 - a;
    if (!(rise > 0.0 && b > 0.0))
        return;
    double x = rise / b, w = 2.0 * M_PI / (c->tone_period_ticks * c->tick_s);
    double parallel = rise + b * b / rise, series = r0 - parallel, capacitance = x / (w * parallel);
    if (!(series > 0.0 && isfinite(parallel) && isfinite(capacitance)))
        return;
    double slope_sigma = sqrt(square(r0_sigma) + square(c->nonlinearity * r0)), low = rise - slope_sigma;
    double dx = 2.0 * x / (w * b * square(1.0 + x * x));
    double dr = square(1.0 - 1.0 / (x * x)) + square(2.0 / x);
    o->series_ohm = series;
    o->parallel_ohm = parallel;
    o->capacitance_f = capacitance;
    o->parallel_sigma_ohm = sqrt(square((1.0 - 1.0 / (x * x)) * slope_sigma) + dr * noise_z);
    o->series_sigma_ohm = sqrt(square(slope_sigma / (x * x)) + dr * noise_z);
    o->capacitance_sigma_f = sqrt(square(dx / b * slope_sigma)
                                  + (square(dx / b) + square(capacitance / b + dx * x / b)) * noise_z);
    /* At least as far as a slope resistance that is lower by its deviation would move each. */
    double series_low = low > 0.0 && a * low > b * b ? a - b * b / low : 0.0;
    double parallel_low = low > 0.0 ? low + b * b / low : 0.0;
    double capacitance_low = low > 0.0 ? low * low / (w * b * (low * low + b * b)) : 0.0;
    o->series_sigma_ohm = larger(o->series_sigma_ohm, fabs(series - series_low));
    o->parallel_sigma_ohm = larger(o->parallel_sigma_ohm, fabs(parallel - parallel_low));
    o->capacitance_sigma_f = larger(o->capacitance_sigma_f, fabs(capacitance - capacitance_low));
}

static void judge_contact(State *s, const ImpedanceConfig *c, double current, double voltage, double setpoint) {
    if (setpoint < c->open_floor_a) {
        s->open_run = s->good_run = 0;
        if (s->out.contact == GOOD)
            s->out.contact = UNKNOWN;
    } else if (current < c->open_ratio * setpoint
               && (voltage >= c->open_voltage_v || (c->open_any_voltage && s->out.contact == GOOD))) {
        s->good_run = 0;
        if (++s->open_run >= c->open_ticks)
            s->out.contact = LOST;
    } else {
        s->open_run = 0;
        s->good_run = current >= 0.5 * setpoint ? s->good_run + 1 : 0;
        if (s->good_run >= c->good_ticks)
            s->out.contact = GOOD;
    }
}

static void estimate(State *s, const Config *config, const Input *given, double i, double v) {
    const ImpedanceConfig *c = &config->impedance;
    double setpoint = given->contact_setpoint_a;
    if (given->lost_ticks || given->tone < 0) {
        clear_block(s);
        s->phase = (s->phase + given->lost_ticks) % c->tone_period_ticks;
    }
    uint32_t at = s->phase * (TABLE / c->tone_period_ticks);
    double cosine = config->tone_cos[at], sine = config->tone_sin[at];
    judge_contact(s, c, setpoint >= 0.0 ? i : -i, fabs(v), fabs(setpoint));
    if (s->out.contact == LOST) {
        clear_block(s);
    } else if (s->fill || s->phase == 0) {
        double t = (s->fill - 0.5 * (c->block_ticks - 1.0)) / c->block_ticks;
        s->v += v;
        s->i += i;
        s->vt += v * t;
        s->it += i * t;
        s->vc += v * cosine;
        s->vs += v * sine;
        s->ic += i * cosine;
        s->is += i * sine;
        s->tc += t * cosine;
        s->ts += t * sine;
        s->vv += v * v;
        s->ii += i * i;
        if (++s->fill == c->block_ticks) {
            if (fabs(s->i) > c->open_floor_a * c->block_ticks)
                fit_block(s, c, given->tone > 0);
            clear_block(s);
        }
    }
    if (++s->phase == c->tone_period_ticks)
        s->phase = 0;
}

static void regulate(State *s, const RegulatorConfig *c, const Input *given, double y) {
    Output *o = &s->out;
    double r = given->setpoint_a;
    if (!given->regulating) {
        s->integral = s->derivative = s->derivative_input = s->error = s->last_output = 0.0;
        memset(s->setpoints, 0, sizeof s->setpoints);
        s->setpoint_at = 0;
        s->started = 0;
        o->proportional = o->integral = o->derivative = o->feed_forward = o->unlimited = o->output = 0.0;
        o->saturated = 0;
        return;
    }
    uint32_t at = (s->setpoint_at + 1) & 7;
    double reference = c->delay_ticks ? s->setpoints[(at - (uint32_t)c->delay_ticks) & 7] : r;
    double error = reference - y, fed = given->feed_forward * r;
    double proportional = c->kp * (c->setpoint_weight * reference - y);
    double input = c->derivative_weight * reference - y;
    double derivative = s->started ? (c->derivative_filter_s * s->derivative + c->kd * (input - s->derivative_input))
                                         / (c->derivative_filter_s + c->tick_s) : 0.0;
    double step = c->integration == TRAPEZOIDAL ? c->ki * c->tick_s * 0.5 * (error + s->error)
                                                : c->ki * c->tick_s * error;
    if (given->hold)
        step = proportional = derivative = 0.0;
    double integral = c->integration == FORWARD ? s->integral : s->integral + step;
    double wanted = proportional + integral + derivative + fed;
    double low = c->output_min, high = c->output_max, slew = c->slew_per_tick;
    o->integral = integral;
    if (slew > 0.0) {
        double below = s->last_output - slew, above = s->last_output + slew;
        if (c->free_fall && s->last_output >= 0.0 && below > -slew)
            below = -slew;
        if (c->free_fall && s->last_output <= 0.0 && above < slew)
            above = slew;
        low = below > low ? (below < high ? below : high) : low;
        high = above < high ? (above > c->output_min ? above : c->output_min) : high;
    }
    double output = wanted > high ? high : wanted < low ? low : wanted;
    o->saturated = output == wanted ? 0 : output == c->output_max ? 1 : output == c->output_min ? -1 : 0;
    if (c->anti_windup == CONDITIONAL && (wanted - output) * step > 0.0) {
        if (c->integration != FORWARD)
            integral = s->integral;
    } else if (c->integration == FORWARD) {
        integral += step;
    }
    if (c->anti_windup == BACK_CALCULATION && c->ki != 0.0 && !given->hold)
        integral += (output - wanted) * (c->tracking_s > c->tick_s ? c->tick_s / c->tracking_s : 1.0);
    s->setpoints[at] = r;
    s->setpoint_at = at;
    s->integral = integral;
    s->derivative = derivative;
    s->derivative_input = input;
    s->error = error;
    s->last_output = output;
    s->started = 1;
    o->proportional = proportional;
    o->derivative = derivative;
    o->feed_forward = fed;
    o->unlimited = wanted;
    o->output = output;
}

size_t config_bytes(void) { return sizeof(Config); }
size_t input_bytes(void) { return sizeof(Input); }
size_t output_bytes(void) { return sizeof(Output); }

static void convert(Output *o, const Calibration *c, const Input *given) {
    o->current_a = (given->current_code - c->current_offset_q16 / 65536.0) * c->current_lsb_a;
    o->voltage_v = (given->voltage_code - c->voltage_offset_q16 / 65536.0) * c->voltage_lsb_v;
}

/* n ticks from a fresh state; every term of each into out, or of the last alone if all is 0. */
void run_ticks(const Config *config, const Input *given, size_t n, Output *out, int all) {
    State s = {0};
    for (size_t k = 0; k < n; k++) {
        convert(&s.out, &config->calibration, &given[k]);
        count_charge(&s, &config->calibration, &given[k]);
        estimate(&s, config, &given[k], s.out.current_a, s.out.voltage_v);
        regulate(&s, &config->regulator, &given[k], s.out.current_a);
        s.out.net_codes = s.net;
        s.out.absolute_codes = s.absolute;
        if (all)
            out[k] = s.out;
    }
    out[all ? n - 1 : 0] = s.out;
}

/* One stage alone: of the readings it takes those of `out`, one for each tick. */
void run_ledger(const Config *config, const Input *given, size_t n, const Output *out, Output *last) {
    State s = {0};
    (void)out;
    for (size_t k = 0; k < n; k++)
        count_charge(&s, &config->calibration, &given[k]);
    *last = s.out;
    last->net_codes = s.net;
}

void run_estimator(const Config *config, const Input *given, size_t n, const Output *out, Output *last) {
    State s = {0};
    for (size_t k = 0; k < n; k++)
        estimate(&s, config, &given[k], out[k].current_a, out[k].voltage_v);
    *last = s.out;
}

void run_regulator(const Config *config, const Input *given, size_t n, const Output *out, Output *last) {
    State s = {0};
    for (size_t k = 0; k < n; k++)
        regulate(&s, &config->regulator, &given[k], out[k].current_a);
    *last = s.out;
}
