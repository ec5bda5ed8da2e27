// The operators of domain `qcompile`: names, operands, and what each variant means. All are version 1.

#pragma once

#include <onnxruntime_c_api.h>

#include <string>
#include <vector>

#include "arguments.h"

namespace qcompile {

enum class Family { quantize_rows, norm_quant, linear_w8a8, linear_e4m3, linear_outliers, linear_w4a16, linear_24 };

struct Input {
  const char* name;
  ONNXTensorElementDataType type;
};

// The last dimension of an output; the others are those of the first input.
enum class Last { as_input, one, rows_of_w };

struct Output {
  const char* name;
  ONNXTensorElementDataType type;
  Last last;
  bool optional = false;
};

struct Operator {
  std::string name;
  Family family;
  std::vector<Input> inputs;
  std::vector<Output> outputs;
  Type type = Type::f32;
  Code code = Code::int8;
  Operands operands = Operands::floats;
  Activation activation = Activation::none;
  bool rms = false;

  // As text: "QuantizeRows(x) -> (x_q, x_scale)".
  std::string signature() const;
};

// All of them, in one fixed order.
const std::vector<Operator>& Catalogue();

}  // namespace qcompile
