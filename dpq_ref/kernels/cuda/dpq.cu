// Responses, codes and batch-norm statistics of DPQ. The responses of a batch are never written to memory.
//
// A tile is some rows of one group, a row to a thread, in shared memory transposed: q[c][r]. Its lines are one number
// longer than it has rows, so that threads that fill them crosswise, one query after the other, meet different banks.
// Keys lie there in packs, book[k / PACK][c][k % PACK], and all threads read the same one. A thread holds
// PACK responses in registers: a number read from a query serves PACK products.

#define ROWS 128  // of a tile
#define FEW 64    // where it has to hold responses as well
#define PACK 8
#define SLICE 32  // keys at a time, in sums over rows
#define LINE(rows) ((rows) + 1)

__device__ inline const REAL* group(const REAL* book, int books, int j, int K, int s) {
    return book + (books > 1 ? (Index)j * K * s : 0);
}

// <q, k> or -|q - k|^2, coordinate after coordinate.
__device__ inline REAL respond(const REAL* q, const REAL* k, int s, int euclidean) {
    REAL total = 0;
    for (int c = 0; c < s; c++) {
        REAL difference = q[c] - k[c];
        if (euclidean) total -= difference * difference;
        else total += q[c] * k[c];
    }
    return total;
}

KERNEL(THREADS)
responses(const REAL* query, const REAL* keys, int euclidean, Index b, int D, int K, int s, int books, REAL* out) {
    EACH(e, b * D * K) {
        Index row = e / K;
        out[e] = respond(query + row * s, group(keys, books, row % D, K, s) + e % K * s, s, euclidean);
    }
}

KERNEL(THREADS)
argmax_code(const REAL* responses, Index rows, int K, int* codes) {
    EACH(row, rows) {
        const REAL* x = responses + row * K;
        int code = 0;
        for (int k = 1; k < K; k++) if (beats(x[k], x[code])) code = k;
        codes[row] = code;
    }
}

KERNEL(THREADS)
code_distances(
    const REAL* query, const REAL* keys, const int* codes, Index b, int D, int K, int s, int books, REAL* out) {
    EACH(row, b * D) {
        out[row] = -respond(query + row * s, group(keys, books, row % D, K, s) + (Index)codes[row] * s, s, 1);
    }
}

// Codes without shared memory, for what does not fit into it, and to compare `tile_codes` with.
KERNEL(THREADS)
plain_codes(
    const REAL* query, const REAL* keys, const REAL* mean, const REAL* deviation, const REAL* noise, int euclidean,
    Index b, int D, int K, int s, int books, int* codes) {
    EACH(row, b * D) {
        const REAL* book = group(keys, books, row % D, K, s);
        REAL best = 0;
        int code = 0;
        for (int k = 0; k < K; k++) {
            REAL x = respond(query + row * s, book + (Index)k * s, s, euclidean);
            if (mean) x = (x - mean[k]) / deviation[k];
            if (noise) x += noise[row * K + k];
            if (k == 0 || beats(x, best)) best = x, code = k;
        }
        codes[row] = code;
    }
}

// tile[c][r] = x[start + r, j, c] for r < rows; the threads of a block read whole rows.
__device__ inline void load_rows(
    const REAL* x, Index start, int rows, int j, int D, int s, int threads, REAL* tile) {
    int r = threadIdx.x / s, c = threadIdx.x % s;
    while (r < rows) {
        tile[c * LINE(threads) + r] = x[((start + r) * D + j) * s + c];
        r += threads / s;
        c += threads % s;
        if (c >= s) c -= s, r++;
    }
}

__device__ inline void store_rows(
    const REAL* tile, Index start, int rows, int j, int D, int s, int threads, REAL* x) {
    int r = threadIdx.x / s, c = threadIdx.x % s;
    while (r < rows) {
        x[((start + r) * D + j) * s + c] = tile[c * LINE(threads) + r];
        r += threads / s;
        c += threads % s;
        if (c >= s) c -= s, r++;
    }
}

// packs[k / PACK][c][k % PACK] = book[first + k][c] for k < n, 0 beyond the book.
__device__ inline void load_keys(const REAL* book, int first, int n, int K, int s, int threads, REAL* packs) {
    for (int e = threadIdx.x; e < n * s; e += threads) {
        int k = first + e / (PACK * s) * PACK + e % PACK;
        packs[e] = k < K ? book[(Index)k * s + e / PACK % s] : 0;
    }
}

// Responses of a row to the keys of a pack; FUSED is a dot product with one rounding a step.
enum Way { DOT, DISTANCE, FUSED };

template <Way WAY> __device__ inline void respond_pack(const REAL* q, int line, const REAL* pack, int s, REAL* x) {
    UNROLL for (int t = 0; t < PACK; t++) x[t] = 0;
    for (int c = 0; c < s; c++) {
        REAL number = q[c * line];
        UNROLL for (int t = 0; t < PACK; t++) {
            REAL other = pack[c * PACK + t], difference = number - other;
            if (WAY == DOT) x[t] += number * other;
            if (WAY == DISTANCE) x[t] -= difference * difference;
            if (WAY == FUSED) x[t] = fma(number, other, x[t]);
        }
    }
}

template <Way WAY>
__device__ inline void codes_of_tiles(
    const REAL* query, const REAL* keys, const REAL* mean, const REAL* deviation, const REAL* noise, Index b, int D,
    int K, int s, int books, int staged, REAL* q, int* codes) {
    REAL* packs = q + s * LINE(ROWS);
    EACH_BLOCK(tile, (b + ROWS - 1) / ROWS * D) {  // neighbouring blocks have neighbouring groups of the same rows
        int j = tile % D, r = threadIdx.x, code = 0;
        Index start = tile / D * ROWS, row = (start + r) * D + j;
        int rows = b - start < ROWS ? b - start : ROWS;
        REAL x[PACK], best = 0;
        __syncthreads();  // the tile before has been read
        load_rows(query, start, rows, j, D, s, ROWS, q);
        for (int first = 0; first < K; first += staged) {
            __syncthreads();
            load_keys(group(keys, books, j, K, s), first, staged, K, s, ROWS, packs);
            __syncthreads();
            for (int at = first; at < first + staged && at < K && r < rows; at += PACK) {
                respond_pack<WAY>(q + r, LINE(ROWS), packs + (at - first) * s, s, x);
                UNROLL for (int t = 0; t < PACK; t++) {
                    int k = at + t;
                    if (k >= K) continue;
                    if (mean) x[t] = (x[t] - mean[k]) / deviation[k];
                    if (noise) x[t] += noise[row * K + k];
                    if (k == 0 || beats(x[t], best)) best = x[t], code = k;
                }
            }
        }
        if (r < rows) codes[row] = code;
    }
}

// Shared memory: q, and `staged` keys, a multiple of PACK. ROWS threads: 4 warps that share keys, and a tile so small
// that several blocks fit on a processor, where one loads while others multiply.
KERNEL(ROWS)
tile_codes(
    const REAL* query, const REAL* keys, const REAL* mean, const REAL* deviation, const REAL* noise, int euclidean,
    Index b, int D, int K, int s, int books, int staged, int* codes) {
    SHARED(memory);
    REAL* q = (REAL*)memory;
    if (euclidean) codes_of_tiles<DISTANCE>(query, keys, mean, deviation, noise, b, D, K, s, books, staged, q, codes);
    else codes_of_tiles<DOT>(query, keys, mean, deviation, noise, b, D, K, s, books, staged, q, codes);
}

// Moments of responses about those of the first row, so that no digits go: with u = q - q0, a response differs from
// the first row's by y = <u, k>, a distance by y = <u, 2 (k - q0)> - <u, u>.
// sums[chunk,0,j,k] = sum of counts[i] y, sums[chunk,1,j,k] = sum of counts[i] y^2 over the rows of a chunk.
//
// A block has SLICE keys of one group. Shared memory: q, the keys, y[k][r] and the counts. FEW threads: each computes
// the y of a row, then adds up those of a key over SLICE rows.
KERNEL(FEW)
tile_moments(
    const REAL* query, const REAL* keys, const REAL* counts, int euclidean, Index b, int D, int K, int s, int books,
    int chunks, double* sums) {
    SHARED(memory);
    __shared__ double halves[2][FEW];
    REAL* q = (REAL*)memory;
    REAL *packs = q + s * LINE(FEW), *y = packs + SLICE * s, *weights = y + SLICE * LINE(FEW);
    int slices = (K + SLICE - 1) / SLICE, r = threadIdx.x, k = r % SLICE, from = r / SLICE * SLICE;
    Index tiles = (b + FEW - 1) / FEW;
    EACH_BLOCK(block, (Index)chunks * D * slices) {
        int chunk = block / slices / D, j = block / slices % D, first = block % slices * SLICE;
        const REAL* origin = query + (Index)j * s;
        double one = 0, two = 0;
        __syncthreads();
        load_keys(group(keys, books, j, K, s), first, SLICE, K, s, FEW, packs);
        for (int e = r; euclidean && e < SLICE * s; e += FEW) packs[e] = 2 * (packs[e] - origin[e / PACK % s]);
        for (Index tile = tiles * chunk / chunks; tile < tiles * (chunk + 1) / chunks; tile++) {
            Index start = tile * FEW;
            int rows = b - start < FEW ? b - start : FEW;
            __syncthreads();
            load_rows(query, start, rows, j, D, s, FEW, q);
            weights[r] = r < rows ? counts[start + r] : 0;
            __syncthreads();
            REAL norm = 0, x[PACK];
            for (int c = 0; c < s; c++) {
                REAL u = q[c * LINE(FEW) + r] - origin[c];
                q[c * LINE(FEW) + r] = u;
                if (euclidean) norm = fma(u, u, norm);
            }
            for (int at = 0; at < SLICE; at += PACK) {
                respond_pack<FUSED>(q + r, LINE(FEW), packs + at * s, s, x);
                UNROLL for (int t = 0; t < PACK; t++) y[(at + t) * LINE(FEW) + r] = x[t] - norm;
            }
            __syncthreads();
            for (int i = from; i < from + SLICE && i < rows; i++) {
                double v = y[k * LINE(FEW) + i], weighted = weights[i] * v;
                one += weighted;
                two = fma(weighted, v, two);
            }
        }
        halves[0][r] = one;
        halves[1][r] = two;
        __syncthreads();
        if (r < SLICE && first + r < K) {
            for (int i = r + SLICE; i < FEW; i += SLICE) one += halves[0][i], two += halves[1][i];
            Index at = ((Index)chunk * 2 * D + j) * K + first + r;
            sums[at] = one;
            sums[at + (Index)D * K] = two;
        }
    }
}

// The response of the first row to a key, and the means of y and y^2, each of one group.
struct Moments {
    double shift, one, two;
};

__device__ inline Moments moments_of(
    const double* sums, const REAL* query, const REAL* key, double total, int euclidean, int chunks, int j, int k,
    int D, int K, int s) {
    Moments m = {0, 0, 0};
    for (int c = 0; c < s; c++) {
        double q = query[(Index)j * s + c], other = key[c];
        m.shift += euclidean ? -(q - other) * (q - other) : q * other;
    }
    for (int chunk = 0; chunk < chunks; chunk++) {
        Index at = ((Index)chunk * 2 * D + j) * K + k;
        m.one += sums[at];
        m.two += sums[at + (Index)D * K];
    }
    m.one /= total;
    m.two /= total;
    return m;
}

// Mean and variance of a code over all groups, a block to each; mean 0 and variance 1 of nothing.
KERNEL(THREADS)
statistics(
    const double* sums, const double* total, const REAL* query, const REAL* keys, int euclidean, int chunks, int D,
    int K, int s, int books, REAL* mean, REAL* variance) {
    EACH_BLOCK(k, K) {
        double part = 0;
        for (int j = threadIdx.x; j < D; j += THREADS) {
            const REAL* key = group(keys, books, j, K, s) + k * s;
            Moments m = moments_of(sums, query, key, *total, euclidean, chunks, j, k, D, K, s);
            part += m.shift + m.one;
        }
        double centre = block_sum<THREADS>(part) / D;
        part = 0;
        for (int j = threadIdx.x; j < D; j += THREADS) {
            const REAL* key = group(keys, books, j, K, s) + k * s;
            Moments m = moments_of(sums, query, key, *total, euclidean, chunks, j, k, D, K, s);
            double around = m.shift - centre;
            part += m.two + 2 * m.one * around + around * around;
        }
        double spread = block_sum<THREADS>(part) / D;
        if (threadIdx.x == 0) {
            mean[k] = *total == 0 ? 0 : (REAL)centre;
            variance[k] = *total == 0 ? 1 : (REAL)spread;
        }
    }
}

// Backward of DPQ-SX, twice over all rows: first the sums over rows that batch norm's gradient takes (SUMS: of d and of
// d x, the gradient of the normalised response x), then the gradients. d_logit[k] = p[k] (d[k] - <p, d>) / tau.
//
// A block has a chunk of rows of one group. Shared memory: q and g, queries and gradients of what was picked;
// x[k][r] and d[k][r]; keys and values. FEW threads, a row to each, so that these fit for K = 32 and s = 13
// several times on a processor. g makes room for d_query.
template <bool SUMS>
__device__ inline void gradients_of_tiles(
    const REAL* d_picked, const REAL* query, const REAL* keys, const REAL* values, const REAL* counts,
    const REAL* mean, const REAL* deviation, const REAL* pulls, const REAL* noise, REAL temperature, Index b, int D,
    int K, int s, int v, int key_books, int value_books, int chunks, REAL* q, REAL* d_query, double* sums) {
    const int line = LINE(FEW), padded = (K + PACK - 1) / PACK * PACK, size = SUMS ? 2 * K : K * s, r = threadIdx.x;
    REAL *g = q + s * line, *x = g + (s > v ? s : v) * line, *d = x + padded * line;
    REAL *book = d + padded * line, *worth = book + padded * s;
    Index tiles = (b + FEW - 1) / FEW;
    EACH_BLOCK(block, (Index)chunks * D) {
        int chunk = block / D, j = block % D;
        double* own = sums + block * size;
        __syncthreads();
        for (int e = r; e < size; e += FEW) own[e] = 0;
        load_keys(group(keys, key_books, j, K, s), 0, padded, K, s, FEW, book);
        load_keys(group(values, value_books, j, K, v), 0, padded, K, v, FEW, worth);
        for (Index tile = tiles * chunk / chunks; tile < tiles * (chunk + 1) / chunks; tile++) {
            Index start = tile * FEW, row = (start + r) * D + j;
            int rows = b - start < FEW ? b - start : FEW;
            __syncthreads();
            load_rows(query, start, rows, j, D, s, FEW, q);
            load_rows(d_picked, start, rows, j, D, v, FEW, g);
            __syncthreads();
            if (r < rows) {
                REAL top = 0, total = 0, expected = 0, y[PACK], z[PACK];
                for (int at = 0; at < K; at += PACK) {
                    respond_pack<FUSED>(q + r, line, book + at * s, s, y);
                    respond_pack<FUSED>(g + r, line, worth + at * v, v, z);
                    UNROLL for (int t = 0; t < PACK; t++) {
                        int k = at + t;
                        if (k >= K) continue;
                        if (mean) y[t] = (y[t] - mean[k]) / deviation[k];
                        x[k * line + r] = y[t];
                        d[k * line + r] = z[t];
                        REAL logit = noise ? y[t] + noise[row * K + k] : y[t];
                        if (k == 0 || logit > top) top = logit;
                    }
                }
                for (int k = 0; k < K; k++) {
                    REAL logit = noise ? x[k * line + r] + noise[row * K + k] : x[k * line + r];
                    REAL e = exp((logit - top) / temperature);
                    total += e;
                    expected = fma(e, d[k * line + r], expected);
                }
                expected /= total;
                total *= temperature;
                REAL count = counts[start + r];
                for (int k = 0; k < K; k++) {
                    REAL logit = noise ? x[k * line + r] + noise[row * K + k] : x[k * line + r];
                    REAL e = exp((logit - top) / temperature) / total * (d[k * line + r] - expected);
                    if (!SUMS && mean) e = (e - count * fma(x[k * line + r], pulls[K + k], pulls[k])) / deviation[k];
                    d[k * line + r] = e;
                }
                for (int first = 0; !SUMS && first < s; first += PACK) {
                    UNROLL for (int t = 0; t < PACK; t++) y[t] = 0;
                    for (int k = 0; k < K; k++) {
                        const REAL* key = book + (k / PACK * s + first) * PACK + k % PACK;
                        UNROLL for (int t = 0; t < PACK; t++) {
                            if (first + t < s) y[t] = fma(d[k * line + r], key[t * PACK], y[t]);
                        }
                    }
                    UNROLL for (int t = 0; t < PACK; t++) if (first + t < s) g[(first + t) * line + r] = y[t];
                }
            }
            __syncthreads();
            if (!SUMS) store_rows(g, start, rows, j, D, s, FEW, d_query);
            for (int e = r; e < size; e += FEW) {  // over the rows, of d and d x by code, or of d times the query
                const REAL* left = d + (SUMS ? e % K : e / s) * line;
                const REAL* right = SUMS ? x + e % K * line : q + e % s * line;
                REAL part = 0;
                for (int i = 0; i < rows; i++) part = SUMS && e < K ? part + left[i] : fma(left[i], right[i], part);
                own[e] += part;
            }
        }
    }
}

KERNEL(FEW)
sx_sums(
    const REAL* d_picked, const REAL* query, const REAL* keys, const REAL* values, const REAL* counts,
    const REAL* mean, const REAL* deviation, const REAL* noise, REAL temperature, Index b, int D, int K, int s, int v,
    int key_books, int value_books, int chunks, double* sums) {
    SHARED(memory);
    gradients_of_tiles<true>(
        d_picked, query, keys, values, counts, mean, deviation, 0, noise, temperature, b, D, K, s, v, key_books,
        value_books, chunks, (REAL*)memory, 0, sums);
}

KERNEL(FEW)
sx_gradients(
    const REAL* d_picked, const REAL* query, const REAL* keys, const REAL* values, const REAL* counts,
    const REAL* mean, const REAL* deviation, const REAL* pulls, const REAL* noise, REAL temperature, Index b, int D,
    int K, int s, int v, int key_books, int value_books, int chunks, REAL* d_query, double* d_keys) {
    SHARED(memory);
    gradients_of_tiles<false>(
        d_picked, query, keys, values, counts, mean, deviation, pulls, noise, temperature, b, D, K, s, v, key_books,
        value_books, chunks, (REAL*)memory, d_query, d_keys);
}
