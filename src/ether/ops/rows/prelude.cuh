// What the operations' device code stands on. A block of kThreads threads treats one row at a time: each thread
// holds chunks of V neighbouring values in registers, the same ones of every value of the graph, so that only
// sums over a row pass through shared memory.
//
// Compiled at run time behind lines that define: Stored (what lies in memory: float, double or BFloat16), P (what is
// computed with), V, kThreads, kSharedValues.

typedef long long Index;

#ifndef ETHER_EMULATED
__device__ inline P* dynamic_shared() {
    extern __shared__ double dynamic[];
    return (P*)dynamic;
}
#endif

struct BFloat16 {
    unsigned short bits;
};

__device__ inline P wide(float x) { return P(x); }
__device__ inline P wide(double x) { return P(x); }
__device__ inline P wide(BFloat16 x) { return P(__uint_as_float((unsigned)x.bits << 16)); }

__device__ inline void narrow(P x, float* to) { *to = float(x); }
__device__ inline void narrow(P x, double* to) { *to = double(x); }
// To the nearest, ties to even.
__device__ inline void narrow(P x, BFloat16* to) {
    const unsigned bits = __float_as_uint(float(x));
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to->bits = (unsigned short)(nan ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Global memory is read and written as such: of plain pointers, which reach a kernel as integers, NVRTC 13.0 took some for
// pointers to shared memory.
template <typename Word>
__device__ inline Word read_word(const void* from) {
    return __ldg((const Word*)from);
}
#ifdef ETHER_EMULATED
template <typename Word>
inline void write_word(void* to, Word word) {
    *(Word*)to = word;
}
#else
__device__ inline void write_word(void* to, unsigned short word) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"(word) : "memory");
}
__device__ inline void write_word(void* to, unsigned word) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
__device__ inline void write_word(void* to, uint2 word) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(word.x), "r"(word.y) : "memory");
}
__device__ inline void write_word(void* to, uint4 word) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
}
#endif

template <int bytes>
struct WordOf {
    typedef uint4 Type;
};
template <>
struct WordOf<8> {
    typedef uint2 Type;
};
template <>
struct WordOf<4> {
    typedef unsigned Type;
};
template <>
struct WordOf<2> {
    typedef unsigned short Type;
};

// N values, read and written 16 bytes at a time where they are so many.
template <typename Q, int N>
struct Pack {
    typedef typename WordOf<int(sizeof(Q) * N)>::Type Word;
    static constexpr int kWords = sizeof(Q) * N / sizeof(Word);
    union {
        Q value[N];
        Word word[kWords];
    };

    __device__ void read(const Q* from) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) word[i] = read_word<Word>((const Word*)from + i);
    }
    __device__ void write(Q* to) const {
#pragma unroll
        for (int i = 0; i < kWords; ++i) write_word((Word*)to + i, word[i]);
    }
};

// One row of W values: this thread's part of it.
template <int W>
struct Row {
    static constexpr int kChunks = W / V, kOwn = (kChunks + kThreads - 1) / kThreads;
    static_assert(W % V == 0);
    P value[kOwn][V];

    __device__ P* operator[](int c) { return value[c]; }
    __device__ const P* operator[](int c) const { return value[c]; }
};

// Calls body(c, column) for each of this thread's chunks, column being that of its first value.
template <int W, typename Body>
__device__ inline void for_chunks(const Body& body) {
#pragma unroll
    for (int c = 0; c < Row<W>::kOwn; ++c) {
        const int chunk = c * kThreads + (int)threadIdx.x;
        if (Row<W>::kChunks % kThreads == 0 || chunk < Row<W>::kChunks) body(c, chunk * V);
    }
}
// body(c, i, column) for each of this thread's values
template <int W, typename Body>
__device__ inline void for_values(const Body& body) {
    for_chunks<W>([&](int c, int column) {
#pragma unroll
        for (int i = 0; i < V; ++i) body(c, i, column + i);
    });
}

// The chunk at `from`.
template <typename Q>
__device__ inline void load_chunk(const Q* from, P* to) {
    Pack<Q, V> pack;
    pack.read(from);
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = wide(pack.value[i]);
}

// A row on its way from memory, while the one before it is treated.
template <int W, typename Q>
struct Coming {
    Pack<Q, V> pack[Row<W>::kOwn];

    __device__ void fetch(const Q* rows, Index row, Index count) {
        if (row >= count) return;
        for_chunks<W>([&](int c, int column) { pack[c].read(rows + row * W + column); });
    }
    __device__ void take(Row<W>& row) const {
        for_chunks<W>([&](int c, int) {
#pragma unroll
            for (int i = 0; i < V; ++i) row[c][i] = wide(pack[c].value[i]);
        });
    }
};
template <int W, typename Q>
__device__ inline void store(const Row<W>& row, Q* to) {
    for_chunks<W>([&](int c, int column) {
        Pack<Q, V> pack;
#pragma unroll
        for (int i = 0; i < V; ++i) narrow(row[c][i], &pack.value[i]);
        pack.write(to + column);
    });
}
template <int W>
__device__ inline void add_to(Row<W>& sum, const Row<W>& more) {
    for_values<W>([&](int c, int i, int) { sum[c][i] += more[c][i]; });
}

__device__ inline P sum_of_lanes(P x, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

// K sums at once over each segment of SIZE columns: x holds what each chunk adds (0 of chunks behind the row's
// end), and then each chunk's segment's sum. All threads of the block take part.
template <int W, int SIZE, int K>
__device__ inline void sum_segments(P (&x)[K][Row<W>::kOwn], P* shared) {
    constexpr int kOwn = Row<W>::kOwn, kChunks = Row<W>::kChunks, kPart = SIZE / V, kSegments = W / SIZE;
    constexpr int kWarps = kThreads / 32;
    static_assert(SIZE % V == 0 && W % SIZE == 0);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    if constexpr (kPart == 1) return;
    if constexpr (kPart <= 32 && (kPart & (kPart - 1)) == 0) {  // neighbouring lanes hold a segment
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int c = 0; c < kOwn; ++c) x[k][c] = sum_of_lanes(x[k][c], kPart);
    } else if constexpr (kSegments == 1) {
        static_assert(K * kWarps <= kSharedValues);
        __syncthreads();  // what was summed before has been read
#pragma unroll
        for (int k = 0; k < K; ++k) {
            P sum = 0;
#pragma unroll
            for (int c = 0; c < kOwn; ++c) sum += x[k][c];
            sum = sum_of_lanes(sum, 32);
            if (lane == 0) shared[k * kWarps + warp] = sum;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < K; ++k) {
            P sum = 0;
            for (int w = 0; w < kWarps; ++w) sum += shared[k * kWarps + w];
#pragma unroll
            for (int c = 0; c < kOwn; ++c) x[k][c] = sum;
        }
    } else {
        static_assert(K * (kChunks + kSegments) <= kSharedValues);
        P* totals = shared + K * kChunks;
        __syncthreads();
        for_chunks<W>([&](int c, int column) {
#pragma unroll
            for (int k = 0; k < K; ++k) shared[k * kChunks + column / V] = x[k][c];
        });
        __syncthreads();
        for (int at = warp; at < K * kSegments; at += kWarps) {
            P sum = 0;
            for (int i = lane; i < kPart; i += 32) sum += shared[at * kPart + i];
            sum = sum_of_lanes(sum, 32);
            if (lane == 0) totals[at] = sum;
        }
        __syncthreads();
        for_chunks<W>([&](int c, int column) {
#pragma unroll
            for (int k = 0; k < K; ++k) x[k][c] = totals[k * kSegments + column / SIZE];
        });
    }
}

// body(c, i, column, row): row holds the values of all columns.
template <int W, typename Body>
__device__ inline void exchange(const Row<W>& x, P* shared, const Body& body) {
    static_assert(W <= kSharedValues);
    __syncthreads();
    for_values<W>([&](int c, int i, int column) { shared[column] = x[c][i]; });
    __syncthreads();
    for_values<W>([&](int c, int i, int column) { body(c, i, column, (const P*)shared); });
}

// What an operation is given beside its arguments.
struct Call {
    Index row;
    P* shared;
    const P* parameter[2];
    unsigned long long word[3];
    double number[4];

    // The index-th value where word `at` points to.
    template <typename Q>
    __device__ Q value(int at, Index index) const {
        return read_word<Q>((const Q*)word[at] + index);
    }
    // Where the row's adapter begins in a bank of entries of `size` values; word 0 points to the rows' entries. A
    // template argument, since NVRTC 13.0 reads the result of `bank ? offset : 0` a cycle too early on sm_90.
    template <bool banked>
    __device__ Index entry(Index size) const {
        if constexpr (banked) return value<int>(0, row) * size;
        return 0;
    }
};

// Which gradients are wanted, as bits of a template argument of backward().
constexpr int kArgument0 = 1, kArgument1 = 2, kParameter0 = 4, kParameter1 = 8;
// Both parameters are one tensor, whose gradient is collected as that of the first.
constexpr int kTied = 16;

// In the place of a sum that is not wanted.
struct Nothing {};

// Rows that each thread adds to, in shared memory: registers hold but six rows of 11,008 values. Neighbouring threads'
// values lie side by side, in different banks.
template <int W>
struct SharedRows {
    static constexpr int kValues = Row<W>::kOwn * V * kThreads;  // of a row
    P* values;

    struct Chunk {
        P* first;
        __device__ P& operator[](int i) const { return first[i * kThreads]; }
    };
    struct One {
        P* first;
        __device__ Chunk operator[](int c) const { return {first + c * V * kThreads}; }
    };
    __device__ One operator[](int k) const { return {values + k * kValues + threadIdx.x}; }
};
template <int W, typename Sum>
__device__ inline void clear(Sum&& sum) {
    for_values<W>([&](int c, int i, int) { sum[c][i] = 0; });
}
template <int W, typename Sum>
__device__ inline void store_sum(const Sum& sum, P* to) {
    Row<W> row;
    for_values<W>([&](int c, int i, int) { row[c][i] = sum[c][i]; });
    store(row, to);
}
