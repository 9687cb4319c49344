/* Mamba-2 between its projections, whole rows, there and back: the recurrence itself, position by position.
 *
 * Sizes: L positions, H heads of P, I = H * P, N state, W = I + 2 N convolved, K filter taps, E = I + W + H projected.
 * What comes in and goes out is dense fp32. In here the channels of I lie in groups of GROUP, the last filled up with
 * zeros; S is I rounded up so. A state is one group after the other, each N rows of its channels.
 *
 * A row is walked over in blocks of Q positions, so that what belongs to a block stays near the processor. Forward
 * keeps the states that enter the blocks; backward takes each block up from there, the last one first.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* LANES fill a register; what the way back holds of a group, five times TILES, fits into all of them. */
#if defined(__AVX512F__)
#define LANES 16
#define TILES 4
#elif defined(__AVX__)
#define LANES 8
#define TILES 2
#else
#define LANES 4
#define TILES 4
#endif
#define GROUP (LANES * TILES)
#define CHUNK 16 /* rows of a state that stay in registers while the positions go by */

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep") /* the arrays of the loop do not overlap */
#endif

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float four __attribute__((vector_size(16), may_alias));

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

INLINE float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    const float n = rintf(x * 1.44269504f), r = x - n * 0.693147181f;
    const float p = 0.49999994f + r * (0.1666652f + r * (0.041668393f + r * (0.008368781f + r * 0.0013814471f)));
    const union {
        int32_t bits;
        float number;
    } two_to_n = {((int32_t)n + 127) << 23};
    return (1.0f + r * (1.0f + r * p)) * two_to_n.number;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* log(1 + e) = 2 artanh(e / (2 + e)): no digits are lost where e is small. */
INLINE float softplus(float x)
{
    const float e = exponential(x < 0.0f ? x : -x), s = e / (2.0f + e), q = s * s;
    const float series = 1.0f + q * (0.33333206f + q * (0.2001081f + q * (0.14000423f + q * 0.14007562f)));
    return (x > 0.0f ? x : 0.0f) + 2.0f * s * series;
}

INLINE four quarter(vec x)
{
    const union {
        vec all;
        four parts[LANES / 4];
    } u = {x};
    four sum = u.parts[0];
    for (int i = 1; i < LANES / 4; i++) sum += u.parts[i];
    return sum;
}

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

/* D x, the gate and the norm, at one position. */
static void leave(const Work *w, int q, const float *z, const float *norm, float *y)
{
    const float *x = w->act + q * w->W, *out = w->out + q * w->S, *D = w->D;
    float squares = 0.0f;
    INDEPENDENT
    for (int i = 0; i < w->I; i++) {
        y[i] = (out[i] + D[i] * x[i]) * z[i] * sigmoid(z[i]);
        squares += y[i] * y[i];
    }
    const float scale = 1.0f / sqrtf(squares / w->I + 1e-5f);
    INDEPENDENT
    for (int i = 0; i < w->I; i++) y[i] *= scale * norm[i];
}

static void forward_row(const Work *w, const Mix *m, int64_t row)
{
    const int64_t size = (int64_t)w->S * w->N;
    const float *u = m->u + row * w->L * w->E;
    float *y = m->y + row * w->L * w->I, *kept = m->kept;
    if (kept) kept += row * ((w->L - 1) / w->Q) * size;
    find_reach(w, m->reset ? m->reset + row * w->L : NULL);
    memset(w->state, 0, sizeof(float) * size);
    for (int t = 0; t < w->L; t += w->Q) {
        const int n = w->L - t < w->Q ? w->L - t : w->Q;
        if (kept && t) {
            memcpy(kept, w->state, sizeof(float) * size);
            kept += size;
        }
        enter(w, m, u, t, n);
        scan(n, w);
        for (int q = 0; q < n; q++) leave(w, q, u + (int64_t)(t + q) * w->E, m->norm, y + (int64_t)(t + q) * w->I);
    }
}

/* Back through the norm, the gate and D x. The gradient of v / |v| leaves out what only changes the length of v. */
static void leave_back(const Work *w, int q, const float *z, const float *norm, const float *dy, float *dz,
                       float *dnorm)
{
    const int I = w->I;
    const float *x = w->act + q * w->W, *out = w->out + q * w->S, *D = w->D;
    float *dout = w->dout + q * w->S, *dD = w->dD, *gate = w->gate, *slope = gate + I, *y = slope + I;
    float squares = 0.0f, along = 0.0f;
    INDEPENDENT
    for (int i = 0; i < I; i++) {
        const float open = sigmoid(z[i]);
        gate[i] = z[i] * open;
        slope[i] = open + gate[i] * (1.0f - open);
        y[i] = out[i] + D[i] * x[i];
        const float gated = y[i] * gate[i];
        squares += gated * gated;
        along += dy[i] * norm[i] * gated;
    }
    const float scale = 1.0f / sqrtf(squares / I + 1e-5f);
    along *= scale * scale / I;
    INDEPENDENT
    for (int i = 0; i < I; i++) {
        const float gated = y[i] * gate[i];
        const float dgated = (dy[i] * norm[i] - gated * along) * scale;
        dnorm[i] += dy[i] * gated * scale;
        dz[i] = dgated * y[i] * slope[i];
        dout[i] = dgated * gate[i];
        dD[i] += dout[i] * x[i];
    }
}

/* Back through the scan of one group at one position. `states` are those after the position before, and after it. */
INLINE void scan_back(const Work *w, int q, int from, const vec *states, vec *dstate)
{
    const int N = w->N, at = q * w->S + from;
    const float *b = w->act + q * w->W + w->I, *c = b + N;
    const vec *before = states, *h = states + N * TILES;
    four *db = (four *)w->dbc + q * 2 * N, *dc = db + N;
    vec decay[TILES], in[TILES], dout[TILES], din[TILES], dlog[TILES];
    for (int i = 0; i < TILES; i++) {
        decay[i] = ((const vec *)(w->decay + at))[i];
        in[i] = ((const vec *)(w->in + at))[i];
        dout[i] = ((const vec *)(w->dout + at))[i];
        din[i] = dlog[i] = (vec){0};
    }
    for (int k = 0; k < N; k++, h += TILES, before += TILES, dstate += TILES) {
        vec db_k = {0}, dc_k = {0};
        for (int i = 0; i < TILES; i++) {
            const vec dh = dstate[i] + c[k] * dout[i];
            dc_k += dout[i] * h[i];
            db_k += in[i] * dh;
            din[i] += b[k] * dh;
            dlog[i] += dh * before[i];
            dstate[i] = decay[i] * dh;
        }
        db[k] += quarter(db_k);
        dc[k] += quarter(dc_k);
    }
    for (int i = 0; i < TILES; i++) {
        ((vec *)(w->din + at))[i] = din[i];
        ((vec *)(w->dlog + at))[i] = decay[i] * dlog[i];
    }
}

/* From the scan to what the convolution gave and to dt, at one position. */
static void enter_back(const Work *w, int q, float *ddt, float *ddt_bias, float *dA_log)
{
    const int I = w->I, W = w->W, H = w->H, P = w->P;
    const float *open = w->open + q * W, *act = w->act + q * W, *dbc = w->dbc + q * 2 * w->N * 4;
    float *dmixed = w->dmixed + q * W;
    for (int h = 0; h < H; h++) {
        const int at = q * w->S + h * P;
        const float *din = w->din + at, *dlog = w->dlog + at, *dout = w->dout + at, *x = act + h * P;
        const float dt = w->dt[q * H + h], A = w->A[h], D = w->D[h * P];
        float *dx = dmixed + h * P, dstep = 0.0f, dlog_h = 0.0f;
        INDEPENDENT
        for (int p = 0; p < P; p++) {
            dstep += din[p] * x[p];
            dlog_h += dlog[p];
            dx[p] = din[p] * dt + dout[p] * D;
        }
        dA_log[h] += dlog_h * dt * A;
        ddt[h] = (dstep + dlog_h * A) * w->dt_open[q * H + h];
        ddt_bias[h] += ddt[h];
    }
    INDEPENDENT
    for (int k = 0; k < 2 * w->N; k++)
        dmixed[I + k] = (dbc[4 * k] + dbc[4 * k + 1]) + (dbc[4 * k + 2] + dbc[4 * k + 3]);
    INDEPENDENT
    for (int i = 0; i < W; i++) dmixed[i] *= open[i] + act[i] * (1.0f - open[i]);
}

/* Back through the convolution at the position t, q in its block. */
static void convolve_back(const Work *w, int t, int q, const float *x, float *dx, float *dfilters, float *dbias)
{
    const int W = w->W, K = w->K;
    const float *dmixed = w->dmixed + q * W, *filters = w->filters;
    float *dlast = dfilters + (K - 1) * W;
    INDEPENDENT
    for (int i = 0; i < W; i++) {
        dbias[i] += dmixed[i];
        dlast[i] += dmixed[i] * x[i];
        dx[i] = dmixed[i] * filters[i];
    }
    for (int back = 1; back < K && back <= w->reach[t]; back++) {
        const float *before = x - (int64_t)back * w->E;
        float *dtap = dlast - back * W;
        INDEPENDENT
        for (int i = 0; i < W; i++) dtap[i] += dmixed[i] * before[i];
    }
    for (int on = 1; on < K && t + on < w->L && w->reach[t + on] >= on; on++) {
        INDEPENDENT
        for (int i = 0; i < W; i++) dx[i] += dmixed[on * W + i] * filters[on * W + i];
    }
}

static void backward_row(const Work *w, const Mix *m, int64_t row)
{
    const int I = w->I, W = w->W, E = w->E, H = w->H, N = w->N, K = w->K, Q = w->Q, L = w->L;
    const int blocks = (L + Q - 1) / Q;
    const int64_t size = (int64_t)w->S * N, weights = (int64_t)(K + 1) * W + 3 * H + I;
    const float *u = m->u + row * L * E, *dy = m->dy + row * L * I;
    float *du = m->du + row * L * E;
    float *dfilters = m->dweights + row * weights, *dfilter_bias = dfilters + K * W, *ddt_bias = dfilter_bias + W;
    float *dA_log = ddt_bias + H, *dD = dA_log + H, *dnorm = dD + H;
    find_reach(w, m->reset ? m->reset + row * L : NULL);
    memset(dfilters, 0, sizeof(float) * weights);
    memset(w->dstate, 0, sizeof(float) * size);
    memset(w->dD, 0, sizeof(float) * w->S);
    for (int block = blocks - 1; block >= 0; block--) {
        const int start = block * Q, n = L - start < Q ? L - start : Q;
        const float *z = u + (int64_t)start * E;
        float *dz = du + (int64_t)start * E;
        const float *entering = block ? m->kept + (row * (blocks - 1) + block - 1) * size : w->zeros;
        memcpy(w->state, entering, sizeof(float) * size);
        enter(w, m, u, start, n);
        scan(n, w);
        for (int q = 0; q < n; q++)
            leave_back(w, q, z + q * E, m->norm, dy + (int64_t)(start + q) * I, dz + q * E, dnorm);

        memset(w->dbc, 0, sizeof(four) * n * 2 * N);
        for (int from = 0; from < w->S; from += GROUP) {
            vec *states = (vec *)w->states, *dstate = (vec *)(w->dstate + (int64_t)from * N);
            memcpy(states, entering + (int64_t)from * N, sizeof(float) * GROUP * N);
            scan_group(n, w, from, states, states);
            for (int q = n - 1; q >= 0; q--) scan_back(w, q, from, states + q * N * TILES, dstate);
        }

        memcpy(w->dmixed + Q * W, w->dmixed, sizeof(float) * (K - 1) * W);
        for (int q = 0; q < n; q++) enter_back(w, q, dz + (q + 1) * E - H, ddt_bias, dA_log);
        for (int q = 0; q < n; q++)
            convolve_back(w, start + q, q, z + q * E + I, dz + q * E + I, dfilters, dfilter_bias);
    }
    for (int h = 0; h < H; h++) {
        dD[h] = 0.0f;
        for (int p = 0; p < w->P; p++) dD[h] += w->dD[h * w->P + p];
    }
}

static int over_rows(const Mix *m, int64_t first, int64_t last, int backward)
{
    Work w;
    void *memory = set_up(&w, m, backward);
    if (!memory) return 1;
#if defined(__x86_64__)
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* what has decayed below the normal numbers is zero, and not slow */
#endif
    for (int64_t row = first; row < last; row++) (backward ? backward_row : forward_row)(&w, m, row);
#if defined(__x86_64__)
    _mm_setcsr(mode);
#endif
    free(memory);
    return 0;
}

int worldmodel_mamba_mix(const Mix *m, int64_t first, int64_t last) { return over_rows(m, first, last, 0); }

int worldmodel_mamba_mix_back(const Mix *m, int64_t first, int64_t last) { return over_rows(m, first, last, 1); }

/* How many numbers of `kept` belong to a row. */
int64_t worldmodel_mamba_mix_kept(const Mix *m)
{
    Work w;
    lay_out(&w, m, NULL, 0);
    return m->L ? (m->L - 1) / w.Q * w.S * w.N : 0;
}
