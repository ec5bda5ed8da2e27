#include "kernels.h"

#include "cpu/families.h"
#include "tensors.h"

#ifdef QCOMPILE_CUDA
#include "cuda/families.h"
#else
using cudaStream_t = void*;
#endif

namespace qcompile {
namespace {

// Vector loads and the tensor memory accelerator want it. The runtime's own tensors are aligned better, but a user may
// bind a part of a tensor.
constexpr size_t kCudaAlignment = 16;

// What a family computes with.
template <class Args>
struct Functions {
  void (*cpu)(const Args&);
  size_t (*workspace)(const Args&);
  const char* (*cuda)(const Args&, void* workspace, cudaStream_t);
};

#ifdef QCOMPILE_CUDA
#define QCOMPILE_FUNCTIONS(F) {cpu::F, cuda::F##_workspace, cuda::F}
#else
#define QCOMPILE_FUNCTIONS(F) {cpu::F, nullptr, nullptr}
#endif

constexpr Functions<QuantizeRowsArguments> kQuantizeRows = QCOMPILE_FUNCTIONS(QuantizeRows);
constexpr Functions<NormQuantArguments> kNormQuant = QCOMPILE_FUNCTIONS(NormQuant);
constexpr Functions<LinearArguments> kLinearW8A8 = QCOMPILE_FUNCTIONS(LinearW8A8);
constexpr Functions<LinearArguments> kLinearE4M3 = QCOMPILE_FUNCTIONS(LinearE4M3);
constexpr Functions<OutlierLinearArguments> kLinearOutliersW8A8 = QCOMPILE_FUNCTIONS(LinearOutliersW8A8);
constexpr Functions<BlockLinearArguments> kLinearW4A16 = QCOMPILE_FUNCTIONS(LinearW4A16);
constexpr Functions<SparseLinearArguments> kLinear24 = QCOMPILE_FUNCTIONS(Linear24);

// Memory on the device for the length of one launch. It goes back to the arena in the order of the stream, so that
// the next kernel there may have it.
class Workspace {
 public:
  Workspace(OrtAllocator* allocator, OrtKernelContext* context, size_t bytes) : allocator_(allocator) {
    if (bytes == 0) return;
    const OrtMemoryInfo* memory = nullptr;
    Check(Api().AllocatorGetInfo(allocator, &memory));
    Check(Api().KernelContext_GetScratchBuffer(context, memory, bytes, &data_));
  }
  ~Workspace() {
    if (data_ != nullptr) allocator_->Free(allocator_, data_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  OrtAllocator* allocator_;
  void* data_ = nullptr;
};

// Runs the kernel of one family on the node's provider.
class Launcher {
 public:
  Launcher(const Call& call, Provider provider, OrtAllocator* allocator)
      : call_(call), provider_(provider), allocator_(allocator) {}

  template <class Args>
  void operator()(const Functions<Args>& functions, const Args& args) const {
    if (provider_ == Provider::cpu) {
      functions.cpu(args);
      return;
    }
    void* stream = nullptr;
    Check(Api().KernelContext_GetGPUComputeStream(call_.context, &stream));
    const Workspace workspace(allocator_, call_.context, functions.workspace(args));
    const char* fault = functions.cuda(args, workspace.data(), static_cast<cudaStream_t>(stream));
    if (fault != nullptr) call_.Fail("the CUDA kernel:", fault);
  }

 private:
  const Call& call_;
  const Provider provider_;
  OrtAllocator* const allocator_;
};

void QuantizeRows(const Call& call, const Launcher& launch) {
  const Tensor x = call.Rows("x");
  QuantizeRowsArguments args{};
  args.m = x.rows();
  args.k = x.last();
  args.x = x.data;
  args.type = call.op.type;
  args.code = call.op.code;
  args.x_q = call.Result("x_q", x);
  args.x_scale = static_cast<float*>(call.Result("x_scale", x));
  if (args.m > 0) launch(kQuantizeRows, args);
}

void NormQuant(const Call& call, const Launcher& launch, float epsilon) {
  const Tensor x = call.Rows("x");
  NormQuantArguments args{};
  args.m = x.rows();
  args.k = x.last();
  args.x = x.data;
  args.skip = call.Of("skip", x.shape).data;
  args.gamma = call.Of("gamma", {args.k}).as<float>();
  args.beta = call.Of("beta", {args.k}).as<float>();
  args.epsilon = epsilon;
  args.rms = call.op.rms;
  args.type = call.op.type;
  args.code = call.op.code;
  args.x_q = call.Result("x_q", x);
  args.x_scale = static_cast<float*>(call.Result("x_scale", x));
  args.y = call.Result("y", x);
  args.sum = call.Result("sum", x);
  if (args.m > 0) launch(kNormQuant, args);
}

// The weight [n, k] that fits the rows of x.
Tensor Weight(const Call& call, int64_t k) {
  const Tensor w = call.Of("w", {kAny, k});
  if (w.shape[0] < 1) call.Fail("w", "has no rows");
  return w;
}

// One scale for all rows, shape [1], or one for each, shape [..., 1].
Tensor RowScale(const Call& call, const Tensor& x) {
  const Tensor scale = call.Find("x_scale");
  Shape rows = x.shape;
  rows.back() = 1;
  return scale.shape == Shape{1} ? scale : call.Of("x_scale", rows);
}

LinearArguments Linear(const Call& call, bool codes) {
  const Tensor x = call.Rows(codes ? "x_q" : "x");
  const Tensor w = Weight(call, x.last());
  LinearArguments args{};
  args.m = x.rows();
  args.n = w.shape[0];
  args.k = x.last();
  args.x = x.data;
  args.w = w.data;
  if (codes) {
    const Tensor scale = RowScale(call, x);
    args.x_scale = scale.as<float>();
    args.scale_per_row = scale.shape.size() == x.shape.size() && args.m > 1;
    args.w_scale = call.Of("w_scale", {args.n}).as<float>();
  }
  args.bias = call.Of("bias", {args.n}).as<float>();
  args.activation = call.op.activation;
  args.type = call.op.type;
  args.y_scale = call.Of("y_scale", {1}).as<float>();
  args.y = call.Result(call.op.outputs[0].name, x, args.n);
  return args;
}

void LinearOutliersW8A8(const Call& call, const Launcher& launch) {
  const Tensor x = call.Rows("x");
  const Tensor w = Weight(call, x.last());
  const Tensor columns = call.Of("columns", {kAny});
  OutlierLinearArguments args{};
  args.m = x.rows();
  args.n = w.shape[0];
  args.k = x.last();
  args.outliers = columns.shape[0];
  args.x = x.data;
  args.keep = call.Of("keep", {args.k}).as<float>();
  args.columns = columns.as<int64_t>();
  args.w_columns = call.Of("w_columns", {args.outliers, args.n}).data;
  args.w = w.data;
  args.w_scale = call.Of("w_scale", {args.n}).as<float>();
  args.bias = call.Of("bias", {args.n}).as<float>();
  args.activation = call.op.activation;
  args.type = call.op.type;
  args.y = call.Result("y", x, args.n);
  if (args.m > 0) launch(kLinearOutliersW8A8, args);
}

void LinearW4A16(const Call& call, const Launcher& launch, int64_t block) {
  const Tensor x = call.Rows("x");
  if (x.last() % block != 0) {
    call.Fail("x", "has rows of " + std::to_string(x.last()) + ", no multiple of block_size " + std::to_string(block));
  }
  const Tensor w = Weight(call, x.last());
  BlockLinearArguments args{};
  args.m = x.rows();
  args.n = w.shape[0];
  args.k = x.last();
  args.block = block;
  args.x = x.data;
  args.w = w.as<uint8_t>();
  const Shape blocks{args.n, args.k / block};
  args.w_scale = call.Of("w_scale", blocks).as<uint16_t>();
  args.w_zero = call.Of("w_zero", blocks).as<uint8_t>();
  args.bias = call.Of("bias", {args.n}).as<float>();
  args.type = call.op.type;
  args.y = call.Result("y", x, args.n);
  if (args.m > 0) launch(kLinearW4A16, args);
}

}  // namespace

Kernel::Kernel(const Operator& op, Provider provider, const OrtKernelInfo* info) : op_(op), provider_(provider) {
  size_t size = 0;
  Check(Api().KernelInfo_GetNodeName(info, nullptr, &size));
  node_.resize(size);
  Check(Api().KernelInfo_GetNodeName(info, node_.data(), &size));
  node_.resize(size > 0 ? size - 1 : 0);  // without the final zero
  const auto given = [&](const char* attribute, OrtStatus* status) {
    if (status == nullptr) return;
    Api().ReleaseStatus(status);
    throw Fault(Described(op, node_) + ": attribute " + attribute + " is missing or of another type");
  };
  if (op.family == Family::norm_quant) {
    given("epsilon", Api().KernelInfoGetAttribute_float(info, "epsilon", &epsilon_));
  }
  if (op.family == Family::linear_w4a16) {
    given("block_size", Api().KernelInfoGetAttribute_int64(info, "block_size", &block_));
    if (block_ != 32 && block_ != 64 && block_ != 128) {
      throw Fault(Described(op, node_) + ": block_size is " + std::to_string(block_) + ", wanted 32, 64 or 128");
    }
  }
  if (provider == Provider::cuda) Prepare(info);
}

#ifdef QCOMPILE_CUDA
void Kernel::Prepare(const OrtKernelInfo* info) {
  OrtAllocator* allocator = nullptr;
  Check(Api().KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator));
  allocator_.reset(allocator, [](OrtAllocator* held) { Api().ReleaseAllocator(held); });
  if (op_.family != Family::linear_24) return;
  SparseLinearArguments args{};
  args.operands = op_.operands;
  args.linear.type = op_.type;
  args.linear.activation = op_.activation;
  for (size_t i = 0; i < op_.inputs.size(); ++i) {
    const std::string name = op_.inputs[i].name;
    if (name != "w" && name != "bias") continue;
    int constant = 0;
    const OrtValue* value = nullptr;
    Check(Api().KernelInfoGetConstantInput_tensor(info, i, &constant, &value));
    if (constant == 0) throw Fault(Described(op_, node_) + ": " + name + " is no initializer");
    ONNXTensorElementDataType type;
    const Tensor tensor = View(value, &type);
    const size_t rank = name == "w" ? 2 : 1;
    if (tensor.shape.size() != rank || (rank == 1 && tensor.shape[0] != args.linear.n)) {
      throw Fault(Described(op_, node_) + ": " + name + " has shape " + Text(tensor.shape));
    }
    if (name == "w") {
      args.linear.w = tensor.data;
      args.linear.n = tensor.shape[0];
      args.linear.k = tensor.shape[1];
    } else {
      args.linear.bias = tensor.as<float>();
    }
  }
  const std::string fault = cuda::Linear24_prepare(args, &prepared_);
  if (!fault.empty()) throw Fault(Described(op_, node_) + ": " + fault);
}
#else
void Kernel::Prepare(const OrtKernelInfo*) {}
#endif

void Kernel::Run(OrtKernelContext* context) const {
  const Call call(op_, node_, context, provider_ == Provider::cuda ? kCudaAlignment : 1);
  const Launcher launch(call, provider_, allocator_.get());
  switch (op_.family) {
    case Family::quantize_rows: return QuantizeRows(call, launch);
    case Family::norm_quant: return NormQuant(call, launch, epsilon_);
    case Family::linear_outliers: return LinearOutliersW8A8(call, launch);
    case Family::linear_w4a16: return LinearW4A16(call, launch, block_);
    case Family::linear_w8a8:
    case Family::linear_e4m3: {
      const LinearArguments args = Linear(call, true);
      if (args.m > 0) launch(op_.family == Family::linear_w8a8 ? kLinearW8A8 : kLinearE4M3, args);
      return;
    }
    case Family::linear_24: {
      const SparseLinearArguments args{Linear(call, op_.operands != Operands::floats), op_.operands, prepared_.get()};
      if (args.linear.m > 0) launch(kLinear24, args);
      return;
    }
  }
}

}  // namespace qcompile
