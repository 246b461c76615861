// RunConfig: everything that repeats a training run. The command line, run.toml and --help come from its
// fields.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ether/core/options.h"
#include "ether/data/table.h"
#include "ether/methods/adapted_model.h"

namespace ether::train {

struct RunConfig {
    std::string model, task = "classify", data, eval_data, out;
    std::string adapter;  // to go on from; its method, options, layers and modules are its own
    data::TableOptions columns;

    std::string method = "ether+";
    std::map<std::string, std::string> method_options;  // by field name, for `method`
    std::string targets, exclude, layers;
    std::string further;  // more methods beside it: "red --targets mlp; lora --rank 4 --lr 1e-3"
    std::vector<std::string> modules_to_save;

    std::optional<double> lr;  // absent: the method's own
    double head_lr = 1e-2, module_lr = 5e-5, weight_decay = 0, adapter_weight_decay = 0;
    double model_dropout = 0, warmup = 0.1, clip = 1;
    std::string schedule = "linear";
    double epochs = 2;
    int64_t max_steps = 0, batch = 32, accumulate = 1, max_length = 0;
    bool bucketing = false;

    int64_t eval_every = 0, eval_batch = 64, patience = 0, save_every = 0, keep = 2;
    int64_t seed = 0, threads = 0;
    std::string dtype = "auto", device = "auto", memory = "auto";
    bool force = false, checkpoint_activations = false;

    // Options of the method are not among them; see method_fields.
    Fields fields();
    void check();

    methods::AdapterConfig adapter_config() const;
    double learning_rate() const;  // lr, or the method's default
};

// f32, bf16, auto -> dtype (auto: undefined, as the checkpoint stores it).
at::ScalarType dtype_named(const std::string& name);

// A file's or folder's absolute path, so that it can be found from wherever a run is resumed; other names
// (org/name) as they are.
std::string from_anywhere(const std::string& path);

// What decides a run's result but its files, as text by name: a resumed run must have the same.
std::map<std::string, std::string> deciding_settings(RunConfig config);

// The complete configuration as TOML that `--config` reads back; method options included.
std::string to_toml(RunConfig config);

}  // namespace ether::train
