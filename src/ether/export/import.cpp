#include "ether/export/import.h"

#include <ATen/core/grad_mode.h>

#include <nlohmann/json.hpp>

#include "ether/export/checked_adapter.h"
#include "ether/io/atomic.h"

namespace ether::exporting {

ImportReport import_adapter(eval::LoadedAdapter& loaded, const std::filesystem::path& out,
                            const std::string& base) {
    const at::NoGradGuard no_grad;
    io::AtomicFolder folder(out);
    auto files = loaded.model->files(base);
    files.ether = description_like(loaded);
    const auto written = write_checked(loaded, files, folder.path(), "imported adapter", /*exact=*/true);
    folder.commit();
    return {written.comparison, loaded.model->method_name(),
            static_cast<int64_t>(loaded.model->sites().size()), loaded.model->method_parameters(),
            written.bytes};
}

}  // namespace ether::exporting
