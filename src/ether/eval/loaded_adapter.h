// A model with an adapter as trained, ready to evaluate, predict or merge: folders in, checked objects out.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ether/io/base_identity.h"
#include "ether/io/checkpoint.h"
#include "ether/methods/adapted_model.h"
#include "ether/tasks/task.h"

namespace ether::eval {

struct LoadOptions {
    std::string model;  // folder or org/name
    // Adapter or run folder; empty: the model as it is. Several, "a,b@0.5": each on top of those before it, b
    // half as large.
    std::string adapter;
    at::ScalarType dtype = at::ScalarType::Undefined;  // undefined: as stored
    bool force = false;                                // take an adapter that was trained on another base
    io::Pickles pickles = io::Pickles::refuse;
    at::Device device = at::kCPU;
};

struct LoadedAdapter {
    io::Checkpoint checkpoint;
    io::BaseWatch base;  // of checkpoint
    std::unique_ptr<methods::AdaptedModel> model;
    std::unique_ptr<tasks::Task> task;
    data::TableOptions columns;      // as in training
    int64_t max_length = 0;          // the texts' length in training; else the model's positions, at most 512
    bool multi_label = false;        // the head's values are for several labels a text (problem_type)
    std::vector<std::string> notes;  // what a user should know: e.g. an adapter without ether.json

    // Whether there is a head whose values mean something, and one label a text: else Errors of kind model.
    void check_has_head() const;
    void check_one_label() const;
    text::Tokenizer tokenizer() const;  // read anew, and checked against the model
};

// The task comes from the ether.json of the (first) adapter that brings a head, or else of the first that has
// one; without one, from its task_type or the model's own head and id2label. Where nothing has a head, the
// model gets one that is drawn at random (AdaptedModel::is_headless), and its task is a regression.
LoadedAdapter load_adapter(const LoadOptions& options);

}  // namespace ether::eval
