// The methods ether knows, by command-line name and by adapter_config.json's peft_type.
#pragma once

#include <span>
#include <string>

#include "ether/methods/method.h"

namespace ether::methods {

std::span<const Method> all_methods();

// Errors list the known names.
const Method& method_named(const std::string& name);
const Method& method_of_peft_type(const std::string& peft_type);

}  // namespace ether::methods
