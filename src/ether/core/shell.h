// Words of commands that a message offers to be pasted. Stateless.
#pragma once

#include <string>
#include <string_view>

namespace ether {

// As a POSIX shell reads it: in quotes where it holds more than letters, digits and ._/+=:,-.
std::string shell_word(std::string_view word);

}  // namespace ether
