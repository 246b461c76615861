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
constexpr int64_t kBand = 24;  // of them, whose products reach as far as the last one sees; even, for pairs

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
        // Even, so that pairs of keys are the same for all tiles.
        if (shape_.window) tile.key_begin = std::max<int64_t>(0, tile.diagonal - shape_.window + 1) / 2 * 2;
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
    // Calls body(first, rows, keys) for each band of the tile's rows and the keys [0, keys) that it sees.
    template <typename Body>
    void for_bands(const Tile& tile, Body&& body) const {
        const int64_t band = shape_.causal ? kBand : tile.rows;
        for (int64_t first = 0; first < tile.rows; first += band) {
            const int64_t rows = std::min(band, tile.rows - first);
            body(first, rows, visible(tile, first + rows - 1).second);
        }
    }
    // Calls body(first, keys, row) for runs of the tile's keys that no row before `row` sees.
    template <typename Body>
    void for_key_bands(const Tile& tile, Body&& body) const {
        int64_t begin = 0;
        for_bands(tile, [&](int64_t first, int64_t, int64_t end) {
            if (end > begin) body(begin, end - begin, first);
            begin = std::max(begin, end);
        });
    }
    int64_t query_at(const Tile& tile, int64_t head) const {
        return (shape_.query_offsets[tile.sequence] + tile.first_row) * query_stride() +
               head * shape_.head_dim;
    }
    int64_t keys_at(int64_t sequence, int64_t kv_head) const {
        return shape_.key_offsets[sequence] * key_stride() + kv_head * shape_.head_dim;
    }
    int64_t row_at(const Tile& tile) const { return shape_.query_offsets[tile.sequence] + tile.first_row; }
    // The dropout counter of key 0 (of the sequence) in one row.
    uint64_t counter(const Tile& tile, int64_t row, int64_t head) const {
        return (static_cast<uint64_t>((shape_.dropout_row + row_at(tile) + row) * shape_.heads + head)
                << 24) +
               static_cast<uint64_t>(tile.key_begin);
    }

    const AttentionShape& shape() const { return shape_; }

  private:
    const AttentionShape& shape_;
};

// Memory that a thread keeps from one head to the next.
template <typename T>
class Scratch {
  public:
    T* room(int64_t values) {
        if (static_cast<int64_t>(data_.size()) < values) data_.resize(static_cast<size_t>(values));
        return data_.data();
    }

  private:
    std::vector<T> data_;
};

// One head's keys or values, as the operands of all its tiles.
template <typename S>
class Keys {
  public:
    Keys(const Layout& layout, const S* x, int64_t sequence, int64_t kv_head)
        : x_(x + layout.keys_at(sequence, kv_head)),
          stride_(layout.key_stride()),
          keys_(layout.keys(sequence)),
          dim_(layout.shape().head_dim) {}

    // (head_dim, keys), to be summed over head_dim: what scores are products with. Zeros behind the keys,
    // since tiles begin anywhere and are read in whole vectors.
    void transpose(Scratch<Unit<S>>& scratch) {
        const auto from = over_columns<S>(x_, stride_);
        row_ = padded<Wide<S>>(keys_ + kLanes<Wide<S>>);
        Unit<S>* to = scratch.room(units<S>(dim_) * row_);
        transposed_ = to;
        for (int64_t j = 0; j < units<S>(dim_); ++j, to += row_) {
            for (int64_t i = 0; i < keys_; ++i) to[i] = from.data[i * from.row + j];
            std::fill(to + keys_, to + row_, Unit<S>{});
        }
    }
    Strided<const Unit<S>> transposed(const Tile& tile) const { return {transposed_ + tile.key_begin, row_}; }

    // (keys, head_dim), to be summed over keys.
    void pair_rows(Scratch<Unit<S>>& scratch) {
        rows_ = over_rows<S>(x_, stride_, keys_, dim_,
                             kInPairs<S> ? scratch.room(units<S>(keys_) * dim_) : nullptr);
    }
    Strided<const Unit<S>> rows(const Tile& tile) const {
        return {rows_.data + units<S>(tile.key_begin) * rows_.row, rows_.row};
    }

  private:
    const S* x_;
    int64_t stride_, keys_, dim_;
    const Unit<S>* transposed_ = nullptr;
    int64_t row_ = 0;
    Strided<const Unit<S>> rows_ = {};
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
void zero_outside(T* row, std::pair<int64_t, int64_t> visible, int64_t width) {
    std::fill(row, row + visible.first, T{0});
    std::fill(row + visible.second, row + width, T{0});
}

// x (rows, dim), rounded, to rows of y that are `stride` apart.
template <typename S>
void narrow_rows(const Wide<S>* x, int64_t rows, int64_t dim, S* y, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r) convert(x + r * dim, y + r * stride, dim);
}

// Multiplies kept entries by 1 / (1 - p) and clears the others.
template <typename T>
void apply_dropout(T* row, int64_t keys, uint64_t key, uint64_t counter, uint32_t threshold, T scale) {
    for_kept(key, counter, keys, threshold,
             [=](int64_t j, bool kept) { row[j] = kept ? row[j] * scale : T{0}; });
}

}  // namespace

template <typename S>
void attention_forward(const AttentionShape& shape, const S* q, const S* k, const S* v, S* out,
                       Wide<S>* lse) {
    using P = Wide<S>;
    const Layout layout(shape);
    const int64_t dim = shape.head_dim, q_stride = layout.query_stride();
    const uint32_t threshold = keep_threshold(shape.dropout);
    const P keep_scale = static_cast<P>(1 / (1 - shape.dropout));
    struct Workspace {
        Scratch<P> scores, result;
        Scratch<Unit<S>> keys, values, probabilities;
    };
    std::vector<Workspace> workspaces(static_cast<size_t>(num_threads()));
    for_each_head(shape, [&](int64_t sequence, int64_t kv_head, int worker) {
        auto& work = workspaces[static_cast<size_t>(worker)];
        Keys<S> keys_of(layout, k, sequence, kv_head), values_of(layout, v, sequence, kv_head);
        keys_of.transpose(work.keys);
        values_of.pair_rows(work.values);
        const int64_t widest = padded<P>(layout.keys(sequence));
        P *scores = work.scores.room(kTile * widest), *result = work.result.room(kTile * dim);
        Unit<S>* probabilities = kInPairs<S> ? work.probabilities.room(kTile * units<S>(widest)) : nullptr;
        for (int64_t head = kv_head * layout.group(); head < (kv_head + 1) * layout.group(); ++head) {
            for (int64_t first = 0; first < layout.queries(sequence); first += kTile) {
                const Tile tile = layout.tile(sequence, first);
                const int64_t q_at = layout.query_at(tile, head), width = padded<P>(tile.keys());
                layout.for_bands(tile, [&](int64_t band, int64_t rows, int64_t keys) {
                    tile_product(rows, padded<P>(keys), units<S>(dim), static_cast<P>(shape.scale),
                                 over_columns<S>(q + q_at + band * q_stride, q_stride),
                                 keys_of.transposed(tile), {scores + band * width, width});
                });
                for_best_isa([&] {
                    for (int64_t r = 0; r < tile.rows; ++r) {
                        P* row = scores + r * width;
                        const auto visible = layout.visible(tile, r);
                        P highest = -std::numeric_limits<P>::infinity();
#pragma omp simd reduction(max : highest)
                        for (int64_t j = visible.first; j < visible.second; ++j)
                            highest = std::max(highest, row[j]);
                        P sum = 0;
#pragma omp simd reduction(+ : sum)
                        for (int64_t j = visible.first; j < visible.second; ++j) {
                            row[j] = exp(row[j] - highest);
                            sum += row[j];
                        }
                        zero_outside(row, visible, width);
                        const P inverse = 1 / sum;
#pragma omp simd
                        for (int64_t j = visible.first; j < visible.second; ++j) row[j] *= inverse;
                        lse[(layout.row_at(tile) + r) * shape.heads + head] = highest + std::log(sum);
                        if (shape.dropout > 0)
                            apply_dropout(row, tile.keys(), shape.dropout_key, layout.counter(tile, r, head),
                                          threshold, keep_scale);
                    }
                });
                const auto left = over_columns<S>(scores, tile.rows, width, probabilities);
                layout.for_bands(tile, [&](int64_t band, int64_t rows, int64_t keys) {
                    tile_product(rows, dim, units<S>(keys), P{1}, from_row(left, band), values_of.rows(tile),
                                 {result + band * dim, dim});
                });
                narrow_rows(result, tile.rows, dim, out + q_at, q_stride);
            }
        }
    });
}

// P = softmax(S), S = scale q k^T: dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO O)), dq = scale dS k,
// dk = scale dS^T q (Dao et al., arXiv 2205.14135, appendix B). P is recomputed from lse.
template <typename S>
void attention_backward(const AttentionShape& shape, const S* q, const S* k, const S* v, const S* out,
                        const Wide<S>* lse, const S* grad_out, S* grad_q, S* grad_k, S* grad_v) {
    using P = Wide<S>;
    const Layout layout(shape);
    const int64_t dim = shape.head_dim, q_stride = layout.query_stride(), k_stride = layout.key_stride();
    const uint32_t threshold = keep_threshold(shape.dropout);
    const P scale = static_cast<P>(shape.scale), keep_scale = static_cast<P>(1 / (1 - shape.dropout));
    struct Workspace {
        Scratch<P> p, ds, dropped, result, grad_keys, grad_values;
        Scratch<Unit<S>> keys, key_rows, values, left, right;
    };
    std::vector<Workspace> workspaces(static_cast<size_t>(num_threads()));
    for_each_head(shape, [&](int64_t sequence, int64_t kv_head, int worker) {
        auto& work = workspaces[static_cast<size_t>(worker)];
        Keys<S> keys_of(layout, k, sequence, kv_head), values_of(layout, v, sequence, kv_head);
        keys_of.transpose(work.keys);
        keys_of.pair_rows(work.key_rows);
        values_of.transpose(work.values);
        const int64_t widest = padded<P>(layout.keys(sequence)), key_values = layout.keys(sequence) * dim;
        P *p = work.p.room(kTile * widest), *ds = work.ds.room(kTile * widest),
          *dropped = shape.dropout > 0 ? work.dropped.room(kTile * widest) : nullptr,
          *result = work.result.room(kTile * dim), *grad_keys = work.grad_keys.room(key_values),
          *grad_values = work.grad_values.room(key_values);
        Unit<S>*left = nullptr, *right = nullptr;
        if constexpr (kInPairs<S>) {
            left = work.left.room(kTile * units<S>(widest));
            right = work.right.room(units<S>(kTile) * dim);
        }
        std::fill(grad_keys, grad_keys + key_values, P{0});
        std::fill(grad_values, grad_values + key_values, P{0});
        for (int64_t head = kv_head * layout.group(); head < (kv_head + 1) * layout.group(); ++head) {
            for (int64_t first = 0; first < layout.queries(sequence); first += kTile) {
                const Tile tile = layout.tile(sequence, first);
                const int64_t q_at = layout.query_at(tile, head), k_at = tile.key_begin * dim,
                              width = padded<P>(tile.keys());
                layout.for_bands(tile, [&](int64_t band, int64_t rows, int64_t keys) {
                    const int64_t at = q_at + band * q_stride, columns = padded<P>(keys);
                    tile_product(rows, columns, units<S>(dim), scale, over_columns<S>(q + at, q_stride),
                                 keys_of.transposed(tile), {p + band * width, width});
                    tile_product(rows, columns, units<S>(dim), P{1}, over_columns<S>(grad_out + at, q_stride),
                                 values_of.transposed(tile), {ds + band * width, width});
                });
                for_best_isa([&] {
                    for (int64_t r = 0; r < tile.rows; ++r) {
                        P *p_row = p + r * width, *ds_row = ds + r * width;
                        const auto visible = layout.visible(tile, r);
                        const P row_lse = lse[(layout.row_at(tile) + r) * shape.heads + head];
                        const S *o = out + q_at + r * q_stride, *dout = grad_out + q_at + r * q_stride;
                        P delta = 0;
#pragma omp simd reduction(+ : delta)
                        for (int64_t j = 0; j < dim; ++j)
                            delta += static_cast<P>(o[j]) * static_cast<P>(dout[j]);
#pragma omp simd
                        for (int64_t j = visible.first; j < visible.second; ++j)
                            p_row[j] = exp(p_row[j] - row_lse);
                        zero_outside(p_row, visible, width);
                        if (shape.dropout > 0) {
                            const uint64_t counter = layout.counter(tile, r, head);
                            P* dropped_row = dropped + r * width;
                            std::copy(p_row, p_row + width, dropped_row);
                            apply_dropout(dropped_row, tile.keys(), shape.dropout_key, counter, threshold,
                                          keep_scale);
                            apply_dropout(ds_row, tile.keys(), shape.dropout_key, counter, threshold,
                                          keep_scale);
                        }
#pragma omp simd
                        for (int64_t j = visible.first; j < visible.second; ++j)
                            ds_row[j] = p_row[j] * (ds_row[j] - delta);
                        zero_outside(ds_row, visible, width);
                    }
                });
                const P* used = shape.dropout > 0 ? dropped : p;  // the probabilities that met v
                // to (keys, dim) += factor x^T y, summed over the rows that see a key
                const auto add_to_keys = [&](const P* x, const S* y, P factor, P* to) {
                    const auto x_rows = over_rows<S>(x, width, tile.rows, width, left);
                    const auto y_rows = over_rows<S>(y + q_at, q_stride, tile.rows, dim, right);
                    layout.for_key_bands(tile, [&](int64_t key, int64_t count, int64_t row) {
                        auto columns = transposed(from_row(x_rows, units<S>(row)));
                        columns.data += key;
                        tile_product(count, dim, units<S>(tile.rows - row), factor, columns,
                                     from_row(y_rows, units<S>(row)), {to + k_at + key * dim, dim}, true);
                    });
                };
                add_to_keys(used, grad_out, P{1}, grad_values);
                add_to_keys(ds, q, scale, grad_keys);
                const auto ds_columns = over_columns<S>(ds, tile.rows, width, left);
                layout.for_bands(tile, [&](int64_t band, int64_t rows, int64_t keys) {
                    tile_product(rows, dim, units<S>(keys), scale, from_row(ds_columns, band),
                                 keys_of.rows(tile), {result + band * dim, dim});
                });
                narrow_rows(result, tile.rows, dim, grad_q + q_at, q_stride);
            }
        }
        const int64_t at = layout.keys_at(sequence, kv_head);
        narrow_rows(grad_keys, layout.keys(sequence), dim, grad_k + at, k_stride);
        narrow_rows(grad_values, layout.keys(sequence), dim, grad_v + at, k_stride);
    });
}

#define ETHER_INSTANTIATE(S)                                                                               \
    template void attention_forward<S>(const AttentionShape&, const S*, const S*, const S*, S*, Wide<S>*); \
    template void attention_backward<S>(const AttentionShape&, const S*, const S*, const S*, const S*,     \
                                        const Wide<S>*, const S*, S*, S*, S*);
ETHER_INSTANTIATE(float)
ETHER_INSTANTIATE(double)
ETHER_INSTANTIATE(c10::BFloat16)
#undef ETHER_INSTANTIATE

}  // namespace ether::ops
