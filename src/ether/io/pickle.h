// Tensors of files that torch.save wrote: adapters of older PEFT releases, checkpoints of research code.
#pragma once

#include <filesystem>

#include "ether/io/safetensors.h"

namespace ether::io {

// The tensors in a file's dictionary, by name; those of a dictionary within it as "key.name". All else in it
// is left out. Contiguous, on the CPU. The pickle is read by libtorch, which makes tensors and plain
// containers only: nothing that a file names is imported or run. Errors of kind `format` name the file; so is
// one of PyTorch before 1.6, which is no zip archive.
NamedTensors read_pickled_tensors(const std::filesystem::path& path);

}  // namespace ether::io
