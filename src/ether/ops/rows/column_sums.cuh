// sums (columns) of x (rows, columns): a block has 32 columns, and each of its warps every so-manieth row of them.
__device__ inline void column_sums(const P* x, P* sums, Index rows, Index columns, Scratch& scratch) {
    constexpr int kWarps = kThreads / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (Index first = (Index)blockIdx.x * 32; first < columns; first += (Index)gridDim.x * 32) {
        const Index column = first + lane;
        P sum = 0;
        if (column < columns)
#pragma unroll 8
            for (Index row = warp; row < rows; row += kWarps) sum += read_value(x + row * columns + column);
        P* const shared = scratch.turn();
        shared[threadIdx.x] = sum;
        __syncthreads();
        if (warp > 0 || column >= columns) continue;
#pragma unroll
        for (int w = 1; w < kWarps; ++w) sum += shared[w * 32 + lane];
        write_value(sum, sums + column);
    }
}
