// config.json, as models are made from it: the bytes stand beside the weights of the fixture of their
// model_type.
#include <iterator>
#include <vector>

#include "ether/io/checkpoint.h"
#include "ether/models/registry.h"
#include "forward.h"
#include "fuzz.h"

namespace ether {
namespace {

struct Base {
    explicit Base(const char* type, const char* fixture) : type(type) {
        folder.copy(fuzz::kModels / fixture / "model.safetensors");
    }
    const char* type;
    fuzz::Folder folder;
};

void read(std::string_view config) {
    static const Base bases[] = {Base{"bert", "bert"},        Base{"roberta", "roberta"},
                                 Base{"llama", "llama_tied"}, Base{"mistral", "mistral"},
                                 Base{"qwen2", "qwen2"},      Base{"qwen3", "qwen3"}};
    const Base* base = std::begin(bases);
    for (const auto& other : bases)
        if (config.find(other.type) != config.npos) base = &other;
    base->folder.write("config.json", config);
    const auto checkpoint = io::Checkpoint::open(base->folder.path());
    const auto classes = models::stored_classes(checkpoint);
    if (classes) models::stored_class_names(checkpoint, *classes);
    const auto model = models::load_model(
        checkpoint, {.head = classes ? nn::Head::sequence_classification : nn::Head::causal_lm,
                     .classes = classes.value_or(0)});
    fuzz::run_forward(*model, model->shape());
}

}  // namespace
}  // namespace ether

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    return ether::fuzz::expect_an_answer([&] { ether::read(ether::fuzz::view(data, size)); });
}
