// Which base model an adapter or a run belongs to, and whether its files still are what they were.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ether/io/checkpoint.h"
#include "ether/io/descriptor.h"

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

    // Reads all weights the first time; throws where a file was written to since the constructor.
    const BaseIdentity& identity();
    // Throws where a file was written to and the weights are not those of identity(), which must have been
    // asked for, any more. Reads them only where a file's times or size have changed.
    void check();

  private:
    std::vector<std::string> stamps() const;

    [[noreturn]] void fail_written() const;

    Checkpoint checkpoint_;
    std::vector<std::shared_ptr<const Descriptor>> files_;  // wherever they are moved to
    std::vector<std::string> stamps_;
    BaseIdentity identity_;
};

}  // namespace ether::io
