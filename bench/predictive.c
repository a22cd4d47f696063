/* The regulator of the tick in plain C, as predictive.pyx states it, on the structs of the core: it must give the bits
 * of the compiled core, and its time is the floor under the core's.
 * For a front end that is a current source; left out: jumps of the impedance, schedule, manual output.
 */
enum { HISTORY = 16 };

static double given(const PredictiveState *s, int32_t ticks) {
    return s->outputs[(s->output_at + 1 - ticks) & (HISTORY - 1)];
}

static double at_rest(const PlantModel *m) { return (m->gain - m->gain_before) / (1.0 - m->pole); }

static double unforeseen(const PredictiveState *s, double y) {
    const PlantModel *m = &s->model;
    return y - m->pole * s->previous_measured - m->gain * given(s, m->delay_ticks)
           + m->gain_before * given(s, m->delay_ticks + 1);
}

static double within(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

static double quantised(double output, double lsb) {
    double codes = output / lsb;
    if (lsb <= 0.0 || !(codes > -1e9 && codes < 1e9))
        return output;
    return lsb * (codes >= 0.0 ? (int32_t)(codes + 0.5) : -(int32_t)(0.5 - codes));
}

static void push(PredictiveState *s, double output, double reference) {
    s->output_at = (s->output_at + 1) & (HISTORY - 1);
    s->outputs[s->output_at] = output;
    s->references[s->output_at] = reference;
    s->output = output;
}

static void begin(PredictiveState *s, const PlantModel *m, double output, double offset, double measured) {
    double series = 1.0 / m->gain, whole = 1.0 / at_rest(m);
    memset(s, 0, sizeof *s);
    s->model = *m;
    s->rescaled = s->spike_share = 1.0;
    if (m->gain_before > 0.0 && m->pole > 0.0) {
        series = within(m->pole / m->gain_before, 0.0, series);
        if (whole - series > 1e-6 * whole)
            s->probed_ticks_per_ohm = -1.0 / exact_log(m->pole) * whole / (series * (whole - series));
    }
    s->probed_series_ohm = series;
    s->probed_whole_ohm = whole;
    s->output = output;
    s->offset = offset;
    for (int k = 0; k < HISTORY; k++)
        s->outputs[k] = output;
    s->reference = s->previous_measured = measured;
    s->inner_v = output - measured * s->series_ohm;
    s->disturbance = unforeseen(s, measured);
}

static void applied(PredictiveState *s, double output, int32_t ticks) {
    s->outputs[(s->output_at + 1 - ticks) & (HISTORY - 1)] = output;
}

/* Of the references that this sample may answer, the one nearest to zero; 0 if they differ in sign. */
static double least_reference(const PredictiveState *s) {
    int32_t delay = s->model.delay_ticks;
    double low = s->references[(s->output_at + 1 - delay) & (HISTORY - 1)], high = low;
    for (int32_t k = delay + 1; k < delay + 3; k++) {
        double one = s->references[(s->output_at + 1 - k) & (HISTORY - 1)];
        low = one < low ? one : low;
        high = one > high ? one : high;
    }
    return low > 0.0 ? low : high < 0.0 ? -high : 0.0;
}

/* The contact as the current shows it; 1: lost. */
static int is_lost(PredictiveState *s, const PredictiveConfig *c, double y, double voltage) {
    double size = fabs(y), expected;
    if (!s->contact_lost) {
        expected = least_reference(s);
        if (!(expected >= c->contact_floor_a && size < 0.05 * expected && fabs(voltage) >= 0.97 * c->compliance_v)) {
            s->open_run = 0;
            return 0;
        }
        s->inner_v = s->offset + (s->inner_v - s->offset) * s->open_decay;
        if (++s->open_run >= c->open_ticks) {
            s->contact_lost = 1;
            s->opens++;
            s->good_run = 0;
        }
        return s->contact_lost;
    }
    s->inner_v = s->offset + (s->inner_v - s->offset) * s->open_decay;
    expected = fabs(given(s, s->model.delay_ticks) - s->offset) * at_rest(&s->model);
    expected = expected > c->contact_floor_a ? c->contact_floor_a : expected;
    s->good_run = size >= 0.4 * expected && expected > 0.0 ? s->good_run + 1 : 0;
    if (s->good_run >= c->good_ticks) {
        s->contact_lost = 0;
        s->open_run = 0;
        s->recovering = 1;
        s->ceiling_a = size;
        s->reference = y;
        s->disturbance = unforeseen(s, y);
    }
    return s->contact_lost;
}

static void regulate(PredictiveState *s, const PredictiveConfig *c, double setpoint, double tone, double y,
                     double voltage, int at_limit, RegulatorTerms *o) {
    const PlantModel *m = &s->model;
    double a = m->pole, b0 = m->gain, b1 = m->gain_before, rest = at_rest(m), level = fabs(setpoint), step;
    o->derivative = 0.0;
    o->saturated = 0;
    if (is_lost(s, c, y, voltage)) {
        double safe = within(0.05 * level, c->contact_floor_a, level) / rest;
        safe = s->offset + (setpoint >= 0.0 ? safe : -safe);
        o->output = quantised(within(safe, c->output_min, c->output_max), c->output_lsb);
        o->unlimited = o->feed_forward = o->output;
        o->proportional = o->integral = 0.0;
        s->previous_measured = y;
        s->reference = s->tone = 0.0;
        s->started = 1;
        push(s, o->output, 0.0);
        return;
    }
    if (s->recovering) {
        step = ((1.0 + c->recontact_ratio) * level - s->ceiling_a) * (0.4 * s->spike_share);
        step = step > c->recontact_ratio * level ? c->recontact_ratio * level : step;
        s->ceiling_a += step > 0.0 ? step : 0.0;
        if (s->ceiling_a >= level)
            s->recovering = 0;
        else
            setpoint = setpoint >= 0.0 ? s->ceiling_a : -s->ceiling_a;
    }
    double disturbance = s->disturbance, p = y, before = s->reference + s->tone;
    int limited = at_limit || (c->compliance_v > 0.0 && fabs(voltage) >= 0.97 * c->compliance_v
                  && fabs(y) < (fabs(voltage) >= 0.995 * c->compliance_v ? 0.998 : 0.9) * fabs(setpoint));
    uint32_t quick_left = s->quick_left;
    if (s->started && !limited) {
        double surprise = unforeseen(s, y), pole = c->integral_pole_most;
        if (c->surprise_ratio > 0.0) {
            double least = c->surprise_ratio * least_reference(s), by = surprise - disturbance;
            int32_t sign = by > 0.0 ? 1 : -1;
            if (least < c->contact_floor_a)
                least = c->contact_floor_a;
            if (quick_left == 0) {
                if (fabs(by) > least) {
                    quick_left = c->quick_ticks + c->quick_rest_ticks;
                    s->quick_sign = sign;
                    s->quick_turns = 0;
                }
            } else {
                quick_left--;
                if (quick_left > c->quick_rest_ticks && fabs(by) > 0.5 * least && sign != s->quick_sign) {
                    s->quick_sign = sign;
                    s->quick_turns++;
                    if (s->quick_turns >= 2)
                        quick_left = c->quick_rest_ticks;
                }
            }
        }
        if (quick_left > c->quick_rest_ticks && c->quick_pole_most < pole)
            pole = c->quick_pole_most;
        disturbance += (1.0 - (a < pole ? a : pole)) * (surprise - disturbance);
    }
    for (int32_t k = m->delay_ticks - 1; k > 0; k--)
        p = a * p + b0 * given(s, k) - b1 * given(s, k + 1) + disturbance;
    if (limited)
        p = before;
    double reference = c->setpoint_pole * s->reference + (1.0 - c->setpoint_pole) * setpoint, target = reference + tone;
    o->feed_forward = (target - a * before + b1 * given(s, 1)) / b0;
    o->proportional = (c->tracking_pole - a) * (p - before) / b0;
    o->integral = -disturbance / b0;
    double wanted = o->feed_forward + o->proportional + o->integral, low = c->output_min, high = c->output_max;
    if (c->trim_ratio > 0.0) {
        double centre = s->offset + setpoint / rest;
        double room = c->trim_ratio * fabs(setpoint / rest) + c->trim_floor + fabs(tone) / b0;
        low = within(centre - room, c->output_min, c->output_max);
        high = within(centre + room, c->output_min, c->output_max);
    }
    if (c->slew_per_tick > 0.0) {
        double up = (s->output > 0.0 ? s->output : 0.0) + c->slew_per_tick;
        double down = (s->output < 0.0 ? s->output : 0.0) - c->slew_per_tick;
        low = within(low, down, up);
        high = within(high, down, up);
    }
    double output = quantised(within(wanted + s->carried, low, high), c->output_lsb);
    double carried = s->carried + wanted - output;
    if (!(carried < c->output_lsb && carried > -c->output_lsb))
        carried = 0.0;
    if (wanted > high || wanted < low) {
        carried = 0.0;
        reference = a * p + b0 * output - b1 * given(s, 1) + disturbance - tone;
        if (output >= c->output_max || output <= c->output_min) {
            o->saturated = wanted > high ? 1 : -1;
            s->saturated_ticks++;
        }
    }
    s->disturbance = disturbance;
    s->quick_left = quick_left;
    s->carried = carried;
    s->reference = reference;
    s->tone = tone;
    s->previous_measured = y;
    s->started = 1;
    push(s, output, target);
    o->output = output;
    o->unlimited = wanted;
}
