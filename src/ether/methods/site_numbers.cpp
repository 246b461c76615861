#include "ether/methods/site_numbers.h"

#include <cmath>
#include <type_traits>

#include "ether/core/error.h"
#include "ether/core/utf8.h"

namespace ether::methods {

template <typename Number>
SiteNumbers<Number> site_numbers(const MethodContext& context, const char* option,
                                 const NumbersByName& numbers, Number otherwise, const char* form) {
    struct Pattern {
        const std::string& expression;
        PathFilter fits;
        Number number;
        bool fits_any = false;
    };
    std::vector<Pattern> patterns;
    for (const auto& [expression, number] : numbers) {
        if (std::is_integral_v<Number> && number != std::floor(number))
            fail(ErrorKind::usage, "--{}: \"{}\" has the value {}, expected a whole number", option,
                 printable(expression, kShownPattern), number);
        patterns.push_back({expression, path_end(expression, ("--" + std::string(option)).c_str(), form),
                            static_cast<Number>(number)});
    }
    auto number_at = [&](const std::string& module) {
        const auto path = path_then(module, context.model, context.headless);
        const Pattern* chosen = nullptr;
        for (auto& pattern : patterns) {
            if (!pattern.fits(path)) continue;
            pattern.fits_any = true;
            if (!chosen) chosen = &pattern;
            if (!context.loading && chosen->number != pattern.number)
                fail(ErrorKind::usage, "--{}: \"{}\" and \"{}\" both fit {}, with different values", option,
                     printable(chosen->expression, kShownPattern),
                     printable(pattern.expression, kShownPattern), path);
        }
        return chosen ? chosen->number : otherwise;
    };
    SiteNumbers<Number> values{BySite<Number>(context.model), otherwise};
    const auto table = context.model.embeddings().module();
    for (const nn::Site* site : context.sites) values.sites[*site] = number_at(site->name());
    if (context.embeddings) values.embeddings = number_at(table);
    for (const auto& pattern : patterns)
        if (!pattern.fits_any && !context.loading)
            fail(ErrorKind::usage, "--{}: \"{}\" fits none of the adapted layers, such as {}", option,
                 printable(pattern.expression, kShownPattern),
                 context.sites.empty() ? table : context.sites.front()->name());
    return values;
}

template SiteNumbers<int64_t> site_numbers(const MethodContext&, const char*, const NumbersByName&, int64_t,
                                           const char*);
template SiteNumbers<double> site_numbers(const MethodContext&, const char*, const NumbersByName&, double,
                                          const char*);

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
