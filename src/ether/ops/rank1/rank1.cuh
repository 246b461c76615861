// y = x + sum_k c_k left_k (right_k . x) by blocks of SIZE columns (rank1.h). Parameters: left, right (bank, TERMS, W);
// ONE: both are one tensor. Word 0: if BANKED, the rows' entries; numbers: the coefficients.
template <int W, int SIZE, int TERMS, bool BANKED, bool ONE, bool HELD>
struct Rank1 {
    typedef Row<W> R;
    typedef P Sums[TERMS][R::kOwn];

    Parameter<W, W, TERMS, HELD> left;
    Parameter<W, W, TERMS, HELD && !ONE> own_right;

    __device__ const auto& right() const {
        if constexpr (ONE)
            return left;
        else
            return own_right;
    }

    // What each chunk adds to vector_k . x.
    template <typename Vectors>
    __device__ static void products(const R& x, const Vectors& vectors, Index entry, P (*sums)[R::kOwn]) {
#pragma unroll
        for (int k = 0; k < TERMS; ++k) {
#pragma unroll
            for (int c = 0; c < R::kOwn; ++c) sums[k][c] = 0;
            for_chunks<W>([&](int c, int column) {
                P vector[V];
                vectors.chunk(entry, k, c, column, vector);
#pragma unroll
                for (int i = 0; i < V; ++i) sums[k][c] += vector[i] * x[c][i];
            });
        }
    }
    // y = x + sum_k c_k sums_k vector_k
    template <typename Vectors>
    __device__ static void add_vectors(const Call& call, R& y, const R& x, const Vectors& vectors, Index entry,
                                       P (*sums)[R::kOwn]) {
        for_chunks<W>([&](int c, int column) {
#pragma unroll
            for (int i = 0; i < V; ++i) y[c][i] = x[c][i];
#pragma unroll
            for (int k = 0; k < TERMS; ++k) {
                P vector[V];
                vectors.chunk(entry, k, c, column, vector);
                const P factor = P(call.number[k]) * sums[k][c];
#pragma unroll
                for (int i = 0; i < V; ++i) y[c][i] += factor * vector[i];
            }
        });
    }

    __device__ void forward(const Call& call, R& y, const R& x, const R&) const {
        const Index entry = call.entry<BANKED>(TERMS * W);
        Sums sums;
        products(x, right(), entry, sums);
        sum_segments<W, SIZE>(sums, call.shared);
        add_vectors(call, y, x, left, entry, sums);
    }

    // grad_x = g + sum_k c_k right_k (left_k . g), grad_left_k = c_k (right_k . x) g, grad_right_k = c_k (left_k . g) x
    template <int wanted, typename Left, typename Right>
    __device__ void backward(const Call& call, const R& g, const R& x, const R&, R& grad_x, R&, Left& grad_left,
                             Right& grad_right) const {
        const Index entry = call.entry<BANKED>(TERMS * W);
        constexpr bool wants_left = wanted & kParameter0, wants_right = wanted & kParameter1;
        P sums[wants_left ? 2 * TERMS : TERMS][R::kOwn];  // of g, then of x
        products(g, left, entry, sums);
        if constexpr (wants_left) products(x, right(), entry, sums + TERMS);
        sum_segments<W, SIZE>(sums, call.shared);
        if constexpr (wanted & kArgument0) add_vectors(call, grad_x, g, right(), entry, sums);
#pragma unroll
        for (int k = 0; k < TERMS; ++k)
            for_values<W>([&](int c, int i, int) {
                const P factor = P(call.number[k]);
                if constexpr (wants_left) grad_left[k][c][i] += factor * sums[TERMS + k][c] * g[c][i];
                if constexpr (wants_right) {
                    const P more = factor * sums[k][c] * x[c][i];
                    if constexpr (wanted & kTied)
                        grad_left[k][c][i] += more;
                    else
                        grad_right[k][c][i] += more;
                }
            });
    }
};
