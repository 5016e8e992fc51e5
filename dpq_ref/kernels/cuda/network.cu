// A step of a long short-term memory, and cross-entropy.

__device__ inline REAL sigmoid(REAL x) { return 1 / (1 + exp(-x)); }

// gates and activations (b, 4h): i, f, g, o. Where alive is given and false, the state stays as it is.
KERNEL(THREADS)
lstm_step(
    const REAL* gates, const REAL* cell, const REAL* hidden, const bool* alive, Index b, int h, REAL* activations,
    REAL* new_cell, REAL* new_hidden) {
    EACH(e, b * h) {
        Index row = e / h, at = row * 4 * h + e % h;
        REAL i = sigmoid(gates[at]), f = sigmoid(gates[at + h]);
        REAL g = tanh(gates[at + 2 * h]), o = sigmoid(gates[at + 3 * h]);
        activations[at] = i;
        activations[at + h] = f;
        activations[at + 2 * h] = g;
        activations[at + 3 * h] = o;
        REAL c = f * cell[e] + i * g;
        bool on = !alive || alive[row];
        new_cell[e] = on ? c : cell[e];
        new_hidden[e] = on ? o * tanh(c) : hidden[e];
    }
}

// d_hidden + d_above is the gradient of h, d_cell that of c'. Where a sequence is not alive, d_gates is 0, and
// d_before, the gradient of c, is d_cell.
KERNEL(THREADS)
lstm_step_backward(
    const REAL* d_hidden, const REAL* d_above, const REAL* d_cell, const REAL* activations, const REAL* cell,
    const REAL* new_cell, const bool* alive, Index b, int h, REAL* d_gates, REAL* d_before) {
    EACH(e, b * h) {
        Index row = e / h, at = row * 4 * h + e % h;
        bool on = !alive || alive[row];
        REAL d_h = on ? (d_above ? d_above[e] + d_hidden[e] : d_hidden[e]) : 0, d_c = on ? d_cell[e] : 0;
        REAL i = activations[at], f = activations[at + h];
        REAL g = activations[at + 2 * h], o = activations[at + 3 * h];
        REAL t = tanh(new_cell[e]);
        REAL d = d_c + d_h * o * (1 - t * t);
        d_gates[at] = d * g * i * (1 - i);
        d_gates[at + h] = d * cell[e] * f * (1 - f);
        d_gates[at + 2 * h] = d * i * (1 - g * g);
        d_gates[at + 3 * h] = d_h * t * o * (1 - o);
        d_before[e] = on ? d * f : d_cell[e];
    }
}

// A block has a row of logits, which it reads three times: from memory once, then from the cache. In shared memory is
// one number of each thread. `rows` may be the logits.
KERNEL(THREADS)
cross_entropy(
    const REAL* logits, const Index* labels, const REAL* weights, REAL hit, REAL rest, Index b, int C, REAL* losses,
    REAL* rows) {
    __shared__ REAL tops[THREADS];
    EACH_BLOCK(i, b) {
        const REAL* x = logits + i * C;
        REAL top = x[0];  // NaN never is the largest here, but it makes the sums NaN
        for (int k = threadIdx.x; k < C; k += THREADS) top = x[k] > top || top != top ? x[k] : top;
        tops[threadIdx.x] = top;
        for (int half = THREADS / 2; half > 0; half /= 2) {
            __syncthreads();
            if ((int)threadIdx.x < half) {
                REAL other = tops[threadIdx.x + half];
                if (other > tops[threadIdx.x]) tops[threadIdx.x] = other;
            }
        }
        __syncthreads();
        top = tops[0];
        REAL label = x[labels[i]];
        double part = 0, all = 0;
        for (int k = threadIdx.x; k < C; k += THREADS) {
            part += exp(x[k] - top);
            all += x[k] - top;
        }
        double total = block_sum<THREADS>(part);
        if (rest > 0) all = block_sum<THREADS>(all);
        REAL scale = (REAL)(1 / total);
        if (threadIdx.x == 0) losses[i] = (REAL)(log(total) - hit * (label - top) - (rest > 0 ? rest * all : 0));
        for (int k = threadIdx.x; k < C; k += THREADS) {
            REAL d = exp(x[k] - top) * scale - rest;
            rows[i * C + k] = weights[i] * (k == labels[i] ? d - hit : d);
        }
    }
}
