// One run of a node: views of its tensors, checked, with faults that say what was found where.

#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "operators.h"

namespace qcompile {

// What is wrong, for the user. Faults end at the library's boundary, where they become an OrtStatus.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The API of the runtime that loaded this library; set once, before anything else is called.
const OrtApi& Api();
void SetApi(const OrtApi* api);

// Throws the fault in `status`, if there is one, and releases it.
void Check(OrtStatus* status);

using Shape = std::vector<int64_t>;
constexpr int64_t kAny = -1;  // in a wanted shape: any length

struct Tensor {
  const void* data = nullptr;  // null: the operator has no such operand
  Shape shape;

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  int64_t last() const { return shape.back(); }
  int64_t rows() const;  // the product of all dimensions but the last
};

// "[2, 3]".
std::string Text(const Shape& shape);

// The tensors of one run. Operands are asked for by name.
class Call {
 public:
  // `alignment`: the bytes that each address must be a multiple of.
  Call(const Operator& op, const std::string& node, OrtKernelContext* context, size_t alignment)
      : op(op), context(context), node_(node), alignment_(alignment) {}

  // An input with at least one dimension and a last one that is not empty.
  Tensor Rows(const char* name) const;
  // An input of just this shape; without data when the operator has no such operand.
  Tensor Of(const char* name, const Shape& wanted) const;
  // An input of any shape, or without data.
  Tensor Find(const char* name) const;

  // Memory of an output, made for `rows` as the first input has them; null when nobody reads it.
  void* Result(const char* name, const Tensor& rows, int64_t n = 0) const;

  [[noreturn]] void Fail(const char* operand, const std::string& what) const;

  const Operator& op;
  OrtKernelContext* const context;

 private:
  void* Aligned(const char* operand, void* data) const;

  const std::string& node_;
  const size_t alignment_;
};

// A tensor of the runtime as it is.
Tensor View(const OrtValue* value, ONNXTensorElementDataType* type);

// The start of every message: "LinearW8A8 node 'n'".
std::string Described(const Operator& op, const std::string& node);

}  // namespace qcompile
