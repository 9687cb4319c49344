/* Mamba-2 between its projections, whole rows, there and back: the recurrence itself, position by position.
 * Sizes and layout are those of native_mix.h.
 */
#include "native_mix.h"

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
    const unsigned int mode = flush_tiny();
    for (int64_t row = first; row < last; row++) (backward ? backward_row : forward_row)(&w, m, row);
    restore_mode(mode);
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
