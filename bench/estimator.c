/* The impedance estimator of the tick in plain C, for one channel: verdict on contact, choice of tones, lock-in of two
 * tones and hum, block fit, coherent window. Written from the equations of docs/estimator.md on the structs of the
 * core; on the same samples it must give the bits of the compiled core, and its time is the floor under the core's.
 * Left out: fixed tones, smooth currents, skew and ballast.
 */
enum { LOW, HIGH, FIFTY, SIXTY, WAVES, TONES = 2, WINDOW = 10, STEPS = 8 };

static double square(double x) { return x * x; }

static double exact_exp(double x) {
    if (x < 0.0)
        return x >= -700.0 ? 1.0 / exact_exp(-x) : 0.0;
    if (x > 700.0)
        x = 700.0;
    double r = x * 0.0009765625, total = r, term = r;
    for (int k = 2; k < 20; k++) {
        term = term * r / k;
        if (total + term == total)
            break;
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

static uint32_t whole(double x) { return (uint32_t)(x + 0.5); }

/* Periods in a block, if they are whole; else 0. */
static uint32_t bin_of(const ImpedanceConfig *g, double hz) {
    double periods = hz * g->tick_s * g->block_ticks;
    uint32_t n = periods < 1e6 ? whole(periods) : 0;
    return n > 0 && fabs(periods - n) < 1e-6 * periods ? n : 0;
}

static int hums(const ImpedanceConfig *g, uint32_t tone) {
    uint32_t fifty = bin_of(g, 50.0), sixty = bin_of(g, 60.0);
    return (fifty && tone % fifty == 0) || (sixty && tone % sixty == 0);
}

static uint32_t divisor(uint32_t a, uint32_t b) { return b ? divisor(b, a % b) : a; }

static void set_phases(ImpedanceState *s, const ImpedanceConfig *g) {
    uint32_t n = g->block_ticks, bins[WAVES] = {s->bins[LOW], s->bins[HIGH], bin_of(g, 50.0), bin_of(g, 60.0)};
    for (int k = 0; k < WAVES; k++) {
        if (k >= TONES && (2 * bins[k] >= n || bins[k] == bins[LOW] || bins[k] == bins[HIGH]))
            bins[k] = 0;
        s->cosine[k] = s->sine[k] = s->turn_cosine[k] = s->turn_sine[k] = 0.0;
        if (bins[k]) {
            exact_turn((double)bins[k] / n, &s->turn_cosine[k], &s->turn_sine[k]);
            exact_turn((double)(bins[k] * s->phase_ticks % n) / n, &s->cosine[k], &s->sine[k]);
        }
    }
}

static void drop_block(ImpedanceState *s, const ImpedanceConfig *g) {
    double ticks = 4.0 + 8.0 / (2.0 * M_PI * s->corner_hz * g->tick_s);
    s->block_fill = 0;
    s->settle_left = ticks < g->block_ticks ? (uint32_t)ticks : g->block_ticks;
}

static void choose_tones(ImpedanceState *s, const ImpedanceConfig *g, double corner) {
    double spacing = 1.0 / (g->tick_s * g->block_ticks), most = 0.3 * g->block_ticks;
    if (!(corner > spacing))
        corner = spacing;
    if (corner > 0.5 / g->tick_s)
        corner = 0.5 / g->tick_s;
    s->corner_hz = corner;
    uint32_t high = 6.0 * corner / spacing < most ? whole(6.0 * corner / spacing) : (uint32_t)most;
    high = high < 4 ? 4 : high;
    uint32_t low = whole(0.4 * corner / spacing), near = high;
    low = low > high / 3 ? high / 3 : low;
    low = low < 2 ? 2 : low;
    for (int k = 0; k < 3; k++)
        low -= hums(g, low) && low > 2;
    for (uint32_t k = 1; k < 13; k++) {
        if (low + 1 < near && near <= most && !hums(g, near) && near != 2 * low && near != 3 * low
            && divisor(near, g->block_ticks) == 1) {
            high = near;
            break;
        }
        near = k & 1 ? high - (k + 1) / 2 : high + k / 2;
    }
    if (low == s->bins[LOW] && high == s->bins[HIGH])
        return;
    s->bins[LOW] = low;
    s->bins[HIGH] = high;
    set_phases(s, g);
    s->estimate.low_tone_hz = low * spacing;
    s->estimate.high_tone_hz = high * spacing;
    s->blocks_kept = s->blocks_at = s->away_run = s->blind_run = 0;
    drop_block(s, g);
}

/* A held current that settles by the pole p, sampled at the end of its period. */
static void model(const ImpedanceConfig *g, double p, const ImpedanceState *s, double rs, double rp, double c,
                  double *z) {
    double tau = rp * c, a = exact_exp(-g->tick_s / tau), lag = 0.0;
    if (g->output_time_s > 0.0) {
        double ratio = tau / g->output_time_s - 1.0;
        lag = fabs(ratio) < 1e-6 ? a * g->tick_s / g->output_time_s : (a - p) / ratio;
    }
    for (int k = 0; k < TONES; k++) {
        double re, im, cosine = s->turn_cosine[k], sine = s->turn_sine[k];
        divide((1.0 - a) * (1.0 - p * cosine) - lag * (1.0 - cosine), ((1.0 - a) * p - lag) * sine,
               (1.0 - p) * (1.0 - a * cosine), (1.0 - p) * a * sine, &re, &im);
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

static int start(const ImpedanceConfig *g, const ImpedanceState *s, const double *z, const double *p, double *at) {
    double normal[6], inverse[6], right[3], row[3], big = 0.0, r0 = 0.0, product = 0.0;
    for (int pass = 0; pass < 2; pass++) {
        memset(normal, 0, sizeof normal);
        memset(right, 0, sizeof right);
        for (int k = 0; k < TONES; k++) {
            double re = 1.0 - s->turn_cosine[k], im = s->turn_sine[k];
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
    at[2] = g->tick_s / exact_log(1.0 + 1.0 / big) / at[1];
    return isfinite(at[2]) && at[2] > 0.0;
}

static int refine(const ImpedanceConfig *g, double pole, const ImpedanceState *s, const double *z, const double *l,
                  double *at, LoadFit *o) {
    double here[4], above[4], below[4], slope[12], normal[6], inverse[6], right[3], step[3], longest = 1.0;
    for (int n = 0; n < STEPS; n++) {
        model(g, pole, s, at[0], at[1], at[2], here);
        for (int k = 0; k < 4; k++)
            here[k] = z[k] - here[k];
        whiten(l, here);
        for (int j = 0; j < 3; j++) {
            double keep = at[j];
            at[j] = keep * (1.0 + 1e-4);
            model(g, pole, s, at[0], at[1], at[2], above);
            at[j] = keep * (1.0 - 1e-4);
            model(g, pole, s, at[0], at[1], at[2], below);
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
            return 0;
        step[0] = inverse[0] * right[0] + inverse[1] * right[1] + inverse[2] * right[2];
        step[1] = inverse[1] * right[0] + inverse[3] * right[1] + inverse[4] * right[2];
        step[2] = inverse[2] * right[0] + inverse[4] * right[1] + inverse[5] * right[2];
        longest = 0.0;
        for (int j = 0; j < 3; j++) {
            if (!isfinite(step[j]))
                return 0;
            step[j] = step[j] > 1.0 ? 1.0 : step[j] < -1.0 ? -1.0 : step[j];
            at[j] *= exact_exp(step[j]);
            longest = fabs(step[j]) > longest ? fabs(step[j]) : longest;
        }
        if (longest < 1e-7)
            break;
    }
    if (longest > 1e-2 || !(inverse[0] < 0.25 && inverse[3] < 0.25 && inverse[5] < 0.25))
        return 0;
    model(g, pole, s, at[0], at[1], at[2], here);
    for (int k = 0; k < 4; k++)
        here[k] = z[k] - here[k];
    whiten(l, here);
    double misfit = sqrt(square(here[0]) + square(here[1]) + square(here[2]) + square(here[3]));
    if (!(isfinite(misfit) && isfinite(at[0]) && isfinite(at[1]) && isfinite(at[2])))
        return 0;
    o->series_ohm = at[0];
    o->parallel_ohm = at[1];
    o->capacitance_f = at[2];
    o->misfit = misfit;
    memcpy(o->covariance, inverse, sizeof inverse);
    return 1;
}

static void fit(const ImpedanceConfig *g, const ImpedanceState *s, const double *z, const double *p, LoadFit *o) {
    double l[16], at[3], with[4], without[4], undone[4], re, im, size;
    double pole = g->output_time_s > 0.0 ? exact_exp(-g->tick_s / g->output_time_s) : 0.0;
    ImpedanceConfig plain = *g;
    memset(o, 0, sizeof *o);
    if (!factor(p, l) || (start(g, s, z, p, at) && refine(g, pole, s, z, l, at, o)) || !(g->output_time_s > 0.0))
        return;
    plain.output_time_s = 0.0;
    size = sqrt(square(z[0]) + square(z[1]));
    at[2] = 1.0 / (2.0 * M_PI * s->corner_hz * size);
    model(g, pole, s, 1e-3 * size, size, at[2], with);
    model(&plain, 0.0, s, 1e-3 * size, size, at[2], without);
    for (int k = 0; k < TONES; k++) {
        divide(without[2 * k], without[2 * k + 1], with[2 * k], with[2 * k + 1], &re, &im);
        undone[2 * k] = z[2 * k] * re - z[2 * k + 1] * im;
        undone[2 * k + 1] = z[2 * k] * im + z[2 * k + 1] * re;
    }
    if (start(&plain, s, undone, p, at) && refine(g, pole, s, z, l, at, o))
        return;
    at[0] = 0.5 * z[2];
    at[1] = z[0] - at[0];
    if (at[0] > 0.0 && at[1] > 0.0) {
        at[2] = 1.0 / (2.0 * M_PI * s->corner_hz * at[1]);
        refine(g, pole, s, z, l, at, o);
    }
}

static int ratio(const ImpedanceConfig *g, const ImpedanceState *s, const BlockPhasors *sum, double blocks, double *z,
                 double *p) {
    double n = g->block_ticks, spread = (n * n - 1.0) / (12.0 * n);
    double volt = sum->voltage_noise / blocks, amp = sum->current_noise / blocks, by_v[4], by_i[4], re, im;
    for (int k = 0; k < WAVES; k++)
        spread -= (square(s->t_cosine[k]) + square(s->t_sine[k])) * 2.0 / n;
    spread = 2.0 / (n * sqrt(spread));
    memset(p, 0, 16 * sizeof *p);
    for (int k = 0; k < TONES; k++) {
        double size = square(sum->current_re[k]) + square(sum->current_im[k]);
        if (!(size > square(0.1 * g->tone_a * blocks)))
            return 0;
        divide(sum->voltage_re[k], sum->voltage_im[k], sum->current_re[k], sum->current_im[k], &z[2 * k],
               &z[2 * k + 1]);
        divide(s->t_cosine[k] * spread, -s->t_sine[k] * spread, sum->current_re[k] / blocks,
               sum->current_im[k] / blocks, &re, &im);
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

static double window(const ImpedanceState *s, BlockPhasors *total) {
    memset(total, 0, sizeof *total);
    for (uint32_t j = 0; j < s->blocks_kept; j++) {
        const BlockPhasors *one = &s->blocks[j];
        for (int k = 0; k < TONES; k++) {
            total->voltage_re[k] += one->voltage_re[k];
            total->voltage_im[k] += one->voltage_im[k];
            total->current_re[k] += one->current_re[k];
            total->current_im[k] += one->current_im[k];
        }
        total->voltage_noise += one->voltage_noise;
        total->current_noise += one->current_noise;
    }
    if (s->blocks_kept) {
        total->voltage_noise /= s->blocks_kept;
        total->current_noise /= s->blocks_kept;
    }
    return s->blocks_kept;
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

static void phasors(ImpedanceState *s, const ImpedanceConfig *g, BlockPhasors *o) {
    double n = g->block_ticks, half = 0.5 * n, spread = (n * n - 1.0) / (12.0 * n);
    double slope_v = s->sum_vt, slope_i = s->sum_it;
    double noise_v = s->sum_vv - s->sum_v * s->sum_v / n, noise_i = s->sum_ii - s->sum_i * s->sum_i / n;
    for (int k = 0; k < WAVES; k++) {
        spread -= (square(s->t_cosine[k]) + square(s->t_sine[k])) / half;
        slope_v -= (s->t_cosine[k] * s->sum_vc[k] + s->t_sine[k] * s->sum_vs[k]) / half;
        slope_i -= (s->t_cosine[k] * s->sum_ic[k] + s->t_sine[k] * s->sum_is[k]) / half;
    }
    slope_v /= spread;
    slope_i /= spread;
    noise_v -= slope_v * s->sum_vt;
    noise_i -= slope_i * s->sum_it;
    for (int k = 0; k < WAVES; k++) {
        double vc = (s->sum_vc[k] - slope_v * s->t_cosine[k]) / half;
        double vs = (s->sum_vs[k] - slope_v * s->t_sine[k]) / half;
        double ic = (s->sum_ic[k] - slope_i * s->t_cosine[k]) / half;
        double is = (s->sum_is[k] - slope_i * s->t_sine[k]) / half;
        noise_v -= vc * s->sum_vc[k] + vs * s->sum_vs[k];
        noise_i -= ic * s->sum_ic[k] + is * s->sum_is[k];
        if (k < TONES) {
            o->voltage_re[k] = vc;
            o->voltage_im[k] = -vs;
            o->current_re[k] = ic;
            o->current_im[k] = -is;
        } else {
            double hum = sqrt(vc * vc + vs * vs);
            if (k == FIFTY || hum > s->estimate.hum_v)
                s->estimate.hum_v = hum;
        }
    }
    noise_v /= n - 10.0;
    noise_i /= n - 10.0;
    o->voltage_noise = noise_v > square(g->voltage_noise_v) ? noise_v : square(g->voltage_noise_v);
    o->current_noise = noise_i > square(g->current_noise_a) ? noise_i : square(g->current_noise_a);
    if (!(o->voltage_noise > 0.0))
        o->voltage_noise = 1e-24;
    if (!(o->current_noise > 0.0))
        o->current_noise = 1e-36;
}

static int disturbed(ImpedanceState *s, const ImpedanceConfig *g, double noise) {
    double limit = (1.5 + 7.0 * sqrt(2.0 / g->block_ticks)) * s->quiet_v2;
    if (s->quiet_v2 == 0.0) {
        s->quiet_v2 = noise;
        return 0;
    }
    s->quiet_v2 += noise < s->quiet_v2 ? 0.5 * (noise - s->quiet_v2)
                                       : 0.1 * ((noise < 4.0 * s->quiet_v2 ? noise : 4.0 * s->quiet_v2) - s->quiet_v2);
    return noise > limit;
}

static void retune(ImpedanceState *s, const ImpedanceConfig *g, const LoadFit *found, double low_re) {
    if (!(g->retune_factor > 1.0))
        return;
    if (found->parallel_ohm > 0.0) {
        double corner = 1.0 / (2.0 * M_PI * found->parallel_ohm * found->capacitance_f), moved = corner / s->corner_hz;
        s->blind_run = 0;
        if (!((moved > g->retune_factor || moved * g->retune_factor < 1.0)
              && found->covariance[3] + 2.0 * found->covariance[4] + found->covariance[5] < 0.04)) {
            s->away_run = 0;
        } else if (++s->away_run >= 3) {
            s->away_run = 0;
            choose_tones(s, g, corner);
        }
        return;
    }
    s->away_run = 0;
    if (++s->blind_run >= WINDOW) {
        s->blind_run = 0;
        choose_tones(s, g, s->corner_hz * (low_re < 0.5 * fabs(s->estimate.resistance_ohm) ? 1.0 / 3.0 : 3.0));
    }
}

static void forget_load(Estimate *e) {
    e->series_ohm = e->parallel_ohm = e->capacitance_f = 0.0;
    e->series_sigma_ohm = e->parallel_sigma_ohm = e->capacitance_sigma_f = 0.0;
    e->emf_v = e->emf_sigma_v = e->misfit = 0.0;
}

static void close_block(ImpedanceState *s, const ImpedanceConfig *g, int tone_on) {
    Estimate *e = &s->estimate;
    BlockPhasors block, total;
    LoadFit best;
    double n = g->block_ticks, mean_v = s->first_v + s->sum_v / n, mean_i = s->first_i + s->sum_i / n;
    double z[4], p[16], before[4], before_p[16], r0 = mean_v / mean_i;
    e->block++;
    if (mean_i == 0.0)
        return;
    double r0_sigma = sqrt(square(g->electrode_emf_v) + square(g->voltage_noise_v) / n
                           + square(r0 * g->current_noise_a) / n) / fabs(mean_i);
    if (!(isfinite(r0) && isfinite(r0_sigma)))
        return;
    e->resistance_ohm = r0;
    e->resistance_sigma_ohm = r0_sigma;
    e->mean_a = mean_i;
    memset(&e->latest, 0, sizeof e->latest);
    int seen = tone_on && g->tone_a > 0.0;
    if (seen) {
        phasors(s, g, &block);
        seen = ratio(g, s, &block, 1.0, z, p);
    }
    if (!seen) {
        forget_load(e);
        s->blocks_kept = s->blocks_at = e->window_blocks = 0;
        return;
    }
    if (disturbed(s, g, block.voltage_noise)) {
        e->latest.disturbed = 1;
        return;
    }
    double kept = window(s, &total);
    if (kept > 0.0 && (!ratio(g, s, &total, kept, before, before_p) || changed(z, p, before, before_p)))
        s->blocks_kept = s->blocks_at = 0;
    s->blocks[s->blocks_at] = block;
    s->blocks_at = (s->blocks_at + 1) % WINDOW;
    if (s->blocks_kept < WINDOW)
        s->blocks_kept++;
    e->window_blocks = s->blocks_kept;
    forget_load(e);
    fit(g, s, z, p, &e->latest);
    best = e->latest;
    if (s->blocks_kept > 1) {
        kept = window(s, &total);
        if (!ratio(g, s, &total, kept, z, p))
            return;
        fit(g, s, z, p, &best);
    }
    if (best.parallel_ohm > 0.0) {
        double scale = best.misfit > 3.0 ? best.misfit / 3.0 : 1.0;
        double variance = square(best.series_ohm) * best.covariance[0] + square(best.parallel_ohm) * best.covariance[3]
                          + 2.0 * best.series_ohm * best.parallel_ohm * best.covariance[1];
        e->series_ohm = best.series_ohm;
        e->parallel_ohm = best.parallel_ohm;
        e->capacitance_f = best.capacitance_f;
        e->series_sigma_ohm = scale * best.series_ohm * sqrt(best.covariance[0]);
        e->parallel_sigma_ohm = scale * best.parallel_ohm * sqrt(best.covariance[3]);
        e->capacitance_sigma_f = scale * best.capacitance_f * sqrt(best.covariance[5]);
        e->misfit = best.misfit;
        e->emf_v = mean_v - mean_i * (best.series_ohm + best.parallel_ohm);
        e->emf_sigma_v = sqrt(square(scale * mean_i) * variance + block.voltage_noise / n);
    }
    retune(s, g, &best, z[0]);
}

static void judge_contact(ImpedanceState *s, const ImpedanceConfig *g, double current, double voltage,
                          double setpoint) {
    Estimate *e = &s->estimate;
    if (setpoint < g->open_floor_a) {
        s->open_run = s->good_run = 0;
        if (e->contact == CONTACT_GOOD)
            e->contact = CONTACT_UNKNOWN;
    } else if (current < g->open_ratio * setpoint
               && (voltage >= g->open_voltage_v || (g->open_any_voltage && e->contact == CONTACT_GOOD))) {
        s->good_run = 0;
        if (++s->open_run >= g->open_ticks)
            e->contact = CONTACT_LOST;
    } else {
        s->open_run = 0;
        s->good_run = current >= 0.5 * setpoint ? s->good_run + 1 : 0;
        if (s->good_run >= g->good_ticks)
            e->contact = CONTACT_GOOD;
    }
}

static void estimate(ImpedanceState *s, const ImpedanceConfig *g, double current, double voltage, double setpoint,
                     int tone_on) {
    if (s->bins[LOW] == 0)
        choose_tones(s, g, g->corner_hz);
    judge_contact(s, g, setpoint >= 0.0 ? current : -current, fabs(voltage), fabs(setpoint));
    if (tone_on != s->tone_on) {
        s->tone_on = tone_on;
        drop_block(s, g);
    }
    if (s->estimate.contact == CONTACT_LOST) {
        drop_block(s, g);
    } else if (s->settle_left) {
        s->settle_left--;
    } else {
        if (s->block_fill == 0) {
            s->first_v = voltage;
            s->first_i = current;
            s->sum_v = s->sum_i = s->sum_vt = s->sum_it = s->sum_vv = s->sum_ii = 0.0;
            for (int k = 0; k < WAVES; k++) {
                double half = 0.5 * s->turn_sine[k] / (1.0 - s->turn_cosine[k]);
                s->sum_vc[k] = s->sum_vs[k] = s->sum_ic[k] = s->sum_is[k] = 0.0;
                s->t_cosine[k] = -0.5 * s->cosine[k] + half * s->sine[k];
                s->t_sine[k] = -0.5 * s->sine[k] - half * s->cosine[k];
            }
        }
        double t = (s->block_fill - 0.5 * (g->block_ticks - 1.0)) / g->block_ticks;
        double v = voltage - s->first_v, i = current - s->first_i;
        s->sum_v += v;
        s->sum_i += i;
        s->sum_vt += v * t;
        s->sum_it += i * t;
        for (int k = 0; k < WAVES; k++) {
            s->sum_vc[k] += v * s->cosine[k];
            s->sum_vs[k] += v * s->sine[k];
            s->sum_ic[k] += i * s->cosine[k];
            s->sum_is[k] += i * s->sine[k];
        }
        s->sum_vv += v * v;
        s->sum_ii += i * i;
        if (++s->block_fill == g->block_ticks) {
            s->block_fill = 0;
            if (fabs(s->first_i * g->block_ticks + s->sum_i) > g->open_floor_a * g->block_ticks)
                close_block(s, g, tone_on);
        }
    }
    for (int k = 0; k < WAVES; k++) {
        double c = s->cosine[k];
        s->cosine[k] = c * s->turn_cosine[k] - s->sine[k] * s->turn_sine[k];
        s->sine[k] = c * s->turn_sine[k] + s->sine[k] * s->turn_cosine[k];
    }
    if (++s->phase_ticks >= g->block_ticks) {
        s->phase_ticks = 0;
        for (int k = 0; k < WAVES; k++)
            if (s->turn_cosine[k] != 0.0 || s->turn_sine[k] != 0.0) {
                s->cosine[k] = 1.0;
                s->sine[k] = 0.0;
            }
    }
}

/* Samples were lost, or the tones changed: the open block is dropped. */
static void break_block(ImpedanceState *s, const ImpedanceConfig *g, uint32_t ticks) {
    if (s->bins[LOW] == 0)
        choose_tones(s, g, g->corner_hz);
    drop_block(s, g);
    if (ticks) {
        s->phase_ticks = (s->phase_ticks + ticks % g->block_ticks) % g->block_ticks;
        set_phases(s, g);
    }
}
