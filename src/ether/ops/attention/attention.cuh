// Attention over ragged sequences (attention.h), a tile of kTile queries by kTile keys at a time, of which a block of 128
// threads makes the scores: its thread t has rows t / 8 and t / 8 + 16 and every eighth column, from t % 8 on.
struct Attention {
    static constexpr int kTile = 32;

    const int *query_offsets, *key_offsets;  // (sequences + 1)
    int heads, kv_heads, tiles;              // tiles: of the longest sequence
    bool causal;
    int window;  // 0: all
    P scale;
    unsigned long long dropout_key, dropout_row;
    unsigned threshold;  // below which a probability's hash keeps it
    P keep_scale;

    // What a block treats: a tile of one sequence's queries, or of its keys, in one head.
    struct Item {
        int head, first, queries, keys;  // first: of the tile's rows in the sequence; queries, keys: of the sequence
        Index query, key;                // the sequence's first rows
    };
    __device__ Item item(Index index, int heads_of_items) const {
        const Index sequence = index / tiles / heads_of_items;
        const int query = read_word<int>(query_offsets + sequence), key = read_word<int>(key_offsets + sequence);
        return {int(index / tiles % heads_of_items), int(index % tiles) * kTile,
                read_word<int>(query_offsets + sequence + 1) - query, read_word<int>(key_offsets + sequence + 1) - key, query, key};
    }
    // Whether a query sees a key, each counted within its sequence, of which both exist.
    __device__ bool sees(const Item& at, int query, int key) const {
        const int own = query + at.keys - at.queries;
        return query < at.queries && key < at.keys && (!causal || key <= own) && (window == 0 || key > own - window);
    }
    // What dropout leaves of a probability of 1.
    __device__ P keep(const Item& at, int head, int query, int key) const {
        if (keep_scale == P(1)) return 1;
        const unsigned long long row = dropout_row + (unsigned long long)(at.query + query);
        return keeps(dropout_key, ((row * heads + head) << 24) + key, threshold) ? keep_scale : P(0);
    }
};

// kTile rows of one head's D values, in shared memory; the columns of neighbouring rows lie in different banks.
template <int D>
struct HeadTile {
    static constexpr int kStride = D + 1, kValues = Attention::kTile * kStride;
    P* values;

    __device__ const P* operator[](int row) const { return values + row * kStride; }
    // Rows first.. of x (count rows of the sequence, of which each has `width` values); 0 behind them.
    template <typename Q>
    __device__ void load(const Q* x, Index width, int first, int count) const {
        for (int at = threadIdx.x; at < Attention::kTile * D; at += kThreads) {
            const int row = at / D, column = at % D;
            values[row * kStride + column] = first + row < count ? wide(read_value(x + (first + row) * width + column)) : P(0);
        }
    }
};
typedef P Scores[2][4];  // of a thread's rows and columns
constexpr int kScoresStride = Attention::kTile + 1, kScoresValues = Attention::kTile * kScoresStride;

// scores = left right^T
template <int D>
__device__ inline void multiply(const HeadTile<D>& left, const HeadTile<D>& right, Scores& scores) {
    const int row = threadIdx.x / 8, column = threadIdx.x % 8;
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int b = 0; b < 4; ++b) scores[a][b] = 0;
#pragma unroll 8
    for (int d = 0; d < D; ++d) {
        const P l[2] = {left[row][d], left[row + 16][d]};
#pragma unroll
        for (int b = 0; b < 4; ++b) {
            const P r = right[column + 8 * b][d];
#pragma unroll
            for (int a = 0; a < 2; ++a) scores[a][b] += l[a] * r;
        }
    }
}
__device__ inline void put(const Scores& scores, P* to) {
    const int row = threadIdx.x / 8, column = threadIdx.x % 8;
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int b = 0; b < 4; ++b) to[(row + 16 * a) * kScoresStride + column + 8 * b] = scores[a][b];
}

// A thread's part of kTile rows of D values: its rows, and every eighth column.
template <int D>
struct HeadSums {
    static constexpr int kOwn = (D + 7) / 8;
    P value[2][kOwn];

    __device__ void clear() {
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
            for (int i = 0; i < kOwn; ++i) value[a][i] = 0;
    }
    // += scores x
    __device__ void add(const P* scores, const HeadTile<D>& x) {
        const int row = threadIdx.x / 8, column = threadIdx.x % 8;
        for (int j = 0; j < Attention::kTile; ++j) {
            const P s[2] = {scores[row * kScoresStride + j], scores[(row + 16) * kScoresStride + j]};
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                if (D % 8 != 0 && column + 8 * i >= D) continue;
                const P v = x[j][column + 8 * i];
#pragma unroll
                for (int a = 0; a < 2; ++a) value[a][i] += s[a] * v;
            }
        }
    }
    // Times factor[a] each row, to rows first.. of count.
    template <typename Q>
    __device__ void store(const P (&factor)[2], Q* to, Index width, int first, int count) const {
#pragma unroll
        for (int a = 0; a < 2; ++a) {
            const int row = first + threadIdx.x / 8 + 16 * a;
            if (row >= count) continue;
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                const int column = threadIdx.x % 8 + 8 * i;
                if (column < D) write_value(value[a][i] * factor[a], to + row * width + column);
            }
        }
    }
};

// The keys that a tile of queries sees lie in tiles begin..end.
__device__ inline void seen_tiles(const Attention& call, const Attention::Item& at, int& begin, int& end) {
    const int shift = at.keys - at.queries, last = min(at.first + Attention::kTile, at.queries) - 1;
    begin = call.window > 0 ? max(0, at.first + shift - call.window + 1) / Attention::kTile : 0;
    end = ((call.causal ? min(at.keys, last + shift + 1) : at.keys) + Attention::kTile - 1) / Attention::kTile;
}

// out (queries, heads * D), lse (queries, heads)
template <int D, typename Q>
__device__ inline void attention_forward(const Attention& call, Index items, const Q* q, const Q* k, const Q* v, Q* out, P* lse,
                                         P* shared) {
    const HeadTile<D> queries{shared}, keys{shared + HeadTile<D>::kValues}, values{shared + 2 * HeadTile<D>::kValues};
    P* const probabilities = shared + 3 * HeadTile<D>::kValues;
    const int own_row = threadIdx.x / 8, own_column = threadIdx.x % 8;
    const Index width = (Index)call.heads * D, kv_width = (Index)call.kv_heads * D;
    for (Index index = blockIdx.x; index < items; index += gridDim.x) {
        const auto at = call.item(index, call.heads);
        if (at.first >= at.queries) continue;
        const Index head = at.head * D, kv_head = Index(at.head / (call.heads / call.kv_heads)) * D;
        P highest[2] = {-P(3e38), -P(3e38)}, sum[2] = {0, 0};
        HeadSums<D> sums;
        sums.clear();
        __syncthreads();
        queries.load(q + at.query * width + head, width, at.first, at.queries);
        int tile, end;
        seen_tiles(call, at, tile, end);
        for (; tile < end; ++tile) {
            const int first_key = tile * Attention::kTile;
            __syncthreads();
            keys.load(k + at.key * kv_width + kv_head, kv_width, first_key, at.keys);
            values.load(v + at.key * kv_width + kv_head, kv_width, first_key, at.keys);
            __syncthreads();
            Scores scores;
            multiply(queries, keys, scores);
#pragma unroll
            for (int a = 0; a < 2; ++a) {
                const int query = at.first + own_row + 16 * a;
                P above = highest[a], more = 0;
#pragma unroll
                for (int b = 0; b < 4; ++b) {
                    scores[a][b] *= call.scale;
                    if (call.sees(at, query, first_key + own_column + 8 * b)) above = max(above, scores[a][b]);
                }
                for (int lanes = 4; lanes > 0; lanes /= 2) above = max(above, __shfl_xor_sync(0xffffffffu, above, lanes));
                const P shrink = exponential(highest[a] - above);
#pragma unroll
                for (int b = 0; b < 4; ++b) {
                    const int key = first_key + own_column + 8 * b;
                    const P probability = call.sees(at, query, key) ? exponential(scores[a][b] - above) : P(0);
                    more += probability;
                    scores[a][b] = probability * call.keep(at, at.head, query, key);
                }
                sum[a] = sum[a] * shrink + sum_of_lanes(more, 8);
                highest[a] = above;
#pragma unroll
                for (int i = 0; i < HeadSums<D>::kOwn; ++i) sums.value[a][i] *= shrink;
            }
            put(scores, probabilities);
            __syncthreads();
            sums.add(probabilities, values);
        }
        // A query that sees no key has the result 0.
        const P factor[2] = {sum[0] > 0 ? P(1) / sum[0] : P(0), sum[1] > 0 ? P(1) / sum[1] : P(0)};
        sums.store(factor, out + at.query * width + head, width, at.first, at.queries);
        for (int a = 0; a < 2; ++a) {
            const int query = at.first + own_row + 16 * a;
            if (own_column == 0 && query < at.queries)
                write_value(highest[a] + log(sum[a]), lse + (at.query + query) * call.heads + at.head);
        }
    }
}

// The gradient of q, and delta (queries, heads), the sum of out times its gradient, which the other gradients need.
template <int D, typename Q>
__device__ inline void attention_backward_q(const Attention& call, Index items, const Q* q, const Q* k, const Q* v, const Q* out,
                                            const Q* grad_out, const P* lse, P* delta, Q* grad_q, P* shared) {
    constexpr int kValues = HeadTile<D>::kValues;
    const HeadTile<D> queries{shared}, grads{shared + kValues}, keys{shared + 2 * kValues}, values{shared + 3 * kValues};
    P* const grad_scores = shared + 4 * kValues;
    const int own_row = threadIdx.x / 8, own_column = threadIdx.x % 8;
    const Index width = (Index)call.heads * D, kv_width = (Index)call.kv_heads * D;
    for (Index index = blockIdx.x; index < items; index += gridDim.x) {
        const auto at = call.item(index, call.heads);
        if (at.first >= at.queries) continue;
        const Index head = at.head * D, kv_head = Index(at.head / (call.heads / call.kv_heads)) * D;
        __syncthreads();
        queries.load(q + at.query * width + head, width, at.first, at.queries);
        grads.load(grad_out + at.query * width + head, width, at.first, at.queries);
        __syncthreads();
        P along[2] = {0, 0}, normalizer[2] = {0, 0};
        for (int a = 0; a < 2; ++a) {
            const int row = own_row + 16 * a, query = at.first + row;
            const Index of_row = at.query + query, of_head = of_row * call.heads + at.head;
            if (query < at.queries) {
                for (int d = own_column; d < D; d += 8)
                    along[a] += grads[row][d] * wide(read_value(out + of_row * width + head + d));
                normalizer[a] = read_value(lse + of_head);
            }
            along[a] = sum_of_lanes(along[a], 8);
            if (query < at.queries && own_column == 0) write_value(along[a], delta + of_head);
        }
        HeadSums<D> sums;
        sums.clear();
        int tile, end;
        seen_tiles(call, at, tile, end);
        for (; tile < end; ++tile) {
            const int first_key = tile * Attention::kTile;
            __syncthreads();
            keys.load(k + at.key * kv_width + kv_head, kv_width, first_key, at.keys);
            values.load(v + at.key * kv_width + kv_head, kv_width, first_key, at.keys);
            __syncthreads();
            Scores scores, grad;
            multiply(queries, keys, scores);
            multiply(grads, values, grad);
#pragma unroll
            for (int a = 0; a < 2; ++a)
#pragma unroll
                for (int b = 0; b < 4; ++b) {
                    const int query = at.first + own_row + 16 * a, key = first_key + own_column + 8 * b;
                    const P probability =
                        call.sees(at, query, key) ? exponential(scores[a][b] * call.scale - normalizer[a]) : P(0);
                    scores[a][b] = probability * (grad[a][b] * call.keep(at, at.head, query, key) - along[a]);
                }
            put(scores, grad_scores);
            __syncthreads();
            sums.add(grad_scores, keys);
        }
        const P factor[2] = {call.scale, call.scale};
        sums.store(factor, grad_q + at.query * width + head, width, at.first, at.queries);
    }
}

// The gradients of k and v. Scores are transposed here: their rows are keys.
template <int D, typename Q>
__device__ inline void attention_backward_kv(const Attention& call, Index items, const Q* q, const Q* k, const Q* v,
                                             const Q* grad_out, const P* lse, const P* delta, Q* grad_k, Q* grad_v, P* shared) {
    constexpr int kValues = HeadTile<D>::kValues;
    const HeadTile<D> queries{shared}, grads{shared + kValues}, keys{shared + 2 * kValues}, values{shared + 3 * kValues};
    P *const probabilities = shared + 4 * kValues, *const grad_scores = probabilities + kScoresValues;
    const int own_row = threadIdx.x / 8, own_column = threadIdx.x % 8, group = call.heads / call.kv_heads;
    const Index width = (Index)call.heads * D, kv_width = (Index)call.kv_heads * D;
    for (Index index = blockIdx.x; index < items; index += gridDim.x) {
        const auto at = call.item(index, call.kv_heads);
        if (at.first >= at.keys) continue;
        const Index kv_head = (Index)at.head * D;
        __syncthreads();
        keys.load(k + at.key * kv_width + kv_head, kv_width, at.first, at.keys);
        values.load(v + at.key * kv_width + kv_head, kv_width, at.first, at.keys);
        HeadSums<D> of_keys, of_values;
        of_keys.clear();
        of_values.clear();
        const int shift = at.keys - at.queries, last = min(at.first + Attention::kTile, at.keys) - 1;
        const int begin = call.causal ? max(0, at.first - shift) / Attention::kTile : 0;
        const int end = call.window > 0 ? min(at.queries, max(0, last + call.window - shift)) : at.queries;
        for (int head = at.head * group; head < (at.head + 1) * group; ++head)
            for (int tile = begin; tile * Attention::kTile < end; ++tile) {
                const int first_query = tile * Attention::kTile;
                __syncthreads();
                queries.load(q + at.query * width + head * D, width, first_query, at.queries);
                grads.load(grad_out + at.query * width + head * D, width, first_query, at.queries);
                __syncthreads();
                Scores scores, grad;
                multiply(keys, queries, scores);
                multiply(values, grads, grad);
#pragma unroll
                for (int b = 0; b < 4; ++b) {
                    const int query = first_query + own_column + 8 * b;
                    const Index of_head = (at.query + query) * call.heads + head;
                    const bool exists = query < at.queries;
                    const P normalizer = exists ? read_value(lse + of_head) : P(0), along = exists ? read_value(delta + of_head) : P(0);
#pragma unroll
                    for (int a = 0; a < 2; ++a) {
                        const int key = at.first + own_row + 16 * a;
                        const P probability = call.sees(at, query, key) ? exponential(scores[a][b] * call.scale - normalizer) : P(0);
                        const P kept = call.keep(at, head, query, key);
                        scores[a][b] = probability * kept;
                        grad[a][b] = probability * (grad[a][b] * kept - along);
                    }
                }
                put(scores, probabilities);
                put(grad, grad_scores);
                __syncthreads();
                of_values.add(probabilities, grads);
                of_keys.add(grad_scores, queries);
            }
        const P factor[2] = {call.scale, call.scale}, one[2] = {1, 1};
        of_keys.store(factor, grad_k + at.key * kv_width + kv_head, kv_width, at.first, at.keys);
        of_values.store(one, grad_v + at.key * kv_width + kv_head, kv_width, at.first, at.keys);
    }
}
