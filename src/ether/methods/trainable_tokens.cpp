// Trainable tokens (PEFT's tuner of that name): the embeddings of chosen tokens, trained in the place of the
// base's; where the output layer shares the table, there as well. Trained values: k d. For tokens that are
// new, or mean something else in this task.
#include <nlohmann/json.hpp>

#include "ether/core/error.h"
#include "ether/methods/methods.h"
#include "ether/methods/trained_tokens.h"

namespace ether::methods {
namespace {

struct TokenOptions : MethodOptions {
    std::vector<int64_t> indices;
    std::string table;  // of a file

    Fields fields() override {
        return {{.name = "token-indices",
                 .value = &indices,
                 .help = "numbers of the tokens to train, as the tokenizer gives them: 7,50257",
                 .low = 0}};
    }

    // target_modules: a list of one name, or an expression, whose meaning the tensors' names tell.
    void from_config(nlohmann::json& config) override {
        const auto target = config.value("target_modules", nlohmann::json());
        if (target.is_null() || target.is_string()) return;
        if (!target.is_array() || target.size() != 1 || !target[0].is_string())
            fail(ErrorKind::adapter,
                 "adapter_config.json: target_modules is {}, expected one table of embeddings",
                 target.dump());
        table = target[0].get<std::string>();
    }
};

class TrainableTokens : public Adapter {
  public:
    TrainableTokens(const TokenOptions& options, const MethodContext& context)
        : table_(table_name(context.model)), tokens_(options.indices, options.table, "", context) {
        if (options.indices.empty())
            fail(ErrorKind::usage, "method trainable-tokens: name the tokens by --token-indices");
    }

    const nn::TokenRows* tokens(const nn::Pass&) override { return tokens_.rows(); }

    void to_config(nlohmann::json& config) const override {
        config["target_modules"] = nlohmann::json::array({table_});
        if (config["modules_to_save"].is_null()) config.erase("modules_to_save");
    }

  private:
    std::string table_;
    TrainedTokens tokens_;
};

bool ignores(const std::string& key, const nlohmann::json&) { return key == "init_weights"; }

}  // namespace

Method trainable_tokens() {
    return {"trainable-tokens",
            "TRAINABLE_TOKENS",
            "the embeddings of chosen tokens",
            1e-3,
            false,
            make_options<TokenOptions>,
            make_adapter<TrainableTokens, TokenOptions>,
            ignores};
}

}  // namespace ether::methods
