// Rotates each head's halves, of HALF columns, by the angles of the row's position (rotary.h). Words: positions (int64),
// cos and sin (., HALF).
template <int W, int HALF>
struct Rotary {
    typedef Row<W> R;

    __device__ static void rotate(const Call& call, R& y, const R& x, P sign) {
        const Index angle = call.value<Index>(0, call.row) * HALF;
        exchange<W>(x, call.shared, [&](int c, int i, int column, const P* row) {
            const bool second = column / HALF % 2;
            const P cosine = call.value<P>(1, angle + column % HALF), sine = call.value<P>(2, angle + column % HALF) * sign;
            y[c][i] = x[c][i] * cosine + (second ? row[column - HALF] * sine : -row[column + HALF] * sine);
        });
    }

    __device__ static void forward(const Call& call, R& y, const R& x, const R&) { rotate(call, y, x, P(1)); }
    // The transpose rotates back.
    template <int wanted, typename None>
    __device__ static void backward(const Call& call, const R& g, const R&, const R&, R& grad_x, R&, None&, None&) {
        rotate(call, grad_x, g, P(-1));
    }
};
