// RunSetup: all that a run works on, read as its configuration says and checked before a file is written.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ether/data/batch.h"
#include "ether/io/base_identity.h"
#include "ether/methods/adapted_model.h"
#include "ether/tasks/task.h"
#include "ether/train/run_config.h"

namespace ether::train {

struct RunSetup {
    std::unique_ptr<tasks::Task> task;
    std::unique_ptr<methods::AdaptedModel> model;
    std::vector<data::Sequence> training, evaluation;
    int64_t max_length = 0;             // tokens that texts were cut to
    std::optional<io::BaseWatch> base;  // of the files that the model may have mapped
    // What the result depends on beside the settings, by what it is, as hashes: for RunProgress.
    std::map<std::string, std::string> inputs;
    std::vector<std::string> notes;  // what a user should know
};

// Where a run goes on from an adapter, its (first) method is that one's. given: an error if config.method is
// another.
void take_method(RunConfig& config, bool given);

// Loads model, tokenizer and data; an Error says what is wrong with which of them.
RunSetup read_setup(const RunConfig& config);

}  // namespace ether::train
