#include "ether/text/chat_template.h"

#include "ether/core/error.h"
#include "ether/text/boundary.h"

namespace ether::text {

std::string render_chat(std::string_view template_source, std::string_view messages_json,
                        bool add_generation_prompt, std::string_view bos, std::string_view eos) {
    EtherString text{}, error{};
    if (!ether_render_chat(borrow(template_source), borrow(messages_json), add_generation_prompt, borrow(bos),
                           borrow(eos), &text, &error))
        fail(ErrorKind::data, "chat template: {}", take(error));
    return take(text);
}

}  // namespace ether::text
