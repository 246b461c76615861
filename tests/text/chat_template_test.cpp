#include "ether/text/chat_template.h"

#include <gtest/gtest.h>

#include "ether/core/error.h"

namespace ether::text {
namespace {

const std::string kMessages =
    R"([{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": "  Hello there \n"}])";

std::string error_of(const std::string& source, const std::string& messages = kMessages) {
    try {
        render_chat(source, messages, false, "", "");
    } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::data);
        return error.what();
    }
    return "";
}

// Expected: transformers' own rendering of this template and these messages.
TEST(ChatTemplate, RendersAsTransformersDoes) {
    const std::string source = R"({{ bos_token }}{% for m in messages %}
{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('system must come first') }}{% endif %}
    {%- if m.role == 'assistant' %}
    {% generation %}
<|assistant|>{{ m.content.strip() }}{{ eos_token }}
    {% endgeneration %}
    {%- else %}
<|{{ m['role'] | upper }}|>{{ m.get('name', 'nobody') }}: {{ m.content }}
    {%- endif %}

{% endfor %}
{{ messages[0] | tojson }}
{{ [1, {"a": "<é>"}] | tojson(indent=2) }}
{{ tools }} {{ true }} {{ messages[-1].content.split(' ')[0] }}
{% if add_generation_prompt %}<|assistant|>{% endif %}
)";
    EXPECT_EQ(render_chat(source, kMessages, true, "<s>", "</s>"),
              "<s><|SYSTEM|>nobody: Be <brief>.\n<|USER|>Ann: Hi\n<|assistant|>Hello there</s>\n\n"
              "{\"role\": \"system\", \"content\": \"Be <brief>.\"}\n"
              "[\n  1,\n  {\n    \"a\": \"<é>\"\n  }\n]\nNone True \n<|assistant|>");
}

TEST(ChatTemplate, KnowsTheDate) {
    const std::string date = render_chat("{{ strftime_now('%Y-%m-%d') }}", "[]", false, "", "");
    EXPECT_EQ(date.size(), 10u);
    EXPECT_EQ(date.substr(0, 2), "20");
    EXPECT_NE(error_of("{{ strftime_now('%!') }}").find("strftime_now"), std::string::npos);
}

TEST(ChatTemplate, ErrorsSayWhatAndWhere) {
    const std::string raised = error_of("line one\n{{ raise_exception('roles must alternate') }}");
    EXPECT_NE(raised.find("roles must alternate"), std::string::npos) << raised;
    EXPECT_NE(raised.find("chat_template:2"), std::string::npos) << raised;

    const std::string syntax = error_of("{% for m in messages %}");
    EXPECT_NE(syntax.find("syntax error"), std::string::npos) << syntax;
    EXPECT_NE(error_of("{{ messages[0].content.no_such() }}").find("no_such"), std::string::npos);
    EXPECT_NE(error_of("{{ messages | tojson(sort=true) }}").find("sort"), std::string::npos);
    EXPECT_NE(error_of("x", "[{]").find("messages"), std::string::npos);
    EXPECT_NE(error_of("\xff").find("UTF-8"), std::string::npos);
    EXPECT_NE(error_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").find("recursion"),
              std::string::npos);
}

TEST(ChatTemplate, UnclosedTagsAndNulsSurvive) {
    EXPECT_NE(error_of("a {% generation").find("syntax error"), std::string::npos);
    EXPECT_EQ(render_chat(std::string_view("a\0b", 3), "[]", false, "", ""), std::string("a\0b", 3));
}

}  // namespace
}  // namespace ether::text
