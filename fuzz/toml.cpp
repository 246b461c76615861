// The reader of options' files.
#include "ether/io/toml.h"

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    return ether::fuzz::expect_an_answer(
        [&] { ether::io::parse_toml(ether::fuzz::view(data, size), "a.toml"); });
}
