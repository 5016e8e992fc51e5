// What stands before every .cu file here. REAL is float or double: each file is compiled once for either.
//
// Letters as in reference.py: b rows of the batch, D groups, K codes, s width of a group, n rows of a table, w width
// of a row. `books` is the first axis of a codebook, D, or 1 where it is shared. Arrays are in C order.
//
// Products and sums are rounded one by one (--fmad=false), so that responses, and with them codes, are those of
// the reference bit by bit. `fma` is said where one rounding will do.

typedef unsigned char Byte;
typedef unsigned long long Word;
typedef long long Index;

#define THREADS 256  // of a block, if nothing else is said: what hides latency without asking for many registers

#ifndef SHARED  // memory of a block, as many bytes as the launch asks for; a test on the host has its own
#define SHARED(name) extern __shared__ __align__(16) Byte name[]
#define UNROLL _Pragma("unroll")
#endif

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

// The threads of the grid, or its blocks, take numbers below n in turn, however many there are of them.
#define EACH(i, n) \
    for (Index i = blockIdx.x * (Index)blockDim.x + threadIdx.x; i < (n); i += gridDim.x * (Index)blockDim.x)
#define EACH_BLOCK(i, n) for (Index i = blockIdx.x; i < (n); i += gridDim.x)

// Of responses the largest is picked; ties to the first, and the first NaN is larger than all.
__device__ inline bool beats(REAL x, REAL best) { return !(x <= best) && best == best; }

// Sum over the threads of a block, known to all of them: always in the same order.
template <int N, class T> __device__ inline T block_sum(T x) {
    __shared__ T parts[N];
    __syncthreads();  // the sum before has been read
    parts[threadIdx.x] = x;
    for (int half = N / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    __syncthreads();
    return parts[0];
}
