#include "ether/train/tensorboard.h"

#include <array>
#include <bit>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

namespace ether::train {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied in the file's byte order");

constexpr auto kCrcTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? 0x82f63b78u : 0u);
        table[i] = value;
    }
    return table;
}();

// A checksum of data that holds checksums would be weak, so TFRecord rotates it and adds a constant.
uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8u; }

template <typename T>
void append_raw(std::string& out, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out.append(bytes, sizeof(T));
}

// A protobuf message: each field is a tag (number and wire type) and a value.
class Message {
  public:
    void integer(int field, int64_t value) {
        tag(field, 0);
        varint(static_cast<uint64_t>(value));
    }
    void number(int field, double value) {
        tag(field, 1);
        append_raw(bytes_, value);
    }
    void number(int field, float value) {
        tag(field, 5);
        append_raw(bytes_, value);
    }
    void text(int field, std::string_view value) {  // strings and inner messages
        tag(field, 2);
        varint(value.size());
        bytes_ += value;
    }
    const std::string& bytes() const { return bytes_; }

  private:
    void tag(int field, uint64_t wire_type) { varint(static_cast<uint64_t>(field) << 3 | wire_type); }
    void varint(uint64_t value) {
        for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
        bytes_ += static_cast<char>(value);
    }

    std::string bytes_;
};

// TFRecord: length, its checksum, data, its checksum.
std::string record(const std::string& data) {
    std::string out;
    append_raw(out, static_cast<uint64_t>(data.size()));
    append_raw(out, masked_crc32c(out));
    out += data;
    append_raw(out, masked_crc32c(data));
    return out;
}

// Event: 1 wall_time, 2 step, 3 file_version, 5 summary.
Message event() {
    Message message;
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    message.number(1, std::chrono::duration<double>(now).count());
    return message;
}

using Scalars = std::vector<std::pair<std::string, double>>;

// Summary: 1 values; Value: 1 tag, 2 simple_value.
std::string scalars_record(int64_t step, const Scalars& scalars) {
    Message summary;
    for (const auto& [name, number] : scalars) {
        Message value;
        value.text(1, name);
        value.number(2, static_cast<float>(number));
        summary.text(1, value.bytes());
    }
    auto message = event();
    message.integer(2, step);
    message.text(5, summary.bytes());
    return record(message.bytes());
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
    uint32_t crc = ~0u;
    for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
    return ~crc;
}

std::string TensorBoardLog::header() const {
    auto message = event();
    message.text(3, "brain.Event:2");
    return record(message.bytes());
}

void TensorBoardLog::on_step(const StepReport& report) {
    append(scalars_record(report.step, {{"train/loss", report.loss},
                                        {"train/learning_rate", report.learning_rate},
                                        {"train/gradient_norm", report.gradient_norm},
                                        {"train/tokens_per_second", report.tokens_per_second()}}));
}

void TensorBoardLog::on_evaluation(const EvalReport& report) {
    Scalars scalars;
    for (const auto& [name, value] : report.scores) scalars.emplace_back("eval/" + name, value);
    append(scalars_record(report.step, scalars));
}

}  // namespace ether::train
