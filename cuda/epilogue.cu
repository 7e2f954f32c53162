/* From accumulators to activations: what follows a cuBLASLt matmul. With a norm behind it: norm.cu. */
#include "cuda/rows.cuh"

/* --- finish --- */

/* The constants of four columns. */
struct cols4 {
    float4 mul, bias;
    int4 bias_acc;
};

__device__ __forceinline__ bool is_s8(int epi)
{
    return epi == SQ_EPI_S8 || epi == SQ_EPI_S8_RELU;
}

template <bool VEC>
__device__ __forceinline__ struct cols4 load_cols(const struct sq_gpu_finish &f, int i)
{
    struct cols4 c = {};
    if (f.epi == SQ_EPI_ACC)
        return c;
    c.mul = load_f4<VEC>(f.mul, i, f.n_out);
    if (!is_s8(f.epi))
        c.bias = load_f4<VEC>(f.bias, i, f.n_out);
    else if (f.bias_acc)
        c.bias_acc = load_i4<VEC>(f.bias_acc, i, f.n_out);
    return c;
}

__device__ __forceinline__ void dequant4(const struct sq_gpu_finish &f, int row, int4 a,
                                         const struct cols4 &c, float *v)
{
    if (f.x_scale) {
        const float scale = f.x_scale[row];
        v[0] = d_dequant_rows(a.x, scale, c.mul.x, c.bias.x);
        v[1] = d_dequant_rows(a.y, scale, c.mul.y, c.bias.y);
        v[2] = d_dequant_rows(a.z, scale, c.mul.z, c.bias.z);
        v[3] = d_dequant_rows(a.w, scale, c.mul.w, c.bias.w);
    } else {
        v[0] = d_dequant(a.x, c.mul.x, c.bias.x);
        v[1] = d_dequant(a.y, c.mul.y, c.bias.y);
        v[2] = d_dequant(a.z, c.mul.z, c.bias.z);
        v[3] = d_dequant(a.w, c.mul.w, c.bias.w);
    }
}

__device__ __forceinline__ uint32_t requant4(int4 a, const struct cols4 &c, bool relu)
{
    float v[4] = {
        d_requant_real(a.x, c.bias_acc.x, c.mul.x), d_requant_real(a.y, c.bias_acc.y, c.mul.y),
        d_requant_real(a.z, c.bias_acc.z, c.mul.z), d_requant_real(a.w, c.bias_acc.w, c.mul.w)};
#pragma unroll
    for (int k = 0; k < 4; k++)
        v[k] = relu ? fmaxf(v[k], 0.0f) : v[k];
    return d_codes4(v[0], v[1], v[2], v[3]);
}

/* Quad i of a row; y: what was there, for ADD. */
template <bool VEC>
__device__ __forceinline__ void finish4(const struct sq_gpu_finish &f, int row, int i, int4 a,
                                        const struct cols4 &c, float4 y)
{
    const int n_out = f.n_out;
    float *to = f.y + (size_t)row * f.ld_y, v[4];
    int8_t *q = f.y_q.q + (size_t)row * f.y_q.stride;
    if (is_s8(f.epi)) {
        store_codes<4>(q, i, n_out, requant4(a, c, f.epi == SQ_EPI_S8_RELU));
        return;
    }
    if (f.epi == SQ_EPI_ACC) {
        v[0] = __int_as_float(a.x), v[1] = __int_as_float(a.y);
        v[2] = __int_as_float(a.z), v[3] = __int_as_float(a.w);
        store_floats<4, VEC>(to, i, n_out, v);
        return;
    }
    dequant4(f, row, a, c, v);
    if (f.epi == SQ_EPI_SWIGLU_S8 || f.epi == SQ_EPI_SWIGLU_F32) {
        v[0] = d_swiglu(v[0], v[1]), v[1] = d_swiglu(v[2], v[3]);
        if (f.epi == SQ_EPI_SWIGLU_F32)
            store_floats<2, VEC>(to, i, n_out / 2, v);
        else
            store_codes<2>(q, i, n_out / 2, codes_of<2>(v, f.inv_step));
        return;
    }
    if (f.epi == SQ_EPI_F32_RELU) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] = d_relu(v[k]);
    } else if (f.epi == SQ_EPI_ADD) {
        v[0] = __fadd_rn(y.x, v[0]), v[1] = __fadd_rn(y.y, v[1]);
        v[2] = __fadd_rn(y.z, v[2]), v[3] = __fadd_rn(y.w, v[3]);
    }
    store_floats<4, VEC>(to, i, n_out, v);
}

/* A thread takes a quad of R rows: the constants are read once for them. */
template <bool VEC, int R> __global__ void finish_kernel(const struct sq_gpu_finish f)
{
    const int row0 = blockIdx.x * R, i = blockIdx.y * blockDim.x + threadIdx.x;
    int4 acc[R];
    float4 y[R] = {};
    if (4 * i >= f.n_out)
        return;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (row0 + r >= f.n_rows)
            break;
        acc[r] = load_i4<VEC>(f.acc + (size_t)(row0 + r) * f.ld_acc, i, f.n_out);
        if (f.epi == SQ_EPI_ADD)
            y[r] = load_f4<VEC>(f.y + (size_t)(row0 + r) * f.ld_y, i, f.n_out);
    }
    const struct cols4 c = load_cols<VEC>(f, i);
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (row0 + r >= f.n_rows)
            break;
        finish4<VEC>(f, row0 + r, i, acc[r], c, y[r]);
    }
}

/* SwiGLU codes with a step per row */
template <bool VEC> struct src_acc_swiglu {
    static const int N = 2;
    static const bool vec = VEC;
    struct sq_gpu_finish f;
    __device__ __forceinline__ void get(int row, int i, float *v) const
    {
        const int4 a = load_i4<VEC>(f.acc + (size_t)row * f.ld_acc, i, f.n_out);
        float t[4];
        dequant4(f, row, a, load_cols<VEC>(f, i), t);
        v[0] = d_swiglu(t[0], t[1]), v[1] = d_swiglu(t[2], t[3]);
    }
};

template <bool VEC> static cudaError_t finish(cudaStream_t st, const struct sq_gpu_finish *f)
{
    const int quads = n_quads(f->n_out), threads = threads_for(quads, MAP_THREADS);
    const int chunks = (quads + threads - 1) / threads;
    if (f->epi == SQ_EPI_SWIGLU_S8 && f->inv_step == 0.0f)
        return quant_dynamic(st, src_acc_swiglu<VEC>{*f}, f->n_rows, quads, f->n_out / 2, f->y_q);
    const int R = VEC ? 4 : 1; /* where that leaves blocks enough */
    if ((long)f->n_rows * chunks >= 4 * MANY_ROWS)
        finish_kernel<VEC, R><<<dim3((f->n_rows + R - 1) / R, chunks), threads, 0, st>>>(*f);
    else
        finish_kernel<VEC, 1><<<dim3(f->n_rows, chunks), threads, 0, st>>>(*f);
    return cudaGetLastError();
}

cudaError_t sq_gpu_finish(cudaStream_t st, const struct sq_gpu_finish *f)
{
    if (f->n_rows <= 0 || f->n_out <= 0)
        return cudaSuccess;
    const bool vec = f->n_out % 4 == 0 && f->ld_acc % 4 == 0 && f->ld_y % 4 == 0 &&
                     aligned16(f->acc) && aligned16(f->mul) && aligned16(f->bias) &&
                     aligned16(f->bias_acc) && aligned16(f->y);
    return vec ? finish<true>(st, f) : finish<false>(st, f);
}

/* --- ReLU of codes --- */

__global__ void relu_s8_kernel(struct sq_gpu_codes y, int cols)
{
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    int8_t *q = y.q + (size_t)blockIdx.x * y.stride + 16 * i;
    if (16 * i + 16 <= cols) {
        uint4 v = *(const uint4 *)q;
        v.x = __vmaxs4(v.x, 0), v.y = __vmaxs4(v.y, 0);
        v.z = __vmaxs4(v.z, 0), v.w = __vmaxs4(v.w, 0);
        *(uint4 *)q = v;
        return;
    }
    for (int k = 0; 16 * i + k < cols; k++)
        q[k] = max(q[k], 0);
}

cudaError_t sq_gpu_relu_s8(cudaStream_t st, struct sq_gpu_codes y, int n_rows, int cols)
{
    const int n = (cols + 15) / 16, threads = threads_for(n, MAP_THREADS);
    if (n_rows <= 0 || cols <= 0)
        return cudaSuccess;
    relu_s8_kernel<<<dim3(n_rows, (n + threads - 1) / threads), threads, 0, st>>>(y, cols);
    return cudaGetLastError();
}

/* --- float matmuls --- */

template <bool VEC> struct src_float {
    static const int N = 4;
    static const bool vec = VEC;
    const float *r, *bias, *y;
    int n_out, epi;
    __device__ __forceinline__ void get(int row, int i, float *v) const
    {
        const size_t at = (size_t)row * n_out;
        const float4 t = load_f4<VEC>(r + at, i, n_out);
        const float4 b = bias ? load_f4<VEC>(bias, i, n_out) : make_float4(0, 0, 0, 0);
        v[0] = __fadd_rn(t.x, b.x), v[1] = __fadd_rn(t.y, b.y);
        v[2] = __fadd_rn(t.z, b.z), v[3] = __fadd_rn(t.w, b.w);
        if (epi == SQ_EPI_F32_RELU) {
#pragma unroll
            for (int k = 0; k < 4; k++)
                v[k] = d_relu(v[k]);
        } else if (epi == SQ_EPI_ADD) {
            const float4 o = load_f4<VEC>(y + at, i, n_out);
            v[0] = __fadd_rn(o.x, v[0]), v[1] = __fadd_rn(o.y, v[1]);
            v[2] = __fadd_rn(o.z, v[2]), v[3] = __fadd_rn(o.w, v[3]);
        }
    }
};

cudaError_t sq_gpu_finish_float(cudaStream_t st, const float *r, int n_rows, int n_out,
                                const float *bias, int epi, float *y)
{
    struct map_to to = {};
    if (epi != SQ_EPI_F32 && epi != SQ_EPI_F32_RELU && epi != SQ_EPI_ADD)
        return cudaErrorInvalidValue;
    to.quads = n_quads(n_out), to.cols = n_out, to.y = y, to.ld_y = n_out;
    if (n_out % 4 == 0 && aligned16(r) && aligned16(bias) && aligned16(y))
        return map_rows(st, src_float<true>{r, bias, y, n_out, epi}, n_rows, to);
    return map_rows(st, src_float<false>{r, bias, y, n_out, epi}, n_rows, to);
}
