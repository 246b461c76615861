#include "ether/methods/site_numbers.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/methods/targets.h"

namespace ether::methods {

template <typename Number>
BySite<Number> site_numbers(const MethodContext& context, const char* option, const NumbersByName& numbers,
                            Number otherwise) {
    std::string told = context.loading ? "adapter_config.json: " : "--";
    told += option;
    if (context.loading) std::replace(told.begin(), told.end(), '-', '_');
    BySite<Number> values(context.model);
    for (const nn::Site* site : context.sites) values[*site] = otherwise;
    BySite<const std::string*> chosen(context.model);
    for (const auto& [expression, number] : numbers) {
        if (std::is_integral_v<Number> && number != std::floor(number))
            fail(ErrorKind::usage, "{}: \"{}\" has the value {}, expected a whole number", told,
                 printable(expression, kShownPattern), number);
        const auto fits = path_end(expression, context.model, told.c_str());
        bool fits_any = false;
        for (const nn::Site* site : context.sites) {
            if (!fits(*site)) continue;
            fits_any = true;
            auto& value = values[*site];
            const auto wanted = static_cast<Number>(number);
            if (chosen[*site] && value != wanted)
                fail(ErrorKind::usage, "{}: \"{}\" and \"{}\" both fit {}, with different values", told,
                     printable(*chosen[*site], kShownPattern), printable(expression, kShownPattern),
                     site->name());
            value = wanted;
            chosen[*site] = &expression;
        }
        if (!fits_any && !context.loading)
            fail(ErrorKind::usage, "{}: \"{}\" fits none of the adapted layers, such as {}", told,
                 printable(expression, kShownPattern), context.sites.front()->name());
    }
    return values;
}

template BySite<int64_t> site_numbers(const MethodContext&, const char*, const NumbersByName&, int64_t);
template BySite<double> site_numbers(const MethodContext&, const char*, const NumbersByName&, double);

Field rank_pattern_field(NumbersByName* ranks) {
    return {.name = "rank-pattern",
            .value = ranks,
            .help = "other ranks for layers whose paths end so: q_proj=16,layers.0.mlp.up_proj=4",
            .low = 1,
            .high = 1 << 16};
}

Field alpha_pattern_field(NumbersByName* alphas) {
    return {.name = "alpha-pattern",
            .value = alphas,
            .help = "another alpha for layers whose paths end so: q_proj=32",
            .low = 0,
            .high = 1e6};
}

}  // namespace ether::methods
