/* A row of Mamba-2 as native_mix.c works on it: its sizes, its memory, the way into the scan and the scan.
 *
 * Sizes: L positions, H heads of P, I = H * P, N state, W = I + 2 N convolved, K filter taps, E = I + W + H projected.
 * What comes in and goes out is dense fp32. In here the channels of I lie in groups of GROUP, the last filled up with
 * zeros; S is I rounded up so. A state is one group after the other, each N rows of its channels.
 *
 * A row is walked over in blocks of Q positions, so that what belongs to a block stays near the processor. Forward
 * keeps the states that enter the blocks; backward takes each block up from there, the last one first.
 */
#ifndef WORLDMODEL_NATIVE_MIX_H
#define WORLDMODEL_NATIVE_MIX_H

#include "native.h"

/* Field by field the Structure in native_mix.py. */
typedef struct {
    int64_t L, H, P, N, K;
    const float *u, *filters, *filter_bias, *dt_bias, *A_log, *D, *norm;
    const uint8_t *reset; /* (B, L) or NULL */
    float *y;
    float *kept; /* (B, blocks - 1, S * N): the states that enter all blocks but the first; forward takes NULL too */
    const float *dy;
    float *du, *dweights; /* dweights: a row's share of the gradient of each weight, the filters as (K, W) */
} Mix;

typedef struct {
    int L, H, P, N, K, I, W, E, S, Q;
    float *filters, *A, *D; /* (K, W), the last tap first, (H) and (S) */
    int32_t *reach;         /* (L): how many positions before it, up to K, are of its sequence */
    /* Of a block. */
    float *open, *act;          /* (Q, W): sigmoid and silu of the convolution */
    float *dt, *dt_open, *left; /* (Q, H): the step, the slope of its softplus, the decay */
    float *decay, *in, *out;    /* (Q, S): the decay of each channel, dt x, and y without D x */
    float *state;               /* (S * N) */
    /* On the way back. */
    float *states;            /* (Q + 1, N, GROUP) */
    float *dstate, *zeros;    /* (S * N) */
    float *dout, *din, *dlog; /* (Q, S); dlog of the logarithm of the decay */
    float *dbc;               /* (Q, 2 N, 4): still to be summed over the last */
    float *dmixed;            /* (Q + K - 1, W), behind the block's end the first ones of the next */
    float *gate, *dD;         /* (3, I) and (S) */
} Work;

static void *take(char *base, int64_t *used, int64_t numbers)
{
    char *here = base ? base + *used : NULL;
    *used += (numbers * 4 + 63) / 64 * 64;
    return here;
}

/* Where everything lies from `base` on; returns its size in bytes. */
static int64_t lay_out(Work *w, const Mix *m, char *base, int backward)
{
    const int64_t L = w->L = m->L, H = w->H = m->H, N = w->N = m->N, K = w->K = m->K;
    const int64_t I = w->I = m->H * m->P, W = w->W = I + 2 * N, S = w->S = (I + GROUP - 1) / GROUP * GROUP;
    const int64_t least = N <= 32 ? 16 : N / 2; /* then at most two numbers a channel and position are kept */
    const int64_t Q = w->Q = K - 1 > least ? K - 1 : least;
    int64_t used = 0;
    w->P = m->P;
    w->E = I + W + H;
    w->filters = take(base, &used, K * W);
    w->A = take(base, &used, H);
    w->D = take(base, &used, S);
    w->reach = take(base, &used, L);
    w->open = take(base, &used, Q * W);
    w->act = take(base, &used, Q * W);
    w->dt = take(base, &used, Q * H);
    w->dt_open = take(base, &used, Q * H);
    w->left = take(base, &used, Q * H);
    w->decay = take(base, &used, Q * S);
    w->in = take(base, &used, Q * S);
    w->out = take(base, &used, Q * S);
    w->state = take(base, &used, S * N);
    if (backward) {
        w->zeros = take(base, &used, S * N);
        w->states = take(base, &used, (Q + 1) * N * GROUP);
        w->dstate = take(base, &used, S * N);
        w->dout = take(base, &used, Q * S);
        w->din = take(base, &used, Q * S);
        w->dlog = take(base, &used, Q * S);
        w->dbc = take(base, &used, Q * 2 * N * 4);
        w->dmixed = take(base, &used, (Q + K - 1) * W);
        w->gate = take(base, &used, 3 * I);
        w->dD = take(base, &used, S);
    }
    return used;
}

/* The memory to work in, and the weights in it as they are wanted here; NULL if there is none. */
static void *set_up(Work *w, const Mix *m, int backward)
{
    const int64_t bytes = lay_out(w, m, NULL, backward);
    char *base = aligned_alloc(64, bytes);
    if (!base) return NULL;
    memset(base, 0, bytes); /* what fills up the last group stays zero */
    lay_out(w, m, base, backward);
    for (int back = 0; back < w->K; back++)
        for (int i = 0; i < w->W; i++) w->filters[back * w->W + i] = m->filters[(int64_t)(i + 1) * w->K - 1 - back];
    for (int h = 0; h < w->H; h++) {
        w->A[h] = -expf(m->A_log[h]);
        for (int p = 0; p < w->P; p++) w->D[h * w->P + p] = m->D[h];
    }
    return base;
}

static void find_reach(const Work *w, const uint8_t *reset)
{
    int reach = -1;
    for (int t = 0; t < w->L; t++) {
        reach = reset && reset[t] ? 0 : reach < w->K ? reach + 1 : reach;
        w->reach[t] = reach;
    }
}

INLINE void convolve(const int taps, int W, int E, const float *x, const float *filters, const float *bias,
                     float *mixed)
{
    INDEPENDENT
    for (int i = 0; i < W; i++) {
        float sum = bias[i];
        for (int back = 0; back < taps; back++) sum += filters[back * W + i] * x[i - back * E];
        mixed[i] = sum;
    }
}

/* What goes into the scan at the n positions from t on. `u` is the row's. */
static void enter(const Work *w, const Mix *m, const float *u, int t, int n)
{
    const int I = w->I, W = w->W, E = w->E, H = w->H, P = w->P;
    float *act = w->act, *open = w->open, *dt = w->dt, *dt_open = w->dt_open, *left = w->left;
    for (int q = 0; q < n; q++) {
        const float *x = u + (int64_t)(t + q) * E + I, *filters = w->filters, *bias = m->filter_bias;
        float *mixed = act + q * W;
        const int reach = w->reach[t + q] < w->K ? w->reach[t + q] : w->K - 1;
        switch (reach) {
        case 0: convolve(1, W, E, x, filters, bias, mixed); break;
        case 1: convolve(2, W, E, x, filters, bias, mixed); break;
        case 2: convolve(3, W, E, x, filters, bias, mixed); break;
        default: convolve(4, W, E, x, filters, bias, mixed);
        }
        for (int back = 4; back <= reach; back++)
            for (int i = 0; i < W; i++) mixed[i] += filters[back * W + i] * x[i - (int64_t)back * E];
    }
    INDEPENDENT
    for (int i = 0; i < n * W; i++) {
        open[i] = sigmoid(act[i]);
        act[i] *= open[i];
    }
    for (int q = 0; q < n; q++)
        for (int h = 0; h < H; h++) {
            dt[q * H + h] = u[(int64_t)(t + q + 1) * E - H + h] + m->dt_bias[h];
            left[q * H + h] = w->A[h];
        }
    INDEPENDENT
    for (int i = 0; i < n * H; i++) {
        dt_open[i] = sigmoid(dt[i]);
        dt[i] = softplus(dt[i]);
        left[i] = exponential(dt[i] * left[i]);
    }
    for (int q = 0; q < n; q++) {
        if (!w->reach[t + q]) memset(left + q * H, 0, sizeof(float) * H); /* nothing is left of what was before */
        for (int h = 0; h < H; h++) {
            const float step = dt[q * H + h], decay_h = left[q * H + h], *x = act + q * W + h * P;
            float *decay = w->decay + q * w->S + h * P, *in = w->in + q * w->S + h * P;
            INDEPENDENT
            for (int p = 0; p < P; p++) {
                decay[p] = decay_h;
                in[p] = step * x[p];
            }
        }
    }
}

/* h = decay h + b in^T for LANES channels and the rows of the state from k on. Either y = c h, and `state` goes on, or
 * each h is written to `states`. */
INLINE void scan_rows(const int rows, int k, int n, const Work *w, int channel, vec *state, vec *states)
{
    const int N = w->N, W = w->W, S = w->S;
    const float *b = w->act + w->I + k, *c = b + N, *decays = w->decay + channel, *ins = w->in + channel;
    float *out = w->out + channel;
    vec h[CHUNK];
    for (int j = 0; j < rows; j++) h[j] = state[j * TILES];
    for (int q = 0; q < n; q++, b += W, c += W) {
        const vec decay = *(const vec *)(decays + q * S), in = *(const vec *)(ins + q * S);
        vec sums[2] = {{0}};
        if (states) states += N * TILES;
        for (int j = 0; j < rows; j++) {
            h[j] = decay * h[j] + b[j] * in;
            if (states)
                states[j * TILES] = h[j];
            else
                sums[j % 2] += c[j] * h[j];
        }
        if (!states) {
            vec *y = (vec *)(out + q * S);
            *y = k ? *y + sums[0] + sums[1] : sums[0] + sums[1];
        }
    }
    if (!states)
        for (int j = 0; j < rows; j++) state[j * TILES] = h[j];
}

/* The scan of the group of channels that begins with `from`: see above. */
INLINE void scan_group(int n, const Work *w, int from, vec *state, vec *states)
{
    for (int tile = 0; tile < TILES; tile++, state++, from += LANES) {
        int k = 0;
        for (; k + CHUNK <= w->N; k += CHUNK)
            scan_rows(CHUNK, k, n, w, from, state + k * TILES, states ? states + tile + k * TILES : NULL);
        if (k < w->N)
            scan_rows(w->N - k, k, n, w, from, state + k * TILES, states ? states + tile + k * TILES : NULL);
    }
}

static void scan(int n, const Work *w)
{
    for (int from = 0; from < w->S; from += GROUP)
        scan_group(n, w, from, (vec *)(w->state + (int64_t)from * w->N), NULL);
}

#endif
