/* What the harness calls of transcription.c. The pointers are to the structs of the core. */
#include <stddef.h>
#include <stdint.h>

enum { RELAY_OPEN, PROBED, IDENTIFIED, REGULATED };

/* What ledger, estimator and regulator were given in a tick, besides the sample. */
typedef struct {
    double current_a, voltage_v;
    double contact_setpoint_a;  /* by which the estimator judges contact */
    double level_a, tone_a;
    double probe_output;
    uint32_t lost_ticks;
    int32_t tone_before;        /* 1: on, 0: off, -1: it changed within the loop's delay, so the block is dropped */
    int32_t tone_now;
    int32_t drive;              /* RELAY_OPEN; the contact check, and the tick that ends it; the regulator */
} StageInput;

void c_ledger_step(void *ledger, const void *sample, uint32_t lost_ticks, const void *calibration);
void c_impedance_break(void *state, const void *config, uint32_t lost_ticks);
void c_impedance_step(void *state, const void *config, double current_a, double voltage_v, double setpoint_a,
                      int32_t tone_on);
void c_predictive_applied(void *state, double output, int32_t ticks);
void c_predictive_step(void *state, const void *config, double setpoint_a, double tone_a, double measured_a,
                       double voltage_v, int32_t at_limit, void *terms);
void c_tick(const void *calibration, const void *impedance, const void *predictive, const void *identified,
            const void *sample, const StageInput *given, void *ledger, void *estimator, void *regulator, void *terms,
            double *current_a, double *voltage_v);
