#include "ether/methods/trained_tokens.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "ether/core/error.h"
#include "ether/core/utf8.h"
#include "ether/methods/targets.h"

namespace ether::methods {
namespace {

nn::TokenRows make_rows(std::vector<int64_t> ids, const std::string& named, const std::string& infix,
                        const MethodContext& context) {
    if (!named.empty() && !context.model.embeddings().name.ends_with(named + ".weight"))
        fail(ErrorKind::adapter,
             "adapter_config.json: tokens of \"{}\" are trained; only this model's word embeddings, \"{}\", "
             "can "
             "have such tokens",
             printable(named, kShownPattern), table_name(context.model));
    const auto& table = context.model.embeddings().table;
    const char* option = context.loading ? "adapter_config.json: token_indices" : "--token-indices";
    for (const auto id : ids)
        if (id < 0 || id >= table.size(0))
            fail(ErrorKind::usage,
                 "{}: {} is no token of this model, whose embeddings have {} rows; a new token needs a row "
                 "of its "
                 "own in the base (transformers: resize_token_embeddings)",
                 option, id, table.size(0));
    for (const auto& parameter : context.parameters.all())
        if (parameter.value.is_same(table))
            fail(ErrorKind::usage, "{}: \"{}\" is trained whole already; leave one of them out", option,
                 context.model.embeddings().name);
    const auto wanted = at::tensor(ids, at::kLong);
    std::sort(ids.begin(), ids.end());
    if (const auto twice = std::adjacent_find(ids.begin(), ids.end()); twice != ids.end())
        fail(ErrorKind::usage, "{}: {} is there twice", option, *twice);
    const auto name = context.model.embeddings().module() + "." + infix + kTrainedTokens;
    const auto rows = context.parameters.add(
        name, table.detach().index_select(0, wanted.to(table.device())).to(at::kFloat));
    return {wanted, rows, table.size(0)};
}

}  // namespace

TrainedTokens::TrainedTokens(const std::vector<int64_t>& ids, const std::string& table,
                             const std::string& infix, const MethodContext& context)
    : rows_(make_rows(ids, table, infix, context)) {}

std::string table_name(const nn::Model& model) {
    const auto module = model.embeddings().module();
    return module.substr(module.rfind('.') + 1);
}

}  // namespace ether::methods
