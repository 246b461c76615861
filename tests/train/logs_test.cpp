#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "ether/train/learning_curve.h"
#include "ether/train/metrics_log.h"
#include "ether/train/tensorboard.h"
#include "io/test_files.h"

namespace ether::train {
namespace {

using test::read_raw;
using test::write_raw;

StepReport step_report(int64_t step) {
    const auto x = static_cast<double>(step);
    return {.step = step,
            .epoch = x / 3,
            .loss = 1 / x + 0.1,
            .learning_rate = 1e-3 / x,
            .gradient_norm = 0.7 * x,
            .tokens = 100 + step,
            .seconds = 0.25};
}

EvalReport eval_report(int64_t step, double accuracy) {
    return {.step = step,
            .seconds = 1.5,
            .scores = {{"accuracy", accuracy},
                       {"loss", 1.1 / static_cast<double>(step)},
                       {"macro_f1", accuracy / 2}},
            .best = true};
}

std::vector<nlohmann::json> lines_of(const std::string& text) {
    EXPECT_TRUE(text.empty() || text.back() == '\n');
    std::vector<nlohmann::json> lines;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = text.find('\n', begin);
        lines.push_back(nlohmann::json::parse(text.substr(begin, end - begin)));
        begin = end + 1;
    }
    return lines;
}

TEST(MetricsLog, LinesReadBackAsTheSameNumbers) {
    const test::TempFolder folder;
    MetricsLog log;
    log.on_start({.folder = folder.path()});
    log.on_step(step_report(3));
    log.on_evaluation(eval_report(3, 1.0 / 3));
    auto odd = step_report(4);
    odd.gradient_norm = std::numeric_limits<double>::infinity();
    log.on_step(odd);

    // Read while the run goes on: every line is there as soon as it is reported.
    const auto lines = lines_of(read_raw(folder / "metrics.jsonl"));
    ASSERT_EQ(lines.size(), 3u);
    const nlohmann::json step = {{"step", 3},
                                 {"epoch", 1.0},
                                 {"loss", 1.0 / 3 + 0.1},
                                 {"learning_rate", 1e-3 / 3},
                                 {"gradient_norm", 0.7 * 3},
                                 {"tokens", 103},
                                 {"seconds", 0.25},
                                 {"tokens_per_second", 412.0}};
    EXPECT_EQ(lines[0], step);
    const nlohmann::json evaluation = {
        {"step", 3},
        {"eval", {{"accuracy", 1.0 / 3}, {"loss", 1.1 / 3}, {"macro_f1", 1.0 / 3 / 2}}},
        {"best", true},
        {"seconds", 1.5}};
    EXPECT_EQ(lines[1], evaluation);
    EXPECT_TRUE(lines[2]["gradient_norm"].is_null());
}

// A run's first step.
void begin(LogFile& log, const test::TempFolder& folder) {
    log.on_start({.folder = folder.path()});
    log.on_step(step_report(1));
}

template <typename Log>
void expect_resume_repeats_the_file(const std::string& name) {
    const test::TempFolder folder;
    LogMark mark;
    std::string at_checkpoint;
    {
        Log log;
        EXPECT_EQ(log.log_name(), name);
        begin(log, folder);
        mark = log.log_mark();
        at_checkpoint = read_raw(folder / name);
        EXPECT_EQ(mark.bytes, static_cast<int64_t>(at_checkpoint.size()));
        log.on_step(step_report(2));  // and then the process dies
    }
    Log log;
    log.resume_log(mark);
    log.on_start({.folder = folder.path(), .first_step = 1});
    EXPECT_EQ(read_raw(folder / name), at_checkpoint);
    log.on_step(step_report(2));
    EXPECT_EQ(log.log_mark().bytes, static_cast<int64_t>(read_raw(folder / name).size()));
    EXPECT_EQ(read_raw(folder / name).substr(0, at_checkpoint.size()), at_checkpoint);
    EXPECT_GT(log.log_mark().bytes, mark.bytes);
}

TEST(MetricsLog, ResumeRepeatsTheFile) { expect_resume_repeats_the_file<MetricsLog>("metrics.jsonl"); }
TEST(TensorBoardLog, ResumeRepeatsTheFile) { expect_resume_repeats_the_file<TensorBoardLog>(kEventFile); }

TEST(LogFile, AFreshRunEmptiesALeftover) {
    const test::TempFolder folder;
    write_raw(folder / "metrics.jsonl", "{\"step\":9}\n");
    MetricsLog log;
    log.on_start({.folder = folder.path()});
    EXPECT_EQ(read_raw(folder / "metrics.jsonl"), "");
}

TEST(LogFile, AShortenedFileIsAnErrorAndAMissingOneStartsAnew) {
    const test::TempFolder folder;
    write_raw(folder / "metrics.jsonl", "{\"step\":9}\n");
    MetricsLog shortened;
    shortened.resume_log({.bytes = 12});
    EXPECT_TRUE(test::fails_with(ErrorKind::file, "metrics.jsonl: expected the 12 bytes",
                                 [&] { shortened.on_start({.folder = folder.path()}); }));
    std::filesystem::remove(folder / "metrics.jsonl");
    MetricsLog missing;
    missing.resume_log({.bytes = 12});
    missing.on_start({.folder = folder.path()});
    EXPECT_EQ(missing.log_mark().bytes, 0);
}

TEST(LogFile, AChangedFileIsAnErrorAndStaysAsItIs) {
    const test::TempFolder folder;
    LogMark mark;
    {
        MetricsLog log;
        begin(log, folder);
        mark = log.log_mark();
        log.on_step(step_report(2));
    }
    auto changed = read_raw(folder / "metrics.jsonl");
    changed[10] ^= 1;
    write_raw(folder / "metrics.jsonl", changed);
    MetricsLog log;
    log.resume_log(mark);
    EXPECT_TRUE(test::fails_with(ErrorKind::file, "found others; put the file back",
                                 [&] { log.on_start({.folder = folder.path()}); }));
    EXPECT_EQ(read_raw(folder / "metrics.jsonl"), changed);
}

// A log that another one took the place of goes on at that one's end, and a resumed run takes it.
TEST(LogFile, AReplacedFileCountsFromThere) {
    const test::TempFolder folder;
    LogMark mark;
    {
        MetricsLog log;
        begin(log, folder);
        std::filesystem::remove(folder / "metrics.jsonl");
        write_raw(folder / "metrics.jsonl", "{\"step\":9}\n");
        log.log_mark();
        log.on_step(step_report(2));
        mark = log.log_mark();
    }
    const auto before = read_raw(folder / "metrics.jsonl");
    MetricsLog log;
    log.resume_log(mark);
    log.on_start({.folder = folder.path()});
    EXPECT_EQ(read_raw(folder / "metrics.jsonl"), before);
}

TEST(LogFile, WhatOthersWriteIsToldAndCounts) {
    const test::TempFolder folder;
    MetricsLog log;
    begin(log, folder);
    log.log_mark();
    EXPECT_FALSE(log.lost_log());
    const auto others = read_raw(folder / "metrics.jsonl") + "{\"step\":9}\n";
    std::ofstream(folder / "metrics.jsonl", std::ios::binary | std::ios::app) << "{\"step\":9}\n";
    EXPECT_EQ(log.log_mark().bytes, static_cast<int64_t>(others.size()));
    EXPECT_TRUE(log.lost_log());
    log.on_step(step_report(2));
    const auto mark = log.log_mark();
    EXPECT_FALSE(log.lost_log());
    MetricsLog resumed;
    resumed.resume_log(mark);
    resumed.on_start({.folder = folder.path()});
    EXPECT_TRUE(read_raw(folder / "metrics.jsonl").starts_with(others));
}

TEST(LogFile, AFullDiskIsAnErrorAndLeavesWholeLines) {
    const test::TempFolder folder;
    MetricsLog log;
    begin(log, folder);
    const auto before = read_raw(folder / "metrics.jsonl");

    // The system's limit on file sizes stands in for the disk's: the next line fits in part.
    rlimit old{};
    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
    rlimit small = old;
    small.rlim_cur = before.size() + 20;
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    const auto failed = test::fails_with(
        ErrorKind::file, "metrics.jsonl: cannot write: ", [&] { log.on_step(step_report(2)); });
    setrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, handler);
    EXPECT_TRUE(failed);
    EXPECT_EQ(read_raw(folder / "metrics.jsonl"), before);
}

TEST(TensorBoardLog, Crc32c) {
    EXPECT_EQ(crc32c(""), 0u);
    EXPECT_EQ(crc32c("123456789"), 0xe3069283u);              // the usual check value
    EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);    // RFC 3720, B.4
    EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);  // RFC 3720, B.4
}

template <typename T>
T number_at(std::string_view bytes, size_t at) {
    T value;
    EXPECT_LE(at + sizeof(T), bytes.size());
    std::memcpy(&value, bytes.data() + at, sizeof(T));
    return value;
}

// A protobuf message's fields by number: eight or four raw bytes, a string, or a varint's value as text.
std::multimap<int, std::string> fields_of(std::string_view bytes) {
    size_t at = 0;
    auto varint = [&] {
        uint64_t value = 0;
        for (int shift = 0;; shift += 7) {
            const auto byte = static_cast<unsigned char>(bytes.at(at++));
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) return value;
        }
    };
    std::multimap<int, std::string> fields;
    while (at < bytes.size()) {
        const auto tag = varint();
        const int wire = static_cast<int>(tag & 7);
        const uint64_t value = wire == 0 ? varint() : wire == 1 ? 8 : wire == 5 ? 4 : varint();
        std::string content = std::to_string(value);
        if (wire != 0) {
            content = bytes.substr(at, value);
            at += value;
        }
        fields.emplace(static_cast<int>(tag >> 3), content);
    }
    return fields;
}

TEST(TensorBoardLog, RecordsReadBack) {
    const test::TempFolder folder;
    TensorBoardLog log;
    log.on_start({.folder = folder.path()});
    log.on_step(step_report(300));  // a step of two varint bytes
    log.on_evaluation(eval_report(300, 0.75));

    const auto file = read_raw(folder / kEventFile);
    auto masked = [](std::string_view bytes) {
        const uint32_t crc = crc32c(bytes);
        return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
    };
    std::vector<std::multimap<int, std::string>> events;
    for (size_t at = 0; at < file.size();) {
        const auto length = number_at<uint64_t>(file, at);
        EXPECT_EQ(number_at<uint32_t>(file, at + 8), masked(file.substr(at, 8)));
        const auto data = file.substr(at + 12, length);
        EXPECT_EQ(number_at<uint32_t>(file, at + 12 + length), masked(data));
        events.push_back(fields_of(data));
        at += 16 + length;
    }
    ASSERT_EQ(events.size(), 3u);
    EXPECT_EQ(events[0].find(3)->second, "brain.Event:2");
    std::map<std::string, float> scalars;
    for (size_t i = 1; i < events.size(); ++i) {
        EXPECT_EQ(events[i].find(2)->second, "300");
        EXPECT_GT(number_at<double>(events[i].find(1)->second, 0), 1.6e9);  // seconds since 1970
        for (const auto& [field, value] : fields_of(events[i].find(5)->second)) {
            EXPECT_EQ(field, 1);
            const auto inner = fields_of(value);
            scalars[inner.find(1)->second] = number_at<float>(inner.find(2)->second, 0);
        }
    }
    const auto step = step_report(300);
    const std::map<std::string, float> expected = {
        {"train/loss", static_cast<float>(step.loss)},
        {"train/learning_rate", static_cast<float>(step.learning_rate)},
        {"train/gradient_norm", static_cast<float>(step.gradient_norm)},
        {"train/tokens_per_second", 1600.0f},
        {"eval/accuracy", 0.75f},
        {"eval/loss", static_cast<float>(1.1 / 300)},
        {"eval/macro_f1", 0.375f}};
    EXPECT_EQ(scalars, expected);
}

TEST(LearningCurve, Averages) {
    const std::vector<Point> points = {{1, 2}, {2, 4}, {3, 9}, {4, 1}, {5, 4}};
    const auto groups = thinned(points, 3);
    ASSERT_EQ(groups.size(), 3u);
    EXPECT_EQ(groups[0].x, 1.5);
    EXPECT_EQ(groups[0].y, 3);
    EXPECT_EQ(groups[2].x, 5);
    EXPECT_EQ(groups[2].y, 4);
    EXPECT_EQ(thinned(points, 5).size(), 5u);
    const auto smooth = smoothed(points, 1);
    EXPECT_EQ(smooth[0].y, 3);
    EXPECT_EQ(smooth[1].y, 5);
    EXPECT_EQ(smooth[4].y, 2.5);
}

size_t count(const std::string& text, const std::string& word) {
    size_t found = 0;
    for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++found;
    return found;
}

// A run's files, as the callbacks of a run make them.
void make_run(const std::filesystem::path& folder, int64_t steps,
              const std::vector<EvalReport>& evaluations) {
    write_raw(
        folder / "run.toml",
        "# how to repeat\nmodel = \"a </script> & b\"\ntargets = '.*\\.query'\nlr = 0.005\nexclude = \"\"\n");
    const RunInfo info{.folder = folder, .total_steps = steps, .steps_per_epoch = 3, .method = "ether<+>"};
    MetricsLog metrics;
    LearningCurve curve;
    for (Callback* callback : std::initializer_list<Callback*>{&metrics, &curve}) callback->on_start(info);
    for (int64_t step = 1; step <= steps; ++step) metrics.on_step(step_report(step));
    for (const auto& evaluation : evaluations) metrics.on_evaluation(evaluation);
    curve.on_end();
}

TEST(LearningCurve, PictureAndPage) {
    const test::TempFolder folder;
    make_run(folder.path(), 1300, {eval_report(700, 0.5), eval_report(1300, 0.75)});
    const auto svg = read_raw(folder / "learning_curve.svg"), page = read_raw(folder / "learning_curve.html");

    EXPECT_EQ(count(svg, "<polyline"), 5u);  // loss, its mean, evaluation loss, two scores
    EXPECT_LT(svg.size(), 100'000u);         // 1300 steps are thinned
    for (const std::string word : {"accuracy", "macro_f1", "evaluation loss", "step (3 steps are one epoch)",
                                   "ether&lt;+&gt;", "</svg>", "<title", "<desc"})
        EXPECT_NE(svg.find(word), std::string::npos) << word;
    for (const std::string word : {"<figure", "1,300 of 1,300", "<td>.*\\.query</td>", "<td>0.005</td>",
                                   "0.7500", "step 1300", "\"series\":["})
        EXPECT_NE(page.find(word), std::string::npos) << word;
    for (const auto& text : {svg, page}) {
        EXPECT_EQ(count(text, "nan"), 0u);
        EXPECT_EQ(count(text, "inf,"), 0u);
        EXPECT_EQ(count(text, "ether<+>"), 0u);
        EXPECT_EQ(count(text, "://"), 1u);  // SVG's namespace; nothing is loaded from elsewhere
    }
    EXPECT_EQ(count(page, "a </script>"), 0u);
    EXPECT_EQ(count(page, "exclude"), 0u);  // not set
}

TEST(LearningCurve, OddRuns) {
    const test::TempFolder one, none;
    make_run(one.path(), 1,
             {{.step = 1, .scores = {{"loss", 2.0}, {"perplexity", NAN}, {"</script>", 0.5}}}});
    const auto svg = read_raw(one / "learning_curve.svg");
    EXPECT_EQ(count(svg, ",nan") + count(svg, "=\"nan"), 0u);  // coordinates; in words it may stand
    EXPECT_NE(svg.find(">perplexity<"), std::string::npos);
    EXPECT_EQ(count(svg, "r=\"4\" fill=\"#0072b2\""), 2u);  // one step is a dot, and one in the legend
    EXPECT_EQ(count(read_raw(one / "learning_curve.html"), "</script>"),
              2u);  // the data's end and the code's
    make_run(none.path(), 0, {});
    EXPECT_EQ(none.count(), 2);  // run.toml and metrics.jsonl: nothing to draw
}

TEST(LearningCurve, ADamagedLineIsNamed) {
    const test::TempFolder folder;
    const auto file = folder / "metrics.jsonl";
    write_raw(file, "{\"step\":1,\"loss\":1.0,\"seconds\":1.0,\"tokens\":3}\n{\"step\":2,\"lo\n");
    EXPECT_TRUE(test::fails_with(ErrorKind::format, "metrics.jsonl:2", [&] { read_metrics(file); }));
    write_raw(file, "{\"step\":1,\"seconds\":1.0,\"tokens\":3}\n");
    EXPECT_TRUE(test::fails_with(ErrorKind::format, "\"loss\"", [&] { read_metrics(file); }));
}

}  // namespace
}  // namespace ether::train
