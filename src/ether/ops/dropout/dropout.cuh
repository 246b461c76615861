// Values dropped by a hash of their place (dropout.h). Words: the random key, the first row, the
// threshold below which a value stays; number 0: the scale of what stays.
template <int W>
struct Dropout {
    typedef Row<W> R;

    __device__ static void mask(const Call& call, R& y, const R& x) {
        const unsigned long long key = call.word[0], start = (call.word[1] + (unsigned long long)call.row) * W;
        const unsigned threshold = (unsigned)call.word[2];
        for_values<W>([&](int c, int i, int column) {
            y[c][i] = keeps(key, start + (unsigned long long)column, threshold) ? x[c][i] * P(call.number[0]) : P(0);
        });
    }

    __device__ static void forward(const Call& call, R& y, const R& x, const R&) { mask(call, y, x); }
    template <int wanted, typename None>
    __device__ static void backward(const Call& call, const R& g, const R&, const R&, R& grad_x, R&, None&, None&) {
        mask(call, grad_x, g);
    }
};
