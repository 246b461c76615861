#include "ether/ops/gemm/panels.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "ether/core/error.h"
#include "ether/core/parallel.h"
#include "ether/ops/gemm/block.h"

namespace ether::ops {
namespace {

constexpr int64_t kLine = 64;   // bytes that memory comes in
constexpr int64_t kWidth = 64;  // of a panel, in columns
// Of a panel, in entries of 4 bytes: a number or a pair. 196 KB, a fifth of a core's second cache (Zen 4: 1
// MB), which also holds the next panel and most of what they are multiplied by.
constexpr int64_t kDepth = 768;
constexpr int64_t kSums = 1 << 18;      // that are not complete, at a time
constexpr int64_t kFewestRows = 12;     // that packing pays for
constexpr int64_t kRowsOfAThread = 24;  // at least, where threads share a panel

struct alignas(kLine) Line {
    uint32_t entries[kLine / sizeof(uint32_t)];
};

template <typename T>
constexpr int64_t kPerUnit = kInPairs<T> ? 2 : 1;

template <typename T>
struct Factors {
    int64_t rows, out, depth;  // depth: in entries
    Strided<const T> x, w;
    WeightOrder order;
    const T* bias;
    T* y;

    int64_t panels() const { return (out + kWidth - 1) / kWidth; }
};

// A part of w, which is packed at once: `width` columns of the result by `depth` entries of their sums.
template <typename T>
struct WeightPart {
    const T* data;
    int64_t column, width, entry, depth;
    int64_t sums_column;  // where its sums are among those that are not complete
};

// Some panels at a time are gone through from cut to cut, so that what x has there is read from the cache for
// all but the first.
template <typename T>
std::vector<WeightPart<T>> parts_of(const Factors<T>& of, int64_t first_panel, int64_t last_panel,
                                    int64_t group) {
    const int64_t cuts = (of.depth + kDepth - 1) / kDepth;
    // Rounded up, so that no part is longer than kDepth.
    const auto entry = [&](int64_t cut) {
        return std::min((of.depth * cut / cuts + 15) / 16 * 16, of.depth);
    };
    std::vector<WeightPart<T>> parts;
    for (int64_t begin = first_panel; begin < last_panel; begin += group)
        for (int64_t cut = 0; cut < cuts; ++cut)
            for (int64_t panel = begin; panel < std::min(begin + group, last_panel); ++panel) {
                const int64_t column = panel * kWidth, value = entry(cut) * kPerUnit<T>;
                const int64_t at =
                    of.order == WeightOrder::kOutIn ? column * of.w.row + value : value * of.w.row + column;
                ETHER_ASSERT(entry(cut + 1) - entry(cut) <= kDepth);
                parts.push_back({of.w.data + at, column, std::min(kWidth, of.out - column), entry(cut),
                                 entry(cut + 1) - entry(cut), (panel - begin) * kWidth});
            }
    return parts;
}

// Fetches a part of w into the second cache, a line every few steps of the sums that go on meanwhile.
class Fetch {
  public:
    template <typename T>
    Fetch(const Factors<T>& of, const WeightPart<T>& next, int64_t steps)
        : at_(reinterpret_cast<const char*>(next.data)), stride_(of.w.row * static_cast<int64_t>(sizeof(T))) {
        const bool by_columns = of.order == WeightOrder::kOutIn;
        const int64_t rows = by_columns ? next.width : next.depth * kPerUnit<T>;
        const int64_t row_bytes = by_columns ? next.depth * 4 : next.width * static_cast<int64_t>(sizeof(T));
        const auto into_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at_) % kLine);
        at_ -= into_line;
        lines_ = (into_line + row_bytes + kLine - 1) / kLine;
        left_ = rows * lines_;
        every_ = left_ == 0 ? 0 : std::max<int64_t>(1, steps / left_);
        wait_ = left_ == 0 ? -1 : 1;
    }
    ETHER_INLINE void operator()() {
        if (--wait_ != 0) return;
        __builtin_prefetch(at_ + column_ * kLine, 0, 2);
        if (++column_ == lines_) column_ = 0, at_ += stride_;
        wait_ = --left_ > 0 ? every_ : -1;
    }

  private:
    const char* at_;
    int64_t stride_, lines_, left_, every_, wait_, column_ = 0;
};

// Lane by lane of a and b in turn: the first or the second half of those.
template <bool second, typename V, int... lane>
ETHER_INLINE V zip(const V& a, const V& b, std::integer_sequence<int, lane...>) {
    constexpr int lanes = sizeof...(lane);
    return __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * lanes + (second ? lanes / 2 : 0))...);
}

// to[j * kWidth + i] = from[i * row + j] for a vector's lanes of i and j: zipping the first half of the rows
// with the second one, as often as there are halves.
template <int bytes>
ETHER_INLINE void transpose(Isa<bytes>, const char* from, int64_t row_bytes, uint32_t* to) {
    constexpr int lanes = kLanes<uint32_t, bytes>;
    constexpr auto all = std::make_integer_sequence<int, lanes>();
    Vector<uint32_t, bytes> rows[lanes], zipped[lanes];
    for (int i = 0; i < lanes; ++i)
        rows[i] = load<uint32_t>(reinterpret_cast<const uint32_t*>(from + i * row_bytes), AllLanes<bytes>());
    auto round = [&]<int halves>(auto& again, std::integral_constant<int, halves>)
        __attribute__((always_inline)) {
        if constexpr (halves > 1) {
            for (int i = 0; i < lanes / 2; ++i) {
                zipped[2 * i] = zip<false>(rows[i], rows[i + lanes / 2], all);
                zipped[2 * i + 1] = zip<true>(rows[i], rows[i + lanes / 2], all);
            }
            for (int i = 0; i < lanes; ++i) rows[i] = zipped[i];
            again(again, std::integral_constant<int, halves / 2>());
        }
    };
    round(round, std::integral_constant<int, lanes>());
    for (int i = 0; i < lanes; ++i) store<uint32_t>(to + i * kWidth, rows[i], AllLanes<bytes>());
}

// panel[i * kWidth + j]: entry i of column j.
template <int bytes, typename T>
ETHER_INLINE void pack(Isa<bytes> isa, const Factors<T>& of, const WeightPart<T>& part, uint32_t* panel) {
    constexpr int64_t lanes = kLanes<uint32_t, bytes>;
    if (of.order == WeightOrder::kOutIn) {
        for (int64_t i = 0; i < part.depth; i += lanes)
            for (int64_t j = 0; j < part.width; j += lanes)
                transpose(isa, reinterpret_cast<const char*>(part.data + j * of.w.row + i * kPerUnit<T>),
                          of.w.row * static_cast<int64_t>(sizeof(T)), panel + i * kWidth + j);
    } else if constexpr (kInPairs<T>) {
        for (int64_t i = 0; i < part.depth; ++i)
            for (int64_t j = 0; j < part.width; j += lanes) {
                const T* from = part.data + 2 * i * of.w.row + j;
                Vector<uint16_t, bytes / 2> first, second;
                std::memcpy(&first, from, sizeof(first));
                std::memcpy(&second, from + of.w.row, sizeof(second));
                using Words = Vector<uint32_t, bytes>;
                store<uint32_t>(
                    panel + i * kWidth + j,
                    __builtin_convertvector(first, Words) | (__builtin_convertvector(second, Words) << 16),
                    AllLanes<bytes>());
            }
    }
}

// Whole vectors of sums, rounded to the nearest bfloat16.
template <typename Step, int bytes>
ETHER_INLINE void round_rows(Isa<bytes>, int64_t rows, int64_t width, Strided<const float> from,
                             Strided<c10::BFloat16> to) {
    for (int64_t t = 0; t < rows; ++t)
        for (int64_t j = 0; j < width; j += kLanes<float, bytes>)
            Step::round(load<float>(from.data + t * from.row + j, AllLanes<bytes>()),
                        to.data + t * to.row + j);
}

// The rows [first, last) of a result in the columns of some panels.
template <typename Step, typename T>
void multiply_panels(const Factors<T>& of, int64_t first_panel, int64_t last_panel, int64_t first,
                     int64_t last) {
    using U = Unit<T>;
    // Sums of bfloat16 are rounded when they are complete.
    constexpr bool in_place = !kInPairs<T>;
    const int64_t rows = last - first;
    const auto panel = std::make_unique_for_overwrite<Line[]>(kDepth * kWidth * 4 / kLine);
    const int64_t group = std::clamp<int64_t>(kSums / (rows * kWidth), 1, last_panel - first_panel);
    const auto wide =
        std::make_unique_for_overwrite<Line[]>(in_place ? 0 : rows * group * kWidth * 4 / kLine);
    const Strided<const U> w{reinterpret_cast<const U*>(panel.get()), kWidth};
    const auto parts = parts_of(of, first_panel, last_panel, group);
    for (size_t i = 0; i < parts.size(); ++i) {
        const auto& part = parts[i];
        const Strided<const U> x{reinterpret_cast<const U*>(of.x.data + first * of.x.row) + part.entry,
                                 units<T>(of.x.row)};
        const Strided<T> y{of.y + first * of.out + part.column, of.out};
        Strided<float> sums{reinterpret_cast<float*>(wide.get()) + part.sums_column, group * kWidth};
        if constexpr (in_place) sums = y;
        if (part.entry == 0 && of.bias)
            for (int64_t t = 0; t < rows; ++t)
                convert(of.bias + part.column, sums.data + t * sums.row, part.width);
        for_best_isa([&](auto isa) __attribute__((always_inline)) {
            pack(isa, of, part, reinterpret_cast<uint32_t*>(panel.get()));
        });
        Fetch fetch(of, i + 1 < parts.size() ? parts[i + 1] : WeightPart<T>{}, rows / 6 * part.depth);
        // A function of its own: compiled into more loops, sums are no longer kept in registers.
        for_best_isa([&](auto isa) __attribute__((always_inline)) {
            all_columns<Step>(isa, rows, part.width, part.depth, 1.0F, x, w, sums, part.entry > 0 || of.bias,
                              fetch);
        });
        if constexpr (!in_place)
            if (part.entry + part.depth == of.depth)
                for_best_isa([&](auto isa) __attribute__((always_inline)) {
                    round_rows<Step>(isa, rows, part.width, {sums.data, sums.row}, y);
                });
    }
}

template <typename Step, typename T>
void by_threads(const Factors<T>& of) {
    // Threads share panels, so that they end together.
    const int64_t chunks = std::clamp<int64_t>(of.rows / kRowsOfAThread, 1, num_threads());
    parallel_for(of.panels() * chunks, 1, [&](int, int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t panel = begin / chunks, from = begin % chunks;
            // Whole panels at once, so that one fetches the next.
            const int64_t to = std::min(end, (panel + 1) * chunks) - panel * chunks;
            const int64_t panels = from == 0 && to == chunks ? (end - begin) / chunks : 1;
            multiply_panels<Step>(of, panel, panel + panels, of.rows * from / chunks, of.rows * to / chunks);
            begin += from == 0 && to == chunks ? panels * chunks : to - from;
        }
    });
}

// On Zen 4, where it was measured, and what AMD has built since. Intel's processors multiply bfloat16 by
// tiles, which the libraries know.
bool gains() {
#if defined(__x86_64__)
    static const bool found = has_avx512() && __builtin_cpu_is("amd");
    return found;
#else
    return false;
#endif
}

// What panel_product takes.
template <typename T>
bool fits(int64_t out, int64_t in, WeightOrder order) {
    const bool by_columns = order == WeightOrder::kOutIn;
    if (std::is_same_v<T, float> && !by_columns) return false;
    return out > 0 && in > 0 && out % 16 == 0 && in % ((by_columns ? 16 : 1) * kPerUnit<T>) == 0;
}

}  // namespace

template <typename T>
bool has_panel_product(int64_t rows, int64_t out, int64_t in, WeightOrder order) {
    return gains() && (std::is_same_v<T, float> || has_dot_pairs()) && rows >= kFewestRows &&
           fits<T>(out, in, order);
}

template <typename T>
void panel_product(int64_t rows, int64_t out, int64_t in, Strided<const T> x, Strided<const T> w,
                   WeightOrder order, const T* bias, T* y) {
    ETHER_ASSERT(fits<T>(out, in, order) && x.column == 1 && w.column == 1 && x.row % kPerUnit<T> == 0);
    if (rows == 0) return;
    const Factors<T> factors{rows, out, units<T>(in), x, w, order, bias, y};
    if constexpr (std::is_same_v<T, float>) return by_threads<Multiply<float>>(factors);
#if defined(ETHER_DOT_PAIRS)
    else if (has_dot_pairs())
        return by_threads<DotPairs>(factors);
#endif
    else
        by_threads<MultiplyPairs>(factors);
}

#define ETHER_INSTANTIATE(T)                                                                      \
    template bool has_panel_product<T>(int64_t, int64_t, int64_t, WeightOrder);                   \
    template void panel_product<T>(int64_t, int64_t, int64_t, Strided<const T>, Strided<const T>, \
                                   WeightOrder, const T*, T*);
ETHER_INSTANTIATE(float)
ETHER_INSTANTIATE(c10::BFloat16)
#undef ETHER_INSTANTIATE

}  // namespace ether::ops
