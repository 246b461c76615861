#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "ether/core/parallel.h"
#include "ether/core/random.h"
#include "ether/ops/attention/kernel.h"
#include "ether/ops/attention/layout.h"
#include "ether/ops/gemm/tile.h"
#include "ether/ops/isa.h"
#include "ether/ops/vector_math.h"

namespace ether::ops {
namespace {

// Memory that a thread keeps from one head to the next, of no values until they are written.
template <typename T>
class Scratch {
  public:
    T* room(int64_t values) {
        if (size_ < values) {
            data_ = std::make_unique_for_overwrite<T[]>(static_cast<size_t>(values));
            size_ = values;
        }
        return data_.get();
    }

  private:
    std::unique_ptr<T[]> data_;
    int64_t size_ = 0;
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
    for_each_part(layout, [&](const HeadPart& part, int chunk) {
        auto& work = workspaces[static_cast<size_t>(chunk)];
        const int64_t sequence = part.sequence;
        Keys<S> keys_of(layout, k, sequence, part.kv_head), values_of(layout, v, sequence, part.kv_head);
        keys_of.transpose(work.keys);
        values_of.pair_rows(work.values);
        const int64_t widest = padded<P>(layout.keys(sequence));
        P *scores = work.scores.room(kTile * widest), *result = work.result.room(kTile * dim);
        Unit<S>* probabilities = kInPairs<S> ? work.probabilities.room(kTile * units<S>(widest)) : nullptr;
        for (const auto& piece : part.pieces) {
            const Tile& tile = piece.tile;
            const int64_t head = piece.head;
            const int64_t q_at = layout.query_at(tile, head), width = padded<P>(tile.keys());
            layout.for_bands(tile, [&](int64_t band, int64_t rows, int64_t keys) {
                tile_product(rows, padded<P>(keys), units<S>(dim), static_cast<P>(shape.scale),
                             over_columns<S>(q + q_at + band * q_stride, q_stride), keys_of.transposed(tile),
                             {scores + band * width, width});
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
    struct Shared {
        int64_t sequence, kv_head;
        std::vector<P> grad_keys, grad_values;
    };
    std::vector<Workspace> workspaces(static_cast<size_t>(num_threads()));
    std::vector<std::vector<Shared>> shared(workspaces.size());
    const auto store = [&](int64_t sequence, int64_t kv_head, const P* grad_keys, const P* grad_values) {
        const int64_t at = layout.keys_at(sequence, kv_head);
        narrow_rows(grad_keys, layout.keys(sequence), dim, grad_k + at, k_stride);
        narrow_rows(grad_values, layout.keys(sequence), dim, grad_v + at, k_stride);
    };
    for (int64_t s = 0; s < shape.sequences; ++s) {
        if (layout.queries(s) > 0) continue;
        const auto clear = [&](S* gradient) {
            std::fill_n(gradient + layout.keys_at(s, 0), layout.keys(s) * k_stride, S{});
        };
        clear(grad_k);
        clear(grad_v);
    }
    for_each_part(layout, [&](const HeadPart& part, int chunk) {
        auto& work = workspaces[static_cast<size_t>(chunk)];
        const int64_t sequence = part.sequence;
        Keys<S> keys_of(layout, k, sequence, part.kv_head), values_of(layout, v, sequence, part.kv_head);
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
        for (const auto& piece : part.pieces) {
            const Tile& tile = piece.tile;
            const int64_t head = piece.head;
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
                    for (int64_t j = 0; j < dim; ++j) delta += static_cast<P>(o[j]) * static_cast<P>(dout[j]);
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
                        apply_dropout(ds_row, tile.keys(), shape.dropout_key, counter, threshold, keep_scale);
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
                tile_product(rows, dim, units<S>(keys), scale, from_row(ds_columns, band), keys_of.rows(tile),
                             {result + band * dim, dim});
            });
            narrow_rows(result, tile.rows, dim, grad_q + q_at, q_stride);
        }
        if (part.whole)
            store(sequence, part.kv_head, grad_keys, grad_values);
        else
            shared[static_cast<size_t>(chunk)].push_back({sequence,
                                                          part.kv_head,
                                                          {grad_keys, grad_keys + key_values},
                                                          {grad_values, grad_values + key_values}});
    });
    // A key head that several threads had parts of: their sums, in order.
    Shared* sum = nullptr;
    const auto store_sum = [&] {
        if (sum) store(sum->sequence, sum->kv_head, sum->grad_keys.data(), sum->grad_values.data());
    };
    for (auto& of_chunk : shared)
        for (auto& part : of_chunk) {
            if (sum && sum->sequence == part.sequence && sum->kv_head == part.kv_head) {
                const auto add = [](auto& to, const auto& x) {
                    std::transform(x.begin(), x.end(), to.begin(), to.begin(), std::plus());
                };
                add(sum->grad_keys, part.grad_keys);
                add(sum->grad_values, part.grad_values);
            } else {
                store_sum();
                sum = &part;
            }
        }
    store_sum();
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
