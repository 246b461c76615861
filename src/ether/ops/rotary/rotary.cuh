// Rotates each head's halves, of HALF columns, by the angles of the row's position (rotary.h). Words: positions (int64),
// cos and sin (., HALF).
template <int W, int HALF>
struct Rotary {
    typedef Row<W> R;

    __device__ static void rotate(const Call& call, R& y, const R& x, P sign) {
        const Index angle = call.value<Index>(0, call.row) * HALF;
        const P *cosines = (const P*)call.word[1] + angle, *sines = (const P*)call.word[2] + angle;
        R other;  // the other half's values
        constexpr int kLanes = HALF / V;
        if constexpr (kLanes <= 16 && (kLanes & (kLanes - 1)) == 0)  // a warp holds both
            for_values<W>([&](int c, int i, int) { other[c][i] = __shfl_xor_sync(0xffffffffu, x[c][i], kLanes); });
        else
            exchange<W>(x, call.shared, [&](int c, int i, int column, const P* row) {
                other[c][i] = row[column / HALF % 2 ? column - HALF : column + HALF];
            });
        for_chunks<W>([&](int c, int column) {
            P cosine[V], sine[V];
            load_chunk(cosines + column % HALF, cosine);
            load_chunk(sines + column % HALF, sine);
            const P side = column / HALF % 2 ? sign : -sign;
#pragma unroll
            for (int i = 0; i < V; ++i) y[c][i] = x[c][i] * cosine[i] + side * other[c][i] * sine[i];
        });
    }

    __device__ static void forward(const Call& call, R& y, const R& x, const R&) { rotate(call, y, x, P(1)); }
    // The transpose rotates back.
    template <int wanted, typename None>
    __device__ static void backward(const Call& call, const R& g, const R&, const R&, R& grad_x, R&, None&, None&) {
        rotate(call, grad_x, g, P(-1));
    }
};
