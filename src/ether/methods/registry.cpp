#include "ether/methods/registry.h"

#include <array>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

template <typename Name>
const Method& find(const std::string& wanted, const char* what, Name&& name_of) {
    std::vector<std::string> known;
    for (const auto& method : all_methods()) {
        if (wanted == name_of(method)) return method;
        known.emplace_back(name_of(method));
    }
    fail(ErrorKind::adapter, "{} \"{}\" is not known; known: {}{}", what, printable(wanted),
         fmt::join(known, ", "), did_you_mean(wanted, known));
}

}  // namespace

std::span<const Method> all_methods() {
    static const std::array methods = {
        ether_plus(), ether(),     hra(),        oft(),       oft_paper(), boft(),
        naive(),      lora(),      ia3(),        red(),       road(),      vera(),
        delora(),     adalora(),   bitfit(),     ln_tuning(), lorta(),     loha(),
        lokr(),       gralora(),   randlora(),   vblora(),    fourierft(), waveft(),
        c3a(),        hira(),      shira(),      pafi(),      id3(),       miss(),
        hiwi(),       magnitude(), bottleneck(), prefix(),    unipelt(),   trainable_tokens(),
        full(),       head()};
    return methods;
}

const Method& method_named(const std::string& name) {
    return find(name, "method", [](const Method& method) { return method.name; });
}

const Method& method_of_peft_type(const std::string& peft_type) {
    return find(peft_type, "peft_type", [](const Method& method) { return method.peft_type; });
}

}  // namespace ether::methods
