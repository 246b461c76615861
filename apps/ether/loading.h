// Options that eval, predict, logits and merge share, and the notes that loading has for the user.
#pragma once

#include <string>

#include "command_line.h"
#include "ether/core/options.h"
#include "ether/eval/loaded_adapter.h"

namespace ether::app {

struct LoadingOptions {
    std::string model, adapter, dtype = "auto", device = "auto";
    int64_t threads = 0;
    bool force = false;
    io::Pickles pickles = io::Pickles::refuse;  // set by a verb, not by the user

    Fields fields();
    Fields device_fields();  // of verbs that run texts: on a GPU, if there is one
    // Sets the thread count, loads, and prints notes on standard error.
    eval::LoadedAdapter load() const;
};

// The options of a table, where those not given are the training's.
Fields column_fields(data::TableOptions& table);

// Those given on the command line, and for the others those of the training.
data::TableOptions columns(const CommandLine& line, data::TableOptions given,
                           const data::TableOptions& trained);

}  // namespace ether::app
