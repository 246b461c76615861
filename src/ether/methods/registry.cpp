#include "ether/methods/registry.h"

#include <array>

#include "ether/core/error.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/methods/methods.h"

namespace ether::methods {
namespace {

template <typename Name>
const Method* find(const std::string& wanted, Name&& name_of) {
    for (const auto& method : all_methods())
        if (wanted == name_of(method)) return &method;
    return nullptr;
}

template <typename Name>
std::vector<std::string> all_names(Name&& name_of) {
    std::vector<std::string> names;
    for (const auto& method : all_methods()) names.emplace_back(name_of(method));
    return names;
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
    const auto name_of = [](const Method& method) { return method.name; };
    if (const auto* found = find(name, name_of)) return *found;
    const auto known = all_names(name_of);
    fail(ErrorKind::adapter, "method \"{}\" is not known; known: {}{}", printable(name),
         fmt::join(known, ", "), did_you_mean(name, known));
}

const Method& method_of_peft_type(const std::string& peft_type) {
    const auto type_of = [](const Method& method) { return method.peft_type; };
    if (const auto* found = find(peft_type, type_of)) return *found;
    // No "did you mean": a file's type is meant, and another of PEFT's would be another method.
    fail(ErrorKind::adapter,
         "peft_type \"{}\" is no method of this version, which has {}; where PEFT can, merge it there "
         "(merge_and_unload) and give the result as --model",
         printable(peft_type), fmt::join(all_names(type_of), ", "));
}

}  // namespace ether::methods
