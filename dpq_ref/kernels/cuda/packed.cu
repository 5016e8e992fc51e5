// Codes as bits: packed, decoded, and compared.

// Code of n_bits at a bit of a stream. A code of 16 bits may touch 3 bytes; those beyond the last are not read.
__device__ inline int code_at(const Byte* packed, Index bit, int n_bits) {
    Index last = (bit + n_bits - 1) >> 3;
    unsigned word = 0;
    for (Index byte = bit >> 3; byte <= last; byte++) word |= (unsigned)packed[byte] << 8 * (byte - (bit >> 3));
    return word >> (bit & 7) & ((1u << n_bits) - 1);
}

// A thread has a byte, and looks for the codes that have bits in it: no two threads write the same one.
KERNEL(THREADS)
pack_codes(const int* codes, Index size, int n_bits, Index bytes, Byte* packed) {
    EACH(byte, bytes) {
        unsigned bits = 0;
        for (Index m = 8 * byte / n_bits; m < size && m * n_bits < 8 * byte + 8; m++) {
            Index shift = m * n_bits - 8 * byte;
            bits |= shift < 0 ? (unsigned)codes[m] >> -shift : (unsigned)codes[m] << shift;
        }
        packed[byte] = bits;
    }
}

KERNEL(THREADS)
unpack_codes(const Byte* packed, int n_bits, const Index* ids, Index b, int D, int* codes) {
    EACH(e, b * D) codes[e] = code_at(packed, (ids[e / D] * D + e % D) * n_bits, n_bits);
}

struct __align__(16) Sixteen {
    Word low, high;
};

// Copy a tile of n pieces of `width` units, piece from[m] of the values to place m. Threads write neighbouring units.
template <class Unit>
__device__ inline void copy_pieces(const Byte* values, const int* from, int n, int width, Byte* out) {
    int m = threadIdx.x / width, c = threadIdx.x % width;
    for (int e = threadIdx.x; m < n; e += THREADS) {
        ((Unit*)out)[e] = ((const Unit*)values)[(Index)from[m] * width + c];
        m += THREADS / width;
        c += THREADS % width;
        if (c >= width) c -= width, m++;
    }
}

#define PIECES 1024

// Values of codes, unpacked from a stream where there is one, else as they are given. A value has `width` bytes, which
// move in the largest units, up to 16 bytes, that it and the arrays are made of. The largest code that is met goes to
// `largest`; what is beyond the values is clipped. A tile is PIECES codes, and in shared memory is where their values
// begin. THREADS threads: each has several loads and stores on their way.
KERNEL(THREADS)
decode(
    const int* codes, const Byte* packed, int n_bits, const Index* ids, const Byte* values, Index b, int D, int K,
    int width, int books, int* largest, Byte* out) {
    __shared__ int from[PIECES];
    int unit = 16;
    while (((Index)values | (Index)out | width) % unit) unit /= 2;
    EACH_BLOCK(tile, (b * D + PIECES - 1) / PIECES) {
        Index start = tile * PIECES;
        int n = b * D - start < PIECES ? b * D - start : PIECES, most = 0;
        __syncthreads();  // the tile before has been read
        for (int t = threadIdx.x; t < n; t += THREADS) {
            Index m = start + t, j = m % D;
            int code = packed ? code_at(packed, (ids[m / D] * D + j) * n_bits, n_bits) : codes[m];
            most = code > most ? code : most;
            from[t] = (books > 1 ? j * K : 0) + (code < K ? code : K - 1);
        }
        if (most >= K) atomicMax(largest, most);
        __syncthreads();
        Byte* to = out + start * width;
        if (unit == 16) copy_pieces<Sixteen>(values, from, n, width / 16, to);
        if (unit == 8) copy_pieces<Word>(values, from, n, width / 8, to);
        if (unit == 4) copy_pieces<unsigned>(values, from, n, width / 4, to);
        if (unit == 2) copy_pieces<unsigned short>(values, from, n, width / 2, to);
        if (unit == 1) copy_pieces<Byte>(values, from, n, width, to);
    }
}

__device__ inline int differing(const Word* word, const Word* other, int W) {
    int count = 0;
    for (int w = 0; w < W; w++) count += __popcll(word[w] ^ other[w]);
    return count;
}

KERNEL(THREADS)
hamming(const Word* words, const Word* others, Index b, Index m, int W, int* out) {
    EACH(e, b * m) out[e] = differing(words + e / m * W, others + e % m * W, W);
}

// The k nearest of each part of the others, as (distance << 32) + id, rising: a thread has a query and a part, and
// keeps what it has found in `found`. Neighbouring threads have neighbouring queries and read the same other.
KERNEL(THREADS)
hamming_nearest(const Word* words, const Word* others, Index b, Index m, int W, int k, int parts, Index* found) {
    EACH(e, b * parts) {
        Index query = e % b, part = e / b;
        Index* best = found + (query * parts + part) * k;
        for (int t = 0; t < k; t++) best[t] = (Index)1 << 62;
        for (Index other = m * part / parts; other < m * (part + 1) / parts; other++) {
            Index place = ((Index)differing(words + query * W, others + other * W, W) << 32) + other;
            int t = k - 1;
            if (place >= best[t]) continue;
            for (; t > 0 && best[t - 1] > place; t--) best[t] = best[t - 1];  // what is farther moves on by one
            best[t] = place;
        }
    }
}
