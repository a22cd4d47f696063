/* The predictor's equations in plain C, as predictive.pyx states them, and a loop that passes a trace through either.
 *
 * No contact, jump or schedule: with those off the core must give the same bits. Built with -O2 -ffp-contract=off.
 */
#include <stddef.h>
#include <stdint.h>

typedef struct {
    double pole, gain, gain_before, tracking, setpoint, integral_pole_most, low, high, lsb;
    int32_t delay;
} Law;

typedef int (*CoreStep)(void *, const void *, double, double, double, double, int32_t, void *);

/* One pass over n samples; the last output is returned, each goes into out. */
double run_law(const Law *c, const double *setpoints, const double *measured, size_t n, double *out) {
    double u[16] = {0}, y1 = 0.0, q = 0.0, m = 0.0, carried = 0.0, a = c->pole, b0 = c->gain, b1 = c->gain_before;
    uint32_t at = 0;
    int started = 0;
    double output = 0.0;
#define GIVEN(j) u[(at + 1 - (uint32_t)(j)) & 15]
    for (size_t k = 0; k < n; k++) {
        double y = measured[k], beta = a < c->integral_pole_most ? a : c->integral_pole_most, p = y;
        if (started)
            q += (1.0 - beta) * ((y - a * y1 - b0 * GIVEN(c->delay) + b1 * GIVEN(c->delay + 1)) - q);
        for (int32_t j = c->delay - 1; j > 0; j--)
            p = a * p + b0 * GIVEN(j) - b1 * GIVEN(j + 1) + q;
        double next = c->setpoint * m + (1.0 - c->setpoint) * setpoints[k];
        double wanted = (next - a * m + b1 * GIVEN(1)) / b0 + (c->tracking - a) * (p - m) / b0 + -q / b0;
        double asked = wanted + carried;
        output = asked < c->low ? c->low : asked > c->high ? c->high : asked;
        if (c->lsb > 0.0) {
            double codes = output / c->lsb;
            output = c->lsb * (codes >= 0.0 ? (int32_t)(codes + 0.5) : -(int32_t)(0.5 - codes));
        }
        carried = carried + wanted - output;
        if (!(carried < c->lsb && carried > -c->lsb))
            carried = 0.0;
        if (wanted > c->high || wanted < c->low) {
            carried = 0.0;
            next = a * p + b0 * output - b1 * GIVEN(1) + q;
        }
        m = next;
        y1 = y;
        started = 1;
        at = (at + 1) & 15;
        u[at] = output;
        out[k] = output;
    }
    return output;
}

/* The same pass through the core's function. terms begins with the output. */
double run_core(CoreStep step, void *state, const void *config, double *terms, const double *setpoints,
                const double *measured, size_t n, double *out) {
    for (size_t k = 0; k < n; k++) {
        step(state, config, setpoints[k], 0.0, measured[k], 0.0, 0, terms);
        out[k] = terms[0];
    }
    return terms[0];
}
