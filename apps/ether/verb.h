// A verb of the program: parse, fill options, one library call. main.cpp lists them.
#pragma once

namespace ether::app {

struct Verb {
    const char* name;
    const char* help;    // one line
    bool prints_result;  // and does not only tell of files that it wrote
    // argv as of a program named after the verb. Returns the exit code; throws Error for whatever the user
    // can mend.
    int (*run)(int argc, char** argv);
};

// Sends off what was printed. A result that does not arrive is an error; a reader that had enough (| head) is
// not.
void finish_output();

int train_main(int argc, char** argv);
int eval_main(int argc, char** argv);
int predict_main(int argc, char** argv);
int logits_main(int argc, char** argv);
int merge_main(int argc, char** argv);
int export_main(int argc, char** argv);
int import_main(int argc, char** argv);
int inspect_main(int argc, char** argv);
int bench_main(int argc, char** argv);

}  // namespace ether::app
