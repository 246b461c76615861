// Sums of two rows, and rows times or plus a vector (elementwise.h), one of a bank (., W) if BANKED, when word 0 points to
// the rows' entries.
template <int W>
struct Add {
    typedef Row<W> R;

    __device__ static void forward(const Call&, R& y, const R& a, const R& b) {
        for_values<W>([&](int c, int i, int) { y[c][i] = a[c][i] + b[c][i]; });
    }
    template <int wanted, typename None>
    __device__ static void backward(const Call&, const R& g, const R&, const R&, R& grad_a, R& grad_b, None&, None&) {
        grad_a = g;
        grad_b = g;
    }
};

template <int W, bool BANKED, bool HELD>
struct Scale {
    typedef Row<W> R;

    Parameter<W, W, 1, HELD> factors;

    __device__ void times(const Call& call, R& y, const R& x) const {
        const Index entry = call.entry<BANKED>(W);
        for_chunks<W>([&](int c, int column) {
            P factor[V];
            factors.chunk(entry, 0, c, column, factor);
#pragma unroll
            for (int i = 0; i < V; ++i) y[c][i] = x[c][i] * factor[i];
        });
    }
    __device__ void forward(const Call& call, R& y, const R& x, const R&) const { times(call, y, x); }
    template <int wanted, typename Factor, typename None>
    __device__ void backward(const Call& call, const R& g, const R& x, const R&, R& grad_x, R&, Factor& grad_factor,
                             None&) const {
        if constexpr (wanted & kArgument0) times(call, grad_x, g);
        if constexpr (wanted & kParameter0)
            for_values<W>([&](int c, int i, int) { grad_factor[0][c][i] += g[c][i] * x[c][i]; });
    }
};

template <int W, bool BANKED, bool HELD>
struct Shift {
    typedef Row<W> R;

    Parameter<W, W, 1, HELD> offsets;

    __device__ void forward(const Call& call, R& y, const R& x, const R&) const {
        const Index entry = call.entry<BANKED>(W);
        for_chunks<W>([&](int c, int column) {
            P offset[V];
            offsets.chunk(entry, 0, c, column, offset);
#pragma unroll
            for (int i = 0; i < V; ++i) y[c][i] = x[c][i] + offset[i];
        });
    }
    template <int wanted, typename Offset, typename None>
    __device__ static void backward(const Call&, const R& g, const R&, const R&, R& grad_x, R&, Offset& grad_offset, None&) {
        grad_x = g;
        if constexpr (wanted & kParameter0)
            for_values<W>([&](int c, int i, int) { grad_offset[0][c][i] += g[c][i]; });
    }
};
