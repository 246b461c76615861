// adapter_config.json: what PEFT's keys say about a method and about the modules that were trained whole.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "ether/methods/method.h"

namespace ether::methods {

// The peft_type of several adapters on one model, whose configurations are listed under "parts".
inline constexpr const char* kCombined = "COMBINED";

// Whether a key's value is that of a feature which is off.
bool says_nothing(const nlohmann::json& value);

// Whether every adapter_config.json may hold that key.
bool is_common(const std::string& key);

std::string peft_type_of(const nlohmann::json& config);

// A method's options. A key that is neither the method's nor PEFT's for every method is an error, unless it
// says nothing about a trained adapter.
std::unique_ptr<MethodOptions> options_from_config(const Method& method, nlohmann::json config);

// Modules trained whole: those that are named and, of the classification heads that PEFT lists for every
// model, those that this one has.
std::vector<std::string> modules_from_config(const nlohmann::json& config, const nn::Model& model);

}  // namespace ether::methods
