// Chat templates: a conversation to the text that a chat model was trained on. Stateless and thread-safe.
// Failures, a template's own raise_exception among them, are Errors of kind `data`.
#pragma once

#include <string>
#include <string_view>

namespace ether::text {

// Renders a Jinja template with `messages_json`, an array like [{"role": "user", "content": "Hi"}], and the
// variables and functions that transformers gives to templates (tools and documents are none).
// add_generation_prompt: end with the opening of the assistant's turn. bos, eos: the texts of those tokens.
std::string render_chat(std::string_view template_source, std::string_view messages_json,
                        bool add_generation_prompt, std::string_view bos, std::string_view eos);

}  // namespace ether::text
