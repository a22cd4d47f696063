/* The impedance estimator of the tick in plain C, for one channel with tones always on: lock-in of two tones and hum,
 * block fit, coherent window. Written from the equations of docs/estimator.md; on the same samples it must give the bits
 * of the compiled core, and its time per tick is the floor under the core's. Built with -O2 -ffp-contract=off.
 * Left out: the verdict on contact, other tones on line, output stages that do not settle, skew and ballast.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LOW, HIGH, FIFTY, SIXTY, WAVES, TONES = 2, WINDOW = 10, STEPS = 8 };

typedef struct {
    double tick_s, tone_a, voltage_noise_v, current_noise_a, electrode_emf_v, open_floor_a;
    uint32_t block_ticks, bins[2], settle_ticks;
} Config;

typedef struct { double v_re[2], v_im[2], i_re[2], i_im[2], noise_v, noise_i; } Phasors;
typedef struct { double value[3], misfit, covariance[6]; } Fit;

typedef struct {
    uint32_t phase, fill, settle, kept, at;
    double c[WAVES], s[WAVES], tc[WAVES], ts[WAVES], tcos[WAVES], tsin[WAVES];
    double v0, i0, v, i, vt, it, vc[WAVES], vs[WAVES], ic[WAVES], is[WAVES], vv, ii, quiet;
    Phasors blocks[WINDOW];
    double resistance, resistance_sigma, emf, emf_sigma, value[3], sigma[3], misfit, hum;
} State;

static double square(double x) { return x * x; }

static double exact_exp(double x) {
    if (x < 0.0)
        return x >= -700.0 ? 1.0 / exact_exp(-x) : 0.0;
    if (x > 700.0)
        x = 700.0;
    double r = x * 0.0009765625, total = r, term = r;
    for (int k = 2; k < 12; k++) {
        term = term * r / k;
        total += term;
    }
    for (int k = 0; k < 10; k++)
        total = total * (2.0 + total);
    return 1.0 + total;
}

static double exact_log(double x) {
    double scale = 2.0, total = 0.0;
    if (!(x > 0.0))
        return 0.0;
    while (x > 1.25 || x < 0.8) {
        x = sqrt(x);
        scale *= 2.0;
    }
    double z = (x - 1.0) / (x + 1.0), zz = z * z;
    for (int k = 21; k > 0; k -= 2)
        total = total * zz + 1.0 / k;
    return scale * z * total;
}

static void exact_turn(double turns, double *cosine, double *sine) {
    int eighth = (int)(turns * 8.0), quarter = (eighth + 1) / 2;
    double x = 6.283185307179586476925 * (turns - 0.25 * quarter), xx = x * x, c = 1.0, s = x, term = 1.0;
    for (int k = 1; k < 11; k++) {
        term = -term * xx / ((2 * k - 1) * (2 * k));
        c += term;
        s += term * x / (2 * k + 1);
    }
    *cosine = quarter == 1 ? -s : quarter == 2 ? -c : quarter == 3 ? s : c;
    *sine = quarter == 1 ? c : quarter == 2 ? -s : quarter == 3 ? -c : s;
}

static void divide(double a, double b, double c, double d, double *re, double *im) {
    double size = 1.0 / (c * c + d * d);
    *re = (a * c + b * d) * size;
    *im = (b * c - a * d) * size;
}

/* A held current, sampled at the end of its period. */
static void model(const Config *g, const State *s, double rs, double rp, double c, double *z) {
    double a = exact_exp(-g->tick_s / (rp * c));
    for (int k = 0; k < TONES; k++) {
        double re, im;
        divide((1.0 - a) * (1.0 - 0.0 * s->tc[k]) - 0.0 * (1.0 - s->tc[k]), ((1.0 - a) * 0.0 - 0.0) * s->ts[k],
               (1.0 - 0.0) * (1.0 - a * s->tc[k]), (1.0 - 0.0) * a * s->ts[k], &re, &im);
        z[2 * k] = rs + rp * re;
        z[2 * k + 1] = rp * im;
    }
}

static int invert(const double *m, double *o) {
    double a = m[3] * m[5] - m[4] * m[4], b = m[2] * m[4] - m[1] * m[5], c = m[1] * m[4] - m[2] * m[3];
    double size = m[0] * a + m[1] * b + m[2] * c;
    if (!(size > 0.0))
        return 0;
    o[0] = a / size;
    o[1] = b / size;
    o[2] = c / size;
    o[3] = (m[0] * m[5] - m[2] * m[2]) / size;
    o[4] = (m[1] * m[2] - m[0] * m[4]) / size;
    o[5] = (m[0] * m[3] - m[1] * m[1]) / size;
    return 1;
}

static int factor(const double *p, double *l) {
    for (int j = 0; j < 4; j++)
        for (int k = 0; k <= j; k++) {
            double total = p[4 * j + k];
            for (int m = 0; m < k; m++)
                total -= l[4 * j + m] * l[4 * k + m];
            if (j != k)
                l[4 * j + k] = total / l[4 * k + k];
            else if (total > 0.0)
                l[4 * j + j] = sqrt(total);
            else
                return 0;
        }
    return 1;
}

static void whiten(const double *l, double *r) {
    for (int j = 0; j < 4; j++) {
        for (int k = 0; k < j; k++)
            r[j] -= l[4 * j + k] * r[k];
        r[j] /= l[4 * j + j];
    }
}

static int start(const Config *g, const State *s, const double *z, const double *p, double *at) {
    double normal[6], inverse[6], right[3], row[3], big = 0.0, r0 = 0.0, product = 0.0;
    for (int pass = 0; pass < 2; pass++) {
        memset(normal, 0, sizeof normal);
        memset(right, 0, sizeof right);
        for (int k = 0; k < TONES; k++) {
            double re = 1.0 - s->tc[k], im = s->ts[k];
            double weight = 1.0 / ((p[10 * k] + p[10 * k + 5]) * (square(1.0 + big * re) + square(big * im)));
            for (int part = 0; part < 2; part++) {
                row[0] = part ? 0.0 : 1.0;
                row[1] = part ? im : re;
                row[2] = part ? -(re * z[2 * k + 1] + im * z[2 * k]) : im * z[2 * k + 1] - re * z[2 * k];
                normal[0] += weight * row[0] * row[0];
                normal[1] += weight * row[0] * row[1];
                normal[2] += weight * row[0] * row[2];
                normal[3] += weight * row[1] * row[1];
                normal[4] += weight * row[1] * row[2];
                normal[5] += weight * row[2] * row[2];
                for (int j = 0; j < 3; j++)
                    right[j] += weight * row[j] * z[2 * k + part];
            }
        }
        if (!invert(normal, inverse))
            return 0;
        r0 = inverse[0] * right[0] + inverse[1] * right[1] + inverse[2] * right[2];
        product = inverse[1] * right[0] + inverse[3] * right[1] + inverse[4] * right[2];
        big = inverse[2] * right[0] + inverse[4] * right[1] + inverse[5] * right[2];
        if (!(big > 0.0))
            return 0;
    }
    at[0] = product / big;
    if (!(at[0] > 0.02 * z[2]))
        at[0] = z[2] > 0.0 ? 0.02 * z[2] : 0.02 * r0;
    at[1] = r0 - at[0];
    if (!(at[1] > 0.0 && at[0] > 0.0))
        return 0;
    at[2] = g->tick_s / (exact_log(1.0 + 1.0 / (big * 1.0)) * 1.0) / at[1];
    return isfinite(at[2]) && at[2] > 0.0;
}

static void fit(const Config *g, const State *s, const double *z, const double *p, Fit *o) {
    double l[16], at[3], here[4], above[4], below[4], slope[12], normal[6], inverse[6], right[3], step[3], longest = 1.0;
    memset(o, 0, sizeof *o);
    if (!factor(p, l) || !start(g, s, z, p, at))
        return;
    for (int n = 0; n < STEPS; n++) {
        model(g, s, at[0], at[1], at[2], here);
        for (int k = 0; k < 4; k++)
            here[k] = z[k] - here[k];
        whiten(l, here);
        for (int j = 0; j < 3; j++) {
            double keep = at[j];
            at[j] = keep * (1.0 + 1e-4);
            model(g, s, at[0], at[1], at[2], above);
            at[j] = keep * (1.0 - 1e-4);
            model(g, s, at[0], at[1], at[2], below);
            at[j] = keep;
            for (int k = 0; k < 4; k++)
                slope[4 * j + k] = (above[k] - below[k]) / (2.0 * 1e-4);
            whiten(l, slope + 4 * j);
        }
        for (int j = 0; j < 3; j++) {
            right[j] = 0.0;
            for (int k = 0; k < 4; k++)
                right[j] += slope[4 * j + k] * here[k];
        }
        for (int j = 0, m = 0; j < 3; j++)
            for (int k = j; k < 3; k++)
                normal[m++] = slope[4 * j] * slope[4 * k] + slope[4 * j + 1] * slope[4 * k + 1]
                              + slope[4 * j + 2] * slope[4 * k + 2] + slope[4 * j + 3] * slope[4 * k + 3];
        if (!invert(normal, inverse))
            return;
        step[0] = inverse[0] * right[0] + inverse[1] * right[1] + inverse[2] * right[2];
        step[1] = inverse[1] * right[0] + inverse[3] * right[1] + inverse[4] * right[2];
        step[2] = inverse[2] * right[0] + inverse[4] * right[1] + inverse[5] * right[2];
        longest = 0.0;
        for (int j = 0; j < 3; j++) {
            if (!isfinite(step[j]))
                return;
            step[j] = step[j] > 1.0 ? 1.0 : step[j] < -1.0 ? -1.0 : step[j];
            at[j] *= exact_exp(step[j]);
            longest = fabs(step[j]) > longest ? fabs(step[j]) : longest;
        }
        if (longest < 1e-7)
            break;
    }
    if (longest > 1e-2 || !(inverse[0] < 0.25 && inverse[3] < 0.25 && inverse[5] < 0.25))
        return;
    model(g, s, at[0], at[1], at[2], here);
    for (int k = 0; k < 4; k++)
        here[k] = z[k] - here[k];
    whiten(l, here);
    o->misfit = sqrt(square(here[0]) + square(here[1]) + square(here[2]) + square(here[3]));
    memcpy(o->value, at, sizeof at);
    memcpy(o->covariance, inverse, sizeof inverse);
}

static int ratio(const Config *g, const State *s, const Phasors *sum, double blocks, double *z, double *p) {
    double n = g->block_ticks, spread = (n * n - 1.0) / (12.0 * n);
    double volt = sum->noise_v / blocks, amp = sum->noise_i / blocks, by_v[4], by_i[4], re, im;
    for (int k = 0; k < WAVES; k++)
        spread -= (square(s->tcos[k]) + square(s->tsin[k])) * 2.0 / n;
    spread = 2.0 / (n * sqrt(spread));
    memset(p, 0, 16 * sizeof *p);
    for (int k = 0; k < TONES; k++) {
        double size = square(sum->i_re[k]) + square(sum->i_im[k]);
        if (!(size > square(0.1 * g->tone_a * blocks)))
            return 0;
        divide(sum->v_re[k], sum->v_im[k], sum->i_re[k], sum->i_im[k], &z[2 * k], &z[2 * k + 1]);
        divide(s->tcos[k] * spread, -s->tsin[k] * spread, sum->i_re[k] / blocks, sum->i_im[k] / blocks, &re, &im);
        by_v[2 * k] = re;
        by_v[2 * k + 1] = im;
        by_i[2 * k] = re * z[2 * k] - im * z[2 * k + 1];
        by_i[2 * k + 1] = re * z[2 * k + 1] + im * z[2 * k];
        p[10 * k] = p[10 * k + 5] =
            2.0 / n * (volt + (square(z[2 * k]) + square(z[2 * k + 1])) * amp) * square(blocks) / size;
    }
    for (int j = 0; j < 4; j++)
        for (int k = 0; k < 4; k++)
            p[4 * j + k] += by_v[j] * by_v[k] * volt + by_i[j] * by_i[k] * amp;
    return 1;
}

static double window(const State *s, Phasors *total) {
    memset(total, 0, sizeof *total);
    for (uint32_t j = 0; j < s->kept; j++) {
        const Phasors *one = &s->blocks[j];
        for (int k = 0; k < TONES; k++) {
            total->v_re[k] += one->v_re[k];
            total->v_im[k] += one->v_im[k];
            total->i_re[k] += one->i_re[k];
            total->i_im[k] += one->i_im[k];
        }
        total->noise_v += one->noise_v;
        total->noise_i += one->noise_i;
    }
    if (s->kept) {
        total->noise_v /= s->kept;
        total->noise_i /= s->kept;
    }
    return s->kept;
}

static int changed(const double *z, const double *p, const double *before, const double *before_p) {
    double both[16], l[16], apart[4];
    int far = 0;
    for (int k = 0; k < 16; k++)
        both[k] = p[k] + before_p[k];
    for (int k = 0; k < 4; k++)
        apart[k] = z[k] - before[k];
    for (int k = 0; k < TONES; k++)
        far |= square(apart[2 * k]) + square(apart[2 * k + 1])
               > square(0.01) * (square(before[2 * k]) + square(before[2 * k + 1]));
    if (!far || !factor(both, l))
        return 0;
    whiten(l, apart);
    return square(apart[0]) + square(apart[1]) + square(apart[2]) + square(apart[3]) > 40.0;
}

static void phasors(State *s, const Config *g, Phasors *o) {
    double n = g->block_ticks, half = 0.5 * n, spread = (n * n - 1.0) / (12.0 * n);
    double slope_v = s->vt, slope_i = s->it, noise_v = s->vv - s->v * s->v / n, noise_i = s->ii - s->i * s->i / n;
    for (int k = 0; k < WAVES; k++) {
        spread -= (square(s->tcos[k]) + square(s->tsin[k])) / half;
        slope_v -= (s->tcos[k] * s->vc[k] + s->tsin[k] * s->vs[k]) / half;
        slope_i -= (s->tcos[k] * s->ic[k] + s->tsin[k] * s->is[k]) / half;
    }
    slope_v /= spread;
    slope_i /= spread;
    noise_v -= slope_v * s->vt;
    noise_i -= slope_i * s->it;
    for (int k = 0; k < WAVES; k++) {
        double vc = (s->vc[k] - slope_v * s->tcos[k]) / half, vs = (s->vs[k] - slope_v * s->tsin[k]) / half;
        double ic = (s->ic[k] - slope_i * s->tcos[k]) / half, is = (s->is[k] - slope_i * s->tsin[k]) / half;
        noise_v -= vc * s->vc[k] + vs * s->vs[k];
        noise_i -= ic * s->ic[k] + is * s->is[k];
        if (k < TONES) {
            o->v_re[k] = vc;
            o->v_im[k] = -vs;
            o->i_re[k] = ic;
            o->i_im[k] = -is;
        } else {
            double hum = sqrt(vc * vc + vs * vs);
            if (k == FIFTY || hum > s->hum)
                s->hum = hum;
        }
    }
    noise_v /= n - 10.0;
    noise_i /= n - 10.0;
    o->noise_v = noise_v > square(g->voltage_noise_v) ? noise_v : square(g->voltage_noise_v);
    o->noise_i = noise_i > square(g->current_noise_a) ? noise_i : square(g->current_noise_a);
    if (!(o->noise_v > 0.0))
        o->noise_v = 1e-24;
    if (!(o->noise_i > 0.0))
        o->noise_i = 1e-36;
}

static void close_block(State *s, const Config *g) {
    Phasors block, total;
    Fit latest, best;
    double n = g->block_ticks, mean_v = s->v0 + s->v / n, mean_i = s->i0 + s->i / n;
    double z[4], p[16], before[4], before_p[16], r0 = mean_v / mean_i;
    if (mean_i == 0.0)
        return;
    double r0_sigma = sqrt(square(g->electrode_emf_v) + square(g->voltage_noise_v) / n
                           + square(r0 * g->current_noise_a) / n) / fabs(mean_i);
    if (!(isfinite(r0) && isfinite(r0_sigma)))
        return;
    s->resistance = r0;
    s->resistance_sigma = r0_sigma;
    phasors(s, g, &block);
    if (!ratio(g, s, &block, 1.0, z, p)) {
        memset(s->value, 0, sizeof s->value);
        s->kept = s->at = 0;
        return;
    }
    double limit = (1.5 + 7.0 * sqrt(2.0 / g->block_ticks)) * s->quiet;
    if (s->quiet == 0.0) {
        s->quiet = block.noise_v;
    } else {
        s->quiet += block.noise_v < s->quiet
                        ? 0.5 * (block.noise_v - s->quiet)
                        : 0.1 * ((block.noise_v < 4.0 * s->quiet ? block.noise_v : 4.0 * s->quiet) - s->quiet);
        if (block.noise_v > limit)
            return;
    }
    double kept = window(s, &total);
    if (kept > 0.0 && (!ratio(g, s, &total, kept, before, before_p) || changed(z, p, before, before_p)))
        s->kept = s->at = 0;
    s->blocks[s->at] = block;
    s->at = (s->at + 1) % WINDOW;
    if (s->kept < WINDOW)
        s->kept++;
    memset(s->value, 0, sizeof s->value);
    memset(s->sigma, 0, sizeof s->sigma);
    s->emf = s->emf_sigma = s->misfit = 0.0;
    fit(g, s, z, p, &latest);
    best = latest;
    if (s->kept > 1) {
        kept = window(s, &total);
        if (!ratio(g, s, &total, kept, z, p))
            return;
        fit(g, s, z, p, &best);
    }
    if (!(best.value[1] > 0.0))
        return;
    double scale = best.misfit > 3.0 ? best.misfit / 3.0 : 1.0;
    memcpy(s->value, best.value, sizeof s->value);
    s->sigma[0] = scale * best.value[0] * sqrt(best.covariance[0]);
    s->sigma[1] = scale * best.value[1] * sqrt(best.covariance[3]);
    s->sigma[2] = scale * best.value[2] * sqrt(best.covariance[5]);
    s->misfit = best.misfit;
    double variance = square(best.value[0]) * best.covariance[0] + square(best.value[1]) * best.covariance[3]
                      + 2.0 * best.value[0] * best.value[1] * best.covariance[1];
    s->emf = mean_v - mean_i * (best.value[0] + best.value[1]);
    s->emf_sigma = sqrt(square(scale * mean_i) * variance + block.noise_v / n);
}

static void step(State *s, const Config *g, double current, double voltage) {
    if (s->settle) {
        s->settle--;
    } else {
        if (s->fill == 0) {
            s->v0 = voltage;
            s->i0 = current;
            s->v = s->i = s->vt = s->it = s->vv = s->ii = 0.0;
            for (int k = 0; k < WAVES; k++) {
                double half = 0.5 * s->ts[k] / (1.0 - s->tc[k]);
                s->vc[k] = s->vs[k] = s->ic[k] = s->is[k] = 0.0;
                s->tcos[k] = -0.5 * s->c[k] + half * s->s[k];
                s->tsin[k] = -0.5 * s->s[k] - half * s->c[k];
            }
        }
        double t = (s->fill - 0.5 * (g->block_ticks - 1.0)) / g->block_ticks;
        double v = voltage - s->v0, i = current - s->i0;
        s->v += v;
        s->i += i;
        s->vt += v * t;
        s->it += i * t;
        for (int k = 0; k < WAVES; k++) {
            s->vc[k] += v * s->c[k];
            s->vs[k] += v * s->s[k];
            s->ic[k] += i * s->c[k];
            s->is[k] += i * s->s[k];
        }
        s->vv += v * v;
        s->ii += i * i;
        if (++s->fill == g->block_ticks) {
            s->fill = 0;
            if (fabs(s->i0 * g->block_ticks + s->i) > g->open_floor_a * g->block_ticks)
                close_block(s, g);
        }
    }
    for (int k = 0; k < WAVES; k++) {
        double c = s->c[k];
        s->c[k] = c * s->tc[k] - s->s[k] * s->ts[k];
        s->s[k] = c * s->ts[k] + s->s[k] * s->tc[k];
    }
    if (++s->phase >= g->block_ticks) {
        s->phase = 0;
        for (int k = 0; k < WAVES; k++) {
            s->c[k] = 1.0;
            s->s[k] = 0.0;
        }
    }
}

size_t config_bytes(void) { return sizeof(Config); }

/* n samples from a fresh state; out: chord and its deviation, EMF and its deviation, Rs, Rp, C, their deviations, misfit,
 * hum. */
void run_estimator(const Config *g, const double *current, const double *voltage, size_t n, double *out) {
    State s;
    uint32_t periods[WAVES] = {g->bins[0], g->bins[1], (uint32_t)(50.0 * g->tick_s * g->block_ticks + 0.5),
                               (uint32_t)(60.0 * g->tick_s * g->block_ticks + 0.5)};
    memset(&s, 0, sizeof s);
    for (int k = 0; k < WAVES; k++) {
        exact_turn((double)periods[k] / g->block_ticks, &s.tc[k], &s.ts[k]);
        s.c[k] = 1.0;
    }
    s.settle = g->settle_ticks;
    for (size_t k = 0; k < n; k++)
        step(&s, g, current[k], voltage[k]);
    double all[] = {s.resistance, s.resistance_sigma, s.emf, s.emf_sigma, s.value[0], s.value[1], s.value[2],
                    s.sigma[0], s.sigma[1], s.sigma[2], s.misfit, s.hum};
    memcpy(out, all, sizeof all);
}
