// What the operations' device code stands on. A block of kThreads threads treats one row at a time: each thread
// holds chunks of V neighbouring values in registers, the same ones of every value of the graph, so that only
// sums over a row pass through shared memory.
//
// Compiled at run time behind lines that define: P (what is computed with), kRounded (whether what lies in memory is
// BFloat16), V, kThreads, kSharedValues; before lines that define Stored (what lies in memory: float, double or BFloat16).

typedef long long Index;

#ifndef ETHER_EMULATED
__device__ inline char* dynamic_shared() {
    extern __shared__ uint4 dynamic[];
    return (char*)dynamic;
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

// Of what becomes a bfloat16 to some 1e-5 of its value: nearer than it is rounded to.
__device__ inline P exponential(P x) { return kRounded ? P(__expf(float(x))) : exp(x); }
__device__ inline P sigmoid(P x) {
    return kRounded ? P(__fdividef(1.0f, 1.0f + __expf(-float(x)))) : P(1) / (P(1) + exp(-x));
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

// One value.
__device__ inline float read_value(const float* from) { return read_word<float>(from); }
__device__ inline double read_value(const double* from) { return read_word<double>(from); }
__device__ inline BFloat16 read_value(const BFloat16* from) { return {read_word<unsigned short>(from)}; }
template <typename Q>
__device__ inline void write_value(P x, Q* to) {
    Q value;
    narrow(x, &value);
    typename WordOf<int(sizeof(Q))>::Type word;
    memcpy(&word, &value, sizeof(Q));
    write_word(to, word);
}

// Whether a dropout keeps the value of this index, as core/random.h has it.
__device__ inline bool keeps(unsigned long long key, unsigned long long index, unsigned threshold) {
    unsigned x = ((unsigned)index ^ (unsigned)key) + (unsigned)(index >> 32) * 0x9e3779b9u;
    x = (x ^ (x >> 17)) * 0xed5ad4bbu;
    x ^= (unsigned)(key >> 32);
    x = (x ^ (x >> 11)) * 0xac4c1b51u;
    x = (x ^ (x >> 15)) * 0x31848babu;
    return (x ^ (x >> 14)) <= threshold;
}

// Begins to copy so many bytes from global into shared memory; a thread's own copies have arrived after wait_for_copies() but
// for those begun since the last end_of_copies().
template <int bytes>
__device__ inline void copy_to_shared(const void* from, void* to) {
    typedef typename WordOf<bytes>::Type Word;
#pragma unroll
    for (int i = 0; i < int(bytes / sizeof(Word)); ++i) {
#if __CUDA_ARCH__ >= 800
        if constexpr (sizeof(Word) >= 4) {
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((unsigned)__cvta_generic_to_shared((Word*)to + i)),
                         "l"((const Word*)from + i), "n"(sizeof(Word))
                         : "memory");
            continue;
        }
#endif
        ((Word*)to)[i] = read_word<Word>((const Word*)from + i);
    }
}
__device__ inline void end_of_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

// Two values in one word.
__device__ inline void widen(unsigned pair, P* to) {
    to[0] = P(__uint_as_float(pair << 16));
    to[1] = P(__uint_as_float(pair & 0xffff0000u));
}
__device__ inline unsigned narrow_pair(const P* x) {
#if __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(float(x[1])), "f"(float(x[0])));
    return pair;
#else
    BFloat16 value[2];
    narrow(x[0], &value[0]);
    narrow(x[1], &value[1]);
    return value[0].bits | (unsigned)value[1].bits << 16;
#endif
}

// N values, read and written 16 bytes at a time where they are so many.
template <typename Q, int N>
struct Pack {
    typedef typename WordOf<int(sizeof(Q) * N)>::Type Word;
    static constexpr int kWords = sizeof(Q) * N / sizeof(Word);
    static constexpr bool kPairs = sizeof(Q) == 2 && N % 2 == 0;
    union {
        Q value[N];
        Word word[kWords];
        unsigned pair[kPairs ? N / 2 : 1];
    };

    __device__ void give(P* x) const {
        if constexpr (kPairs) {
#pragma unroll
            for (int i = 0; i < N / 2; ++i) widen(pair[i], x + 2 * i);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = wide(value[i]);
        }
    }
    __device__ void take(const P* x) {
        if constexpr (kPairs) {
#pragma unroll
            for (int i = 0; i < N / 2; ++i) pair[i] = narrow_pair(x + 2 * i);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) narrow(x[i], &value[i]);
        }
    }

    __device__ void read(const Q* from) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) word[i] = read_word<Word>((const Word*)from + i);
    }
    // Of memory that the kernel writes to.
    __device__ void read_written(const Q* from) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) word[i] = ((const Word*)from)[i];
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

// Whether a thread has a c-th chunk. One that has none computes along with the last chunk's values, which costs fewer
// registers than branches, but stores nothing and adds nothing to sums.
template <int W>
__device__ inline bool present(int c) {
    return Row<W>::kChunks % kThreads == 0 || c * kThreads + (int)threadIdx.x < Row<W>::kChunks;
}

// Calls body(c, column) for each of this thread's chunks, column being that of its first value.
template <int W, typename Body>
__device__ inline void for_chunks(const Body& body) {
#pragma unroll
    for (int c = 0; c < Row<W>::kOwn; ++c) {
        const int chunk = c * kThreads + (int)threadIdx.x;
        body(c, (present<W>(c) ? chunk : Row<W>::kChunks - 1) * V);
    }
}
template <int W, typename Body>
__device__ inline void for_present_chunks(const Body& body) {
    for_chunks<W>([&](int c, int column) {
        if (present<W>(c)) body(c, column);
    });
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
    pack.give(to);
}

// A parameter of an operation: rows of SIZE values, which lie under a row's W columns again and again. HELD: each thread
// keeps what it needs of ROWS of them from the block's first row to its last, since reading them for each row costs as
// much as the row itself; else they are read when they are needed.
template <int W, int SIZE, int ROWS, bool HELD>
struct Parameter {
    const P* from;

    __device__ Parameter(const P* from) : from(from) {}
    // The chunk of row k under `column`, the thread's c-th; of a bank's entry that begins at `entry`.
    __device__ void chunk(Index entry, int k, int, int column, P* to) const {
        load_chunk(from + entry + k * SIZE + column % SIZE, to);
    }
};
template <int W, int SIZE, int ROWS>
struct Parameter<W, SIZE, ROWS, true> {
    Row<W> rows[ROWS];

    __device__ Parameter(const P* from) {
#pragma unroll
        for (int k = 0; k < ROWS; ++k)
            for_chunks<W>([&](int c, int column) { load_chunk(from + k * SIZE + column % SIZE, rows[k][c]); });
    }
    __device__ void chunk(Index, int k, int c, int, P* to) const {
#pragma unroll
        for (int i = 0; i < V; ++i) to[i] = rows[k][c][i];
    }
};

// Rows of W values in memory that this block treats. Each operation that reads a row takes it anew: registers would not
// hold all rows of a turn until the last one. Plain: from memory, whose caches have it from the second time on.
template <int W, typename Q>
struct Plain {
    const Q* rows;
    const Q* current;

    __device__ Plain(const Q* rows, char*) : rows(rows) {}
    __device__ void turn(Index row) { current = rows + row * W; }
    __device__ Row<W> take() const {
        Row<W> row;
        for_chunks<W>([&](int c, int column) { load_chunk(current + column, row[c]); });
        return row;
    }
};
// Staged: from shared memory, where the next row arrives while this one is treated. Threads read what they fetched
// themselves, and need no barrier.
template <int W, typename Q>
struct Staged {
    static constexpr int kRoom = Row<W>::kOwn * V * kThreads;  // values of a row: each thread writes to its own
    const Q* rows;
    Q* current;
    Q* next;

    __device__ Staged(const Q* rows, char* room) : rows(rows), current((Q*)room + kRoom), next((Q*)room) {}
    __device__ static int place(int c) { return (c * kThreads + (int)threadIdx.x) * V; }
    // The row for the turn after this one.
    __device__ void fetch(Index row, Index count) {
        if (row >= count) return;
        for_chunks<W>([&](int c, int column) { copy_to_shared<int(sizeof(Q)) * V>(rows + row * W + column, next + place(c)); });
    }
    __device__ void turn(Index) {
        Q* const last = current;
        current = next;
        next = last;
    }
    __device__ Row<W> take() const {
        Row<W> row;
        for_chunks<W>([&](int c, int) {
            Pack<Q, V> pack;
            pack.read_written(current + place(c));
            pack.give(row[c]);
        });
        return row;
    }
};
template <int W, typename Q>
__device__ inline void store(const Row<W>& row, Q* to) {
    for_present_chunks<W>([&](int c, int column) {
        Pack<Q, V> pack;
        pack.take(row[c]);
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

// Shared memory for what threads tell each other, in turns: what is told in one turn has been read by all when the turn
// after the next begins, for there is a barrier in each.
struct Scratch {
    P *current, *next;

    __device__ P* turn() {
        P* const own = next;
        next = current;
        current = own;
        return own;
    }
};

// K sums at once over each segment of SIZE columns: x holds what each chunk adds, and then each chunk's segment's
// sum. All threads of the block take part.
template <int W, int SIZE, int K>
__device__ inline void sum_segments(P (&x)[K][Row<W>::kOwn], Scratch& scratch) {
    constexpr int kOwn = Row<W>::kOwn, kChunks = Row<W>::kChunks, kPart = SIZE / V, kSegments = W / SIZE;
    constexpr int kWarps = kThreads / 32;
    static_assert(SIZE % V == 0 && W % SIZE == 0);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    if constexpr (kPart == 1) return;
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
        for (int c = 0; c < kOwn; ++c)
            if (!present<W>(c)) x[k][c] = 0;
    if constexpr (kPart <= 32 && (kPart & (kPart - 1)) == 0) {  // neighbouring lanes hold a segment
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int c = 0; c < kOwn; ++c) x[k][c] = sum_of_lanes(x[k][c], kPart);
    } else if constexpr (kSegments == 1) {
        static_assert(K * kWarps <= kSharedValues);
        P* const shared = scratch.turn();
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
#pragma unroll
            for (int w = 0; w < kWarps; ++w) sum += shared[k * kWarps + w];
#pragma unroll
            for (int c = 0; c < kOwn; ++c) x[k][c] = sum;
        }
    } else if constexpr (kPart >= 32) {  // the 32 chunks of a warp lie in one segment, or in two
        constexpr int kGroups = kOwn * kWarps, kSides = kPart % 32 == 0 ? 1 : 2;
        static_assert(kSides * K * kGroups <= kSharedValues);
        P* const shared = scratch.turn();
#pragma unroll
        for (int c = 0; c < kOwn; ++c) {
            const int group = c * kWarps + warp;
            const bool second = kSides == 2 && (group * 32 + lane) / kPart != group * 32 / kPart;
#pragma unroll
            for (int k = 0; k < K; ++k)
#pragma unroll
                for (int side = 0; side < kSides; ++side) {
                    const P sum = sum_of_lanes(second == (side == 1) ? x[k][c] : P(0), 32);
                    if (lane == 0) shared[(k * kGroups + group) * kSides + side] = sum;
                }
        }
        __syncthreads();
        for_chunks<W>([&](int c, int column) {
            const int segment = column / SIZE, begin = segment * kPart / 32;
#pragma unroll
            for (int k = 0; k < K; ++k) x[k][c] = 0;
            if constexpr (kSides == 1) {
#pragma unroll
                for (int group = 0; group < kPart / 32; ++group)
#pragma unroll
                    for (int k = 0; k < K; ++k) x[k][c] += shared[k * kGroups + begin + group];
            } else {
                for (int group = begin; group * 32 < (segment + 1) * kPart; ++group) {
                    const int side = group * 32 < segment * kPart;
#pragma unroll
                    for (int k = 0; k < K; ++k) x[k][c] += shared[(k * kGroups + group) * 2 + side];
                }
            }
        });
    } else {
        static_assert(K * (kChunks + kSegments) <= kSharedValues);
        P* const shared = scratch.turn();
        P* const totals = shared + K * kChunks;
        for_present_chunks<W>([&](int c, int column) {
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
__device__ inline void exchange(const Row<W>& x, Scratch& scratch, const Body& body) {
    static_assert(W <= kSharedValues);
    P* const shared = scratch.turn();
    for_present_chunks<W>([&](int c, int column) {
#pragma unroll
        for (int i = 0; i < V; ++i) shared[column + i] = x[c][i];
    });
    __syncthreads();
    for_values<W>([&](int c, int i, int column) { body(c, i, column, (const P*)shared); });
}

// What an operation is given beside its arguments and its parameters, which it begins with.
struct Call {
    Index row;
    Scratch& shared;
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
