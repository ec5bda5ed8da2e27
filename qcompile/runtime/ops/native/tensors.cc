#include "tensors.h"

#include <cstring>
#include <memory>

namespace qcompile {
namespace {

const OrtApi* runtime_api = nullptr;

bool Fits(const Shape& found, const Shape& wanted) {
  if (found.size() != wanted.size()) return false;
  for (size_t i = 0; i < found.size(); ++i) {
    if (wanted[i] != kAny && wanted[i] != found[i]) return false;
  }
  return true;
}

}  // namespace

const OrtApi& Api() { return *runtime_api; }

void SetApi(const OrtApi* api) { runtime_api = api; }

void Check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = Api().GetErrorMessage(status);
  Api().ReleaseStatus(status);
  throw Fault(message);
}

std::string Text(const Shape& shape) {
  std::string text;
  for (const int64_t dim : shape) text += (text.empty() ? "" : ", ") + (dim == kAny ? "any" : std::to_string(dim));
  return "[" + text + "]";
}

Tensor View(const OrtValue* value, ONNXTensorElementDataType* type) {
  struct Release {
    void operator()(OrtTensorTypeAndShapeInfo* info) const { Api().ReleaseTensorTypeAndShapeInfo(info); }
  };
  OrtTensorTypeAndShapeInfo* made = nullptr;
  Check(Api().GetTensorTypeAndShape(value, &made));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, Release> info(made);
  Check(Api().GetTensorElementType(info.get(), type));
  size_t rank = 0;
  Check(Api().GetDimensionsCount(info.get(), &rank));
  Tensor tensor;
  tensor.shape.resize(rank);
  Check(Api().GetDimensions(info.get(), tensor.shape.data(), rank));
  void* data = nullptr;
  Check(Api().GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

std::string Described(const Operator& op, const std::string& node) {
  return "qcompile::" + op.name + " node '" + node + "'";
}

int64_t Tensor::rows() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

void Call::Fail(const char* operand, const std::string& what) const {
  throw Fault(Described(op, node_) + ": " + operand + " " + what);
}

void* Call::Aligned(const char* operand, void* data) const {
  if (reinterpret_cast<uintptr_t>(data) % alignment_ == 0) return data;
  Fail(operand, "starts at an address that is no multiple of " + std::to_string(alignment_) +
                    ": if it is a part of a larger tensor, bind a copy of it");
}

Tensor Call::Find(const char* name) const {
  for (size_t i = 0; i < op.inputs.size(); ++i) {
    if (std::strcmp(op.inputs[i].name, name) != 0) continue;
    const OrtValue* value = nullptr;
    Check(Api().KernelContext_GetInput(context, i, &value));
    if (value == nullptr) Fail(name, "is missing");
    ONNXTensorElementDataType type;
    Tensor tensor = View(value, &type);
    if (type != op.inputs[i].type) Fail(name, "has another element type than the operator's name says");
    Aligned(name, const_cast<void*>(tensor.data));
    return tensor;
  }
  return {};
}

Tensor Call::Rows(const char* name) const {
  Tensor tensor = Find(name);
  if (tensor.shape.empty()) Fail(name, "is a scalar, wanted [..., K]");
  if (tensor.last() < 1) Fail(name, "has shape " + Text(tensor.shape) + ": its rows are empty");
  return tensor;
}

Tensor Call::Of(const char* name, const Shape& wanted) const {
  Tensor tensor = Find(name);
  for (const Input& input : op.inputs) {
    if (std::strcmp(input.name, name) == 0 && !Fits(tensor.shape, wanted)) {
      Fail(name, "has shape " + Text(tensor.shape) + ", wanted " + Text(wanted));
    }
  }
  return tensor;
}

void* Call::Result(const char* name, const Tensor& rows, int64_t n) const {
  size_t count = 0;
  Check(Api().KernelContext_GetOutputCount(context, &count));
  for (size_t i = 0; i < op.outputs.size() && i < count; ++i) {
    const Output& output = op.outputs[i];
    if (std::strcmp(output.name, name) != 0) continue;
    Shape shape = rows.shape;
    if (output.last != Last::as_input) shape.back() = output.last == Last::one ? 1 : n;
    OrtValue* value = nullptr;
    Check(Api().KernelContext_GetOutput(context, i, shape.data(), shape.size(), &value));
    if (value == nullptr) break;
    void* data = nullptr;
    Check(Api().GetTensorMutableData(value, &data));
    return Aligned(name, data);
  }
  return nullptr;
}

}  // namespace qcompile
