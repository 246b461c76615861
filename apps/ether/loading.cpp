#include "loading.h"

#include <fmt/format.h>

#include <cstdio>

#include "ether/core/parallel.h"
#include "ether/ops/device.h"
#include "ether/train/run_config.h"

namespace ether::app {

Fields LoadingOptions::fields() {
    return {
        {.name = "model",
         .value = &model,
         .help = "base model: folder, or org/name in the Hugging Face cache"},
        {.name = "adapter",
         .value = &adapter,
         .help = "adapter or run folder, or org/name in the Hugging Face cache; empty: the model as it is. "
                 "Several, a,b: each on top of those before it; b@0.5: half of what b adds"},
        {.name = "dtype",
         .value = &dtype,
         .help = "of weights and activations; auto: as stored",
         .choices = {"auto", "f32", "bf16"}},
        {.name = "threads", .value = &threads, .help = "0: all cores", .low = 0, .high = 1024},
        {.name = "force", .value = &force, .help = "use an adapter that was trained on another base"},
    };
}

Fields LoadingOptions::device_fields() {
    return {{.name = "device", .value = &device, .help = "auto: a GPU if there is one; cpu, cuda or cuda:1"}};
}

eval::LoadedAdapter LoadingOptions::load() const {
    if (threads > 0) set_num_threads(static_cast<int>(threads));
    auto loaded = eval::load_adapter({.model = model,
                                      .adapter = adapter,
                                      .dtype = train::dtype_named(dtype),
                                      .force = force,
                                      .pickles = pickles,
                                      .device = ops::device_named(device)});
    for (const auto& note : loaded.notes) fmt::print(stderr, "note: {}\n", note);
    return loaded;
}

Fields column_fields(data::TableOptions& table) {
    auto fields = table.fields();
    for (auto& field : fields) field.help += "; not given: as in training";
    return fields;
}

data::TableOptions columns(const CommandLine& line, data::TableOptions given,
                           const data::TableOptions& trained) {
    auto result = trained;
    const auto from = given.fields(), to = result.fields();
    for (size_t i = 0; i < to.size(); ++i)
        if (line.given(to[i].name)) to[i].set(from[i].text());
    return result;
}

}  // namespace ether::app
