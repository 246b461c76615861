// Which sites an adapter changes, in PEFT's words.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "ether/methods/path_filter.h"
#include "ether/nn/model.h"

namespace ether::methods {

// target_modules: "all-linear" (every linear layer but the output layer; a BERT's pooler is included, as in
// PEFT), "attention" (q, k, v and o of every block), "query-value" (q and v of these), "mlp" (the other ones
// of every block), "mlp-output" (each block's last), a comma-separated list of names that end a module path
// ("query,value"), or a regular expression that matches a whole path (ECMAScript's, with Python's named
// groups, \A and \Z, which PEFT's users may write). exclude_modules: likewise. layers:
// block numbers to keep, "0-3,5"; empty: all.
struct Targets {
    std::string modules = "all-linear";
    std::string exclude;
    std::string layers;
};

inline constexpr const char* kAllLinear = "all-linear";
bool is_keyword(const std::string& expression);  // one of those in quotes that are no names

// A site's place among those of its block, whose order every model keeps: q, k, v, o, then the MLP's, of
// which the last is its output. -1 outside of blocks.
int64_t place_in_block(const nn::Site& site, const nn::Model& model);

// How the choices are read, and what messages call them, by where they were made.
struct TargetWords {
    const char *modules, *exclude, *layers, *modules_to_save;
    // Typed: the keywords are known, and every name must match. In a file: as PEFT reads it, which knows
    // "all-linear" alone, minds no further names if one matches, and no layers where a name is a whole path.
    bool typed;
    bool headless = false;    // made on the base model without head: paths lack ModelShape::prefix
    bool embeddings = false;  // the table of word embeddings may be chosen, too, by its path or names
};
inline constexpr TargetWords kTypedTargets = {"--targets", "--exclude", "--layers", "--modules-to-save",
                                              true};
inline constexpr TargetWords kSavedTargets = {
    "adapter_config.json: target_modules", "adapter_config.json: exclude_modules",
    "adapter_config.json: layers_to_transform", "adapter_config.json: modules_to_save", false};

// What was chosen: sites in the model's order, and whether the table of word embeddings is among it.
struct Selection {
    std::vector<nn::Site*> sites;
    bool embeddings = false;
};

// An expression that matches nothing is an error with the nearest names, so is a typed name that matches
// nothing, and so is a regular expression of more than 1,000 characters.
Selection select(const Targets& targets, nn::Model& model, const TargetWords& words = kTypedTargets);

// A module's path as it was where an adapter was made; headless: see TargetWords.
std::string path_then(const std::string& path, const nn::Model& model, bool headless);

// A choice of modules in an adapter_config.json, a string or a list of names, as one such expression.
std::string expression_of(const nlohmann::json& value, const char* key);

// The tensors of the modules named (by full path or last parts), for modules_to_save; unknown names are an
// error.
std::vector<std::string> module_tensors(const std::vector<std::string>& modules, const nn::Model& model,
                                        const TargetWords& words = kTypedTargets);

// PEFT's keys target_modules and layers_to_transform, which choose the same of the model
// there, too: by whole paths where PEFT would read the words otherwise.
void to_config(const Targets& targets, const Selection& selection, const nn::Model& model,
               nlohmann::json& config);
// Of a method whose PEFT configuration knows no block numbers: what they chose, by whole paths.
void name_layers(const std::vector<nn::Site*>& sites, nlohmann::json& config);
// target_modules: whole paths.
void to_config(const std::vector<nn::Site*>& sites, nlohmann::json& config);
Targets targets_from_config(const nlohmann::json& config);

}  // namespace ether::methods
