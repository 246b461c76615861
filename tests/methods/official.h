// Reads the numbers of published code: tests/fixtures/official.
#pragma once

#include <ATen/Functions.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ether::test {

constexpr double kOfficial = 1e-12;

inline nlohmann::json official(const std::filesystem::path& file) {
    std::ifstream stream(file);
    return nlohmann::json::parse(stream);
}

inline at::Tensor tensor_of(const nlohmann::json& array) {
    const auto values = array.at("data").get<std::vector<double>>();
    return at::tensor(at::ArrayRef<double>(values), at::kDouble)
        .view(array.at("shape").get<std::vector<int64_t>>());
}

// (..., width) -> (tokens, width).
inline at::Tensor flat(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

}  // namespace ether::test
