// The loss of each row of logits (rows, classes) and, in its place, its gradient, softmax minus one-hot; 0 both of targets
// that are -100 (linear_cross_entropy.h). shared: two values a warp. Two passes over a row, the second one out of a cache.
template <typename Q>
__device__ inline void cross_entropy(Q* logits, const Index* targets, P* losses, Index rows, Index classes, Scratch& scratch) {
    constexpr int kWarps = kThreads / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // A row's highest logit, and the sum of exp(logit - highest) so far.
    const auto merge = [](P& highest, P& sum, P other, P other_sum) {
        const P above = max(highest, other);
        sum = (sum == P(0) ? P(0) : sum * exponential(highest - above)) + (other_sum == P(0) ? P(0) : other_sum * exponential(other - above));
        highest = above;
    };
    for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
        Q* const own = logits + row * classes;
        const Index target = read_word<Index>(targets + row);
        const bool ignored = target == -100;
        P highest = -P(3e38), sum = 0;
        for (Index at = threadIdx.x * V; at < classes && !ignored; at += kThreads * V) {
            Pack<Q, V> pack;
            pack.read_written(own + at);
            P x[V], most = highest, more = 0;
            pack.give(x);
#pragma unroll
            for (int i = 0; i < V; ++i) most = max(most, x[i]);
#pragma unroll
            for (int i = 0; i < V; ++i) more += exponential(x[i] - most);
            sum = sum * exponential(highest - most) + more;
            highest = most;
        }
        for (int offset = 16; offset > 0; offset /= 2) {
            const P other = __shfl_xor_sync(0xffffffffu, highest, offset), other_sum = __shfl_xor_sync(0xffffffffu, sum, offset);
            merge(highest, sum, other, other_sum);
        }
        P* const shared = scratch.turn();
        if (lane == 0) {
            shared[warp] = highest;
            shared[kWarps + warp] = sum;
        }
        __syncthreads();
        highest = shared[0];
        sum = shared[kWarps];
        for (int w = 1; w < kWarps; ++w) merge(highest, sum, shared[w], shared[kWarps + w]);
        const P inverse = P(1) / sum;
        for (Index at = threadIdx.x * V; at < classes; at += kThreads * V) {
            Pack<Q, V> pack;
            pack.read_written(own + at);
            P x[V];
            pack.give(x);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const bool hit = at + i == target;
                if (hit) write_value(log(sum) + highest - x[i], losses + row);
                x[i] = ignored ? P(0) : exponential(x[i] - highest) * inverse - P(hit);
            }
            pack.take(x);
            pack.write(own + at);
        }
        // A target that is no class has no loss: not a number, which a run tells.
        if (threadIdx.x == 0 && (target < 0 || target >= classes)) write_value(ignored ? P(0) : P(rsqrt(-1.0f)), losses + row);
    }
}
