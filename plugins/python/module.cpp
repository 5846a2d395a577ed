// fdpp_ort._core: the library's public API for Python, over tensors borrowed through DLPack.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "convert.h"
#include "dlpack.h"
#include "fdpp/dispatch.h"
#include "threads.h"

namespace py = pybind11;

namespace fdpp::python {
namespace {

constexpr size_t kWorkspaceAlignment = 256;

// ---- tensors of one call ----

struct Tensors {
  std::vector<BorrowedTensor> borrowed;
  std::vector<TensorView> views;          // one for each port of the op's spec
  std::unique_ptr<int32_t> host_scalar;   // what a Python int stands for
  std::optional<DLDevice> device;         // of all tensors but those in host memory
};

std::string device_name(const DLDevice& device) {
  if (device.device_type == kDlCpu) return "the CPU";
  if (device.device_type == kDlCuda) return "GPU " + std::to_string(device.device_id);
  return "DLPack device type " + std::to_string(device.device_type);
}

void join_device(const std::string& name, const DLDevice& device, std::optional<DLDevice>* common) {
  if (!*common) *common = device;
  if (device.device_type != (*common)->device_type || device.device_id != (*common)->device_id)
    throw py::value_error(name + " lies on " + device_name(device) + ", other tensors on " + device_name(**common));
}

void borrow_port(const std::string& op, const PortSpec& port, const py::handle& object, size_t index,
                 Tensors* tensors) {
  const std::string name = op + ": " + port.name;
  if (port.host_memory && py::isinstance<py::int_>(object)) {
    tensors->host_scalar = std::make_unique<int32_t>(object.cast<int32_t>());
    tensors->views[index] = TensorView(tensors->host_scalar.get(), DType::i32, {});
    return;
  }
  const BorrowedTensor& tensor = tensors->borrowed.emplace_back(name, object);
  if (!port.host_memory) {
    join_device(name, tensor.device(), &tensors->device);
  } else if (tensor.device().device_type != kDlCpu) {
    throw py::value_error(name + " lies on " + device_name(tensor.device()) + ", expected host memory or an int");
  }
  tensors->views[index] = tensor.view();
}

Tensors borrow(const std::string& op, const std::vector<PortSpec>& ports, const py::dict& objects) {
  Tensors tensors;
  tensors.views.resize(ports.size());
  for (const auto& item : objects) {
    const std::string key = item.first.cast<std::string>();
    size_t index = 0;
    while (index < ports.size() && key != ports[index].name) ++index;
    if (index == ports.size()) throw py::value_error(op + ": unknown tensor \"" + key + "\"");
    if (!item.second.is_none()) borrow_port(op, ports[index], item.second, index, &tensors);
  }
  return tensors;
}

void expect_dense(const std::string& name, const TensorView& view) {
  if (!view.is_dense())
    throw py::value_error(name + " is " + layout_string(view) + ", expected a dense row-major tensor");
}

void expect_output(const OpSpec& spec, const Tensors& outputs, int index, const TensorView& expected) {
  const TensorView& view = outputs.views[index];
  const std::string name = std::string(spec.name) + ": " + spec.outputs[index].name;
  if (!view.present()) throw py::value_error(name + " is missing");
  if (view.dtype != expected.dtype || shape_string(view) != shape_string(expected))
    throw py::value_error(name + " is " + dtype_name(view.dtype) + " " + shape_string(view) + ", expected " +
                          dtype_name(expected.dtype) + " " + shape_string(expected));
  expect_dense(name, view);
}

// ---- the two ops behind one interface ----

struct Attention {
  using Attributes = AttentionAttributes;
  using Problem = AttentionProblem;
  using Plan = AttentionPlan;
  static const OpSpec& spec() { return attention_spec(); }
  static constexpr auto check = check_attention;
  static constexpr auto plan = plan_attention;
  static constexpr auto run = run_attention;
  static Status check_values(const Problem& p, const Tensors& in) {
    FDPP_RETURN_IF_ERROR(check_seqlens(p, static_cast<const int32_t*>(in.views[kAttnSeqlensK].data)));
    return check_position_ids(p, static_cast<const int64_t*>(in.views[kAttnPositionIds].data));
  }
  static void check_outputs(const Problem& p, const Tensors&, const Tensors& out) {
    const TensorView present(nullptr, p.cache_dtype, {p.batch, p.kv_heads, p.capacity, p.head_size});
    expect_output(spec(), out, kAttnOutput, {nullptr, p.dtype, {p.batch, p.query_length, p.q_heads * p.head_size}});
    expect_output(spec(), out, kAttnPresentKey, present);
    expect_output(spec(), out, kAttnPresentValue, present);
  }
};

struct Gemm {
  using Attributes = GemmAttributes;
  using Problem = GemmProblem;
  using Plan = GemmPlan;
  static const OpSpec& spec() { return gemm_spec(); }
  static constexpr auto check = check_gemm;
  static constexpr auto plan = plan_gemm;
  static constexpr auto run = run_gemm;
  static Status check_values(const Problem&, const Tensors&) { return {}; }
  static void check_outputs(const Problem& p, const Tensors& in, const Tensors& out) {
    TensorView y = in.views[kGemmA];
    y.dims[y.rank - 1] = p.n;
    expect_output(spec(), out, kGemmY, y);
  }
};

// ---- planning ----

int num_splits(const AttentionPlan& plan) { return plan.num_splits(); }
int num_splits(const GemmPlan& plan) { return plan.split.pieces; }

template <typename Plan>
py::dict plan_dict(const Plan& plan) {
  py::dict d;
  d["variant"] = variant_name(plan);
  d["num_splits"] = num_splits(plan);
  d["split"] = split_dict(plan.split);
  d["workspace_bytes"] = plan.workspace_bytes;
  d["reason"] = plan.reason;
  return d;
}

using Wish = std::optional<std::string>;     // of a variant
using SplitWish = std::optional<py::dict>;

template <typename Op>
typename Op::Plan make_plan(const typename Op::Problem& problem, const DeviceInfo& device, const Wish& variant,
                            const SplitWish& split) {
  typename Op::Plan plan;
  decltype(plan.split) own;
  if (split) parse_split(*split, &own);
  raise_if_error(Op::plan(problem, device, &plan, variant.value_or(""), split ? &own : nullptr));
  PlanSlot::of(Op::spec().name, "").record(problem, plan);
  return plan;
}

template <typename Op>
typename Op::Problem make_problem(const py::dict& attributes, const Tensors& inputs) {
  typename Op::Attributes parsed;
  parse_attributes(attributes, &parsed);
  typename Op::Problem problem;
  raise_if_error(Op::check(parsed, inputs.views.data(), &problem));
  return problem;
}

template <typename Op>
py::dict plan_op(const py::dict& attributes, const py::dict& inputs, const py::dict& device, const Wish& variant,
                 const SplitWish& split) {
  const Tensors in = borrow(Op::spec().name, Op::spec().inputs, inputs);
  return plan_dict(make_plan<Op>(make_problem<Op>(attributes, in), parse_device(device), variant, split));
}

template <typename Split>
py::list split_dicts(const std::vector<Split>& splits) {
  py::list list;
  for (const Split& s : splits) list.append(split_dict(s));
  return list;
}

py::list splits_of_gemm(const py::dict& problem, const py::dict& device, const std::string& variant) {
  std::vector<GemmSplit> splits;
  raise_if_error(gemm_splits(parse_problem(problem), parse_device(device), variant, &splits));
  return split_dicts(splits);
}

py::list splits_of_attention(const py::dict& attributes, const py::dict& inputs, const py::dict& device,
                             const std::string& variant) {
  const Tensors in = borrow(Attention::spec().name, Attention::spec().inputs, inputs);
  std::vector<AttentionSplit> splits;
  raise_if_error(attention_splits(make_problem<Attention>(attributes, in), parse_device(device), variant, &splits));
  return split_dicts(splits);
}

template <typename Op>
std::pair<bool, std::string> supports_op(const py::dict& attributes, const py::dict& inputs, const std::string& variant,
                                         const py::dict& device) {
  const Tensors in = borrow(Op::spec().name, Op::spec().inputs, inputs);
  const auto problem = make_problem<Op>(attributes, in);
  const DeviceInfo info = parse_device(device);
  typename Op::Plan plan;
  const Status status = Op::plan(problem, info, &plan, variant, nullptr);
  if (status.code() == StatusCode::not_supported) return {false, status.message()};
  raise_if_error(status);
  return {true, ""};
}

std::pair<bool, std::string> supports(const std::string& op, const py::dict& attributes, const py::dict& inputs,
                                      const std::string& variant, const py::dict& device) {
  if (op == attention_spec().name) return supports_op<Attention>(attributes, inputs, variant, device);
  if (op == gemm_spec().name) return supports_op<Gemm>(attributes, inputs, variant, device);
  throw py::value_error("unknown op \"" + op + "\", expected " + attention_spec().name + " or " + gemm_spec().name);
}

// ---- running ----

DeviceInfo device_info(const DLDevice& device) {
  if (device.device_type == kDlCpu) return cpu_device();
  if (device.device_type != kDlCuda)
    throw py::value_error("tensors lie on " + device_name(device) + ", expected CPU or CUDA");
  DeviceInfo info;
  raise_if_error(current_gpu_device(&info));
  if (info.ordinal != device.device_id)
    throw py::value_error("tensors lie on " + device_name(device) + " but the current device is GPU " +
                          std::to_string(info.ordinal));
  return info;
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// Memory for the plan's workspace: allocated here on the CPU, the caller's on a GPU.
class Workspace {
 public:
  Workspace(size_t bytes, const DLDevice& device, const py::object& given) {
    if (!given.is_none()) {
      const BorrowedTensor& tensor = tensor_.emplace("workspace", given);
      std::optional<DLDevice> common = device;
      join_device("workspace", tensor.device(), &common);
      expect_dense("workspace", tensor.view());
      const size_t size = static_cast<size_t>(tensor.view().elements()) * dtype_size(tensor.view().dtype);
      if (size < bytes)
        throw py::value_error("workspace has " + std::to_string(size) + " bytes, expected at least " +
                              std::to_string(bytes));
      data_ = tensor.view().data;
      if (reinterpret_cast<uintptr_t>(data_) % kWorkspaceAlignment != 0)
        throw py::value_error("workspace is not aligned to " + std::to_string(kWorkspaceAlignment) + " bytes");
    } else if (bytes > 0) {
      if (device.device_type != kDlCpu)
        throw py::value_error("workspace is missing: this plan needs " + std::to_string(bytes) + " bytes on " +
                              device_name(device));
      const size_t rounded = (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
      memory_.reset(std::aligned_alloc(kWorkspaceAlignment, rounded));
      if (!memory_) throw std::bad_alloc();
      data_ = memory_.get();
    }
  }

  void* data() const { return data_; }

 private:
  std::optional<BorrowedTensor> tensor_;
  std::unique_ptr<void, FreeDeleter> memory_;
  void* data_ = nullptr;
};

// DeviceCounter that knows where it lies.
class Counter {
 public:
  explicit Counter(const std::string& backend) : backend_(parse_backend(backend)) {
    raise_if_error(counter_.create(backend_));
  }

  uint64_t read() const {
    uint64_t count = 0;
    raise_if_error(counter_.read(&count));
    return count;
  }

  uint64_t* word_on(const DeviceInfo& device) const {
    if (device.backend != backend_)
      throw py::value_error(std::string("counter lies on ") + backend_name(backend_) + ", the tensors on " +
                            backend_name(device.backend));
    return counter_.word();
  }

 private:
  Backend backend_;
  DeviceCounter counter_;
};

template <typename Op>
py::dict run_op(const py::dict& attributes, const py::dict& inputs, const py::dict& outputs,
                const py::object& workspace, uintptr_t stream, const Wish& variant, const SplitWish& split,
                const std::optional<int>& threads, DeviceFault* fault, const Counter* counter) {
  const Tensors in = borrow(Op::spec().name, Op::spec().inputs, inputs);
  const auto problem = make_problem<Op>(attributes, in);
  Tensors out = borrow(Op::spec().name, Op::spec().outputs, outputs);
  Op::check_outputs(problem, in, out);
  if (!in.device) throw py::value_error(std::string(Op::spec().name) + ": no input lies on a device");
  join_device(std::string(Op::spec().name) + ": outputs", *in.device, &out.device);

  DeviceInfo device = device_info(*in.device);
  int thread_count = threads.value_or(device.threads);
  if (thread_count < 1) throw py::value_error("threads is " + std::to_string(thread_count) + ", expected at least 1");
  HostRuntime host;
  host.state = &thread_count;
  host.parallel_for = parallel_for;
  ExecutionContext context;
  context.stream = reinterpret_cast<void*>(stream);
  if (device.backend == Backend::cpu) {
    device.threads = thread_count;
    context.host = &host;
    raise_if_error(Op::check_values(problem, in));
  } else if (fault != nullptr) {
    raise_if_error(fault->take(Op::spec().name));
    context.fault = fault->device_word();
  }

  if (counter != nullptr) context.out_of_range_rows = counter->word_on(device);

  const typename Op::Plan plan = make_plan<Op>(problem, device, variant, split);
  const Workspace memory(plan.workspace_bytes, *in.device, workspace);
  Status status;
  {
    py::gil_scoped_release release;
    status = Op::run(problem, plan, in.views.data(), out.views.data(), memory.data(), context);
  }
  raise_if_error(status);
  return plan_dict(plan);
}

template <typename Wait>
Status without_gil(Wait wait) {
  py::gil_scoped_release release;
  return wait();
}

void force(const std::string& op, const std::optional<std::string>& variant) {
  raise_if_error(force_variant(op, variant.value_or("")));
}

py::list variant_dicts() {
  py::list list;
  for (const VariantInfo& v : list_variants()) {
    py::dict d;
    d["op"] = v.op;
    d["name"] = v.name;
    d["backend"] = backend_name(v.backend);
    d["kind"] = v.kind;
    d["summary"] = v.summary;
    list.append(d);
  }
  return list;
}

py::list plan_dicts() {
  py::list list;
  for (const PlanRecord& r : last_plans()) {
    py::dict d;
    d["op"] = r.op;
    d["node"] = r.node;
    d["variant"] = r.variant;
    d["reason"] = r.reason;
    d["problem"] = r.problem;
    d["num_splits"] = r.num_splits;
    d["workspace_bytes"] = r.workspace_bytes;
    d["out_of_range_rows"] = r.out_of_range_rows;
    list.append(d);
  }
  return list;
}

// Of the ops that the exporter writes.
py::list specs() {
  py::list list;
  list.append(spec_dict(attention_spec()));
  list.append(spec_dict(gemm_spec()));
  return list;
}

py::dict gpu(int ordinal) {
  DeviceInfo device;
  raise_if_error(gpu_device(ordinal, &device));
  return device_dict(device);
}

constexpr const char* kRunHelp = R"(Check, plan and run on the device that the tensors lie on.

`inputs` and `outputs` map the names of the op's spec to dense row-major tensors that speak DLPack (a product's A may be
a view whose rows lie one distance apart); None and left-out names are absent; total_sequence_length may be an int. All
outputs are the caller's (pass one tensor as past and present to append in place). `workspace`: on a GPU a uint8 tensor of
at least the plan's workspace_bytes; on the CPU not needed.
`stream`: the CUDA stream's handle as an int. `variant` names the variant for this call; `split` stands in for the
variant's own choice of {pieces, cluster, blocks_per_multiprocessor}, for a product of {pieces, rows, stages, algorithm};
`threads` sets the number of CPU threads; `fault` receives what only the GPU can see. `counter` counts the query rows of
attention (tokens times query heads) whose scores left the interval of the unified softmax.

Returns the plan: {variant, num_splits, split, workspace_bytes, reason}. Raises ValueError for wrong tensors or attributes,
NotImplementedError where no kernel takes them, RuntimeError for errors of the GPU.)";

constexpr const char* kPlanHelp = R"(Check and plan for `device` (cpu_device(), gpu_device(i), or such a dict made up).

Only shapes, types and total_sequence_length are read, so the tensors may lie anywhere. Returns and raises as the run
does; `variant` and `split` as there.)";

template <typename Op>
void bind_op(py::module_& m, const char* run_name, const char* plan_name) {
  m.def(run_name, &run_op<Op>, py::arg("attributes"), py::arg("inputs"), py::arg("outputs"), py::kw_only(),
        py::arg("workspace") = py::none(), py::arg("stream") = 0, py::arg("variant") = py::none(),
        py::arg("split") = py::none(), py::arg("threads") = py::none(), py::arg("fault") = nullptr, py::arg("counter") = nullptr, kRunHelp);
  m.def(plan_name, &plan_op<Op>, py::arg("attributes"), py::arg("inputs"), py::arg("device"), py::kw_only(),
        py::arg("variant") = py::none(), py::arg("split") = py::none(), kPlanHelp);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "FlashDecoding++ kernels over DLPack tensors: run, plan, enumerate and force them.";
  py::class_<DeviceFault>(m, "DeviceFault", "The word through which GPU kernels report bad values in device memory.")
      .def(py::init([] {
        auto fault = std::make_unique<DeviceFault>();
        raise_if_error(fault->create());
        return fault;
      }))
      .def(
          "take", [](DeviceFault& fault, const char* op) { raise_if_error(fault.take(op)); }, py::arg("op"),
          "Raises ValueError for the fault reported since the last call, and clears it.");
  py::class_<Counter>(m, "DeviceCounter", "A number that kernels of one backend (\"cpu\", \"cuda\") add to.")
      .def(py::init<const std::string&>(), py::arg("backend"))
      .def("read", &Counter::read, "What was counted so far; waits for the GPU.");
  py::class_<GpuStream>(m, "GpuStream", "A CUDA stream of GPU `ordinal` that waits for no other; it lives as long as this object.")
      .def(py::init([](int ordinal) {
             auto stream = std::make_unique<GpuStream>();
             raise_if_error(stream->create(ordinal));
             return stream;
           }),
           py::arg("ordinal") = 0)
      .def_property_readonly(
          "handle", [](const GpuStream& stream) { return reinterpret_cast<uintptr_t>(stream.handle()); },
          "The cudaStream_t as an int.")
      .def(
          "wait", [](const GpuStream& stream) { raise_if_error(without_gil([&] { return stream.wait(); })); },
          "Returns when all that was queued is done. RuntimeError: some of it failed.");
  py::class_<HostMailbox>(m, "HostMailbox", py::buffer_protocol(),
                          R"(Host memory, `bytes` zeros, that kernels on `stream` write through, and a mark in the stream. It is a
buffer: numpy.frombuffer() reads it.)")
      .def(py::init([](const GpuStream& stream, size_t bytes) {
             auto mailbox = std::make_unique<HostMailbox>();
             raise_if_error(mailbox->create(stream, bytes));
             return mailbox;
           }),
           py::arg("stream"), py::arg("bytes"))
      .def_buffer([](HostMailbox& mailbox) {
        return py::buffer_info(static_cast<uint8_t*>(mailbox.host()), static_cast<py::ssize_t>(mailbox.bytes()));
      })
      .def_property_readonly(
          "address", [](const HostMailbox& mailbox) { return reinterpret_cast<uintptr_t>(mailbox.device()); },
          "Where kernels find it, as an int.")
      .def(
          "mark", [](HostMailbox& mailbox, const GpuStream& stream) { raise_if_error(mailbox.mark(stream)); },
          py::arg("stream"), "Moves the mark behind all that is queued by now on `stream`.")
      .def(
          "wait", [](const HostMailbox& mailbox) { raise_if_error(without_gil([&] { return mailbox.wait(); })); },
          "Returns when the stream has come past the mark, at once where there is none. RuntimeError: work ahead of it failed.");
  bind_op<Attention>(m, "attention", "plan_attention");
  bind_op<Gemm>(m, "gemm", "plan_gemm");
  m.def("supports", &supports, py::arg("op"), py::arg("attributes"), py::arg("inputs"), py::arg("variant"),
        py::arg("device"), "Whether `variant` takes these tensors on `device`, and if not, why: (bool, str).");
  m.def("gemm_splits", &splits_of_gemm, py::arg("problem"), py::arg("device"), py::arg("variant"),
        R"(The splits of `variant` that are worth timing, its own choice first. NotImplementedError: it does not take the
problem, {m, n, k, dtype, weight_format, block_size, accuracy_level, has_bias, has_residual}; of int4 weights a
block_size that is left out is 32.)");
  m.def("library_rows", &library_rows, py::arg("m"),
        R"(The number of rows that a library is asked about in place of `m`: the algorithms of those that share it have the same
numbers.)");
  m.def("attention_splits", &splits_of_attention, py::arg("attributes"), py::arg("inputs"), py::arg("device"),
        py::arg("variant"),
        R"(The splits of `variant` that are worth timing, its own choice first. The arguments are plan_attention's, of which
as little is read. NotImplementedError: it does not take the problem.)");
  m.def("variants", &variant_dicts, "Every variant of this build: [{op, name, backend, kind, summary}].");
  m.def("op_specs", &specs, "The ops' signatures, attributes and in-place pairs.");
  m.def("cpu_device", [] { return device_dict(cpu_device()); }, "The processor that this process runs on.");
  m.def("gpu_device", &gpu, py::arg("ordinal") = 0, "One GPU; RuntimeError where there is none.");
  m.def("gpu_architectures", &gpu_architectures, "GPU architectures with machine code in this build; '' without.");
  m.def("force_variant", &force, py::arg("op"), py::arg("variant"),
        "Run `variant` for `op` from now on, wherever its backend runs; None lifts it.");
  m.def(
      "load_table", [](const std::string& path) { raise_if_error(load_table(path)); }, py::arg("path"),
      "Let the dispatch table at `path` decide on the device that it was measured on; '' forgets those loaded so.");
  m.def("last_plans", &plan_dicts, "The last plan of each graph node; calls of this module have node ''.");
  m.def("clear_plans", &clear_plans, "Forget all records.");
}

}  // namespace fdpp::python
