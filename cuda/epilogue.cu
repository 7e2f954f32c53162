/* From accumulators to activations: what follows a cuBLASLt matmul. With a norm behind it: norm.cu. */
#include "cuda/finish.cuh"
#include "cuda/rows.cuh"

/* --- finish --- */

/* The constants of four columns, as finish.cuh wants them. */
struct cols4 {
    float4 mul, bias;
};

template <bool VEC>
__device__ __forceinline__ struct cols4 load_cols(const struct sq_gpu_finish &f, int i)
{
    const float *bias = finish_is_s8(f.epi) ? (const float *)f.bias_acc : f.bias;
    struct cols4 c = {};
    if (f.epi == SQ_EPI_ACC)
        return c;
    c.mul = load4<VEC>(f.mul, i, f.n_out);
    if (bias)
        c.bias = load4<VEC>(bias, i, f.n_out);
    return c;
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
        acc[r] = load4<VEC>(f.acc + (size_t)(row0 + r) * f.ld_acc, i, f.n_out);
        if (f.epi == SQ_EPI_ADD)
            y[r] = load4<VEC>(f.y + (size_t)(row0 + r) * f.ld_y, i, f.n_out);
    }
    const struct cols4 c = load_cols<VEC>(f, i);
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (row0 + r >= f.n_rows)
            break;
        if (f.epi == SQ_EPI_ACC)
            store4<VEC>((int32_t *)f.y + (size_t)(row0 + r) * f.ld_y, i, f.n_out, acc[r]);
        else
            finish_quad(f, {row0 + r, 4 * i, f.n_out}, acc[r], c.mul, c.bias, y[r], VEC);
    }
}

/* SwiGLU codes with a step per row */
template <bool VEC> struct src_acc_swiglu {
    static const int N = 2;
    static const bool vec = VEC;
    struct sq_gpu_finish f;
    __device__ __forceinline__ void get(int row, int i, float *v) const
    {
        const int4 a = load4<VEC>(f.acc + (size_t)row * f.ld_acc, i, f.n_out);
        const float4 t = finish_dequant(f, row, a, load4<VEC>(f.mul, i, f.n_out),
                                        load4<VEC>(f.bias, i, f.n_out));
        v[0] = d_swiglu(t.x, t.y), v[1] = d_swiglu(t.z, t.w);
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
        const float4 b = bias ? load4<VEC>(bias, i, n_out) : make_float4(0, 0, 0, 0);
        float4 t = add_f4(load4<VEC>(r + at, i, n_out), b);
        if (epi == SQ_EPI_F32_RELU)
            t = relu_f4(t);
        else if (epi == SQ_EPI_ADD)
            t = add_f4(load4<VEC>(y + at, i, n_out), t);
        v[0] = t.x, v[1] = t.y, v[2] = t.z, v[3] = t.w;
    }
};

cudaError_t sq_gpu_finish_float(cudaStream_t st, const float *r, int n_rows, int n_out,
                                const float *bias, int epi, float *y)
{
    struct map_to to = {};
    if (epi != SQ_EPI_F32 && epi != SQ_EPI_F32_RELU && epi != SQ_EPI_ADD)
        return cudaErrorInvalidValue;
    to.quads = n_quads(n_out), to.cols = n_out, to.y = y;
    if (n_out % 4 == 0 && aligned16(r) && aligned16(bias) && aligned16(y))
        return map_rows(st, src_float<true>{r, bias, y, n_out, epi}, n_rows, to);
    return map_rows(st, src_float<false>{r, bias, y, n_out, epi}, n_rows, to);
}
