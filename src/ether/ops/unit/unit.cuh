// A row over its length (unit.h). A row of length 0 becomes NaN, which the loss tells.
template <int W>
struct Unit {
    typedef Row<W> R;

    __device__ static void forward(const Call& call, R& y, const R& x, const R&) {
        P squares[1][R::kOwn] = {};
        for_values<W>([&](int c, int i, int) { squares[0][c] += x[c][i] * x[c][i]; });
        sum_segments<W, W>(squares, call.shared);
        for_values<W>([&](int c, int i, int) { y[c][i] = x[c][i] * rsqrt(squares[0][c]); });
    }
    // With u = x / |x|: grad_x = (g - u (u . g)) / |x|.
    template <int wanted, typename None>
    __device__ static void backward(const Call& call, const R& g, const R& x, const R&, R& grad_x, R&, None&, None&) {
        P sums[2][R::kOwn] = {};
        for_values<W>([&](int c, int i, int) {
            sums[0][c] += x[c][i] * x[c][i];
            sums[1][c] += x[c][i] * g[c][i];
        });
        sum_segments<W, W>(sums, call.shared);
        for_values<W>([&](int c, int i, int) {
            const P inverse = rsqrt(sums[0][c]);
            grad_x[c][i] = (g[c][i] - x[c][i] * sums[1][c] * inverse * inverse) * inverse;
        });
    }
};
