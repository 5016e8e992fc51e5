"""Codes as bits on the CPU: packed to whole numbers of bits or by prefix codes, and compared bit by bit."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from dpq_ref.kernels import loops
from dpq_ref.kernels.reference import Array, Integers, canonical_code, check_range

ROWS = 64  # rows of a block
AHEAD = 12  # rows that memory is asked for before they are read
TILE = 256  # rows that queries share in `hamming_nearest` and `sum_packed`
SIDE_BY_SIDE = 4  # queries of `sum_packed` from which on they are lanes of a vector
QUERIES = 32  # that a thread takes at a time there
SHARED = 1 << 19  # entries of an output from which on it is worth waking other threads
PACKED = 1 << 20  # codes that are packed at a time: a multiple of 8, as they must end with a byte
STREAMED = 1 << 26  # bytes of an output from which on it goes past the caches, which would not hold it


def pack_codes(codes: Integers, n_bits: int) -> NDArray[np.uint8]:
    """As `reference.pack_codes`."""
    check_range("codes", codes, 1 << n_bits)
    flat, packed = codes.reshape(-1), np.empty(-(-codes.size * n_bits // 8), np.uint8)
    for start in range(0, codes.size, PACKED):
        some = loops.inputs(np.int32, flat[start : start + PACKED])
        _pack_codes(*some, int(n_bits), packed[start // 8 * n_bits :])
    return packed


@loops.serial
def _pack_codes(codes, n_bits, packed):
    waiting = 0  # bits not yet written, the oldest lowest
    n_waiting = 0
    byte = 0
    for m in range(codes.size):
        waiting |= codes[m] << n_waiting
        n_waiting += n_bits
        while n_waiting >= 8:
            packed[byte] = waiting & 255
            byte += 1
            waiting >>= 8
            n_waiting -= 8
    if n_waiting:
        packed[byte] = waiting


def unpack_codes(packed: NDArray[np.uint8], n_bits: int, ids: Integers, n_groups: int) -> Integers:
    """As `reference.unpack_codes`."""
    check_range("ids", ids, packed.size * 8 // (n_bits * n_groups))
    loops.check_shape("ids", ids, ids.size)
    codes = np.empty((ids.size, n_groups), np.int32)
    _unpack_codes(
        *loops.inputs(np.uint8, _at_least_a_word(packed)), int(n_bits), *loops.inputs(np.int64, ids), codes
    )
    return codes


@loops.serial
def _unpack_codes(packed, n_bits, ids, codes):
    D, mask = codes.shape[1], (1 << n_bits) - 1
    for i in range(ids.size):
        for j in range(D):
            codes[i, j] = _code(packed, (ids[i] * D + j) * n_bits, mask)


@loops.inlined
def _code(packed, bit, mask):
    return _word(packed, bit) & mask


@loops.inlined
def _word(packed, bit):
    """Bits of a stream of 8 bytes or more from a bit on: 57 or more of them, or those up to its end."""
    byte = min(bit >> 3, packed.size - 8)
    return loops.load_word(packed, byte) >> (bit - 8 * byte)


def decode_packed(
    packed: NDArray[np.uint8],
    n_bits: int,
    ids: Integers,
    n_groups: int,
    values: Array,
    out: Array | None = None,
) -> Array:
    """As `reference.decode_packed`; no more than one row of codes at a time."""
    _, K, s = values.shape
    bits, D = int(n_bits), int(n_groups)
    loops.check_book("values", values, D, s)
    codes = _stream_and_ids(packed, bits, ids, D, K)
    out = np.empty((ids.size, D * s), values.dtype) if out is None else out
    loops.check_shape("out", out, ids.size, D * s)
    arrays = *codes, *loops.inputs(out.dtype, values), bits, D, out.reshape(-1)
    if out.size < SHARED:
        _decode_rows(*arrays)
    else:
        _decode_packed(*arrays, out.nbytes >= STREAMED and out.flags.aligned)
    return out


def _stream_and_ids(
    packed: NDArray[np.uint8], n_bits: int, ids: Integers, D: int, K: int
) -> tuple[NDArray, NDArray]:
    """As kernels take them, once ids are seen to be rows, and all their codes to be below K."""
    loops.check_shape("ids", ids, ids.size)
    (rows,) = loops.inputs(np.int64, ids)
    if not loops.within(rows, n := packed.size * 8 // (n_bits * D)):
        check_range("ids", ids, n)
    (stream,) = loops.inputs(np.uint8, _at_least_a_word(packed))
    if K < 1 << n_bits and (largest := _largest(stream, rows, n_bits, D)) >= K:
        raise IndexError(f"codes must lie in [0, {K}), got {largest}")
    return stream, rows


def _at_least_a_word(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return packed if packed.size >= 8 else np.pad(packed, (0, 8))


@loops.serial
def _largest(packed, ids, n_bits, D):
    """Largest code of rows: in a damaged stream it may be beyond the values."""
    largest, mask = 0, (1 << n_bits) - 1
    for i in range(ids.size):
        for j in range(D):
            largest = max(largest, _code(packed, (ids[i] * D + j) * n_bits, mask))
    return largest


@loops.parallel
def _decode_packed(packed, ids, values, n_bits, D, out, streamed):
    w = D * values.shape[2]
    for block in prange((ids.size + ROWS - 1) // ROWS):
        rows = ids[block * ROWS : (block + 1) * ROWS]
        place = out[block * ROWS * w : (block * ROWS + rows.size) * w]
        if streamed:
            _stream_rows(packed, rows, values, n_bits, D, place)
        else:
            _decode_rows(packed, rows, values, n_bits, D, place)


@loops.serial
def _stream_rows(packed, ids, values, n_bits, D, out):
    """Past the caches: what is decoded stays in them until it is sent to memory whole."""
    staged = np.empty(out.size, out.dtype)
    _decode_rows(packed, ids, values, n_bits, D, staged)
    head = loops.first_line(out)
    done = loops.stream(out, staged, head, out.size)
    out[:head] = staged[:head]
    out[done:] = staged[done:]
    loops.fence()


@loops.serial
def _decode_rows(packed, ids, values, n_bits, D, out):
    """Widths are told apart here, outside all loops: a code takes a few instructions."""
    s = values.shape[2]
    if s > 32:
        _copy_rows(_copy_long, packed, ids, values, n_bits, D, out)
    elif s >= 16:
        _copy_rows(loops.copy_16, packed, ids, values, n_bits, D, out)
    elif s >= 8:
        _copy_rows(loops.copy_8, packed, ids, values, n_bits, D, out)
    elif s >= 4:
        _copy_rows(loops.copy_4, packed, ids, values, n_bits, D, out)
    elif s >= 2:
        _copy_rows(loops.copy_2, packed, ids, values, n_bits, D, out)
    else:
        _copy_rows(loops.copy_1, packed, ids, values, n_bits, D, out)


@loops.inlined
def _copy_rows(copy, packed, ids, values, n_bits, D, out):
    books, K, s = values.shape
    book, step = values.reshape(-1), K * s if books > 1 else 0
    width = s & (1 << 48) - 1  # s; did the compiler know, it would multiply by it for each end of a copy
    mask, per = (1 << n_bits) - 1, 56 // n_bits  # codes of a word, wherever in a byte they start
    to = 0
    for i in range(ids.size):
        loops.prefetch(packed, ids[min(i + AHEAD, ids.size - 1)] * D * n_bits >> 3)
        bit, base = ids[i] * D * n_bits, 0
        if n_bits == 8:  # nothing to shift
            byte = bit >> 3
            for j in range(D):
                copy(out, to, book, base + width * packed[np.uintp(byte + j)], s)
                base, to = base + step, to + s
        else:
            left = D
            while left > 0:  # a range with a step would divide
                word = _word(packed, bit)
                for _ in range(min(per, left)):
                    copy(out, to, book, base + width * (word & mask), s)
                    word, base, to = word >> n_bits, base + step, to + s
                bit, left = bit + per * n_bits, left - per


@loops.inlined
def _copy_long(to, start, source, at, n):
    for c in range(0, n - 32, 32):
        loops.copy_16(to, start + c, source, at + c, 32)
    loops.copy_16(to, start + n - 32, source, at + n - 32, 32)


def sum_packed(packed: NDArray[np.uint8], n_bits: int, ids: Integers, n_groups: int, terms: Array) -> Array:
    """As `reference.sum_packed`; many queries share what is read of a row, as the lanes of a vector."""
    q, _, K = terms.shape
    bits, D = int(n_bits), int(n_groups)
    loops.check_shape("terms", terms, q, D, K)
    codes = _stream_and_ids(packed, bits, ids, D, K)
    sums = np.empty((q, ids.size), terms.dtype)
    if q < SIDE_BY_SIDE:
        for query, out in zip(loops.inputs(terms.dtype, *terms), sums, strict=True):
            if bits == 8:
                _sum_bytes(*codes, query, out)
            else:
                _sum_rows(*codes, query.reshape(-1), K, bits, D, out)
        return sums
    lanes = loops.LINE // terms.itemsize
    padded = np.zeros((-(-q // lanes), D, K, lanes), terms.dtype)
    for i in range(q):
        padded[i // lanes, :, :, i % lanes] = terms[i]
    _sum_lanes(*codes, *loops.inputs(terms.dtype, padded), bits, sums)
    return sums


@loops.parallel
def _sum_rows(packed, ids, terms, K, n_bits, D, out):
    """For one query, four rows at a time: one addition need not wait for the one before.

    Terms are counted without a sign: Numba counts a negative index from the end, and to ask for it costs more
    than the addition.
    """
    mask, per = (1 << n_bits) - 1, 56 // n_bits  # codes of a word, wherever in a byte they start
    for block in prange((ids.size + TILE - 1) // TILE):
        last = min((block + 1) * TILE, ids.size) - 1
        for i in range(block * TILE, last + 1, 4):
            i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
            b0, b1, b2, b3 = (
                ids[i] * D * n_bits,
                ids[i1] * D * n_bits,
                ids[i2] * D * n_bits,
                ids[i3] * D * n_bits,
            )
            s0 = s1 = s2 = s3 = terms.dtype.type(0)
            base = 0
            for j in range(0, D, per):
                w0, w1, w2, w3 = _word(packed, b0), _word(packed, b1), _word(packed, b2), _word(packed, b3)
                for _ in range(min(per, D - j)):
                    s0 += terms[np.uintp(base + (w0 & mask))]
                    s1 += terms[np.uintp(base + (w1 & mask))]
                    s2 += terms[np.uintp(base + (w2 & mask))]
                    s3 += terms[np.uintp(base + (w3 & mask))]
                    w0, w1, w2, w3 = w0 >> n_bits, w1 >> n_bits, w2 >> n_bits, w3 >> n_bits
                    base += K
                step = per * n_bits
                b0, b1, b2, b3 = b0 + step, b1 + step, b2 + step, b3 + step
            out[i], out[i1], out[i2], out[i3] = s0, s1, s2, s3


@loops.parallel
def _sum_bytes(packed, ids, terms, out):
    """As `_sum_rows` for codes of a byte each: nothing to shift, and unsigned as they are."""
    D = len(terms)
    for block in prange((ids.size + TILE - 1) // TILE):
        last = min((block + 1) * TILE, ids.size) - 1
        for i in range(block * TILE, last + 1, 4):
            i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
            b0, b1, b2, b3 = ids[i] * D, ids[i1] * D, ids[i2] * D, ids[i3] * D
            s0 = s1 = s2 = s3 = terms.dtype.type(0)
            for j in range(D):
                s0 += terms[j, packed[np.uintp(b0 + j)]]
                s1 += terms[j, packed[np.uintp(b1 + j)]]
                s2 += terms[j, packed[np.uintp(b2 + j)]]
                s3 += terms[j, packed[np.uintp(b3 + j)]]
            out[i], out[i1], out[i2], out[i3] = s0, s1, s2, s3


@loops.parallel
def _sum_lanes(packed, ids, terms, n_bits, sums):
    chunks, D, K, lanes = terms.shape
    flat, mask = terms.reshape(-1), (1 << n_bits) - 1
    for block in prange((ids.size + TILE - 1) // TILE):
        start = block * TILE
        rows = ids[start : start + TILE]
        codes, tile = np.empty((D, TILE), np.int32), np.empty(TILE * lanes, terms.dtype)
        for i in range(rows.size):
            for j in range(D):
                codes[j, i] = _code(packed, (rows[i] * D + j) * n_bits, mask)
        for chunk in range(chunks):
            tile[:] = 0
            for j in range(D):  # the terms of one group stay in the cache
                base = (chunk * D + j) * K
                for i in range(rows.size):
                    loops.add_line(tile, i * lanes, flat, (base + codes[j, i]) * lanes)
            for q in range(chunk * lanes, min((chunk + 1) * lanes, len(sums))):
                for i in range(rows.size):
                    sums[q, start + i] = tile[i * lanes + q % lanes]


def unpack_levels(
    packed: NDArray[np.uint8], n_bits: int, levels: Array, ids: Integers, n_groups: int
) -> Array:
    """As `reference.unpack_levels`; codes of a byte each need no shift, and even levels are not looked up."""
    if n_bits != 8:
        return levels[unpack_codes(packed, n_bits, ids, n_groups)]
    loops.check_shape("ids", ids, ids.size)
    loops.check_range("ids", ids, packed.size // n_groups)
    loops.check_shape("levels", levels, 256)
    first, step = float(levels[0]), (float(levels[255]) - float(levels[0])) / 255
    with np.errstate(invalid="ignore", over="ignore"):
        even = (first + step * np.arange(256)).astype(levels.dtype).tobytes() == levels.tobytes()
    out = np.empty((ids.size, n_groups), levels.dtype)
    codes = *loops.inputs(np.uint8, packed), *loops.inputs(np.int64, ids)
    if even:
        _even_levels(*codes, first, step, out)
    else:
        _unpack_levels(*codes, *loops.inputs(levels.dtype, levels), out)
    return out


@loops.parallel
def _unpack_levels(packed, ids, levels, out):
    w = out.shape[1]
    for i in prange(ids.size):
        _ask_for(packed, ids[min(i + AHEAD, ids.size - 1)] * w, w)
        row = packed[ids[i] * w : (ids[i] + 1) * w]
        for j in range(w):
            out[i, j] = levels[row[j]]


@loops.parallel
def _even_levels(packed, ids, first, step, out):
    w = out.shape[1]
    for i in prange(ids.size):
        _ask_for(packed, ids[min(i + AHEAD, ids.size - 1)] * w, w)
        row, to = packed[ids[i] * w : (ids[i] + 1) * w], out[i]
        for j in range(w):
            to[j] = first + step * row[j]


@loops.serial
def _ask_for(packed, start, n):
    for at in range(start, start + n, loops.LINE):
        loops.prefetch(packed, at)


def pack_prefix(codes: Integers, lengths: Integers) -> NDArray[np.uint8]:
    """As `reference.pack_prefix`."""
    check_range("codes", codes, len(lengths))
    loops.check_shape("codes", codes, codes.size)
    widths = lengths.astype(np.int64)[codes]
    if not widths.all():
        raise ValueError(f"code {codes[widths == 0][0]} has no word")
    packed = np.zeros(-(-int(widths.sum()) // 8), np.uint8)
    _pack_prefix(*loops.inputs(np.int64, codes, canonical_code(lengths), lengths), packed)
    return packed


@loops.serial
def _pack_prefix(codes, words, lengths, packed):
    bit = 0
    for m in range(codes.size):
        word, length = words[codes[m]], lengths[codes[m]]
        for t in range(length - 1, -1, -1):
            packed[bit >> 3] |= ((word >> t) & 1) << (bit & 7)
            bit += 1


def unpack_prefix(packed: NDArray[np.uint8], lengths: Integers, n_codes: int) -> Integers:
    """As `reference.unpack_prefix`."""
    words = canonical_code(lengths)
    order = np.argsort(lengths, kind="stable")
    counts = np.bincount(lengths, minlength=1)
    ends = np.cumsum(
        counts
    )  # words of one length follow each other: a word's place is that of the first, and so on
    first = np.zeros(len(counts), np.int64)
    has = counts > 0
    first[has] = words[order[(ends - counts)[has]]]
    codes = np.empty(n_codes, np.int32)
    done = _unpack_prefix(
        *loops.inputs(np.uint8, packed), *loops.inputs(np.int64, order, counts, ends, first), codes
    )
    if done < n_codes:
        raise ValueError(f"the stream has {done} codes; {n_codes} are asked for")
    return codes


@loops.serial
def _unpack_prefix(packed, order, counts, ends, first, codes):
    bit = 0
    for i in range(codes.size):
        word = 0
        found = False
        for length in range(1, counts.size):
            if bit == 8 * packed.size:
                break
            word = 2 * word + ((packed[bit >> 3] >> (bit & 7)) & 1)
            bit += 1
            place = word - first[length]
            if 0 <= place < counts[length]:
                codes[i] = order[ends[length] - counts[length] + place]
                found = True
                break
        if not found:
            return i
    return codes.size


def hamming(words: NDArray[np.uint64], others: NDArray[np.uint64]) -> Integers:
    """As `reference.hamming`."""
    loops.check_shape("others", others, len(others), words.shape[1])
    out = np.empty((len(words), len(others)), np.int32)
    _hamming(*loops.inputs(np.uint64, words, others), out)
    return out


@loops.parallel
def _hamming(words, others, out):
    for i in prange(len(out)):
        for j in range(len(others)):
            count = 0
            for w in range(words.shape[1]):
                count += _popcount(words[i, w] ^ others[j, w])
            out[i, j] = count


def hamming_nearest(
    words: NDArray[np.uint64], others: NDArray[np.uint64], k: int
) -> tuple[Integers, Integers]:
    """As `reference.hamming_nearest`, TILE rows at a time, which a block of queries shares in the cache."""
    loops.check_shape("others", others, len(others), words.shape[1])
    k = min(int(k), len(others))
    ids, distances = np.empty((len(words), k), np.int32), np.empty((len(words), k), np.int32)
    if k:
        _hamming_nearest(*loops.inputs(np.uint64, words, others), ids, distances)
    return ids, distances


@loops.parallel
def _hamming_nearest(words, others, ids, distances):
    b, W = words.shape
    k = ids.shape[1]
    for block in prange((b + QUERIES - 1) // QUERIES):
        queries = range(block * QUERIES, min((block + 1) * QUERIES, b))
        tile = np.empty((W, TILE), np.uint64)  # transposed, so that the loops run along the rows
        count = np.empty(TILE, np.int64)
        for i in queries:
            distances[i] = 64 * W + 1
        for start in range(0, len(others), TILE):
            n = min(TILE, len(others) - start)
            for j in range(n):
                for w in range(W):
                    tile[w, j] = others[start + j, w]
            for i in queries:
                worst = distances[i, k - 1]
                if _counts(words[i], tile, n, count) >= worst:
                    continue
                for j in range(n):
                    if count[j] < distances[i, k - 1]:
                        t = k - 1  # insert; what is farther moves on by one
                        while t > 0 and distances[i, t - 1] > count[j]:
                            distances[i, t] = distances[i, t - 1]
                            ids[i, t] = ids[i, t - 1]
                            t -= 1
                        distances[i, t] = count[j]
                        ids[i, t] = start + j


@loops.serial
def _counts(words, tile, n, count):
    """In how many bits each row of a tile differs, and the least of that."""
    count[:n] = 0
    for w in range(len(words)):
        for j in range(n):
            count[j] += _popcount(words[w] ^ tile[w, j])
    least = count[0]
    for j in range(n):
        least = min(least, count[j])
    return least


@loops.serial
def _popcount(x):
    """Bits counted in pairs, fours, bytes; the product adds up the bytes. LLVM makes it popcnt."""
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
