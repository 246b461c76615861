// silu(gate) * up (swiglu.h).
template <int W>
struct Swiglu {
    typedef Row<W> R;

    __device__ static void forward(const Call&, R& y, const R& x, const R& up) {
        for_values<W>([&](int c, int i, int) { y[c][i] = x[c][i] * sigmoid(x[c][i]) * up[c][i]; });
    }
    // d silu(x) = s (1 + x (1 - s)) with s = sigmoid(x).
    template <int wanted, typename None>
    __device__ static void backward(const Call&, const R& g, const R& x, const R& up, R& grad_x, R& grad_up, None&, None&) {
        for_values<W>([&](int c, int i, int) {
            const P s = sigmoid(x[c][i]);
            grad_x[c][i] = g[c][i] * up[c][i] * s * (P(1) + x[c][i] * (P(1) - s));
            grad_up[c][i] = g[c][i] * x[c][i] * s;
        });
    }
};
