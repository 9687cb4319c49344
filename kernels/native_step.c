/* One position of Mamba-2 between its projections, a row at a time: the state is read and written once.
 *
 * Sizes: H heads of P, I = H * P, N state, W = I + 2 N, K filter taps, E = I + W + H. All arrays are dense fp32.
 */
#include "native.h"

#define BLOCK 64 /* entries of I whose sums stay in registers while the state's rows go by */

/* h = decay h + b x^T and y = c h, for n entries of I from `from` on. */
static inline void scan_block(const int n, const int from, const int I, const int N, const float *restrict old,
                              float *state, const float *restrict decay, const float *restrict x,
                              const float *restrict b, const float *restrict c, float *restrict y)
{
    float d[BLOCK], v[BLOCK], sum[BLOCK];
    for (int i = 0; i < n; i++) {
        d[i] = decay[from + i];
        v[i] = x[from + i];
        sum[i] = 0.0f;
    }
    for (int k = 0; k < N; k++) {
        const float *before = old + (int64_t)k * I + from;
        float *after = state + (int64_t)k * I + from;
        const float bk = b[k], ck = c[k];
        INDEPENDENT
        for (int i = 0; i < n; i++) {
            const float h = before[i] * d[i] + bk * v[i];
            after[i] = h;
            sum[i] += ck * h;
        }
    }
    for (int i = 0; i < n; i++) y[from + i] = sum[i];
}

int worldmodel_mamba_step(const float *u, const float *conv, const float *ssm, const float *filters /* (K, W) */,
                          const float *filter_bias, const float *dt_bias, const float *A_log, const float *D,
                          const float *norm, const uint8_t *active, float *y, float *new_conv, float *new_ssm,
                          int64_t first, int64_t last, int H, int P, int N, int K)
{
    const int I = H * P, W = I + 2 * N, E = I + W + H;
    const int64_t window = (int64_t)(K - 1) * W, state = (int64_t)N * I;
    float *scratch = malloc(sizeof(float) * (W + 2 * I));
    if (!scratch) return 1;
    float *mixed = scratch, *decay = scratch + W, *dtx = scratch + W + I;
    const unsigned int mode = flush_tiny();
    for (int64_t row = first; row < last; row++) {
        const float *conv_row = conv + row * window, *ssm_row = ssm + row * state;
        float *new_conv_row = new_conv + row * window, *new_ssm_row = new_ssm + row * state, *out = y + row * I;
        if (active && !active[row]) {
            if (new_ssm != ssm) {
                memcpy(new_conv_row, conv_row, sizeof(float) * window);
                memcpy(new_ssm_row, ssm_row, sizeof(float) * state);
            }
            memset(out, 0, sizeof(float) * I);
            continue;
        }
        const float *z = u + row * E, *now = z + I, *dt = now + W;
        for (int w = 0; w < W; w++) mixed[w] = filter_bias[w] + filters[(int64_t)(K - 1) * W + w] * now[w];
        for (int k = 0; k < K - 1; k++)
            for (int w = 0; w < W; w++) mixed[w] += filters[(int64_t)k * W + w] * conv_row[(int64_t)k * W + w];
        for (int w = 0; w < W; w++) mixed[w] *= sigmoid(mixed[w]);
        if (K > 1) {
            memmove(new_conv_row, conv_row + W, sizeof(float) * (window - W));
            memcpy(new_conv_row + window - W, now, sizeof(float) * W);
        }
        for (int h = 0; h < H; h++) {
            const float step = softplus(dt[h] + dt_bias[h]), left = exponential(-step * expf(A_log[h]));
            for (int p = 0; p < P; p++) {
                decay[h * P + p] = left;
                dtx[h * P + p] = step * mixed[h * P + p];
            }
        }
        const float *b = mixed + I, *c = mixed + I + N;
        int i = 0;
        for (; i + BLOCK <= I; i += BLOCK) scan_block(BLOCK, i, I, N, ssm_row, new_ssm_row, decay, dtx, b, c, out);
        if (i < I) scan_block(I - i, i, I, N, ssm_row, new_ssm_row, decay, dtx, b, c, out);
        float squares = 0.0f;
        for (int h = 0; h < H; h++)
            for (int p = 0; p < P; p++) out[h * P + p] += D[h] * mixed[h * P + p];
        for (int j = 0; j < I; j++) {
            out[j] *= z[j] * sigmoid(z[j]);
            squares += out[j] * out[j];
        }
        const float scale = 1.0f / sqrtf(squares / I + 1e-5f);
        for (int j = 0; j < I; j++) out[j] *= scale * norm[j];
    }
    restore_mode(mode);
    free(scratch);
    return 0;
}
