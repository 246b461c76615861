#include "ether/methods/block_division.h"

#include "ether/core/error.h"

namespace ether::methods {

Field BlockDivision::size_field(const char* key) {
    return {.name = "block-size",
            .value = &size,
            .help = "width of a block; must divide a layer's input",
            .low = 0,
            .high = 1 << 16,
            .key = key};
}

Field BlockDivision::count_field(const char* key) {
    return {.name = "blocks",
            .value = &count,
            .help = "pieces of a layer's input, in place of --block-size; 0: by that",
            .low = 0,
            .high = 1 << 20,
            .key = key};
}

void BlockDivision::check(const MethodContext& context, const BlockDivision& by_default) const {
    if (count > 0 && size > 0 && size != by_default.size && !context.loading)
        fail(ErrorKind::usage,
             "--block-size and --blocks: both say how a layer's input is divided; give one");
}

int64_t BlockDivision::blocks_at(const nn::Site& site) const {
    if (count == 0 && size == 0)
        fail(ErrorKind::usage, "--block-size and --blocks: both are 0; one must say how {} is divided",
             site.name());
    const int64_t in = site.linear.in();
    if (count == 0) return divided(site, "input", in, "block-size", size);
    divided(site, "input", in, "blocks", count);
    return count;
}

}  // namespace ether::methods
