// ether: the command-line program. The only place that maps errors to exit codes: 0 done, 1 our user's input
// or data, 2 the command line, 130 and the like interrupted by a signal.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "ether/core/error.h"
#include "ether/core/memory.h"
#include "ether/core/near_name.h"
#include "ether/core/utf8.h"
#include "ether/io/file.h"
#include "verb.h"

namespace ether::app {
namespace {

constexpr std::array kVerbs = {
    Verb{"train", "fine-tune a model on a file of examples", false, train_main},
    Verb{"eval", "score a model with an adapter on a file of examples", true, eval_main},
    Verb{"predict", "classify lines of text, or texts in JSONL", true, predict_main},
    Verb{"logits", "write the logits of token ids, to compare with other software", false, logits_main},
    Verb{"merge", "write a model folder with the adapter multiplied into the weights", false, merge_main},
    Verb{"export", "write the adapter as a LoRA, exactly or the nearest of a rank", false, export_main},
    Verb{"import", "write a PEFT adapter as one that knows its base and labels", false, import_main},
    Verb{"inspect", "show what a model or adapter folder holds", true, inspect_main},
    Verb{"bench", "measure training steps and mixed batches against the hardware", true, bench_main},
};

void print_help(std::FILE* stream) {
    std::fprintf(
        stream,
        "ether adapts pretrained transformers with hyperplane reflections (ETHER) and other methods.\n\n"
        "Usage: ether VERB [OPTIONS]\n\n");
    for (const auto& verb : kVerbs) std::fprintf(stream, "  %-8s  %s\n", verb.name, verb.help);
    std::fprintf(stream, "\nether VERB --help explains a verb, with an example.\n");
}

int run(const Verb& verb, int argc, char** argv) {
    const int code = verb.run(argc, argv);
    if (verb.prints_result) finish_output();
    return code;
}

int dispatch(int argc, char** argv) {
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    const std::string name = argv[1];
    if (name == "--help" || name == "-h" || name == "help") {
        print_help(stdout);
        finish_output();
        return 0;
    }
    if (name == "--version") {
        std::puts("ether " ETHER_VERSION);
        finish_output();
        return 0;
    }
    std::vector<std::string> names{"--help", "--version"};
    for (const auto& verb : kVerbs) {
        if (name == verb.name) return run(verb, argc - 1, argv + 1);
        names.emplace_back(verb.name);
    }
    fail(ErrorKind::usage, "\"{}\" is not a verb of ether{}; ether --help lists them", printable(name),
         did_you_mean(name, names));
}

// A standard stream that the caller has closed would be the number of the next file to be opened, and what is
// meant for a terminal would be written there. Opened for the other direction, it takes the number, and who
// needs it is still told.
void open_closed_streams() {
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::fcntl(stream, F_GETFD) == -1 && errno == EBADF)  // the lowest number that is free
            static_cast<void>(::open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY));
}

// Below this, threads' stacks and the libraries' own tables fail one after the other, in words of theirs or
// none.
void check_address_space() {
    constexpr int64_t kLeast = 96 << 20;
    if (const int64_t left = available_address_space(); left < kLeast)
        fail(ErrorKind::memory,
             "the limit of address space (ulimit -v) leaves {} MB, and {} are needed to start; raise it by "
             "{} MB",
             left >> 20, kLeast >> 20, ((kLeast - left) >> 20) + 1);
}

// Whether a library's exception says in its own way that memory ran out: libtorch's heap, oneDNN's kernels.
bool is_out_of_memory(const std::string& text) {
    return text.find("can't allocate memory") != std::string::npos ||
           text.find("out of memory") != std::string::npos ||  // CUDA's
           text.starts_with("could not create a primitive") ||
           text.starts_with("could not execute a primitive");
}

int fail_out_of_memory() {
    std::fprintf(stderr, "ether: out of memory; lower --batch or --max-length, or use --dtype bf16\n");
    return 1;
}

}  // namespace

void finish_output() {
    errno = 0;
    std::cout.flush();
    std::fflush(stdout);
    if (std::cout.good() && !std::ferror(stdout)) return;
    // An earlier write may have failed, and errno since been used for something else.
    pollfd output{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
    if (errno == EPIPE || (poll(&output, 1, 0) == 1 && (output.revents & POLLERR))) return;
    fail(ErrorKind::file, "standard output: cannot write the result: {}", std::strerror(errno ? errno : EIO));
}
}  // namespace ether::app

// jemalloc's settings: freed memory stays for the next step, which needs about the same. Returned to the
// system, as by default, it faults in again page by page: 15% of a MiniLM step. The trainer returns it now
// and then (core/memory.h).
extern "C" const char* malloc_conf;
const char* malloc_conf = "oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1";

int main(int argc, char** argv) {
    ether::app::open_closed_streams();
    std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is a failed write
    std::signal(SIGXFSZ, SIG_IGN);  // and so is a file that outgrows its limit
    ether::io::install_map_fault_handler();
    try {
        ether::app::check_address_space();
        return ether::app::dispatch(argc, argv);
    } catch (const ether::Error& error) {
        std::fprintf(stderr, "ether: %s\n", error.what());
        return error.kind() == ether::ErrorKind::usage ? 2 : 1;
    } catch (const std::bad_alloc&) {
        return ether::app::fail_out_of_memory();
    } catch (const std::exception& error) {
        const auto* system = dynamic_cast<const std::system_error*>(&error);
        if (system && system->code() == std::errc::broken_pipe) return 0;  // who reads has seen enough
        const std::string text = error.what();
        if (ether::app::is_out_of_memory(text)) return ether::app::fail_out_of_memory();
        // An exception of a library that our checks should have prevented: its first line says what, the rest
        // is a trace.
        std::fprintf(stderr, "ether: %s\n", text.substr(0, text.find('\n')).c_str());
        return 1;
    }
}
