// The tiles of attention's sequences and heads, and which of them each thread has. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "ether/core/parallel.h"
#include "ether/ops/attention/kernel.h"

namespace ether::ops {

inline constexpr int64_t kTile = 64;  // query rows a tile
inline constexpr int64_t kBand =
    24;  // of them, whose products reach as far as the last one sees; even, for pairs

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

// Tiles of one key head, of all query heads that read it or some.
struct HeadPart {
    struct Piece {
        Tile tile;
        int64_t head;
    };
    int64_t sequence, kv_head;
    std::span<const Piece> pieces;
    bool whole;  // no other thread has tiles of it
};

// Calls body(part, chunk) for all parts, in parallel. Chunks have about as many scores each, so that one
// sequence with few heads, or some of uneven lengths, keep all threads busy.
template <typename Body>
void for_each_part(const Layout& layout, Body&& body) {
    const auto& shape = layout.shape();
    std::vector<HeadPart::Piece> pieces;
    std::vector<int64_t> middles;  // twice the scores up to each piece's middle
    int64_t scores = 0;
    for (int64_t s = 0; s < shape.sequences; ++s)
        for (int64_t head = 0; head < shape.heads; ++head)
            for (int64_t first = 0; first < layout.queries(s); first += kTile) {
                const auto& tile = pieces.emplace_back(layout.tile(s, first), head).tile;
                middles.push_back(2 * scores + tile.rows * tile.keys());
                scores += tile.rows * tile.keys();
            }
    const int64_t chunks = num_chunks(static_cast<int64_t>(pieces.size()), 1);
    const auto begin_of = [&](int64_t chunk) {
        if (chunk == 0 || chunk == chunks) return chunk == 0 ? 0 : std::ssize(pieces);
        return std::lower_bound(middles.begin(), middles.end(), 2 * scores * chunk / chunks) -
               middles.begin();
    };
    const auto key_head = [&](const HeadPart::Piece& piece) {
        return std::pair(piece.tile.sequence, piece.head / layout.group());
    };
    parallel_for(chunks, 1, [&](int chunk, int64_t, int64_t) {
        const auto end = pieces.begin() + begin_of(chunk + 1);
        for (auto first = pieces.begin() + begin_of(chunk); first != end;) {
            const auto own = key_head(*first);
            const auto last =
                std::find_if(first, end, [&](const auto& piece) { return key_head(piece) != own; });
            const bool whole = (first == pieces.begin() || key_head(first[-1]) != own) &&
                               (last == pieces.end() || key_head(*last) != own);
            body(HeadPart{own.first, own.second, {first, last}, whole}, chunk);
            first = last;
        }
    });
}

}  // namespace ether::ops
