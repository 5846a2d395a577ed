// The tables' file format.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "dispatch/json_reader.h"
#include "dispatch/registry.h"
#include "dispatch/split.h"
#include "dispatch/table.h"

namespace fdpp {
namespace {

constexpr int64_t kFormat = 1;
constexpr uintmax_t kMostBytes = 64 << 20;  // far above any table, far below what would hurt
constexpr auto kFloats = {DType::f32, DType::f16, DType::bf16};
constexpr auto kCaches = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::f8e4m3};
constexpr int64_t kMost = int64_t{1} << 40;
constexpr int64_t kMostInt = 1 << 20;

// "1.2.3" as numbers that compare.
bool parse_version(const std::string& text, int (&version)[3]) {
  int used = 0;
  return std::sscanf(text.c_str(), "%9d.%9d.%9d%n", &version[0], &version[1], &version[2], &used) == 3 &&
         used == static_cast<int>(text.size());
}

class TableReader {
 public:
  TableReader(const std::string& path, std::string_view text, Table* table)
      : json_(path, text), path_(path), table_(*table) {}

  Status read() {
    table_.path = path_;
    std::string measured;  // for people
    FDPP_RETURN_IF_ERROR(json_.object({
        {"fdpp_table", [&] { return read_format(); }},
        {"library", [&] { return read_library(); }},
        {"measured", [&] { return json_.text(&measured); }, false},
        {"device", [&] { return read_device(); }},
        {"gemm", [&] { return needs_device("gemm", [&] { return read_gemm(); }); }, false},
        {"attention", [&] { return needs_device("attention", [&] { return read_attention(); }); }, false},
    }));
    return json_.end();
  }

 private:
  Status newer(const std::string& what) const { return not_supported(path_ + ": " + what); }

  Status read_format() {
    int64_t format = 0;
    FDPP_RETURN_IF_ERROR(json_.integer(1, kMost, &format));
    if (format <= kFormat) return {};
    return newer("the table has format " + std::to_string(format) + ", this library reads up to " +
                 std::to_string(kFormat));
  }

  Status read_library() {
    std::string text;
    FDPP_RETURN_IF_ERROR(json_.text(&text));
    int version[3], own[3];
    if (!parse_version(text, version)) return json_.bad("library is \"" + text + "\", expected a version as 1.2.3");
    parse_version(FDPP_VERSION, own);
    if (!std::lexicographical_compare(own, own + 3, version, version + 3)) return {};
    return newer("the table was measured with fdpp_ort " + text + ", newer than this library, " FDPP_VERSION);
  }

  template <typename Enum, typename Name>
  Status read_name(const char* what, std::initializer_list<Enum> values, Name name, Enum* out) {
    std::string text, known;
    FDPP_RETURN_IF_ERROR(json_.text(&text));
    for (Enum value : values) {
      if (text == name(value)) {
        *out = value;
        return {};
      }
      known += (known.empty() ? "" : ", ") + std::string(name(value));
    }
    return json_.bad(std::string(what) + " is \"" + text + "\", expected one of " + known);
  }

  Status read_int(int64_t least, int64_t most, int* out) {
    int64_t value = 0;
    FDPP_RETURN_IF_ERROR(json_.integer(least, most, &value));
    *out = static_cast<int>(value);
    return {};
  }

  Status read_device() {
    DeviceKey& d = table_.device;
    bool is_gpu = false, is_cpu = false;
    const auto gpu = [&](int* out) {
      is_gpu = true;
      return read_int(1, kMostInt, out);
    };
    FDPP_RETURN_IF_ERROR(json_.object({
        {"backend",
         [&] { return read_name("backend", {Backend::cpu, Backend::cuda, Backend::hip}, backend_name, &d.backend); }},
        {"name", [&] { return json_.text(&d.name); }},
        {"compute_capability", [&] { return gpu(&d.compute_capability); }, false},
        {"multiprocessors", [&] { return gpu(&d.multiprocessors); }, false},
        {"isa",
         [&] {
           is_cpu = true;
           return read_name("isa", {CpuIsa::scalar, CpuIsa::avx2, CpuIsa::avx512}, cpu_isa_name, &d.isa);
         },
         false},
        {"threads", [&] { return read_int(1, kMostInt, &d.threads); }, false},
    }));
    const bool cpu = d.backend == Backend::cpu;
    if (cpu && (is_gpu || !is_cpu || d.threads == 0))
      return json_.bad("a cpu has isa and threads, no compute_capability and multiprocessors");
    if (!cpu && (is_cpu || d.threads != 0 || d.compute_capability == 0 || d.multiprocessors == 0))
      return json_.bad(std::string("a ") + backend_name(d.backend) +
                       " device has compute_capability and multiprocessors, no isa and threads");
    has_device_ = true;
    return {};
  }

  // The device's backend says which variants there are.
  template <typename Read>
  Status needs_device(const char* what, Read read) {
    return has_device_ ? read() : json_.bad(std::string("expected \"device\" before \"") + what + "\"");
  }

  // Null where this build has no kernels for the table's backend at all: such a table is never asked.
  template <typename Variant>
  Status read_variant(const std::vector<const Variant*>& variants, const Variant** out) {
    std::string text, known;
    FDPP_RETURN_IF_ERROR(json_.text(&text));
    *out = nullptr;
    for (const Variant* v : variants) {
      if (v->backend != table_.device.backend) continue;
      known += (known.empty() ? "" : ", ") + std::string(v->name);
      if (text == v->name) *out = v;
    }
    if (*out != nullptr || known.empty()) return {};
    return json_.bad("this build has no variant \"" + text + "\" on " + backend_name(table_.device.backend) +
                     ", it has " + known);
  }

  Status read_split(GemmSplit* s) {
    FDPP_RETURN_IF_ERROR(json_.object({
        {"pieces", [&] { return read_int(0, kMostInt, &s->pieces); }, false},
        {"rows", [&] { return read_int(0, kMostInt, &s->rows); }, false},
        {"stages", [&] { return read_int(0, kMostInt, &s->stages); }, false},
        {"algorithm", [&] { return read_int(0, kMostInt, &s->algorithm); }, false},
    }));
    return checked(*s);
  }

  Status read_split(AttentionSplit* s) {
    FDPP_RETURN_IF_ERROR(json_.object({
        {"pieces", [&] { return read_int(0, kMostInt, &s->pieces); }, false},
        {"cluster", [&] { return read_int(0, kMostInt, &s->cluster); }, false},
        {"blocks_per_multiprocessor", [&] { return read_int(0, kMostInt, &s->blocks_per_multiprocessor); }, false},
    }));
    return checked(*s);
  }

  template <typename Split>
  Status checked(const Split& s) {
    const Status status = check_split(s);
    return status.ok() ? status : json_.bad(status.message());
  }

  Status read_gemm() {
    return json_.array([&] {
      GemmEntry e;
      FDPP_RETURN_IF_ERROR(json_.object({
          {"n", [&] { return json_.integer(1, kMost, &e.key.n); }},
          {"k", [&] { return json_.integer(1, kMost, &e.key.k); }},
          {"dtype", [&] { return read_name("dtype", kFloats, dtype_name, &e.key.dtype); }},
          {"weight_format",
           [&] { return read_name("weight_format", kWeightFormats, weight_format_name, &e.key.weight_format); }},
          {"block_size", [&] { return json_.integer(16, 128, &e.key.block_size); }, false},
          {"accuracy_level", [&] { return read_int(0, 4, &e.key.accuracy_level); }, false},
          {"epilogue",
           [&] {
             return read_name("epilogue", {EpilogueClass::plain, EpilogueClass::added}, epilogue_class_name,
                              &e.key.epilogue);
           }},
          {"m1", [&] { return json_.integer(1, kMost, &e.m1); }},
          {"m2", [&] { return json_.integer(1, kMost, &e.m2); }},
          {"ranges", [&] { return json_.array([&] { return read_range(&e); }); }},
      }));
      if (e.key.block_size != 0 && e.key.weight_format != WeightFormat::int4)
        return json_.bad("block_size is of int4 weights alone");
      if (e.m1 > e.m2)
        return json_.bad("m1 is " + std::to_string(e.m1) + ", expected at most m2 = " + std::to_string(e.m2));
      if (e.ranges.empty()) return json_.bad("ranges is empty");
      if (!table_.add(std::move(e))) return json_.bad("a second entry for the same product");
      return Status();
    });
  }

  Status read_range(GemmEntry* entry) {
    GemmRange r;
    FDPP_RETURN_IF_ERROR(json_.object({
        {"from", [&] { return json_.integer(1, kMost, &r.from); }},
        {"variant", [&] { return read_variant(gemm_variants(), &r.variant); }},
        {"split", [&] { return read_split(&r.split); }},
    }));
    const int64_t least = entry->ranges.empty() ? 1 : entry->ranges.back().from + 1;
    if (r.from < least || (entry->ranges.empty() && r.from != 1))
      return json_.bad("a range from M = " + std::to_string(r.from) + ", expected " +
                       (entry->ranges.empty() ? "the first from 1" : std::to_string(least) + " or more"));
    entry->ranges.push_back(r);
    return {};
  }

  Status read_attention() {
    return json_.array([&] {
      AttentionEntry e;
      FDPP_RETURN_IF_ERROR(json_.object({
          {"q_heads", [&] { return json_.integer(1, kMost, &e.key.q_heads); }},
          {"kv_heads", [&] { return json_.integer(1, kMost, &e.key.kv_heads); }},
          {"head_size", [&] { return json_.integer(1, kMost, &e.key.head_size); }},
          {"dtype", [&] { return read_name("dtype", kFloats, dtype_name, &e.key.dtype); }},
          {"cache_dtype", [&] { return read_name("cache_dtype", kCaches, dtype_name, &e.key.cache_dtype); }},
          {"ranges", [&] { return json_.array([&] { return read_range(&e); }); }},
      }));
      if (e.ranges.empty()) return json_.bad("ranges is empty");
      if (!table_.attention.emplace(e.key, e).second) return json_.bad("a second entry for the same attention");
      return Status();
    });
  }

  Status read_range(AttentionEntry* entry) {
    AttentionRange r;
    FDPP_RETURN_IF_ERROR(json_.object({
        {"batch", [&] { return json_.integer(1, kMost, &r.batch); }},
        {"context", [&] { return json_.integer(1, kMost, &r.context); }},
        {"variant", [&] { return read_variant(attention_variants(), &r.variant); }},
        {"split", [&] { return read_split(&r.split); }},
    }));
    const int64_t batch = entry->ranges.empty() ? 0 : entry->ranges.back().batch;
    const bool new_batch = batch == 0 ? r.batch == 1 : r.batch > batch;
    if (new_batch ? r.context != 1 : r.batch != batch || r.context <= entry->ranges.back().context)
      return json_.bad("a range from batch " + std::to_string(r.batch) + " and context " + std::to_string(r.context) +
                       ", expected batches from 1 on, in each contexts from 1 on, rising");
    entry->ranges.push_back(r);
    return {};
  }

  JsonReader json_;
  const std::string& path_;
  Table& table_;
  bool has_device_ = false;
};

}  // namespace

Status parse_table(const std::string& path, std::string_view text, Table* table) {
  FDPP_RETURN_IF_ERROR(TableReader(path, text, table).read());
  table->tuned = "tuned: " + path;
  table->tuned_near = "tuned for a shape near this one: " + path;
  table->foreign = "model of costs; " + path + " is for another device, " + table->device.describe();
  return {};
}

Status read_table(const std::string& path, Table* table) {
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(path, error);  // of a folder: an error
  if (error) return invalid_argument(path + ": the table cannot be read: " + error.message());
  if (bytes > kMostBytes)
    return invalid_argument(path + ": the table has " + std::to_string(bytes) + " bytes, expected at most " +
                            std::to_string(kMostBytes));
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  if (!file) return invalid_argument(path + ": the table cannot be read");
  return parse_table(path, content.str(), table);
}

}  // namespace fdpp
