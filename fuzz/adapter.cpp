// An adapter's folder on a small BERT: adapter_config.json NUL ether.json NUL adapter_model.safetensors.
#include "ether/io/adapter_folder.h"

#include "ether/io/checkpoint.h"
#include "ether/methods/adapted_model.h"
#include "ether/models/registry.h"
#include "ether/tasks/task.h"
#include "forward.h"
#include "fuzz.h"

namespace ether {
namespace {

void read(const fuzz::Folder& folder, std::string_view bytes) {
    folder.write("adapter_config.json", fuzz::next_part(bytes));
    folder.write("ether.json", fuzz::next_part(bytes));
    folder.write("adapter_model.safetensors", bytes);
    const auto files = io::read_adapter(folder.path());
    static const auto checkpoint = io::Checkpoint::open(fuzz::kModels / "bert");
    auto model = models::load_model(checkpoint, {.head = nn::Head::sequence_classification, .classes = 3});
    methods::AdaptedModel adapted(std::move(model), files);
    fuzz::run_forward(adapted, adapted.model().shape());
    if (!adapted.inserts_modules()) adapted.merged_tensors(at::kBFloat16);
    if (files.ether) tasks::task_from(io::JsonObject(*files.ether, "ether.json"));
}

}  // namespace
}  // namespace ether

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const ether::fuzz::Folder folder;
    return ether::fuzz::expect_an_answer([&] { ether::read(folder, ether::fuzz::view(data, size)); });
}
