// Preloaded into a program, moves every block of its heap: by a multiple of its alignment, another one for
// each block, from the number in SHIFT on. Results that depend on where buffers lie differ then.
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" {

// glibc's own, whichever other heap the program brings.
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* block);

}  // extern "C"

namespace {

// Before every block.
struct Origin {
    void* start;  // what glibc gave
    size_t size;
};

Origin& origin_of(void* block) { return static_cast<Origin*>(block)[-1]; }

void* make(size_t alignment, size_t size) {
    constexpr size_t kShifts = 7;
    static const char* const first = std::getenv("SHIFT");
    static std::uint64_t blocks = first ? std::strtoull(first, nullptr, 10) : 0;
    if (alignment < sizeof(Origin)) alignment = sizeof(Origin);
    const size_t shift = alignment * (1 + __atomic_fetch_add(&blocks, 3, __ATOMIC_RELAXED) % kShifts);
    void* const start = size > SIZE_MAX - shift ? nullptr : __libc_memalign(alignment, size + shift);
    if (!start) {
        errno = ENOMEM;
        return nullptr;
    }
    void* const block = static_cast<char*>(start) + shift;
    origin_of(block) = {start, size};
    return block;
}

}  // namespace

extern "C" {

void* malloc(size_t size) { return make(1, size); }

void* memalign(size_t alignment, size_t size) { return make(alignment, size); }

void* aligned_alloc(size_t alignment, size_t size) { return make(alignment, size); }

int posix_memalign(void** block, size_t alignment, size_t size) {
    *block = make(alignment, size);
    return *block ? 0 : ENOMEM;
}

void* calloc(size_t count, size_t size) {
    size_t bytes = 0;
    if (__builtin_mul_overflow(count, size, &bytes)) return nullptr;
    void* const block = make(1, bytes);
    return block ? std::memset(block, 0, bytes) : nullptr;
}

void free(void* block) {
    if (block) __libc_free(origin_of(block).start);
}

void* realloc(void* block, size_t size) {
    if (!block) return make(1, size);
    void* const moved = make(1, size);
    if (!moved) return nullptr;
    std::memcpy(moved, block, size < origin_of(block).size ? size : origin_of(block).size);
    free(block);
    return moved;
}

size_t malloc_usable_size(void* block) { return block ? origin_of(block).size : 0; }

}  // extern "C"

// The heap that the program brings has its own of these, too.
namespace {

void* make_or_throw(size_t alignment, size_t size) {
    void* const block = make(alignment, size);
    if (!block) throw std::bad_alloc();
    return block;
}

}  // namespace

using Alignment = std::align_val_t;
using NoThrow = const std::nothrow_t&;

void* operator new(size_t size) { return make_or_throw(1, size); }
void* operator new[](size_t size) { return make_or_throw(1, size); }
void* operator new(size_t size, Alignment to) { return make_or_throw(static_cast<size_t>(to), size); }
void* operator new[](size_t size, Alignment to) { return make_or_throw(static_cast<size_t>(to), size); }
void* operator new(size_t size, NoThrow) noexcept { return make(1, size); }
void* operator new[](size_t size, NoThrow) noexcept { return make(1, size); }
void* operator new(size_t size, Alignment to, NoThrow) noexcept {
    return make(static_cast<size_t>(to), size);
}
void* operator new[](size_t size, Alignment to, NoThrow) noexcept {
    return make(static_cast<size_t>(to), size);
}
void operator delete(void* block) noexcept { free(block); }
void operator delete[](void* block) noexcept { free(block); }
void operator delete(void* block, size_t) noexcept { free(block); }
void operator delete[](void* block, size_t) noexcept { free(block); }
void operator delete(void* block, Alignment) noexcept { free(block); }
void operator delete[](void* block, Alignment) noexcept { free(block); }
void operator delete(void* block, size_t, Alignment) noexcept { free(block); }
void operator delete[](void* block, size_t, Alignment) noexcept { free(block); }
void operator delete(void* block, NoThrow) noexcept { free(block); }
void operator delete[](void* block, NoThrow) noexcept { free(block); }
void operator delete(void* block, Alignment, NoThrow) noexcept { free(block); }
void operator delete[](void* block, Alignment, NoThrow) noexcept { free(block); }
