// y = x + sum_k c_k left_k (right_k . x) by blocks of SIZE columns (rank1.h). Parameters: left, right (bank, TERMS, W);
// word 0: if BANKED, the rows' entries; numbers: the coefficients.
template <int W, int SIZE, int TERMS, bool BANKED>
struct Rank1 {
    typedef Row<W> R;
    typedef P Sums[TERMS][R::kOwn];

    // What each chunk adds to vector_k . x.
    __device__ static void products(const R& x, const P* vectors, P (*sums)[R::kOwn]) {
#pragma unroll
        for (int k = 0; k < TERMS; ++k) {
#pragma unroll
            for (int c = 0; c < R::kOwn; ++c) sums[k][c] = 0;
            for_chunks<W>([&](int c, int column) {
                P vector[V];
                load_chunk(vectors + k * W + column, vector);
#pragma unroll
                for (int i = 0; i < V; ++i) sums[k][c] += vector[i] * x[c][i];
            });
        }
    }
    // y = x + sum_k c_k sums_k vector_k
    __device__ static void add_vectors(const Call& call, R& y, const R& x, const P* vectors, P (*sums)[R::kOwn]) {
        for_chunks<W>([&](int c, int column) {
#pragma unroll
            for (int i = 0; i < V; ++i) y[c][i] = x[c][i];
#pragma unroll
            for (int k = 0; k < TERMS; ++k) {
                P vector[V];
                load_chunk(vectors + k * W + column, vector);
                const P factor = P(call.number[k]) * sums[k][c];
#pragma unroll
                for (int i = 0; i < V; ++i) y[c][i] += factor * vector[i];
            }
        });
    }

    __device__ static void forward(const Call& call, R& y, const R& x, const R&) {
        const Index at = call.entry<BANKED>(TERMS * W);
        Sums sums;
        products(x, call.parameter[1] + at, sums);
        sum_segments<W, SIZE>(sums, call.shared);
        add_vectors(call, y, x, call.parameter[0] + at, sums);
    }

    // grad_x = g + sum_k c_k right_k (left_k . g), grad_left_k = c_k (right_k . x) g, grad_right_k = c_k (left_k . g) x
    template <int wanted, typename Left, typename Right>
    __device__ static void backward(const Call& call, const R& g, const R& x, const R&, R& grad_x, R&, Left& grad_left,
                                    Right& grad_right) {
        const Index at = call.entry<BANKED>(TERMS * W);
        constexpr bool left = wanted & kParameter0, right = wanted & kParameter1;
        P sums[left ? 2 * TERMS : TERMS][R::kOwn];  // of g, then of x
        products(g, call.parameter[0] + at, sums);
        if constexpr (left) products(x, call.parameter[1] + at, sums + TERMS);
        sum_segments<W, SIZE>(sums, call.shared);
        if constexpr (wanted & kArgument0) add_vectors(call, grad_x, g, call.parameter[1] + at, sums);
#pragma unroll
        for (int k = 0; k < TERMS; ++k)
            for_values<W>([&](int c, int i, int) {
                const P factor = P(call.number[k]);
                if constexpr (left) grad_left[k][c][i] += factor * sums[TERMS + k][c] * g[c][i];
                if constexpr (right) {
                    const P more = factor * sums[k][c] * x[c][i];
                    if constexpr (wanted & kTied)
                        grad_left[k][c][i] += more;
                    else
                        grad_right[k][c][i] += more;
                }
            });
    }
};
