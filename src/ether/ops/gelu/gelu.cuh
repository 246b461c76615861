// x Phi(x), Phi by the error function (gelu.h).
template <int W>
struct Gelu {
    typedef Row<W> R;

    __device__ static P below(P x) { return (P(1) + erf(x * P(0.70710678118654752440))) / P(2); }

    __device__ static void forward(const Call&, R& y, const R& x, const R&) {
        for_values<W>([&](int c, int i, int) { y[c][i] = x[c][i] * below(x[c][i]); });
    }
    // Phi(x) + x phi(x), phi(x) = exp(-x^2 / 2) / sqrt(2 pi).
    template <int wanted, typename None>
    __device__ static void backward(const Call&, const R& g, const R& x, const R&, R& grad_x, R&, None&, None&) {
        for_values<W>([&](int c, int i, int) {
            const P value = x[c][i], density = exp(-value * value / P(2)) * P(0.39894228040143267794);
            grad_x[c][i] = g[c][i] * (below(value) + value * density);
        });
    }
};
