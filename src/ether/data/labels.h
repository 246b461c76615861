// The classes of a classification task: names in a fixed order, which is the order of the model's outputs.
// An immutable value. Labels that do not fit are Errors of kind `data` with file and line.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ether/data/table.h"

namespace ether::data {

class LabelSet {
  public:
    // The distinct labels of the training examples: strings in byte order, integers by value (named by their
    // digits). Every example must have one, there must be two or more, and real numbers are refused: those
    // are for regression. `file` is what errors call the examples' source.
    static LabelSet from_examples(std::span<const Example> examples, const std::string& file);
    // As saved with an adapter: names in the order of the outputs, distinct. `file` is what errors call their
    // source.
    static LabelSet from_names(std::vector<std::string> names, const std::string& file);

    int64_t size() const { return static_cast<int64_t>(names_.size()); }
    const std::vector<std::string>& names() const { return names_; }
    // The class of an example, 0 <= index < size(); a label that is none of the names is an error that lists
    // them.
    int64_t index(const Example& example, const std::string& file) const;

  private:
    explicit LabelSet(std::vector<std::string> names);

    std::vector<std::string> names_;
    std::vector<int64_t> by_name_;  // indices into names_, sorted by name
};

}  // namespace ether::data
