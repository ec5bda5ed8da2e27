#include "operators.h"

#include <utility>

namespace qcompile {
namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kInt4 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4;
constexpr auto kUint4 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4;
constexpr auto kE4M3 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;

// A part of a name, and what it stands for.
template <class Meaning>
struct Part {
  const char* text;
  Meaning meaning;
};

constexpr Part<Type> kTypes[] = {{"", Type::f32}, {"Fp16", Type::f16}, {"Bf16", Type::bf16}};
constexpr Part<Activation> kActivations[] = {
    {"", Activation::none}, {"Relu", Activation::relu}, {"Gelu", Activation::gelu}, {"Silu", Activation::silu}};
constexpr Part<bool> kBiases[] = {{"", false}, {"Bias", true}};
constexpr Part<bool> kZeros[] = {{"", false}, {"Zero", true}};
constexpr Part<Code> kCodes[] = {{"", Code::int8}, {"E4M3", Code::e4m3}};

ONNXTensorElementDataType Element(Type type) {
  if (type == Type::f32) return kFloat;
  return type == Type::f16 ? kHalf : ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
}

ONNXTensorElementDataType Element(Code code) { return code == Code::int8 ? kInt8 : kE4M3; }

void AddQuantizeRows(std::vector<Operator>& all) {
  for (const auto& code : kCodes) {
    for (const auto& type : kTypes) {
      Operator op{std::string("QuantizeRows") + code.text + type.text, Family::quantize_rows, {}, {}};
      op.inputs = {{"x", Element(type.meaning)}};
      op.outputs = {{"x_q", Element(code.meaning), Last::as_input}, {"x_scale", kFloat, Last::one}};
      op.type = type.meaning;
      op.code = code.meaning;
      all.push_back(std::move(op));
    }
  }
}

// {Add}{Layer,RMS}NormQuant{E4M3}{T}
void AddNormQuant(std::vector<Operator>& all) {
  for (const bool rms : {false, true}) {
    for (const bool add : {false, true}) {
      for (const auto& code : kCodes) {
        for (const auto& type : kTypes) {
          const auto element = Element(type.meaning);
          const auto name = std::string(add ? "Add" : "") + (rms ? "RMS" : "Layer") + "NormQuant";
          Operator op{name + code.text + type.text, Family::norm_quant, {}, {}};
          op.inputs = {{"x", element}};
          if (add) op.inputs.push_back({"skip", element});
          op.inputs.push_back({"gamma", kFloat});
          if (!rms) op.inputs.push_back({"beta", kFloat});
          op.outputs = {{"y", element, Last::as_input, true}};
          if (add) op.outputs.push_back({"sum", element, Last::as_input, true});
          op.outputs.push_back({"x_q", Element(code.meaning), Last::as_input});
          op.outputs.push_back({"x_scale", kFloat, Last::one});
          op.type = type.meaning;
          op.code = code.meaning;
          op.rms = rms;
          all.push_back(std::move(op));
        }
      }
    }
  }
}

// The layers on codes: `codes` of x and w, results of each float type and, where `requant`, int8 results.
void AddLinear(std::vector<Operator>& all, const char* stem, Family family, Operands operands, bool requant) {
  const auto code = operands == Operands::int8 ? kInt8 : kE4M3;
  for (const auto& bias : kBiases) {
    for (const auto& activation : kActivations) {
      const auto name = std::string(stem) + bias.text + activation.text;
      Operator op{name, family, {{"x_q", code}, {"x_scale", kFloat}, {"w", code}, {"w_scale", kFloat}}, {}};
      if (bias.meaning) op.inputs.push_back({"bias", kFloat});
      op.operands = operands;
      op.activation = activation.meaning;
      for (const auto& type : kTypes) {
        Operator typed = op;
        typed.name += type.text;
        typed.type = type.meaning;
        typed.outputs = {{"y", Element(type.meaning), Last::rows_of_w}};
        all.push_back(std::move(typed));
      }
      if (requant) {
        op.name += "Requant";
        op.inputs.push_back({"y_scale", kFloat});
        op.outputs = {{"y_q", kInt8, Last::rows_of_w}};
        all.push_back(std::move(op));
      }
    }
  }
}

void AddLinearOutliers(std::vector<Operator>& all) {
  for (const auto& bias : kBiases) {
    for (const auto& activation : kActivations) {
      for (const auto& type : kTypes) {
        const auto element = Element(type.meaning);
        const auto name = std::string("LinearOutliersW8A8") + bias.text + activation.text + type.text;
        Operator op{name, Family::linear_outliers, {}, {}};
        op.inputs = {{"x", element}, {"keep", kFloat}, {"columns", kInt64}, {"w_columns", element}};
        op.inputs.insert(op.inputs.end(), {{"w", kInt8}, {"w_scale", kFloat}});
        if (bias.meaning) op.inputs.push_back({"bias", kFloat});
        op.outputs = {{"y", element, Last::rows_of_w}};
        op.activation = activation.meaning;
        op.type = type.meaning;
        all.push_back(std::move(op));
      }
    }
  }
}

void AddLinearW4A16(std::vector<Operator>& all) {
  for (const auto& zero : kZeros) {
    for (const auto& bias : kBiases) {
      for (const auto& type : kTypes) {
        const auto element = Element(type.meaning);
        const auto name = std::string("LinearW4A16") + zero.text + bias.text + type.text;
        Operator op{name, Family::linear_w4a16, {}, {}};
        op.inputs = {{"x", element}, {"w", zero.meaning ? kUint4 : kInt4}, {"w_scale", kHalf}};
        if (zero.meaning) op.inputs.push_back({"w_zero", kUint4});
        if (bias.meaning) op.inputs.push_back({"bias", kFloat});
        op.outputs = {{"y", element, Last::rows_of_w}};
        op.type = type.meaning;
        all.push_back(std::move(op));
      }
    }
  }
}

// Linear24 on float16 and bfloat16; float32 has no 2:4 instruction worth having.
void AddLinear24(std::vector<Operator>& all) {
  for (const auto& bias : kBiases) {
    for (const auto& activation : kActivations) {
      for (const auto& type : {kTypes[1], kTypes[2]}) {
        const auto element = Element(type.meaning);
        const auto name = std::string("Linear24") + bias.text + activation.text + type.text;
        Operator op{name, Family::linear_24, {{"x", element}, {"w", element}}, {}};
        if (bias.meaning) op.inputs.push_back({"bias", kFloat});
        op.outputs = {{"y", element, Last::rows_of_w}};
        op.type = type.meaning;
        op.activation = activation.meaning;
        all.push_back(std::move(op));
      }
    }
  }
}

std::string Listed(const std::vector<const char*>& names) {
  std::string text;
  for (const char* name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return "(" + text + ")";
}

}  // namespace

std::string Operator::signature() const {
  std::vector<const char*> in, out;
  for (const auto& input : inputs) in.push_back(input.name);
  for (const auto& output : outputs) out.push_back(output.name);
  return name + Listed(in) + " -> " + Listed(out);
}

const std::vector<Operator>& Catalogue() {
  static const std::vector<Operator> all = [] {
    std::vector<Operator> made;
    AddQuantizeRows(made);
    AddNormQuant(made);
    AddLinear(made, "LinearW8A8", Family::linear_w8a8, Operands::int8, true);
    AddLinear(made, "LinearE4M3", Family::linear_e4m3, Operands::e4m3, false);
    AddLinearOutliers(made);
    AddLinearW4A16(made);
    AddLinear24(made);
    AddLinear(made, "Linear24W8A8", Family::linear_24, Operands::int8, true);
    AddLinear(made, "Linear24E4M3", Family::linear_24, Operands::e4m3, false);
    return made;
  }();
  return all;
}

}  // namespace qcompile
