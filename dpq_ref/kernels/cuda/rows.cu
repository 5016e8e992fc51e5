// Rows of a table, sums over ids, and the optimizer. A thread owns the numbers that it writes: no atomics, so
// every sum has one order, that of the batch. Neighbouring threads have neighbouring columns, so that the
// rows are read in whole lines.

// out[r] = sum of rows[order[t]] for starts[r] <= t < starts[r + 1], in that order.
KERNEL(THREADS)
segment_sums(const REAL* rows, const Index* order, const Index* starts, Index n, int w, REAL* out) {
    EACH(e, n * w) {
        Index r = e / w, c = e % w;
        REAL total = 0;
        for (Index t = starts[r]; t < starts[r + 1]; t++) total += rows[order[t] * w + c];
        out[e] = total;
    }
}

// The same in double; row order[t] counts weights[order[t] / D] times, once where there are no weights.
KERNEL(THREADS)
segment_sums_double(
    const REAL* rows, const Index* order, const Index* starts, const double* weights, Index n, int w, int D,
    double* out) {
    EACH(e, n * w) {
        Index r = e / w, c = e % w;
        double total = 0;
        for (Index t = starts[r]; t < starts[r + 1]; t++) {
            double x = rows[order[t] * w + c];
            total += weights ? weights[order[t] / D] * x : x;
        }
        out[e] = total;
    }
}

// out[i] = mean of the rows of the kept tokens of text i, summed in double.
KERNEL(THREADS)
mean_pool(const REAL* table, const Index* ids, const bool* mask, Index b, int t, int w, REAL* out) {
    EACH(e, b * w) {
        Index i = e / w, c = e % w;
        double total = 0;
        int length = 0;
        for (Index u = i * t; u < (i + 1) * t; u++) {
            if (!mask[u]) continue;
            total += table[ids[u] * w + c];
            length++;
        }
        out[e] = (REAL)(total / (length > 1 ? length : 1));
    }
}

// out[i] = sum over m of coefficients[i,m] basis[m], m in order.
KERNEL(THREADS)
combine(const REAL* coefficients, const REAL* basis, Index b, int k, int w, REAL* out) {
    EACH(e, b * w) {
        Index i = e / w, c = e % w;
        REAL total = 0;
        for (int m = 0; m < k; m++) total += coefficients[i * k + m] * basis[m * (Index)w + c];
        out[e] = total;
    }
}

// Row i of the gradient moves row rows[i] of the parameter, row i where there are no rows.
KERNEL(THREADS)
adam(
    const Index* rows, const REAL* gradient, Index b, int w, REAL rate, REAL beta1, REAL rest1, REAL beta2, REAL rest2,
    REAL unbias, REAL epsilon, REAL* parameter, REAL* first, REAL* second) {
    EACH(e, b * w) {
        Index at = rows ? rows[e / w] * w + e % w : e;
        REAL g = gradient[e];
        REAL m = beta1 * first[at] + rest1 * g;
        REAL v = beta2 * second[at] + rest2 * (g * g);
        parameter[at] -= rate * m / (sqrt(v * unbias) + epsilon);
        first[at] = m;
        second[at] = v;
    }
}
