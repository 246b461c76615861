#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ether/core/parallel.h"
#include "ether/core/random.h"
#include "ether/ops/attention/kernel.h"
#include "ether/ops/gemm/tile.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

constexpr int64_t kTile = 64;  // query rows a tile

// The part of one sequence that one tile of queries touches. Keys are counted from the sequence's first key.
struct Tile {
    int64_t sequence, first_row, rows;
    int64_t key_begin, key_end;  // keys any of its rows sees
    int64_t diagonal;            // row r's own key is diagonal + r
    int64_t keys() const { return key_end - key_begin; }
};

class Layout {
  public:
    explicit Layout(const AttentionShape& shape) : shape_(shape) {}

    int64_t queries(int64_t s) const { return shape_.query_offsets[s + 1] - shape_.query_offsets[s]; }
    int64_t keys(int64_t s) const { return shape_.key_offsets[s + 1] - shape_.key_offsets[s]; }
    int64_t query_stride() const { return shape_.heads * shape_.head_dim; }
    int64_t key_stride() const { return shape_.kv_heads * shape_.head_dim; }
    int64_t group() const { return shape_.heads / shape_.kv_heads; }
    int64_t longest_keys() const {
        int64_t longest = 0;
        for (int64_t s = 0; s < shape_.sequences; ++s) longest = std::max(longest, keys(s));
        return longest;
    }

    Tile tile(int64_t sequence, int64_t first_row) const {
        Tile tile{sequence, first_row, std::min(kTile, queries(sequence) - first_row), 0, keys(sequence), 0};
        tile.diagonal = keys(sequence) - queries(sequence) + first_row;
        if (shape_.causal) tile.key_end = std::min(tile.key_end, tile.diagonal + tile.rows);
        if (shape_.window) tile.key_begin = std::max<int64_t>(0, tile.diagonal - shape_.window + 1);
        return tile;
    }
    // Keys [begin, end) that row r of the tile sees, counted from tile.key_begin.
    std::pair<int64_t, int64_t> visible(const Tile& tile, int64_t r) const {
        const int64_t own = tile.diagonal + r;
        const int64_t begin =
            shape_.window ? std::max(tile.key_begin, own - shape_.window + 1) : tile.key_begin;
        const int64_t end = shape_.causal ? std::min(tile.key_end, own + 1) : tile.key_end;
        return {begin - tile.key_begin, std::max(begin, end) - tile.key_begin};
    }
    int64_t query_at(const Tile& tile, int64_t head) const {
        return (shape_.query_offsets[tile.sequence] + tile.first_row) * query_stride() +
               head * shape_.head_dim;
    }
    int64_t key_at(const Tile& tile, int64_t kv_head) const {
        return (shape_.key_offsets[tile.sequence] + tile.key_begin) * key_stride() +
               kv_head * shape_.head_dim;
    }
    int64_t row_at(const Tile& tile) const { return shape_.query_offsets[tile.sequence] + tile.first_row; }
    // The dropout counter of key 0 (of the sequence) in one row.
    uint64_t counter(const Tile& tile, int64_t row, int64_t head) const {
        return (static_cast<uint64_t>((shape_.dropout_row + row_at(tile) + row) * shape_.heads + head)
                << 24) +
               static_cast<uint64_t>(tile.key_begin);
    }

    const AttentionShape& shape() const { return shape_; }
    // Scratch of one Transposed: tiles begin anywhere and are read in whole vectors.
    int64_t transposed_values() const {
        return shape_.head_dim * padded<float>(longest_keys() + padded<float>(1));
    }

  private:
    const AttentionShape& shape_;
};

// One head's keys or values (keys, head_dim) as (head_dim, keys), zeros behind them: what scores are products
// with.
template <typename T>
class Transposed {
  public:
    Transposed(const Layout& layout, const T* x, int64_t sequence, int64_t kv_head, T* scratch)
        : data_(scratch), row_(padded<T>(layout.keys(sequence) + kLanes<T>)) {
        const int64_t dim = layout.shape().head_dim, keys = layout.keys(sequence),
                      stride = layout.key_stride();
        const T* from = x + layout.shape().key_offsets[sequence] * stride + kv_head * dim;
        for (int64_t j = 0; j < dim; ++j) {
            T* to = scratch + j * row_;
            for (int64_t i = 0; i < keys; ++i) to[i] = from[i * stride + j];
            std::fill(to + keys, to + row_, T{0});
        }
    }
    Strided<const T> from(const Tile& tile) const { return {data_ + tile.key_begin, row_}; }

  private:
    const T* data_;
    int64_t row_;
};

// Calls body(sequence, kv_head, worker) for all pairs; a chunk owns its scratch.
template <typename Body>
void for_each_head(const AttentionShape& shape, Body&& body) {
    parallel_for(shape.sequences * shape.kv_heads, 1, [&](int chunk, int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task)
            body(task / shape.kv_heads, task % shape.kv_heads, chunk);
    });
}

template <typename T>
void zero_outside(T* row, std::pair<int64_t, int64_t> visible, int64_t keys) {
    std::fill(row, row + visible.first, T{0});
    std::fill(row + visible.second, row + keys, T{0});
}

// Multiplies kept entries by 1 / (1 - p) and clears the others.
template <typename T>
void apply_dropout(T* row, int64_t keys, uint64_t key, uint64_t counter, uint32_t threshold, T scale) {
    for_kept(key, counter, keys, threshold,
             [=](int64_t j, bool kept) { row[j] = kept ? row[j] * scale : T{0}; });
}

}  // namespace

template <typename T>
void attention_forward(const AttentionShape& shape, const T* q, const T* k, const T* v, T* out, T* lse) {
    const Layout layout(shape);
    const int64_t dim = shape.head_dim, q_stride = layout.query_stride(), k_stride = layout.key_stride();
    const uint32_t threshold = keep_threshold(shape.dropout);
    const T keep_scale = static_cast<T>(1 / (1 - shape.dropout));
    std::vector<std::vector<T>> scratch(static_cast<size_t>(num_threads()));
    const int64_t tile_values = kTile * padded<T>(layout.longest_keys());
    for_each_head(shape, [&](int64_t sequence, int64_t kv_head, int worker) {
        auto& buffer = scratch[static_cast<size_t>(worker)];
        buffer.resize(static_cast<size_t>(tile_values + layout.transposed_values()));
        T* scores = buffer.data();
        const Transposed<T> k_transposed(layout, k, sequence, kv_head, scores + tile_values);
        for (int64_t head = kv_head * layout.group(); head < (kv_head + 1) * layout.group(); ++head) {
            for (int64_t first = 0; first < layout.queries(sequence); first += kTile) {
                const Tile tile = layout.tile(sequence, first);
                const int64_t keys = tile.keys(), q_at = layout.query_at(tile, head),
                              k_at = layout.key_at(tile, kv_head);
                const int64_t width = padded<T>(keys);
                tile_product<T>(tile.rows, width, dim, static_cast<T>(shape.scale), {q + q_at, q_stride},
                                k_transposed.from(tile), {scores, width});
                for_best_isa([&] {
                    for (int64_t r = 0; r < tile.rows; ++r) {
                        T* row = scores + r * width;
                        const auto visible = layout.visible(tile, r);
                        T highest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : highest)
                        for (int64_t j = visible.first; j < visible.second; ++j)
                            highest = std::max(highest, row[j]);
                        T sum = 0;
#pragma omp simd reduction(+ : sum)
                        for (int64_t j = visible.first; j < visible.second; ++j) {
                            row[j] = exp(row[j] - highest);
                            sum += row[j];
                        }
                        zero_outside(row, visible, keys);
                        const T inverse = 1 / sum;
#pragma omp simd
                        for (int64_t j = visible.first; j < visible.second; ++j) row[j] *= inverse;
                        lse[(layout.row_at(tile) + r) * shape.heads + head] = highest + std::log(sum);
                        if (shape.dropout > 0)
                            apply_dropout(row, keys, shape.dropout_key, layout.counter(tile, r, head),
                                          threshold, keep_scale);
                    }
                });
                tile_product<T>(tile.rows, dim, keys, T{1}, {scores, width}, {v + k_at, k_stride},
                                {out + q_at, q_stride});
            }
        }
    });
}

// P = softmax(S), S = scale q k^T: dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO O)), dq = scale dS k,
// dk = scale dS^T q (Dao et al., arXiv 2205.14135, appendix B). P is recomputed from lse.
template <typename T>
void attention_backward(const AttentionShape& shape, const T* q, const T* k, const T* v, const T* out,
                        const T* lse, const T* grad_out, T* grad_q, T* grad_k, T* grad_v) {
    const Layout layout(shape);
    const int64_t dim = shape.head_dim, q_stride = layout.query_stride(), k_stride = layout.key_stride();
    const uint32_t threshold = keep_threshold(shape.dropout);
    const T scale = static_cast<T>(shape.scale), keep_scale = static_cast<T>(1 / (1 - shape.dropout));
    std::fill(grad_k, grad_k + shape.key_offsets[shape.sequences] * k_stride, T{0});
    std::fill(grad_v, grad_v + shape.key_offsets[shape.sequences] * k_stride, T{0});
    std::vector<std::vector<T>> scratch(static_cast<size_t>(num_threads()));
    const int64_t tile_values = kTile * padded<T>(layout.longest_keys());
    for_each_head(shape, [&](int64_t sequence, int64_t kv_head, int worker) {
        auto& buffer = scratch[static_cast<size_t>(worker)];
        buffer.resize(static_cast<size_t>(3 * tile_values + 2 * layout.transposed_values()));
        T *p = buffer.data(), *ds = p + tile_values, *dropped = ds + tile_values;
        const Transposed<T> k_transposed(layout, k, sequence, kv_head, dropped + tile_values),
            v_transposed(layout, v, sequence, kv_head, dropped + tile_values + layout.transposed_values());
        for (int64_t head = kv_head * layout.group(); head < (kv_head + 1) * layout.group(); ++head) {
            for (int64_t first = 0; first < layout.queries(sequence); first += kTile) {
                const Tile tile = layout.tile(sequence, first);
                const int64_t keys = tile.keys(), q_at = layout.query_at(tile, head),
                              k_at = layout.key_at(tile, kv_head);
                const int64_t width = padded<T>(keys);
                tile_product<T>(tile.rows, width, dim, scale, {q + q_at, q_stride}, k_transposed.from(tile),
                                {p, width});
                tile_product<T>(tile.rows, width, dim, T{1}, {grad_out + q_at, q_stride},
                                v_transposed.from(tile), {ds, width});
                const T* used = shape.dropout > 0 ? dropped : p;  // the probabilities that met v
                for_best_isa([&] {
                    for (int64_t r = 0; r < tile.rows; ++r) {
                        T *p_row = p + r * width, *ds_row = ds + r * width;
                        const auto visible = layout.visible(tile, r);
                        const T row_lse = lse[(layout.row_at(tile) + r) * shape.heads + head];
                        const T *o = out + q_at + r * q_stride, *dout = grad_out + q_at + r * q_stride;
                        const T delta = dot(o, dout, dim);
#pragma omp simd
                        for (int64_t j = visible.first; j < visible.second; ++j)
                            p_row[j] = exp(p_row[j] - row_lse);
                        zero_outside(p_row, visible, keys);
                        if (shape.dropout > 0) {
                            const uint64_t counter = layout.counter(tile, r, head);
                            T* dropped_row = dropped + r * width;
                            std::copy(p_row, p_row + keys, dropped_row);
                            apply_dropout(dropped_row, keys, shape.dropout_key, counter, threshold,
                                          keep_scale);
                            apply_dropout(ds_row, keys, shape.dropout_key, counter, threshold, keep_scale);
                        }
#pragma omp simd
                        for (int64_t j = 0; j < keys; ++j) ds_row[j] = p_row[j] * (ds_row[j] - delta);
                    }
                });
                tile_product<T>(keys, dim, tile.rows, T{1}, {used, 1, width}, {grad_out + q_at, q_stride},
                                {grad_v + k_at, k_stride}, true);
                tile_product<T>(tile.rows, dim, keys, scale, {ds, width}, {k + k_at, k_stride},
                                {grad_q + q_at, q_stride});
                tile_product<T>(keys, dim, tile.rows, scale, {ds, 1, width}, {q + q_at, q_stride},
                                {grad_k + k_at, k_stride}, true);
            }
        }
    });
}

#define ETHER_INSTANTIATE(T)                                                                           \
    template void attention_forward<T>(const AttentionShape&, const T*, const T*, const T*, T*, T*);   \
    template void attention_backward<T>(const AttentionShape&, const T*, const T*, const T*, const T*, \
                                        const T*, const T*, T*, T*, T*);
ETHER_INSTANTIATE(float)
ETHER_INSTANTIATE(double)
#undef ETHER_INSTANTIATE

}  // namespace ether::ops
