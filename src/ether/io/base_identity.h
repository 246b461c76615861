// Which base model an adapter or a run belongs to, and whether its files still are what they were.
#pragma once

#include <string>
#include <vector>

#include "ether/io/checkpoint.h"

namespace ether::io {

// By hash: "xxh3:" and 32 hex digits.
struct BaseIdentity {
    std::string weights;    // Checkpoint::fingerprint
    std::string config;     // of config.json, but for keys that say nothing about the model's answers
    std::string tokenizer;  // of tokenizer.json's bytes; empty where there is none
};

// Tells when the files of a model that is in use are written to: what is mapped from them changes with them.
// Files that are removed or replaced by others of their names stay as they were to whoever has them open.
class BaseWatch {
  public:
    // From now on.
    explicit BaseWatch(Checkpoint checkpoint);

    // Reads all weights the first time.
    const BaseIdentity& identity();
    // Throws where a file was written to and the weights are not those of identity() any more. Reads them
    // only where a file's time, size or place has changed.
    void check();

  private:
    std::vector<std::string> stamps() const;

    Checkpoint checkpoint_;
    std::vector<std::string> stamps_;  // of each file
    BaseIdentity identity_;
};

}  // namespace ether::io
