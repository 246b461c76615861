// The command line of a verb, made from Fields: options, --config FILE (TOML), --help with an example, and
// for an unknown option the near one.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ether/core/options.h"

namespace CLI {
class App;
}

namespace ether::app {

class CommandLine {
  public:
    CommandLine(std::string verb, std::string description, std::string example);
    ~CommandLine();

    // Fields must outlive parse(); `required` ones must be given.
    void add(const Fields& fields, const std::vector<std::string>& required = {});
    // A value without name, e.g. inspect's folder.
    void add_positional(const Field& field);
    // Options of methods: known to the parser, but checked by the chosen method.
    void add_method_options();

    // Returns false where help was asked for and printed. Throws Error of kind usage.
    bool parse(int argc, char** argv);
    bool given(const std::string& name) const;
    // What body() returns. Its errors about an option that --config's file holds are told behind that file
    // and line.
    int with_origins(const std::function<int()>& body) const;
    // What was given of the methods' options, by field name.
    std::map<std::string, std::string> method_options() const;

  private:
    void add_one(const Field& field, bool required);
    // Ends the program's words with a word that belongs to no option.
    [[noreturn]] void refuse(const std::string& word) const;
    // The values in an options' file of what the command line does not give.
    void take_from(const std::string& file);

    std::unique_ptr<CLI::App> app_;
    std::vector<Field> fields_;
    std::map<std::string, std::unique_ptr<std::vector<std::string>>> values_;
    std::map<std::string, std::string> origins_;  // file and line of what no command line gave
    std::vector<std::string> method_option_names_;
    std::string verb_;
};

}  // namespace ether::app
