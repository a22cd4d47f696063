/* The arithmetic of a tick in plain C: conversion, ledger, impedance estimator, regulator.
 *
 * Written from the equations that the .pyx files state, as somebody would who wants nothing but them: no wire, no
 * programme, no contact check, no guard, no row. On a recorded input it must give the bits that the compiled core gave,
 * and its time per tick is the floor under the core's. core.h is made of the .pxd files by bench_support.py.
 */
#include "transcription.h"

#include <math.h>
#include <string.h>

#include "core.h"

#include "estimator.c"
#include "predictive.c"

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

static void count_charge(Ledger *l, const Sample *sample, uint32_t lost_ticks, const Calibration *c) {
    int64_t codes = (int64_t)sample->current_code * 65536 - c->current_offset_q16;
    if (lost_ticks) {
        int64_t most = (int64_t)lost_ticks * c->code_limit;
        int64_t lost = subtract(subtract(sample->charge_codes, l->device_net_codes), codes);
        most = most <= INT64_MAX / 65536 ? most * 65536 : INT64_MAX;
        lost = lost > most ? most : lost < -most ? -most : lost;
        l->net_codes = add(l->net_codes, lost);
        l->absolute_codes = add(l->absolute_codes, lost >= 0 ? lost : -lost);
        l->booked_codes = add(l->booked_codes, lost);
    }
    l->net_codes = add(l->net_codes, codes);
    l->absolute_codes = add(l->absolute_codes, codes >= 0 ? codes : -codes);
    l->device_net_codes = sample->charge_codes;
    l->ticks += lost_ticks + 1;
}

/* The contact check is over: its plant goes to the regulator, its load into the estimate. */
static void take_load(ImpedanceState *s, const ImpedanceConfig *g, PredictiveState *r, const Identified *found,
                      double output, double current) {
    Estimate *e = &s->estimate;
    e->resistance_ohm = found->resistance_ohm;
    e->resistance_sigma_ohm = found->resistance_sigma_ohm;
    e->series_ohm = found->series_ohm;
    e->series_sigma_ohm = found->series_sigma_ohm;
    e->parallel_ohm = found->parallel_ohm;
    e->parallel_sigma_ohm = found->parallel_sigma_ohm;
    e->capacitance_f = found->capacitance_f;
    e->capacitance_sigma_f = found->capacitance_sigma_f;
    if (found->parallel_ohm > 0.0 && found->capacitance_f > 0.0)
        choose_tones(s, g, 1.0 / (6.283185307179586 * found->parallel_ohm * found->capacitance_f));
    begin(r, &found->model, output, found->null_output, current);
}

void c_ledger_step(void *ledger, const void *sample, uint32_t lost_ticks, const void *calibration) {
    count_charge(ledger, sample, lost_ticks, calibration);
}

void c_impedance_break(void *state, const void *config, uint32_t lost_ticks) { break_block(state, config, lost_ticks); }

void c_impedance_step(void *state, const void *config, double current_a, double voltage_v, double setpoint_a,
                      int32_t tone_on) {
    estimate(state, config, current_a, voltage_v, setpoint_a, tone_on);
}

void c_predictive_applied(void *state, double output, int32_t ticks) { applied(state, output, ticks); }

void c_predictive_step(void *state, const void *config, double setpoint_a, double tone_a, double measured_a,
                       double voltage_v, int32_t at_limit, void *terms) {
    regulate(state, config, setpoint_a, tone_a, measured_a, voltage_v, at_limit, terms);
}

void c_tick(const void *calibration, const void *impedance, const void *predictive, const void *identified,
            const void *reading, const StageInput *given, void *ledger, void *estimator, void *regulator, void *terms,
            double *current_a, double *voltage_v) {
    const Calibration *c = calibration;
    const ImpedanceConfig *g = impedance;
    const Sample *sample = reading;
    ImpedanceState *s = estimator;
    PredictiveState *r = regulator;
    RegulatorTerms *o = terms;
    *current_a = (sample->current_code - c->current_offset_q16 / 65536.0) * c->current_lsb_a;
    *voltage_v = (sample->voltage_code - c->voltage_offset_q16 / 65536.0) * c->voltage_lsb_v;
    count_charge(ledger, sample, given->lost_ticks, c);
    if (given->lost_ticks || given->tone_before < 0)
        break_block(s, g, given->lost_ticks);
    estimate(s, g, *current_a, *voltage_v, given->contact_setpoint_a, given->tone_before > 0);
    memset(o, 0, sizeof *o);
    if (given->drive == PROBED || given->drive == IDENTIFIED)
        o->output = o->unlimited = given->probe_output;
    if (given->drive == IDENTIFIED)
        take_load(s, g, r, identified, o->output, *current_a);
    if (given->drive == REGULATED) {
        double tone = given->tone_now ? g->tone_a * (s->sine[LOW] + s->sine[HIGH]) : 0.0;
        applied(r, (sample->applied_code - c->output_offset_q16 / 65536.0) * c->output_lsb, r->model.delay_ticks);
        regulate(r, predictive, given->level_a, tone, *current_a, *voltage_v,
                 (sample->status & STATUS_COMPLIANCE) != 0, o);
    }
}
