// Norms over pieces of SIZE columns (rms_norm.h, layer_norm.h). Number 0: epsilon.
template <int W, int SIZE, bool HELD>
struct RmsNorm {
    typedef Row<W> R;

    Parameter<W, SIZE, 1, HELD> weight;

    __device__ static void inverse_roots(const Call& call, const R& x, P* inverse) {
        P squares[1][R::kOwn] = {};
        for_values<W>([&](int c, int i, int) { squares[0][c] += x[c][i] * x[c][i]; });
        sum_segments<W, SIZE>(squares, call.shared);
#pragma unroll
        for (int c = 0; c < R::kOwn; ++c) inverse[c] = rsqrt(squares[0][c] / SIZE + P(call.number[0]));
    }

    __device__ void forward(const Call& call, R& y, const R& x, const R&) const {
        P inverse[R::kOwn];
        inverse_roots(call, x, inverse);
        for_chunks<W>([&](int c, int column) {
            P w[V];
            weight.chunk(0, 0, c, column, w);
#pragma unroll
            for (int i = 0; i < V; ++i) y[c][i] = x[c][i] * inverse[c] * w[i];
        });
    }

    // With n = x r: grad_x = r (w g - n mean(w g n)), grad_w = sum over rows of g n.
    template <int wanted, typename Weight, typename None>
    __device__ void backward(const Call& call, const R& g, const R& x, const R&, R& grad_x, R&, Weight& grad_weight,
                             None&) const {
        P inverse[R::kOwn], along[1][R::kOwn] = {};
        inverse_roots(call, x, inverse);
        for_chunks<W>([&](int c, int column) {
            P w[V];
            weight.chunk(0, 0, c, column, w);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                if constexpr (wanted & kParameter0) grad_weight[0][c][i] += g[c][i] * x[c][i] * inverse[c];
                grad_x[c][i] = g[c][i] * w[i];
                along[0][c] += grad_x[c][i] * x[c][i];
            }
        });
        if constexpr (wanted & kArgument0) {
            sum_segments<W, SIZE>(along, call.shared);
            for_values<W>([&](int c, int i, int) {
                const P mean = along[0][c] * inverse[c] * inverse[c] / SIZE;
                grad_x[c][i] = (grad_x[c][i] - x[c][i] * mean) * inverse[c];
            });
        }
    }
};

template <int W, bool HELD>
struct LayerNorm {
    typedef Row<W> R;

    Parameter<W, W, 1, HELD> weight, bias;

    // (x - mean) / deviation, in two passes: the variance of a large mean would lose its digits in one.
    __device__ static void normalise(const Call& call, const R& x, R& normal, P* inverse) {
        P sums[1][R::kOwn] = {};
        for_values<W>([&](int c, int i, int) { sums[0][c] += x[c][i]; });
        sum_segments<W, W>(sums, call.shared);
        P squares[1][R::kOwn] = {};
        for_values<W>([&](int c, int i, int) {
            normal[c][i] = x[c][i] - sums[0][c] / W;
            squares[0][c] += normal[c][i] * normal[c][i];
        });
        sum_segments<W, W>(squares, call.shared);
#pragma unroll
        for (int c = 0; c < R::kOwn; ++c) inverse[c] = rsqrt(squares[0][c] / W + P(call.number[0]));
        for_values<W>([&](int c, int i, int) { normal[c][i] *= inverse[c]; });
    }

    __device__ void forward(const Call& call, R& y, const R& x, const R&) const {
        P inverse[R::kOwn];
        normalise(call, x, y, inverse);
        for_chunks<W>([&](int c, int column) {
            P w[V], b[V];
            weight.chunk(0, 0, c, column, w);
            bias.chunk(0, 0, c, column, b);
#pragma unroll
            for (int i = 0; i < V; ++i) y[c][i] = y[c][i] * w[i] + b[i];
        });
    }

    // With n = (x - mean) r: grad_x = r (w g - mean(w g) - n mean(w g n)); grad_w = sum over rows of g n, grad_b of g.
    template <int wanted, typename Weight, typename Bias>
    __device__ void backward(const Call& call, const R& g, const R& x, const R&, R& grad_x, R&, Weight& grad_weight,
                             Bias& grad_bias) const {
        R normal;
        P inverse[R::kOwn], sums[2][R::kOwn] = {};
        normalise(call, x, normal, inverse);
        for_chunks<W>([&](int c, int column) {
            P w[V];
            weight.chunk(0, 0, c, column, w);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                if constexpr (wanted & kParameter0) grad_weight[0][c][i] += g[c][i] * normal[c][i];
                if constexpr (wanted & kParameter1) grad_bias[0][c][i] += g[c][i];
                grad_x[c][i] = g[c][i] * w[i];
                sums[0][c] += grad_x[c][i];
                sums[1][c] += grad_x[c][i] * normal[c][i];
            }
        });
        if constexpr (wanted & kArgument0) {
            sum_segments<W, W>(sums, call.shared);
            for_values<W>([&](int c, int i, int) {
                grad_x[c][i] = (grad_x[c][i] - sums[0][c] / W - normal[c][i] * sums[1][c] / W) * inverse[c];
            });
        }
    }
};
